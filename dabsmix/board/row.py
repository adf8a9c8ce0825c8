"""One score of the leaderboard: its columns, how the CSV file writes them, and what makes a row valid."""

import csv
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from io import StringIO
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

from dabsmix.errors import UserError
from dabsmix.scoring.metrics import METRICS, known
from dabsmix.scoring.results import PROTOCOLS

__all__ = [
    "ADDED",
    "COLUMNS",
    "KEY",
    "NO_SCORE",
    "Row",
    "faults_of",
    "lines",
    "parse",
    "problems",
    "read",
    "same",
    "text",
    "typed",
]


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
        train_flops: of the whole pretraining.
        num_features: numbers that the probe read of each example, the most over draws of labels. This, ``units`` and
            ``train_flops`` are None in rows of a version that did not have the column.
        failure: why the run failed; such a row has no score, its columns are those of `NO_SCORE`.
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
    num_features: int | None = field(default=None, kw_only=True)
    failure: str = field(default="", kw_only=True)
    record: Path = field(compare=False)

    @property
    def init(self) -> str:
        """The run or model whose weights pretraining began with; empty for random weights."""
        return str(json.loads(self.hyper).get("init", ""))

    @property
    def key(self) -> tuple[str, ...]:
        """No two rows may have the same key, the values of the columns `KEY`."""
        return _KEY_OF(self)


KEY = (
    *("config_hash", "encoder_sha256", "task", "data_fingerprint"),
    *("protocol", "probe", "label_fraction", "metric"),
)
_KEY_OF: Callable[[Row], tuple[str, ...]] = attrgetter(*KEY)
_TYPES: dict[str, Any] = {column.name: column.type for column in fields(Row) if column.name != "record"}
_TYPES |= {"low": float, "high": float, "units": int, "train_flops": float, "num_features": int}  # or empty
ADDED = ("units", "train_flops", "num_features", "failure")  # columns that were added after the first rows, at the end
_MAY_BE_EMPTY = ("low", "high", "units", "train_flops", "num_features")
NO_SCORE: dict[str, Any] = {
    **dict.fromkeys(("probe", "label_fraction", "metric", "encoder_sha256"), ""),
    **dict.fromkeys(("low", "high", "units", "train_flops", "num_features")),
    **{"value": math.nan, "n": 0, "test_reads": 0, "seconds": 0.0},
}
"""What the row of a failed run has in the columns of a score and of a finished pretraining."""
_NUMBER = re.compile(r"[+-]?(\d{1,18}(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?|nan|inf|-inf", re.ASCII)
_DIGITS = {"value": 6, "low": 6, "high": 6, "seconds": 1}
COLUMNS = tuple(_TYPES)


def read(csv_path: Path, **only: str) -> list[Row]:
    """Every row of the leaderboard.

    Args:
        csv_path: the leaderboard.
        only: cells by column. Rows that have others are left out unread, except those of failed runs.

    Raises:
        UserError: the file does not exist, its header is broken, or a cell cannot be read; the message names the line.
    """
    rows, records = [], csv_path.parent / "runs"
    required = [(COLUMNS.index(name), cell) for name, cell in only.items()]
    failure = COLUMNS.index("failure")
    for line, cells in lines(csv_path):
        if len(cells) == len(COLUMNS) and not cells[failure] and any(cells[i] != cell for i, cell in required):
            continue
        try:
            row = parse(cells, records)
            if faults := problems(row):
                raise ValueError(faults[0])
            rows.append(row)
        except ValueError as error:
            raise UserError(f"{csv_path}:{line}: {error}; `dabsmix leaderboard validate` lists every problem") from None
    return rows


def lines(csv_path: Path) -> Iterator[tuple[int, list[str]]]:
    """The line number and the cells of each row, after a check of the header.

    Equal cells of neighbouring rows are one string: the rows of a run agree in most columns.
    """
    try:
        if not csv_path.is_file() and csv_path.exists():
            raise UserError(f"{csv_path} is not a file: name a CSV file")
        with csv_path.open(encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            try:
                header = next(reader, [])
            except csv.Error as error:
                raise UserError(f"{csv_path}:1: {error}; a row is one that `dabsmix submit` wrote") from None
            later = [""] * (len(COLUMNS) - _known_columns(header, csv_path))  # columns that are younger than the file
            before: list[str] = []
            try:
                for cells in reader:
                    cells += later
                    if len(cells) == len(before):
                        cells = [old if old == new else new for old, new in zip(before, cells, strict=True)]
                    before = cells
                    yield reader.line_num, cells
            except csv.Error as error:
                raise UserError(f"{csv_path}:{reader.line_num}: {error}; fix the line by hand") from None
    except FileNotFoundError:
        raise UserError(f"no leaderboard at {csv_path}: submit a run to it, or name another CSV file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {csv_path}: {error}") from None


def _known_columns(header: Sequence[str], csv_path: Path) -> int:
    """The number of columns, which are the first ones of `COLUMNS`; at most those in `ADDED` may be missing."""
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
    return len(header)


def parse(cells: list[str], records: Path) -> Row:
    """A row from its cells; ValueError says what is wrong."""
    if len(cells) != len(COLUMNS):
        raise ValueError(f"{len(cells)} cells for {len(COLUMNS)} columns")
    values = dict(zip(COLUMNS, map(_value, COLUMNS, cells), strict=True))
    return Row(**values, record=_folder(records, values["run"]))


@lru_cache(maxsize=2**16)
def _value(name: str, cell: str) -> Any:
    """The value of a cell, remembered because most cells occur in many rows; ValueError says what is wrong."""
    kind = _TYPES[name]
    if name in _MAY_BE_EMPTY and cell == "":
        return None
    if name == "value" and cell == "":
        return math.nan
    try:
        if kind in (int, float) and not _NUMBER.fullmatch(cell):
            raise ValueError  # Python reads 1_000 and other scripts' digits as numbers, a spreadsheet does not
        return {"true": True, "false": False}[cell] if kind is bool else kind(cell)
    except (KeyError, ValueError):
        raise ValueError(f"{name} {cell!r} is not {'an' if kind is int else 'a'} {kind.__name__}") from None


@lru_cache(maxsize=2**12)
def _folder(records: Path, run: str) -> Path:
    return records / run


def text(rows: list[Row]) -> str:
    """The rows as lines of the CSV."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in rows:
        writer.writerow([_cell(getattr(row, name)) for name in COLUMNS])
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if isinstance(value, float) and math.isnan(value) else value


def same(value: Any, other: Any) -> bool:
    """Whether two values of a column are equal; two missing scores are."""
    return bool(value == other or (value != value and other != other))


def typed(cells: dict[str, Any]) -> dict[str, Any]:
    """A record's values in their columns' types; numbers rounded as the CSV shows them."""
    values = {name: _typed(name, value) for name, value in cells.items()}
    for name in ("value", "low", "high"):
        if isinstance(number := cells.get(name), float) and small(str(cells["metric"]), number):
            values[name] = float(f"{number:.6g}")
    return values


def small(metric: str, value: float) -> bool:
    """Whether a score is an error in so large a unit that six decimals would leave little of it."""
    scale = known(metric)
    return scale is not None and scale.span[1] == math.inf and abs(value) < 1e-3


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
    if row.failure:
        return _problems_of_failed(row)
    messages = list(chain.from_iterable(map(faults_of, COLUMNS, _VALUES(row))))
    scale = known(row.metric)
    least, most = (-math.inf, math.inf) if scale is None else scale.span
    low, high = (row.value if end is None else end for end in (row.low, row.high))
    if not all(map(math.isfinite, (row.value, low, high))):
        messages.append("value, low and high must be finite numbers")
    if (row.low is None) != (row.high is None):
        messages.append("low and high are both given or both empty")
    if not low <= row.value <= high:
        messages.append(f"value {row.value} is outside its interval [{row.low}, {row.high}]")
    if not least <= row.value <= most:
        messages.append(f"{row.metric} {row.value} is outside [{least:g}, {most:g}]")
    if row.units is not None and not 1 <= row.units <= row.n:
        messages.append(f"units {row.units} must be 1 to n, {row.n}")
    return messages


def _problems_of_failed(row: Row) -> list[str]:
    values = dict(zip(COLUMNS, _VALUES(row), strict=True))
    messages = [fault for name, value in values.items() if name not in NO_SCORE for fault in faults_of(name, value)]
    return messages + [
        f"{name} is {values[name]!r} though the run failed: it has to be empty or 0"
        for name, nothing in NO_SCORE.items()
        if not same(values[name], nothing)
    ]


@lru_cache(maxsize=2**16)
def faults_of(name: str, value: Any) -> tuple[str, ...]:
    """What is wrong with a value by itself, remembered because most values occur in many rows."""
    checks = [(value != "" or name in ("commit", "failure"), f"{name} is empty")]
    if name in _CHECKS:
        holds, says = _CHECKS[name]
        checks.append((value is None or holds(value), f"{name} {value!r} {says}"))
    if _TYPES[name] is str and name != "hyper":
        checks += [
            (value.isprintable(), f"{name} {value!r} holds control characters"),
            (not value.startswith(("=", "+", "-", "@")), f"{name} {value!r}: a spreadsheet runs what begins so"),
            (len(value) <= 500, f"{name} has {len(value)} characters, at most 500 are allowed"),
        ]
    return tuple(message for holds, message in checks if not holds)


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


def _positive(number: int) -> bool:
    return number >= 1


def _count(number: float) -> bool:
    return 0 <= number < math.inf


_VALUES = attrgetter(*COLUMNS)
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "protocol": (PROTOCOLS.__contains__, f"is unknown: one of {', '.join(PROTOCOLS)}"),
    "metric": (lambda name: known(name) is not None, f"is unknown: one of {', '.join(METRICS)}"),
    **dict.fromkeys(("n", "batch_size", "parameters", "test_reads", "num_features"), (_positive, "must be at least 1")),
    **dict.fromkeys(("seed", "steps", "lr", "seconds"), (lambda number: number >= 0, "must not be negative")),
    "train_flops": (_count, "is not a count"),
    "label_fraction": (_is_fraction, "is not a share up to 1, or like 5/class"),
    "date": (_is_date, "is not a past day like 2026-01-31"),
    "hyper": (_is_object, "is not a JSON object"),
    "encoder_sha256": (lambda text: re.fullmatch("[0-9a-f]{64}", text) is not None, "is not a sha256 in hex"),
    "run": (
        lambda text: re.fullmatch(r"[A-Za-z0-9._-]{0,199}[A-Za-z0-9_-]", text) is not None,
        "is not a folder's name",
    ),
}
"""What a value has to be by itself, and what is said of one that is not."""
