"""One file per algorithm; the file's name is its name on the command line."""
