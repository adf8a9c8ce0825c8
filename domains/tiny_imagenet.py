"""Tiny ImageNet (Stanford CS231n, 2015): 200 kinds of thing, 500 images each, 64x64, and 10,000 for validation."""

from pathlib import Path

import numpy as np

from dabsmix.data.domain import Task
from dabsmix.data.download import Download
from dabsmix.errors import UserError
from dabsmix.modalities.files import lines, walk
from dabsmix.modalities.image import IMAGE_SUFFIXES, Listing, file_pixels, sized_domains

TABLES = ("wnids.txt", "val/val_annotations.txt")


def _read(folder: Path, protocol: str) -> Listing:
    """Upstream's test images have no labels, so its validation images are the test, as is usual."""
    classes = tuple(sorted(lines(folder / TABLES[0])))
    number = {name: place for place, name in enumerate(classes)}
    train = [f"train/{file}" for file in walk(folder / "train", IMAGE_SUFFIXES)]
    validation = sorted(line.split("\t")[:2] for line in lines(folder / TABLES[1]))
    files = train + [f"val/images/{file}" for file, _ in validation]
    names = [file.split("/")[1] for file in train] + [name for _, name in validation]
    if unknown := sorted(set(names) - set(classes)):
        raise UserError(f"{folder / TABLES[0]}: no class {unknown[0]!r}, which train or val has; fetch it again")
    return Listing(
        folder=folder,
        files=files,
        tables=TABLES,
        count=len(files),
        pixels=file_pixels(folder, files),
        label=np.array([number[name] for name in names], dtype=np.int64),
        train=np.arange(len(train)),
        test=np.arange(len(train), len(files)),
        task=Task("classes", "accuracy", classes),
        notes=("The test part is upstream's validation part: labels of its test part are not public.",),
    )


DOMAINS = sized_domains(
    "tiny_imagenet",
    _read,
    title="Tiny ImageNet, 200 kinds of thing (Stanford CS231n, 2015)",
    licence="not stated",
    folder="tiny-imagenet-200",
    needs=(*TABLES, "train/*/images/*.JPEG", "val/images/*.JPEG"),
    sizes="100,000 / 10,000",
    downloads=(
        Download(
            ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
            "tiny-imagenet-200.zip",
            "md5:90528d7ca1a48142e341f4ef8d21d0de",
            "lvyilin/pytorch-fgvc-dataset @511b19a, tiny_imagenet.py",
        ),
    ),
)
