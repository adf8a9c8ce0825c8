"""The files that back a row: a run's folder, or the record that was copied from it. Both hold the same files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dabsmix.board.row import NO_SCORE, Row, small, typed
from dabsmix.errors import UserError
from dabsmix.run import RunRecord, read_record
from dabsmix.scoring.results import (
    BY_CLASS,
    Result,
    TransferRecord,
    default_protocol,
    prediction_key,
    read_transfer,
    yardstick_key,
)

__all__ = [
    "FAILED",
    "ONLINE",
    "UNREADABLE",
    "Archive",
    "Predictions",
    "TransferFile",
    "agrees",
    "archive",
    "config_of",
    "predictions_file",
    "predictions_of",
    "result_file",
    "scores",
    "scores_of",
    "shares",
    "stamp",
    "stored",
    "stored_yardstick",
    "transfer_of",
    "transfers",
    "yardstick_predictions",
    "yardsticks_file",
]

_OF_RUN = (
    *("domain", "algorithm", "encoder", "seed", "views", "uses_labels", "steps", "batch_size", "version", "commit"),
    *("config_hash", "encoder_sha256", "parameters", "seconds", "device"),
)
ONLINE = "online"  # the probe, and the name of the file that holds its score
FAILED = "failed"  # the status of a run that has no score; no transfer file has this name
MAX_DEPTH = 8  # of config.yaml: deep nesting takes hours to read, and a few lines of aliases are gigabytes
MAX_CLASSES = 100_000  # a forged class number would take all memory
MAX_UNPACKED = 512 * 2**20  # bytes of the arrays of one archive
_OF_TASK = ("task", "protocol", "data_fingerprint")
_OF_RESULT = ("probe", "label_fraction", "metric", "value", "low", "high", "n", "test_reads")
_NOT_IN_RECIPE = (
    *("seed", "out", "data_root", "checkpoint_every", "checkpoint_minutes", "checkpoint_activations"),
    "evaluate_every",
)


def transfers(folder: Path) -> dict[str, TransferRecord]:
    """The scores of a run's folder or record, by file name without suffix: transfer's by name, then the online one."""
    try:
        names = os.listdir(folder / "transfer")
    except OSError:
        names = []
    by_stem = {}
    for stem in (*sorted(name.removesuffix(".json") for name in names if name.endswith(".json")), ONLINE):
        path = result_file(folder, stem)
        if path.is_file():
            status = path.stat()
            by_stem[stem] = _parsed(path, status.st_mtime_ns, status.st_size)
    return by_stem


@lru_cache(maxsize=1024)
def _parsed(path: Path, modified: int, size: int) -> TransferRecord:
    """Read once for all the rows that one file backs."""
    return read_transfer(path)


def result_file(folder: Path, stem: str) -> Path:
    """Where a transfer result lies, or the online score, which pretraining writes beside ``run.json``."""
    return folder / f"{ONLINE}.json" if stem == ONLINE else folder / "transfer" / f"{stem}.json"


def predictions_file(folder: Path, stem: str) -> Path:
    """Where the per-example predictions of a transfer result lie, if they were stored."""
    return result_file(folder, stem).with_name(f"{stem}.predictions.npz")


def yardsticks_file(folder: Path, stem: str) -> Path:
    """Where the yardsticks' predictions of a transfer result lie, if they were stored."""
    return result_file(folder, stem).with_name(f"{stem}.yardsticks.npz")


def config_of(folder: Path) -> dict[str, Any]:
    """A run's configuration: its ``config.yaml``.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / "config.yaml"
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from None
    return dict(_config(path, status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=1024)
def _config(path: Path, modified: int, size: int) -> dict[str, Any]:
    """Read by the C parser where it was built; the plain lines of which nearly all runs' files consist one by one."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = path.read_text(encoding="utf-8")
        lines = text.removesuffix("\n").split("\n")
        if all(map(_PLAIN_LINE, lines)):
            return {name: value for line in lines for name, value in _plain(line).items()}
        depth = 0
        for event in yaml.parse(text, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
                raise ValueError("it holds an alias or is nested deeply, as no run writes it")
        content = yaml.load(text, Loader=loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping, found a {type(content).__name__}")
    return content


_PLAIN_LINE = re.compile(r"[a-z][a-z0-9_]*: [A-Za-z0-9_./+-]+").fullmatch


@lru_cache(maxsize=4096)
def _plain(line: str) -> dict[str, Any]:
    """One `_PLAIN_LINE`, which has the same meaning beside others: most records have most lines in common."""
    import yaml

    values: dict[str, Any] = yaml.load(line, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return values


def _recipe(config: Mapping[str, Any]) -> str:
    """12 hex digits that runs share exactly if at most their seeds differ: these may be averaged."""
    values = {name: value for name, value in config.items() if name not in _NOT_IN_RECIPE}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


def scores(folder: Path, of: Path | None = None) -> dict[str, list[dict[str, Any]]]:
    """The rows that a folder backs, by transfer file, as cells; those of the submission are missing.

    A failed run backs one row, under `FAILED`, which says why it failed.

    Args:
        folder: holds the transfer files.
        of: holds ``run.json`` and ``config.yaml`` if that is another folder: the record of the very same encoder.

    Raises:
        UserError: a file is missing or damaged, or lacks an entry.
    """
    return scores_of(folder, read_record(of or folder), config_of(of or folder), transfers(folder))


def scores_of(
    folder: Path, run: RunRecord, config: Mapping[str, Any], results: Mapping[str, TransferRecord]
) -> dict[str, list[dict[str, Any]]]:
    """See `scores`; ``folder`` is named in errors.

    Raises:
        UserError: an entry is missing or malformed.
    """
    by_stem: dict[str, list[dict[str, Any]]] = {}
    place = "run.json"
    try:
        of_run = {name: getattr(run, name) for name in _OF_RUN}
        of_run |= {"pretrain_protocol": run.protocol, "pretrain_fingerprint": run.data_fingerprint}
        of_run["hyper"] = json.dumps(run.hyper, sort_keys=True, separators=(",", ":"))
        of_run["train_flops"] = 0.0 if run.steps == 0 else run.flops
        place = "config.yaml"
        of_run |= {"lr": config["lr"], "precision": config["precision"], "recipe": _recipe(config)}
        if run.status == FAILED:
            of_run |= {"task": run.domain, "protocol": default_protocol(run.protocol)}
            of_run |= {"data_fingerprint": run.data_fingerprint, "failure": _reason(run.failure)}
            known = {name: value for name, value in of_run.items() if name not in NO_SCORE}
            return {FAILED: [typed(known) | NO_SCORE]}
        cells_of_run = typed(of_run) if any(transfer.results for transfer in results.values()) else {}
        for stem, transfer in results.items():
            place = result_file(folder, stem).relative_to(folder).as_posix()
            cells = cells_of_run | typed({name: getattr(transfer, name) for name in _OF_TASK})
            of_results = [
                {name: getattr(result, name) for name in _OF_RESULT}
                | {"units": result.units or None, "num_features": result.num_features or None}
                for result in transfer.results
            ]
            by_stem[stem] = [cells | typed(of_result) for of_result in of_results]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / place}: missing or malformed: {error}; was it written by this version?") from None
    return by_stem


def _reason(failure: str) -> str:
    """Why a run failed, as a cell that neither a terminal nor a spreadsheet takes for an instruction."""
    text = "".join(letter if letter.isprintable() else "?" for letter in failure)[:499]
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def stamp(record: Path) -> list[tuple[str, int, int, int, int]] | None:
    """Names, sizes, times and inodes of a record's files: they change with the files, and cost less than reading them.

    None where they cannot be listed; empty without a record.
    """
    stamps = []
    try:
        for folder in (record, record / "transfer"):
            with os.scandir(folder) as entries:
                for entry in entries:
                    status = entry.stat()
                    times = status.st_mtime_ns, status.st_ctime_ns
                    stamps.append((entry.path, status.st_size, *times, status.st_ino))
    except FileNotFoundError as error:
        return sorted(stamps) if error.filename in map(os.fspath, (record, record / "transfer")) else None
    except OSError:
        return None
    return sorted(stamps)


class TransferFile(NamedTuple):
    """The transfer file that a row was read from: its name without suffix, and what it says."""

    stem: str
    transfer: TransferRecord


def transfer_of(row: Row) -> TransferFile | None:
    """Where a row was read from; None without a record."""
    try:
        files = transfers(row.record)
    except UserError:
        return None
    for stem, content in files.items():
        same = (content.task, content.protocol) == (row.task, row.protocol)
        # a run may be scored again on data that have changed
        same &= content.data_fingerprint in ("", row.data_fingerprint)
        if same and any(_is_of(row, result) for result in content.results):
            return TransferFile(stem, content)
    return None


def shares(row: Row) -> tuple[str, ...]:
    """The shares of the labels that the row's transfer was run with; () without a record."""
    source = transfer_of(row)
    return () if source is None else tuple(dict.fromkeys(result.label_fraction for result in source.transfer.results))


def _is_of(row: Row, result: Result) -> bool:
    return (result.probe, result.label_fraction, result.metric) == (row.probe, row.label_fraction, row.metric)


class Predictions(NamedTuple):
    """Per-example predictions on the test split, in the forms of ``metrics.py``.

    Attributes:
        scores: ``(draws, n, ...)``, a draw for each set of labels that the probe was fitted with; integers are classes.
        label: of the test rows; ``group`` likewise, None where rows are independent.
    """

    scores: NDArray[Any]
    label: NDArray[Any]
    group: NDArray[np.int64] | None


def agrees(recorded: Row | Result, value: float) -> bool:
    """Whether a recomputed score equals the recorded one up to rounding."""
    rounding = 0.0 if small(recorded.metric, recorded.value) else 2e-6
    return abs(value - recorded.value) <= rounding + 1e-4 * abs(recorded.value)


def predictions_of(row: Row, source: TransferFile | None = None) -> Predictions | None:
    """A row's predictions as its record has them; None if there are none.

    Args:
        row: of the leaderboard, or of a record.
        source: where it was read from, if the caller knows.

    Raises:
        UserError: the file is damaged.
    """
    source = source or transfer_of(row)
    if source is None:
        return None
    path = predictions_file(row.record, source.stem)
    try:
        return stored(row, source.transfer, archive(path))
    except UNREADABLE as error:
        raise UserError(f"cannot read {path}: {error}") from None


def stored(row: Row, transfer: TransferRecord, predictions: Archive | None) -> Predictions | None:
    """See `predictions_of`; from the archive of predictions that lies beside the transfer's file.

    Raises:
        UserError: its numbers are not classes where classes belong; `UNREADABLE` where it is damaged.
    """
    key = prediction_key(row.probe, row.label_fraction)
    if predictions is None or key not in predictions or "label" not in predictions:
        return None
    return _unpacked(predictions[key], predictions, row, transfer)


def yardstick_predictions(
    row: Row, name: str, result: Result, source: TransferFile | None = None
) -> Predictions | None:
    """A yardstick's predictions of the rows that this row was scored on; None where its record did not store them.

    Raises:
        UserError: a file is damaged.
    """
    source = source or transfer_of(row)
    if source is None:
        return None
    path = yardsticks_file(row.record, source.stem)
    try:
        yardsticks = archive(path)
        path = predictions_file(row.record, source.stem)
        return stored_yardstick(row, name, result, source.transfer, yardsticks, archive(path))
    except UNREADABLE as error:
        raise UserError(f"cannot read {path}: {error}") from None


def stored_yardstick(
    row: Row, name: str, result: Result, transfer: TransferRecord, yardsticks: Archive | None, truth: Archive | None
) -> Predictions | None:
    """See `yardstick_predictions`; from the archives of yardsticks and of predictions beside the transfer's file.

    Raises:
        UserError: its numbers are not classes where classes belong; `UNREADABLE` where one is damaged.
    """
    key = yardstick_key(name, prediction_key(result.probe, result.label_fraction))
    if yardsticks is None or truth is None or key not in yardsticks or "label" not in truth:
        return None
    drawn = yardsticks[key]
    return _unpacked(drawn, truth, row, transfer) if drawn.shape[1:2] == truth["label"].shape[:1] else None


UNREADABLE = (
    *(OSError, ValueError, TypeError, EOFError, MemoryError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What `archive` and its arrays raise where a file is damaged or forged."""


class Packed(NamedTuple):
    """A member of an archive: its bytes as they lie there, how they are packed, and what they unpack to."""

    content: bytes
    method: int
    size: int
    checksum: int

    def unpacked(self) -> bytes:
        """Its own bytes; `zipfile` does the same with several objects and locks for each member.

        Raises:
            ValueError, zlib.error: they are not those that were written.
        """
        if self.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"it is packed by method {self.method}, as no run packs it")
        content = self.content
        if self.method == zipfile.ZIP_DEFLATED:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, self.size + 1)
        if len(content) != self.size or zlib.crc32(content) != self.checksum:
            raise ValueError("its bytes are not those that were written")
        return content


class Archive(Mapping[str, NDArray[Any]]):
    """The arrays of an ``.npz``, each unpacked when it is first read, and none larger than its bytes: numpy allocates
    what a header claims.

    Raises:
        ValueError: on reading an array that is not of numbers, or of another size than it claims; other errors of
            `UNREADABLE` where the file is damaged.
    """

    def __init__(self, content: bytes) -> None:
        with zipfile.ZipFile(BytesIO(content)) as zipped:
            self._members = {info.filename.removesuffix(".npy"): info for info in zipped.infolist()}
        self._content = content
        self._arrays: dict[str, NDArray[Any]] = {}
        total = sum(info.file_size for info in self._members.values())
        if total > MAX_UNPACKED:
            raise ValueError(f"it unpacks to {total:,} bytes")

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._arrays:
            packed = self._packed(self._members[name])
            self._arrays[name] = (_shared if packed.size <= SHARED else _array_of)(packed)
        return self._arrays[name]

    def _packed(self, info: zipfile.ZipInfo) -> Packed:
        local = self._content[info.header_offset : info.header_offset + 30]  # its header, before name and extra field
        if local[:4] != b"PK\3\4" or len(local) < 30:
            raise ValueError(f"nothing lies where it has {info.filename!r}")
        start = info.header_offset + 30 + sum(int.from_bytes(local[i : i + 2], "little") for i in (26, 28))
        content = self._content[start : start + info.compress_size]
        return Packed(content, info.compress_type, info.file_size, info.CRC)


def _array_of(packed: Packed) -> NDArray[Any]:
    return _array(packed.unpacked())


SHARED = 2**20  # bytes
_shared = lru_cache(maxsize=256)(_array_of)  # all records of the same data have the same labels and yardsticks


def _array(content: bytes) -> NDArray[Any]:
    """The array that an ``.npy`` holds, which nobody can write into."""
    length = 10 + int.from_bytes(content[8:10], "little")  # as in version 1 of the format, which numbers fit
    shape, in_columns, dtype = _header(content[:length])
    if dtype.kind not in "biuf":
        raise ValueError(f"it holds {dtype} where numbers belong")
    if length + math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError("it claims another size than it has")
    return np.frombuffer(content, dtype, offset=length).reshape(shape, order="F" if in_columns else "C")


@lru_cache(maxsize=1024)
def _header(content: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns are contiguous, and type; remembered because many arrays share them."""
    file = BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("it is of another version of numpy's format than numbers need")
    header: tuple[tuple[int, ...], bool, np.dtype[Any]] = np.lib.format.read_array_header_1_0(file)
    return header


def archive(path: Path) -> Archive | None:
    """The archive at this path, read once for the rows of one record, which follow each other; None without a file.

    Raises:
        OSError, ValueError, zipfile.BadZipFile: it cannot be read; see `UNREADABLE`.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return _archive(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2)
def _archive(path: Path, modified: int, size: int) -> Archive:
    return Archive(path.read_bytes())


def _unpacked(drawn: NDArray[Any], truth: Archive, row: Row, transfer: TransferRecord) -> Predictions | None:
    """Scores, label and group; None where classes are stored and the metric reads more than those."""
    label, group = truth["label"], truth.get("group")
    if drawn.dtype.kind in "iu" and transfer.kind == "classes":
        if row.metric not in BY_CLASS:
            return None
        wrong = drawn.ndim != 2 or label.ndim != 1 or drawn.min(initial=0) < 0
        if wrong or max(drawn.max(initial=0), label.max(initial=0)) >= MAX_CLASSES:
            raise UserError(f"{row.record}: the predictions of {row.task} hold numbers that are not classes")
    elif drawn.dtype.kind in "iu":
        drawn = drawn.astype(float)  # in a metric's eyes integers are classes
    return Predictions(drawn, label, group)
