"""Scores of a frozen encoder: features once per split, every probe chosen on validation, the test split read once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import dabsmix
from dabsmix.data.domain import Data, Labelled, Split
from dabsmix.files import write
from dabsmix.model.encoder import Encoder, Transformer
from dabsmix.scoring.collapse import frechet_distance
from dabsmix.scoring.evaluate import choose, score
from dabsmix.scoring.features import all_poolings, features, token_features
from dabsmix.scoring.heads import Features
from dabsmix.scoring.heads import scored as scored_rows
from dabsmix.scoring.metrics import OFFERED, metric
from dabsmix.scoring.protocols import TransferProtocol
from dabsmix.scoring.results import AT_EDGE, Result, prediction_key
from dabsmix.terminal import progress, stage

__all__ = ["FeatureStore", "TaskScores", "encoding", "notes_on", "other_metrics", "score_frozen", "truth"]

log = logging.getLogger(__name__)


class TaskScores(NamedTuple):
    """The scores of one reading of the test split, and the predictions behind them."""

    results: list[Result]
    predictions: dict[str, NDArray[Any]]
    train_value: float | None
    frechet: float | None
    outputs: NDArray[Any]  # the headline's scores of every test example, of its first draw


POOLINGS = ("mean", "cls", "blocks", "tokens")
"""The order in which an encoder gives its features. Of equally good settings the first is chosen, so features from a
file, which has its own order, must be read back in this one."""


class FeatureStore(NamedTuple):
    """Where the features of an encoder are stored: the folder, and the digest of the encoder's file."""

    folder: Path
    encoder_sha256: str


def score_frozen(
    encoder: Encoder,
    data: Data,
    rules: TransferProtocol,
    labels: tuple[str, ...],
    accelerator: Accelerator,
    *,
    title: str,
    keep: FeatureStore | None = None,
) -> TaskScores:
    """Features of the frozen encoder, once per split; every probe is chosen, then scored.

    Args:
        encoder: moved to the accelerator's device.
        data: labelled.
        rules: the protocol.
        labels: shares of the labels, as ``evaluate.share`` reads them.
        accelerator: where, and among how many processes.
        title: of the task, for progress.
        keep: where the features are stored for the next time; None to store none.
    """
    labelled = data.require_labelled()
    encode = encoding(encoder, data, rules, accelerator, title=title, keep=keep)
    train, validation = encode(labelled.train, "train"), encode(labelled.validation, "validation")

    stage(f"{title}: probes")
    # Chosen without the test split, which nothing between this line and the next comment sees.
    redraw = partial(_with_dropout, encoder, labelled.train, data, accelerator) if rules.dropout else None
    chosen = choose(train, validation, labelled.task, rules, labels, redraw=redraw)

    # Read once.
    test = encode(labelled.test, "test")
    results, predictions = score(chosen, test, labelled.task, other_metrics(data))
    full = chosen.get(("linear", "1"))
    return TaskScores(
        results,
        predictions | truth(labelled.test),
        metric(labelled.task.metric)(full[0].head.predict(train), train.label) if full else None,
        frechet_distance(_rows(train), _rows(test)) if min(len(train), len(test)) > 1 else None,
        next(iter(chosen.values()))[0].head.predict(test),
    )


def encoding(
    encoder: Encoder,
    data: Data,
    rules: TransferProtocol,
    accelerator: Accelerator,
    *,
    title: str,
    keep: FeatureStore | None = None,
) -> Callable[[Split, str], Features]:
    """Reads the features of a split, given its name; see `score_frozen` for the arguments."""
    encoder.to(accelerator.device)

    def encode(split: Split, part: str) -> Features:
        watch = partial(progress, f"{title}: features of {part}")
        if keep is None:
            tensors = _encode(encoder, split, data, accelerator, rules.poolings, watch=watch)
            return _as_features(tensors, split, accelerator)
        path = keep.folder / f"{title}-{rules.name}-{part}.safetensors"
        key = f"{keep.encoder_sha256} {data.fingerprint} {len(split)} {dabsmix.__version__}"
        stored = _stored(path, key)
        if stored is None:
            stored = _encode(encoder, split, data, accelerator, rules.poolings, watch=watch)
            if accelerator.is_main_process:
                _keep(path, key, stored)
        return _as_features(stored, split, accelerator)

    return encode


def other_metrics(data: Data) -> tuple[str, ...]:
    """Further metrics to report for a user's own data: all that are offered. A named domain has only its own."""
    task = data.require_labelled().task
    if data.source is None or data.source.domain is not None:
        return ()
    return tuple(name for name in OFFERED.get(task.kind, ()) if name != task.metric)


def truth(test: Split) -> dict[str, NDArray[Any]]:
    """The labels and groups of the test split, by the names that they have beside its predictions."""
    assert test.label is not None
    return {"label": test.label} if test.group is None else {"label": test.label, "group": test.group}


HOW_CHOSEN = ("validation", "candidates", "at_edge")
"""Entries of ``Result.selected`` that are not part of the setting."""


def notes_on(scored: TaskScores, labelled: Labelled) -> tuple[str, ...]:
    """What a reader of the scores has to know about them, in complete sentences."""
    edges = [
        f"The {result.probe} probe with labels {result.label_fraction} {AT_EDGE}: "
        f"{', '.join(f'{name} {result.selected[name]}' for name in result.selected if name not in HOW_CHOSEN)}."
        for result in scored.results
        if result.selected.get("at_edge") and result.probe in ("linear", "ridge")
    ]
    return (*edges, *_over_all_examples(scored, labelled))


def _over_all_examples(scored: TaskScores, labelled: Labelled) -> tuple[str, ...]:
    """A note with the value over all examples, if the metric is DABS's mean over batches."""
    base, slash, rows = labelled.task.metric.partition("/")
    if not slash:
        return ()
    label = labelled.test.label
    assert label is not None
    values = []
    for result in scored.results:
        scores = scored.predictions[prediction_key(result.probe, result.label_fraction)][0]
        values.append(f"{result.probe} {metric(base)(scores, label):.4f}")
    return (
        f"{labelled.task.metric} is the mean over batches of {rows}, as in DABS. "
        f"Over all examples: {', '.join(values)}.",
    )


def _keep(path: Path, key: str, tensors: Mapping[str, Tensor]) -> None:
    metadata = {"key": key, "sha256": _digest(tensors)}

    def save(temporary: Path) -> None:
        try:
            save_file(dict(tensors), temporary, metadata)  # from where they lie, without a copy in memory
        except SafetensorError as error:  # the disk is full
            raise OSError(str(error)) from error

    write(path, save)


def _with_dropout(encoder: Encoder, split: Split, data: Data, accelerator: Accelerator, epoch: int) -> Features:
    """Features of one epoch with the encoder's dropout on, as DABS's reference trains its heads."""
    torch.manual_seed(epoch)
    return _as_features(_encode(encoder, split, data, accelerator, ("mean", "cls"), dropout=True), split, accelerator)


def _encode(
    encoder: Encoder, split: Split, data: Data, accelerator: Accelerator, poolings: tuple[str, ...], **how: Any
) -> dict[str, Tensor]:
    if data.require_labelled().task.kind == "tokens":
        return {"tokens": token_features(encoder, split, data.normalise, accelerator=accelerator, **how)}
    if not encoder.has_tokens:  # one feature: there is nothing to pool
        return {"mean": features(encoder, split, data.normalise, accelerator=accelerator, **how).mean}
    if "blocks" in poolings and isinstance(encoder, Transformer):
        return all_poolings(encoder, split, data.normalise, accelerator=accelerator, **how)
    return features(encoder, split, data.normalise, accelerator=accelerator, **how)._asdict()


def _stored(path: Path, key: str) -> dict[str, Tensor] | None:
    """The features in a file, which is mapped; None if there is none, it is of other data, or it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("key") != key or "sha256" not in metadata:
            return None
        tensors = load_file(str(path))
        if _digest(tensors) == metadata["sha256"]:
            return {name: tensors[name] for name in POOLINGS if name in tensors}
    except (OSError, SafetensorError):
        pass
    log.warning("%s is damaged: its features are computed again", path)
    return None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Hex sha256 over names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].numpy()
        digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
        digest.update(values.data)
    return digest.hexdigest()


def _as_features(tensors: Mapping[str, Tensor], split: Split, accelerator: Accelerator) -> Features:
    assert split.label is not None
    return Features({name: x.to(accelerator.device) for name, x in tensors.items()}, split.label, split.group)


def _rows(part: Features) -> NDArray[np.float32]:
    """Mean features, or those of the scored tokens, ``(m, D)``."""
    name = "tokens" if "tokens" in part.pooled else "mean"
    return scored_rows(part.pooled[name], part.label)[0].cpu().numpy()
