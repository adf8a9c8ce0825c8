"""Text: samples to rows of token ids, tokenised once into a memory map; GLUE-like tasks; a user's own texts."""

from __future__ import annotations

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
from dabsmix.data.splits import carve, divide_labelled
from dabsmix.errors import UserError
from dabsmix.files import data_root
from dabsmix.modalities.files import Marked, class_names, codes, division_notes, marked, named, skipped_note, walk
from dabsmix.modalities.tables import CSV, EMPTY, PARQUET
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
    """Samples in their order and their labels, in the form that the task states."""

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
            kept, held = _carve_sentences(np.asarray(train.inputs[0]), tokens.pad)
        else:
            kept, held = carve(len(train), label=train.label if task.kind == "classes" else None, group=train.group)
        train, validation = train.take(kept), train.take(held)
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
    """Rows that train and rows that validate: a tenth of the sentences, each with its phrases. Shared phrases train."""
    root = roots(Sequences.of(rows, pad))
    alone = np.flatnonzero(root != SEVERAL)
    _, held = carve(len(alone), group=root[alone])
    return np.setdiff1d(np.arange(len(rows)), alone[held]), alone[held]


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
    for batch in progress(f"tokenising {what}", _batches(samples), -(-n // BATCH)):
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


# --- files of lines and GLUE's tables


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
            raise UserError(f"{file}:{number}: {len(cells)} cells where the table has {len(names)}; fix the row")
        yield number, [cells[names.index(column)] for column in columns]


# --- a user's own texts


class OwnText(NamedTuple):
    """One text: what it is called (file name, or ``file:row``), and its class and group, empty where there is none."""

    key: str
    text: str
    label: str
    group: str


def read_own(
    path: Path, column: str, label: str | None, group: str | None, on_bad: Literal["error", "skip"]
) -> tuple[list[OwnText], list[str]]:
    """The texts of a folder of ``.txt`` files, of the lines of one, or of a table; and what was skipped and why.

    Args:
        path: the folder or file.
        column: a table's column of texts.
        label: a table's column of classes; ``folder`` for a folder of class folders; None where none is wanted.
        group: a table's column of groups, or None.
        on_bad: ``error`` raises at the first text that is empty or broken, or lacks its group; ``skip`` leaves it out.

    Raises:
        UserError: an unknown column, no text at all, or see ``on_bad``.
    """
    found: list[OwnText] = []
    bad: list[str] = []
    for key, text, of_class, of_group, fault in _candidates(path, column, label, group):
        if not fault and not text.strip():
            fault = "no text"
        if not fault and group is not None and of_group in EMPTY:
            fault = f"no {group}"
        if not fault:
            found.append(OwnText(key, text, "" if of_class in EMPTY else of_class, of_group))
        elif on_bad == "error":
            raise UserError(f"{path}: {key}: {fault}; fix it, or leave such texts out with --on-bad skip")
        else:
            bad.append(f"{key}: {fault}")
    if not found:
        raise UserError(f"{path}: not one text in it" + (f"; the first fault: {bad[0]}" if bad else ""))
    return found, bad


Candidate = tuple[str, str, str, str, str]
"""Key, text, class, group, and what is wrong; empty where nothing is."""


def _candidates(path: Path, column: str, label: str | None, group: str | None) -> Iterator[Candidate]:
    name = path.name.lower()
    if path.is_file() and name.endswith((*CSV, *PARQUET)):
        yield from (_parquet if name.endswith(PARQUET) else _csv)(path, column, label, group)
        return
    if group or label not in (None, "folder"):
        raise UserError(f"{path}: plain texts have no column {group or label!r}; give a table, or --label folder")
    if path.is_dir():
        for file in walk(path, (".txt",)):
            try:
                text, fault = (path / file).read_text(encoding="utf-8-sig"), ""
            except (OSError, UnicodeDecodeError) as error:
                text, fault = "", f"cannot be read as UTF-8 ({error})"
            yield file, text, file.split("/")[0] if "/" in file else "", "", fault
    elif label:
        raise UserError(f"{path}: the lines of a file have no class; give a table and its column with --label")
    else:
        for number, line in read_lines(path):
            yield f"{path.name}:{number}", line.strip(), "", "", ""


def _csv(path: Path, column: str, label: str | None, group: str | None) -> Iterator[Candidate]:
    """Rows count from 1, the header included.

    A cell may span lines, as texts do. Arrow, which reads the other tables, would then take a quote that is never
    closed for a text that lasts to the end of the file; the csv module refuses it.
    """
    import gzip

    csv.field_size_limit(1 << 30)  # a cell may be a book
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            stream.seek(0)
            reader = csv.reader(stream, delimiter=max(",;\t", key=first.count), strict=True)
            names = [name.strip() for name in next(reader, [])]
            places = _places(path, names, column, label, group)
            for number, cells in enumerate(reader, start=2):
                if len(cells) == len(names):
                    text, of_class, of_group = (cells[place].strip() if place >= 0 else "" for place in places)
                    yield f"{path.name}:{number}", text, of_class, of_group, ""
                else:
                    fault = f"{len(cells)} cells where the table has {len(names)} columns"
                    yield f"{path.name}:{number}", "", "", "", fault
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({error}); fix it") from error


def _parquet(path: Path, column: str, label: str | None, group: str | None) -> Iterator[Candidate]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        places = _places(path, file.schema_arrow.names, column, label, group)
        wanted = sorted({file.schema_arrow.names[place] for place in places if place >= 0})
        number = 0
        for batch in file.iter_batches(columns=wanted):
            for row in batch.to_pylist():
                number += 1
                cells = ("" if name is None or row[name] is None else str(row[name]) for name in (column, label, group))
                text, of_class, of_group = cells
                yield f"{path.name}:{number}", text, of_class, of_group, ""
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({' '.join(str(error).split())}); fix it") from error


def _places(path: Path, names: Sequence[str], *columns: str | None) -> list[int]:
    """Where these columns stand, -1 for None."""
    for column in columns:
        if column is not None and column not in names:
            raise UserError(f"{path}: no column {column!r} among {', '.join(names)}")
    return [-1 if column is None else list(names).index(column) for column in columns]


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
) -> Data:
    """Texts, each a sample. With a label a fifth of the labelled ones (or of the groups) are the test.

    Texts without a label are pretrained on and not scored.

    Args:
        path: a folder of ``.txt`` files, one text each; one ``.txt`` file, a text a line; or a CSV, TSV or Parquet.
        label: a table's column of classes; ``folder`` where each class has a folder of its own.
        on_bad: ``skip`` leaves out texts that are empty, counts and lists them.
        root: the data root, where tokenizers lie; by default `data_root`'s.
        column: a table's column of texts.
        tokenizer: name or file of one; where empty, one is trained on the texts that pretraining sees.
        vocab_size: of the trained tokenizer, at most.
        length: tokens a sample.
        group: a table's column that tells which texts belong together (author, source, thread).

    Raises:
        UserError: an unknown column, a bad row, only one class, no text, or see `tokenizer` and `train_tokenizer`.
    """
    if length < 3:
        raise UserError(f"length {length}: a sample needs room for a token between its two special ones")
    rows, bad = read_own(path, column, label, group, on_bad)
    seen = np.arange(len(rows))
    notes: tuple[str, ...] = ()
    if label is not None:
        classes = class_names((row.label for row in rows), path, "texts")
        task = Task("classes", "accuracy", classes)
        code = np.array([classes.index(row.label) if row.label else -1 for row in rows], np.int64)
        groups = codes([row.group for row in rows]) if group else None
        parts = divide_labelled(code >= 0, label=code, group=groups, seeds=(0, 0))
        seen = parts.pretrain
        notes = division_notes("texts", task, parts, code, len(rows), grouped=group is not None)
    tokens = _own_tokenizer(
        tokenizer,
        root,
        (rows[row].text for row in seen),
        vocab_size,
    )
    data = _own_data(path, rows, tokens, length)
    if label is not None:
        whole = replace(data.pretrain, label=code, group=groups)
        labelled = Labelled(task, whole.take(parts.train), whole.take(parts.validation), whole.take(parts.test))
        data = replace(data, pretrain=whole.take(seen).drop_partial_label(), labelled=labelled)
    return replace(
        data,
        notes=(*notes, *data.notes, *skipped_note("texts", bad, len(rows) + len(bad))),
        state={"column": column, "length": length, "tokenizer": tokens.state(), "skipped": bad},
        names=named([row.key for row in rows]),
    )


def load_further(
    path: Path, state: Mapping[str, Any], on_bad: Literal["error", "skip"] = "error"
) -> tuple[Data, list[str]]:
    """Further texts read with a training run's state, all as ``pretrain``; keys are file names or ``file:row``.

    Raises:
        UserError: as `load_own`.
    """
    rows, bad = read_own(path, state["column"], None, None, on_bad)
    data = _own_data(path, rows, tokens_of(state), state["length"])
    notes = (*data.notes, *skipped_note("texts", bad, len(rows) + len(bad)))
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
    """Further texts with labels: ``label``, ``column`` and ``group`` as in `load_own`, the rest as `load_further`."""
    rows, bad = read_own(path, column or state["column"], label, group, on_bad)
    data = _own_data(path, rows, tokens_of(state), state["length"])
    data = replace(data, notes=(*data.notes, *skipped_note("texts", bad, len(rows) + len(bad))), state=state)
    groups = [row.group for row in rows] if group else None
    return marked(data, [row.key for row in rows], "texts", path, [row.label for row in rows], groups)


def tokens_of(state: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a training run: as its state holds it, or by its name where it is a published one.

    Raises:
        UserError: it is not where tokenizers are looked for, or is another one there.
    """
    known = state["tokenizer"]
    if "tokenizer" in known:
        return Tokenizer.from_state(known)
    found = tokenizer(known["name"], data_root(None))
    if found.digest != known["digest"]:
        raise UserError(f"tokenizer {known['name']}: not the one that the run was trained with; fetch that one again")
    return found


def _named(tokens: Tokenizer, length: int) -> dict[str, Any]:
    """For ``Data.state``, where the tokenizer is a published one."""
    return {"column": "text", "length": length, "tokenizer": {"name": tokens.name, "digest": tokens.digest}}


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
