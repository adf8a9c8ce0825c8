"""Mixing while a head or a whole network is trained on known labels: what is drawn, what is mixed, and each loss.

Two examples of a batch are mixed with weight λ and so are their targets: one-hot classes, several labels, or a
standardised quantity. Partners are drawn within one process's part of the batch.

| name | what is mixed | loss |
|---|---|---|
| mixup | tokens before positions (Zhang et al. 2018) | that of the mixed targets |
| cutmix | a block of tokens, one for the batch (Yun et al. 2019) | the same |
| manifold | the input of a random block (Verma et al. 2019) | the same |
| mixupe | as mixup (Zou et al. 2023) | plus a bound on the directional derivative, see `mixupe` |
| regmixup | as mixup, with a large α (Pinto et al. 2022) | that of the clean batch plus that of the mixed one |
| guided | as mixup | that of the mixed samples on which a teacher is no worse than the student, see `no_worse` |
"""

# B examples, L tokens, D width, C outputs

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dabsmix.data.domain import Task
from dabsmix.model.contract import Embedded, Encoder, with_cls
from dabsmix.scoring.results import HeadMix

if TYPE_CHECKING:
    from dabsmix.scoring.finetune import Network

__all__ = [
    "Drawn",
    "MixedLoss",
    "alpha_at",
    "cut",
    "draw",
    "el2n",
    "interpolate",
    "losses",
    "mixupe",
    "no_worse",
    "targets",
]

ETA = 1.0  # MixupE's η: its slides leave it open, its authors' code has 1, and 0.001 in the example for CIFAR-100
MEAN_OTHER = 0.5  # E[1 - λ] for λ ~ Beta(α, α), whatever α is; the authors' code takes λ ~ Beta(α + 1, α)
NO_MIXING = 1e-3  # below this α every λ is 0 or 1


def alpha_at(mix: HeadMix, progress: float) -> float:
    """α at a share of training between 0 and 1.

    The exponential schedules run between 0 and 10 times α. ``hard`` rises, so that mixtures become harder, and ``easy``
    falls, both through α at half of training; ``easy-hard-easy`` rises until then and falls again.
    """
    match mix.schedule:
        case "constant":
            return mix.strength
        case "hard":
            height = progress
        case "easy":
            height = 1 - progress
        case "easy-hard-easy":
            height = 1 - abs(2 * progress - 1)
    return mix.strength * float(81**height - 1) / 8  # the exponential through (0, 0), (1/2, 1) and (1, 10)


# --- what is drawn


class Drawn(NamedTuple):
    """A batch's mixture: each example's partner ``(B,)``, λ ``(B,)``, and where.

    ``inside`` is cutmix's block of tokens, bool ``(L,)``; ``block`` is the number of manifold mixup's block.
    """

    partner: Tensor
    weight: Tensor
    inside: Tensor | None = None
    block: int | None = None


def draw(
    rng: np.random.Generator, mix: HeadMix, alpha: float, size: int, encoder: Encoder, device: torch.device
) -> Drawn | None:
    """Partners and λ ~ Beta(α, α), one per example, or one per batch under cutmix; None if α is nearly 0."""
    if alpha < NO_MIXING or size < 2:
        return None
    partner = torch.from_numpy(rng.permutation(size)).to(device)
    drawn = rng.beta(alpha, alpha, size=1 if mix.method == "cutmix" else size)
    weight = torch.from_numpy(drawn.astype(np.float32)).to(device).expand(size)
    inside = (
        torch.from_numpy(_block(rng, encoder.grids, float(drawn[0]))).to(device) if mix.method == "cutmix" else None
    )
    block = int(rng.integers(len(encoder.blocks))) if mix.method == "manifold" else None
    return Drawn(partner, weight, inside, block)


def _block(rng: np.random.Generator, grids: tuple[tuple[int, ...], ...], weight: float) -> np.ndarray:
    """Of each input a block of area 1 - λ around a uniform centre, clipped at the border: bool ``(L,)``."""
    parts = []
    for grid in grids:
        inside = np.ones(grid, dtype=bool)
        for axis, length in enumerate(grid):
            side = round(length * (1 - weight) ** (1 / len(grid)))
            offset = np.arange(length) - (int(rng.integers(length)) - side // 2)
            shape = [length if other_axis == axis else 1 for other_axis in range(len(grid))]
            inside &= ((offset >= 0) & (offset < side)).reshape(shape)
        parts.append(inside.ravel())
    return np.concatenate(parts)


# --- what is mixed


def interpolate(hidden: Tensor, real: Tensor | None, drawn: Drawn) -> tuple[Tensor, Tensor]:
    """``λ h + (1-λ) h'`` of ``(B, L, D)``, and the weight ``(B,)`` of each example's own target.

    If one of the two tokens is padding, the example keeps its own token, and its target weighs more than λ.
    """
    share = drawn.weight.to(hidden.dtype)[:, None, None]
    mixed = share * hidden + (1 - share) * hidden[drawn.partner]
    if real is None:
        return mixed, drawn.weight
    both = real & real[drawn.partner]
    unmixed = 1 - both.sum(dim=1) / real.sum(dim=1).clamp_min(1)
    return torch.where(both[..., None], mixed, hidden), drawn.weight + (1 - drawn.weight) * unmixed


def cut(hidden: Tensor, real: Tensor | None, drawn: Drawn) -> tuple[Tensor, Tensor]:
    """The partner's tokens inside the block, and the share ``(B,)`` of its real tokens that each example keeps."""
    assert drawn.inside is not None
    real = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device) if real is None else real
    replaced = drawn.inside & real & real[drawn.partner]
    mixed = torch.where(replaced[..., None], hidden[drawn.partner], hidden)
    return mixed, 1 - replaced.sum(dim=1) / real.sum(dim=1).clamp_min(1)


def _outputs(
    network: Network, embedded: Embedded, drawn: Drawn, *, clean: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Outputs ``(B, C)`` of the mixed batch, of the clean one if asked for, and the weights of the own targets."""
    tokens, mask = embedded
    if drawn.block is not None:
        weights: list[Tensor] = []

        def mix(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            mixed, weight = interpolate(args[0], None if mask is None else with_cls(mask), drawn)
            weights.append(weight)
            return (mixed, *args[1:])

        handle = network.encoder.blocks[drawn.block].register_forward_pre_hook(mix)
        try:
            return network.read(embedded), None, weights[0]
        finally:
            handle.remove()
    mixed, weight = (interpolate if drawn.inside is None else cut)(tokens, mask, drawn)
    if not clean:
        return network.read(Embedded(mixed, mask)), None, weight
    both = Embedded(torch.cat([mixed, tokens]), None if mask is None else torch.cat([mask, mask]))
    outputs = network.read(both)  # one pass: DDP sees one forward a step
    return outputs[: len(tokens)], outputs[len(tokens) :], weight


# --- losses


def targets(label: Tensor, task: Task, center: float, scale: float, like: Tensor) -> Tensor:
    """Labels as they are mixed, ``(B, C)``: one-hot, several labels, or the standardised quantity ``(B, 1)``."""
    match task.kind:
        case "regression":
            return ((label - center) / scale)[:, None].to(like.dtype)
        case "multilabel":
            return label.to(like.dtype)
        case _:
            return F.one_hot(label, task.num_outputs).to(like.dtype)


def losses(outputs: Tensor, target: Tensor, kind: str) -> Tensor:
    """The loss of each example ``(B,)`` against targets ``(B, C)``, mixed or not."""
    match kind:
        case "regression":
            return ((outputs - target) ** 2)[:, 0]
        case "multilabel":
            return F.binary_cross_entropy_with_logits(outputs, target, reduction="none").mean(dim=1)
        case _:
            return -(target * outputs.log_softmax(dim=1)).sum(dim=1)


def mixupe(mixed: Tensor, outputs: Tensor, target: Tensor, kind: str, eta: float = ETA) -> Tensor:
    """MixupE's loss (Zou et al. 2023): ``η̂ (L_mix + η R)``.

    ``R = E[1-λ]/B · Σ_i |q̂_i|`` with ``q̂_i = (y_i - g(f_i))ᵀ f_i``, g the softmax (of several labels the sigmoid),
    stands for the first directional derivative that mixup regularises. ``η̂ = |L_mix| / |L_mix + η R|`` keeps the size
    of the loss. It is held constant in the gradient: otherwise the product would be |L_mix| and R would have no effect.

    Args:
        mixed: L_mix, a scalar.
        outputs, target: of the clean batch, ``(B, C)``.
        kind: of the task.
        eta: η.
    """
    predicted = outputs.sigmoid() if kind == "multilabel" else outputs.softmax(dim=1)
    derivative = ((target - predicted) * outputs).sum(dim=1)
    regularised = mixed + eta * MEAN_OTHER * derivative.abs().mean()
    return (mixed.detach().abs() / regularised.detach().abs().clamp_min(1e-12)) * regularised


def no_worse(teacher: Tensor, student: Tensor) -> Tensor:
    """Which mixed samples a guided student learns from, bool ``(B,)``: those with ``r̂ = H_teacher - H_student ≤ 0``.

    H is the loss of a mixed sample. A sample on which the student is better than its teacher is left out.
    """
    return teacher - student <= 0


def el2n(scores: Tensor, label: Tensor) -> Tensor:
    """``|softmax(f(x)) - y|₂`` of each example ``(B,)``, from outputs ``(B, C)`` and classes (Paul et al. 2021)."""
    wrong: Tensor = scores.softmax(dim=1) - F.one_hot(label, scores.shape[1])
    return wrong.square().sum(dim=1).sqrt()


class MixedLoss(nn.Module):
    """A network and what it is trained by; a module, so that DDP sees one forward a step.

    Args:
        network: is trained.
        mix: how.
    """

    def __init__(self, network: Network, mix: HeadMix) -> None:
        super().__init__()
        self.network, self.mix = network, mix

    def forward(
        self, inputs: tuple[Tensor, ...], label: Tensor, drawn: Drawn | None, teacher: Network | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and the share of its samples that were learned from."""
        network, task, method = self.network, self.network.task, self.mix.method
        embedded = network.encoder.embed(inputs)
        all_samples = torch.ones((), device=label.device)
        if drawn is None:
            return network.loss(network.read(embedded), label), all_samples
        mixed, clean, weight = _outputs(network, embedded, drawn, clean=method in ("mixupe", "regmixup"))
        unmixed = targets(label, task, network.center, network.scale, mixed)
        target = weight[:, None] * unmixed + (1 - weight[:, None]) * unmixed[drawn.partner]
        per_sample = losses(mixed, target, task.kind)
        if clean is not None:
            if method == "mixupe":
                return mixupe(per_sample.mean(), clean, unmixed, task.kind), all_samples
            return losses(clean, unmixed, task.kind).mean() + per_sample.mean(), all_samples
        if method != "guided" or teacher is None:
            return per_sample.mean(), all_samples
        with torch.no_grad():
            taught, _, _ = _outputs(teacher, teacher.encoder.embed(inputs), drawn, clean=False)
            chosen = no_worse(losses(taught, target, task.kind), per_sample)
        return (per_sample * chosen).sum() / chosen.sum().clamp_min(1), chosen.float().mean()
