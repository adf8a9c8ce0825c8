"""FGVC-Aircraft (Maji et al., 2013): 10,000 photographs of 100 variants of aircraft."""

from itertools import pairwise
from pathlib import Path

import numpy as np

from dabsmix.data.domain import Task
from dabsmix.data.download import Download
from dabsmix.errors import UserError
from dabsmix.modalities.files import codes, lines
from dabsmix.modalities.image import Listing, file_pixels, sized_domains

PARTS = ("train", "val", "test")


def _read(folder: Path, protocol: str) -> Listing:
    """Upstream's three parts, each image cropped to its box; ``dabs`` trains on train and validation.

    DABS declares 102 classes; there are 100.
    """
    lists = [folder / "data" / f"images_variant_{part}.txt" for part in PARTS]
    parts = [[_pair(path, number, line) for number, line in enumerate(lines(path), 1)] for path in lists]
    names = [name for part in parts for name, _ in part]
    variants = [variant for part in parts for _, variant in part]
    edges = np.cumsum([0, *(len(part) for part in parts)])
    train, validation, test = (np.arange(first, last) for first, last in pairwise(edges))
    boxes = {line.split()[0]: line.split()[1:] for line in lines(folder / "data" / "images_box.txt")}
    files = [f"data/images/{name}.jpg" for name in names]
    try:
        # upstream's corners count from 1 and are inclusive; PIL's count from 0, and the lower right one is exclusive
        box = np.array([boxes[name] for name in names], dtype=np.int64).reshape(-1, 4) - (1, 1, 0, 0)
    except (KeyError, ValueError) as error:
        raise UserError(f"{folder / 'data/images_box.txt'}: no box of four numbers for {error}") from error
    return Listing(
        folder=folder,
        files=[*files, "data/images_box.txt"],
        tables=[f"data/{path.name}" for path in lists],
        count=len(files),
        pixels=file_pixels(folder, files, box),
        label=codes(variants),
        train=np.concatenate([train, validation]) if protocol == "dabs" else train,
        validation=validation,
        test=test,
        task=Task("classes", "accuracy", tuple(sorted(set(variants)))),
        notes=("Images are cut to the aircraft's box, at test time too, as in DABS.",),
    )


def _pair(path: Path, number: int, line: str) -> tuple[str, str]:
    name, _, variant = line.partition(" ")
    if not variant:
        raise UserError(f"{path}, line {number}: {line!r} is not an image and a variant; fetch the data set again")
    return name, variant


DOMAINS = sized_domains(
    "aircraft",
    _read,
    dabs="both sizes",
    title="FGVC-Aircraft, 100 variants (Maji et al., 2013)",
    licence="non-commercial research only",
    folder="fgvc-aircraft-2013b",
    needs=(*(f"data/images_variant_{part}.txt" for part in PARTS), "data/images_box.txt", "data/images/*.jpg"),
    sizes="3,334 / 3,333",
    downloads=(
        Download(
            ("https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",),
            "fgvc-aircraft-2013b.tar.gz",
        ),
    ),
)
