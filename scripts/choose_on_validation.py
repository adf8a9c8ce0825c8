"""Which of several settings on one domain to take, by few labels on validation; the test split is not read.

    python scripts/choose_on_validation.py 5/class runs/covtype-mae-s0 runs/covtype-dmix-s0 runs/covtype-dmix-s1

Each encoder is scored as `dabsmix transfer` scores it under v2, with the validation split in place of the test. At most
5,000 training examples are read, drawn with a fixed seed: few labels are drawn from them. Runs whose configurations
differ only in the seed are one setting. Prints one line per setting, the best first: the mean over its seeds, their
number, and the first of its runs.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np

import dabsmix
from dabsmix.config import NOT_IN_HASH
from dabsmix.data.domain import Data
from dabsmix.run import Run
from dabsmix.scoring.frozen import score_frozen
from dabsmix.scoring.protocols import v2
from dabsmix.training import accelerate

CANDIDATES = 5000
"""Training examples that few labels are drawn from."""


def main(share: str, *paths: str) -> None:
    runs = [Run(Path(path)) for path in paths]
    for value, seeds, first in by_setting({run: score(run, share) for run in runs}):
        print(f"{value:.4f}  {seeds}  {first.path}")


def by_setting(scores: Mapping[Run, float]) -> list[tuple[float, int, Run]]:
    """For each setting the mean score over its seeds, their number, and its first run; the highest mean first."""
    settings: dict[str, dict[int, tuple[Run, float]]] = {}
    for run, value in scores.items():
        setting = {name: value for name, value in run.config.items() if name not in (*NOT_IN_HASH, "seed")}
        seeds = settings.setdefault(json.dumps(setting, sort_keys=True, default=str), {})
        seeds.setdefault(run.config["seed"], (run, value))  # a repeated run adds nothing
    rows = [
        (mean(value for _, value in seeds.values()), len(seeds), next(iter(seeds.values()))[0])
        for seeds in settings.values()
    ]
    return sorted(rows, key=lambda row: -row[0])


def score(run: Run, share: str) -> float:
    """The linear probe's score on validation with this share of the labels."""
    data = on_validation(dabsmix.load(run.record.domain))
    rules = replace(v2(), neighbours=(), penalties=())
    encoder = run.encoder(data.specs)
    return score_frozen(encoder, data, rules, (share,), accelerate(), title=run.path.name).results[0].value


def on_validation(data: Data) -> Data:
    """The same data with the validation split in place of the test, and at most `CANDIDATES` training examples."""
    labelled = data.require_labelled()
    rows = np.sort(np.random.default_rng(0).permutation(len(labelled.train))[:CANDIDATES])
    return replace(data, labelled=replace(labelled, train=labelled.train.take(rows), test=labelled.validation))


if __name__ == "__main__":
    main(*sys.argv[1:])
