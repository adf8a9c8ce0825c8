"""How a metric responds to the weight of each example: what intervals and comparisons are computed from. No torch here.

The influence of example i on a metric is the derivative of the metric in that example's share of the test set. Its
mean is 0 and ``sum(influence**2) / n**2`` estimates the metric's sampling variance (the infinitesimal jackknife,
Jaeckel 1972; for AUROC it is DeLong's estimate from placement values, DeLong et al. 1988). For a mean over examples it
is each example's deviation from the mean. One array of ``(n,)`` numbers then stands for a run, whatever the metric: it
is averaged over draws of labels, summed over groups and subtracted between algorithms.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from dabsmix.scoring.metrics import (
    NUMBERS,
    Label,
    Metric,
    Scores,
    Undefined,
    are_classes,
    classes_of,
    confusion,
    one_against_rest,
    precision_at_positives,
    ranking,
)
from dabsmix.scoring.metrics import metric as named

__all__ = ["influence", "rarest", "unseen"]

Values = NDArray[np.float64]


def influence(metric: Metric, scores: Scores, label: Label) -> Values:
    """The influence of every example on the metric, ``(n,)``, in the metric's own unit.

    Args:
        metric: any of ``metrics.METRICS``.
        scores, label: as at the top of ``metrics.py``.
    """
    if metric.parts is not None:
        above, below = metric.parts(scores, label)
        response: Values = (above - above.sum() / below.sum() * below) / below.mean()
        return response
    if metric.batch:
        return _over_batches(metric, scores, label)
    return _BY_NAME[metric.name](scores, label)


def _over_batches(mean: Metric, scores: Scores, label: Label) -> Values:
    """For a mean over batches, weighted by their rows: an example moves its own batch's value only."""
    of_batch = named(mean.name.partition("/")[0])
    response, num_rows = np.zeros(len(label)), 0
    for start in range(0, len(label), mean.batch):
        part = slice(start, start + mean.batch)
        with suppress(Undefined):
            of_batch(scores[part], label[part])  # a batch whose labels give no value is left out of the mean
            response[part] = influence(of_batch, scores[part], label[part])
            num_rows += len(label[part])
    return response * len(label) / max(1, num_rows)


def rarest(metric: Metric, label: Label) -> int:
    """The smallest number of examples that the metric depends on: for a mean over classes, those of the rarest class.

    If there is no error, the data show no variance; the width of an interval then follows from this number.
    """
    if metric.parts is not None or (label.dtype.kind == "f" and label.ndim == 1):
        return len(label)
    if label.ndim == 2 and metric.name in ("auroc_macro", "average_precision"):
        counts = np.concatenate([label.sum(axis=0), (1 - label).sum(axis=0)])
    else:
        counts = np.unique(label[label >= 0], return_counts=True)[1]
    return int(min(counts[counts > 0], default=len(label)))


def unseen(metric: Metric, scores: Scores, label: Label, unit: NDArray[np.int64]) -> float:
    """The part of the variance that the influences cannot show, because a class rests on few test units.

    They show how the units of a class differ, and of one unit nothing: a mean over classes then seems surer than it is.
    The variance that they show of a class is averaged with what is expected from the class's value alone, with weights
    of k - 1 and `STEADY`, where k is the number of its units (of AUROC, of positives or negatives, whichever are
    fewer). What is expected is Hanley and McNeil's variance (1982) for AUROC, with 1 / 2k units more that are right
    and as many that are wrong; and for the other means over classes that of a proportion with two more of each (Agresti
    and Coull 1998).

    Args:
        metric, scores, label: as for `influence`.
        unit: ``(n,)``, the group of every example as 0, 1, ..., or its own number where examples are independent.

    Returns:
        What to add to the sum of squared influences of units; 0 for metrics that are not a mean over
        classes, and for means over batches.
    """
    if metric.name not in _OF_CLASSES:
        return 0.0
    lacking = shown = 0.0
    total, classes = np.zeros(int(unit.max()) + 1), 0
    for value, response, sides in _OF_CLASSES[metric.name](scores, label):
        of_units = np.bincount(unit, weights=response / len(label), minlength=len(total))
        counts = [max(1, len(np.unique(unit[side]))) for side in sides]
        own = float((of_units**2).sum())
        lacking += max(_expected(value, counts) - own, 0.0) * STEADY / (min(counts) - 1 + STEADY)
        shown += own
        total += of_units
        classes += 1
    together = float((total**2).sum()) / shown if shown else 1.0  # from 1 for independent classes to their number
    return together * lacking / classes**2


STEADY = 5  # of 5, 10 and 20 the least that covers an AUROC of 10 positives and 100 negatives in 94 to 98 %


def _expected(value: float, counts: Sequence[int]) -> float:
    """The variance of a class's value that follows from the value and from how many units it rests on."""
    if len(counts) == 1:
        (k,) = counts
        smooth = (k * value + 2) / (k + 4)
        return smooth * (1 - smooth) / k
    fewest = min(counts)
    # one or two may rank perfectly by chance
    value = (fewest * value + 0.5 / fewest) / (fewest + 1 / fewest)
    others, pairs = sum(counts) / 2 - 1, counts[0] * counts[1]
    least, most = others * (1 - value) / (2 - value), others * value / (1 + value)
    return value * (1 - value) * (1 + least + most) / pairs


# --- means over classes: of each its value, its influences and the examples that it rests on

Sides = tuple[NDArray[np.int64], ...]
"""Numbers of examples: for AUROC of the positives and of the negatives, else of the class alone."""


def _mean_over_classes(name: str) -> Callable[[Scores, Label], Values]:
    def function(scores: Scores, label: Label) -> Values:
        total: Values = np.zeros(len(label))
        classes = 0
        for _, response, _ in _OF_CLASSES[name](scores, label):
            total += response
            classes += 1
        return total / max(classes, 1)

    return function


def _of_auroc(scores: Scores, label: Label) -> Iterator[tuple[float, Values, Sides]]:
    """DeLong's placement values, of each class that has both positives and negatives."""
    from scipy.stats import rankdata

    n = len(label)
    for column, yes in one_against_rest(scores, label):
        m = float(yes.sum())
        if not 0 < m < n:
            continue
        ranks = rankdata(column)
        place = np.empty(n)
        place[yes] = (ranks[yes] - rankdata(column[yes])) / (n - m)  # share of negatives below this positive
        place[~yes] = 1 - (ranks[~yes] - rankdata(column[~yes])) / m  # share of positives above this negative
        area = float(place[yes].mean())
        response = np.empty(n)
        for side in (yes, np.logical_not(yes)):
            k = int(side.sum())
            # DeLong's variance divides by k - 1; a single example of a side tells nothing about its spread
            response[side] = (place[side] - area) * n / k * np.sqrt(k / max(k - 1, 1))
        yield area, response, (np.flatnonzero(yes), np.flatnonzero(~yes))


def _of_precision(scores: Scores, label: Label) -> Iterator[tuple[float, Values, Sides]]:
    """The mean over positives of precision at their score: a row above a positive changes its precision."""
    for ranked, positive in one_against_rest(scores, label):
        if not positive.any():
            continue
        yes, hits, above = precision_at_positives(ranked, positive)
        count, precision = int(yes.sum()), hits / above
        order = np.argsort(ranked, kind="stable")
        start = np.searchsorted(ranked[order], ranked, side="right")
        # sums over the positives at or below a row's score
        gained, lost = (
            np.concatenate([[0.0], np.cumsum(np.where(yes, x, 0.0)[order])])[start]
            for x in (1 / above, hits / above**2)
        )
        value = float(precision[yes].mean())
        response = yes * (precision - value) + yes * gained - lost
        yield value, response * len(yes) / count, (np.flatnonzero(yes),)


def _of_recall(scores: Scores, label: Label) -> Iterator[tuple[float, Values, Sides]]:
    """The share of a class that is predicted as it: an example moves its own class."""
    predicted, true, rows = _scored(scores, label)
    right = (predicted == true).astype(float)
    for c in np.unique(true):
        own = true == c
        k = int(own.sum())
        share = float(right[own].mean())
        # as in DeLong's variance: a single example of a class tells nothing about its spread
        response = np.where(own, (right - share) * len(rows) / k * np.sqrt(k / max(k - 1, 1)), 0.0)
        yield share, _of_examples(response, rows, label), (rows[own],)


def _of_f1(scores: Scores, label: Label) -> Iterator[tuple[float, Values, Sides]]:
    """F1 = 2 hits / (predicted + true), by the quotient rule."""
    several = scores.shape == label.shape and not are_classes(scores)
    wrong, right, rows = (label, label, np.arange(len(label))) if several else _scored(scores, label)
    for c in range(label.shape[1] if several else len(confusion(scores, label))):
        predicted, true = (scores[:, c] > 0, label[:, c] > 0) if several else (wrong == c, right == c)
        count = int(predicted.sum() + true.sum())
        if not (count or several):
            continue
        hits = predicted & true
        f1 = 2 * int(hits.sum()) / max(count, 1)
        response = len(rows) * (2.0 * hits - f1 * (predicted * 1.0 + true)) / max(count, 1)
        yield f1, _of_examples(response, rows, label), (rows[true],)


_OF_CLASSES: dict[str, Callable[[Scores, Label], Iterator[tuple[float, Values, Sides]]]] = {
    "auroc_macro": _of_auroc,
    "average_precision": _of_precision,
    "balanced_accuracy": _of_recall,
    "f1_macro": _of_f1,
}


# --- other metrics


def _r2(scores: Scores, label: Label) -> Values:
    """Of 1 - errors / spread, by the quotient rule."""
    errors, deviations = (scores.astype(float) - label) ** 2, (label - label.mean()) ** 2
    response: Values = (errors.sum() / deviations.sum() * deviations - errors) / deviations.mean()
    return response


def _f1_weighted(scores: Scores, label: Label) -> Values:
    """Of the mean over classes of F1, weighted by their shares of the labels; the weights respond too."""
    several = scores.shape == label.shape and not are_classes(scores)
    wrong, right, rows = (label, label, np.arange(len(label))) if several else _scored(scores, label)
    one = np.eye(label.shape[1] if several else len(confusion(scores, label)))
    n, step = len(rows), max(1, NUMBERS // len(one))
    parts = [slice(start, start + step) for start in range(0, n, step)]

    def ones(part: slice) -> tuple[Values, Values]:
        """Which classes are predicted and which are true, ``(m, C)`` each."""
        if several:
            return (scores[part] > 0).astype(float), (label[part] > 0).astype(float)
        return one[wrong[part]], one[right[part]]

    hits, counts, of_class = np.zeros((3, len(one)))
    for part in parts:
        predicted, true = ones(part)
        hits += (predicted * true).sum(axis=0)
        counts += (predicted + true).sum(axis=0)
        of_class += true.sum(axis=0)
    denominator = counts.clip(1)
    f1, share = 2 * hits / denominator, of_class / max(of_class.sum(), 1)
    values: Values = np.empty(n)
    for part in parts:
        predicted, true = ones(part)
        per_class = n * (2 * predicted * true - f1 * (predicted + true)) / denominator
        weights = n * (true @ f1 - true.sum(axis=1) * (f1 @ share)) / max(of_class.sum(), 1)
        values[part] = per_class @ share + weights
    return _of_examples(values, rows, label)


def _matthews(scores: Scores, label: Label) -> Values:
    """Of cov(true, predicted) / sqrt(cov(true, true) cov(predicted, predicted)), from shares of the confusion table."""
    b, a, rows = _scored(scores, label)
    share = confusion(scores, label) / len(rows)
    true, predicted, right = share.sum(axis=1), share.sum(axis=0), np.trace(share)
    joint, one, other = right - true @ predicted, 1 - true @ true, 1 - predicted @ predicted
    if one * other <= 0:
        return np.zeros(len(label))
    value = joint / np.sqrt(one * other)
    d_joint = (a == b) - right - predicted[a] - true[b] + 2 * true @ predicted
    d_one, d_other = 2 * (true @ true - true[a]), 2 * (predicted @ predicted - predicted[b])
    response = d_joint / np.sqrt(one * other) - value / 2 * (d_one / one + d_other / other)
    return _of_examples(response, rows, label)


def _correlation(ranked: bool) -> Callable[[Scores, Label], Values]:
    """Of cov(x, y) / sqrt(cov(x, x) cov(y, y)); of Spearman's x and y are ranks, which each example moves too."""

    def function(scores: Scores, label: Label) -> Values:
        from scipy.stats import rankdata

        x, y = ranking(scores).astype(float), label.astype(float)
        if ranked:
            x, y = rankdata(x), rankdata(y)
        if np.ptp(x) == 0 or np.ptp(y) == 0:
            return np.zeros(len(label))
        u, v = ((z - z.mean()) / z.std() for z in (x, y))
        joint, one, other = u * v, u**2, v**2
        if ranked:  # in standard deviations of the ranks, as u and v are
            joint += _above(x, v) / x.std() + _above(y, u) / y.std()
            one += 2 * _above(x, u) / x.std()
            other += 2 * _above(y, v) / y.std()
        response: Values = joint - float(np.mean(u * v)) / 2 * (one + other)
        response -= response.mean()
        return response

    return function


def _above(ranks: Values, values: Values) -> Values:
    """For each example the sum of the values of those ranked above it, and half of those ranked as it is.

    An example of weight ε lifts the ranks of these by ε times their number, and by half of that.
    """
    order = np.argsort(ranks, kind="stable")
    _, start, size = np.unique(ranks[order], return_index=True, return_counts=True)
    sums = np.add.reduceat(values[order], start)
    above: Values = np.empty(len(ranks))
    above[order] = np.repeat(sums[::-1].cumsum()[::-1] - sums / 2, size)
    return above


def _scored(scores: Scores, label: Label) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Predicted class, true class and example of every scored example or token."""
    scored = label >= 0
    return classes_of(scores)[scored], label[scored], np.nonzero(scored)[0]


def _of_examples(response: Values, rows: NDArray[np.int64], label: Label) -> Values:
    """Summed over an example's tokens, in units of the number of examples."""
    summed = np.bincount(rows, weights=response, minlength=len(label)).astype(np.float64)
    return summed * (len(label) / len(rows))


_BY_NAME: dict[str, Callable[[Scores, Label], Values]] = {
    **{name: _mean_over_classes(name) for name in _OF_CLASSES},
    "f1_weighted": _f1_weighted,
    "matthews": _matthews,
    "r2": _r2,
    "pearson": _correlation(ranked=False),
    "spearman": _correlation(ranked=True),
}
