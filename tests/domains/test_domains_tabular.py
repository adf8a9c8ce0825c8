"""Covertype, HIGGS and Adult against upstream-format files: real ones where $DABSMIX_DATA has them, else generated."""

import csv
import gzip
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import upstream_tabular as upstream
from numpy.typing import NDArray

from dabsmix.data.domain import Data, Split
from dabsmix.domains import covtype, higgs
from dabsmix.errors import UserError
from dabsmix.registry import domain
from dabsmix.spec import Table


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "cache"))


def real(folder: str) -> Path:
    root = os.environ.get("DABSMIX_DATA")
    if not root or not (Path(root) / folder).exists():
        pytest.skip(f"no real {folder}: $DABSMIX_DATA does not have it")
    return Path(root) / folder


def splits(data: Data) -> tuple[Split, Split, Split]:
    labelled = data.require_labelled()
    return labelled.train, labelled.validation, labelled.test


def values(data: Data, split: Split) -> NDArray[np.float32]:
    normalised: NDArray[np.float32] = data.normalise(split.batch(np.arange(len(split))))[0].numpy()
    return normalised


def labels(split: Split) -> NDArray[np.int64]:
    assert split.label is not None
    return split.label


def test_covtype_on_real_rows() -> None:
    folder = real("covtype")
    data = domain("covtype").load(folder, "v1")
    frame = pd.read_csv(folder / "covtype.csv")  # the same rows with a header, in a file that is not read
    train, validation, test = splits(data)
    assert len(train) + len(validation) + len(test) == len(frame) == 15_000
    for split in (train, validation, test):
        rows = frame.iloc[split.rows]
        np.testing.assert_array_equal(labels(split), rows["Cover_Type"] - 1)
        np.testing.assert_array_equal(values(data, split)[:, 10:], rows.iloc[:, 10:54])  # zeros and ones
    measured = frame.iloc[train.rows, :10]
    expected = (frame.iloc[test.rows, :10] - measured.mean()) / measured.std(ddof=0)
    np.testing.assert_allclose(values(data, test)[:, :10], expected, atol=1e-4)
    raw = domain("covtype").load(folder, "dabs")
    np.testing.assert_array_equal(values(raw, splits(raw)[2]), frame.iloc[test.rows, :54].astype(np.float32))
    assert any("Not comparable with published scores" in note for note in data.notes)
    shares = [np.bincount(labels(split), minlength=7) / len(split) for split in (train, validation, test)]
    assert np.abs(np.diff(shares, axis=0)).max() < 0.003
    # the masking noise of i-Mix: a fifth of the measured cells, and no cell of the columns of zeros and ones
    assert data.augment is not None
    (clean,) = data.normalise(test.batch(np.arange(len(test))))
    (view,) = data.augment((clean,), torch.Generator().manual_seed(0))
    assert torch.equal(view[:, 10:], clean[:, 10:])
    masked = view.ne(clean)
    assert 0.19 < masked[:, :10].float().mean() < 0.21
    assert view[masked].eq(0).all()


def test_covtype_files_with_and_without_header_and_packed(tmp_path: Path) -> None:
    upstream.write_covtype(tmp_path / "a" / "covtype.data")
    upstream.write_covtype(tmp_path / "b" / "covtype.csv", header=(*covtype.HEADER, covtype.LABEL))
    (tmp_path / "c").mkdir()
    packed = gzip.compress((tmp_path / "a" / "covtype.data").read_bytes())
    (tmp_path / "c" / "covtype.data.gz").write_bytes(packed)
    first, second, third = (domain("covtype").load(tmp_path / name, "v1") for name in "abc")
    for other in (second, third):
        np.testing.assert_array_equal(values(first, splits(first)[0]), values(other, splits(other)[0]))
    assert len({first.fingerprint, second.fingerprint, third.fingerprint}) == 3  # of the file that is read


def test_covtype_has_upstreams_split_where_the_file_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream.write_covtype(tmp_path / "covtype.data", rows=60)
    monkeypatch.setattr(covtype, "ROWS", 60)
    monkeypatch.setattr(covtype, "TRAIN", 20)
    monkeypatch.setattr(covtype, "VALIDATION", 10)
    data = domain("covtype").load(tmp_path, "v1")
    assert [split.rows.tolist() for split in splits(data)] == [[*range(20)], [*range(20, 30)], [*range(30, 60)]]


def test_higgs_on_real_rows() -> None:
    folder = real("higgs")
    frame = pd.read_csv(folder / "HIGGS.csv", header=None)
    data, transfer = (domain(name).load(folder, "v1") for name in ("higgs", "higgs_transfer"))
    train, validation, test = splits(data)
    np.testing.assert_array_equal(test.rows, np.arange(7000, 7500))  # the source's own test part
    assert sorted([*train.rows, *validation.rows]) == list(range(7000))
    np.testing.assert_array_equal(labels(test), frame[0][7000:])
    fitted = frame.iloc[train.rows, 1:]
    expected = (frame.iloc[7000:, 1:] - fitted.mean()) / fitted.std(ddof=0)
    np.testing.assert_allclose(values(data, test), expected, atol=1e-4)
    np.testing.assert_array_equal(splits(transfer)[2].rows, test.rows)
    assert sorted([*splits(transfer)[0].rows, *splits(transfer)[1].rows]) == list(range(6750, 7000))


@pytest.mark.parametrize(("name", "whole"), [("higgs", slice(0, 270)), ("higgs_transfer", slice(270, 300))])
def test_higgs_as_dabs_divides_it(name: str, whole: slice, tmp_path: Path) -> None:
    upstream.write_higgs(tmp_path / "HIGGS.csv", rows=300)
    frame = pd.read_csv(tmp_path / "HIGGS.csv", header=None)
    shuffled = frame.iloc[whole].sample(frac=1, random_state=42)
    data = domain(name).load(tmp_path, "dabs")
    train, validation, test = splits(data)
    count = len(shuffled)
    assert set(test.rows) == set(shuffled.tail(math.floor(0.1 * count)).index)
    assert set(train.rows) == set(shuffled.head(math.ceil(0.9 * count)).index)
    np.testing.assert_array_equal(validation.rows, test.rows)  # DABS's validation split is its test split
    np.testing.assert_array_equal(values(data, test), frame.iloc[test.rows, 1:].astype(np.float32))  # raw


def test_higgs_as_imix_draws_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(higgs.DRAWN, "higgs_100k", 50)
    upstream.write_higgs(tmp_path / "HIGGS.csv", rows=300)
    train, validation, test = splits(domain("higgs_100k").load(tmp_path, "v1"))
    np.random.seed(1)  # as its code does
    drawn = np.random.choice(np.arange(280), 50, replace=False)
    assert {*train.rows, *validation.rows} == set(drawn)
    assert test.rows.tolist() == [*range(280, 300)]


def test_higgs_pretraining_never_sees_a_test_row_of_the_transfer_set(tmp_path: Path) -> None:
    upstream.write_higgs(tmp_path / "HIGGS.csv", rows=300)
    for protocol in ("v1", "dabs"):
        pretrain = domain("higgs").load(tmp_path, protocol).pretrain.rows
        test = splits(domain("higgs_transfer").load(tmp_path, protocol))[2].rows
        assert not set(pretrain) & set(test)
    assert domain("higgs").transfers == ("higgs_transfer",)


@pytest.mark.parametrize(
    ("place", "cell", "message"),
    [
        (0, "2", "class_label is 2, expected a whole number from 0 to 1"),
        (0, "0.5", "class_label is 0.5, expected a whole number"),
        (0, "", "column 'class_label' is empty"),
        (5, "", "column 'missing_energy_phi' is empty"),
        (5, "nan", "column 'missing_energy_phi' is empty"),
        (5, "-inf", "column 'missing_energy_phi' holds '-inf' which is infinite as float32"),
        (5, "x", "column 'missing_energy_phi' holds 'x' among numbers"),
        (5, "1,2", "30 cells where the table has 29 columns"),
    ],
)
def test_damaged_higgs(place: int, cell: str, message: str, tmp_path: Path) -> None:
    upstream.write_higgs(tmp_path / "HIGGS.csv", rows=50)
    lines = (tmp_path / "HIGGS.csv").read_text().splitlines()
    cells = lines[30].split(",")
    cells[place] = cell
    lines[30] = ",".join(cells)
    (tmp_path / "HIGGS.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=f"HIGGS.csv: row 31: {message}"):
        domain("higgs").load(tmp_path, "v1")


def test_adult_on_generated_files(tmp_path: Path) -> None:
    upstream.write_adult(tmp_path, train=200, test=80)
    data = domain("adult").load(tmp_path, "v1")
    train, validation, test = splits(data)
    assert (len(train) + len(validation), len(test)) == (200, 80)
    with (tmp_path / "adult.data").open() as stream:
        rows = [row for row in csv.reader(stream, skipinitialspace=True) if row]
    with (tmp_path / "adult.test").open() as stream:
        tests = [row for row in csv.reader(stream, skipinitialspace=True) if row][1:]
    np.testing.assert_array_equal(labels(test), [int(row[-1] == ">50K.") for row in tests])
    fitted = [rows[i] for i in train.rows]
    actual = values(data, test)
    ages = np.array([float(row[0]) for row in fitted])
    np.testing.assert_allclose(
        actual[:, 0], (np.array([float(r[0]) for r in tests]) - ages.mean()) / ages.std(), atol=1e-4
    )
    kinds = sorted({row[1] for row in fitted} - {"?"})
    expected = [math.nan if row[1] == "?" else kinds.index(row[1]) for row in tests]
    np.testing.assert_array_equal(actual[:, 1], expected)
    assert np.isnan(actual[3, 13])  # a country that occurs in no training row
    assert any(note.startswith("1 cell holds a category") for note in data.notes)
    (spec,) = data.specs
    assert isinstance(spec, Table)
    assert [size > 0 for size in spec.cardinalities] == [j in (1, 3, 5, 6, 7, 8, 9, 13) for j in range(14)]
    raw = domain("adult").load(tmp_path, "dabs")
    np.testing.assert_array_equal(values(raw, splits(raw)[2])[:, 0], [float(row[0]) for row in tests])


def test_adult_with_another_label(tmp_path: Path) -> None:
    upstream.write_adult(tmp_path)
    path = tmp_path / "adult.test"
    path.write_text(path.read_text().replace(">50K.", ">60K."))
    with pytest.raises(UserError, match=r"the labels are .*>60K"):
        domain("adult").load(tmp_path, "v1")


@pytest.mark.parametrize("name", ["covtype", "higgs", "adult"])
def test_missing_file_says_which_and_where_from(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing; fetch it from https://archive\.ics\.uci\.edu"):
        domain(name).load(tmp_path, "v1")


def test_a_second_load_reads_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream.write_higgs(tmp_path / "HIGGS.csv", rows=100)
    first = domain("higgs").load(tmp_path, "v1")
    monkeypatch.setattr("dabsmix.modalities.columns.blocks", None)
    second = domain("higgs").load(tmp_path, "v1")
    np.testing.assert_array_equal(values(first, splits(first)[2]), values(second, splits(second)[2]))


def test_a_partial_download_is_an_error(tmp_path: Path) -> None:
    upstream.write_higgs(tmp_path / "HIGGS.csv", rows=100)
    with (tmp_path / "HIGGS.csv").open("rb") as source, gzip.open(tmp_path / "HIGGS.csv.gz", "wb") as packed:
        shutil.copyfileobj(source, packed)
    path = tmp_path / "HIGGS.csv.gz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"HIGGS\.csv\.gz: cannot be read as a table"):
        domain("higgs").load(tmp_path, "v1")


def test_names_of_the_higgs_columns() -> None:
    assert len(set(higgs.HEADER)) == 28
    assert len(higgs.LOW_LEVEL) == 21
