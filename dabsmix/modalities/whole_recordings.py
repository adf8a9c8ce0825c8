"""Recordings of different lengths, each one example: padded to one length with NaN, which the encoder leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.cache import fingerprint
from dabsmix.data.domain import Data, Labelled, Split, Task
from dabsmix.data.splits import divide_labelled
from dabsmix.data.standardise import Standardise
from dabsmix.errors import UserError
from dabsmix.modalities.augmentation import SensorViews
from dabsmix.modalities.files import (
    Marked,
    class_names,
    codes,
    digest,
    division_notes,
    named,
    own_labels,
    require_labels,
    skipped_note,
    walk,
)
from dabsmix.modalities.recordings import (
    TOKENS,
    Recordings,
    Roles,
    channels_of,
    check_classes,
    read,
    read_once,
    resampled,
    runs,
    summarise,
    without_rows,
)
from dabsmix.modalities.tables import CSV, PARQUET, TableSource, column_names, table_files, table_sources
from dabsmix.spec import PaddedGrid

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["WholeRecordings", "load_further", "load_further_labelled", "load_own"]

# T readings in all, C channels, B recordings

FILE = "file"
"""The value of the option ``recording`` where each file is one."""


class WholeRecordings:
    """Recordings, padded when a batch is read.

    Args:
        readings: float32 ``(T, C)``, in memory or a memory map; all recordings, one after the other.
        starts, ends: int64 ``(n,)``, the first reading of each recording and the first that is no longer its own.
        length: of the longest that is read; what lies beyond is cut.
    """

    def __init__(
        self, readings: NDArray[np.float32], starts: NDArray[np.int64], ends: NDArray[np.int64], length: int
    ) -> None:
        self.readings, self.starts, self.length = readings, starts, length
        self.ends = np.minimum(ends, starts + length)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.float32]:
        """Recordings ``(B, C, length)``, copied; NaN after their ends."""
        out = np.full((len(rows), self.readings.shape[1], self.length), np.nan, np.float32)
        for place, row in enumerate(rows):
            start, end = self.starts[row], self.ends[row]
            out[place, :, : end - start] = self.readings[start:end].T
        return out


def load_own(
    path: Path,
    *,
    label: str | None,
    on_bad: Literal["error", "skip"],
    recording: str,
    time: str,
    group: str,
    length: int | None,
    patch: int | None,
    ignored: Sequence[str],
    rate: float | None,
    labels: str,
    gaps: bool,
    reading: Mapping[str, Any],
) -> Data:
    """A table of recordings, or a folder of tables with the same columns, read as `sensor.load_own` says.

    A fifth of the labelled recordings of every class is the test, or of the groups where there is a column of them.
    The columns ``time`` and ``group`` may be missing under these names.

    Args:
        path: a table, or a folder with tables below it.
        label: a column that is constant within a recording; ``folder`` where each class has a folder of its own.
        on_bad: ``skip`` leaves out bad rows, and recordings without any reading.
        recording: the column that tells recordings apart, or ``file``.
        time, group: columns; with ``labels`` the group is a column of that table.
        length: readings of a recording that are read at most; None for those of the longest.
        patch: readings in a token; None for what gives at most 64 tokens.
        ignored: columns to leave out.
        rate: to which all readings are interpolated, or None.
        labels: a CSV of the files' classes, relative to the folder.
        gaps: whether a channel's cells may be empty.
        reading: separator, decimal and encoding of CSV files.

    Raises:
        UserError: an unknown column, a bad row, a recording in two pieces, with two labels or groups, or a single one.
    """
    folder, files = _files(path, recording, labels)
    sources = tuple(TableSource(folder / file, **reading) for file in files)
    by_file = _is_by_file(label, labels, recording)
    names = column_names(sources[0])
    roles = Roles(
        channels=(),
        time=None if time == "time" and time not in names else time,
        group=None if labels or (group == "group" and group not in names) else group,
        label=None if by_file else label,
        recording=None if recording == FILE else recording,
        gaps=gaps,
    )
    if rate is not None and (roles.time is None or not rate > 0):
        raise UserError(f"option rate: {rate} needs a column of times, and is above 0")
    left_out = [*ignored, *({group} & {*names} if labels else ())]
    roles = replace(roles, channels=tuple(channels_of(path, names, roles.others, left_out)))
    source = fingerprint(folder, [file.path for file in sources])
    recordings = read_once(f"{source} {dict(reading)}", sources, roles, on_bad)
    summary, flags = _summarise(recordings, roles, rate)
    cut = _cut(recordings, sources, roles, rate, on_bad)
    if len(cut.starts) < 2:
        raise UserError(f"{path}: {len(cut.starts)} recording; there must be two or more (option `recording`)")
    longest = int((cut.ends - cut.starts).max())
    patch = patch or -(-(length or longest) // TOKENS)
    length = length or -(-longest // patch) * patch
    if length < 2 or patch < 1 or length % patch:
        raise UserError(f"window {length}, patch {patch}: positive, and the patch divides the window")

    keys = _keys(cut, files, recording)
    store = WholeRecordings(cut.recordings.readings, cut.starts, cut.ends, length)
    groups = _groups(cut, sources, roles.group)
    code, task, notes, of_labels = None, None, _notes(cut, length), ""
    if by_file:
        assert label is not None
        of_group = _group_of_labels(folder / labels, group) if labels else None
        task, code, of_table, of_labels, absent = _of_files(path, folder, files, keys, label, labels, of_group, on_bad)
        notes = [*notes, *absent]
        groups = of_table if of_group is not None else groups
    elif label is not None:
        check_classes(label, recordings.classes)
        task, code = Task("classes", "accuracy", recordings.classes), _labels(cut, sources, label)
    all_rows = Split((store,), np.arange(len(store)), code, groups)
    pretrain, labelled = all_rows, None
    if task is not None and code is not None:
        parts = divide_labelled(code >= 0, label=code, group=groups, seeds=(0, 0))
        labelled = Labelled(task, *(all_rows.take(part) for part in parts[1:]))
        pretrain = all_rows.take(parts.pretrain).drop_partial_label()
        notes = [*division_notes("recordings", task, parts, code, len(code), group=groups), *notes]
    standardise = Standardise.of(store, pretrain.rows)
    return Data(
        specs=(PaddedGrid(len(roles.channels), (length,), (patch,)),),
        pretrain=pretrain,
        labelled=labelled,
        fingerprint=digest([source, of_labels]) if of_labels else source,
        normalise=standardise,
        augment=SensorViews(standardise).augment,
        notes=(*notes, *flags),
        summary=summary,
        state={
            "recording": recording,
            "time": roles.time,
            "channels": list(roles.channels),
            "window": length,
            "patch": patch,
            "rate": rate,
            "gaps": gaps,
            "reading": dict(reading),
            "mean": standardise.mean,
            "std": standardise.std,
            "skipped": [*cut.recordings.skipped, *cut.silent],
        },
        names=named(keys),
    )


def load_further(
    data: Path | pd.DataFrame, state: Mapping[str, Any], on_bad: Literal["error", "skip"] = "error"
) -> tuple[Data, list[str]]:
    """Further recordings, all in order as ``pretrain``, and what each is called: its file, or ``file:row``."""
    further, keys, _, _ = _further(data, state, None, None, "", on_bad)
    return further, keys


def load_further_labelled(
    path: Path,
    state: Mapping[str, Any],
    label: str,
    labels: str,
    group: str | None,
    on_bad: Literal["error", "skip"],
) -> Marked:
    """Further recordings with labels, as `load_own` reads them; the rest as `load_further`."""
    if label in state["channels"]:
        raise UserError(f"--label {label}: the run reads this column as an input; name another")
    by_file = _is_by_file(label, labels, state["recording"])
    column, of_group = (None, None) if by_file else (label, group)
    further, keys, cut, sources = _further(path, state, column, of_group, labels, on_bad)
    if by_file:
        folder, files = _files(path, FILE, labels)
        task, code, of_table, _, absent = _of_files(path, folder, files, keys, label, labels, group, on_bad)
        groups = None if group is None else of_table
        further = replace(further, notes=(*further.notes, *absent))
    else:
        check_classes(label, cut.recordings.classes)
        task, code = Task("classes", "accuracy", cut.recordings.classes), _labels(cut, sources, label)
        groups = _groups(cut, sources, group)
    return Marked(further, keys, "recordings", task, code, groups)


def _further(
    data: Path | pd.DataFrame,
    state: Mapping[str, Any],
    label: str | None,
    group: str | None,
    labels: str,
    on_bad: Literal["error", "skip"],
) -> tuple[Data, list[str], _Cut, Sequence[TableSource]]:
    recording = state["recording"]
    if isinstance(data, Path):
        folder, files = _files(data, recording, labels)
        sources = tuple(TableSource(folder / file, **state["reading"]) for file in files)
    else:
        sources, files = table_sources(data), ["the DataFrame"]
    by_column = None if recording == FILE else recording
    roles = Roles(state["channels"], state["time"], group, label, by_column, bool(state["gaps"]))
    cut = _cut(read(sources, roles, on_bad), sources, roles, state["rate"], on_bad)
    length = int(state["window"])
    store = WholeRecordings(cut.recordings.readings, cut.starts, cut.ends, length)
    further = Data(
        specs=(PaddedGrid(len(state["channels"]), (length,), (int(state["patch"]),)),),
        pretrain=Split((store,), np.arange(len(store))),
        labelled=None,
        fingerprint="",  # such data are read once, and nothing is cached for them
        normalise=Standardise(tuple(state["mean"]), tuple(state["std"])),
        notes=tuple(_notes(cut, length)),
        state=dict(state),
    )
    return further, _keys(cut, files, recording), cut, sources


# --- pieces


class _Cut(NamedTuple):
    """Readings, where each recording begins and ends, ``(n,)`` each, and the recordings without readings."""

    recordings: Recordings
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    silent: tuple[str, ...]


def _files(path: Path, recording: str, labels: str) -> tuple[Path, list[str]]:
    """The folder of the tables and their names below it; a table of labels is not among them."""
    if recording == FILE and path.is_dir():
        tables = [file for file in walk(path, (*CSV, *PARQUET)) if not labels or path / file != path / labels]
        if not tables:
            raise UserError(f"{path}: no table below this folder; looked for {', '.join((*CSV, *PARQUET))}")
        return path, tables
    return (path if path.is_dir() else path.parent), [file.name for file in table_files(path)]


def _cut(
    recordings: Recordings,
    sources: Sequence[TableSource],
    roles: Roles,
    rate: float | None,
    on_bad: Literal["error", "skip"],
) -> _Cut:
    """Where recordings begin and end, at ``rate`` if it is not None.

    Raises:
        UserError: a recording is in two pieces, its time does not ascend, or nothing was read of it.
    """
    bounds = runs(recordings.file, recordings.recording)
    pieces = np.stack([recordings.file[bounds[:-1]], recordings.recording[bounds[:-1]]], axis=1)
    first = {tuple(piece): place for place, piece in reversed(list(enumerate(pieces.tolist())))}
    for place, piece in enumerate(pieces.tolist()):
        if first[tuple(piece)] != place:
            raise UserError(
                f"{_row(recordings, sources, bounds[place])}: a recording that ended before goes on here; sort the "
                f"rows by {roles.recording}"
            )
    together = (np.diff(recordings.file) == 0) & (np.diff(recordings.recording) == 0)
    if (backward := np.flatnonzero(together & ~(np.diff(recordings.seconds) > 0))).size:
        before, after = recordings.seconds[backward[0] : backward[0] + 2]
        raise UserError(
            f"{_row(recordings, sources, backward[0] + 1)}: {roles.time} goes from {before:g} to {after:g} within one "
            f"recording; sort the rows by {roles.time}"
        )
    if rate is not None:
        recordings, bounds = resampled(recordings, bounds, rate)
    starts, ends = bounds[:-1], bounds[1:]
    readings_before = np.concatenate([[0], np.cumsum(~np.isnan(recordings.readings).all(axis=1))])
    silent = np.flatnonzero(readings_before[ends] == readings_before[starts])
    names = [_row(recordings, sources, starts[recording]) for recording in silent]
    if roles.recording is None:
        names += [str(sources[file].path) for file in without_rows(recordings, sources)]
    faults = tuple(f"{name}: a recording without any reading" for name in names)
    if faults and on_bad == "error":
        raise UserError(f"{faults[0]}; remove it, or leave such recordings out with --on-bad skip")
    present = np.setdiff1d(np.arange(len(starts)), silent)
    return _Cut(recordings, starts[present], ends[present], faults)


def _row(recordings: Recordings, sources: Sequence[TableSource], place: int) -> str:
    return f"{sources[recordings.file[place]].path}: row {recordings.row[place]}"


def _labels(cut: _Cut, sources: Sequence[TableSource], label: str) -> NDArray[np.int64]:
    """The label of each recording, -1 for none; the rest as `_one_each`."""
    return _one_each(cut, sources, cut.recordings.label, label, "label")


def _groups(cut: _Cut, sources: Sequence[TableSource], group: str | None) -> NDArray[np.int64] | None:
    """The group of each recording, None without a column of groups; the rest as `_one_each`."""
    return None if group is None else _one_each(cut, sources, cut.recordings.group, group, "group")


def _one_each(
    cut: _Cut, sources: Sequence[TableSource], of_reading: NDArray[np.int64], column: str, role: str
) -> NDArray[np.int64]:
    """The value of each recording ``(n,)``, from those of all readings ``(T,)``.

    Raises:
        UserError: a recording has two.
    """
    for start, end in zip(cut.starts, cut.ends, strict=True):
        if (other := np.flatnonzero(of_reading[start:end] != of_reading[start])).size:
            raise UserError(
                f"{_row(cut.recordings, sources, start + other[0])}: {column} changes within one recording; give a "
                f"recording one {role}, or read windows (leave out the option `recording`)"
            )
    return of_reading[cut.starts]


def _is_by_file(label: str | None, labels: str, recording: str) -> bool:
    """Whether a whole file has one class: that of its folder, or of its row in a table of labels."""
    if labels and recording != FILE:
        raise UserError(f"option labels: {labels} names the classes of files: it needs `recording: file`")
    return bool(labels) or (label == "folder" and recording == FILE)


def _group_of_labels(table: Path, group: str) -> str | None:
    """The column of groups in a table of labels; None where it has none under the default name."""
    require_labels(table)
    return None if group == "group" and group not in column_names(TableSource(table)) else group


def _of_files(
    path: Path,
    folder: Path,
    files: Sequence[str],
    keys: Sequence[str],
    label: str,
    labels: str,
    group: str | None,
    on_bad: Literal["error", "skip"],
) -> tuple[Task, NDArray[np.int64], NDArray[np.int64], str, tuple[str, ...]]:
    """Task, class and group of each file (of one without a row, itself), and the table's fingerprint and notes."""
    table, of_table, notes = own_labels(folder, files, label, labels, group, on_bad)
    assert table is not None
    pairs = [table.get(key, ("", f"/{key}")) for key in keys]
    classes = class_names([name for name, _ in pairs], path, "recordings")
    code = np.array([classes.index(name) if name else -1 for name, _ in pairs], np.int64)
    return Task("classes", "accuracy", classes), code, codes([name for _, name in pairs]), of_table, notes


def _notes(cut: _Cut, length: int) -> list[str]:
    longer, rows = int((cut.ends - cut.starts > length).sum()), cut.recordings.skipped
    beyond = f"{longer} of {len(cut.starts)} recordings have more than {length} readings; what lies beyond is cut."
    return [
        *([beyond] if longer else []),
        *skipped_note("rows", rows, len(cut.recordings.row) + len(rows)),
        *skipped_note("recordings", cut.silent, len(cut.starts) + len(cut.silent)),
    ]


def _summarise(recordings: Recordings, roles: Roles, rate: float | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """As `recordings.summarise`, with the lengths of the recordings."""
    lengths = np.diff(runs(recordings.file, recordings.recording))
    low, middle, high = (int(np.quantile(lengths, part, method="nearest")) for part in (0.05, 0.5, 0.95))
    by_recording = replace(recordings, group=recordings.recording)
    (_, *lines), flags = summarise(by_recording, roles.channels, rate=rate, windows=False)
    if roles.time is None:
        lines = [line for line in lines if not line.startswith("  from one reading")]
    of_channels = f"{len(roles.channels)} channel{'s' * (len(roles.channels) != 1)}"
    head = (
        f"{len(lengths)} recordings of {of_channels}, {lengths.min()} to {lengths.max()} readings long (median "
        f"{middle}; 5 % below {low}, 5 % above {high}):"
    )
    return (head, *lines), flags


def _keys(cut: _Cut, files: Sequence[str], recording: str) -> list[str]:
    """A recording's file below the folder, with the row of its first reading where files hold several."""
    file, row = cut.recordings.file[cut.starts], cut.recordings.row[cut.starts]
    if recording == FILE:
        return [files[number] for number in file]
    return [f"{files[number]}:{first}" for number, first in zip(file, row, strict=True)]
