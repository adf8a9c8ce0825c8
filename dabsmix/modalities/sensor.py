"""Sensor readings: recordings cut into windows of a fixed length, from text files of numbers or a user's own tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from dabsmix.data.cache import fingerprint
from dabsmix.data.domain import Data, Labelled, Split, Task
from dabsmix.data.splits import divide_labelled
from dabsmix.data.standardise import Standardise
from dabsmix.errors import UserError
from dabsmix.modalities.augmentation import SensorViews
from dabsmix.modalities.files import Marked, division_notes, empty_files_note, skipped_note
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
    stretches,
    summarise,
    without_rows,
)
from dabsmix.modalities.tables import TableSource, column_names, table_files, table_sources
from dabsmix.spec import Grid, PaddedGrid

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Windows",
    "fill_gaps",
    "load_further",
    "load_own",
    "read_numbers",
    "runs",
    "token_length",
    "window_starts",
]

# T readings, C channels, B windows


class Windows:
    """Windows of ``length`` readings, cut when they are indexed, which takes some microseconds each.

    Args:
        readings: float32 ``(T, C)``, in memory or a memory map; all recordings, one after the other.
        starts: int64 ``(n,)``, the first reading of each window.
        length: readings in a window.
    """

    def __init__(self, readings: NDArray[np.float32], starts: NDArray[np.int64], length: int) -> None:
        if len(starts) and not 0 <= starts.min() <= starts.max() <= len(readings) - length:
            raise ValueError(f"a window of {length} readings reaches beyond the {len(readings)} readings")
        self.starts = starts
        self.views = sliding_window_view(readings, length, axis=0)  # (T - length + 1, C, length), nothing is copied

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.float32]:
        """Windows ``(B, C, length)``, copied."""
        return self.views[self.starts[rows]]


def window_starts(bounds: NDArray[np.int64], length: int, stride: int) -> NDArray[np.int64]:
    """The first reading of each window, every ``stride`` readings; each window lies within one run (see `runs`)."""
    return np.concatenate([np.arange(start, end - length + 1, stride) for start, end in pairwise(bounds)]).astype(
        np.int64
    )


def fill_gaps(readings: NDArray[np.float64], place: str) -> NDArray[np.float64]:
    """Fill NaN within one recording ``(T, C)``: linearly between readings, and at either end with the nearest reading.

    Raises:
        UserError: a channel has no readings.
    """
    time = np.arange(len(readings))
    out = readings.copy()
    for channel in range(readings.shape[1]):
        gap = np.isnan(readings[:, channel])
        if gap.all():
            raise UserError(f"{place}: channel {channel + 1} holds no readings; leave the file out or fix it")
        if gap.any():
            out[gap, channel] = np.interp(time[gap], time[~gap], readings[~gap, channel])
    return out


def read_numbers(path: Path, columns: int, *, gaps: bool = False) -> NDArray[np.float64]:
    """Read a text file of numbers separated by blanks, without a header: ``(rows, columns)``.

    Args:
        path: the file.
        columns: how many numbers a row has.
        gaps: whether ``NaN`` may stand for a reading that was not taken.

    Raises:
        UserError: the file is missing, empty or truncated, a row has another number of columns, or a value is not a
            finite number. The message names the file and the row (counted from 1).
    """
    import pandas as pd

    try:
        with path.open("rb") as stream:
            widths = np.array([len(line.split()) for line in stream])
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fetch it again") from error
    if len(widths) == 0:
        raise UserError(f"{path}: empty; fetch it again")
    if (wrong := np.flatnonzero(widths != columns)).size:
        row = wrong[0]
        cut = "; the file is truncated" if row == len(widths) - 1 else ""
        raise UserError(f"{path}, row {row + 1}: {widths[row]} columns, expected {columns}{cut}; fetch it again")
    try:
        frame = pd.read_csv(
            path, sep=r"\s+", header=None, dtype=np.float64, keep_default_na=False, na_values=["NaN"], quoting=3
        )
        values = frame.to_numpy()
    except ValueError:  # pandas does not say where
        values = None
    if values is None or not (np.isfinite(values) | (gaps & np.isnan(values))).all():
        raise UserError(_first_bad_number(path, gaps))
    return values


def _first_bad_number(path: Path, gaps: bool) -> str:
    with path.open("rb") as stream:
        for row, line in enumerate(stream, 1):
            for word in line.split():
                try:
                    value = float(word)
                except ValueError:
                    value = np.inf
                if not np.isfinite(value) and not (gaps and np.isnan(value)):
                    return (
                        f"{path}, row {row}: {word.decode(errors='replace')!r} is not a finite number; fix or fetch it"
                    )
    raise AssertionError(f"{path}: pandas refused what float() takes")


# --- a user's own recordings


def load_own(
    path: Path,
    *,
    label: str | None = None,
    on_bad: Literal["error", "skip"] = "error",
    time: str = "time",
    group: str = "group",
    window: int | None = None,
    stride: int | None = None,
    patch: int | None = None,
    ignore: str | Sequence[str] = "",
    rate: float | None = None,
    max_gap: float | None = None,
    recording: str = "",
    labels: str = "",
    gaps: Literal["error", "mask"] = "error",
    separator: str = "",
    decimal: str = ".",
    encoding: str = "utf-8",
) -> Data:
    """A table of sensor readings, or a folder of tables with the same columns.

    Every column is a channel, except those of time, group and label and the ignored ones. Rows are sorted by group
    and, within a group, by time. A window lies within one group and one label. A new recording begins where rows were
    left out and where time jumps by more than ``max_gap``. With a label, a fifth of the groups become the test part.
    With ``recording``, each recording is one example instead, see `whole_recordings.load_own`.

    Args:
        path: CSV or TSV with a header line, gzipped or not, or Parquet.
        label: the column with the class of each reading; windows where it is empty are used for pretraining and are
            not scored.
        on_bad: ``skip`` leaves bad rows out, counts them and lists them.
        time: the column of times: numbers, or dates (ISO 8601, or 31.12.2024).
        group: the column that says which readings belong together (person, machine, recording). If there is none of
            the default name, each of several files is a group.
        window: readings in a window, 128 by default; with ``recording`` the most that are read of one, by default all.
        stride: readings from one window to the next; by default a window's length.
        patch: readings in a token, a divisor of the window; by default the shortest with at most 64 tokens a window.
        ignore: columns to leave out, separated by commas or as a list.
        rate: readings per unit of time (Hz if the unit is seconds) to which all recordings are interpolated; by
            default they keep their own rate.
        max_gap: the longest step of time within a recording; by default, the duration of a window.
        recording: the column that tells recordings apart, or ``file`` if each file is one.
        labels: with ``recording: file``, a CSV of the files' classes, as for images.
        gaps: ``mask`` allows empty cells in a channel.
        separator, decimal, encoding: of CSV files, see `TableSource`.

    Raises:
        UserError: a column is unknown, a row is bad, time does not ascend, the label is constant, or there are not two
            windows.
    """
    reading: dict[str, Any] = {"separator": separator, "decimal": decimal, "encoding": encoding}
    if recording:
        from dabsmix.modalities import whole_recordings

        if stride is not None or max_gap is not None:
            raise UserError("options stride and max_gap are of windows; leave them out with `recording`")
        return whole_recordings.load_own(
            path,
            label=label,
            on_bad=on_bad,
            recording=recording,
            time=time,
            group=group,
            length=window,
            patch=patch,
            ignored=_names(ignore),
            rate=rate,
            labels=labels,
            gaps=gaps == "mask",
            reading=reading,
        )
    if labels:
        raise UserError(f"option labels: {labels} names the classes of files: it needs `recording: file`")
    window = 128 if window is None else window
    stride = window if stride is None else stride
    patch = patch or token_length(window)
    _check_options(window, stride, patch, rate, max_gap)
    sources = tuple(TableSource(file, **reading) for file in table_files(path))
    names = column_names(sources[0])
    by_file = group == "group" and group not in names and len(sources) > 1
    roles = Roles((), time, None if by_file else group, label, gaps=gaps == "mask")
    roles = replace(roles, channels=channels_of(path, names, roles.others, _names(ignore)))
    source = fingerprint(path if path.is_dir() else path.parent, [file.path for file in sources])
    by_default = reading == dict(separator="", decimal=".", encoding="utf-8")
    recordings = read_once(source if by_default else f"{source} {reading}", sources, roles, on_bad)
    if label is not None:
        check_classes(label, recordings.classes)
    summary, flags = summarise(recordings, roles.channels, rate=rate, max_gap=max_gap)
    flags = (*empty_files_note([sources[file].path for file in without_rows(recordings, sources)]), *flags)
    if by_file:
        flags = ("There is no column 'group', so each file is a group.", *flags)
    state: dict[str, Any] = {
        "time": time,
        "group": roles.group,
        "channels": roles.channels,
        "window": window,
        "stride": stride,
        "patch": patch,
        "rate": rate,
        "max_gap": max_gap,
        **({"gaps": True} if roles.gaps else {}),
        "reading": reading,
    }
    recordings, bounds = _cut(recordings, sources, state, by_label=label is not None)
    starts = _starts(recordings, bounds, state)
    if len(starts) < 2:
        raise UserError(
            f"{path}: {len(starts)} windows of {window} readings; the longest recording of one group and label has "
            f"{np.diff(bounds).max()} readings: sort rows by group and time, or set a shorter window"
        )
    data = replace(
        _windowed(recordings, starts, state),
        fingerprint=source,
        summary=summary,
        names=lambda rows: _keys(recordings, sources, starts[rows]),
    )
    data = replace(data, notes=(*data.notes, *flags))
    if label is not None:
        data = _divided(data, recordings.label[starts], recordings.classes)
    standardise = Standardise.of(data.pretrain.inputs[0], data.pretrain.rows)
    return replace(
        data,
        normalise=standardise,
        augment=SensorViews(standardise).augment,
        state={
            **state,
            "mean": standardise.mean,
            "std": standardise.std,
            "skipped": list(recordings.skipped),
        },
    )


def _cut(
    recordings: Recordings, sources: Sequence[TableSource], state: Mapping[str, Any], *, by_label: bool
) -> tuple[Recordings, NDArray[np.int64]]:
    """Recordings at the rate that the state asks for, and the bounds that no window may cross (see `stretches`)."""
    bounds = stretches(recordings, sources, state["time"], state["window"], state.get("max_gap"), by_label=by_label)
    return resampled(recordings, bounds, state["rate"]) if state.get("rate") else (recordings, bounds)


def _starts(recordings: Recordings, bounds: NDArray[np.int64], state: Mapping[str, Any]) -> NDArray[np.int64]:
    """The first readings of the windows; where there are gaps, of those in which anything was read."""
    window = int(state["window"])
    starts = window_starts(bounds, window, int(state["stride"]))
    if not state.get("gaps"):
        return starts
    read_before = np.concatenate([[0], np.cumsum(~np.isnan(recordings.readings).all(axis=1))])
    return starts[read_before[starts + window] > read_before[starts]]


def _windowed(recordings: Recordings, starts: NDArray[np.int64], state: Mapping[str, Any]) -> Data:
    """All windows as ``pretrain``, without labels and as they were read."""
    window = int(state["window"])
    windows = Windows(recordings.readings, starts, window)
    return Data(
        specs=((PaddedGrid if state.get("gaps") else Grid)(len(state["channels"]), (window,), (int(state["patch"]),)),),
        pretrain=Split((windows,), np.arange(len(starts)), None, recordings.group[starts]),
        labelled=None,
        fingerprint="",
        notes=(
            *_unused_note(starts, window, len(recordings.row), recordings.skipped),
            *skipped_note("rows", recordings.skipped, len(recordings.row) + len(recordings.skipped)),
        ),
    )


def _divided(data: Data, label: NDArray[np.int64], classes: tuple[str, ...]) -> Data:
    """The windows divided in whole groups; ``label`` is that of each, -1 where it has none."""
    task, all_rows = Task("classes", "accuracy", classes), replace(data.pretrain, label=label)
    parts = divide_labelled(label >= 0, group=all_rows.group)
    return replace(
        data,
        pretrain=all_rows.take(parts.pretrain).drop_partial_label(),
        labelled=Labelled(task, all_rows.take(parts.train), all_rows.take(parts.validation), all_rows.take(parts.test)),
        notes=(*division_notes("windows", task, parts, label, len(label), group=all_rows.group), *data.notes),
    )


def _keys(recordings: Recordings, sources: Sequence[TableSource], starts: NDArray[np.int64]) -> list[str]:
    """``file:row`` of each window's first reading."""
    first = zip(recordings.file[starts], recordings.row[starts], strict=True)
    return [f"{sources[file].path.name}:{row}" for file, row in first]


def _check_options(window: int, stride: int, patch: int, rate: float | None, max_gap: float | None) -> None:
    if window < 2 or stride < 1 or patch < 1 or window % patch:
        raise UserError(
            f"options window {window}, stride {stride}, patch {patch}: each must be positive, window at least 2, and "
            "patch must divide window"
        )
    for name, value in (("rate", rate), ("max_gap", max_gap)):
        if value is not None and not value > 0:
            raise UserError(f"option {name}: {value} is not positive")


def _names(listed: str | Sequence[str]) -> list[str]:
    if not isinstance(listed, str):
        return [name.strip() for name in listed]  # a column may have an empty name
    return [name.strip() for name in listed.split(",") if name.strip()]


def _unused_note(starts: NDArray[np.int64], window: int, readings: int, skipped: Sequence[str]) -> list[str]:
    used = np.zeros(readings + 1, np.int64)
    np.add.at(used, starts, 1)
    np.add.at(used, starts + window, -1)
    unused = int((np.cumsum(used)[:-1] == 0).sum())
    if not unused:
        return []
    share = f"{unused / readings:.1%}"
    note = (
        f"{unused} of {readings} readings ({share}) are in no window: their stretch without a gap or another label is "
        f"shorter than a window of {window}, or ends before the next window is full."
    )
    if any(row.endswith(" is empty") for row in skipped):
        note += " Rows with empty cells end a stretch where they are left out; the option `gaps: mask` keeps them."
    return [note]


def token_length(window: int) -> int:
    """Readings in a token by default: the fewest that give at most 64 tokens a window."""
    return next((size for size in range(-(-window // TOKENS), window) if window % size == 0), window)


def load_further(
    data: Path | pd.DataFrame, state: Mapping[str, Any], on_bad: Literal["error", "skip"] = "error"
) -> tuple[Data, list[str]]:
    """Windows of further tables, all in order as ``pretrain``; a key is ``file:row`` of a window's first reading.

    Labels are ignored: a window lies within one group, whatever labels its readings have.

    Args:
        data: files as in `load_own`, or a table in memory.
        state: ``Data.state`` of the training run.

    Raises:
        UserError: a column is missing, a row is bad, time does not ascend, or there is no window.
    """
    if state.get("recording"):
        from dabsmix.modalities import whole_recordings

        return whole_recordings.load_further(data, state, on_bad)
    further, keys, _, _ = _further(data, state, on_bad, None)
    return further, keys


def load_further_labelled(
    path: Path,
    state: Mapping[str, Any],
    *,
    label: str,
    on_bad: Literal["error", "skip"] = "error",
    group: str | None = None,
    labels: str = "",
) -> Marked:
    """Windows of further tables, each within one group and one label; otherwise as `load_further`.

    Args:
        path, state, on_bad: see `load_further`.
        label: the column of the class; for whole recordings also ``folder``, or with ``labels`` its column.
        group, labels: for whole recordings, see `load_own`.
    """
    if state.get("recording"):
        from dabsmix.modalities import whole_recordings

        return whole_recordings.load_further_labelled(path, state, label, labels, group, on_bad)
    if group is not None or labels:
        option = "labels" if labels else "group"
        by = "file" if state["group"] is None else repr(state["group"])
        raise UserError(f"option {option}: the run reads windows, grouped by {by}; leave it out")
    further, keys, code, classes = _further(path, state, on_bad, label)
    check_classes(label, classes)
    return Marked(further, keys, "windows", Task("classes", "accuracy", classes), code, further.pretrain.group)


def _further(
    data: Path | pd.DataFrame, state: Mapping[str, Any], on_bad: Literal["error", "skip"], label: str | None
) -> tuple[Data, list[str], NDArray[np.int64], tuple[str, ...]]:
    """Windows cut as the run's own were, their keys and labels, and the names of the labels."""
    sources = table_sources(data, state.get("reading"))
    if label in (*state["channels"], state["time"], state["group"]):
        raise UserError(f"--label {label}: the run reads this column as an input; name another")
    gaps = bool(state.get("gaps"))
    recordings = read(sources, Roles(state["channels"], state["time"], state["group"], label, gaps=gaps), on_bad)
    recordings, bounds = _cut(recordings, sources, state, by_label=label is not None)
    starts = _starts(recordings, bounds, state)
    if not len(starts):
        raise UserError(
            f"{sources[0].path}: no group has {state['window']} readings in a row, the length of the run's window"
        )
    further = replace(
        _windowed(recordings, starts, state),
        normalise=Standardise(tuple(state["mean"]), tuple(state["std"])),
        state=dict(state),
    )
    return further, _keys(recordings, sources, starts), recordings.label[starts], recordings.classes
