"""The shapes of data, nothing else: what one input of an example looks like, and what a batch of examples is."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Batch", "Grid", "PaddedGrid", "Spec", "Table", "Tokens", "describe"]


@dataclass(frozen=True)
class Grid:
    """A regular grid with one, two or three axes: sensor window, image or spectrogram, volume or video.

    A batch is float32 ``(B, channels, *size)``. Each axis is cut into patches of ``patch``; one patch is one token.

    Raises:
        ValueError: an axis is not a multiple of its patch, or there are not one to three axes.
    """

    channels: int
    size: tuple[int, ...]
    patch: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.size) <= 3 or len(self.size) != len(self.patch):
            raise ValueError(f"Grid needs 1 to 3 axes and one patch length for each, got {self.size} and {self.patch}")
        if self.channels < 1 or any(p < 1 or s < p or s % p for s, p in zip(self.size, self.patch, strict=True)):
            raise ValueError(f"Grid: size {self.size} must be a positive multiple of patch {self.patch}, channels >= 1")

    @property
    def shape(self) -> tuple[int, ...]:
        """Patches along each axis."""
        return tuple(s // p for s, p in zip(self.size, self.patch, strict=True))

    @property
    def num_tokens(self) -> int:
        """The total number of patches."""
        return math.prod(self.shape)

    @property
    def patch_dim(self) -> int:
        """The number of values in one patch, over all channels."""
        return self.channels * math.prod(self.patch)


@dataclass(frozen=True)
class PaddedGrid(Grid):
    """A grid of one axis in which readings may be missing: recordings of different lengths, channels with gaps.

    What was not read is NaN. A patch without any reading is padding; in any other, a missing reading is taken as 0,
    which is the mean where readings are standardised.

    Raises:
        ValueError: see `Grid`, or there are several axes.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.size) != 1:
            raise ValueError(f"PaddedGrid has one axis, got {self.size}")


@dataclass(frozen=True)
class Table:
    """One row of a table: one token per column.

    A batch is float32 ``(B, num_features)``. ``cardinalities[j]`` is 0 if column j is numeric, else the number
    of its categories; a category is given by its code 0, 1, ... An empty cell is NaN and gets a learned token.
    """

    num_features: int
    cardinalities: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.cardinalities:  # all numeric
            object.__setattr__(self, "cardinalities", (0,) * self.num_features)
        if self.num_features < 1 or len(self.cardinalities) != self.num_features or min(self.cardinalities) < 0:
            raise ValueError(
                f"Table needs one cardinality >= 0 for each of its {self.num_features} columns, "
                f"got {self.cardinalities}"
            )

    @property
    def num_tokens(self) -> int:
        """The number of columns."""
        return self.num_features


@dataclass(frozen=True)
class Tokens:
    """A sequence of token ids: text, or any string over an alphabet.

    A batch is int64 ``(B, length)`` with ids below ``vocab``; ``pad`` is the id that fills short sequences, or None
    if every sequence is full.
    """

    length: int
    vocab: int
    pad: int | None = None

    def __post_init__(self) -> None:
        if self.length < 1 or self.vocab < 1 or (self.pad is not None and not 0 <= self.pad < self.vocab):
            raise ValueError(f"Tokens needs length >= 1, vocab >= 1 and pad inside the vocabulary, got {self}")

    @property
    def num_tokens(self) -> int:
        """The number of positions, padding included."""
        return self.length


Spec = Grid | Table | Tokens


def describe(specs: tuple[Spec, ...]) -> str:
    """The specs of an example's inputs on one line, for messages and records."""
    return " + ".join(str(spec) for spec in specs)


class Batch(NamedTuple):
    """One step's examples on this process. A NamedTuple passes through Accelerate and DDP unchanged.

    Attributes:
        views: one or two views, each a tuple with one tensor per input of the domain, in the shape its spec states.
        label: int64 ``(B,)``, or None unless the algorithm asks for labels.
        ids: int64 ``(B,)``, the examples' rows in their split.
        seed: the seed of this step's draws, equal on every process: a batch's permutation, weights and masks are
            drawn from it for the global batch and sliced by rank (see ``distributed.py``).
    """

    views: "tuple[tuple[Tensor, ...], ...]"
    label: "Tensor | None"
    ids: "Tensor"
    seed: int
