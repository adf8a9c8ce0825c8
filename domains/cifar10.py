"""CIFAR-10 (Krizhevsky, 2009): 60,000 photographs of ten kinds of thing, 32x32, 50,000 train and 10,000 test."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.domain import Task
from dabsmix.data.download import Download
from dabsmix.errors import UserError
from dabsmix.modalities.image import Listing, array_pixels, sized_domains

TRAIN, TEST, META = [f"data_batch_{number}" for number in range(1, 6)], "test_batch", "batches.meta"


class _Array:
    """Stands for a pickled numpy array of bytes. No numpy code sees the pickle's state, which could forge pointers."""

    values: NDArray[np.uint8]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        if dtype.code != b"u1" or not isinstance(raw, bytes):
            raise pickle.UnpicklingError(f"an array of {dtype.code!r}; only bytes are expected")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Dtype:
    def __init__(self, code: bytes, *_: int) -> None:
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        pass  # byte order and flags: bytes have none


def _reconstruct(*_: Any) -> _Array:
    return _Array()


class _Unpickler(pickle.Unpickler):
    """Admits arrays of bytes and plain containers, and nothing that could run code."""

    ADMITTED = {  # noqa: RUF012 (a constant)
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for an admitted name."""
        if (module, name) not in self.ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.ADMITTED[module, name]


def read_pickle(path: Path) -> dict[str, Any]:
    """A CIFAR pickle (Python 2): ``data`` as uint8 ``(n, 3072)``, other entries unchanged, strings as bytes.

    Raises:
        UserError: the file is missing or damaged, or holds anything but byte arrays and plain containers.
    """
    try:
        with path.open("rb") as file:
            entry = _Unpickler(file, encoding="bytes").load()
        return {key.decode(): value.values if isinstance(value, _Array) else value for key, value in entry.items()}
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; CIFAR's Python version has it") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{path}: no pickle of CIFAR's ({error}); fetch the archive again") from error


def read_batches(folder: Path, train: list[str], test: list[str], labels: str, meta: str, names: str) -> Listing:
    """The listing of CIFAR-10 or CIFAR-100, from the files of the two splits and the keys of labels and class names."""
    batches = [read_pickle(folder / file) for file in train + test]
    classes = tuple(name.decode() for name in read_pickle(folder / meta)[names])
    for file, batch in zip(train + test, batches, strict=True):
        entry = batch.get(labels)
        if not isinstance(entry, list) or not all(isinstance(label, int) for label in entry):
            raise UserError(f"{folder / file}: no {labels!r}, or not all of them numbers; fetch the archive again")
        data = batch.get("data")
        if not isinstance(data, np.ndarray) or data.shape != (len(entry), 3072):
            raise UserError(f"{folder / file}: not 3072 bytes for each of {len(entry)} labels; fetch the archive again")
        if entry and not 0 <= min(entry) <= max(entry) < len(classes):
            raise UserError(f"{folder / file}: labels {min(entry)} to {max(entry)} for {len(classes)} classes")
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    first = sum(len(batch[labels]) for batch in batches[: len(train)])
    return Listing(
        folder=folder,
        files=[*train, *test],
        tables=[meta],
        count=len(images),
        pixels=array_pixels(lambda: images),
        label=np.concatenate([np.asarray(batch[labels], np.int64) for batch in batches]),
        train=np.arange(first),
        test=np.arange(first, len(images)),
        task=Task("classes", "accuracy", classes),
    )


def _read(folder: Path, protocol: str) -> Listing:
    return read_batches(folder, TRAIN, [TEST], "labels", META, "label_names")


DOMAINS = sized_domains(
    "cifar10",
    _read,
    dabs="both sizes",
    title="CIFAR-10, ten kinds of thing (Krizhevsky, 2009)",
    licence="not stated",
    folder="cifar-10-batches-py",
    needs=(*TRAIN, TEST, META),
    sizes="50,000 / 10,000",
    downloads=(
        Download(
            ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
            "cifar-10-python.tar.gz",
            "md5:c58f30108f718f92721af3b95e74349a",
            "torchvision 0.27.1, datasets/cifar.py",
        ),
    ),
)
