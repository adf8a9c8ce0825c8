"""WM-811K (Wu, Jang & Chen 2015; DABS 2.0): maps of 811,457 semiconductor wafers, which dies failed, in what pattern.

``wafer`` has the wafers without a label, to pretrain on; ``wafer_transfer`` the 172,950 with one. Read from the MATLAB
7.3 file, as DABS does. Every map is resized to 32x32 whatever its form, as there.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.cache import allocate, fingerprint, prepared
from dabsmix.data.domain import Data, Domain, Labelled, Split, Task
from dabsmix.data.download import Download
from dabsmix.data.splits import carve
from dabsmix.errors import UserError
from dabsmix.modalities.files import codes
from dabsmix.spec import Grid
from dabsmix.terminal import progress

if TYPE_CHECKING:
    import h5py
    from torch import Tensor

CLASSES = ("none", "random", "donut", "scratch", "center", "loc", "edge-loc", "edge-ring", "near-full")
UNLABELLED = -1
SIDE = 32
PREPARATION = 1
FILE = "WM811K.mat"


def _load(name: str, folder: Path, protocol: str) -> Data:
    path = folder / FILE
    source = fingerprint(folder, [path])
    ready = prepared("wafer", f"{source} {PREPARATION}", partial(_build, path))
    # a plain array over the memory map: indexing np.memmap itself costs more, at every batch
    maps = np.asarray(np.load(ready / "maps.npy", mmap_mode="r"))
    label, lot = np.load(ready / "label.npy"), np.load(ready / "lot.npy")
    rows = np.flatnonzero((label == UNLABELLED) == (name == "wafer"))
    if len(rows) < 2:
        raise UserError(
            f"{path}: {len(rows)} wafers {'without' if name == 'wafer' else 'with'} a label; fetch it again"
        )
    if protocol == "dabs":
        # pandas.DataFrame.sample(frac=1, random_state=42) draws this permutation
        rows = rows[np.random.RandomState(42).permutation(len(rows))]
        tenth = len(rows) // 10
        train, test = rows[: len(rows) - tenth], rows[len(rows) - tenth :]
        validation = test
        notes = ("DABS's split: shuffled with seed 42, the last tenth is the test, and the one that it watches.",)
    else:
        train, notes = rows, ("Maps of one lot may be both here and among the labelled wafers.",)
        if name == "wafer_transfer":
            other_rows, validation_rows = carve(len(rows), group=lot[rows], fraction=0.2)
            other_rows, test = rows[other_rows], rows[validation_rows]
            train_rows, validation_rows = carve(len(other_rows), group=lot[other_rows])
            train, validation = other_rows[train_rows], other_rows[validation_rows]
            notes = ("The splits are ours, of whole lots, seeded: 72 % train, 8 % validation, 20 % test.",)

    def split(rows: NDArray[np.int64]) -> Split:
        return Split((maps,), rows, label[rows], lot[rows])

    labelled = None
    if name == "wafer_transfer":
        metric = "f1_weighted/128" if protocol == "dabs" else "f1_weighted"
        labelled = Labelled(Task("classes", metric, CLASSES), split(train), split(validation), split(test))
    return Data(
        specs=(Grid(3, (SIDE, SIDE), (4, 4)),),
        pretrain=Split((maps,), train) if labelled is None else labelled.train,
        labelled=labelled,
        fingerprint=source,
        normalise=_from_zero if protocol == "dabs" else _around_zero,
        notes=notes,
    )


def _from_zero(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Three equal channels in [0, 1], as in DABS."""
    (x,) = inputs
    return (x.float().div(255)[:, None].expand(-1, 3, -1, -1),)


def _around_zero(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Three equal channels in [-1, 1], by constants, so that wafers with and without a label are read the same way."""
    return tuple(2 * x - 1 for x in _from_zero(inputs))


def _build(path: Path, into: Path) -> None:
    """``maps.npy`` uint8 ``(n, 32, 32)``, ``label.npy`` and ``lot.npy`` int64 ``(n,)``."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            fields = file["data"]
            types, wafers = fields["failureType"][()].ravel(), fields["waferMap"][()].ravel()
            lots = fields["lotName"][()].ravel() if "lotName" in fields else np.zeros(0)
            if len(types) != len(wafers):
                raise UserError(f"{path}: {len(wafers)} maps and {len(types)} labels; fetch it again")
            maps = allocate(into / "maps.npy", np.uint8, (len(wafers), SIDE, SIDE))
            label = np.full(len(wafers), UNLABELLED, np.int64)
            for row, wafer in progress("reading WM-811K", enumerate(_values(file, wafers)), len(wafers)):
                maps[row] = _resized(path, row, wafer)
            for row, name in enumerate(_values(file, types)):
                if isinstance(name, str) and name.lower() != "unlabeled":
                    label[row] = _code(path, row, name)
            names = [str(name) for name in _values(file, lots)] if len(lots) else [str(row) for row in range(len(maps))]
    except UserError:
        raise
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged, or not the MATLAB 7.3 file of WM-811K ({error}); fetch it again") from error
    np.save(into / "label.npy", label)
    np.save(into / "lot.npy", codes(names))


def _values(file: h5py.File, references: NDArray[Any]) -> Iterator[Any]:
    """The value of each reference: text, an array in MATLAB's orientation, or None if it is empty."""
    for reference in references:
        node = file[reference]
        while node.attrs.get("MATLAB_class") == b"cell" and not node.attrs.get("MATLAB_empty", 0):
            node = file[node[()].ravel()[0]]
        if node.attrs.get("MATLAB_empty", 0):
            yield None
        elif node.attrs.get("MATLAB_class") == b"char":
            yield "".join(map(chr, node[()].ravel()))
        else:
            yield node[()].T


def _resized(path: Path, row: int, wafer: Any) -> NDArray[np.uint8]:
    """0, 1 and 2 (no die, passed, failed) as 0, 127 and 255, resized with PIL's antialiased bilinear filter."""
    from PIL import Image

    if not isinstance(wafer, np.ndarray) or wafer.ndim != 2 or not np.isin(wafer, (0, 1, 2)).all():
        raise UserError(f"{path}: map {row + 1} is not a grid of 0, 1 and 2; fetch it again")
    image = Image.fromarray((wafer * 127.5).astype(np.uint8))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def _code(path: Path, row: int, name: str) -> int:
    if name.lower() not in CLASSES:
        raise UserError(f"{path}: wafer {row + 1} has the label {name!r}, none of {', '.join(CLASSES)}; fetch it again")
    return CLASSES.index(name.lower())


DOWNLOADS = (Download(("http://mirlab.org/dataSet/public/MIR-WM811K.zip",), "MIR-WM811K.zip"),)

DOMAINS = tuple(
    Domain(
        name=name,
        modality="image",
        title=f"WM-811K, semiconductor wafers {title} (Wu et al. 2015; DABS 2.0)",
        licence="not stated",
        folder="MIR-WM811K/MATLAB",
        load=partial(_load, name),
        downloads=DOWNLOADS,
        sizes=sizes,
        batch_size=128,
        transfers=transfers,
        needs=(FILE,),
    )
    for name, title, sizes, transfers in (
        ("wafer", "without a label", "", ("wafer_transfer",)),
        ("wafer_transfer", "and the pattern of their faults", "", ()),
    )
)
