"""UCI HAR (Anguita et al. 2013): six activities of 30 people from a phone at the waist, windows of 2.56 s at 50 Hz."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.cache import allocate, fingerprint, prepared
from dabsmix.data.domain import Data, Domain, Labelled, Split, Task
from dabsmix.data.download import Download
from dabsmix.data.splits import carve
from dabsmix.data.standardise import Standardise
from dabsmix.errors import UserError
from dabsmix.modalities.augmentation import SensorViews
from dabsmix.modalities.sensor import read_numbers, runs
from dabsmix.spec import Grid

CHANNELS = tuple(f"{signal}_{axis}" for signal in ("body_acc", "body_gyro", "total_acc") for axis in "xyz")
CLASSES = ("walking", "walking upstairs", "walking downstairs", "sitting", "standing", "laying")
LENGTH = 128
VERSION = "1"


def _load(folder: Path, protocol: str) -> Data:
    subjects = [folder / part / f"subject_{part}.txt" for part in ("train", "test")]
    has_subjects = all(path.exists() for path in subjects)
    files = [path for part in ("train", "test") for path in _files(folder, part)] + (subjects if has_subjects else [])
    if missing := [str(path.relative_to(folder)) for path in files if not path.exists()]:
        raise UserError(
            f"{folder}: {', '.join(missing)} missing ({DOWNLOADS[0].file} has them); fetch or unpack it again"
        )
    source = fingerprint(folder, files)

    def build(into: Path) -> None:
        for part in ("train", "test"):
            *signals, labels = _files(folder, part)
            label = _column(labels, 1, len(CLASSES)) - 1
            windows = allocate(into / f"{part}.npy", np.float32, (len(label), len(CHANNELS), LENGTH))
            for channel, path in enumerate(signals):
                readings = read_numbers(path, LENGTH)
                if len(readings) != len(label):
                    raise UserError(f"{path}: {len(readings)} windows for {len(label)} labels in {labels.name}")
                windows[:, channel] = readings
            np.save(into / f"{part}_label.npy", label)

    ready = prepared("uci_har", f"{source} {VERSION}", build)
    windows = {part: np.load(ready / f"{part}.npy", mmap_mode="r") for part in ("train", "test")}
    label = {part: np.load(ready / f"{part}_label.npy") for part in ("train", "test")}
    if has_subjects:
        group = {part: _column(path, 1, 30) for part, path in zip(("train", "test"), subjects, strict=True)}
        if any(len(group[part]) != len(label[part]) for part in group):
            raise UserError(f"{folder}: the subject files do not have one row for each label; fetch the archive again")
        train, validation = carve(len(label["train"]), group=group["train"], fraction=0.15)
        note = f"Validation is {len(np.unique(group['train'][validation]))} whole subjects of the training part."
    else:
        group = {part: _bouts(label[part]) for part in label}
        group["test"] += len(label["train"])
        train, validation = _last_block(group["train"], fraction=0.15)
        note = (
            "There are no subject files here: validation is the block of rows at the end of the training part (rows "
            "are in the order of recording, and windows overlap by half), and intervals are over bouts of activity, "
            "not over people."
        )

    def split(part: str, rows: NDArray[np.int64]) -> Split:
        return Split((windows[part],), rows, label[part][rows], group[part][rows])

    standardise = Standardise.of(windows["train"], train)
    return Data(
        specs=(Grid(len(CHANNELS), (LENGTH,), (2,)),),
        pretrain=split("train", train),
        labelled=Labelled(
            Task("classes", "accuracy", CLASSES),
            split("train", train),
            split("train", validation),
            split("test", np.arange(len(label["test"]))),
        ),
        fingerprint=source,
        normalise=standardise,
        augment=SensorViews(standardise, triaxial=(0, 3, 6)).augment,
        notes=(note,),
    )


def _files(folder: Path, part: str) -> list[Path]:
    """One file per channel, then the labels."""
    signals = [folder / part / "Inertial Signals" / f"{channel}_{part}.txt" for channel in CHANNELS]
    return [*signals, folder / part / f"y_{part}.txt"]


def _column(path: Path, low: int, high: int) -> NDArray[np.int64]:
    values = read_numbers(path, 1)[:, 0].astype(np.int64)
    if (wrong := np.flatnonzero((values < low) | (values > high))).size:
        raise UserError(f"{path}, row {wrong[0] + 1}: {values[wrong[0]]} is not within {low} to {high}; fetch it again")
    return values


def _bouts(label: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of the run of equal labels in which each row lies."""
    bounds = runs(label)
    return np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))


def _last_block(bout: NDArray[np.int64], fraction: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows before and from the first bout that begins in the last ``fraction``; no window spans both."""
    rows = np.arange(len(bout))
    begins = np.flatnonzero(np.diff(bout, prepend=-1))
    late = begins[begins >= (1 - fraction) * len(bout)]
    if late.size == 0 or late[0] == 0:
        raise UserError("UCI HAR: too few bouts of activity to carve a validation block from; use more of its rows")
    return rows[: late[0]], rows[late[0] :]


DOWNLOADS = (
    Download(
        (
            "https://archive.ics.uci.edu/static/public/240/human+activity+recognition+using+smartphones.zip",
            "https://archive.ics.uci.edu/ml/machine-learning-databases/00240/UCI%20HAR%20Dataset.zip",
        ),
        "human+activity+recognition+using+smartphones.zip",
        nested=("UCI HAR Dataset.zip",),
    ),
)

DOMAINS = (
    Domain(
        name="uci_har",
        modality="sensor",
        title="UCI HAR, smartphone activity recognition (Anguita et al. 2013)",
        licence="CC BY 4.0",
        folder="UCI HAR Dataset",
        needs=tuple(str(path) for part in ("train", "test") for path in _files(Path(), part)),
        load=_load,
        sizes="7,352 / 2,947",
        downloads=DOWNLOADS,
    ),
)
