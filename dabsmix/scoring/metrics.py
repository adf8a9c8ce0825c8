"""Scores of a whole split, computed once from every prediction. No torch here.

A prediction ("scores") is what a head's ``predict`` returns, one row per example:

========== ============================================= =======================================
task kind  scores                                        label
========== ============================================= =======================================
classes    float ``(n, C)`` logits                       int ``(n,)``
multilabel float ``(n, C)`` logits, one per class        0 or 1 ``(n, C)``
regression float ``(n,)`` in the target's own units      float ``(n,)``
tokens     float ``(n, L, C)`` logits                    int ``(n, L)``, -1 where not scored
========== ============================================= =======================================

Metrics of the predicted class alone (``results.BY_CLASS``) also take classes as integers, in the shape of the label:
that is how they are stored.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dabsmix.errors import UserError, did_you_mean

__all__ = [
    "METRICS",
    "OFFERED",
    "Metric",
    "Undefined",
    "are_classes",
    "auroc_per_class",
    "by_labels",
    "classes_of",
    "confusion",
    "known",
    "metric",
    "one_against_rest",
    "precision_at_positives",
    "ranking",
    "row_blocks",
]

Scores = NDArray[np.floating[Any]]
Label = NDArray[Any]
NUMBERS = 1 << 20
"""Scores that are expanded to float64 at a time."""

Terms = tuple[NDArray[np.float64], NDArray[np.float64]]


class Undefined(UserError):
    """The metric has no value on these labels, such as AUROC if all labels are equal."""


@dataclass(frozen=True)
class Metric:
    """One score of a whole split.

    Attributes:
        name: its name in tasks, records and tables.
        function: ``function(scores, label) -> float``, shapes as at the top of this file.
        kinds: the task kinds it is defined for.
        higher: whether more is better.
        span: the least and the greatest possible value.
        chance: the value of a constant prediction on any labels; None if that depends on the labels (then score the
            majority class).
        parts: for a metric that is a ratio of sums over examples: the numerator and the denominator of each, ``(n,)``
            and ``(n,)``, or ``(draws, n)`` and something that broadcasts to it for scores with a leading axis of draws.
        batch: for a mean over batches, the rows of each (the last may have fewer, and then counts as much less); 0 for
            a metric of all rows at once.
    """

    name: str
    function: Callable[[Scores, Label], float]
    kinds: tuple[str, ...]
    higher: bool = True
    span: tuple[float, float] = (0.0, 1.0)
    chance: float | None = None
    parts: Callable[[Scores, Label], Terms] | None = None
    batch: int = 0

    def __call__(self, scores: Scores, label: Label) -> float:
        """The score.

        Raises:
            Undefined: these labels give the metric no value.
            ValueError: there are no rows, or not one label per row, or a score is not finite.
        """
        self.check(scores[None], label)
        return float(self.function(scores, label))

    def check(self, scores: Scores, label: Label) -> None:
        """Refuse scores, with a leading axis of draws, that are not finite or do not fit the labels.

        Raises:
            ValueError: see `__call__`.
        """
        if len(label) == 0 or scores.shape[1 : label.ndim + 1] != label.shape:
            raise ValueError(f"{self.name}: scores {scores.shape[1:]} do not fit labels {label.shape}")
        if scores.dtype.kind == "f" and not all(
            np.isfinite(part).all() for draw in scores for part in row_blocks(draw)
        ):
            raise ValueError(f"{self.name}: a score is not finite")


def metric(name: str) -> Metric:
    """The metric of this name; ``pearson/128`` is the mean of ``pearson`` over batches of 128 rows in stored order.

    DABS reports correlations and F1 this way, by PyTorch Lightning, which weights each batch by its rows. Such a mean
    depends on the order of the rows and estimates nothing.

    Raises:
        UserError: no metric has this name.
    """
    one = known(name)
    if one is None:
        raise UserError(f"unknown metric {name!r}{did_you_mean(name, METRICS)}; there are: {', '.join(METRICS)}")
    return one


def known(name: str) -> Metric | None:
    """The metric of this name, see `metric`; None if there is none."""
    base, slash, rows = name.partition("/")
    by_name = METRICS.get(base)
    if by_name is None or not slash:
        return by_name
    if not re.fullmatch("[1-9][0-9]{0,8}", rows):
        return None
    return replace(by_name, name=name, function=_over_batches(by_name.function, int(rows)), parts=None, batch=int(rows))


def _over_batches(function: Callable[[Scores, Label], float], rows: int) -> Callable[[Scores, Label], float]:
    """The mean over batches, weighted by their rows; a batch whose labels give the metric no value is left out."""

    def mean(scores: Scores, label: Label) -> float:
        values, sizes = [], []
        for start in range(0, len(label), rows):
            part = slice(start, start + rows)
            with suppress(Undefined):
                values.append(function(scores[part], label[part]))
                sizes.append(len(label[part]))
        if not values:
            raise Undefined("no batch of these rows has labels that give the metric a value")
        return float(np.average(values, weights=sizes))

    return mean


def are_classes(scores: Scores) -> bool:
    """Whether the predictions are classes, not logits."""
    return scores.dtype.kind in "iu"


def classes_of(scores: Scores) -> NDArray[np.int64]:
    """The predicted classes."""
    return scores if are_classes(scores) else scores.argmax(axis=-1)  # type: ignore[return-value]


def _classes(scores: Scores, label: Label) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Predicted and true class of every scored example or token."""
    scored = label >= 0
    return classes_of(scores)[scored], label[scored]


def _accuracy_parts(scores: Scores, label: Label) -> Terms:
    scored = label >= 0
    right = (classes_of(scores) == label) & scored
    if label.ndim == 1:
        return right.astype(float), scored.astype(float)
    tokens = tuple(range(1 - label.ndim, 0))
    return right.sum(axis=tokens, dtype=float), scored.sum(axis=tokens, dtype=float)


def _mse_parts(scores: Scores, label: Label) -> Terms:
    return (scores.astype(float) - label) ** 2, np.ones(len(label))


def _ratio(parts: Callable[[Scores, Label], Terms]) -> Callable[[Scores, Label], float]:
    def function(scores: Scores, label: Label) -> float:
        above, below = parts(scores, label)
        if not below.sum():
            raise Undefined("no token of these rows is scored")
        return float(above.sum() / below.sum())

    return function


def _mae_parts(scores: Scores, label: Label) -> Terms:
    return np.abs(scores.astype(float) - label), np.ones(len(label))


def _r2(scores: Scores, label: Label) -> float:
    """The share of the labels' variance that the predictions explain; negative if the mean would predict better."""
    spread = float(((label - label.mean()) ** 2).sum())
    if spread == 0:
        raise Undefined(f"R²: all {len(label)} labels are equal")
    return 1 - float(((scores.astype(float) - label) ** 2).sum()) / spread


def _balanced_accuracy(scores: Scores, label: Label) -> float:
    """The mean recall over the classes that occur."""
    counts = confusion(scores, label)
    true = counts.sum(axis=1)
    return float((np.diag(counts)[true > 0] / true[true > 0]).mean())


# F1 and Matthews are written out, from counts: a bootstrap computes them a thousand times.


def confusion(scores: Scores, label: Label) -> NDArray[np.float64]:
    """Counts of examples (or tokens) by true and predicted class, ``(C, C)``, true classes first.

    C is one more than the largest class that occurs.
    """
    predicted, true = _classes(scores, label)
    width = max(int(codes.max(initial=0)) + 1 for codes in (predicted, true))
    pairs = np.bincount(true * width + predicted, minlength=width * width)
    return pairs.reshape(width, width).astype(np.float64)


def _matthews(scores: Scores, label: Label) -> float:
    """The correlation of predicted and true classes (Gorodkin 2004), 0 where either is constant."""
    counts = confusion(scores, label)
    n, true, predicted = counts.sum(), counts.sum(axis=1), counts.sum(axis=0)
    spread = (n**2 - true @ true) * (n**2 - predicted @ predicted)
    return float((np.trace(counts) * n - true @ predicted) / np.sqrt(spread)) if spread > 0 else 0.0


def _f1(average: str) -> Callable[[Scores, Label], float]:
    def function(scores: Scores, label: Label) -> float:
        if scores.shape == label.shape and not are_classes(scores):  # multi-label: a logit above 0 says yes
            yes = scores > 0
            hits, predicted, true = (x.sum(axis=0).astype(float) for x in (yes & (label > 0), yes, label > 0))
        else:
            counts = confusion(scores, label)
            hits, predicted, true = np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)
            # As in scikit-learn, the mean runs over the classes that occur in the labels or in the predictions; one
            # that is never predicted, or predicted and never true, counts as 0.
            occurs = predicted + true > 0
            hits, predicted, true = hits[occurs], predicted[occurs], true[occurs]
        per_class = 2 * hits / (predicted + true).clip(1)
        if average == "macro":
            return float(per_class.mean())
        return float(per_class @ true / true.sum()) if true.sum() else 0.0

    return function


def row_blocks(scores: Scores) -> Iterator[Scores]:
    """Consecutive rows, about `NUMBERS` numbers at a time."""
    rows = max(1, NUMBERS // max(1, math.prod(scores.shape[1:])))
    return (scores[start : start + rows] for start in range(0, len(scores), rows))


def auroc_per_class(scores: Scores, label: Label) -> NDArray[np.float64]:
    """Area under the ROC curve of every class against the rest, ``(C,)``; NaN where a class is never or always true.

    The Mann-Whitney form: the share of (positive, negative) pairs in the right order, ties counted half. Classes that
    exclude each other are ranked by softmax probability.
    """
    from scipy.stats import rankdata

    area = []
    for ranked, positive in one_against_rest(scores, label):
        yes = int(positive.sum())
        pairs = float(yes) * (len(positive) - yes)
        ranks = np.where(positive, rankdata(ranked), 0).sum() if pairs else math.nan
        area.append((ranks - yes * (yes + 1) / 2) / pairs if pairs else math.nan)
    return np.array(area)


def one_against_rest(scores: Scores, label: Label) -> Iterator[tuple[Scores, NDArray[np.bool_]]]:
    """For each class what AUROC ranks, ``(n,)``, and which examples are positive, ``(n,)``.

    Classes that exclude each other are ranked by the logarithm of their softmax probability, in float64.
    """
    if label.ndim == 2:
        yield from ((scores[:, c], label[:, c].astype(bool)) for c in range(label.shape[1]))
        return
    greatest, logarithm = np.empty(len(scores)), np.empty(len(scores))
    start = 0
    for part in row_blocks(scores):
        place = slice(start, start + len(part))
        greatest[place] = part.max(axis=1)
        logarithm[place] = np.log(np.exp(part.astype(float) - greatest[place, None]).sum(axis=1))
        start += len(part)
    for c in range(scores.shape[1]):
        yield scores[:, c].astype(float) - greatest - logarithm, label == c


def _auroc_macro(scores: Scores, label: Label) -> float:
    """The mean over the classes for which these labels hold both a positive and a negative."""
    per_class = auroc_per_class(scores, label)
    if np.isnan(per_class).all():
        raise Undefined("AUROC: no class of these rows has both a positive and a negative")
    return float(np.nanmean(per_class))


def ranking(scores: Scores) -> Scores:
    """One score per row, ``(n,)``; for two classes, the logit of class 1.

    Raises:
        ValueError: there are more classes.
    """
    if scores.ndim == 1:
        return scores
    if scores.shape[1] != 2:
        raise ValueError(f"a correlation takes one score per row or two classes, got {scores.shape}")
    return scores[:, 1] - scores[:, 0]


def _average_precision(scores: Scores, label: Label) -> float:
    """Each class against the rest, as in scikit-learn; the mean over the classes that have a positive."""
    per_class = []
    for ranked, positive in one_against_rest(scores, label):
        if positive.any():
            yes, hits, above = precision_at_positives(ranked, positive)
            per_class.append((hits[yes] / above[yes]).mean())
    if not per_class:
        raise Undefined("average precision: no class of these rows has a positive")
    return float(np.mean(per_class))


def precision_at_positives(scores: Scores, positive: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], Scores, Scores]:
    """The positives, and for every row how many positives and how many rows have its score or a higher one."""
    order = np.argsort(-scores, kind="stable")
    _, last = np.unique(-scores[order], return_inverse=True)
    ends = np.flatnonzero(np.diff(last, append=last[-1] + 1))  # of runs of equal scores
    hits, above = np.empty(len(scores)), np.empty(len(scores))
    hits[order], above[order] = np.cumsum(positive[order])[ends][last], (ends + 1)[last]
    return positive, hits, above


def _correlation(ranked: bool) -> Callable[[Scores, Label], float]:
    def function(scores: Scores, label: Label) -> float:
        from scipy.stats import rankdata

        x, y = (rankdata(v) if ranked else v.astype(float) for v in (ranking(scores), label))
        if np.ptp(y) == 0:
            raise Undefined(f"correlation: all {len(y)} labels are equal")
        if np.ptp(x) == 0:
            return 0.0  # a constant prediction tells nothing
        x, y = x - x.mean(), y - y.mean()
        return float(x @ y / np.sqrt((x @ x) * (y @ y)))

    return function


_ALL = (
    Metric("accuracy", _ratio(_accuracy_parts), ("classes", "tokens"), parts=_accuracy_parts),
    Metric("auroc_macro", _auroc_macro, ("classes", "multilabel"), chance=0.5),
    Metric("average_precision", _average_precision, ("classes", "multilabel")),
    Metric("balanced_accuracy", _balanced_accuracy, ("classes", "tokens")),
    Metric("f1_macro", _f1("macro"), ("classes", "multilabel", "tokens")),
    Metric("f1_weighted", _f1("weighted"), ("classes", "multilabel", "tokens")),
    Metric("mae", _ratio(_mae_parts), ("regression",), higher=False, span=(0.0, math.inf), parts=_mae_parts),
    Metric("matthews", _matthews, ("classes", "tokens"), span=(-1.0, 1.0), chance=0.0),
    Metric("mse", _ratio(_mse_parts), ("regression",), higher=False, span=(0.0, math.inf), parts=_mse_parts),
    Metric("pearson", _correlation(ranked=False), ("regression", "classes"), span=(-1.0, 1.0), chance=0.0),
    Metric("r2", _r2, ("regression",), span=(-math.inf, 1.0)),
    Metric("spearman", _correlation(ranked=True), ("regression", "classes"), span=(-1.0, 1.0), chance=0.0),
)
METRICS = {m.name: m for m in _ALL}

OFFERED: Mapping[str, tuple[str, ...]] = {
    "classes": ("accuracy", "balanced_accuracy", "f1_macro", "matthews", "auroc_macro", "average_precision"),
    "regression": ("spearman", "r2", "mae"),
}
"""Metrics for a user's own data, by kind of task; those that are not chosen are reported too."""

EVEN = 2.0
"""The largest ratio of the most frequent class to the rarest at which accuracy is not misleading."""


def by_labels(kind: str, train: Label) -> str:
    """The default metric of a user's own data, decided by the training labels alone.

    Spearman's correlation for quantities. Accuracy for classes of which the most frequent has at most twice as many
    training labels as the rarest; else balanced accuracy, of which a constant prediction gets no more than chance.
    """
    if kind == "regression":
        return "spearman"
    counts = np.unique(train[train >= 0], return_counts=True)[1]
    return "accuracy" if counts.max(initial=0) <= EVEN * counts.min(initial=len(train)) else "balanced_accuracy"
