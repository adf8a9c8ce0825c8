"""Solved heads against scikit-learn's solution of the same problem, at every strength, pooling and kind of task."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss

from dabsmix.data.domain import Task
from dabsmix.scoring import logistic
from dabsmix.scoring.heads import Features, LinearHead
from dabsmix.scoring.logistic import LogisticGrid, fit_logistic

CLOSE = LogisticGrid(poolings=("mean",), strengths=(1e-2, 1.0, 1e2), tolerance=1e-8, max_steps=2000)


def drawn(n: int = 120, width: int = 6, classes: int = 3, seed: int = 0) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Features on different scales, correlated, of classes that overlap."""
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=n)
    x = rng.normal(size=(n, width)) + np.eye(classes, width)[label]
    x = x @ rng.normal(size=(width, width)) * np.logspace(-2, 2, width) + 7
    return x.astype(np.float32), label


def standardised(x: NDArray[Any]) -> NDArray[np.float64]:
    x = x.astype(float)
    scaled: NDArray[np.float64] = (x - x.mean(axis=0)) / x.std(axis=0)
    return scaled


def weights(head: LinearHead) -> NDArray[np.float64]:
    values: NDArray[np.float64] = head.weight.double().numpy()
    return values


def reference(x: NDArray[Any], label: NDArray[Any], strength: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it must have converged
        return LogisticRegression(C=strength, tol=1e-8, max_iter=10000).fit(standardised(x), label)


@pytest.mark.parametrize("classes", [2, 3])
def test_classes_equal_scikit_learns(classes: int) -> None:
    x, label = drawn(classes=classes)
    task = Task("classes", "accuracy", tuple("abc"[:classes]))
    heads = fit_logistic(Features({"mean": torch.from_numpy(x)}, label), task, CLOSE)
    for head, strength in zip(heads, CLOSE.strengths, strict=True):
        assert head.setting == {"pooling": "mean", "C": strength}
        # For two classes we have two opposite columns, and scikit-learn one of twice their length: half the penalty.
        other = reference(x, label, strength * (2 if classes == 2 else 1))
        expected = other.predict_proba(standardised(x))
        computed = torch.from_numpy(head.predict(Features({"mean": torch.from_numpy(x)}, label))).softmax(dim=1).numpy()
        assert np.abs(computed - expected).max() < 1e-3
        if classes == 3:
            centred = weights(head) - weights(head).mean(axis=1, keepdims=True)
            np.testing.assert_allclose(centred, other.coef_.T, atol=2e-3, rtol=2e-3)


def test_more_features_than_rows_equal_scikit_learns() -> None:
    label = np.arange(30) % 3
    x = np.random.default_rng(0).normal(size=(30, 50)).astype(np.float32) + 0.5 * np.eye(3, 50)[label].astype(
        np.float32
    )
    heads = fit_logistic(
        Features({"mean": torch.from_numpy(x)}, label), Task("classes", "accuracy", ("a", "b", "c")), CLOSE
    )
    for head, strength in zip(heads, CLOSE.strengths, strict=True):
        expected = reference(x, label, strength).predict_proba(standardised(x))
        computed = torch.from_numpy(head.predict(Features({"mean": torch.from_numpy(x)}, label))).softmax(dim=1).numpy()
        assert np.abs(computed - expected).max() < 1e-3


def test_several_labels_are_one_regression_each() -> None:
    x, label = drawn()
    several = (label[:, None] == np.arange(3)).astype(np.uint8)
    task = Task("multilabel", "auroc_macro", ("a", "b", "c"))
    heads = fit_logistic(Features({"mean": torch.from_numpy(x)}, several), task, CLOSE)
    for head, strength in zip(heads, CLOSE.strengths, strict=True):
        for c in range(3):
            other = reference(x, several[:, c], strength)
            np.testing.assert_allclose(weights(head)[:, c], other.coef_[0], atol=2e-3, rtol=2e-3)
            assert float(head.bias[c]) == pytest.approx(other.intercept_[0], abs=2e-3)


def test_a_regression_is_ridge() -> None:
    x, _ = drawn()
    target = (standardised(x) @ np.arange(6)).astype(np.float32)
    heads = fit_logistic(Features({"mean": torch.from_numpy(x)}, target), Task("regression", "mse"), CLOSE)
    for head, strength in zip(heads, CLOSE.strengths, strict=True):
        other = Ridge(alpha=1 / strength).fit(standardised(x), target)
        np.testing.assert_allclose(weights(head)[:, 0], other.coef_, atol=2e-3, rtol=2e-3)


def test_tokens_without_a_label_are_left_out() -> None:
    x, label = drawn(n=60)
    tokens, labels = torch.from_numpy(x).reshape(20, 3, 6), label.reshape(20, 3).copy()
    labels[:, 2] = -1
    task = Task("tokens", "accuracy", ("a", "b", "c"))
    (first, *_) = fit_logistic(Features({"tokens": tokens}, labels), task, CLOSE)
    known = labels.ravel() >= 0
    plain = Features({"mean": torch.from_numpy(x[known])}, label[known])
    (other, *_) = fit_logistic(plain, Task("classes", "accuracy", ("a", "b", "c")), CLOSE)
    torch.testing.assert_close(first.weight, other.weight)


def test_solving_in_parts_equals_solving_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, label = drawn()
    task, features = Task("classes", "accuracy", ("a", "b", "c")), Features({"mean": torch.from_numpy(x)}, label)
    together = fit_logistic(features, task, CLOSE)
    monkeypatch.setattr(logistic, "ROWS", 50)
    for one, other in zip(together, fit_logistic(features, task, CLOSE), strict=True):
        torch.testing.assert_close(one.weight, other.weight, rtol=1e-4, atol=1e-5)


def test_constant_and_repeated_features_are_harmless() -> None:
    x, label = drawn()
    wide = np.concatenate([x, np.full((len(x), 1), 3.0, np.float32), x[:, :1]], axis=1)
    heads = fit_logistic(
        Features({"mean": torch.from_numpy(wide)}, label), Task("classes", "accuracy", ("a", "b", "c")), CLOSE
    )
    for head in heads:
        assert head.weight.isfinite().all()
        torch.testing.assert_close(head.weight[6], torch.zeros(3))
        torch.testing.assert_close(head.weight[0], head.weight[7])


def test_separable_classes_with_more_features_than_rows_are_fitted() -> None:
    x, label = drawn(n=12, width=40)
    task = Task("classes", "accuracy", ("a", "b", "c"))
    heads = fit_logistic(Features({"mean": torch.from_numpy(x)}, label), task, replace(CLOSE, strengths=(1.0, 1e8)))
    for head in heads:
        scores = head.predict(Features({"mean": torch.from_numpy(x)}, label))
        assert (scores.argmax(axis=1) == label).all()


def test_at_the_default_tolerance_the_objective_is_at_its_minimum() -> None:
    x, label = drawn(n=300, width=20)
    grid = LogisticGrid(poolings=("mean",), strengths=(1e-2, 1.0, 1e2))
    heads = fit_logistic(
        Features({"mean": torch.from_numpy(x)}, label), Task("classes", "accuracy", ("a", "b", "c")), grid
    )
    for head, strength in zip(heads, grid.strengths, strict=True):
        other = reference(x, label, strength)
        computed = (
            torch.from_numpy(head.predict(Features({"mean": torch.from_numpy(x)}, label))).double().softmax(dim=1)
        )
        penalties = [np.square(w).sum() / (2 * strength * len(x)) for w in (weights(head), other.coef_)]
        value = log_loss(label, computed.numpy()) + penalties[0]
        minimum = log_loss(label, other.predict_proba(standardised(x))) + penalties[1]
        assert value == pytest.approx(minimum, rel=1e-4)
