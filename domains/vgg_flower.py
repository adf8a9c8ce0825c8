"""Oxford 102 Flowers (Nilsback & Zisserman, 2008): 8,189 photographs of 102 kinds of flower."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.domain import Task
from dabsmix.data.download import Download
from dabsmix.errors import UserError
from dabsmix.modalities.image import Listing, file_pixels, four_fifths, sized_domains

SOURCE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
CITED = "torchvision 0.27.1, datasets/flowers102.py"


def _read(folder: Path, protocol: str) -> Listing:
    """The source's split (1,020 train, 1,020 validation, 6,149 test); under ``dabs`` DABS's, 80 % of each class."""
    label = _column(folder / "imagelabels.mat", "labels") - 1
    files = [f"jpg/image_{number:05d}.jpg" for number in range(1, len(label) + 1)]
    train, validation, test = (_column(folder / "setid.mat", part) - 1 for part in ("trnid", "valid", "tstid"))
    if protocol == "dabs":
        train, test = four_fifths(label)
    return Listing(
        folder=folder,
        files=files,
        tables=("imagelabels.mat", "setid.mat"),
        count=len(files),
        pixels=file_pixels(folder, files),
        label=label,
        train=train,
        validation=validation,
        test=test,
        task=Task("classes", "accuracy", tuple(str(number) for number in range(1, int(label.max()) + 2))),
    )


def _column(path: Path, name: str) -> NDArray[np.int64]:
    from scipy.io import loadmat

    try:
        return np.asarray(loadmat(path)[name], dtype=np.int64).ravel()
    except Exception as error:  # scipy raises many kinds of exception for a damaged file
        raise UserError(f"{path}: no MATLAB file with {name!r} ({error}); fetch it from {SOURCE}") from error


DOMAINS = sized_domains(
    "vgg_flower",
    _read,
    dabs="both sizes",
    title="Oxford 102 Flowers (Nilsback & Zisserman, 2008)",
    licence="not stated",
    folder="flowers-102",
    needs=("imagelabels.mat", "setid.mat", "jpg/*.jpg"),
    sizes="1,020 / 6,149",
    downloads=(
        Download(
            (f"{SOURCE}/102flowers.tgz",), "flowers-102/102flowers.tgz", "md5:52808999861908f626f3c1f4e79d11fa", CITED
        ),
        Download(
            (f"{SOURCE}/imagelabels.mat",), "flowers-102/imagelabels.mat", "md5:e0620be6f572b9609742df49c70aed4d", CITED
        ),
        Download((f"{SOURCE}/setid.mat",), "flowers-102/setid.mat", "md5:a5357ecc9cb78c4bef273ce3793fc85c", CITED),
    ),
)
