"""An interrupted training saves its state and reports it; a resumed one equals an uninterrupted one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dabsmix.config import PretrainConfig, config_hash, resolve
from dabsmix.interrupt import Interrupted, Stop
from dabsmix.run import Run
from dabsmix.source import Source
from dabsmix.training import accelerate
from dabsmix.verbs.pretrain import pretrain
from dabsmix.verbs.runs import runs

CONFIG = PretrainConfig(
    Source("digits"), algo="emix", encoder="tiny", steps=30, batch_size=8, evaluate_every=30, checkpoint_every=30
)


def go(out: Path, observe: Callable[[int], None] = lambda _: None, **changes: Any) -> Run:
    return pretrain(replace(CONFIG, out=out, **changes), accelerator=accelerate(), observe=observe)


def lines(run: Run) -> list[dict[str, Any]]:
    """Metrics without times."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "examples_per_s")} for line in run.metrics()]


def encoder(run: Run) -> bytes:
    return (run.path / "encoder.safetensors").read_bytes()


def test_a_signal_stops_after_the_step_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    uninterrupted = go(tmp_path / "whole")
    before = signal.getsignal(signal.SIGTERM)
    steps = {5: signal.SIGTERM, 11: signal.SIGHUP, 20: signal.SIGUSR1, 26: signal.SIGINT}

    def observe(step: int) -> None:
        if step in steps:
            os.kill(os.getpid(), steps.pop(step))

    for number, step in enumerate((6, 12, 21, 27)):  # the signal comes after a step and takes effect in the next one
        with pytest.raises(Interrupted, match=f"after step {step}"):
            go(tmp_path / "cut", observe, resume=number > 0)
        (run,) = [Run(path) for path in (tmp_path / "cut").iterdir()]
        assert run.record.status == "interrupted"
    run = go(tmp_path / "cut", resume=True)
    assert signal.getsignal(signal.SIGTERM) is before
    assert run.finished
    assert lines(run) == lines(uninterrupted)
    assert encoder(run) == encoder(uninterrupted)
    assert [part["step"] for part in run.record.parts] == [6, 12, 21, 27]


def test_the_time_before_an_interruption_counts(tmp_path: Path) -> None:
    def observe(step: int) -> None:
        time.sleep(0.1)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        go(tmp_path, observe)
    checkpoint = Run(next(tmp_path.iterdir())).load_checkpoint()
    assert checkpoint is not None
    assert checkpoint["seconds"] > 0.3


def test_a_second_sigint_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = Stop()
    stop(signal.SIGINT, None)
    stop(signal.SIGINT, None)  # the same signal, forwarded by a launcher
    assert stop.asked
    monkeypatch.setattr(time, "monotonic", lambda: 1e12)
    stop(signal.SIGTERM, None)
    with pytest.raises(KeyboardInterrupt):
        stop(signal.SIGINT, None)


def test_checkpoints_by_time_change_no_number_and_no_hash(tmp_path: Path) -> None:
    often = go(tmp_path, checkpoint_minutes=0.0)
    seldom = go(tmp_path)
    assert sorted(path.name for path in (often.path / "checkpoints").glob("*.pt")) == ["000000020.pt"]
    assert not (seldom.path / "checkpoints").exists()
    assert lines(often) == lines(seldom)
    assert encoder(often) == encoder(seldom)
    hashes = {config_hash(resolve(replace(CONFIG, checkpoint_minutes=m), 8)[0]) for m in (0.0, 10.0)}
    assert hashes == {often.record.config_hash}


def test_a_resumed_part_is_recorded_and_reported(tmp_path: Path) -> None:
    def observe(step: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        go(tmp_path, observe)
    (run,) = [Run(path) for path in tmp_path.iterdir()]
    run.update(version="0.0.9", processes=4, flops=None)  # or a kill came before they were counted
    messages: list[str] = []
    run = pretrain(replace(CONFIG, out=tmp_path, resume=True), accelerator=accelerate(), say=messages.append)
    assert [line for line in messages if "version 0.0.9 → " in line and "processes 4 → 1" in line], messages
    assert run.record.version == "0.0.9"
    assert run.record.flops
    assert run.record.parts[0]["processes"] == 1


WORDS = ["pretrain", "--domain=digits", "--algo=emix", "--encoder=tiny", "--batch-size=8", "--steps=4000"]


def wait_for(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_interrupted_command_exits_with_the_status_for_resuming(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "dabsmix", *WORDS, "--out", str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    wait_for(process, lambda: any(path.stat().st_size for path in tmp_path.glob("*/metrics.jsonl")))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    (run,) = [Run(path) for path in tmp_path.iterdir()]
    assert run.record.status == "interrupted"
    assert f"is interrupted after step {runs(tmp_path)[0].step}: " in err


WRAPPER = """
import os, sys
from dabsmix.cli import main
sys.argv[0] = "dabsmix"
status = 0
try:
    main()
except SystemExit as error:
    status = error.code
    raise
finally:
    open(os.path.join(os.environ["STATUSES"], os.environ["RANK"] + "-" + os.environ["ROUND"]), "w").write(str(status))
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_stop_after_the_same_step_and_resumed_equal_uninterrupted(tmp_path: Path, processes: int) -> None:
    script = tmp_path / "wrapped.py"
    script.write_text(WRAPPER)
    (tmp_path / "statuses").mkdir()
    words = [*WORDS[:-1], "--steps=300", "--schedule=constant"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", f"{processes}"]

    def start(out: str, number: str, *flags: str) -> "subprocess.Popen[str]":
        environment = os.environ | {"OMP_NUM_THREADS": "1", "STATUSES": str(tmp_path / "statuses"), "ROUND": number}
        command = [*launch, str(script), *words, "--out", str(tmp_path / out), *flags]
        return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    process = start("cut", "1")
    wait_for(process, lambda: any(path.stat().st_size for path in (tmp_path / "cut").glob("*/metrics.jsonl")))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    statuses = {path.name: path.read_text() for path in (tmp_path / "statuses").iterdir()}
    assert statuses == {f"{rank}-1": "75" for rank in range(processes)}
    (run,) = [Run(path) for path in (tmp_path / "cut").iterdir()]
    assert run.record.status == "interrupted"
    assert json.loads((run.path / "run.json").read_text())["processes"] == processes
    for out, flags in (("cut", ["--resume"]), ("whole", [])):
        process = start(out, "2", *flags)
        assert process.wait(timeout=300) == 0, process.communicate()
    (run,), (uninterrupted,) = ([Run(path) for path in (tmp_path / name).iterdir()] for name in ("cut", "whole"))
    assert run.finished
    assert lines(run) == lines(uninterrupted)
    assert encoder(run) == encoder(uninterrupted)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_fewer_resume(tmp_path: Path) -> None:
    """torchrun watches its processes, so no collective has to reach its long timeout."""
    words = ["-m", "dabsmix", *WORDS[:-1], "--steps=400", "--checkpoint-every=20", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    wait_for(process, lambda: any(tmp_path.glob("*/checkpoints/*.pt")))
    workers = subprocess.run(["pgrep", "-P", f"{process.pid}"], capture_output=True, text=True, check=True)
    os.kill(int(workers.stdout.split()[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "SIGKILL" in err

    one = subprocess.run([sys.executable, *words, "--resume"], capture_output=True, text=True, check=True, timeout=120)
    assert "processes 2 → 1" in one.stderr
    (run,) = [Run(path) for path in tmp_path.iterdir()]
    assert run.finished
    assert [part["processes"] for part in run.record.parts] == [1]
