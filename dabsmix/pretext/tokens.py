"""Choosing and mixing tokens, in the same way for every modality, and the random draws for it.

For an affine embedder mixing tokens is mixing inputs, as ``embed(λx + (1-λ)x') = λ embed(x) + (1-λ) embed(x')``; for
token ids there is no other mixture. A token is mixed only where it is real in both examples, and an example keeps its
own mask. The weight of its own label is the share of its tokens that it keeps.

B examples here, n in the global batch, L tokens (CLS not counted), D width.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dabsmix.distributed import all_sum, local, own_rows, to_device, world_size
from dabsmix.errors import UserError
from dabsmix.model.encoder import Embedded
from dabsmix.pretext.views import View

__all__ = [
    "Mixed",
    "Mixing",
    "Pairs",
    "Share",
    "check_mixing",
    "choose",
    "corrupted",
    "cutmix",
    "draw_block",
    "draw_order",
    "draw_pairs",
    "mean_over",
    "mix",
    "mixup",
    "patch_mix",
]

# --- choosing tokens to mask, to move or to take from a partner


def draw_order(rng: np.random.Generator, embedded: Embedded) -> Tensor:
    """Uniform draws ``(B, L)`` that order each example's tokens at random: this process's rows of the global batch."""
    size, length = embedded.tokens.shape[:2]
    order = rng.random((size * world_size(), length), dtype=np.float32)
    return local(to_device(order, embedded.tokens.device))


def choose(order: Tensor, count: Tensor, allowed: Tensor) -> Tensor:
    """The first ``count`` ``(B,)`` of each example's allowed tokens in ``order``: bool ``(B, L)``.

    With ``order`` from `draw_order` this is a uniform choice without replacement; if fewer are allowed, all of them.
    """
    place = order.masked_fill(~allowed, torch.inf).argsort(dim=1).argsort(dim=1)
    return (place < count[:, None]) & allowed


def corrupted(real: Tensor, rate: float, *, least: int = 1) -> Tensor:
    """How many tokens of each example are corrupted: ``max(least, ceil(rate · N))`` of its N real ones, int64 ``(B,)``.

    Zero for an example with fewer than ``least``.
    """
    # from a table computed in float64, so that every device gives the same numbers
    numbers = range(real.shape[1] + 1)
    table = [min(n, max(least, math.ceil(rate * n))) if n >= least else 0 for n in numbers]
    return to_device(np.array(table), real.device)[real.sum(dim=1)]


def mean_over(values: Tensor, where: Tensor) -> Tensor:
    """The mean of the chosen ``values`` of the global batch, scaled for an average over processes.

    Because of padding, processes may hold different numbers of chosen values, so each divides by the mean count.
    """
    count = all_sum(where.sum().to(values.dtype)).clamp_min(1) / world_size()
    return torch.where(where, values, 0).sum() / count


# --- mixing

Mixing = Literal["none", "mixup", "patch", "cutmix"]
Share = Literal["operator", "example", "batch"]


def check_mixing(mixing: Mixing, num_tokens: int) -> None:
    """Refuse an operator that would leave every example unchanged.

    Raises:
        UserError: the operator exchanges tokens, and there are too few to keep half of them.
    """
    least = {"patch": 2, "cutmix": 3}.get(mixing, 1)
    if num_tokens < least:
        raise UserError(
            f"--mixing {mixing} needs at least {least} tokens per example, got {num_tokens}: "
            "an example keeps half of its own tokens or more; use --mixing mixup"
        )


class Mixed(NamedTuple):
    """Mixed tokens with the examples' own masks, and the weight of each example's own label, ``(B,)``."""

    embedded: Embedded
    weight: Tensor


class Pairs(NamedTuple):
    """For this process's examples: the partner's row in the global batch, int64 ``(B,)``, and λ, float32 ``(B,)``.

    ``mean_weight`` is the mean of λ over the global batch, a scalar.
    """

    partner: Tensor
    weight: Tensor
    mean_weight: Tensor


def draw_pairs(rng: np.random.Generator, embedded: Embedded, alpha: float, *, one_weight: bool = False) -> Pairs:
    """A partner and a λ ≥ 1/2 for each example: a permutation of the global batch; λ ~ Beta(α, α).

    λ is drawn for each example, or with ``one_weight`` once for the batch.
    """
    device = embedded.tokens.device
    n = embedded.tokens.shape[0] * world_size()
    order = rng.permutation(n)
    weight = np.broadcast_to(rng.beta(alpha, alpha, size=1 if one_weight else n), n)
    weight = np.maximum(weight, 1 - weight)  # the principal example keeps at least half, as in i-Mix and DABS
    weights = to_device(weight.astype(np.float32), device)
    return Pairs(local(to_device(order, device)), local(weights), weights.mean())


def mixup(own: Embedded, partner: Embedded, weight: Tensor) -> Mixed:
    """``λ T + (1-λ) T'`` of tokens (i-Mix, Lee et al. 2021, eq. 5; DABS's e-mix).

    Tokens that stay unmixed because of padding are entirely the example's own, so its label weighs more than λ.
    """
    share = weight[:, None, None]
    mixed = share * own.tokens + (1 - share) * partner.tokens
    if own.mask is None or partner.mask is None:
        return Mixed(Embedded(mixed, own.mask), weight)
    both = own.mask & partner.mask
    unmixed = 1 - both.sum(dim=1) / own.mask.sum(dim=1).clamp_min(1)
    return Mixed(Embedded(torch.where(both[..., None], mixed, own.tokens), own.mask), weight + (1 - weight) * unmixed)


def patch_mix(own: Embedded, partner: Embedded, weight: Tensor, order: Tensor) -> Mixed:
    """``round((1-λ) N)`` of an example's N real tokens replaced by the partner's at the same places.

    Discrete patch mixup, d-mix's operator: no token is interpolated, so it is as valid for words as for pixels. Places
    are chosen uniformly among those that are real in both examples; if there are too few, all of them are taken.

    Args:
        own: tokens of this process's examples.
        partner: their partners' tokens.
        weight: λ, ``(B,)``.
        order: uniform draws ``(B, L)``, see `draw_order`.
    """
    count = torch.round((1 - weight) * own.real.sum(dim=1))
    return _replace(own, partner, choose(order, count, own.real & partner.real))


def cutmix(own: Embedded, partner: Embedded, block: Tensor) -> Mixed:
    """A block of tokens, bool ``(B, L)``, replaced by the partner's (CutMix, Yun et al. 2019; see `draw_block`)."""
    return _replace(own, partner, block & own.real & partner.real)


def _replace(own: Embedded, partner: Embedded, replaced: Tensor) -> Mixed:
    tokens = torch.where(replaced[..., None], partner.tokens, own.tokens)
    length = own.real.sum(dim=1).clamp_min(1)
    return Mixed(Embedded(tokens, own.mask), 1 - replaced.sum(dim=1) / length)


def draw_block(
    rng: np.random.Generator, grids: tuple[tuple[int, ...], ...], embedded: Embedded, weight: Tensor, *, one_block: bool
) -> Tensor:
    """The places for CutMix, bool ``(B, L)``: in each input a block of area 1 - λ around a uniform centre.

    A rectangle on a grid of two axes, a segment of a sequence or of a table's columns; clipped at the border. Sides are
    rounded down to whole tokens, so that an example keeps at least λ of itself. In a padded sequence the segment lies
    among the example's own real tokens. With ``one_block`` the centre is drawn once for the batch, as λ then is.
    """
    size, device = embedded.tokens.shape[0], embedded.tokens.device
    n = size * world_size()
    real, blocks = embedded.real, []
    for shape, part in zip(grids, torch.split(real, [math.prod(grid) for grid in grids], dim=1), strict=True):
        inside = torch.ones(size, 1, dtype=torch.bool, device=device)
        for axis in shape:
            if len(shape) == 1:
                place, length = part.cumsum(dim=1) - 1, part.sum(dim=1)
            else:  # a grid of several axes has no padding
                place, length = torch.arange(axis, device=device)[None], torch.full((size,), axis, device=device)
            drawn = np.broadcast_to(rng.random(1 if one_block else n, dtype=np.float32), n).copy()
            centre = (local(to_device(drawn, device)) * length).long()
            side = (length * (1 - weight) ** (1 / len(shape)) + 1e-4).long()  # 1e-4: 0.25 ** 0.5 may be 0.49999997
            start = centre - side // 2
            along = (place >= start[:, None]) & (place < (start + side)[:, None])
            inside = (inside[:, :, None] & along[:, None, :]).flatten(1)  # row-major, as patches are
        blocks.append(inside)
    return torch.cat(blocks, dim=1)


def mix(view: View, rng: np.random.Generator, mixing: Mixing, alpha: float, share: Share) -> tuple[Mixed, Tensor]:
    """A view's examples mixed with partners, by the operator of this name, and the partners' rows ``(B,)``.

    Args:
        view: what is mixed.
        rng: this step's generator.
        mixing: mixup, patch or cutmix; with none every example is its own partner, and nothing is drawn.
        alpha: λ ~ Beta(α, α).
        share: one λ for each ``example`` or for the ``batch``; with ``operator``, as in i-Mix's code, one λ and one
            block for the batch with cutmix, and one λ for each example otherwise.
    """
    if mixing == "none":
        tokens = view.own.tokens
        return Mixed(view.own, torch.ones(len(tokens), device=tokens.device)), own_rows(tokens)
    one = share == "batch" or (share == "operator" and mixing == "cutmix")
    pairs = draw_pairs(rng, view.own, alpha, one_weight=one)
    partner = view.rows(pairs.partner)
    match mixing:
        case "mixup":
            mixed = mixup(view.own, partner, pairs.weight)
        case "patch":
            mixed = patch_mix(view.own, partner, pairs.weight, draw_order(rng, view.own))
        case "cutmix":
            block = draw_block(rng, view.encoder.grids, view.own, pairs.weight, one_block=one)
            mixed = cutmix(view.own, partner, block)
        case _:
            raise UserError(f"mixing must be none, mixup, patch or cutmix, got {mixing!r}")
    return mixed, pairs.partner
