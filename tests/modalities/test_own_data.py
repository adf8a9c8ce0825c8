"""Own data of every modality, made from real files: pretrained, scored and embedded by the command line."""

import csv
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml

from dabsmix.cli import main
from dabsmix.run import Run
from dabsmix.source import Source, load


class Made(NamedTuple):
    """A data set as a user has it, and what its test expects.

    Attributes:
        modality: of the data.
        path: folder or file.
        label: column of the label, or ``folder``.
        options: what the YAML holds; with a label also `with_label`.
        with_label: see `options`.
        some: a part of the data by itself, to embed.
        keys: the keys that its features get.
        place: the key that the first of them has in the whole.
    """

    modality: str
    path: Path
    label: str
    options: dict[str, Any]
    with_label: dict[str, Any]
    some: Path
    keys: list[str]
    place: str


# --- own data made from real files; the label is the last column


def images(real: Path, into: Path) -> Made:
    """A folder for each of four kinds of traffic sign."""
    kinds = real / "GTSRB/Final_Training/Images"
    for kind in ("00001", "00013", "00014", "00038"):
        shutil.copytree(kinds / kind, into / "signs" / kind, ignore=shutil.ignore_patterns("*.csv"))
    some = into / "signs/00013"
    keys = sorted(path.name for path in some.iterdir())
    options = {"size": 32, "patch": 8}
    return Made("image", into / "signs", "folder", options, {}, some, keys, f"00013/{keys[0]}")


def sounds(real: Path, into: Path) -> Made:
    """A folder of spoken digits, and a table of speakers and digits."""
    folder = into / "digits"
    folder.mkdir()
    rows: list[tuple[str, ...]] = [("file", "speaker", "digit")]
    for path in sorted((real / "free-spoken-digit-dataset/recordings").glob("[0-3]_*_[0-3].wav")):
        shutil.copy(path, folder)
        digit, speaker, _ = path.stem.split("_")
        rows.append((path.name, speaker, digit))
    write_csv(folder / "labels.csv", rows)
    some = folder / rows[5][0]
    options = {"rate": 8000, "seconds": 0.5, "mels": 32}
    with_label = {"labels": "labels.csv", "group": "speaker"}
    return Made("spectrogram", folder, "digit", options, with_label, some, [some.name], some.name)


def readings(real: Path, into: Path) -> Made:
    """Recordings of 6 x 4 windows of a phone at the waist: of each the first half, since upstream's overlap by half."""
    folder = real / "UCI HAR Dataset/train"
    channels = [f"{signal}_{axis}" for signal in ("body_acc", "body_gyro") for axis in "xyz"]
    label = np.loadtxt(folder / "y_train.txt", dtype=int)
    signals = [np.loadtxt(folder / f"Inertial Signals/{name}_train.txt")[:, :64] for name in channels]
    windows = np.stack(signals, axis=2)
    names = np.array(["", "walking", "upstairs", "downstairs", "sitting", "standing", "laying"])
    of_class = [np.flatnonzero(label == code) for code in range(1, 7)]
    parts = []
    for first in range(0, 40, 4):
        rows = np.concatenate([rows_of_class[first : first + 4] for rows_of_class in of_class])
        part = pd.DataFrame(windows[rows].reshape(-1, len(channels)), columns=channels)
        part.insert(0, "seconds", np.arange(len(part)) / 50)
        part.insert(1, "recording", f"r{first}")
        parts.append(part.assign(activity=np.repeat(names[label[rows]], 64)))
    pd.concat(parts).to_csv(into / "walk.csv", index=False)
    parts[3].drop(columns="activity").to_parquet(into / "more.parquet")
    options = {"time": "seconds", "group": "recording", "window": 64, "patch": 4}
    n = len(parts[3])
    keys = [f"more.parquet:{row}" for row in range(1, n + 1, 64)]
    return Made(
        "sensor", into / "walk.csv", "activity", options, {}, into / "more.parquet", keys, f"walk.csv:{3 * n + 2}"
    )


def table(real: Path, into: Path) -> Made:
    """Forest cover: the columns of zeros and ones as the two categories that they are, every 20th cell empty."""
    whole = pd.read_csv(real / "covtype/covtype.csv", nrows=600)
    area, soil = (whole.filter(like=name).to_numpy().argmax(axis=1) for name in ("Wilderness", "Soil"))
    frame = whole.iloc[:, :10].astype(object)
    frame["Area"] = np.array(["Rawah", "Neota", "Comanche", "Poudre"])[area]
    frame["Soil"] = [f"soil {code}" for code in soil]
    cells = frame.to_numpy().reshape(-1)
    cells[::20] = "?"
    frame = pd.DataFrame(cells.reshape(frame.shape), columns=frame.columns)
    frame["Cover"] = np.where(whole["Cover_Type"] == 1, "spruce", np.where(whole["Cover_Type"] == 2, "pine", "other"))
    frame.to_csv(into / "forest.csv", index=False)
    frame.iloc[100:130, :-1].to_csv(into / "further.csv", index=False)
    keys = [f"further.csv:{row}" for row in range(2, 32)]
    return Made(
        "tabular", into / "forest.csv", "Cover", {"missing": "?"}, {}, into / "further.csv", keys, "forest.csv:102"
    )


def texts(real: Path, into: Path) -> Made:
    """Film reviews, one text per row."""
    with (real / "glue_data/SST-2/train.tsv").open(encoding="utf-8") as stream:
        rows = [line.rstrip("\n").split("\t") for line in islice(stream, 1, 301)]
    kinds = {"0": "bad", "1": "good"}
    write_csv(into / "reviews.csv", [("review", "opinion"), *((text, kinds[label]) for text, label in rows)])
    write_csv(into / "new.csv", [("review",), *((text,) for text, _ in rows[40:50])])
    keys = [f"new.csv:{row}" for row in range(2, 12)]
    options = {"column": "review", "length": 16, "vocab_size": 400}
    return Made("text", into / "reviews.csv", "opinion", options, {}, into / "new.csv", keys, "reviews.csv:42")


def write_csv(path: Path, rows: list[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


@pytest.fixture
def made(make: Callable[[Path, Path], Made], tmp_path: Path) -> Made:
    if "DABSMIX_DATA" not in os.environ:
        pytest.skip("$DABSMIX_DATA is not set")
    (tmp_path / "data").mkdir()
    return make(Path(os.environ["DABSMIX_DATA"]), tmp_path / "data")


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dabsmix(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """The command line, in this process and in a folder of its own: ``dabsmix(...)`` is status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dabsmix", *map(str, words)])
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, *capsys.readouterr()

    return call


def words(made: Made, *, label: bool, **options: object) -> tuple[object, ...]:
    """The flags that name the data; the options go to a file."""
    options = made.options | (made.with_label if label else {}) | options
    Path("options.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    arguments = ("--data", made.path, "--modality", made.modality, "--options", "options.yaml")
    return (*arguments, "--label", made.label) if label else arguments


EVERY = pytest.mark.parametrize("make", [images, sounds, readings, table, texts])
SHORT = ("--algo", "dmix", "--encoder", "tiny", "--steps", 4, "--batch-size", 16)


@EVERY
def test_with_a_label(made: Made, dabsmix: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, err = dabsmix("pretrain", *words(made, label=True), *SHORT)
    assert status == 0, err
    run = Run(tmp_path / out.strip())

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # the run records where its data are
    status, out, err = dabsmix("transfer", "--run", run.path, "--labels", "1", "--json")
    assert status == 0, err
    (record,) = json.loads(out)
    assert record["n"] > 10
    assert len(record["classes"]) > 1
    assert record["data_fingerprint"] == run.record.data_fingerprint
    if record["low"] is not None:  # as with too few groups in the test split
        assert 0 <= record["low"] <= record["value"] <= record["high"] <= 1
    assert any(note.startswith("The splits are ours") for note in record["notes"])
    monkeypatch.chdir(tmp_path)

    # Part of the data gets the same features as within the whole: statistics and names are the run's.
    for path, out in ((made.some, "some.parquet"), (made.path, "whole.parquet")):
        status, _, err = dabsmix("embed", "--run", run.path, "--input", path, "--out", out)
        assert status == 0, err
    some, whole = (pd.read_parquet(name).set_index("key") for name in ("some.parquet", "whole.parquet"))
    assert list(some.index) == made.keys
    assert whole.index.is_unique
    first = list(whole.index).index(made.place)
    np.testing.assert_allclose(some.to_numpy(), whole.to_numpy()[first : first + len(some)], atol=1e-5)

    status, out, err = dabsmix("audit", *words(made, label=True), "--json")
    findings = json.loads(out)
    assert status == int(any(finding["severity"] == "error" for finding in findings)), err
    assert {"splits", "classes", "reading"} <= {finding["check"] for finding in findings}


@EVERY
def test_without_a_label(made: Made, dabsmix: Call) -> None:
    # a label that is a column like the others has to be left out
    unlabelled = {"ignore": made.label} if made.modality in ("sensor", "tabular") else {}
    data = words(made, label=False, **unlabelled)
    status, out, err = dabsmix("pretrain", *data, *SHORT)
    assert status == 0, err
    status, _, err = dabsmix("transfer", "--run", out.strip())
    assert status == 2
    assert (
        err.splitlines()[-1]
        == f"dabsmix: {made.path.stem} has no labels to transfer to: name another --task, or your own labelled --data"
    )
    assert dabsmix("embed", "--run", out.strip(), "--input", made.some, "--out", "some.parquet")[0] == 0
    assert list(pd.read_parquet("some.parquet")["key"]) == made.keys
    assert dabsmix("audit", *data)[0] == 0


# --- damaged data and the messages about them


def cut_image(made: Made) -> str:
    path = made.path / "00014/00001_00010.ppm"
    path.write_bytes(path.read_bytes()[:1000])
    return r"signs/00014/00001_00010\.ppm: damaged image"


def cut_sound(made: Made) -> str:
    path = made.path / "1_theo_2.wav"
    path.write_bytes(path.read_bytes()[:1000])
    return r"digits/1_theo_2\.wav: cut off, 1000 of \d+ bytes"


def empty_cell(made: Made) -> str:
    edit(made.path, 100, lambda cells: [*cells[:3], "", *cells[4:]])
    return r"walk\.csv: row 100: column 'body_acc_y' is empty"


def infinite_cell(made: Made) -> str:
    edit(made.path, 77, lambda cells: [*cells[:3], "inf", *cells[4:]])
    return r"walk\.csv: row 77: column 'body_acc_y' holds 'inf' which is infinite as float32"


def short_row(made: Made) -> str:
    edit(made.path, 50, lambda cells: cells[:-2])
    return r"forest\.csv: row 50: 11 cells where the table has 13 columns"


def word_among_numbers(made: Made) -> str:
    edit(made.path, 60, lambda cells: ["high", *cells[1:]])
    return r"forest\.csv: row 60: column 'Elevation' holds 'high' among numbers"


def no_text(made: Made) -> str:
    edit(made.path, 9, lambda cells: [" ", cells[1]])
    return r"reviews\.csv:9: no text"


def edit(path: Path, row: int, change: Callable[[list[str]], list[str]]) -> None:
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    rows[row - 1] = change(rows[row - 1])
    write_csv(path, [tuple(row) for row in rows])


@pytest.mark.parametrize(
    ("make", "spoil"),
    [
        (images, cut_image),
        (sounds, cut_sound),
        (readings, empty_cell),
        (readings, infinite_cell),
        (table, short_row),
        (table, word_among_numbers),
        (texts, no_text),
    ],
)
def test_bad_data_are_named_or_skipped_and_listed(made: Made, spoil: Callable[[Made], str], dabsmix: Call) -> None:
    bad = spoil(made)
    data = (*words(made, label=True), "--algo", "none", "--encoder", "tiny")
    status, _, err = dabsmix("pretrain", *data)
    assert status == 2
    assert re.search(bad, err)
    assert "--on-bad skip" in err
    *stages, mistake = err.splitlines()
    assert mistake.startswith("dabsmix: ")
    assert all(line.endswith(": starts") for line in stages)

    status, out, err = dabsmix("pretrain", *data, "--on-bad", "skip")
    assert status == 0, err
    (note,) = (note for note in Run(Path(out.strip())).record.notes if "skipped" in note)
    assert re.match(r"1 of \d+ .* was skipped: .*" + bad.rpartition("/")[2], note)
    assert note in err


@pytest.mark.parametrize("make", [readings])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"windw": 64}, "unknown option 'windw' (did you mean 'window'?); sensor data take: time, group, window"),
        ({"window": "long"}, "window is 'long', not a whole number"),
        ({"window": 64.5}, "window is 64.5, not a whole number"),
        ({"patch": 7}, "patch must divide window"),
        ({"time": "clock"}, "no column 'clock'"),
    ],
)
def test_a_wrong_option_is_one_line(made: Made, option: dict[str, object], message: str, dabsmix: Call) -> None:
    status, _, err = dabsmix("pretrain", *words(made, label=True, **option), *SHORT)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("make", [readings])
def test_a_run_is_identified_by_the_contents_of_its_options(made: Made, dabsmix: Call, tmp_path: Path) -> None:
    """Neither the name of the file of options nor the working folder matters."""
    data = (*words(made, label=True), *SHORT)
    first = dabsmix("pretrain", *data)[1].strip()
    (tmp_path / "options.yaml").rename(tmp_path / "same.yaml")
    relative = [str(word).replace("options.yaml", "same.yaml").replace(f"{tmp_path}/", "") for word in data]
    assert "data/walk.csv" in relative
    status, out, err = dabsmix("pretrain", *relative, "--resume")
    assert status == 0, err
    assert out.strip() == first
    data = (*words(made, label=True, stride=32), *SHORT)
    assert dabsmix("pretrain", *data, "--resume")[0] == 2
    other = dabsmix("pretrain", *data)[1].strip()
    fingerprints = {Run(Path(folder)).record.data_fingerprint for folder in (first, other)}
    assert len(fingerprints) == 2
    words(made, label=True, window=32)
    status, _, err = dabsmix("transfer", "--run", other)
    assert (status, "walk.csv or its options have changed since" in err) == (2, True)


def test_data_that_an_earlier_version_read_otherwise_have_another_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"{1_700_000_000_000 + 60_000 * i},{i},5\n" for i in range(60)]
    (tmp_path / "ms.csv").write_text("ms,x,constant\n" + "".join(rows))
    (tmp_path / "s.csv").write_text("ms,x,constant\n" + "".join(row[8:] for row in rows))

    def fingerprints() -> list[str]:
        return [load(Source(data=tmp_path / name, modality="tabular")).fingerprint for name in ("ms.csv", "s.csv")]

    now = fingerprints()
    monkeypatch.setattr("dabsmix.source._divides_small_spreads", lambda state: False)
    before = fingerprints()
    assert now[0] != before[0]
    assert now[1] == before[1]  # an ordinary constant and ordinary numbers are read as ever
