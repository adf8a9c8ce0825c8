"""Choosing a head on validation, with all labels or few. No function here is ever given the test split.

    draws = few_labels(train, validation, task, fraction)     # [(train, validation)] for all labels
    chosen = select(fit, draws, metric)                       # one head per draw, all with one setting
    found = interval(metric, [measure(metric, [c.head.predict(test) for c in chosen], test.label, test.group)])

The last line is the one time that test is read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.cache import scratch
from dabsmix.data.domain import Split, Task
from dabsmix.scoring.heads import Features, Head, Setting
from dabsmix.scoring.metrics import Metric, Undefined
from dabsmix.scoring.protocols import Fit

__all__ = ["Selected", "compare_within", "few_labels", "label_subsets", "select"]

EDGE_GAIN = 0.002  # in the metric's unit: a smaller gain at the edge does not mean that the grid is too short

Part = TypeVar("Part", Features, Split)


@dataclass(frozen=True)
class Selected:
    """The head that validation chose.

    Attributes:
        head: fitted on the draw's training part, ready to ``predict``.
        validation: the chosen setting's validation score, the mean over draws, or of cross-validation within one
            draw; None where nothing could be compared and the setting was fixed in advance.
        candidates: how many settings it was chosen from.
        at_edge: whether it is the first or last of its pooling's grid and better than its neighbour by more than
            `EDGE_GAIN`, so that a setting beyond the edge may be better.
    """

    head: Head
    validation: float | None
    candidates: int
    at_edge: bool = False

    @property
    def setting(self) -> Setting:
        """The head's setting."""
        return self.head.setting


def select(fit: Fit, draws: Sequence[tuple[Features, Features]], metric: Metric) -> list[Selected]:
    """Fit every setting on each draw's training part, and choose the best one by its mean validation score over draws.

    A setting that diverged (its scores are not finite in some draw) is excluded. Of equal settings the first is
    chosen. Draws whose few validation labels leave the metric undefined are ignored.

    Args:
        fit: from training features to one head per setting, such as those of ``protocols.fits``.
        draws: training and validation part of each draw; one pair where all labels are used.
        metric: compares the settings.

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
        except Undefined:  # because of this draw's validation labels, and so for every setting
            continue
    if not scores:
        raise Undefined(f"{metric.name} has no value on the validation labels: use more, or another metric")
    mean = np.mean(scores, axis=0)
    best = int(mean.argmax() if metric.higher else mean.argmin())
    if not np.isfinite(mean[best]):
        raise ValueError(f"all {len(mean)} settings of the probe diverged")
    edge = _at_edge([head.setting.get("pooling") for head in heads[0]], mean, best)
    return [Selected(fitted[best], float(mean[best]), len(mean), edge) for fitted in heads]


def _at_edge(poolings: Sequence[object], scores: NDArray[np.float64], best: int) -> bool:
    grid = [k for k, pooling in enumerate(poolings) if pooling == poolings[best]]
    if len(grid) < 3 or best not in (grid[0], grid[-1]):
        return False
    neighbour = grid[1] if best == grid[0] else grid[-2]
    return bool(abs(scores[best] - scores[neighbour]) > EDGE_GAIN)


FOLDS = 5  # at most, of cross-validation within few labels


def compare_within(
    fit: Fit, part: Features, task: Task, metric: Metric, *, seed: int
) -> tuple[Setting, float, int] | None:
    """The setting that cross-validation within one draw of few labels prefers, its score, and out of how many.

    Folds are stratified by class, and a group stays in one fold; every row is predicted by a head that did not see it,
    and the metric is computed once over all rows.

    Args:
        fit: from training features to one head per setting.
        part: the draw, with its labels; no other label is read.
        task: whose labels they are.
        metric: what is best; of equal settings the first is taken.
        seed: of the folds.

    Returns:
        None where these labels cannot be divided, since a class has fewer than two, or give the metric no value.
    """
    folds = _folds(part, task, seed)
    if folds is None:
        return None
    settings: list[Setting] = []
    outputs: list[NDArray[np.float32]] = []
    for train, held_out in folds:
        heads, others = fit(part.take(train)), part.take(held_out)
        settings = settings or [head.setting for head in heads]
        for number, head in enumerate(heads):
            scores = head.predict(others)
            if number == len(outputs):
                outputs.append(scratch((len(part), *scores.shape[1:]), scores.dtype))
            outputs[number][held_out] = scores
    worst = -math.inf if metric.higher else math.inf
    try:
        scores = np.array([metric(x, part.label) if np.isfinite(x).all() else worst for x in outputs])
    except Undefined:
        return None
    best = int(scores.argmax() if metric.higher else scores.argmin())
    return settings[best], float(scores[best]), len(settings)


def _folds(part: Features, task: Task, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]] | None:
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    classes = task.kind == "classes"
    fewest = int(np.unique(part.label, return_counts=True)[1].min()) if classes else len(part)
    groups = len(part) if part.group is None else len(np.unique(part.group))
    number = min(FOLDS, fewest, groups)
    if number < 2:
        return None
    if part.group is None:
        kind = StratifiedKFold if classes else KFold
        divided = kind(number, shuffle=True, random_state=seed).split(np.zeros(len(part)), part.label)
    elif classes:
        divided = StratifiedGroupKFold(number, shuffle=True, random_state=seed).split(
            np.zeros(len(part)), part.label, part.group
        )
    else:
        divided = GroupKFold(number).split(np.zeros(len(part)), None, part.group)
    return [(train, held_out) for train, held_out in divided if len(train) and len(held_out)]


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

    Validation is reduced by the same factor as train: with 1 % of the labels to train on, there is 1 % to choose with,
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
            rows = np.flatnonzero(label == value)
            share = max(1, round(fraction * len(rows))) if per_class is None else per_class
            parts.append(rng.permutation(rows)[:share])
        return np.sort(np.concatenate(parts))
    order = rng.permutation(len(label))
    chosen = order[: max(2, round(fraction * len(label)))]
    if task.kind == "multilabel":
        lacking = np.flatnonzero((label[chosen] == 0).all(axis=0) & (label == 1).any(axis=0))
        # the first positive in this draw's own order
        chosen = np.union1d(chosen, [order[np.argmax(label[order, j] == 1)] for j in lacking])
    return np.sort(chosen).astype(np.int64)
