"""Mixing two examples' tokens, for every modality alike, and what a mixture draws.

For an affine embedder mixing tokens is mixing inputs, as ``embed(λx + (1-λ)x') = λ embed(x) + (1-λ) embed(x')``; for
token ids it is the only mixture there is. A mask says which tokens are real; a token is mixed only where it is real in
both examples, and an example keeps its own mask.

B examples here, n in the global batch, L tokens (CLS not counted), D width.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dabsmix.encoder import Embedded, Encoder
from dabsmix.gather import gather, local, world_size

__all__ = ["Mixed", "Pairs", "concatenate", "draw_order", "draw_pairs", "mixup", "partners", "patch_mix"]


class Mixed(NamedTuple):
    """Mixed tokens ``(B, L, D)`` and the share of each that is its own, float32 ``(B,)``: the weight of its label."""

    tokens: Tensor
    weight: Tensor


class Pairs(NamedTuple):
    """Of this process's examples: the partner's row in the global batch, int64 ``(B,)``, and λ, float32 ``(B,)``.

    ``mean_weight`` is the mean of λ over the global batch, a scalar.
    """

    partner: Tensor
    weight: Tensor
    mean_weight: Tensor


def draw_pairs(rng: np.random.Generator, embedded: Embedded, alpha: float) -> Pairs:
    """A partner and a λ ≥ 1/2 for each example: a permutation of the global batch; λ ~ Beta(α, α), per example."""
    device = embedded.tokens.device
    n = embedded.tokens.shape[0] * world_size()
    order = rng.permutation(n)
    weight = rng.beta(alpha, alpha, size=n)
    weight = np.maximum(weight, 1 - weight)  # the principal example keeps at least half, as in i-Mix and DABS
    weights = torch.from_numpy(weight.astype(np.float32)).to(device)
    return Pairs(local(torch.from_numpy(order).to(device)), local(weights), weights.mean())


def draw_order(rng: np.random.Generator, embedded: Embedded) -> Tensor:
    """Uniform draws ``(B, L)`` that put each example's tokens in a random order: this process's of the global batch."""
    size, length = embedded.tokens.shape[:2]
    order = rng.random((size * world_size(), length), dtype=np.float32)
    return local(torch.from_numpy(order)).to(embedded.tokens.device)


def partners(encoder: Encoder, inputs: tuple[Tensor, ...], embedded: Embedded, rows: Tensor) -> Embedded:
    """The tokens of these rows ``(k,)`` of the global batch, ``(k, L, D)``, with gradient to the embedder.

    ``embedded`` are the tokens of this process's ``inputs``. With several processes the raw inputs are gathered, being
    the smaller, and the wanted rows embedded here.
    """
    if world_size() == 1:
        return Embedded(embedded.tokens[rows], None if embedded.mask is None else embedded.mask[rows])
    return encoder.embed(tuple(gather(x)[rows] for x in inputs))


def concatenate(first: Embedded, second: Embedded) -> Embedded:
    """Two batches as one of ``2B``, for a single pass through the encoder."""
    mask = None if first.mask is None or second.mask is None else torch.cat([first.mask, second.mask])
    return Embedded(torch.cat([first.tokens, second.tokens]), mask)


def mixup(own: Embedded, partner: Embedded, weight: Tensor) -> Mixed:
    """``λ T + (1-λ) T'`` of tokens (i-Mix, Lee et al. 2021, eq. 5; DABS's e-mix).

    Where padding leaves tokens of an example unmixed, its label's weight is the share really kept: λ on its mixed
    tokens and 1 on the others. Without padding that is λ, bit for bit.
    """
    share = weight[:, None, None].to(own.tokens.dtype)
    mixed = share * own.tokens + (1 - share) * partner.tokens
    if own.mask is None or partner.mask is None:
        return Mixed(mixed, weight)
    both = own.mask & partner.mask
    kept = 1 - (1 - weight) * both.sum(dim=1) / own.mask.sum(dim=1).clamp_min(1)
    return Mixed(torch.where(both[..., None], mixed, own.tokens), kept)


def patch_mix(own: Embedded, partner: Embedded, weight: Tensor, order: Tensor) -> Mixed:
    """k = round((1-λ) L) tokens replaced by the partner's at the same places (discrete patch mixup; d-mix's operator).

    No token is interpolated, so it is as valid for words as for pixels. With padding L is the example's own number of
    real tokens and the places are real in both, so k is at most the number of those. The label's weight is what was
    really kept, ``1 - k / L``.

    Args:
        own: tokens of this process's examples.
        partner: their partners' tokens.
        weight: λ, ``(B,)``.
        order: uniform draws ``(B, L)``: the places with the smallest are taken, that is, a uniform choice without
            replacement.
    """
    real = torch.ones_like(order, dtype=torch.bool) if own.mask is None else own.mask
    both = real if own.mask is None or partner.mask is None else own.mask & partner.mask
    length = real.sum(dim=1)
    wanted = torch.round((1 - weight) * length).long()
    count = torch.minimum(wanted, both.sum(dim=1))
    place = order.masked_fill(~both, torch.inf).argsort(dim=1).argsort(dim=1)
    taken = place < count[:, None]
    return Mixed(torch.where(taken[..., None], partner.tokens, own.tokens), 1 - count / length.clamp_min(1))
