"""Sensor readings: recordings cut into windows of a fixed length, from text files of numbers or a user's own tables."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from dabsmix.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Standardise", "Windows", "fill_gaps", "read_numbers", "runs", "window_starts"]

# T readings, C channels, B windows


class Windows:
    """Windows of ``length`` readings, cut when they are asked for: some microseconds each.

    Args:
        readings: float32 ``(T, C)``, in memory or a memory map; all recordings, one after the other.
        starts: int64 ``(n,)``, the first reading of each window.
        length: readings in a window.
    """

    def __init__(self, readings: NDArray[np.float32], starts: NDArray[np.int64], length: int) -> None:
        if len(starts) and not 0 <= starts.min() <= starts.max() <= len(readings) - length:
            raise ValueError(f"a window of {length} readings leaves the {len(readings)} that there are")
        self.starts = starts
        self.views = sliding_window_view(readings, length, axis=0)  # (T - length + 1, C, length), nothing is copied

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.float32]:
        """Windows ``(B, C, length)``, copied."""
        return self.views[self.starts[rows]]


@dataclass(frozen=True)
class Standardise:
    """``Data.normalise``: each channel less its mean, over its standard deviation, on the batch's device.

    Attributes:
        mean, std: float32 ``(C,)``; a channel that is constant in training has ``std`` 1.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    @classmethod
    def of(cls, examples: Windows | NDArray[np.float32], rows: NDArray[np.int64]) -> Standardise:
        """The statistics of these training examples, each ``(C, ...)``, summed in double precision."""
        count, total, square = 0, np.zeros(1), np.zeros(1)
        for part in np.array_split(rows, -(-len(rows) // 1024)):
            values = examples[part].astype(np.float64)
            values = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
            count += values.shape[1]
            total = total + values.sum(1)
            square = square + np.square(values).sum(1)
        mean = total / count
        variance = square / count - mean**2
        # what cancellation leaves of a constant channel is about 1e-16 of its square
        constant = variance <= 1e-12 * mean**2
        std = np.sqrt(np.where(constant, 1.0, variance))
        return cls(mean.astype(np.float32), std.astype(np.float32))

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The one input ``(B, C, ...)``, standardised."""
        import torch

        (x,) = inputs
        shape = (-1, *[1] * (x.dim() - 2))
        mean, std = (torch.from_numpy(values).to(x.device).view(shape) for values in (self.mean, self.std))
        return ((x - mean) / std,)


def runs(*keys: NDArray[Any]) -> NDArray[np.int64]:
    """Where runs of equal keys begin, and after the last one the number of readings: ``(runs + 1,)``."""
    changes = np.zeros(len(keys[0]) - 1, dtype=bool)
    for key in keys:
        changes |= key[1:] != key[:-1]
    return np.concatenate([[0], np.flatnonzero(changes) + 1, [len(keys[0])]])


def window_starts(bounds: NDArray[np.int64], length: int, stride: int) -> NDArray[np.int64]:
    """First readings of windows every ``stride`` readings, none of which leaves its run (see `runs`)."""
    return np.concatenate([np.arange(start, end - length + 1, stride) for start, end in pairwise(bounds)]).astype(
        np.int64
    )


def fill_gaps(readings: NDArray[np.float64], place: str) -> NDArray[np.float64]:
    """Fill NaN within one recording ``(T, C)``: linearly between readings, at either end with the nearest reading.

    Raises:
        UserError: a channel has no reading at all.
    """
    time = np.arange(len(readings))
    out = readings.copy()
    for channel in range(readings.shape[1]):
        gap = np.isnan(readings[:, channel])
        if gap.all():
            raise UserError(f"{place}: channel {channel + 1} holds no reading at all; leave the file out or mend it")
        if gap.any():
            out[gap, channel] = np.interp(time[gap], time[~gap], readings[~gap, channel])
    return out


def read_numbers(path: Path, columns: int, *, gaps: bool = False) -> NDArray[np.float64]:
    """A text file of numbers between blanks, without a header: ``(rows, columns)``.

    Args:
        path: the file.
        columns: how many numbers a row has.
        gaps: whether ``NaN`` may stand for a reading that was not taken.

    Raises:
        UserError: the file is missing, empty or truncated, a row has another number of columns, or a value is no
            finite number; with file and row (counted from 1).
    """
    import pandas as pd

    try:
        with path.open("rb") as stream:
            widths = np.array([len(line.split()) for line in stream])
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fetch it again") from error
    if len(widths) == 0:
        raise UserError(f"{path}: empty; fetch it again")
    if (wrong := np.flatnonzero(widths != columns)).size:
        row = wrong[0]
        cut = "; the file is truncated" if row == len(widths) - 1 else ""
        raise UserError(f"{path}, row {row + 1}: {widths[row]} columns where {columns} belong{cut}; fetch it again")
    try:
        frame = pd.read_csv(
            path, sep=r"\s+", header=None, dtype=np.float64, keep_default_na=False, na_values=["NaN"], quoting=3
        )
        values = frame.to_numpy()
    except ValueError:  # pandas does not say where
        values = None
    if values is None or not (np.isfinite(values) | (gaps & np.isnan(values))).all():
        raise UserError(_first_bad_number(path, gaps))
    return values


def _first_bad_number(path: Path, gaps: bool) -> str:
    with path.open("rb") as stream:
        for row, line in enumerate(stream, 1):
            for word in line.split():
                try:
                    value = float(word)
                except ValueError:
                    value = np.inf
                if not np.isfinite(value) and not (gaps and np.isnan(value)):
                    return f"{path}, row {row}: {word.decode(errors='replace')!r} is no finite number; mend or fetch it"
    raise AssertionError(f"{path}: pandas refused what float() takes")
