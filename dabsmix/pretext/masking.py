"""Choosing tokens of each example at random: which are masked, moved or taken from a partner.

B examples here, n in the global batch, L tokens (CLS not counted).
"""

import math

import numpy as np
import torch
from torch import Tensor

from dabsmix.distributed import all_sum, local, to_device, world_size
from dabsmix.model.encoder import Embedded

__all__ = ["choose", "corrupted", "draw_order", "mean_over", "real_tokens"]


def real_tokens(embedded: Embedded) -> Tensor:
    """Which tokens are not padding, bool ``(B, L)``."""
    if embedded.mask is not None:
        return embedded.mask
    return torch.ones(embedded.tokens.shape[:2], dtype=torch.bool, device=embedded.tokens.device)


def draw_order(rng: np.random.Generator, embedded: Embedded) -> Tensor:
    """Uniform draws ``(B, L)`` that put each example's tokens in a random order: this process's of the global batch."""
    size, length = embedded.tokens.shape[:2]
    order = rng.random((size * world_size(), length), dtype=np.float32)
    return local(to_device(order, embedded.tokens.device))


def choose(order: Tensor, count: Tensor, allowed: Tensor) -> Tensor:
    """``count`` ``(B,)`` of each example's allowed tokens, the first in ``order``: bool ``(B, L)``.

    With ``order`` from `draw_order` that is a uniform choice without replacement; fewer where fewer are allowed.
    """
    place = order.masked_fill(~allowed, torch.inf).argsort(dim=1).argsort(dim=1)
    return (place < count[:, None]) & allowed


def corrupted(real: Tensor, rate: float, *, least: int = 1) -> Tensor:
    """How many tokens of each example a corruption touches: ``max(least, ceil(rate · N))`` of its N real ones.

    Zero where it has fewer than ``least``; int64 ``(B,)``.
    """
    # by table, in float64 and for whole numbers: the same on every device
    numbers = range(real.shape[1] + 1)
    table = [min(n, max(least, math.ceil(rate * n))) if n >= least else 0 for n in numbers]
    return to_device(np.array(table), real.device)[real.sum(dim=1)]


def mean_over(values: Tensor, where: Tensor) -> Tensor:
    """The mean of the chosen ``values`` of the global batch, scaled for an average over processes.

    Processes may hold different numbers of chosen values (padding), so each divides its own sum by the mean count.
    """
    count = all_sum(where.sum().to(values.dtype)).clamp_min(1) / world_size()
    return torch.where(where, values, 0).sum() / count
