"""Why mixing lay below the random encoder on Covertype: the probe, the rate, the mixing, or the head?

    python scripts/last_block.py --runs runs/last_block       # continues where it stopped; an hour of one core

An earlier comparison (protocol `v1`, rate 1e-3) had e-mix below `none`. Five seeds each of `none` and of four
contrasts, `tiny`, 400 steps of 64:

    e-mix              at the rate of the earlier comparison
    e-mix, low rate    at 3e-4, which validation chose for the board
    unmixed            e-mix with λ = 1 and the same head: is it the mixing?
    e-mix, MLP head    two layers between features and loss: does the head shield the features?

Fixed before any run: the score is test accuracy with all labels of linear heads on standardised features. `v2`'s
converge; they read CLS of the last block, the mean of the last block, or the means of all blocks. `v1`'s reads the last
block. Holm corrects the 16 differences from `none` as one family, and the three from e-mix at CLS as another.
Effective ranks only describe.
"""

import argparse
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import dabsmix
from dabsmix.algorithms.emix import EMix
from dabsmix.algorithms.npair import NPair
from dabsmix.model.checkpoint import load_encoder
from dabsmix.model.encoder import Encoder
from dabsmix.pretext.contrast import dabs_head, mlp_head
from dabsmix.scoring.collapse import rankme
from dabsmix.scoring.frozen import encoding
from dabsmix.scoring.heads import Features
from dabsmix.scoring.intervals import Difference, Measured, compare, holm, measure
from dabsmix.scoring.linear import LinearGrid, fit_linear
from dabsmix.scoring.logistic import LogisticGrid, fit_logistic
from dabsmix.scoring.metrics import metric
from dabsmix.scoring.protocols import v1, v2
from dabsmix.scoring.selection import select
from dabsmix.training import accelerate

SEEDS, STEPS, BATCH = range(5), 400, 64


class Unmixed(NPair):
    """e-mix with λ = 1: dropout is the only difference between anchor and key."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.head = dabs_head(encoder.width)


class MLPHead(EMix):
    """e-mix with i-Mix's projection head of two layers in place of DABS's LayerNorm and Linear."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.head = mlp_head(encoder.width, encoder.width, "both")


CONDITIONS: dict[str, tuple[str, float]] = {
    "none": ("none", 1e-3),
    "e-mix": ("emix", 1e-3),
    "e-mix, low rate": ("emix", 3e-4),
    "unmixed": ("last_block:Unmixed", 1e-3),
    "e-mix, MLP head": ("last_block:MLPHead", 1e-3),
}
V2, V1 = v2(), v1()


def probes(data: dabsmix.data.domain.Data) -> dict[str, Any]:
    """By name, what fits one head per setting."""
    task = data.require_labelled().task
    converged = {
        "CLS, last block": "cls",
        "mean, last block": "mean",
        "means of all blocks": "blocks",
    }
    heads: dict[str, Any] = {
        name: partial(fit_logistic, task=task, grid=LogisticGrid(poolings=(pooling,)))
        for name, pooling in converged.items()
    }
    assert isinstance(V1.linear, LinearGrid)
    return heads | {"v1's linear": partial(fit_linear, task=task, grid=V1.linear, seed=0)}


def scores(run: Path, data: dabsmix.data.domain.Data) -> tuple[dict[str, Measured], dict[str, float]]:
    """Of one run, each probe's test score and the effective rank of the last block's features."""
    labelled, accuracy = data.require_labelled(), metric("accuracy")
    encode = encoding(load_encoder(run / "encoder.safetensors"), data, V2, accelerate(), title=run.name)
    train, validation, test = (
        encode(split, part)
        for split, part in ((labelled.train, "train"), (labelled.validation, "validation"), (labelled.test, "test"))
    )
    measured = {}
    for name, fit in probes(data).items():
        [chosen] = select(fit, [(train, validation)], accuracy)
        measured[name] = measure(accuracy, [chosen.head.predict(test)], test.label, test.group)
    return measured, {name: rank(train, pooling) for name, pooling in (("CLS", "cls"), ("mean", "mean"))}


def rank(part: Features, pooling: str) -> float:
    rows = part.pooled[pooling].numpy()
    return rankme(rows - rows.mean(axis=0))


def written(gain: Difference, shown: bool) -> str:
    ends = "" if gain.low is None or gain.high is None else f" ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    return f"{100 * gain.value:+.1f}{ends}" + (", shown" if shown else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/last_block"))
    folder = parser.parse_args().runs
    data = dabsmix.load("covtype")
    measured: dict[str, dict[str, list[Measured]]] = defaultdict(lambda: defaultdict(list))
    ranks: dict[str, list[dict[str, float]]] = defaultdict(list)
    for seed in SEEDS:
        for name, (algorithm, lr) in CONDITIONS.items():
            out = folder / name.replace(", ", "_").replace(" ", "_")
            run = out / f"seed{seed}"
            if not (run / "encoder.safetensors").is_file():
                dabsmix.pretrain(
                    data,
                    algorithm,
                    encoder="tiny",
                    steps=STEPS,
                    batch_size=BATCH,
                    lr=lr,
                    seed=seed,
                    out=out,
                    name=run.name,
                    resume=(run / "run.json").is_file(),
                )
            scored, effective = scores(run, data)
            ranks[name].append(effective)
            for probe, value in scored.items():
                measured[probe][name].append(value)
            print(name, seed, {probe: round(100 * value.value, 1) for probe, value in scored.items()}, flush=True)

    others = [name for name in CONDITIONS if name != "none"]
    gains = {(probe, name): compare(by[name], by["none"]) for probe, by in measured.items() for name in others}
    shown = dict(zip(gains, holm([gain.p for gain in gains.values()]), strict=True))
    print(f"\n| condition | {' | '.join(measured)} | effective rank, CLS, mean |\n|---|" + "---|" * (len(measured) + 1))
    for name in CONDITIONS:
        effective_ranks = ", ".join(f"{fmean(rank[key] for rank in ranks[name]):.0f}" for key in ("CLS", "mean"))
        cells = [
            f"{100 * fmean(seed.value for seed in by[name]):.1f}"
            + ("" if name == "none" else f"; {written(gains[probe, name], shown[probe, name])}")
            for probe, by in measured.items()
        ]
        print(f"| {name} | {' | '.join(cells)} | {effective_ranks} |")
    cls = measured["CLS, last block"]
    against = {name: compare(cls[name], cls["e-mix"]) for name in others if name != "e-mix"}
    shown_against = holm([gain.p for gain in against.values()])
    print("\nat CLS of the last block, minus e-mix:")
    for (name, gain), holds in zip(against.items(), shown_against, strict=True):
        print(f"  {name}: {written(gain, holds)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
