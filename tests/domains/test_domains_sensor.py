"""UCI HAR on real windows where available, PAMAP2 on generated files and on one authentic row."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from upstream import write_pamap2, write_uci_har

from dabsmix.data.domain import Data, Split
from dabsmix.errors import UserError
from dabsmix.modalities.sensor import Windows, read_numbers
from dabsmix.registry import domain
from dabsmix.spec import Grid
from dabsmix.testing import check_domain


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pamap2(tmp_path_factory.mktemp("generated"), bout_seconds=3.6)


def some(generated: Path, into: Path, *subjects: int) -> Path:
    """A copy of some subjects' files."""
    folder = into / "Protocol"
    folder.mkdir()
    for subject in subjects:
        shutil.copy(generated / f"subject10{subject}.dat", folder)
    return folder


def real(*parts: str) -> Path:
    """A folder of real data, or a reason to skip."""
    root = os.environ.get("DABSMIX_DATA")
    if root is None or not Path(root, *parts).exists():
        pytest.skip(f"DABSMIX_DATA is unset or has no {'/'.join(parts)}")
    return Path(root, *parts)


def splits(data: Data) -> tuple[Split, Split, Split]:
    labelled = data.require_labelled()
    return labelled.train, labelled.validation, labelled.test


def store(split: Split) -> Windows:
    (windows,) = split.inputs
    assert isinstance(windows, Windows)
    return windows


def plain_rows(folder: Path, subject: int) -> NDArray[np.float64]:
    """One subject's file, word by word."""
    lines = (folder / f"subject10{subject}.dat").read_text().splitlines()
    return np.array([[float(word) for word in line.split(" ")] for line in lines])


# --- PAMAP2


def test_pamap2_columns_lie_as_in_the_authentic_row() -> None:
    row = read_numbers(real("pamap2-format-sample", "Protocol") / "subject101.dat", 54, gaps=True)[0]
    time, activity, heart_rate = row[:3]
    hand, chest, ankle = row[3:20], row[20:37], row[37:54]
    assert (time, activity, heart_rate) == (8.38, 0, 104)
    for imu in (hand, chest, ankle):
        assert 25 < imu[0] < 40  # temperature in degrees
        for acceleration in (imu[1:4], imu[4:7]):  # at rest: gravity
            assert np.linalg.norm(acceleration) == pytest.approx(9.81, abs=0.5)
        assert np.abs(imu[7:10]).max() < 0.5  # gyroscope
        assert 30 < np.linalg.norm(imu[10:13]) < 120  # magnetometer in microtesla
        assert imu[13:].tolist() == [1, 0, 0, 0]  # orientation, invalid


def test_pamap2_with_only_the_authentic_row_reports_what_is_missing() -> None:
    folder = real("pamap2-format-sample", "Protocol")
    with pytest.raises(UserError, match=r"nothing to train on, subject102\.dat or subject103\.dat.* missing"):
        domain("pamap2").load(folder, "v1")


def test_pamap2_has_the_shape_and_subjects_of_the_protocol(generated: Path) -> None:
    data = domain("pamap2").load(generated, "v1")
    assert data.specs == (Grid(52, (320,), (5,)),)
    labelled = data.require_labelled()
    assert len(labelled.task.classes) == 12
    assert "ironing" in labelled.task.classes
    # each person did 14 bouts of 3.6 s: one window of 3.2 s each, or two if a window begins every 0.32 s
    assert [len(part) for part in splits(data)] == [6 * 14, 14, 2 * 14]
    assert len(data.pretrain) == 2 * 6 * 14
    assert "Intervals are over bouts of activity, for these 2 people in the test, not for others." in data.notes


def test_pamap2_windows_are_the_readings_of_one_bout(generated: Path) -> None:
    """Each window of subject 5 equals the rows of the file, read line by line."""
    data = domain("pamap2").load(generated, "v1")
    _, _, test = splits(data)
    rows = plain_rows(generated, 5)
    activity = rows[:, 1].astype(int)
    labelled = data.require_labelled()
    names = dict(zip((1, 2, 3, 4, 5, 6, 7, 12, 13, 16, 17, 24), labelled.task.classes, strict=True))
    begins = [i for i in range(1, len(rows)) if activity[i] and activity[i] != activity[i - 1]]
    expected = {}
    for begin in begins:
        window = rows[begin : begin + 320, 2:].T.copy()
        for channel, values in enumerate(window):
            for i in np.flatnonzero(np.isnan(values)):  # between the nearest readings of the recording
                column = rows[:, 2 + channel]
                left, right = begin + i, begin + i
                while np.isnan(column[left]):
                    left -= 1
                while np.isnan(column[right]):
                    right += 1
                share = (begin + i - left) / (right - left)
                values[i] = column[left] * (1 - share) + column[right] * share
        expected[window.astype(np.float32)[3].tobytes()] = (names[activity[begin]], window)
    assert test.label is not None
    windows = 0
    for place in range(len(test)):
        (x,) = test.batch(np.array([place]))
        if (key := x[0, 3].numpy().tobytes()) in expected:
            name, window = expected[key]
            assert labelled.task.classes[test.label[place]] == name
            np.testing.assert_allclose(x[0].numpy(), window, rtol=1e-5)
            windows += 1
    assert windows == len(expected) == 14


def test_pamap2_gaps_at_the_ends_of_a_recording_take_the_nearest_reading(generated: Path, tmp_path: Path) -> None:
    folder = some(generated, tmp_path, 1, 2, 5)
    for path in folder.iterdir():  # the recording begins within a bout, heart rate four readings later
        lines = path.read_text().splitlines()
        path.write_text("\n".join(lines[120:]) + "\n")
    data = domain("pamap2").load(folder, "v1")
    heart_rate = plain_rows(folder, 1)[:, 2]
    first = heart_rate[~np.isnan(heart_rate)][0]
    assert np.isnan(heart_rate[0])
    _, validation, _ = splits(data)
    (x,) = validation.batch(np.array([0]))
    assert (x[0, 0, : np.flatnonzero(~np.isnan(heart_rate))[0]] == first).all()


def test_pamap2_bouts_and_subjects_are_not_shared_between_splits(generated: Path) -> None:
    data = domain("pamap2").load(generated, "v1")
    covered: list[set[int]] = []
    groups: list[set[int]] = []
    for part in splits(data):
        starts = store(part).starts[part.rows]
        covered.append({reading for start in starts for reading in range(start, start + 320)})
        assert len(covered[-1]) == 320 * len(part)  # evaluation windows do not overlap
        assert part.group is not None
        groups.append(set(part.group.tolist()))
    assert not set.intersection(covered[0], covered[1] | covered[2])
    assert not covered[1] & covered[2]
    assert len(set.union(*groups)) == sum(len(group) for group in groups)
    assert data.pretrain.group is not None
    assert set(data.pretrain.group.tolist()) == groups[0]


def test_pamap2_is_standardised_by_its_training_windows(generated: Path) -> None:
    data = domain("pamap2").load(generated, "v1")
    train, _, _ = splits(data)
    (x,) = data.normalise(train.batch(np.arange(len(train))))
    assert x.isfinite().all()
    assert x.mean((0, 2)).abs().max() < 1e-3
    std = x.std((0, 2))
    orientation = [1 + 17 * sensor + place for sensor in range(3) for place in (13, 14, 15, 16)]
    assert (std[orientation] == 0).all()  # constant in the files
    others = [channel for channel in range(52) if channel not in orientation]
    assert (std[others] - 1).abs().max() < 1e-2


def test_pamap2_under_dabs_is_raw_without_ironing_and_tests_on_subject_5(generated: Path) -> None:
    data = domain("pamap2").load(generated, "dabs")
    labelled = data.require_labelled()
    assert len(labelled.task.classes) == 11
    assert "ironing" not in labelled.task.classes
    train, validation, test = splits(data)
    assert (len(train), len(test)) == (50_000, 10_000)
    reloaded = domain("pamap2").load(generated, "dabs")
    np.testing.assert_array_equal(store(reloaded.pretrain).starts, store(data.pretrain).starts)
    (x,) = train.batch(np.arange(3))
    assert data.normalise((x,))[0] is x
    subject_5 = set(np.unique(plain_rows(generated, 5)[:, 6]).astype(np.float32).tolist())
    assert validation is test  # DABS's validation split is its test split
    for part, of_subject_5 in ((test, True), (train, False)):
        (x,) = part.batch(np.arange(0, len(part), 1000))
        assert all((window[4, 7].item() in subject_5) == of_subject_5 for window in x)
    assert train.group is not None
    assert len(np.unique(train.group)) == 7 * 11  # every activity of seven people
    assert test.label is not None
    counts = np.bincount(test.label, minlength=11)
    assert (np.abs(counts - 10_000 / 11) < 5 * np.sqrt(10_000 / 11)).all()  # uniform over activities


@pytest.mark.parametrize("protocol", ["v1", "dabs"])
def test_pamap2_spectrogram(tmp_path: Path, protocol: str) -> None:
    folder = write_pamap2(tmp_path, subjects=(1, 2, 5), bout_seconds=10.2)
    data = check_domain(domain("pamap2_spectrogram"), folder, protocol=protocol)
    assert data.specs == (Grid(52, (32, 32), (4, 4)),)
    (x,) = data.require_labelled().test.batch(np.arange(2))
    assert x.shape == (2, 52, 1000)
    (image,) = data.normalise((x,))
    # one column of one channel, written out
    padded = np.pad(x[1, 7].double().numpy(), 31, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(63) / 63)
    power = np.abs(np.fft.rfft(padded[5 * 32 : 5 * 32 + 63] * window)) ** 2
    expected = (np.log(power + 1e-6) + 0.38876906) / 4.16510321
    np.testing.assert_allclose(image[1, 7, :, 5].numpy(), expected, rtol=1e-3, atol=1e-3)


def test_pamap2_uses_the_available_subjects_and_names_them(generated: Path, tmp_path: Path) -> None:
    folder = some(generated, tmp_path, 1, 2, 6)
    data = domain("pamap2").load(folder, "v1")
    assert [len(part) for part in splits(data)] == [14, 14, 14]
    assert any("subject103.dat" in note and "subject105.dat" in note for note in data.notes)
    with pytest.raises(UserError, match=r"nothing to test on, subject105\.dat missing"):
        domain("pamap2").load(folder, "dabs")
    (folder / "subject101.dat").unlink()
    (folder / "subject102.dat").rename(folder / "subject105.dat")
    with pytest.raises(UserError, match=r"nothing to train on, subject102\.dat or"):
        domain("pamap2").load(folder, "v1")
    (folder / "subject105.dat").rename(folder / "subject102.dat")
    with pytest.raises(UserError, match=r"nothing to validate on, subject101\.dat missing"):
        domain("pamap2").load(folder, "v1")


def test_pamap2_names_activities_without_training_rows(generated: Path, tmp_path: Path) -> None:
    folder = some(generated, tmp_path, 1, 2, 5)
    path = folder / "subject102.dat"  # as upstream's subject 3, who did not run
    path.write_text("".join(line for line in path.open() if line.split(" ", 2)[1] != "5"))
    notes = domain("pamap2").load(folder, "v1").notes
    assert "No train window has running, test has." in notes
    assert "No train window has running, validation has." in notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines[:-1], lines[-1][:50]], r"row 6840: 8 columns, expected 54; the file is truncated"),
        (lambda lines: [*lines[:9], lines[9] + " 1", *lines[10:]], "row 10: 55 columns, expected 54"),
        (lambda lines: [lines[0].replace("8.38 0 ", "8.38 99 "), *lines[1:]], "row 1: time 8.38, activity 99"),
        (lambda lines: [lines[0].replace("8.38 0 ", "8.38 NaN "), *lines[1:]], "row 1: time 8.38, activity nan"),
        (lambda lines: [lines[0].replace("NaN", "n/a", 1), *lines[1:]], "row 1: 'n/a' is not a finite number"),
    ],
)
def test_pamap2_damaged_files_are_reported_with_file_and_row(
    generated: Path, tmp_path: Path, change: Callable[[list[str]], list[str]], message: str
) -> None:
    folder = some(generated, tmp_path, 1, 2, 5)
    path = folder / "subject102.dat"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(UserError, match=message) as caught:
        domain("pamap2").load(folder, "v1")
    assert str(path) in str(caught.value)


def test_pamap2_files_cut_to_less_than_a_window_are_one_line(generated: Path, tmp_path: Path) -> None:
    folder = some(generated, tmp_path, 1, 2, 5)
    for path in folder.iterdir():
        path.write_text("\n".join(path.read_text().splitlines()[:200]) + "\n")
    with pytest.raises(UserError, match="240 readings of the twelve activities, a window has 320"):
        domain("pamap2").load(folder, "v1")


# --- UCI HAR


def test_uci_har_windows_are_the_files_rows() -> None:
    folder = real("UCI HAR Dataset")
    data = domain("uci_har").load(folder, "v1")
    assert data.specs == (Grid(9, (128,), (2,)),)
    train, validation, test = splits(data)
    assert (len(train) + len(validation), len(test)) == (2400, 950)
    labels = (folder / "test" / "y_test.txt").read_text().split()
    (x,) = test.batch(np.array([0, 700]))
    for channel, name in ((0, "body_acc_x"), (5, "body_gyro_z"), (6, "total_acc_x")):
        lines = (folder / "test" / "Inertial Signals" / f"{name}_test.txt").read_text().splitlines()
        for place, row in enumerate((0, 700)):
            np.testing.assert_allclose(
                x[place, channel].numpy(), [float(word) for word in lines[row].split()], rtol=1e-6
            )
    assert test.label is not None
    assert [str(label + 1) for label in test.label] == labels


def test_uci_har_validation_shares_no_reading_with_train() -> None:
    data = domain("uci_har").load(real("UCI HAR Dataset"), "v1")
    train, validation, test = splits(data)
    assert train.rows.max() < validation.rows.min()
    (last,), (first,) = train.batch(np.array([len(train) - 1])), validation.batch(np.array([0]))
    assert not np.allclose(last[0, :, 64:], first[0, :, :64], atol=1e-3)
    groups = [set(part.group.tolist()) for part in (train, validation, test) if part.group is not None]
    assert len(set.union(*groups)) == sum(len(group) for group in groups)
    assert validation.label is not None
    assert set(validation.label) == set(range(6))
    assert any("no subject files" in note for note in data.notes)


def test_uci_har_is_split_by_person_where_the_subject_files_are(tmp_path: Path) -> None:
    folder = write_uci_har(tmp_path)
    data = domain("uci_har").load(folder, "v1")
    people = {part: (folder / part / f"subject_{part}.txt").read_text().split() for part in ("train", "test")}
    train, validation, test = splits(data)
    for part, name in ((train, "train"), (validation, "train"), (test, "test")):
        assert part.group is not None
        assert [str(person) for person in part.group] == [people[name][row] for row in part.rows]
    assert train.group is not None
    assert validation.group is not None
    assert not set(train.group) & set(validation.group)
    (x,) = data.normalise(train.batch(np.arange(len(train))))
    assert x.mean((0, 2)).abs().max() < 1e-4
    assert (x.std((0, 2)) - 1).abs().max() < 1e-2


def test_uci_har_says_which_files_are_missing_or_damaged(tmp_path: Path) -> None:
    folder = write_uci_har(tmp_path)
    labels = folder / "train" / "y_train.txt"
    text = labels.read_text()
    labels.write_text("7\n" + text[2:])
    with pytest.raises(UserError, match=r"y_train\.txt, row 1: 7 is not within 1 to 6"):
        domain("uci_har").load(folder, "v1")
    labels.write_text(text[2:])
    with pytest.raises(UserError, match=r"windows for \d+ labels in y_train\.txt"):
        domain("uci_har").load(folder, "v1")
    labels.unlink()
    with pytest.raises(UserError, match=r"train/y_train\.txt missing"):
        domain("uci_har").load(folder, "v1")
