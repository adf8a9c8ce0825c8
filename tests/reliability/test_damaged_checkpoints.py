"""Damage to the files from which a run resumes is reported, and never changes the encoder."""

import shutil
from collections.abc import Iterator
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
    """Stops training as abruptly as is possible within one process."""


@pytest.fixture(scope="module", autouse=True)
def data() -> Iterator[None]:
    """Two classes of short rows: the cheapest data there are."""
    store = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    split = Split((store,), np.arange(64), np.arange(64) % 2)
    labelled = Labelled(Task("classes", "accuracy", ("a", "b")), split, split, split)
    data_set = Data((Table(4),), split, labelled, "0" * 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dabsmix.verbs.pretrain.load", lambda source: data_set)
        yield


def go(out: Path, messages: list[str] | None = None, stop_after: int | None = None, **changes: Any) -> Run:
    def observe(step: int) -> None:
        if step == stop_after:
            raise Killed

    say = (lambda _: None) if messages is None else messages.append
    return pretrain(replace(CONFIG, out=out, **changes), accelerator=accelerate(), say=say, observe=observe)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The --out of a run with checkpoints after 3 and 6 steps, killed after 8."""
    out = tmp_path_factory.mktemp("cut")
    with pytest.raises(Killed):
        go(out, stop_after=8)
    return out


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The encoder of the uninterrupted run."""
    return encoder(go(tmp_path_factory.mktemp("whole")))


@pytest.fixture
def run(cut: Path, tmp_path: Path) -> Run:
    """A copy of the killed run, alone in ``tmp_path / "out"``."""
    shutil.copytree(cut, tmp_path / "out")
    (trained,) = [Run(path) for path in (tmp_path / "out").iterdir()]
    return trained


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
def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(run: Run, damage: str, digest: bool) -> None:
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
    messages: list[str] = []
    state = run.load_checkpoint(messages.append)
    assert state is not None
    assert state["step"] == 3
    assert [line.startswith(f"{path} is damaged") for line in messages] == [True]


def test_a_run_resumes_from_the_checkpoint_before_the_damaged_one(run: Run, uninterrupted: bytes) -> None:
    flip(newest(run), 100_000)
    assert encoder(go(run.path.parent, resume=True)) == uninterrupted


def test_when_every_checkpoint_is_damaged_the_folder_is_named(run: Run) -> None:
    for path in (run.path / "checkpoints").glob("*.pt"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged: delete that folder") as caught:
        go(run.path.parent, resume=True)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_does_not_fit_is_one_line(run: Run) -> None:
    state = run.load_checkpoint()
    assert state is not None
    changes: list[dict[str, Any]] = [{"optimizer": {}}, {"algorithm": {}}, {"probe": None}, {"probe": {"weight": 1}}]
    for change in changes:
        run.save_checkpoint(6, state | change)
        with pytest.raises(UserError, match="does not fit") as caught:
            go(run.path.parent, resume=True)
        assert "\n" not in str(caught.value)
    run.save_checkpoint(6, {"step": 6})
    with pytest.raises(UserError, match="does not fit"):
        go(run.path.parent, resume=True)


@pytest.mark.slow
def test_every_flipped_bit_of_a_checkpoint_is_detected(run: Run, uninterrupted: bytes) -> None:
    rng = np.random.default_rng(0)
    path, passed = newest(run), 0
    content, state = path.read_bytes(), run.load_checkpoint()
    for number in range(50):
        path.write_bytes(content)
        flip(path, int(rng.integers(8 * len(content))))
        if number == 25:
            path.with_name(f"{path.name}.sha256").unlink()
        loaded = run.load_checkpoint()
        assert loaded is not None
        assert state is not None
        if loaded["step"] == 6:  # without a digest, a bit without meaning, such as one of a date in the zip file
            assert number >= 25
            passed += 1
            for name, value in state["algorithm"].items():
                assert torch.equal(loaded["algorithm"][name], value)
    assert passed < 10


def test_every_flipped_bit_of_the_encoder_is_detected(tmp_path: Path) -> None:
    finished = go(tmp_path)
    path = finished.path / "encoder.safetensors"
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(25):
        path.write_bytes(content)
        flip(path, int(rng.integers(8 * len(content))))
        with pytest.raises(UserError, match="encoder"):
            finished.encoder()
    path.write_bytes(content)
    finished.encoder()


# --- files beside the checkpoints


def test_a_damaged_line_of_metrics_is_named(run: Run) -> None:
    path = run.path / "metrics.jsonl"
    good = path.read_bytes()
    for bad in (b"{\n", b"\xff\n", b"[]\n", b'{"loss": 1}\n', b'{"step": "x"}\n', b"[" * 100_000 + b"\n"):
        path.write_bytes(bad + good)
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 1 is damaged") as caught:
            go(run.path.parent, resume=True)
        assert "\n" not in str(caught.value)
    path.write_bytes(good + b'{"step": 7, "lo')  # cut off: a process was killed here
    assert go(run.path.parent, resume=True).finished


def test_a_damaged_neighbouring_run_does_not_block_resuming(run: Run) -> None:
    for name, content in (("a", b"{"), ("b", b"[]"), ("c", b"\xff")):
        (run.path.parent / name).mkdir()
        (run.path.parent / name / "run.json").write_bytes(content)
    assert go(run.path.parent, resume=True).finished


def test_a_run_that_another_process_trains_is_refused(run: Run) -> None:
    before = (run.path / "metrics.jsonl").read_bytes()
    with run.lock(), pytest.raises(UserError, match="another process is working on") as caught:
        go(run.path.parent, resume=True)
    assert str(run.path) in str(caught.value)
    assert (run.path / "metrics.jsonl").read_bytes() == before
    assert go(run.path.parent, resume=True).finished


def test_leftovers_of_killed_writes_are_deleted(run: Run) -> None:
    leftovers = [run.path / ".run.json.ab_c1234", run.path / "checkpoints" / ".000000009.pt.x9_bcd12"]
    notes = [run.path / ".notes", run.path / "a.b.abcd1234"]
    for path in leftovers + notes:
        path.write_bytes(b"half")
    go(run.path.parent, resume=True)
    assert [path.exists() for path in leftovers + notes] == [False, False, True, True]


@pytest.mark.parametrize("exponent", [3, 18, 38])
def test_a_learning_rate_far_too_high_is_one_line_about_the_loss(tmp_path: Path, exponent: int) -> None:
    message = ""
    try:
        go(tmp_path, lr=10.0**exponent, schedule="constant")
    except UserError as error:
        message = str(error)
    assert exponent == 3 or message  # a lower rate may end with finite, if useless, numbers
    assert not message or ("the loss is" in message and "lower --lr" in message)
