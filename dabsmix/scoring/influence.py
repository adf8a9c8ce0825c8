"""How a metric responds to the weight of each example: what intervals and comparisons are computed from. No torch here.

The influence of example i on a metric is the derivative of the metric in that example's share of the test set. Its
mean is 0 and ``sum(influence**2) / n**2`` estimates the metric's sampling variance (the infinitesimal jackknife,
Jaeckel 1972; for AUROC it is DeLong's estimate from placement values, DeLong et al. 1988). For a mean over examples it
is each example's deviation from the mean. One array of ``(n,)`` numbers then stands for a run, whatever the metric: it
is averaged over draws of labels, summed over groups and subtracted between algorithms.
"""

from collections.abc import Callable, Iterator
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

__all__ = ["influence", "rarest", "widening"]

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


def widening(metric: Metric, scores: Scores, label: Label) -> float:
    """The factor by which to multiply the variance from the influence, for one run on independent rows.

    1 except for AUROC. There DeLong's variance is itself uncertain if a class has few positives (or negatives), k, and
    too small if they rank alike by chance. It is averaged with Hanley and McNeil's (1982), which needs the area
    alone, with weights of k - 1 and `STEADY`.
    """
    if metric.name != "auroc_macro":
        return 1.0
    total = steady = 0.0
    for yes, place in _placements(scores, label):
        area, sides = float(place[yes].mean()), (place[yes], place[~yes])
        delong = sum(float(side.var(ddof=1)) / len(side) if len(side) > 1 else 0.0 for side in sides)
        fewest, pairs = min(map(len, sides)), len(sides[0]) * len(sides[1])
        others = len(place) / 2 - 1
        spread = area * (1 - area) * (1 + others * (1 - area) / (2 - area) + others * area / (1 + area))
        total += delong
        steady += (delong * (fewest - 1) + spread / pairs * STEADY) / (fewest - 1 + STEADY)
    return steady / total if total > 0 else 1.0


STEADY = 5  # of 5, 10 and 20 the least that covers 10 positives and 100 negatives in 94 to 98 %


def _placements(scores: Scores, label: Label) -> Iterator[tuple[NDArray[np.bool_], Values]]:
    """For each class with both positives and negatives which rows are positive, and DeLong's placement values."""
    from scipy.stats import rankdata

    n = len(label)
    for column, yes in one_against_rest(scores, label):
        m = float(yes.sum())
        if 0 < m < n:
            ranks = rankdata(column)
            place = np.empty(n)
            place[yes] = (ranks[yes] - rankdata(column[yes])) / (n - m)  # share of negatives below this positive
            place[~yes] = 1 - (ranks[~yes] - rankdata(column[~yes])) / m  # share of positives above this negative
            yield yes, place


def _auroc_macro(scores: Scores, label: Label) -> Values:
    """Placement values, averaged over the classes that have both positives and negatives."""
    total: Values = np.zeros(len(label))
    classes = 0
    for yes, place in _placements(scores, label):
        classes += 1
        area = place[yes].mean()
        for side in (yes, np.logical_not(yes)):
            k = int(side.sum())
            # DeLong's variance divides by k - 1; a single example of a side tells nothing about its spread
            total[side] += (place[side] - area) * len(place) / k * np.sqrt(k / max(k - 1, 1))
    return total / classes


def _average_precision(scores: Scores, label: Label) -> Values:
    """Of the mean over positives of precision at their score: a row above a positive changes its precision."""
    total: Values = np.zeros(len(label))
    classes = 0
    for ranked, positive in one_against_rest(scores, label):
        if not positive.any():
            continue
        classes += 1
        yes, hits, above = precision_at_positives(ranked, positive)
        count, precision = int(yes.sum()), hits / above
        order = np.argsort(ranked, kind="stable")
        start = np.searchsorted(ranked[order], ranked, side="right")
        # sums over the positives at or below a row's score
        gained, lost = (
            np.concatenate([[0.0], np.cumsum(np.where(yes, x, 0.0)[order])])[start]
            for x in (1 / above, hits / above**2)
        )
        response = yes * (precision - precision[yes].mean()) + yes * gained - lost
        total += response * len(yes) / count
    return total / classes


def _balanced_accuracy(scores: Scores, label: Label) -> Values:
    """Of the mean over classes of the share that is predicted: an example moves its own class."""
    predicted, true, rows = _scored(scores, label)
    right = (predicted == true).astype(float)
    counts = np.bincount(true)
    share = np.bincount(true, weights=right, minlength=len(counts)) / counts.clip(1)
    # as in DeLong's variance: a single example of a class tells nothing about its spread
    response = (right - share[true]) * len(rows) / counts[true] * np.sqrt(counts[true] / (counts[true] - 1).clip(1))
    return _of_examples(response / (counts > 0).sum(), rows, label)


def _r2(scores: Scores, label: Label) -> Values:
    """Of 1 - errors / spread, by the quotient rule."""
    errors, deviations = (scores.astype(float) - label) ** 2, (label - label.mean()) ** 2
    response: Values = (errors.sum() / deviations.sum() * deviations - errors) / deviations.mean()
    return response


def _f1(average: str) -> Callable[[Scores, Label], Values]:
    """Of the mean over classes of F1 = 2 hits / (predicted + true), by the quotient rule."""

    def function(scores: Scores, label: Label) -> Values:
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
        occurs, denominator = (counts > 0) | several, counts.clip(1)
        f1, share = 2 * hits / denominator, of_class / max(of_class.sum(), 1)
        values: Values = np.empty(n)
        for part in parts:
            predicted, true = ones(part)
            per_class = n * (2 * predicted * true - f1 * (predicted + true)) / denominator
            if average == "macro":
                values[part] = (per_class if several else per_class[:, occurs]).mean(axis=1)
            else:  # the weights respond too
                weights = n * (true @ f1 - true.sum(axis=1) * (f1 @ share)) / max(of_class.sum(), 1)
                values[part] = per_class @ share + weights
        return _of_examples(values, rows, label)

    return function


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
    "auroc_macro": _auroc_macro,
    "average_precision": _average_precision,
    "balanced_accuracy": _balanced_accuracy,
    "f1_macro": _f1("macro"),
    "f1_weighted": _f1("weighted"),
    "matthews": _matthews,
    "r2": _r2,
    "pearson": _correlation(ranked=False),
    "spearman": _correlation(ranked=True),
}
