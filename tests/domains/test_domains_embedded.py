"""The data sets that come with scikit-learn."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits

from dabsmix.data.domain import Data, Split
from dabsmix.registry import domain
from dabsmix.spec import Grid, Table

NAMES = ("digits", "breast_cancer")


def splits(data: Data) -> tuple[Split, Split, Split]:
    labelled = data.require_labelled()
    return labelled.train, labelled.validation, labelled.test


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_in_one_split_and_every_class_in_each(name: str) -> None:
    data = domain(name).load(Path(), "v1")
    parts = splits(data)
    rows = np.concatenate([part.rows for part in parts])
    assert sorted(rows) == list(range(len(data.pretrain.inputs[0])))
    for part, share in zip(parts, (0.6, 0.1, 0.3), strict=True):
        assert len(part) / len(rows) == pytest.approx(share, abs=0.01)
        assert part.label is not None
        assert set(part.label) == set(range(len(data.require_labelled().task.classes)))


def test_digits_are_images_between_0_and_1() -> None:
    data = domain("digits").load(Path(), "v1")
    assert data.specs == (Grid(1, (8, 8), (2, 2)),)
    train, _, _ = splits(data)
    assert train.label is not None
    (x,) = train.batch(np.arange(5))
    for place in range(5):
        row = train.rows[place]
        assert train.label[place] == load_digits().target[row]
        np.testing.assert_array_equal(x[place, 0].numpy() * 16, load_digits().images[row])


def test_tumours_are_standardised_by_train_alone() -> None:
    data = domain("breast_cancer").load(Path(), "v1")
    assert data.specs == (Table(30),)
    train, _, test = splits(data)
    (x,) = data.normalise(train.batch(np.arange(len(train))))
    assert x.mean(0).abs().max() < 1e-4
    assert (x.std(0) - 1).abs().max() < 0.01
    (y,) = data.normalise(test.batch(np.arange(1)))
    raw = load_breast_cancer().data
    expected = (raw[test.rows[0]] - raw[train.rows].mean(0)) / raw[train.rows].std(0)
    np.testing.assert_allclose(y[0].numpy(), expected, rtol=1e-3, atol=1e-4)


def test_another_process_gets_the_same_rows() -> None:
    script = (
        "from pathlib import Path; from dabsmix.registry import domain\n"
        f"for name in {NAMES}:\n"
        "    data = domain(name).load(Path(), 'v1')\n"
        "    print(data.fingerprint, *(split.rows.tolist() for split in data.labelled.splits.values()))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    completed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    for name, line in zip(NAMES, completed.stdout.splitlines(), strict=True):
        data = domain(name).load(Path(), "v1")
        rows = " ".join(str(split.rows.tolist()) for split in splits(data))
        assert line == f"{data.fingerprint} {rows}"
