"""Images: decoding, the store, splits, and a user's own folder."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dabsmix.data.domain import Data, Task
from dabsmix.errors import UserError
from dabsmix.modalities import image as image_module
from dabsmix.modalities import memory
from dabsmix.modalities.files import walk
from dabsmix.modalities.image import (
    IMAGE_SUFFIXES,
    Listing,
    file_pixels,
    four_fifths,
    load,
    load_further,
    load_own,
    opened,
    resized,
    stored,
)
from dabsmix.modalities.packed import is_packed
from dabsmix.spec import Grid


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "cache"))


def noise(path: Path, seed: int, size: tuple[int, int] = (50, 37)) -> None:
    """A generated image file of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def folders(root: Path, classes: Mapping[str, int]) -> Path:
    """``CLASS/N.png``, with the given number of images per class."""
    for place, (name, count) in enumerate(classes.items()):
        for number in range(count):
            noise(root / name / f"{number:02d}.png", 100 * place + number)
    return root


def listing(root: Path, label: list[int], train: int, **changes: Any) -> Listing:
    """Generated images with these labels; the first ``train`` are the training part."""
    for row in range(len(label)):
        if not (root / f"{row:02d}.png").exists():
            noise(root / f"{row:02d}.png", row)
    files = [f"{row:02d}.png" for row in range(len(label))]
    listing_of_all = Listing(
        folder=root,
        files=files,
        count=len(label),
        pixels=file_pixels(root, files),
        label=np.array(label),
        train=np.arange(train),
        test=np.arange(train, len(label)),
        task=Task("classes", "accuracy", tuple(f"c{number}" for number in range(max(label) + 1))),
    )
    return replace(listing_of_all, **changes)


# --- decoding


@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("size", [(50, 37), (32, 32), (300, 640)])
def test_resizing_equals_torchvisions(side: int, size: tuple[int, int], tmp_path: Path) -> None:
    from torchvision import transforms

    noise(tmp_path / "a.png", 0, size)
    image = opened(tmp_path / "a.png")
    steps = transforms.Compose([transforms.Resize((side, side)), transforms.CenterCrop(side), transforms.ToTensor()])
    assert torch.equal(torch.from_numpy(resized(image, side)).float() / 255, steps(image))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_any_eight_bit_image_becomes_rgb(mode: str, tmp_path: Path) -> None:
    noise(tmp_path / "rgb.png", 0)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    with Image.open(tmp_path / "rgb.png") as image:
        image.convert(mode).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(opened(path)), expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(suffix: str, tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    grey = np.asarray(opened(tmp_path / f"deep.{suffix}"))
    expected = [[round(int(value) / 257) for value in row] for row in values]
    assert grey.tolist() == [[[value] * 3 for value in row] for row in expected]


def test_images_in_memory_are_read_as_files_are(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "deep.png")
    spec, state = Grid(3, (8, 8), (4, 4)), {"size": 8, "patch": 4, "mean": [0.0] * 3, "std": [1.0] * 3}

    def read(x: Any) -> NDArray[np.uint8]:
        data = memory.further(x, "image", (spec,), state)
        assert data is not None
        return np.asarray(data.pretrain.batch(np.array([0]))[0][0])

    expected = np.asarray(opened(tmp_path / "deep.png")).transpose(2, 0, 1)
    np.testing.assert_array_equal(read(Image.fromarray(values)), expected)
    with pytest.raises(UserError, match=r"image 1: values are floats \(mode F\); convert it to 8 or 16 bits"):
        read([Image.new("L", (8, 8)), Image.fromarray(np.zeros((8, 8), np.float32))])
    mask = values > 30000
    np.testing.assert_array_equal(read(mask[None]), np.stack([mask * 255] * 3))


def test_images_that_are_faint_in_eight_bits_are_reported(tmp_path: Path) -> None:
    for bits in (12, 16):
        for number in range(4):
            values = np.full((8, 8), (2**bits - 1) * (number > 1), np.uint16)
            path = tmp_path / f"{bits}" / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    assert any("reach 16 of 255" in note for note in load_own(tmp_path / "12", size=8).notes)
    assert load_own(tmp_path / "16", size=8).notes == ()


def test_images_refused_by_an_older_version_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that recorded an image with too many bits stays; another is built beside it."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(6):
        Image.fromarray(np.full((8, 8), 257 * 40 * number, np.uint16)).save(folder / f"{number}.png")

    def refused(path: Path) -> Image.Image:
        if path.name == "3.png":
            raise UserError(f"{path}: more than 8 bits a channel (mode I;16); convert it to 8 bits")
        return opened(path)

    with monkeypatch.context() as old:
        old.setattr(image_module, "REFUSED_ONCE", "of no version")
        old.setattr(image_module, "opened", refused)
        assert len(load_own(folder, on_bad="skip", size=8).pretrain) == 5
    for _ in range(2):
        data = load_own(folder, on_bad="skip", size=8)
        assert len(data.pretrain) == 6
        assert data.pretrain.batch(np.array([3]))[0].max() == 120


def test_floats_and_huge_images_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "deep.tif")
    with pytest.raises(UserError, match=r"deep\.tif: values are floats"):
        opened(tmp_path / "deep.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("RGB", (8, 8)).save(tmp_path / "huge.png")
    with pytest.raises(UserError, match=r"huge\.png: too large .*make it smaller"):
        opened(tmp_path / "huge.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-400]), "damaged image"),
        (lambda path: path.write_bytes(b"<html>not found</html>"), "not an image"),
        (lambda path: path.write_bytes(b""), "not an image"),
        (lambda path: path.unlink(), "missing"),
    ],
)
def test_a_bad_file_is_named(spoil: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    images = listing(tmp_path / "images", [0, 1] * 10, 16)
    if message == "missing":
        path = tmp_path / "images" / "07.png"
        spoil(path)
        with pytest.raises(UserError, match=rf"07\.png: .*{message}"):
            opened(path)
        return
    spoil(tmp_path / "images" / "07.png")
    with pytest.raises(UserError, match=rf"07\.png: .*{message}"):
        load("generated", images, 32, 4, "v1")
    assert not any((tmp_path / "cache" / "generated").glob("*/complete")), "a half-filled store was kept"


# --- the store


def test_images_are_decoded_once_and_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = listing(tmp_path / "images", [0, 1] * 150, 250)  # more than one portion
    first, sums, bad, _ = stored("generated", images, 32)
    assert isinstance(first, np.ndarray)
    assert first.dtype == np.uint8
    assert bad == {}
    for row in (0, 255, 256, 299):
        assert np.array_equal(first[row], resized(opened(tmp_path / "images" / images.files[row]), 32))
        assert np.array_equal(sums[row, 0], first[row].sum(axis=(1, 2)))
        assert np.array_equal(sums[row, 1], (first[row].astype(int) ** 2).sum(axis=(1, 2)))

    def never(row: int, side: int) -> NDArray[Any]:
        raise AssertionError("decoded again")

    second, *_ = stored("generated", replace(images, pixels=never), 32)
    assert isinstance(second, np.ndarray)
    assert isinstance(second.base, np.memmap)
    assert np.array_equal(first, second)
    with pytest.raises(AssertionError, match="decoded again"):
        stored("generated", replace(images, pixels=never), 64)


def test_another_order_of_the_list_is_another_store(tmp_path: Path) -> None:
    images = listing(tmp_path / "images", [0, 1, 0], 2)
    turned = list(reversed(images.files))
    first, _, _, source = stored("generated", images, 32)
    second, _, _, same = stored(
        "generated", replace(images, files=turned, pixels=file_pixels(images.folder, turned)), 32
    )
    assert source == same
    assert np.array_equal(first[np.arange(3)[::-1]], second[np.arange(3)])


def test_statistics_are_those_of_pretrain_alone(tmp_path: Path) -> None:
    data = load("generated", listing(tmp_path / "images", [0, 1] * 20, 30), 32, 4, "v1")
    pretrain = data.pretrain.inputs[0][data.pretrain.rows].astype(np.float64)
    mean, std = pretrain.mean(axis=(0, 2, 3)), pretrain.std(axis=(0, 2, 3))
    (image,) = data.normalise(data.pretrain.batch(np.arange(5)))
    expected = (pretrain[:5] - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(image, torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-5)
    assert data.state["mean"] == pytest.approx(mean)
    assert json.loads(json.dumps(data.state)) == {**data.state, "mean": list(mean), "std": list(data.state["std"])}


# --- splits


def test_dabs_trains_on_all_and_watches_the_test_part(tmp_path: Path) -> None:
    data = load("generated", listing(tmp_path / "images", [0, 1] * 10, 16), 32, 4, "dabs")
    labelled = data.require_labelled()
    assert labelled.train.rows.tolist() == list(range(16))
    assert labelled.validation.rows.tolist() == labelled.test.rows.tolist() == list(range(16, 20))
    (image,) = data.normalise(labelled.train.batch(np.arange(16)))
    assert torch.equal(image, torch.from_numpy(labelled.train.inputs[0][np.arange(16)]).float() / 255)


def test_bad_splits_are_named(tmp_path: Path) -> None:
    root, none = tmp_path / "images", np.arange(0)
    with pytest.raises(UserError, match="no image in the test split"):
        load("toy", listing(root, [0, 1] * 4, 8), 32, 4, "v1")
    with pytest.raises(UserError, match="no image in the validation split"):
        load("toy", listing(root, [0, 1] * 4, 6, validation=none), 32, 4, "v1")
    with pytest.raises(UserError, match="1 classes have no image in train, the first is 'c2'"):
        load("toy", listing(root, [0, 1, 0, 1, 0, 1, 2, 2], 6), 32, 4, "v1")
    with pytest.raises(UserError, match="needs two classes"):
        load("toy", listing(root, [0] * 8, 6), 32, 4, "v1")
    with pytest.raises(UserError, match="train, validation and test share images"):
        load("toy", listing(root, [0, 1] * 4, 6, test=np.arange(5, 8)), 32, 4, "v1")


def test_four_fifths_takes_each_class_apart() -> None:
    label = np.array([1, 0, 1, 1, 0, 1, 1, 2, 2])
    first, second = four_fifths(label)
    assert sorted([*first, *second]) == list(range(9))
    assert np.bincount(label[first]).tolist() == [1, 4, 1]  # int(.8 n) of 2, 5, 2


def test_walk_sorts_and_leaves_out_other_files(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/10.jpg", "a.png", "b/.hidden.png", ".trash/c.png", "notes.txt", "b/Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "c").symlink_to(tmp_path / "b")
    assert walk(tmp_path, IMAGE_SUFFIXES) == ["a.png", "b/10.jpg", "b/2.JPG", "c/10.jpg", "c/2.JPG"]


def test_runs_below_a_folder_are_not_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = folders(tmp_path / "photos", {"cat": 5, "dog": 5})
    run = root / "runs" / "photos-dmix-s0"
    (run / "transfer").mkdir(parents=True)
    for name in ("run.json", "config.yaml", "report.png", "transfer/photos.predictions.parquet"):
        (run / name).touch()
    (root / "runs" / "notes.txt").touch()
    monkeypatch.chdir(root)
    assert not is_packed(Path(), "image")
    with caplog.at_level("INFO", logger="dabsmix"):
        data = load_own(Path(), label="folder")
    assert "reading photos: starts" in caplog.messages
    assert data.require_labelled().task.classes == ("cat", "dog")
    assert data.summary[0] == "10 images:"
    assert "  other files, which are not read: .txt 1" in data.summary
    assert walk(run, IMAGE_SUFFIXES) == ["report.png"]  # as it is named itself


# --- a user's own images


def rows(data: Data) -> tuple[int, ...]:
    labelled = data.require_labelled()
    return len(data.pretrain), len(labelled.train), len(labelled.validation), len(labelled.test)


def test_images_without_a_label_are_for_pretraining_alone(tmp_path: Path) -> None:
    data = load_own(folders(tmp_path / "photos", {"cat": 6, "dog": 4}), size=16, patch=8)
    assert data.specs == (Grid(3, (16, 16), (8, 8)),)
    assert len(data.pretrain) == 10
    assert data.labelled is None
    (image,) = data.normalise(data.pretrain.batch(np.arange(10)))
    assert image.mean(dim=(0, 2, 3)).abs().max() < 1e-4


def test_class_folders_are_labels(tmp_path: Path) -> None:
    data = load_own(folders(tmp_path / "photos", {"cat": 30, "dog": 20}), label="folder")
    labelled = data.require_labelled()
    assert labelled.task == Task("classes", "accuracy", ("cat", "dog"))
    assert rows(data) == (36, 36, 4, 10)
    for split in labelled.splits.values():
        assert split
        assert split.label is not None
        assert (split.label == (split.rows >= 30)).all()


def test_a_csv_gives_labels_and_groups(tmp_path: Path) -> None:
    root = folders(tmp_path / "photos", {"all": 40})
    lines = [f"all/{number:02d}.png,{'cat' if number % 2 else 'dog'},place{number // 4}" for number in range(40)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,kind,place", *reversed(lines)]))
    data = load_own(root, label="kind", labels=str(tmp_path / "labels.csv"), group="place")
    parts = data.require_labelled().splits.values()
    for split in parts:
        assert split.label is not None
        assert (split.label == (split.rows % 2 == 0)).all()  # cat 0, dog 1
    groups = [set((split.rows // 4).tolist()) for split in parts]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 10, "a place in two splits"
    ungrouped = load_own(root, label="kind", labels=str(tmp_path / "labels.csv"))
    assert ungrouped.fingerprint == data.fingerprint
    (tmp_path / "labels.csv").write_text("\n".join(["file,kind,place", *lines]).replace("place1,", "place2,"))
    assert load_own(root, label="kind", labels=str(tmp_path / "labels.csv")).fingerprint != data.fingerprint


GOOD = "file,kind,place\n" + "".join(f"all/{n:02d}.png,{'ab'[n % 2]},p{n % 5}\n" for n in range(20))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (GOOD.replace("all/03.png", "all/99.png"), {}, r"row 5: no file 'all/99\.png'"),
        (GOOD.replace("all/03.png", "all/02.png"), {}, r"row 5: 'all/02\.png' has an earlier row"),
        (GOOD.replace("all/03.png,b,p3", "all/03.png,b,"), {"group": "place"}, "row 5: place is empty"),
        (GOOD.replace("all/03.png,b,p3", "all/03.png,b"), {}, "row 5: 2 cells where the table has 3 columns"),
        (GOOD.replace("all/03.png,b,p3", "all/03.png,b,p3,x"), {}, "row 5: 4 cells where the table has 3 columns"),
        (GOOD.replace(",b,", ",a,"), {}, "needs two classes"),
        (GOOD.replace("kind", "sort", 1), {}, "no column 'kind' among file, sort, place"),
        (GOOD.replace("file", "path", 1), {}, "no column 'file', of the files' paths below the data folder, among"),
        (GOOD.replace("all/00.png", "all\\\\00.png", 1), {}, r"row 2: no file .* \(did you mean 'all/00\.png'\?\)"),
        (GOOD, {"group": "town"}, "no column 'town'"),
        (
            GOOD,
            {"label": "file"},
            r"all 20 labels of images differ \('all/00.png', .* of tables only",
        ),
        (GOOD.replace("00.png,a,p0", "00.png,a,", 1), {"group": "place"}, "row 2: place is empty; fill it in"),
        (GOOD, {"label": None}, "name its column of classes with --label"),
        (GOOD, {"size": 30}, "size 30 is not a multiple of patch 4"),
        (GOOD, {"size": 0}, "size 0"),
        (GOOD, {"labels": ""}, "files have no column 'kind'"),
        (
            GOOD,
            {"labels": "nowhere.csv"},
            r"photos/nowhere\.csv: no such file; the option `labels` is relative to --data",
        ),
        (GOOD.encode().replace(b"kind", b"k\xffnd", 1), {}, r"not encoded as utf-8; convert the file"),
    ],
)
def test_mistakes_in_labels_are_one_line(
    content: str | bytes, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    root = folders(tmp_path / "photos", {"all": 20})
    table = tmp_path / "labels.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        load_own(root, **{"label": "kind", "labels": str(table), **options})
    assert "\n" not in str(error.value)


def test_a_row_without_class_and_group_is_that_of_an_image_without_a_label(tmp_path: Path) -> None:
    root = folders(tmp_path, {"all": 20})
    (root / "labels.csv").write_text(GOOD.replace("00.png,a,p0", "00.png,,", 1))
    data = load_own(root, label="kind", labels="labels.csv", group="place")
    assert any("1 of 20 images has no label: pretraining sees 1 of them" in note for note in data.notes)


def test_damaged_images_are_named_or_listed_and_unlabelled_ones_pretrained_on(tmp_path: Path) -> None:
    root = folders(tmp_path / "photos", {"cat": 20, "dog": 20})
    (root / "cat/03.png").write_bytes((root / "cat/03.png").read_bytes()[:-300])
    with pytest.raises(UserError, match=r"cat/03\.png: damaged image"):
        load_own(root, label="folder")
    noise(root / "stray.png", 9)
    data = load_own(root, label="folder", on_bad="skip")
    assert sum(rows(data)[1:]) == 39
    (note,) = [note for note in data.notes if "skipped" in note]
    assert note.startswith("1 of 41 images was skipped")
    assert "cat/03.png" in note
    assert any(note.startswith("1 of 40 images has no label: pretraining sees 1 of them") for note in data.notes)
    used = np.concatenate([split.rows for split in data.require_labelled().splits.values()])
    assert 3 not in used, "the damaged image"
    assert 40 not in used, "the stray image"
    assert 40 in data.pretrain.rows
    assert data.pretrain.label is None
    assert (data.pretrain.inputs[0][data.pretrain.rows].sum(axis=(1, 2, 3)) > 0).all()
    assert len(load_own(root, on_bad="skip").pretrain) == 40


def test_a_set_without_intact_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no file below it ends in"):
        load_own(tmp_path / "empty")
    (tmp_path / "empty/a.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="none of the 1 images can be used"):
        load_own(tmp_path / "empty", on_bad="skip")


def test_further_images_are_read_like_training_images(tmp_path: Path) -> None:
    root = folders(tmp_path / "photos", {"cat": 30, "dog": 20})
    data = load_own(root, label="folder", size=16, patch=4)
    state = json.loads(json.dumps(data.state))
    further, keys = load_further(root / "dog", state)
    assert keys == [f"{number:02d}.png" for number in range(20)]
    assert further.specs == data.specs
    assert further.labelled is None
    (expected,) = data.normalise((torch.from_numpy(data.pretrain.inputs[0][np.arange(30, 50)]),))
    (images,) = further.normalise(further.pretrain.batch(np.arange(20)))
    assert torch.equal(images, expected)
    one, (key,) = load_further(root / "dog/07.png", state)
    assert key == "07.png"
    assert torch.equal(one.normalise(one.pretrain.batch(np.arange(1)))[0][0], expected[7])
    noise(root / "dog/05.png", 3, (1, 1))
    (root / "dog/05.png").write_bytes(b"gone")
    with pytest.raises(UserError, match=r"dog/05\.png"):
        load_further(root / "dog", state)


def test_nothing_is_written_beside_the_images(tmp_path: Path) -> None:
    root = folders(tmp_path / "photos", {"cat": 5, "dog": 5})
    before = sorted(path for path, _, _ in os.walk(root)), walk(root, IMAGE_SUFFIXES)
    load_own(root)
    assert (sorted(path for path, _, _ in os.walk(root)), walk(root, IMAGE_SUFFIXES)) == before
