"""Choosing a head on validation, with all labels or few. No function here is ever given the test split.

    draws = few_labels(train, validation, task, fraction)     # [(train, validation)] for all labels
    chosen = select(fit, draws, metric)                       # one head per draw, all with one setting
    interval = bootstrap(metric, [c.head.predict(test) for c in chosen], test.label, test.group)

The last line is the one time that test is read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.domain import Split, Task
from dabsmix.scoring.heads import Features, Head, Setting
from dabsmix.scoring.metrics import Metric, Undefined
from dabsmix.scoring.protocols import Fit

__all__ = ["Selected", "few_labels", "label_subsets", "select"]

Part = TypeVar("Part", Features, Split)


@dataclass(frozen=True)
class Selected:
    """The head that validation chose.

    Attributes:
        head: fitted on the draw's training part, ready to ``predict``.
        validation: the chosen setting's validation score, the mean over draws.
        candidates: how many settings it was chosen from.
    """

    head: Head
    validation: float
    candidates: int

    @property
    def setting(self) -> Setting:
        """What was set for it."""
        return self.head.setting


def select(fit: Fit, draws: Sequence[tuple[Features, Features]], metric: Metric) -> list[Selected]:
    """Fits every setting on each draw's training part and keeps the one best on validation, the mean over draws.

    A setting whose scores are not finite in some draw (it diverged) is out. Of equal settings the first is taken.
    A draw whose few validation labels give the metric no value has no say in the choice.

    Args:
        fit: from training features to one head per setting, such as ``protocols.fits`` gives.
        draws: training and validation part of each draw; one pair where all labels are used.
        metric: what is best.

    Returns:
        One per draw, all of the same setting.

    Raises:
        ValueError: every setting diverged.
        Undefined: the metric has no value on any validation part.
    """
    heads = [fit(train) for train, _ in draws]
    scores = []
    for fitted, (_, validation) in zip(heads, draws, strict=True):
        try:
            scores.append([_score(head, validation, metric) for head in fitted])
        except Undefined:  # by the labels of this draw's validation part, so for every setting alike
            continue
    if not scores:
        raise Undefined(f"{metric.name} has no value on the validation labels: more of them are needed to choose with")
    mean = np.mean(scores, axis=0)
    best = int(mean.argmax() if metric.higher else mean.argmin())
    if not np.isfinite(mean[best]):
        raise ValueError(f"all {len(mean)} settings of the probe diverged")
    return [Selected(fitted[best], float(mean[best]), len(mean)) for fitted in heads]


def _score(head: Head, validation: Features, metric: Metric) -> float:
    """The validation score; the worst there is for a head that diverged."""
    scores = head.predict(validation)
    if not np.isfinite(scores).all():
        return -math.inf if metric.higher else math.inf
    return metric(scores, validation.label)


def few_labels(
    train: Part,
    validation: Part,
    task: Task,
    *,
    fraction: float = 1.0,
    per_class: int | None = None,
    draws: int = 3,
    seed: int = 0,
) -> list[tuple[Part, Part]]:
    """Training and validation parts with a share of their labels, or some of each class.

    Validation shrinks at the same rate as train: whoever has 1 % of the labels to train with has 1 % to choose with,
    and a score chosen with all of them would be no few-label score.

    Args:
        train, validation: features or examples, with all their labels.
        task: whose labels they are.
        fraction: the share; 1 gives one pair, the whole.
        per_class: this many of each class in train instead of a share; validation is then taken in proportion.
        draws: how many pairs.
        seed: of the draws.
    """
    if per_class is None and fraction == 1:
        return [(train, validation)]
    assert train.label is not None
    assert validation.label is not None
    parts = label_subsets(train.label, task, fraction=fraction, per_class=per_class, draws=draws, seed=seed)
    rate = len(parts[0]) / len(train)
    # another seed, so that draws of two parts of equal length are not the same places
    others = label_subsets(validation.label, task, fraction=rate, draws=draws, seed=seed + 1)
    return [(train.take(part), validation.take(other)) for part, other in zip(parts, others, strict=True)]


def label_subsets(
    label: NDArray[np.generic],
    task: Task,
    *,
    fraction: float = 1.0,
    per_class: int | None = None,
    draws: int = 1,
    seed: int = 0,
) -> list[NDArray[np.int64]]:
    """Places of rows whose labels may be used, ascending, one array per draw.

    ``classes`` are stratified: each gives its share, at least one row. ``multilabel`` rows are drawn at random, and a
    row is added for each class that would have no positive. ``regression`` and ``tokens`` rows are drawn at random,
    at least two. The places depend on the labels in their order and the seed alone.

    Args:
        label: ``(n, ...)`` in the form that the task's kind states.
        task: its kind decides.
        fraction: the share of rows, above 0 and at most 1.
        per_class: this many rows of each class instead (all, where a class has fewer); for ``classes`` alone.
        draws: how many subsets.
        seed: draw i depends on (seed, i) alone.

    Raises:
        ValueError: the fraction is out of range, or `per_class` is given for another kind of task.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"a share of the labels is above 0 and at most 1, got {fraction}")
    if per_class is not None and task.kind != "classes":
        raise ValueError(f"labels per class are defined for a task of kind classes, not {task.kind}")
    return [_subset(label, task, fraction, per_class, np.random.default_rng([seed, i])) for i in range(draws)]


def _subset(
    label: NDArray[np.generic], task: Task, fraction: float, per_class: int | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    if task.kind == "classes":
        parts = []
        for value in np.unique(label):
            places = np.flatnonzero(label == value)
            share = max(1, round(fraction * len(places))) if per_class is None else per_class
            parts.append(rng.permutation(places)[:share])
        return np.sort(np.concatenate(parts))
    order = rng.permutation(len(label))
    chosen = order[: max(2, round(fraction * len(label)))]
    if task.kind == "multilabel":
        lacking = np.flatnonzero((label[chosen] == 0).all(axis=0) & (label == 1).any(axis=0))
        # the first positive in this draw's own order
        chosen = np.union1d(chosen, [order[np.argmax(label[order, j] == 1)] for j in lacking])
    return np.sort(chosen).astype(np.int64)
