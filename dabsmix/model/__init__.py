"""The shared encoder: embedders for every kind of input, the transformer, and the file that an encoder is kept in.

This room may import the ground floor alone (`spec`, `errors`, `files`). It knows no data set and no algorithm.
"""
