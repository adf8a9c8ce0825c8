"""The contract of an encoder: from raw inputs to what can be mixed, and from there to features."""

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dabsmix.model.shapes import AnyConfig
from dabsmix.spec import Spec

__all__ = ["Embedded", "Encoder", "Pooled", "concatenate", "mean_features", "pool", "with_cls"]

# B examples, L tokens (CLS not counted), D width


class Embedded(NamedTuple):
    """Tokens ``(B, L, D)`` before positions are added, and which of them are real: bool ``(B, L)``, None if all are."""

    tokens: Tensor
    mask: Tensor | None

    @property
    def real(self) -> Tensor:
        """Which tokens are not padding, bool ``(B, L)``."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.tokens.shape[:2], dtype=torch.bool, device=self.tokens.device)


class Pooled(NamedTuple):
    """The features that probes read: the mean over CLS and every real token, and CLS, each ``(B, D)``."""

    mean: Tensor
    cls: Tensor


class Encoder(nn.Module):
    """Raw inputs to features in two steps, between which examples can be mixed: ``embed`` and ``encode``.

    There are two kinds. An encoder *with tokens* (`Transformer`) embeds an example as tokens, and encodes them to a
    feature of CLS and of each token. An encoder *without tokens* (``tokenless.MLP``, ``tokenless.ResNet``) embeds an
    example as the raw input itself, in the shape ``(B, L, D)`` of tokens so that the same operators mix it: the pixels
    of an image, the one row of a table. It encodes that to one feature. Algorithms that mask, move or predict tokens
    refuse it (``Algorithm.needs_tokens``).

    Attributes:
        specs: one per input of an example.
        config: what the encoder is built from.
        grids: for each input, the shape in which ``embed`` returns it: patches along each axis, positions of a
            sequence, columns of a table; without tokens the pixels along each axis, and 1 for a table's row.
        width: D, the length of a feature.
        embedders: one per input; none without tokens.
        blocks: the layers in order; finetuning sets its layer-wise rates by them.
        micro_batch: if set, training holds the activations of at most this many examples at a time and computes them
            again in the backward pass. Features, and so contrasts and batch norms over them, are those of the
            whole batch (gradient caching; Gao et al. 2021). None holds all of them.
        checkpoint_activations: whether training holds only what goes into each block, and computes what is inside it
            again in the backward pass (Chen et al. 2016), dropout included. No number changes.
    """

    has_tokens: ClassVar[bool]
    """Whether there is a feature for each token."""
    has_batch_norm: ClassVar[bool] = False
    """Whether a feature depends on the batch, over all processes, in training mode; ``micro_batch`` is then refused."""

    micro_batch: int | None = None
    checkpoint_activations: bool = False
    specs: tuple[Spec, ...]
    config: AnyConfig
    embedders: nn.ModuleList
    grids: tuple[tuple[int, ...], ...]
    width: int
    blocks: nn.ModuleList

    @property
    def num_tokens(self) -> int:
        """L, the number of rows that ``embed`` returns for an example."""
        return sum(math.prod(grid) for grid in self.grids)

    def embed(self, inputs: tuple[Tensor, ...]) -> Embedded:
        """What is mixed: tokens before positions are added, or without tokens the raw inputs, ``(B, L, ...)``."""
        raise NotImplementedError

    def encode(self, embedded: Embedded) -> Tensor:
        """Features of CLS and every token, ``(B, 1+L, D)``; without tokens the one feature, ``(B, 1, D)``."""
        raise NotImplementedError

    def pool(self, hidden: Tensor, mask: Tensor | None) -> Pooled:
        """The two pooled features of ``encode``'s output; ``mask`` as in ``Embedded``."""
        return pool(hidden, mask)

    def forward(self, inputs: tuple[Tensor, ...]) -> Pooled:
        """Pooled features ``(B, D)`` of raw inputs; both are the one feature of an encoder without tokens."""
        embedded = self.embed(inputs)
        return self.pool(self.encode(embedded), embedded.mask)


def pool(hidden: Tensor, mask: Tensor | None) -> Pooled:
    """Mean of CLS and the real tokens of ``(B, 1+L, D)``, and CLS; in float32 or higher, whatever autocast is on."""
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    if mask is None:
        return Pooled(hidden.mean(dim=1), hidden[:, 0])
    weight = with_cls(mask).to(hidden.dtype)
    weight = weight / weight.sum(dim=1, keepdim=True)
    return Pooled((hidden * weight[..., None]).sum(dim=1), hidden[:, 0])  # a product that autocast leaves alone


def with_cls(mask: Tensor) -> Tensor:
    """The mask ``(B, 1+L)`` of CLS and the tokens, from that of the tokens."""
    return torch.cat([mask.new_ones(mask.shape[0], 1), mask], dim=1)


def concatenate(*batches: Embedded) -> Embedded:
    """Several batches as one of ``B₁ + B₂ + ...`` examples, for a single pass through the encoder."""
    masks = [batch.mask for batch in batches if batch.mask is not None]
    return Embedded(torch.cat([batch.tokens for batch in batches]), torch.cat(masks) if masks else None)


def mean_features(encoder: Encoder, *batches: Embedded) -> Tensor:
    """Mean-pooled features of several batches in one pass, ``(B₁ + B₂ + ..., D)``; dropout differs between them."""
    together = concatenate(*batches)
    return encoder.pool(encoder.encode(together), together.mask).mean
