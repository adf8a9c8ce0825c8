"""The leaderboard: a CSV with one row per score, and beside it the records that the rows can be checked against.

``results.csv`` holds one row per (run, task, probe, label fraction). ``runs/<run>/`` beside it holds what the row was
read from: ``run.json``, ``config.yaml``, ``transfer/*.json`` and the per-example predictions. The yardsticks (raw
input, majority class) stay in those transfer files: they belong to a task, not to a run, so they have no rows.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing import get_context
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from dabsmix.board import forgery
from dabsmix.board import record as board_record
from dabsmix.board import row as board_row
from dabsmix.board.forgery import MAX_PREDICTIONS, RECORDED, Account, OfRun
from dabsmix.board.record import FAILED
from dabsmix.board.row import ADDED, COLUMNS, KEY, Row, read, same
from dabsmix.errors import UserError
from dabsmix.files import memory, remember, sha256, sweep, write
from dabsmix.run import read_record

__all__ = ["COLUMNS", "Row", "checked", "keep_labels", "locked", "read", "submit", "validate", "write_record"]


# --- submitting


def submit(run_dir: Path, by: str, csv_path: Path, *, failed: bool = False) -> list[Row]:
    """Put a run's transfer results on the leaderboard: first the record, then its rows, each completely or not at all.

    A failed run gets one row, which says why it failed, if ``failed`` is set.

    Several submitters may run at once. A run that was transferred to another task after it was submitted may be
    submitted again; only the new results are added.

    Returns:
        The rows that were added.

    Raises:
        UserError: the run is unfinished, was not transferred, is on the board already, or its encoder is not the one
            that ``run.json`` names; the run failed and ``failed`` is not set, or the other way round; the name is
            empty; the CSV is damaged; the folder cannot be written.
    """
    by = by.strip()
    if not by.isprintable() or not 1 <= len(by) <= 80:
        raise UserError(f"--by {by!r}: a name of 1 to 80 printable characters is needed to stand behind the rows")
    run = read_record(run_dir)
    if failed and run.status != FAILED:
        raise UserError(f"{run_dir}: its status is {run.status!r}: --failed is for runs that failed")
    if not failed and run.status != "finished":
        remedy = "continue it with --resume" + (", or submit its failure with --failed" if run.status == FAILED else "")
        raise UserError(f"{run_dir}: its status is {run.status!r}, not 'finished': {remedy}")
    name = forgery.record_name(run)
    record = csv_path.parent / "runs" / name
    # the same encoder, bit for bit, may have been trained and submitted before: its first record stands
    scores = board_record.scores(run_dir, record if (record / "run.json").exists() else None)
    if not any(scores.values()):
        raise UserError(f"{run_dir} has no transfer results: run `dabsmix transfer --run {run_dir}` first")
    if not failed:
        _check_encoder(run_dir, run.encoder_sha256)
    stamp: dict[str, Any] = {"run": name, "by": by, "date": datetime.now(UTC).date().isoformat(), "record": record}
    offered = {stem: [Row(**cells, **stamp) for cells in results] for stem, results in scores.items()}
    for stem, rows in offered.items():
        for problem in (problem for row in rows for problem in board_row.problems(row)):
            raise UserError(f"{board_record.result_file(run_dir, stem)}: {problem}")
    folder_rows = [Row(**cells, **stamp | {"record": run_dir}) for results in scores.values() for cells in results]
    for problem in forgery.check_record(run_dir):
        raise UserError(f"{run_dir}: {problem}")
    for problem in (f"{row.task}: {problem}" for row in folder_rows for problem in forgery.check_row(row)):
        raise UserError(f"{run_dir}: {problem}; transfer again")
    with locked(csv_path):
        for folder in (csv_path.parent, record, record / "transfer"):
            sweep(folder)
        known = {row.key: row for row in read(csv_path)} if csv_path.exists() else {}
        new = {stem: _new(board_record.result_file(run_dir, stem), rows, known) for stem, rows in offered.items()}
        added = [row for rows in new.values() for row in rows]
        if not added:
            raise UserError(f"{run_dir} is on {csv_path} already, as {name}; another seed makes another run")
        keep_labels(csv_path, known.values(), folder_rows)
        write_record(run_dir, record, [stem for stem, rows in new.items() if rows and stem != FAILED])
        header = ",".join(COLUMNS)
        old = csv_path.read_text(encoding="utf-8-sig") if csv_path.exists() else header
        if not old.startswith(header):  # the file is older than some columns
            old = f"{header}\n{board_row.text(list(known.values()))}"
        content = old.rstrip("\n") + "\n" + board_row.text(added)
        write(csv_path, lambda path: path.write_text(content, encoding="utf-8", newline="\n"))
    return added


def _labels_file(csv_path: Path) -> Path:
    return csv_path.parent / "labels.json"


def _stored_labels(csv_path: Path) -> dict[str, str]:
    """Digests of test labels by task and fingerprint."""
    try:
        digests = json.loads(_labels_file(csv_path).read_text(encoding="utf-8"))
        return {str(data): str(digest) for data, digest in dict(digests).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"cannot read {_labels_file(csv_path)}: {error}; take it from the repository again") from None


def keep_labels(csv_path: Path, known: Iterable[Row], new: Sequence[Row]) -> None:
    """Store the digest of the test labels of new data, and refuse rows of the same data with other labels.

    Args:
        csv_path: the leaderboard.
        known: its rows, which are read only if the digest of their data is not stored.
        new: rows to be added.
    """
    stored = _stored_labels(csv_path)
    digests = dict(stored)
    for row in [*(row for row in known if _data(row) not in stored), *new]:
        data = _data(row)
        predictions = board_record.predictions_of(row)
        if (
            predictions is not None
            and digests.setdefault(data, digest := forgery.label_digest(predictions.label)) != digest
        ):
            raise UserError(
                f"{row.record}: its test labels of {row.task} are not those of the other rows of these data"
            )
    if digests != stored:
        text = json.dumps(digests, indent=1, sort_keys=True) + "\n"
        write(_labels_file(csv_path), lambda path: path.write_text(text, encoding="utf-8"))


def _data(row: Row) -> str:
    return f"{row.task} {row.data_fingerprint}"


def _check_encoder(run_dir: Path, expected: str) -> None:
    path = run_dir / "encoder.safetensors"
    try:
        actual = sha256(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; a row needs the encoder that it scores") from None
    if actual != expected:
        raise UserError(f"{path} has sha256 {actual[:12]}, run.json says {expected[:12]}: it is not this run's encoder")


def _new(file: Path, rows: list[Row], known: dict[tuple[str, ...], Row]) -> list[Row]:
    """The rows of a transfer file that are not on the board yet; reading the test split again gives no new score."""
    if len({row.key for row in rows}) < len(rows):
        raise UserError(f"{file} holds two results of the same probe and label fraction: transfer again")
    for row in rows:
        if row.key in known and not same(row.value, known[row.key].value):
            there = f"{row.probe} at {row.label_fraction} scored {known[row.key].value}"
            raise UserError(
                f"{file} has changed since it was submitted: {there} and now {row.value}; only the first counts"
            )
    return [row for row in rows if row.key not in known]


def write_record(run_dir: Path, record: Path, stems: list[str]) -> None:
    """Copy the files that the rows can be checked against; files of earlier rows do not change."""
    for name in ("config.yaml", "run.json"):  # run.json last: with it the record counts as begun
        if not (record / name).exists():
            _copy(run_dir / name, record / name)
    for stem in stems:
        source = board_record.result_file(run_dir, stem)
        number, name_there = 1, stem
        target = board_record.result_file(record, name_there)
        while target.exists() and target.read_bytes() != source.read_bytes():
            number += 1
            name_there = f"{stem}-{number}"
            target = board_record.result_file(record, name_there)
        _copy(source, target)
        for file in (board_record.predictions_file, board_record.yardsticks_file):
            beside = file(run_dir, stem)
            if beside.exists() and beside.stat().st_size <= MAX_PREDICTIONS:
                _copy(beside, file(record, name_there))


def _copy(source: Path, target: Path) -> None:
    content = source.read_bytes()
    write(target, lambda path: path.write_bytes(content))


@contextmanager
def locked(csv_path: Path) -> Iterator[None]:
    """Lock the leaderboard.

    Raises:
        UserError: the folder cannot be written, or another submitter does not finish.
    """
    from filelock import FileLock, Timeout

    try:
        csv_path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(csv_path.with_name(csv_path.name + ".lock"), timeout=120):
            yield
    except Timeout:
        raise UserError(f"{csv_path} has been locked by another submitter for two minutes: try again") from None
    except (OSError, NotImplementedError) as error:  # the latter from file systems without locks
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {csv_path}: {reason}; name another file with --leaderboard") from None


# --- validating


Lines = list[tuple[int, list[str]]]
"""Lines of the CSV, each with its number and cells."""


def validate(csv_path: Path) -> list[str]:
    """Problems of the leaderboard, each with its line; empty if every row is valid. See `checked`."""
    return checked(csv_path)[1]


def checked(csv_path: Path, *, processes: int = 1) -> tuple[int, list[str]]:
    """How often the test split was read at most for a score, and the problems of the leaderboard, each with its line.

    The checks: types and ranges, a score within its interval, duplicate rows, that each row agrees with its record,
    that the stored predictions give its score and interval, that no recorded score is left out, and those of `forgery`.

    The rows of a run that had no problem are not checked again while they and every byte of the run's record are the
    same: what `_examined` says follows from them and from this package's code. That is remembered in the user's own
    cache, never beside the records.

    Args:
        csv_path: the leaderboard.
        processes: how many may share the reading of many records.

    Raises:
        UserError: the file is missing or its header is broken.
    """
    lines = list(board_row.lines(csv_path))
    of_runs: dict[str, Lines] = {}
    for line, cells in lines:
        of_runs.setdefault(cells[_RUN] if len(cells) == len(COLUMNS) else "", []).append((line, cells))
    memory_name = f"accounts-{hashlib.sha256(str(csv_path.absolute()).encode()).hexdigest()[:16]}"
    known = _remembered(memory_name)
    work = [
        (csv_path.parent / "runs", run, of_run, known[run][0] if run in known else "")
        for run, of_run in of_runs.items()
    ]
    if processes > 1 and len(work) > MANY:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            examined = list(pool.map(_examined, work, chunksize=64))
    else:
        examined = list(map(_examined, work))

    compared, remembered = forgery.Compared(_stored_labels(csv_path)), {}
    problems = [problem for of_run in examined for problem in of_run.problems]
    for (run, of_run), result in zip(of_runs.items(), examined, strict=True):
        others = known[run][1] if result.as_remembered else result.compared
        if others is not None:
            problems += [(of_run[0][0], problem) for problem in compared.problems(others)]
        if result.digest:
            remembered[run] = result.digest, others
    first: dict[tuple[str, ...], int] = {}
    for line, cells in lines:
        if len(cells) == len(COLUMNS) and first.setdefault(key := _KEY_OF_CELLS(cells), line) != line:
            problems.append((line, f"the same result as line {first[key]}"))
    messages = [f"{csv_path}:{line}: {problem}" for line, problem in sorted(problems, key=lambda numbered: numbered[0])]
    for run, result in zip(of_runs, examined, strict=True):
        for key in result.without_row:
            if key not in first:  # a score taken off the board would make the others look better
                of = dict(zip(KEY, key, strict=True))
                score = f"{of['task']} {of['protocol']} {of['probe']} {of['label_fraction']}"
                messages.append(f"{csv_path}: no row for {score}, which {run} records")
    if remembered != known:
        remember(memory_name, lambda path: path.write_text(json.dumps(remembered), encoding="utf-8"))
    return 0 if messages else max((int(cells[_TEST_READS]) for _, cells in lines), default=0), messages


MANY = 500  # runs: the records of fewer are read sooner than a process starts
_RUN, _TEST_READS = COLUMNS.index("run"), COLUMNS.index("test_reads")
_KEY_OF_CELLS = itemgetter(*map(COLUMNS.index, KEY))


def _remembered(name: str) -> dict[str, tuple[str, OfRun | None]]:
    """Of each run without a problem the digest of its rows and record, and what is compared with other records."""
    try:
        known = json.loads(memory(name).read_text(encoding="utf-8"))
        return {run: (str(digest), of_run and OfRun.from_plain(of_run)) for run, (digest, of_run) in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


class _Examined(NamedTuple):
    """What `_examined` found in the rows of a run and its record.

    Attributes:
        problems: each with its line.
        digest: of the rows and the record; empty if there is a problem or they cannot be read.
        as_remembered: the digest is the one that was remembered; all else is then empty.
        compared: what is compared with other records.
        without_row: the keys of scores that the record holds and that none of the rows has.
    """

    problems: list[tuple[int, str]]
    digest: str = ""
    as_remembered: bool = False
    compared: OfRun | None = None
    without_row: tuple[tuple[str, ...], ...] = ()


def _examined(work: tuple[Path, str, Lines, str]) -> _Examined:
    """Check the rows of one run, and its record by itself.

    Args:
        work: the folder of the records, the run's name, its lines, and the digest that is remembered of it. One
            argument, as the map over processes hands it on.
    """
    records, run, lines, remembered = work
    record = None if board_row.faults_of("run", run) else records / run
    digest = "" if record is None else forgery.digest_of(record, [cells for _, cells in lines])
    if digest and digest == remembered:
        return _Examined([], digest, True)
    rows, problems = [], []
    for line, cells in lines:
        try:
            row = board_row.parse(cells, records)
        except ValueError as error:
            problems.append((line, str(error)))
            continue
        rows.append((line, row))
        problems += [(line, problem) for problem in board_row.problems(row)]
    account = None if record is None or not rows else forgery.account(record)
    backing: Backing = {}
    if account is not None and not account.unreadable:
        problems += [(rows[0][0], problem) for problem in account.problems]
        backing = dict(zip(map(_KEY, account.rows), zip(account.rows, account.faults, strict=True), strict=True))
    problems += [(line, problem) for line, row in rows for problem in _disagreements(row, account, backing)]
    without_row = tuple(key for key in backing if key not in {row.key for _, row in rows})
    compared = None if account is None else account.compared
    return _Examined(problems, "" if problems or without_row else digest, False, compared, without_row)


_KEY = itemgetter(*(RECORDED.index(name) for name in KEY))
_CELLS = attrgetter(*RECORDED)
Backing = Mapping[tuple[str, ...], tuple[tuple[Any, ...], Sequence[str]]]


def _disagreements(row: Row, record: Account | None, backing: Backing) -> list[str]:
    """Where a row disagrees with its record, or the record's predictions with its score."""
    if record is None or record.unreadable:
        return [f"no record: {record.unreadable if record else 'its run cannot be the name of a folder'}"]
    if row.key not in backing:
        return [f"{row.record} records no such result (task, protocol, probe, label_fraction, metric or hashes differ)"]
    recorded, faults = backing[row.key]
    ours = _CELLS(row)
    start = -len(ADDED) if ours[: -len(ADDED)] == recorded[: -len(ADDED)] else 0  # most rows agree in the others
    differing = [
        f"{name} is {value!r}, {row.record} records {recorded_value!r}"
        for name, value, recorded_value in zip(RECORDED[start:], ours[start:], recorded[start:], strict=True)
        if not same(value, recorded_value) and not (name in ADDED and value is None)
    ]
    return [*differing, *faults]
