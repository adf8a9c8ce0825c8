"""From raw inputs to tokens: one embedder per kind of spec. The only part of the network that knows the data's kind."""

import torch
from einops import rearrange
from torch import Tensor, nn

from dabsmix.model.shapes import Columns
from dabsmix.spec import Grid, Spec, Table, Tokens

__all__ = ["GridEmbed", "TableEmbed", "TokenEmbed", "make_embed"]


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
        columns: ``shared`` gives all numeric columns one Linear(1, D), as DABS does: which column a token comes from
            is told by its position alone. ``own`` gives each column its weights.
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
            IndexError: a code is no category of its column (on a GPU: a device-side assertion).
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
            # no row has number -1: a code that is no category stops the run, and never reads another column's rows
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
            ValueError: the input has another length than the spec, or is no integer tensor.
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
