"""Street View House Numbers (Netzer et al., 2011): digits cut from photographs of houses, 32x32."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.domain import Task
from dabsmix.data.download import Download
from dabsmix.errors import UserError
from dabsmix.modalities.image import Listing, array_pixels, sized_domains

SOURCE = "http://ufldl.stanford.edu/housenumbers"
CITED = "torchvision 0.27.1, datasets/svhn.py"
FILES = ("train_32x32.mat", "test_32x32.mat")


def _read(folder: Path, protocol: str) -> Listing:
    """The 531,131 extra training images are left out, as is usual. The digit 0 has label 10 on disk."""
    labels = [_variable(folder / file, "y").ravel().astype(np.int64) % 10 for file in FILES]
    first, count = len(labels[0]), len(labels[0]) + len(labels[1])

    def images() -> NDArray[np.uint8]:
        stored = [_variable(folder / file, "X") for file in FILES]
        for file, label, part in zip(FILES, labels, stored, strict=True):
            if part.shape != (32, 32, 3, len(label)) or part.dtype != np.uint8:
                raise UserError(f"{folder / file}: {part.dtype} images {part.shape} for {len(label)} labels")
        return np.concatenate(stored, axis=3).transpose(3, 0, 1, 2)

    return Listing(
        folder=folder,
        files=FILES,
        count=count,
        pixels=array_pixels(images),
        label=np.concatenate(labels),
        train=np.arange(first),
        test=np.arange(first, count),
        task=Task("classes", "accuracy", tuple("0123456789")),
    )


def _variable(path: Path, name: str) -> NDArray[np.uint8]:
    from scipy.io import loadmat

    try:
        return np.asarray(loadmat(path, variable_names=[name])[name])
    except Exception as error:  # scipy raises many kinds of exception for a damaged file
        raise UserError(f"{path}: no MATLAB file with {name!r} ({error}); fetch it from {SOURCE}") from error


DOMAINS = sized_domains(
    "svhn",
    _read,
    title="Street View House Numbers, cropped digits (Netzer et al., 2011)",
    licence="non-commercial use only",
    folder="svhn",
    needs=FILES,
    sizes="73,257 / 26,032",
    views="crop",
    downloads=(
        Download((f"{SOURCE}/{FILES[0]}",), f"svhn/{FILES[0]}", "md5:e26dedcc434d2e4c54c9b2d4a06d8373", CITED),
        Download((f"{SOURCE}/{FILES[1]}",), f"svhn/{FILES[1]}", "md5:eb5a983be6a315427106f1b164d9cef3", CITED),
    ),
)
