"""What pretraining algorithms are made of: a contract, views, operations on tokens, contrasts and momentum copies.

A file in ``algorithms/`` puts these together. This room may import ``model`` and the ground floor; it never sees a data
set, a loader, an optimizer or a file.
"""
