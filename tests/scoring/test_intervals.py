"""Bootstrap intervals against a plain loop, their coverage on simulated scores, and paired comparisons."""

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from dabsmix.scoring.intervals import Comparison, Interval, bootstrap, compare
from dabsmix.scoring.metrics import Undefined, metric

Arrays = tuple[NDArray[np.float64], NDArray[np.int64]]


def simulated(n: int, accuracy: float, seed: int) -> Arrays:
    """Scores over three classes, right with the given probability."""
    rng = np.random.default_rng(seed)
    label = rng.integers(3, size=n)
    predicted = np.where(rng.random(n) < accuracy, label, (label + 1) % 3)
    return np.eye(3)[predicted], label


def ends(result: Interval | Comparison) -> tuple[float, float]:
    assert result.low is not None
    assert result.high is not None
    return result.low, result.high


def test_sums_of_parts_equal_the_metric_on_every_resample() -> None:
    scores, label = simulated(60, 0.7, 0)
    group = np.repeat(np.arange(12), 5)
    whole = dataclasses.replace(metric("accuracy"), parts=None)
    for groups in (None, group):
        assert bootstrap(metric("accuracy"), [scores], label, groups) == bootstrap(whole, [scores], label, groups)


def test_a_group_is_drawn_whole() -> None:
    # Within a group all rows agree, so a resampled accuracy is a multiple of 1/4; by rows it would be of 1/40.
    right = np.repeat([1, 1, 1, 0], 10)
    scores = np.stack([1 - right, right], axis=1).astype(float)
    label = np.ones(40, dtype=np.int64)
    group = np.repeat([7, 3, 9, 1], 10)
    by_group = bootstrap(metric("accuracy"), [scores], label, group)
    by_row = bootstrap(metric("accuracy"), [scores], label)
    assert (by_group.value, by_group.units, by_group.n) == (0.75, 4, 40)
    low, high = ends(by_group)
    assert low <= 0.25
    assert high == 1.0
    assert ends(by_row)[0] > 0.5


def test_one_group_has_no_interval() -> None:
    scores, label = simulated(30, 0.7, 1)
    interval = bootstrap(metric("accuracy"), [scores], label, np.zeros(30, dtype=np.int64))
    assert (interval.low, interval.high, interval.units) == (None, None, 1)
    assert not compare(metric("accuracy"), [scores], [scores[::-1]], label, np.zeros(30, dtype=np.int64)).shown


def test_the_seed_decides() -> None:
    scores, label = simulated(101, 0.7, 2)
    m = metric("f1_macro")
    assert bootstrap(m, [scores], label, resamples=50) == bootstrap(m, [scores], label, resamples=50)
    assert bootstrap(m, [scores], label, resamples=50) != bootstrap(m, [scores], label, resamples=50, seed=1)


def test_resamples_without_a_value_are_left_out_but_not_most_of_them() -> None:
    scores = np.arange(12.0)[:, None] * [[0.0, 1.0]]
    label = np.array([0] * 10 + [1] * 2)
    assert ends(bootstrap(metric("auroc_macro"), [scores], label)) == (1.0, 1.0)
    # one group per class: half of the resamples hold one class only, and with this seed more than half
    group = label.astype(np.int64)
    with pytest.raises(Undefined, match="of 41 resamples"):
        bootstrap(metric("auroc_macro"), [scores], label, group, resamples=41, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "accuracy"), [(200, 0.7), (500, 0.9)])
def test_the_interval_covers_the_true_accuracy(n: int, accuracy: float) -> None:
    trials = 600
    covered = 0
    for trial in range(trials):
        scores, label = simulated(n, accuracy, 1000 + trial)
        interval = bootstrap(metric("accuracy"), [scores], label, resamples=400, seed=trial)
        low, high = ends(interval)
        covered += low <= accuracy <= high
    assert 0.92 <= covered / trials <= 0.98


@pytest.mark.slow
def test_the_interval_covers_when_rows_come_in_groups() -> None:
    trials, covered = 600, 0
    group = np.repeat(np.arange(20), 10)
    label = np.ones(200, dtype=np.int64)
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        right = rng.random(200) < np.repeat(rng.beta(4, 2, size=20), 10)  # each subject has its own difficulty
        scores = np.stack([~right, right], axis=1).astype(float)
        interval = bootstrap(metric("accuracy"), [scores], label, group, resamples=400, seed=trial)
        low, high = ends(interval)
        covered += low <= 4 / 6 <= high
    assert 0.92 <= covered / trials <= 0.98


def test_pairing_sees_what_two_intervals_would_not() -> None:
    first, label = simulated(400, 0.70, 3)
    second = first.copy()
    wrong = np.flatnonzero(first.argmax(axis=1) != label)[:20]
    second[wrong] = np.eye(3)[label[wrong]]  # 20 rows better, no row worse
    result = compare(metric("accuracy"), [second], [first], label)
    assert result.difference == pytest.approx(0.05)
    assert ends(result)[0] > 0
    assert (result.shown, result.seeds) == (True, 1)
    a, b = (bootstrap(metric("accuracy"), [s], label) for s in (first, second))
    assert ends(b)[0] < ends(a)[1]  # unpaired, the two overlap


def test_no_difference_is_shown_between_equals() -> None:
    first, label = simulated(400, 0.7, 4)
    second = first[np.random.default_rng(0).permutation(400)]
    second[:300] = first[:300]
    result = compare(metric("accuracy"), [first], [first], label)
    assert (result.difference, result.low, result.high, result.shown) == (0, 0, 0, False)


def test_seeds_that_disagree_widen_the_interval() -> None:
    label = simulated(400, 0.7, 5)[1]
    rng = np.random.default_rng(6)

    def run(accuracy: float) -> NDArray[np.float64]:
        return np.eye(3)[np.where(rng.random(400) < accuracy, label, (label + 1) % 3)]

    base = [run(0.7) for _ in range(3)]
    steady = compare(metric("accuracy"), [run(0.78), run(0.78), run(0.78)], base, label)
    wild = compare(metric("accuracy"), [run(0.98), run(0.78), run(0.58)], base, label)
    assert steady.shown
    assert not wild.shown
    with pytest.raises(ValueError, match="same seeds"):
        compare(metric("accuracy"), base, base[:2], label)


def test_a_mean_over_draws_is_the_value_of_their_interval() -> None:
    (one, label), other = simulated(200, 0.7, 7), simulated(200, 0.4, 7)[0]
    both = bootstrap(metric("accuracy"), [one, other], label)
    single = [bootstrap(metric("accuracy"), [s], label).value for s in (one, other)]
    assert both.value == pytest.approx(np.mean(single))
    assert both.runs == 2


def test_no_end_lies_outside_the_metric_s_values() -> None:
    label = np.ones(20, dtype=np.int64)
    wrong = np.arange(20) < 8
    worse = np.stack([wrong, ~wrong], axis=1).astype(float)
    best = np.stack([np.zeros(20), np.ones(20)], axis=1)
    low, high = ends(bootstrap(metric("accuracy"), [best, worse], label))  # the spread of two runs reaches beyond 1
    assert 0 <= low < 0.8 < high == 1
    unbounded = dataclasses.replace(metric("accuracy"), span=(-np.inf, np.inf))
    assert ends(bootstrap(unbounded, [best, worse], label))[1] > 1
