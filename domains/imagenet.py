"""ImageNet, ILSVRC 2012 (Russakovsky et al., 2015): 1.28 million photographs of a thousand kinds of thing."""

from pathlib import Path

import numpy as np

from dabsmix.data.domain import Task
from dabsmix.errors import UserError
from dabsmix.modalities.files import codes, walk
from dabsmix.modalities.image import IMAGE_SUFFIXES, Listing, file_pixels, sized_domains


def _read(folder: Path, protocol: str) -> Listing:
    """``train/WNID/*`` and ``validation/WNID/*`` (or ``val/``); the test labels are not public, so that is the test."""
    held_out = "validation" if (folder / "validation").is_dir() else "val"
    parts = [[f"{part}/{file}" for file in walk(folder / part, IMAGE_SUFFIXES)] for part in ("train", held_out)]
    files = parts[0] + parts[1]
    names = [file.split("/")[1] for file in files]
    classes = tuple(sorted(set(names[: len(parts[0])])))
    if unknown := sorted(set(names) - set(classes)):
        raise UserError(f"{folder / held_out / unknown[0]}: no such class in train; unpack the training archives again")
    return Listing(
        folder=folder,
        files=files,
        count=len(files),
        pixels=file_pixels(folder, files),
        label=codes(names),
        train=np.arange(len(parts[0])),
        test=np.arange(len(parts[0]), len(files)),
        task=Task("classes", "accuracy", classes),
    )


DOMAINS = sized_domains(
    "imagenet",
    _read,
    dabs="large size",
    title="ImageNet, a thousand kinds of thing (ILSVRC 2012; Russakovsky et al., 2015)",
    licence="research and education only, by registration",
    folder="imagenet",
    needs=("train/*/*", "validation/*/*|val/*/*"),
    sizes="1,281,167 / 50,000",
    manual="register at https://image-net.org and unpack the ILSVRC 2012 archives to "
    "imagenet/train/WNID/*.JPEG and imagenet/validation/WNID/*.JPEG",
    transfers=("cifar10", "aircraft", "cu_birds", "dtd", "traffic_sign", "vgg_flower"),
)
