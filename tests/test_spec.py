"""Specs refuse impossible values, and count their tokens."""

import pytest

from dabsmix.spec import Grid, Spec, Table, Tokens, describe


@pytest.mark.parametrize(
    ("grid", "shape", "num_tokens", "patch_dim"),
    [
        (Grid(52, (320,), (5,)), (64,), 64, 260),
        (Grid(3, (32, 48), (4, 6)), (8, 8), 64, 72),
        (Grid(2, (4, 6, 8), (2, 3, 4)), (2, 2, 2), 8, 48),
    ],
)
def test_grid_counts(grid: Grid, shape: tuple[int, ...], num_tokens: int, patch_dim: int) -> None:
    assert (grid.shape, grid.num_tokens, grid.patch_dim) == (shape, num_tokens, patch_dim)


@pytest.mark.parametrize(
    ("channels", "size", "patch"),
    [
        (1, (), ()),
        (1, (2, 2, 2, 2), (1, 1, 1, 1)),
        (1, (8, 8), (2,)),
        (1, (9,), (2,)),
        (1, (8,), (16,)),
        (1, (8,), (0,)),
        (1, (0,), (1,)),
        (0, (8,), (2,)),
    ],
)
def test_grid_refuses(channels: int, size: tuple[int, ...], patch: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Grid"):
        Grid(channels, size, patch)


def test_a_table_is_numeric_by_default() -> None:
    assert Table(3) == Table(3, (0, 0, 0))
    assert hash(Table(3)) == hash(Table(3, (0, 0, 0)))
    assert Table(3, (0, 4, 0)).num_tokens == 3


@pytest.mark.parametrize(("num_features", "cardinalities"), [(0, ()), (-1, ()), (2, (0,)), (2, (0, -1)), (1, (0, 0))])
def test_table_refuses(num_features: int, cardinalities: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Table"):
        Table(num_features, cardinalities)


@pytest.mark.parametrize(("length", "vocab", "pad"), [(0, 5, None), (4, 0, None), (4, 5, 5), (4, 5, -1)])
def test_tokens_refuses(length: int, vocab: int, pad: int | None) -> None:
    with pytest.raises(ValueError, match="Tokens"):
        Tokens(length, vocab, pad)


def test_describe_is_one_line_that_names_every_input() -> None:
    specs: tuple[Spec, ...] = (Grid(3, (32, 32), (4, 4)), Tokens(16, 100, 0))
    line = describe(specs)
    assert "\n" not in line
    assert str(specs[0]) in line
    assert str(specs[1]) in line
