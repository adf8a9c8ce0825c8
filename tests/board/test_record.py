"""Reading the files of a record: the same as the libraries read, or an error that is caught."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dabsmix.board.record import UNREADABLE, Archive, config_of

ARRAYS: dict[str, Any] = {
    "linear@1": np.arange(600, dtype=np.int32).reshape(3, 200) % 7,
    "knn@5 per class": np.asfortranarray(np.random.default_rng(0).normal(size=(4, 50, 2))),
    "label": np.arange(200) % 7,
}


@pytest.fixture(params=[np.savez, np.savez_compressed])
def content(tmp_path: Path, request: pytest.FixtureRequest) -> bytes:
    request.param(tmp_path / "predictions.npz", **ARRAYS)
    return (tmp_path / "predictions.npz").read_bytes()


def test_an_archive_holds_what_was_saved(content: bytes) -> None:
    for archive in (Archive(content), Archive(content)):  # the second shares the arrays of the first
        assert list(archive) == list(ARRAYS)
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(archive[name], array, strict=True)
            assert not archive[name].flags.writeable


def test_an_archive_with_a_changed_byte_holds_the_same_or_cannot_be_read(content: bytes) -> None:
    rng, refused = random.Random(0), 0
    for _ in range(300):
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        try:
            archive = Archive(bytes(changed))
            arrays = [archive[name] for name in archive if name in ARRAYS]
        except UNREADABLE:
            refused += 1
            continue
        for name, array in zip((name for name in archive if name in ARRAYS), arrays, strict=True):
            np.testing.assert_array_equal(array, ARRAYS[name])
    assert refused > 150


@pytest.mark.parametrize(
    "text",
    [
        "domain: uci_har\nlr: 0.001\nsteps: 400\nlabel: null\ncompile: false\nrate: 1e-3\nclip: .5\nout: /a/b\n",
        "seed: 0\nseed: 1\n",
        "date: 2026-01-31\nbase: 0x10\neight: 017\nmany: 1_000\nyes_or_no: yes\nnan: .nan\n",
        "algo: dmix\nname: two words\nlist: [1, 2]\n",
        'name: "quoted"\nlong: first\n  second\n',
    ],
)
def test_a_configuration_is_read_as_yaml(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert repr(config_of(tmp_path)) == repr(yaml.safe_load(text))
