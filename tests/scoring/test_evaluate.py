"""Choosing and scoring: permuted labels give chance, few labels are drawn many times."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transferring import QUICK, clusters

from dabsmix.data.domain import Task
from dabsmix.errors import UserError
from dabsmix.scoring.evaluate import choose, score, share
from dabsmix.scoring.heads import Features
from dabsmix.scoring.protocols import protocol, v1


@pytest.mark.parametrize("name", ["v1", "dabs", "imix"])
def test_permuted_labels_give_chance(name: str) -> None:
    task = Task("classes", "accuracy", ("a", "b"))
    rules = protocol(name, 64)

    def value(permuted: bool) -> float:
        parts = []
        for n, seed in ((3000, 1), (100, 2), (1500, 3)):
            x, label = clusters(n, seed)
            label = np.random.default_rng(seed).permutation(label) if permuted else label
            pooled = torch.from_numpy(3 * (x - 1))
            parts.append(Features({"mean": pooled, "cls": pooled}, label))
        train, validation, test = parts
        redraw = (lambda epoch: train) if rules.dropout else None
        results, _ = score(choose(train, validation, task, rules, ("1",), redraw=redraw), test, task)
        return max(abs(float(result.value) - 0.5) for result in results)

    assert value(permuted=True) < 0.06  # 4.6 standard deviations
    assert value(permuted=False) > 0.4


def test_labels_per_class_need_classes() -> None:
    assert share("5/class", Task("classes", "accuracy", ("a", "b"))) == {"per_class": 5}
    assert share("0.25", Task("regression", "mse")) == {"fraction": 0.25}
    with pytest.raises(UserError, match="kind regression has no labels per class"):
        share("5/class", Task("regression", "mse"))


def test_small_shares_are_drawn_more_often_than_large_ones() -> None:
    task = Task("classes", "accuracy", ("a", "b"))
    parts = [Features({"mean": torch.from_numpy(x)}, y) for x, y in (clusters(400, 0), clusters(200, 1))]
    rules = replace(QUICK, draws=v1().draws)
    chosen = choose(parts[0], parts[1], task, rules, ("1", "0.5", "0.1", "0.01", "2/class", "50/class"))
    drawn = {label: len(choices) for (probe, label), choices in chosen.items() if probe == "ridge"}
    assert drawn == {"1": 1, "0.5": 3, "0.1": 5, "0.01": 20, "2/class": 20, "50/class": 3}


def test_more_labels_per_class_than_a_class_has_are_refused_with_the_count() -> None:
    task, train = Task("classes", "accuracy", ("cat", "dog")), np.repeat([0, 1], [50, 30])
    assert share("30/class", task, train) == {"per_class": 30}
    with pytest.raises(UserError, match=r"--labels 1000/class: class 'dog' has 30 examples in train; .* 30/class"):
        share("1000/class", task, train)
    with pytest.raises(UserError, match=r"class 'dog' has 1 example in train; give at most 1/class, or a fraction"):
        share("2/class", task, np.array([0, 0, 1]))
    with pytest.raises(UserError, match=r"class 'dog' has 0 examples in train; give a fraction$"):
        share("2/class", task, np.array([0, 0]))
