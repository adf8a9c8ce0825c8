"""Cells of text to numbers: a table's columns become one float32 matrix on disk, and from it the encoder's input.

`tables` gives the cells; this module knows which column is numeric, a date or categorical, and knows no task and no
split. The matrix holds numbers unchanged and categories as codes, NaN where a cell is empty. ``Data.normalise`` turns
it into the encoder's input on the device: numbers are standardised by the training rows, and a category becomes its
index among the categories of the training rows. A category that no training row has is read as missing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.cache import prepared
from dabsmix.data.standardise import Standardise, divisor
from dabsmix.errors import UserError
from dabsmix.modalities.tables import DECIMAL_COMMA, Refuse, TableSource, TextBlock, blocks, column_names
from dabsmix.spec import Table

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "Column",
    "Fitted",
    "Matrix",
    "date_columns",
    "dates_of",
    "encoded",
    "fit",
    "fit_in_memory",
    "listed",
    "mistaken",
    "refuse",
    "refuse_in_memory",
    "scan",
    "store",
]

VERSION = 1
"""Part of the cache key: raise it when the same files would give another matrix."""

NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$|^[+-]?inf(inity)?$"

TIME = r"([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?( ?(Z|[+-]\d{2}:?\d{2}))?)?$"
"""What may follow a date."""

DATE = rf"^\d{{4}}-\d{{2}}-\d{{2}}{TIME}"
"""A date as ISO 8601 writes it."""

DAY_FIRST = rf"^(\d{{1,2}})\.(\d{{1,2}})\.(\d{{4}}){TIME}"
"""A date with dots, which stand for day.month.year wherever they are used."""

THOUSANDS = r"^[+-]?[1-9]\d{0,2}(,\d{3})+$"
"""A number with commas between thousands, or with a decimal comma and three decimals."""

WITH_UNIT = r"^(?:([€$£]) ?[+-]?\d[\d.,]*|[+-]?\d[\d.,]*(?:e[+-]?\d+)? ?([^\W\d_]\S{0,9}|[%°€$£]\S?))$"
"""A number with a unit, which is one of the groups: a percentage, an amount of money, 0.3 g, 9.81 m/s², 21 °C."""

OTHER_DATE = r"^\d{1,2}[./-]\d{1,2}[./-]\d{2,4}([ T].*)?$"
"""A date in another form; in most of them day and month cannot be told apart."""

MOSTLY = 0.9
"""A column is numeric if at least this share of its filled cells are numbers; any other cell is then an error."""

MAX_CATEGORIES = 10_000

SAMPLE = 1000
"""Different texts of a column that are looked at for what they may be instead of categories."""

CHUNK = 1 << 18
"""Rows that are processed together. It bounds the memory and changes nothing else."""


@dataclass(frozen=True)
class Column:
    """A column and how its cells become numbers.

    Attributes:
        name: its name in the file.
        categories: the texts whose index stands for them; None for numbers and dates.
        dates: whether cells are dates, which become days since 1970-01-01 UTC.
        day_first: whether these may be written with dots (31.12.2024), and not only as ISO 8601 writes them.
    """

    name: str
    categories: tuple[str, ...] | None = None
    dates: bool = False
    day_first: bool = False

    def plain(self) -> list[Any]:
        """JSON values from which `from_plain` makes the column again."""
        marks = [*(["dates"] if self.dates else []), *(["day first"] if self.day_first else [])]
        return [self.name, self.categories and list(self.categories), *marks]

    @classmethod
    def from_plain(cls, values: Sequence[Any]) -> Column:
        """The column that gave these values."""
        name, categories, *marks = values
        return cls(name, None if categories is None else tuple(categories), "dates" in marks, "day first" in marks)


@dataclass(frozen=True)
class Matrix:
    """A table on disk.

    Attributes:
        x: float32 ``(n, columns)``, a memory map: numbers, and codes of categories; NaN where a cell is empty.
        extra: float64 ``(n, k)``: the same for the columns that are not features (label, group).
        columns: the feature columns.
        others: the columns of ``extra``.
        skipped: ``file: row N: what is wrong`` for every row that was left out.
        lengths: rows of each file.
    """

    x: NDArray[np.float32]
    extra: NDArray[np.float64]
    columns: tuple[Column, ...]
    others: tuple[Column, ...]
    skipped: tuple[str, ...]
    lengths: tuple[int, ...]


def refuse(file: Path, row: int, reason: str) -> None:
    """Raise UserError for a bad row."""
    raise UserError(f"{file}: row {row}: {reason}; fix the row, or leave such rows out with --on-bad skip")


def refuse_in_memory(file: Path, row: int, reason: str) -> None:
    """Raise UserError for a bad row of a table in memory."""
    raise UserError(f"{file}: row {row}: {reason}; fix the row or leave it out")


def _numbers(text: Any) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A string array's values ``(n,)``, NaN for empty cells, and a mask of the filled cells that are not numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    odd = np.zeros(len(text), dtype=bool)
    try:
        values = pc.cast(text, pa.float64())
    except pa.ArrowInvalid:
        number = pc.match_substring_regex(text, NUMBER, ignore_case=True)
        odd = pc.fill_null(pc.invert(number), False).to_numpy(zero_copy_only=False)
        values = pc.cast(pc.if_else(number, pc.utf8_ltrim(text, "+"), pa.scalar(None, pa.string())), pa.float64())
    return values.to_numpy(zero_copy_only=False).astype(np.float64), odd


def dates_of(text: Any, *, day_first: bool) -> Any:
    """The dates in a string array as a pandas Series ``(n,)``, UTC; NaT for an empty cell and for what is not a date.

    Args:
        text: ``(n,)``, dates as ISO 8601 writes them.
        day_first: whether 31.12.2024 is a date too.
    """
    import pandas as pd
    import pyarrow.compute as pc

    iso = pc.replace_substring_regex(text, DAY_FIRST, r"\3-\2-\1\4") if day_first else text
    return pd.to_datetime(iso.to_pandas(), format="ISO8601", utc=True, errors="coerce")


def _days(text: Any, *, day_first: bool) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Dates as days since 1970-01-01 UTC ``(n,)``, NaN for empty cells; and which filled cells are not dates."""
    import pandas as pd

    dates = dates_of(text, day_first=day_first)
    days = ((dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(days=1)).to_numpy(np.float64, na_value=np.nan)
    return days, np.isnan(days) & ~text.is_null().to_numpy(zero_copy_only=False)


def date_columns(
    sources: Sequence[TableSource], among: Collection[str], missing: tuple[str, ...] = ()
) -> dict[str, Column]:
    """Columns that hold dates by their names, among these columns and judged by the beginning of the first file.

    Raises:
        UserError: the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    for block in blocks(sources[0], among, lambda *bad: None, missing) if among else ():
        columns = {}
        for name, text in block.cells.items():
            filled = len(text) - text.null_count
            if not filled or pa.types.is_null(text.type):
                continue
            if (pc.sum(pc.match_substring_regex(text, DATE)).as_py() or 0) >= MOSTLY * filled:
                columns[name] = Column(name, dates=True)
            elif _all_day_first(text):
                columns[name] = Column(name, dates=True, day_first=True)
        return columns
    return {}


def _all_day_first(text: Any) -> bool:
    """Whether every filled cell of a string array is a possible date with dots."""
    import pyarrow.compute as pc

    with_dots = pc.all(pc.match_substring_regex(text, DAY_FIRST), min_count=0).as_py()
    return bool(with_dots) and not _days(text, day_first=True)[1].any()


def _codes(text: Any, categories: tuple[str, ...]) -> tuple[NDArray[np.float64], int]:
    """Indices into the categories ``(n,)``, NaN for an empty or unknown cell, and how many cells are unknown.

    Truth values are the same however they are written: pandas writes ``True`` into a CSV, a Parquet file or a DataFrame
    gives ``true``, and an array 1.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    lowered = tuple(category.lower() for category in categories)
    if {"false", "true"}.issuperset(lowered) and len(set(lowered)) == len(lowered):
        text = pc.utf8_lower(text)
        for word, number in (("false", r"^0(\.0*)?$"), ("true", r"^1(\.0*)?$")):
            text = pc.replace_substring_regex(text, number, word)
        categories = lowered
    codes = pc.index_in(text, value_set=pa.array(categories, pa.string()), skip_nulls=True)
    unknown = codes.null_count - text.null_count
    return pc.cast(codes, pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64), unknown


def _encode(
    block: TextBlock, columns: Iterable[Column], filled: frozenset[str]
) -> tuple[NDArray[np.float64], dict[int, str], Counter[str]]:
    """A block's values ``(n, columns)``, what is wrong in which row, and each column's cells of unknown categories.

    The rows of the block are counted from 0.
    """
    values, unknown = [], Counter[str]()
    wrong: dict[int, str] = {}
    for column in columns:
        text = block.cells[column.name]
        if column.dates:
            parsed, odd = _days(text, day_first=column.day_first)
            forms = "31.12.2024 or ISO 8601" if column.day_first else "ISO 8601"
            for i in np.flatnonzero(odd):
                cell = text[int(i)].as_py()
                wrong.setdefault(int(i), f"column {column.name!r} holds {cell!r} among dates ({forms})")
        elif column.categories is None:
            parsed, odd = _numbers(text)
            with np.errstate(over="ignore"):
                infinite = np.isinf(parsed.astype(np.float32))
            for i in np.flatnonzero(odd | infinite):
                reason = (
                    "among numbers (if it stands for an empty cell, name it in pretrain's option `missing`)"
                    if odd[i]
                    else "which is infinite as float32"
                )
                wrong.setdefault(int(i), f"column {column.name!r} holds {text[int(i)].as_py()!r} {reason}")
        else:
            parsed, count = _codes(text, column.categories)
            unknown += Counter({column.name: count})  # leaves out columns without any
        if column.name in filled:
            for i in np.flatnonzero(np.isnan(parsed)):
                wrong.setdefault(int(i), f"column {column.name!r} is empty")
        values.append(parsed)
    return np.stack(values, axis=1) if values else np.empty((len(block.rows), 0)), wrong, unknown


def scan(
    sources: Sequence[TableSource],
    missing: tuple[str, ...] = (),
    *,
    leave_out: frozenset[str] = frozenset(),
    categorical: frozenset[str] = frozenset(),
    many: frozenset[str] = frozenset(),
    dates: Mapping[str, Column] = MappingProxyType({}),
) -> dict[str, Column]:
    """Which columns are numeric, and the categories of the others in the order of their text.

    Args:
        sources: files with the same columns.
        missing: texts that stand for an empty cell.
        leave_out: columns to ignore.
        categorical: columns that are categorical although their cells are numbers.
        many: columns that may have any number of categories.
        dates: columns that hold dates, as `date_columns` gives them. If any cell of a column with dots is not such a
            date, the column is read as if it were not among these.

    Raises:
        UserError: a text column has nearly as many different texts as cells, or the files cannot be read.
    """
    import pyarrow.compute as pc

    numbers: dict[str, int] = {}
    filled: dict[str, int] = {}
    texts: dict[str, set[str]] = {}
    other: set[str] = set()
    for source in sources:
        read = [name for name in column_names(source) if name not in leave_out]
        for block in blocks(source, read, lambda *bad: None, missing):
            for name, text in block.cells.items():
                if name in dates and not dates[name].day_first:
                    filled[name] = 0
                    continue
                if name in dates and name not in other and not _all_day_first(text):
                    other.add(name)
                present = len(text) - text.null_count
                filled[name] = filled.get(name, 0) + present
                numbers[name] = numbers.get(name, 0) + present - int(_numbers(text)[1].sum())
                distinct = texts.setdefault(name, set())
                if len(distinct) <= MAX_CATEGORIES or name in many:
                    distinct.update(pc.unique(text).drop_null().to_pylist())
    if not filled:
        raise UserError(f"{sources[0].path}: the table has no rows")
    columns = {}
    for name, count in filled.items():
        if name in dates and name not in other:
            columns[name] = dates[name]
            continue
        chosen = name in categorical or name in many
        if not chosen and numbers[name] >= MOSTLY * count:
            columns[name] = Column(name)
            continue
        different = min(len(texts[name]), MAX_CATEGORIES)
        if name not in many and len(texts[name]) > min(MAX_CATEGORIES, max(100, count // 2)):
            likely = mistaken(sorted(texts[name]))
            too_many = f"holds at least {different} different texts in {count} cells: too many for categories"
            reason = f"{likely}, or" if likely else f"{too_many}; group its values, or"
            raise UserError(f"{sources[0].path}: column {name!r} {reason} leave it out (pretrain's option `ignore`)")
        columns[name] = Column(name, tuple(sorted(texts[name])))
    return columns


def mistaken(texts: Sequence[str]) -> str:
    """What else than categories these texts look like, with the remedy; empty if they look like categories."""
    texts = texts[:SAMPLE]
    if _most(THOUSANDS, texts):
        return (
            f"looks like numbers with commas between thousands ({texts[0]!r}); write them without, or set pretrain's "
            'option `decimal: ","` if these are decimal commas'
        )
    if _most(DECIMAL_COMMA, texts):
        return f'looks like numbers with a decimal comma ({texts[0]!r}); set pretrain\'s option `decimal: ","`'
    units = Counter(match[1] or match[2] for text in texts if (match := re.match(WITH_UNIT, text, re.IGNORECASE)))
    if max(units.values(), default=0) > 0.9 * len(texts):  # codes such as 12a and 7b have no unit in common
        return f"looks like numbers with a unit ({texts[0]!r}); write them without"
    if _most(OTHER_DATE, texts):
        return f"looks like dates ({texts[0]!r}); write them as 2024-12-31"
    return ""


def _most(pattern: str, texts: Sequence[str]) -> bool:
    matches = sum(re.match(pattern, text, re.IGNORECASE) is not None for text in texts)
    return matches > 0.9 * len(texts)


def encoded(
    source: TableSource,
    columns: tuple[Column, ...],
    on_row: Refuse,
    missing: tuple[str, ...] = (),
    filled: frozenset[str] = frozenset(),
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64], Counter[str]]]:
    """A file's rows, a bounded number at a time: numbers, values ``(n, columns)``, and unknown categories by column.

    Bad rows (an infinite value, a word among numbers, an empty cell in a column that has to be ``filled``) are passed
    to ``on_row``; if that returns, they are left out.
    """
    for block in blocks(source, [column.name for column in columns], on_row, missing):
        values, wrong, unknown = _encode(block, columns, filled)
        for i in sorted(wrong):
            on_row(block.path, int(block.rows[i]), wrong[i])
        keep = np.ones(len(block.rows), dtype=bool)
        keep[list(wrong)] = False
        yield block.rows[keep], values[keep], unknown


def store(
    name: str,
    key: str,
    sources: tuple[TableSource, ...],
    columns: Callable[[], tuple[tuple[Column, ...], tuple[Column, ...]]],
    *,
    on_bad: Literal["error", "skip"] = "error",
    missing: tuple[str, ...] = (),
    filled: frozenset[str] = frozenset(),
) -> Matrix:
    """The files' rows, one after another, as a matrix in the cache. The files are read only if it is not there yet.

    Args:
        name: of the folder in the cache.
        key: states everything that the contents depend on: fingerprint and options.
        sources: the files.
        columns: gives the feature columns and the others; called only when the files are read.
        on_bad: ``skip`` leaves bad rows out and lists them.
        missing: texts that stand for an empty cell.
        filled: columns that may not be empty.

    Raises:
        UserError: a row is bad, a file cannot be read, or no row is left.
    """

    def build(folder: Path) -> None:
        skipped: list[str] = []
        features, others = columns()
        lengths = []
        with (folder / "x.f32").open("wb") as x, (folder / "extra.f64").open("wb") as extra:
            for source in sources:
                lengths.append(0)
                bad_rows: list[tuple[int, str]] = []
                on_row = refuse if on_bad == "error" else partial(listed, bad_rows)
                for rows, values, _ in encoded(source, (*features, *others), on_row, missing, filled):
                    lengths[-1] += len(rows)
                    x.write(values[:, : len(features)].astype(np.float32).tobytes())
                    extra.write(values[:, len(features) :].tobytes())
                skipped += [f"{source.path.name}: row {row}: {reason}" for row, reason in sorted(bad_rows)]
        if not sum(lengths):
            raise UserError(f"{sources[0].path}: none of its rows can be used; {len(skipped)} were skipped")
        text = {
            "columns": [column.plain() for column in features],
            "others": [column.plain() for column in others],
            "skipped": skipped,
            "lengths": lengths,
        }
        (folder / "table.json").write_text(json.dumps(text), encoding="utf-8")

    folder = prepared(name, f"tabular-{VERSION}-{key}", build)
    text = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    features, others = (tuple(map(Column.from_plain, text[name])) for name in ("columns", "others"))
    n = sum(text["lengths"])
    x = np.memmap(folder / "x.f32", dtype=np.float32, mode="r", shape=(n, len(features)))
    extra = np.fromfile(folder / "extra.f64", dtype=np.float64).reshape(n, len(others))
    return Matrix(x, extra, features, others, tuple(text["skipped"]), tuple(text["lengths"]))


def listed(bad_rows: list[tuple[int, str]], file: Path, row: int, reason: str) -> None:
    """Add a bad row, which is left out, to a list."""
    bad_rows.append((row, reason))


# --- from numbers to what the encoder reads


@dataclass(frozen=True)
class Fitted:
    """Columns with the statistics and categories of the training rows.

    Attributes:
        columns: with the training rows' categories only.
        mean, std: of numeric columns over the training rows' filled cells; 0 and 1 for other columns.
        codes: for each column the training code of every stored code, -1 if no training row has it; empty if the column
            is numeric or its stored codes are training codes already.
    """

    columns: tuple[Column, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    codes: tuple[tuple[int, ...], ...]

    @property
    def spec(self) -> Table:
        """What the encoder reads."""
        sizes = tuple(0 if c.categories is None else max(1, len(c.categories)) for c in self.columns)
        return Table(len(self.columns), sizes)

    def normalise(self) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
        """``Data.normalise`` of stored rows ``(B, columns)``."""
        import torch

        coded = [j for j, codes in enumerate(self.codes) if codes]
        sizes = [len(self.codes[j]) for j in coded]
        table = [float("nan") if code < 0 else float(code) for j in coded for code in self.codes[j]]
        offsets = [sum(sizes[:i]) for i in range(len(sizes))]

        standardise = Standardise(self.mean, self.std)

        @cache
        def on(device: torch.device) -> tuple[Tensor, ...]:
            indices = (torch.tensor(values, dtype=torch.long, device=device) for values in (coded, offsets))
            return torch.tensor(table, dtype=torch.float32, device=device), *indices

        def normalise(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (x,), (out,) = inputs, standardise(inputs)
            if coded:
                codes, columns, starts = on(x.device)
                stored = x[:, columns]
                training_codes = codes[stored.nan_to_num(nan=0.0).long() + starts]
                out[:, columns] = torch.where(stored.isnan(), stored, training_codes)
            return (out,)

        return normalise

    def unseen(self, x: NDArray[np.float32], rows: NDArray[np.int64]) -> Counter[str]:
        """By column, how many filled cells of these rows have a category that no training row has."""
        count = Counter[str]()
        incomplete = [(j, np.array(codes) < 0) for j, codes in enumerate(self.codes) if min(codes, default=0) < 0]
        for start in range(0, len(rows) if incomplete else 0, CHUNK):
            chunk = x[rows[start : start + CHUNK]]
            for j, is_unseen in incomplete:
                stored = chunk[:, j]
                unseen = int(is_unseen[stored[~np.isnan(stored)].astype(np.int64)].sum())
                count += Counter({self.columns[j].name: unseen})
        return count


def fit(name: str, key: str, matrix: Matrix, rows: NDArray[np.int64], as_is: Collection[str] = ()) -> Fitted:
    """Statistics and categories of the training rows, stored in the cache.

    Args:
        name: of the folder in the cache.
        key: the key of the matrix.
        matrix: the table.
        rows: the training rows.
        as_is: numeric columns that are not standardised.
    """

    def build(folder: Path) -> None:
        mean, std, used = _statistics(matrix, rows)
        text = {"mean": mean, "std": std, "used": used}
        (folder / "statistics.json").write_text(json.dumps(text), encoding="utf-8")

    digest = hashlib.sha256(rows.tobytes()).hexdigest()
    folder = prepared(f"{name}-statistics", f"tabular-{VERSION}-{key}-{digest}", build)
    stored = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
    # an earlier version stored 1 for a small spread beside any mean
    std = divisor(np.array(stored["mean"]), np.array(stored["std"])).tolist()
    return _fitted(matrix, stored["mean"], std, stored["used"], as_is)


def fit_in_memory(matrix: Matrix, rows: NDArray[np.int64]) -> Fitted:
    """The same as `fit` for a table in memory; nothing is cached."""
    return _fitted(matrix, *_statistics(matrix, rows))


def _fitted(
    matrix: Matrix, means: list[float], stds: list[float], used_codes: list[list[int]], as_is: Collection[str] = ()
) -> Fitted:
    columns: list[Column] = []
    codes: list[tuple[int, ...]] = []
    for column, used in zip(matrix.columns, used_codes, strict=True):
        if column.categories is None:
            columns.append(column)
            codes.append(())
        else:
            columns.append(Column(column.name, tuple(column.categories[code] for code in used)))
            training_code = {code: i for i, code in enumerate(used)}
            codes.append(tuple(training_code.get(code, -1) for code in range(len(column.categories))))
    unchanged = [column.name in as_is for column in columns]
    mean = tuple(0.0 if as_it_is else value for as_it_is, value in zip(unchanged, means, strict=True))
    std = tuple(1.0 if as_it_is else value for as_it_is, value in zip(unchanged, stds, strict=True))
    return Fitted(tuple(columns), mean, std, tuple(codes))


def _statistics(matrix: Matrix, rows: NDArray[np.int64]) -> tuple[list[float], list[float], list[list[int]]]:
    """Means and standard deviations of numeric columns (0 and 1 for others), and the codes that occur in the others."""
    numeric = np.array([column.categories is None for column in matrix.columns])
    used: list[set[int]] = [set() for _ in numeric]
    count, total, squares = (np.zeros(len(numeric)) for _ in range(3))
    chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    for chunk in chunks:
        x = matrix.x[chunk].astype(np.float64)
        count += (~np.isnan(x)).sum(axis=0)
        total += np.nansum(x, axis=0)
        for j in np.flatnonzero(~numeric):
            used[j].update(np.unique(x[~np.isnan(x[:, j]), j]).astype(int).tolist())
    mean = np.where(numeric, total / np.maximum(count, 1), 0.0)
    for chunk in chunks:
        squares += np.nansum((matrix.x[chunk].astype(np.float64) - mean) ** 2, axis=0)
    std = np.sqrt(squares / np.maximum(count, 1))
    std = np.where(numeric, divisor(mean, std), 1.0)
    return mean.tolist(), std.tolist(), [sorted(codes) for codes in used]
