"""CIFAR-100 (Krizhevsky, 2009): 60,000 photographs of a hundred kinds of thing, 32x32, 50,000 train, 10,000 test."""

from pathlib import Path

from dabsmix.data.download import Download
from dabsmix.domains.cifar10 import read_batches
from dabsmix.modalities.image import Listing, sized_domains


def _read(folder: Path, protocol: str) -> Listing:
    return read_batches(folder, ["train"], ["test"], "fine_labels", "meta", "fine_label_names")


DOMAINS = sized_domains(
    "cifar100",
    _read,
    title="CIFAR-100, a hundred kinds of thing (Krizhevsky, 2009)",
    licence="not stated",
    folder="cifar-100-python",
    needs=("train", "test", "meta"),
    sizes="50,000 / 10,000",
    downloads=(
        Download(
            ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
            "cifar-100-python.tar.gz",
            "md5:eb9058c3a382ffc7106e4002c42a8d85",
            "torchvision 0.27.1, datasets/cifar.py",
        ),
    ),
)
