"""Tables as data sets: `tables` reads files to cells of text, `columns` turns cells into numbers, and this module adds
the task, the splits and the state of a run. It serves upstream's files of numbers, and a user's own CSV and Parquet
files with columns of any kind.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.cache import fingerprint, stacked
from dabsmix.data.domain import Data, Labelled, Split, Task
from dabsmix.data.splits import divide_labelled
from dabsmix.errors import UserError, did_you_mean
from dabsmix.modalities.columns import (
    CHUNK,
    Column,
    Fitted,
    Matrix,
    date_columns,
    encoded,
    fit,
    fit_in_memory,
    listed,
    refuse,
    refuse_in_memory,
    scan,
    store,
)
from dabsmix.modalities.files import LISTED, Marked, codes, digest, division_notes, empty_files_note, skipped_note
from dabsmix.modalities.summary import summarise
from dabsmix.modalities.tables import TableSource, column_names, first_row, table_files, table_sources

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["load_frame", "load_further", "load_further_labelled", "load_own", "numeric_table", "supervised"]

MANY = 20
"""A label with more different numbers is taken for a quantity, unless they are 0, 1, 2, ... or 1, 2, 3, ..."""


def numeric_table(name: str, key: str, source: TableSource, label: str, classes: int, first: int) -> Matrix:
    """Read a table in which every cell is a number, and store it in the cache.

    Args:
        name: of the folder in the cache.
        key: the file's fingerprint.
        source: the file.
        label: the one column that is not a feature.
        classes: how many classes there are; the label is a whole number.
        first: the number of the first class.

    Returns:
        The table; its ``extra`` holds the label minus ``first``: 0, 1, ... ``classes - 1``.

    Raises:
        UserError: the file is damaged, or a label is not one of the classes.
    """
    names = column_names(source)
    features = tuple(Column(column) for column in names if column != label)
    matrix = store(name, key, (source,), lambda: (features, (Column(label),)), filled=frozenset(names))
    codes = matrix.extra - first
    wrong = np.flatnonzero((codes != np.round(codes)) | (codes < 0) | (codes >= classes))
    if wrong.size:
        row = wrong[0] + (1 if source.header else 2)
        raise UserError(
            f"{source.path}: row {row}: {label} is {matrix.extra[wrong[0], 0]:g}, expected a whole number from {first} "
            f"to {first + classes - 1}; fetch the file again"
        )
    return replace(matrix, extra=codes)


def supervised(
    matrix: Matrix,
    fitted: Fitted,
    task: Task,
    rows: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    label: NDArray[Any],
    *,
    source: str,
    notes: tuple[str, ...],
    summary: tuple[str, ...] = (),
    group: NDArray[np.int64] | None = None,
    pretrain: NDArray[np.int64] | None = None,
    state: Mapping[str, Any] | None = None,
    names: Callable[[NDArray[np.int64]], list[str]] | None = None,
) -> Data:
    """A labelled table as `Data`.

    Args:
        matrix: the table.
        fitted: its columns, with the statistics and categories of the training rows.
        task: what the label is.
        rows: those of the training, the validation and the test part.
        label: ``(n,)``, of every row of the table.
        source: fingerprint of the files.
        notes, summary: as in `Data`.
        group: int64 ``(n,)``, of every row of the table.
        pretrain: rows to pretrain on, some of which have no label; by default the training part.
        state, names: as in `Data`.
    """
    all_rows = Split((matrix.x,), np.arange(len(label)), label, group)
    train, validation, test = (all_rows.take(part) for part in rows)
    return Data(
        specs=(fitted.spec,),
        pretrain=train
        if pretrain is None
        else Split((matrix.x,), pretrain, None, None if group is None else group[pretrain]),
        labelled=Labelled(task, train, validation, test),
        fingerprint=source,
        normalise=fitted.normalise(),
        notes=(*notes, *_unseen_note(sum((fitted.unseen(matrix.x, part) for part in rows[1:]), Counter()))),
        summary=summary,
        state=_state(fitted, matrix) if state is None else state,
        names=names,
    )


# --- a user's own tables


def load_own(
    path: Path,
    *,
    label: str | None = None,
    on_bad: Literal["error", "skip"] = "error",
    group: str | None = None,
    categorical: str | Sequence[str] = "",
    ignore: str | Sequence[str] = "",
    missing: str | Sequence[str] = "",
    task: Literal["auto", "classes", "regression"] = "auto",
    separator: str = "",
    decimal: str = ".",
    encoding: str = "utf-8",
) -> Data:
    """A table file, or a folder of table files with the same columns.

    With a label, a fifth of the labelled rows (or groups) become the test part. Rows whose label is empty are used for
    pretraining and are not scored. A column of dates (ISO 8601, or 31.12.2024) becomes days since 1970-01-01 UTC in
    float32, which is exact to about three minutes.

    Args:
        path: CSV or TSV with a header line, gzipped or not, or Parquet.
        label: the column to predict.
        on_bad: ``skip`` leaves bad rows out, counts them and lists them.
        group: the column that says which rows belong together (patient, device, day); it is not a feature.
        categorical: columns whose numbers are codes, separated by commas or as a list.
        ignore: columns to leave out.
        missing: texts that stand for an empty cell, such as ``?``.
        task: what the label is; ``auto`` treats a number with many different values as a quantity.
        separator, decimal, encoding: of CSV files, see `TableSource`.

    Raises:
        UserError: an unknown column, a bad row, a label that is constant, or too few rows to divide.
    """
    reading: dict[str, Any] = {"separator": separator, "decimal": decimal, "encoding": encoding}
    sources = tuple(TableSource(file, **reading) for file in table_files(path))
    coded, ignored, empty = _listed(categorical), _listed(ignore), _listed(missing)
    features = _features(path, _same_columns(sources), label, group, coded, ignored)
    others = tuple(name for name in (label, group) if name is not None)
    dates = date_columns(sources, {*features} - {*coded}, empty)
    source, key = _identity(path, sources, dates, reading, [label, group, coded, ignored, empty, on_bad])
    grouping = frozenset([group] if group else [])

    def columns() -> tuple[tuple[Column, ...], tuple[Column, ...]]:
        scanned = scan(
            sources,
            empty,
            leave_out=frozenset(ignored),
            categorical=frozenset(coded),
            many=grouping,
            dates=dates,
        )
        return tuple(scanned[name] for name in features), tuple(scanned[name] for name in others)

    matrix = store("own_tabular", key, sources, columns, on_bad=on_bad, missing=empty, filled=grouping)
    members = None if group is None else matrix.extra[:, others.index(group)].astype(np.int64)
    if label is None:
        data = _unlabelled(matrix, fit("own_tabular", key, matrix, np.arange(len(matrix.x))), source, members)
    else:
        data = _labelled(matrix, partial(fit, "own_tabular", key, matrix), source, members, label, task)
    summary, flags = summarise(matrix)
    empty_files = [source.path for source, rows in zip(sources, matrix.lengths, strict=True) if not rows]
    return replace(
        data,
        notes=(
            *data.notes,
            *skipped_note("rows", matrix.skipped, len(matrix.x) + len(matrix.skipped)),
            *empty_files_note(empty_files),
            *flags,
        ),
        summary=summary,
        names=_named_rows(matrix, sources).of_rows,
        state={**data.state, "ignored": list(ignored), "missing": list(empty), "reading": reading},
    )


def _identity(
    path: Path, sources: Sequence[TableSource], dates: Collection[str], reading: Mapping[str, Any], options: list[Any]
) -> tuple[str, str]:
    """The fingerprint of the files as they are read, and the cache key of the matrix made from them.

    What was introduced later enters only where it is used, so that matrices prepared before are still found.

    Args:
        path: file or folder.
        sources: the files.
        dates: the columns that are read as dates, judged by the beginning of the first file.
        reading: how CSV files are read.
        options: label, group, categorical, ignored, missing, on_bad.
    """
    source = fingerprint(path if path.is_dir() else path.parent, [file.path for file in sources])
    if dates:
        source = digest([source, *sorted(dates)])
    label, on_bad = options[0], options[-1]
    later = [
        *(["rows without a label too"] if on_bad == "skip" and label else []),
        *([f"dates {sorted(dates)}"] if dates else []),
        *([reading] if reading != dict(separator="", decimal=".", encoding="utf-8") else []),
    ]
    return source, json.dumps([source, *options, *later])


def _unlabelled(matrix: Matrix, fitted: Fitted, source: str, group: NDArray[np.int64] | None = None) -> Data:
    """A whole table to pretrain on."""
    return Data(
        specs=(fitted.spec,),
        pretrain=Split((matrix.x,), np.arange(len(matrix.x)), group=group),
        labelled=None,
        fingerprint=source,
        normalise=fitted.normalise(),
        state=_state(fitted, matrix),
    )


def _labelled(
    matrix: Matrix,
    fit_rows: Callable[[NDArray[np.int64]], Fitted],
    source: str,
    group: NDArray[np.int64] | None,
    label: str,
    kind: Literal["auto", "classes", "regression"],
) -> Data:
    """A table divided by us; statistics and categories are those of the rows that pretraining sees."""
    target, task, decided = _target(matrix, label, kind)
    by_class = task.kind == "classes"
    has_label = ~np.isnan(matrix.extra[:, [column.name for column in matrix.others].index(label)])
    parts = divide_labelled(has_label, label=target if by_class else None, group=group)
    return supervised(
        matrix,
        fit_rows(parts.pretrain),
        task,
        parts[1:],
        target,
        source=source,
        notes=(
            *division_notes("rows", task, parts, target, len(target), group=group),
            *decided,
        ),
        group=group,
        pretrain=None if has_label.all() else parts.pretrain,
    )


def _features(
    path: Path,
    names: tuple[str, ...],
    label: str | None,
    group: str | None,
    coded: Sequence[str],
    ignored: Sequence[str],
) -> list[str]:
    """The columns that are read as inputs: all but the label, the group and the ignored ones.

    Raises:
        UserError: a column is unknown or has two roles, or none is left.
    """
    others = [name for name in (label, group) if name is not None]
    _check_names(names, path, {"--label": [label], "group": [group], "categorical": coded, "ignore": ignored})
    if clash := [name for name in others if others.count(name) > 1 or name in ignored]:
        raise UserError(f"column {clash[0]!r} is named twice among label, group and ignore; choose one")
    features = [name for name in names if name not in {*others, *ignored}]
    if not features:
        raise UserError(f"{path}: no column is left beside the label, the group and the ignored ones")
    return features


@dataclass(frozen=True)
class RowKeys(Sequence[str]):
    """``file:row`` of every row that was read, made on demand: no memory is needed for each row.

    Attributes:
        files: the files' names.
        first: the number of each file's first row.
        ends: how many rows there are up to the end of each file, without those that were left out.
        left_out: the numbers of each file's rows that were left out, ascending.
    """

    files: tuple[str, ...]
    first: tuple[int, ...]
    ends: tuple[int, ...]
    left_out: tuple[NDArray[np.int64], ...]

    @staticmethod
    def of(sources: Sequence[TableSource], lengths: Sequence[int], left_out: Sequence[Iterable[int]]) -> RowKeys:
        """The keys of files of which so many rows were read, and these left out."""
        in_order = tuple(np.array(sorted(set(rows)), np.int64) for rows in left_out)
        ends = tuple(np.cumsum(lengths).tolist())
        return RowKeys(tuple(source.path.name for source in sources), tuple(map(first_row, sources)), ends, in_order)

    def __len__(self) -> int:
        return self.ends[-1]

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return self.of_rows(np.arange(*place.indices(len(self))))
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return self.of_rows(np.array([place % len(self)]))[0]

    def of_rows(self, rows: NDArray[np.int64]) -> list[str]:
        """The keys of these rows, which are counted over all files from 0."""
        files = np.searchsorted(self.ends, rows, side="right")
        return [f"{self.files[file]}:{row}" for file, row in zip(files, self._numbers(files, rows), strict=True)]

    def rows_of(self, file: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row over all files of each number in a file; -1 for one that was left out."""
        left_out = self.left_out[file]
        row = numbers - self.first[file] - np.searchsorted(left_out, numbers)
        return np.where(np.isin(numbers, left_out), -1, row + (self.ends[file - 1] if file else 0))

    def _numbers(self, files: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of each row in its file."""
        numbers = np.empty(len(rows), np.int64)
        for file in np.unique(files):
            in_file = files == file
            row = rows[in_file] - (self.ends[file - 1] if file else 0)  # among the rows of this file that were read
            left_out = self.left_out[file]
            before = left_out - self.first[file] - np.arange(len(left_out))  # how many were read before each of them
            numbers[in_file] = self.first[file] + row + np.searchsorted(before, row, side="right")
        return numbers


def _named_rows(matrix: Matrix, sources: Sequence[TableSource]) -> RowKeys:
    """The keys of the rows of a matrix, from which bad ones were left out."""
    left_out: list[list[int]] = [[] for _ in sources]
    number = {source.path.name: i for i, source in enumerate(sources)}
    for line in matrix.skipped:
        if match := re.match(r"(.*?): row (\d+): ", line):
            left_out[number[match[1]]].append(int(match[2]))
    return RowKeys.of(sources, matrix.lengths, left_out)


def load_frame(frame: pd.DataFrame) -> Data:
    """A table in memory without labels: every column is a feature, cells may be empty.

    Raises:
        UserError: a column has too many categories, or a value cannot be read.
    """
    (source,) = table_sources(frame)
    columns = tuple(scan((source,)).values())
    x = np.concatenate([cells.astype(np.float32) for _, cells, _ in encoded(source, columns, refuse_in_memory)])
    matrix = Matrix(x, np.empty((len(x), 0)), columns, (), (), (len(x),))
    digest = hashlib.sha256(x.tobytes() + repr(columns).encode()).hexdigest()
    return _unlabelled(matrix, fit_in_memory(matrix, np.arange(len(x))), digest)


def load_further(
    data: Path | pd.DataFrame, state: Mapping[str, Any], on_bad: Literal["error", "skip"] = "error"
) -> tuple[Data, RowKeys]:
    """Further tables with the columns of a training run: all rows in order as ``pretrain``, keyed by ``file:row``.

    The label, the group and the ignored columns may be present or absent. Columns of a file that the run does not know
    are left out, which a note says.

    Args:
        data: files as in `load_own`, or a table in memory.
        state: ``Data.state`` of the training run.

    Raises:
        UserError: a column is missing, a table in memory has a new one, or a row is bad.
    """
    sources = table_sources(data, state.get("reading"))
    columns = tuple(Column.from_plain(values) for values in state["columns"])
    fitted = Fitted(columns, tuple(state["mean"]), tuple(state["std"]), ((),) * len(columns))
    expected = [column.name for column in columns]
    left_out: dict[str, None] = {}
    for source in sources:
        names = column_names(source)
        if absent := [name for name in expected if name not in names]:
            raise UserError(
                f"{source.path}: no column {absent[0]!r}{did_you_mean(absent[0], names)}, which the run was "
                f"trained on; there are: {', '.join(names)}"
            )
        new = [name for name in names if name not in {*expected, *state["others"], *state["ignored"]}]
        if new and source.frame is not None:
            raise UserError(f"{source.path}: the training data have no column {new[0]!r}; remove it")
        left_out |= dict.fromkeys(new)
    unseen, lengths = Counter[str](), [0] * len(sources)
    bad_rows: list[list[tuple[int, str]]] = [[] for _ in sources]

    def cells() -> Iterator[NDArray[np.float32]]:
        nonlocal unseen
        yield np.empty((0, len(columns)), np.float32)
        for number, source in enumerate(sources):
            on_bad_row = refuse if source.frame is None else refuse_in_memory
            on_row = on_bad_row if on_bad == "error" else partial(listed, bad_rows[number])
            for rows, values, unknown in encoded(source, columns, on_row, tuple(state["missing"])):
                lengths[number] += len(rows)
                unseen += unknown
                yield values.astype(np.float32)

    x = stacked(cells())
    if not len(x):
        raise UserError(f"{sources[0].path}: the table has no rows")
    skipped = [
        f"{source.path.name}: row {row}: {reason}"
        for source, rows in zip(sources, bad_rows, strict=True)
        for row, reason in sorted(rows)
    ]
    further = Data(
        specs=(fitted.spec,),
        pretrain=Split((x,), stacked(np.arange(a, min(a + CHUNK, len(x))) for a in range(0, len(x), CHUNK))),
        labelled=None,
        fingerprint="",  # data that are read only once are not cached
        normalise=fitted.normalise(),
        notes=(
            *_left_out_note(tuple(left_out)),
            *_unseen_note(unseen),
            *skipped_note("rows", skipped, len(x) + len(skipped)),
        ),
        state=dict(state),
    )
    return further, RowKeys.of(sources, lengths, [[row for row, _ in rows] for rows in bad_rows])


def load_further_labelled(
    path: Path,
    state: Mapping[str, Any],
    *,
    label: str,
    on_bad: Literal["error", "skip"] = "error",
    group: str | None = None,
    ignore: str | Sequence[str] = "",
    task: Literal["auto", "classes", "regression"] = "auto",
) -> Marked:
    """Rows of further tables with labels.

    ``label``, ``group``, ``ignore`` and ``task`` are as in `load_own`, the other arguments as in `load_further`.

    Raises:
        UserError: the encoder reads the label's column as an input, or as `load_own` and `load_further`.
    """
    sources, missing = table_sources(path, state.get("reading")), tuple(state["missing"])
    others = [name for name in (label, group) if name is not None]
    names = _same_columns(sources)
    _check_names(names, path, {"--label": [label], "group": [group], "ignore": _listed(ignore)})
    if label in [name for name, *_ in state["columns"]]:
        raise UserError(f"--label {label}: the encoder reads this column as an input; pretrain without it (ignore)")
    state = {**state, "others": [*state["others"], *others], "ignored": [*state["ignored"], *_listed(ignore)]}
    data, keys = load_further(path, state, on_bad)
    inputs = frozenset(name for name in names if name not in others)
    scanned = scan(sources, missing, leave_out=inputs, many=frozenset(others[1:]))
    columns = tuple(scanned[name] for name in others)
    extra = np.full((len(keys), len(others)), np.nan)
    for number, source in enumerate(sources):
        for rows, values, _ in encoded(source, columns, refuse if on_bad == "error" else _reported, missing):
            targets = keys.rows_of(number, rows)
            extra[targets[targets >= 0]] = values[targets >= 0]
    empty = np.empty((len(keys), 0), np.float32)
    target, target_task, decided = _target(Matrix(empty, extra, (), columns, (), ()), label, task)
    if group is not None and (ungrouped := np.flatnonzero(np.isnan(extra[:, 1]))).size:
        raise UserError(f"{path}: {keys[ungrouped[0]]}: {group} is empty; fill it in")
    members = None if group is None else codes([str(value) for value in extra[:, 1]])
    return Marked(data, keys, "rows", target_task, target, members, decided)


def _reported(file: Path, row: int, reason: str) -> None:
    """Ignore a bad row: reading the features has already reported it."""


def _left_out_note(columns: Sequence[str]) -> tuple[str, ...]:
    """For ``Data.notes``: columns of further files that the run was not trained on."""
    if not columns:
        return ()
    more = f" and {len(columns) - LISTED} more" if len(columns) > LISTED else ""
    return (f"Columns that the run was not trained on are left out: {', '.join(map(repr, columns[:LISTED]))}{more}.",)


def _unseen_note(cells: Counter[str]) -> tuple[str, ...]:
    """For ``Data.notes``; ``cells`` counts those of each column whose category no training row has."""
    if not (count := cells.total()):
        return ()
    subject, predicate = ("1 cell holds", "it is") if count == 1 else (f"{count} cells hold", "they are")
    more = f" and {len(cells) - LISTED} more columns" if len(cells) > LISTED else ""
    columns = ", ".join(f"{number} in {name!r}" for name, number in cells.most_common(LISTED))
    return (f"{subject} a category that no training row has; {predicate} read as missing ({columns}{more}).",)


def _listed(names: str | Sequence[str]) -> tuple[str, ...]:
    if not isinstance(names, str):
        return tuple(str(name).strip() for name in names)  # a column may have an empty name
    return tuple(part.strip() for part in names.split(",") if part.strip())


def _check_names(names: tuple[str, ...], path: Path, options: Mapping[str, Iterable[str | None]]) -> None:
    for option, columns in options.items():
        for name in columns:
            if name is not None and name not in names:
                raise UserError(
                    f"{option} {name!r}: {path} has no such column{did_you_mean(name, names)}; "
                    f"there are: {', '.join(names)}"
                )


def _same_columns(sources: tuple[TableSource, ...]) -> tuple[str, ...]:
    first, *others = sources
    names = column_names(first)
    for other in others:
        if set(column_names(other)) != set(names):
            differing = sorted(set(column_names(other)) ^ set(names))
            raise UserError(f"{other.path}: its columns differ from those of {first.path}: {', '.join(differing)}")
    return names


def _target(matrix: Matrix, label: str, task: str) -> tuple[NDArray[Any], Task, tuple[str, ...]]:
    """The labels in the form that the task states, the task, and a note on what was decided here."""
    column = next(column for column in matrix.others if column.name == label)
    values = matrix.extra[:, matrix.others.index(column)]
    filled = ~np.isnan(values)
    distinct, codes = np.unique(values[filled], return_inverse=True)
    if not len(distinct):
        raise UserError(f"--label {label}: every cell is empty; leave the label out, or fill some in")
    if len(distinct) < 2:
        value = column.categories[int(distinct[0])] if column.categories else f"{distinct[0]:g}"
        raise UserError(f"--label {label}: every row holds {value!r}; there is nothing to predict")
    integral = bool((distinct == np.round(distinct)).all())
    counted = any(np.array_equal(distinct, np.arange(first, first + len(distinct))) for first in (0, 1))
    many = column.categories is None and len(distinct) > MANY and not counted
    if task == "regression" and column.categories is not None:
        raise UserError(f"option task=regression: the label {label!r} holds text such as {column.categories[0]!r}")
    if task == "regression" or (task == "auto" and many):
        note = (
            f"The label {label!r} has {len(distinct)} different values and is predicted as a quantity; "
            "option task=classes predicts each value as a class.",
        )
        return values.astype(np.float32), Task("regression", "spearman"), () if task == "regression" else note
    if column.categories is not None:
        names = [column.categories[int(code)] for code in distinct]
    else:
        names = [str(int(value)) if integral else repr(float(value)) for value in distinct]
    classes = np.full(len(values), -1, np.int64)
    classes[filled] = codes
    return classes, Task("classes", "accuracy", tuple(names)), ()


def _state(fitted: Fitted, matrix: Matrix) -> dict[str, Any]:
    """``Data.state``, where no column was ignored and files are read by default."""
    return {
        "columns": [column.plain() for column in fitted.columns],
        "mean": list(fitted.mean),
        "std": list(fitted.std),
        "others": [column.name for column in matrix.others],
        "ignored": [],
        "missing": [],
        "reading": {},
        "skipped": list(matrix.skipped),
    }
