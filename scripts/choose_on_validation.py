"""Choose among several runs on one domain, by few labels on validation; the test split is not read.

    python scripts/choose_on_validation.py 5/class runs/covtype-mae-s0 runs/covtype-dmix-s0

Each encoder is scored as `dabsmix transfer` scores it under v2, with the validation split in place of the test. At most
5,000 training examples are read, drawn with a fixed seed: few labels are drawn from them. Prints one line per run,
the best first.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

import dabsmix
from dabsmix.run import Run
from dabsmix.scoring.frozen import score_frozen
from dabsmix.scoring.protocols import v2
from dabsmix.training import accelerate

CANDIDATES = 5000
"""Training examples that few labels are drawn from."""


def main() -> None:
    share, *paths = sys.argv[1:]
    scores = []
    for run in (Run(Path(path)) for path in paths):
        data = dabsmix.load(run.record.domain)
        labelled = data.require_labelled()
        rows = np.sort(np.random.default_rng(0).permutation(len(labelled.train))[:CANDIDATES])
        seen = replace(labelled, train=labelled.train.take(rows), test=labelled.validation)
        rules = replace(v2(), neighbours=(), penalties=())
        scored = score_frozen(
            run.encoder(data.specs), replace(data, labelled=seen), rules, (share,), accelerate(), title=run.path.name
        )
        scores.append((scored.results[0].value, run.path))
    for value, path in sorted(scores, reverse=True):
        print(f"{value:.4f}  {path}")


if __name__ == "__main__":
    main()
