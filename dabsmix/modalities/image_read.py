"""From a data set's files to images and rows: decoding, folders, lists, and the splits that upstream leaves open."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dabsmix.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "IMAGE_SUFFIXES",
    "array_pixels",
    "codes",
    "digest",
    "file_pixels",
    "four_fifths",
    "lines",
    "opened",
    "read_labels",
    "resized",
    "rows_named",
    "split_note",
    "walk",
]

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def file_pixels(
    folder: Path, files: Sequence[str], boxes: NDArray[np.int64] | None = None
) -> Callable[[int, int], NDArray[np.uint8]]:
    """For `Listing.pixels`: one RGB image per file; ``boxes`` (n, 4) are left, upper, right, lower, cut out first."""

    def pixels(row: int, side: int) -> NDArray[np.uint8]:
        image = opened(folder / files[row])
        if boxes is not None:
            left, upper, right, lower = boxes[row].tolist()
            image = image.crop((left, upper, right, lower))
        return resized(image, side)

    return pixels


def array_pixels(read: Callable[[], NDArray[np.uint8]]) -> Callable[[int, int], NDArray[np.uint8]]:
    """For `Listing.pixels`: images of one array uint8 ``(n, height, width, 3)``, read when the first is asked for."""
    once = Lock()
    images: list[NDArray[np.uint8]] = []

    def pixels(row: int, side: int) -> NDArray[np.uint8]:
        from PIL import Image

        with once:
            if not images:
                images.append(read())
        return resized(Image.fromarray(np.ascontiguousarray(images[0][row])), side)

    return pixels


def opened(path: Path) -> Image:
    """The whole image as RGB.

    Raises:
        UserError: it is missing, damaged, or has more than 8 bits a channel, which PIL would clip without a word.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise UserError(f"{path}: more than 8 bits a channel (mode {image.mode}); convert it to 8 bits")
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"{path}: the image is missing; the data set's list names it") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: no image, or damaged from its first bytes; fetch it again or remove it") from error
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: damaged image ({error}); fetch it again or remove it") from error


def resized(image: Image, side: int) -> NDArray[np.uint8]:
    """An RGB image as uint8 ``(3, side, side)``: squeezed to a square, as torchvision's ``Resize((side, side))``."""
    from PIL.Image import Resampling

    if image.size != (side, side):
        image = image.resize((side, side), Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def walk(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[str]:
    """All files below a folder with one of these endings, relative, with "/", sorted; hidden ones are left out.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; the data set is not there or has another layout")
    found = []
    for root, _, files in os.walk(folder):
        inside = Path(root).relative_to(folder)
        found += [(inside / file).as_posix() for file in files if file.lower().endswith(suffixes) and file[0] != "."]
    return sorted(found)


def lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        UserError: it is missing or no text.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch the data set again") from error


def rows_named(path: Path, names: Sequence[str], rows: Mapping[str, int]) -> NDArray[np.int64]:
    """Rows of the images that the lines of a list name, in the list's order.

    Raises:
        UserError: an image of the list is not there; the message has the list's line.
    """
    for number, name in enumerate(names, 1):
        if name not in rows:
            raise UserError(f"{path}, line {number}: no image {name!r} beside it; fetch the data set again")
    return np.array([rows[name] for name in names], dtype=np.int64)


def codes(values: Sequence[str]) -> NDArray[np.int64]:
    """Each value's place among the sorted distinct values: group and class numbers, int64 ``(n,)``."""
    return np.unique(np.asarray(values), return_inverse=True)[1].astype(np.int64)


def split_note(test: Sequence[str]) -> str:
    """A note for a test part that upstream does not fix: the sum by which two readers can tell that theirs is one."""
    return f"The split is drawn here by seed over sorted names; sha256 of the {len(test)} test names: {digest(test)}."


def digest(lines: Sequence[str]) -> str:
    """Hex sha256 of lines joined by newlines."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def four_fifths(label: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """DABS's split where it makes its own: 80 % of each class and the rest, classes in order of first occurrence."""
    rng = np.random.RandomState(42)
    first, second = [], []
    for value in dict.fromkeys(label.tolist()):
        places = rng.permutation(np.flatnonzero(label == value))
        first.append(places[: int(0.8 * len(places))])
        second.append(places[int(0.8 * len(places)) :])
    return np.concatenate(first), np.concatenate(second)


def read_labels(path: Path, files: Sequence[str], label: str, group: str | None) -> dict[str, tuple[str, str]]:
    """Class and group of each file, from a user's CSV with the column ``file``; without `group` each is its own.

    Raises:
        UserError: a column is missing, a row has another number of cells, no label, or a file that is not there or
            had a row before.
    """
    found: dict[str, tuple[str, str]] = {}
    there = set(files)
    wanted = ["file", label, *([group] if group else [])]
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = reader.fieldnames or []
            if missing := [name for name in wanted if name not in columns]:
                raise UserError(f"{path}: no column {missing[0]!r} among {', '.join(columns)}")
            for number, row in enumerate(reader, 2):
                if None in row or None in row.values():
                    raise UserError(f"{path}, row {number}: not {len(columns)} cells, as the header has")
                file, *values = (row[name].strip() for name in wanted)
                if file not in there:
                    raise UserError(f"{path}, row {number}: no file {file!r} below the data folder")
                if file in found:
                    raise UserError(f"{path}, row {number}: {file!r} had a row before; leave one of them out")
                if not all(values):
                    raise UserError(f"{path}, row {number}: {wanted[1 + values.index('')]} is empty; fill it in")
                found[file] = (values[0], values[-1] if group else file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"labels {path}: cannot be read ({error})") from error
    return found
