"""One file per data set or family; the file's name is its name on the command line."""
