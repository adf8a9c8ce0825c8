"""Metrics against scikit-learn and SciPy on the whole set, and the errors where they are undefined."""

import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from scipy.special import softmax
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    matthews_corrcoef,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    roc_auc_score,
)

from dabsmix.errors import UserError
from dabsmix.scoring.collapse import feature_std, frechet_distance, rankme
from dabsmix.scoring.metrics import METRICS, Undefined, auroc_per_class, by_labels, metric

Arrays = tuple[NDArray[np.float64], NDArray[np.int64]]


@pytest.fixture
def classes() -> Arrays:
    rng = np.random.default_rng(0)
    label = rng.choice(5, size=303, p=[0.5, 0.2, 0.15, 0.1, 0.05])
    scores = rng.normal(size=(303, 5))
    scores[np.arange(303), label] += 1
    return scores, label


@pytest.fixture
def multilabel() -> Arrays:
    rng = np.random.default_rng(1)
    label = (rng.random((303, 4)) < [0.5, 0.3, 0.1, 0.05]).astype(np.int64)
    return (rng.normal(size=label.shape) + label).round(1), label  # rounded, so that there are ties


def test_classes_equal_scikit_learn(classes: Arrays) -> None:
    scores, label = classes
    predicted = scores.argmax(axis=1)
    assert metric("accuracy")(scores, label) == pytest.approx(accuracy_score(label, predicted))
    assert metric("balanced_accuracy")(scores, label) == pytest.approx(balanced_accuracy_score(label, predicted))
    one_hot = np.eye(5)[label]
    expected = average_precision_score(one_hot, softmax(scores, axis=1), average="macro")
    assert metric("average_precision")(scores, label) == pytest.approx(expected)
    assert metric("matthews")(scores, label) == pytest.approx(matthews_corrcoef(label, predicted))
    assert metric("f1_macro")(scores, label) == pytest.approx(f1_score(label, predicted, average="macro"))
    assert metric("f1_weighted")(scores, label) == pytest.approx(f1_score(label, predicted, average="weighted"))
    expected = roc_auc_score(label, softmax(scores, axis=1), multi_class="ovr", average="macro")
    assert metric("auroc_macro")(scores, label) == pytest.approx(expected)


def test_multilabel_equals_scikit_learn(multilabel: Arrays) -> None:
    scores, label = multilabel
    assert metric("auroc_macro")(scores, label) == pytest.approx(roc_auc_score(label, scores, average="macro"))
    expected = average_precision_score(label, scores, average="macro")
    assert metric("average_precision")(scores, label) == pytest.approx(expected)
    assert metric("f1_macro")(scores, label) == pytest.approx(f1_score(label, scores > 0, average="macro"))
    assert metric("f1_weighted")(scores, label) == pytest.approx(f1_score(label, scores > 0, average="weighted"))


def test_regression_equals_scipy() -> None:
    rng = np.random.default_rng(2)
    label = rng.normal(size=201).round(1)
    scores = (label + rng.normal(size=201)).round(1)
    assert metric("pearson")(scores, label) == pytest.approx(pearsonr(scores, label)[0])
    assert metric("spearman")(scores, label) == pytest.approx(spearmanr(scores, label)[0])
    assert metric("mae")(scores, label) == pytest.approx(mean_absolute_error(label, scores))
    assert metric("r2")(scores, label) == pytest.approx(r2_score(label, scores))
    assert metric("mse")(scores, label) == pytest.approx(mean_squared_error(label, scores))


def test_correlation_of_two_classes_reads_the_logit() -> None:
    rng = np.random.default_rng(3)
    label = rng.integers(2, size=50)
    logit = rng.normal(size=50) + label
    scores = np.stack([np.zeros(50), logit], axis=1)
    assert metric("pearson")(scores, label) == pytest.approx(pearsonr(logit, label)[0])
    assert metric("auroc_macro")(scores, label) == pytest.approx(roc_auc_score(label, logit))


def test_tokens_without_a_label_do_not_count() -> None:
    rng = np.random.default_rng(4)
    label = rng.integers(-1, 3, size=(20, 7))
    scores = rng.normal(size=(20, 7, 3))
    right = [scores[i, j].argmax() == label[i, j] for i in range(20) for j in range(7) if label[i, j] >= 0]
    assert metric("accuracy")(scores, label) == pytest.approx(np.mean(right))
    flat = label >= 0
    expected = f1_score(label[flat], scores[flat].argmax(axis=1), average="macro")
    assert metric("f1_macro")(scores, label) == pytest.approx(expected)


@pytest.mark.parametrize("name", METRICS)
def test_the_order_of_rows_does_not_matter(name: str, classes: Arrays) -> None:
    scores, label = classes
    m = metric(name)
    if "classes" not in m.kinds or name in ("pearson", "spearman"):
        scores, label = scores[:, 0], scores[:, 1].astype(np.int64)
    order = np.argsort(label)
    assert m(scores[order], label[order]) == pytest.approx(m(scores, label))


def test_a_class_without_a_positive_is_left_out_of_the_mean(multilabel: Arrays) -> None:
    scores, label = multilabel
    label = label.copy()
    label[:, 2] = 0
    per_class = auroc_per_class(scores, label)
    assert np.isnan(per_class).tolist() == [False, False, True, False]
    expected = np.mean([roc_auc_score(label[:, j], scores[:, j]) for j in (0, 1, 3)])
    assert metric("auroc_macro")(scores, label) == pytest.approx(expected)
    with pytest.raises(Undefined, match="no class"):
        metric("auroc_macro")(scores, np.zeros_like(label))


def test_inputs_that_cannot_be_scored_are_refused() -> None:
    with pytest.raises(Undefined, match="equal"):
        metric("spearman")(np.arange(4.0), np.ones(4))
    with pytest.raises(ValueError, match="not finite"):
        metric("accuracy")(np.array([[0.0, np.nan]]), np.array([0]))
    with pytest.raises(ValueError, match="do not fit"):
        metric("accuracy")(np.zeros((3, 2)), np.zeros(4, dtype=np.int64))
    with pytest.raises(ValueError, match="do not fit"):
        metric("accuracy")(np.zeros((0, 2)), np.zeros(0, dtype=np.int64))
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        metric("acuracy")


@pytest.mark.parametrize("name", [m.name for m in METRICS.values() if m.chance is not None])
def test_a_constant_prediction_scores_chance(name: str) -> None:
    label = np.random.default_rng(5).integers(2, size=60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metric(name)(np.tile([0.0, 1.0], (60, 1)), label) == METRICS[name].chance


def test_the_default_metric_of_own_data_follows_the_training_labels() -> None:
    assert by_labels("regression", np.arange(5.0)) == "spearman"
    assert by_labels("classes", np.repeat([0, 1], [20, 10])) == "accuracy"
    assert by_labels("classes", np.repeat([0, 1], [21, 10])) == "balanced_accuracy"


def test_frechet_distance_equals_the_formula() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(80, 5)), rng.normal(size=(90, 5)) @ rng.normal(size=(5, 5)) + 1
    unit_a, unit_b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    s1, s2 = np.cov(unit_a.T), np.cov(unit_b.T)
    gap = unit_a.mean(axis=0) - unit_b.mean(axis=0)
    expected = gap @ gap + np.trace(s1 + s2 - 2 * np.real(sqrtm(s1 @ s2)))
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, 7 * b) == pytest.approx(expected)  # the length of an embedding does not matter


def test_effective_rank_and_spread_of_known_features() -> None:
    assert rankme(np.eye(8)) == pytest.approx(8, rel=1e-3)
    assert rankme(np.outer(np.arange(1.0, 9), np.ones(6))) == pytest.approx(1, rel=1e-3)
    assert feature_std(np.outer(np.arange(1.0, 9), np.ones(6))) == pytest.approx(0, abs=1e-9)
    sphere = np.random.default_rng(7).normal(size=(4000, 64))
    assert feature_std(sphere) == pytest.approx(64**-0.5, rel=0.02)


@pytest.mark.filterwarnings("ignore:A single label was found")
def test_f1_and_matthews_equal_scikit_learn_s_on_small_and_odd_sets() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        classes, n = rng.integers(2, 6), rng.integers(1, 12)
        label, scores = rng.integers(0, classes, n), rng.normal(size=(n, classes))
        many = rng.integers(0, 2, (n, classes))
        predicted = scores.argmax(axis=1)
        assert metric("matthews")(scores, label) == pytest.approx(matthews_corrcoef(label, predicted))
        for average in ("macro", "weighted"):
            f1 = metric(f"f1_{average}")
            expected = f1_score(label, predicted, average=average, zero_division=0)
            assert f1(scores, label) == pytest.approx(expected)
            assert f1(scores, many) == pytest.approx(f1_score(many, scores > 0, average=average, zero_division=0))


@pytest.mark.parametrize(("name", "rows"), [("pearson", 128), ("spearman", 7), ("f1_weighted", 50)])
def test_a_mean_over_batches_equals_a_plain_loop(name: str, rows: int) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 300) if name == "f1_weighted" else rng.normal(size=300)
    scores = rng.normal(size=(300, 3)) if name == "f1_weighted" else label + rng.normal(size=300)
    values = [metric(name)(scores[i : i + rows], label[i : i + rows]) for i in range(0, 300, rows)]
    batched = metric(f"{name}/{rows}")
    assert batched.name == f"{name}/{rows}"
    total = sum(value * len(label[i : i + rows]) for i, value in zip(range(0, 300, rows), values, strict=True))
    assert batched(scores, label) == pytest.approx(total / 300)  # as PyTorch Lightning averages what DABS logs


def test_a_batch_without_a_value_is_left_out() -> None:
    label = np.array([1.0, 1.0, 1.0, 2.0, 3.0, 4.0])
    scores = np.array([0.0, 1.0, 2.0, 1.0, 2.0, 3.0])
    assert metric("pearson/3")(scores, label) == pytest.approx(1)
    with pytest.raises(Undefined):
        metric("pearson/3")(scores[:3], label[:3])


@pytest.mark.parametrize("name", ["pearson/", "pearson/0", "pearson/x", "pears/128"])
def test_an_invalid_batch_size_is_not_a_metric(name: str) -> None:
    with pytest.raises(UserError, match="unknown metric"):
        metric(name)
