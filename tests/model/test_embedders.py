"""Embedders against plain loops."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from dabsmix.model.encoder import GridEmbed, TableEmbed, TokenEmbed, make_embed
from dabsmix.spec import Grid, PaddedGrid, Spec, Table, Tokens

GRIDS = [Grid(3, (10,), (5,)), Grid(2, (4, 6), (2, 3)), Grid(2, (4, 6, 4), (2, 3, 1))]


def patches_by_loop(x: Tensor, grid: Grid) -> Tensor:
    """Patches in row-major order; inside a patch the positions row-major, the channels last."""
    size, patch = (*grid.size, 1, 1)[:3], (*grid.patch, 1, 1)[:3]
    x = x.reshape(len(x), grid.channels, *size)
    rows = []
    for example in x:
        tokens = []
        for a in range(0, size[0], patch[0]):
            for b in range(0, size[1], patch[1]):
                for c in range(0, size[2], patch[2]):
                    values = []
                    for i in range(patch[0]):
                        for j in range(patch[1]):
                            for k in range(patch[2]):
                                for channel in range(grid.channels):
                                    values.append(example[channel, a + i, b + j, c + k])
                    tokens.append(torch.stack(values))
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_grid_equals_the_loop(grid: Grid) -> None:
    torch.manual_seed(0)
    embed = GridEmbed(grid, 7)
    x = torch.randn(3, grid.channels, *grid.size)
    patches = patches_by_loop(x, grid)
    assert torch.equal(embed.patches(x), patches)
    tokens, mask = embed(x)
    assert mask is None
    assert tokens.shape == (3, grid.num_tokens, 7)
    torch.testing.assert_close(tokens, patches @ embed.linear.weight.T + embed.linear.bias)


def test_a_padded_grid_equals_zeros_and_masks_unread_patches() -> None:
    embed = GridEmbed(PaddedGrid(2, (8,), (2,)), 7)
    plain = GridEmbed(Grid(2, (8,), (2,)), 7)
    plain.load_state_dict(embed.state_dict())
    x = torch.randn(3, 2, 8)
    full, all_real = embed(x)
    assert torch.equal(full, plain(x)[0])
    assert all_real is not None
    assert all_real.all()
    x[0, :, 3:] = torch.nan  # ends in the middle of its second patch
    x[1, 0, 2:6] = torch.nan  # a gap in one of two channels
    x[2, :, 2:4] = torch.nan  # a gap in both
    tokens, real = embed(x)
    assert torch.equal(tokens, plain(x.nan_to_num(nan=0.0))[0])
    assert real is not None
    assert real.tolist() == [[True, True, False, False], [True] * 4, [True, False, True, True]]


@pytest.mark.parametrize("columns", ["own", "shared"])
@pytest.mark.parametrize("cardinalities", [(0, 3, 0, 2, 0), (0, 0, 0, 0, 0), (2, 3, 1, 4, 2)])
def test_table_equals_the_loop(columns: Literal["own", "shared"], cardinalities: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    embed = TableEmbed(Table(5, cardinalities), 6, columns)
    x = torch.stack(
        [torch.randint(k, (8,)).float() if k else torch.randn(8) for k in cardinalities],
        dim=1,
    )
    x[torch.rand_like(x) < 0.2] = torch.nan
    assert x.isnan().any()
    tokens, mask = embed(x)
    assert mask is None
    for b in range(8):
        numeric = offset = 0
        for j, k in enumerate(cardinalities):
            value = x[b, j]
            if value.isnan():
                expected: Tensor = embed.missing
            elif k:
                assert embed.category is not None
                expected = embed.category.weight[offset + int(value)]
            else:
                assert embed.weight is not None
                assert embed.bias is not None
                row = 0 if columns == "shared" else numeric
                expected = value * embed.weight[row] + embed.bias[row]
            torch.testing.assert_close(tokens[b, j], expected)
            numeric, offset = numeric + (k == 0), offset + k


def test_shared_columns_have_one_linear_and_own_columns_one_each() -> None:
    for columns, rows in (("shared", 1), ("own", 4)):
        embed = make_embed(Table(4), 6, columns)  # type: ignore[arg-type]  # the loop widens the literals to str
        assert isinstance(embed, TableEmbed)
        assert embed.weight is not None
        assert embed.weight.shape == (rows, 6)


def test_a_table_s_gradients_are_finite_beside_empty_cells() -> None:
    embed = TableEmbed(Table(3, (0, 2, 0)), 4, "own")
    x = torch.tensor([[torch.nan, 1.0, 2.0], [0.5, torch.nan, torch.nan]])
    embed(x)[0].square().sum().backward()
    for name, parameter in embed.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_infinity_in_a_table_gives_infinite_features() -> None:
    tokens, _ = TableEmbed(Table(2), 4, "own")(torch.tensor([[torch.inf, 1.0]]))
    assert not tokens[0, 0].isfinite().any()
    assert tokens[0, 1].isfinite().all()


@pytest.mark.parametrize("code", [-1.0, 2.0, 4.0, 1e6])
def test_an_invalid_category_code_is_an_error(code: float) -> None:
    """The categories of all columns share one table, in which 2 would be the first category of the next column."""
    with pytest.raises(IndexError):
        TableEmbed(Table(2, (2, 3)), 4, "own")(torch.tensor([[code, 0.0]]))


def test_tokens_are_looked_up_and_padding_is_marked() -> None:
    x = torch.tensor([[3, 1, 0, 0], [0, 2, 2, 4]])
    embed = TokenEmbed(Tokens(4, 5, pad=0), 6)
    tokens, mask = embed(x)
    assert mask is not None
    assert mask.tolist() == [[True, True, False, False], [False, True, True, True]]
    assert torch.equal(tokens[1, 3], embed.table.weight[4])
    assert TokenEmbed(Tokens(4, 5), 6)(x)[1] is None


@pytest.mark.parametrize("spec", [GRIDS[1], Table(6)], ids=["grid", "table"])
def test_embedding_a_mixture_equals_mixing_the_embeddings(spec: Spec) -> None:
    """For affine embedders embed(λx + (1-λ)x') = λ embed(x) + (1-λ) embed(x'), which justifies mixing tokens."""
    torch.manual_seed(0)
    embed = make_embed(spec, 8, "own").double()
    shape = (spec.channels, *spec.size) if isinstance(spec, Grid) else (spec.num_tokens,)
    x, y = torch.randn(2, 4, *shape, dtype=torch.double)
    weight = torch.rand(4, dtype=torch.double)
    wide = weight.view(-1, *[1] * len(shape))
    mixed, _ = embed(wide * x + (1 - wide) * y)
    own, _ = embed(x)
    partner, _ = embed(y)
    w = weight[:, None, None]
    torch.testing.assert_close(mixed, w * own + (1 - w) * partner)


@pytest.mark.parametrize(
    ("spec", "x"),
    [
        (GRIDS[1], torch.zeros(2, 2, 6, 4)),
        (GRIDS[1], torch.zeros(2, 4, 6)),
        (Table(3), torch.zeros(2, 4)),
        (Tokens(4, 5), torch.zeros(2, 5, dtype=torch.long)),
        (Tokens(4, 5), torch.zeros(2, 4)),
    ],
)
def test_another_shape_or_type_is_refused(spec: Spec, x: Tensor) -> None:
    with pytest.raises(ValueError, match="expected"):
        make_embed(spec, 4, "own")(x)
