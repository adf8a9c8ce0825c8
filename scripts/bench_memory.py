"""Peak memory of `embed` and `transfer` by the number of rows.

    OMP_NUM_THREADS=1 python scripts/bench_memory.py embed --rows 1000 100000 1000000
    OMP_NUM_THREADS=1 python scripts/bench_memory.py transfer --rows 1000 100000 1000000 -- --protocol imix --labels 1
    OMP_NUM_THREADS=1 python scripts/bench_memory.py scoring --rows 1000 100000 1000000

The rows are synthetic: four columns of random numbers, and a class that depends on them a little. The encoder is `tiny`
with its initial weights, so that no random encoders are scored beside it. Arguments after ``--`` are passed on to the
command. ``scoring`` is what `transfer` does with features, in seconds: those of a linear layer in place of an encoder,
64 numbers wide, the logistic probe of `v2` at one strength, its ridge probe, the pseudo-inverse probe, all metrics and
the Fréchet distance. Each measurement is a process of its own, whose memory is read every 10 ms until it ends:

- anonymous: the largest RssAnon. Only swapping or ending the process frees this memory.
- resident: the kernel's VmHWM. It also counts the pages of mapped files, which the kernel drops where memory is short.

The first number of rows shows what the imports and the fixed buffers take; ``per row`` is the growth of anonymous
memory from there. Linux only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dabsmix.data.domain import Split, Task
from dabsmix.run import commit, device_name
from dabsmix.scoring import evaluate
from dabsmix.scoring.collapse import frechet_distance
from dabsmix.scoring.features import each_row
from dabsmix.scoring.heads import Features
from dabsmix.scoring.logistic import LogisticGrid
from dabsmix.scoring.protocols import v2
from dabsmix.training import accelerate

COLUMNS, CLASSES = 4, 3
BLOCK = 100_000  # rows of the table that are drawn at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("embed", "transfer", "scoring"))
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the process that is measured
    args, arguments = parser.parse_known_args()
    arguments = [argument for argument in arguments if argument != "--"]

    if args.here:
        score(args.rows[0])
        return
    shown = " ".join([args.command, *arguments])
    print(f"`{shown}`, {device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads, commit {commit()[:7]}\n")
    print("| synthetic rows | anonymous, MiB | per row, bytes | resident, MiB | seconds |\n|---|---|---|---|---|")
    first: tuple[int, float] | None = None
    for rows in args.rows:
        anonymous, resident, seconds = measured(args.command, rows, arguments)
        growth = "" if first is None else f"{(anonymous - first[1]) * 2**20 / (rows - first[0]):,.0f}"
        first = first or (rows, anonymous)
        print(f"| {rows:,} | {anonymous:,.0f} | {growth} | {resident:,.0f} | {seconds:,.0f} |", flush=True)


def measured(command: str, rows: int, arguments: list[str]) -> tuple[float, float, float]:
    """Peaks of anonymous and of resident memory in MiB, and seconds, of one command."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"DABSMIX_CACHE": f"{folder}/cache"}
        words = [__file__, "scoring", "--here", "--rows", str(rows)]
        if command != "scoring":
            words = prepared(command, rows, Path(folder), environment) + arguments
        log = Path(folder) / "log"
        start = time.perf_counter()
        with log.open("wb") as output:
            child = subprocess.Popen([sys.executable, *words], env=environment, stdout=output, stderr=output)
            peaks = {"RssAnon": 0, "VmHWM": 0}
            while child.poll() is None:
                for name, size in sizes(child.pid).items():
                    peaks[name] = max(peaks[name], size)
                time.sleep(0.01)
        if child.returncode:
            raise SystemExit(f"{command} failed: {log.read_text()[-2000:]}")
        return peaks["RssAnon"] / 2**10, peaks["VmHWM"] / 2**10, time.perf_counter() - start


def prepared(command: str, rows: int, folder: Path, environment: dict[str, str]) -> list[str]:
    """A table and a run with its initial weights; returns the arguments of the command on them."""
    table = folder / "table.parquet"
    draw(table, rows)
    pretrain = ["-m", "dabsmix", "pretrain", "--data", str(table), "--modality", "tabular", "--label", "label"]
    pretrain += ["--algo", "none", "--encoder", "tiny", "--batch-size", "64", "--out", str(folder)]
    subprocess.run([sys.executable, *pretrain], env=environment, check=True, capture_output=True)
    (run,) = (path.parent for path in folder.glob("*/run.json"))
    reads = ["--input", str(table), "--out", f"{folder}/features.parquet"] if command == "embed" else []
    return ["-m", "dabsmix", command, "--run", str(run), *reads]


def sizes(pid: int) -> dict[str, int]:
    """RssAnon and VmHWM of a process in KiB; empty once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.partition(":") for line in lines)
    return {name: int(value.split()[0]) for name, _, value in fields if name in ("RssAnon", "VmHWM")}


def draw(path: Path, rows: int) -> None:
    """A Parquet table of numbers ``x0`` ... and a class, drawn with a fixed seed."""
    rng = np.random.default_rng(0)
    names = [*(f"x{j}" for j in range(COLUMNS)), "label"]
    schema = pa.schema([*((name, pa.float32()) for name in names[:-1]), ("label", pa.string())])
    with pq.ParquetWriter(path, schema) as file:
        for start in range(0, rows, BLOCK):
            x = rng.standard_normal((min(BLOCK, rows - start), COLUMNS), dtype=np.float32)
            noisy = x[:, :CLASSES] + 2 * rng.standard_normal((len(x), CLASSES), dtype=np.float32)
            label = np.array(["a", "b", "c"])[noisy.argmax(axis=1)]
            file.write_table(pa.table([*map(pa.array, x.T), pa.array(label)], schema=schema))


def score(rows: int) -> None:
    """What `transfer` does with features of so many rows; 60, 10 and 30 % of them train, validate and test."""
    torch.manual_seed(0)
    rng, network = np.random.default_rng(0), torch.nn.Linear(COLUMNS, 64)
    task = Task("classes", "accuracy", ("a", "b", "c"))

    def part(n: int) -> Features:
        x = rng.standard_normal((n, COLUMNS), dtype=np.float32)
        label = (x[:, :CLASSES] + rng.standard_normal((n, CLASSES), dtype=np.float32)).argmax(axis=1)
        split = Split((x,), np.arange(n))
        mean = each_row(network, lambda x: network(x[0]), (64,), split, lambda x: x, accelerate(), batch_size=4096)
        return Features({"mean": mean}, label)

    train, validation, test = (part(rows * share // 10) for share in (6, 1, 3))
    rules = replace(v2(), linear=LogisticGrid(strengths=(1e-2,)), neighbours=(), pinv=True)
    chosen = evaluate.choose(train, validation, task, rules, ("1",))
    results, _ = evaluate.score(chosen, test, task, ("auroc_macro", "average_precision", "f1_macro"))
    distance = frechet_distance(train.pooled["mean"].numpy(), test.pooled["mean"].numpy())
    print(*(f"{result.probe} {result.value:.4f}" for result in results), f"distance {distance:.2g}")


if __name__ == "__main__":
    main()
