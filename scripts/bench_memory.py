"""Peak memory of `embed` and `transfer` by the number of rows.

    OMP_NUM_THREADS=1 python scripts/bench_memory.py embed --rows 1000 100000 1000000
    OMP_NUM_THREADS=1 python scripts/bench_memory.py transfer --rows 1000 100000 1000000 -- --protocol imix --labels 1

The rows are synthetic: four columns of random numbers, and a class that depends on them a little. The encoder is `tiny`
with its initial weights, so that no random encoders are scored beside it. Arguments after ``--`` are passed on to the
command. Each measurement is the command itself in a process of its own, whose memory is read every 10 ms until it ends:

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
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dabsmix.run import commit, device_name

COLUMNS, CLASSES = 4, 3
BLOCK = 100_000  # rows of the table that are drawn at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("embed", "transfer"))
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 100_000])
    args, arguments = parser.parse_known_args()
    arguments = [each for each in arguments if each != "--"]

    shown = " ".join(["dabsmix", args.command, *arguments])
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
        table = Path(folder) / "table.parquet"
        draw(table, rows)
        dabsmix = [sys.executable, "-m", "dabsmix"]
        environment = os.environ | {"DABSMIX_CACHE": f"{folder}/cache"}
        data = ["--data", str(table), "--modality", "tabular", "--label", "label"]
        untrained = ["--algo", "none", "--encoder", "tiny", "--batch-size", "64", "--out", folder]
        subprocess.run([*dabsmix, "pretrain", *data, *untrained], env=environment, check=True, capture_output=True)
        (run,) = (path.parent for path in Path(folder).glob("*/run.json"))
        reads = ["--input", str(table), "--out", f"{folder}/features.parquet"] if command == "embed" else []
        log = Path(folder) / "log"
        start = time.perf_counter()
        with log.open("wb") as output:
            child = subprocess.Popen(
                [*dabsmix, command, "--run", str(run), *reads, *arguments],
                env=environment,
                stdout=output,
                stderr=output,
            )
            peaks = {"RssAnon": 0, "VmHWM": 0}
            while child.poll() is None:
                for name, size in sizes(child.pid).items():
                    peaks[name] = max(peaks[name], size)
                time.sleep(0.01)
        if child.returncode:
            raise SystemExit(f"{command} failed: {log.read_text()[-2000:]}")
        return peaks["RssAnon"] / 2**10, peaks["VmHWM"] / 2**10, time.perf_counter() - start


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


if __name__ == "__main__":
    main()
