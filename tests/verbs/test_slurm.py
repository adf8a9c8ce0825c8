"""`dabsmix bench --on slurm`: the parent in a job, and a real job where there is a cluster."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dabsmix.arguments import read_plan
from dabsmix.board.row import read
from dabsmix.config import BenchConfig
from dabsmix.errors import UserError
from dabsmix.interrupt import RESUME_ME
from dabsmix.verbs import slurm

submitit = pytest.importorskip("submitit")


@pytest.fixture
def child_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that exits with 75 on SIGTERM."""
    script = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))"
    script += "; print('up', flush=True); time.sleep(60)"
    started = subprocess.Popen

    def child(command: Sequence[str]) -> Any:
        process = started([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    monkeypatch.setattr("dabsmix.verbs.slurm.subprocess.Popen", child)


@pytest.mark.usefixtures("child_process")
def test_the_announcement_stops_the_child_through_its_parent_alone() -> None:
    worker = pickle.loads(pickle.dumps(slurm.Worker(["bench"])))
    queued: list[Any] = []

    def announce() -> None:
        while worker._child is None:
            time.sleep(0.01)
        # as SLURM does it, to every process of the job
        os.kill(worker._child.pid, signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR2)

    def announced(number: int, frame: Any) -> None:
        began = time.monotonic()
        queued.append(worker.checkpoint())
        assert time.monotonic() - began < slurm.GRACE / 4, "it waited for a lock that its own process holds"

    before = signal.signal(signal.SIGUSR2, announced)
    thread = threading.Thread(target=announce)
    try:
        thread.start()
        assert worker() == RESUME_ME
    finally:
        thread.join()
        signal.signal(signal.SIGUSR2, before)
    assert isinstance(queued[0], submitit.helpers.DelayedSubmission)
    assert queued[0].function.words == ["bench", "--no-retry"]


@pytest.mark.parametrize("flag", ["--retry", "--no-retry", None])
@pytest.mark.parametrize("planned", [True, False])
def test_a_job_that_is_queued_again_does_not_retry_again(tmp_path: Path, flag: str | None, planned: bool) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"domains: [digits]\nretry: {str(planned).lower()}\n")
    worker = slurm.Worker(["bench", f"{plan}", *([flag] if flag else []), "--on", "local", "--workers", "1"])
    assert read_plan(worker.words[1:])[0][0].retry is {"--retry": True, "--no-retry": False, None: planned}[flag]
    for _ in range(2):
        worker = worker.checkpoint().function
        ((config,), path) = read_plan(worker.words[1:])
        assert (config.retry, config.domains, config.workers, path) == (False, ("digits",), 1, plan)
    assert len(worker.words) == 7


def test_missing_slurm_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no `srun` here"):
        slurm.submit_jobs(["bench"], BenchConfig(out=tmp_path))


def test_refused_jobs_are_reported_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, script in {"srun": "exit 0", "sbatch": "echo 'sbatch: error: Invalid partition' >&2; exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    out = tmp_path / "runs"
    with pytest.raises(UserError, match=r"Invalid partition \(see --partition"):
        slurm.submit_jobs(["bench"], BenchConfig(out=out, partition="no", workers=2))
    assert list((out / "slurm").glob("*.pkl")) == []


def test_a_job_without_time_for_a_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", lambda: 1)
    with pytest.raises(UserError, match=r"--hours 0\.05"):
        slurm.submit_jobs(["bench"], BenchConfig(out=tmp_path, hours=0.05))


# --- a real cluster; docs/clusters.md says how to make one of one node


def has_cluster() -> bool:
    return shutil.which("sinfo") is not None and bool(
        subprocess.run(["sinfo", "--noheader", "--states", "idle,mixed"], capture_output=True).stdout.strip()
    )


def until(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(not has_cluster(), reason="no SLURM cluster with a free node here")
def test_a_preempted_job_is_queued_again_and_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    line = (
        "bench --domains digits --algos emix --seeds 0 --encoder tiny --steps 400 --batch-size 64 --labels 1 --gpus 0"
    )

    def command(name: str, *more: str) -> list[str]:
        folders = ["--out", str(tmp_path / name), "--leaderboard", str(tmp_path / name / "board" / "results.csv")]
        return [sys.executable, "-m", "dabsmix", *line.split(), *folders, *more]

    queued = subprocess.run(command("slurm", "--on", "slurm"), check=True, capture_output=True, text=True)
    job, run = queued.stdout.strip(), tmp_path / "slurm" / "digits-emix-s0"
    try:
        until(lambda: (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").stat().st_size, 120)
        subprocess.run(["scancel", "--signal=USR2", job], check=True)  # as SLURM announces the end of the time
        until(lambda: json.loads((run / "run.json").read_text())["status"] == "interrupted", 60)
        until(lambda: state(job) == "", 400)  # SLURM begins a job again after two minutes, see `cred_expire`
    finally:
        subprocess.run(["scancel", job], capture_output=True)
    subprocess.run(command("local"), check=True, capture_output=True)
    (one,), (two,) = (
        {
            (row.encoder_sha256, row.value)
            for row in read(tmp_path / name / "board" / "results.csv")
            if row.probe == "knn"
        }
        for name in ("slurm", "local")
    )
    assert one == two


def state(job: str) -> str:
    """Empty if it has ended."""
    shown = subprocess.run(["squeue", "--noheader", "--jobs", job, "--format=%T"], capture_output=True, text=True)
    return shown.stdout.strip()
