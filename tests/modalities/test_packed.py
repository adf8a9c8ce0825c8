"""Data sets that contain their examples, written here by the libraries that define them: `datasets`, tars, zips."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from dabsmix.data.domain import Data
from dabsmix.errors import UserError
from dabsmix.modalities import packed
from dabsmix.modalities.image import load_own as own_images
from dabsmix.source import Source, absolute, load
from dabsmix.spec import Table
from dabsmix.verbs.embed import FeatureExtractor

datasets = pytest.importorskip("datasets")

N = 40
LABELS = [("up", "down")[row % 2] for row in range(N)]


def picture(row: int) -> bytes:
    pixels = np.random.default_rng(row).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def sound(row: int) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.sin(np.arange(1000) * (1 + row % 2) / 10), 1000, format="WAV")
    return stream.getvalue()


def frame(kind: str) -> Any:
    """A data set of 40 examples with the label ``way``, as on the hub."""
    way = datasets.ClassLabel(names=["down", "up"])
    codes = [way.names.index(label) for label in LABELS]
    columns: dict[str, tuple[Any, Any]] = {
        "image": ([{"bytes": picture(row), "path": f"{row}.png"} for row in range(N)], datasets.Image()),
        "audio": ([{"bytes": sound(row), "path": None} for row in range(N)], datasets.Audio()),
        "story": ([f"a long story of {row} things, one {LABELS[row]} and on" for row in range(N)], None),
        "number": ([float(row) for row in range(N)], None),
        "list": ([[1, 2]] * N, None),
    }
    names = {"image": ["image"], "audio": ["audio"], "text": ["story"], "tabular": ["number", "list"]}[kind]
    values = {name: columns[name][0] for name in names}
    features = {name: columns[name][1] for name in names if columns[name][1] is not None}
    data = datasets.Dataset.from_dict(values)
    for name, feature in features.items():
        data = data.cast_column(name, feature)
    return data.add_column("way", codes).cast_column("way", way)


KINDS = [("image", "image"), ("audio", "spectrogram"), ("text", "text"), ("tabular", "tabular")]
OPTIONS = {"spectrogram": "rate: 1000\nmels: 8\n"}


def check(data: Data, modality: str) -> None:
    assert data.source is not None
    assert data.source.modality == modality
    assert data.labelled is not None
    assert data.labelled.task.classes == ("down", "up")
    assert sum(len(split) for split in data.labelled.splits.values()) == N


@pytest.mark.parametrize(("kind", "modality"), KINDS)
def test_a_saved_data_set_is_read_by_its_features(kind: str, modality: str, tmp_path: Path) -> None:
    rows = frame(kind)
    datasets.DatasetDict(train=rows, test=rows.select(range(3))).save_to_disk(tmp_path / "saved")
    options = tmp_path / "options.yaml"
    options.write_text(OPTIONS.get(modality, "{}"))
    data = load(Source(data=Path(f"hf:{tmp_path / 'saved'}"), label="way", options=options))
    check(data, modality)
    assert "other splits are: test" in data.notes[0]
    plain = load(Source(data=tmp_path / "saved", modality=modality, options=options))  # type: ignore[arg-type]
    assert plain.labelled is None
    assert len(plain.pretrain) == N


@pytest.mark.parametrize(("kind", "modality"), KINDS)
def test_parquet_shards_and_a_single_file_hold_the_same(kind: str, modality: str, tmp_path: Path) -> None:
    rows = frame(kind)
    if kind == "tabular":
        rows = rows.remove_columns("list")  # only unpacking into the cache leaves such columns out
    shards = tmp_path / "shards"
    shards.mkdir()
    for shard in range(2):
        rows.select(range(20 * shard, 20 * shard + 20)).to_parquet(shards / f"train-{shard:05}-of-00002.parquet")
    rows.to_parquet(tmp_path / "whole.parquet")
    options = tmp_path / "options.yaml"
    options.write_text(OPTIONS.get(modality, "column: story" if modality == "text" else "{}"))
    both = []
    for path in (shards / "*.parquet", tmp_path / "whole.parquet"):
        data = load(Source(data=path, modality=modality, label="way", options=options))  # type: ignore[arg-type]
        assert data.labelled is not None
        assert sum(len(split) for split in data.labelled.splits.values()) == N
        both.append(data.pretrain.batch(np.arange(len(data.pretrain)))[0])
    assert both[0].equal(both[1])


def write_tar(path: Path, kind: str, rows: range) -> None:
    with tarfile.open(path, "w") as archive:
        for row in rows:
            entries = {"json": json.dumps({"way": LABELS[row], "number": row}).encode(), "cls": b"%d" % (row % 2)}
            ending, content = {
                "image": ("png", picture(row)),
                "audio": ("wav", sound(row)),
                "text": ("txt", f"a long story of {row} things, one {LABELS[row]} and on".encode()),
                "tabular": ("npy", b"not read"),
            }[kind]
            for name, data in {ending: content, **entries}.items():
                member = tarfile.TarInfo(f"part/{row:04}.{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(("kind", "modality"), KINDS)
def test_tars_are_read_in_one_pass(kind: str, modality: str, tmp_path: Path) -> None:
    for shard in range(2):
        write_tar(tmp_path / f"part-{shard}.tar", kind, range(20 * shard, 20 * shard + 20))
    options = tmp_path / "options.yaml"
    options.write_text(OPTIONS.get(modality, "{}"))
    data = load(Source(data=tmp_path, label="way", options=options))
    check(data, modality)
    reloaded = load(Source(data=tmp_path / "part-*.tar", label="way", options=options))
    assert reloaded.fingerprint == data.fingerprint
    (tmp_path / "part-1.tar").write_bytes((tmp_path / "part-1.tar").read_bytes()[:516])
    with pytest.raises(UserError, match=r"part-1.tar: cannot be read as a tar"):
        load(Source(data=tmp_path, label="way", options=options))


@pytest.mark.parametrize("kind", ["text", "tabular"])
def test_json_lines_are_read_like_other_rows(kind: str, tmp_path: Path) -> None:
    names = {"text": "story", "tabular": "number"}
    rows = [
        json.dumps({"way": LABELS[n], names[kind]: frame(kind)[n][names[kind]], "more": {"a": n}}) for n in range(N)
    ]
    whole = tmp_path / "whole.jsonl"
    whole.write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        with gzip.open(tmp_path / "shards" / f"{shard}.json.gz", "wt", encoding="utf-8") as stream:
            stream.writelines(f"{row}\n" for row in rows[20 * shard : 20 * shard + 20])
    both = [load(Source(data=path, label="way")) for path in (whole, tmp_path / "shards")]
    for data in both:
        check(data, kind)
    one, other = (data.pretrain.batch(np.arange(len(data.pretrain)))[0] for data in both)
    np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_json_that_is_not_lines_of_objects(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    for content, message in (
        ('{"a": 1}\n[1]\n', r"rows\.json:2: not a JSON object"),
        ("[\n", r"rows\.json:1: not a JSON object"),
        ("", "it is empty"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            load(Source(data=path, modality="tabular"))


def test_a_column_that_begins_after_the_first_block_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "BLOCK", 4)
    rows: list[dict[str, Any]] = [{"a": n} for n in range(10)]
    rows[4] |= {"late": None}
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert load(Source(data=path, modality="tabular")).specs == (Table(1, (0,)),)
    rows[6] |= {"late": 1}
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        UserError, match=r"rows\.jsonl: row 7: the column 'late' has no single value in the first 4 rows"
    ):
        load(Source(data=path, modality="tabular"))


def test_half_of_a_surrogate_pair_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for row, column in (({"a": "cut \ud83d"}, "a"), ({"\ud83d": 1}, r"\\ud83d")):
        path.write_text("\n".join(map(json.dumps, ({"a": "whole \U0001f600"}, row))))
        with pytest.raises(UserError, match=rf"rows\.jsonl: row 2: the column '{column}' holds '\\ud83d', half of"):
            load(Source(data=path, modality="tabular"))
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name, content in (("0.png", picture(0)), ("0.json", json.dumps({"way": "\ud83d"}).encode())):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(UserError, match=r"0\.tar: row 1: the column 'way' holds"):
        load(Source(data=tmp_path / "0.tar"))


def test_json_beside_other_files_describes_them(tmp_path: Path) -> None:
    for row in range(N):
        (tmp_path / f"{row}.txt").write_text(f"a story of {row} things")
    (tmp_path / "about.json").write_text("{}")
    data = load(Source(data=tmp_path, modality="text", options=None))
    assert len(data.pretrain) == N
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "0.tar", "text", range(N))
    (tmp_path / "tars" / "sizes.json").write_text("{}")
    check(load(Source(data=tmp_path / "tars", label="way")), "text")


def test_an_archive_of_a_folder_is_read_as_that_folder(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for row in range(N):
        (folder / LABELS[row]).mkdir(parents=True, exist_ok=True)
        (folder / LABELS[row] / f"{row}.png").write_bytes(picture(row))
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))
        archive.writestr("__MACOSX/._0.png", b"")
        table = "file;kind\n" + "".join(f"{LABELS[n]}/{n}.png; {('NA', 'EU')[n % 2]}\n" for n in range(N))
        archive.writestr("labels.csv", table)
    (folder / "labels.csv").write_text(table)
    by_table = [own_images(path, label="kind", labels="labels.csv") for path in (folder, tmp_path / "photos.zip")]
    assert all(data.require_labelled().task.classes == ("EU", "NA") for data in by_table)
    loose, archived = (data.require_labelled().test.label for data in by_table)
    np.testing.assert_array_equal(loose, archived)
    one, other = own_images(folder, label="folder"), own_images(tmp_path / "photos.zip", label="folder")
    assert one.labelled is not None
    assert other.labelled is not None
    rows = np.arange(len(one.labelled.train))
    assert one.labelled.train.batch(rows)[0].equal(other.labelled.train.batch(rows)[0])
    np.testing.assert_array_equal(one.labelled.train.label, other.labelled.train.label)


def test_what_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hf:nobody/nothing: cannot be loaded .* save_to_disk"):
        load(Source(data=Path("hf:nobody/nothing"), label="way"))
    frame("tabular").save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="no column holds image files"):
        load(Source(data=tmp_path / "saved", modality="image"))
    with pytest.raises(UserError, match="no such file"):
        load(Source(data=tmp_path / "*.parquet", modality="image"))
    frame("image").save_to_disk(tmp_path / "pictures")
    with pytest.raises(UserError, match=r"/pictures/labels\.csv: no column 'wya' \(did you mean 'way'\?\)"):
        load(Source(data=tmp_path / "pictures", label="wya"))


def test_names_and_places(tmp_path: Path) -> None:
    assert Source(data=Path("hf:ylecun/mnist")).name == "mnist"
    assert Source(data=Path("hf:nyu-mll/glue:sst2")).name == "glue-sst2"
    assert Source(data=tmp_path / "birds" / "*.tar").name == "birds"
    for name in ("calls.csv", "calls.csv.gz", "calls.tar.gz", "calls.jsonl.gz", "calls.json"):
        assert Source(data=tmp_path / name).name == "calls"
    assert absolute(Path("hf:ylecun/mnist")) == Path("hf:ylecun/mnist")
    assert absolute(Path("x.csv")).is_absolute()


def test_further_examples_are_read_like_training_examples(tmp_path: Path) -> None:
    from dabsmix.model.encoder import make_encoder

    frame("image").save_to_disk(tmp_path / "saved")
    data = load(Source(data=tmp_path / "saved", label="way"))
    extractor = FeatureExtractor(make_encoder("tiny", data.specs), "image", data.state)
    write_tar(tmp_path / "more.tar", "image", range(5))
    further, keys = extractor.read(tmp_path / "more.tar")
    assert keys == [f"{row:09}.png" for row in range(5)]
    everything = data.pretrain.inputs[0][np.arange(5)]
    np.testing.assert_array_equal(further.pretrain.batch(np.arange(5))[0].numpy(), everything)
