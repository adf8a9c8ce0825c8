"""Seconds and memory of a pretraining step, for every algorithm and every encoder.

    OMP_NUM_THREADS=1 python scripts/bench_costs.py        # three tables in Markdown, ten minutes on one CPU core
    OMP_NUM_THREADS=1 python scripts/bench_costs.py --domain digits --encoders tiny dabs

Each measurement runs in a process of its own. Seconds are its CPU time, which on one thread depends little on other
work on the machine; memory is its largest resident size, including Python and torch (about 500 MiB). Algorithms and
encoders are measured on images, and perceptrons on a table, because they take nothing else.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch

from dabsmix.config import PretrainConfig
from dabsmix.errors import UserError
from dabsmix.model.shapes import ENCODERS, MLPConfig
from dabsmix.registry import algorithms
from dabsmix.run import commit, device_name, readable_runs
from dabsmix.source import Source
from dabsmix.training import accelerate
from dabsmix.verbs.pretrain import pretrain

SKIPPED, MEASURED = 2, 4
"""Number of steps before the measured ones, and number of measured steps."""

BATCH, ENCODER_BATCH = 32, 8
"""Examples per step when algorithms are measured, and when encoders are measured, of which some are large."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", default="cifar10", help="of images; default: %(default)s, 64 tokens")
    parser.add_argument("--table", default="covtype", help="for perceptrons; default: %(default)s")
    trained = [name for name in algorithms() if name != "none"]
    parser.add_argument("--algorithms", nargs="*", default=trained, help="default: all")
    parser.add_argument("--encoders", nargs="*", default=list(ENCODERS), help="default: all")
    options = parser.parse_args()
    of_tables = [name for name in options.encoders if isinstance(ENCODERS[name], MLPConfig)]
    of_images = [name for name in options.encoders if name not in of_tables]
    costs(options.domain, BATCH, [(name, name, "tiny") for name in options.algorithms])
    costs(options.domain, ENCODER_BATCH, [(name, "simclr", name) for name in of_images])
    costs(options.table, BATCH, [(name, "imix_npair", name) for name in of_tables])
    print(f"\n{device_name(torch.device('cpu'))}, torch {torch.__version__}, commit {commit()}")


def costs(domain: str, batch_size: int, rows: list[tuple[str, str, str]]) -> None:
    """A table with one line for each (title, algorithm, encoder)."""
    if not rows:
        return
    print(
        f"\n| {domain}, batches of {batch_size} | encoder's weights | CPU ms a step | memory, MiB |\n|---|---|---|---|"
    )
    for title, algo, encoder in rows:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(
            target=measure, args=(sender, domain, algo, encoder, batch_size)
        )
        child.start()
        sender.close()
        try:
            weights, seconds, memory = receiver.recv()
            print(f"| {title} | {weights:,} | {1000 * seconds:.0f} | {memory / 2**20:.0f} |", flush=True)
        except EOFError:
            print(f"| {title} | – | – | – |", flush=True)  # the algorithm or encoder does not accept these data
        child.join()


class Measured(Exception):
    """Ends a run whose steps have been measured, before it is scored, which takes minutes for a large encoder."""


def measure(answer: Connection, domain: str, algo: str, encoder: str, batch_size: int) -> None:
    marks: list[float] = []

    def mark(_: object) -> None:
        marks.append(time.process_time())
        if len(marks) == SKIPPED + MEASURED:
            raise Measured

    with tempfile.TemporaryDirectory() as folder:
        config = PretrainConfig(
            Source(domain),
            algo=algo,
            encoder=encoder,
            steps=SKIPPED + MEASURED + 1,  # the last step is scored
            batch_size=batch_size,
            online_every=1_000_000,
            evaluate_every=1_000_000,
            checkpoint_every=1_000_000,
            out=Path(folder),
        )
        try:
            pretrain(config, accelerator=accelerate(), observe=mark)
        except UserError:
            return
        except Measured:
            (run,) = readable_runs(Path(folder))
    steps = [after - before for before, after in pairwise(marks[SKIPPED - 1 :])]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answer.send((run.record.parameters, median(steps), memory))


if __name__ == "__main__":
    main()
