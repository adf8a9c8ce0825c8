"""What pretraining algorithms are made of: their contract, views, mixing, masking, contrasts, heads, momentum copies.

A file in ``algorithms/`` puts these together. This room may import ``model``, the contract in ``data.domain`` and the
ground floor; it never sees a loader, an optimizer or a file.
"""
