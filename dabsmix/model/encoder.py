"""The shared ViT: any tuple of input specs in, a sequence of features out; and every encoder by its name.

Only the embedders know the kind of the data: each turns one input into tokens, by its spec. The blocks are those of
timm's vision transformer, weight for weight and bit for bit (a test compares them): importing timm itself takes as long
as importing torch, and it chooses neither the path of attention nor the generator of dropout masks. Encoders without
tokens are in ``tokenless.py``, what both are in ``contract.py``.
"""

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dabsmix.model.contract import Embedded, Encoder, Pooled, concatenate, mean_features, pool, with_cls
from dabsmix.model.shapes import ENCODERS, AnyConfig, Columns, EncoderConfig, MLPConfig, encoder_config
from dabsmix.spec import Grid, PaddedGrid, Spec, Table, Tokens, describe

__all__ = [
    "ENCODERS",
    "AttentionPath",
    "DropoutMasks",
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

# B examples, L tokens (CLS not counted), N = 1 + L, H heads, D width

AttentionPath = Literal["fused", "fastest"]
DropoutMasks = Literal["torch", "fast"]


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
        """``(B, C, *size)`` to tokens ``(B, L, D)`` and which are real, ``(B, L)`` bool; None where all are.

        Raises:
            ValueError: the input has another shape than the spec.
        """
        if x.shape[1:] != (self.spec.channels, *self.spec.size):
            raise ValueError(f"expected (B, {self.spec.channels}, {self.spec.size}) for {self.spec}, got {x.shape}")
        patches = self.patches(x)
        if not isinstance(self.spec, PaddedGrid):
            return self.linear(patches), None
        missing = patches.isnan()
        return self.linear(patches.masked_fill(missing, 0.0)), ~missing.all(dim=2)


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


# --- one layer

EXPLICIT_BELOW = 1024
"""Tokens up to which ``fastest`` multiplies explicitly, for bf16 on a CPU with gradients.

Measured with torch 2.12 on two cores of an Intel Xeon with AMX, forward and backward. With heads of 64, fused attention
takes 5.5 times as long as explicit at 17 tokens, 4.7 at 65, 3.7 at 129, 2.1 at 197 and 257, 1.8 at 513 and 1.1 at 1025;
with heads of 16, 7.4 at 17, 4.8 at 65, 2.9 at 129 and 1.0 at 1025; with a padding mask, within 25 % of these. In
float32, and wherever no gradient is needed, fused attention is faster at all of these lengths, by 1.05 to 3 times. An
AMD EPYC agrees, except that in float32 explicit attention is faster at 17 tokens (scripts/bench_attention.py;
docs/benchmarks.md). The weights of explicit attention take memory that grows with the square of the length.
"""


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        config: the shape.
        path: ``fused`` is torch's ``scaled_dot_product_attention``. ``fastest`` is what was measured as faster (see
            `EXPLICIT_BELOW`); it rounds otherwise.
        masks: of dropout, see `Dropout`.
    """

    def __init__(self, config: EncoderConfig, path: AttentionPath, masks: DropoutMasks) -> None:
        super().__init__()
        inner = config.heads * config.head_dim
        self.heads = config.heads
        self.path = path
        self.qkv = nn.Linear(config.width, 3 * inner, bias=config.qkv_bias)
        self.proj = nn.Linear(inner, config.width)
        self.proj_drop = Dropout(config.dropout, masks)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """``(B, N, D)`` to ``(B, N, D)``; ``mask`` says who attends to whom, bool ``(B, 1, N, N)``."""
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads).unbind()
        if self.path == "fastest" and explicit_is_faster(q):
            attended = explicit_attention(q, k, v, mask)
        else:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        attended = rearrange(attended, "b h n d -> b n (h d)")
        return self.proj_drop(self.proj(attended))  # type: ignore[no-any-return]  # nn.Module calls are untyped


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Two products with a softmax between them, ``(B, H, N, D / H)`` each, and ``mask`` as in `Attention`."""
    weight = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        weight = weight.masked_fill(~mask, -torch.inf)
    attended: Tensor = weight.softmax(dim=-1) @ v
    return attended


def explicit_is_faster(query: Tensor) -> bool:
    """Whether explicit products are faster than fused attention for queries ``(B, H, N, D / H)``, as measured."""
    slow = query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.requires_grad
    return slow and query.shape[-2] <= EXPLICIT_BELOW


class Dropout(nn.Module):
    """Zeroes a share of the entries in training, and scales the others up so that the mean stays.

    Args:
        rate: the share.
        masks: ``torch`` draws for each entry by itself. ``fast`` takes 16 bits for each entry from the 64-bit words of
            torch's generator, which on a CPU saves about a fifth of a bf16 step: the rate is rounded to a multiple of
            1/65536, and the draws are others. Both follow from torch's seed alone.
    """

    def __init__(self, rate: float, masks: DropoutMasks) -> None:
        super().__init__()
        self.p = rate
        self.masks = masks

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with entries zeroed, in training mode."""
        if self.masks == "torch" or not self.training or self.p == 0:
            return F.dropout(x, self.p, self.training)
        return x * fast_mask(x, self.p)


def fast_mask(x: Tensor, rate: float) -> Tensor:
    """What dropout multiplies ``x`` by: 0 with probability ``rate`` and 1 / (1 - rate) otherwise, in its type."""
    zeroed = round(rate * 2**16)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    draws = words.view(torch.int16)[: x.numel()].view(x.shape)  # uniform in -2¹⁵ ... 2¹⁵ - 1
    return (draws >= zeroed - 2**15).to(x.dtype).mul_(2**16 / (2**16 - zeroed))


class MLPLayer(nn.Module):
    """Linear, GELU, Linear, each followed by dropout."""

    def __init__(self, config: EncoderConfig, masks: DropoutMasks) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp)
        self.drop1 = Dropout(config.dropout, masks)
        self.fc2 = nn.Linear(config.mlp, config.width)
        self.drop2 = Dropout(config.dropout, masks)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, D)`` to ``(B, N, D)``."""
        return self.drop2(self.fc2(self.drop1(F.gelu(self.fc1(x)))))  # type: ignore[no-any-return]  # nn.Module calls are untyped


class Block(nn.Module):
    """A pre-norm transformer block (Dosovitskiy et al. 2021)."""

    def __init__(self, config: EncoderConfig, path: AttentionPath, masks: DropoutMasks) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.attn = Attention(config, path, masks)
        self.norm2 = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = MLPLayer(config, masks)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """``(B, N, D)`` to ``(B, N, D)``; ``mask`` as in `Attention`."""
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]  # nn.Module calls are untyped


# --- from tokens to features


class Transformer(Encoder):
    """One transformer over the concatenated tokens of an example's inputs.

    Args:
        specs: one spec per input; their tokens are concatenated in this order.
        config: the shape of the transformer.
        attention: the path of attention in training, see `Attention`.
        dropout_masks: where dropout masks come from, see `Dropout`.
    """

    has_tokens = True
    config: EncoderConfig

    def __init__(
        self,
        specs: tuple[Spec, ...],
        config: EncoderConfig,
        *,
        attention: AttentionPath = "fused",
        dropout_masks: DropoutMasks = "torch",
    ) -> None:
        super().__init__()
        self.specs = specs
        self.config = config
        self.grids = tuple(spec.shape if isinstance(spec, Grid) else (spec.num_tokens,) for spec in specs)
        self.width = config.width
        self.embedders = nn.ModuleList(make_embed(spec, config.width, config.columns) for spec in specs)
        self.cls = nn.Parameter(torch.randn(1, 1, config.width) * config.position_std)
        self.positions = nn.Parameter(torch.randn(1, 1 + self.num_tokens, config.width) * config.position_std)
        self.dropout = Dropout(config.dropout, dropout_masks)
        self.blocks = nn.ModuleList(Block(config, attention, dropout_masks) for _ in range(config.depth))
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
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, attn_mask, use_reentrant=False)
            else:
                x = block(x, attn_mask)
        return self.norm(x)  # type: ignore[no-any-return]  # nn.Module calls are untyped


def build_encoder(specs: tuple[Spec, ...], config: AnyConfig) -> Encoder:
    """The encoder that a configuration describes, with fresh weights.

    Raises:
        UserError: it does not read these inputs.
    """
    if isinstance(config, EncoderConfig):
        return Transformer(specs, config)
    from dabsmix.model.tokenless import MLP, ResNet  # timm and torchvision, which take as long to import as torch

    return MLP(specs, config) if isinstance(config, MLPConfig) else ResNet(specs, config)


def make_encoder(
    name: str,
    specs: tuple[Spec, ...],
    *,
    attend_padding: bool = False,
    columns: Columns = "own",
    attention: AttentionPath = "fused",
    dropout_masks: DropoutMasks = "torch",
) -> Encoder:
    """A named encoder with fresh weights; everything but the name and the specs concerns those with tokens.

    Raises:
        UserError: no encoder has this name, or it does not read these inputs.
    """
    config = encoder_config(name)
    if isinstance(config, EncoderConfig):
        config = replace(config, attend_padding=attend_padding, columns=columns)
        return Transformer(specs, config, attention=attention, dropout_masks=dropout_masks)
    return build_encoder(specs, config)
