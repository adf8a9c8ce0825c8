"""Recordings of different lengths and channels with gaps, as users have them. All data here are generated."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import dabsmix
from dabsmix.errors import UserError
from dabsmix.modalities.sensor import load_further, load_further_labelled, load_own
from dabsmix.source import Source, load_as
from dabsmix.spec import Grid, PaddedGrid

LENGTHS = {"walk": (7, 12, 9, 20, 5, 11), "sit": (6, 19, 8, 10, 13, 4)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "cache"))


def table(length: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    time = np.arange(length) / 50
    return pd.DataFrame({"time": time, "x": rng.normal(5, 2, length), "y": rng.normal(0, 1, length)}).round(4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for each class, and a table in it for each recording."""
    for name, lengths in LENGTHS.items():
        (tmp_path / "motion" / name).mkdir(parents=True)
        for number, length in enumerate(lengths):
            table(length, length).to_csv(tmp_path / "motion" / name / f"r{number}.csv", index=False)
    return tmp_path / "motion"


def test_each_file_is_an_example_padded_to_the_longest(folder: Path) -> None:
    data = load_own(folder, label="folder", recording="file")
    assert data.specs == (PaddedGrid(2, (20,), (1,)),)
    assert data.labelled is not None
    assert data.labelled.task.classes == ("sit", "walk")
    assert data.names is not None
    lengths = []
    for split in data.labelled.splits.values():
        assert split.label is not None
        examples = split.batch(np.arange(len(split)))[0]
        for name, label, x in zip(data.names(split.rows), split.label, examples, strict=True):
            plain = pd.read_csv(folder / name)[["x", "y"]].to_numpy(np.float32).T
            assert name.startswith(data.labelled.task.classes[label])
            np.testing.assert_array_equal(x[:, : plain.shape[1]], plain)
            assert x[:, plain.shape[1] :].isnan().all()
            lengths.append(name)
    assert sorted(lengths) == sorted(f"{c}/r{k}.csv" for c in LENGTHS for k in range(6))
    pretrained = pd.concat([pd.read_csv(folder / name) for name in data.names(data.pretrain.rows)])
    assert data.state["mean"] == pytest.approx(pretrained[["x", "y"]].mean().to_numpy(), rel=1e-5)
    assert data.state["std"] == pytest.approx(pretrained[["x", "y"]].std(ddof=0).to_numpy(), rel=1e-5)


def test_recordings_of_one_table_have_a_label_and_a_group(folder: Path) -> None:
    rows = [
        table(length, length).assign(id=f"{name}{k}", person=f"p{k}", kind=name)
        for name, lengths in LENGTHS.items()
        for k, length in enumerate(lengths)
    ]
    path = folder / "all.csv"
    pd.concat(rows).to_csv(path, index=False)
    data = load_own(path, label="kind", recording="id", group="person", window=12)
    assert data.specs == (PaddedGrid(2, (12,), (1,)),)
    assert "3 of 12 recordings have more than 12 readings" in " ".join(data.notes)
    assert data.labelled is not None
    people = [set(np.asarray(split.group).tolist()) for split in data.labelled.splits.values()]
    assert sum(map(len, people)) == len(set.union(*people)) == 6  # no person in two splits
    pd.concat([*rows, rows[0]]).to_csv(path, index=False)
    with pytest.raises(UserError, match=r"row 126: a recording that ended before goes on here; sort the rows by id"):
        load_own(path, label="kind", recording="id", group="person")
    mixed = [row.copy() for row in rows]
    mixed[3].loc[4, "person"] = "p0"
    pd.concat(mixed).to_csv(path, index=False)
    with pytest.raises(UserError, match=r"row 34: person changes within one recording; give a recording one group"):
        load_own(path, label="kind", recording="id", group="person")
    with pytest.raises(UserError, match=r"row 34: person changes within one recording; give a recording one group"):
        load_further_labelled(path, data.state, label="kind", group="person")
    rows[3].loc[4, "kind"] = "sit"
    pd.concat(rows).to_csv(path, index=False)
    with pytest.raises(UserError, match=r"row 34: kind changes within one recording"):
        load_own(path, label="kind", recording="id", group="person")


def test_a_table_names_the_classes_and_groups_of_files(folder: Path) -> None:
    files = [f"{c}/r{k}.csv" for c in LENGTHS for k in range(6)]
    label = ["a", "b", ""] * 4
    names = pd.DataFrame({"file": files, "health": label, "group": ["u", "v", "w", "x", "y", "z"] * 2})
    names.to_csv(folder / "labels.csv", index=False)
    data = load_own(folder, label="health", recording="file", labels="labels.csv")
    assert data.labelled is not None
    assert data.labelled.test.group is not None
    assert "4 of 12 recordings have no label" in " ".join(data.notes)


def test_gaps_are_missing_and_a_recording_without_any_reading_is_refused(folder: Path) -> None:
    gapped = table(8, 0)
    gapped.loc[2:4, "x"] = np.nan
    gapped.to_csv(folder / "sit" / "gap.csv", index=False)
    with pytest.raises(UserError, match=r"gap.csv: row 4: column 'x' is empty"):
        load_own(folder, label="folder", recording="file")
    data = load_own(folder, label="folder", recording="file", gaps="mask")
    further, keys = load_further(folder / "sit" / "gap.csv", data.state)
    (x,) = further.pretrain.batch(np.array([0]))
    assert keys == ["gap.csv"]
    assert x[0, 0, :8].isnan().tolist() == [False, False, True, True, True, False, False, False]
    assert not x[0, 1, :8].isnan().any()
    gapped[["x", "y"]] = np.nan
    gapped.to_csv(folder / "sit" / "gap.csv", index=False)
    with pytest.raises(UserError, match=r"gap.csv: row 2: a recording without any reading; remove it"):
        load_own(folder, label="folder", recording="file", gaps="mask")
    data = load_own(folder, label="folder", recording="file", gaps="mask", on_bad="skip")
    assert "1 of 13 recordings was skipped" in " ".join(data.notes)
    (folder / "sit" / "gap.csv").write_text("time,x,y\n")
    with pytest.raises(UserError, match=r"gap.csv: a recording without any reading; remove it"):
        load_own(folder, label="folder", recording="file")
    data = load_own(folder, label="folder", recording="file", on_bad="skip")
    assert "1 of 13 recordings was skipped" in " ".join(data.notes)


def test_windows_may_have_gaps_and_otherwise_stay_equal(tmp_path: Path) -> None:
    frame = pd.concat([table(40, k).assign(group=k) for k in range(4)])
    path = tmp_path / "long.csv"
    frame.to_csv(path, index=False)
    plain, masked = load_own(path, window=10), load_own(path, window=10, gaps="mask")
    assert plain.specs == (Grid(2, (10,), (1,)),)
    assert masked.specs == (PaddedGrid(2, (10,), (1,)),)
    every_row = np.arange(len(plain.pretrain))
    assert torch.equal(
        plain.normalise(plain.pretrain.batch(every_row))[0], masked.normalise(masked.pretrain.batch(every_row))[0]
    )
    frame.iloc[0:10, 1:3] = np.nan  # all of the first window
    frame.iloc[12, 1] = np.nan
    frame.to_csv(path, index=False)
    gapped = load_own(path, window=10, gaps="mask")
    assert len(gapped.pretrain) == len(plain.pretrain) - 1
    assert int(gapped.pretrain.batch(every_row[:-1])[0].isnan().sum()) == 1


def test_from_a_folder_of_recordings_to_scores_and_features(folder: Path, tmp_path: Path) -> None:
    options = {"recording": "file", "patch": 2}
    data = dabsmix.load(data=folder, modality="sensor", label="folder", options=options)
    run = dabsmix.pretrain(data, "imix_npair", encoder="tiny", steps=3, batch_size=4, out=tmp_path, views="augment")
    record = dabsmix.transfer(run, labels=["1"])
    assert {"raw", "statistics", "patches", "spectrum"} <= record.yardsticks.keys()
    features = dabsmix.load_encoder(run).features(folder / "walk")
    assert features.shape == (6, 64)
    assert np.isfinite(features).all()
    alone = dabsmix.load_encoder(run).features(pd.read_csv(folder / "walk" / "r2.csv"))
    np.testing.assert_allclose(alone[0], features[2], rtol=1e-4, atol=1e-5)
    reloaded = load_as(Source(data=folder, label="folder"), "sensor", run.record.data_state)
    assert reloaded.labelled is not None
    assert reloaded.specs == data.specs


def test_options_of_windows_are_refused(folder: Path) -> None:
    for wrong in ({"stride": 5}, {"max_gap": 1.0}, {"rate": -1.0}, {"window": 9, "patch": 2}):
        with pytest.raises(UserError):
            load_own(folder, label="folder", recording="file", **wrong)
    with pytest.raises(UserError, match=r"nowhere\.csv: no such file; the option `labels` is relative to --data"):
        load_own(folder, label="kind", recording="file", labels="nowhere.csv")
    with pytest.raises(UserError, match="needs `recording: file`"):
        load_own(folder, label="kind", labels="labels.csv")
