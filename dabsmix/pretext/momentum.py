"""Momentum encoders and the queue of their past outputs."""

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dabsmix.pretext.contrast import unit

__all__ = ["Queue", "follow", "momentum_at", "momentum_copy"]

Module = TypeVar("Module", bound=nn.Module)


def momentum_copy(module: Module) -> Module:
    """A copy without gradient, which `follow` updates."""
    return copy.deepcopy(module).requires_grad_(False)


def follow(key: nn.Module, query: nn.Module, momentum: float) -> None:
    """``θ_key ← m θ_key + (1-m) θ_query`` for every parameter.

    Buffers are not updated: batch norm's running statistics come from the key's own passes, as in i-Mix's code.
    """
    keys, queries = list(key.parameters()), list(query.parameters())
    get_ema_multi_avg_fn(momentum)(keys, queries, 0)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def momentum_at(progress: float, momentum: float, *, cosine: bool) -> float:
    """The momentum after a share of training: constant, or rising to 1 by half a cosine (BYOL, Grill et al. 2020).

    ``1 - (1 - m) (1 + cos(π progress)) / 2``.
    """
    return 1 - (1 - momentum) * (1 + math.cos(math.pi * progress)) / 2 if cosine else momentum


class Queue(nn.Module):
    """The last ``length`` keys ``(length, dim)``, first in first out; initially random unit vectors (MoCo).

    Every process holds the same queue, since each pushes the keys of all processes.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", unit(torch.randn(length, dim)))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Write ``(n, dim)`` keys over the oldest; ``pointer`` is the next place. n need not divide the length."""
        length = len(self.keys)
        skipped = max(0, len(keys) - length)
        place = (self.pointer + torch.arange(skipped, len(keys), device=keys.device)) % length
        self.keys[place] = keys[skipped:].to(self.keys.dtype)
        self.pointer.copy_((self.pointer + len(keys)) % length)
