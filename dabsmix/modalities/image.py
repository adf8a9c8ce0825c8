"""Images: decoded and resized once into one memory-mapped uint8 array, cast and standardised a batch at a time.

A family file in ``domains/`` says which images there are, which split each belongs to and what is predicted
(`Listing`); everything else is here. Each family has a small size (32x32 in patches of 4) and a large one (224x224 in
patches of 16); both are square and come from the whole picture, as in DABS: ``Resize((side, side))`` with PIL's
antialiased bilinear filter.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dabsmix.domain import Data, Domain, Split, Task
from dabsmix.download import Download
from dabsmix.errors import UserError
from dabsmix.prepare import allocate, fingerprint, prepared, progress
from dabsmix.spec import Grid
from dabsmix.splits import carve

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

__all__ = [
    "IMAGE_SUFFIXES",
    "Listing",
    "Pixels",
    "array_pixels",
    "codes",
    "digest",
    "family",
    "file_pixels",
    "lines",
    "load",
    "resized",
    "rows_named",
    "walk",
]

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

# Part of the cache key: raise it when the same files would give other pixels.
PREPARATION = 1


@dataclass(frozen=True)
class Listing:
    """What a data set's files say, in an order that no file system decides. Nothing is decoded yet.

    Attributes:
        folder: where `files` lie.
        files: all files that are read, relative to `folder`; they make the fingerprint.
        count: how many images there are; rows are numbered 0 to count - 1.
        pixels: ``pixels(row, side)`` gives one image, unsigned integers ``(channels, side, side)``. Called from several
            threads. Raises UserError naming a file that it cannot read.
        label: of all rows, as the task's kind states; -1 where there is none (only rows of `pretrain`).
        train, test: rows of the training and the test part.
        task: what is predicted.
        validation: rows of the validation part where the source fixes one; else it is carved from train.
        pretrain: rows that pretraining sees where these are not just those of train.
        group: int64 ``(count,)``, rows that are not independent share a number; None where each stands alone.
        notes: what a reader of a score has to know.
        channels: 3 unless stated.
        depth: bits of one pixel value as stored, 8 or 16.
    """

    folder: Path
    files: Sequence[str]
    count: int
    pixels: Callable[[int, int], NDArray[Any]]
    label: NDArray[Any]
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    task: Task
    validation: NDArray[np.int64] | None = None
    pretrain: NDArray[np.int64] | None = None
    group: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()
    channels: int = 3
    depth: Literal[8, 16] = 8


def family(
    name: str,
    read: Callable[[Path, str], Listing],
    *,
    title: str,
    licence: str,
    folder: str,
    downloads: tuple[Download, ...] = (),
    manual: str = "",
    sizes: tuple[tuple[int, int], ...] = ((32, 4), (224, 16)),
    transfers: tuple[str, ...] = (),
    views: Literal["flip", "crop", "none"] = "flip",
) -> tuple[Domain, ...]:
    """The domains of one data set: the first of ``sizes`` (side, patch) under its own name, others as ``name_side``.

    ``read(folder, protocol)`` lists the images. ``transfers`` are names of the small size. ``views`` says what
    augmentation may do: crop, jitter colours and mirror; the same without mirroring (digits, road signs); nothing.
    """
    return tuple(
        Domain(
            name=name + suffix,
            modality="image",
            title=f"{title}, {side}x{side} in patches of {patch}",
            licence=licence,
            folder=folder,
            load=partial(_load, name, read, side, patch, views),
            downloads=downloads,
            manual=manual,
            batch_size=256 if side < 224 else 64,
            transfers=tuple(target + suffix for target in transfers),
        )
        for suffix, (side, patch) in (("" if size is sizes[0] else f"_{size[0]}", size) for size in sizes)
    )


def _load(
    name: str,
    read: Callable[[Path, str], Listing],
    side: int,
    patch: int,
    views: Literal["flip", "crop", "none"],
    folder: Path,
    protocol: str,
) -> Data:
    return load(name, read(folder, protocol), side, patch, protocol, views)


def load(
    name: str,
    listing: Listing,
    side: int,
    patch: int,
    protocol: str,
    views: Literal["flip", "crop", "none"] = "none",
) -> Data:
    """Listed images to splits. Under ``dabs`` pixels are [0, 1] as they are; else standardised by channel.

    Under ``dabs`` training takes the whole training part and the validation part *is* the test part: DABS reports the
    split that it watches. Else validation is the source's own, or carved from train (by group where there are groups).

    Raises:
        UserError: an image cannot be read; a split is empty; a class does not occur in train.
    """
    key = fingerprint(listing.folder, (listing.folder / file for file in listing.files))
    images, sums, _ = stored(name, listing, key, side)
    train, validation, test = listing.train, listing.validation, listing.test
    if protocol == "dabs":
        validation = test
    elif validation is None:
        kept, held = carve(
            len(train),
            label=listing.label[train] if listing.task.kind == "classes" else None,
            group=None if listing.group is None else listing.group[train],
        )
        train, validation = train[kept], train[held]
    check_splits(name, listing, train, validation, test)

    def split(rows: NDArray[np.int64]) -> Split:
        label = None if (listing.label[rows] < 0).any() else listing.label[rows]
        return Split((images,), rows, label, None if listing.group is None else listing.group[rows])

    pretrain = split(train if listing.pretrain is None else listing.pretrain)
    pixels = Pixels.of(sums[pretrain.rows], side, listing.depth, standardise=protocol != "dabs", flip=views == "flip")
    return Data(
        specs=(Grid(listing.channels, (side, side), (patch, patch)),),
        pretrain=pretrain,
        train=split(train),
        validation=split(validation),
        test=split(test),
        task=listing.task,
        fingerprint=key,
        normalise=pixels.normalise,
        augment=None if views == "none" else pixels.augment,
        notes=listing.notes,
    )


def check_splits(name: str, listing: Listing, *parts: NDArray[np.int64]) -> None:
    """Raise UserError for an empty split, or for a class that train (the first of the parts) does not hold."""
    for part, rows in zip(("train", "validation", "test"), parts, strict=True):
        if not len(rows):
            raise UserError(f"{name}: no image in the {part} split; is {listing.folder} complete?")
    if len(np.intersect1d(parts[0], parts[2])) or len(np.intersect1d(parts[0], parts[1])):
        raise UserError(f"{name}: train shares images with validation or test; mend the lists in {listing.folder}")
    if listing.task.kind != "classes":
        return
    if len(listing.task.classes) < 2:
        raise UserError(f"{name}: a task needs two classes, found {listing.task.classes}; look into {listing.folder}")
    missing = np.setdiff1d(np.arange(len(listing.task.classes)), listing.label[parts[0]])
    if len(missing):
        known = listing.task.classes[missing[0]]
        raise UserError(f"{name}: {len(missing)} classes have no image in train, the first is {known!r}; add some")


# --- preparing


def stored(
    name: str, listing: Listing, key: str, side: int, on_bad: Literal["error", "skip"] = "error"
) -> tuple[NDArray[Any], NDArray[np.int64], dict[int, str]]:
    """The images ``(count, channels, side, side)``, their sums per channel and what is wrong with which row.

    The sums are int64 ``(count, 2, channels)``, of the values and of their squares: with them the statistics of any
    split cost no further pass over the images. Bad rows are zero and must not be used; without ``skip`` there are none.
    """

    def build(folder: Path) -> None:
        if not listing.count:
            raise UserError(f"{listing.folder}: no image below it; is it the right folder?")
        shape = (listing.count, listing.channels, side, side)
        dtype = np.uint8 if listing.depth == 8 else np.uint16
        images = allocate(folder / "images.npy", dtype, shape)
        sums = np.zeros((listing.count, 2, listing.channels), dtype=np.int64)
        bad: dict[int, str] = {}
        for row, image in progress(_decoded(listing, side, on_bad), f"decoding {name}", listing.count):
            if isinstance(image, str):
                bad[row] = image
                continue
            images[row] = image
            wide = image.astype(np.int64)
            sums[row] = wide.sum(axis=(1, 2)), (wide * wide).sum(axis=(1, 2))
        np.save(folder / "sums.npy", sums)
        (folder / "bad.json").write_text(json.dumps(bad), encoding="utf-8")

    folder = prepared(name, f"{key} {side} {on_bad} {PREPARATION}", build)
    bad = json.loads((folder / "bad.json").read_text(encoding="utf-8"))
    # a plain array over the map: np.memmap's own bookkeeping would be paid at every batch
    images = np.asarray(np.load(folder / "images.npy", mmap_mode="r"))
    return images, np.load(folder / "sums.npy"), {int(row): why for row, why in bad.items()}


def _decoded(listing: Listing, side: int, on_bad: Literal["error", "skip"]) -> Iterator[tuple[int, NDArray[Any] | str]]:
    """Every row's pixels, or what is wrong with it, in order; a few hundred images are in memory at a time."""

    def one(row: int) -> NDArray[Any] | str:
        try:
            return listing.pixels(row, side)
        except UserError as error:
            if on_bad == "error":
                raise
            return str(error)

    # PIL decodes and resizes outside the interpreter lock, so threads use every core
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, listing.count, 256):
            rows = range(start, min(start + 256, listing.count))
            yield from zip(rows, pool.map(one, rows), strict=True)


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


def digest(lines: Sequence[str]) -> str:
    """Hex sha256 of lines joined by newlines: the identity of a list of files or of a recipe."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# --- on the device


@dataclass(frozen=True)
class Pixels:
    """Stored integers to what the encoder sees: ``(x / top - mean) / std`` by channel, and the augmentation of that.

    Attributes:
        mean, std: by channel, on the scale where `top` is 1.
        top: the stored value that stands for 1: 255, or 65535 for 16 bits.
        side: height and width.
        flip: whether `augment` mirrors.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    top: int
    side: int
    flip: bool

    @classmethod
    def of(cls, sums: NDArray[np.int64], side: int, depth: Literal[8, 16], *, standardise: bool, flip: bool) -> Pixels:
        """From sums ``(n, 2, channels)`` of the images that pretraining sees; a constant channel is only centred."""
        top = 2**depth - 1
        channels = sums.shape[2]
        if not standardise:
            return cls((0.0,) * channels, (1.0,) * channels, top, side, flip)
        first, second = sums.sum(axis=0) / (len(sums) * side * side)
        mean, variance = first / top, (second - first**2) / top**2
        std = np.where(variance > 1e-10, np.sqrt(np.maximum(variance, 0)), 1.0)
        return cls(tuple(mean.tolist()), tuple(std.tolist()), top, side, flip)

    def _by_channel(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return like.new_tensor(values).view(-1, 1, 1)

    def normalise(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The first input, integers ``(B, channels, side, side)``, to float32; others pass."""
        images = inputs[0].float() / self.top
        return (images - self._by_channel(self.mean, images)) / self._by_channel(self.std, images), *inputs[1:]

    def augment(self, inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Crop, mirror and jitter colours of the first input, as `augmented` does, on the [0, 1] scale."""
        from dabsmix.modalities.image_augment import augmented

        mean, std = self._by_channel(self.mean, inputs[0]), self._by_channel(self.std, inputs[0])
        images = augmented(inputs[0] * std + mean, generator, flip=self.flip)
        return (images - mean) / std, *inputs[1:]
