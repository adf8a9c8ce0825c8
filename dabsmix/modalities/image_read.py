"""From files to images: decoding, resizing, and the split that DABS draws where upstream leaves it open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dabsmix.errors import UserError
from dabsmix.modalities.files import Folder, content

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["IMAGE_SUFFIXES", "array_pixels", "file_pixels", "four_fifths", "opened", "resized"]

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def file_pixels(
    folder: Folder, files: Sequence[str], boxes: NDArray[np.int64] | None = None
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


def opened(path: Folder) -> Image:
    """The whole image as RGB. One with 16 bits a channel is scaled to 8.

    Raises:
        UserError: it is missing, damaged, larger than PIL's limit, or has values beyond 16 bits, which PIL would clip.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(content(path)) as file:
            image: Image.Image = file
            if image.mode.startswith("I"):
                values = np.asarray(image)
                if values.min() < 0 or values.max() > 0xFFFF:
                    raise UserError(f"{path}: values beyond 16 bits (mode {image.mode}); convert it to 8 or 16 bits")
                image = Image.fromarray(np.round(values / 257).astype(np.uint8))
            elif image.mode == "F":
                raise UserError(f"{path}: values are floats (mode F); convert it to 8 or 16 bits")
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"{path}: the image is missing; the data set's list names it") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: no image, or damaged from its first bytes; fetch it again or remove it") from error
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: too large ({error}); make it smaller before, or leave it out") from error
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
        places = rng.permutation(np.flatnonzero(label == value))
        first.append(places[: int(0.8 * len(places))])
        second.append(places[int(0.8 * len(places)) :])
    return np.concatenate(first), np.concatenate(second)
