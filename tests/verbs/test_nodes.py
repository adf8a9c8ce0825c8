"""Two agents of torchrun, as on two machines, make the same encoder as two processes of one agent."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
PRETRAIN = ["-m", "dabsmix", "pretrain", "--domain", "digits", "--algo", "dmix", "--encoder", "tiny"]
PRETRAIN += ["--steps", "4", "--batch-size", "16"]


def environment() -> dict[str, str]:
    return os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def encoder_digest(out: Path) -> str:
    record = json.loads((out / "digits-dmix-s0" / "run.json").read_text())
    assert (record["status"], record["processes"]) == ("finished", 2)
    return str(record["encoder_sha256"])


def test_two_nodes_of_one_process_equal_one_node_of_two(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    single = [*TORCHRUN, "--standalone", "--nproc_per_node", "2", *PRETRAIN, "--out", str(one)]
    subprocess.run(single, check=True, env=environment(), timeout=300, capture_output=True)

    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", "--rdzv-id", "test"]
    agent = [*TORCHRUN, "--nnodes", "2", "--nproc_per_node", "1", *meeting, *PRETRAIN, "--out", str(two)]
    agents = [subprocess.Popen(agent, env=environment(), stdout=subprocess.DEVNULL) for _ in range(2)]
    try:
        assert [process.wait(timeout=300) for process in agents] == [0, 0]
    finally:
        for process in agents:
            process.kill()
    assert len(list(two.glob("*/run.json"))) == 1
    assert encoder_digest(two) == encoder_digest(one)
