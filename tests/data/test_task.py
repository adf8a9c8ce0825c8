"""The loss and the target statistics of a task, against plain loops."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dabsmix.data.domain import Task

RNG = np.random.default_rng(0)


def log_softmax(row: NDArray[np.float64]) -> NDArray[np.float64]:
    return row - math.log(sum(math.exp(value) for value in row))


@pytest.mark.parametrize("kind", ["classes", "tokens"])
def test_cross_entropy_is_the_mean_over_what_has_a_label(kind: str) -> None:
    task = Task(kind, "accuracy", ("a", "b", "c"))  # type: ignore[arg-type]  # one of its literals
    shape = (8,) if kind == "classes" else (4, 5)
    outputs = RNG.normal(size=(*shape, 3))
    label = RNG.integers(0 if kind == "classes" else -1, 3, size=shape)
    losses = [
        -log_softmax(row)[answer]
        for row, answer in zip(outputs.reshape(-1, 3), label.reshape(-1), strict=True)
        if answer >= 0
    ]
    loss = task.loss(torch.from_numpy(outputs), torch.from_numpy(label))
    assert float(loss) == pytest.approx(sum(losses) / len(losses))


def test_binary_cross_entropy_of_several_labels() -> None:
    outputs, label = RNG.normal(size=(6, 2)), RNG.integers(0, 2, size=(6, 2)).astype(np.uint8)
    losses = [
        math.log1p(math.exp(-logit if truth else logit))
        for logit, truth in zip(outputs.ravel(), label.ravel(), strict=True)
    ]
    loss = Task("multilabel", "auroc_macro", ("a", "b")).loss(torch.from_numpy(outputs), torch.from_numpy(label))
    assert float(loss) == pytest.approx(sum(losses) / len(losses))


def test_regression_is_fitted_standardised_and_scored_in_its_own_unit() -> None:
    task = Task("regression", "mse")
    label = (50 + 7 * RNG.normal(size=20)).astype(np.float32)
    center, scale = task.target_scale(label)
    assert center == pytest.approx(sum(label.tolist()) / 20)
    assert scale == pytest.approx(math.sqrt(sum((value - center) ** 2 for value in label.tolist()) / 20))
    outputs = torch.from_numpy((label - center) / scale)[:, None]
    assert float(task.loss(outputs, torch.from_numpy(label), center, scale)) == pytest.approx(0, abs=1e-10)
    np.testing.assert_allclose(task.scores(outputs, center, scale).numpy(), label, rtol=1e-5)


def test_a_constant_target_and_other_tasks_are_not_scaled() -> None:
    assert Task("regression", "mse").target_scale(np.full(4, 3, np.float32)) == (3.0, 1.0)
    assert Task("classes", "accuracy", ("a", "b")).target_scale(np.arange(2)) == (0.0, 1.0)
