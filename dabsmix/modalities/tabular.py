"""Tables: upstream files of numbers, and a user's own CSV and Parquet files with columns of any kind."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.cache import fingerprint
from dabsmix.data.domain import Data, Labelled, Split, Task
from dabsmix.data.splits import divide_labelled
from dabsmix.errors import UserError, did_you_mean
from dabsmix.modalities.columns import (
    Column,
    Fitted,
    Matrix,
    date_columns,
    encoded,
    fit,
    fit_in_memory,
    listed,
    refuse,
    scan,
    store,
)
from dabsmix.modalities.files import Marked, codes, digest, division_notes, skipped_note
from dabsmix.modalities.summary import imbalance_note, summarise
from dabsmix.modalities.tables import PARQUET, Source, column_names, table_files, table_sources

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["load_frame", "load_further", "load_further_labelled", "load_own", "numeric_table", "supervised"]

MANY = 20
"""A label with more different numbers is taken for a quantity, unless they are 0, 1, 2, ... or 1, 2, 3, ..."""


def numeric_table(name: str, key: str, source: Source, label: str, classes: int, first: int) -> Matrix:
    """A table of numbers alone, no cell empty, kept in the cache.

    Args:
        name: of the folder in the cache.
        key: the file's fingerprint.
        source: the file.
        label: its one column that is not a feature.
        classes: the label is a whole number, one of this many.
        first: the least of them.

    Returns:
        The table; its ``extra`` holds the label less ``first``: 0, 1, ... ``classes - 1``.

    Raises:
        UserError: the file is damaged, or a label is none of these.
    """
    names = column_names(source)
    features = tuple(Column(each) for each in names if each != label)
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
    """A table with its labels as `Data`.

    Args:
        matrix: the table.
        fitted: its columns as the training rows have them.
        task: what the label is.
        rows: of the training, validation and test part.
        label: ``(n,)``, of every row of the table.
        source: fingerprint of the files.
        notes, summary: as in `Data`.
        group: int64 ``(n,)``, of every row of the table.
        pretrain: rows to pretrain on, some of them without a label; by default the training part.
        state, names: as in `Data`.
    """
    whole = Split((matrix.x,), np.arange(len(label)), label, group)
    train, validation, test = (whole.take(part) for part in rows)
    return Data(
        specs=(fitted.spec,),
        pretrain=train
        if pretrain is None
        else Split((matrix.x,), pretrain, None, None if group is None else group[pretrain]),
        labelled=Labelled(task, train, validation, test),
        fingerprint=source,
        normalise=fitted.normalise(),
        notes=(*notes, *_unseen_note(sum(fitted.unseen(matrix.x, part) for part in rows[1:]))),
        summary=summary,
        state=_state(fitted, matrix, (), (), {}) if state is None else state,
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

    With a label a fifth of the labelled rows (or groups) are the test; rows whose label is empty are pretrained on and
    not scored.

    Args:
        path: CSV or TSV with a header line, gzipped or not, or Parquet.
        label: the column to predict.
        on_bad: ``skip`` leaves bad rows out, counts and lists them.
        group: the column that tells which rows belong together (patient, device, day); it is not a feature.
        categorical: columns whose numbers are codes, comma separated or a list.
        ignore: columns to leave out.
        missing: texts that stand for an empty cell, such as ``?``.
        task: what the label is; ``auto`` takes a number with many different values for a quantity.
        separator, decimal, encoding: of CSV files, see `Source`.

    A column of dates (ISO 8601) becomes days since 1970-01-01 UTC, in float32: exact to about three minutes.

    Raises:
        UserError: an unknown column, a bad row, a label that is constant, or too few rows to divide.
    """
    reading: dict[str, Any] = {"separator": separator, "decimal": decimal, "encoding": encoding}
    sources = tuple(Source(file, **reading) for file in table_files(path))
    coded, left_out, empty = _listed(categorical), _listed(ignore), _listed(missing)
    features = _features(path, _same_columns(sources), label, group, coded, left_out)
    others = tuple(each for each in (label, group) if each is not None)
    source = fingerprint(path if path.is_dir() else path.parent, [each.path for each in sources])
    dates = frozenset(date_columns(sources, empty)) & set(features) - set(coded)
    # what readers of before did otherwise, so that what they prepared is not found
    new = [
        *(["rows without a label too"] if on_bad == "skip" and label else []),
        *([f"dates {sorted(dates)}"] if dates else []),
        *([reading] if reading != dict(separator="", decimal=".", encoding="utf-8") else []),
    ]
    if dates:
        source = digest([source, *sorted(dates)])
    key = json.dumps([source, label, group, coded, left_out, empty, on_bad, *new])

    grouping = frozenset([group] if group else [])

    def columns() -> tuple[tuple[Column, ...], tuple[Column, ...]]:
        found = scan(
            sources,
            empty,
            leave_out=frozenset(left_out),
            categorical=frozenset(coded),
            many=grouping,
            dates=dates,
        )
        return tuple(found[name] for name in features), tuple(found[name] for name in others)

    matrix = store("own_tabular", key, sources, columns, on_bad=on_bad, missing=empty, filled=grouping)
    summary, flags = summarise(matrix)
    notes = (*skipped_note("rows", matrix.skipped, len(matrix.x) + len(matrix.skipped)), *flags)
    members = None if group is None else matrix.extra[:, others.index(group)].astype(np.int64)
    everything = np.arange(len(matrix.x))
    if label is None:
        fitted = fit("own_tabular", key, matrix, everything)
        whole = Split((matrix.x,), everything, group=members)
        return Data(
            specs=(fitted.spec,),
            pretrain=whole,
            labelled=None,
            fingerprint=source,
            normalise=fitted.normalise(),
            notes=notes,
            summary=summary,
            state=_state(fitted, matrix, left_out, empty, reading),
        )
    target, target_task, decided = _target(matrix, label, task)
    has_label = ~np.isnan(matrix.extra[:, others.index(label)])
    classes = target if target_task.kind == "classes" else None
    parts = divide_labelled(has_label, label=classes, group=members)
    fitted = fit("own_tabular", key, matrix, parts.pretrain)
    return supervised(
        matrix,
        fitted,
        target_task,
        parts[1:],
        target,
        source=source,
        notes=(
            *division_notes("rows", target_task, parts, target, len(target), grouped=group is not None),
            *decided,
            *(imbalance_note(target_task.classes, target) if target_task.kind == "classes" else ()),
            *notes,
        ),
        summary=summary,
        group=members,
        pretrain=None if has_label.all() else parts.pretrain,
        state=_state(fitted, matrix, left_out, empty, reading),
        names=_row_names(matrix, sources),
    )


def _features(
    path: Path,
    names: tuple[str, ...],
    label: str | None,
    group: str | None,
    coded: Sequence[str],
    left_out: Sequence[str],
) -> list[str]:
    """The columns that are read as inputs: all but the label, the group and those that are left out.

    Raises:
        UserError: a column is unknown or asked for twice, or none is left.
    """
    others = [each for each in (label, group) if each is not None]
    _known(names, path, {"--label": [label], "group": [group], "categorical": coded, "ignore": left_out})
    if clash := [name for name in others if others.count(name) > 1 or name in left_out]:
        raise UserError(f"column {clash[0]!r} is asked for twice: as label, as group or to be left out; choose one")
    features = [name for name in names if name not in {*others, *left_out}]
    if not features:
        raise UserError(f"{path}: no column is left beside the label, the group and the ignored ones")
    return features


def _row_names(matrix: Matrix, sources: tuple[Source, ...]) -> Callable[[NDArray[np.int64]], list[str]]:
    """``file:row`` of every row of the matrix, from which bad ones were left out."""
    skipped: dict[str, set[int]] = {}
    for each in matrix.skipped:
        if found := re.match(r"(.*?): row (\d+): ", each):
            skipped.setdefault(found[1], set()).add(int(found[2]))
    ends = np.cumsum(matrix.lengths)

    def in_file(number: int) -> NDArray[np.int64]:
        name = sources[number].path.name
        left_out, first = skipped.get(name, set()), 1 if name.lower().endswith(PARQUET) else 2
        rows = np.arange(first, first + matrix.lengths[number] + len(left_out))
        return rows[~np.isin(rows, list(left_out))]

    @cache
    def numbers() -> NDArray[np.int64]:
        return np.concatenate([in_file(number) for number in range(len(sources))])

    def names(rows: NDArray[np.int64]) -> list[str]:
        files = np.searchsorted(ends, rows, side="right")
        return [f"{sources[file].path.name}:{row}" for file, row in zip(files, numbers()[rows], strict=True)]

    return names


def load_frame(frame: pd.DataFrame) -> Data:
    """A table in memory without labels: every column is a feature, cells may be empty.

    Raises:
        UserError: a column has too many categories, or a value cannot be read.
    """
    (source,) = table_sources(frame)
    columns = tuple(scan((source,)).values())
    x = np.concatenate([cells.astype(np.float32) for _, cells, _ in encoded(source, columns, refuse)])
    matrix = Matrix(x, np.empty((len(x), 0)), columns, (), (), (len(x),))
    everything = np.arange(len(x))
    fitted = fit_in_memory(matrix, everything)
    return Data(
        specs=(fitted.spec,),
        pretrain=Split((x,), everything),
        labelled=None,
        fingerprint=hashlib.sha256(x.tobytes() + repr(columns).encode()).hexdigest(),
        normalise=fitted.normalise(),
        state=_state(fitted, matrix, (), (), {}),
    )


def load_further(
    data: Path | pd.DataFrame, state: Mapping[str, Any], on_bad: Literal["error", "skip"] = "error"
) -> tuple[Data, list[str]]:
    """Further tables with the columns of a training run, all rows in order as ``pretrain``; keys are ``file:row``.

    The label and group columns, and those that were ignored, may be there or not.

    Args:
        data: files as in `load_own`, or a table in memory.
        state: ``Data.state`` of the training run.

    Raises:
        UserError: a column is missing or new, or a row is bad.
    """
    sources = table_sources(data, state.get("reading"))
    columns = tuple(Column.from_plain(values) for values in state["columns"])
    fitted = Fitted(columns, tuple(state["mean"]), tuple(state["std"]), ((),) * len(columns))
    expected = [column.name for column in columns]
    keys: list[str] = []
    values, unseen = [np.empty((0, len(columns)), np.float32)], 0
    skipped: list[str] = []
    for source in sources:
        names = column_names(source)
        if lacking := [name for name in expected if name not in names]:
            raise UserError(
                f"{source.path}: no column {lacking[0]!r}{did_you_mean(lacking[0], names)}, which the run was "
                f"trained on; there are: {', '.join(names)}"
            )
        if new := [name for name in names if name not in {*expected, *state["others"], *state["ignored"]}]:
            raise UserError(f"{source.path}: column {new[0]!r} is not among those of the training data; take it out")
        left_out: list[tuple[int, str]] = []
        on_row = refuse if on_bad == "error" else partial(listed, left_out)
        for rows, cells, unknown in encoded(source, columns, on_row, tuple(state["missing"])):
            keys += [f"{source.path.name}:{row}" for row in rows]
            values.append(cells.astype(np.float32))
            unseen += unknown
        skipped += [f"{source.path.name}: row {row}: {reason}" for row, reason in sorted(left_out)]
    x = np.concatenate(values)
    if not len(x):
        raise UserError(f"{sources[0].path}: it holds no rows")
    further = Data(
        specs=(fitted.spec,),
        pretrain=Split((x,), np.arange(len(x))),
        labelled=None,
        fingerprint="",  # nothing is kept of what is read only once
        normalise=fitted.normalise(),
        notes=(*_unseen_note(unseen), *skipped_note("rows", skipped, len(x) + len(skipped))),
        state=dict(state),
    )
    return further, keys


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

    ``label``, ``group``, ``ignore`` and ``task`` are those of `load_own`, the rest those of `load_further`.

    Raises:
        UserError: the label is a column that the encoder reads, or see `load_own` and `load_further`.
    """
    sources, missing = table_sources(path, state.get("reading")), tuple(state["missing"])
    beside = [name for name in (label, group) if name is not None]
    names = _same_columns(sources)
    _known(names, path, {"--label": [label], "group": [group], "ignore": _listed(ignore)})
    if label in [name for name, *_ in state["columns"]]:
        raise UserError(f"--label {label}: the encoder reads this column as an input; pretrain without it (ignore)")
    state = {**state, "others": [*state["others"], *beside], "ignored": [*state["ignored"], *_listed(ignore)]}
    data, keys = load_further(path, state, on_bad)
    left_out = frozenset(name for name in names if name not in beside)
    scanned = scan(sources, missing, leave_out=left_out, many=frozenset(beside[1:]))
    columns = tuple(scanned[name] for name in beside)
    place, found = {key: row for row, key in enumerate(keys)}, np.full((len(keys), len(beside)), np.nan)
    for source in sources:
        for rows, values, _ in encoded(source, columns, refuse if on_bad == "error" else _left_out, missing):
            there = [place.get(f"{source.path.name}:{row}", -1) for row in rows]
            kept = np.array(there) >= 0
            found[np.array(there)[kept]] = values[kept]
    empty = np.empty((len(keys), 0), np.float32)
    target, target_task, decided = _target(Matrix(empty, found, (), columns, (), ()), label, task)
    if group is not None and (lacking := np.flatnonzero(np.isnan(found[:, 1]))).size:
        raise UserError(f"{path}: {keys[lacking[0]]}: {group} is empty; fill it in")
    members = None if group is None else codes([str(value) for value in found[:, 1]])
    return Marked(data, keys, "rows", target_task, target, members, decided)


def _left_out(file: Path, row: int, reason: str) -> None:
    """A bad row, of which the reader of the features has told already."""


def _unseen_note(count: int) -> tuple[str, ...]:
    if not count:
        return ()
    return (f"{count} cells hold a category that no training row has; they are read as missing.",)


def _listed(names: str | Sequence[str]) -> tuple[str, ...]:
    parts = names.split(",") if isinstance(names, str) else [str(name) for name in names]
    return tuple(part.strip() for part in parts if part.strip())


def _known(names: tuple[str, ...], path: Path, options: Mapping[str, Iterable[str | None]]) -> None:
    for option, wanted in options.items():
        for name in wanted:
            if name is not None and name not in names:
                raise UserError(
                    f"{option} {name!r}: {path} has no such column{did_you_mean(name, names)}; "
                    f"there are: {', '.join(names)}"
                )


def _same_columns(sources: tuple[Source, ...]) -> tuple[str, ...]:
    first, *others = sources
    names = column_names(first)
    for other in others:
        if set(column_names(other)) != set(names):
            differing = sorted(set(column_names(other)) ^ set(names))
            raise UserError(f"{other.path}: other columns than {first.path}: {', '.join(differing)}")
    return names


def _target(matrix: Matrix, label: str, task: str) -> tuple[NDArray[Any], Task, tuple[str, ...]]:
    """The labels in the form that the task states, the task, and what was decided without being told."""
    column = next(each for each in matrix.others if each.name == label)
    values = matrix.extra[:, matrix.others.index(column)]
    filled = ~np.isnan(values)
    distinct, codes = np.unique(values[filled], return_inverse=True)
    if not len(distinct):
        raise UserError(f"--label {label}: every cell is empty; leave the label out, or fill some in")
    if len(distinct) < 2:
        held = column.categories[int(distinct[0])] if column.categories else f"{distinct[0]:g}"
        raise UserError(f"--label {label}: every row holds {held!r}; there is nothing to predict from")
    whole = bool((distinct == np.round(distinct)).all())
    counted = any(np.array_equal(distinct, np.arange(first, first + len(distinct))) for first in (0, 1))
    many = column.categories is None and len(distinct) > MANY and not counted
    if task == "regression" and column.categories is not None:
        raise UserError(f"option task=regression: the label {label!r} holds text such as {column.categories[0]!r}")
    if task == "regression" or (task == "auto" and many):
        said = (
            f"The label {label!r} has {len(distinct)} different values and is predicted as a quantity; "
            "option task=classes predicts each value as a class.",
        )
        return values.astype(np.float32), Task("regression", "spearman"), () if task == "regression" else said
    if column.categories is not None:
        names = [column.categories[int(code)] for code in distinct]
    else:
        names = [str(int(value)) if whole else repr(float(value)) for value in distinct]
    classes = np.full(len(values), -1, np.int64)
    classes[filled] = codes
    return classes, Task("classes", "accuracy", tuple(names)), ()


def _state(
    fitted: Fitted, matrix: Matrix, ignored: tuple[str, ...], missing: tuple[str, ...], reading: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "columns": [column.plain() for column in fitted.columns],
        "mean": list(fitted.mean),
        "std": list(fitted.std),
        "others": [column.name for column in matrix.others],
        "ignored": list(ignored),
        "missing": list(missing),
        "reading": dict(reading),
        "skipped": list(matrix.skipped),
    }
