"""Online evaluation: a linear probe trained beside the encoder on detached features, with a separate optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from dabsmix.data.batches import Batches, Raw
from dabsmix.data.domain import Data, Labelled, Split, Task
from dabsmix.distributed import gather
from dabsmix.model.encoder import Encoder
from dabsmix.scoring.evaluate import compact, result
from dabsmix.scoring.features import features, token_features
from dabsmix.scoring.metrics import Scores, Undefined, metric
from dabsmix.scoring.results import TransferRecord, prediction_key

__all__ = ["Online", "OnlineProbe", "watch_online"]

NOTE = (
    "Online scores are of a linear probe that learned while the encoder was trained. They are compared with each other "
    "alone: the encoder moved beneath the probe, and no setting was chosen on validation."
)

# steps between two updates of the probe by protocol, the same for every algorithm
EVERY = {"v1": 10, "dabs": 1, "imix": 10}


class OnlineScores(NamedTuple):
    """The online score on the test split as the leaderboard reads it, and every test example's prediction."""

    record: TransferRecord
    predictions: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Online:
    """The probe of a run, and the labelled data that it learns from and is scored on.

    Attributes:
        probe: learns as long as training lasts.
        data: which data set these are.
        labelled: its labels.
        every: steps between two updates, each from a separate encoder pass.
        clean: whether that pass is in eval mode and in the run's precision; otherwise dropout is on and it is float32,
            as in DABS's reference.
        batches: of another data set's training part, from which the probe learns; None where it learns from the
            examples that are pretrained on.
    """

    probe: OnlineProbe
    data: Data
    labelled: Labelled
    every: int
    clean: bool
    batches: Batches | None

    def learn(self, encoder: Encoder, step: int, raw: Raw, seed: int, accelerator: Accelerator) -> Tensor | None:
        """One update at every ``every``-th step; the probe's loss, or None at the others.

        What an algorithm computes does not matter here, so that online scores of two algorithms compare.

        Args:
            encoder: in its current state.
            step: steps done.
            raw: this step's examples.
            seed: of this step's draws.
            accelerator: for its mixed precision and device.
        """
        if step % self.every:
            return None
        inputs, label = raw.inputs, raw.label
        if self.batches is not None:
            other = self.batches.read(step // self.every - 1)
            assert other.label is not None
            inputs = tuple(x.to(accelerator.device) for x in other.inputs)
            label = other.label.to(accelerator.device)
        assert label is not None
        return self.probe.learn(self._encode(encoder, inputs, accelerator), label, seed)

    @torch.no_grad()
    def _encode(self, encoder: Encoder, stored: tuple[Tensor, ...], accelerator: Accelerator) -> Tensor:
        encoder.train(not self.clean)
        with accelerator.autocast() if self.clean else nullcontext():
            embedded = encoder.embed(self.data.normalise(stored))
            hidden = encoder.encode(embedded)
            tokens = self.probe.task.kind == "tokens"
            encoded = hidden[:, 1:] if tokens else encoder.pool(hidden, embedded.mask).mean
        encoder.train()
        return encoded

    def _features(self, encoder: Encoder, split: Split, accelerator: Accelerator) -> Tensor:
        """What the probe reads of a whole split."""
        if self.probe.task.kind == "tokens":
            read = token_features(encoder, split, self.data.normalise, accelerator=accelerator, autocast=True)
        else:
            read = features(encoder, split, self.data.normalise, accelerator=accelerator, autocast=True).mean
        return read.to(accelerator.device)

    def validate(self, encoder: Encoder, accelerator: Accelerator) -> float:
        """The task's metric on the validation split; NaN if it has no value there."""
        split = self.labelled.validation
        assert split.label is not None
        return self.probe.score(self._features(encoder, split, accelerator), split.label)

    def test(
        self, encoder: Encoder, task: str, protocol: str, accelerator: Accelerator
    ) -> tuple[float, OnlineScores | None]:
        """The score on the test split, which is read here once, and what the leaderboard keeps of it.

        Args:
            encoder: trained.
            task: the name of the data that the probe learned from.
            protocol: the pretraining's, whose rules the probe follows.
            accelerator: for its mixed precision and device.

        Returns:
            The task's metric, and the record with the predictions behind it; NaN and None where it has no value.
        """
        split, probed = self.labelled.test, self.probe.task
        assert split.label is not None
        predicted = self.probe.predict(self._features(encoder, split, accelerator))
        value = _score(probed, predicted, split.label)
        if math.isnan(value):
            return value, None
        key = prediction_key("online", "1")
        record = TransferRecord(
            task=task,
            protocol=protocol,
            results=(result("online", "1", [predicted], split, probed, {"every": self.every}),),
            kind=probed.kind,
            classes=probed.classes,
            data_fingerprint=self.data.fingerprint,
            notes=(NOTE,),
            asked=(key,),
        )
        arrays = {key: compact([predicted], probed), "label": split.label}
        return value, OnlineScores(record, arrays if split.group is None else arrays | {"group": split.group})


def watch_online(
    encoder: Encoder,
    data: Data,
    other: Data | None,
    protocol: str,
    every: int | None,
    batches: Batches,
    accelerator: Accelerator,
) -> Online | None:
    """The online evaluation of a run; None if there are no labels.

    Args:
        encoder: whose features are read.
        data: what is pretrained on.
        other: another labelled data set of the same input to learn from and score, or None for `data` itself.
        protocol: the pretraining's.
        every: steps between two updates of the probe; None for the protocol's.
        batches: the pretraining's; another data set's are as large and seeded alike.
        accelerator: says which process of how many this is.
    """
    watched = data if other is None else other
    if watched.labelled is None:
        return None
    source, task = data.pretrain if other is None else watched.labelled.train, watched.labelled.task
    if source.label is None:
        return None
    label, world = source.label, accelerator.num_processes
    probe = OnlineProbe(encoder.width, task, protocol, task.target_scale(label))
    watch = partial(Online, probe, watched, watched.labelled, every or EVERY[protocol], protocol != "dabs")
    if other is None:
        return watch(None)
    size = min(batches.batch_size, len(source)) // world * world
    return watch(Batches(source, size, seed=batches.seed, rank=accelerator.process_index, world_size=world))


class OnlineProbe(nn.Module):
    """A linear head on mean-pooled features, or on every token's; what it reports is called online in every table.

    The encoder moves beneath the head while it learns. A transfer score is another thing, and comes from
    ``dabsmix transfer``.

    Args:
        width: D.
        task: what is predicted; a regression target is standardised by ``center`` and ``scale``.
        protocol: ``v1`` standardises features over the batch (running statistics in eval mode) and uses AdamW 1e-3;
            ``dabs`` is the reference's: dropout 0.2, no normalisation, Adam 1e-4 (its online_evaluator).
        target: ``Task.target_scale`` of the training labels.
    """

    def __init__(self, width: int, task: Task, protocol: str, target: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        self.task = task
        self.norm: nn.Module
        self.optimizer: torch.optim.Optimizer
        self.head = nn.Linear(width, task.num_outputs)
        if protocol == "dabs":
            self.dropout, self.norm = 0.2, nn.Identity()
            self.optimizer = torch.optim.Adam(self.head.parameters(), lr=1e-4)
        else:
            self.dropout, self.norm = 0.0, nn.BatchNorm1d(width, affine=False)
            self.optimizer = torch.optim.AdamW(self.head.parameters(), lr=1e-3)
        self.register_buffer("center", torch.tensor(target[0]))
        self.register_buffer("scale", torch.tensor(target[1]))

    center: Tensor
    scale: Tensor

    def learn(self, features: Tensor, label: Tensor, seed: int) -> Tensor:
        """One update on this step's features, ``(B, D)`` or of tokens ``(B, L, D)``, and labels, of all processes.

        Every process makes the same update, so the head needs no wrapping: dropout is drawn from ``seed``, which they
        share, and not from torch's own generator, which they do not. Returns the loss, detached.
        """
        self.train()
        features, label = gather(features.detach().float()), gather(label)
        if self.task.kind == "tokens":
            features, label = features[label >= 0], label[label >= 0]
        features = self.norm(features)
        if self.dropout:
            generator = torch.Generator(features.device).manual_seed(seed)
            active = torch.rand(features.shape, device=features.device, generator=generator) >= self.dropout
            features = features * active / (1 - self.dropout)
        loss = self.task.loss(self.head(features), label, self.center, self.scale)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def predict(self, features: Tensor) -> Scores:
        """Predictions from features ``(N, D)`` or of tokens ``(N, L, D)``, in the form of ``metrics.py``."""
        self.eval()
        outputs = self.head(self.norm(features.float().flatten(0, -2))).unflatten(0, features.shape[:-1])
        scores: Scores = self.task.scores(outputs, self.center, self.scale).double().cpu().numpy()
        return scores

    def score(self, features: Tensor, label: NDArray[Any]) -> float:
        """The task's metric on a whole split's features, computed once; NaN where it has no value there."""
        return _score(self.task, self.predict(features), label)


def _score(task: Task, predicted: Scores, label: NDArray[Any]) -> float:
    try:
        return metric(task.metric)(predicted, label)
    except Undefined:  # no reason to end a training
        return math.nan
