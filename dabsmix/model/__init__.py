"""The shared encoder: embedders for every kind of input, the transformer, and the file that holds an encoder.

This room may import the ground floor alone (`spec`, `errors`, `files`). It knows no data set and no algorithm.
"""
