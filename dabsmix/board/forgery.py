"""What a record must be if a run wrote it, checked without training: files, digests, predictions, and other records.

A record that passes may still be of an encoder that was trained otherwise: leaderboard/README.md says what remains.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dabsmix.board.record import (
    FAILED,
    ONLINE,
    UNREADABLE,
    Archive,
    Predictions,
    TransferFile,
    agrees,
    config_of,
    predictions_file,
    predictions_of,
    result_file,
    scores_of,
    stored,
    stored_yardstick,
    transfer_of,
    transfers,
    yardsticks_file,
)
from dabsmix.board.row import COLUMNS, Row
from dabsmix.config import PretrainConfig, hashes_of, started_from
from dabsmix.errors import UserError
from dabsmix.registry import algorithm_needs_labels
from dabsmix.run import RunRecord, read_record
from dabsmix.scoring.intervals import MIN_GROUPS, Measured, interval, mean_score, measure
from dabsmix.scoring.metrics import known, metric
from dabsmix.scoring.results import BY_CLASS, TransferRecord, default_protocol, prediction_key, probes_of
from dabsmix.source import Source

__all__ = [
    "MAX_PREDICTIONS",
    "OF_SUBMISSION",
    "RECORDED",
    "Account",
    "Compared",
    "OfRun",
    "account",
    "check_files",
    "check_record",
    "check_row",
    "digest_of",
    "label_digest",
    "record_name",
]

MAX_PREDICTIONS = 2 * 2**20  # bytes; the records live in a git repository
MAX_FILE = 64 * 2**20  # of any other file of a record
WIDTHS = 3.0  # no estimator that a version had gives an interval so many times wider or narrower than another


# --- files


def check_files(record: Path) -> tuple[list[str], dict[str, Archive]]:
    """Files of a record that are not plain, or larger than any that a run writes. To be called before they are read.

    Also its archives of arrays by name below the record, each array of which could be read.
    """
    faults, archives = [], {}
    for name in ("", *_below(record)):  # text in place of paths, because a board has tens of thousands of files
        path = os.path.join(record, name) if name else os.fspath(record)
        try:
            status = os.lstat(path)
        except OSError as error:
            return [f"no record: {path}: {error.strerror}"], {}
        place = os.path.join(record.name, name) if name else record.name
        limit = MAX_PREDICTIONS if name.endswith(".npz") else MAX_FILE
        folder = name in ("", "transfer")
        if not (stat.S_ISDIR(status.st_mode) if folder else stat.S_ISREG(status.st_mode)):
            faults.append(f"{place} is not a plain {'folder' if folder else 'file'}: records hold no links")
        elif stat.S_ISREG(status.st_mode) and status.st_size > limit:
            faults.append(f"{place} has {status.st_size:,} bytes, more than the {limit:,} that a record may hold")
        elif name.endswith(".npz"):
            try:
                with open(path, "rb", buffering=0) as file:
                    archives[name] = Archive(file.readall())
                list(archives[name].values())  # an array is checked when it is read
            except UNREADABLE as error:
                faults.append(f"{place} cannot be read ({error})")
    return faults, archives


def _below(record: Path) -> list[str]:
    """Names of the files and folders that a record's account depends on, below its folder; the first two always."""
    try:
        there = set(os.listdir(record))
    except OSError:
        there = set()
    names = ["run.json", "config.yaml", *(name for name in _OF_ONLINE if name in there)]
    if "transfer" in there:
        names.append("transfer")
        if not os.path.islink(folder := os.path.join(record, "transfer")) and os.path.isdir(folder):
            names += [f"transfer/{name}" for name in sorted(os.listdir(folder))]
    return names


_OF_ONLINE = tuple(
    file(Path(), ONLINE).name for file in (result_file, predictions_file, yardsticks_file)
)  # beside run.json


# --- a record by itself


def record_name(run: RunRecord) -> str:
    """The run's name with a hash of its configuration and encoder: two machines' ``cifar10-dmix-s0`` do not collide."""
    identity = hashlib.sha256(f"{run.config_hash} {run.encoder_sha256}".encode()).hexdigest()
    return re.sub(r"[^A-Za-z0-9._-]+", "_", run.name or "run") + f"-{identity[:8]}"


def check_record(record: Path, name: str | None = None) -> list[str]:
    """Where ``run.json`` and the transfer files disagree with ``config.yaml``, with each other or with the ``name``."""
    try:
        run, config, by_stem = read_record(record), config_of(record), transfers(record)
    except UserError as error:
        return [str(error)]
    return _contradictions(record, run, config, by_stem, name)


_OF_FRAMEWORK = {field.name for kind in (PretrainConfig, Source) for field in fields(kind)}


def _contradictions(
    record: Path, run: RunRecord, config: Mapping[str, Any], by_stem: Mapping[str, TransferRecord], name: str | None
) -> list[str]:
    expected: dict[str, Any] = {
        "domain": config.get("domain") or run.domain,
        "algorithm": config.get("algo"),
        "protocol": config.get("protocol"),
        "hyper": {name: value for name, value in config.items() if name not in _OF_FRAMEWORK}
        | started_from(config.get("init")),
        **{name: config.get(name) for name in ("encoder", "seed", "batch_size", "online")},
    }
    problems = [
        f"{name} is {getattr(run, name)!r} in run.json, config.yaml gives {value!r}"
        for name, value in expected.items()
        if getattr(run, name) != value
    ]
    if run.steps != (0 if run.algorithm == "none" else config.get("steps")):
        problems.append(f"steps is {run.steps} in run.json, config.yaml gives {config.get('steps')!r}")
    if _needs_labels(run.algorithm) not in (None, run.uses_labels):
        problems.append(f"uses_labels is {run.uses_labels} in run.json: {run.algorithm} does the opposite")
    if config.get("options") is None and run.config_hash not in hashes_of(config):  # else a file of the user's enters
        problems.append(f"config_hash is {run.config_hash!r} in run.json, config.yaml gives another")
    if name is not None and name != record_name(run):
        problems.append(f"the folder is {name!r}, its run.json gives {record_name(run)!r}")
    problems += _status_problems(run, by_stem)
    if run.status != FAILED and len(set(run.encoder_sha256)) < 8:
        problems.append(f"encoder_sha256 {run.encoder_sha256!r} is not a digest")
    if run.commit and not re.fullmatch(r"[0-9a-f]{40}(\+dirty)?", run.commit):
        problems.append(f"commit {run.commit!r} is not a commit")
    for stem, transfer in by_stem.items():
        check = _online_problems(transfer, run) if stem == ONLINE else _transfer_problems(stem, transfer, run)
        problems += [f"{result_file(record, stem).relative_to(record)}: {problem}" for problem in check]
    return problems


@cache
def _needs_labels(algorithm: str) -> bool | None:
    """Whether pretraining by this algorithm uses labels; None for one that is not among the installed ones."""
    if ":" in algorithm:  # somebody's file, which a check must not look for
        return None
    with suppress(UserError):
        return algorithm_needs_labels(algorithm)
    return None


def _status_problems(run: RunRecord, transfers: Mapping[str, TransferRecord]) -> Iterator[str]:
    """Only a finished run has scores, and a failed one says why it failed and has none."""
    if run.status not in ("finished", FAILED):
        yield f"status is {run.status!r} in run.json, which is neither 'finished' nor 'failed'"
    elif run.status == FAILED and not run.failure:
        yield "run.json does not say why it failed"
    elif run.status == FAILED and (run.encoder_sha256 or transfers):
        yield "run.json says that it failed, and it has an encoder or scores"


def _online_problems(online: TransferRecord, run: RunRecord) -> Iterator[str]:
    """Where the online score is not the one that the run's own log ends with."""
    if online.encoder_sha256 != run.encoder_sha256:
        yield "it is of another encoder"
    if (online.task, online.protocol) != (run.online or run.domain, run.protocol):
        yield f"task {online.task!r} under {online.protocol!r} is not what run.json says the online probe learned"
    if [(result.probe, result.label_fraction) for result in online.results] != [(ONLINE, "1")]:
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
    recorded = {prediction_key(result.probe, result.label_fraction) for result in transfer.results}
    shares = dict.fromkeys(result.label_fraction for result in transfer.results)
    fitted = probes_of(transfer.protocol, transfer.kind, transfer.head_mix)  # one that did badly may not be left out
    expected = dict.fromkeys([*transfer.asked, *(prediction_key(probe, share) for share in shares for probe in fitted)])
    if missing := [cell for cell in expected if cell not in recorded]:
        yield f"no result of {', '.join(missing)}, which was requested"


# --- a row by its predictions


def check_row(row: Row, source: TransferFile | None = None) -> list[str]:
    """Where the stored predictions give another score, interval or number of examples, or are missing.

    Args:
        row: of the leaderboard, or of a record.
        source: where it was read from, if the caller knows.
    """
    source = source or transfer_of(row)
    try:
        drawn = predictions_of(row, source)
    except UserError as error:
        return [str(error)]
    if drawn is None:
        return [] if source is None else _missing(row, source)
    return _faults(row, drawn)


def _faults(row: Row, drawn: Predictions) -> list[str]:
    """Where a row differs from its predictions."""
    n = len(drawn.label)
    if n != row.n or drawn.scores.shape[1:2] != (n,):
        return [f"n is {row.n}, its predictions are of {n} examples"]
    if drawn.group is not None and len(drawn.group) != n:
        return [f"n is {row.n}, its predictions have {len(drawn.group)} groups' numbers"]
    scale = metric(row.metric)
    try:
        measured = measure(scale, drawn.scores, drawn.label, drawn.group)
    except (IndexError, TypeError, ValueError) as error:
        return [f"the predictions in {row.record} have no {row.metric}: {error}"]
    if not agrees(row, measured.value):
        return [f"value is {row.value}, its predictions give {measured.value:.6f}"]
    return _interval_problems(row, measured)


def _missing(row: Row, source: TransferFile) -> list[str]:
    """Predictions may be missing only where they are too large to be stored."""
    stem, transfer = source
    scores = max(1, len(transfer.classes)) if row.metric not in BY_CLASS else 1
    needed = sum(4 * result.n * result.draws * scores for result in transfer.results) + 8 * row.n
    there = predictions_file(row.record, stem).is_file()
    if transfer.kind == "tokens" or (needed > MAX_PREDICTIONS and not there):
        return []
    return [f"no predictions of {row.probe} with labels {row.label_fraction}: below 2 MiB a task they are required"]


def _interval_problems(row: Row, measured: Measured) -> list[str]:
    """Whether the interval is of these predictions: versions differ in their estimator, influence values bound it."""
    if row.low is None or row.high is None or len(measured.influence) < MIN_GROUPS:  # too few to bound anything
        return []
    least = 1.96 * math.sqrt(float(np.square(measured.influence).sum()))
    ends = interval(metric(row.metric), [measured])  # near the edge of its scale it is far from symmetric
    most = max(least, ((ends.high or 0.0) - (ends.low or 0.0)) / 2)
    claimed = (row.high - row.low) / 2
    slack = 1.5 / row.n  # where all are right, or nearly, the examples do not spread
    if claimed * WIDTHS + slack < least or claimed > WIDTHS * most + 10 * slack:
        low, high = measured.value - most, measured.value + most
        return [f"interval [{row.low}, {row.high}], its predictions give about [{low:.4f}, {high:.4f}]"]
    return []


# --- all that a record says, and what is wrong with it by itself


class FileSummary(NamedTuple):
    """What one transfer file, or the online score, has in common with those of other records of the same data.

    Attributes:
        data: task and fingerprint.
        protocol: of the transfer.
        n: test examples of each result.
        labels: digest of the test labels; empty if no predictions are stored.
        answers: digest of all predictions; empty where those of two encoders may be equal: of the online probe, which
            predicts one class until it has learned, of random encoders, and where nothing is wrong.
        yardsticks: values of the majority class and of raw input, by name, probe, share of the labels and metric.
    """

    data: str
    protocol: str
    n: tuple[int, ...]
    labels: str
    answers: str
    yardsticks: tuple[tuple[str, float], ...]


class OfRun(NamedTuple):
    """What a run has in common with others: its encoder, configuration, algorithm and version, and its scores'."""

    encoder: str
    configuration: str
    algorithm: str
    version: str
    scored: tuple[FileSummary, ...]

    @classmethod
    def from_plain(cls, values: Any) -> OfRun:
        """From JSON values."""
        encoder, configuration, algorithm, version, scored = values
        of_files = tuple(
            FileSummary(data, protocol, tuple(n), labels, answers, tuple(map(tuple, yardsticks)))
            for data, protocol, n, labels, answers, yardsticks in scored
        )
        return cls(encoder, configuration, algorithm, version, of_files)


@dataclass(frozen=True)
class Account:
    """What a record says, and what is wrong with it by itself: it depends on the record's files alone.

    Attributes:
        unreadable: why it backs no row; empty if it backs some.
        problems: of the record.
        rows: its results, as values of the columns `RECORDED`; ``faults`` of each, by its predictions.
        scored: what is compared with other records, see `compared`.
    """

    unreadable: str = ""
    problems: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    faults: tuple[tuple[str, ...], ...] = ()
    scored: tuple[FileSummary, ...] = ()

    @property
    def compared(self) -> OfRun | None:
        """What is compared with other records; None without results, and for a failed run."""
        of_run = dict(zip(RECORDED, self.rows[0], strict=True)) if self.rows else {}
        if not of_run.get("encoder_sha256"):
            return None
        encoder, configuration = of_run["encoder_sha256"], of_run["config_hash"]
        return OfRun(encoder, configuration, of_run["algorithm"], of_run["version"], self.scored)


def digest_of(record: Path, rows: Any) -> str:
    """Hex sha256 of the record's place and every file that an account depends on, and of rows; empty if unreadable."""
    digest = hashlib.sha256(f"{str(record)!r}\n{rows!r}\n".encode(errors="surrogatepass"))
    try:
        for name in ("", *_below(record)):  # text in place of paths, because a board has tens of thousands of files
            path = os.path.join(record, name)
            status = os.lstat(path if name else record)
            content = b""
            if stat.S_ISREG(status.st_mode):
                if status.st_size > MAX_FILE:
                    return ""
                with open(path, "rb", buffering=0) as file:
                    content = file.readall()
            # a name may hold a line break: quoted, it cannot pass for the end of a file
            digest.update(f"{name!r} {stat.S_IFMT(status.st_mode)} {len(content)}\n".encode())
            digest.update(content)
    except (OSError, UnicodeEncodeError):
        return ""
    return digest.hexdigest()


OF_SUBMISSION = ("run", "by", "date")  # columns that are not in a run's folder
RECORDED = tuple(name for name in COLUMNS if name not in OF_SUBMISSION)
_CELLS = attrgetter(*RECORDED)


def account(record: Path) -> Account:
    """Check a record by itself."""
    problems, archives = check_files(record)
    if problems:
        return Account(unreadable="; ".join(problems))
    try:
        run, config, by_stem = read_record(record), config_of(record), transfers(record)
        by_file = scores_of(record, run, config, by_stem)
    except UserError as error:
        return Account(unreadable=str(error))
    stamp: dict[str, Any] = {"run": record.name, "by": "", "date": "", "record": record}
    rows: list[Row] = []
    faults: list[tuple[str, ...]] = []
    compared: list[FileSummary] = []
    problems = _contradictions(record, run, config, by_stem, record.name)
    for stem, of_file in by_file.items():
        results = [Row(**cells, **stamp) for cells in of_file]
        rows += results
        if stem == FAILED:
            faults += [() for _ in results]
            continue
        source = TransferFile(stem, by_stem[stem])
        folder = "" if stem == ONLINE else "transfer/"
        predictions, yardsticks = (archives.get(f"{folder}{stem}.{kind}.npz") for kind in ("predictions", "yardsticks"))
        drawn: list[Predictions] = []
        for row in results:
            try:
                of_row = stored(row, source.transfer, predictions)
            except UserError as error:
                faults.append((str(error),) if known(row.metric) else ())
                continue
            if of_row is not None:
                drawn.append(of_row)
            if not known(row.metric):
                faults.append(())
            else:
                faults.append(tuple(_missing(row, source) if of_row is None else _faults(row, of_row)))
        if results:
            compared.append(_scored(results, source, drawn))
            problems += _yardstick_problems(results[0], source, yardsticks, predictions)
    if not rows:
        problems = ["it records no result"]
    return Account("", tuple(problems), tuple(map(_CELLS, rows)), tuple(faults), tuple(compared))


def label_digest(label: NDArray[Any]) -> str:
    """Hex sha256 of the test labels, as int64 or float64 whatever they are stored as."""
    plain = np.ascontiguousarray(label, dtype=np.float64 if label.dtype.kind == "f" else np.int64)
    return hashlib.sha256(f"{plain.shape}".encode() + plain.tobytes()).hexdigest()


def _scored(rows: Sequence[Row], source: TransferFile, drawn: Sequence[Predictions]) -> FileSummary:
    first = rows[0]
    yardsticks = tuple(
        (f"{name} {result.probe} {result.label_fraction} {result.metric}", result.value)
        for name in ("majority", "raw")
        for result in source.transfer.yardsticks.get(name, ())
    )
    labels = answers = ""
    if drawn:
        labels = label_digest(drawn[0].label)
        if first.probe != ONLINE and first.algorithm != "none" and any(row.value < 1 for row in rows):
            answers = _answers_digest(drawn)
    ns = tuple(row.n for row in rows)
    return FileSummary(f"{first.task} {first.data_fingerprint}", first.protocol, ns, labels, answers, yardsticks)


def _answers_digest(drawn: Sequence[Predictions]) -> str:
    digest = hashlib.sha256()
    for predictions in drawn:  # one integer type, so that the same classes have the same digest
        scores = predictions.scores.astype(np.int32) if predictions.scores.dtype.kind in "iu" else predictions.scores
        digest.update(np.ascontiguousarray(scores).data)
    return digest.hexdigest()


def _yardstick_problems(
    row: Row, source: TransferFile, yardsticks: Archive | None, truth: Archive | None
) -> Iterator[str]:
    """Where a yardstick's stored predictions give another score than the record."""
    for name, results in source.transfer.yardsticks.items():
        for result in results:
            try:
                drawn = stored_yardstick(row, name, result, source.transfer, yardsticks, truth)
                if drawn is None or result.metric != row.metric:
                    continue
                value = mean_score(metric(row.metric), drawn.scores, drawn.label)
            except (UserError, IndexError, TypeError, ValueError) as error:
                yield f"the predictions of the yardstick {name} give no {row.metric}: {error}"
                continue
            if not agrees(result, value):
                yield (f"the yardstick {name} is recorded as {result.value:.6f}, its predictions give {value:.6f}")


# --- a record beside the others


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
        self._answers: dict[tuple[str, ...], str] = {}
        self._yardsticks: dict[tuple[str, ...], float] = {}

    def problems(self, run: OfRun) -> list[str]:
        """Where a record differs from those before it."""
        problems = []
        known = self._encoders.setdefault(run.encoder, run.configuration)
        if known != run.configuration and run.algorithm != "none":  # no step was taken: many settings, one encoder
            problems.append("another configuration has this very encoder")
        for scored in run.scored:
            problems += self._of_task(scored, run.encoder, run.version)
        return problems

    def _of_task(self, scored: FileSummary, encoder: str, version: str) -> list[str]:
        problems = []
        data, protocol = scored.data, scored.protocol
        n = self._n.setdefault(data, scored.n[0])
        problems += [f"n is {count}, other rows of the same data have {n}" for count in scored.n if count != n][:1]
        if scored.labels:
            if self._stored and data not in self.labels:
                problems.append("labels.json has no digest of these data's test labels")
            if self.labels.setdefault(data, scored.labels) != scored.labels:
                problems.append("its test labels are not those that the data have")
        if scored.answers and self._answers.setdefault((data, protocol, scored.answers), encoder) != encoder:
            problems.append("another encoder has the very same predictions")
        for name, value in scored.yardsticks:
            other = self._yardsticks.setdefault((data, protocol, version, name), value)
            if abs(other - value) > 0.01 * max(1.0, abs(other)):
                problems.append(f"the yardstick {name} scores {value:.4f}, in other records {other:.4f}")
        return problems
