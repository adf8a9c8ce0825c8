"""How much algorithms gain over the random encoder, over several data sets (Agarwal et al. 2021, "rliable").

The interquartile mean of normalised gains and the probability of improvement, with a stratified bootstrap over the
seeds and test units of each data set. These are described, not tested.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dabsmix.board.standings import Line
from dabsmix.scoring.intervals import Measured
from dabsmix.scoring.metrics import metric

__all__ = ["RESAMPLES", "Aggregate", "Gains", "aggregate", "best_score", "normalised_gains"]

RESAMPLES = 1000


@dataclass(frozen=True)
class Gains:
    """Of one algorithm in one column, S seeds.

    Attributes:
        measured: normalised gains, float64 ``(S,)``.
        resampled: the same by bootstrap, float64 ``(RESAMPLES, S)``.
        improvement: the share of pairs of runs in which the algorithm beats the random encoder; ties count half.
    """

    measured: NDArray[np.float64]
    resampled: NDArray[np.float64]
    improvement: float


@dataclass(frozen=True)
class Aggregate:
    """One algorithm over several columns.

    Attributes:
        mean: interquartile mean of the normalised gains of all seeds and columns, in which every column counts alike: 0
            is the random encoder, 1 perfect.
        low, high: its 95 % interval by bootstrap over the seeds and test units of each column, without the resamples
            in which the random encoder is perfect or better, where a normalised gain is undefined.
        improvement: the probability that a run beats a run of the random encoder, the mean over columns.
    """

    algorithm: str
    mean: float
    low: float
    high: float
    improvement: float


def best_score(name: str) -> float:
    """The best possible value of a metric."""
    scale = metric(name)
    return scale.span[1] if scale.higher else scale.span[0]


def normalised_gains(name: str, lines: Mapping[str, Line], random: Line, *, column: str = "") -> dict[str, Gains]:
    """Every algorithm's gains in a column. All lines share the resampled test units, each draws its own seeds.

    What an algorithm draws follows from its name and its column's alone, so that an interval does not change when
    another algorithm is added, and the seeds of different data sets are drawn independently.

    Args:
        name: of the metric; a gain is (score - random) / (best score - random).
        lines: by algorithm.
        random: the line of the random encoder.
        column: what tells it from the others.
    """
    top = best_score(name)
    sign = 1 if metric(name).higher else -1
    moves = _moves([run for line in (random, *lines.values()) for run in line.runs or ()])
    values, resampled = _resampled(random, moves, np.random.default_rng([*column.encode()]))
    base, bases = values.mean(), resampled.mean(axis=1, keepdims=True)
    room = top - bases
    # in these resamples the random encoder makes no mistake, or by the linear approximation less than none
    room[room * np.sign(top - base) < 1e-9 * abs(top - base)] = np.nan
    gains = {}
    for algorithm, line in lines.items():
        scores, drawn_scores = _resampled(line, moves, np.random.default_rng([*f"{column}\n{algorithm}".encode()]))
        wins = np.sign(sign * (scores[:, None] - values[None]))
        gains[algorithm] = Gains(
            (scores - base) / (top - base), (drawn_scores - bases) / room, float((wins + 1).mean() / 2)
        )
    return gains


def _moves(runs: Sequence[Measured]) -> dict[int, NDArray[np.float64]]:
    """By how much each resample of the test units moves a run's score, ``(RESAMPLES,)`` by `id`, in few products."""
    moves: dict[int, NDArray[np.float64]] = {}
    for units in {len(run.influence) for run in runs}:
        same = [run for run in runs if len(run.influence) == units]
        products = _weights(units) @ np.stack([run.influence for run in same], axis=1)
        moves |= zip(map(id, same), products.T, strict=True)
    return moves


def _resampled(
    line: Line, moves: Mapping[int, NDArray[np.float64]], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    runs = line.runs
    if runs is None:  # without predictions the test rows' part comes from the intervals
        values = np.array([row.value for row in line.rows])
        ends = [(row.low, row.high) for row in line.rows]
        widths = [0.0 if low is None or high is None else high - low for low, high in ends]
        moved = values + rng.normal(size=(RESAMPLES, 1)) * np.array(widths) / (2 * 1.96)
    else:
        values = np.array([run.value for run in runs])
        moved = values + np.stack([moves[id(run)] for run in runs], axis=1)
    drawn = rng.integers(len(values), size=moved.shape)
    return values, np.take_along_axis(moved, drawn, axis=1)


@lru_cache(maxsize=1)
def _weights(units: int) -> NDArray[np.float64]:
    """How often each test unit is drawn, ``(RESAMPLES, units)``; the columns of one data set follow each other."""
    rng = np.random.default_rng([0, units])
    return rng.multinomial(units, np.full(units, 1 / units), size=RESAMPLES).astype(float)


def aggregate(name: str, gains: Sequence[Gains]) -> Aggregate:
    """One algorithm's gains in several columns, as one number with an interval; ``name`` is the algorithm's.

    Every column counts alike, whatever its number of seeds.
    """
    measured = np.concatenate([gain.measured for gain in gains])
    resampled = np.concatenate([gain.resampled for gain in gains], axis=1)
    weights = np.concatenate([np.full(len(gain.measured), 1 / len(gain.measured)) for gain in gains]) / len(gains)
    finite = resampled[np.isfinite(resampled).all(axis=1)]
    low, high = np.quantile(_interquartile_mean(finite, weights), [0.025, 0.975])
    improvement = float(np.mean([gain.improvement for gain in gains]))
    return Aggregate(name, float(_interquartile_mean(measured, weights)), float(low), float(high), improvement)


def _interquartile_mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the middle half of the last axis by weight; of a value at its edge the part within it counts."""
    order = np.argsort(values, axis=-1)
    ends = np.cumsum(weights[order], axis=-1)
    within = ends.clip(0.25, 0.75) - (ends - weights[order]).clip(0.25, 0.75)
    return np.asarray((within * np.take_along_axis(values, order, axis=-1)).sum(axis=-1) / 0.5)
