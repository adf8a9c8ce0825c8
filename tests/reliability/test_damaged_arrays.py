"""Damaged prepared arrays and stored features are computed again with a note, and change no number."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from dabsmix.cli import main
from dabsmix.data import cache
from dabsmix.data.cache import allocate, check_all, prepared
from dabsmix.scoring.frozen import _digest, _keep, _stored

VALUES = np.arange(12_000, dtype=np.float32).reshape(3000, 4)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "cache"))


def build(folder: Path) -> None:
    allocate(folder / "x.npy", np.float32, VALUES.shape)[:] = VALUES
    (folder / "names.json").write_text('["a"]')


def never(folder: Path) -> None:
    raise AssertionError("prepared again")


def damage(path: Path, how: str, place: int = 5000) -> None:
    content = bytearray(path.read_bytes())
    match how:
        case "flipped":
            content[place] ^= 4
        case "zeroed":
            content = bytearray(len(content))
        case "truncated":
            del content[-100:]
        case "empty":
            content.clear()
        case "deleted":
            path.unlink()
            return
    path.write_bytes(content)
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))  # a minute later; tests are faster than time stamps resolve


@pytest.mark.parametrize("how", ["flipped", "zeroed", "truncated", "empty", "deleted"])
def test_a_damaged_array_is_prepared_again_with_a_note(how: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = prepared("set", "key", build)
    damage(folder / "x.npy", how)
    with caplog.at_level(logging.WARNING):
        assert prepared("set", "key", build) == folder
    assert f"{folder} is damaged (x.npy)" in caplog.text
    assert np.array_equal(np.load(folder / "x.npy"), VALUES)
    assert prepared("set", "key", never) == folder


def test_a_copied_array_is_not_prepared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepared("set", "key", build)
    os.utime(folder / "x.npy", ns=(1, 1))
    assert prepared("set", "key", never) == folder
    monkeypatch.setattr(cache, "sha256", never)  # and its new time stamp is remembered
    assert prepared("set", "key", never) == folder


def test_an_unchanged_array_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepared("set", "key", build)
    monkeypatch.setattr(cache, "sha256", never)
    assert prepared("set", "key", never) == folder


@pytest.mark.parametrize("content", ["", "[]", '{"x.npy": 1}', None])
def test_arrays_prepared_without_checksums_get_them(content: str | None) -> None:
    folder = prepared("set", "key", build)
    if content is None:
        (folder / cache.SUMS).unlink()
    else:
        (folder / cache.SUMS).write_text(content)
    assert prepared("set", "key", never) == folder
    assert set(json.loads((folder / cache.SUMS).read_text())) == {"names.json", "x.npy"}


def test_audit_finds_damage_with_an_unchanged_time_stamp(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepared("set", "key", build)
    prepared("set", "other key", build)
    status = (folder / "x.npy").stat()
    damage(folder / "x.npy", "flipped")
    os.utime(folder / "x.npy", ns=(status.st_atime_ns, status.st_mtime_ns))
    monkeypatch.setattr("sys.argv", ["dabsmix", "audit", "--cache"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == f"{folder}: damaged: x.npy\n"
    assert "1 of 2 prepared folders are damaged" in err
    assert np.array_equal(np.load(prepared("set", "key", build) / "x.npy"), VALUES)
    assert list(check_all().values()) == [[], []]


@pytest.mark.slow
def test_every_flipped_bit_of_an_array_is_detected() -> None:
    folder = prepared("set", "key", build)
    rng = np.random.default_rng(0)
    for _ in range(25):
        damage(folder / "x.npy", "flipped", int(rng.integers((folder / "x.npy").stat().st_size)))
        prepared("set", "key", build)
        assert np.array_equal(np.load(folder / "x.npy"), VALUES)


# --- kept features


@pytest.fixture
def features(tmp_path: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    arrays = {"mean": torch.randn(20, 8), "cls": torch.randn(20, 8)}
    save_file(arrays, tmp_path / "f.safetensors", {"key": "k", "sha256": _digest(arrays)})
    return tmp_path / "f.safetensors"


def test_every_flipped_bit_of_stored_features_is_detected(features: Path) -> None:
    import torch

    intact, content = _stored(features, "k"), features.read_bytes()
    assert intact is not None
    assert _stored(features, "another encoder's") is None
    rng = np.random.default_rng(0)
    for _ in range(60):
        features.write_bytes(content)
        damage(features, "flipped", int(rng.integers(len(content))))
        loaded = _stored(features, "k")
        assert loaded is None or all(torch.equal(loaded[name], intact[name]) for name in intact)


def test_stored_features_are_read_in_the_order_in_which_they_were_computed(tmp_path: Path) -> None:
    """The first of equally good settings is chosen: in another order, a second transfer would choose another."""
    import torch

    computed = {name: torch.randn(5, 2) for name in ("mean", "cls", "blocks")}
    _keep(tmp_path / "f.safetensors", "k", computed)
    stored = _stored(tmp_path / "f.safetensors", "k")
    assert stored is not None
    assert list(stored) == list(computed)


@pytest.mark.parametrize("how", ["zeroed", "truncated", "empty"])
def test_damaged_features_are_computed_again_with_a_note(
    features: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(features, how)
    with caplog.at_level(logging.WARNING):
        assert _stored(features, "k") is None
    assert f"{features} is damaged" in caplog.text
