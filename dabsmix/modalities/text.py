"""Text: samples to rows of token ids, tokenised once into a memory map; GLUE-like tasks; a user's own texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dabsmix.domain import Data, Split, Task
from dabsmix.download import Download
from dabsmix.errors import UserError
from dabsmix.modalities.tokenizer import Sample, Tokenizer, tokenizer, train_tokenizer
from dabsmix.prepare import allocate, fingerprint, prepared, progress
from dabsmix.spec import Tokens
from dabsmix.splits import carve

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BERT",
    "BERT_FILE",
    "HUGGING_FACE",
    "LENGTH",
    "XLM_ROBERTA",
    "XLM_ROBERTA_FILE",
    "Sample",
    "Texts",
    "Tokenizer",
    "as_int64",
    "corpus",
    "identity",
    "labelled",
    "read_lines",
    "read_tsv",
    "tokenizer",
    "train_tokenizer",
]

LENGTH = 128
"""Tokens a sample, of DABS (Tamkin et al. 2021) and so of every text domain here: an encoder's positions are fixed."""

BERT = "bert-base-uncased"
BERT_FILE = Download(
    (
        "https://huggingface.co/google-bert/bert-base-uncased/resolve/86b5e0934494bd15c9632b12f734a8a67f723594/vocab.txt",
    ),
    f"{BERT}/vocab.txt",
    "sha256:07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    "mantzaris/KeemenaSubwords.jl, tools/build_public_model_artifact.jl",
)
XLM_ROBERTA = "xlm-roberta-base"
XLM_ROBERTA_FILE = Download(
    ("https://huggingface.co/FacebookAI/xlm-roberta-base/resolve/main/tokenizer.json",), f"{XLM_ROBERTA}/tokenizer.json"
)
HUGGING_FACE = "huggingface/datasets 040102f, datasets/{}/dataset_infos.json"
"""Where the checksums of the text sets are published, the set's name to be filled in."""

BATCH = 4096
"""Samples that are tokenised at once: bounds the memory, changes nothing else."""

# Part of every cache key: raise it when the same texts would give other rows.
PREPARATION = 1


# --- reading


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and the lines of a UTF-8 file, without byte order mark and line end.

    Raises:
        UserError: the file is missing, cannot be read, or a line of it is not UTF-8.
    """
    try:
        # only "\\n" ends a line: upstream's files hold other characters that Python would split at
        with file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise UserError(f"{file}:{number}: not UTF-8 ({error.reason}); convert the file") from error
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; fetch the data set again or put the file there") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error


def read_tsv(file: Path, columns: Sequence[str], header: Sequence[str] = ()) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and the wanted cells of a tab-separated file without quoting, as GLUE's are.

    Args:
        file: its first line names the columns unless ``header`` does.
        columns: which cells, in which order.
        header: the columns of a file that does not name them.

    Raises:
        UserError: the file lacks a column, a row has another number of cells, or see `read_lines`.
    """
    names = list(header)
    for number, line in read_lines(file):
        cells = [cell.strip() for cell in line.split("\t")]
        if not names:
            names = cells
            missing = [column for column in columns if column not in names]
            if missing:
                raise UserError(f"{file}:{number}: no column {missing[0]!r} among {', '.join(names)}; is it this file?")
            continue
        if len(cells) != len(names):
            raise UserError(f"{file}:{number}: {len(cells)} cells where the table has {len(names)}; mend the row")
        yield number, [cells[names.index(column)] for column in columns]


def identity(folder: Path, files: Iterable[Path], tokens: Tokenizer) -> str:
    """Fingerprint of texts and of the tokenizer that turns them into rows."""
    return hashlib.sha256(f"{fingerprint(folder, files)} {tokens.digest}".encode()).hexdigest()


# --- samples to stored rows


def corpus(name: str, source: str, tokens: Tokenizer, read: Callable[[], Iterable[Sample]], *notes: str) -> Data:
    """Unlabelled texts, to pretrain on.

    Args:
        name: the domain's.
        source: their `identity`.
        tokens: the tokenizer.
        read: reads the samples in their order; called twice, to count and to tokenise.
        notes: what a reader of a score has to know.

    Raises:
        UserError: there is no sample.
    """

    def build(folder: Path) -> None:
        write_rows(folder / "rows.npy", tokens, LENGTH, sum(1 for _ in read()), read(), name)

    rows = _stored(prepared(name, _key(source, tokens, LENGTH), build), "rows")
    if not len(rows):
        raise UserError(f"{name}: not one text in its files; are they complete?")
    return Data(
        specs=(Tokens(LENGTH, tokens.vocab, tokens.pad),),
        pretrain=Split((rows,), np.arange(len(rows))),
        train=None,
        validation=None,
        test=None,
        task=None,
        fingerprint=source,
        normalise=as_int64,
        notes=(*notes, _cut_note(rows, tokens)),
    )


@dataclass(frozen=True)
class Texts:
    """Samples in their order and their labels, in the form that the task states."""

    samples: list[Sample]
    label: NDArray[Any]


def labelled(
    name: str, source: str, tokens: Tokenizer, read: Callable[[str], Texts], task: Task, protocol: str, *notes: str
) -> Data:
    """A task over texts or pairs of texts, as GLUE's.

    Under ``dabs`` training takes the whole training part and the validation part *is* the test part: DABS reports the
    split that it watches. Else validation is carved from train. The pairs that share their first text (premise,
    question) are one group, and go to one side.

    Args:
        name: the domain's.
        source: the texts' `identity`.
        tokens: the tokenizer.
        read: ``read("train")`` and ``read("test")`` give the parts; called only where nothing is prepared yet.
        task: what is predicted.
        protocol: ``v1`` or ``dabs``.
        notes: what a reader of a score has to know.

    Raises:
        UserError: a part is empty, or train lacks a class.
    """

    def build(folder: Path) -> None:
        train, test = read("train"), read("test")
        _check(name, task, train, test)
        for part, texts, first in (("train", train, 0), ("test", test, len(train.samples))):
            write_rows(folder / f"{part}.npy", tokens, LENGTH, len(texts.samples), texts.samples, f"{name} {part}")
            np.save(folder / f"{part}_label.npy", texts.label)
            np.save(folder / f"{part}_group.npy", first + _groups(texts.samples))
        known = set(train.samples)
        copies = sum(sample in known for sample in test.samples)
        (folder / "copies.json").write_text(json.dumps(copies), encoding="utf-8")

    folder = prepared(name, _key(source, tokens, LENGTH), build)
    copies = json.loads((folder / "copies.json").read_text(encoding="utf-8"))

    def split(part: str) -> Split:
        rows, group = _stored(folder, part), np.load(folder / f"{part}_group.npy")
        grouped = len(np.unique(group)) < len(group)
        return Split((rows,), np.arange(len(rows)), np.load(folder / f"{part}_label.npy"), group if grouped else None)

    train, test = split("train"), split("test")
    validation = test
    if protocol != "dabs":
        kept, held = carve(len(train), label=train.label if task.kind == "classes" else None, group=train.group)
        train, validation = train.take(kept), train.take(held)
    return Data(
        specs=(Tokens(LENGTH, tokens.vocab, tokens.pad),),
        pretrain=train,
        train=train,
        validation=validation,
        test=test,
        task=task,
        fingerprint=source,
        normalise=as_int64,
        notes=(
            *notes,
            _cut_note(_stored(folder, "train"), tokens),
            f"{copies} of {len(test)} test samples occur word for word in upstream's training part.",
        ),
    )


def _check(name: str, task: Task, train: Texts, test: Texts) -> None:
    for part, texts in (("train", train), ("test", test)):
        if not texts.samples:
            raise UserError(f"{name}: no sample in the {part} part; is its file complete?")
    for code, label in enumerate(task.classes):
        if code not in train.label:
            raise UserError(f"{name}: class {label!r} does not occur in train; is its file complete?")


def _groups(samples: list[Sample]) -> NDArray[np.int64]:
    """The pairs that share their first text have one number; single texts stand alone."""
    known: dict[str, int] = {}
    return np.array(
        [n if isinstance(sample, str) else known.setdefault(sample[0], n) for n, sample in enumerate(samples)], np.int64
    )


def write_rows(path: Path, tokens: Tokenizer, length: int, n: int, samples: Iterable[Sample], what: str) -> None:
    """Tokenise ``n`` samples into a new ``.npy`` file, int32 ``(n, length)``, a bounded number at a time."""
    rows = allocate(path, np.int32, (n, length))
    start = 0
    for batch in progress(_batches(samples), f"tokenising {what}", -(-n // BATCH)):
        rows[start : start + len(batch)] = tokens.encode(batch, length)
        start += len(batch)


def _batches(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    iterator = iter(samples)
    while batch := list(islice(iterator, BATCH)):
        yield batch


def _key(source: str, tokens: Tokenizer, length: int) -> str:
    return f"{source} {tokens.digest} {length} {PREPARATION}"


def _stored(folder: Path, part: str) -> NDArray[np.int32]:
    # a plain array over the map: np.memmap's own bookkeeping would be paid at every batch
    return np.asarray(np.load(folder / f"{part}.npy", mmap_mode="r"))


def _cut_note(rows: NDArray[np.int32], tokens: Tokenizer) -> str:
    full = int(np.count_nonzero(rows[:, -1] != tokens.pad))
    return f"{full} of {len(rows)} samples fill all {rows.shape[1]} tokens; what lies beyond is cut."


def as_int64(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """``Data.normalise`` of text: ids are stored as int32 and read as int64."""
    return tuple(x.long() for x in inputs)
