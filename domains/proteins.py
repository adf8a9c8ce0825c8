"""Proteins (DABS 2.0, Tamkin et al. 2022, from TAPE, Rao et al. 2019): Pfam to pretrain on, five tasks to transfer to.

The files are TAPE's JSON. Under ``dabs`` the splits are those of DABS, which never reads TAPE's test files and reports
scores on TAPE's validation part. Otherwise the test is TAPE's own, if it has one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dabsmix.data.cache import fingerprint, prepared
from dabsmix.data.domain import Data, Domain, Labelled, Split, Task
from dabsmix.data.download import Download
from dabsmix.data.splits import carve
from dabsmix.errors import UserError
from dabsmix.modalities.sequence import Alphabet, Sample, records, samples, store, stored
from dabsmix.modalities.text import as_int64

RESIDUES = Alphabet("XARNDCQEGHILKMFPSTWYVUOBZJ", pad=0)
LENGTH = 128
NOTE = (
    "Only the first 128 residues are read. X, the unknown residue, is also the padding, as in DABS; TAPE's own scores "
    "are of whole sequences and are not comparable."
)
PREPARATION = 1

URL = "http://s3.amazonaws.com/songlabdata/proteindata/data_raw_pytorch"


def _download(folder: str) -> tuple[Download, ...]:
    return (Download((f"{URL}/{folder}.tar.gz",), f"{folder}.tar.gz"),)


# --- Pfam: which clan?

TRANSFER = 200_000
FOUND, TRAINED = "pfam_valid.json", "pfam_train.json"


def _pfam(part: str, folder: Path, protocol: str) -> Data:
    """The tail of the shuffled validation file is the data of `pfam_transfer`; the rest is the test of `pfam`."""
    files = [folder / TRAINED, folder / FOUND]
    source = fingerprint(folder, files)
    ready = prepared("pfam", f"{source} {PREPARATION}", partial(_build_pfam, files))
    train, validation = stored(ready, "train", LENGTH), stored(ready, "test", LENGTH)
    clans = np.load(ready / "clans.npy")
    # pandas.DataFrame.sample(frac=1, random_state=42) draws this permutation
    order = np.random.RandomState(42).permutation(len(validation))
    tail_size = min(TRANSFER, len(validation) // 8)
    test = validation.take(np.sort(order[: len(validation) - tail_size]))
    notes = ["TAPE's split is random: train and test share families."]
    if tail_size < TRANSFER:
        notes.append(f"The validation file was cut: its last eighth ({tail_size} sequences) is what pfam_transfer has.")
    if part == "pfam_transfer":
        tail = order[len(validation) - tail_size :]
        tenth = len(tail) // 10
        train, test = validation.take(tail[: len(tail) - tenth]), validation.take(tail[len(tail) - tenth :])
    return _data(
        part, protocol, source, Task("classes", "accuracy", tuple(f"clan {clan}" for clan in clans)), train, test, notes
    )


def _build_pfam(files: list[Path], into: Path) -> None:
    clans = np.array(sorted({_clan(record, number, files[0]) for number, record in records(files[0])}))
    place = {int(clan): code for code, clan in enumerate(clans)}

    def read(file: Path) -> Iterator[Sample]:
        for number, record in records(file):
            clan = _clan(record, number, file)
            if clan not in place:
                raise UserError(f"{file}, record {number}: no sequence of {files[0].name} has its clan, {clan}")
            yield Sample(str(record.get("primary", "")), place[clan], place=f"{file}, record {number}")

    for part, file in zip(("train", "test"), files, strict=True):
        store(into, part, RESIDUES, LENGTH, read(file))
    np.save(into / "clans.npy", clans)


def _clan(record: dict[str, Any], number: int, file: Path) -> int:
    clan = record.get("clan")
    if not isinstance(clan, int):
        raise UserError(f"{file}, record {number}: clan {clan!r} is not a number; fetch the file again")
    return clan


# --- the other tasks


@dataclass(frozen=True)
class TapeTask:
    """One of TAPE's tasks.

    Attributes:
        folder: TAPE's name of it, which its files' names begin with.
        test: the rest of the name of TAPE's test file.
        read: a record to a sample.
        task: what is predicted; with ``classes`` its classes are numbers from 0.
        title: one line.
        sizes: of train and test, where TAPE's repository states them.
        batch_size: as DABS trains.
    """

    folder: str
    test: str
    read: Callable[[dict[str, Any]], Sample]
    task: Task
    title: str
    sizes: str = ""
    batch_size: int = 128


def _fold(record: dict[str, Any]) -> Sample:
    return Sample(record["primary"], int(record["fold_label"]), str(record["superfamily_label"]))


def _structure(record: dict[str, Any]) -> Sample:
    return Sample(record["primary"], [int(code) for code in record["ss3"]])


def _stability(record: dict[str, Any]) -> Sample:
    return Sample(record["primary"], float(record["stability_score"][0]), str(record.get("parent", "")))


def _fluorescence(record: dict[str, Any]) -> Sample:
    return Sample(record["primary"], float(record["log_fluorescence"][0]))


STRUCTURES = ("helix", "strand", "coil")
FOLDS = tuple(f"fold {code}" for code in range(1195))

TASKS = {
    "scop": TapeTask(
        *("remote_homology", "test_fold_holdout", _fold, Task("classes", "accuracy", FOLDS)),
        "SCOP, remote homology: which of 1,195 folds?",
        "12,312 / 718",
    ),
    "secondary_struct": TapeTask(
        *("secondary_structure", "cb513", _structure, Task("tokens", "accuracy", STRUCTURES)),
        "Secondary structure of every residue: helix, strand or coil?",
    ),
    "stability": TapeTask(
        *("stability", "test", _stability, Task("regression", "spearman")),
        "Stability of designed proteins",
        "53,614 / 12,851",
    ),
    "fluorescence": TapeTask(
        *("fluorescence", "test", _fluorescence, Task("regression", "spearman")),
        "Fluorescence of mutants of one protein, GFP",
        batch_size=512,
    ),
}


def _tape(name: str, folder: Path, protocol: str) -> Data:
    tape = TASKS[name]
    parts = {"train": "train", "validation": "valid"} | ({} if protocol == "dabs" else {"test": tape.test})
    files = {part: folder / f"{tape.folder}_{end}.json" for part, end in parts.items()}
    source = fingerprint(folder, files.values())
    ready = prepared(name, f"{source} {PREPARATION}", partial(_build, tape, files))
    splits = {part: stored(ready, part, LENGTH) for part in files}
    for part, split in splits.items():
        assert split.label is not None
        if tape.task.kind != "regression" and split.label.max() >= len(tape.task.classes):
            raise UserError(f"{files[part]}: class {split.label.max()}, the last is {len(tape.task.classes) - 1}")
    notes = []
    if protocol != "dabs":
        # no superfamily (scop) or parent (stability) of TAPE's test file is in train
        train, validation = (replace(splits[part], group=None) for part in ("train", "validation"))
        if splits["test"].group is not None:
            groups = {"scop": "superfamilies", "stability": "parents"}[name]
            notes.append(f"Intervals are over the test's {groups}.")
        return _whole(source, Labelled(tape.task, train, validation, splits["test"]), notes)
    train, watched = (replace(splits[part], group=None) for part in ("train", "validation"))
    order = np.random.RandomState(42).permutation(len(watched))
    watched = watched.take(order)  # DABS stores it shuffled, and its metrics are means over batches
    task = tape.task
    if task.kind == "regression":
        task = replace(task, metric=f"spearman/{tape.batch_size}")
    if task.kind == "tokens":
        assert train.label is not None
        task = replace(task, classes=(*STRUCTURES, "padding"))
        train = replace(train, label=np.where(train.label < 0, len(STRUCTURES), train.label))
        notes.append("As in DABS, the head learns a fourth class, the padding; a residue taken for it is a miss.")
    notes.append("DABS tests on TAPE's validation part, the one that it watches.")
    return _whole(source, Labelled(task, train, watched, watched), notes)


def _build(tape: TapeTask, files: dict[str, Path], into: Path) -> None:
    for part, file in files.items():
        store(into, part, RESIDUES, LENGTH, samples(file, tape.read))


# --- pieces


def _data(name: str, protocol: str, source: str, task: Task, train: Split, test: Split, notes: list[str]) -> Data:
    """A task whose source has two parts. Validation is carved from train; under ``dabs`` it is the test."""
    if not len(test):
        raise UserError(f"{name}: no sequence is left for the test; is pfam_valid.json complete?")
    if protocol == "dabs":
        return _whole(source, Labelled(task, train, test, test), [*notes, "DABS tests on the split that it watches."])
    train_rows, validation_rows = carve(len(train))
    labelled = Labelled(task, train.take(train_rows), train.take(validation_rows), test)
    return _whole(source, labelled, [*notes, "Validation is a seeded tenth of the training part."])


def _whole(source: str, labelled: Labelled, notes: list[str]) -> Data:
    return Data(
        specs=(RESIDUES.spec(LENGTH),),
        pretrain=labelled.train,
        labelled=labelled,
        fingerprint=source,
        normalise=as_int64,
        state={"symbols": RESIDUES.symbols, "pad": RESIDUES.pad},
        notes=(NOTE, *notes),
    )


DOMAINS = (
    Domain(
        name="pfam",
        modality="sequence",
        title="Pfam, protein families: which clan? (TAPE, Rao et al. 2019; DABS 2.0)",
        licence="not stated",
        folder="pfam",
        load=partial(_pfam, "pfam"),
        downloads=_download("pfam"),
        needs=(TRAINED, FOUND),
        batch_size=128,
        transfers=("pfam_transfer", *TASKS),
    ),
    Domain(
        name="pfam_transfer",
        modality="sequence",
        title="Pfam, 200,000 further sequences: which clan? (TAPE, Rao et al. 2019; DABS 2.0)",
        licence="not stated",
        folder="pfam",
        load=partial(_pfam, "pfam_transfer"),
        downloads=_download("pfam"),
        needs=(TRAINED, FOUND),
        sizes="180,000 / 20,000",
        batch_size=128,
    ),
    *(
        Domain(
            name=name,
            modality="sequence",
            title=f"{tape.title} (TAPE, Rao et al. 2019; DABS 2.0)",
            licence="not stated",
            folder=tape.folder,
            load=partial(_tape, name),
            downloads=_download(tape.folder),
            needs=tuple(f"{tape.folder}_{end}.json" for end in ("train", "valid", tape.test)),
            sizes=tape.sizes,
            batch_size=tape.batch_size,
        )
        for name, tape in TASKS.items()
    ),
)
