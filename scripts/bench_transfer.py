"""Wall time of protocol v2 with its whole grid against re-encoding the data in every epoch for one learning rate.

    python scripts/bench_transfer.py --domain cifar10            # the dabs encoder
    python scripts/bench_transfer.py --encoder tiny --examples 500

Both sides use the same examples, encoder and device, and run in turn in one process. v2 computes features of train,
validation and test once, then fits every probe at every share of the labels, chooses on validation, and scores on test
with intervals. Re-encoding trains one head with AdamW at one rate on batches of 256; each batch is encoded anew in
every epoch, without gradient through the encoder and without reading validation or test. A few epochs are timed, and
the time of 100 is extrapolated. The script prints medians over repeats.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import dabsmix
from dabsmix.data.domain import Data, Split
from dabsmix.model.encoder import Encoder, Transformer, make_encoder
from dabsmix.run import commit, device_name
from dabsmix.scoring.evaluate import choose, score
from dabsmix.scoring.features import all_poolings
from dabsmix.scoring.heads import Features
from dabsmix.scoring.logistic import LogisticGrid
from dabsmix.scoring.protocols import v2
from dabsmix.source import Source, load
from dabsmix.training import accelerate

EPOCHS = 100
LABELS = ("1", "0.1", "0.01")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", default="synthetic_image", help="default: %(default)s, which needs no files")
    parser.add_argument("--encoder", default="dabs")
    parser.add_argument("--examples", type=int, help="of train, validation and test together; default: all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1, help="epochs of re-encoding to time in each repeat")
    options = parser.parse_args()

    accelerator = accelerate()
    device = accelerator.device
    data = load(Source(options.domain))
    task = data.require_labelled().task
    parts = first_rows(data, options.examples)
    torch.manual_seed(0)
    encoder = make_encoder(options.encoder, data.specs).to(device).eval()
    if not isinstance(encoder, Transformer):
        raise SystemExit(f"--encoder {options.encoder}: probes are timed on all blocks, so name one with tokens")

    def encode(split: Split) -> Features:
        assert split.label is not None
        pooled = all_poolings(encoder, split, data.normalise, accelerator=accelerator)
        return Features({name: x.to(device) for name, x in pooled.items()}, split.label, split.group)

    encode(parts[0].take(np.arange(256)))  # a warm-up: some costs of a device occur only once
    passes, probes, others = [], [], []
    for _ in range(options.repeats):
        began = timed(device)
        train, validation, test = (encode(split) for split in parts)
        passes.append(began())
        began = timed(device)
        results, _ = score(choose(train, validation, task, v2(), LABELS), test, task)
        probes.append(began())
        began = timed(device)
        for _ in range(options.epochs):
            epoch(encoder, parts[0], data, device)
        others.append(began() / options.epochs)

    total = [a + b for a, b in zip(passes, probes, strict=True)]
    sizes = " + ".join(str(len(split)) for split in parts)
    head = "1 linear head"
    rules = v2()
    assert isinstance(rules.linear, LogisticGrid)
    heads = f"{len(rules.linear.strengths) * len(rules.poolings)} linear heads, knn, ridge; labels {LABELS}"
    print(f"{options.domain}: {sizes} examples (train, validation, test); encoder {options.encoder}")
    print(f"{'encoder pass over all examples':<44}{median(passes):10.2f} s")
    print(f"{'v2: every probe on these features':<44}{median(probes):10.2f} s   {heads}")
    print(f"{'v2 in all':<44}{median(total):10.2f} s   = {median(total) / median(passes):.2f} encoder passes")
    print(f"{'re-encoding: one epoch of train':<44}{median(others):10.2f} s   {head}")
    print(f"{f're-encoding: {EPOCHS} epochs (extrapolated)':<44}{EPOCHS * median(others):10.2f} s")
    print(f"v2 takes {EPOCHS * median(others) / median(total):.1f} times less; medians of {options.repeats} repeats")
    print(f"linear probe with all labels: {100 * results[0].value:.1f} % (random weights)")
    print(
        f"{device_name(device)}; torch {torch.__version__}, {torch.get_num_threads()} threads; "
        f"dabsmix {dabsmix.__version__}, commit {commit()}"
    )


def first_rows(data: Data, examples: int | None) -> tuple[Split, Split, Split]:
    """The first rows of train, validation and test, in the proportions of the data set."""
    splits = tuple(data.require_labelled().splits.values())
    total = sum(len(split) for split in splits)
    examples = examples or total
    if examples > total:
        raise SystemExit(f"--examples {examples}: there are {total}")
    train, validation, test = (split.take(np.arange(len(split) * examples // total)) for split in splits)
    return train, validation, test


def timed(device: torch.device) -> Callable[[], float]:
    """Start a clock that waits for the device at both ends; calling the result reads it."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    began = now()
    return lambda: now() - began


def epoch(encoder: Encoder, train: Split, data: Data, device: torch.device) -> None:
    """One epoch of a linear head, every batch encoded anew."""
    assert train.label is not None
    head = nn.Linear(encoder.width, data.require_labelled().task.num_outputs, device=device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    label = torch.from_numpy(train.label).to(device)
    order = np.random.default_rng(0).permutation(len(train))
    for start in range(0, len(order), 256):
        index = order[start : start + 256]
        with torch.no_grad():
            pooled = encoder(data.normalise(tuple(x.to(device) for x in train.batch(index)))).mean
        loss = F.cross_entropy(head(pooled), label[torch.from_numpy(index).to(device)])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()


if __name__ == "__main__":
    main()
