"""Pooled features of a whole split: the frozen encoder in eval mode, one pass, every process its share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from dabsmix.domain import Split
from dabsmix.encoder import Encoder, Pooled

__all__ = ["features"]

Normalise = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]


@torch.no_grad()
def features(
    encoder: Encoder,
    split: Split,
    normalise: Normalise,
    *,
    accelerator: Accelerator,
    batch_size: int = 256,
    autocast: bool = False,
    dropout: bool = False,
    watch: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Pooled:
    """Mean and CLS features of every example of a split, in its order, on every process: float32 ``(n, D)``, CPU.

    Args:
        encoder: put in eval mode for the pass and back as it was.
        split: the examples; each process encodes a contiguous part, no example twice.
        normalise: ``Data.normalise``.
        accelerator: says where and among how many processes.
        batch_size: examples per pass and process; the result does not depend on it (up to float rounding).
        autocast: run in the accelerator's mixed precision (online scores) instead of float32.
        dropout: leave the encoder's dropout on, as DABS's transfer does.
        watch: wraps the batches, for a progress bar.
    """
    device, world = accelerator.device, accelerator.num_processes
    parts = np.array_split(np.arange(len(split)), world)
    mine = parts[accelerator.process_index]
    was_training = encoder.training
    encoder.train(dropout)
    mean = torch.empty(len(mine), encoder.width)
    cls = torch.empty(len(mine), encoder.width)
    with accelerator.autocast() if autocast else nullcontext():
        for start in watch(range(0, len(mine), batch_size)):
            index = mine[start : start + batch_size]
            inputs = normalise(tuple(x.to(device, non_blocking=True) for x in split.batch(index)))
            pooled = encoder(inputs)
            mean[start : start + len(index)] = pooled.mean
            cls[start : start + len(index)] = pooled.cls
    encoder.train(was_training)
    if world == 1:
        return Pooled(mean, cls)
    # uneven shares: pad to the longest, gather, and cut each back to its length
    longest = max(len(part) for part in parts)
    padded = torch.zeros(longest, 2 * encoder.width, device=device)
    padded[: len(mine)] = torch.cat([mean, cls], dim=1).to(device)
    gathered = accelerator.gather(padded).cpu().view(world, longest, -1)
    whole = torch.cat([gathered[r, : len(part)] for r, part in enumerate(parts)])
    return Pooled(whole[:, : encoder.width], whole[:, encoder.width :])
