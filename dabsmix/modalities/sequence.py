"""Sequences over an alphabet (proteins, DNA, any string): one token per symbol, stored as one byte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.cache import prepared
from dabsmix.data.domain import Data, Split
from dabsmix.errors import UserError, did_you_mean
from dabsmix.modalities.files import LISTED, Marked, codes, marked, named, skipped_note
from dabsmix.modalities.summary import tokens_summary
from dabsmix.modalities.tables import encoding_fault, opened
from dabsmix.modalities.text import OwnText, TextDivision, as_int64, read_own
from dabsmix.spec import Tokens

__all__ = [
    "Alphabet",
    "Sample",
    "alphabet_of",
    "encoded",
    "load_further",
    "load_own",
    "records",
    "samples",
    "store",
    "stored",
]

LENGTH = 128
"""Symbols per sample of a user's sequences by default; an encoder's positions are fixed, and the rest is cut."""

UNSCORED = -1
"""The label of a symbol that is not scored."""

CHUNK = 1 << 20
LARGEST = 1 << 24
"""Characters that are read at once, and the most that one record of a JSON file may have."""


@dataclass(frozen=True)
class Alphabet:
    """Symbols; the id of each is its index.

    Attributes:
        symbols: at most 255 different characters.
        pad: the id that fills short sequences; None if every sequence is full.
    """

    symbols: str
    pad: int | None = None

    def __post_init__(self) -> None:
        if not 0 < len(set(self.symbols)) == len(self.symbols) < 256:
            raise ValueError(f"an alphabet has 1 to 255 different symbols, got {self.symbols!r}")

    def spec(self, length: int) -> Tokens:
        """The spec of sequences of this length."""
        return Tokens(length, len(self.symbols), self.pad)

    def encode(self, text: str, length: int) -> NDArray[np.uint8]:
        """Ids of the first ``length`` symbols, padded on the right: uint8 ``(length,)``.

        Raises:
            ValueError: a symbol is not in the alphabet, or the text is too short and there is no padding.
        """
        points = np.frombuffer(text[:length].encode("utf-32-le"), np.uint32)
        known = np.array([ord(symbol) for symbol in self.symbols], np.uint32)
        order = np.argsort(known)
        ids: NDArray[np.int64] = order[np.searchsorted(known, points, sorter=order).clip(max=len(known) - 1)]
        if len(unknown := np.flatnonzero(known[ids] != points)):
            raise ValueError(f"symbol {text[unknown[0]]!r} at position {unknown[0] + 1} is not one of {self.symbols}")
        if len(points) == length:
            return ids.astype(np.uint8)
        if self.pad is None:
            raise ValueError(f"{len(points)} symbols where {length} are expected")
        row = np.full(length, self.pad, np.uint8)
        row[: len(points)] = ids
        return row


class Sample(NamedTuple):
    """One sequence, its label (a number, or one class per symbol), its group, and its place in a file for messages."""

    text: str
    label: float | Sequence[int] = UNSCORED
    group: str = ""
    place: str = ""


# --- files to stored rows


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON list, numbered from 1. They are read one at a time, so the file may be huge.

    Raises:
        UserError: the file is missing, truncated or damaged.
    """
    fault = f"{path}: damaged or truncated; fetch it again"
    decoder = json.JSONDecoder()
    number, position, begun = 0, 0, False
    try:
        with path.open(encoding="utf-8") as file:
            buffer = file.read(CHUNK)
            while True:
                while position < len(buffer) and buffer[position] in " \t\r\n,":
                    position += 1
                if not begun and position < len(buffer):
                    if buffer[position] != "[":
                        raise UserError(f"{path}: expected a JSON list of objects; fetch it again")
                    begun, position = True, position + 1
                    continue
                if buffer[position : position + 1] == "]":
                    return
                try:
                    value, position = decoder.raw_decode(buffer, position)
                except json.JSONDecodeError as error:
                    chunk = file.read(CHUNK)
                    if not chunk or len(buffer) - position > LARGEST:
                        raise UserError(f"{fault} (after record {number})") from error
                    buffer, position = buffer[position:] + chunk, 0
                    continue
                number += 1
                if not isinstance(value, dict):
                    raise UserError(f"{path}: record {number} is not an object; fetch it again")
                yield number, value
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch it again") from error


def samples(path: Path, read: Callable[[dict[str, Any]], Sample]) -> Iterator[Sample]:
    """The records of a JSON file as samples.

    Raises:
        UserError: as `records`; or a record lacks a field, or a field has a value of the wrong kind.
    """
    for number, record in records(path):
        place = f"{path}, record {number}"
        try:
            yield read(record)._replace(place=place)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"{place}: a field is missing or wrong ({error}); fetch the file again") from error


def store(folder: Path, part: str, alphabet: Alphabet, length: int, samples: Iterable[Sample]) -> None:
    """Write the rows of a part, uint8 ``(n, length)``, its labels and its groups.

    Labels of one class per symbol become int64 ``(n, length)``, `UNSCORED` beyond the sequence; other labels ``(n,)``.

    Raises:
        UserError: a symbol is not in the alphabet, or a sequence has not one label per symbol.
    """
    label: list[Any] = []
    group: list[str] = []
    with (folder / f"{part}.u8").open("wb") as file:
        for text, value, of_group, place in samples:
            try:
                file.write(alphabet.encode(text, length).tobytes())
                label.append(value if isinstance(value, int | float) else _per_symbol(value, len(text), length))
            except ValueError as error:
                raise UserError(f"{place}: {error}; fix or remove it") from error
            group.append(of_group)
    labels = np.array(label)
    np.save(folder / f"{part}_label.npy", labels.astype(np.float32 if labels.dtype.kind == "f" else np.int64))
    np.save(folder / f"{part}_group.npy", codes(group) if len(set(group)) > 1 else np.zeros(0, np.int64))


def _per_symbol(label: Sequence[int], symbols: int, length: int) -> NDArray[np.int64]:
    if len(label) != symbols:
        raise ValueError(f"{len(label)} labels for {symbols} symbols")
    row = np.full(length, UNSCORED, np.int64)
    row[: min(symbols, length)] = label[:length]
    return row


def stored(folder: Path, part: str, length: int) -> Split:
    """A whole part, as `store` wrote it.

    Raises:
        UserError: it is empty.
    """
    path = folder / f"{part}.u8"
    if not path.stat().st_size:
        raise UserError(f"the {part} part holds no sequence; is its file complete?")
    # a plain array over the memory map: indexing np.memmap itself costs more, at every batch
    rows = np.asarray(np.memmap(path, np.uint8, "r").reshape(-1, length))
    group = np.load(folder / f"{part}_group.npy")
    label = np.load(folder / f"{part}_label.npy")
    return Split((rows,), np.arange(len(rows)), label, group if len(group) else None)


def cut_note(rows: NDArray[np.uint8], alphabet: Alphabet) -> str:
    """How many sequences fill all symbols of a sample, and so may have been cut."""
    full = int(np.count_nonzero(rows[:, -1] != alphabet.pad))
    if not full:
        return f"None of the {len(rows)} sequences fills all {rows.shape[1]} symbols, so none is cut."
    return f"{full} of {len(rows)} sequences fill all {rows.shape[1]} symbols; the rest of a longer one is cut."


# --- a user's own sequences


def load_own(
    path: Path,
    *,
    label: str | None = None,
    on_bad: Literal["error", "skip"] = "error",
    column: str = "sequence",
    alphabet: str = "",
    length: int = LENGTH,
    group: str | None = None,
) -> Data:
    """Sequences of any alphabet, one sample each. With a label, a fifth of those that have one become the test part.

    With groups, a fifth of the groups do. Sequences without a label are used for pretraining and are not scored.

    Args:
        path: a FASTA file (``.fasta``, ``.fa``, ``.faa``, ``.fna``), a CSV, TSV or Parquet file, a ``.txt`` file with
            one sequence per line, or a folder of ``.txt`` files with one sequence each.
        label: a table's column of classes; ``folder`` if each class has its own folder; in a FASTA file the word of a
            header that follows ``LABEL=``.
        on_bad: ``skip`` leaves out sequences that are empty or have a symbol outside the alphabet among the first
            ``length``, counts them and lists them.
        column: a table's column of sequences.
        alphabet: the symbols, in the order of their ids; by default those that occur in what pretraining sees, so that
            a symbol which occurs only in the test is an error.
        length: symbols per sample; the rest of a longer sequence is cut.
        group: a table's column, or a FASTA header's word, that says which sequences belong together (family, genome).

    Raises:
        UserError: a column is unknown, a sequence is bad, or there is only one class or no sequence.
    """
    if length < 1:
        raise UserError(f"length {length}: give a length of at least 1")
    rows, bad = _read(path, column, label, group, on_bad)
    if alphabet:
        rows, bad = _within(rows, bad, alphabet, length, on_bad)
    division = None if label is None else TextDivision.of(path, rows, "sequences", grouped=group is not None)
    pretraining = rows if division is None else [rows[row] for row in division.parts.pretrain]
    symbols = alphabet or "".join(sorted({symbol for row in pretraining for symbol in row.text[:length]}))
    data = _own_data(path, rows, symbols, length)
    if division is not None:
        data = division.divide(data)
    return replace(
        data,
        summary=tokens_summary("sequences", "symbols", data, [row.text for row in rows[:3]]),
        notes=(*data.notes, *_case_note(symbols), *skipped_note("sequences", bad, len(rows) + len(bad))),
        state={"column": column, "length": length, "alphabet": symbols, "skipped": bad},
        names=named([row.key for row in rows]),
    )


def _case_note(symbols: str) -> tuple[str, ...]:
    """Whether letters occur in both cases, as in genomes that mark repeats so."""
    both = [symbol for symbol in symbols if symbol.islower() and symbol.upper() in symbols]
    if not both:
        return ()
    return (f"Letters that occur in lower and upper case are different symbols: {', '.join(both)}.",)


def load_further(
    path: Path, state: Mapping[str, Any], on_bad: Literal["error", "skip"] = "error"
) -> tuple[Data, list[str]]:
    """Further sequences read with a training run's state, all as ``pretrain``; keys are names or ``file:row``.

    Raises:
        UserError: as `load_own`.
    """
    rows, bad = _read(path, state["column"], None, None, on_bad)
    rows, bad = _within(rows, bad, state["alphabet"], state["length"], on_bad)
    data = _own_data(path, rows, state["alphabet"], state["length"])
    notes = (*data.notes, *skipped_note("sequences", bad, len(rows) + len(bad)))
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
    """Further sequences with labels: ``label``, ``column``, ``group`` as in `load_own`, else as in `load_further`."""
    rows, bad = _read(path, column or state["column"], label, group, on_bad)
    rows, bad = _within(rows, bad, state["alphabet"], state["length"], on_bad)
    data = _own_data(path, rows, state["alphabet"], state["length"])
    data = replace(data, notes=(*data.notes, *skipped_note("sequences", bad, len(rows) + len(bad))), state=state)
    groups = [row.group for row in rows] if group else None
    return marked(data, [row.key for row in rows], "sequences", path, [row.label for row in rows], groups)


def alphabet_of(state: Mapping[str, Any]) -> Alphabet:
    """The alphabet of a training run, from its state."""
    return Alphabet(state["symbols"], state["pad"]) if "symbols" in state else Alphabet(" " + state["alphabet"], 0)


def encoded(texts: Sequence[str], state: Mapping[str, Any], length: int) -> NDArray[np.uint8]:
    """Sequences in memory, encoded with a training run's state: uint8 ``(n, length)``.

    Raises:
        UserError: a symbol is not in the run's alphabet.
    """
    alphabet = alphabet_of(state)
    rows = []
    for i, text in enumerate(texts):
        try:
            rows.append(alphabet.encode(text, length))
        except ValueError as error:
            raise UserError(f"sequence {i}: {error}; fix it or leave it out") from error
    return np.stack(rows) if rows else np.zeros((0, length), np.uint8)


FASTA = (".fasta", ".fa", ".faa", ".fna")


def _read(
    path: Path, column: str, label: str | None, group: str | None, on_bad: Literal["error", "skip"]
) -> tuple[list[OwnText], list[str]]:
    if path.name.lower().endswith(FASTA):
        return _fasta(path, label, group, on_bad)
    return read_own(path, column, label, group, on_bad)


def _fasta(
    path: Path, label: str | None, group: str | None, on_bad: Literal["error", "skip"]
) -> tuple[list[OwnText], list[str]]:
    """Headers ``>name word=value ...`` and the lines of each sequence, joined."""
    texts: list[OwnText] = []
    bad: list[str] = []
    known: dict[str, None] = {}
    try:
        with opened(path, "utf-8") as stream:
            blocks = stream.read().split(">")
    except UnicodeError as error:
        raise UserError(f"{path}: {encoding_fault('utf-8', error)}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix the file") from error
    if blocks[0].strip():
        raise UserError(f"{path}: a FASTA file begins with a header line `>name`; fix the file")
    for number, block in enumerate(blocks[1:], 1):
        header, _, body = block.partition("\n")
        name, *words = header.split() or [""]
        values = dict(word.partition("=")[::2] for word in words)
        known |= dict.fromkeys(values)
        text = "".join(body.split())
        fault = "is empty" if not text else ""
        if group and not values.get(group):
            fault = fault or f"has no word {group}=... in its header"
        if fault:
            bad.append(f"{path.name}:{number} ({name}) {fault}")
        else:
            texts.append(OwnText(name or str(number), text, values.get(label or "", ""), values.get(group or "", "")))
    for word in filter(None, (label, group)):
        if word not in known:
            listed = ", ".join(list(known)[:LISTED]) or "no words"
            raise UserError(f"{path}: no header has {word}=...{did_you_mean(word, known)}; there are: {listed}")
    if bad and on_bad == "error":
        raise UserError(f"{path}: sequence {bad[0]}; fix it, or leave such sequences out with --on-bad skip")
    if not texts:
        raise UserError(f"{path}: no sequence in it can be used" + (f"; the first fault: {bad[0]}" if bad else ""))
    return texts, bad


def _within(
    rows: list[OwnText], bad: list[str], alphabet: str, length: int, on_bad: Literal["error", "skip"]
) -> tuple[list[OwnText], list[str]]:
    """The sequences whose first ``length`` symbols, all that an encoder reads of them, are in the alphabet."""
    if len(set(alphabet)) < len(alphabet):
        raise UserError(f"alphabet {alphabet}: a symbol occurs twice; name it once")
    known = set(alphabet)
    valid, faults = list[OwnText](), list[str]()
    for row in rows:
        if outside := set(row.text[:length]) - known:
            faults.append(f"{row.key}: symbol {min(outside)!r} is not in the alphabet")
        else:
            valid.append(row)
    if faults and on_bad == "error":
        raise UserError(f"{faults[0]} ({alphabet}); add it, or leave such sequences out with --on-bad skip")
    if not valid:
        raise UserError(f"every sequence has a symbol outside the alphabet {alphabet}; the first fault: {faults[0]}")
    return valid, [*bad, *faults]


def _own_data(path: Path, rows: list[OwnText], symbols: str, length: int) -> Data:
    """Unlabelled sequences. A blank, which comes before the other symbols, is the padding."""
    try:
        alphabet = Alphabet(" " + symbols, pad=0)
    except ValueError as error:
        raise UserError(f"{path}: {error}, none of which is a blank; name them in the option alphabet") from error
    texts = hashlib.sha256()
    for row in rows:
        texts.update(row.text.encode() + b"\0")
    source = texts.hexdigest()
    entries = (Sample(row.text, place=f"{path}: {row.key}") for row in rows)
    ready = prepared(
        "own_sequences",
        f"{source} {symbols} {length}",
        lambda folder: store(folder, "rows", alphabet, length, entries),
    )
    all_rows = stored(ready, "rows", length)
    return Data(
        specs=(alphabet.spec(length),),
        pretrain=replace(all_rows, label=None, group=None),
        labelled=None,
        fingerprint=source,
        normalise=as_int64,
        notes=(cut_note(np.asarray(all_rows.inputs[0]), alphabet),),
    )
