"""Carving a validation part from train: seeded, by class, whole groups only, the same on every machine."""

import numpy as np
from numpy.typing import NDArray

from dabsmix.errors import UserError

__all__ = ["carve"]


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
