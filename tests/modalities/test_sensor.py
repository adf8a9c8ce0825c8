"""Windows, gaps, statistics and text files of numbers; a user's own recordings. All data here are generated."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dabsmix.errors import UserError
from dabsmix.modalities.sensor import (
    Windows,
    fill_gaps,
    load_further,
    load_own,
    read_numbers,
    runs,
    window_starts,
)
from dabsmix.spec import Grid


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "cache"))


# --- windows


@pytest.mark.parametrize(("length", "stride"), [(1, 1), (3, 3), (4, 2), (5, 7)])
def test_windows_start_where_a_plain_loop_says(length: int, stride: int) -> None:
    key = np.array([0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 2])
    expected = [
        start
        for start in range(len(key) - length + 1)
        if len(set(key[start : start + length])) == 1  # no window holds two runs
        and (start - next(s for s in range(start, -1, -1) if s == 0 or key[s - 1] != key[start])) % stride == 0
        and all(key[i] == key[start] for i in range(start, start + length))
    ]
    assert window_starts(runs(key), length, stride).tolist() == expected


def test_runs_break_where_any_key_changes() -> None:
    assert runs(np.array([1, 1, 1, 2, 2]), np.array([5, 5, 6, 6, 6])).tolist() == [0, 2, 3, 5]


def test_a_window_is_its_readings_with_channels_first(tmp_path: Path) -> None:
    readings = np.arange(40, dtype=np.float32).reshape(20, 2)
    np.save(tmp_path / "readings.npy", readings)
    mapped = np.load(tmp_path / "readings.npy", mmap_mode="r")
    windows = Windows(mapped, np.array([0, 3, 16]), 4)
    batch = windows[np.array([2, 0])]
    assert len(windows) == 3
    assert batch.shape == (2, 2, 4)
    for window, start in zip(batch, (16, 0), strict=True):
        for channel in range(2):
            for time in range(4):
                assert window[channel, time] == readings[start + time, channel]
    batch[:] = -1  # it is a copy
    assert mapped.min() == 0


def test_a_window_beyond_the_readings_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond the 10 readings"):
        Windows(np.zeros((10, 1), np.float32), np.array([7]), 4)


# --- gaps


def test_gaps_are_filled_linearly_and_flat_at_the_ends() -> None:
    nan = np.nan
    readings = np.array([[nan, 1], [nan, 2], [4, 3], [nan, nan], [nan, nan], [10, 6], [nan, 7]])
    filled = fill_gaps(readings, "here")
    assert filled.T.tolist() == [[4, 4, 4, 6, 8, 10, 10], [1, 2, 3, 4, 5, 6, 7]]


def test_gaps_are_filled_as_pandas_does() -> None:
    rng = np.random.default_rng(0)
    readings = np.where(rng.random((500, 4)) < 0.9, np.nan, rng.normal(size=(500, 4)))
    expected = pd.DataFrame(readings).interpolate(limit_direction="both").to_numpy()
    np.testing.assert_allclose(fill_gaps(readings, "here"), expected)


def test_a_channel_without_any_reading_is_an_error() -> None:
    with pytest.raises(UserError, match=r"s\.dat: channel 2 holds no reading"):
        fill_gaps(np.array([[1, np.nan], [2, np.nan]]), "s.dat")


# --- text files of numbers


def test_numbers_are_read_with_any_blanks_between(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("  1.5e-001 -2\tNaN\n3 4 5\n")
    np.testing.assert_array_equal(read_numbers(path, 3, gaps=True), [[0.15, -2, np.nan], [3, 4, 5]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2\n3\n4 5\n", r"row 2: 1 columns, expected 2; fetch"),
        ("1 2\n3 4 5\n6 7\n", r"row 2: 3 columns, expected 2; fetch"),
        ("1 2\n3 4\n5", r"row 3: 1 columns, expected 2; the file is truncated"),
        ("1 2\n\n3 4\n", r"row 2: 0 columns"),
        ("1 2\n3 four\n", r"row 2: 'four' is not a finite number"),
        ("1 2\n3 NaN\n", r"row 2: 'NaN' is not a finite number"),
        ("1 inf\n3 4\n", r"row 1: 'inf' is not a finite number"),
        ("1 2\n3 \0\xff\n", r"row 2: .* is not a finite number"),
        ('1 "2\n3 4"\n', r"row 1: '\"2' is not a finite number"),
        ("", "empty"),
    ],
)
def test_mistakes_in_a_text_file_are_reported_with_their_row(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.txt"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=message) as caught:
        read_numbers(path, 2)
    assert str(path) in str(caught.value)


def test_a_gap_may_be_nan_but_not_infinite(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("NaN 2\n3 -Inf\n")
    with pytest.raises(UserError, match="row 2: '-Inf'"):
        read_numbers(path, 2, gaps=True)


def test_a_missing_text_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_numbers(tmp_path / "none.txt", 2)


# --- a user's own recordings


def table(people: int = 8, bout: int = 40, seed: int = 0) -> pd.DataFrame:
    """Two bouts each of sitting and walking per person, 2 channels, at 10 Hz."""
    rng = np.random.default_rng(seed)
    frames = []
    for person in range(people):
        activity = np.repeat(["sit", "walk", "sit", "walk"], bout)
        n = len(activity)
        x = np.where(activity == "walk", np.sin(np.arange(n)), 0) + rng.normal(0, 0.1, n)
        frames.append(
            pd.DataFrame(
                {
                    "time": np.arange(n) / 10,
                    "group": f"p{person}",
                    "x": x.round(4),
                    "y": rng.normal(5, 2, n).round(4),
                    "activity": activity,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def test_own_recordings_are_split_by_group_into_windows_of_one_label(tmp_path: Path) -> None:
    frame = table()
    frame.to_csv(tmp_path / "r.csv", index=False)
    data = load_own(tmp_path / "r.csv", label="activity", window=16, patch=4)
    assert data.specs == (Grid(2, (16,), (4,)),)
    labelled = data.require_labelled()
    assert labelled.task.classes == ("sit", "walk")
    parts = labelled.splits.values()
    groups = [set(part.group.tolist()) for part in parts if part.group is not None]
    assert sum(len(group) for group in groups) == len(set.union(*groups)) == 8
    # 40 readings give two windows of 16; people by 4 bouts by 2
    assert sum(len(part) for part in parts) == 8 * 4 * 2
    store = labelled.train.inputs[0]
    assert isinstance(store, Windows)
    for part in parts:
        assert part.label is not None
        for place, row in enumerate(part.rows):
            lines = frame.iloc[store.starts[row] : store.starts[row] + 16]
            assert set(lines["activity"]) == {labelled.task.classes[part.label[place]]}
            assert lines["group"].nunique() == 1
            (x,) = part.batch(np.array([place]))
            np.testing.assert_array_equal(x[0].numpy(), lines[["x", "y"]].to_numpy(np.float32).T)
    assert "256 of 1280 readings (20.0%) are in no window" in " ".join(data.notes)


def test_own_recordings_without_a_label_only_pretrain(tmp_path: Path) -> None:
    table().drop(columns="activity").to_parquet(tmp_path / "r.parquet")
    data = load_own(tmp_path / "r.parquet", window=16)
    assert data.labelled is None
    assert len(data.pretrain) == 8 * 10
    assert data.pretrain.label is None


@pytest.mark.parametrize("group_first", [False, True])
def test_a_column_may_be_the_label_in_one_load_and_the_group_in_the_next(tmp_path: Path, group_first: bool) -> None:
    (tmp_path / "data").mkdir()
    for number in range(3):
        rows = pd.DataFrame({"time": range(80), "x": np.arange(80) / 7, "y": np.repeat([number % 2, 1], 40)})
        rows.to_csv(tmp_path / "data" / f"{number}.csv", index=False)

    def by_label() -> None:
        data = load_own(tmp_path / "data", label="y", window=8)
        assert data.require_labelled().task.classes == ("0", "1")

    def by_group() -> None:
        data = load_own(tmp_path / "data", group="y", window=8)
        assert data.pretrain.group is not None
        assert len(set(data.pretrain.group[data.pretrain.rows])) == 2

    for load in (by_group, by_label) if group_first else (by_label, by_group):
        load()


def test_further_files_are_read_like_training_files(tmp_path: Path) -> None:
    frame = table()
    frame.to_csv(tmp_path / "r.csv", index=False)
    state = json.loads(json.dumps(load_own(tmp_path / "r.csv", window=16, stride=8, ignore="activity").state))
    reordered = frame[["y", "x", "group", "time"]].iloc[:160]
    (tmp_path / "new").mkdir()
    for name in ("b", "a"):
        reordered.to_csv(tmp_path / "new" / f"{name}.csv", index=False)
    data, keys = load_further(tmp_path / "new", state)
    assert len(keys) == len(data.pretrain) == 2 * 19
    assert keys[:2] == ["a.csv:2", "a.csv:10"]  # rows as an editor counts them; the header is row 1
    assert keys[19] == "b.csv:2"
    (normalised,) = data.normalise(data.pretrain.batch(np.array([1])))
    expected = (frame[["x", "y"]].iloc[8:24].to_numpy().T - np.array(state["mean"])[:, None]) / np.array(state["std"])[
        :, None
    ]
    np.testing.assert_allclose(normalised[0].numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["%Y-%m-%dT%H:%M:%S.%f", "%d.%m.%Y %H:%M:%S.%f"])
def test_dates_serve_as_times(tmp_path: Path, form: str) -> None:
    frame = table(people=2)
    frame["time"] = pd.to_datetime(frame["time"], unit="s").dt.strftime(form)
    frame.to_csv(tmp_path / "r.csv", index=False)
    assert len(load_own(tmp_path / "r.csv", window=16, ignore=["activity"]).pretrain) == 2 * 10


def test_a_jump_in_time_begins_a_new_recording(tmp_path: Path) -> None:
    frame = table(people=1)
    frame.loc[80:, "time"] += 60
    frame.to_csv(tmp_path / "r.csv", index=False)
    data = load_own(tmp_path / "r.csv", window=32, ignore="activity")
    store = data.pretrain.inputs[0]
    assert isinstance(store, Windows)
    assert store.starts.tolist() == [0, 32, 80, 112]


def broken(frame: pd.DataFrame, row: int, column: str, value: str | int | None) -> pd.DataFrame:
    frame = frame.astype({column: object})
    frame.loc[row, column] = value
    return frame


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("x", "abc", "row 102: column 'x' holds 'abc'"),
        ("x", "inf", "row 102: column 'x' holds 'inf' which is infinite"),
        ("y", None, "row 102: column 'y' is empty"),
        ("group", None, "row 102: column 'group' is empty"),
        ("time", -1, "row 102: time goes from 9.9 to -1 within one group"),
    ],
)
def test_a_bad_cell_is_reported_with_file_and_row(
    tmp_path: Path, column: str, value: str | int | None, message: str
) -> None:
    path = tmp_path / "r.csv"
    broken(table(), 100, column, value).to_csv(path, index=False)
    with pytest.raises(UserError, match=message) as caught:
        load_own(path, label="activity", window=16)
    assert str(path) in str(caught.value)


def test_a_ragged_row_is_reported_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    table().to_csv(path, index=False)
    lines = path.read_text().splitlines()
    lines[50] += ",1"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="row 51: 6 cells where the table has 5 columns"):
        load_own(path, label="activity", window=16)


def test_skipped_rows_are_listed_and_no_window_spans_them(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    broken(table(people=3), 30, "x", "abc").to_csv(path, index=False)
    data = load_own(path, on_bad="skip", window=16, ignore="activity")
    store = data.pretrain.inputs[0]
    assert isinstance(store, Windows)
    # reading 30 is missing, so reading 31 takes its place and begins a recording
    assert store.starts[:3].tolist() == [0, 30, 46]
    (note,) = (note for note in data.notes if "skipped" in note)
    assert re.match(r"1 of \d+ rows was skipped: r.csv: row 32: column 'x' holds 'abc'", note)
    assert data.state["skipped"] == [note.partition("skipped: ")[2][:-1]]


def test_implausible_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    table().to_csv(path, index=False)
    with pytest.raises(UserError, match=r"no column 'activty' \(did you mean 'activity'\?\)"):
        load_own(path, label="activty")
    with pytest.raises(UserError, match="window 16, stride 16, patch 5"):
        load_own(path, label="activity", window=16, patch=5)
    with pytest.raises(UserError, match="longest recording of one group and label has 40"):
        load_own(path, label="activity", window=64)
    with pytest.raises(UserError, match="column 'activity' holds 'sit', not a number"):
        load_own(path, window=16)
    table().assign(force=[f"{row / 8} g" for row in range(len(table()))]).to_csv(path, index=False)
    with pytest.raises(UserError, match=r"column 'force' looks like numbers with a unit .*; write them without"):
        load_own(path, label="activity", window=16)
    table().assign(activity="sit").to_csv(path, index=False)
    with pytest.raises(UserError, match="every row that has one holds 'sit'"):
        load_own(path, label="activity", window=16)


@pytest.mark.parametrize(("window", "patch"), [(128, 2), (320, 5), (64, 1), (100, 2), (7, 1), (131, 131)])
def test_segments_are_at_most_64_a_window(tmp_path: Path, window: int, patch: int) -> None:
    table(people=2, bout=80).to_csv(tmp_path / "r.csv", index=False)
    assert load_own(tmp_path / "r.csv", window=window, stride=10, ignore="activity").specs == (
        Grid(2, (window,), (patch,)),
    )
