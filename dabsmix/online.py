"""Online evaluation: a linear probe trained beside the encoder on detached features, with an optimizer of its own."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dabsmix.domain import Task
from dabsmix.gather import gather
from dabsmix.metrics import Undefined, metric

__all__ = ["OnlineProbe"]


class OnlineProbe(nn.Module):
    """A linear head on mean-pooled features; what it reports is called online in every table.

    The features come from training itself: dropout is on, the encoder moves beneath the head. A transfer score is
    another thing, and comes from ``dabsmix transfer``.

    Args:
        width: D.
        task: what is predicted; a regression target is standardised by ``center`` and ``scale``.
        protocol: ``v1`` standardises features over the batch (running statistics in eval mode) and uses AdamW 1e-3;
            ``dabs`` is the reference's: dropout 0.2, no normalisation, Adam 1e-4 (its online_evaluator).
        target: mean and standard deviation of a regression target in train.
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
        """One update on this step's features ``(B, D)`` and labels, gathered from every process.

        Every process makes the same update, so the head needs no wrapping: dropout is drawn from ``seed``, which they
        share, and not from torch's own generator, which they do not. Returns the loss, detached.
        """
        self.train()
        features, label = self.norm(gather(features.detach().float())), gather(label)
        if self.dropout:
            generator = torch.Generator(features.device).manual_seed(seed)
            kept = torch.rand(features.shape, device=features.device, generator=generator) >= self.dropout
            features = features * kept / (1 - self.dropout)
        loss = self._loss(self.head(features), label)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.optimizer.step()
        return loss.detach()

    def _loss(self, outputs: Tensor, label: Tensor) -> Tensor:
        if self.task.kind == "regression":
            return F.mse_loss(outputs[:, 0], (label - self.center) / self.scale)
        if self.task.kind == "multilabel":
            return F.binary_cross_entropy_with_logits(outputs, label.float())
        return F.cross_entropy(outputs, label)

    @torch.no_grad()
    def score(self, features: Tensor, label: NDArray[Any]) -> float:
        """The task's metric on a whole split's features ``(n, D)``, computed once; NaN where it has no value there."""
        self.eval()
        outputs = self.head(self.norm(features.float()))
        if self.task.kind == "regression":
            outputs = outputs[:, 0] * self.scale + self.center
        try:
            return metric(self.task.metric)(outputs.double().cpu().numpy(), label)
        except Undefined:  # no reason to end a training
            return math.nan
