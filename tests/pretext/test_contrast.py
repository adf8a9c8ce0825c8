"""The products by which instances are discriminated, and their precision."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dabsmix.pretext.contrast import products, similarities, two_view_similarities


def rows(seed: int) -> Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(seed))


def test_products_are_float32_under_autocast() -> None:
    one, two = rows(0), rows(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert (one @ two.mT).dtype == torch.bfloat16  # what autocast does to other products
        product = products(one, two)
    assert product.dtype == torch.float32
    assert torch.equal(product, products(one, two))
    torch.testing.assert_close(product, (one[:, None] * two).sum(dim=2))


@pytest.mark.parametrize("logits", [similarities, two_view_similarities])
def test_similarities_are_float32_under_autocast(logits: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    one, two = rows(0), rows(1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = logits(one, two, 0.07)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, logits(one, two, 0.07))
