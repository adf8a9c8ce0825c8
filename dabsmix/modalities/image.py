"""Images: decoded and resized once into one memory-mapped uint8 array, cast and standardised a batch at a time.

A data set's file in ``domains/`` says which images there are, which split each belongs to and what is predicted
(`Listing`); everything else is here. Each data set has a small size (32x32 in patches of 4) and a large one (224x224 in
patches of 16). Both are squares made from the whole picture, as in DABS: ``Resize((side, side))`` with PIL's
antialiased bilinear filter.
"""

from __future__ import annotations

import json
import math
import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.cache import BLOCK, allocate, fingerprint, prepared_in_parts, stored_rows
from dabsmix.data.domain import BATCH_SIZE, Data, Domain, Labelled, Rows, Split, Task
from dabsmix.data.download import Download
from dabsmix.data.splits import divide
from dabsmix.data.standardise import Standardise
from dabsmix.errors import UserError
from dabsmix.modalities.augmentation import draws
from dabsmix.modalities.files import (
    Folder,
    Marked,
    content,
    digest,
    endings_not_read,
    marked_files,
    named,
    own_files,
    own_labels,
    own_split,
    skipped_note,
    usable_rows,
)
from dabsmix.modalities.summary import files_summary
from dabsmix.spec import Grid
from dabsmix.terminal import progress

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

__all__ = [
    "IMAGE_SUFFIXES",
    "Listing",
    "Pixels",
    "array_pixels",
    "augmented",
    "blurred",
    "file_pixels",
    "four_fifths",
    "hue_shifted",
    "imix_view",
    "load",
    "load_further",
    "load_further_labelled",
    "load_own",
    "opened",
    "resized",
    "sized_domains",
    "stored",
]

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

# Part of the cache key: raise it when the same files would give other pixels.
PREPARATION = 1

REFUSED_ONCE = "more than 8 bits a channel"
"""An older version refused 16-bit images with this message. A store in which it occurs is built again."""


@dataclass(frozen=True)
class Listing:
    """The images of a data set, in an order that does not depend on the file system. Nothing is decoded yet.

    Attributes:
        folder: where `files` lie.
        files: the files that the pixels come from, relative to `folder`.
        count: how many images there are; rows are numbered 0 to count - 1.
        pixels: ``pixels(row, side)`` returns one image, unsigned integers ``(channels, side, side)``. It is called from
            several threads, and raises UserError with the name of a file that it cannot read.
        label: of all rows, in the form of the task's kind; -1 for rows without a label (only rows of `pretrain`).
        train, test: rows of the training and the test part.
        task: what is predicted.
        validation: rows of the validation part if the source fixes one; otherwise it is carved from train.
        pretrain: rows that pretraining sees, if these are not the rows of train.
        group: int64 ``(count,)``, rows that are not independent share a number; None if all rows are independent.
        tables: the other files that are read (labels, lists), relative to `folder`.
        notes: what a reader of a score has to know.
        channels: 3 by default.
        depth: bits per stored pixel value, 8 or 16.
        statistics: mean and standard deviation of the stored values by channel, if the source fixes them.
    """

    folder: Folder
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
    tables: Sequence[str] = ()
    notes: tuple[str, ...] = ()
    channels: int = 3
    depth: Literal[8, 16] = 8
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def sized_domains(
    name: str,
    read: Callable[[Path, str], Listing],
    *,
    title: str,
    licence: str,
    folder: str,
    downloads: tuple[Download, ...] = (),
    manual: str = "",
    sizes: str = "",
    sides: tuple[tuple[int, int], ...] = ((32, 4), (224, 16)),
    transfers: tuple[str, ...] = (),
    views: Literal["flip", "crop", "none"] = "flip",
    dabs: Literal["both sizes", "large size", "none"] = "none",
    batch_size: int = BATCH_SIZE,
    aliases: tuple[str, ...] = (),
    needs: tuple[str, ...] = (),
) -> tuple[Domain, ...]:
    """The domains of one data set: the first of ``sides`` (side, patch) under its own name, others as ``name_side``.

    Args:
        name: of the first size.
        read: ``read(folder, protocol)`` lists the images.
        title, licence, folder, downloads, manual, sizes, needs: as in `Domain`.
        sides: side and patch of each size.
        transfers: names of domains at their small size.
        views: what augmentation may do: ``flip`` crops, jitters colours and mirrors; ``crop`` does not mirror (digits,
            road signs); ``none`` does nothing.
        dabs: at which sizes DABS has the set.
        batch_size: for sides below 224.
        aliases: of the first size.
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
            sizes=sizes,
            batch_size=batch_size if side < 224 else 64,
            transfers=tuple(target + suffix for target in transfers),
            aliases=() if suffix else (*aliases, *((f"{name}_small",) if dabs == "both sizes" else ())),
            needs=needs,
            dabs=f"{name}_224" if dabs == "large size" and side < 224 else "",
        )
        for suffix, (side, patch) in (("" if size is sides[0] else f"_{size[0]}", size) for size in sides)
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
    on_bad: Literal["error", "skip"] = "error",
) -> Data:
    """Listed images to splits; pixels by channel in [0, 1] under ``dabs``, else with mean 0 and variance 1 in pretrain.

    With ``skip``, damaged images are left out of the store, and the listing's splits must not name them.
    Under ``dabs`` training takes the whole training part and the validation part *is* the test part: DABS reports the
    split that it watches. Otherwise validation is the source's own, or is carved from train (by group, if there are
    groups).

    Raises:
        UserError: an image cannot be read; a split is empty; a class does not occur in train.
    """
    images, sums, _, source = stored(name, listing, side, on_bad)
    if listing.tables:
        tables = fingerprint(listing.folder, listing.tables)
        source = digest([source, tables])
    test, notes = listing.test, listing.notes
    train, validation = divide(
        listing.train,
        test,
        protocol,
        validation=listing.validation,
        label=listing.label if listing.task.kind == "classes" else None,
        group=listing.group,
    )
    if protocol != "dabs" and listing.validation is None:
        how = "by class" if listing.group is None else "in whole groups"
        notes = (*notes, f"Validation is {len(validation)} images of the training part, drawn {how}.")
    check_splits(name, listing, train, validation, test)

    def split(rows: NDArray[np.int64]) -> Split:
        return Split((images,), rows, listing.label[rows], None if listing.group is None else listing.group[rows])

    pretrain = split(train if listing.pretrain is None else listing.pretrain).drop_partial_label()
    if listing.statistics is not None:
        standardise = Standardise(*listing.statistics)
    elif protocol == "dabs":
        standardise = Standardise((0.0,) * listing.channels, (2.0**listing.depth - 1,) * listing.channels)
    else:
        standardise = _statistics(sums[pretrain.rows], side)
    pixels = Pixels(standardise, 2**listing.depth - 1, views == "flip", imix=protocol == "imix")
    return Data(
        specs=(Grid(listing.channels, (side, side), (patch, patch)),),
        pretrain=pretrain,
        labelled=Labelled(listing.task, split(train), split(validation), split(test)),
        fingerprint=source,
        normalise=pixels.normalise,
        augment=None if views == "none" else pixels.augment,
        notes=notes,
        state={
            "size": side,
            "patch": patch,
            "depth": listing.depth,
            "mean": standardise.mean,
            "std": standardise.std,
        },
    )


def _statistics(sums: NDArray[np.int64], side: int) -> Standardise:
    """From the sums ``(n, 2, channels)`` of the images that pretraining sees."""
    total, squares = sums.sum(axis=0)
    return Standardise.from_sums(len(sums) * side * side, total, squares)


def check_splits(name: str, listing: Listing, *parts: NDArray[np.int64]) -> None:
    """Raise UserError for an empty split, for splits that share images, or for a class without images in train.

    ``parts`` are the rows of train, validation and test.
    """
    for part, rows in zip(("train", "validation", "test"), parts, strict=True):
        if not len(rows):
            raise UserError(f"{name}: no image in the {part} split; is {listing.folder} complete?")
    pairs = combinations(parts if parts[1] is not parts[2] else parts[:2], 2)  # under dabs validation is test
    if any(len(np.intersect1d(one, other)) for one, other in pairs):
        raise UserError(f"{name}: train, validation and test share images; fix the lists in {listing.folder}")
    if listing.task.kind != "classes":
        return
    if len(listing.task.classes) < 2:
        raise UserError(f"{name}: a task needs two classes, found {listing.task.classes}; check {listing.folder}")
    missing = np.setdiff1d(np.arange(len(listing.task.classes)), listing.label[parts[0]])
    if len(missing):
        first = listing.task.classes[missing[0]]
        raise UserError(f"{name}: {len(missing)} classes have no image in train, the first is {first!r}; add some")


# --- from files to pixels


def file_pixels(
    folder: Folder, files: Sequence[str], boxes: NDArray[np.int64] | None = None
) -> Callable[[int, int], NDArray[np.uint8]]:
    """For `Listing.pixels`: one RGB image per file, cropped to ``boxes`` (n, 4; left, upper, right, lower) if given."""

    def pixels(row: int, side: int) -> NDArray[np.uint8]:
        image = opened(folder / files[row])
        if boxes is not None:
            left, upper, right, lower = boxes[row].tolist()
            image = image.crop((left, upper, right, lower))
        return resized(image, side)

    return pixels


def array_pixels(read: Callable[[], NDArray[np.uint8]]) -> Callable[[int, int], NDArray[np.uint8]]:
    """For `Listing.pixels`: images of one array uint8 ``(n, height, width, 3)``, read when the first one is needed."""
    once = Lock()
    images: list[NDArray[np.uint8]] = []

    def pixels(row: int, side: int) -> NDArray[np.uint8]:
        from PIL import Image

        with once:
            if not images:
                images.append(read())
        return resized(Image.fromarray(np.ascontiguousarray(images[0][row])), side)

    return pixels


def rgb(image: Image, name: str) -> Image:
    """An image of any mode as RGB; 16 bits per channel are scaled to 8.

    Args:
        image: in a file or in memory.
        name: for messages.

    Raises:
        UserError: it has floats or values beyond 16 bits, which PIL would clip.
    """
    from PIL.Image import fromarray

    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise UserError(f"{name}: values beyond 16 bits (mode {image.mode}); convert it to 8 or 16 bits")
        image = fromarray(np.round(values / 257).astype(np.uint8))
    elif image.mode == "F":
        raise UserError(f"{name}: values are floats (mode F); convert it to 8 or 16 bits")
    return image.convert("RGB")


def opened(path: Folder) -> Image:
    """The whole image in a file, as `rgb` gives it.

    Raises:
        UserError: it is missing, damaged or larger than PIL's limit; or as `rgb`.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(content(path)) as file:
            return rgb(file, str(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: the image is missing; the data set's list names it") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image, or damaged at its start; fetch it again or remove it") from error
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: too large ({error}); make it smaller, or leave it out") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: damaged image ({error}); fetch it again or remove it") from error


def resized(image: Image, side: int) -> NDArray[np.uint8]:
    """An RGB image as uint8 ``(3, side, side)``: squeezed to a square, as torchvision's ``Resize((side, side))``."""
    from PIL.Image import Resampling

    if image.size != (side, side):
        image = image.resize((side, side), Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def four_fifths(label: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """DABS's split where it makes its own: 80 % of each class and the rest, classes in order of first occurrence."""
    rng = np.random.RandomState(42)
    first, second = [], []
    for value in dict.fromkeys(label.tolist()):
        rows = rng.permutation(np.flatnonzero(label == value))
        first.append(rows[: int(0.8 * len(rows))])
        second.append(rows[int(0.8 * len(rows)) :])
    return np.concatenate(first), np.concatenate(second)


# --- preparing


def stored(
    name: str, listing: Listing, side: int, on_bad: Literal["error", "skip"] = "error"
) -> tuple[Rows, NDArray[np.int64], dict[int, str], str]:
    """Decode the images, once; several processes at once divide a large set (`prepared_in_parts`).

    Returns:
        The images ``(count, channels, side, side)``; their sums, int64 ``(count, 2, channels)``, of the values and of
        the squares, from which the statistics of any split follow without another pass; for each bad row what is wrong
        with it; and the fingerprint. Bad rows are zero and must not be used; without ``skip`` there are none.
    """
    shape = (listing.channels, side, side)
    dtype = np.dtype(np.uint8 if listing.depth == 8 else np.uint16)

    def build(folder: Path, rows: range) -> None:
        if not listing.count:
            raise UserError(f"{listing.folder}: holds no image; is it the right folder?")
        images = allocate(folder / "images.npy", dtype, (len(rows), *shape))
        sums = np.zeros((len(rows), 2, listing.channels), dtype=np.int64)
        bad: dict[int, str] = {}
        title = f"decoding {name}" + (f", images from {rows.start:,}" if len(rows) < listing.count else "")
        for row, image in progress(title, _decoded(listing, rows, side, on_bad), len(rows)):
            if isinstance(image, str):
                bad[row] = image
                continue
            images[row - rows.start] = image
            wide = image.astype(np.int64)
            sums[row - rows.start] = wide.sum(axis=(1, 2)), (wide * wide).sum(axis=(1, 2))
        np.save(folder / "sums.npy", sums)
        (folder / "bad.json").write_text(json.dumps(bad), encoding="utf-8")

    def folders(key: str) -> tuple[list[Path], dict[int, str]]:
        paths = prepared_in_parts(name, key, listing.count, math.prod(shape) * dtype.itemsize, build)
        entries = [json.loads((path / "bad.json").read_text(encoding="utf-8")) for path in paths]
        return paths, {int(row): fault for entry in entries for row, fault in entry.items()}

    source = fingerprint(listing.folder, listing.files)
    # rows are numbered in the order of the list, which is not part of the fingerprint
    key = f"{source} {digest(listing.files)} {side} {on_bad} {PREPARATION}"
    ready, bad = folders(key)
    if any(REFUSED_ONCE in reason for reason in bad.values()):
        ready, bad = folders(f"{key} 16 bits")
    sums = np.concatenate([np.load(folder / "sums.npy") for folder in ready])
    return stored_rows(ready, "images.npy"), sums, bad, source


def _decoded(
    listing: Listing, rows: range, side: int, on_bad: Literal["error", "skip"]
) -> Iterator[tuple[int, NDArray[Any] | str]]:
    """The pixels of these rows, or what is wrong with them, in order; `BLOCK` images are in memory at a time."""

    def one(row: int) -> NDArray[Any] | str:
        try:
            return listing.pixels(row, side)
        except UserError as error:
            if on_bad == "error":
                raise
            return str(error)

    # PIL decodes and resizes outside the interpreter lock, so threads use every core
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            yield from zip(block, pool.map(one, block), strict=True)


# --- on the device, a whole batch at a time: stored integers to standardised floats, and augmented views

PADDING = 4  # pixels that a small image may be shifted by, as usual for CIFAR
AREA = (0.2, 1.0)  # share of a large image that a crop covers, as in MoCo (He et al., 2020)
RATIO = 4 / 3  # the widest crop; the tallest is its inverse
JITTER = 0.4  # brightness, contrast and saturation are scaled by 1 - JITTER to 1 + JITTER
HUE = 0.1  # of the circle, either way
BLUR = (0.1, 2.0)  # standard deviation in pixels


@dataclass(frozen=True)
class Pixels:
    """Turns stored integers into the encoder's input, ``(x - mean) / std`` by channel, and augments it.

    Attributes:
        standardise: mean and standard deviation by channel, on the scale of the stored values.
        top: the largest value that can be stored.
        flip: whether `augment` mirrors.
        imix: whether `augment` is i-Mix's, `imix_view`, in place of `augmented`.
    """

    standardise: Standardise
    top: int
    flip: bool
    imix: bool = False

    def normalise(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The first input, integers ``(B, channels, side, side)``, as float32; other inputs are unchanged."""
        return *self.standardise(inputs[:1]), *inputs[1:]

    def augment(self, inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """The first input, normalised, augmented on the [0, 1] scale; other inputs are unchanged."""
        mean, std = self.standardise.by_channel(inputs[0])
        images = (imix_view if self.imix else augmented)((inputs[0] * std + mean) / self.top, generator, flip=self.flip)
        return (images * self.top - mean) / std, *inputs[1:]


def augmented(images: Tensor, generator: torch.Generator, *, flip: bool) -> Tensor:
    """One random view of each image, float ``(B, C, side, side)`` in [0, 1] to the same.

    Images below 64 pixels a side are shifted by whole pixels, with black beyond the edge; larger ones get a random
    resized crop. Half of the images are then mirrored (if ``flip``), and brightness, contrast and, with three channels,
    saturation change. ``generator`` lives on the device of the images and is in the same state on every process: draws
    are made for the images of all processes and cut by rank.
    """
    import torch

    B, C, side, _ = images.shape
    uniform = draws(images, generator)

    if side < 64:
        width = height = torch.ones(B, device=images.device)
        shift = 2 / side  # one pixel
        left = shift * uniform(-PADDING, PADDING + 1).floor()
        top = shift * uniform(-PADDING, PADDING + 1).floor()
    else:
        width, height, left, top = _crop(uniform)
    if flip:
        width = torch.where(uniform(0, 1) < 0.5, -width, width)
    images = _resampled(images, width, height, left, top)

    def scale() -> Tensor:
        return uniform(1 - JITTER, 1 + JITTER).view(B, 1, 1, 1)

    images = (images * scale()).clamp(0, 1)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (mean + (images - mean) * scale()).clamp(0, 1)
    if C == 3:
        grey = images.mean(dim=1, keepdim=True)
        images = (grey + (images - grey) * scale()).clamp(0, 1)
    return images


def imix_view(images: Tensor, generator: torch.Generator, *, flip: bool) -> Tensor:
    """One view of each image as the i-Mix reference draws it, float ``(B, C, side, side)`` in [0, 1] to the same.

    The view is a random resized crop of 20 to 100 % of the area, mirrored half the time (if ``flip``). With probability
    0.8 brightness, contrast and saturation (each by a factor of 0.6 to 1.4) and hue (by up to a tenth of the circle)
    change; with probability 0.2 it becomes grey; from 64 pixels a side on it is blurred by a Gaussian of 0.1 to 2
    pixels with probability 0.5. If there are not three channels, only brightness and contrast change. The reference
    applies the four colour changes in random order and resamples crops by PIL; here the order is the one above, and
    resampling is bilinear. ``generator`` is as in `augmented`.
    """
    import torch

    B, C, side, _ = images.shape
    uniform = draws(images, generator)
    width, height, left, top = _crop(uniform)
    mirrored = uniform(0, 1) < 0.5
    if flip:
        width = torch.where(mirrored, -width, width)
    images = _resampled(images, width, height, left, top)

    def where(probability: float, changed: Tensor) -> Tensor:
        return torch.where((uniform(0, 1) < probability).view(B, 1, 1, 1), changed, images)

    def factor() -> Tensor:
        return uniform(1 - JITTER, 1 + JITTER).view(B, 1, 1, 1)

    jittered = (images * factor()).clamp(0, 1)
    mean = _grey(jittered).mean(dim=(1, 2, 3), keepdim=True)
    jittered = (mean + (jittered - mean) * factor()).clamp(0, 1)
    if C == 3:
        grey = _grey(jittered)
        jittered = (grey + (jittered - grey) * factor()).clamp(0, 1)
        jittered = hue_shifted(jittered, uniform(-HUE, HUE))
    images = where(0.8, jittered)
    if C == 3:
        images = where(0.2, _grey(images).expand_as(images))
    if side >= 64:
        images = where(0.5, blurred(images, uniform(*BLUR)))
    return images


def _crop(uniform: Callable[..., Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Width and height of a crop as shares of the image, and the offset of its centre from the image's, in [-1, 1]."""
    area, ratio = uniform(*AREA), uniform(-math.log(RATIO), math.log(RATIO)).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    left, top = (1 - width) * uniform(-1, 1), (1 - height) * uniform(-1, 1)
    return width, height, left, top


def _resampled(images: Tensor, width: Tensor, height: Tensor, left: Tensor, top: Tensor) -> Tensor:
    """The crop of each image at its own size, black beyond the edge; a negative width mirrors."""
    from torch.nn.functional import affine_grid, grid_sample

    # theta maps coordinates of the view to those of the image, both in [-1, 1]: x' = width * x + left
    theta = images.new_zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width, left
    theta[:, 1, 1], theta[:, 1, 2] = height, top
    return grid_sample(images, affine_grid(theta, list(images.shape), align_corners=False), align_corners=False)


def _grey(images: Tensor) -> Tensor:
    """Luma of RGB images (ITU-R 601, as torchvision and PIL), the mean of other channels; ``(B, 1, H, W)``."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    weights = images.new_tensor((0.299, 0.587, 0.114)).view(3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)


def hue_shifted(images: Tensor, shift: Tensor) -> Tensor:
    """RGB images ``(B, 3, H, W)`` in [0, 1] with their hue moved by ``shift`` ``(B,)`` of the circle, through HSV."""
    import torch

    value, index = images.max(dim=1)
    chroma = value - images.min(dim=1).values
    red, green, blue = images.unbind(dim=1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    sixths = torch.stack(((green - blue) / safe % 6, (blue - red) / safe + 2, (red - green) / safe + 4), dim=1)
    hue = sixths.gather(1, index[:, None])[:, 0] + 6 * shift[:, None, None]

    def channel(n: float) -> Tensor:  # of hue in sixths: value less chroma times how far the channel is from it
        sixth = (n + hue) % 6
        return value - chroma * torch.minimum(sixth, 4 - sixth).clamp(0, 1)

    moved = torch.stack((channel(5), channel(3), channel(1)), dim=1)
    return torch.where((chroma > 0)[:, None], moved, images)


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Images under a Gaussian of ``sigma`` ``(B,)`` pixels, cut at 6 pixels, the edge repeated beyond it."""
    import torch
    from torch.nn.functional import conv2d, pad

    B, C, height, width = images.shape
    reach = 6
    offset = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(C, dim=0)[:, None, None]  # (B C, 1, 1, taps)
    rows = pad(images.reshape(1, B * C, height, width), (reach, reach, reach, reach), mode="replicate")
    rows = conv2d(rows, kernel, groups=B * C)
    return conv2d(rows, kernel.mT, groups=B * C).view_as(images)


# --- a user's own images


def load_own(
    path: Path,
    *,
    label: str | None = None,
    on_bad: Literal["error", "skip"] = "error",
    size: int = 32,
    patch: int = 4,
    labels: str = "",
    group: str | None = None,
) -> Data:
    """All images below a folder. With a label, a fifth of the labelled images (or of the groups) become the test part.

    Images without a label are used for pretraining and are not scored.

    Args:
        path: the folder.
        label: ``folder`` if each class has its own folder; with `labels`, the column of the class.
        on_bad: ``skip`` leaves out images that are damaged, counts them and lists them.
        size: side of the square that every image is resized to.
        patch: side of a patch.
        labels: a CSV with a header and the columns ``file`` (below the folder), of the label and of the group; its path
            is relative to the folder too.
        group: the column of `labels` that says which images belong together (patient, place, day).

    Raises:
        UserError: there is no image, an image is damaged, a label has no image, or there is only one class.
    """
    folder, files = own_files(path, IMAGE_SUFFIXES)
    classes, table, absent = own_labels(folder, files, label, labels, group, on_bad)
    unlabelled = _own_listing(folder, files)
    images, sums, bad, source = stored("own_images", unlabelled, _side(size, patch), "skip")
    summary, deep = _summary(folder, files, endings_not_read(path, IMAGE_SUFFIXES, labels))
    division = own_split("images", folder, files, classes, bad, grouped=group is not None, on_bad=on_bad)
    notes = (*division.notes, *absent, *_faint_note(images, [row for row in deep if row not in bad]))
    if division.label is None or division.task is None:
        standardise = _statistics(sums[division.parts.pretrain], size)
        state = {
            "size": size,
            "patch": patch,
            "mean": standardise.mean,
            "std": standardise.std,
            "skipped": division.skipped,
        }
        data = _unsplit(images, division.parts.pretrain, source, state)
        return replace(data, notes=notes, summary=summary, names=named(files))
    listing = replace(
        unlabelled,
        label=division.label,
        train=division.parts.train,
        validation=division.parts.validation,
        test=division.parts.test,
        pretrain=division.parts.pretrain,
        task=division.task,
        group=division.group,
        notes=notes,
    )
    data = load("own_images", listing, size, patch, "v1", "flip", "skip")
    return replace(
        data,
        fingerprint=digest([source, table]),
        summary=summary,
        state={**data.state, "skipped": division.skipped},
        names=named(files),
    )


def _summary(folder: Folder, files: Sequence[str], not_read: Counter[str]) -> tuple[tuple[str, ...], list[int]]:
    """Formats, colours and sizes of a user's images; and which of those that were looked at have 16 bits."""
    from PIL import Image

    deep = []

    def header(file: str) -> tuple[str, float, str] | None:
        try:
            with Image.open(content(folder / file)) as image:
                width, height = image.size
                if image.mode.startswith("I"):
                    deep.append(bisect_left(files, file))
                return f"{image.format} {image.mode}", width * height, f"{width}x{height}"
        except (UserError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None  # reading it reports the fault

    return files_summary("images", files, header, "size in pixels", not_read), deep


DEEP = 100
"""Of so many images with 16 bits the stored values are looked at."""

FAINT = 64
"""If 16-bit images reach less than this after they are scaled to 8 bits, they hold 14 bits or fewer."""


def _faint_note(images: Rows, deep: Sequence[int]) -> tuple[str, ...]:
    """Whether images with 16 bits use so few of their values that little is left of them in 8 bits."""
    if not deep or (top := int(images[np.array(deep[:DEEP])].max())) >= FAINT:
        return ()
    return (
        f"Images with 16 bits are scaled to 8 by their full range, in which those that were looked at reach {top} of "
        "255: they seem to hold fewer bits, of which most are lost. Stretch them to the full range first.",
    )


def load_further(
    path: Path, state: Mapping[str, Any], on_bad: Literal["error", "skip"] = "error"
) -> tuple[Data, list[str]]:
    """Further images read with a training run's state, all as ``pretrain``; keys are file names below the folder.

    Raises:
        UserError: there are no images, or a damaged one is not to be skipped, or no image can be used.
    """
    folder, files = own_files(path, IMAGE_SUFFIXES)
    images, _, bad, source = stored("own_images", _own_listing(folder, files), state["size"], "skip")
    rows = usable_rows("images", len(files), bad, on_bad)
    notes = skipped_note("images", [bad[row] for row in sorted(bad)], len(files))
    return replace(_unsplit(images, rows, source, state), notes=notes), [files[row] for row in rows]


def load_further_labelled(
    path: Path,
    state: Mapping[str, Any],
    *,
    label: str,
    on_bad: Literal["error", "skip"] = "error",
    labels: str = "",
    group: str | None = None,
) -> Marked:
    """Further images with labels: ``label``, ``labels``, ``group`` as in `load_own`, the rest as in `load_further`."""
    further = load_further(path, state, on_bad)
    return marked_files("images", path, IMAGE_SUFFIXES, further, label, labels, group, on_bad)


def _side(size: int, patch: int) -> int:
    if min(size, patch) < 1 or size % patch:
        raise UserError(f"size {size} is not a multiple of patch {patch}: choose another of the two options")
    return size


def _own_listing(folder: Folder, files: list[str]) -> Listing:
    no_rows = np.arange(0)
    label, task = np.full(len(files), -1, dtype=np.int64), Task("classes", "accuracy")
    return Listing(folder, files, len(files), file_pixels(folder, files), label, no_rows, no_rows, task)


def _unsplit(images: Rows, rows: NDArray[np.int64], source: str, state: Mapping[str, Any]) -> Data:
    """Images without labels; the state holds size, patch, mean and std."""
    side, patch = (state["size"],) * 2, (state["patch"],) * 2
    pixels = Pixels(Standardise(tuple(state["mean"]), tuple(state["std"])), 255, flip=True)
    return Data(
        specs=(Grid(3, side, patch),),
        pretrain=Split((images,), rows),
        labelled=None,
        fingerprint=source,
        normalise=pixels.normalise,
        augment=pixels.augment,
        state=state,
    )
