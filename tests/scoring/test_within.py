"""Few labels choose within themselves: labels outside a draw do not affect its setting."""

import numpy as np
import pytest
import torch
from transferring import clusters

from dabsmix.data.domain import Task
from dabsmix.scoring.evaluate import choose
from dabsmix.scoring.heads import Features
from dabsmix.scoring.metrics import metric
from dabsmix.scoring.protocols import fits, v2
from dabsmix.scoring.selection import compare_within, label_subsets

TASK = Task("classes", "accuracy", ("a", "b"))
ACCURACY = metric("accuracy")


def features(n: int, seed: int, group: int = 0) -> Features:
    x, label = clusters(n, seed)
    pooled = {name: torch.from_numpy(x) for name in ("mean", "cls", "blocks")}
    return Features(pooled, label, np.arange(n) // group if group else None)


@pytest.mark.slow
def test_validation_labels_do_not_affect_the_choice() -> None:
    train, validation = features(200, 0), features(60, 1)
    other = Features(validation.pooled, 1 - validation.label)
    chosen = choose(train, validation, TASK, v2(), ("5/class",))
    repeated = choose(train, other, TASK, v2(), ("5/class",))
    assert chosen.keys() == repeated.keys()
    for key, draws in chosen.items():
        for one, two in zip(draws, repeated[key], strict=True):
            assert (one.setting, one.validation) == (two.setting, two.validation)


def test_every_draw_is_chosen_and_fitted_on_its_own_labels() -> None:
    train, test, fit = features(200, 0), features(50, 2), fits(v2(), TASK)["ridge"]
    draws = choose(train, features(60, 1), TASK, v2(), ("5/class",))["ridge", "5/class"]
    assert len(draws) == 10  # half of the labels in total
    for number, rows in enumerate(label_subsets(train.label, TASK, per_class=5, draws=10)):
        part = train.take(rows)
        assert len(part) == 10
        within = compare_within(fit, part, TASK, ACCURACY, seed=number)
        assert within is not None
        assert (draws[number].setting, draws[number].validation) == within[:2]
        (head,) = (head for head in fit(part) if head.setting == within[0])
        assert np.array_equal(draws[number].head.predict(test), head.predict(test))


def test_one_label_of_a_class_leaves_the_setting_stated_in_advance() -> None:
    draws = choose(features(200, 0), features(60, 1), TASK, v2(), ("1/class",))
    assert {tuple(choice.setting.items()) for choice in draws["linear", "1/class"]} == {
        (("pooling", "mean"), ("C", 1.0))
    }
    assert {choice.validation for choice in draws["linear", "1/class"]} == {None}
    assert {choice.setting["neighbours"] for choice in draws["knn", "1/class"]} == {5}


def test_a_group_stays_in_one_fold() -> None:
    part = features(24, 3, group=4)
    groups = part.group
    assert groups is not None
    held_out: list[set[int]] = []

    def fit(train: Features) -> list[object]:
        assert train.group is not None
        held_out.append(set(np.unique(groups)) - set(np.unique(train.group)))
        assert held_out[-1]
        return list(fits(v2(), TASK)["ridge"](train))

    assert compare_within(fit, part, TASK, ACCURACY, seed=0) is not None  # type: ignore[arg-type]  # these are heads too
    assert sum(map(len, held_out)) == len(set().union(*held_out))  # no group is held out twice


def test_labels_that_cannot_be_divided_are_not_folded() -> None:
    part = features(24, 3).take(np.array([0, 1, 2]))
    lonely = Features(part.pooled, np.array([0, 0, 1]))
    assert compare_within(fits(v2(), TASK)["ridge"], lonely, TASK, ACCURACY, seed=0) is None


@pytest.mark.parametrize("kind", ["regression", "multilabel"])
def test_other_kinds_are_folded_without_classes(kind: str) -> None:
    part = features(40, 3)
    if kind == "regression":
        task, label = Task("regression", "mse"), part.label.astype(np.float32)
    else:
        task, label = Task("multilabel", "auroc_macro", ("a", "b")), np.stack([part.label, 1 - part.label], axis=1)
    other = Features(part.pooled, label.astype(np.float32 if kind == "regression" else np.uint8))
    compared = compare_within(fits(v2(), task)["linear"], other, task, metric(task.metric), seed=0)
    assert compared is not None
    assert compared[2] == 27
