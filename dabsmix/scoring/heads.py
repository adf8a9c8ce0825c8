"""Heads on frozen features: their inputs, their outputs, and the heads that need no gradient descent.

Every ``fit_*`` here and in ``linear.py`` takes only training features and returns one head per setting, in a fixed
order. None of them sees a validation or a test row.
"""

# n examples, D width, C outputs, L tokens

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dabsmix.data.cache import scratch
from dabsmix.data.domain import Task
from dabsmix.data.standardise import is_constant

__all__ = [
    "ConstantHead",
    "Features",
    "Head",
    "KnnHead",
    "LinearHead",
    "Scale",
    "collected",
    "fit_constant",
    "fit_knn",
    "fit_pinv",
    "fit_ridge",
    "scaled",
    "scored",
]

Setting = Mapping[str, str | float]

NUMBERS = 1 << 22  # of features that are looked at or predicted from at a time
MOMENT_ROWS = 8192  # of features whose moments are computed at a time


@dataclass(frozen=True)
class Features:
    """The encoder's features of one split, with the split's labels. They are computed once, and every head reads them.

    Attributes:
        pooled: features by pooling: float32 ``mean`` and ``cls``, each ``(n, D)``, and under ``v2`` ``blocks``, the
            means of all blocks in a row, ``(n, blocks * D)``; or ``tokens`` alone, ``(n, L, D)``,
            for a task of one label per token; or ``raw`` alone, ``(n, D)``, for a probe on the raw input. All on one
            device, where the heads are then fitted. On a CPU they may be mapped from a file.
        label: in the form that the task's kind states (``domain.Task``).
        group: int64 ``(n,)`` or None, as in ``domain.Split``.
    """

    pooled: Mapping[str, Tensor]
    label: NDArray[Any]
    group: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        lengths = {name: len(x) for name, x in self.pooled.items()}
        if not self.pooled or set(lengths.values()) != {len(self.label)}:
            raise ValueError(f"features of lengths {lengths} for {len(self.label)} labels")
        for name, x in self.pooled.items():
            if not all(part.isfinite().all() for part in _parts(x)):
                raise ValueError(f"{name} features are not finite: the encoder has diverged")

    def __len__(self) -> int:
        return len(self.label)

    def take(self, index: NDArray[np.int64]) -> "Features":
        """The rows at these indices, in their order."""
        pooled = {name: _taken(x, torch.from_numpy(index).to(x.device)) for name, x in self.pooled.items()}
        return Features(pooled, self.label[index], None if self.group is None else self.group[index])


class Head(Protocol):
    """A fitted head."""

    @property
    def setting(self) -> Setting:
        """Its setting, for the record: pooling, learning rate, penalty, ..."""

    def predict(self, features: Features) -> NDArray[np.float32]:
        """Scores of every row, in the form that ``metrics.py`` states. The labels of ``features`` are not read."""


@dataclass(frozen=True)
class Scale:
    """Standardisation by the training part: ``(x - mean) / std``, ``(D,)`` each. A constant feature becomes 0."""

    mean: Tensor
    std: Tensor

    @staticmethod
    def of(rows: Tensor) -> "Scale":
        """The statistics of these rows, ``(m, D)``."""
        std, mean = torch.std_mean(rows, dim=0, correction=0)
        return Scale(mean, std.masked_fill(is_constant(mean, std), torch.inf))

    @staticmethod
    def none(x: Tensor) -> "Scale":
        """No change, for features like ``x``."""
        return Scale(x.new_zeros(x.shape[-1]), x.new_ones(x.shape[-1]))

    def __call__(self, x: Tensor) -> Tensor:
        """Standardised ``(..., D)``."""
        return (x - self.mean) / self.std


@dataclass(frozen=True)
class LinearHead:
    """``scale(x) @ weight + bias``: weight ``(D, C)``, bias ``(C,)``."""

    setting: Setting
    pooling: str
    scale: Scale
    weight: Tensor
    bias: Tensor
    kind: Literal["classes", "multilabel", "regression", "tokens"]

    def predict(self, features: Features) -> NDArray[np.float32]:
        """Scores of every row; for two classes with one logit z, the logits are (0, z)."""
        x = features.pooled[self.pooling]
        return collected(map(self._scores, _parts(x, self.weight.shape[1])), len(x))

    def _scores(self, x: Tensor) -> NDArray[np.float32]:
        scores = (self.scale(x) @ self.weight + self.bias).float()
        if self.kind == "regression":
            scores = scores.squeeze(-1)
        elif self.kind in ("classes", "tokens") and scores.shape[-1] == 1:
            scores = F.pad(scores, (1, 0))
        return scores.cpu().numpy()


def fit_ridge(train: Features, task: Task, penalties: Sequence[float]) -> list[LinearHead]:
    """Ridge regression on standardised features, in closed form and float64.

    One eigendecomposition per pooling is used for every penalty and output. Classes and labels are fitted as targets
    of ±1 (least-squares classification). A head equals scikit-learn's ``Ridge(alpha=penalty * n)`` on the same
    standardised features; the penalty is stated per row so that one grid suits every n.

    Args:
        train: the training part.
        task: any kind.
        penalties: positive.
    """
    heads = []
    for name, x in train.pooled.items():
        rows, label = scored(x, train.label)
        scale = Scale.of(rows)
        bias = _mean_target(label, task)
        if rows.shape[1] <= len(rows):
            gram, target = _moments(rows, label, scale, partial(_signed, task=task, bias=bias), len(bias))
            values, basis = torch.linalg.eigh(gram)
            target = basis.T @ target
        else:  # fewer rows than features: the same solution through the smaller matrix of inner products
            wide = scale(rows).double()
            values, vectors = torch.linalg.eigh(wide @ wide.T)
            basis, target = wide.T @ vectors, vectors.T @ _signed(label, task, bias)
        for penalty in penalties:
            weight = basis @ (target / (values + penalty * len(rows))[:, None])
            setting: Setting = {"pooling": name, "penalty": penalty}
            heads.append(LinearHead(setting, name, scale, weight.to(x.dtype), bias.to(x.dtype), task.kind))
    return heads


def fit_pinv(train: Features, task: Task) -> list[LinearHead]:
    """i-Mix's closed-form probe for HIGGS: ``W = (Σ f fᵀ)⁺ Σ f yᵀ`` on raw mean features, one-hot y, no bias.

    Args:
        train: the training part, with ``mean`` features or, for the raw input, ``raw``.
        task: of kind ``classes``.
    """
    name = "mean" if "mean" in train.pooled else "raw"
    rows = train.pooled[name]
    label, outputs, scale = torch.from_numpy(train.label).to(rows.device), task.num_outputs, Scale.none(rows)
    gram, right = _moments(rows, label, scale, lambda part: F.one_hot(part, outputs).double(), outputs)
    weight = torch.linalg.pinv(gram, hermitian=True) @ right
    head = LinearHead({"pooling": name}, name, scale, weight.to(rows.dtype), rows.new_zeros(weight.shape[1]), task.kind)
    return [head]


@dataclass(frozen=True)
class KnnHead:
    """Weighted nearest neighbours: unit-length training rows ``(n, D)`` and their labels.

    Labels are ``(n,)`` for classes, of which there are ``outputs``, and otherwise ``(n, outputs)``.
    """

    setting: Setting
    pooling: str
    neighbours: int
    scale: Scale
    rows: Tensor
    label: Tensor
    outputs: int
    kind: str

    def predict(self, features: Features) -> NDArray[np.float32]:
        """Log of the weighted share of each class, its logit for multi-label tasks, the weighted mean for regression.

        Queries are taken in chunks whose similarities and gathered targets stay below 64 MiB each.
        """
        k, x = min(self.neighbours, len(self.rows)), features.pooled[self.pooling]
        chunks = torch.split(x, max(1, KNN_CHUNK // max(len(self.rows), k * self.outputs)))
        return collected((self._share(chunk, k).cpu().numpy() for chunk in chunks), len(x))

    def _share(self, queries: Tensor, k: int) -> Tensor:
        similarity, nearest = (F.normalize(self.scale(queries), dim=1) @ self.rows.T).topk(k, dim=1)
        target = self.label[nearest]
        if self.kind == "classes":  # one-hot
            target = similarity.new_zeros(*target.shape, self.outputs).scatter_(2, target[..., None], 1)
        share = torch.einsum("qk,qkc->qc", (similarity / KNN_TEMPERATURE).softmax(dim=1), target.to(similarity.dtype))
        match self.kind:
            case "classes":
                return share.clamp_min(1e-12).log()
            case "multilabel":
                return share.logit(eps=1e-6)
            case _:
                return share.squeeze(1)


KNN_TEMPERATURE = 0.07  # Wu et al. 2018
KNN_CHUNK = 1 << 24  # numbers held at once


def fit_knn(train: Features, task: Task, neighbours: Sequence[int]) -> list[KnnHead]:
    """Weighted k-nearest neighbours by cosine similarity of standardised features (Wu et al. 2018).

    A neighbour of similarity s votes with weight ``exp(s / 0.07)``. With fewer than k training rows, all vote.

    Args:
        train: the training part.
        task: of kind ``classes``, ``multilabel`` or ``regression``.
        neighbours: each k.

    Raises:
        ValueError: the task has one label per token.
    """
    if task.kind == "tokens":
        raise ValueError("nearest neighbours are not offered for a task of one label per token")
    heads = []
    for name, x in train.pooled.items():
        scale = Scale.of(x)
        unit = scaled(x, scale)
        for part in _parts(unit):
            part.copy_(F.normalize(part, dim=1))
        label = torch.from_numpy(train.label).to(x.device)
        label = label if task.kind == "classes" else label.reshape(len(x), -1)
        heads += [
            KnnHead({"pooling": name, "neighbours": k}, name, k, scale, unit, label, task.num_outputs, task.kind)
            for k in neighbours
        ]
    return heads


@dataclass(frozen=True)
class ConstantHead:
    """The same scores ``(C,)``, or ``()`` for regression, for every row or token: a yardstick without features."""

    setting: Setting
    scores: NDArray[np.float32]
    kind: str

    def predict(self, features: Features) -> NDArray[np.float32]:
        """The constant, repeated for each row (or token)."""
        lead = features.label.shape if self.kind == "tokens" else (len(features),)
        return np.broadcast_to(self.scores, (*lead, *self.scores.shape)).copy()


def fit_constant(train: Features, task: Task) -> list[ConstantHead]:
    """A prediction that ignores the input: the majority class (as log frequencies), or the mean target."""
    label = train.label
    if task.kind == "regression":
        scores = np.asarray(label.mean())
    elif task.kind == "multilabel":
        share = label.mean(axis=0).clip(1e-6, 1 - 1e-6)
        scores = np.log(share / (1 - share))
    else:
        scores = np.log(np.bincount(label[label >= 0], minlength=task.num_outputs).clip(1e-6) / len(label))
    return [ConstantHead({}, scores.astype(np.float32), task.kind)]


def scored(x: Tensor, label: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Rows ``(m, D)`` and their labels; for features of tokens, only the tokens that have a label."""
    target = torch.from_numpy(label).to(x.device)
    if x.ndim == 2:
        return x, target
    rows, start = _empty((int((target >= 0).sum()), x.shape[2]), x), 0
    for part, part_target in zip(_parts(x), torch.split(target, len(_parts(x)[0])), strict=True):
        labelled = part[part_target >= 0]
        rows[start : start + len(labelled)] = labelled
        start += len(labelled)
    return rows, target[target >= 0]


def scaled(x: Tensor, scale: Scale) -> Tensor:
    """Standardised ``(n, D)``, in a file where it is large and on a CPU."""
    standardised = _empty(x.shape, x)
    for part, target in zip(_parts(x), _parts(standardised), strict=True):
        target.copy_(scale(part))
    return standardised


def collected(parts: Iterable[NDArray[Any]], n: int) -> NDArray[Any]:
    """Consecutive parts of n rows as one array, which lies in a file where it is large."""
    rows, start = None, 0
    for part in parts:
        if len(part) == n:
            return part
        if rows is None:
            rows = scratch((n, *part.shape[1:]), part.dtype)
        rows[start : start + len(part)] = part
        start += len(part)
    assert rows is not None
    return rows


def _parts(x: Tensor, outputs: int = 0) -> tuple[Tensor, ...]:
    """Consecutive rows, so many at a time that they and their outputs hold about `NUMBERS` numbers."""
    lead = math.prod(x.shape[1:-1])
    return torch.split(x, max(1, NUMBERS // max(1, lead * max(x.shape[-1], outputs))))


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """Where ``like`` is and of its type; on a CPU in a file where it is large."""
    if like.device.type != "cpu":
        return like.new_empty(*shape)
    return torch.from_numpy(scratch(tuple(shape), str(like.dtype).removeprefix("torch.")))


def _taken(x: Tensor, index: Tensor) -> Tensor:
    return torch.index_select(x, 0, index, out=_empty((len(index), *x.shape[1:]), x))


def _signed(label: Tensor, task: Task, bias: Tensor | float = 0.0) -> Tensor:
    """Least-squares targets minus a bias, float64 ``(m, C)``: ±1 for classes and labels, the value for regression."""
    match task.kind:
        case "regression":
            return label.double()[:, None] - bias
        case "multilabel":
            return label.double() * 2 - 1 - bias
        case _:
            return F.one_hot(label, task.num_outputs).double() * 2 - 1 - bias


def _mean_target(label: Tensor, task: Task) -> Tensor:
    """The mean of `_signed` over all rows, ``(C,)``."""
    if task.kind == "regression":
        return _signed(label, task).mean(dim=0)
    # sums of ±1 are exact in any order
    total = torch.stack([_signed(part, task).sum(dim=0) for part in torch.split(label, MOMENT_ROWS)]).sum(dim=0)
    return total / len(label)


def _moments(
    rows: Tensor, label: Tensor, scale: Scale, target: Callable[[Tensor], Tensor], outputs: int
) -> tuple[Tensor, Tensor]:
    """``XᵀX (D, D)`` and ``XᵀY (D, C)`` of scaled rows, summed in float64, a chunk of rows at a time.

    Args:
        rows, label: the examples.
        scale: of the rows.
        target: from labels to Y, float64 ``(m, C)``.
        outputs: C.
    """
    gram = rows.new_zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    right = rows.new_zeros(rows.shape[1], outputs, dtype=torch.float64)
    for chunk, labels in zip(torch.split(rows, MOMENT_ROWS), torch.split(label, MOMENT_ROWS), strict=True):
        x = scale(chunk).double()
        gram += x.T @ x
        right += x.T @ target(labels)
    return gram, right
