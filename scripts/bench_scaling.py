"""Examples per second on 1, 2 and 4 GPUs; with fewer than two, the bytes that processes exchange in a step.

    python scripts/bench_scaling.py                                 # every algorithm with vit_base at 224x224
    python scripts/bench_scaling.py --processes 1 2 --encoder tiny --size 32 --patch 4 --algos emix    # speed on a CPU

Every measurement is a `torchrun` on random pixels; neither times nor bytes depend on their values. With several GPUs,
or with ``--processes``, the loop of `dabsmix pretrain` is timed, with the same batch size in each process; the
processes of a CPU share its cores.

Otherwise two processes on the CPU make one forward and backward pass, and the sizes of the results of all collective
calls are added up. (Besides these, the loop gathers the features of the online probe at every tenth step.)

- *gradients*: what DDP sums over processes, once a step, however large the batch is.
- *inputs*, *embeddings*: rows that are gathered from all processes, per example of the global batch. With InputMix or
  mixing, an example's partner may be on another process, so all inputs are gathered.
- *sums*: other sums over processes, per example of the global batch (the gradients of gathered embeddings), and those
  that do not grow with the batch, such as the statistics of batch norm.
- *buffers*: state that is broadcast: none, because every process computes it.

A second table *estimates* the examples per second of 8 and 64 GPUs from these bytes, from the counted FLOPs of a step
and from the constants below. Nothing in it is measured. Gathering S bytes takes a link of each of P GPUs
S (P - 1) / P bytes, and summing takes it twice that (NCCL's bus bandwidth: doc/PERFORMANCE.md of NVIDIA/nccl-tests). So
each GPU sends, in a step with n examples in the global batch,

    (P - 1) / P · [2 (gradients + other sums + n · sums) + n (inputs + embeddings)]    bytes
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dabsmix.config import PretrainConfig
from dabsmix.data.batches import Batches, make_views
from dabsmix.data.domain import Data, Labelled, Split, Task
from dabsmix.model.encoder import make_encoder
from dabsmix.registry import algorithm_class, algorithms
from dabsmix.run import commit, device_name
from dabsmix.source import Source
from dabsmix.spec import Batch, Grid
from dabsmix.training import accelerate
from dabsmix.verbs.pretrain import pretrain

# Of the estimate. NVIDIA's data sheet: an H200 multiplies bf16 matrices at 989 TFLOP/s (dense) and sends 450 GB/s to
# the GPUs of its node through NVLink. A ring over several nodes enters each of them once, so all of a node's adapters
# share its traffic: eight of 400 Gbit/s send 400 GB/s (NVIDIA/nccl-tests, issue 309). The shares are assumptions.
PEAK, PEAK_SHARE = 989e12, 0.4
WITHIN, BETWEEN, LINK_SHARE = 450e9, 400e9, 0.7
BACKWARD = 2 / 3  # of a step's time, during which the gradients are summed
NODE = 8  # GPUs
BATCH = 64  # examples of each GPU

CLASSES = 10
WARM, TIMED = 10, 20  # steps of a measurement of speed; the online probe learns in every tenth


class Stop(Exception):
    """Raised after enough steps; the run is discarded."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algos", nargs="+", default=[name for name in algorithms() if name != "none"])
    parser.add_argument("--encoder", default="vit_base", help="default: %(default)s")
    parser.add_argument("--size", type=int, default=224, help="pixels a side; default: %(default)s")
    parser.add_argument("--patch", type=int, default=16, help="pixels of a patch's side; default: %(default)s")
    parser.add_argument("--batch-size", type=int, help=f"of each process; default: {BATCH}, and 2 to count bytes")
    parser.add_argument("--processes", nargs="+", type=int, help="default: those of 1, 2, 4 that have a GPU each")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)  # one of the processes: algorithm, what
    options = parser.parse_args()
    if options.worker:
        algo, what = options.worker
        (measure_speed if what == "speed" else count_bytes)(options, algo)
        return
    gpus = torch.cuda.device_count()
    processes = options.processes or [number for number in (1, 2, 4) if number <= gpus]
    if options.processes or gpus > 1:
        print_speeds(options, processes)
    else:
        print_bytes(options)
    device = torch.device("cuda" if gpus and (options.processes or gpus > 1) else "cpu")
    print(
        f"\n{options.encoder}, {options.size}x{options.size} in patches of {options.patch}; {device_name(device)}; "
        f"torch {torch.__version__}; commit {commit()}"
    )


def launched(processes: int, algo: str, what: str, *, cpu: bool) -> dict[str, Any] | None:
    """What the main process of a `torchrun` of this script prints; None if the algorithm does not accept the data."""
    environment = dict(os.environ)
    if cpu:
        environment |= {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words += [__file__, *sys.argv[1:], "--worker", algo, what]
    completed = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if completed.returncode:
        print(completed.stderr, file=sys.stderr)
        return None
    result: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
    return result


# --- the loop


def loop(options: argparse.Namespace, algo: str, batch_size: int, rows: int, observe: Callable[[int], None]) -> None:
    """Run `dabsmix pretrain` until ``observe`` stops it."""
    accelerator = accelerate(
        "bf16" if torch.cuda.is_available() and not os.environ.get("ACCELERATE_USE_CPU") else "fp32"
    )
    batch, steps = batch_size * accelerator.num_processes, 10_000  # it evaluates and writes after the last one only
    with tempfile.TemporaryDirectory() as out:
        config = PretrainConfig(
            Source("synthetic_image"),
            algo=algo,
            encoder=options.encoder,
            steps=steps,
            batch_size=batch,
            evaluate_every=steps,
            checkpoint_every=steps,
            checkpoint_minutes=1e9,
            out=Path(out),
        )
        with suppress(Stop):
            pretrain(config, accelerator=accelerator, data=pixels(options, max(rows, batch)), observe=observe)


def pixels(options: argparse.Namespace, rows: int) -> Data:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 3, options.size, options.size), dtype=np.float32)
    split = Split((x,), np.arange(rows), np.arange(rows) % CLASSES)
    task = Task("classes", "accuracy", tuple(map(str, range(CLASSES))))
    spec = Grid(3, (options.size, options.size), (options.patch, options.patch))
    return Data((spec,), split, Labelled(task, split, split, split), "0" * 64, source=Source("synthetic_image"))


def print_result(values: dict[str, Any]) -> None:
    if os.environ["RANK"] == "0":
        print(json.dumps(values))


# --- speed


def measure_speed(options: argparse.Namespace, algo: str) -> None:
    marks: list[float] = []

    def observe(step: int) -> None:
        if step in (WARM, WARM + TIMED):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
        if step == WARM + TIMED:
            raise Stop

    batch_size = options.batch_size or BATCH
    loop(options, algo, batch_size, 512, observe)
    print_result({"rate": TIMED * batch_size * int(os.environ["WORLD_SIZE"]) / (marks[1] - marks[0])})


def print_speeds(options: argparse.Namespace, processes: list[int]) -> None:
    print("| algorithm | processes | examples/s | times as fast as one |\n|---|---|---|---|")
    for algo in options.algos:
        one = None
        for number in processes:
            speed = launched(number, algo, "speed", cpu=not torch.cuda.is_available())
            if speed is None:
                print(f"| {algo} | {number} | – | – |", flush=True)
                continue
            one = speed["rate"] if number == 1 else one
            ratio = "–" if one is None else f"{speed['rate'] / one:.2f}"
            print(f"| {algo} | {number} | {speed['rate']:,.1f} | {ratio} |", flush=True)


# --- bytes


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Adds up the bytes of every collective call, by kind.

    Those of DDP come from torch's C++ code, so none of our functions for collectives is on the stack.
    """

    def __init__(self, num_rows: int, row: tuple[int, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.num_rows, self.row = num_rows, row
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.namespace == "c10d":
            name = op._schema.name.removeprefix("c10d::").strip("_")
            for x in tensors(args[0]):  # the result: for gathering, the rows of all processes
                self.bytes[self.kind(name, x)] += x.numel() * x.element_size()
        return op(*args, **(kwargs or {}))

    def kind(self, name: str, x: Tensor) -> str:
        """Which of `KINDS` a result belongs to."""
        of_rows = x.shape[:1] == (self.num_rows,)
        match name:
            case "allreduce":
                if not ours():
                    return "gradients"
                return "sums an example" if of_rows else "other sums"
            case "allgather_base" | "allgather" if of_rows:
                return "inputs an example" if x.shape[1:] == self.row else "embeddings an example"
            case "broadcast":
                return "buffers"
        return "other"


def ours() -> bool:
    """Whether a function of dabsmix/distributed.py is on the stack."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename.endswith("dabsmix/distributed.py"):
            return True
    return False


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [x for item in value for x in tensors(item)] if isinstance(value, list | tuple) else []


def count_bytes(options: argparse.Namespace, algo: str) -> None:
    accelerator = accelerate()
    batch_size = options.batch_size or 2
    num_rows = batch_size * accelerator.num_processes
    data = pixels(options, num_rows)
    algorithm = algorithm_class(algo)(make_encoder(options.encoder, data.specs))
    model = accelerator.prepare(algorithm)
    raw = Batches(data.pretrain, num_rows, seed=0, rank=accelerator.process_index, world_size=2).read(0)
    batch = Batch(make_views(data, raw.inputs, algorithm.num_augmented, 0), raw.label, raw.ids, 0)
    counting = Counting(num_rows, (3, options.size, options.size))
    # the counter of FLOPs does not see fused attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops, counting:
        model(batch).value.backward()
        algorithm.after_step(0.0)
    counts = {
        name: number // num_rows if name.endswith("an example") else number for name, number in counting.bytes.items()
    }
    print_result(counts | {"flops": flops.get_total_flops() / batch_size})


def print_bytes(options: argparse.Namespace) -> None:
    print(
        "| algorithm | gradients, MB | inputs, kB an example | embeddings, kB an example | sums, kB an example "
        "| other sums, kB | buffers, kB | other, kB |\n|---|---|---|---|---|---|---|---|"
    )
    counts: dict[str, dict[str, float]] = {}
    for algo in options.algos:
        counted = launched(2, algo, "bytes", cpu=True)
        if counted is None:
            print(f"| {algo} | – | – | – | – | – | – | – |", flush=True)
            continue
        counts[algo] = {name: 0.0 for name in KINDS} | counted
        cells = [f"{counts[algo]['gradients'] / 1e6:,.1f}", *(f"{counts[algo][name] / 1e3:,.2f}" for name in KINDS[1:])]
        print(f"| {algo} | {' | '.join(cells)} |", flush=True)
    print(
        f"\nEstimated, with {BATCH} examples for each GPU:\n\n| algorithm | GFLOP an example | one GPU, examples/s "
        "| 8 GPUs: MB sent by each | examples/s | share of 8 times one "
        "| 64 GPUs: MB sent by each | examples/s | share of 64 times one |\n|---|---|---|---|---|---|---|---|---|"
    )
    for algo, counted in counts.items():
        compute = BATCH * counted["flops"] / (PEAK * PEAK_SHARE)
        cells = [f"{counted['flops'] / 1e9:,.0f}", f"{BATCH / compute:,.0f}"]
        for gpus in (8, 64):
            seconds = compute + waiting(counted, gpus, compute)
            cells += [f"{sum(sent(counted, gpus)) / 1e6:,.0f}", f"{gpus * BATCH / seconds:,.0f}"]
            cells += [f"{100 * compute / seconds:.0f} %"]
        print(f"| {algo} | {' | '.join(cells)} |")


KINDS = (
    "gradients",
    "inputs an example",
    "embeddings an example",
    "sums an example",
    "other sums",
    "buffers",
    "other",
)


def sent(counted: dict[str, float], gpus: int) -> tuple[float, float]:
    """Bytes that a ring sends through each GPU's link in a step: for the gradients, and for all else."""
    rows = gpus * BATCH
    gathered = rows * (counted["inputs an example"] + counted["embeddings an example"])
    summed = rows * counted["sums an example"] + counted["other sums"]
    ring = (gpus - 1) / gpus
    return ring * 2 * counted["gradients"], ring * (gathered + 2 * summed)


def waiting(counted: dict[str, float], gpus: int, compute: float) -> float:
    """Estimated seconds of a step in which a GPU waits for others, with ``compute`` seconds of work of its own.

    The sum of the gradients is hidden behind the backward pass as far as that lasts.
    """
    link = (WITHIN if gpus <= NODE else BETWEEN) * LINK_SHARE
    gradients, others = sent(counted, gpus)
    return others / link + max(0.0, gradients / link - BACKWARD * compute)


if __name__ == "__main__":
    main()
