"""The shared ViT: any tuple of input specs in, a sequence of features out; and every encoder by its name.

Only the embedders know the kind of the data: each turns one input into tokens, by its spec. Blocks are timm's,
attention is fused. Encoders without tokens are in ``tokenless.py``, what both are in
``contract.py``.
"""

from dataclasses import replace
from functools import cache

import torch
from einops import rearrange
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dabsmix.model.contract import Embedded, Encoder, Pooled, concatenate, mean_features, pool, with_cls
from dabsmix.model.shapes import ENCODERS, AnyConfig, Columns, EncoderConfig, MLPConfig, encoder_config
from dabsmix.model.tokenless import MLP, ResNet
from dabsmix.spec import Grid, Spec, Table, Tokens, describe

__all__ = [
    "ENCODERS",
    "Embedded",
    "Encoder",
    "EncoderConfig",
    "GridEmbed",
    "Pooled",
    "TableEmbed",
    "TokenEmbed",
    "Transformer",
    "build_encoder",
    "concatenate",
    "make_embed",
    "make_encoder",
    "mean_features",
    "pool",
]

# B examples, L tokens (CLS not counted), D width


# --- from raw inputs to tokens: one embedder per kind of spec


class GridEmbed(nn.Module):
    """Patches, flattened with the channels last, through one Linear (ViT; DABS, Tamkin et al. 2021)."""

    def __init__(self, spec: Grid, width: int) -> None:
        super().__init__()
        axes = range(len(spec.size))
        self.pattern = (
            f"b c {' '.join(f'(g{i} p{i})' for i in axes)} -> "
            f"b ({' '.join(f'g{i}' for i in axes)}) ({' '.join(f'p{i}' for i in axes)} c)"
        )
        self.lengths = {f"p{i}": spec.patch[i] for i in axes}
        self.spec = spec
        self.linear = nn.Linear(spec.patch_dim, width)

    def patches(self, x: Tensor) -> Tensor:
        """Raw patches: ``(B, C, *size)`` to ``(B, L, patch_dim)``."""
        return rearrange(x, self.pattern, **self.lengths)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """``(B, C, *size)`` to tokens ``(B, L, D)``; no padding.

        Raises:
            ValueError: the input has another shape than the spec.
        """
        if x.shape[1:] != (self.spec.channels, *self.spec.size):
            raise ValueError(f"expected (B, {self.spec.channels}, {self.spec.size}) for {self.spec}, got {x.shape}")
        return self.linear(self.patches(x)), None


class TableEmbed(nn.Module):
    """One token per column: ``value · weight + bias`` for numeric columns, a row of a table for categorical ones.

    Args:
        spec: the columns.
        width: D.
        columns: ``shared`` gives all numeric columns one Linear(1, D), as DABS does: only the position says which
            column a token comes from. ``own`` gives each column its own weights.
    """

    def __init__(self, spec: Table, width: int, columns: Columns) -> None:
        super().__init__()
        self.spec = spec
        self.shared = columns == "shared"
        numeric = [j for j, k in enumerate(spec.cardinalities) if k == 0]
        self.register_buffer("numeric", torch.tensor(numeric, dtype=torch.long), persistent=False)
        categorical = [j for j, k in enumerate(spec.cardinalities) if k]
        self.register_buffer("categorical", torch.tensor(categorical, dtype=torch.long), persistent=False)
        sizes = torch.tensor([spec.cardinalities[j] for j in categorical], dtype=torch.long)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("offsets", sizes.cumsum(0) - sizes, persistent=False)
        rows = 1 if self.shared else len(numeric)
        # Linear(1, D)'s default initialisation: uniform in ±1/sqrt(fan_in) = ±1.
        self.weight = nn.Parameter(torch.empty(rows, width).uniform_(-1, 1)) if numeric else None
        self.bias = nn.Parameter(torch.empty(rows, width).uniform_(-1, 1)) if numeric else None
        self.category = nn.Embedding(int(sizes.sum()), width) if categorical else None
        self.missing = nn.Parameter(torch.empty(width).uniform_(-1, 1))

    numeric: Tensor
    categorical: Tensor
    sizes: Tensor
    offsets: Tensor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """``(B, num_features)`` to tokens ``(B, num_features, D)``; no padding.

        Raises:
            ValueError: the input has another shape than the spec.
            IndexError: a code is not a category of its column (on a GPU: a device-side assertion).
        """
        if x.shape[1:] != (self.spec.num_features,):
            raise ValueError(f"expected (B, {self.spec.num_features}) for {self.spec}, got {tuple(x.shape)}")
        empty = x.isnan()
        x = x.masked_fill(empty, 0.0)
        # autocast does not reach elementwise products, so the tokens keep the parameters' type
        tokens = self.missing.expand(*x.shape, -1)
        if self.weight is not None and self.bias is not None:
            numeric = x[:, self.numeric, None] * self.weight + self.bias
            tokens = tokens.index_copy(1, self.numeric, numeric.to(tokens.dtype))
        if self.category is not None:
            codes = x[:, self.categorical].long()
            # no row has number -1: a code that is not a category stops the run and never reads another column's rows
            rows = torch.where((codes >= 0) & (codes < self.sizes), codes + self.offsets, -1)
            tokens = tokens.index_copy(1, self.categorical, self.category(rows).to(tokens.dtype))
        return torch.where(empty[..., None], self.missing, tokens), None


class TokenEmbed(nn.Module):
    """A lookup table over the vocabulary (DABS: ``nn.Embedding``, no scaling)."""

    def __init__(self, spec: Tokens, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.table = nn.Embedding(spec.vocab, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """int64 ``(B, length)`` to tokens ``(B, length, D)`` and which are real, ``(B, length)`` bool or None.

        Raises:
            ValueError: the length of the input differs from the spec's, or it is not an integer tensor.
        """
        if x.shape[1:] != (self.spec.length,) or x.dtype != torch.long:
            raise ValueError(f"expected int64 (B, {self.spec.length}) for {self.spec}, got {x.dtype} {tuple(x.shape)}")
        return self.table(x), None if self.spec.pad is None else x != self.spec.pad


def make_embed(spec: Spec, width: int, columns: Columns) -> GridEmbed | TableEmbed | TokenEmbed:
    """The embedder of one input."""
    match spec:
        case Grid():
            return GridEmbed(spec, width)
        case Table():
            return TableEmbed(spec, width, columns)
        case Tokens():
            return TokenEmbed(spec, width)


# --- from tokens to features


class Transformer(Encoder):
    """One transformer over the concatenated tokens of an example's inputs.

    Args:
        specs: one spec per input; their tokens are concatenated in this order.
        config: the shape of the transformer.
    """

    has_tokens = True
    config: EncoderConfig

    def __init__(self, specs: tuple[Spec, ...], config: EncoderConfig) -> None:
        super().__init__()
        self.specs = specs
        self.config = config
        self.grids = tuple(spec.shape if isinstance(spec, Grid) else (spec.num_tokens,) for spec in specs)
        self.width = config.width
        self.embedders = nn.ModuleList(make_embed(spec, config.width, config.columns) for spec in specs)
        self.cls = nn.Parameter(torch.randn(1, 1, config.width) * config.position_std)
        self.positions = nn.Parameter(torch.randn(1, 1 + self.num_tokens, config.width) * config.position_std)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.eps) if config.final_norm else nn.Identity()

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
            attn_mask = with_cls(mask)[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        for block in self.blocks:
            x = block(x, attn_mask=attn_mask)
        return self.norm(x)  # type: ignore[no-any-return]  # nn.Module calls are untyped


def build_encoder(specs: tuple[Spec, ...], config: AnyConfig) -> Encoder:
    """The encoder that a configuration describes, with fresh weights.

    Raises:
        UserError: it does not read these inputs.
    """
    if isinstance(config, EncoderConfig):
        return Transformer(specs, config)
    return MLP(specs, config) if isinstance(config, MLPConfig) else ResNet(specs, config)


def make_encoder(
    name: str, specs: tuple[Spec, ...], *, attend_padding: bool = False, columns: Columns = "own"
) -> Encoder:
    """A named encoder with fresh weights; ``attend_padding`` and ``columns`` concern those with tokens.

    Raises:
        UserError: no encoder has this name, or it does not read these inputs.
    """
    config = encoder_config(name)
    if isinstance(config, EncoderConfig):
        config = replace(config, attend_padding=attend_padding, columns=columns)
    return build_encoder(specs, config)


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
