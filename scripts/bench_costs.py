"""Seconds and memory of a pretraining step, for every algorithm and every encoder.

    python scripts/bench_costs.py                    # two tables in Markdown, a few minutes on one CPU core
    python scripts/bench_costs.py --domain digits

Each measurement is a process of its own with one thread. On a CPU, seconds are CPU time of the process, which other
work on the machine changes little, and memory is the largest resident size, what Python and torch take included (some
500 MiB); on a GPU they are wall time and the most that torch had allocated.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

SKIPPED, MEASURED = 2, 4
"""Steps before the measured ones, and these."""

BATCH, ENCODER_BATCH = 32, 8
"""Examples a step when algorithms are measured, and when encoders are, of which some are large."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", default="cifar10", help="default: %(default)s, 64 tokens")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # algorithm, encoder, batch: a process of its own
    options = parser.parse_args()
    if options.one:
        algo, encoder, batch = options.one
        print(json.dumps(measure(options.domain, algo, encoder, int(batch))))
        return
    from dabsmix.model.shapes import ENCODERS
    from dabsmix.registry import algorithms
    from dabsmix.run import commit

    print("| algorithm, encoder `tiny` | encoder's weights | ms a step | memory, MiB |\n|---|---|---|---|")
    for name in algorithms():
        if name != "none":
            _line(name, _measured("--one", name, "tiny", str(BATCH)))
    print("\n| encoder, algorithm `simclr` | encoder's weights | ms a step | memory, MiB |\n|---|---|---|---|")
    for name in ENCODERS:
        _line(name, _measured("--one", "simclr", name, str(ENCODER_BATCH)))
    print(f"\n{options.domain}, batches of {BATCH} and of {ENCODER_BATCH}; commit {commit()}")


def _measured(*words: str) -> dict[str, Any] | None:
    """None where the algorithm or the encoder does not take these data."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], *words], capture_output=True, text=True, env=environment
    )
    return json.loads(done.stdout) if done.returncode == 0 else None


def _line(name: str, found: dict[str, Any] | None) -> None:
    cells = ["–"] * 3
    if found is not None:
        cells = [f"{found['weights']:,}", f"{1000 * found['seconds']:.0f}", f"{found['memory'] / 2**20:.0f}"]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def measure(domain: str, algo: str, encoder: str, batch_size: int) -> dict[str, Any]:
    import torch

    from dabsmix.config import PretrainConfig
    from dabsmix.source import Source
    from dabsmix.training import accelerate
    from dabsmix.verbs.pretrain import pretrain

    accelerator = accelerate()
    on_gpu = accelerator.device.type == "cuda"
    marks: list[float] = []

    def mark(_: int) -> None:
        if on_gpu:
            torch.cuda.synchronize()
        marks.append(time.perf_counter() if on_gpu else time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        config = PretrainConfig(
            Source(domain),
            algo=algo,
            encoder=encoder,
            steps=SKIPPED + MEASURED + 1,  # the last one is followed by scores and checks
            batch_size=batch_size,
            online_every=1_000_000,
            evaluate_every=1_000_000,
            checkpoint_every=1_000_000,
            out=Path(folder),
        )
        run = pretrain(config, accelerator=accelerator, observe=mark)
    steps = [after - before for before, after in zip(marks[SKIPPED - 1 : -2], marks[SKIPPED:-1], strict=True)]
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    memory = torch.cuda.max_memory_allocated() if on_gpu else resident
    return {"weights": run.record.parameters, "seconds": median(steps), "memory": memory}


if __name__ == "__main__":
    main()
