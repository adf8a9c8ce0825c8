"""Features that need no encoder: the raw input, flattened, or a bag of words. What pretraining has to beat."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dabsmix.spec import Grid, Spec, Table, Tokens

__all__ = ["RawReader", "raw_reader"]

# Numbers kept of one input: all of a 32×32 RGB image. A probe on 224×224×3 would have more weights than the encoder.
RAW_WIDTH = 3072


@dataclass(frozen=True)
class RawReader:
    """Reads raw features of normalised inputs, a batch at a time.

    Attributes:
        specs: one per input; their features are concatenated in this order.
        kept: for each input of token ids the ids that are counted, ascending int64 ``(W,)``; None for other inputs.
    """

    specs: tuple[Spec, ...]
    kept: tuple[Tensor | None, ...]

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """float32 ``(B, D)``.

        A grid is flattened, after average pooling to at most 3072 numbers where it has more. A table gives its numeric
        columns, 0 for an empty cell, a one-hot code of each category, and for each column whether the cell is empty.
        Tokens give the count of each kept id.
        """
        parts = [
            _read(spec, kept, x.float() if kept is None else x)
            for spec, kept, x in zip(self.specs, self.kept, inputs, strict=True)
        ]
        return torch.cat(parts, dim=1)


def raw_reader(specs: tuple[Spec, ...], train: Iterable[tuple[Tensor, ...]]) -> RawReader:
    """A reader that counts, of each input of token ids, the 3072 ids most frequent in the training part.

    Args:
        specs: one per input.
        train: batches of the training part's inputs, normalised; not read where no input has token ids.
    """
    counts = [torch.zeros(spec.vocab, dtype=torch.int64) if isinstance(spec, Tokens) else None for spec in specs]
    if any(count is not None for count in counts):
        for inputs in train:
            for spec, count, x in zip(specs, counts, inputs, strict=True):
                if isinstance(spec, Tokens) and count is not None:
                    count += torch.bincount(x.flatten().cpu(), minlength=spec.vocab)
    for spec, count in zip(specs, counts, strict=True):
        if isinstance(spec, Tokens) and count is not None and spec.pad is not None:
            count[spec.pad] = 0
    return RawReader(specs, tuple(None if count is None else _most_frequent(count) for count in counts))


def _most_frequent(count: Tensor) -> Tensor:
    order = count.argsort(descending=True, stable=True)[:RAW_WIDTH]
    return order[count[order] > 0].sort().values


def _read(spec: Spec, kept: Tensor | None, x: Tensor) -> Tensor:
    match spec:
        case Grid():
            return _pooled(spec, x).flatten(1)
        case Table():
            return _columns(spec, x)
        case Tokens():
            assert kept is not None
            column = torch.full((spec.vocab,), len(kept), device=x.device)  # the last column takes all other ids
            column[kept.to(x.device)] = torch.arange(len(kept), device=x.device)
            counts = torch.zeros(len(x), len(kept) + 1, device=x.device)
            return counts.scatter_add_(1, column[x], torch.ones(x.shape, device=x.device))[:, :-1]


def _pooled(spec: Grid, x: Tensor) -> Tensor:
    shrink = (RAW_WIDTH / (spec.channels * math.prod(spec.size))) ** (1 / len(spec.size))
    if shrink >= 1:
        return x
    pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(spec.size) - 1]
    return pool(x, tuple(max(1, math.floor(length * shrink)) for length in spec.size))


def _columns(spec: Table, x: Tensor) -> Tensor:
    empty = x.isnan()
    parts = [empty.to(x.dtype)]
    for j, cardinality in enumerate(spec.cardinalities):
        column = x[:, j].nan_to_num(nan=0.0)
        if cardinality == 0:
            parts.append(column[:, None])
        else:
            code = F.one_hot(column.long().clamp(0, cardinality - 1), cardinality).to(x.dtype)
            parts.append(code * ~empty[:, j : j + 1])
    return torch.cat(parts, dim=1)
