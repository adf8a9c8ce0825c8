"""Raw features against what can be counted by hand."""

import math

import pytest
import torch

from dabsmix import yardsticks
from dabsmix.spec import Grid, Table, Tokens
from dabsmix.yardsticks import raw_reader


def test_a_small_grid_is_flattened_as_it_is() -> None:
    x = torch.randn(3, 2, 8)
    reader = raw_reader((Grid(2, (8,), (4,)),), [])
    assert torch.equal(reader((x,)), x.flatten(1))


@pytest.mark.parametrize("size", [(6000,), (90, 60), (30, 20, 10)])
def test_a_large_grid_keeps_its_means(size: tuple[int, ...]) -> None:
    spec = Grid(2, size, (1,) * len(size))
    features = raw_reader((spec,), [])((torch.full((1, 2, *size), 5.0),))
    assert 1000 < features.shape[1] <= yardsticks.RAW_WIDTH
    torch.testing.assert_close(features, torch.full_like(features, 5.0))


def test_columns_of_a_table() -> None:
    x = torch.tensor([[1.5, 2.0], [math.nan, 0.0], [0.5, math.nan]])
    features = raw_reader((Table(2, (0, 3)),), [])((x,))
    expected = [[0, 0, 1.5, 0, 0, 1], [1, 0, 0, 1, 0, 0], [0, 1, 0.5, 0, 0, 0]]
    assert features.tolist() == expected


def test_words_are_counted_and_rare_and_padding_ones_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yardsticks, "RAW_WIDTH", 2)
    train = [(torch.tensor([[5, 5, 3, 0]]),), (torch.tensor([[3, 5, 1, 0]]),)]
    reader = raw_reader((Tokens(4, 8, pad=0),), train)
    assert [kept.tolist() for kept in reader.kept if kept is not None] == [[3, 5]]
    assert reader((torch.tensor([[5, 3, 5, 0], [1, 7, 0, 0]]),)).tolist() == [[1, 2], [0, 0]]


def test_inputs_are_concatenated() -> None:
    specs = (Grid(1, (4,), (2,)), Tokens(2, 3))
    tokens = torch.tensor([[2, 2]])
    reader = raw_reader(specs, [(torch.zeros(1, 1, 4), tokens)])
    assert reader((torch.ones(1, 1, 4), tokens)).tolist() == [[1, 1, 1, 1, 2]]
