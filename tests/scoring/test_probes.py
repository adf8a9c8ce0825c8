"""Closed-form and neighbour heads against plain implementations and scikit-learn's."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression, Ridge

from dabsmix.data.domain import Task
from dabsmix.scoring.heads import Features, fit_constant, fit_knn, fit_pinv, fit_ridge
from dabsmix.scoring.metrics import metric

CLASSES = Task("classes", "accuracy", ("a", "b", "c"))
LABELS = Task("multilabel", "auroc_macro", ("a", "b", "c"))
VALUE = Task("regression", "mse")
TOKENS = Task("tokens", "accuracy", ("a", "b", "c"))


def generated(task: Task, n: int, width: int, seed: int) -> Features:
    rng = np.random.default_rng(seed)
    x = rng.normal(2, 3, size=(n, width)).astype(np.float32)
    label: NDArray[np.generic]
    match task.kind:
        case "classes":
            label = rng.integers(3, size=n)
        case "multilabel":
            label = rng.integers(2, size=(n, 3)).astype(np.uint8)
        case _:
            label = (x[:, 0] + rng.normal(size=n)).astype(np.float32)
    return Features({"mean": torch.from_numpy(x), "cls": torch.from_numpy(x[:, ::-1].copy())}, label)


def standardised(train: Features, other: Features, pooling: str) -> NDArray[np.float64]:
    x, y = (f.pooled[pooling].double().numpy() for f in (train, other))
    return np.asarray((y - x.mean(axis=0)) / x.std(axis=0))


def signed(label: NDArray[np.generic], task: Task) -> NDArray[np.float64]:
    match task.kind:
        case "classes":
            return np.asarray(np.eye(3)[label.astype(int)] * 2 - 1)
        case "multilabel":
            return label.astype(float) * 2 - 1
        case _:
            return label.astype(float)


@pytest.mark.parametrize("task", [CLASSES, LABELS, VALUE], ids=lambda task: task.kind)
@pytest.mark.parametrize(("n", "width"), [(80, 12), (15, 40)], ids=["tall", "wide"])
def test_ridge_equals_scikit_learns(task: Task, n: int, width: int) -> None:
    train, test = generated(task, n, width, 0), generated(task, 9, width, 1)
    heads = fit_ridge(train, task, (1e-3, 0.5))
    assert [dict(head.setting) for head in heads] == [
        {"pooling": pooling, "penalty": penalty} for pooling in ("mean", "cls") for penalty in (1e-3, 0.5)
    ]
    for head in heads:
        twin = Ridge(alpha=float(head.setting["penalty"]) * n)
        twin.fit(standardised(train, train, head.pooling), signed(train.label, task))
        expected = twin.predict(standardised(train, test, head.pooling))
        np.testing.assert_allclose(head.predict(test), expected, rtol=1e-3, atol=1e-4)


def test_ridge_on_tokens_reads_those_that_have_a_label() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(20, 5, 4)).astype(np.float32)
    label = rng.integers(-1, 3, size=(20, 5))
    head = fit_ridge(Features({"tokens": torch.from_numpy(x)}, label), TOKENS, (0.1,))[0]
    flat = Features({"mean": torch.from_numpy(x[label >= 0])}, label[label >= 0])
    same = fit_ridge(flat, CLASSES, (0.1,))[0]
    scores = head.predict(Features({"tokens": torch.from_numpy(x)}, label))
    assert scores.shape == (20, 5, 3)
    np.testing.assert_allclose(scores[label >= 0], same.predict(flat), rtol=1e-5, atol=1e-6)


def test_the_pseudo_inverse_is_least_squares_without_bias() -> None:
    train, test = generated(CLASSES, 80, 12, 0), generated(CLASSES, 9, 12, 1)
    twin = LinearRegression(fit_intercept=False)
    twin.fit(train.pooled["mean"].double().numpy(), np.eye(3)[train.label])
    head = fit_pinv(train, CLASSES)[0]
    np.testing.assert_allclose(
        head.predict(test), twin.predict(test.pooled["mean"].double().numpy()), rtol=1e-3, atol=1e-4
    )


def plain_knn(rows: NDArray[np.float64], target: NDArray[np.float64], query: NDArray[np.float64], k: int) -> object:
    """Weighted mean of the k nearest targets for one query, one neighbour at a time."""
    neighbours = []
    for row, y in zip(rows, target, strict=True):
        neighbours.append((float(row @ query) / math.sqrt(float(row @ row) * float(query @ query)), y))
    neighbours.sort(key=lambda pair: -pair[0])
    total, votes = 0.0, np.zeros(target.shape[1])
    for similarity, y in neighbours[:k]:
        total += math.exp(similarity / 0.07)
        votes = votes + math.exp(similarity / 0.07) * y
    return votes / total


@pytest.mark.parametrize("task", [CLASSES, LABELS, VALUE], ids=lambda task: task.kind)
def test_nearest_neighbours_equal_a_plain_loop(task: Task) -> None:
    train, test = generated(task, 60, 8, 0), generated(task, 11, 8, 1)
    for head in fit_knn(train, task, (1, 5, 200)):
        rows = standardised(train, train, head.pooling)
        target = (signed(train.label, task) + 1) / 2 if task.kind != "regression" else signed(train.label, task)
        target = target.reshape(60, -1)
        queries = standardised(train, test, head.pooling)
        expected = np.array([plain_knn(rows, target, query, head.neighbours) for query in queries])
        scores = head.predict(test)
        match task.kind:
            case "classes":
                np.testing.assert_allclose(np.exp(scores), expected, atol=1e-4)
            case "multilabel":
                np.testing.assert_allclose(1 / (1 + np.exp(-scores)), expected, atol=1e-4)
            case _:
                np.testing.assert_allclose(scores, expected[:, 0], rtol=1e-3, atol=1e-4)


def test_chunks_of_queries_do_not_change_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = generated(CLASSES, 60, 8, 0), generated(CLASSES, 11, 8, 1)
    head = fit_knn(train, CLASSES, (5,))[0]
    scores = head.predict(test)
    monkeypatch.setattr("dabsmix.scoring.heads.KNN_CHUNK", 3 * 60)
    np.testing.assert_allclose(head.predict(test), scores, rtol=1e-5, atol=1e-6)


def test_tokens_have_no_neighbours() -> None:
    with pytest.raises(ValueError, match="not offered"):
        fit_knn(Features({"tokens": torch.zeros(2, 3, 4)}, np.zeros((2, 3), dtype=np.int64)), TOKENS, (1,))


def test_the_constant_baseline_uses_only_labels() -> None:
    train, test = generated(CLASSES, 60, 8, 0), generated(CLASSES, 11, 8, 1)
    majority = np.bincount(train.label).argmax()
    head = fit_constant(train, CLASSES)[0]
    assert metric("accuracy")(head.predict(test), test.label) == np.mean(test.label == majority)
    assert metric("auroc_macro")(head.predict(test), test.label) == 0.5

    value = generated(VALUE, 60, 8, 0)
    assert fit_constant(value, VALUE)[0].predict(test) == pytest.approx(np.full(11, value.label.mean()))

    labels = generated(LABELS, 60, 8, 0)
    share = 1 / (1 + np.exp(-fit_constant(labels, LABELS)[0].predict(test)))
    np.testing.assert_allclose(share, np.tile(labels.label.mean(axis=0), (11, 1)), rtol=1e-5)

    tokens = Features({"tokens": torch.zeros(2, 3, 4)}, np.array([[0, 2, 2], [-1, -1, -1]]))
    scores = fit_constant(tokens, TOKENS)[0].predict(tokens)
    assert scores.shape == (2, 3, 3)
    assert (scores.argmax(axis=-1) == 2).all()


def test_features_that_do_not_fit_or_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="for 4 labels"):
        Features({"mean": torch.zeros(3, 2)}, np.zeros(4))
    with pytest.raises(ValueError, match="not finite"):
        Features({"mean": torch.tensor([[float("inf")]])}, np.zeros(1))


def test_taking_rows_keeps_them_together() -> None:
    features = generated(CLASSES, 10, 4, 0)
    features = Features(features.pooled, features.label, np.arange(10) // 2)
    index = np.array([7, 2, 3])
    part = features.take(index)
    assert part.group is not None
    assert part.group.tolist() == [3, 1, 1]
    assert part.label.tolist() == features.label[index].tolist()
    assert torch.equal(part.pooled["cls"], features.pooled["cls"][[7, 2, 3]])
