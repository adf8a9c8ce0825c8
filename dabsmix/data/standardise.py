"""Standardising inputs by the mean and standard deviation of the training examples, by channel or column."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dabsmix.data.domain import Rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Standardise", "divisor", "is_constant"]

CHUNK = 1024
"""Examples that are summed at once."""


def is_constant(mean: Any, std: Any) -> Any:
    """Whether a spread is no larger than the rounding errors of a constant, elementwise, for arrays or tensors.

    Dividing by such a spread would turn rounding errors into a feature.
    """
    return std <= 1e-6 * abs(mean)


def divisor(mean: NDArray[np.float64], std: NDArray[np.float64]) -> NDArray[np.float64]:
    """What to divide by, elementwise: the spread, unless `is_constant` holds.

    Then it is 1, or 1e-6 of the mean if that is larger: beside a large mean the spread may be real (an hour in epoch
    milliseconds), and divided by 1 its values would be millions.
    """
    return np.where(is_constant(mean, std), np.maximum(1.0, 1e-6 * np.abs(mean)), std)


@dataclass(frozen=True)
class Standardise:
    """``Data.normalise`` of one input: ``(x - mean) / std`` in float32, on the device of the batch.

    Attributes:
        mean, std: one number per channel or column, or one for all; ``std`` is the `divisor`.
    """

    mean: tuple[float, ...] | float
    std: tuple[float, ...] | float
    _on: dict[tuple[torch.device, int], tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def from_sums(cls, count: ArrayLike, total: ArrayLike, squares: ArrayLike) -> Standardise:
        """From the sums of ``count`` values and of their squares, ``(C,)`` by channel or ``()`` for all."""
        mean = np.asarray(total) / np.maximum(count, 1)
        variance = np.maximum(np.asarray(squares) / np.maximum(count, 1) - mean**2, 0)
        std = divisor(mean, np.sqrt(variance))
        if mean.ndim == 0:
            return cls(float(mean), float(std))
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    @classmethod
    def of(cls, examples: Rows | NDArray[Any], rows: NDArray[np.int64]) -> Standardise:
        """The statistics of these training examples, each ``(C, ...)``, summed in double precision; NaN is left out."""
        count, total, squares = np.zeros(1), np.zeros(1), np.zeros(1)
        for part in np.array_split(rows, -(-len(rows) // CHUNK)):
            values = examples[part].astype(np.float64)
            values = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
            missing = np.isnan(values)
            count = count + (~missing).sum(1)
            values[missing] = 0
            total = total + values.sum(1)
            squares = squares + np.square(values).sum(1)
        return cls.from_sums(count, total, squares)

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The one input ``(B, C, ...)``, standardised."""
        (x,) = inputs
        mean, std = self.by_channel(x)
        return ((x.float() - mean) / std,)

    def by_channel(self, x: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Mean and standard deviation, in a shape that broadcasts with ``x (B, C, ...)`` and on its device."""
        import torch

        if isinstance(self.mean, float):
            assert isinstance(self.std, float)
            return self.mean, self.std
        key = x.device, x.dim()
        if key not in self._on:
            shape = (-1, *[1] * (x.dim() - 2))
            mean, std = (
                torch.tensor(values, dtype=torch.float32, device=x.device).view(shape)
                for values in (self.mean, self.std)
            )
            self._on[key] = mean, std
        return self._on[key]
