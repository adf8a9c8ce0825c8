"""Features of a whole split from one pass of the frozen encoder in eval mode, which all processes share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dabsmix.data.domain import Split
from dabsmix.model.encoder import Encoder, Pooled, Transformer

__all__ = ["all_poolings", "each_row", "features", "token_features"]

Inputs = tuple[Tensor, ...]
Normalise = Callable[[Inputs], Inputs]
Watch = Callable[[Iterable[int]], Iterable[int]]


def features(
    encoder: Encoder,
    split: Split,
    normalise: Normalise,
    *,
    accelerator: Accelerator,
    batch_size: int = 256,
    autocast: bool = False,
    dropout: bool = False,
    watch: Watch = iter,
) -> Pooled:
    """Mean and CLS features of every example of a split, in its order, on every process: float32 ``(n, D)``, CPU.

    Args:
        encoder: put in eval mode for the pass, then restored.
        split: the examples; each process encodes a contiguous part, no example twice.
        normalise: ``Data.normalise``.
        accelerator: has the device and the processes.
        batch_size: examples per pass and process; the result does not depend on it (up to float rounding).
        autocast: run in the accelerator's mixed precision (online scores) instead of float32.
        dropout: leave the encoder's dropout on, as DABS's transfer does.
        watch: wraps the batches, for a progress bar.
    """

    def both(inputs: Inputs) -> Tensor:
        return torch.stack(encoder(inputs), dim=1)

    found = each_row(
        encoder, both, (2, encoder.width), split, normalise, accelerator, batch_size, autocast, dropout, watch
    )
    return Pooled(found[:, 0], found[:, 1])


def all_poolings(
    encoder: Transformer,
    split: Split,
    normalise: Normalise,
    *,
    accelerator: Accelerator,
    batch_size: int = 256,
    watch: Watch = iter,
) -> dict[str, Tensor]:
    """``mean`` and ``cls`` as `features` gives them, and ``blocks``, the means of all blocks: ``(n, depth · D)``."""

    def every(inputs: Inputs) -> Tensor:
        pooled, blocks = encoder.pool_blocks(inputs)
        return torch.cat([pooled.mean, pooled.cls, blocks], dim=1)

    width, depth = encoder.width, len(encoder.blocks)
    shape = ((2 + depth) * width,)
    found = each_row(encoder, every, shape, split, normalise, accelerator, batch_size, watch=watch)
    return {"mean": found[:, :width], "cls": found[:, width : 2 * width], "blocks": found[:, 2 * width :]}


def token_features(
    encoder: Encoder,
    split: Split,
    normalise: Normalise,
    *,
    accelerator: Accelerator,
    batch_size: int = 256,
    autocast: bool = False,
    dropout: bool = False,
    watch: Watch = iter,
) -> Tensor:
    """The features of every token but CLS, ``(n, L, D)``, for tasks of one label per token; else as `features`."""

    def tokens(inputs: Inputs) -> Tensor:
        return encoder.encode(encoder.embed(inputs))[:, 1:]

    shape = (encoder.num_tokens, encoder.width)
    return each_row(encoder, tokens, shape, split, normalise, accelerator, batch_size, autocast, dropout, watch)


@torch.no_grad()
def each_row(
    network: nn.Module,
    read: Callable[[Inputs], Tensor],
    shape: tuple[int, ...],
    split: Split,
    normalise: Normalise,
    accelerator: Accelerator,
    batch_size: int = 256,
    autocast: bool = False,
    dropout: bool = False,
    watch: Watch = iter,
) -> Tensor:
    """What ``read`` makes of every example of a split, in its order, on every process: float32 ``(n, *shape)``, CPU.

    Args:
        network: what ``read`` runs; put in eval mode and back as it was.
        read: normalised inputs of B examples to ``(B, *shape)``.
        shape: of one example's.
        split, normalise, accelerator, batch_size, autocast, dropout, watch: as in `features`.
    """
    device, world = accelerator.device, accelerator.num_processes
    parts = np.array_split(np.arange(len(split)), world)
    mine = parts[accelerator.process_index]
    found = torch.empty(len(mine), *shape)
    was_training = network.training
    network.train(dropout)
    with accelerator.autocast() if autocast else nullcontext():
        for start in watch(range(0, len(mine), batch_size)):
            index = mine[start : start + batch_size]
            inputs = normalise(tuple(x.to(device, non_blocking=True) for x in split.batch(index)))
            found[start : start + len(index)] = read(inputs)
    network.train(was_training)
    if world == 1:
        return found
    # uneven shares: pad to the longest, gather, and cut each back to its length
    longest = max(len(part) for part in parts)
    padded = torch.zeros(longest, math.prod(shape), device=device)
    padded[: len(mine)] = found.flatten(1).to(device)
    gathered = accelerator.gather(padded).cpu().view(world, longest, *shape)
    return torch.cat([gathered[r, : len(part)] for r, part in enumerate(parts)])
