"""How often the evaluation is wrong: coverage of the intervals, and false claims between equal algorithms.

    python scripts/simulate_evaluation.py coverage > coverage.md
    python scripts/simulate_evaluation.py equal > equal.md          # Gaussian, unequal seed variances
    python scripts/simulate_evaluation.py aa --domain digits > aa.md  # 90 random encoders, real probes
    python scripts/simulate_evaluation.py answer > answer.md        # of transfer, about encoders that were not trained
    python scripts/simulate_evaluation.py few > few.md              # right and wrong answers on few test examples
    python scripts/simulate_evaluation.py rare > rare.md      # classes with few test examples
    python scripts/simulate_evaluation.py aggregates > aggregates.md  # of the overview, over several data sets
    python scripts/simulate_evaluation.py rounding --pool 5 > rounding.md   # features with other last digits

Its output is in docs/evaluation.md, each table with the commit that computed it. The tables of coverage and of real
encoders compare the former estimators with the present ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom, binomtest, norm, t

from dabsmix.board.gains import aggregate, normalised_gains
from dabsmix.board.standings import Line
from dabsmix.files import write
from dabsmix.run import commit
from dabsmix.scoring.influence import influence
from dabsmix.scoring.intervals import ALPHA, Measured, compare, holm, interval, measure
from dabsmix.scoring.metrics import Label, Metric, Scores, Undefined, metric

if TYPE_CHECKING:  # torch takes seconds, and two of the studies do without
    from torch import Tensor

    from dabsmix.data.domain import Labelled
    from dabsmix.scoring.heads import Features

TRIALS = 2000
RANDOM = 3  # encoders that a transfer scores beside each run
BLOCK = 9  # equal rows of a block; the first plays the part of `none`
Ends = tuple[float, float] | None
Draw = Callable[[np.random.Generator], tuple[Scores, Label, NDArray[np.int64] | None]]


# --- the former estimators


def percentile(value: Callable[[NDArray[np.int64]], float], units: int, rng: np.random.Generator, times: int) -> Ends:
    """The expanded percentile bootstrap, which was in use until version 0.1."""
    values = np.array([value(rng.integers(units, size=units)) for _ in range(times)])
    tail = norm.cdf(np.sqrt(units / (units - 1)) * t.ppf(0.025, units - 1))
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def former(m: Metric, scores: Scores, label: Label, group: NDArray[np.int64] | None, rng: np.random.Generator) -> Ends:
    """The former interval of one run."""
    units = np.arange(len(label)) if group is None else np.unique(group, return_inverse=True)[1]
    number = int(units.max()) + 1
    if m.parts is not None:
        above, below = (np.bincount(units, weights=part) for part in m.parts(scores, label))
        return percentile(lambda drawn: float(above[drawn].sum() / below[drawn].sum()), number, rng, 400)
    rows = [np.flatnonzero(units == unit) for unit in range(number)]

    def value(drawn: NDArray[np.int64]) -> float:
        chosen = np.concatenate([rows[unit] for unit in drawn])
        try:
            return m.function(scores[chosen], label[chosen])
        except Undefined:
            return float("nan")

    return percentile(value, number, rng, 200)


# --- coverage


def classes(n: int, accuracy: float) -> Draw:
    """Accuracy on independent examples."""

    def draw(rng: np.random.Generator) -> tuple[Scores, Label, None]:
        label = rng.integers(2, size=n)
        return np.eye(2)[np.where(rng.random(n) < accuracy, label, 1 - label)], label, None

    return draw


def exact(n: int, accuracy: float) -> float:
    """Coverage of accuracy's interval on n independent examples: the sum over every number of right answers."""
    m, label = metric("accuracy"), np.ones(n, dtype=np.int64)
    covered = 0.0
    for right in range(n + 1):
        ends = interval(m, [measure(m, [np.eye(2)[(np.arange(n) < right).astype(int)]], label)])
        if ends.low is not None and ends.high is not None and ends.low <= accuracy <= ends.high:
            covered += float(binom.pmf(right, n, accuracy))
    return covered


def two_normals(positives: int, negatives: int, area: float) -> Draw:
    """AUROC and average precision where scores are normal."""
    distance = np.sqrt(2) * norm.ppf(area)

    def draw(rng: np.random.Generator) -> tuple[Scores, Label, None]:
        label = np.repeat([1, 0], [positives, negatives])
        score = rng.normal(size=len(label)) + distance * label
        return np.stack([-score, score], axis=1) / 2, label, None

    return draw


def precise(positives: int, negatives: int, area: float) -> float:
    """Average precision on infinitely many rows as `two_normals` draws them: on quantiles in place of draws."""
    label = np.repeat([1, 0], [200 * positives, 200 * negatives])
    ranks = np.concatenate([(np.arange(200 * side) + 0.5) / (200 * side) for side in (positives, negatives)])
    score = norm.ppf(ranks) + np.sqrt(2) * norm.ppf(area) * label
    return metric("average_precision")(np.stack([-score, score], axis=1) / 2, label)


def uneven(name: str, sizes: Sequence[int], accuracy: Sequence[float]) -> tuple[Draw, float]:
    """Classes of these sizes and accuracies, mistakes spread evenly over the others; and a metric's true value."""
    label, others = np.repeat(np.arange(len(sizes)), sizes), len(sizes) - 1
    share = np.array([[p if i == j else (1 - p) / others for j in range(len(sizes))] for i, p in enumerate(accuracy)])

    def draw(rng: np.random.Generator) -> tuple[Scores, Label, None]:
        return (rng.random((len(label), 1)) > share.cumsum(axis=1)[label]).sum(axis=1).clip(0, others), label, None

    counts = np.rint(share * np.array(sizes)[:, None] * 1000).astype(int)
    true, predicted = (np.repeat(codes.ravel(), counts.ravel()) for codes in np.indices(counts.shape))
    return draw, metric(name)(predicted, true)


def confused(num_classes: int, per_class: int, accuracy: float) -> tuple[Draw, float]:
    """Macro F1 if classes differ in difficulty and in their confusions, and its value on infinite data."""
    rng = np.random.default_rng(num_classes)
    right = rng.normal(accuracy, 0.1, size=num_classes).clip(0.05, 0.99)
    wrong = rng.dirichlet(np.full(num_classes, 0.3), size=num_classes)
    np.fill_diagonal(wrong, 0)
    share = wrong / wrong.sum(axis=1, keepdims=True) * (1 - right)[:, None] + np.diag(right)
    true = float(np.mean(2 * np.diag(share) / (share.sum(axis=0) + 1)))

    def draw(rng: np.random.Generator) -> tuple[Scores, Label, None]:
        label = np.repeat(np.arange(num_classes), per_class)
        predicted = (rng.random((len(label), 1)) > share.cumsum(axis=1)[label]).sum(axis=1).clip(0, num_classes - 1)
        return np.eye(num_classes)[predicted], label, None

    return draw, true


def two_quantities(n: int, correlation: float) -> Draw:
    """A target and its prediction, normal and so correlated; Spearman's correlation is then 6 / π asin(r / 2)."""

    def draw(rng: np.random.Generator) -> tuple[Scores, Label, None]:
        target = rng.normal(size=n)
        return correlation * target + np.sqrt(1 - correlation**2) * rng.normal(size=n), target, None

    return draw


def explained(n: int, share: float) -> Draw:
    """A target of which a prediction explains this share of the variance; both normal."""

    def draw(rng: np.random.Generator) -> tuple[Scores, Label, None]:
        prediction = np.sqrt(share) * rng.normal(size=n)
        return prediction, prediction + np.sqrt(1 - share) * rng.normal(size=n), None

    return draw


def grouped(groups: int, accuracy: float) -> Draw:
    """Accuracy where groups differ in size (10 to 90 rows) and in difficulty."""

    def draw(rng: np.random.Generator) -> tuple[Scores, Label, NDArray[np.int64]]:
        sizes = rng.integers(10, 91, size=groups)
        group = np.repeat(np.arange(groups), sizes)
        level = rng.beta(8 * accuracy, 8 * (1 - accuracy), size=groups)
        label = np.ones(len(group), dtype=np.int64)
        return np.eye(2)[(rng.random(len(group)) < level[group]).astype(int)], label, group

    return draw


def studentised(m: Metric, scores: Scores, label: Label, rng: np.random.Generator) -> Ends:
    """Bootstrap-t on the logit, with the influence's standard error in each resample."""
    n = len(label)

    def error(rows: NDArray[np.int64]) -> tuple[float, float]:
        value = min(max(m.function(scores[rows], label[rows]), 1e-6), 1 - 1e-6)
        spread = np.sqrt((influence(m, scores[rows], label[rows]) ** 2).sum()) / n
        return float(np.log(value / (1 - value))), float(spread / (value * (1 - value)))

    centre, scale = error(np.arange(n))
    drawn = [error(rng.integers(n, size=n)) for _ in range(200)]
    low, high = np.quantile([(x - centre) / max(s, 1e-9) for x, s in drawn], [0.025, 0.975])
    ends = 1 / (1 + np.exp(-(centre - np.array([high, low]) * scale)))
    return float(ends[0]), float(ends[1])


def bca(m: Metric, scores: Scores, label: Label, rng: np.random.Generator) -> Ends:
    """Bias-corrected and accelerated bootstrap (Efron 1987)."""
    n = len(label)
    value = m.function(scores, label)
    values = np.array([m.function(scores[rows], label[rows]) for rows in rng.integers(n, size=(200, n))])
    response = influence(m, scores, label)
    acceleration = (response**3).sum() / 6 / max((response**2).sum(), 1e-12) ** 1.5
    shift = norm.ppf(np.clip((values < value).mean(), 0.01, 0.99))
    at = shift + norm.ppf([0.025, 0.975])
    low, high = np.quantile(values, norm.cdf(shift + at / (1 - acceleration * at)))
    return float(low), float(high)


def coverage(trials: int, former_trials: int, only: str | None) -> list[str]:
    """A Markdown table of coverage in percent, now and formerly, of one metric or all.

    For accuracy on independent examples the present coverage is exact; all else is simulated.
    """
    lines = [
        "| metric | test rows | true value | now | formerly | studentised | BCa |",
        "|---|---|---|---|---|---|---|",
    ]
    cases: list[tuple[str, str, float, Draw]] = []
    known: dict[tuple[str, str, float], float] = {}  # coverage where it needs no simulation
    for n in (50, 100, 200, 1000):
        for p in (0.6, 0.8, 0.9, 0.95, 0.98):
            cases.append(("accuracy", f"{n}", p, classes(n, p)))
            known["accuracy", f"{n}", p] = exact(n, p)
    for sides in ((10, 10), (10, 100), (30, 300)):
        cases += [
            ("auroc_macro", f"{sides[0]} positive, {sides[1]} negative", a, two_normals(*sides, a))
            for a in (0.6, 0.8, 0.9, 0.95)
        ]
    for number, per_class, p in ((2, 20, 0.8), (5, 20, 0.7), (10, 20, 0.9), (40, 20, 0.6), (40, 20, 0.9)):
        draw, true = confused(number, per_class, p)
        cases.append(("f1_macro", f"{number} classes of {per_class}", true, draw))
    for n in (50, 200, 1000):
        for r in (0.5, 0.9, 0.99):
            cases.append(("pearson", f"{n}", r, two_quantities(n, r)))
            cases.append(("spearman", f"{n}", 6 / np.pi * np.arcsin(r / 2), two_quantities(n, r)))
    for sides in ((10, 10), (10, 100), (30, 300)):
        cases += [
            (
                "average_precision",
                f"{sides[0]} positive, {sides[1]} negative",
                precise(*sides, a),
                two_normals(*sides, a),
            )
            for a in (0.6, 0.8, 0.95)
        ]
    for name in ("balanced_accuracy", "f1_weighted", "matthews"):
        for sizes in ((20, 60), (20, 60, 200)):
            for p in (0.6, 0.8, 0.95):
                draw, true = uneven(name, sizes, [p, p, (1 + p) / 2][: len(sizes)])
                cases.append((name, f"classes of {', '.join(map(str, sizes))}", true, draw))
    for n in (50, 200, 1000):
        for r2 in (0.2, 0.8):
            cases.append(("r2", f"{n}", r2, explained(n, r2)))
            cases.append(("mae", f"{n}", float(np.sqrt(2 * (1 - r2) / np.pi)), explained(n, r2)))
    for number in (5, 6, 8, 12, 20, 50):
        cases += [("accuracy", f"{number} groups of 10 to 90", p, grouped(number, p)) for p in (0.67, 0.9)]
    for name, rows, true, draw in cases:
        if only not in (None, name):
            continue
        m = metric(name)
        rng = np.random.default_rng(7)
        slow = name == "f1_macro"
        hits = {"now": 0, "formerly": 0, "studentised": 0, "bca": 0}
        few = min(former_trials, 300 if slow else 500)  # for what resamples
        covered = known.get((name, rows, true))
        for trial in range(trials if covered is None else few):
            scores, label, group = draw(rng)
            if covered is None:
                now = interval(m, [measure(m, [scores], label, group)])
                hits["now"] += now.low is not None and now.high is not None and now.low <= true <= now.high
            if trial < few:
                ends = {"formerly": former(m, scores, label, group, rng)}
                if slow:
                    ends |= {"studentised": studentised(m, scores, label, rng), "bca": bca(m, scores, label, rng)}
                for key, each_ends in ends.items():
                    hits[key] += each_ends is not None and each_ends[0] <= true <= each_ends[1]
        cells = [f"{100 * (hits['now'] / trials if covered is None else covered):.1f}"]
        for key in ("formerly", "studentised", "bca"):
            cells.append(f"{100 * hits[key] / few:.1f}" if few and (slow or key == "formerly") else "")
        lines.append(f"| {name} | {rows} | {true:.2f} | {' | '.join(cells)} |")
    return lines


# --- false claims between equal algorithms


def claims(block: Sequence[Sequence[Measured]]) -> bool:
    """Whether any row of a block is shown to differ from the first."""
    return any(holm([compare(row, block[0]).p for row in block[1:]]))


def former_claims(block: Sequence[Sequence[Measured]], rng: np.random.Generator) -> bool:
    """The former rule: any pair's bootstrap interval over units and paired seeds excludes 0, uncorrected."""
    count = len(block[0])
    best = max(range(len(block)), key=lambda i: np.mean([run.value for run in block[i]]))
    units = len(block[0][0].influence)
    drawn = rng.multinomial(units, np.full(units, 1 / units), size=300).astype(float)
    for i, row in enumerate(block):
        if i == best:
            continue
        pairs = [a.value - b.value + drawn @ (a.influence - b.influence) for a, b in zip(row, block[best], strict=True)]
        by_seed = np.stack(pairs, axis=1)
        values = by_seed.mean(axis=1)
        if count > 1:
            seeds = rng.integers(count, size=by_seed.shape)
            values = values + np.sqrt(count / (count - 1)) * (
                np.take_along_axis(by_seed, seeds, axis=1).mean(axis=1) - values
            )
        low, high = np.quantile(values, [0.025, 0.975])
        if not low <= 0 <= high:
            return True
    return False


def rate(count: int, trials: int) -> str:
    """A percentage with its 95 % Clopper-Pearson interval."""
    ends = binomtest(count, trials).proportion_ci()
    return f"{100 * count / trials:.1f} ({100 * ends.low:.1f} to {100 * ends.high:.1f})"


def equal(trials: int) -> list[str]:
    """Gaussian blocks: seeds, algorithm-specific examples and residuals of given standard deviations."""
    lines = [
        "| seeds | sd of seeds, by row (in sds of the test rows' part) | residual sd | blocks with a false claim, % |",
        "|---|---|---|---|",
    ]
    spreads = {
        "0": [0.0],
        "0.5": [0.5],
        "2": [2.0],
        "4": [4.0],
        "0.3 and 1.5 in turn": [0.3, 1.5],
        "3 in every fourth, else 0.2": [0.2, 0.2, 0.2, 3.0],
        "3 in `none`, else 0.2": [3.0] + [0.2] * 8,
        "0.2 in `none`, else 2": [0.2] + [2.0] * 8,
    }
    units = 100
    for seeds in (3, 5):
        for name, spread in spreads.items():
            for residual in (0.3, 1.0):
                rng = np.random.default_rng(11)
                wrong = 0
                for _ in range(trials):
                    block = []
                    for row in range(BLOCK):
                        block_effect = rng.normal(size=units) / units**0.5
                        runs = []
                        for _ in range(seeds):
                            outcomes = block_effect + rng.normal(size=units) * residual / units**0.5
                            value = float(outcomes.sum()) + rng.normal() * spread[row % len(spread)]
                            centred = outcomes - outcomes.mean()
                            runs.append(Measured(value, centred, None, units, units))
                        block.append(runs)
                    wrong += claims(block)
                lines.append(f"| {seeds} | {name} | {residual} | {rate(wrong, trials)} |")
    return lines


SPREADS = (0.0, 0.5, 2.0, 4.0)  # of seeds, in standard deviations of the test rows' part


def run_of(rng: np.random.Generator, common: NDArray[np.float64], residual: float, spread: float) -> Measured:
    """One seed: what its test rows add to the common part, and a shift of its own."""
    units = len(common)
    outcomes = common + rng.normal(size=units) * residual / units**0.5
    value = float(outcomes.sum()) + rng.normal() * spread
    return Measured(value, outcomes - outcomes.mean(), None, units, units)


def answer(trials: int) -> list[str]:
    """How often a transfer calls an untrained encoder better or worse than the three random ones, Gaussian.

    With one share of the labels, and with any of three by Holm. Real shares resemble each other; here they do not.
    """
    lines = ["| sd of seeds | residual sd | one share, % | any of three shares, % |", "|---" * 4 + "|"]
    for spread in SPREADS:
        for residual in (0.3, 1.0):
            rng, wrong, any_wrong = np.random.default_rng(13), 0, 0
            for _ in range(trials):
                p = []
                for _ in range(3):
                    common = rng.normal(size=100) / 10
                    *random, one = (run_of(rng, common, residual, spread) for _ in range(RANDOM + 1))
                    p.append(compare(random, [one], fixed=True).p)
                wrong += p[0] < ALPHA
                any_wrong += any(holm(p))
            lines.append(f"| {spread:g} | {residual} | {rate(wrong, trials)} | {rate(any_wrong, trials)} |")
    return lines


def noises(rng: np.random.Generator, n: int, residual: float, own: bool) -> NDArray[np.float64]:
    """How far two algorithms with three seeds each get on each example, ``(6, n)``, with a variance of 1.

    Args:
        own: whether each finds examples of its own hard, or both the same.
    """
    ease = rng.normal(size=(2, n))[[0, 0, 0, own, own, own]]
    noise: NDArray[np.float64] = (ease + residual * rng.normal(size=(6, n))) / np.hypot(1, residual)
    return noise


def few(trials: int) -> list[str]:
    """The most false claims between equal encoders on few test examples, by three seeds each and by a transfer.

    An example is answered rightly if the noise exceeds what gives the accuracy. Of two residual sds the worse.
    """
    lines = [
        "| test examples | accuracy | three seeds each: same examples hard, % | other examples hard, % "
        "| one against three: same, % | other, % |",
        "|---" * 6 + "|",
    ]
    for n in (5, 10, 20, 50, 200):
        label = np.zeros(n, np.int64)
        for accuracy in (0.5, 0.8, 0.95):
            most: dict[tuple[str, bool], int] = {}
            for own in (False, True):
                for residual in (0.3, 1.0):
                    rng, counts = np.random.default_rng(17), {"differs": 0, "called": 0}
                    for _ in range(trials):
                        wrong = (noises(rng, n, residual, own) <= -norm.ppf(accuracy)).astype(np.int64)
                        runs = [measure(metric("accuracy"), [one], label) for one in wrong]
                        counts["differs"] += compare(runs[:3], runs[3:]).p < ALPHA
                        counts["called"] += compare(runs[:3], runs[3:4], fixed=True).p < ALPHA
                    for claim, count in counts.items():
                        most[claim, own] = max(most.get((claim, own), 0), count)
            rates = (rate(most[claim, own], trials) for claim in ("differs", "called") for own in (False, True))
            lines.append(f"| {n} | {accuracy} | {' | '.join(rates)} |")
    return lines


RARE = ((60, 60, 1, 1), (60, 60, 2, 2), (60, 60, 5, 5), (100, 100, 100, 1, 1, 1, 1, 1), (1,) * 20, (20, 60))


def rare(trials: int, only: str | None) -> list[str]:
    """The least coverage and the most false claims between equal encoders, if classes have few test examples.

    Of every metric and sizes of classes the worst of two or three scores, two residual sds, and encoders that find the
    same examples hard or others. Answers are right or wrong as in `few`; of AUROC and average precision scores are
    normal.
    """
    lines = [
        "| metric | test examples of the classes | least coverage, % | three seeds each, at most % "
        "| one against three, at most % |",
        "|---" * 5 + "|",
    ]
    for name in ("balanced_accuracy", "f1_macro", "auroc_macro", "average_precision"):
        if only not in (None, name):
            continue
        binary = name in ("auroc_macro", "average_precision")
        for sizes in [(positives, 100) for positives in (1, 2, 5, 20)] if binary else RARE:
            cases = [
                _rare(name, sizes, level, residual, own, trials)
                for level in ((0.6, 0.9) if binary else (0.6, 0.8, 0.95))
                for residual in (0.3, 1.0)
                for own in (False, True)
            ]
            covered, differs, called = (list(counts) for counts in zip(*cases, strict=True))
            of = f"{len(sizes)} of {sizes[0]}" if len(set(sizes)) == 1 else ", ".join(map(str, sizes))
            rates = " | ".join(rate(count, trials) for count in (min(covered), max(differs), max(called)))
            lines.append(f"| {name} | {of} | {rates} |")
    return lines


def _rare(
    name: str, sizes: Sequence[int], level: float, residual: float, own: bool, trials: int
) -> tuple[int, int, int]:
    """How many trials cover the true value, and how many make each of the two claims."""
    m, rng, num = metric(name), np.random.default_rng(19), len(sizes)
    if name in ("auroc_macro", "average_precision"):
        label = np.repeat([1, 0], sizes)
        true = level if name == "auroc_macro" else precise(sizes[0], sizes[1], level)
    else:
        label = np.repeat(np.arange(num), sizes)
        true = uneven(name, sizes, [level] * num)[1]
    covered = differs = called = 0
    for _ in range(trials):
        noise = noises(rng, len(label), residual, own)
        if name in ("auroc_macro", "average_precision"):
            drawn = [np.stack([-one, one], axis=1) / 2 for one in noise + np.sqrt(2) * norm.ppf(level) * label]
        else:
            other = (label + rng.integers(1, num, size=noise.shape)) % num
            drawn = [np.eye(num)[one] for one in np.where(noise > -norm.ppf(level), label, other)]
        runs = [measure(m, [scores], label) for scores in drawn]
        ends = interval(m, runs[:1])
        covered += ends.low is not None and ends.high is not None and ends.low <= true <= ends.high
        differs += compare(runs[:3], runs[3:]).p < ALPHA
        called += compare(runs[:3], runs[3:4], fixed=True).p < ALPHA
    return covered, differs, called


def real_answer(domain: str, share: str, pool: int, trials: int, folder: Path | None) -> list[str]:
    """The same of real encoders, four of the pool at a time."""
    runs = random_encoders(domain, share, pool, folder)
    rng, wrong = np.random.default_rng(13), 0
    for _ in range(trials):
        one, *random = (runs[i] for i in rng.permutation(pool)[: RANDOM + 1])
        wrong += compare(random, [one], fixed=True).p < ALPHA
    return [
        "| data | labels | encoders | called better or worse, % |",
        "|---|---|---|---|",
        f"| {domain} | {share} | {pool} | {rate(wrong, trials)} |",
    ]


def aggregates(trials: int) -> list[str]:
    """How often the overview's interval of the interquartile mean excludes 0 for an algorithm equal to `none`."""
    lines = ["| data sets | sd of seeds | residual sd | intervals that exclude 0, % |", "|---|---|---|---|"]
    part = 0.03  # the test rows' part of an accuracy of about 0.7

    def line(
        name: str, rng: np.random.Generator, common: NDArray[np.float64], residual: float, spread: float, seeds: int
    ) -> Line:
        own = common + rng.normal(size=len(common)) / len(common) ** 0.5
        runs = (run_of(rng, own, residual, spread) for _ in range(seeds))
        scaled = [replace(run, value=0.7 + part * run.value, influence=part * run.influence) for run in runs]
        mean = float(np.mean([run.value for run in scaled]))
        return Line(name, "ranked", seeds, mean, None, None, None, len(common), runs=tuple(scaled))

    of_data_sets = {"1": [3], "3": [3] * 3, "7": [3] * 7, "7, five of them with 5 seeds": [5] * 5 + [3] * 2}
    for data_sets, seeds in of_data_sets.items():
        for spread in SPREADS:
            for residual in (0.3, 1.0):
                rng, wrong = np.random.default_rng(17), 0
                for _ in range(trials):
                    gains = []
                    for i, count in enumerate(seeds):
                        common = rng.normal(size=200) / 200**0.5
                        random, equal = (line(name, rng, common, residual, spread, count) for name in ("none", "equal"))
                        gains.append(normalised_gains("accuracy", {"equal": equal}, random, column=f"{i}")["equal"])
                    over_all = aggregate("equal", gains)
                    wrong += not over_all.low <= 0 <= over_all.high
                lines.append(f"| {data_sets} | {spread:g} | {residual} | {rate(wrong, trials)} |")
    return lines


def aa(domain: str, share: str, pool: int, blocks: int, folder: Path | None) -> list[str]:
    """Blocks of equal rows from a pool of random encoders, scored with real probes.

    A block takes 9 × S of the pool's encoders without replacement. Blocks share encoders and the pool is finite, so
    the interval for as many blocks as the pool has disjoint ones is printed beside.
    """
    runs = random_encoders(domain, share, pool, folder)
    lines = [
        "| data | labels | seeds | false claims per block now, % | formerly, % |",
        "|---|---|---|---|---|",
    ]
    for seeds in (1, 3, 5):
        if BLOCK * seeds > pool:
            continue
        rng = np.random.default_rng(seeds)
        now = before = 0
        for _ in range(blocks):
            order = rng.permutation(pool)[: BLOCK * seeds].reshape(BLOCK, seeds)
            block = [[runs[i] for i in row] for row in order]
            now += claims(block)
            before += former_claims(block, rng)
        # a permutation of the pool holds this many disjoint blocks: only they are independent of each other
        apart = max(1, pool // (BLOCK * seeds))
        low, high = (
            beta.ppf(q, now / blocks * apart + 0.5, apart - now / blocks * apart + 0.5) for q in (0.025, 0.975)
        )
        cells = f"{rate(now, blocks)}; with {apart} disjoint blocks {100 * low:.1f} to {100 * high:.1f}"
        lines.append(f"| {domain} | {share} | {seeds} | {cells} | {rate(before, blocks)} |")
    return lines


def random_encoders(domain: str, label: str, pool: int, folder: Path | None) -> list[Measured]:
    """`none` under many seeds, each scored on test by the linear probe of `v2`, as transfer does it.

    Each seed's predictions are stored in ``folder`` if there is one, so that a study that was stopped can go on.
    """
    measured = []
    for seed in range(pool):
        file = folder and folder / f"{domain}-{label.replace('/', '-')}-{seed}.npy"
        if file and file.exists():
            scores, test = list(np.load(file)), labelled(domain).test
            assert test.label is not None
            measured.append(measure(metric("accuracy"), scores, test.label, test.group))
            continue
        parts = random_features(domain, seed)
        scores = linear_probe(domain, label, parts)
        if file:
            keep(file, scores)
        measured.append(measure(metric("accuracy"), scores, parts[-1].label, parts[-1].group))
    return measured


def random_features(domain: str, seed: int) -> list[Features]:
    """Features of train, validation and test from one random encoder."""
    import torch
    from accelerate import Accelerator

    from dabsmix.model.encoder import Transformer, make_encoder
    from dabsmix.scoring.features import all_poolings
    from dabsmix.scoring.heads import Features
    from dabsmix.source import Source, load

    data, accelerator = load(Source(domain)), Accelerator(cpu=True)
    torch.manual_seed(seed)
    encoder = make_encoder("tiny", data.specs)
    assert isinstance(encoder, Transformer)
    parts = []
    for split in data.require_labelled().splits.values():
        assert split.label is not None
        read = all_poolings(encoder, split, data.normalise, accelerator=accelerator)
        parts.append(Features(read, split.label, split.group))
    return parts


def linear_probe(domain: str, label: str, parts: Sequence[Features]) -> list[Scores]:
    """Predictions for test, one array for each draw of the labels."""
    from dabsmix.scoring.evaluate import choose
    from dabsmix.scoring.protocols import v2

    train, validation, test = parts
    rules = replace(v2(), neighbours=(), penalties=())
    choices = choose(train, validation, labelled(domain).task, rules, (label,))["linear", label]
    return [choice.head.predict(test) for choice in choices]


def labelled(domain: str) -> Labelled:
    """The data set's task and labelled splits."""
    from dabsmix.source import Source, load

    return load(Source(domain)).require_labelled()


# --- the same features, computed by another machine


def rounding(domain: str, share: str, pool: int, copies: int) -> list[str]:
    """How much the linear probe's score depends on the last digits of the features.

    Another processor or number of threads adds in another order, so the features of one encoder differ there. Here each
    number of the features is multiplied by 1 + 1e-6 z, z standard normal. The standard deviation within an encoder is
    over its copies, pooled over the encoders; that between encoders is over their means.
    """
    values = np.empty((pool, copies))
    for seed in range(pool):
        parts, rng = random_features(domain, seed), np.random.default_rng(seed)
        for copy in range(copies):
            others = [perturbed(part, rng) for part in parts]
            scores = linear_probe(domain, share, others)
            values[seed, copy] = measure(metric("accuracy"), scores, others[-1].label, others[-1].group).value
    within, between = np.sqrt(values.var(axis=1, ddof=1).mean()), values.mean(axis=1).std(ddof=1)
    widest = np.ptp(values, axis=1).max()
    return [
        "| data | labels | encoders | copies | sd within an encoder, points | widest range | sd between encoders |",
        "|---|---|---|---|---|---|---|",
        f"| {domain} | {share} | {pool} | {copies} | {100 * within:.2f} | {100 * widest:.2f} | {100 * between:.2f} |",
    ]


def perturbed(part: Features, rng: np.random.Generator) -> Features:
    """The features with other last digits."""
    import torch

    def change(x: Tensor) -> Tensor:
        return x * (1 + 1e-6 * torch.from_numpy(rng.standard_normal(tuple(x.shape)))).to(x.dtype)

    return replace(part, pooled={name: change(x) for name, x in part.pooled.items()})


def keep(file: Path, scores: Sequence[Scores]) -> None:
    """Write predictions, one draw of the labels per first index."""

    def save(temporary: Path) -> None:
        with temporary.open("wb") as part:  # numpy would add a suffix to a path
            np.save(part, np.stack(scores))

    write(file, save)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("coverage", "equal", "answer", "few", "rare", "aggregates", "aa", "rounding"))
    parser.add_argument("--domain", default="digits")
    parser.add_argument("--labels", default="5/class")
    parser.add_argument("--pool", type=int, default=90)
    parser.add_argument("--copies", type=int, default=8, help="of each encoder's features, for rounding")
    parser.add_argument("--keep", type=Path, help="folder of the encoders' predictions, to go on after a stop")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--metric", help="of the tables of coverage and of few examples of a class; default: all")
    parser.add_argument("--former", type=int, default=500, help="trials of the estimators that resample, 0 for none")
    options = parser.parse_args()
    if options.what == "coverage":
        lines = coverage(options.trials, options.former, options.metric)
    elif options.what == "equal":
        lines = equal(options.trials)
    elif options.what == "answer":
        lines = answer(options.trials)
        if options.pool < RANDOM + 1:
            parser.error("--pool: four encoders are compared at a time")
        lines += ["", *real_answer(options.domain, options.labels, options.pool, options.trials, options.keep)]
    elif options.what == "few":
        lines = few(options.trials)
    elif options.what == "rare":
        lines = rare(options.trials, options.metric)
    elif options.what == "aggregates":
        lines = aggregates(options.trials)
    elif options.what == "rounding":
        lines = rounding(options.domain, options.labels, options.pool, options.copies)
    else:
        lines = aa(options.domain, options.labels, options.pool, options.trials, options.keep)
    print("\n".join([*lines, "", f"Computed at commit {commit() or 'unknown'}."]))


if __name__ == "__main__":
    main()
