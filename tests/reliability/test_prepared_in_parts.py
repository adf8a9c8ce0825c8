"""A large set is prepared in parts: by several processes at once, some of them killed, it is what one process makes."""

import hashlib
import logging
import multiprocessing
import os
import signal
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from peak import MEASURED, Peak
from PIL import Image

from dabsmix.data import cache
from dabsmix.data.batches import Batches
from dabsmix.data.cache import Parts, stored_rows
from dabsmix.data.domain import Data, Split
from dabsmix.modalities import image, spectrogram

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["dabsmix.modalities.image", "torch"])

IMAGES, SIDE, ROWS = 26, 32, 4  # in parts of 4 images: six whole ones, and 2 images
NUM_PARTS = 7


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "one"))
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def load(photos: Path) -> Data:
    return image.load_own(photos, label="folder", size=SIDE, patch=4)


def pixels(data: Data) -> np.ndarray:
    return data.pretrain.inputs[0][np.arange(IMAGES)]


def in_parts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cache, "BLOCK", ROWS)
    patch.setattr(image, "BLOCK", ROWS)
    patch.setattr(cache, "PART", ROWS * 3 * SIDE * SIDE)


def counted(patch: pytest.MonkeyPatch, log: Path, die_at: int | None = None, seconds: float = 0.0) -> None:
    """Append the name of each image that is decoded to a file; be killed at the ``die_at``-th."""
    opened, decoded = image.opened, Counter[str]()

    def logged(path: Path) -> Image.Image:
        with log.open("a") as stream:
            stream.write(f"{path.name}\n")
        decoded["images"] += 1
        if decoded["images"] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(seconds)
        return opened(path)

    patch.setattr(image, "opened", logged)


def hashes_counted(patch: pytest.MonkeyPatch, log: Path) -> None:
    """Append the name of each image file that is hashed to a file."""
    file_digest = hashlib.file_digest

    def logged(stream: Any, kind: str) -> Any:
        if stream.name.endswith(".png"):
            with log.open("a") as names:
                names.write(f"{Path(stream.name).name}\n")
        return file_digest(stream, kind)

    patch.setattr(hashlib, "file_digest", logged)


def prepare(photos: Path, folder: Path, log: Path, die_at: int | None) -> None:
    """What one of the processes does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DABSMIX_CACHE", str(folder))
        in_parts(patch)
        counted(patch, log, die_at, seconds=0.02)
        hashes_counted(patch, log.with_name("hashed"))
        patch.setattr(os, "cpu_count", lambda: 1)
        load(photos)


def start(photos: Path, folder: Path, log: Path, die_at: int | None = None) -> BaseProcess:
    process = context.Process(target=prepare, args=(photos, folder, log, die_at))
    process.start()
    return process


def same(one: Data, other: Data) -> None:
    assert np.array_equal(pixels(one), pixels(other))
    assert (one.fingerprint, one.state) == (other.fingerprint, other.state)  # the mean and the deviation too
    assert np.array_equal(one.pretrain.rows, other.pretrain.rows)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_divide_the_work(
    photos: Path, tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(photos)
    log = tmp_path / "decoded"
    started = [start(photos, tmp_path / "several", log) for _ in range(processes)]
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0] * processes
    for file in (log, log.with_name("hashed")):
        counts = Counter(file.read_text().split())
        assert len(counts) == IMAGES
        assert set(counts.values()) == {1}, f"an image was {file.name} twice"

    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "several"))
    in_parts(monkeypatch)
    counted(monkeypatch, log)
    data = load(photos)
    assert len(log.read_text().split()) == IMAGES
    assert isinstance(data.pretrain.inputs[0], Parts)
    assert len(data.pretrain.inputs[0]) == IMAGES
    same(data, expected)


def test_a_killed_process_loses_its_part_only(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load(photos)
    log = tmp_path / "log"
    alone = start(photos, tmp_path / "several", log, die_at=2 * ROWS + 2)  # in its third part
    alone.join(60)
    assert alone.exitcode == -signal.SIGKILL
    started = [start(photos, tmp_path / "several", log, die_at) for die_at in (ROWS // 2, None)]
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [-signal.SIGKILL, 0]
    decoded = Counter(log.read_text().split())
    assert len(decoded) == IMAGES
    assert sum(decoded.values()) == IMAGES + 2 + ROWS // 2, "more was decoded again than the killed parts"

    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "several"))
    in_parts(monkeypatch)
    same(load(photos), expected)


def test_a_damaged_part_is_prepared_again_by_itself(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    in_parts(monkeypatch)
    expected = load(photos)
    parts = sorted((tmp_path / "one" / "own_images").glob("*/images.npy"))
    assert len(parts) == NUM_PARTS
    before = pixels(expected)
    content = bytearray(parts[3].read_bytes())
    content[-5] ^= 4
    parts[3].write_bytes(content)
    os.utime(parts[3], ns=(1, 1))
    counted(monkeypatch, tmp_path / "log")
    with caplog.at_level(logging.WARNING):
        data = load(photos)
    assert f"{parts[3].parent} is damaged (images.npy)" in caplog.text
    assert len((tmp_path / "log").read_text().split()) in (ROWS, IMAGES % ROWS)
    assert np.array_equal(pixels(data), before)


def test_bad_images_keep_their_numbers(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "b" / "17.png").write_bytes(b"no image")
    undivided = image.load_own(photos, on_bad="skip", size=SIDE, patch=4)
    in_parts(monkeypatch)
    monkeypatch.setenv("DABSMIX_CACHE", os.environ["DABSMIX_CACHE"] + "-in-parts")
    data = image.load_own(photos, on_bad="skip", size=SIDE, patch=4)
    assert len(data.pretrain) == IMAGES - 1
    same(data, undivided)


def test_sounds_in_parts_are_those_of_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "one"))
    rng = np.random.default_rng(0)
    (tmp_path / "sounds").mkdir()
    for number in range(70):  # every third of them longer, every fifth of another rate
        samples = rng.uniform(-0.5, 0.5, 1200 if number % 3 else 900).astype(np.float32)
        soundfile.write(tmp_path / "sounds" / f"{number:02}.wav", samples, 8000 if number % 5 else 4000)
    (tmp_path / "sounds" / "40.wav").write_bytes(b"no sound")

    def load() -> Data:
        return spectrogram.load_own(tmp_path / "sounds", on_bad="skip", rate=8000, seconds=0.128, mels=8, patch=4)

    undivided = load()
    monkeypatch.setattr(cache, "BLOCK", spectrogram.BATCH)
    monkeypatch.setattr(cache, "PART", 1)
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "parts"))
    data = load()
    assert isinstance(data.pretrain.inputs[0], Parts)
    rows = np.arange(70)
    assert np.array_equal(data.pretrain.inputs[0][rows], undivided.pretrain.inputs[0][rows])
    assert (data.state, data.notes) == (undivided.state, undivided.notes)


def test_a_set_prepared_in_one_folder_stays(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(photos)
    in_parts(monkeypatch)
    counted(monkeypatch, tmp_path / "log")
    assert isinstance(load(photos).pretrain.inputs[0], np.ndarray)
    assert not (tmp_path / "log").exists()


def test_rows_of_parts_are_those_of_the_whole() -> None:
    array = np.arange(11 * 6).reshape(11, 2, 3)
    parts = Parts([array[:4], array[4:8], array[8:]])
    rows = np.array([10, 0, 7, 7, 3, 8])
    assert np.array_equal(parts[rows], array[rows])
    assert parts[rows[:0]].shape == (0, 2, 3)
    assert len(parts) == 11
    with pytest.raises(IndexError):
        parts[np.array([11])]


@MEASURED
def test_an_epoch_of_parts_takes_the_memory_of_a_few_batches(tmp_path: Path) -> None:
    num_parts, part, width = 8, 512, 4096
    for number in range(num_parts):
        (tmp_path / str(number)).mkdir()
        rows = np.arange(part, dtype=np.float32)[:, None] + number * part
        np.save(tmp_path / str(number) / "x.npy", np.broadcast_to(rows, (part, width)))
    split = Split((stored_rows([tmp_path / str(number) for number in range(num_parts)], "x.npy"),), np.arange(4096))
    batches, seen = Batches(split, 16, seed=0), np.zeros(num_parts * part, dtype=bool)
    for raw in batches.iterate(0, 9, torch.device("cpu")):  # what threads allocate once
        assert len(raw.ids) == 16
    with Peak() as peak:
        for raw in batches.iterate(0, batches.steps_per_epoch, torch.device("cpu")):
            seen[raw.inputs[0][:, -1].long().numpy()] = True
    assert seen.all()
    size = num_parts * part * width * 4
    assert peak.growth < size / 8, f"{peak.growth / 2**20:.1f} MiB for {size / 2**20:.0f} MiB of rows"
