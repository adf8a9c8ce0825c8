"""Image data sets against upstream-format files: real ones where $DABSMIX_DATA has them, generated ones otherwise."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import upstream_image as upstream
from numpy.typing import NDArray
from PIL import Image

from dabsmix.data.domain import Data, Split
from dabsmix.errors import UserError
from dabsmix.registry import domain
from dabsmix.spec import Grid

Writer = Callable[[Path], Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "cache"))


def real(folder: str) -> Path:
    root = os.environ.get("DABSMIX_DATA")
    if not root or not (Path(root) / folder).exists():
        pytest.skip(f"no real {folder}: $DABSMIX_DATA does not have it")
    return Path(root) / folder


def stored(split: Split) -> NDArray[Any]:
    return np.asarray(split.inputs[0][split.rows])


def labels(split: Split) -> NDArray[Any]:
    assert split.label is not None
    return split.label


def groups(split: Split) -> set[int]:
    assert split.group is not None
    return set(split.group.tolist())


def sizes(data: Data) -> tuple[int, ...]:
    labelled = data.require_labelled()
    return len(data.pretrain), len(labelled.train), len(labelled.validation), len(labelled.test)


# --- every set: pixels and labels belong together, in both sizes and under both protocols

SETS: dict[str, tuple[Writer, tuple[int, ...], tuple[int, ...]]] = {
    # pretrain, train, validation and test under v1, then under dabs
    "cifar100": (upstream.write_cifar100, (16, 16, 4, 8), (20, 20, 8, 8)),
    "imagenet": (upstream.write_imagenet, (15, 15, 3, 3), (18, 18, 3, 3)),
    "tiny_imagenet": (upstream.write_tiny_imagenet, (8, 8, 2, 2), (10, 10, 2, 2)),
    "cu_birds": (upstream.write_cu_birds, (6, 6, 2, 4), (8, 8, 4, 4)),
    "vgg_flower": (upstream.write_vgg_flower, (9, 9, 6, 15), (24, 24, 6, 6)),
    "aircraft": (upstream.write_aircraft, (9, 9, 6, 6), (15, 15, 6, 6)),
    "caltech101": (upstream.write_caltech101, (54, 54, 6, 8), (60, 60, 8, 8)),
    "svhn": (upstream.write_svhn, (20, 20, 10, 10), (30, 30, 10, 10)),
    "eurosat": (upstream.write_eurosat, (12, 12, 4, 4), (17, 2, 0, 0)),
}


@pytest.mark.parametrize("protocol", ["v1", "dabs"])
@pytest.mark.parametrize("name", SETS)
def test_labels_belong_to_their_pixels(name: str, protocol: str, tmp_path: Path) -> None:
    if name == "eurosat" and protocol == "dabs":
        pytest.skip("a tenth of a tenth of 20 images is none: the split is tested by itself")
    write, v1, dabs = SETS[name]
    data = domain(name).load(write(tmp_path), protocol)
    assert sizes(data) == (v1 if protocol == "v1" else dabs)
    labelled = data.require_labelled()
    for split in labelled.splits.values():
        red = stored(split)[:, 0]
        expected = 20 + 10 * labels(split)
        assert np.abs(red - expected[:, None, None].astype(int)).max() <= 3, "pixels of another class, or cut wrongly"
    assert sorted(set(labels(labelled.train).tolist())) == list(range(len(labelled.task.classes)))
    (image,) = data.normalise(data.pretrain.batch(np.arange(len(data.pretrain))))
    if protocol == "dabs":
        assert 0 <= image.min() <= image.max() <= 1
    else:
        assert image.mean(dim=(0, 2, 3)).abs().max() < 1e-4
        assert abs(float(image[:, 0].std(correction=0)) - 1) < 1e-4


@pytest.mark.parametrize("name", ["cu_birds", "svhn", "eurosat"])
def test_the_large_size_is_224_in_patches_of_16(name: str, tmp_path: Path) -> None:
    data = domain(f"{name}_224").load(SETS[name][0](tmp_path), "v1")
    assert data.specs == (Grid(3, (224, 224), (16, 16)),)
    labelled = data.require_labelled()
    assert stored(labelled.test).shape[1:] == (3, 224, 224)
    assert np.abs(stored(labelled.test)[:, 0].mean(axis=(1, 2)) - 20 - 10 * labels(labelled.test)).max() <= 1


@pytest.mark.parametrize("name", SETS)
def test_no_split_depends_on_the_order_of_the_file_system(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = SETS[name][0](tmp_path)
    first = domain(name).load(folder, "v1")
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *a, **k: [(*entry[:2], entry[2][::-1]) for entry in walk(*a, **k)][::-1])
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "other"))
    second = domain(name).load(folder, "v1")
    assert first.fingerprint == second.fingerprint
    for one, other in (
        (first.require_labelled().train, second.require_labelled().train),
        (first.require_labelled().validation, second.require_labelled().validation),
        (first.require_labelled().test, second.require_labelled().test),
    ):
        assert np.array_equal(stored(one), stored(other))
        assert np.array_equal(labels(one), labels(other))


# --- textures and traffic signs, real


def test_dtd_reads_the_lists() -> None:
    folder = real("dtd")
    data = domain("dtd").load(folder, "v1")
    assert sizes(data) == (50, 50, 50, 50)
    together = domain("dtd").load(folder, "dabs")
    assert sizes(together) == (100, 100, 50, 50)
    labelled = data.require_labelled()
    assert labelled.test.label is not None
    first = (folder / "labels/test1.txt").read_text().splitlines()[0]
    with Image.open(folder / "images" / first) as image:
        expected = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(stored(labelled.test)[0], expected)
    assert labelled.task.classes[labelled.test.label[0]] == first.split("/")[0]


def test_a_list_that_names_a_missing_image_is_an_error_with_its_line(tmp_path: Path) -> None:
    for kind in ("banded", "blotchy"):
        for number in range(3):
            upstream.picture(tmp_path / "dtd/images" / kind / f"{kind}_{number}.jpg", 0)
    for number, part in enumerate(("train", "val", "test")):
        lines = [f"banded/banded_{number}.jpg", f"blotchy/blotchy_{number}.jpg"]
        upstream.text(tmp_path / "dtd/labels" / f"{part}1.txt", lines)
    assert sizes(domain("dtd").load(tmp_path / "dtd", "v1")) == (2, 2, 2, 2)
    upstream.text(tmp_path / "dtd/labels/val1.txt", ["banded/banded_1.jpg", "banded/banded_7.jpg"])
    with pytest.raises(UserError, match=r"val1\.txt, line 2: no image 'banded/banded_7\.jpg'"):
        domain("dtd").load(tmp_path / "dtd", "v1")


def test_traffic_signs_of_validation_are_not_those_of_train() -> None:
    data = domain("traffic_sign").load(real("GTSRB"), "v1")
    assert sizes(data)[1] + sizes(data)[2] == 1032
    assert sizes(data)[3] == 430
    labelled = data.require_labelled()
    assert not groups(labelled.train) & groups(labelled.validation)
    assert not (groups(labelled.train) | groups(labelled.validation)) & groups(labelled.test)
    assert len(groups(labelled.train) | groups(labelled.validation)) == 43 * 4  # the tracks in these files
    assert labels(labelled.test)[:2].tolist() == [16, 1]  # the first rows of GT-final_test.csv


def test_traffic_signs_under_dabs_are_four_fifths_of_each_class() -> None:
    data = domain("traffic_sign").load(real("GTSRB"), "dabs")
    labelled = data.require_labelled()
    assert np.bincount(labels(labelled.train)).tolist() == [19] * 43  # int(.8 * 24)
    assert np.bincount(labels(labelled.test)).tolist() == [5] * 43
    assert any("both have frames" in note for note in data.notes)


def test_a_traffic_sign_of_an_unknown_class_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "GTSRB"
    for number in range(2):
        for track in range(5):
            upstream.picture(folder / f"Final_Training/Images/{number:05d}/{track:05d}_00000.ppm", number)
    upstream.picture(folder / "Final_Test/Images/00000.ppm", 1)
    upstream.text(folder / "GT-final_test.csv", ["Filename;Width;ClassId", "00000.ppm;40;1"])
    assert labels(domain("traffic_sign").load(folder, "v1").require_labelled().test).tolist() == [1]
    upstream.text(folder / "GT-final_test.csv", ["Filename;Width;ClassId", "00000.ppm;40;7"])
    with pytest.raises(UserError, match=r"GT-final_test\.csv, row 2: class 00007"):
        domain("traffic_sign").load(folder, "v1")


# --- sets with formats of their own


def test_stl10_pretrains_on_unlabelled_images(tmp_path: Path) -> None:
    data = domain("stl10").load(upstream.write_stl10(tmp_path), "v1")
    assert sizes(data) == (3, 10, 10, 10)
    assert data.pretrain.label is None
    assert stored(data.pretrain)[:, 0, :, 20:].mean(axis=(1, 2)).tolist() == [130, 140, 150]
    labelled = data.require_labelled()
    test = stored(labelled.test)
    assert (test[:, 0, :, 17:] == 20 + 10 * labels(labelled.test)[:, None, None]).all()
    assert (test[:, :, :, :15] == 0).all(), "the left half is black: columns and rows were exchanged"


def test_vgg_flower_under_dabs_draws_as_dabs_does(tmp_path: Path) -> None:
    """The draw written out: classes in order of first occurrence, one generator for all."""
    data = domain("vgg_flower").load(upstream.write_vgg_flower(tmp_path), "dabs")
    rng, expected = np.random.RandomState(42), []
    for picked in ([0, 3, 6, 9, 12, 15, 18, 21, 24, 27], [*range(1, 30, 3)], [*range(2, 30, 3)]):
        order = np.arange(10)
        rng.shuffle(order)
        expected += [picked[place] for place in order[:8]]
    assert data.require_labelled().train.rows.tolist() == expected


def test_eurosat_under_dabs_keeps_a_tenth_from_pretraining(tmp_path: Path) -> None:
    folder = tmp_path / "EuroSAT_RGB"
    for number in range(200):
        upstream.picture(folder / f"Class{number % 2}" / f"Class{number % 2}_{number}.jpg", number % 2, (8, 8))
    data = domain("eurosat").load(folder, "dabs")
    assert sizes(data) == (162, 18, 2, 2)
    labelled = data.require_labelled()
    rows = [set(split.rows.tolist()) for split in (data.pretrain, labelled.train, labelled.test)]
    assert len(set.union(*rows)) == 162 + 18 + 2


@pytest.mark.parametrize("protocol", ["v1", "dabs"])
def test_eurosat_has_thirteen_bands_of_sixteen_bits(protocol: str, tmp_path: Path) -> None:
    folder = upstream.write_eurosat(tmp_path, multispectral=True)
    if protocol == "dabs":  # a tenth of a tenth must not be none
        for number in range(11, 101):
            for place, kind in enumerate(("AnnualCrop", "Forest")):
                upstream.write_tiff(folder / kind / f"{kind}_{number}.tif", upstream.bands(place))
    data = domain("eurosat_all").load(folder, protocol)
    assert data.specs == (Grid(13, (64, 64), (8, 8)),)
    labelled = data.require_labelled()
    for image, number in zip(stored(labelled.test), labels(labelled.test), strict=True):
        assert np.array_equal(image, upstream.bands(int(number)))
    (image,) = data.normalise(labelled.test.batch(np.arange(2)))
    if protocol == "dabs":
        assert image[0, 2, 5, 0] == pytest.approx((2005 + 7 * labels(labelled.test)[0] - 1042.28) / 385.0928, rel=1e-5)


@pytest.mark.parametrize(("planar", "order"), [(False, "<"), (True, "<"), (False, ">"), (True, ">")])
def test_a_tiff_may_be_interleaved_either_way(planar: bool, order: str, tmp_path: Path) -> None:
    from dabsmix.domains.eurosat import _bands

    upstream.write_tiff(tmp_path / "a.tif", upstream.bands(3), planar=planar, order=order)
    assert np.array_equal(_bands(tmp_path, ["a.tif"], 0, 64), upstream.bands(3))


def test_a_tiff_of_other_bands_or_cut_short_is_named(tmp_path: Path) -> None:
    folder = upstream.write_eurosat(tmp_path, multispectral=True)
    upstream.write_tiff(folder / "Forest/Forest_3.tif", upstream.bands(1)[:12])
    with pytest.raises(UserError, match=r"Forest_3\.tif: \(12, 64, 64\)"):
        domain("eurosat_all").load(folder, "v1")
    upstream.write_tiff(folder / "Forest/Forest_3.tif", upstream.bands(1))
    content = (folder / "Forest/Forest_3.tif").read_bytes()
    (folder / "Forest/Forest_3.tif").write_bytes(content[:-500])
    with pytest.raises(UserError, match=r"Forest_3\.tif: damaged TIFF"):
        domain("eurosat_all").load(folder, "v1")


def test_eurosats_missing_lists_are_reported(tmp_path: Path) -> None:
    folder = upstream.write_eurosat(tmp_path)
    (folder / "eurosat-val.txt").unlink()
    with pytest.raises(UserError, match=r"eurosat-val\.txt: no such file; fetch https.*md5 95de90f2"):
        domain("eurosat").load(folder, "v1")


def test_chexpert_counts_blank_and_uncertain_as_absent(tmp_path: Path) -> None:
    data = domain("chexpert").load(upstream.write_chexpert(tmp_path), "v1")
    labelled = data.require_labelled()
    assert labelled.task.classes == ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
    assert labels(labelled.test).tolist() == [[0, 1, 0, 0, 1]] * 2 + [[1, 0, 0, 0, 0]] * 2 + [[1, 0, 1, 1, 1]] * 2
    for split in labelled.splits.values():
        assert np.abs(stored(split)[:, 0, 5, 5] - 20.0 - 10 * labels(split).sum(axis=1)).max() <= 2
    assert not groups(labelled.train) & groups(labelled.validation)
    assert len(groups(labelled.train) | groups(labelled.validation)) == 12


def test_chexpert_names_the_row_of_an_invalid_cell(tmp_path: Path) -> None:
    folder = upstream.write_chexpert(tmp_path)
    path = folder / "valid.csv"
    path.write_text(path.read_text().replace("0.0", "maybe", 1))
    with pytest.raises(UserError, match=r"valid\.csv, row \d+: .* is 'maybe'"):
        domain("chexpert").load(folder, "v1")


def test_xray8_keeps_patients_apart_under_v1_alone(tmp_path: Path) -> None:
    folder = upstream.write_xray8(tmp_path)
    data = domain("xray8").load(folder, "v1")
    assert sizes(data)[3] == 8
    labelled = data.require_labelled()
    assert not groups(labelled.train) & groups(labelled.validation)
    assert not (groups(labelled.train) | groups(labelled.validation)) & groups(labelled.test)
    expected = {0: [0] * 8, 1: [0, 1, 1, 0, 0, 0, 0, 0], 2: [0, 0, 0, 0, 1, 0, 0, 1]}
    kinds = (stored(labelled.test)[:, 0, 0, 0] - 20) // 10
    assert labels(labelled.test).tolist() == [expected[int(kind)] for kind in kinds]
    as_dabs = domain("xray8").load(folder, "dabs")
    assert sizes(as_dabs) == (36, 36, 4, 4)
    assert any("same patients" in note for note in as_dabs.notes)
    assert any("sha256 of the 4 test names" in note for note in as_dabs.notes)


# --- missing files


@pytest.mark.parametrize("name", [*SETS, "stl10", "dtd", "traffic_sign", "chexpert", "xray8", "eurosat_all", "cifar10"])
@pytest.mark.parametrize("protocol", ["v1", "dabs"])
def test_an_empty_folder_is_one_line_that_names_it(name: str, protocol: str, tmp_path: Path) -> None:
    folder = tmp_path / domain(name).folder
    folder.mkdir()
    with pytest.raises(UserError, match=str(folder)) as error:
        domain(name).load(folder, protocol)
    assert "\n" not in str(error.value)


def test_caltechs_missing_inner_archive_is_reported(tmp_path: Path) -> None:
    (tmp_path / "caltech-101").mkdir()
    with pytest.raises(UserError, match=r"unpack 101_ObjectCategories\.tar\.gz"):
        domain("caltech101").load(tmp_path / "caltech-101", "v1")
