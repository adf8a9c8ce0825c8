"""Heads on frozen features: their inputs, their outputs, and the heads that need no gradient descent.

Every ``fit_*`` here and in ``linear.py`` takes only training features and returns one head per setting, in a fixed
order. None of them sees a validation or a test row.
"""

# n examples, D width, C outputs, L tokens

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dabsmix.data.domain import Task
from dabsmix.data.standardise import is_constant

__all__ = [
    "ConstantHead",
    "Features",
    "Head",
    "KnnHead",
    "LinearHead",
    "Scale",
    "fit_constant",
    "fit_knn",
    "fit_pinv",
    "fit_ridge",
    "scored",
]

Setting = Mapping[str, str | float]


@dataclass(frozen=True)
class Features:
    """The encoder's features of one split, with the split's labels. They are computed once, and every head reads them.

    Attributes:
        pooled: features by pooling: float32 ``mean`` and ``cls``, each ``(n, D)``; or ``tokens`` alone, ``(n, L, D)``,
            for a task of one label per token; or ``raw`` alone, ``(n, D)``, for a probe on the raw input. All on one
            device, where the heads are then fitted.
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
            if not x.isfinite().all():
                raise ValueError(f"{name} features are not finite: the encoder has diverged")

    def __len__(self) -> int:
        return len(self.label)

    def take(self, index: NDArray[np.int64]) -> "Features":
        """The rows at these indices, in their order."""
        pooled = {name: x[torch.from_numpy(index).to(x.device)] for name, x in self.pooled.items()}
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
        x = self.scale(features.pooled[self.pooling])
        scores = (x @ self.weight + self.bias).float()
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
        target = _signed(label, task)
        bias = target.mean(dim=0)
        target = target - bias
        if rows.shape[1] <= len(rows):
            gram, right = _moments(rows, target, scale)
            values, left = torch.linalg.eigh(gram)
            right = left.T @ right
        else:  # fewer rows than features: the same solution through the smaller matrix of inner products
            wide = scale(rows).double()
            values, vectors = torch.linalg.eigh(wide @ wide.T)
            left, right = wide.T @ vectors, vectors.T @ target
        for penalty in penalties:
            weight = left @ (right / (values + penalty * len(rows))[:, None])
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
    one_hot = F.one_hot(torch.from_numpy(train.label).to(rows.device), task.num_outputs).double()
    scale = Scale.none(rows)
    gram, right = _moments(rows, one_hot, scale)
    weight = torch.linalg.pinv(gram, hermitian=True) @ right
    head = LinearHead({"pooling": name}, name, scale, weight.to(rows.dtype), rows.new_zeros(weight.shape[1]), task.kind)
    return [head]


@dataclass(frozen=True)
class KnnHead:
    """Weighted nearest neighbours: unit-length training rows ``(n, D)`` and their targets ``(n, C)``."""

    setting: Setting
    pooling: str
    neighbours: int
    scale: Scale
    rows: Tensor
    target: Tensor
    kind: str

    def predict(self, features: Features) -> NDArray[np.float32]:
        """Log of the weighted share of each class, its logit for multi-label tasks, the weighted mean for regression.

        Queries are taken in chunks whose similarities and gathered targets stay below 64 MiB each.
        """
        k = min(self.neighbours, len(self.rows))
        widest = max(len(self.rows), k * self.target.shape[1])
        chunks = torch.split(features.pooled[self.pooling], max(1, KNN_CHUNK // widest))
        return torch.cat([self._share(chunk, k) for chunk in chunks]).cpu().numpy()

    def _share(self, queries: Tensor, k: int) -> Tensor:
        similarity, nearest = (F.normalize(self.scale(queries), dim=1) @ self.rows.T).topk(k, dim=1)
        share = torch.einsum("qk,qkc->qc", (similarity / KNN_TEMPERATURE).softmax(dim=1), self.target[nearest])
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
        unit = F.normalize(scale(x), dim=1)
        label = torch.from_numpy(train.label).to(x.device)
        target = F.one_hot(label, task.num_outputs) if task.kind == "classes" else label.reshape(len(x), -1)
        heads += [
            KnnHead({"pooling": name, "neighbours": k}, name, k, scale, unit, target.to(x.dtype), task.kind)
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
    return (x[target >= 0], target[target >= 0]) if x.ndim == 3 else (x, target)


def _signed(label: Tensor, task: Task) -> Tensor:
    """Least-squares targets, float64 ``(m, C)``: ±1 for classes and labels, the value itself for regression."""
    match task.kind:
        case "regression":
            return label.double()[:, None]
        case "multilabel":
            return label.double() * 2 - 1
        case _:
            return F.one_hot(label, task.num_outputs).double() * 2 - 1


def _moments(rows: Tensor, target: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
    """``XᵀX (D, D)`` and ``XᵀY (D, C)`` of scaled rows, summed in float64, a chunk of rows at a time."""
    gram = rows.new_zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    right = rows.new_zeros(rows.shape[1], target.shape[1], dtype=torch.float64)
    for chunk, targets in zip(torch.split(rows, 8192), torch.split(target, 8192), strict=True):
        x = scale(chunk).double()
        gram += x.T @ x
        right += x.T @ targets
    return gram, right
