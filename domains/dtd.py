"""Describable Textures (Cimpoi et al., 2014): 47 kinds of texture, 120 photographs of each."""

from pathlib import Path

import numpy as np

from dabsmix.data.domain import Task
from dabsmix.data.download import Download
from dabsmix.modalities.files import codes, lines, rows_named, walk
from dabsmix.modalities.image import IMAGE_SUFFIXES, Listing, file_pixels, sized_domains


def _read(folder: Path, protocol: str) -> Listing:
    """The first of upstream's ten partitions, as in DABS, which trains on train1 and val1 together."""
    files = walk(folder / "images", IMAGE_SUFFIXES)
    rows = {file: row for row, file in enumerate(files)}
    classes = [file.split("/")[0] for file in files]
    lists = [folder / "labels" / f"{part}1.txt" for part in ("train", "val", "test")]
    train, validation, test = (rows_named(path, lines(path), rows) for path in lists)
    return Listing(
        folder=folder,
        files=[f"images/{file}" for file in files],
        tables=[f"labels/{path.name}" for path in lists],
        count=len(files),
        pixels=file_pixels(folder / "images", files),
        label=codes(classes),
        train=np.concatenate([train, validation]) if protocol == "dabs" else train,
        validation=validation,
        test=test,
        task=Task("classes", "accuracy", tuple(sorted(set(classes)))),
    )


DOMAINS = sized_domains(
    "dtd",
    _read,
    dabs="both sizes",
    title="Describable Textures, 47 kinds (Cimpoi et al., 2014)",
    licence="for research purposes",
    folder="dtd",
    needs=(*(f"labels/{part}1.txt" for part in ("train", "val", "test")), "images/*/*.jpg"),
    sizes="1,880 / 1,880",
    downloads=(
        Download(
            ("https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",),
            "dtd-r1.0.1.tar.gz",
            "md5:fff73e5086ae6bdbea199a49dfb8a4c1",
            "torchvision 0.27.1, datasets/dtd.py",
        ),
    ),
)
