"""The shared ViT: any tuple of input specs in, a sequence of features out. Blocks are timm's, attention is fused."""

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dabsmix.model.embedders import make_embed
from dabsmix.model.shapes import ENCODERS, Columns, EncoderConfig, encoder_config
from dabsmix.spec import Spec, describe

__all__ = ["ENCODERS", "Embedded", "Encoder", "EncoderConfig", "Pooled", "make_encoder", "pool"]

# B examples, L tokens (CLS not counted), D width


class Embedded(NamedTuple):
    """Tokens ``(B, L, D)`` before any position, and which of them are real: bool ``(B, L)``, None where all are."""

    tokens: Tensor
    mask: Tensor | None


class Pooled(NamedTuple):
    """What probes read: the mean over CLS and every real token, and CLS, each ``(B, D)``."""

    mean: Tensor
    cls: Tensor


class Encoder(nn.Module):
    """One transformer over the concatenated tokens of an example's inputs.

    Args:
        specs: one spec per input; their tokens are concatenated in this order.
        config: the shape of the transformer.

    Attributes:
        micro_batch: with a number, training holds the activations of at most this many examples at a time and computes
            them again in the backward pass. Features, and so contrasts and batch norms over them, are those of the
            whole batch (gradient caching; Gao et al. 2021). None holds all of them.
    """

    micro_batch: int | None = None

    def __init__(self, specs: tuple[Spec, ...], config: EncoderConfig) -> None:
        super().__init__()
        self.specs = specs
        self.config = config
        self.embedders = nn.ModuleList(make_embed(spec, config.width, config.columns) for spec in specs)
        self.num_tokens = sum(spec.num_tokens for spec in specs)
        self.cls = nn.Parameter(torch.randn(1, 1, config.width) * config.position_std)
        self.positions = nn.Parameter(torch.randn(1, 1 + self.num_tokens, config.width) * config.position_std)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.eps) if config.final_norm else nn.Identity()

    @property
    def width(self) -> int:
        """D, the length of a feature."""
        return self.config.width

    def embed(self, inputs: tuple[Tensor, ...]) -> Embedded:
        """Tokens of every input, concatenated. No position is added: what mixes or masks tokens does so here.

        Raises:
            ValueError: the number of inputs or the shape of one differs from the specs.
        """
        if len(inputs) != len(self.specs):
            raise ValueError(f"got {len(inputs)} inputs for {describe(self.specs)}")
        parts = [embedder(x) for embedder, x in zip(self.embedders, inputs, strict=True)]
        tokens = torch.cat([tokens for tokens, _ in parts], dim=1)
        if self.config.attend_padding or all(mask is None for _, mask in parts):
            return Embedded(tokens, None)
        real = [tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if m is None else m for tokens, m in parts]
        return Embedded(tokens, torch.cat(real, dim=1))

    def encode(self, embedded: Embedded) -> Tensor:
        """Features of CLS and every token, ``(B, 1+L, D)``. Padding is not attended to."""
        tokens, mask = embedded
        size = self.micro_batch
        if size is None or len(tokens) <= size or not torch.is_grad_enabled():
            return self._encode(tokens, mask)
        hidden = [
            checkpoint(
                self._encode, tokens[i : i + size], None if mask is None else mask[i : i + size], use_reentrant=False
            )
            for i in range(0, len(tokens), size)
        ]
        return torch.cat(hidden)

    def pool_blocks(self, inputs: tuple[Tensor, ...]) -> tuple[Pooled, Tensor]:
        """Pooled features of raw inputs and, from the same pass, the means after every block side by side.

        The latter are ``(B, depth · D)``, the last block's final norm included.
        """
        tokens, mask = self.embed(inputs)
        means: list[Tensor] = []
        handles = [
            block.register_forward_hook(lambda _, __, hidden: means.append(pool(hidden, mask).mean))
            for block in self.blocks[:-1]
        ]
        try:
            pooled = self.pool(self.encode(Embedded(tokens, mask)), mask)
        finally:
            for handle in handles:
                handle.remove()
        return pooled, torch.cat([*means, pooled.mean], dim=1)

    def _encode(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        # float32 positions under autocast would promote bf16 tokens for good; the blocks cast for themselves
        x = torch.cat([self.cls.expand(tokens.shape[0], -1, -1), tokens.to(self.cls.dtype)], dim=1)
        x = self.dropout(x + self.positions)
        attn_mask = None
        if mask is not None:
            attn_mask = _with_cls(mask)[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        for block in self.blocks:
            x = block(x, attn_mask=attn_mask)
        return self.norm(x)  # type: ignore[no-any-return]  # nn.Module calls are untyped

    def pool(self, hidden: Tensor, mask: Tensor | None) -> Pooled:
        """The two pooled features of ``encode``'s output; ``mask`` as in ``Embedded``."""
        return pool(hidden, mask)

    def forward(self, inputs: tuple[Tensor, ...]) -> Pooled:
        """Pooled features ``(B, D)`` of raw inputs."""
        embedded = self.embed(inputs)
        return self.pool(self.encode(embedded), embedded.mask)


def pool(hidden: Tensor, mask: Tensor | None) -> Pooled:
    """Mean of CLS and the real tokens of ``(B, 1+L, D)``, and CLS; at least float32 whatever autocast is on."""
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    if mask is None:
        return Pooled(hidden.mean(dim=1), hidden[:, 0])
    weight = _with_cls(mask).to(hidden.dtype)
    weight = weight / weight.sum(dim=1, keepdim=True)
    return Pooled((hidden * weight[..., None]).sum(dim=1), hidden[:, 0])  # a product that autocast leaves alone


def make_encoder(
    name: str, specs: tuple[Spec, ...], *, attend_padding: bool = False, columns: Columns = "own"
) -> Encoder:
    """A named encoder with fresh weights.

    Raises:
        UserError: no encoder has this name.
    """
    return Encoder(specs, replace(encoder_config(name), attend_padding=attend_padding, columns=columns))


def _with_cls(mask: Tensor) -> Tensor:
    return torch.cat([mask.new_ones(mask.shape[0], 1), mask], dim=1)


def _block(config: EncoderConfig) -> Block:
    def norm(dim: int, **kwargs: object) -> nn.LayerNorm:
        return nn.LayerNorm(dim, eps=config.eps)

    return Block(
        config.width,
        config.heads,
        mlp_ratio=config.mlp / config.width,
        qkv_bias=config.qkv_bias,
        proj_drop=config.dropout,
        norm_layer=norm,
        attn_layer=_attention(config.head_dim),
    )


@cache  # one class for all blocks: torch.compile compiles anew for every class that it meets, and soon no more
def _attention(head_dim: int) -> type[Attention]:
    class Heads(Attention):  # type: ignore[misc]  # timm is untyped
        """timm's attention with heads of ``head_dim`` wherever the width alone would give others."""

        def __init__(self, dim: int, *args: object, **kwargs: object) -> None:
            super().__init__(dim, *args, **{**kwargs, "attn_head_dim": head_dim})

    return Heads


def concatenate(*batches: Embedded) -> Embedded:
    """Several batches as one of ``B₁ + B₂ + ...``, for a single pass through the encoder."""
    masks = [batch.mask for batch in batches if batch.mask is not None]
    return Embedded(torch.cat([batch.tokens for batch in batches]), torch.cat(masks) if masks else None)


def mean_features(encoder: Encoder, *batches: Embedded) -> Tensor:
    """Mean-pooled features of several batches in one pass, ``(B₁ + B₂ + ..., D)``; dropout differs between them."""
    together = concatenate(*batches)
    return encoder.pool(encoder.encode(together), together.mask).mean
