"""What a record must be if a run wrote it, found without training: files, digests, predictions, and other records.

A record that passes may still be of an encoder that was trained otherwise: leaderboard/README.md says what remains.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dabsmix.board.record import (
    ONLINE,
    UNREADABLE,
    Predictions,
    Source,
    agrees,
    archive,
    config_of,
    predictions_file,
    predictions_of,
    result_file,
    transfer_of,
    transfers,
    yardstick_predictions,
)
from dabsmix.board.row import Row
from dabsmix.config import PretrainConfig, hashes_of, started_from
from dabsmix.errors import UserError
from dabsmix.run import RunRecord, read_record
from dabsmix.scoring.intervals import MIN_GROUPS, measure
from dabsmix.scoring.metrics import Metric, Undefined, metric
from dabsmix.scoring.results import BY_CLASS, Result, TransferRecord, default_protocol, prediction_key, probes_of
from dabsmix.source import Source

__all__ = ["MAX_PREDICTIONS", "Compared", "check_files", "check_record", "check_row", "label_digest", "record_name"]

MAX_PREDICTIONS = 2 * 2**20  # bytes; the records live in a git repository
MAX_FILE = 64 * 2**20  # of any other file of a record
WIDTHS = 3.0  # no estimator that a version had gives an interval so many times wider or narrower than another


# --- files


def check_files(record: Path) -> list[str]:
    """Files of a record that are not plain, or larger than any that a run writes. To be called before they are read."""
    found = []
    for path in (record, *_below(record)):
        try:
            status = path.lstat()
        except OSError as error:
            return [f"no record: {path}: {error.strerror}"]
        name = path.relative_to(record.parent)
        limit = MAX_PREDICTIONS if path.name.endswith(".npz") else MAX_FILE
        folder = path in (record, record / "transfer")
        if not (stat.S_ISDIR(status.st_mode) if folder else stat.S_ISREG(status.st_mode)):
            found.append(f"{name} is not a plain {'folder' if folder else 'file'}: records hold no links")
        elif stat.S_ISREG(status.st_mode) and status.st_size > limit:
            found.append(f"{name} has {status.st_size:,} bytes, more than the {limit:,} that a record may hold")
        elif path.name.endswith(".npz") and (problem := _npz_problem(path)):
            found.append(f"{name} {problem}")
    return found


def _below(record: Path) -> Iterator[Path]:
    yield from (record / "run.json", record / "config.yaml")
    scores = (record / "transfer", result_file(record, ONLINE), predictions_file(record, ONLINE))
    yield from (path for path in scores if os.path.lexists(path))
    if not (record / "transfer").is_symlink() and (record / "transfer").is_dir():
        yield from sorted((record / "transfer").iterdir())


def _npz_problem(path: Path) -> str:
    """Why an archive of arrays cannot be what a run wrote; empty if it can."""
    try:
        there = archive(path)
        for name in there or ():
            assert there is not None
            there[name]
    except UNREADABLE as error:
        return f"cannot be read ({error})"
    return ""


# --- a record by itself


def record_name(run: RunRecord) -> str:
    """The run's name with a hash of its configuration and encoder: two machines' ``cifar10-dmix-s0`` do not collide."""
    identity = hashlib.sha256(f"{run.config_hash} {run.encoder_sha256}".encode()).hexdigest()
    return re.sub(r"[^A-Za-z0-9._-]+", "_", run.name or "run") + f"-{identity[:8]}"


def check_record(record: Path, name: str | None = None) -> list[str]:
    """Where ``run.json`` and the transfer files disagree with ``config.yaml``, with each other or with the ``name``."""
    try:
        run, config, found = read_record(record), config_of(record), transfers(record)
    except UserError as error:
        return [str(error)]
    own = {each.name for kind in (PretrainConfig, Source) for each in fields(kind)}
    wanted: dict[str, Any] = {
        "domain": config.get("domain") or run.domain,
        "algorithm": config.get("algo"),
        "protocol": config.get("protocol"),
        "hyper": {name: value for name, value in config.items() if name not in own} | started_from(config.get("init")),
        **{name: config.get(name) for name in ("encoder", "seed", "batch_size", "online")},
    }
    problems = [
        f"{name} is {getattr(run, name)!r} in run.json, config.yaml gives {value!r}"
        for name, value in wanted.items()
        if getattr(run, name) != value
    ]
    if run.steps != (0 if run.algorithm == "none" else config.get("steps")):
        problems.append(f"steps is {run.steps} in run.json, config.yaml gives {config.get('steps')!r}")
    if run.uses_labels != run.algorithm.endswith("supcon") and ":" not in run.algorithm:
        problems.append(f"uses_labels is {run.uses_labels} in run.json: {run.algorithm} does the opposite")
    if config.get("options") is None and run.config_hash not in hashes_of(config):  # else a file of the user's enters
        problems.append(f"config_hash is {run.config_hash!r} in run.json, config.yaml gives another")
    if name is not None and name != record_name(run):
        problems.append(f"the folder is {name!r}, its run.json gives {record_name(run)!r}")
    if len(set(run.encoder_sha256)) < 8:
        problems.append(f"encoder_sha256 {run.encoder_sha256!r} is not a digest")
    if run.commit and not re.fullmatch(r"[0-9a-f]{40}(\+dirty)?", run.commit):
        problems.append(f"commit {run.commit!r} is not a commit")
    for stem, transfer in found.items():
        check = _online_problems(transfer, run) if stem == ONLINE else _transfer_problems(stem, transfer, run)
        problems += [f"{result_file(record, stem).relative_to(record)}: {problem}" for problem in check]
    return problems


def _online_problems(online: TransferRecord, run: RunRecord) -> Iterator[str]:
    """Where the online score is not the one that the run's own log ends with."""
    if online.encoder_sha256 != run.encoder_sha256:
        yield "it is of another encoder"
    if (online.task, online.protocol) != (run.online or run.domain, run.protocol):
        yield f"task {online.task!r} under {online.protocol!r} is not what run.json says the online probe learned"
    if [(each.probe, each.label_fraction) for each in online.results] != [(ONLINE, "1")]:
        yield "it holds other results than one of the online probe with all labels"
        return
    logged, value = run.metrics.get("online_test"), online.headline.value
    if not isinstance(logged, int | float) or not np.isclose(logged, value, rtol=1e-4, atol=2e-6):
        yield f"its score is {value}, run.json's online_test is {logged}"


def _transfer_problems(stem: str, transfer: TransferRecord, run: RunRecord) -> Iterator[str]:
    if transfer.encoder_sha256 and transfer.encoder_sha256 != run.encoder_sha256:
        yield "it is of another encoder"
    named = {f"{transfer.task}-{transfer.protocol}" + (f"+{transfer.head_mix}" if transfer.head_mix else "")}
    if not transfer.head_mix and transfer.protocol in (
        run.protocol,
        default_protocol(run.protocol),
    ):  # the former is v1's own, from before v2
        named.add(transfer.task)
    if re.sub(r"-\d+$", "", stem) not in named and stem not in named:
        yield f"protocol {transfer.protocol!r} and task {transfer.task!r} give another name"
    there = {prediction_key(each.probe, each.label_fraction) for each in transfer.results}
    shares = dict.fromkeys(each.label_fraction for each in transfer.results)
    fitted = probes_of(transfer.protocol, transfer.kind, transfer.head_mix)  # one that did badly may not be left out
    asked = dict.fromkeys([*transfer.asked, *(prediction_key(probe, share) for share in shares for probe in fitted)])
    if missing := [cell for cell in asked if cell not in there]:
        yield f"no result of {', '.join(missing)}, which was requested"


# --- a row by its predictions


def check_row(row: Row) -> list[str]:
    """Where the kept predictions give another score, interval or number of examples, or are missing."""
    try:
        found = predictions_of(row)
    except UserError as error:
        return [str(error)]
    if found is None:
        return _missing(row)
    n = len(found.label)
    if n != row.n or any(len(scores) != n for scores in found.scores):
        return [f"n is {row.n}, its predictions are of {n} examples"]
    if found.group is not None and len(found.group) != n:
        return [f"n is {row.n}, its predictions have {len(found.group)} groups' numbers"]
    wanted = metric(row.metric)
    try:
        value = float(np.mean([wanted(scores, found.label) for scores in found.scores]))
    except (IndexError, TypeError, ValueError) as error:
        return [f"the predictions in {row.record} have no {row.metric}: {error}"]
    if not agrees(row, value):
        return [f"value is {row.value}, its predictions give {value:.6f}"]
    return _interval_problems(row, found, wanted)


def _missing(row: Row) -> list[str]:
    """Predictions may be missing only where they are too large to be kept."""
    source = transfer_of(row)
    if source is None:
        return []  # reported elsewhere
    stem, transfer = source
    scores = max(1, len(transfer.classes)) if row.metric not in BY_CLASS else 1
    needed = sum(4 * each.n * each.draws * scores for each in transfer.results) + 8 * row.n
    there = predictions_file(row.record, stem).is_file()
    if transfer.kind == "tokens" or (needed > MAX_PREDICTIONS and not there):
        return []
    return [f"no predictions of {row.probe} with labels {row.label_fraction}: below 2 MiB a task they are required"]


def _interval_problems(row: Row, found: Predictions, wanted: Metric) -> list[str]:
    """Whether the interval is of these predictions: versions differ in their estimator, influence values bound it."""
    if row.low is None or row.high is None:
        return []
    try:
        measured = measure(wanted, found.scores, found.label, found.group)
    except Undefined:
        return []
    if len(measured.influence) < MIN_GROUPS:
        return []  # too few to bound anything
    half = 1.96 * float(np.sqrt(np.square(measured.influence).sum()))
    width, claimed = 2 * half, row.high - row.low
    slack = 3.0 / row.n  # where all are right, or nearly, the examples do not spread
    if claimed * WIDTHS + slack < width or claimed > WIDTHS * width + 10 * slack:
        low, high = measured.value - half, measured.value + half
        return [f"interval [{row.low}, {row.high}], its predictions give about [{low:.4f}, {high:.4f}]"]
    return []


# --- a record beside the others


def label_digest(label: NDArray[Any]) -> str:
    """Hex sha256 of the test labels, as int64 or float64 whatever they are stored as."""
    plain = np.ascontiguousarray(label, dtype=np.float64 if label.dtype.kind == "f" else np.int64)
    return hashlib.sha256(f"{plain.shape}".encode() + plain.tobytes()).hexdigest()


def _scored_on(row: Row) -> tuple[str, str, str, bool]:
    """Rows that share this were scored together: one transfer file backs them, or the online score."""
    return row.task, row.data_fingerprint, row.protocol, row.probe == ONLINE


class Compared:
    """What records of the same data must share, gathered record by record.

    Attributes:
        labels: digest of the test labels by task and fingerprint: those that were stored, and those met since.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.labels = dict(labels)
        self._stored = bool(labels)
        self._n: dict[str, int] = {}
        self._encoders: dict[str, str] = {}
        self._answers: dict[str, str] = {}
        self._yardsticks: dict[tuple[str, ...], float] = {}

    def problems(self, rows: Sequence[Row]) -> list[str]:
        """Where a record, given by its rows, differs from those before it."""
        found = []
        first = rows[0]
        known = self._encoders.setdefault(first.encoder_sha256, first.config_hash)
        if known != first.config_hash and first.algorithm != "none":  # no step was taken: many settings, one encoder
            found.append("another configuration has this very encoder")
        for task in sorted({_scored_on(row) for row in rows}):
            found += self._of_task(f"{task[0]} {task[1]}", [row for row in rows if _scored_on(row) == task])
        return found

    def _of_task(self, data: str, rows: Sequence[Row]) -> list[str]:
        found = []
        n = self._n.setdefault(data, rows[0].n)
        found += [f"n is {row.n}, other rows of the same data have {n}" for row in rows if row.n != n][:1]
        try:
            kept = [each for row in rows if (each := predictions_of(row)) is not None]
        except UserError:
            return found
        if kept:
            digest = label_digest(kept[0].label)
            if self._stored and data not in self.labels:
                found.append("labels.json has no digest of these data's test labels")
            if self.labels.setdefault(data, digest) != digest:
                found.append("its test labels are not those that the data have")
            if rows[0].probe == ONLINE:  # a probe that has learned little predicts one class, whatever the encoder
                return found
            answers = hashlib.sha256(b"".join(scores.tobytes() for each in kept for scores in each.scores)).hexdigest()
            other = self._answers.setdefault(f"{data} {rows[0].protocol} {answers}", rows[0].encoder_sha256)
            if other != rows[0].encoder_sha256 and any(row.value < 1 for row in rows) and rows[0].algorithm != "none":
                found.append("another encoder has the very same predictions")
        return found + self._yardstick_problems(rows[0])

    def _yardstick_problems(self, row: Row) -> list[str]:
        source = transfer_of(row)
        if source is None:
            return []
        found = []
        for name in ("majority", "raw"):
            for each in source[1].yardsticks.get(name, ()):
                of_data = (row.task, row.data_fingerprint, row.protocol, row.version)
                cell = (*of_data, name, each.probe, each.label_fraction, each.metric)
                other = self._yardsticks.setdefault(cell, each.value)
                if abs(other - each.value) > 0.01 * max(1.0, abs(other)):
                    found.append(f"the yardstick {name} scores {each.value:.4f}, in other records {other:.4f}")
        for name, results in source[1].yardsticks.items():
            found += [problem for each in results for problem in _of_yardstick(row, name, each)]
        return found


def _of_yardstick(row: Row, name: str, result: Result) -> list[str]:
    """Where a yardstick's kept predictions give another score than the record."""
    try:
        kept = yardstick_predictions(row, name, result)
        if kept is None or result.metric != row.metric:
            return []
        value = float(np.mean([metric(row.metric)(scores, kept.label) for scores in kept.scores]))
    except (UserError, IndexError, TypeError, ValueError) as error:
        return [f"the predictions of the yardstick {name} give no {row.metric}: {error}"]
    same = np.isclose(value, result.value, rtol=1e-4, atol=2e-6)
    return [] if same else [f"the yardstick {name} is recorded as {result.value:.6f}, its predictions give {value:.6f}"]
