"""A user's tables of sensor readings: files to readings in order, and the stretches that no window may cross."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.cache import prepared
from dabsmix.errors import UserError, did_you_mean
from dabsmix.modalities.columns import Column, date_columns, dates_of, encoded, listed, mistaken, refuse, scan
from dabsmix.modalities.tables import TableSource, blocks, column_names

__all__ = [
    "TOKENS",
    "Recordings",
    "Roles",
    "channels_of",
    "check_classes",
    "read",
    "read_once",
    "resampled",
    "runs",
    "stretches",
    "summarise",
    "without_rows",
]

# T readings, C channels

TOKENS = 64
"""The most tokens that a user's window is cut into by default."""

VERSION = "1"
"""Part of the cache key: raise it when the same files would give other readings."""


@dataclass(frozen=True)
class Roles:
    """Which columns of the files are read, and as what.

    Attributes:
        channels: the columns of readings, all numeric.
        time, group, label, recording: the columns of these; None where there is none.
        gaps: whether a channel's cell may be empty.
    """

    channels: Sequence[str]
    time: str | None
    group: str | None
    label: str | None = None
    recording: str | None = None
    gaps: bool = False

    @property
    def others(self) -> tuple[str, ...]:
        """The columns that are not channels, the label last."""
        return tuple(name for name in (self.time, self.group, self.recording, self.label) if name is not None)


@dataclass(frozen=True)
class Recordings:
    """Readings in the order of their files and rows.

    Attributes:
        readings: float32 ``(T, C)``; NaN where a cell is empty and may be so.
        file, row: int64 ``(T,)``: the file, and the row in it.
        seconds: float64 ``(T,)``, in the unit of the user's column; without one, the row.
        group, label: int64 ``(T,)``, codes; ``label`` is -1 where the cell is empty, and 0 without a label column;
            ``group`` is the file without a column of groups.
        recording: the code in the column of recordings; the file without one.
        classes: the names of the labels.
        skipped: ``file: row N: what is wrong`` for every row that was left out.
    """

    readings: NDArray[np.float32]
    file: NDArray[np.int64]
    row: NDArray[np.int64]
    seconds: NDArray[np.float64]
    group: NDArray[np.int64]
    label: NDArray[np.int64]
    recording: NDArray[np.int64]
    classes: tuple[str, ...]
    skipped: tuple[str, ...]


ARRAYS = ("readings", "file", "row", "seconds", "group", "label", "recording")


def read_once(key: str, sources: Sequence[TableSource], roles: Roles, on_bad: Literal["error", "skip"]) -> Recordings:
    """The result of `read`, stored in the cache; ``key`` is the files' fingerprint."""

    def build(folder: Path) -> None:
        recordings = read(sources, roles, on_bad)
        for name in ARRAYS:
            np.save(folder / f"{name}.npy", getattr(recordings, name))
        text = {"classes": recordings.classes, "skipped": recordings.skipped}
        (folder / "text.json").write_text(json.dumps(text), encoding="utf-8")

    # each column with its role: the same column may be a group in one run and the label in another
    folder = prepared("own_sensor", json.dumps([VERSION, key, asdict(roles), on_bad]), build)
    text = json.loads((folder / "text.json").read_text(encoding="utf-8"))
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    return Recordings(**arrays, classes=tuple(text["classes"]), skipped=tuple(text["skipped"]))


def read(sources: Sequence[TableSource], roles: Roles, on_bad: Literal["error", "skip"]) -> Recordings:
    """The readings of these files, which have the same columns. Only cells of the label, and in gaps, may be empty.

    Args:
        sources: the files.
        roles: their columns.
        on_bad: ``skip`` leaves bad rows out and lists them.

    Raises:
        UserError: a column is missing, a row is bad, a time cannot be parsed, or there are no rows.
    """
    channels, time = roles.channels, roles.time
    used = (*channels, *roles.others)
    for source in sources:
        names = column_names(source)
        if absent := [name for name in used if name not in names]:
            raise UserError(
                f"{source.path}: no column {absent[0]!r}{did_you_mean(absent[0], names)}; there are: {', '.join(names)}"
            )
    if dates := date_columns(sources, channels):
        raise UserError(
            f"{sources[0].path}: column {next(iter(dates))!r} holds dates, not readings; name it in the option `time`, "
            "or leave it out (pretrain's option `ignore`)"
        )
    unused = {name for source in sources for name in column_names(source) if name not in used}
    many = frozenset(name for name in (roles.group, roles.recording) if name is not None)
    if time is not None and _holds_numbers(sources[0], time):
        scanned = scan(sources, leave_out=frozenset({*unused, time}), many=many) | {time: Column(time)}
    else:
        scanned = scan(sources, leave_out=frozenset(unused), many=many | ({time} if time is not None else set()))
    if texts := [name for name in channels if scanned[name].categories is not None]:
        categories = scanned[texts[0]].categories or ("",)
        likely = mistaken(categories)
        reason = f"{likely}, or" if likely else f"holds {categories[0]!r}, not a number;"
        raise UserError(f"{sources[0].path}: column {texts[0]!r} {reason} leave it out (pretrain's option `ignore`)")
    columns = tuple(scanned[name] for name in used)
    filled = frozenset(name for name in used if name != roles.label and not (roles.gaps and name in channels))
    gap = {f"column {name!r} is empty" for name in channels}

    def refuse_row(file: Path, row: int, reason: str) -> None:
        refuse(file, row, f"{reason}, which the option `gaps: mask` allows" if reason in gap else reason)

    origins, values, skipped = [], [], []
    for number, source in enumerate(sources):
        bad_rows: list[tuple[int, str]] = []
        on_row = refuse_row if on_bad == "error" else partial(listed, bad_rows)
        for rows, cells, _ in encoded(source, columns, on_row, filled=filled):
            origins.append(np.column_stack([np.full(len(rows), number), rows]))
            values.append((cells[:, : len(channels)].astype(np.float32), cells[:, len(channels) :]))
        skipped += [f"{source.path.name}: row {row}: {reason}" for row, reason in sorted(bad_rows)]
    if not sum(len(origin_rows) for origin_rows in origins):
        raise UserError(f"{sources[0].path}: none of its rows can be used; {len(skipped)} were skipped")
    origin = np.concatenate(origins)
    by_column = dict(zip(roles.others, np.concatenate([extra for _, extra in values]).T, strict=True))
    label, classes = np.zeros(len(origin), np.int64), tuple[str, ...]()
    if roles.label is not None:
        label, classes = _classes(by_column[roles.label], scanned[roles.label])

    def code(column: str | None) -> NDArray[np.int64]:
        if column is None:
            return origin[:, 0]
        return np.unique(by_column[column], return_inverse=True)[1].astype(np.int64)

    return Recordings(
        readings=np.concatenate([readings for readings, _ in values]),
        file=origin[:, 0],
        row=origin[:, 1],
        seconds=origin[:, 1] * 1.0 if time is None else _seconds(by_column[time], scanned[time], sources, origin),
        group=code(roles.group),
        label=label,
        recording=code(roles.recording),
        classes=classes,
        skipped=tuple(skipped),
    )


def without_rows(recordings: Recordings, sources: Sequence[TableSource]) -> list[int]:
    """The files of which no row was read."""
    return [int(file) for file in np.setdiff1d(np.arange(len(sources)), recordings.file)]


def _holds_numbers(source: TableSource, column: str) -> bool:
    """Whether the first cell of a column is a number."""
    for block in blocks(source, [column], lambda *bad: None):
        for cell in block.cells[column]:
            try:
                float(cell.as_py() or "nan")
            except ValueError:
                return False
            return True
    return True


def _seconds(
    values: NDArray[np.float64], column: Column, sources: Sequence[TableSource], origin: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Numbers as they are; dates as seconds. ``origin`` is the file and row of each value."""
    if column.categories is None:
        return values
    import pandas as pd
    import pyarrow as pa

    dates = dates_of(pa.array(column.categories, pa.string()), day_first=True)
    if dates.isna().any():
        code = int(np.flatnonzero(dates.isna())[0])
        file, row = origin[np.flatnonzero(values == code)[0]]
        fault = f"column {column.name!r} holds {column.categories[code]!r}, neither a number nor a date"
        raise UserError(f"{sources[file].path}: row {row}: {fault} (31.12.2024 or ISO 8601)")
    seconds = (dates - dates.min()) / pd.Timedelta(seconds=1)
    return np.asarray(seconds, np.float64)[values.astype(np.int64)]


def _classes(values: NDArray[np.float64], column: Column) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    filled = ~np.isnan(values)
    distinct, codes = np.unique(values[filled], return_inverse=True)
    label = np.full(len(values), -1, np.int64)
    label[filled] = codes
    if column.categories is not None:
        names = [column.categories[int(code)] for code in distinct]
    else:
        names = [f"{value:g}" for value in distinct]
    return label, tuple(names)


def runs(*keys: NDArray[Any]) -> NDArray[np.int64]:
    """Where each run of equal keys begins, followed by the number of readings: ``(runs + 1,)``."""
    changes = np.zeros(len(keys[0]) - 1, dtype=bool)
    for key in keys:
        changes |= key[1:] != key[:-1]
    return np.concatenate([[0], np.flatnonzero(changes) + 1, [len(keys[0])]])


def channels_of(path: Path, names: Sequence[str], others: Sequence[str], ignored: Sequence[str]) -> list[str]:
    """The columns of readings: all but time, group, label and the ignored ones."""
    for name in (*others, *ignored):
        if name not in names:
            hint = f"; the option `{name}` names another column" if name in ("time", "group") else ""
            raise UserError(
                f"{path}: no column {name!r}{did_you_mean(name, names)}; there are: {', '.join(names)}{hint}"
            )
    channels = [name for name in names if name not in {*others, *ignored}]
    if not channels or len(set(others)) < len(others):
        raise UserError(f"{path}: time, group and label must be different columns, and at least one other a channel")
    return channels


def check_classes(label: str, classes: Sequence[str]) -> None:
    """Refuse labels of fewer than two classes."""
    if len(classes) < 2:
        fault = f"every row that has one holds {classes[0]!r}" if classes else "every cell is empty"
        raise UserError(f"--label {label}: {fault}; there is nothing to predict")


def stretches(
    recordings: Recordings,
    sources: Sequence[TableSource],
    time: str,
    window: int,
    max_gap: float | None,
    *,
    by_label: bool,
) -> NDArray[np.int64]:
    """Where each stretch of consecutive readings begins, followed by the number of readings: ``(stretches + 1,)``.

    A new stretch begins with each file, each group and (``by_label``) each label, after rows that were left out, and
    where time jumps by more than ``max_gap``; by default, by more than the usual duration of a window.

    Raises:
        UserError: time does not ascend within a file and group.
    """
    steps = np.diff(recordings.seconds)
    together = (np.diff(recordings.file) == 0) & (np.diff(recordings.group) == 0)
    if (backward := np.flatnonzero(together & ~(steps > 0))).size:
        index = backward[0] + 1
        before, after = recordings.seconds[index - 1 : index + 1]
        source, row = sources[recordings.file[index]], recordings.row[index]
        raise UserError(
            f"{source.path}: row {row}: {time} goes from {before:g} to {after:g} within one group; sort the rows by "
            f"group, then by {time}"
        )
    broken = ~together | (np.diff(recordings.row) > 1)
    if together.any():
        broken |= steps > (window * np.median(steps[together]) if max_gap is None else max_gap)
    if by_label:
        broken |= np.diff(recordings.label) != 0
    return np.concatenate([[0], np.flatnonzero(broken) + 1, [len(recordings.row)]])


def resampled(recordings: Recordings, bounds: NDArray[np.int64], rate: float) -> tuple[Recordings, NDArray[np.int64]]:
    """Readings at ``rate`` per unit of time, interpolated linearly within each stretch, and where stretches begin.

    A reading has the file, row, group and label of the last one that was taken at or before its time.

    Args:
        recordings: as they were taken.
        bounds: of the stretches.
        rate: readings per unit of the column of times; Hz if that column holds dates.
    """
    seconds, readings, before, lengths = [], [], [], [0]
    for start, end in pairwise(bounds):
        times = recordings.seconds[start:end]
        # half a step of slack, so that rounding in the times does not cost the last reading
        count = int(np.floor((times[-1] - times[0]) * rate + 1e-6)) + 1
        at = times[0] + np.arange(count) / rate
        seconds.append(at)
        channels = [np.interp(at, times, channel) for channel in recordings.readings[start:end].T]
        readings.append(np.stack(channels, axis=1).astype(np.float32))
        before.append(start + np.clip(np.searchsorted(times, at + 1e-9, side="right") - 1, 0, None))
        lengths.append(count)
    index = np.concatenate(before)
    changed = replace(
        recordings,
        readings=np.concatenate(readings),
        seconds=np.concatenate(seconds),
        file=recordings.file[index],
        row=recordings.row[index],
        group=recordings.group[index],
        label=recordings.label[index],
        recording=recordings.recording[index],
    )
    return changed, np.cumsum(lengths)


def summarise(
    recordings: Recordings,
    channels: Sequence[str],
    *,
    rate: float | None,
    windows: bool = True,
    max_gap: float | None = None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Lines for ``Data.summary`` that say what was read, and for ``Data.notes`` that say what a user should check.

    Args:
        recordings: the readings.
        channels: the names of their channels.
        rate: to which the user has them interpolated, so that uneven steps need no remedy.
        windows: whether they are cut into windows, which gaps in time concern.
        max_gap: the longest step of time within a recording, if the user states it.
    """
    together = (np.diff(recordings.file) == 0) & (np.diff(recordings.group) == 0)
    steps = np.diff(recordings.seconds)[together]
    groups = len(np.unique(recordings.group))
    of_channels = f"{len(channels)} channel{'s' * (len(channels) != 1)}"
    lines = [f"{len(recordings.row)} readings of {of_channels} in {groups} group{'s' * (groups != 1)}:"]
    flags = []
    if len(steps):
        middle, (low, high) = float(np.median(steps)), np.percentile(steps, [5, 95])
        gaps = int((steps > 1.5 * middle).sum())
        lines.append(
            f"  from one reading to the next: {middle:.4g} (median; 5 % below {low:.4g}, 5 % above {high:.4g}); "
            f"steps longer than 1.5 times the median: {gaps}, the longest {steps.max():.4g}"
        )
        if rate is None and (high > 1.1 * middle or low < 0.9 * middle):
            flags.append(
                f"Readings are not evenly spaced: 5 % of the steps are above {high:.4g}, 5 % below {low:.4g}, the "
                f"median is {middle:.4g}; the option `rate: {1 / middle:.4g}` interpolates them."
            )
        spanned = int(((steps > 1.5 * middle) & (np.diff(recordings.row)[together] == 1)).sum())
        if spanned and windows:
            which = "are shorter than a window (the option `max_gap` sets another limit)"
            which = which if max_gap is None else f"are at most {max_gap:g} long"
            how = "Windows span" if rate is None else "Readings are interpolated over"
            flags.append(
                f"Gaps of more than 1.5 times the usual step within a group: {spanned}. {how} those that {which}."
            )
    width = max(map(len, channels))
    for name, channel in zip(channels, recordings.readings.T, strict=True):
        values = channel[~np.isnan(channel)]
        if not len(values):
            raise UserError(f"channel {name!r} holds no reading at all; leave it out with the option `ignore`")
        empty = f", {1 - len(values) / len(channel):.1%} empty" if len(values) < len(channel) else ""
        lines.append(f"  {name:<{width}}  {values.min():.6g} to {values.max():.6g}, mean {values.mean():.6g}{empty}")
        option = "ignore" if name else 'ignore: [""]'  # a name is missing over the index that pandas writes
        if values.min() == values.max():
            flags.append(f"Channel {name!r} is constant; leave it out with the option `{option}`.")
        elif len(steps) and (np.diff(channel)[together] == 1).all():
            flags.append(f"Channel {name!r} counts the rows; leave it out with the option `{option}`.")
    return tuple(lines), tuple(flags)
