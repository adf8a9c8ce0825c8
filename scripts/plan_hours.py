"""Hours that plans of `dabsmix bench` take: FLOPs of a step are counted, and divided by a rate.

    python scripts/plan_hours.py leaderboard/plans/dabs1.yaml leaderboard/plans/slides.yaml

The step of every data set and algorithm is run on a few random examples of the data's shape while its matrix products
are counted, so the data need not be here. The CPU's rate is the one that `scripts/bench_pretrain.py` measured in the
training loop of `dabs`; `tiny` is slower. No GPU was measured: its rate is a share of the peak on the data sheet, and a
step takes at least the time that starting its kernels takes; both are assumed, and flags. Transfer is not counted.
Once a few cells are done on a machine, `dabsmix bench PLAN --dry-run` says what the others take there.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import torch
import tyro

from dabsmix.arguments import read_plan
from dabsmix.config import BenchConfig
from dabsmix.model.encoder import make_encoder
from dabsmix.registry import algorithm_class, domain
from dabsmix.run import commit
from dabsmix.spec import Grid, Spec, Table, Tokens
from dabsmix.testing import random_batch
from dabsmix.verbs.budget import step_flops
from dabsmix.verbs.cells import cells

EXAMPLES = 8
SMALL, LARGE = Grid(3, (32, 32), (4, 4)), Grid(1, (224, 224), (16, 16))
SHAPES: dict[str, tuple[Spec, ...]] = {
    **dict.fromkeys(("cifar10", "cifar100", "imagenet", "chexpert", "wafer", "traffic_sign"), (SMALL,)),
    **dict.fromkeys(("wikitext103", "mc4", "sst2"), (Tokens(128, 30522, 0),)),
    "librispeech": (LARGE,),
    "mscoco": (SMALL, Tokens(32, 30522, 0)),
    "eurosat_all": (Grid(13, (64, 64), (8, 8)),),
    "speech_commands": (Grid(1, (64, 64), (8, 8)),),
    "fsdd": (Grid(1, (64, 64), (8, 8)),),
    "uci_har": (Grid(9, (128,), (2,)),),
    "pamap2": (Grid(52, (320,), (5,)),),
    "digits": (Grid(1, (8, 8), (2, 2)),),
    "covtype": (Table(54),),
    "higgs": (Table(28),),
    "pfam": (Tokens(128, 30, 0),),
    "genomics": (Tokens(250, 8, 0),),
}
"""As the domains read them under ``v1``."""


@dataclass
class Config:
    """What to count, and at which rates."""

    plans: Annotated[tuple[Path, ...], tyro.conf.Positional]
    peak: float = 989.0
    """TFLOP/s: dense bf16 of an H100 SXM by its data sheet."""
    share: float = 0.2
    """Of the peak that a step reaches (assumed)."""
    least: float = 0.010
    """Seconds that a step takes at least (assumed): the kernels of six or twelve blocks have to be started."""
    cpu: float = 0.095
    """TFLOP/s of one thread of an Intel Xeon core in fp32, measured in the loop (docs/benchmarks.md)."""


def main(config: Config) -> None:
    print("| plan | cells | TFLOP a step | steps, millions | EFLOP | GPU hours | CPU core hours |\n" + "|---" * 7 + "|")
    for path in config.plans:
        steps: dict[tuple[str, str, str, int], float] = defaultdict(float)
        plans, _ = read_plan([str(path)])
        for plan in plans:
            count(plan, steps)
        costs = {key: flops(*key) for key in steps}
        seconds = sum(
            n * max(config.least, costs[key] / (1e12 * config.peak * config.share)) for key, n in steps.items()
        )
        total = sum(n * costs[key] for key, n in steps.items())
        least, most = min(costs.values()) / 1e12, max(costs.values()) / 1e12
        print(
            f"| {path.name} | {len(cells(plans))} | {least:.2f} to {most:.2f} | {sum(steps.values()) / 1e6:.2f} | "
            f"{total / 1e18:.3g} | {seconds / 3600:.1f} | {total / 1e12 / config.cpu / 3600:,.0f} |",
            flush=True,
        )
    print(
        f"\nGPU: {config.share:.0%} of {config.peak:g} TFLOP/s, at least {1000 * config.least:g} ms a step (assumed)."
    )
    print(f"CPU core: {1000 * config.cpu:g} GFLOP/s (measured). Commit {commit()[:7]}, torch {torch.__version__}.")


def count(plan: BenchConfig, steps: dict[tuple[str, str, str, int], float]) -> None:
    """Add the steps of a plan's cells, and of a third of them for each rate that is tried with the first seed."""
    for cell in cells([plan]):
        if cell.trains:
            name = cell.pretraining.source.name
            batch = cell.pretraining.batch_size or domain(name).batch_size
            trials = len(plan.rates) / 3 if cell.pretraining.seed == plan.seeds[0] else 0
            steps[name, cell.pretraining.algo, plan.encoder, batch] += plan.steps * (1 + trials)


@cache
def flops(name: str, algo: str, encoder: str, batch: int) -> float:
    """FLOPs of a step."""
    kind = algorithm_class(algo)
    size = max(EXAMPLES, kind.min_batch)
    algorithm = kind(make_encoder(encoder, SHAPES[name])).train()
    examples = random_batch(SHAPES[name], size, num_views=max(1, algorithm.num_augmented))
    return step_flops(algorithm, examples) * batch / size


if __name__ == "__main__":
    main(tyro.cli(Config))
