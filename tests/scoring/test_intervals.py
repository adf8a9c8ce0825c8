"""Intervals against their formulas and by simulation; comparisons that the former bootstrap got wrong."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, binomtest, t

from dabsmix.scoring.intervals import (
    MAX_DEGREES,
    Difference,
    Estimate,
    Interval,
    Measured,
    compare,
    estimate,
    holm,
    interval,
    measure,
    unpaired,
)
from dabsmix.scoring.metrics import metric

ACCURACY = metric("accuracy")


def scores(right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Scores over two classes; the label is 1."""
    return np.stack([~right, right], axis=1).astype(float)


def run(right: NDArray[np.bool_], group: NDArray[np.int64] | None = None) -> Measured:
    return measure(ACCURACY, [scores(right)], np.ones(len(right), dtype=np.int64), group)


def runs(level: float, num_seeds: int, spread: float, seed: int, n: int = 400) -> list[Measured]:
    rng = np.random.default_rng(seed)
    return [run(rng.random(n) < level + spread * rng.normal()) for _ in range(num_seeds)]


@pytest.mark.parametrize(("right", "n"), [(49, 50), (50, 50), (0, 50), (150, 200)])
def test_one_run_on_independent_examples_has_wilsons_interval(right: int, n: int) -> None:
    ends = interval(ACCURACY, [run(np.arange(n) < right)])
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert (ends.low, ends.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("n", [50, 100, 200])
def test_accuracy_is_covered_by_the_binomial_distribution(n: int) -> None:
    all_ends = [interval(ACCURACY, [run(np.arange(n) < right)]) for right in range(n + 1)]
    low, high = (np.array([getattr(ends, end) for ends in all_ends]) for end in ("low", "high"))
    for accuracy in np.arange(500, 981) / 1000:
        inside = (low <= accuracy) & (accuracy <= high)
        assert 0.92 <= binom.pmf(np.arange(n + 1), n, accuracy)[inside].sum() <= 0.98


@pytest.mark.parametrize("negatives", [10, 100])
def test_auroc_is_covered_near_the_edge(negatives: int) -> None:
    rng = np.random.default_rng(0)
    auroc, label, covered = metric("auroc_macro"), np.repeat([0, 1], [negatives, 10]), 0
    for _ in range(400):
        one = rng.normal(size=len(label)) + label * math.sqrt(2) * 1.6449
        ends = interval(auroc, [measure(auroc, [np.stack([-one, one], axis=1)], label)])
        covered += ends.low is not None and ends.high is not None and ends.low <= 0.95 <= ends.high
    assert 0.91 <= covered / 400 <= 0.985


def test_without_any_error_the_rarest_class_sets_the_width() -> None:
    label = np.repeat([0, 1], [90, 10])
    drawn = np.eye(2)[label]
    for name in ("auroc_macro", "f1_macro"):
        ends = interval(metric(name), [measure(metric(name), [drawn], label)])
        assert ends.high == pytest.approx(1)
        assert ends.low == pytest.approx(10 / (10 + 1.96**2), abs=1e-3)


def test_groups_are_the_units_and_few_of_them_give_no_interval() -> None:
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(8), 50)
    right = rng.random(400) < np.repeat(rng.random(8), 50)
    by_group, by_row = interval(ACCURACY, [run(right, group)]), interval(ACCURACY, [run(right)])
    assert (by_group.units, by_group.n) == (8, 400)
    assert by_group.low is not None
    assert by_row.low is not None
    assert by_group.low < by_row.low
    few = interval(ACCURACY, [run(right, group // 2)])
    assert (few.units, few.low, few.high) == (4, None, None)
    assert compare([run(right, group // 2)] * 3, [run(~right, group // 2)] * 3).low is None


def test_several_seeds_give_the_interval_of_their_mean() -> None:
    rng = np.random.default_rng(2)
    agreeing = [run(rng.random(400) < 0.8) for _ in range(5)]
    wild = [run(rng.random(400) < level) for level in (0.6, 0.7, 0.8, 0.9, 0.97)]
    single, five, spread = (interval(ACCURACY, runs) for runs in (agreeing[:1], agreeing, wild))

    def width(ends: Interval) -> float:
        assert ends.low is not None
        assert ends.high is not None
        return ends.high - ends.low

    assert width(five) < width(single)  # examples that fail at random are averaged out
    assert width(spread) > 2 * width(single)
    assert spread.seeds == 5


def test_draws_of_labels_are_not_seeds() -> None:
    rng = np.random.default_rng(3)
    label = np.ones(300, dtype=np.int64)

    def seed(level: float) -> Measured:
        return measure(ACCURACY, [scores(rng.random(300) < level + 0.01 * rng.normal()) for _ in range(20)], label)

    # Each seed has its own level, and so have all of its 20 draws: three draws of a level are not 60.
    first, second = [seed(x) for x in (0.60, 0.70, 0.80)], [seed(x) for x in (0.55, 0.62, 0.70)]
    difference = compare(first, second)
    assert difference.value == pytest.approx(0.077, abs=0.02)
    assert difference.p > 0.1


def test_nothing_is_claimed_with_fewer_than_three_seeds() -> None:
    better, worse = runs(0.95, 3, 0, 4), runs(0.5, 3, 0, 5)
    assert compare(better, worse).p < 1e-6
    for a, b in ((better[:2], worse), (better, worse[:1])):
        difference = compare(a, b)
        assert (difference.low, difference.high, difference.p) == (None, None, 1.0)
        assert difference.value > 0.3


def test_unequal_numbers_of_seeds_use_every_seed() -> None:
    first, second = runs(0.8, 5, 0.02, 6), runs(0.7, 3, 0.02, 7)
    difference = compare(first, second)
    assert difference.value == pytest.approx(np.mean([r.value for r in first]) - np.mean([r.value for r in second]))
    assert compare(second, first).p == pytest.approx(difference.p)


def test_components_against_their_plain_formulas() -> None:
    rng = np.random.default_rng(8)

    def side(levels: list[float]) -> list[Measured]:  # each algorithm has its own difficult examples
        hard = rng.random(400) < 0.3
        return [run(rng.random(400) < np.where(hard, 0.1, level)) for level in levels]

    first, second = side([0.95, 0.8, 0.7, 0.9]), side([0.6, 0.75, 0.9])
    contrast = np.mean([r.influence for r in first], axis=0) - np.mean([r.influence for r in second], axis=0)
    of_units = (contrast**2).sum()
    of_seeds = [np.var([r.value for r in runs], ddof=1) / len(runs) for runs in (first, second)]
    residual = [np.var([r.influence for r in runs], axis=0, ddof=1).sum() / len(runs) for runs in (first, second)]
    variance = of_units + sum(of_seeds) - sum(residual)
    parts = sum(s**2 / (len(x) - 1) for s, x in zip(of_seeds, (first, second), strict=True))
    parts += sum(r**2 / ((len(x) - 1) * 399) for r, x in zip(residual, (first, second), strict=True))
    degrees = min(variance**2 / parts, MAX_DEGREES * 5)
    difference = compare(first, second)
    assert difference.low is not None
    assert difference.value - difference.low == pytest.approx(t.ppf(0.975, degrees) * math.sqrt(variance))


def test_groups_against_their_plain_formulas() -> None:
    """CR2's correction of each group's part, and the degrees of the effective number of groups."""
    rng = np.random.default_rng(9)
    sizes = rng.integers(10, 91, size=8)
    group = np.repeat(np.arange(8), sizes)
    right = rng.random(len(group)) < np.repeat(rng.random(8), sizes)
    share = sizes / sizes.sum()
    parts = [(right[group == g] - right.mean()).sum() / len(right) for g in range(8)]
    computed = estimate([run(right, group)])
    assert computed.variance == pytest.approx(sum(part**2 / (1 - w) for part, w in zip(parts, share, strict=True)))
    assert computed.degrees == pytest.approx(1 / (share**2).sum() - 1)


def test_seeds_that_agree_by_chance_do_not_count_as_many() -> None:
    better, worse = run(np.arange(400) < 300), run(np.arange(400) >= 120)
    difference = compare([better] * 3, [worse] * 3)  # no spread: alone, unlimited degrees
    assert difference.low is not None
    error = math.sqrt(((better.influence - worse.influence) ** 2).sum())
    assert difference.value - difference.low == pytest.approx(
        t.ppf(0.975, 12) * error
    )  # three times those of six seeds


def test_the_variance_is_never_below_the_larger_one_way_estimate() -> None:
    for seed in range(50):
        side = runs(0.8, 3, 0.0, seed, n=100)
        computed = estimate(side)
        of_units = (np.mean([r.influence for r in side], axis=0) ** 2).sum()
        of_seeds = np.var([r.value for r in side], ddof=1) / 3
        assert computed.variance >= max(of_units, of_seeds) * (1 - 1e-9)


def test_equal_algorithms_are_rarely_claimed_to_differ() -> None:
    """Nine equal rows whose seeds vary by four points: the former bootstrap claimed something in most blocks."""
    wrong = 0
    for block in range(120):
        rows = [runs(0.75, 3, 0.04, 1000 * block + row) for row in range(9)]
        wrong += any(holm([compare(row, rows[0]).p for row in rows[1:]]))
    assert wrong / 120 < 0.11


def test_holm_rejects_in_steps() -> None:
    assert holm([0.001, 0.02, 0.03, 0.2]) == [True, False, False, False]
    assert holm([0.03, 0.001, 0.02, 0.01]) == [True, True, True, True]
    assert holm([]) == []


def test_unpaired_estimates_add_their_variances() -> None:
    difference = unpaired(Estimate(0.8, 0.0009, 4.0), Estimate(0.7, 0.0016, math.inf))
    assert difference.low is not None
    assert difference.value - difference.low == pytest.approx(t.ppf(0.975, 0.0025**2 / (0.0009**2 / 4)) * 0.05)
    assert isinstance(difference, Difference)


def test_scores_of_different_rows_are_not_compared() -> None:
    right = np.arange(50) < 40
    other = measure(ACCURACY, [scores(right)], np.zeros(50, dtype=np.int64))
    with pytest.raises(ValueError, match="same test rows"):
        compare([run(right)] * 3, [other] * 3)


def test_few_test_examples_limit_the_degrees_of_a_comparison() -> None:
    rng = np.random.default_rng(4)
    first, second = ([run(right) for _ in range(3)] for right in (rng.random(6) < 0.5, np.ones(6, bool)))
    difference = compare(first, second)  # seeds that agree on every example, so that these alone vary
    error = math.sqrt(sum((one.influence**2).sum() for one in (first[0],)))
    assert difference.value < 0
    assert difference.p == pytest.approx(2 * t.sf(-difference.value / error, 5))


def test_a_single_test_example_shows_no_difference() -> None:
    difference = compare([run(np.ones(1, bool))] * 3, [run(np.zeros(1, bool))] * 3)
    assert (difference.value, difference.low, difference.high, difference.p) == (1.0, None, None, 1.0)


@pytest.mark.parametrize(("name", "sizes"), [("balanced_accuracy", (60, 60, 1, 1)), ("auroc_macro", (100, 1))])
def test_a_class_of_one_example_does_not_make_a_score_sure(name: str, sizes: tuple[int, ...]) -> None:
    rng, m = np.random.default_rng(5), metric(name)
    label = np.repeat(np.arange(len(sizes)), sizes)
    covered = claims = 0
    for _ in range(200):
        # equal encoders, which share most of what makes an example hard
        noise = rng.normal(size=len(label)) + 0.3 * rng.normal(size=(6, len(label)))
        if name == "auroc_macro":
            true = 0.6
            drawn = [np.stack([-one, one], axis=1) for one in noise + 0.3583 * 1.044 * label]
        else:
            true = 0.8
            drawn = [np.eye(4)[np.where(one > -0.8416 * 1.044, label, (label + 1) % 4)] for one in noise]
        runs = [measure(m, [scores], label) for scores in drawn]
        ends = interval(m, runs[:1])
        covered += ends.low is not None and ends.high is not None and ends.low <= true <= ends.high
        claims += compare(runs[:3], runs[3:]).p < 0.05
    assert covered >= 180  # without what is unseen 17 % at best
    assert claims <= 10  # without it about half


def test_a_class_in_one_group_does_not_make_a_score_sure() -> None:
    rng, balanced = np.random.default_rng(6), metric("balanced_accuracy")
    label, group = np.repeat([0, 1], [70, 10]), np.repeat(np.arange(8), 10)
    predicted = np.where(rng.random(80) < 0.8, label, 1 - label)
    by_group = measure(balanced, [np.eye(2)[predicted]], label, group)
    assert by_group.unseen > measure(balanced, [np.eye(2)[predicted]], label).unseen > 0
    assert by_group.unseen > 0.2 / 2**2  # one unit of a proportion has a variance of about 0.24
    assert measure(metric("accuracy"), [np.eye(2)[predicted]], label, group).unseen == 0
