"""The commands of docs/clusters.md, made small: two agents of torchrun on one machine, and a job without SLURM."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dabsmix.run import Run

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text(encoding="utf-8")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
SMALL = ["--encoder", "tiny", "--batch-size", "16"]


def environment() -> dict[str, str]:
    return os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def recipe(out: Path, nodes: int, *further: str) -> list[str]:
    """The command for each of two nodes, with one process of a small encoder on each, all on this machine."""
    (block,) = re.findall(r"^```bash\n(torchrun .*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    torchrun, *words = shlex.split(block.replace("\\\n", " "))
    assert torchrun == "torchrun"
    for flag, given, value in (
        ("--nnodes", "2", str(nodes)),
        ("--nproc_per_node", "8", "1"),
        ("--rdzv-endpoint", "FIRST_NODE:29400", f"localhost:{free_port()}"),
        ("--domain", "cifar10", "digits"),
        ("--out", "/shared/runs", str(out)),
    ):
        place = words.index(flag) + 1
        assert words[place] == given
        words[place] = value
    return [*TORCHRUN, *words, *SMALL, *further]


def only_run(out: Path) -> Run:
    (folder,) = out.glob("*/")
    return Run(folder)


def wait_for(process: "subprocess.Popen[bytes]", ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_nodes_of_one_process_equal_one_node_of_two(tmp_path: Path) -> None:
    command = recipe(tmp_path / "two", 2, "--steps", "4")
    agents = [subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL) for _ in range(2)]
    try:
        assert [process.wait(timeout=300) for process in agents] == [0, 0]
    finally:
        for process in agents:
            process.kill()

    pretrain = command[command.index("-m", len(TORCHRUN)) :]
    single = [*TORCHRUN, "--standalone", "--nproc_per_node", "2", *pretrain, "--out", str(tmp_path / "one")]
    subprocess.run(single, check=True, env=environment(), timeout=300, capture_output=True)
    two, one = only_run(tmp_path / "two"), only_run(tmp_path / "one")
    assert (two.finished, two.record.processes) == (one.finished, one.record.processes) == (True, 2)
    assert two.record.encoder_sha256 == one.record.encoder_sha256


def test_a_node_that_is_killed_ends_the_other_and_one_resumes(tmp_path: Path) -> None:
    flags = ["--steps", "200", "--checkpoint-every", "20"]
    command = recipe(tmp_path, 2, *flags)
    agents = [subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL) for _ in range(2)]
    try:
        dying, other = agents
        wait_for(dying, lambda: any(tmp_path.glob("*/checkpoints/*.pt")))
        workers = subprocess.run(["pgrep", "-P", f"{dying.pid}"], capture_output=True, text=True, check=True)
        for process in (dying.pid, *map(int, workers.stdout.split())):
            os.kill(process, signal.SIGKILL)
        assert other.wait(timeout=60) == 1
    finally:
        for agent in agents:
            agent.kill()

    run = only_run(tmp_path)
    assert not run.finished
    subprocess.run(recipe(tmp_path, 1, *flags, "--resume"), check=True, env=environment(), timeout=300)
    assert only_run(tmp_path).finished
    assert (run.record.processes, [part["processes"] for part in only_run(tmp_path).record.parts]) == (2, [1])


def test_the_job_of_slurm_is_queued_again_and_resumes(tmp_path: Path) -> None:
    """The script with stand-ins for the commands of SLURM, on one node with two processes."""
    (script,) = re.findall(r"^```bash\n(#!/bin/bash\n.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    small = shlex.join([*SMALL, "--steps", "200"])
    for given, value in (
        ("--nproc_per_node 8", "--nproc_per_node 2"),
        (":29400", f":{free_port()}"),
        ("cifar10", "digits"),
        ("/shared/runs", str(tmp_path / "runs")),
        ("--precision bf16", f"--precision bf16 {small}"),
    ):
        assert given in script
        script = script.replace(given, value)
    (tmp_path / "job").write_text(script)
    (tmp_path / "bin").mkdir()
    for name, line in {
        "scontrol": f'[ "$1" = show ] && echo localhost || echo "$@" >> {tmp_path}/scontrol',
        "srun": f'echo $$ > {tmp_path}/pid; exec "$@"',
        "torchrun": f'exec {shlex.join(TORCHRUN)} "$@"',
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1", "SLURM_JOB_ID": "7"}
    slurm |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    def start(**variables: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(["bash", tmp_path / "job"], env=environment() | slurm | variables)

    first = start(SLURM_RESTART_COUNT="1")  # as if it had been stopped before its run began
    wait_for(first, lambda: any(path.stat().st_size for path in (tmp_path / "runs").glob("*/metrics.jsonl")))
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGUSR1)
    assert first.wait(timeout=120) != 0
    assert json.loads((only_run(tmp_path / "runs").path / "run.json").read_text())["status"] == "interrupted"
    assert (tmp_path / "scontrol").read_text() == "requeue 7\n"

    assert start(SLURM_RESTART_COUNT="2").wait(timeout=300) == 0
    run = only_run(tmp_path / "runs")
    assert run.finished
    assert len(run.record.parts) == 1
    assert (tmp_path / "scontrol").read_text() == "requeue 7\n"
