"""Does the caption belong to the picture? MS COCO 2017, half of its captions exchanged (DABS; Tamkin et al., 2021)."""

import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.domain import Task
from dabsmix.data.splits import carve
from dabsmix.domains.mscoco import DOWNLOADS, FOLDER, NEEDS, STAND_INS, captioned, folder_note
from dabsmix.errors import UserError
from dabsmix.modalities.captioned import Examples, sized_domains


def _read(folder: Path, protocol: str) -> Examples:
    """Captions are exchanged within each part, so that no part has a caption of another."""
    entries, _, (first, second), tables = captioned(folder, protocol)
    count = first + second
    train, validation, test = np.arange(first), np.arange(first, count), np.arange(first, count)
    parts = [train, test]
    if protocol != "dabs":
        train_rows, validation_rows = carve(first)
        train, validation = train[train_rows], train[validation_rows]
        parts = [train, validation, test]
    source, label = np.arange(count), np.ones(count, dtype=np.int64)
    for rows in parts:
        images, label[rows] = exchanged(len(rows))
        source[rows] = rows[images]
    return Examples(
        files=[entry["file"] for entry in entries],
        tables=tables,
        image=np.arange(count),
        texts=[entries[row]["caption"] for row in source],
        label=label,
        train=train,
        validation=validation,
        test=test,
        task=Task("classes", "accuracy", ("mismatch", "match")),
        notes=folder_note(folder),
    )


def exchanged(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whose caption each of ``count`` images gets, and 1 where it is its own: DABS's draw with Python's seed 42.

    About half are chosen and their captions rolled by a random number of places. DABS may roll by their whole number,
    which gives everyone their own caption under the label 0: here that roll is by one.
    """
    rng = random.Random(42)
    chosen = np.array([row for row in range(count) if rng.random() < 0.5], dtype=np.int64)
    if len(chosen) < 2:
        raise UserError(f"mismatched_caption: {count} images in a part are too few to exchange captions among")
    roll = rng.randint(1, len(chosen))
    source, label = np.arange(count), np.ones(count, dtype=np.int64)
    source[chosen] = np.roll(chosen, -(roll if roll < len(chosen) else 1))
    label[chosen] = 0
    return source, label


DOMAINS = sized_domains(
    "mismatched_caption",
    _read,
    title="Does the caption belong to the picture? MS COCO 2017 (DABS)",
    folder=FOLDER,
    sizes="118,287 / 5,000",
    stand_ins=STAND_INS,
    needs=NEEDS,
    downloads=DOWNLOADS,
)
