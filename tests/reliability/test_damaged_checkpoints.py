"""Damage to what a run resumes from is named, and never becomes another encoder."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dabsmix.config import PretrainConfig
from dabsmix.data.domain import Data, Labelled, Split, Task
from dabsmix.errors import UserError
from dabsmix.run import Run
from dabsmix.source import Source
from dabsmix.spec import Table
from dabsmix.training import accelerate
from dabsmix.verbs.pretrain import pretrain

CONFIG = PretrainConfig(
    Source("digits"), algo="emix", encoder="tiny", steps=12, batch_size=16, evaluate_every=12, checkpoint_every=3
)


class Killed(BaseException):
    """As abrupt as a test in one process can be."""


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes of short rows: the cheapest data there are."""
    store = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    split = Split((store,), np.arange(64), np.arange(64) % 2)
    labelled = Labelled(Task("classes", "accuracy", ("a", "b")), split, split, split)
    found = Data((Table(4),), split, labelled, "0" * 64)
    monkeypatch.setattr("dabsmix.verbs.pretrain.load", lambda source: found)


def go(out: Path, said: list[str] | None = None, stop_after: int | None = None, **changes: Any) -> Run:
    def observe(step: int) -> None:
        if step == stop_after:
            raise Killed

    say = (lambda _: None) if said is None else said.append
    return pretrain(replace(CONFIG, out=out, **changes), accelerator=accelerate(), say=say, observe=observe)


def interrupted(out: Path, **changes: Any) -> Run:
    """A run with checkpoints after 3 and 6 steps, killed after 8."""
    with pytest.raises(Killed):
        go(out, stop_after=8, **changes)
    (run,) = [Run(path) for path in out.iterdir()]
    return run


def newest(run: Run) -> Path:
    return max((run.path / "checkpoints").glob("*.pt"))


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def encoder(run: Run) -> bytes:
    return (run.path / "encoder.safetensors").read_bytes()


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "zeroed", "another step's", "no checkpoint"])
@pytest.mark.parametrize("digest", [True, False])  # runs from before there were digests have none
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path: Path, damage: str, digest: bool) -> None:
    whole = go(tmp_path / "whole")
    run = interrupted(tmp_path / "cut")
    path = newest(run)
    content = path.read_bytes()
    if not digest:
        path.with_name(f"{path.name}.sha256").unlink()
    match damage:
        case "flipped":
            flip(path, 8 * content.index(b"/data/") + 8 * 4000)
        case "truncated":
            path.write_bytes(content[:-1000])
        case "empty":
            path.write_bytes(b"")
        case "zeroed":
            path.write_bytes(bytes(len(content)))
        case "another step's":
            shutil.copy(path.with_name("000000003.pt"), path)
        case "no checkpoint":
            torch.save([1, 2], path)
    said: list[str] = []
    resumed = go(tmp_path / "cut", said, resume=True)
    assert [line for line in said if line.startswith(f"{path} is damaged")], said
    assert encoder(resumed) == encoder(whole)


def test_where_every_checkpoint_is_damaged_the_folder_is_named(tmp_path: Path) -> None:
    run = interrupted(tmp_path)
    for path in (run.path / "checkpoints").glob("*.pt"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged: delete that folder") as caught:
        go(tmp_path, resume=True)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    run = interrupted(tmp_path)
    state = run.load_checkpoint()
    assert state is not None
    changes: list[dict[str, Any]] = [{"optimizer": {}}, {"algorithm": {}}, {"probe": None}, {"probe": {"weight": 1}}]
    for change in changes:
        run.save_checkpoint(6, state | change)
        with pytest.raises(UserError, match="does not fit") as caught:
            go(tmp_path, resume=True)
        assert "\n" not in str(caught.value)
    run.save_checkpoint(6, {"step": 6})
    with pytest.raises(UserError, match="does not fit"):
        go(tmp_path, resume=True)


@pytest.mark.slow
def test_no_flipped_bit_passes(tmp_path: Path) -> None:
    whole = go(tmp_path / "whole")
    rng = np.random.default_rng(0)
    for number in range(25):
        out = tmp_path / f"cut{number}"
        run = interrupted(out)
        path = newest(run)
        if number % 2:
            path.with_name(f"{path.name}.sha256").unlink()
        flip(path, int(rng.integers(8 * path.stat().st_size)))
        assert encoder(go(out, resume=True)) == encoder(whole), number


# --- what lies beside


def test_a_damaged_line_of_metrics_is_named(tmp_path: Path) -> None:
    run = interrupted(tmp_path)
    path = run.path / "metrics.jsonl"
    good = path.read_bytes()
    for bad in (b"{\n", b"\xff\n", b"[]\n", b'{"loss": 1}\n', b'{"step": "x"}\n', b"[" * 100_000 + b"\n"):
        path.write_bytes(bad + good)
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 1 is damaged") as caught:
            go(tmp_path, resume=True)
        assert "\n" not in str(caught.value)
    path.write_bytes(good + b'{"step": 7, "lo')  # torn: a process was killed here
    assert go(tmp_path, resume=True).finished


def test_a_damaged_neighbour_blocks_nothing(tmp_path: Path) -> None:
    interrupted(tmp_path)
    for name, content in (("a", b"{"), ("b", b"[]"), ("c", b"\xff")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_bytes(content)
    assert go(tmp_path, resume=True).finished


def test_a_run_that_another_process_trains_is_refused(tmp_path: Path) -> None:
    run = interrupted(tmp_path)
    before = (run.path / "metrics.jsonl").read_bytes()
    with run.lock(), pytest.raises(UserError, match="another process is working on") as caught:
        go(tmp_path, resume=True)
    assert str(run.path) in str(caught.value)
    assert (run.path / "metrics.jsonl").read_bytes() == before
    assert go(tmp_path, resume=True).finished


def test_what_killed_writes_left_is_swept(tmp_path: Path) -> None:
    run = interrupted(tmp_path)
    left = [run.path / ".run.json.ab_c1234", run.path / "checkpoints" / ".000000009.pt.x9_bcd12"]
    kept = [run.path / ".notes", run.path / "a.b.abcd1234"]
    for path in left + kept:
        path.write_bytes(b"half")
    go(tmp_path, resume=True)
    assert [path.exists() for path in left + kept] == [False, False, True, True]


@pytest.mark.parametrize("exponent", [3, 8, 18, 30, 38])
def test_a_rate_that_is_far_too_high_is_one_line_about_the_loss(tmp_path: Path, exponent: int) -> None:
    said = ""
    try:
        go(tmp_path, lr=10.0**exponent, schedule="constant")
    except UserError as error:
        said = str(error)
    assert exponent <= 8 or said  # a low one may end with numbers, if with no use
    assert not said or ("the loss is" in said and "lower --lr" in said)
