"""The two views of a batch as tokens: identical, noisy, masked, or augmented by the domain; InputMix on top.

Any row of the global batch is available in a view, since an example's partner may live on another process.

B examples here, n in the global batch, L tokens (CLS not counted), D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dabsmix.distributed import gather, local, own_rows, to_device, world_size
from dabsmix.errors import UserError
from dabsmix.model.encoder import Embedded, Encoder
from dabsmix.spec import Table

__all__ = ["NOISE", "InputMix", "View", "Views", "draw_inputmix", "rows_of", "two_views"]

Views = Literal["identical", "noise", "mask", "augment"]

NOISE = 0.2
"""Share of tokens that ``noise`` sets to zero, and of numeric table cells that ``mask`` does, as in i-Mix."""


def rows_of(encoder: Encoder, inputs: tuple[Tensor, ...], embedded: Embedded, rows: Tensor) -> Embedded:
    """The tokens of these rows ``(k,)`` of the global batch, ``(k, L, D)``, with gradient to the embedder.

    ``embedded`` are the tokens of this process's ``inputs``. With several processes the raw inputs are gathered, since
    they are smaller, and the requested rows are embedded here.
    """
    if world_size() == 1:
        return Embedded(embedded.tokens[rows], None if embedded.mask is None else embedded.mask[rows])
    return encoder.embed(tuple(gather(x)[rows] for x in inputs))


@dataclass(frozen=True)
class InputMix:
    """Auxiliary examples to mix into every example, labels untouched (i-Mix, Lee et al. 2021, section 3.3).

    Attributes:
        rows: int64 ``(n, m)``, the auxiliary examples of each row.
        weights: float32 ``(n, 1 + m)``, for the example itself and for its auxiliaries; each row sums to 1.
    """

    rows: Tensor
    weights: Tensor


def draw_inputmix(rng: np.random.Generator, n: int, num: int, device: torch.device) -> InputMix:
    """``num`` auxiliaries for each of ``n`` rows; each column of ``rows`` is a permutation.

    One auxiliary: λ ~ Beta(1, 1), with the larger part for the example itself. More: ``(½λ₁ + ½, ½λ₂, ...)`` with λ
    from a flat Dirichlet.
    """
    if num == 1:
        share = rng.random(n)
        share = np.maximum(share, 1 - share)
        weights = np.stack([share, 1 - share], axis=1)
    else:
        weights = rng.dirichlet(np.ones(1 + num), size=n) / 2
        weights[:, 0] += 0.5
    rows = np.stack([rng.permutation(n) for _ in range(num)], axis=1)
    return InputMix(to_device(rows, device), to_device(weights.astype(np.float32), device))


@dataclass(frozen=True)
class View:
    """One view of the global batch.

    Attributes:
        encoder: embeds the rows of other processes.
        inputs: this process's raw inputs.
        embedded: their tokens, before noise and InputMix.
        clean: whether it shows the examples as they are stored.
        zeroed: bool ``(n, L)``, tokens that the noise of the view sets to zero, or None.
        inputmix: what InputMix adds, or None.
    """

    encoder: Encoder
    inputs: tuple[Tensor, ...]
    embedded: Embedded
    clean: bool = True
    zeroed: Tensor | None = None
    inputmix: InputMix | None = None

    @cached_property
    def own(self) -> Embedded:
        """This process's examples ``(B, L, D)``."""
        return self._seen(self.embedded, own_rows(self.embedded.tokens))

    def rows(self, rows: Tensor) -> Embedded:
        """These rows ``(k,)`` of the global batch, ``(k, L, D)``."""
        return self._seen(rows_of(self.encoder, self.inputs, self.embedded, rows), rows)

    def _seen(self, embedded: Embedded, rows: Tensor) -> Embedded:
        principal = self._noisy(embedded, rows)
        if self.inputmix is None:
            return principal
        weights = self.inputmix.weights[rows, :, None, None]
        tokens = weights[:, 0] * principal.tokens
        for k, others in enumerate(self.inputmix.rows[rows].unbind(dim=1), start=1):
            other = self._noisy(rows_of(self.encoder, self.inputs, self.embedded, others), others)
            both = (principal.real & other.real)[..., None]  # padding stays out of every mixture
            tokens = tokens + weights[:, k] * torch.where(both, other.tokens, principal.tokens)
        return Embedded(tokens, principal.mask)

    def _noisy(self, embedded: Embedded, rows: Tensor) -> Embedded:
        if self.zeroed is None:
            return embedded
        return Embedded(embedded.tokens.masked_fill(self.zeroed[rows, :, None], 0), embedded.mask)


def two_views(
    encoder: Encoder,
    key_encoder: Encoder,
    views: Sequence[tuple[Tensor, ...]],
    rng: np.random.Generator,
    kind: str,
    num_inputmix: int,
) -> tuple[View, View]:
    """The anchors' view of a batch, embedded by the encoder, and the keys' view, embedded by the keys' own.

    ``identical`` uses the batch's only view twice, so that dropout is the only difference. ``noise`` sets each token
    to zero with probability `NOISE`, drawn for each view. ``mask`` does the same to the values in a table's numeric
    columns. ``augment`` takes the batch's two views, which the domain has augmented. InputMix is drawn for each view.

    Raises:
        UserError: the kind is none of these, or it is ``augment`` and the batch carries one view.
    """
    if kind not in get_args(Views):
        raise UserError(f"views must be one of {', '.join(get_args(Views))}, got {kind!r}")
    if kind == "augment" and len(views) < 2:
        raise UserError("views=augment needs a domain with augmentations of its own; this batch carries one view")
    if kind == "mask":
        first, second = (_masked(encoder, views[0], rng) for _ in range(2))
    else:
        first, second = (views[0], views[1]) if kind == "augment" else (views[0], views[0])
    embedded = encoder.embed(first)
    keys = embedded if first is second and key_encoder is encoder else key_encoder.embed(second)
    return (
        _draw_view(encoder, first, embedded, rng, kind, num_inputmix),
        _draw_view(key_encoder, second, keys, rng, kind, num_inputmix),
    )


def _masked(encoder: Encoder, inputs: tuple[Tensor, ...], rng: np.random.Generator) -> tuple[Tensor, ...]:
    """i-Mix's masking noise: numeric cells become 0, the mean of a standardised column. Empty cells stay empty."""
    masked = []
    for spec, x in zip(encoder.specs, inputs, strict=True):
        if isinstance(spec, Table):
            drawn = rng.random((len(x) * world_size(), spec.num_features)) < NOISE
            drawn &= np.array(spec.cardinalities) == 0
            x = x.masked_fill(local(to_device(drawn, x.device)) & ~x.isnan(), 0)
        masked.append(x)
    return tuple(masked)


def _draw_view(
    encoder: Encoder,
    inputs: tuple[Tensor, ...],
    embedded: Embedded,
    rng: np.random.Generator,
    kind: str,
    num_inputmix: int,
) -> View:
    size, length = embedded.tokens.shape[:2]
    n, device = size * world_size(), embedded.tokens.device
    zeroed = to_device(rng.random((n, length)) < NOISE, device) if kind == "noise" else None
    inputmix = draw_inputmix(rng, n, num_inputmix, device) if num_inputmix else None
    return View(encoder, inputs, embedded, kind == "identical" and inputmix is None, zeroed, inputmix)
