"""Influences against the plainest version: leave each example out."""

import numpy as np
import pytest

from dabsmix.scoring.influence import influence, rarest
from dabsmix.scoring.intervals import interval, measure
from dabsmix.scoring.metrics import METRICS, Label, Scores, metric


def data(name: str, n: int = 300) -> tuple[Scores, Label]:
    rng = np.random.default_rng(0)
    if name in ("mse", "mae", "r2"):
        target = rng.normal(size=n)
        return target + rng.normal(size=n), target
    classes = 2 if name in ("pearson", "spearman") else 4
    label = rng.integers(classes, size=n)
    return np.eye(classes)[label] + rng.normal(size=(n, classes)), label


@pytest.mark.parametrize("name", sorted(METRICS))
def test_influence_equals_leaving_an_example_out(name: str) -> None:
    scores, label = data(name)
    n = len(label)
    without = [np.delete(np.arange(n), i) for i in range(n)]
    left_out = np.array([metric(name)(scores[rows], label[rows]) for rows in without])
    expected = (n - 1) * (left_out.mean() - left_out)
    computed = influence(metric(name), scores, label)
    assert computed.mean() == pytest.approx(0, abs=1e-9)
    assert np.corrcoef(computed, expected)[0, 1] > 0.995
    assert computed.std() == pytest.approx(expected.std(), rel=0.03 if name == "average_precision" else 0.02)


@pytest.mark.parametrize("levels", [None, 5])  # distinct numbers, or grades that many examples share
@pytest.mark.parametrize("noise", [0.1, 1.0])
@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_correlations_of_quantities(name: str, noise: float, levels: int | None) -> None:
    rng = np.random.default_rng(3)
    target = rng.normal(size=300)
    scores = target + noise * rng.normal(size=300)
    label = target if levels is None else np.digitize(target, [-1.0, -0.3, 0.3, 1.0]).astype(float)
    left_out = np.array([metric(name)(np.delete(scores, i), np.delete(label, i)) for i in range(300)])
    computed = influence(metric(name), scores, label)
    assert np.corrcoef(computed, -left_out)[0, 1] > 0.99
    assert computed.std() == pytest.approx(299 * left_out.std(), rel=0.05)


def test_an_almost_perfect_order_has_a_narrow_interval() -> None:
    rng = np.random.default_rng(4)
    target = rng.normal(size=120)
    estimated = interval(
        metric("spearman"), [measure(metric("spearman"), [target + 1e-2 * rng.normal(size=120)], target, None)]
    )
    assert estimated.low is not None
    assert estimated.high is not None
    assert 0.99 < estimated.low < estimated.high <= 1
    assert not influence(metric("spearman"), target**3, target).round(9).any()  # no weight moves a perfect order


def test_several_labels_and_tokens() -> None:
    rng = np.random.default_rng(1)
    for name, scores, label in (
        ("f1_macro", rng.normal(size=(200, 3)), rng.integers(2, size=(200, 3))),
        ("auroc_macro", rng.normal(size=(200, 3)), rng.integers(2, size=(200, 3))),
        ("average_precision", rng.normal(size=(200, 3)).round(1), rng.integers(2, size=(200, 3))),
        ("f1_weighted", rng.normal(size=(200, 5, 3)), rng.integers(-1, 3, size=(200, 5))),
        ("accuracy", rng.normal(size=(200, 5, 3)), rng.integers(-1, 3, size=(200, 5))),
        ("matthews", rng.normal(size=(200, 5, 3)), rng.integers(-1, 3, size=(200, 5))),
    ):
        without = [np.delete(np.arange(200), i) for i in range(200)]
        left_out = np.array([metric(name)(scores[rows], label[rows]) for rows in without])
        computed = influence(metric(name), scores, label)
        assert np.corrcoef(computed, -left_out)[0, 1] > 0.99, name
        assert computed.std() == pytest.approx(199 * left_out.std(), rel=0.05), name


def test_the_variance_of_auroc_equals_delongs() -> None:
    rng = np.random.default_rng(2)
    label = np.repeat([0, 1], [9, 6])
    one = rng.normal(size=15) + label
    scores = np.stack([-one, one], axis=1) / 2
    order = np.array([[(a > b) + (a == b) / 2 for b in one[label == 0]] for a in one[label == 1]])
    expected = order.mean(axis=1).var(ddof=1) / 6 + order.mean(axis=0).var(ddof=1) / 9
    computed = influence(metric("auroc_macro"), scores, label)
    assert (computed**2).sum() / 15**2 == pytest.approx(expected)


def test_the_rarest_class_limits_macro_averages() -> None:
    label = np.repeat([0, 1, 2], [50, 7, 20])
    assert rarest(metric("accuracy"), label) == 77
    assert rarest(metric("f1_macro"), label) == 7
    assert rarest(metric("pearson"), label.astype(float)) == 77


def test_a_mean_over_batches_responds_within_each_batch() -> None:
    scores, label = data("f1_weighted", n=70)
    weighted = metric("f1_weighted")
    parts = [influence(weighted, scores[i : i + 32], label[i : i + 32]) for i in (0, 32, 64)]
    computed = influence(metric("f1_weighted/32"), scores, label)
    np.testing.assert_allclose(computed, np.concatenate(parts))
    # so the variance of the mean is the sum of the batches' variances, each times its squared share of the rows
    variance = sum(np.sum((part / len(part)) ** 2) * (len(part) / 70) ** 2 for part in parts)
    assert np.sum((computed / 70) ** 2) == pytest.approx(variance)
