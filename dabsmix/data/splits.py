"""Training, validation and test parts: seeded, by class or in whole groups, the same on every machine."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dabsmix.errors import UserError

__all__ = ["LabelledParts", "carve", "divide", "divide_in_three", "divide_labelled"]


def carve(
    n: int,
    *,
    label: NDArray[np.int64] | None = None,
    group: NDArray[np.int64] | None = None,
    fraction: float = 0.1,
    seed: int = 0,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the training and of the validation part among ``n`` rows, each ascending.

    The result depends only on the values and their order, so the order of the rows must not depend on the file system.
    With ``group``, whole groups go to validation, drawn at random until the fraction is reached. Otherwise, with
    ``label`` (one class per row), every class gives its share, and at least one row if it has two or more.

    Raises:
        UserError: there are fewer than two groups, or one of the two parts would be empty.
    """
    rng = np.random.default_rng(seed)
    size = max(1, round(fraction * n))
    chosen = np.zeros(n, dtype=bool)
    if group is not None:
        names, inverse, counts = np.unique(group, return_inverse=True, return_counts=True)
        if len(names) < 2:
            raise UserError(
                f"cannot carve a validation or test part from {len(names)} group: name another column of groups"
            )
        order = rng.permutation(len(names))
        chosen_groups = order[: np.searchsorted(np.cumsum(counts[order]), size) + 1]
        chosen = np.isin(inverse, chosen_groups)
        if chosen.all():
            chosen = inverse == order[0]
    elif label is not None:
        for value in np.unique(label):
            members = np.flatnonzero(label == value)
            share = max(round(fraction * len(members)), min(1, len(members) - 1))
            chosen[rng.permutation(members)[:share]] = True
    else:
        chosen[rng.permutation(n)[:size]] = True
    if chosen.all() or not chosen.any():
        of_what = "rows" if label is None else f"rows in {len(np.unique(label))} classes"
        raise UserError(
            f"cannot carve a validation or test part from {n} {of_what}: label more, so that each class has three rows"
        )
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def divide(
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    protocol: str,
    *,
    validation: NDArray[np.int64] | None = None,
    label: NDArray[np.int64] | None = None,
    group: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training and validation rows of a set whose training and test rows are fixed.

    Under ``dabs`` the validation part *is* the test part: DABS reports the split that it watches. Otherwise it is the
    source's own, or is carved from train.

    Args:
        train, test: rows of the set.
        protocol: of the pretraining.
        validation: rows of the source's own validation part, if it has one.
        label, group: of every row of the set, as for `carve`.

    Raises:
        UserError: as `carve`.
    """
    if protocol == "dabs":
        return train, test
    if validation is not None:
        return train, validation
    fitted, held_out = carve(
        len(train), label=None if label is None else label[train], group=None if group is None else group[train]
    )
    return train[fitted], train[held_out]


def divide_in_three(
    n: int,
    *,
    label: NDArray[np.int64] | None = None,
    group: NDArray[np.int64] | None = None,
    test: float = 0.2,
    validation: float = 0.1,
    seeds: tuple[int, int] = (0, 1),
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Training, validation and test rows among ``n``, for a set without splits.

    Args:
        n: how many rows there are.
        label, group: of every row, as for `carve`.
        test: share of all rows.
        validation: share of the rows that are not in the test part.
        seeds: of the two draws.

    Raises:
        UserError: as `carve`.
    """
    remaining, tested = carve(n, label=label, group=group, fraction=test, seed=seeds[0])
    fitted, held_out = carve(
        len(remaining),
        label=None if label is None else label[remaining],
        group=None if group is None else group[remaining],
        fraction=validation,
        seed=seeds[1],
    )
    return remaining[fitted], remaining[held_out], tested


class LabelledParts(NamedTuple):
    """Rows of a set in which some have a label: those that pretraining sees, and those of the three labelled parts."""

    pretrain: NDArray[np.int64]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def divide_labelled(
    labelled: NDArray[np.bool_],
    *,
    label: NDArray[np.int64] | None = None,
    group: NDArray[np.int64] | None = None,
    seeds: tuple[int, int] = (0, 1),
) -> LabelledParts:
    """Divide the labelled rows in three; pretraining sees the training part and the rows without a label.

    Pretraining does not see rows without a label whose group is in validation or test, because they are not independent
    of the rows that are scored.

    Args:
        labelled: ``(n,)``, whether a row has a label.
        label, group: of every row, as for `carve`.
        seeds: as for `divide_in_three`.

    Raises:
        UserError: as `carve`.
    """
    rows, others = np.flatnonzero(labelled), np.flatnonzero(~labelled)
    if len(rows) < 3:
        raise UserError(f"{len(rows)} labelled rows cannot be divided into train, validation and test: label more")
    train, validation, test = (
        rows[part]
        for part in divide_in_three(
            len(rows),
            label=None if label is None else label[rows],
            group=None if group is None else group[rows],
            seeds=seeds,
        )
    )
    if group is not None:
        others = others[~np.isin(group[others], group[np.concatenate([validation, test])])]
    return LabelledParts(np.sort(np.concatenate([train, others])), train, validation, test)
