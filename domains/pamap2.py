"""PAMAP2 (Reiss & Stricker 2012): heart rate and three inertial sensors on nine people in twelve activities, 100 Hz.

``v1`` tests on subjects 5 and 6 and validates on subject 1, on windows that are fixed, do not overlap and lie within
one bout of an activity. ``dabs`` follows DABS (Tamkin et al. 2021): windows at random times of a subject's activity,
raw values, no ironing, and the test on subject 5 alone; its windows are drawn once, from a fixed seed.
``pamap2_spectrogram`` is the log power spectrogram of windows of ten seconds, the form of DABS's first version.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.cache import allocate, fingerprint, prepared
from dabsmix.data.domain import Data, Domain, Labelled, Split, Task
from dabsmix.data.download import Download
from dabsmix.data.standardise import Standardise
from dabsmix.errors import UserError
from dabsmix.modalities.augmentation import SensorViews
from dabsmix.modalities.sensor import Windows, fill_gaps, read_numbers, runs, window_starts
from dabsmix.spec import Grid
from dabsmix.terminal import progress

if TYPE_CHECKING:
    from torch import Tensor

ACTIVITIES = {
    1: "lying",
    2: "sitting",
    3: "standing",
    4: "walking",
    5: "running",
    6: "cycling",
    7: "Nordic walking",
    12: "ascending stairs",
    13: "descending stairs",
    16: "vacuum cleaning",
    17: "ironing",
    24: "rope jumping",
}
OTHER = (0, 9, 10, 11, 18, 19, 20)  # between activities, and those of the optional part
TRAIN = (2, 3, 4, 7, 8, 9)
# Of these seven, 1, 2 and 8 did all twelve activities (PerformedActivitiesSummary.pdf in the archive): one of them
# validates, and every activity stays in train with at least two people.
VALIDATION = (1,)
TEST = (5, 6)
DABS_TESTED = (5,)
COLUMNS = 54  # seconds, activity, heart rate, and 17 of each of hand, chest and ankle
CHANNELS = COLUMNS - 2
# of each place: temperature, two accelerometers, gyroscope and magnetometer with three axes each, orientation
TRIAXIAL = tuple(1 + 17 * place + sensor for place in range(3) for sensor in (1, 4, 7, 10))
RATE = 100  # readings per second
LENGTH, STRIDE = 320, 32  # 3.2 s; pretraining sees a window every 0.32 s
LENGTHS = {"pamap2": LENGTH, "pamap2_spectrogram": 1000}
DABS_TRAIN, DABS_TEST = 50_000, 10_000
VERSION = "1"

Table = NDArray[np.int64]
"""Stretches of readings, one per row: subject, activity, first reading, reading after the last."""


def _load(name: str, folder: Path, protocol: str) -> Data:
    files = {subject: folder / f"subject10{subject}.dat" for subject in sorted(TRAIN + VALIDATION + TEST)}
    missing = [path.name for path in files.values() if not path.exists()]
    present = {subject: path for subject, path in files.items() if path.exists()}
    needed = {"train": TRAIN, "validate": VALIDATION, "test": TEST}
    if protocol == "dabs":
        needed = {"train": TRAIN + VALIDATION, "test": DABS_TESTED}
    for purpose, part in needed.items():
        if not present.keys() & set(part):
            names = " or ".join(files[subject].name for subject in part)
            raise UserError(
                f"{folder}: nothing to {purpose} on, {names} missing; unpack {DOWNLOAD.file} again: {DOWNLOAD.urls[0]}"
            )
    source = fingerprint(folder, present.values())
    ready = prepared("pamap2", f"{source} {VERSION} {TRAIN}", lambda into: _build(into, present))
    notes = [f"A part of the data set: {', '.join(missing)} were not there."] if missing else []
    length = LENGTHS[name]
    data = (_dabs if protocol == "dabs" else _v1)(ready, source, length, notes)
    return data if name == "pamap2" else replace(data, specs=(IMAGE,), normalise=_spectrogram, augment=None)


def _v1(ready: Path, source: str, length: int, notes: list[str]) -> Data:
    readings, bouts = np.load(ready / "readings.npy", mmap_mode="r"), np.load(ready / "bouts.npy")
    ids = list(ACTIVITIES)

    def split(subjects: tuple[int, ...], stride: int) -> Split:
        starts, group = _windows(bouts, subjects, length, stride)
        label = np.searchsorted(ids, bouts[group, 1])
        return Split((Windows(readings, starts, length),), np.arange(len(starts)), label, group)

    train, validation, test = (split(subjects, length) for subjects in (TRAIN, VALIDATION, TEST))
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        if len(part) == 0:
            raise UserError(
                f"PAMAP2: no bout of {name} is as long as a window ({length / RATE:g} s); fetch {DOWNLOAD.file} again"
            )
        if unseen := sorted(set(bouts[part.group, 1]) - set(bouts[train.group, 1])):
            notes.append(f"No train window has {' or '.join(ACTIVITIES[activity] for activity in unseen)}, {name} has.")
    people = len(np.unique(bouts[test.group, 0]))
    if short := int((bouts[:, 3] - bouts[:, 2] < length).sum()):
        notes.append(f"{short} of {len(bouts)} bouts are shorter than a window ({length / RATE:g} s) and are not used.")
    mean, std = (np.load(ready / f"{name}.npy") for name in ("mean", "std"))
    standardise = Standardise(tuple(mean.tolist()), tuple(std.tolist()))
    return Data(
        specs=(SPEC,),
        pretrain=split(TRAIN, STRIDE),
        labelled=Labelled(Task("classes", "accuracy", tuple(ACTIVITIES.values())), train, validation, test),
        fingerprint=source,
        normalise=standardise,
        augment=SensorViews(standardise, TRIAXIAL).augment,
        notes=(f"Intervals are over bouts of activity, for these {people} people in the test, not for others.", *notes),
    )


def _dabs(ready: Path, source: str, length: int, notes: list[str]) -> Data:
    readings, bouts = np.load(ready / "readings.npy", mmap_mode="r"), np.load(ready / "bouts.npy")
    ids = [activity for activity in ACTIVITIES if activity != 17]
    # Bouts are stored by subject and activity, so all readings of one subject in one activity are one stretch. As in
    # DABS, a window may join two bouts.
    firsts = runs(bouts[:, 0], bouts[:, 1])
    stretches = np.column_stack([bouts[firsts[:-1], :3], bouts[firsts[1:] - 1, 3]])
    usable = np.flatnonzero(np.isin(stretches[:, 1], ids) & (stretches[:, 3] - stretches[:, 2] > length))
    trainable = usable[np.isin(stretches[usable, 0], TRAIN + VALIDATION)]
    tested = usable[np.isin(stretches[usable, 0], DABS_TESTED)]
    people = len(np.unique(stretches[trainable, 0]))
    if len(tested) == 0 or people == 0:
        raise UserError(
            f"PAMAP2: {people} training subjects and {len(tested)} activities to test on are longer than a window "
            f"({length / RATE:g} s), 1 of each is needed; unpack {DOWNLOAD.file} again"
        )
    rng = np.random.default_rng(0)

    def draw(chosen: NDArray[np.int64], count: int) -> Split:
        group = rng.choice(chosen, count)
        starts = rng.integers(stretches[group, 2], stretches[group, 3] - length)
        label = np.searchsorted(ids, stretches[group, 1])
        return Split((Windows(readings, starts, length),), np.arange(count), label, group)

    train, test = draw(trainable, DABS_TRAIN), draw(tested, DABS_TEST)
    return Data(
        specs=(SPEC,),
        pretrain=train,
        labelled=Labelled(
            Task("classes", "accuracy", tuple(ACTIVITIES[activity] for activity in ids)),
            train,
            test,
            test,
        ),
        fingerprint=source,
        notes=(
            "DABS's terms: raw values, no ironing, test on subject 5 alone, windows overlap and may join two bouts.",
            "DABS draws its windows anew at each epoch; these lists are drawn once.",
            f"Trained on all {len(trainable)} (subject, activity) pairs; DABS tests on the subject that it watches.",
            *notes,
        ),
    )


def _windows(
    bouts: Table, subjects: tuple[int, ...], length: int, stride: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First readings of the subjects' windows, and the bout of each."""
    chosen = np.flatnonzero(np.isin(bouts[:, 0], subjects))
    starts = [window_starts(bouts[bout, 2:], length, stride) for bout in chosen]
    counts = [len(bout_starts) for bout_starts in starts]
    return np.concatenate([np.zeros(0, np.int64), *starts]), np.repeat(chosen, counts)


def _build(into: Path, files: dict[int, Path]) -> None:
    """``readings.npy`` by subject, activity and time, ``bouts.npy``, and the statistics of v1's training windows."""
    parts, bouts, end = [], [], 0
    for subject, path in progress("preparing PAMAP2", files.items()):
        table = read_numbers(path, COLUMNS, gaps=True)
        seconds, activity = table[:, 0], table[:, 1]
        if (wrong := np.flatnonzero(np.isnan(seconds) | ~np.isin(activity, [*ACTIVITIES, *OTHER]))).size:
            row = wrong[0]
            raise UserError(f"{path}, row {row + 1}: time {seconds[row]:g}, activity {activity[row]:g}; fetch it again")
        readings = fill_gaps(table[:, 2:], str(path))
        bounds = runs(activity)
        order = np.argsort(activity[bounds[:-1]], kind="stable")
        for first, last in zip(bounds[order], bounds[order + 1], strict=True):
            if activity[first] in ACTIVITIES:
                parts.append(readings[first:last].astype(np.float32))
                bouts.append((subject, int(activity[first]), end, end + last - first))
                end += last - first
    if end < LENGTH:
        names = ", ".join(path.name for path in files.values())
        raise UserError(f"{names}: {end} readings of the twelve activities, a window has {LENGTH}; fetch them again")
    stored = allocate(into / "readings.npy", np.float32, (end, CHANNELS))
    np.concatenate(parts, out=stored)
    np.save(into / "bouts.npy", np.array(bouts, np.int64))
    starts, _ = _windows(np.array(bouts, np.int64), TRAIN, LENGTH, LENGTH)
    if len(starts) == 0:
        return  # v1 reports it; DABS needs no statistics
    statistics = Standardise.of(Windows(stored, starts, LENGTH), np.arange(len(starts)))
    np.save(into / "mean.npy", np.array(statistics.mean, np.float32))
    np.save(into / "std.npy", np.array(statistics.std, np.float32))


def _spectrogram(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Log power of windows ``(B, 52, 1000)``, standardised with DABS's constants: ``(B, 52, 32, 32)``."""
    import torch
    from torchaudio.functional import spectrogram

    (x,) = inputs
    window = torch.hann_window(63, device=x.device)
    power = spectrogram(x, 0, window, n_fft=63, hop_length=32, win_length=63, power=2.0, normalized=False)
    mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in (MEAN, STD))
    return (((power + 1e-6).log() - mean) / std,)


SPEC = Grid(CHANNELS, (LENGTH,), (5,))
IMAGE = Grid(CHANNELS, (32, 32), (4, 4))

# Of the log spectrogram, by channel, as DABS states them (alextamkin/dabs @226a951, src/datasets/sensor/pamap2.py).
MEAN = (
    -10.12912214, -11.29261799, 0.67638378, 0.81824769, 0.75297834, -0.35109685, 0.04085698, -0.38876906, -2.48238567,
    -3.41956712, -3.3872513, 1.36282383, 1.55308991, 1.56087922, -10.76128503, -10.35194776, -10.44513743, -10.37285293,
    -11.23690636, -0.20944169, 0.56012058, 0.807821, -1.45611818, -0.35643357, -0.25041446, -2.76965766, -3.24698013,
    -3.85922755, 1.1442057, 1.46386916, 1.51837609, -11.07261072, -11.14997687, -11.13951721, -11.12178224,
    -11.29449096, 1.94817929, 2.33591061, 1.97720141, 0.91686234, 1.53700002, 0.88543364, -1.64330728, -2.63160618,
    -2.51725697, 1.42671659, 1.6363767, 1.65463002, -10.68715032, -10.14333333, -10.40543887, -10.2161264,
)  # fmt: skip
STD = (
    7.52822918, 6.7065013, 3.95108152, 3.95592566, 3.42002526, 4.64231584, 4.44694546, 4.16510321, 3.71419447,
    3.21044202, 3.59042373, 3.39598192, 3.24402304, 3.26736989, 4.84615018, 4.85592083, 4.75026502, 5.0713948,
    6.76148597, 3.16121415, 4.10307909, 3.42466748, 3.91835069, 4.63133192, 4.12213119, 3.21565752, 3.00317751,
    3.04138402, 2.96988045, 3.30489875, 3.05622836, 4.66155384, 4.38560602, 4.45703007, 4.35220719, 6.72132295,
    4.49144193, 4.40899389, 3.80700876, 5.15785846, 4.82611255, 4.45424858, 3.65129909, 3.15463525, 3.965269,
    3.46149886, 3.22442971, 3.17674841, 4.71934308, 5.41595717, 4.97243856, 5.33158206,
)  # fmt: skip

DOWNLOAD = Download(
    (
        "https://archive.ics.uci.edu/static/public/231/pamap2+physical+activity+monitoring.zip",
        "https://archive.ics.uci.edu/ml/machine-learning-databases/00231/PAMAP2_Dataset.zip",
    ),
    "pamap2+physical+activity+monitoring.zip",
    nested=("PAMAP2_Dataset.zip",),
)

DOMAINS = tuple(
    Domain(
        name=name,
        modality="sensor",
        title=f"PAMAP2, physical activity monitoring{form} (Reiss & Stricker 2012)",
        licence="CC BY 4.0",
        folder="PAMAP2_Dataset/Protocol",
        needs=tuple("|".join(f"subject10{subject}.dat" for subject in part) for part in (TRAIN, VALIDATION, TEST)),
        load=partial(_load, name),
        downloads=(DOWNLOAD,),
        revisions=revisions,
    )
    for name, form, revisions in (
        ("pamap2", "", {"dabs": 1}),  # since then, training takes all pairs under `dabs`
        ("pamap2_spectrogram", ", spectrograms of ten seconds", dict[str, int]()),
    )
)
