"""Carving: a partition, seeded, by class or by whole groups."""

import numpy as np
import pytest

from dabsmix.data.splits import carve
from dabsmix.errors import UserError


def test_parts_are_a_partition_in_order_and_repeat() -> None:
    label = np.arange(100, dtype=np.int64) % 3
    group = np.arange(100, dtype=np.int64) // 5
    for options in ({}, {"label": label}, {"group": group}):
        train, validation = carve(100, fraction=0.2, seed=3, **options)
        assert sorted([*train, *validation]) == list(range(100))
        assert list(train) == sorted(train)
        assert list(validation) == sorted(validation)
        repeated = carve(100, fraction=0.2, seed=3, **options)
        assert np.array_equal(validation, repeated[1])
        other = carve(100, fraction=0.2, seed=4, **options)
        assert not np.array_equal(validation, other[1])


def test_every_class_gives_its_share_and_keeps_a_training_example() -> None:
    label = np.repeat([0, 1, 2, 3], [50, 20, 2, 1]).astype(np.int64)
    train, validation = carve(len(label), label=label, fraction=0.1)
    assert list(np.bincount(label[validation], minlength=4)) == [5, 2, 1, 0]
    assert list(np.bincount(label[train], minlength=4)) == [45, 18, 1, 1]


@pytest.mark.parametrize(("fraction", "groups"), [(0.1, 1), (0.2, 2), (0.25, 3), (0.3, 3)])
def test_groups_are_taken_until_the_fraction_is_reached(fraction: float, groups: int) -> None:
    group = np.repeat(np.arange(10), 10).astype(np.int64)
    for seed in range(5):
        train, validation = carve(100, group=group, fraction=fraction, seed=seed)
        assert not set(group[train]) & set(group[validation])
        assert len(set(group[validation])) == groups


def test_one_group_always_stays_in_training() -> None:
    group = np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 1], dtype=np.int64)
    for seed in range(6):
        train, validation = carve(10, group=group, fraction=0.5, seed=seed)
        assert len(set(group[train])) == len(set(group[validation])) == 1


def test_names_of_groups_do_not_matter_beyond_their_order() -> None:
    group = np.array([5, 5, 9, 9, 70, 70], dtype=np.int64)
    small = np.unique(group, return_inverse=True)[1].astype(np.int64)
    for seed in range(4):
        assert np.array_equal(carve(6, group=group, seed=seed)[1], carve(6, group=small, seed=seed)[1])


@pytest.mark.parametrize(
    ("n", "label", "group", "fraction"),
    [
        (1, None, None, 0.1),
        (0, None, None, 0.1),
        (1, [0], None, 0.1),
        (3, [0, 1, 2], None, 0.1),  # with one example of each class nothing can be held out by class
        (3, None, [7, 7, 7], 0.1),
        (4, None, None, 1.0),
    ],
)
def test_what_cannot_be_divided_is_refused(
    n: int, label: list[int] | None, group: list[int] | None, fraction: float
) -> None:
    with pytest.raises(UserError, match="cannot carve"):
        carve(
            n,
            label=None if label is None else np.array(label, dtype=np.int64),
            group=None if group is None else np.array(group, dtype=np.int64),
            fraction=fraction,
        )
