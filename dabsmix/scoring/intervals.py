"""How sure a score is: bootstrap intervals, and whether two algorithms differ. No torch here."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dabsmix.scoring.metrics import Label, Metric, Scores, Undefined

__all__ = ["Comparison", "Interval", "bootstrap", "compare"]

LEVEL = 0.95
RESAMPLES = 1000

Statistic = Callable[[NDArray[np.int64]], float]  # of drawn units


@dataclass(frozen=True)
class Interval:
    """A score and its 95 % interval.

    Attributes:
        value: the metric on all rows.
        low, high: the interval's ends; None where everything comes from one group, for then nothing in the data says
            how much another group would differ.
        n: rows.
        units: how many independent units were resampled: groups where there are groups, else rows.
        runs: how many runs the value is the mean of; with one, the interval knows nothing of how runs vary.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    units: int
    runs: int


@dataclass(frozen=True)
class Comparison:
    """The difference of two algorithms' scores on the same test rows, first minus second.

    Attributes:
        difference: mean over seeds, of the metric itself (for one where less is better, less than 0 favours the first).
        low, high, n, units: as in `Interval`.
        seeds: how many pairs of runs; with one, the interval knows nothing of how runs vary.
        shown: whether the interval excludes 0. False reads "no difference shown".
    """

    difference: float
    low: float | None
    high: float | None
    n: int
    units: int
    seeds: int
    shown: bool


def bootstrap(
    metric: Metric,
    runs: Sequence[Scores],
    label: Label,
    group: NDArray[np.int64] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """A score with its bootstrap 95 % interval: the mean over runs (seeds, draws of few labels), often of one.

    Units (rows, or whole groups with all their rows) are drawn with replacement, as many as there are, the same for
    every run; then runs are. The interval is the expanded percentile interval: percentiles of the resampled score,
    moved outwards so that few units do not make it too short, and deviations between S runs are widened by
    ``sqrt(S/(S-1))`` for the same reason (Hesterberg 2015, on the bootstrap's narrowness in small samples). Resamples
    on which the metric has no value are left out. No end lies outside the values that the metric can have.

    Args:
        metric: what to compute.
        runs: scores of the same rows, one array per run; their form and that of ``label`` as in ``metrics.py``.
        label: first axis n.
        group: ``(n,)``, rows of one value belong together; None where rows are independent.
        resamples: how many.
        seed: of the draws; the same rows and seed give the same interval.

    Raises:
        ValueError: there is no run.
        Undefined: the metric has no value on all rows, or on more than half of the resamples.
    """
    if not runs:
        raise ValueError("no scores to average")
    value = float(np.mean([metric(scores, label) for scores in runs]))
    units = _Units(len(label), group)
    statistics = [_on_resample(metric, scores, label, units) for scores in runs]
    low, high = _interval(statistics, units, resamples, seed, metric.span)
    return Interval(value, low, high, len(label), units.number, len(runs))


def compare(
    metric: Metric,
    first: Sequence[Scores],
    second: Sequence[Scores],
    label: Label,
    group: NDArray[np.int64] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Paired bootstrap of two algorithms over the same test rows and seeds.

    As `bootstrap`, of the difference: every resample draws units and runs for both sides at once.

    Args:
        metric: what to compute.
        first, second: one array of scores per seed, in the same order of seeds.
        label, group: of the test rows.
        resamples: how many.
        seed: of the draws.

    Raises:
        ValueError: the two sides do not have the same number of seeds, or have none.
        Undefined: as in `bootstrap`.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"a paired comparison needs the same seeds on both sides, got {len(first)} and {len(second)}")
    pairs = list(zip(first, second, strict=True))
    difference = float(np.mean([metric(a, label) - metric(b, label) for a, b in pairs]))
    units = _Units(len(label), group)
    statistics = [
        _difference(_on_resample(metric, a, label, units), _on_resample(metric, b, label, units)) for a, b in pairs
    ]
    width = metric.span[1] - metric.span[0]
    low, high = _interval(statistics, units, resamples, seed, (-width, width))
    shown = low is not None and high is not None and not low <= 0 <= high
    return Comparison(difference, low, high, len(label), units.number, len(pairs), shown)


class _Units:
    """What is drawn with replacement: rows, or groups of rows."""

    def __init__(self, n: int, group: NDArray[np.int64] | None) -> None:
        if group is not None and len(group) != n:
            raise ValueError(f"{len(group)} groups for {n} rows")
        self.of_row = np.arange(n) if group is None else np.unique(group, return_inverse=True)[1]
        sizes = np.bincount(self.of_row)
        self.number = len(sizes)
        self._rows = None if group is None else np.split(np.argsort(self.of_row, kind="stable"), np.cumsum(sizes)[:-1])

    def draws(self, resamples: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Drawn units, ``(number,)`` for each resample."""
        for _ in range(resamples):
            yield rng.integers(self.number, size=self.number)

    def rows(self, drawn: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of the drawn units, each as often as its unit was drawn."""
        if self._rows is None:
            return drawn
        return np.concatenate([self._rows[unit] for unit in drawn])

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of a quantity of the rows ``(n,)`` over each unit, ``(number,)``."""
        return np.bincount(self.of_row, weights=values, minlength=self.number).astype(np.float64)


def _on_resample(metric: Metric, scores: Scores, label: Label, units: _Units) -> Statistic:
    """A function from drawn units to the metric on their rows; NaN where it has no value."""
    if metric.parts is None:

        def value(drawn: NDArray[np.int64]) -> float:
            rows = units.rows(drawn)
            try:
                return metric.function(scores[rows], label[rows])
            except Undefined:
                return math.nan

        return value

    above, below = (units.sums(part) for part in metric.parts(scores, label))

    def ratio(drawn: NDArray[np.int64]) -> float:
        total = below[drawn].sum()
        return float(above[drawn].sum() / total) if total else math.nan

    return ratio


def _difference(first: Statistic, second: Statistic) -> Statistic:
    return lambda drawn: first(drawn) - second(drawn)


def _interval(
    statistics: Sequence[Statistic], units: _Units, resamples: int, seed: int, span: tuple[float, float]
) -> tuple[float, float] | tuple[None, None]:
    """Both ends of the expanded percentile interval of the statistics' mean over runs, within the span."""
    from scipy.stats import norm, t

    if units.number < 2:
        return None, None
    rng = np.random.default_rng(seed)
    by_run = np.array([[on(drawn) for on in statistics] for drawn in units.draws(resamples, rng)])  # (resamples, S)
    values = by_run.mean(axis=1)
    num_runs = len(statistics)
    if num_runs > 1:
        drawn_runs = rng.integers(num_runs, size=by_run.shape)
        deviation = np.take_along_axis(by_run, drawn_runs, axis=1).mean(axis=1) - values
        values = values + math.sqrt(num_runs / (num_runs - 1)) * deviation
    defined = values[~np.isnan(values)]
    if 2 * len(defined) < resamples:
        raise Undefined(f"the metric has no value on {resamples - len(defined)} of {resamples} resamples")
    tail = norm.cdf(math.sqrt(units.number / (units.number - 1)) * t.ppf((1 - LEVEL) / 2, units.number - 1))
    low, high = np.quantile(defined, [tail, 1 - tail]).clip(*span)
    return float(low), float(high)
