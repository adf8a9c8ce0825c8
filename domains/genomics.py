"""Genomics (Ren et al. 2019; DABS 2.0): which bacterium is a piece of DNA of 250 bases from?

``genomics`` has ten bacteria known before 2011, and tests on pieces published after 2016. The two others transfer to
pieces of the same ten (`genomics_transfer_id`) and of sixty others (`genomics_transfer_ood`), found from 2011 to 2016.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from dabsmix.data.cache import fingerprint, prepared
from dabsmix.data.domain import Data, Domain, Labelled, Split, Task
from dabsmix.data.download import Download
from dabsmix.data.splits import carve
from dabsmix.errors import UserError
from dabsmix.modalities.sequence import Alphabet, Sample, store, stored
from dabsmix.modalities.text import as_int64, read_tsv

BASES = Alphabet("ACGT")
LENGTH = 250
PREPARATION = 1

TRAIN, VALIDATION, TEST = "before_2011_in_tr", "between_2011-2016_in_val", "after_2016_in_test"
OTHERS = "between_2011-2016_ood_val"
FILES = {  # of each name: what is divided under `dabs`; under v1 what trains, validates (if anything) and tests
    "genomics": (TRAIN, (TRAIN, VALIDATION, TEST)),
    "genomics_transfer_id": (VALIDATION, (VALIDATION, None, TEST)),
    "genomics_transfer_ood": (OTHERS, (OTHERS, None, None)),
}


def _load(name: str, folder: Path, protocol: str) -> Data:
    divided, parts = FILES[name]
    needed = (divided,) if protocol == "dabs" else tuple(dict.fromkeys(part for part in parts if part))
    files = {part: _file(folder, part) for part in needed}
    source = fingerprint(folder, files.values())
    ready = prepared(name, f"{source} {' '.join(files)} {PREPARATION}", partial(_build, files))
    classes = tuple(np.load(ready / "classes.npy").tolist())
    splits = {part: stored(ready, part, LENGTH) for part in files}
    if protocol == "dabs":
        # pandas.DataFrame.sample(frac=1, random_state=42) draws this permutation
        order = np.random.RandomState(42).permutation(len(splits[divided]))
        tenth = len(order) // 10
        train, test = (
            splits[divided].take(part) for part in (order[: len(order) - tenth], order[len(order) - tenth :])
        )
        validation = test
        note = "DABS's split: shuffled with seed 42, the last tenth is the test. It counts in the order in which "
        note += "TensorFlow Datasets stores the rows, which is not the file's."
    else:
        first, second, third = parts
        assert first is not None
        train = splits[first]
        note = "The test is upstream's."
        if third is None:
            train, test = _carved(train, 0.2)
            note = "Upstream tests on other bacteria, so a seeded fifth of every class is the test here."
        else:
            test = splits[third]
        if second is None:
            train, validation = _carved(train, 0.1)
        else:
            validation = splits[second]
    return Data(
        specs=(BASES.spec(LENGTH),),
        pretrain=train,
        labelled=Labelled(Task("classes", "accuracy", classes), train, validation, test),
        fingerprint=source,
        normalise=as_int64,
        state={"symbols": BASES.symbols, "pad": BASES.pad},
        notes=(note, "Pieces of one genome may lie in several splits; each counts as independent."),
    )


def _carved(split: Split, fraction: float) -> tuple[Split, Split]:
    train_rows, validation_rows = carve(len(split), label=split.label, fraction=fraction)
    return split.take(train_rows), split.take(validation_rows)


def _file(folder: Path, part: str) -> Path:
    for name in (f"{part}.tsv", part):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: {part}.tsv is missing; unpack {DOWNLOAD.file} again: {DOWNLOAD.urls[0]}")


def _build(files: dict[str, Path], into: Path) -> None:
    classes = sorted({label for file in files.values() for _, label, _ in _rows(file)})
    code = {label: place for place, label in enumerate(classes)}
    for part, file in files.items():
        entries = (Sample(text, code[label], place=place) for text, label, place in _rows(file))
        store(into, part, BASES, LENGTH, entries)
    np.save(into / "classes.npy", np.array(classes))


def _rows(file: Path) -> Iterator[tuple[str, str, str]]:
    for number, (text, label) in read_tsv(file, ["seq", "label"]):
        yield text, label, f"{file}:{number}"


DOWNLOAD = Download(
    ("https://storage.googleapis.com/tfds-data/downloads/genomics_ood/genomics_ood.zip",), "genomics_ood.zip"
)

DOMAINS = tuple(
    Domain(
        name=name,
        modality="sequence",
        title=f"{title} (Ren et al. 2019; DABS 2.0)",
        licence="not stated",
        folder="genomics_ood",
        load=partial(_load, name),
        downloads=(DOWNLOAD,),
        sizes=sizes,
        batch_size=batch_size,
        transfers=transfers,
        needs=tuple(f"{part}.tsv|{part}" for part in FILES[name][1] if part),
    )
    for name, title, sizes, batch_size, transfers in (
        (
            *("genomics", "Bacterial DNA, ten bacteria", "1,000,000 / 100,000", 32),
            ("genomics_transfer_id", "genomics_transfer_ood"),
        ),
        ("genomics_transfer_id", "Bacterial DNA, the same ten bacteria", "100,000 / 100,000", 64, ()),
        ("genomics_transfer_ood", "Bacterial DNA, sixty other bacteria", "", 32, ()),
    )
)
