"""Projection heads: from a pooled feature to the space in which instances are told apart."""

from torch import nn

__all__ = ["dabs_head"]


def dabs_head(width: int) -> nn.Module:
    """LayerNorm and Linear to 128 (DABS, Tamkin et al. 2021): ``(B, width)`` to ``(B, 128)``."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128))
