"""Caltech-UCSD Birds 200-2011 (Wah et al., 2011): 11,788 photographs of 200 kinds of bird."""

from pathlib import Path

import numpy as np

from dabsmix.data.domain import Task
from dabsmix.data.download import Download
from dabsmix.errors import UserError
from dabsmix.modalities.files import lines
from dabsmix.modalities.image import Listing, file_pixels, sized_domains

TABLES = ("classes.txt", "images.txt", "image_class_labels.txt", "train_test_split.txt")


def _read(folder: Path, protocol: str) -> Listing:
    """Tables of ``ID VALUE`` lines; classes count from 1. The birds' boxes are not used, as in DABS."""
    classes, images, labels, splits = (_table(folder / name) for name in TABLES)
    if not images.keys() == labels.keys() == splits.keys():
        raise UserError(f"{folder}: images.txt, image_class_labels.txt and train_test_split.txt list other images")
    files = [f"images/{file}" for file in images.values()]
    try:
        label = np.array([list(classes).index(labels[number]) for number in images], dtype=np.int64)
    except ValueError as error:
        raise UserError(f"{folder / TABLES[2]}: a class that {TABLES[0]} does not have ({error})") from error
    in_train = np.array([splits[number] == "1" for number in images])
    return Listing(
        folder=folder,
        files=files,
        tables=TABLES,
        count=len(files),
        pixels=file_pixels(folder, files),
        label=label,
        train=np.flatnonzero(in_train),
        test=np.flatnonzero(~in_train),
        task=Task("classes", "accuracy", tuple(classes.values())),
    )


def _table(path: Path) -> dict[str, str]:
    pairs = [line.split(" ", 1) for line in lines(path)]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2:
            raise UserError(f"{path}, line {number}: {' '.join(pair)!r} is not a number and a value; fetch it again")
    return {number: value for number, value in pairs}


DOMAINS = sized_domains(
    "cu_birds",
    _read,
    dabs="both sizes",
    title="Caltech-UCSD Birds 200-2011 (Wah et al., 2011)",
    licence="non-commercial research and education only",
    folder="CUB_200_2011",
    needs=(*TABLES, "images/*/*.jpg"),
    sizes="5,994 / 5,794",
    downloads=(
        Download(
            ("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",),
            "CUB_200_2011.tgz",
            "md5:97eceeb196236b17998738112f37df78",
            "ContinualAI/avalanche @20e90ef, benchmarks/datasets/cub200/cub200.py",
        ),
    ),
)
