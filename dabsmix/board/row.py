"""One score of the leaderboard: its columns, how the CSV file writes them, and what makes a row valid."""

import csv
import json
import math
import re
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

from dabsmix.errors import UserError
from dabsmix.scoring.metrics import METRICS, known
from dabsmix.scoring.results import PROTOCOLS

__all__ = ["ADDED", "COLUMNS", "Row", "lines", "parse", "problems", "read", "text", "typed"]


@dataclass(frozen=True)
class Row:
    """One score. The fields, in this order, are the columns of the CSV; `record` is the folder that backs the row.

    Attributes:
        domain: what was pretrained on; ``task`` is what the frozen features were scored on.
        protocol: transfer's protocol; ``pretrain_protocol`` is the pretraining's.
        label_fraction: a share of the training labels (``1``, ``0.1``) or a number of labels (``5/class``).
        value: the score in the metric's own unit (accuracy: a fraction); ``low``, ``high`` its 95 % interval, both
            empty if the test rows come from too few groups to tell how another group would differ.
        n: test examples.
        run: the run's name and a short hash of its configuration and encoder, equal to the record's folder.
        recipe: digest of the whole configuration but the seed: runs that share it may be averaged.
        hyper: the algorithm's own hyperparameters, compact JSON with sorted keys.
        commit: of the code, empty where there was no repository; ends in ``+dirty`` where files had changed.
        pretrain_fingerprint: digest of the data pretrained on; ``data_fingerprint`` that of the task's data.
        seconds: wall time of the pretraining.
        test_reads: how often the test split had been read for this encoder, task and protocol, this score included.
        units: independent units that the test examples form: groups if there are groups, otherwise examples.
        train_flops: of the whole pretraining; both None in rows of a version that did not have the column.
    """

    domain: str
    task: str
    algorithm: str
    encoder: str
    protocol: str
    probe: str
    seed: int
    label_fraction: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int
    run: str
    by: str
    date: str
    views: str
    uses_labels: bool
    steps: int
    batch_size: int
    lr: float
    precision: str
    recipe: str
    hyper: str
    pretrain_protocol: str
    version: str
    commit: str
    config_hash: str
    pretrain_fingerprint: str
    data_fingerprint: str
    encoder_sha256: str
    parameters: int
    seconds: float
    device: str
    test_reads: int
    units: int | None = field(default=None, kw_only=True)
    train_flops: float | None = field(default=None, kw_only=True)
    record: Path = field(compare=False)

    @property
    def init(self) -> str:
        """The run or model whose weights pretraining began with; empty for random weights."""
        return str(json.loads(self.hyper).get("init", ""))

    @property
    def key(self) -> tuple[str, ...]:
        """No two rows may have the same key."""
        return (
            self.config_hash,
            self.encoder_sha256,
            self.task,
            self.data_fingerprint,
            self.protocol,
            self.probe,
            self.label_fraction,
            self.metric,
        )


_TYPES: dict[str, Any] = {column.name: column.type for column in fields(Row) if column.name != "record"}
_TYPES |= {"low": float, "high": float, "units": int, "train_flops": float}  # or empty
ADDED = ("units", "train_flops")  # columns that were added after the first rows, at the end
_MAY_BE_EMPTY = ("low", "high", *ADDED)
_NUMBER = re.compile(r"[+-]?(\d{1,18}(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?|nan|inf|-inf", re.ASCII)
_DIGITS = {"value": 6, "low": 6, "high": 6, "seconds": 1}
COLUMNS = tuple(_TYPES)


def read(csv_path: Path) -> list[Row]:
    """Every row of the leaderboard.

    Raises:
        UserError: the file does not exist, its header is broken, or a cell cannot be read; the message names the line.
    """
    rows = []
    for line, cells in lines(csv_path):
        try:
            row = parse(cells, csv_path.parent / "runs")
            if faults := problems(row):
                raise ValueError(faults[0])
            rows.append(row)
        except ValueError as error:
            raise UserError(f"{csv_path}:{line}: {error}; `dabsmix leaderboard validate` lists every problem") from None
    return rows


def lines(csv_path: Path) -> list[tuple[int, list[str]]]:
    """The line number and the cells of each row, after a check of the header."""
    try:
        if not csv_path.is_file() and csv_path.exists():
            raise UserError(f"{csv_path} is not a file: name a CSV file")
        content = csv_path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no leaderboard at {csv_path}: submit a run to it, or name another CSV file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {csv_path}: {error}") from None
    reader = csv.reader(StringIO(content, newline=""), strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise UserError(f"{csv_path}:1: {error}; a row is one that `dabsmix submit` wrote") from None
    if tuple(header) not in (COLUMNS[: len(COLUMNS) - missing] for missing in range(len(ADDED) + 1)):
        missing = [name for name in COLUMNS if name not in (*header, *ADDED)]
        unknown = [name for name in header if name not in COLUMNS]
        faults = []
        if missing:
            faults.append(f"no column {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}")
        if unknown:
            faults.append(f"unknown column {', '.join(map(repr, unknown))}")
        order = "a column occurs twice, or the columns are in another order"
        raise UserError(
            f"{csv_path}:1: broken header: {'; '.join(faults) or order}; a row is one that `dabsmix submit` wrote"
        )
    try:
        later = [""] * (len(COLUMNS) - len(header))  # columns that are younger than the file
        return [(reader.line_num, [*cells, *later]) for cells in reader]
    except csv.Error as error:
        raise UserError(f"{csv_path}:{reader.line_num}: {error}; fix the line by hand") from None


def parse(cells: list[str], records: Path) -> Row:
    """A row from its cells; ValueError says what is wrong."""
    if len(cells) != len(COLUMNS):
        raise ValueError(f"{len(cells)} cells for {len(COLUMNS)} columns")
    values: dict[str, Any] = {}
    for (name, kind), cell in zip(_TYPES.items(), cells, strict=True):
        try:
            if name in _MAY_BE_EMPTY and cell == "":
                values[name] = None
            else:
                if kind in (int, float) and not _NUMBER.fullmatch(cell):
                    raise ValueError  # Python reads 1_000 and other scripts' digits as numbers, a spreadsheet does not
                values[name] = {"true": True, "false": False}[cell] if kind is bool else kind(cell)
        except (KeyError, ValueError):
            raise ValueError(f"{name} {cell!r} is not {'an' if kind is int else 'a'} {kind.__name__}") from None
    return Row(**values, record=records / values["run"])


def text(rows: list[Row]) -> str:
    """The rows as lines of the CSV."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in rows:
        cells = [getattr(row, name) for name in COLUMNS]
        writer.writerow([str(cell).lower() if isinstance(cell, bool) else cell for cell in cells])
    return out.getvalue()


def typed(cells: dict[str, Any]) -> dict[str, Any]:
    """A record's values in their columns' types; numbers rounded as the CSV shows them."""
    return {name: _typed(name, value) for name, value in cells.items()}


def _typed(name: str, value: Any) -> Any:
    if value is None and name in _MAY_BE_EMPTY:
        return None
    if name == "label_fraction" and not str(value).endswith("/class"):
        return f"{float(value):g}"  # 0.10 and 0.1 are one
    if _TYPES[name] in (int, float) and isinstance(value, str | bool):
        raise ValueError(f"{name} {value!r} is not a number")
    if name == "train_flops":
        return float(f"{value:.4g}")
    return round(float(value), _DIGITS[name]) if name in _DIGITS else _TYPES[name](value)


def problems(row: Row) -> list[str]:
    """What is wrong with a row, without its record."""
    found = known(row.metric)
    least, most = (-math.inf, math.inf) if found is None else found.span
    low, high = (row.value if end is None else end for end in (row.low, row.high))
    checks = [
        *((getattr(row, name) != "" or name == "commit", f"{name} is empty") for name in COLUMNS),
        (row.protocol in PROTOCOLS, f"protocol {row.protocol!r} is unknown: one of {', '.join(PROTOCOLS)}"),
        (found is not None, f"metric {row.metric!r} is unknown: one of {', '.join(METRICS)}"),
        (all(map(math.isfinite, (row.value, low, high))), "value, low and high must be finite numbers"),
        ((row.low is None) == (row.high is None), "low and high are both given or both empty"),
        (low <= row.value <= high, f"value {row.value} is outside its interval [{row.low}, {row.high}]"),
        (least <= row.value <= most, f"{row.metric} {row.value} is outside [{least:g}, {most:g}]"),
        (row.n >= 1, f"n {row.n} must be at least 1"),
        (row.units is None or 1 <= row.units <= row.n, f"units {row.units} must be 1 to n, {row.n}"),
        (row.train_flops is None or 0 <= row.train_flops < math.inf, f"train_flops {row.train_flops} is not a count"),
        (row.seed >= 0 and row.steps >= 0, f"seed {row.seed} and steps {row.steps} must not be negative"),
        (row.batch_size >= 1 and row.parameters >= 1, "batch_size and parameters must be at least 1"),
        (row.lr >= 0 and row.seconds >= 0, f"lr {row.lr} and seconds {row.seconds} must not be negative"),
        (row.test_reads >= 1, f"test_reads {row.test_reads} must be at least 1"),
        (_is_fraction(row.label_fraction), f"label_fraction {row.label_fraction!r}: a share up to 1, or like 5/class"),
        (_is_date(row.date), f"date {row.date!r} is not a past day like 2026-01-31"),
        (_is_object(row.hyper), f"hyper {row.hyper!r} is not a JSON object"),
        (re.fullmatch("[0-9a-f]{64}", row.encoder_sha256) is not None, "encoder_sha256 is not a sha256 in hex"),
        (
            re.fullmatch(r"[A-Za-z0-9._-]{0,199}[A-Za-z0-9_-]", row.run) is not None,
            f"run {row.run!r} is not a folder's name",
        ),
    ]
    for name in (name for name, kind in _TYPES.items() if kind is str and name != "hyper"):
        cell = getattr(row, name)
        checks.append((cell.isprintable(), f"{name} {cell!r} holds control characters"))
        checks.append(
            (not cell.startswith(("=", "+", "-", "@")), f"{name} {cell!r}: a spreadsheet runs what begins so")
        )
        checks.append((len(cell) <= 500, f"{name} has {len(cell)} characters, at most 500 are allowed"))
    return [message for holds, message in checks if not holds]


def _is_fraction(text: str) -> bool:
    try:
        return re.fullmatch(r"[1-9]\d*/class", text) is not None or 0 < float(text) <= 1
    except ValueError:
        return False


def _is_date(text: str) -> bool:
    try:  # one day later is accepted: the submitter's time zone may be ahead of ours
        return date.fromisoformat(text) <= datetime.now(UTC).date() + timedelta(days=1)
    except ValueError:
        return False


def _is_object(text: str) -> bool:
    try:
        return len(text) <= 10_000 and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
