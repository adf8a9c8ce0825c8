"""Training, validation and test parts: seeded, by class or in whole groups, the same on every machine."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dabsmix.errors import UserError

__all__ = ["Parts", "carve", "divide", "divide_in_three", "divide_labelled"]


def carve(
    n: int,
    *,
    label: NDArray[np.int64] | None = None,
    group: NDArray[np.int64] | None = None,
    fraction: float = 0.1,
    seed: int = 0,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the training and of the validation part among ``n`` rows, each ascending.

    The result depends on the values and their order alone, so the caller brings rows in an order that no file system
    decides. With ``group``, whole groups go to validation, drawn at random until the fraction is reached; else with
    ``label`` (one class per row) every class gives its share, at least one row where it has two or more.

    Raises:
        UserError: there are fewer than two groups, or one of the two parts would be empty.
    """
    rng = np.random.default_rng(seed)
    wanted = max(1, round(fraction * n))
    chosen = np.zeros(n, dtype=bool)
    if group is not None:
        names, inverse, counts = np.unique(group, return_inverse=True, return_counts=True)
        if len(names) < 2:
            raise UserError(
                f"cannot carve a part to validate or test on from {len(names)} group: name another grouping"
            )
        order = rng.permutation(len(names))
        taken = order[: np.searchsorted(np.cumsum(counts[order]), wanted) + 1]
        chosen = np.isin(inverse, taken)
        if chosen.all():
            chosen = inverse == order[0]
    elif label is not None:
        for value in np.unique(label):
            places = np.flatnonzero(label == value)
            share = max(round(fraction * len(places)), min(1, len(places) - 1))
            chosen[rng.permutation(places)[:share]] = True
    else:
        chosen[rng.permutation(n)[:wanted]] = True
    if chosen.all() or not chosen.any():
        of_what = "rows" if label is None else f"rows in {len(np.unique(label))} classes"
        raise UserError(f"cannot carve a part to validate or test on from {n} {of_what}: each class needs two rows")
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

    Under ``dabs`` the validation part *is* the test part: DABS reports the split that it watches. Else it is the
    source's own, or carved from train.

    Args:
        train, test: rows of the set.
        protocol: the pretraining's.
        validation: rows of the source's own validation part, if it has one.
        label, group: of every row of the set, as for `carve`.

    Raises:
        UserError: as `carve`.
    """
    if protocol == "dabs":
        return train, test
    if validation is not None:
        return train, validation
    kept, held = carve(
        len(train), label=None if label is None else label[train], group=None if group is None else group[train]
    )
    return train[kept], train[held]


def divide_in_three(
    n: int,
    *,
    label: NDArray[np.int64] | None = None,
    group: NDArray[np.int64] | None = None,
    test: float = 0.2,
    validation: float = 0.1,
    seeds: tuple[int, int] = (0, 1),
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Training, validation and test rows among ``n``, for a set that comes undivided.

    Args:
        n: how many rows there are.
        label, group: of every row, as for `carve`.
        test: share of all rows.
        validation: share of what is left.
        seeds: of the two draws.

    Raises:
        UserError: as `carve`.
    """
    rest, tested = carve(n, label=label, group=group, fraction=test, seed=seeds[0])
    kept, held = carve(
        len(rest),
        label=None if label is None else label[rest],
        group=None if group is None else group[rest],
        fraction=validation,
        seed=seeds[1],
    )
    return rest[kept], rest[held], tested


class Parts(NamedTuple):
    """Rows of a set of which some have a label: what pretraining sees, and the three parts that are scored with."""

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
) -> Parts:
    """Divide the labelled rows in three; pretraining sees the training part and the rows without a label.

    Rows without a label whose group is in validation or test are not seen by pretraining, for they are not independent
    of what is scored.

    Args:
        labelled: ``(n,)``, whether a row has a label.
        label, group: of every row, as for `carve`.
        seeds: as for `divide_in_three`.

    Raises:
        UserError: as `carve`.
    """
    rows, others = np.flatnonzero(labelled), np.flatnonzero(~labelled)
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
    return Parts(np.sort(np.concatenate([train, others])), train, validation, test)
