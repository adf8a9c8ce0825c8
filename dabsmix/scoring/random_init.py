"""Three random encoders of the same shape, scored next to every run: what features are worth without pretraining.

They belong to the data and the encoder's shape and not to a run, so they are scored once and stored in the cache.
Reading the test split with them does not count as a test read of the run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

import dabsmix
from dabsmix.data.batches import step_seed
from dabsmix.data.domain import Labelled
from dabsmix.files import cache_folder, write
from dabsmix.model.contract import Encoder
from dabsmix.model.encoder import build_encoder
from dabsmix.scoring.baselines import rows_digests
from dabsmix.scoring.intervals import Measured, compare, interval, measure
from dabsmix.scoring.metrics import metric
from dabsmix.scoring.results import Gain, Result, prediction_key

__all__ = ["SEEDS", "gain", "random_encoders"]

# Seeds that no run is likely to have: otherwise a run could be compared with its own initial weights.
SEEDS = (7_000_001, 7_000_002, 7_000_003)

Score = Callable[[Encoder], tuple[Sequence[Result], Mapping[str, NDArray[Any]]]]
"""Results of one probe and the predictions behind them, by `prediction_key`."""


def random_encoders(
    encoder: Encoder,
    labelled: Labelled,
    fingerprint: str,
    protocol: str,
    labels: Sequence[str],
    score: Callable[[tuple[str, ...]], Score],
    accelerator: Accelerator,
) -> dict[str, tuple[Measured, ...]]:
    """The scores of the random encoders for each share of the labels, one per seed.

    Args:
        encoder: whose shape they have.
        labelled: what they are scored on; ``fingerprint`` of the data.
        protocol: its name.
        labels: the shares.
        score: for shares of the labels, a function that scores an encoder the way the run's encoder was scored.
        accelerator: where, and among how many processes.
    """
    shape = [repr(encoder.specs), repr(encoder.config)]
    settings = [fingerprint, rows_digests(labelled), str(labelled.task), shape, protocol, SEEDS, dabsmix.__version__]

    def path_of(label: str) -> Path:
        key = hashlib.sha256(json.dumps([*settings, label]).encode()).hexdigest()[:32]
        return cache_folder() / "random" / f"{key}.npz"

    stored = {label: _read(path_of(label)) for label in labels}
    present = torch.tensor([stored[label] is not None for label in labels], dtype=torch.float32)
    agreed = accelerator.reduce(
        present.to(accelerator.device), reduction="mean"
    ).tolist()  # scoring takes all processes
    missing = tuple(label for label, share in zip(labels, agreed, strict=True) if share < 1)
    if missing:
        scored = [_scored(encoder, labelled, seed, score(missing)) for seed in SEEDS]
        for label in missing:
            stored[label] = runs = tuple(measured[label] for measured in scored)
            if accelerator.is_main_process:
                _write(path_of(label), runs)
    return {label: runs for label, runs in stored.items() if runs is not None}


def gain(
    result: Result, predictions: Mapping[str, NDArray[Any]], labelled: Labelled, random: Sequence[Measured]
) -> Gain:
    """One result of this encoder against the random ones: over test examples or groups, and over the random seeds."""
    scale = metric(result.metric)
    measured = _measured(result, predictions, labelled)
    level = interval(scale, random)
    less = compare(random, [measured], fixed=True)  # this encoder as it is, not its seed
    return Gain(
        probe=result.probe,
        label_fraction=result.label_fraction,
        metric=result.metric,
        random=level.value,
        random_low=level.low,
        random_high=level.high,
        seeds=len(random),
        value=-less.value,
        low=None if less.high is None else -less.high,
        high=None if less.low is None else -less.low,
        p=less.p,
    )


def _scored(encoder: Encoder, labelled: Labelled, seed: int, score: Score) -> dict[str, Measured]:
    torch.manual_seed(step_seed(seed, 0, "weights"))
    results, predictions = score(build_encoder(encoder.specs, encoder.config).eval())
    return {result.label_fraction: _measured(result, predictions, labelled) for result in results}


def _measured(result: Result, predictions: Mapping[str, NDArray[Any]], labelled: Labelled) -> Measured:
    test = labelled.test
    assert test.label is not None
    drawn = predictions[prediction_key(result.probe, result.label_fraction)]
    return measure(metric(result.metric), drawn, test.label, test.group)


# --- the cached file of the three encoders' scores


def _write(path: Path, runs: Sequence[Measured]) -> None:
    first = runs[0]
    arrays: dict[str, Any] = {
        "value": np.array([run.value for run in runs]),
        "unseen": np.array([run.unseen for run in runs]),
        "influence": np.stack([run.influence for run in runs]),
        "sizes": np.array([first.n, first.rarest]),
        "rows": np.frombuffer(first.rows.encode(), np.uint8),
    }
    if first.share is not None:
        arrays["share"] = first.share

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    write(path, save)


def _read(path: Path) -> tuple[Measured, ...] | None:
    """The scores of a cached file; None if it does not exist or is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            share, (n, rarest) = arrays.get("share"), arrays["sizes"].tolist()
            rows = arrays["rows"].tobytes().decode()
            values = zip(arrays["value"].tolist(), arrays["influence"], arrays["unseen"].tolist(), strict=True)
            return tuple(Measured(value, x, share, n, rarest, unseen, rows) for value, x, unseen in values)
    except Exception:  # what numpy and zipfile raise at damaged bytes is not a closed list; it is computed again
        return None
