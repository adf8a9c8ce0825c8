"""Own data with labels for some examples only: all are pretrained on, and the labelled ones are scored."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from dabsmix.data.domain import Data
from dabsmix.errors import UserError
from dabsmix.modalities import image, sensor, sequence, spectrogram, tabular, text

N = 200
LABELLED = 60


def frame(seed: int = 0) -> pd.DataFrame:
    """Rows of a table in 40 groups of 5; 60 of them, about every third, have a label."""
    rng = np.random.default_rng(seed)
    label = pd.Series(rng.choice(["yes", "no"], N)).where(np.isin(np.arange(N), rng.permutation(N)[:LABELLED]))
    return pd.DataFrame({"x": rng.normal(size=N), "z": rng.normal(size=N), "who": np.arange(N) // 5, "y": label})


def rows(data: Data) -> tuple[NDArray[np.int64], ...]:
    return data.pretrain.rows, *(split.rows for split in data.require_labelled().splits.values())


def check(data: Data, has_label: NDArray[np.bool_]) -> None:
    """Labelled rows are divided; pretraining sees train and all unlabelled rows, never validation or test."""
    pretrain, train, validation, test = rows(data)
    scored = np.concatenate([train, validation, test])
    assert sorted(scored) == np.flatnonzero(has_label).tolist()
    assert sorted(pretrain) == sorted([*train, *np.flatnonzero(~has_label)])
    assert data.pretrain.label is None
    for split in data.require_labelled().splits.values():
        assert split.label is not None
        assert (split.label >= 0).all()
    missing = int((~has_label).sum())
    message = f"{missing} of {len(has_label)} "
    assert any(note.startswith(message) and f"pretraining sees {missing} of them" in note for note in data.notes)


def test_a_table_with_empty_label_cells(tmp_path: Path) -> None:
    frame().drop(columns="who").to_csv(tmp_path / "t.csv", index=False)
    data = tabular.load_own(tmp_path / "t.csv", label="y")
    check(data, frame()["y"].notna().to_numpy())
    assert data.require_labelled().task.classes == ("no", "yes")
    # standardised by what pretraining sees
    mean = frame()["x"].to_numpy()[data.pretrain.rows].mean()
    assert data.state["mean"][0] == pytest.approx(mean, rel=1e-5)


def test_a_quantity_with_empty_cells(tmp_path: Path) -> None:
    table = frame()
    table["y"] = table["z"].where(table["y"].notna())
    table.to_csv(tmp_path / "t.csv", index=False)
    data = tabular.load_own(tmp_path / "t.csv", label="y", ignore="who")
    assert data.require_labelled().task.kind == "regression"
    label = data.require_labelled().train.label
    assert label is not None
    assert np.isfinite(label).all()
    assert len(data.pretrain) == N - LABELLED + len(label)
    assert data.pretrain.label is None


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_groups_stay_together(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.{suffix}"
    frame().to_csv(path, index=False) if suffix == "csv" else frame().to_parquet(path)
    data = tabular.load_own(path, label="y", group="who")
    pretrain, train, validation, test = (set(frame()["who"].to_numpy()[part].tolist()) for part in rows(data))
    assert not pretrain & (validation | test)
    assert not train & (validation | test)
    assert any("in groups of validation or test are not used" in note for note in data.notes)
    sizes = {
        name: f"{len(split)} {name} in {len(set(frame()['who'].to_numpy()[split.rows]))} groups"
        for name, split in data.require_labelled().splits.items()
    }
    assert f"The splits are ours, of whole groups, seeded: {', '.join(sizes.values())}." in data.notes


def test_skipped_rows_and_empty_labels_are_counted_separately(tmp_path: Path) -> None:
    lines = frame().drop(columns="who").to_csv(index=False).splitlines()
    lines.insert(5, "1,2")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    data = tabular.load_own(tmp_path / "t.csv", label="y", on_bad="skip")
    check(data, frame()["y"].notna().to_numpy())
    assert any(note.startswith("1 of 201 rows was skipped") for note in data.notes)


def test_texts_with_empty_label_cells(tmp_path: Path) -> None:
    table = pd.DataFrame({"text": [f"text number {i}" for i in range(N)], "y": frame()["y"]})
    table.to_csv(tmp_path / "t.csv", index=False)
    data = text.load_own(tmp_path / "t.csv", label="y", vocab_size=300, length=16)
    check(data, frame()["y"].notna().to_numpy())


@pytest.mark.parametrize("suffix", [".csv", ".fasta"])
def test_sequences_with_empty_labels(suffix: str, tmp_path: Path) -> None:
    reads = ["".join(np.random.default_rng(i).choice(list("ACGT"), 20)) for i in range(N)]
    table = pd.DataFrame({"sequence": reads, "y": frame()["y"]})
    if suffix == ".csv":
        table.to_csv(tmp_path / "reads.csv", index=False)
    else:
        headers = (f">r{i}" + ("" if pd.isna(y) else f" y={y}") for i, y in enumerate(table["y"]))
        (tmp_path / "reads.fasta").write_text("".join(f"{h}\n{r}\n" for h, r in zip(headers, reads, strict=True)))
    data = sequence.load_own(tmp_path / f"reads{suffix}", label="y", length=16)
    check(data, table["y"].notna().to_numpy())
    assert any("sequences fill all 16 symbols" in note for note in data.notes)


def test_readings_with_empty_label_cells(tmp_path: Path) -> None:
    parts = []
    for person in range(12):
        activity = np.repeat(["sit", "walk", None, None], 32)
        reading = np.random.default_rng(person).normal(size=128)
        parts.append(pd.DataFrame({"time": np.arange(128), "group": person, "x": reading, "activity": activity}))
    table = pd.concat(parts)
    table.to_csv(tmp_path / "r.csv", index=False)
    data = sensor.load_own(tmp_path / "r.csv", label="activity", window=16)
    labelled = data.require_labelled()
    assert labelled.task.classes == ("sit", "walk")
    assert sum(map(len, labelled.splits.values())) == 12 * 4
    groups = [set(split.group.tolist()) for split in labelled.splits.values() if split.group is not None]
    assert data.pretrain.group is not None
    assert set(data.pretrain.group.tolist()) == groups[0]
    assert len(data.pretrain) == 2 * len(labelled.train)
    assert any(note.startswith("48 of 96 windows have no label") for note in data.notes)


def pictures(folder: Path, write: Callable[[Path, int], None], suffix: str) -> NDArray[np.bool_]:
    """Files, and a table of labels in which some files are missing and some have no class."""
    names = [f"{number:03d}{suffix}" for number in range(40)]
    for number, name in enumerate(names):
        write(folder / name, number)
    lines = ["file,kind"]
    lines += [f"{name},{'' if number % 4 == 1 else 'ab'[number // 2 % 2]}" for number, name in enumerate(names[:30])]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return np.array([number < 30 and number % 4 != 1 for number in range(40)])


def test_a_label_table_that_lacks_images(tmp_path: Path) -> None:
    from PIL import Image

    def write(path: Path, number: int) -> None:
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)

    has_label = pictures(tmp_path, write, ".png")
    check(image.load_own(tmp_path, label="kind", labels="labels.csv", size=16, patch=8), has_label)
    with (tmp_path / "labels.csv").open("a") as table:
        table.write("gone.png,a\n")
    with pytest.raises(
        UserError, match=r"no file 'gone\.png' below the data folder; fix the row, or leave such rows out"
    ):
        image.load_own(tmp_path, label="kind", labels="labels.csv", size=16, patch=8)
    data = image.load_own(tmp_path, label="kind", labels="labels.csv", size=16, patch=8, on_bad="skip")
    check(data, has_label)
    assert any("skipped rows that name no file: 1 (the first: row" in note for note in data.notes)


def test_a_label_table_that_lacks_sounds(tmp_path: Path) -> None:
    import soundfile

    def write(path: Path, number: int) -> None:
        soundfile.write(path, np.random.default_rng(number).normal(0, 0.1, 4000), 4000)

    has_label = pictures(tmp_path, write, ".wav")
    data = spectrogram.load_own(tmp_path, label="kind", labels="labels.csv", rate=4000, mels=16)
    check(data, has_label)


def test_a_set_without_any_label_is_reported(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,y\n1,\n2,\n3,\n")
    with pytest.raises(UserError, match="--label y: every cell is empty"):
        tabular.load_own(tmp_path / "t.csv", label="y")


def test_a_class_with_one_example_is_named(tmp_path: Path) -> None:
    from PIL import Image

    for kind, count in (("cat", 10), ("dog", 10), ("yak", 1)):
        (tmp_path / kind).mkdir()
        for number in range(count):
            Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / kind / f"{number}.png")
    notes = image.load_own(tmp_path, label="folder", size=16, patch=8).notes
    assert "Classes with one example, which cannot be both trained on and scored: 'yak'." in notes
    assert "None of the test images has the class 'yak'." in notes
