"""The projection heads layer by layer, and against plain torch modules with the same weights."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from twins import TRAINED, build

from dabsmix.model.batch_norm import GlobalBatchNorm
from dabsmix.pretext.contrast import HeadNorm, dabs_head, mlp_head
from dabsmix.registry import algorithm_class

WIDTH, HIDDEN, B = 6, 10, 12

LAYERS: dict[HeadNorm, list[nn.Module]] = {
    "none": [nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 128)],
    "first": [nn.Linear(WIDTH, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 128)],
    "both": [
        nn.Linear(WIDTH, HIDDEN),
        nn.BatchNorm1d(HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, 128),
        nn.BatchNorm1d(128),
    ],
}


def outline(head: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Each layer's kind and the shape of its weight; our batch norm counts as torch's."""
    out = []
    for layer in head.children():
        kind = "BatchNorm1d" if isinstance(layer, GlobalBatchNorm) else type(layer).__name__
        weight = getattr(layer, "weight", None)
        out.append((kind, () if weight is None else tuple(weight.shape)))
    return out


def with_odd_weights(head: nn.Module) -> nn.Module:
    """Weights differ from 1 and biases from 0, so that a missing layer or a wrong order shows."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.randn_like(p))
    return head


@pytest.mark.parametrize("norm", ["none", "first", "both"])
@pytest.mark.parametrize("training", [True, False])
def test_mlp_head_is_the_plain_sequence_of_its_layers(norm: HeadNorm, training: bool) -> None:
    plain = nn.Sequential(*(copy.deepcopy(layer) for layer in LAYERS[norm])).double()
    head = mlp_head(WIDTH, HIDDEN, norm).double()
    assert outline(head) == outline(plain)
    with_odd_weights(plain)
    with torch.no_grad():
        for mine, theirs in zip(head.parameters(), plain.parameters(), strict=True):
            mine.copy_(theirs)
    x = torch.randn(B, WIDTH, dtype=torch.float64)
    head(x), plain(x)  # running statistics that are not 0 and 1
    torch.testing.assert_close(head.train(training)(x), plain.train(training)(x))


def test_dabs_head_is_layer_norm_and_a_linear_layer_to_128() -> None:
    head: Any = with_odd_weights(dabs_head(WIDTH))
    assert outline(head) == [("LayerNorm", (WIDTH,)), ("Linear", (128, WIDTH))]
    x = torch.randn(B, WIDTH)
    norm, linear = head
    scaled = (x - x.mean(dim=1, keepdim=True)) / (x.var(dim=1, keepdim=True, correction=0) + 1e-5).sqrt()
    expected: Tensor = (scaled * norm.weight + norm.bias) @ linear.weight.T + linear.bias
    torch.testing.assert_close(head(x), expected, rtol=1e-5, atol=1e-5)


def test_every_algorithm_has_the_head_of_its_source() -> None:
    """DABS's head for e-mix and its derivatives; i-Mix's, as wide as the encoder, for the i-Mix family."""
    for name in TRAINED:
        head = getattr(build(name, "sensor"), "head", None)
        if head is None:
            assert name in ("shed", "contpred", "mae")  # these predict tokens
        elif name in ("emix", "dmix", "contdmix"):
            assert outline(head) == outline(dabs_head(32)), name
        else:
            assert algorithm_class(name).num_views == 2
            assert outline(head)[0] == ("Linear", (32, 32)), name
            assert ("Linear", (128, 32)) in outline(head), name
