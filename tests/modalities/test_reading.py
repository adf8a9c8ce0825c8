"""Files as users have them: dates, decimal commas, other encodings, jittered times; and the notes about them."""

import gzip
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from numpy.typing import NDArray

from dabsmix.data.cache import fingerprint
from dabsmix.data.domain import Data
from dabsmix.errors import UserError
from dabsmix.modalities import sensor, sequence, tabular, text
from dabsmix.modalities.columns import Column
from dabsmix.modalities.files import read_labels
from dabsmix.source import Source, load

N = 60


def noted(data: Data, *words: str) -> bool:
    return any(all(word in note for word in words) for note in data.notes)


def column(data: Data, number: int) -> list[float]:
    """A column as it is stored."""
    values: list[float] = np.asarray(data.pretrain.inputs[0][np.arange(N)])[:, number].tolist()
    return values


def test_dates_become_days_since_1970(tmp_path: Path) -> None:
    when = pd.Series(pd.date_range("2024-01-31 06:00", periods=N, freq="36h"))
    table = pd.DataFrame({"when": when.dt.strftime("%Y-%m-%dT%H:%M"), "x": range(1, 2 * N, 2), "y": ["a", "b"] * 30})
    table.loc[3, "when"] = None
    table.to_csv(tmp_path / "t.csv", index=False)
    data = tabular.load_own(tmp_path / "t.csv", label="y")
    expected = (when - pd.Timestamp(0)) / pd.Timedelta(days=1)
    assert np.isnan(column(data, 0)[3])
    np.testing.assert_allclose(np.delete(column(data, 0), 3), expected.drop(3), atol=3 / 1440)
    assert noted(data, "Column 'when' holds dates", "days since 1970-01-01")
    # further rows, of a Parquet file with real timestamps, are read alike
    frame = pd.DataFrame({"when": when, "x": range(1, 2 * N, 2)})
    frame.to_parquet(tmp_path / "more.parquet")
    further, _ = tabular.load_further(tmp_path / "more.parquet", data.state)
    np.testing.assert_allclose(column(further, 0), expected, atol=3 / 1440)
    (tmp_path / "t.csv").write_text((tmp_path / "t.csv").read_text() + "soon,1,a\n")
    with pytest.raises(UserError, match="row 62: column 'when' holds 'soon' among dates"):
        tabular.load_own(tmp_path / "t.csv", label="y")
    coded = tabular.load_own(tmp_path / "more.parquet", categorical="when")
    assert coded.state["columns"][0][1] is not None, "as categories where that is asked for"


def test_dates_with_dots_are_read_day_first(tmp_path: Path) -> None:
    when = pd.Series(pd.date_range("2024-01-31 06:00", periods=N, freq="36h"))
    table = pd.DataFrame(
        {
            "when": when.dt.strftime("%d.%m.%Y %H:%M"),
            "day": [f"{date.day}.{date.month}.{date.year}" for date in when],
            "impossible": ["31.02.2024", *when.dt.strftime("%d.%m.%Y")[1:]],
            "decimal": when.dt.strftime("%d.%m"),
            "version": [f"1.{i % 3}.{i % 2}" for i in range(N)],
            "year": when.dt.strftime("%d.%m.%y"),
            "slashes": when.dt.strftime("%d/%m/%Y"),
            "either": [f"{date:%d.%m.%Y}" if date.day % 2 else f"{date:%F}" for date in when],
            "y": ["a", "b"] * (N // 2),
        }
    )
    table.loc[3, "when"] = None
    path = tmp_path / "t.csv"
    table.to_csv(path, index=False)
    data = tabular.load_own(path, label="y")
    expected = (when - pd.Timestamp(0)) / pd.Timedelta(days=1)
    assert np.isnan(column(data, 0)[3])
    np.testing.assert_allclose(np.delete(column(data, 0), 3), expected.drop(3), atol=3 / 1440)
    assert column(data, 1) == np.floor(expected).tolist()
    assert [bool(column.categories) for column in map(Column.from_plain, data.state["columns"])] == [
        name in ("impossible", "version", "year", "slashes", "either") for name in table.columns[:-1]
    ]
    assert column(data, 3) == [np.float32(f"{date:%d.%m}") for date in when]
    assert noted(data, "Column 'when' holds dates, day first", "days since 1970-01-01")
    assert noted(data, "Column 'impossible' is read as categories, but looks like dates", "write them as 2024-12-31")

    # such columns make other data than before, when they were categories; any other column leaves the data as they were
    assert data.fingerprint != fingerprint(tmp_path, [path])
    assert tabular.load_own(path, label="y", categorical="when,day").fingerprint == fingerprint(tmp_path, [path])

    # a run reads further rows as its own, and real timestamps too
    further = pd.DataFrame({"when": when, **table.drop(columns=["when", "y"])})
    further.to_parquet(tmp_path / "more.parquet")
    more, _ = tabular.load_further(tmp_path / "more.parquet", data.state)
    np.testing.assert_allclose(column(more, 0), expected, atol=3 / 1440)
    for wrong in ("1.2.20245", "31.02.2024"):
        table.assign(when=None, day=wrong).to_csv(tmp_path / "u.csv", index=False)
        with pytest.raises(UserError, match=rf"row 2: column 'day' holds '{wrong}' among dates \(31.12.2024 or ISO"):
            tabular.load_further(tmp_path / "u.csv", data.state)

    # an impossible date in a later file makes the column what it was
    (tmp_path / "more.parquet").unlink()
    late = tabular.load_own(tmp_path, label="y")
    assert late.state["columns"][0] == ["when", None, "dates", "day first"]
    assert "31.02.2024" in late.state["columns"][1][1]


def test_semicolons_and_decimal_commas(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=N).round(3)
    lines = [
        "price;kind;y",
        *(f"{value};{'uv'[i % 2]};{'ab'[i % 2]}".replace(".", ",") for i, value in enumerate(numbers)),
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    unaware = tabular.load_own(tmp_path / "t.csv", label="y")
    assert noted(
        unaware, "Column 'price' is read as categories, but looks like numbers with a decimal comma", 'decimal: ","'
    )
    data = tabular.load_own(tmp_path / "t.csv", label="y", decimal=",")
    np.testing.assert_allclose(column(data, 0), numbers, rtol=1e-6)
    assert not noted(data, "decimal comma")
    further, _ = tabular.load_further(tmp_path / "t.csv", data.state)
    np.testing.assert_allclose(column(further, 0), numbers, rtol=1e-6)
    (tmp_path / "u.csv").write_text("income,y\n" + "".join(f'"{1000 + 7 * i:,}",{"ab"[i % 2]}\n' for i in range(N)))
    assert noted(tabular.load_own(tmp_path / "u.csv", label="y"), "'income'", "numbers with commas between thousands")
    (tmp_path / "o.yaml").write_text("group: kind\ndecimal: ,\n")
    with pytest.raises(UserError, match=r"o\.yaml, line 2: not YAML .* needs quotes: `decimal: \",\"`"):
        load(Source(data=tmp_path / "t.csv", modality="tabular", options=tmp_path / "o.yaml"))


@pytest.mark.parametrize("name", ["t.csv", "t.txt", "folder"])
def test_texts_in_latin_1(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        (path / "a.txt").write_bytes("café".encode("latin-1"))
    else:
        path.write_bytes(("text\n" * (name == "t.csv") + "café\nthé\n").encode("latin-1"))
    with pytest.raises(UserError, match=r"not encoded as utf-8; .* as `encoding: latin-1` in the file that --options"):
        text.load_own(path)
    with pytest.raises(UserError, match="option encoding: 'latin-l' is not known"):
        text.load_own(path, encoding="latin-l")
    data = text.load_own(path, encoding="latin-1")
    assert "  'café'" in data.summary
    further, _ = text.load_further(path, data.state)
    np.testing.assert_array_equal(further.pretrain.inputs[0], data.pretrain.inputs[0])


WIDE = {"utf-16": "utf-16", "utf-16-le": "utf-16-le", "utf-16-be": "utf-16-be"}  # what writes a file, and the remedy


@pytest.mark.parametrize("written", WIDE)
@pytest.mark.parametrize("kind", ["text in a table", "text in lines", "texts in a folder", "table", "gzipped table"])
def test_utf_16_is_recognised_and_read(kind: str, written: str, tmp_path: Path) -> None:
    modality, name, content = {
        "text in a table": (text, "t.csv", "text\r\ncafé ਊ\r\nthé\r\n"),
        "text in lines": (text, "t.txt", "café ਊ\r\nthé"),  # U+0A0A holds two bytes of line ends
        "texts in a folder": (text, "folder", "café ਊ\r\nthé\r\n"),
        "table": (tabular, "t.csv", "Größe;y\n" + "1;a\n2;b\n" * 20),
        "gzipped table": (tabular, "t.csv.gz", "Größe;y\n" + "1;a\n2;b\n" * 20),
    }[kind]
    plain, wide = (tmp_path / encoding / name for encoding in ("utf-8", "wide"))
    for path, encoding in ((plain, "utf-8"), (wide, written)):
        file = path / "1.txt" if name == "folder" else path
        file.parent.mkdir(parents=True)
        with gzip.open(file, "wb") if name.endswith(".gz") else file.open("wb") as stream:
            stream.write(content.encode(encoding))
    for stated in ("utf-8", "latin-1"):
        remedy = f"convert the file to {stated}, or name .* as `encoding: {WIDE[written]}` in the file that --options"
        with pytest.raises(UserError, match=f"encoded as UTF-16; {remedy}"):
            modality.load_own(wide, encoding=stated)
    expected = modality.load_own(plain)
    for encoding in ("utf-16", "utf-16-le"):  # with or without its mark, in either order
        data = modality.load_own(wide, encoding=encoding)
        rows = np.arange(len(expected.pretrain))
        np.testing.assert_array_equal(data.pretrain.inputs[0][rows], expected.pretrain.inputs[0][rows])
        assert data.summary == expected.summary
    further, _ = modality.load_further(wide, data.state)
    assert len(further.pretrain) == len(rows)


def test_sequences_and_tables_of_labels_in_utf_16_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.fasta").write_bytes(">a kind=x\nACGT\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"t\.fasta: encoded as UTF-16; convert the file to utf-8, or"):
        sequence.load_own(tmp_path / "t.fasta")
    (tmp_path / "labels.csv").write_bytes("file,kind\na.png,x\n".encode("utf-16-le"))
    with pytest.raises(UserError, match=r"labels\.csv: encoded as UTF-16; convert the file to utf-8, or"):
        read_labels(tmp_path / "labels.csv", ["a.png"], "kind", None, "error")


def test_latin_1_and_another_separator(tmp_path: Path) -> None:
    lines = ["Größe|Ort|y", *(f"{i}.5|{'Zürich' if i % 2 else 'Köln'}|{'ab'[i % 2]}" for i in range(N))]
    (tmp_path / "t.csv").write_bytes("\n".join(lines).encode("latin-1"))
    with pytest.raises(UserError, match=r"t\.csv: not encoded as utf-8; .*latin-1"):
        tabular.load_own(tmp_path / "t.csv", label="y")
    data = tabular.load_own(tmp_path / "t.csv", label="y", encoding="latin-1", separator="|")
    assert data.state["columns"] == [["Größe", None], ["Ort", ["Köln", "Zürich"]]]
    # not in the header, but in a later row
    (tmp_path / "u.csv").write_bytes(b"x,y\n" + b"1,a\n2,b\n" * 20 + "3,ü\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"u\.csv: not encoded as utf-8"):
        tabular.load_own(tmp_path / "u.csv", label="y")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"decimal": ";"}, "option decimal: ';' is neither a point nor a comma"),
        ({"separator": "||"}, "option separator: '||' is not one character"),
        ({"encoding": "utf-99"}, "option encoding: 'utf-99' is not known"),
        ({"missing": -999}, "missing is -999, not text (quotes make it text) or a list of them"),
        ({"task": "rank"}, "task is 'rank', not 'auto' or 'classes' or 'regression'"),
    ],
)
def test_implausible_options_are_refused(option: dict[str, str | int], message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,y\n1,a\n2,b\n")
    (tmp_path / "o.yaml").write_text(yaml.safe_dump(option))
    with pytest.raises(UserError) as caught:
        load(Source(data=tmp_path / "t.csv", modality="tabular", options=tmp_path / "o.yaml"))
    assert message in str(caught.value)


@pytest.mark.parametrize("modality", ["image", "spectrogram"])
def test_a_table_in_place_of_media_is_refused_as_what_it_is(modality: Any, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,kind\n1,x\n")
    with pytest.raises(UserError, match=r"table\.csv: its name ends in none of \.\w+, .*--modality right"):
        load(Source(data=tmp_path / "table.csv", modality=modality, label="kind"))
    with pytest.raises(UserError, match=r"nowhere\.csv: no such file"):
        load(Source(data=tmp_path / "nowhere.csv", label="kind"))


@pytest.mark.parametrize("unit", [" g", "kg", " m/s²", "°C", " µV", "e-3 mm", " EUR"])
def test_numbers_with_a_unit_are_named_and_codes_are_not(unit: str, tmp_path: Path) -> None:
    codes = [f"{1 + i % 9}{'abcdefg'[i % 7]}" for i in range(N)]
    for every in (7, N):
        force = [f"{i % every}.5{unit}" for i in range(4 * N)]
        pd.DataFrame({"force": force, "seat": codes * 4}).to_csv(tmp_path / "t.csv", index=False)
        data = load(Source(data=tmp_path / "t.csv", modality="tabular"))
        assert noted(data, f"Column 'force' is read as categories, but looks like numbers with a unit ('0.5{unit}')")
        assert not noted(data, "'seat'")
    force = [f"{i}.5{unit}" for i in range(4 * N)]
    pd.DataFrame({"force": force, "seat": codes * 4}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(UserError, match=r"column 'force' looks like numbers with a unit .*; write them without, or"):
        load(Source(data=tmp_path / "t.csv", modality="tabular"))


def test_unusual_columns_are_reported(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "number": np.arange(7, 7 + N),
            "constant": 3.5,
            "empty": np.full(N, np.nan),
            "code": [f"id{i}" for i in range(N)],
            "share": [f"{i % 9} %" for i in range(N)],
            "day": [f"{1 + i % 28}/{1 + i % 12}/2023" for i in range(N)],
            "fine": np.random.default_rng(0).normal(size=N),
            "y": ["a"] * 57 + ["b"] * 3,
        }
    )
    table.to_csv(tmp_path / "t.csv", index=False)
    data = load(Source(data=tmp_path / "t.csv", modality="tabular", label="y"))
    assert noted(data, "Column 'number' counts the rows", "`ignore`")
    assert noted(data, "Column 'constant' has one value")
    assert noted(data, "Column 'empty' is empty")
    assert noted(data, "Column 'code' has a different category in nearly every row")
    assert noted(
        data, "Column 'day' is read as categories, but looks like dates ('1/1/2023'); write them as 2024-12-31"
    )
    assert noted(data, "Column 'share' is read as categories, but looks like numbers with a unit ('0 %')")
    assert noted(data, "95% of the labels are 'a'")
    assert not noted(data, "'fine'")
    table.to_csv(tmp_path / "t.csv")  # with the index, whose column has no name
    indexed = tabular.load_own(tmp_path / "t.csv", label="y")
    assert noted(indexed, "Column '' counts the rows", '`ignore: [""]`')
    assert tabular.load_own(tmp_path / "t.csv", label="y", ignore=[""]).state["columns"] == data.state["columns"]
    first, *lines, labels = data.summary
    assert first == "60 rows, 7 columns:"
    assert labels == "labels of 2 classes: 'a' 57 (95%), 'b' 3 (5%)"
    assert [line.split()[0] for line in lines] == ["number", "constant", "empty", "code", "share", "day", "fine"]
    assert lines[0].split() == ["number", "numbers", "7,", "8,", "9"]
    assert lines[2].split() == ["empty", "numbers", "100.0%", "empty"]
    assert lines[3].split()[1:3] == ["60", "categories"]


def test_many_skipped_rows_are_counted_by_reason(tmp_path: Path) -> None:
    lines = ["x,z,y", *(f"{i},{i % 7},{'ab'[i % 2]}" for i in range(N)), *["1,2"] * 8, *["inf,2,a"] * 4]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    data = tabular.load_own(tmp_path / "t.csv", label="y", on_bad="skip")
    (note,) = (note for note in data.notes if "skipped" in note)
    assert note == (
        "12 of 72 rows were skipped: 2 cells where the table has 3 columns: 8 (the first: t.csv: row 62); "
        "column 'x' holds 'inf' which is infinite as float32: 4 (the first: t.csv: row 70); run.json lists them all."
    )


# --- sensors


def recordings(path: Path, times: Sequence[NDArray[np.floating[Any]]]) -> Path:
    """One channel, the sine of the time, of one person for each array of times."""
    parts = [pd.DataFrame({"time": at, "group": person, "x": np.sin(at)}) for person, at in enumerate(times)]
    pd.concat(parts).to_csv(path, index=False)
    return path


def test_jittered_times_and_gaps_are_reported_and_resampling_removes_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    jittered = [np.cumsum(rng.uniform(0.05, 0.15, size=300)) for _ in range(3)]
    jittered[1][150:] += 0.5
    path = recordings(tmp_path / "r.csv", jittered)
    data = sensor.load_own(path, window=16)
    assert noted(data, "Readings are not evenly spaced", "`rate: ")
    assert noted(data, "Gaps of more than 1.5 times the usual step within a group: 1.", "`max_gap`")
    assert data.summary[0] == "900 readings of 1 channel in 3 groups:"
    even = sensor.load_own(path, window=16, rate=20)
    stored = np.asarray(even.pretrain.inputs[0][np.arange(4)])[:, 0]  # 4 windows of the first person
    at = jittered[0][0] + np.arange(64) / 20
    expected = np.interp(at, jittered[0], np.sin(jittered[0]))
    np.testing.assert_allclose(stored.ravel(), expected, atol=1e-6)
    assert not noted(even, "evenly spaced")
    assert noted(even, "Readings are interpolated over those that are shorter than a window")
    _, keys = sensor.load_further(path, even.state)
    assert len(keys) == len(even.pretrain)
    rows = [int(key.rsplit(":", 1)[1]) for key in keys[:3]]
    assert rows == [2 + int(np.searchsorted(jittered[0], at[16 * i] + 1e-9, side="right")) - 1 for i in range(3)]


def test_a_gap_ends_a_recording_on_request(tmp_path: Path) -> None:
    even = np.arange(64) * 0.1
    broken = np.concatenate([even[:20], even[20:] + 1.0])  # one second is missing, a window lasts 1.6
    path = recordings(tmp_path / "r.csv", [broken, even])
    assert len(sensor.load_own(path, window=16).pretrain) == 8
    assert len(sensor.load_own(path, window=16, max_gap=0.5).pretrain) == 1 + 2 + 4
    dropped = sensor.load_own(path, window=16, max_gap=0.5).notes
    assert any("16 of 128 readings (12.5%) are in no window" in note for note in dropped)
    assert any(note.endswith("Windows span those that are at most 0.5 long.") for note in dropped)


WITH_SLASHES = "%d/%m/%Y %T"


def test_files_without_a_column_of_groups_are_groups(tmp_path: Path) -> None:
    for file in range(4):
        table = pd.DataFrame({"t": range(64), "x": np.sin(np.arange(64) + file), "y": ["a"] * 32 + ["b"] * 32})
        table.to_csv(tmp_path / f"{file}.csv")
    with pytest.raises(UserError, match=r"no column 'time'.*; the option `time` names another column"):
        sensor.load_own(tmp_path, label="y")
    with pytest.raises(UserError, match=r"no column 'group'.*; the option `group` names another column"):
        sensor.load_own(tmp_path / "0.csv", label="y", time="t")
    data = sensor.load_own(tmp_path, label="y", time="t", window=16)
    assert noted(data, "no column 'group', so each file is a group")
    assert noted(data, "Channel '' counts the rows", '`ignore: [""]`')
    assert sensor.load_own(tmp_path, label="y", time="t", window=16, ignore=[""]).state["channels"] == ["x"]
    assert data.names is not None
    for split in (data.pretrain, data.require_labelled().test):
        files = [name.partition(":")[0] for name in data.names(split.rows)]
        assert split.group is not None
        assert [f"{group}.csv" for group in split.group] == files
    (tmp_path / "9.csv").write_text(",t,x,y\n")
    assert noted(sensor.load_own(tmp_path, label="y", time="t", window=16), "No row was read of the files '9.csv'")
    assert noted(tabular.load_own(tmp_path, label="y"), "No row was read of the files '9.csv'")
    (tmp_path / "9.csv").unlink()
    further = sensor.load_further_labelled(tmp_path, data.state, label="y")
    assert further.group is not None
    assert np.bincount(further.group).tolist() == [4] * 4

    table = pd.read_csv(tmp_path / "2.csv", index_col=0)
    table.assign(x=table["x"].where(table.index != 5)).to_csv(tmp_path / "2.csv")
    with pytest.raises(UserError, match=r"2\.csv: row 7: column 'x' is empty, which the option `gaps: mask` allows"):
        sensor.load_own(tmp_path, label="y", time="t")
    skipped = sensor.load_own(tmp_path, label="y", time="t", window=16, on_bad="skip")
    assert noted(skipped, "Rows with empty cells end a stretch", "`gaps: mask` keeps them")
    assert not noted(skipped, "Gaps of more")
    for file in range(4):
        form = WITH_SLASHES if file == 2 else "%F %T"
        table["when"] = pd.date_range("2024-05-01", periods=64, freq="s").strftime(form)
        table.to_csv(tmp_path / f"{file}.csv")
    with pytest.raises(UserError, match=r"2\.csv: row 2: column 'when' holds '01/05/2024 00:00:00', neither"):
        sensor.load_own(tmp_path, label="y", time="when")
    with pytest.raises(UserError, match=r"column 'when' holds dates, not readings; name it in the option `time`, or"):
        sensor.load_own(tmp_path, label="y", time="t")


@pytest.mark.parametrize("option", [{"stride": 0}, {"rate": 0}, {"max_gap": -1.0}])
def test_implausible_numbers_are_refused(option: dict[str, float], tmp_path: Path) -> None:
    path = recordings(tmp_path / "r.csv", [np.arange(64) * 0.1])
    with pytest.raises(UserError, match=next(iter(option))):
        sensor.load_own(path, window=16, **option)  # type: ignore[arg-type]  # by name


# --- columns as flags


def test_group_and_ignore_as_flags_are_the_options_of_that_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"id": range(N), "x": rng.normal(size=N), "who": np.arange(N) // 5, "y": ["a", "b"] * 30})
    table.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "o.yaml").write_text("group: who\nignore: id\n")
    source = Source(data=tmp_path / "t.csv", modality="tabular", label="y")
    by_file = load(replace(source, options=tmp_path / "o.yaml"))
    by_flag = load(replace(source, group="who", ignore="id"))
    assert by_flag.fingerprint == by_file.fingerprint
    assert by_flag.notes == by_file.notes
    assert by_flag.pretrain.rows.tolist() == by_file.pretrain.rows.tolist()
    with pytest.raises(UserError, match="--ignore: unknown option 'ignore'"):
        load(Source(data=tmp_path, modality="image", ignore="id"))
    with pytest.raises(UserError, match="--options /dev/null: not a file"):  # a pipe would be empty the second time
        load(Source(data=tmp_path / "t.csv", modality="tabular", options=Path("/dev/null")))
    with pytest.raises(UserError, match="--group who is for your own data"):
        load(Source("digits", group="who"))


def test_images_sounds_and_texts_are_summed_up_as_tables_are(tmp_path: Path) -> None:
    import soundfile
    from PIL import Image

    for number in range(12):
        for kind in ("pictures", "sounds"):
            (tmp_path / kind / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        mode = "L" if number == 0 else "RGB"
        picture = Image.new(mode, (10 + number, 20), number)
        picture.save(tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png")
        wave = np.sin(np.arange(800 * (1 + number)) / 5)
        soundfile.write(tmp_path / "sounds" / "ab"[number % 2] / f"{number}.wav", wave, 8000)
    (tmp_path / "pictures" / "a" / "torn.png").write_bytes(b"no picture")
    for other in ("notes.txt", "a/Thumbs.db", "b/more.txt", ".hidden"):
        (tmp_path / "pictures" / other).write_text("not an image")
    pictures = load(Source(data=tmp_path / "pictures", modality="image", label="folder", on_bad="skip"))
    assert pictures.summary == (
        "13 images:",
        "  other files, which are not read: .txt 2, .db 1",
        "  PNG RGB: 11, PNG L: 1, header not readable: 1",
        "  size in pixels: 10x20 to 21x20, median 16x20",
        "labels of 2 classes: 'a' 6 (50%), 'b' 6 (50%)",
    )
    assert noted(pictures, "1 of 13 images was skipped", "torn.png")
    sounds = load(Source(data=tmp_path / "sounds", modality="spectrogram", label="folder"))
    assert sounds.summary[:3] == (
        "12 sounds:",
        "  WAV 8000 Hz mono: 12",
        "  duration: 0.10 s to 1.20 s, median 0.70 s",
    )
    assert noted(sounds, "12 of 12 sounds", "a lower sampling rate than 16000 Hz", "`rate: 8000`")
    words = [" ".join(["word"] * (1 + n)) for n in range(20)]
    pd.DataFrame({"text": words, "y": ["a"] * 19 + ["b"] * 1}).to_csv(tmp_path / "t.csv", index=False)
    options = tmp_path / "o.yaml"
    options.write_text("length: 12\nvocab_size: 300\n")
    texts = load(Source(data=tmp_path / "t.csv", modality="text", label="y", options=options))
    first, lengths, *examples, labels = texts.summary
    assert first.startswith("20 texts, a vocabulary of ")
    assert "tokens: 3 to 12, median 12" in lengths
    assert "55.0% fill all 12" in lengths
    assert examples == ["  'word'", "  'word word'", "  'word word word'"]
    assert labels == "labels of 2 classes: 'a' 19 (95%), 'b' 1 (5%)"
    assert noted(texts, "95% of the labels are 'a'")
