"""Choosing and mixing tokens, for every modality alike, and what is drawn for it.

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

# --- choosing tokens: to be masked, moved or taken from a partner


def draw_order(rng: np.random.Generator, embedded: Embedded) -> Tensor:
    """Uniform draws ``(B, L)`` that put each example's tokens in a random order: this process's of the global batch."""
    size, length = embedded.tokens.shape[:2]
    order = rng.random((size * world_size(), length), dtype=np.float32)
    return local(to_device(order, embedded.tokens.device))


def choose(order: Tensor, count: Tensor, allowed: Tensor) -> Tensor:
    """``count`` ``(B,)`` of each example's allowed tokens, the first in ``order``: bool ``(B, L)``.

    With ``order`` from `draw_order` that is a uniform choice without replacement; fewer where fewer are allowed.
    """
    place = order.masked_fill(~allowed, torch.inf).argsort(dim=1).argsort(dim=1)
    return (place < count[:, None]) & allowed


def corrupted(real: Tensor, rate: float, *, least: int = 1) -> Tensor:
    """How many tokens of each example a corruption touches: ``max(least, ceil(rate · N))`` of its N real ones.

    Zero where it has fewer than ``least``; int64 ``(B,)``.
    """
    # by table, in float64 and for whole numbers: the same on every device
    numbers = range(real.shape[1] + 1)
    table = [min(n, max(least, math.ceil(rate * n))) if n >= least else 0 for n in numbers]
    return to_device(np.array(table), real.device)[real.sum(dim=1)]


def mean_over(values: Tensor, where: Tensor) -> Tensor:
    """The mean of the chosen ``values`` of the global batch, scaled for an average over processes.

    Processes may hold different numbers of chosen values (padding), so each divides its own sum by the mean count.
    """
    count = all_sum(where.sum().to(values.dtype)).clamp_min(1) / world_size()
    return torch.where(where, values, 0).sum() / count


# --- mixing

Mixing = Literal["none", "mixup", "patch", "cutmix"]
Share = Literal["operator", "example", "batch"]


def check_mixing(mixing: Mixing, num_tokens: int) -> None:
    """Refuse an operator that would leave every example as it is.

    Raises:
        UserError: tokens are to be exchanged, and there are too few to keep half of them.
    """
    least = {"patch": 2, "cutmix": 3}.get(mixing, 1)
    if num_tokens < least:
        raise UserError(
            f"--mixing {mixing} needs at least {least} tokens per example, got {num_tokens}: "
            "an example keeps half of its own tokens or more; use --mixing mixup"
        )


class Mixed(NamedTuple):
    """Mixed tokens, masked as the examples are, and the weight of each one's own label, ``(B,)``."""

    embedded: Embedded
    weight: Tensor


class Pairs(NamedTuple):
    """Of this process's examples: the partner's row in the global batch, int64 ``(B,)``, and λ, float32 ``(B,)``.

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

    Where padding leaves tokens of an example unmixed, these are its own entirely, so its label weighs more than λ.
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

    No token is interpolated, so it is as valid for words as for pixels: discrete patch mixup, d-mix's operator. Places
    are chosen uniformly among those real in both examples; where these are too few, all of them are taken.

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


def _replace(own: Embedded, partner: Embedded, taken: Tensor) -> Mixed:
    tokens = torch.where(taken[..., None], partner.tokens, own.tokens)
    length = own.real.sum(dim=1).clamp_min(1)
    return Mixed(Embedded(tokens, own.mask), 1 - taken.sum(dim=1) / length)


def draw_block(
    rng: np.random.Generator, grids: tuple[tuple[int, ...], ...], embedded: Embedded, weight: Tensor, *, one_block: bool
) -> Tensor:
    """CutMix's places, bool ``(B, L)``: in each input a block of area 1 - λ around a uniform centre.

    A rectangle on a grid of two axes, a segment of a sequence or of a table's columns; clipped at the border. Sides are
    cut to whole tokens, so that an example keeps λ of itself at least. In a padded sequence the segment lies among the
    example's own real tokens. With ``one_block`` the centre is drawn once for the batch, as λ then is.
    """
    size, device = embedded.tokens.shape[0], embedded.tokens.device
    n = size * world_size()
    real, blocks = embedded.real, []
    for shape, own in zip(grids, torch.split(real, [math.prod(grid) for grid in grids], dim=1), strict=True):
        inside = torch.ones(size, 1, dtype=torch.bool, device=device)
        for axis in shape:
            if len(shape) == 1:
                place, length = own.cumsum(dim=1) - 1, own.sum(dim=1)
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
        mixing: mixup, patch mixing or cutmix; with none every example is its own partner, and nothing is drawn.
        alpha: λ ~ Beta(α, α).
        share: λ for each ``example``, one for the ``batch``, or as the code of i-Mix has it for the ``operator``: for
            each example, but for cutmix one λ and one block for the batch.
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
