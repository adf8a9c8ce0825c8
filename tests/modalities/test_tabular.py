"""Tables: kinds, statistics and codes of columns against plain Python, every bad row named, a user's own files."""

import csv
import gzip
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from dabsmix.data import cache as cache_module
from dabsmix.data.domain import Data, Split, Task
from dabsmix.errors import UserError
from dabsmix.modalities import columns as columns_module
from dabsmix.modalities import memory, tables, tabular
from dabsmix.modalities.columns import scan
from dabsmix.modalities.tables import TableSource
from dabsmix.modalities.tabular import load_further, load_own
from dabsmix.spec import Table

HEADER = "age,city,income,code,person,y"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "cache"))


def generated(rows: int = 300) -> list[str]:
    """Lines of a table with numbers, text, numbers that are codes, empty cells, groups of ten rows and a label."""
    rng = np.random.default_rng(0)
    lines = [HEADER]
    for i in range(rows):
        city = rng.choice(["Bern", "Basel", "Zug", ""])
        income = "" if rng.random() < 0.1 else f"{rng.normal(3000, 500):.2f}"
        lines.append(f"{rng.integers(18, 90)},{city},{income},{rng.integers(0, 3)},p{i // 10},{rng.choice(['a', 'b'])}")
    return lines


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write(tmp_path / "people.csv", generated())


def read(data: Data, split: Split) -> NDArray[np.float32]:
    """A whole split as the encoder gets it."""
    values: NDArray[np.float32] = data.normalise(split.batch(np.arange(len(split))))[0].numpy()
    return values


# --- values


@pytest.mark.parametrize("raw_name", ["people.csv", "people.csv.gz", "people.tsv", "people.parquet", "semicolons.csv"])
def test_values_equal_a_plain_reading_whatever_the_format(raw_name: str, table: Path, tmp_path: Path) -> None:
    path = tmp_path / raw_name
    text = table.read_text()
    match raw_name:
        case "people.csv.gz":
            path.write_bytes(gzip.compress(text.encode()))
        case "people.tsv":
            path.write_text(text.replace(",", "\t"))
        case "semicolons.csv":
            path.write_text("\ufeff" + text.replace(",", ";"), encoding="utf-8")
        case "people.parquet":
            pd.read_csv(table).to_parquet(path)
    data = load_own(path, label="y", categorical="code", ignore=["person"])
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    labelled = data.require_labelled()
    train = [rows[i] for i in labelled.train.rows]
    for split in labelled.splits.values():
        values = read(data, split)
        for place, number in enumerate(split.rows):
            for j, name in enumerate(("age", "city", "income", "code")):
                cell = rows[number][name]
                if cell == "":
                    expected = math.nan
                elif name in ("city", "code"):
                    expected = sorted({row[name] for row in train} - {""}).index(cell)
                else:
                    filled = [float(row[name]) for row in train if row[name]]
                    mean = sum(filled) / len(filled)
                    expected = (float(cell) - mean) / math.sqrt(sum((v - mean) ** 2 for v in filled) / len(filled))
                assert values[place, j] == pytest.approx(expected, abs=2e-4, nan_ok=True)
            assert "ab"[split.label[place]] == rows[number]["y"]  # type: ignore[index]  # there are labels
    assert data.specs == (Table(4, (0, 3, 0, 3)),)


def test_reading_a_few_bytes_at_a_time_gives_the_same(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = table.read_text().splitlines()
    lines.insert(120, "1,2")
    write(table, lines)
    whole = load_own(table, label="y", on_bad="skip")
    monkeypatch.setattr(tables, "BLOCK", 200)
    monkeypatch.setattr(columns_module, "CHUNK", 7)
    monkeypatch.setenv("DABSMIX_CACHE", str(table.parent / "another"))
    small = load_own(table, label="y", on_bad="skip")
    assert (small.notes, small.specs) == (whole.notes, whole.specs)
    np.testing.assert_allclose(
        read(small, small.require_labelled().test), read(whole, whole.require_labelled().test), rtol=1e-5
    )


def test_statistics_are_those_of_training_rows_alone(tmp_path: Path) -> None:
    values = np.arange(100.0)
    path = tmp_path / "t.csv"
    pd.DataFrame({"x": values, "y": np.arange(100) % 2}).to_csv(path, index=False)
    data = load_own(path, label="y")
    before = dict(data.state)
    values[data.require_labelled().test.rows] *= 1e6  # values of the test split change nothing
    pd.DataFrame({"x": values, "y": np.arange(100) % 2}).to_csv(path, index=False)
    assert dict(load_own(path, label="y").state) == before


def test_constant_and_empty_columns_stay_finite(tmp_path: Path) -> None:
    lines = ["x,constant,empty,y", *(f"{i},0.1,,{i % 2}" for i in range(50))]
    data = load_own(write(tmp_path / "t.csv", lines), label="y")
    values = read(data, data.require_labelled().train)
    assert np.abs(values[:, 1]).max() < 1e-3
    assert np.isnan(values[:, 2]).all()


def test_an_hour_in_milliseconds_stays_within_a_few_units(tmp_path: Path) -> None:
    lines = ["at,c,y", *(f"{1_700_000_000_000 + 36_000 * i},{'uv'[i % 2]},{i % 2}" for i in range(100))]
    path = write(tmp_path / "t.csv", lines)
    data = load_own(path, label="y")
    times = read(data, data.pretrain)[:, 0]
    assert 0.1 < times.std() < np.abs(times).max() < 3


def test_a_small_spread_that_an_earlier_version_stored_as_one_is_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns_module, "_statistics", lambda *_: ([1.7e12, 0.5], [1.0, 1.0], [[], []]))
    path = write(tmp_path / "t.csv", ["at,x", *(f"{1_700_000_000_000 + 36_000 * i},{i % 2}" for i in range(100))])
    assert load_own(path).state["std"] == pytest.approx([1.7e6, 1.0])


def test_categories_unseen_in_training_are_missing_and_counted(tmp_path: Path) -> None:
    lines = ["c,g,y", *(f"{'uv'[i % 2]},{i // 10},{i % 2}" for i in range(100))]
    path = write(tmp_path / "t.csv", lines)
    test_group = load_own(path, label="y", group="g").require_labelled().test.rows[0] // 10
    for i in range(4):
        lines[1 + test_group * 10 + i] = f"new,{test_group},{i % 2}"
    data = load_own(write(path, lines), label="y", group="g")
    assert data.specs == (Table(1, (2,)),)
    assert np.isnan(read(data, data.require_labelled().test)).sum() == 4
    assert any(note.startswith("4 cells hold a category that no training row has") for note in data.notes)


# --- kinds of columns


@pytest.mark.parametrize(
    ("lines", "kinds"),
    [
        (["a,b,c", "1,x,1e3", "2.5,y,-.5", "+3,,inf"], [None, ("x", "y"), None]),
        (["a,b", "1,1", "2,A", "3,B"], [None, ("1", "A", "B")]),
        (["empty,b", ",0x1", ",2_0"], [None, ("0x1", "2_0")]),
    ],
)
def test_kinds(lines: list[str], kinds: list[tuple[str, ...] | None], tmp_path: Path) -> None:
    table = scan([TableSource(write(tmp_path / "t.csv", lines))])
    assert [table[name].categories for name in lines[0].split(",")] == kinds


def test_numbers_that_are_codes_stay_numeric_unless_named(table: Path) -> None:
    assert load_own(table, label="y", ignore="person").specs == (Table(4, (0, 3, 0, 0)),)
    assert load_own(table, label="y", ignore="person", categorical="code,age").specs[0].cardinalities[3] == 3  # type: ignore[union-attr]  # a table


def test_a_column_of_distinct_texts_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ["name,y", *(f"n{i},{i % 2}" for i in range(200))])
    with pytest.raises(UserError, match=r"column 'name' holds at least 200 different texts.*option `ignore`"):
        load_own(path, label="y")
    write(path, ["price;y", *(f"{i},5;{i % 2}" for i in range(200))])
    with pytest.raises(
        UserError,
        match=r"column 'price' looks like numbers with a decimal comma \('0,5'\); set pretrain's option `decimal",
    ):
        load_own(path, label="y")
    write(path, ["day,y", *(f"{1 + i % 28}/{1 + i % 9}/2023,{i % 2}" for i in range(400))])
    with pytest.raises(
        UserError, match=r"column 'day' looks like dates \('1/1/2023'\); write them as 2024-12-31, or leave it"
    ):
        load_own(path, label="y")


def test_what_counts_as_missing(tmp_path: Path) -> None:
    lines = ["x,c,y", *(f"{i},u,{i % 2}" for i in range(40)), "?, ?,0", " NA ,nan,1", ",,0"]
    path = write(tmp_path / "t.csv", lines)
    data = load_own(path, missing="?")
    assert data.specs == (Table(3, (0, 1, 0)),)
    assert np.isnan(read(data, data.pretrain)[-3:, :2]).all()
    with pytest.raises(UserError, match=r"row 42: column 'x' holds '\?' among numbers \(if it stands for an empty"):
        load_own(path)


# --- bad rows


BAD = {
    "1,2": "2 cells where the table has 6 columns",
    "1,Bern,2,0,p1,a,7": "7 cells where the table has 6 columns",
    "50,Bern,inf,0,p1,a": "column 'income' holds 'inf' which is infinite as float32",
    "50,Bern,1e39,0,p1,a": "column 'income' holds '1e39' which is infinite as float32",
    "fifty,Bern,1,0,p1,a": "column 'age' holds 'fifty' among numbers",
    "50,Bern,1,0,,a": "column 'person' is empty",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_row_is_refused_with_file_and_row_or_skipped_and_listed(line: str, tmp_path: Path) -> None:
    lines = generated()
    good = load_own(write(tmp_path / "good.csv", lines), label="y", group="person")
    lines.insert(100, line)  # the header is row 1, so this is row 101
    path = write(tmp_path / "people.csv", lines)
    with pytest.raises(UserError) as caught:
        load_own(path, label="y", group="person")
    assert str(caught.value).startswith(f"{path}: row 101: {BAD[line]}")
    assert "\n" not in str(caught.value)
    data = load_own(path, label="y", group="person", on_bad="skip")
    assert data.notes[-1].startswith(f"1 of 301 rows was skipped: people.csv: row 101: {BAD[line]}")
    np.testing.assert_allclose(read(data, data.require_labelled().train), read(good, good.require_labelled().train))


def test_row_numbers_after_skipped_rows_are_those_of_the_file(tmp_path: Path) -> None:
    lines = generated(60)
    for place, line in ((10, "short"), (20, "1,2,3"), (40, "50,Bern,inf,0,p1,a")):
        lines.insert(place, line)
    data = load_own(write(tmp_path / "t.csv", lines), label="y", on_bad="skip")
    assert all(f"row {number}:" in data.notes[-1] for number in (11, 21, 41))


def test_many_skipped_rows_are_counted_and_the_first_listed(tmp_path: Path) -> None:
    data = load_own(write(tmp_path / "t.csv", [*generated(60), *["x"] * 50]), label="y", on_bad="skip")
    (note,) = (note for note in data.notes if "skipped" in note)
    assert note.startswith(
        "50 of 110 rows were skipped: 1 cells where the table has 6 columns: 50 (the first: t.csv: row"
    )
    assert note.endswith("run.json lists them all.")
    assert len(data.state["skipped"]) == 50


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1 is empty"),
        (b"a,b\n", "the table has no rows"),
        (b"a,a\n1,2\n", "two columns are called 'a'"),
        (b"a,b\n1,\xff\xfe\n", "not encoded as utf-8; convert the file"),
        (b'a,b\n1,"x\n2,3\n4,5\n', "is a quote not closed|cells where"),
    ],
)
def test_damaged_csv(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_own(path)
    assert str(path) in str(caught.value)


def test_damaged_parquet_and_gzip(table: Path, tmp_path: Path) -> None:
    for name in ("t.parquet", "t.csv.gz"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(table.read_bytes())[:600])
        with pytest.raises(UserError, match=rf"{name}: cannot be read as"):
            load_own(path, label="y")


def test_bad_csv_leaves_nothing_in_the_cache(table: Path, tmp_path: Path) -> None:
    write(table, [*generated(), "1"])
    for _ in range(2):
        with pytest.raises(UserError, match="row 302"):
            load_own(table, label="y")


# --- options


def test_unknown_columns_are_answered_with_the_nearest(table: Path) -> None:
    with pytest.raises(UserError, match=r"--label 'incom'.*did you mean 'income'.*there are: age, city, income"):
        load_own(table, label="incom")
    for option in ("group", "ignore", "categorical"):
        with pytest.raises(UserError, match=rf"{option} 'persn'.*did you mean 'person'"):
            load_own(table, **{option: "persn"})  # type: ignore[arg-type]  # one of several options


def test_a_column_named_twice_or_no_column_left_is_refused(table: Path) -> None:
    with pytest.raises(UserError, match="'y' is named twice"):
        load_own(table, label="y", ignore="y")
    with pytest.raises(UserError, match="no column is left"):
        load_own(table, label="y", ignore="age,city,income,code,person")


def with_odd_columns() -> pd.DataFrame:
    """Two columns of numbers, one of lists, and one of texts that span lines."""
    return pd.DataFrame(
        {
            "x": np.arange(40) / 7,
            "y": np.arange(40) % 2,
            "x.list": [[i, i] for i in range(40)],
            "note": [f"first\nsecond {i}" for i in range(40)],
        }
    )


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_it_does_not_matter_what_an_ignored_column_holds(name: str, tmp_path: Path) -> None:
    frame, path = with_odd_columns(), tmp_path / name
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)
    data = load_own(path, ignore="x.list,note")
    (stored,) = data.pretrain.batch(np.arange(40))
    np.testing.assert_array_equal(stored, frame[["x", "y"]].to_numpy(np.float32))
    for further in (path, frame):
        again, _ = load_further(further, data.state)
        np.testing.assert_array_equal(read(again, again.pretrain), read(data, data.pretrain))


def test_what_is_wrong_with_a_column_of_lists_or_of_texts_with_lines_is_said(tmp_path: Path) -> None:
    with_odd_columns().to_parquet(tmp_path / "t.parquet")
    with_odd_columns().to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(
        UserError, match=r"column 'x\.list' of type list<.*> cannot be read as numbers or text; convert"
    ):
        load_own(tmp_path / "t.parquet", ignore="note")
    with pytest.raises(UserError, match="a cell of 'note' spans lines; is a quote not closed"):
        load_own(tmp_path / "t.csv", ignore="x.list")
    data = load_own(tmp_path / "t.parquet", ignore="x.list")  # Parquet has no quotes
    assert data.specs == (Table(3, (0, 0, 40)),)


def test_constant_label(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ["x,y", *(f"{i},7" for i in range(50))])
    with pytest.raises(UserError, match="--label y: every row holds '7'"):
        load_own(path, label="y")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([f"{i % 3 + 4}" for i in range(120)], Task("classes", "accuracy", ("4", "5", "6"))),
        ([f"{i % 3 / 2}" for i in range(120)], Task("classes", "accuracy", ("0.0", "0.5", "1.0"))),
        ([f"{i % 30}" for i in range(120)], Task("classes", "accuracy", tuple(str(i) for i in range(30)))),
        ([f"{18 + i % 60}" for i in range(120)], Task("regression", "spearman")),
        ([f"{i / 7:.3f}" for i in range(120)], Task("regression", "spearman")),
        (["ab"[i % 2] for i in range(120)], Task("classes", "accuracy", ("a", "b"))),
    ],
)
def test_the_task_follows_from_the_label(labels: list[str], expected: Task, tmp_path: Path) -> None:
    data = load_own(write(tmp_path / "t.csv", ["x,y", *(f"{i},{y}" for i, y in enumerate(labels))]), label="y")
    labelled = data.require_labelled()
    assert labelled.task == expected
    label = labelled.test.label
    assert label is not None
    assert label.dtype == (np.float32 if expected.kind == "regression" else np.int64)
    values = [labels[i] for i in labelled.test.rows]
    if expected.kind == "regression":
        np.testing.assert_allclose(label, [float(value) for value in values], rtol=1e-6)
        assert any("predicted as a quantity" in note for note in data.notes)
    else:
        assert [expected.classes[code] for code in label] == values


def test_the_task_can_be_stated(table: Path) -> None:
    assert load_own(table, label="code", task="regression").require_labelled().task == Task("regression", "spearman")
    task = load_own(table, label="age", task="classes").require_labelled().task
    assert task.kind == "classes"
    with pytest.raises(UserError, match="task=regression: the label 'y' holds text such as 'a'"):
        load_own(table, label="y", task="regression")


def test_groups_are_kept_whole(table: Path) -> None:
    data = load_own(table, label="y", group="person")
    groups = [set(split.group.tolist()) for split in data.require_labelled().splits.values()]  # type: ignore[union-attr]  # there are groups
    assert sum(map(len, groups)) == len(set.union(*groups)) == 30
    assert data.specs == (Table(4, (0, 3, 0, 0)),)  # neither the group nor the label is a feature


def test_a_class_missing_from_a_split_is_reported(tmp_path: Path) -> None:
    lines = ["x,g,y", *(f"{i},{i // 10},{'abc'[min(i // 10, 2)]}" for i in range(100))]
    data = load_own(write(tmp_path / "t.csv", lines), label="y", group="g")
    assert any(note.startswith("None of the test rows has the class") for note in data.notes)


def test_without_a_label_every_row_is_pretrained_on(table: Path) -> None:
    data = load_own(table)
    assert len(data.pretrain) == 300
    assert data.labelled is None


def test_too_few_rows(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="2 labelled rows cannot be divided into train, validation and test: label more"
    ):
        load_own(write(tmp_path / "t.csv", ["x,y", "1,a", "2,b"]), label="y")
    with pytest.raises(UserError, match="2 rows in 2 classes: label more, so that each class has three rows"):
        load_own(write(tmp_path / "t.csv", ["x,y", "1,a", "2,b", "3,a"]), label="y")


def test_folder_of_tables_does_not_depend_on_the_order_of_columns(table: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(table)
    folder = tmp_path / "parts"
    folder.mkdir()
    frame.iloc[:100].to_csv(folder / "b.csv", index=False)
    frame.iloc[100:][list(reversed(frame.columns))].to_parquet(folder / "c.parquet", index=False)
    data, whole = load_own(folder, label="y"), load_own(table, label="y")
    np.testing.assert_array_equal(read(data, data.require_labelled().test), read(whole, whole.require_labelled().test))
    frame.rename(columns={"age": "years"}).to_csv(folder / "a.csv", index=False)
    with pytest.raises(UserError, match=r"differ from those of .*: age, years"):
        load_own(folder, label="y")


def test_not_a_table(tmp_path: Path) -> None:
    (tmp_path / "x.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match="should end in one of"):
        load_own(tmp_path / "x.xlsx")
    with pytest.raises(UserError, match="no table in this folder"):
        load_own(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        load_own(tmp_path / "gone.csv")


# --- further files


def test_further_rows_are_read_like_training_rows(table: Path, tmp_path: Path) -> None:
    data = load_own(table, label="y", group="person", categorical="code")
    state = json.loads(json.dumps(data.state))  # as read from a run's record
    again, keys = load_further(table, state)
    assert list(keys) == [f"people.csv:{row}" for row in range(2, 302)]
    assert (again.specs, again.labelled) == (data.specs, None)
    labelled = data.require_labelled()
    np.testing.assert_array_equal(read(again, again.pretrain)[labelled.test.rows], read(data, labelled.test))
    # without label and group, with columns in another order and an unknown city
    further = write(tmp_path / "more.csv", ["code,city,age,income", "1,Genf,40,3000", "2,Bern,,"])
    few, keys = load_further(further, state)
    assert list(keys) == ["more.csv:2", "more.csv:3"]
    values = read(few, few.pretrain)
    assert np.isnan(values).tolist() == [[False, True, False, False], [True, False, True, False]]
    assert few.notes == ("1 cell holds a category that no training row has; it is read as missing (1 in 'city').",)


@pytest.mark.parametrize("trained_on", ["t.csv", "t.parquet"])
def test_truth_values_are_the_same_in_every_form(trained_on: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": np.arange(40) / 7, "flag": np.arange(40) % 3 == 0})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    data = load_own(tmp_path / trained_on)
    expected = read(data, data.pretrain)
    assert expected[:, 1].tolist() == frame["flag"].tolist()
    array = memory.further(frame.to_numpy(np.float64), "tabular", data.specs, data.state)
    assert array is not None
    in_files = (tmp_path / "t.csv", tmp_path / "t.parquet", pd.read_csv(tmp_path / "t.csv"))
    for again in (array, *(load_further(form, data.state)[0] for form in in_files)):
        np.testing.assert_allclose(read(again, again.pretrain), expected, rtol=1e-5)
        assert not again.notes


def test_texts_that_differ_in_case_stay_different_categories(tmp_path: Path) -> None:
    data = load_own(write(tmp_path / "t.csv", ["x,c", *(f"{i},{['True', 'true'][i % 2]}" for i in range(40))]))
    assert data.specs == (Table(2, (0, 2)),)
    assert read(data, data.pretrain)[:4, 1].tolist() == [0, 1, 0, 1]


def test_further_rows_and_their_keys_are_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BLOCK", 1 << 14)
    monkeypatch.setattr(cache_module, "IN_MEMORY", 1 << 14)
    monkeypatch.setattr(tabular, "CHUNK", 1 << 10)

    def peak(rows: int) -> int:
        path = write(tmp_path / f"{rows}.csv", ["a,b", *(f"{row},{row % 7}" for row in range(rows))])
        tracemalloc.start()
        try:
            data, keys = load_further(path, state)
            assert (keys[0], keys[rows - 1], len(data.pretrain)) == (f"{rows}.csv:2", f"{rows}.csv:{rows + 1}", rows)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    state = load_own(write(tmp_path / "t.csv", ["a,b", "1,2", "3,4", "5,7"])).state
    peak(2_000)
    assert peak(40_000) < peak(4_000) + 100_000  # the keys alone would take 2 MB, and the cells 320 kB


def test_the_keys_of_further_rows_leave_out_what_was_left_out(tmp_path: Path) -> None:
    state = load_own(write(tmp_path / "t.csv", ["a,b", "1,2", "3,4", "5,7"])).state
    folder = tmp_path / "more"
    folder.mkdir()
    write(folder / "1.csv", ["a,b", "x,1", "1,1", "2,2,2", "inf,1", "3,3", "y,1"])
    write(folder / "2.csv", ["a,b", "4,4", "z,1", "5,5"])
    data, keys = load_further(folder, state, "skip")
    expected = ["1.csv:3", "1.csv:6", "2.csv:2", "2.csv:4"]
    assert list(keys) == expected == keys[:]
    assert [keys.of_rows(np.array([row]))[0] for row in range(4)] == expected
    assert data.pretrain.batch(np.arange(4))[0][:, 0].tolist() == [1, 3, 4, 5]
    assert keys.rows_of(0, np.array([2, 3, 4, 5, 6, 7])).tolist() == [-1, 0, -1, -1, 1, -1]
    assert keys.rows_of(1, np.array([2, 3, 4])).tolist() == [2, -1, 3]


def test_further_rows_that_do_not_fit_are_refused(table: Path, tmp_path: Path) -> None:
    state: dict[str, Any] = dict(load_own(table, label="y", ignore="person").state)
    cases = {
        "age,city,code\n1,Bern,1\n": "no column 'income'",
        "age,city,income,code\n1,Bern,1\n": "row 2: 3 cells",
        "age,city,income,code\nx,Bern,1,1\n": "row 2: column 'age' holds 'x'",
        "age,city,income,code\n": "the table has no rows",
    }
    for text, message in cases.items():
        path = tmp_path / "more.csv"
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load_further(path, state)
    path.write_text("age,height,city,income,code\n1,9,Bern,1,1\n")
    data, _ = load_further(path, state)
    assert data.notes == ("Columns that the run was not trained on are left out: 'height'.",)
    assert data.pretrain.batch(np.array([0]))[0].tolist() == [[1, 1, 1, 1]]
    with pytest.raises(UserError, match="the training data have no column 'height'"):
        load_further(pd.read_csv(path), state)


def test_an_array_cannot_hold_the_dates_of_a_run(tmp_path: Path) -> None:
    rows = "".join(f"2024-01-{1 + i % 28:02},{i}\n" for i in range(60))
    (tmp_path / "t.csv").write_text("day,x\n" + rows)
    data = load_own(tmp_path / "t.csv")
    with pytest.raises(UserError, match="row 1: column 'day' holds '1' among dates"):
        memory.further(np.ones((3, 2)), "tabular", data.specs, data.state)
