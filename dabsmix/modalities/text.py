"""Text: samples tokenised once into memory-mapped rows of token ids, tasks such as GLUE's, and a user's own texts."""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.cache import allocate, fingerprint, prepared
from dabsmix.data.containment import SEVERAL, Sequences, roots
from dabsmix.data.domain import Data, Labelled, Split, Task
from dabsmix.data.download import Download
from dabsmix.data.splits import LabelledParts, carve, divide_labelled
from dabsmix.errors import UserError, did_you_mean
from dabsmix.files import data_root
from dabsmix.modalities.files import (
    LISTED,
    Marked,
    class_names,
    codes,
    digest,
    division_notes,
    marked,
    named,
    skipped_note,
    walk,
)
from dabsmix.modalities.summary import tokens_summary
from dabsmix.modalities.tables import CSV, EMPTY, PARQUET, codec, encoding_fault, is_utf8, opened
from dabsmix.modalities.tokenizer import Sample, Tokenizer, tokenizer, train_tokenizer
from dabsmix.spec import Tokens
from dabsmix.terminal import progress

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BERT",
    "BERT_FILE",
    "HUGGING_FACE",
    "LENGTH",
    "XLM_ROBERTA",
    "XLM_ROBERTA_FILE",
    "OwnText",
    "Sample",
    "TextDivision",
    "Texts",
    "Tokenizer",
    "as_int64",
    "corpus",
    "identity",
    "labelled",
    "load_further",
    "load_further_labelled",
    "load_own",
    "read_lines",
    "read_own",
    "read_tsv",
    "tokenizer",
    "tokens_of",
    "train_tokenizer",
]

LENGTH = 128
"""Tokens per sample in DABS (Tamkin et al. 2021), and in every text domain here: an encoder's positions are fixed."""

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
"""Where the checksums of the text sets are published; ``{}`` stands for the name of the set."""

BATCH = 4096
"""Samples that are tokenised at once. It bounds the memory and changes nothing else."""

# Part of every cache key: raise it when the same texts would give other rows.
PREPARATION = 1


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
        read: yields the samples in order; called twice, to count and to tokenise.
        notes: what a reader of a score has to know.

    Raises:
        UserError: there is no sample.
    """

    def build(folder: Path) -> None:
        write_rows(folder / "rows.npy", tokens, LENGTH, sum(1 for _ in read()), read(), name)

    rows = _stored(prepared(name, _key(source, tokens, LENGTH), build), "rows")
    if not len(rows):
        raise UserError(f"{name}: its files hold no text; are they complete?")
    return _unlabelled(rows, tokens, source, *notes)


def _unlabelled(rows: NDArray[np.int32], tokens: Tokenizer, source: str, *notes: str) -> Data:
    return Data(
        specs=(Tokens(rows.shape[1], tokens.vocab, tokens.pad),),
        pretrain=Split((rows,), np.arange(len(rows))),
        labelled=None,
        fingerprint=source,
        normalise=as_int64,
        notes=(*notes, _cut_note(rows, tokens)),
        state=_named(tokens, rows.shape[1]),
    )


@dataclass(frozen=True)
class Texts:
    """Samples in order, and their labels in the form that the task states."""

    samples: list[Sample]
    label: NDArray[Any]


def labelled(
    name: str,
    source: str,
    tokens: Tokenizer,
    read: Callable[[str], Texts],
    task: Task,
    protocol: str,
    *notes: str,
    phrases: bool = False,
) -> Data:
    """A task over texts or pairs of texts, such as those of GLUE.

    Under ``dabs`` training takes the whole training part and the validation part *is* the test part: DABS reports the
    split that it watches. Otherwise validation is carved from train. Pairs that share their first text (premise,
    question) form one group, which is never divided.

    Args:
        name: the domain's.
        source: the texts' `identity`.
        tokens: the tokenizer.
        read: ``read("train")`` and ``read("test")`` give the parts; called only if they are not prepared yet.
        task: what is predicted.
        protocol: ``v1`` or ``dabs``.
        notes: what a reader of a score has to know.
        phrases: whether many texts are phrases of other texts. If so, no validation text lies inside a training text.

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
        if phrases:
            fitted, held_out = _carve_sentences(np.asarray(train.inputs[0]), tokens.pad)
        else:
            classes = train.label if task.kind == "classes" else None
            fitted, held_out = carve(len(train), label=classes, group=train.group)
        train, validation = train.take(fitted), train.take(held_out)
    return Data(
        specs=(Tokens(LENGTH, tokens.vocab, tokens.pad),),
        pretrain=train,
        labelled=Labelled(task, train, validation, test),
        fingerprint=source,
        normalise=as_int64,
        notes=(
            *notes,
            _cut_note(_stored(folder, "train"), tokens),
            f"{copies} of {len(test)} test samples occur word for word in upstream's training part.",
        ),
        state=_named(tokens, LENGTH),
    )


def _carve_sentences(rows: NDArray[np.int32], pad: int | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows for training, and rows for validation: a tenth of the sentences, each with its phrases.

    Phrases of several sentences stay in training.
    """
    root = roots(Sequences.of(rows, pad))
    of_one_sentence = np.flatnonzero(root != SEVERAL)
    _, held_out = carve(len(of_one_sentence), group=root[of_one_sentence])
    validation = of_one_sentence[held_out]
    return np.setdiff1d(np.arange(len(rows)), validation), validation


def _check(name: str, task: Task, train: Texts, test: Texts) -> None:
    for part, texts in (("train", train), ("test", test)):
        if not texts.samples:
            raise UserError(f"{name}: no sample in the {part} part; is its file complete?")
    for code, label in enumerate(task.classes):
        if code not in train.label:
            raise UserError(f"{name}: class {label!r} does not occur in train; is its file complete?")


def _groups(samples: list[Sample]) -> NDArray[np.int64]:
    """One number for all pairs that share their first text; every single text has its own."""
    first: dict[str, int] = {}
    return np.array(
        [n if isinstance(sample, str) else first.setdefault(sample[0], n) for n, sample in enumerate(samples)], np.int64
    )


def write_rows(path: Path, tokens: Tokenizer, length: int, n: int, samples: Iterable[Sample], noun: str) -> None:
    """Tokenise ``n`` samples into a new ``.npy`` file, int32 ``(n, length)``, a bounded number at a time."""
    rows = allocate(path, np.int32, (n, length))
    start = 0
    for batch in progress(f"tokenising {noun}", _batches(samples), -(-n // BATCH)):
        rows[start : start + len(batch)] = tokens.encode(batch, length)
        start += len(batch)


def _batches(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    iterator = iter(samples)
    while batch := list(islice(iterator, BATCH)):
        yield batch


def _key(source: str, tokens: Tokenizer, length: int) -> str:
    return f"{source} {tokens.digest} {length} {PREPARATION}"


def _stored(folder: Path, part: str) -> NDArray[np.int32]:
    # a plain array over the memory map: indexing np.memmap itself costs more, at every batch
    return np.asarray(np.load(folder / f"{part}.npy", mmap_mode="r"))


def _cut_note(rows: NDArray[np.int32], tokens: Tokenizer) -> str:
    full = int(np.count_nonzero(rows[:, -1] != tokens.pad))
    if not full:
        return f"None of the {len(rows)} samples fills all {rows.shape[1]} tokens, so none is cut."
    return f"{full} of {len(rows)} samples fill all {rows.shape[1]} tokens; the rest of a longer one is cut."


def as_int64(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """``Data.normalise`` of text: ids are stored as int32 and the encoder reads int64."""
    return tuple(x.long() for x in inputs)


# --- files of lines and GLUE's tables


def read_lines(file: Path, encoding: str | None = None) -> Iterator[tuple[int, str]]:
    """The lines of a file, numbered from 1, without byte order mark and line ends.

    Args:
        file: of text.
        encoding: that a user may choose; None for a data set's own files, which are UTF-8.

    Raises:
        UserError: the file is missing or cannot be read, or one of its lines has another encoding.
    """
    number, begun = 1, ""
    try:
        # only "\\n" ends a line: upstream's files hold other characters at which Python would split
        with file.open("rb") as stream:
            decoder = codecs.getincrementaldecoder(codec(stream, encoding or "utf-8"))()
            for content in stream:
                # in UTF-16 the byte of a line end is half of it, or of another character
                *complete, begun = (begun + decoder.decode(content)).split("\n")
                for line in complete:
                    yield number, line.rstrip("\r")
                    number += 1
            if last := begun + decoder.decode(b"", final=True):
                yield number, last.rstrip("\r")
    except UnicodeError as error:
        upstream = f"not UTF-8 ({getattr(error, 'reason', error)}); convert the file"
        fault = upstream if encoding is None else encoding_fault(encoding, error)
        raise UserError(f"{file}:{number}: {fault}") from error
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; fetch the data set again or put the file there") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error


def read_tsv(file: Path, columns: Sequence[str], header: Sequence[str] = ()) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and the cells of some columns of a tab-separated file without quoting, such as GLUE's.

    Args:
        file: its first line names the columns unless ``header`` is given.
        columns: the columns to read, in the order of the result.
        header: the columns of a file whose first line does not name them.

    Raises:
        UserError: the file lacks a column, a row has another number of cells, or the file is not as `read_lines` needs.
    """
    names = list(header)
    for number, line in read_lines(file):
        cells = [cell.strip() for cell in line.split("\t")]
        if not names:
            names = cells
            missing = [column for column in columns if column not in names]
            if missing:
                raise UserError(
                    f"{file}:{number}: no column {missing[0]!r} among {', '.join(names)}; is this the right file?"
                )
            continue
        if len(cells) != len(names):
            raise UserError(f"{file}:{number}: {len(cells)} cells where the table has {len(names)}; fix the row")
        yield number, [cells[names.index(column)] for column in columns]


# --- a user's own texts


class OwnText(NamedTuple):
    """One text: its key (file name, or ``file:row``), and its class and group, which are empty if it has none."""

    key: str
    text: str
    label: str
    group: str


def read_own(
    path: Path,
    column: str,
    label: str | None,
    group: str | None,
    on_bad: Literal["error", "skip"],
    encoding: str = "utf-8",
) -> tuple[list[OwnText], list[str]]:
    """The texts of a folder of ``.txt`` files, of the lines of one such file, or of a table; and what was skipped.

    Args:
        path: the folder or file.
        column: a table's column of texts.
        label: a table's column of classes; ``folder`` for a folder of class folders; None to read no classes.
        group: a table's column of groups, or None.
        on_bad: ``error`` raises at the first text that is empty or broken or has no group; ``skip`` leaves it out.
        encoding: of files that are not Parquet, by Python's name.

    Raises:
        UserError: a column is unknown, there is no text, or a text is bad and ``on_bad`` is ``error``.
    """
    texts: list[OwnText] = []
    skipped: list[str] = []
    for text, fault in _candidates(path, column, label, group, encoding):
        if not fault and not text.text.strip():
            fault = "no text"
        if not fault and group is not None and text.group in EMPTY:
            fault = f"no {group}"
        if not fault:
            texts.append(text._replace(label="") if text.label in EMPTY else text)
        elif on_bad == "error":
            place = (path if path.is_dir() else path.parent) / text.key
            raise UserError(f"{place}: {fault}; fix it, or leave such texts out with --on-bad skip")
        else:
            skipped.append(f"{text.key}: {fault}")
    if not texts:
        raise UserError(f"{path}: it holds no text" + (f"; the first fault: {skipped[0]}" if skipped else ""))
    return texts, skipped


Candidate = tuple[OwnText, str]
"""A text and what is wrong with it; the latter is empty if nothing is."""


def _candidates(path: Path, column: str, label: str | None, group: str | None, encoding: str) -> Iterator[Candidate]:
    name = path.name.lower()
    if path.is_file() and name.endswith((*CSV, *PARQUET)):
        rows = _parquet_rows(path, (column, label, group)) if name.endswith(PARQUET) else _csv_rows(path, encoding)
        yield from _from_table(path, rows, column, label, group)
        return
    if group or label not in (None, "folder"):
        raise UserError(f"{path}: plain texts have no column {group or label!r}; give a table, or --label folder")
    if path.is_dir():
        for file in walk(path, (".txt",)):
            text, fault = "", ""
            try:
                with opened(path / file, encoding) as stream:
                    text = stream.read()
            except OSError as error:
                fault = f"cannot be read ({error.strerror})"
            except UnicodeError as error:
                fault = encoding_fault(encoding, error)
            yield OwnText(file, text, file.split("/")[0] if "/" in file else "", ""), fault
    elif label:
        raise UserError(f"{path}: the lines of a file have no class; give a table and its column with --label")
    else:
        for number, line in read_lines(path, encoding):
            yield OwnText(f"{path.name}:{number}", line.strip(), "", ""), ""


Cells = tuple[int, Sequence[str]]
"""The number of a row and its cells."""


def _from_table(
    path: Path, rows: Iterator[Cells], column: str, label: str | None, group: str | None
) -> Iterator[Candidate]:
    """The texts of a table, of which the first of the ``rows`` names the columns."""
    _, names = next(rows)
    for name in (column, label, group):
        if name is not None and name not in names:
            listed = f"{', '.join(names[:LISTED])}{' and more' * (len(names) > LISTED)}"
            hint = "; the option `column` names another column" if name == column else ""
            raise UserError(f"{path}: no column {name!r}{did_you_mean(name, names)}; there are: {listed}{hint}")
    indices = [None if name is None else list(names).index(name) for name in (column, label, group)]
    for number, cells in rows:
        key = f"{path.name}:{number}"
        if len(cells) == len(names):
            yield OwnText(key, *("" if index is None else cells[index] for index in indices)), ""
        else:
            yield OwnText(key, "", "", ""), f"{len(cells)} cells where the table has {len(names)} columns"


def _csv_rows(path: Path, encoding: str) -> Iterator[Cells]:
    """The rows of a CSV or TSV file, gzipped or not; rows count from 1, and the first is the header.

    A cell may span lines, as texts do. Arrow, which reads the other tables, would then mistake a quote that is never
    closed for a text that lasts to the end of the file; the csv module refuses it.
    """
    csv.field_size_limit(1 << 30)  # a cell may be a book
    try:
        with opened(path, encoding, newline="") as stream:
            first = stream.readline()
            stream.seek(0)
            reader = csv.reader(stream, delimiter=max(",;\t", key=first.count), strict=True)
            yield 1, [name.strip() for name in next(reader, [])]
            for number, cells in enumerate(reader, start=2):
                yield number, [cell.strip() for cell in cells]
    except UnicodeError as error:
        raise UserError(f"{path}: {encoding_fault(encoding, error)}") from error
    except (OSError, EOFError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({error}); fix it") from error


def _parquet_rows(path: Path, columns: Sequence[str | None]) -> Iterator[Cells]:
    """The rows of a Parquet file, counted from 1, after its column names; cells of other columns are left empty."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        yield 0, names
        number = 0
        for batch in file.iter_batches(columns=[name for name in names if name in columns]):
            for row in batch.to_pylist():
                number += 1
                cells = (row.get(name) for name in names)
                yield number, ["" if cell is None else str(cell) for cell in cells]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({' '.join(str(error).split())}); fix it") from error


class TextDivision(NamedTuple):
    """How a user's texts (or sequences) with labels are divided.

    Attributes:
        task: what is predicted.
        label: int64 ``(n,)``, -1 for texts without a label.
        group: int64 ``(n,)``, or None.
        parts: the rows of each part.
        notes: how the splits were made.
    """

    task: Task
    label: NDArray[np.int64]
    group: NDArray[np.int64] | None
    parts: LabelledParts
    notes: tuple[str, ...]

    @classmethod
    def of(cls, path: Path, rows: Sequence[OwnText], noun: str, *, grouped: bool) -> TextDivision:
        """Divide these rows by class, or in whole groups; ``what`` is their name in messages.

        Raises:
            UserError: there are fewer than two classes, or a part would be empty.
        """
        classes = class_names((row.label for row in rows), path, noun)
        task = Task("classes", "accuracy", classes)
        label = np.array([classes.index(row.label) if row.label else -1 for row in rows], np.int64)
        group = codes([row.group for row in rows]) if grouped else None
        parts = divide_labelled(label >= 0, label=label, group=group, seeds=(0, 0))
        return cls(task, label, group, parts, division_notes(noun, task, parts, label, len(rows), group=group))

    def divide(self, data: Data) -> Data:
        """The data of all rows, with labels and splits; the fingerprint then covers labels and groups too."""
        all_rows = replace(data.pretrain, label=self.label, group=self.group)
        train, validation, test = (all_rows.take(part) for part in self.parts[1:])
        columns = [self.label] if self.group is None else [self.label, self.group]
        sums = [hashlib.sha256(column.tobytes()).hexdigest() for column in columns]
        return replace(
            data,
            fingerprint=digest([data.fingerprint, *self.task.classes, *sums]),
            pretrain=all_rows.take(self.parts.pretrain).drop_partial_label(),
            labelled=Labelled(self.task, train, validation, test),
            notes=(*self.notes, *data.notes),
        )


def load_own(
    path: Path,
    *,
    label: str | None = None,
    on_bad: Literal["error", "skip"] = "error",
    root: Path | None = None,
    column: str = "text",
    tokenizer: str = "",
    vocab_size: int = 8000,
    length: int = LENGTH,
    group: str | None = None,
    encoding: str = "utf-8",
) -> Data:
    """Texts, one sample each. With a label, a fifth of the labelled texts (or of the groups) become the test part.

    Texts without a label are used for pretraining and are not scored.

    Args:
        path: a folder of ``.txt`` files with one text each, a ``.txt`` file with one text per line, or a CSV, TSV or
            Parquet file.
        label: a table's column of classes; ``folder`` if each class has its own folder.
        on_bad: ``skip`` leaves out texts that are empty, counts them and lists them.
        root: the data root, where tokenizers lie; by default that of `data_root`.
        column: a table's column of texts.
        tokenizer: its name or file; if empty, one is trained on the texts that pretraining sees.
        vocab_size: the most tokens that a trained tokenizer has.
        length: tokens per sample.
        group: a table's column that says which texts belong together (author, source, thread).
        encoding: of files that are not Parquet, by Python's name (``latin-1``, ``cp1252``).

    Raises:
        UserError: a column is unknown, a row is bad, there is no text or only one class, or the tokenizer cannot be
            found or trained.
    """
    if length < 3:
        raise UserError(f"length {length}: a sample has two special tokens and at least one other; give 3 or more")
    rows, skipped = read_own(path, column, label, group, on_bad, encoding)
    division = None if label is None else TextDivision.of(path, rows, "texts", grouped=group is not None)
    pretraining = rows if division is None else [rows[row] for row in division.parts.pretrain]
    tokens = _own_tokenizer(tokenizer, root, (row.text for row in pretraining), vocab_size)
    data = _own_data(path, rows, tokens, length)
    if division is not None:
        data = division.divide(data)
    return replace(
        data,
        summary=tokens_summary("texts", "tokens", data, [row.text for row in rows[:3]]),
        notes=(*data.notes, *skipped_note("texts", skipped, len(rows) + len(skipped))),
        state={
            "column": column,
            "length": length,
            **({} if is_utf8(encoding) else {"encoding": encoding}),
            "tokenizer": tokens.state(),
            "skipped": skipped,
        },
        names=named([row.key for row in rows]),
    )


def load_further(
    path: Path, state: Mapping[str, Any], on_bad: Literal["error", "skip"] = "error"
) -> tuple[Data, list[str]]:
    """Further texts read with a training run's state, all as ``pretrain``; keys are file names or ``file:row``.

    Raises:
        UserError: as `load_own`.
    """
    rows, skipped = read_own(path, state["column"], None, None, on_bad, state.get("encoding", "utf-8"))
    data = _own_data(path, rows, tokens_of(state), state["length"])
    notes = (*data.notes, *skipped_note("texts", skipped, len(rows) + len(skipped)))
    return replace(data, notes=notes, state=state), [row.key for row in rows]


def load_further_labelled(
    path: Path,
    state: Mapping[str, Any],
    *,
    label: str,
    on_bad: Literal["error", "skip"] = "error",
    column: str = "",
    group: str | None = None,
) -> Marked:
    """Further texts with labels: ``label``, ``column`` and ``group`` as in `load_own`, otherwise as `load_further`."""
    rows, skipped = read_own(path, column or state["column"], label, group, on_bad, state.get("encoding", "utf-8"))
    data = _own_data(path, rows, tokens_of(state), state["length"])
    data = replace(data, notes=(*data.notes, *skipped_note("texts", skipped, len(rows) + len(skipped))), state=state)
    groups = [row.group for row in rows] if group else None
    return marked(data, [row.key for row in rows], "texts", path, [row.label for row in rows], groups)


def tokens_of(state: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a training run: stored in the run's state, or by its name if it is a published one.

    A published one is looked for in the state's ``data_root`` if it has that entry, then in the default data root.

    Raises:
        UserError: a published tokenizer is not on this machine, or differs from the run's.
    """
    recorded = state["tokenizer"]
    if "tokenizer" in recorded:
        return Tokenizer.from_state(recorded)
    root = Path(state.get("data_root") or "")
    published = tokenizer(recorded["name"], root if (root / recorded["name"]).exists() else data_root(None))
    if published.digest != recorded["digest"]:
        raise UserError(f"tokenizer {recorded['name']}: differs from the one of the run; fetch the run's version")
    return published


def _named(tokens: Tokenizer, length: int) -> dict[str, Any]:
    """For ``Data.state``, if the tokenizer is a published one."""
    return {"column": "text", "length": length, "tokenizer": tokens.reference()}


def _own_tokenizer(name: str, root: Path | None, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    return tokenizer(name, data_root(root)) if name else train_tokenizer(texts, vocab_size)


def _own_data(path: Path, rows: list[OwnText], tokens: Tokenizer, length: int) -> Data:
    texts = hashlib.sha256()
    for row in rows:
        texts.update(row.text.encode() + b"\0")
    source = texts.hexdigest()

    def build(folder: Path) -> None:
        write_rows(folder / "rows.npy", tokens, length, len(rows), (row.text for row in rows), path.name)

    stored = _stored(prepared("own_texts", _key(source, tokens, length), build), "rows")
    return _unlabelled(stored, tokens, source)
