"""Throughput of the pretraining loop against the bare model step, interleaved in one run.

    python scripts/bench_pretrain.py                       # tiny and dabs, e-mix and dmix, fp32 and bf16
    python scripts/bench_pretrain.py --encoders tiny --steps 100

A repeat is a block of loop steps followed by as many bare steps. Loop: everything that `dabsmix pretrain` does in a
step (reading and normalising the batch, drawing, forward, backward, clipping, AdamW, online probe, logging, checkpoints
as configured). Bare: forward, backward and AdamW of the same algorithm, encoder and batch size on one batch that lies
on the device. Printed are the medians over repeats and the median of the repeats' own ratios, so that a drift of the
machine's speed cancels.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from statistics import median

COLUMNS = "encoder  algorithm  precision  batch  repeats   loop ex/s   bare ex/s   loop/bare time   waits for data"
DEFAULT_BATCH = {"tiny": 128, "dabs": 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", default="synthetic_image", help="default: %(default)s, 16 tokens")
    parser.add_argument("--encoders", nargs="+", default=["tiny", "dabs"])
    parser.add_argument("--algos", nargs="+", default=["emix", "dmix"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--batch-size", type=int, help="default: 128 for tiny, 16 for dabs")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, help="steps of a block; default: 20 for tiny, 3 for dabs")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # encoder, algorithm, precision: a process of its own
    options = parser.parse_args()
    if options.one:
        measure(options, *options.one)
        return
    print(COLUMNS, flush=True)
    for cell in product(options.encoders, options.algos, options.precisions):
        # Accelerate knows one precision per process
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", *cell], check=True)
    import torch

    from dabsmix.run import commit, device_name

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{device_name(device)}; torch {torch.__version__}, {torch.get_num_threads()} threads; commit {commit()}")


def measure(options: argparse.Namespace, encoder: str, algo: str, precision: str) -> None:
    import torch

    from dabsmix.config import PretrainConfig
    from dabsmix.data.batches import Batches
    from dabsmix.model.encoder import make_encoder
    from dabsmix.registry import algorithm_class
    from dabsmix.source import Source, load
    from dabsmix.spec import Batch
    from dabsmix.training import accelerate
    from dabsmix.verbs.pretrain import pretrain

    batch_size = options.batch_size or DEFAULT_BATCH.get(encoder, 32)
    block = options.steps or (20 if encoder == "tiny" else 3)
    accelerator = accelerate(precision)
    device = accelerator.device

    data = load(Source(options.domain))
    raw = Batches(data.pretrain, batch_size, seed=0).read(0)
    inputs = data.normalise(tuple(x.to(device) for x in raw.inputs))
    algorithm = algorithm_class(algo)(make_encoder(encoder, data.specs)).to(device)
    optimizer = torch.optim.AdamW(algorithm.parameters(), lr=1e-4, fused=True)

    def bare() -> None:
        with accelerator.autocast():
            loss = algorithm(Batch((inputs,), None, raw.ids, 0)).value
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    loops: list[float] = []
    bares: list[float] = []
    mark = 0.0

    def observe(step: int) -> None:
        """Called after each loop step: at the end of a block, time as many bare steps."""
        nonlocal mark
        if step % block:
            return
        between = now()
        for _ in range(block):
            bare()
        after = now()
        if step > block:  # the first block warms up
            loops.append(between - mark)
            bares.append(after - between)
        mark = now()

    waited: list[float] = []
    read = Batches.read

    def timed_read(self: Batches, step: int) -> object:
        began = time.perf_counter()
        found = read(self, step)
        waited.append(time.perf_counter() - began)
        return found

    Batches.read = timed_read  # type: ignore[assignment,method-assign]  # the reader thread's own time
    steps = block * (options.repeats + 1)
    with tempfile.TemporaryDirectory() as out:
        config = PretrainConfig(
            Source(options.domain),
            algo=algo,
            encoder=encoder,
            steps=steps + 1,  # the last step is followed by an evaluation, which no block contains
            batch_size=batch_size,
            evaluate_every=steps + 1,
            checkpoint_every=steps + 1,
            precision=precision,  # type: ignore[arg-type]  # one of the two
            out=Path(out),
        )
        pretrain(config, accelerator=accelerator, observe=observe)
    examples = batch_size * block
    ratio = median(a / b for a, b in zip(loops, bares, strict=True))
    share = median(waited) * block / median(loops)
    print(
        f"{encoder:<8} {algo:<10} {precision:<10} {batch_size:<6} {len(loops):<8} {examples / median(loops):10.1f}  "
        f"{examples / median(bares):10.1f}   {ratio:13.3f}   reading takes {100 * share:.1f} % of a step, beside it",
        flush=True,
    )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
