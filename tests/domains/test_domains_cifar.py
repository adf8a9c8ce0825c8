"""CIFAR's pickles: read as numpy reads them, without executing anything in them."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import upstream_image as upstream

from dabsmix.domains.cifar10 import read_pickle
from dabsmix.errors import UserError
from dabsmix.registry import domain


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "cache"))


def real() -> Path:
    folder = Path(os.environ.get("DABSMIX_DATA", "nowhere")) / "cifar-10-batches-py"
    if not folder.exists():
        pytest.skip("no real CIFAR-10: $DABSMIX_DATA does not have it")
    return folder


def test_cifar10_equals_numpys_unpickling() -> None:
    folder = real()
    with (folder / "data_batch_2").open("rb") as file:
        expected = pickle.load(file, encoding="bytes")
    content = read_pickle(folder / "data_batch_2")
    assert np.array_equal(content["data"], expected[b"data"])
    assert content["labels"] == expected[b"labels"]
    data = domain("cifar10").load(folder, "dabs")
    labelled = data.require_labelled()
    assert labelled.task.classes[3] == "cat"
    assert labelled.train.label is not None
    assert (len(labelled.train), len(labelled.test)) == (5000, 1000)
    second = labelled.train.rows[1000:2000]
    assert np.array_equal(labelled.train.inputs[0][second], expected[b"data"].reshape(-1, 3, 32, 32))
    assert labelled.train.label[1000:2000].tolist() == expected[b"labels"]


def test_cifar10_keeps_a_tenth_of_each_class_for_validation() -> None:
    data = domain("cifar10").load(real(), "v1")
    labelled = data.require_labelled()
    assert labelled.train.label is not None
    assert labelled.validation.label is not None
    counts = np.bincount(labelled.validation.label)
    assert np.abs(counts - (counts + np.bincount(labelled.train.label)) / 10).max() <= 0.5
    assert not set(labelled.train.rows.tolist()) & set(labelled.validation.rows.tolist())


def test_the_generated_pickle_is_one_that_numpy_reads(tmp_path: Path) -> None:
    folder = upstream.write_cifar100(tmp_path)
    with (folder / "train").open("rb") as file:
        entry = pickle.load(file, encoding="latin1")
    assert entry["data"].shape == (20, 3072)
    assert entry["fine_labels"][:6] == [0, 0, 0, 0, 0, 1]


class Hostile:
    """A pickle that runs code when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


def test_a_hostile_pickle_does_not_run(tmp_path: Path) -> None:
    folder, mark = upstream.write_cifar100(tmp_path), tmp_path / "ran"
    (folder / "train").write_bytes(pickle.dumps({"data": Hostile(mark)}, protocol=2))
    with pytest.raises(UserError, match=r"cifar-100-python/train: no pickle of CIFAR's .*mkdir"):
        domain("cifar100").load(folder, "v1")
    assert not mark.exists()


def test_a_pickled_array_of_objects_is_refused(tmp_path: Path) -> None:
    """numpy would take the bytes of such an array for pointers."""
    folder = upstream.write_cifar100(tmp_path)
    forged = (folder / "train").read_bytes().replace(b"T\x02\x00\x00\x00u1", b"T\x02\x00\x00\x00O8")
    (folder / "train").write_bytes(forged)
    with pytest.raises(UserError, match="only bytes are expected"):
        domain("cifar100").load(folder, "v1")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0]}, "3072 bytes"),
        ({"data": np.zeros((1, 3000), np.uint8), "fine_labels": [0]}, "3072 bytes"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [0]}, "no 'fine_labels'"),
        ({"data": np.zeros((1, 3072), np.uint8), "fine_labels": ["0"]}, "no 'fine_labels'"),
        ({"data": np.zeros((1, 3072), np.uint8), "fine_labels": [4]}, "labels 4 to 4 for 4 classes"),
        ({"data": np.zeros((1, 3072), np.uint8), "fine_labels": [-1]}, "labels -1 to -1 for 4 classes"),
    ],
)
def test_a_damaged_batch_is_named(entry: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = upstream.write_cifar100(tmp_path)
    (folder / "test").write_bytes(upstream.python2_pickle(entry))
    with pytest.raises(UserError, match=rf"cifar-100-python/test.*{message}"):
        domain("cifar100").load(folder, "v1")


def test_a_cut_pickle_is_named(tmp_path: Path) -> None:
    folder = upstream.write_cifar100(tmp_path)
    (folder / "test").write_bytes((folder / "test").read_bytes()[:-100])
    with pytest.raises(UserError, match="cifar-100-python/test: no pickle of CIFAR's"):
        domain("cifar100").load(folder, "v1")
