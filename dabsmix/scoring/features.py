"""Features of a whole split from one pass of the frozen encoder in eval mode, which all processes share.

A batch is in memory at a time. What is returned lies in a file where it is large, see `cache.scratch`.
"""

# n examples, B of a batch, D width, L tokens

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dabsmix.data.cache import scratch
from dabsmix.data.domain import Split
from dabsmix.model.encoder import Encoder, Pooled, Transformer

__all__ = ["all_poolings", "each_row", "features", "token_features"]

Inputs = tuple[Tensor, ...]
Normalise = Callable[[Inputs], Inputs]
BATCH_SIZE = 256  # examples of a pass; the features do not depend on it, up to float rounding
WatchBatches = Callable[[Iterable[int]], Iterable[int]]


def features(
    encoder: Encoder,
    split: Split,
    normalise: Normalise,
    *,
    accelerator: Accelerator,
    batch_size: int = BATCH_SIZE,
    autocast: bool = False,
    dropout: bool = False,
    watch: WatchBatches = iter,
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
        return torch.cat(encoder(inputs), dim=1)

    batches = _batches(encoder, both, split, normalise, accelerator, batch_size, autocast, dropout, watch)
    return Pooled(*_collected(batches, len(split), (encoder.width, encoder.width)))


def all_poolings(
    encoder: Transformer,
    split: Split,
    normalise: Normalise,
    *,
    accelerator: Accelerator,
    batch_size: int = BATCH_SIZE,
    watch: WatchBatches = iter,
) -> dict[str, Tensor]:
    """``mean`` and ``cls`` as `features` gives them, and ``blocks``, the means of all blocks: ``(n, depth · D)``."""

    def every(inputs: Inputs) -> Tensor:
        pooled, blocks = encoder.pool_blocks(inputs)
        return torch.cat([pooled.mean, pooled.cls, blocks], dim=1)

    widths = (encoder.width, encoder.width, len(encoder.blocks) * encoder.width)
    batches = _batches(encoder, every, split, normalise, accelerator, batch_size, watch=watch)
    return dict(zip(("mean", "cls", "blocks"), _collected(batches, len(split), widths), strict=True))


def token_features(
    encoder: Encoder,
    split: Split,
    normalise: Normalise,
    *,
    accelerator: Accelerator,
    batch_size: int = BATCH_SIZE,
    autocast: bool = False,
    dropout: bool = False,
    watch: WatchBatches = iter,
) -> Tensor:
    """The features of every token but CLS, ``(n, L, D)``, for tasks of one label per token; else as `features`."""

    def tokens(inputs: Inputs) -> Tensor:
        return encoder.encode(encoder.embed(inputs))[:, 1:]

    shape = (encoder.num_tokens, encoder.width)
    return each_row(encoder, tokens, shape, split, normalise, accelerator, batch_size, autocast, dropout, watch)


def each_row(
    network: nn.Module,
    read: Callable[[Inputs], Tensor],
    shape: tuple[int, ...],
    split: Split,
    normalise: Normalise,
    accelerator: Accelerator,
    batch_size: int = BATCH_SIZE,
    autocast: bool = False,
    dropout: bool = False,
    watch: WatchBatches = iter,
) -> Tensor:
    """What ``read`` makes of every example of a split, in its order, on every process: float32 ``(n, *shape)``, CPU.

    Args:
        network: what ``read`` runs; put in eval mode and back as it was.
        read: normalised inputs of B examples to ``(B, *shape)``.
        shape: of one example's.
        split, normalise, accelerator, batch_size, autocast, dropout, watch: as in `features`.
    """
    rows = torch.from_numpy(scratch((len(split), *shape)))
    for place, batch in _batches(network, read, split, normalise, accelerator, batch_size, autocast, dropout, watch):
        rows[place] = batch
    return rows


def _collected(batches: Iterator[tuple[slice, Tensor]], n: int, widths: tuple[int, ...]) -> list[Tensor]:
    """The columns of all batches in parts of these widths, each part contiguous: ``(n, width)``."""
    parts = [torch.from_numpy(scratch((n, width))) for width in widths]
    for place, rows in batches:
        for part, columns in zip(parts, torch.split(rows, list(widths), dim=1), strict=True):
            part[place] = columns
    return parts


@torch.no_grad()
def _batches(
    network: nn.Module,
    read: Callable[[Inputs], Tensor],
    split: Split,
    normalise: Normalise,
    accelerator: Accelerator,
    batch_size: int = BATCH_SIZE,
    autocast: bool = False,
    dropout: bool = False,
    watch: WatchBatches = iter,
) -> Iterator[tuple[slice, Tensor]]:
    """As `each_row`, a batch at a time: its place in the split, and float32 ``(B, *shape)`` on the CPU.

    Each process encodes its contiguous share of the split and receives the batches of all.
    """
    device, world, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
    ends = np.cumsum([0, *map(len, np.array_split(np.arange(len(split)), world))]).tolist()
    was_training = network.training
    network.train(dropout)
    try:
        for start in watch(range(0, ends[1], batch_size)):  # the first share is as long as any
            spans = [slice(min(a + start, b), min(a + start + batch_size, b)) for a, b in itertools.pairwise(ends)]
            sizes = [span.stop - span.start for span in spans]
            # a process whose share has ended encodes example 0 once more, so that all have rows of one shape to gather
            index = np.arange(spans[rank].start, spans[rank].stop) if sizes[rank] else np.zeros(1, np.int64)
            with accelerator.autocast() if autocast else nullcontext():
                rows = read(normalise(tuple(x.to(device, non_blocking=True) for x in split.batch(index)))).float()
            if world > 1:
                padded = rows.new_zeros(sizes[0], *rows.shape[1:])
                padded[: sizes[rank]] = rows[: sizes[rank]]
                rows = accelerator.gather(padded)
            for span, part, size in zip(spans, torch.split(rows.cpu(), sizes[0]), sizes, strict=True):
                yield span, part[:size]
    finally:
        network.train(was_training)
