"""How sure a score is, and whether two algorithms differ; docs/evaluation.md has the simulated error rates.

A run is reduced to its score and the influence of each unit on it (`measure`). Units are test examples, or whole groups
where examples come in groups. Runs that differ in their seeds alone are then a table of seeds by units with crossed
random effects: another seed would move a whole row of it, another test set whole columns. No torch here.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dabsmix.scoring.influence import influence, rarest, unseen
from dabsmix.scoring.metrics import NUMBERS, Label, Metric, Scores, Undefined

__all__ = [
    "MIN_GROUPS",
    "MIN_SEEDS",
    "Difference",
    "Estimate",
    "Interval",
    "Measured",
    "average",
    "compare",
    "estimate",
    "holm",
    "interval",
    "mean_score",
    "measure",
    "student_quantile",
    "unpaired",
]

ALPHA = 0.05
MIN_GROUPS = 5  # fewer say too little about how another group would differ
MIN_SEEDS = 3  # on each side of a comparison; fewer say too little about how another seed would differ
# The degrees of freedom are estimated, and are far too many where the seeds agree by chance. Without a limit, nine
# equal algorithms with three seeds show a difference in up to 6.5 % of blocks; with it in up to 5.7 %.
MAX_DEGREES = 3  # times the seeds' own


@dataclass(frozen=True)
class Measured:
    """One seed of one algorithm on the test rows.

    Attributes:
        value: the score, averaged over the draws of labels.
        influence: of each unit, ``(units,)``; they sum to 0, and to the change of the score under other weights.
        share: of the test rows in each group, ``(units,)``; None where rows are independent.
        n: test rows.
        rarest: how many rows the metric rests on at least, see `influence.rarest`.
        unseen: variance beyond that of the influences, see `influence.unseen`.
        rows: digest of the labels and groups: runs are compared unit by unit only where it is equal.
    """

    value: float
    influence: NDArray[np.float64]
    share: NDArray[np.float64] | None
    n: int
    rarest: int
    unseen: float = 0.0
    rows: str = ""


@dataclass(frozen=True)
class Estimate:
    """The mean over seeds, the variance of its error (over seeds and test units) and that variance's degrees."""

    value: float
    variance: float
    degrees: float


@dataclass(frozen=True)
class Interval:
    """A score, the mean over seeds, and its 95 % interval.

    Attributes:
        value: the score.
        low, high: the ends; None where the test rows come from fewer than `MIN_GROUPS` groups. With one seed they
            say nothing of how seeds vary.
        n: test rows.
        units: groups if there are groups, otherwise rows.
        seeds: how many.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    units: int
    seeds: int


@dataclass(frozen=True)
class Difference:
    """First minus second, in the metric's unit (where less is better, less than 0 favours the first).

    Attributes:
        value: the difference of the means over seeds.
        low, high: its 95 % interval; None where a side has fewer than `MIN_SEEDS` seeds or the rows come from fewer
            than `MIN_GROUPS` groups, or are a single one.
        p: two-sided, for no difference; 1 if there is no interval. A family of them is corrected by `holm`.
    """

    value: float
    low: float | None = None
    high: float | None = None
    p: float = 1.0


def measure(
    metric: Metric, draws: Sequence[Scores] | Scores, label: Label, group: NDArray[np.int64] | None = None
) -> Measured:
    """One seed's score and the influence of each unit on it, both averaged over draws of few labels.

    Draws share the encoder: they are not seeds.

    Args:
        metric: what to compute.
        draws: scores of the same rows, one array per draw or a leading axis of draws; their form and that of ``label``
            as in ``metrics.py``.
        label: first axis n.
        group: ``(n,)``, rows of one value belong together; None where rows are independent.

    Raises:
        ValueError: there is no draw, or there is not one group per row.
        Undefined: the metric has no value on these rows.
    """
    if len(draws) == 0:
        raise ValueError("no scores to average")
    value, response = _over_draws(metric, draws, label)
    response = response / len(label)
    share, unit, rows = None, np.arange(len(label)), hashlib.sha256(np.ascontiguousarray(label).tobytes())
    if group is not None:
        if len(group) != len(label):
            raise ValueError(f"{len(group)} groups for {len(label)} rows")
        rows.update(np.ascontiguousarray(group).tobytes())
        unit = np.unique(group, return_inverse=True)[1]
        response = np.bincount(unit, weights=response).astype(np.float64)
        share = np.bincount(unit) / len(label)
    lacking = 0.0
    if metric.parts is None:  # a ratio of sums is not a mean over classes
        lacking = float(np.mean([unseen(metric, scores, label, unit) for scores in draws]))
    return Measured(value, response, share, len(label), rarest(metric, label), lacking, rows.hexdigest())


def _over_draws(metric: Metric, draws: Sequence[Scores] | Scores, label: Label) -> tuple[float, NDArray[np.float64]]:
    """The mean score and the mean influence of each row; of a ratio many draws at once, for the board measures many."""
    total: NDArray[np.float64] = np.zeros(len(label))
    if metric.parts is None:
        value = mean_score(metric, draws, label)  # first, because it checks the scores
        for scores in draws:
            total += influence(metric, scores, label)
        return value, total / len(draws)
    values: list[float] = []
    for above, below, shares in _ratios(metric, draws, label):
        values += shares.tolist()
        total += ((above - shares[:, None] * below) / below.mean()).sum(axis=0)
    return float(np.mean(values)), total / len(values)


def average(runs: Sequence[Measured]) -> Measured:
    """Runs of one seed on the same test rows as one: like draws of labels, they are not seeds."""
    first, *others = runs
    if not others:
        return first
    return replace(
        first,
        value=float(np.mean([run.value for run in runs])),
        influence=np.mean([run.influence for run in runs], axis=0),
        unseen=float(np.mean([run.unseen for run in runs])),
    )


def mean_score(metric: Metric, draws: Sequence[Scores] | Scores, label: Label) -> float:
    """The score averaged over draws, see `measure`."""
    if metric.parts is None:
        return float(np.mean([metric(scores, label) for scores in draws]))
    return float(np.mean([share for *_, shares in _ratios(metric, draws, label) for share in shares.tolist()]))


def _ratios(metric: Metric, draws: Sequence[Scores] | Scores, label: Label) -> Iterator[tuple[Any, Any, Any]]:
    """Of a metric with parts these, and their ratio of sums, for some draws at a time."""
    assert metric.parts is not None
    at_once = max(1, NUMBERS // max(1, len(label)))
    for start in range(0, len(draws), at_once):
        stacked = np.asarray(draws[start : start + at_once])
        metric.check(stacked, label)
        above, below = metric.parts(stacked, label)
        if not below.sum():
            raise Undefined("no token of these rows is scored")
        yield above, below, above.sum(axis=1) / below.sum()


def estimate(seeds: Sequence[Measured]) -> Estimate:
    """The mean over seeds; with one seed its variance is that over test units alone."""
    return _crossed([seeds])


def interval(metric: Metric, seeds: Sequence[Measured]) -> Interval:
    """The 95 % interval of the mean over seeds.

    Student's t on a scale that fits the metric: Wilson's for proportions, with the number of independent examples
    that has the estimated variance; the logit for other bounded metrics; the logarithm for errors, and for what R²
    lacks of 1. Where the runs make no error, the data show no variance: Wilson's interval then takes all the units, or
    the rarest class if those are fewer.
    """
    pooled, first = estimate(seeds), seeds[0]
    units = len(first.influence)
    if first.share is not None and units < MIN_GROUPS:
        low = high = None
    else:
        quantile = student_quantile(pooled.degrees)
        low, high = _ends(metric, pooled, quantile, min(units, first.rarest))
    return Interval(pooled.value, low, high, first.n, units, len(seeds))


def compare(first: Sequence[Measured], second: Sequence[Measured], *, fixed: bool = False) -> Difference:
    """Two algorithms on the same test rows, any numbers of seeds on each side; seeds of the two are independent.

    Args:
        first, second: the seeds of each side.
        fixed: the second takes no seed, as a yardstick does: one measurement of it is enough.

    Raises:
        ValueError: the test rows are not the same.
    """
    if len({run.rows for run in (*first, *second)}) > 1:
        raise ValueError("a comparison needs the same test rows on both sides")
    value = float(np.mean([run.value for run in first]) - np.mean([run.value for run in second]))
    units = len(first[0].influence)
    few_units = units < (2 if first[0].share is None else MIN_GROUPS)
    if few_units or len(first) < MIN_SEEDS or (len(second) < MIN_SEEDS and not fixed):
        return Difference(value)
    pooled = _crossed([first, second])
    # those of the test units count where they are few
    limit = min(MAX_DEGREES * (len(first) + len(second) - 2), units - 1.0)
    return _difference(Estimate(value, pooled.variance, min(pooled.degrees, limit)))


def unpaired(first: Estimate, second: Estimate) -> Difference:
    """Two estimates as if they were of different test rows: on the same rows the interval is too wide, not too short.

    For lines without kept predictions. The caller sees to the number of seeds.
    """
    variance = first.variance + second.variance
    parts = sum(one.variance**2 / one.degrees for one in (first, second))
    return _difference(Estimate(first.value - second.value, variance, variance**2 / parts if parts else math.inf))


def holm(p: Sequence[float], alpha: float = ALPHA) -> list[bool]:
    """Which hypotheses of a family are rejected, any true one among them with probability ``alpha`` (Holm 1979)."""
    rejected = [False] * len(p)
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[i] > alpha / (len(p) - rank):
            break
        rejected[i] = True
    return rejected


def student_quantile(degrees: float) -> float:
    """Half the width of a 95 % interval by Student's t, in standard errors. `scipy.stats` takes a second to import."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 1 - ALPHA / 2))


def _difference(pooled: Estimate) -> Difference:
    from scipy.special import stdtr

    error = math.sqrt(pooled.variance)
    half = student_quantile(pooled.degrees) * error
    p = float(2 * stdtr(pooled.degrees, -abs(pooled.value) / error)) if error else float(pooled.value == 0)
    return Difference(pooled.value, pooled.value - half, pooled.value + half, p)


def _crossed(sides: Sequence[Sequence[Measured]]) -> Estimate:
    """The mean over seeds of one side, or its difference from that of a second, with crossed effects.

    One-way over units, over the seeds of each side, and the residual that both contain; a component that comes out
    negative counts as 0, so that the variance is never below the larger one-way estimate. Degrees by Satterthwaite.
    What the influences cannot show of a rare class is added for both sides, though they may share it.
    """
    share = sides[0][0].share
    units = len(sides[0][0].influence)
    # as in CR2 (Bell & McCaffrey 2002): a group is closer to a mean that it is part of than to the true one
    weight: NDArray[np.float64] = np.ones(units) if share is None else 1 / (1 - share).clip(1e-9)
    free = math.inf if share is None else max(1 / float(share @ share) - 1, 1.0)  # few large groups count as few
    means = [np.mean([run.influence for run in side], axis=0) for side in sides]
    contrast = means[0] if len(sides) == 1 else means[0] - means[1]
    of_units = float((contrast**2 * weight).sum())
    of_seeds, residual = [], []
    for side, mean in zip(sides, means, strict=True):
        count = len(side)
        if count == 1:
            of_seeds.append(0.0)
            residual.append(0.0)
            continue
        of_seeds.append(float(np.var([run.value for run in side], ddof=1)) / count)
        spread = sum(((run.influence - mean) ** 2 * weight).sum() for run in side)
        residual.append(float(spread) / (count * (count - 1)))
    noise = sum(residual)
    units_count = of_units > noise
    variance = max(of_units, noise) + sum(max(s - r, 0.0) for s, r in zip(of_seeds, residual, strict=True))
    variance += sum(float(np.mean([run.unseen for run in side])) for side in sides)
    parts = of_units**2 / free if units_count else 0.0
    for side, s, r in zip(sides, of_seeds, residual, strict=True):
        if len(side) > 1:
            parts += (s > r) * s**2 / (len(side) - 1)
            parts += (1 - units_count - (s > r)) ** 2 * r**2 / ((len(side) - 1) * max(min(free, units - 1.0), 1.0))
    value = float(np.mean([run.value for run in sides[0]]))
    return Estimate(value, variance, variance**2 / parts if parts else math.inf)


def _ends(metric: Metric, pooled: Estimate, quantile: float, units: int) -> tuple[float, float]:
    least, most = metric.span
    value, error = pooled.value, math.sqrt(pooled.variance)
    if math.isinf(least):  # R²: what is left to explain is an error
        gap = most - value
        factor = math.exp(quantile * error / gap) if gap else 1.0
        return most - gap * factor, most - gap / factor
    if math.isinf(most):
        factor = math.exp(quantile * error / value) if value else 1.0
        return value / factor, value * factor
    p, error = (value - least) / (most - least), error / (most - least)
    flat = error < 1e-12 or not 0 < p < 1
    if flat or metric.parts is not None:
        n = units if flat else p * (1 - p) / error**2
        centre = (p + quantile**2 / (2 * n)) / (1 + quantile**2 / n)
        half = quantile / (1 + quantile**2 / n) * math.sqrt(p * (1 - p) / n + quantile**2 / (4 * n**2))
        low, high = centre - half, centre + half
    else:
        logit, step = math.log(p / (1 - p)), quantile * error / (p * (1 - p))
        low, high = (1 / (1 + math.exp(-x)) for x in (max(logit - step, -700.0), min(logit + step, 700.0)))
    low, high = (least + min(max(end, 0.0), 1.0) * (most - least) for end in (low, high))
    return min(low, value), max(high, value)
