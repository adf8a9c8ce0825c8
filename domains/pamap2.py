"""PAMAP2 (Reiss & Stricker 2012): heart rate and three inertial sensors on nine people in twelve activities, 100 Hz.

``v1`` tests on subjects 5 and 6 and validates on subject 1, on windows that are fixed, do not overlap and lie within
one bout of an activity. ``dabs`` draws as DABS does (Tamkin et al. 2021): windows at random from all that a subject
did of an activity, raw values, without ironing, test on subject 5 alone; its lists are drawn once, from a fixed seed.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.cache import allocate, fingerprint, prepared
from dabsmix.data.domain import Data, Domain, Labelled, Split, Task
from dabsmix.data.download import Download
from dabsmix.data.splits import carve
from dabsmix.data.standardise import Standardise
from dabsmix.errors import UserError
from dabsmix.modalities.sensor import Windows, fill_gaps, read_numbers, runs, window_starts
from dabsmix.spec import Grid
from dabsmix.terminal import progress

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
LENGTH, STRIDE = 320, 32  # 3.2 s; pretraining sees a window every 0.32 s
DABS_TRAIN, DABS_TEST = 50_000, 10_000
VERSION = "1"

Table = NDArray[np.int64]
"""Stretches of readings, one a row: subject, activity, first reading, reading after the last."""


def _load(folder: Path, protocol: str) -> Data:
    files = {subject: folder / f"subject10{subject}.dat" for subject in sorted(TRAIN + VALIDATION + TEST)}
    missing = [path.name for path in files.values() if not path.exists()]
    present = {subject: path for subject, path in files.items() if path.exists()}
    needed = {"train": TRAIN, "validate": VALIDATION, "test": TEST}
    if protocol == "dabs":
        needed = {"train": TRAIN + VALIDATION, "test": DABS_TESTED}
    for name, part in needed.items():
        if not present.keys() & set(part):
            names = " or ".join(files[subject].name for subject in part)
            raise UserError(
                f"{folder}: nothing to {name} on, {names} missing; unpack {DOWNLOAD.file} again: {DOWNLOAD.urls[0]}"
            )
    source = fingerprint(folder, present.values())
    ready = prepared("pamap2", f"{source} {VERSION} {TRAIN}", lambda into: _build(into, present))
    notes = [f"A part of the data set: {', '.join(missing)} were not there."] if missing else []
    return (_dabs if protocol == "dabs" else _v1)(ready, source, notes)


def _v1(ready: Path, source: str, notes: list[str]) -> Data:
    readings, bouts = np.load(ready / "readings.npy", mmap_mode="r"), np.load(ready / "bouts.npy")
    ids = list(ACTIVITIES)

    def split(subjects: tuple[int, ...], stride: int) -> Split:
        starts, group = _windows(bouts, subjects, stride)
        label = np.searchsorted(ids, bouts[group, 1])
        return Split((Windows(readings, starts, LENGTH),), np.arange(len(starts)), label, group)

    train, validation, test = (split(subjects, LENGTH) for subjects in (TRAIN, VALIDATION, TEST))
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        if len(part) == 0:
            raise UserError(f"PAMAP2: no bout of {name} is as long as a window (3.2 s); fetch {DOWNLOAD.file} again")
        if unseen := sorted(set(bouts[part.group, 1]) - set(bouts[train.group, 1])):
            notes.append(f"No train window has {' or '.join(ACTIVITIES[each] for each in unseen)}, {name} has.")
    people = len(np.unique(bouts[test.group, 0]))
    if short := int((bouts[:, 3] - bouts[:, 2] < LENGTH).sum()):
        notes.append(f"{short} of {len(bouts)} bouts are shorter than a window (3.2 s) and are not used.")
    mean, std = (np.load(ready / f"{name}.npy") for name in ("mean", "std"))
    return Data(
        specs=(SPEC,),
        pretrain=split(TRAIN, STRIDE),
        labelled=Labelled(Task("classes", "accuracy", tuple(ACTIVITIES.values())), train, validation, test),
        fingerprint=source,
        normalise=Standardise(tuple(mean.tolist()), tuple(std.tolist())),
        notes=(f"Intervals are over bouts of activity; people in the test: {people}.", *notes),
    )


def _dabs(ready: Path, source: str, notes: list[str]) -> Data:
    readings, bouts = np.load(ready / "readings.npy", mmap_mode="r"), np.load(ready / "bouts.npy")
    ids = [activity for activity in ACTIVITIES if activity != 17]
    # Bouts are stored by subject and activity: all that one subject did of one activity is one stretch. That a window
    # may join two bouts is DABS's.
    firsts = runs(bouts[:, 0], bouts[:, 1])
    stretches = np.column_stack([bouts[firsts[:-1], :3], bouts[firsts[1:] - 1, 3]])
    usable = np.flatnonzero(np.isin(stretches[:, 1], ids) & (stretches[:, 3] - stretches[:, 2] > LENGTH))
    seen = usable[np.isin(stretches[usable, 0], TRAIN + VALIDATION)]
    tested = usable[np.isin(stretches[usable, 0], DABS_TESTED)]
    people = len(np.unique(stretches[seen, 0]))
    if len(tested) == 0 or people < 2:  # validation takes some activities of each out of train
        raise UserError(
            f"PAMAP2: {people} training subjects and {len(tested)} activities to test on are longer than a window "
            f"(3.2 s), 2 and 1 are needed; unpack {DOWNLOAD.file} again"
        )
    trained, validated = carve(len(seen), label=stretches[seen, 1], fraction=0.1)
    rng = np.random.default_rng(0)

    def draw(chosen: NDArray[np.int64], count: int) -> Split:
        group = rng.choice(chosen, count)
        starts = rng.integers(stretches[group, 2], stretches[group, 3] - LENGTH)
        label = np.searchsorted(ids, stretches[group, 1])
        return Split((Windows(readings, starts, LENGTH),), np.arange(count), label, group)

    train = draw(seen[trained], DABS_TRAIN)
    return Data(
        specs=(SPEC,),
        pretrain=train,
        labelled=Labelled(
            Task("classes", "accuracy", tuple(ACTIVITIES[activity] for activity in ids)),
            train,
            draw(seen[validated], DABS_TEST),
            draw(tested, DABS_TEST),
        ),
        fingerprint=source,
        notes=(
            "DABS's terms: raw values, no ironing, test on subject 5 alone, windows overlap and may join two bouts.",
            "DABS draws its windows anew at each epoch; these lists are drawn once.",
            f"Validation is {len(validated)} of the {len(seen)} (subject, activity) pairs of the training subjects.",
            *notes,
        ),
    )


def _windows(bouts: Table, subjects: tuple[int, ...], stride: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First readings of the subjects' windows, and the bout of each."""
    chosen = np.flatnonzero(np.isin(bouts[:, 0], subjects))
    starts = [window_starts(bouts[bout, 2:], LENGTH, stride) for bout in chosen]
    counts = [len(each) for each in starts]
    return np.concatenate([np.zeros(0, np.int64), *starts]), np.repeat(chosen, counts)


def _build(into: Path, files: dict[int, Path]) -> None:
    """``readings.npy`` by subject, activity and time, ``bouts.npy``, and the statistics of v1's training windows."""
    parts, bouts, end = [], [], 0
    for subject, path in progress(files.items(), "preparing PAMAP2", total=len(files)):
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
    starts, _ = _windows(np.array(bouts, np.int64), TRAIN, LENGTH)
    if len(starts) == 0:
        return  # v1 will say so; DABS's terms need no statistics
    statistics = Standardise.of(Windows(stored, starts, LENGTH), np.arange(len(starts)))
    np.save(into / "mean.npy", np.array(statistics.mean, np.float32))
    np.save(into / "std.npy", np.array(statistics.std, np.float32))


SPEC = Grid(CHANNELS, (LENGTH,), (5,))

DOWNLOAD = Download(
    (
        "https://archive.ics.uci.edu/static/public/231/pamap2+physical+activity+monitoring.zip",
        "https://archive.ics.uci.edu/ml/machine-learning-databases/00231/PAMAP2_Dataset.zip",
    ),
    "pamap2+physical+activity+monitoring.zip",
    nested=("PAMAP2_Dataset.zip",),
)

DOMAINS = (
    Domain(
        name="pamap2",
        modality="sensor",
        title="PAMAP2, physical activity monitoring (Reiss & Stricker 2012)",
        licence="CC BY 4.0",
        folder="PAMAP2_Dataset/Protocol",
        load=_load,
        downloads=(DOWNLOAD,),
    ),
)
