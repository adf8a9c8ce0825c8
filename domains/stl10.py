"""STL-10 (Coates et al., 2011): ten kinds of thing, 5,000 labelled, 8,000 test and 100,000 unlabelled, 96x96."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.domain import Task
from dabsmix.data.download import Download
from dabsmix.errors import UserError
from dabsmix.modalities.files import lines
from dabsmix.modalities.image import Listing, resized, sized_domains

PARTS = ("train", "test", "unlabeled")
TABLES = ("train_y.bin", "test_y.bin", "class_names.txt")
BYTES = 3 * 96 * 96


def _read(folder: Path, protocol: str) -> Listing:
    """Pretraining sees only the unlabelled images, as the set is meant; labels on disk count from 1."""
    images = [_images(folder / f"{part}_X.bin") for part in PARTS]
    labels = [_labels(folder / f"{part}_y.bin", len(stored)) for part, stored in zip(PARTS[:2], images, strict=False)]
    edges = np.cumsum([0, *(len(stored) for stored in images)])

    def pixels(row: int, side: int) -> NDArray[np.uint8]:
        from PIL import Image

        part = int(np.searchsorted(edges, row, side="right")) - 1
        # columns before rows on disk
        return resized(Image.fromarray(np.ascontiguousarray(images[part][row - edges[part]].transpose(2, 1, 0))), side)

    return Listing(
        folder=folder,
        files=[f"{part}_X.bin" for part in PARTS],
        tables=TABLES,
        count=int(edges[-1]),
        pixels=pixels,
        label=np.concatenate([*labels, np.full(len(images[2]), -1, dtype=np.int64)]),
        train=np.arange(edges[0], edges[1]),
        test=np.arange(edges[1], edges[2]),
        pretrain=np.arange(edges[2], edges[3]),
        task=Task("classes", "accuracy", tuple(lines(folder / "class_names.txt"))),
        notes=("Pretraining sees the unlabelled images, whose kinds go beyond the ten of the task.",),
    )


def _images(path: Path) -> NDArray[np.uint8]:
    """A memory map uint8 ``(n, 3, columns, rows)``."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fetch stl10_binary.tar.gz again") from error
    if size == 0 or size % BYTES:
        raise UserError(f"{path}: {size} bytes are not a whole number of 96x96 images; fetch stl10_binary.tar.gz again")
    return np.memmap(path, np.uint8, "r", shape=(size // BYTES, 3, 96, 96))


def _labels(path: Path, count: int) -> NDArray[np.int64]:
    try:
        label = np.fromfile(path, np.uint8).astype(np.int64) - 1
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fetch stl10_binary.tar.gz again") from error
    if len(label) != count or label.min() < 0 or label.max() > 9:
        raise UserError(f"{path}: not {count} labels from 1 to 10; fetch stl10_binary.tar.gz again")
    return label


DOMAINS = sized_domains(
    "stl10",
    _read,
    title="STL-10, ten kinds of thing and 100,000 unlabelled images (Coates et al., 2011)",
    licence="not stated",
    folder="stl10_binary",
    needs=(*(f"{part}_X.bin" for part in PARTS), *TABLES),
    sizes="5,000 / 8,000",
    downloads=(
        Download(
            ("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",),
            "stl10_binary.tar.gz",
            "md5:91f7769df0f17e558f3565bffb0c7dfb",
            "torchvision 0.27.1, datasets/stl10.py",
        ),
    ),
)
