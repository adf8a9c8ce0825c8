"""Caltech-101 (Fei-Fei et al., 2004): 101 kinds of thing, 31 to 800 photographs of each."""

from pathlib import Path

import numpy as np

from dabsmix.data.domain import Task
from dabsmix.data.download import Download
from dabsmix.errors import UserError
from dabsmix.modalities.files import codes, split_note, walk
from dabsmix.modalities.image import IMAGE_SUFFIXES, Listing, file_pixels, sized_domains

FOLDER = "101_ObjectCategories"
BACKGROUND = "BACKGROUND_Google/"  # clutter, which is not a class of the task
TRAIN_PER_CLASS = 30


def _read(folder: Path, protocol: str) -> Listing:
    """The usual split, which upstream does not fix: 30 images of each class for training, the rest for the test.

    Drawn with seed 0 over sorted names. There is no `dabs` form of this set.
    """
    if not (folder / FOLDER).is_dir():
        raise UserError(f"{folder / FOLDER}: no such folder; unpack {FOLDER}.tar.gz in {folder}")
    files = [f"{FOLDER}/{file}" for file in walk(folder / FOLDER, IMAGE_SUFFIXES) if not file.startswith(BACKGROUND)]
    names = [file.split("/")[1] for file in files]
    label, rng = codes(names), np.random.default_rng(0)
    drawn = [rng.permutation(np.flatnonzero(label == value))[:TRAIN_PER_CLASS] for value in np.unique(label)]
    train = np.sort(np.concatenate(drawn)) if drawn else np.arange(0)
    test = np.setdiff1d(np.arange(len(files)), train)
    return Listing(
        folder=folder,
        files=files,
        count=len(files),
        pixels=file_pixels(folder, files),
        label=label,
        train=train,
        test=test,
        task=Task("classes", "accuracy", tuple(sorted(set(names)))),
        notes=(split_note([files[row] for row in test]),),
    )


DOMAINS = sized_domains(
    "caltech101",
    _read,
    title="Caltech-101, 101 kinds of thing (Fei-Fei et al., 2004)",
    licence="CC BY 4.0",
    folder="caltech-101",
    needs=(f"{FOLDER}/*/*.jpg",),
    sizes="3,030 / 5,647",
    downloads=(
        Download(
            ("https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",),
            "caltech-101.zip",
            "md5:3138e1922a9193bfa496528edbbc45d0",
            "torchvision 0.27.1, datasets/caltech.py",
            nested=(f"caltech-101/{FOLDER}.tar.gz",),
        ),
    ),
)
