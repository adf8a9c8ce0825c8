"""The training loader: the examples of a step, and the views of them, are a function of (seed, step) alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dabsmix.data.domain import Data, Split
from dabsmix.errors import UserError

__all__ = ["Batches", "Raw", "make_views", "step_seed"]

AHEAD = 3
"""Batches that are read ahead while the device computes, each by a thread of its own, and so held in memory."""


class Raw(NamedTuple):
    """One step's examples on this process, as stored: inputs, labels if there are any, and indices into the split."""

    inputs: tuple[Tensor, ...]
    label: Tensor | None
    ids: Tensor


def step_seed(seed: int, step: int, purpose: str = "", rank: int = 0) -> int:
    """A 63-bit seed for one step, hashed so that neighbouring seeds and steps are independent."""
    digest = hashlib.blake2b(f"{seed}/{step}/{purpose}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Batches:
    """Global batches of a split, of which this process reads its share.

    Each epoch is a new permutation of the split seeded by (seed, epoch); an incomplete batch at its end is dropped.
    Step k's global batch is the same for every number of processes; process r reads the r-th of P equal parts.

    Args:
        split: the examples.
        batch_size: over all processes.
        seed: of the permutations.
        rank, world_size: the number of this process, and how many there are.

    Raises:
        UserError: the batch is larger than the split, or does not divide by the number of processes.
    """

    def __init__(self, split: Split, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size > len(split):
            raise UserError(
                f"--batch-size {batch_size} is larger than the {len(split)} examples to pretrain on: "
                f"give at most {len(split)}"
            )
        if batch_size % world_size:
            raise UserError(f"--batch-size {batch_size} does not divide by {world_size} processes: give a multiple")
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = len(split) // batch_size
        share = batch_size // world_size
        self._mine = slice(rank * share, (rank + 1) * share)
        # the permutation of the current epoch is needed at every step
        self._permutation = lru_cache(maxsize=2)(self._draw_permutation)

    def _draw_permutation(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng(step_seed(self.seed, epoch, "epoch")).permutation(len(self.split))

    def index(self, step: int) -> NDArray[np.int64]:
        """Indices into the split of the step's global batch, int64 ``(batch_size,)``."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        start = step_of_epoch * self.batch_size
        return self._permutation(epoch)[start : start + self.batch_size]

    def read(self, step: int) -> Raw:
        """This process's part of the step's batch, on the CPU."""
        index = self.index(step)[self._mine]
        label = self.split.label
        return Raw(
            self.split.batch(index),
            None if label is None else torch.from_numpy(np.ascontiguousarray(label[index])),
            torch.from_numpy(index),
        )

    def iterate(self, start: int, stop: int, device: torch.device) -> Iterator[Raw]:
        """Batches of steps ``start`` to ``stop - 1`` on the device, read ahead by `AHEAD` threads.

        Each reads a whole batch, so that the waiting times of a slow disk or a network overlap.
        """
        pin = device.type == "cuda"

        def ready(step: int) -> Raw:
            raw = self.read(step)
            return _map(raw, Tensor.pin_memory) if pin else raw

        with ThreadPoolExecutor(max_workers=AHEAD) as readers:
            queue: list[Future[Raw]] = [readers.submit(ready, step) for step in range(start, min(start + AHEAD, stop))]
            for step in range(start, stop):
                raw = queue.pop(0).result()
                if step + AHEAD < stop:
                    queue.append(readers.submit(ready, step + AHEAD))
                yield _map(raw, lambda t: t.to(device, non_blocking=True)) if pin else raw


def _map(raw: Raw, change: Callable[[Tensor], Tensor]) -> Raw:
    label = None if raw.label is None else change(raw.label)
    return Raw(tuple(change(x) for x in raw.inputs), label, change(raw.ids))


def make_views(data: Data, stored: tuple[Tensor, ...], augmented: int, seed: int) -> tuple[tuple[Tensor, ...], ...]:
    """The views of a batch: the normalised inputs themselves, or several augmentations of them by the domain.

    Args:
        data: has the functions that normalise and augment.
        stored: one tensor per input, as in `Raw`.
        augmented: how many augmented views to make; 0 for the normalised inputs.
        seed: of the augmentations, the same on every process.
    """
    inputs = data.normalise(stored)
    if not augmented or data.augment is None:
        return (inputs,)
    generator = torch.Generator(inputs[0].device).manual_seed(seed)
    return tuple(data.augment(inputs, generator) for _ in range(augmented))
