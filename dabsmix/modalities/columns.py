"""A table's columns: from cells of text to one float32 matrix on disk, and from there to what the encoder reads.

On disk lie numbers as they are and categories as codes, NaN where a cell is empty. What the encoder reads is made of
it on the device by ``Data.normalise``: numbers in training standard deviations, categories by their place among the
training rows' categories. A category that no training row has is read as missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.cache import prepared
from dabsmix.data.standardise import Standardise, is_constant
from dabsmix.errors import UserError
from dabsmix.modalities.tables import Block, Refuse, Source, blocks
from dabsmix.spec import Table

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "Column",
    "Fitted",
    "Matrix",
    "date_columns",
    "encoded",
    "fit",
    "fit_in_memory",
    "listed",
    "refuse",
    "scan",
    "store",
]

VERSION = 1
"""Of what is written here; a change makes prepared data of an older version unfindable."""

NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$|^[+-]?inf(inity)?$"

DATE = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?( ?(Z|[+-]\d{2}:?\d{2}))?)?$"
"""A date as ISO 8601 writes it."""

MOSTLY = 0.9
"""A column is numeric where this share of its filled cells are numbers; another cell in it is then an error."""

MAX_CATEGORIES = 10_000

CHUNK = 1 << 18
"""Rows that are looked at together: bounds the memory, changes nothing else."""


@dataclass(frozen=True)
class Column:
    """A column and how its cells become numbers: by themselves, as days since 1970-01-01 UTC where they are dates, or
    by their place among ``categories``.
    """

    name: str
    categories: tuple[str, ...] | None = None
    dates: bool = False

    def plain(self) -> list[Any]:
        """JSON values from which `from_plain` makes the column again."""
        return [self.name, self.categories and list(self.categories), *(["dates"] if self.dates else [])]

    @classmethod
    def from_plain(cls, values: Sequence[Any]) -> Column:
        """The column that gave these values."""
        name, categories, *dates = values
        return cls(name, None if categories is None else tuple(categories), bool(dates))


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
    """Report a bad row as the user's to fix."""
    raise UserError(f"{file}: row {row}: {reason}; fix the row, or leave such rows out with --on-bad skip")


def _numbers(text: Any) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A string array's values ``(n,)``, NaN where there is none, and which filled cells are not numbers."""
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


def _days(text: Any) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Dates as days since 1970-01-01 UTC ``(n,)``, NaN where there is none, and which filled cells are not dates."""
    import pandas as pd

    dates = pd.to_datetime(text.to_pandas(), format="ISO8601", utc=True, errors="coerce")
    days = ((dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(days=1)).to_numpy(np.float64, na_value=np.nan)
    return days, np.isnan(days) & ~text.is_null().to_numpy(zero_copy_only=False)


def date_columns(sources: Sequence[Source], missing: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Columns that hold dates, as far as the beginning of the first file tells.

    Raises:
        UserError: the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    for block in blocks(sources[0], lambda *bad: None, missing):
        found = []
        for name, text in block.cells.items():
            filled = len(text) - text.null_count
            like = pc.sum(pc.match_substring_regex(text, DATE)).as_py() or 0
            if filled and like >= MOSTLY * filled and not pa.types.is_null(text.type):
                found.append(name)
        return tuple(found)
    return ()


def _codes(text: Any, categories: tuple[str, ...]) -> tuple[NDArray[np.float64], int]:
    """Places among the categories ``(n,)``, NaN for an empty or unknown cell, and how many cells are unknown."""
    import pyarrow as pa
    import pyarrow.compute as pc

    codes = pc.index_in(text, value_set=pa.array(categories, pa.string()), skip_nulls=True)
    unknown = codes.null_count - text.null_count
    return pc.cast(codes, pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64), unknown


def _encode(
    block: Block, columns: Iterable[Column], filled: frozenset[str]
) -> tuple[NDArray[np.float64], dict[int, str], int]:
    """A block's values ``(n, columns)``, what is wrong at which of its places, and how many categories are unknown."""
    values, unknown = [], 0
    wrong: dict[int, str] = {}
    for column in columns:
        text = block.cells[column.name]
        if column.dates:
            each, odd = _days(text)
            for place in np.flatnonzero(odd):
                held = text[int(place)].as_py()
                wrong.setdefault(int(place), f"column {column.name!r} holds {held!r} among dates (ISO 8601)")
        elif column.categories is None:
            each, odd = _numbers(text)
            with np.errstate(over="ignore"):
                infinite = np.isinf(each.astype(np.float32))
            for place in np.flatnonzero(odd | infinite):
                reason = (
                    "among numbers (a mark of empty cells is named in pretrain's option `missing`)"
                    if odd[place]
                    else "infinite as float32"
                )
                wrong.setdefault(int(place), f"column {column.name!r} holds {text[int(place)].as_py()!r} {reason}")
        else:
            each, count = _codes(text, column.categories)
            unknown += count
        if column.name in filled:
            for place in np.flatnonzero(np.isnan(each)):
                wrong.setdefault(int(place), f"column {column.name!r} is empty")
        values.append(each)
    return np.stack(values, axis=1) if values else np.empty((len(block.rows), 0)), wrong, unknown


def scan(
    sources: Sequence[Source],
    missing: tuple[str, ...] = (),
    *,
    leave_out: frozenset[str] = frozenset(),
    categorical: frozenset[str] = frozenset(),
    many: frozenset[str] = frozenset(),
    dates: frozenset[str] = frozenset(),
) -> dict[str, Column]:
    """Which columns are numeric and which categories the others have; categories in the order of their text.

    Args:
        sources: files with the same columns.
        missing: texts that stand for an empty cell.
        leave_out: columns that are not looked at.
        categorical: columns that are categorical although their cells are numbers.
        many: columns that may have any number of categories.
        dates: columns that hold dates.

    Raises:
        UserError: a text column has nearly as many different texts as cells, or the files cannot be read.
    """
    import pyarrow.compute as pc

    numbers: dict[str, int] = {}
    filled: dict[str, int] = {}
    texts: dict[str, set[str]] = {}
    for source in sources:
        for block in blocks(source, lambda *bad: None, missing):
            for name, text in block.cells.items():
                if name in leave_out:
                    continue
                if name in dates:
                    filled[name] = 0
                    continue
                present = len(text) - text.null_count
                filled[name] = filled.get(name, 0) + present
                numbers[name] = numbers.get(name, 0) + present - int(_numbers(text)[1].sum())
                seen = texts.setdefault(name, set())
                if len(seen) <= MAX_CATEGORIES or name in many:
                    seen.update(pc.unique(text).drop_null().to_pylist())
    if not filled:
        raise UserError(f"{sources[0].path}: it holds no rows")
    columns = {}
    for name, count in filled.items():
        if name in dates:
            columns[name] = Column(name, dates=True)
            continue
        chosen = name in categorical or name in many
        if not chosen and numbers[name] >= MOSTLY * count:
            columns[name] = Column(name)
            continue
        different = min(len(texts[name]), MAX_CATEGORIES)
        if name not in many and len(texts[name]) > min(MAX_CATEGORIES, max(100, count // 2)):
            raise UserError(
                f"{sources[0].path}: column {name!r} holds at least {different} different texts in {count} cells: too "
                "many for categories; leave it out (option `ignore`) or group its values"
            )
        columns[name] = Column(name, tuple(sorted(texts[name])))
    return columns


def encoded(
    source: Source,
    columns: tuple[Column, ...],
    on_row: Refuse,
    missing: tuple[str, ...] = (),
    filled: frozenset[str] = frozenset(),
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64], int]]:
    """A file's rows, a bounded number at a time: their numbers, their values ``(n, columns)``, unknown categories.

    Bad rows (infinite, a word among numbers, empty where a column has to be ``filled``) go to ``on_row`` and are left
    out where it returns.
    """
    for block in blocks(source, on_row, missing):
        values, wrong, unknown = _encode(block, columns, filled)
        for place in sorted(wrong):
            on_row(block.path, int(block.rows[place]), wrong[place])
        keep = np.ones(len(block.rows), dtype=bool)
        keep[list(wrong)] = False
        yield block.rows[keep], values[keep], unknown


def store(
    name: str,
    key: str,
    sources: tuple[Source, ...],
    columns: Callable[[], tuple[tuple[Column, ...], tuple[Column, ...]]],
    *,
    on_bad: Literal["error", "skip"] = "error",
    missing: tuple[str, ...] = (),
    filled: frozenset[str] = frozenset(),
) -> Matrix:
    """The files' rows, one after another, as a matrix in the cache; read only where it is not there yet.

    Args:
        name: of the folder in the cache.
        key: states what the contents depend on: fingerprint and options.
        sources: the files.
        columns: gives the feature columns and the others; called only when the files are read.
        on_bad: ``skip`` leaves bad rows out and lists them.
        missing: texts that stand for an empty cell.
        filled: columns that may not be empty.

    Raises:
        UserError: a bad row, a file that cannot be read, or no row at all.
    """

    def build(folder: Path) -> None:
        skipped: list[str] = []
        features, others = columns()
        lengths = []
        with (folder / "x.f32").open("wb") as x, (folder / "extra.f64").open("wb") as extra:
            for source in sources:
                lengths.append(0)
                left_out: list[tuple[int, str]] = []
                on_row = refuse if on_bad == "error" else partial(listed, left_out)
                for rows, values, _ in encoded(source, (*features, *others), on_row, missing, filled):
                    lengths[-1] += len(rows)
                    x.write(values[:, : len(features)].astype(np.float32).tobytes())
                    extra.write(values[:, len(features) :].tobytes())
                skipped += [f"{source.path.name}: row {row}: {reason}" for row, reason in sorted(left_out)]
        if not sum(lengths):
            raise UserError(f"{sources[0].path}: no row that can be used; {len(skipped)} were skipped")
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


def listed(left_out: list[tuple[int, str]], file: Path, row: int, reason: str) -> None:
    """Take note of a bad row, which is left out."""
    left_out.append((row, reason))


# --- from numbers to what the encoder reads


@dataclass(frozen=True)
class Fitted:
    """Columns as training rows have them.

    Attributes:
        columns: with the training rows' categories only.
        mean, std: of numeric columns over the training rows' filled cells; 0 and 1 elsewhere.
        places: for each column the training code of each stored code, -1 where no training row has it; empty where
            the column is numeric or the codes are training codes already.
    """

    columns: tuple[Column, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    places: tuple[tuple[int, ...], ...]

    @property
    def spec(self) -> Table:
        """What the encoder reads."""
        sizes = tuple(0 if c.categories is None else max(1, len(c.categories)) for c in self.columns)
        return Table(len(self.columns), sizes)

    def normalise(self) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
        """``Data.normalise`` of stored rows ``(B, columns)``."""
        import torch

        coded = [j for j, place in enumerate(self.places) if place]
        sizes = [len(self.places[j]) for j in coded]
        table = [float("nan") if code < 0 else float(code) for j in coded for code in self.places[j]]
        offsets = [sum(sizes[:i]) for i in range(len(sizes))]

        standardise = Standardise(self.mean, self.std)

        @cache
        def on(device: torch.device) -> tuple[Tensor, ...]:
            places = (torch.tensor(each, dtype=torch.long, device=device) for each in (coded, offsets))
            return torch.tensor(table, dtype=torch.float32, device=device), *places

        def normalise(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (x,), (out,) = inputs, standardise(inputs)
            if coded:
                codes, columns, starts = on(x.device)
                stored = x[:, columns]
                found = codes[stored.nan_to_num(nan=0.0).long() + starts]
                out[:, columns] = torch.where(stored.isnan(), stored, found)
            return (out,)

        return normalise

    def unseen(self, x: NDArray[np.float32], rows: NDArray[np.int64]) -> int:
        """Filled cells of these rows whose category no training row has."""
        count = 0
        gone = [(j, np.array(place) < 0) for j, place in enumerate(self.places) if min(place, default=0) < 0]
        for start in range(0, len(rows) if gone else 0, CHUNK):
            chunk = x[rows[start : start + CHUNK]]
            for j, is_gone in gone:
                codes = chunk[:, j]
                count += int(is_gone[codes[~np.isnan(codes)].astype(np.int64)].sum())
        return count


def fit(name: str, key: str, matrix: Matrix, rows: NDArray[np.int64], as_is: Collection[str] = ()) -> Fitted:
    """Statistics and categories of the training rows, kept in the cache.

    Args:
        name: of the folder in the cache.
        key: as the matrix's.
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
    found = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
    return _fitted(matrix, found["mean"], found["std"], found["used"], as_is)


def fit_in_memory(matrix: Matrix, rows: NDArray[np.int64]) -> Fitted:
    """As `fit`, for a table in memory: nothing is cached."""
    return _fitted(matrix, *_statistics(matrix, rows))


def _fitted(
    matrix: Matrix, means: list[float], stds: list[float], used_codes: list[list[int]], as_is: Collection[str] = ()
) -> Fitted:
    columns: list[Column] = []
    places: list[tuple[int, ...]] = []
    for column, used in zip(matrix.columns, used_codes, strict=True):
        if column.categories is None:
            columns.append(column)
            places.append(())
        else:
            columns.append(Column(column.name, tuple(column.categories[code] for code in used)))
            order = {code: place for place, code in enumerate(used)}
            places.append(tuple(order.get(code, -1) for code in range(len(column.categories))))
    left = [column.name in as_is for column in columns]
    mean = tuple(0.0 if each else value for each, value in zip(left, means, strict=True))
    std = tuple(1.0 if each else value for each, value in zip(left, stds, strict=True))
    return Fitted(tuple(columns), mean, std, tuple(places))


def _statistics(matrix: Matrix, rows: NDArray[np.int64]) -> tuple[list[float], list[float], list[list[int]]]:
    """Means and standard deviations of numeric columns (0 and 1 elsewhere), and the codes that occur in the others."""
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
    varies = numeric & ~is_constant(mean, std)
    return mean.tolist(), np.where(varies, std, 1.0).tolist(), [sorted(each) for each in used]
