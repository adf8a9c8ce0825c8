"""A grid of linear heads, trained together in one pass by gradient descent on shared minibatches."""

# V poolings, n examples, b rows of a minibatch, D width, H heads (one per rate and decay), C outputs

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dabsmix.data.domain import Task
from dabsmix.scoring.heads import Features, LinearHead, Scale, scored

__all__ = ["LinearGrid", "fit_linear"]


@dataclass(frozen=True)
class LinearGrid:
    """How a grid of linear heads is trained: one head per pooling, rate and decay.

    Attributes:
        poolings: which features to read: whichever of ``mean`` and ``cls`` are present (``tokens`` and ``raw`` always).
        rates: learning rates.
        decays: weight decays; outside the gradient for AdamW, in it for Adam and SGD, where a decay d means the penalty
            ``d/2 |W|²`` on the mean loss (scikit-learn's ``C = 1/(d n)``). Biases never decay.
        optimizer: ``adam`` or ``adamw`` with torch's default betas, or ``sgd`` with momentum 0.9.
        schedule: the rate's factor at a share of training between 0 and 1.
        batch_size: rows of a minibatch; the last, incomplete one of an epoch is left out.
        epochs: passes over the training part.
        steps: least and greatest number of steps, whatever `epochs` says.
        standardise: whether features, and a regression's target, are standardised by the training part.
        start: initial weights: zero, ``normal`` N(0, 0.01) with zero bias, or ``uniform`` as torch's Linear has.
        one_logit: whether two classes have one logit and binary cross-entropy instead of two and cross-entropy.
    """

    poolings: tuple[str, ...] = ("mean", "cls")
    rates: tuple[float, ...] = (1e-3,)
    decays: tuple[float, ...] = (0.0,)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    schedule: Callable[[float], float] = field(default=lambda progress: 1.0)
    batch_size: int = 256
    epochs: int = 100
    steps: tuple[int, float] = (1, math.inf)
    standardise: bool = True
    start: Literal["zero", "normal", "uniform"] = "zero"
    one_logit: bool = False


def fit_linear(
    train: Features,
    task: Task,
    grid: LinearGrid,
    *,
    seed: int = 0,
    redraw: Callable[[int], Features] | None = None,
) -> list[LinearHead]:
    """Trains every head of the grid in one pass over shared minibatches.

    Heads share nothing but the order of rows and the initial weights, so each is what it would be alone, to rounding.
    The gradient is written out: for softmax with cross-entropy, sigmoid with binary cross-entropy and squared error
    alike it is ``xᵀ (prediction - target)``.

    Args:
        train: the training part.
        task: cross-entropy for ``classes`` and ``tokens`` (tokens labelled -1 are left out), binary cross-entropy for
            ``multilabel``, mean squared error for ``regression``.
        grid: the settings.
        seed: of the order of rows and the initial weights. The same seed gives the same bits on a CPU.
        redraw: returns new training features for epoch 0, 1, ..., of the same rows in the same order. It is for
            protocols whose encoder has dropout on, or whose inputs are augmented, while heads are trained.

    Returns:
        One head per pooling, rate and decay, the decay running fastest.
    """
    names = [name for name in train.pooled if name in (*grid.poolings, "tokens", "raw")]
    views = [train.pooled[name] for name in names]
    like = views[0]
    one_logit = grid.one_logit and task.kind == "classes" and task.num_outputs == 2
    target = _target(train.label, task, one_logit, like)
    offset, spread = task.target_scale(target.cpu().numpy()) if grid.standardise else (0.0, 1.0)
    if task.kind == "regression":
        target = (target - offset) / spread
    scales = [Scale.of(scored(view, train.label)[0]) if grid.standardise else Scale.none(view) for view in views]
    mean, std = (torch.stack([getattr(scale, part) for scale in scales])[:, None] for part in ("mean", "std"))

    settings = [(rate, decay) for rate in grid.rates for decay in grid.decays]
    rate, decay = (like.new_tensor(column)[:, None] for column in zip(*settings, strict=True))  # (H, 1)
    draws = torch.Generator().manual_seed(seed)
    start = _start(like.shape[-1], 1 if one_logit else task.num_outputs, grid.start, draws).to(like)
    weight = start[None, :, None].repeat(len(names), 1, len(settings), 1)  # (V, D+1, H, C)
    if grid.optimizer == "sgd":
        update: _SGD | _Adam = _SGD(weight, rate, decay)
    else:
        update = _Adam(weight, rate, decay, decoupled=grid.optimizer == "adamw")

    batch = min(grid.batch_size, len(train))
    per_epoch = len(train) // batch
    steps = int(min(max(grid.epochs * per_epoch, grid.steps[0]), grid.steps[1]))
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = torch.randperm(len(train), generator=draws).to(like.device)
            if redraw is not None:
                fresh = redraw(epoch)
                views = [fresh.pooled[name] for name in names]
        index = order[place * batch : (place + 1) * batch]
        rows, targets = torch.stack([view[index] for view in views]), target[index]
        if task.kind == "tokens":
            rows, targets = rows[:, targets >= 0], targets[targets >= 0]
        rows = F.pad((rows - mean) / std, (0, 1), value=1.0)  # (V, b, D+1): the bias is the weight of a constant 1
        logits = torch.bmm(rows, weight.flatten(2)).view(len(names), -1, *weight.shape[2:])  # (V, b, H, C)
        residual = _residual(logits, targets, task.kind)
        update(torch.bmm(rows.mT, residual.flatten(2)).view_as(weight), grid.schedule(step / steps))

    return [
        LinearHead(
            {"pooling": name, "rate": settings[h][0], "decay": settings[h][1]},
            name,
            scales[v],
            weight[v, :-1, h] * spread,
            weight[v, -1, h] * spread + offset,
            task.kind,
        )
        for v, name in enumerate(names)
        for h in range(len(settings))
    ]


def _target(label: NDArray[Any], task: Task, one_logit: bool, like: Tensor) -> Tensor:
    """Class numbers, int64, for cross-entropy; else what logits ``(n, C)`` are compared with, in features' type."""
    target = torch.from_numpy(label).to(like.device)
    if task.kind in ("classes", "tokens") and not one_logit:
        return target.long()
    return target.reshape(len(label), -1).to(like.dtype)


def _start(width: int, outputs: int, how: str, draws: torch.Generator) -> Tensor:
    """Initial weights ``(D+1, C)``, the bias last."""
    match how:
        case "zero":
            return torch.zeros(width + 1, outputs)
        case "normal":
            weight = torch.randn(width, outputs, generator=draws) * 0.01
            return torch.cat([weight, torch.zeros(1, outputs)])
        case _:
            return (2 * torch.rand(width + 1, outputs, generator=draws) - 1) / math.sqrt(width)


def _residual(logits: Tensor, target: Tensor, kind: str) -> Tensor:
    """The mean loss's derivative by logits ``(V, b, H, C)``, for targets ``(b,)`` of classes or ``(b, C)``."""
    rows, outputs = logits.shape[1], logits.shape[3]
    if not target.is_floating_point():
        return (logits.softmax(dim=-1) - F.one_hot(target, outputs)[:, None]) / rows
    if kind == "regression":
        return 2 * (logits - target[:, None]) / (rows * outputs)
    return (logits.sigmoid() - target[:, None]) / (rows * outputs)


class _Adam:
    """Adam with the decay in the gradient, or AdamW with it outside (Loshchilov and Hutter 2019); torch's defaults.

    On weights ``(V, D+1, H, C)``, in place.
    """

    def __init__(self, weight: Tensor, rate: Tensor, decay: Tensor, *, decoupled: bool) -> None:
        self.weight, self.rate, self.decay, self.decoupled = weight, rate, decay, decoupled
        self.first, self.second = torch.zeros_like(weight), torch.zeros_like(weight)
        self.step = 0

    def __call__(self, gradient: Tensor, factor: float) -> None:
        self.step += 1
        rate = self.rate * factor
        if self.decoupled:
            self.weight[:, :-1] *= 1 - rate * self.decay
        else:
            gradient[:, :-1] += self.decay * self.weight[:, :-1]
        self.first.lerp_(gradient, 1 - 0.9)
        self.second.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
        spread = (self.second / (1 - 0.999**self.step)).sqrt_().add_(1e-8)
        self.weight.sub_(rate / (1 - 0.9**self.step) * self.first / spread)


class _SGD:
    """Stochastic gradient descent with momentum 0.9 as torch has it, on weights ``(V, D+1, H, C)``, in place."""

    def __init__(self, weight: Tensor, rate: Tensor, decay: Tensor) -> None:
        self.weight, self.rate, self.decay = weight, rate, decay
        self.velocity = torch.zeros_like(weight)

    def __call__(self, gradient: Tensor, factor: float) -> None:
        gradient[:, :-1] += self.decay * self.weight[:, :-1]
        self.velocity.mul_(0.9).add_(gradient)
        self.weight.sub_(self.rate * factor * self.velocity)
