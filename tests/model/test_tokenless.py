"""Encoders without tokens: equal to plain versions, mixed as raw inputs, refused where tokens are needed."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dabsmix.errors import UserError
from dabsmix.model.checkpoint import load_encoder, save_encoder
from dabsmix.model.encoder import Encoder, build_encoder, make_encoder
from dabsmix.model.shapes import ENCODERS, AnyConfig, MLPConfig, ResNetConfig
from dabsmix.model.tokenless import MLP, ResNet
from dabsmix.pretext.algorithm import check_fit
from dabsmix.pretext.tokens import mixup
from dabsmix.registry import algorithm_class, algorithms
from dabsmix.spec import Grid, Spec, Table, Tokens
from dabsmix.testing import random_batch

TABLE = (Table(5, (0, 3, 0, 0, 2)),)
IMAGE = (Grid(3, (8, 8), (2, 2)),)
SMALL: dict[str, tuple[tuple[Spec, ...], AnyConfig]] = {
    "table": (TABLE, MLPConfig((6, 7, 8))),
    "image": (IMAGE, ResNetConfig("basic", (1, 1, 1, 1))),
}


def small(kind: str) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(*SMALL[kind]).double()


def test_the_mlp_equals_plain_loops() -> None:
    """Rows, batch norm and maxout by loops, in training and by running statistics."""
    encoder = small("table")
    x = random_batch(TABLE, 6).views[0][0].double()
    for module in encoder.modules():
        for parameter in module.parameters(recurse=False):
            nn.init.normal_(parameter)
    rows = np.zeros((6, 3 + 3 + 2))
    for i, row in enumerate(x.tolist()):
        place = 0
        for value, categories in zip(row, (0, 3, 0, 0, 2), strict=True):
            if not np.isnan(value):
                rows[i, place + (int(value) if categories else 0)] = 1 if categories else value
            place += max(1, categories)
    for training in (True, False):
        features = encoder.train(training)((x,)).mean.detach().numpy()
        hidden = rows
        blocks: list[Any] = [block for block in encoder.blocks if isinstance(block, nn.Sequential)]
        for linear, norm, _ in blocks:
            hidden = hidden @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
            mean, var = (norm.running_mean.numpy(), norm.running_var.numpy())
            if training:
                mean, var = hidden.mean(axis=0), hidden.var(axis=0)
            hidden = (hidden - mean) / np.sqrt(var + 1e-5) * norm.weight.detach().numpy() + norm.bias.detach().numpy()
            hidden = np.maximum(hidden, 0)
        last = encoder.blocks[-1]
        assert isinstance(last, nn.Linear)
        hidden = hidden @ last.weight.detach().numpy().T + last.bias.detach().numpy()
        expected = [[max(row[4 * j : 4 * j + 4]) for j in range(2)] for row in hidden.tolist()]
        np.testing.assert_allclose(features, expected, rtol=1e-9)


def test_the_named_mlp_is_the_papers() -> None:
    encoder = make_encoder("mlp", (Table(54),))
    assert isinstance(encoder, MLP)
    shapes = [tuple(p.shape) for name, p in encoder.named_parameters() if p.dim() == 2]
    assert shapes == [(2048, 54), (2048, 2048), (4096, 2048), (4096, 4096), (8192, 4096)]
    assert encoder.width == 2048


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("resnet50", 2048)])
def test_resnets_have_the_stem_of_their_size(name: str, width: int) -> None:
    config = ENCODERS[name]
    assert isinstance(config, ResNetConfig)
    config = replace(config, layers=(1, 1, 1, 1))
    for side, kernel in ((32, (3, 3)), (224, (7, 7))):
        encoder = build_encoder((Grid(1, (side, side), (4, 4)),), config)
        assert isinstance(encoder, ResNet)
        assert encoder.width == width
        convolution = next(m for m in encoder.modules() if isinstance(m, nn.Conv2d))
        assert convolution.kernel_size == kernel
        assert any(isinstance(m, nn.MaxPool2d) for m in encoder.modules()) == (side == 224)
        norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
        assert all(bool((m.weight == 1).all()) for m in norms)


@pytest.mark.parametrize("kind", SMALL)
def test_mixing_applies_to_the_raw_input(kind: str) -> None:
    encoder = small(kind).eval()
    specs = SMALL[kind][0]
    inputs = [tuple(x.double().nan_to_num(0) for x in random_batch(specs, 4, seed=seed).views[0]) for seed in (0, 1)]
    if kind == "table":  # categories cannot be mixed by their codes
        encoder = build_encoder((Table(5),), MLPConfig((6, 8))).double().eval()
    weight = torch.linspace(0.5, 1, 4).double()
    mixed = mixup(encoder.embed(inputs[0]), encoder.embed(inputs[1]), weight)
    share = weight.view(4, *[1] * (inputs[0][0].dim() - 1))
    by_hand = (share * inputs[0][0] + (1 - share) * inputs[1][0],)
    torch.testing.assert_close(encoder.pool(encoder.encode(mixed.embedded), None).mean, encoder(by_hand).mean)


def test_unreadable_specs_are_refused() -> None:
    for name, specs in (("mlp", IMAGE), ("resnet18", TABLE), ("resnet18", (Grid(3, (12,), (2,)),))):
        with pytest.raises(UserError, match="use another --encoder"):
            make_encoder(name, specs)
    with pytest.raises(UserError, match="reads tables"):
        make_encoder("mlp", (Tokens(4, 9),))


@pytest.mark.parametrize("name", [name for name in algorithms() if algorithm_class(name).trains])
def test_algorithms_train_them_or_give_the_reason(name: str) -> None:
    """The i-Mix family trains them; algorithms that mask, move or predict tokens are refused before a run is made."""
    cls = algorithm_class(name)
    algorithm = cls(small("table").float(), **({"queue": 8} if "moco" in name else {}))
    if cls.needs_tokens:
        with pytest.raises(UserError, match="needs an encoder with tokens"):
            check_fit(algorithm, 8, algorithm.encoder.num_tokens)
        return
    check_fit(algorithm, 8, algorithm.encoder.num_tokens)
    algorithm.train()
    before = copy.deepcopy(algorithm.encoder.state_dict())
    algorithm(random_batch(TABLE, 8, label=cls.needs_labels)).value.backward()
    assert all(p.grad is not None for p in algorithm.parameters() if p.requires_grad)
    changed = {key for key, value in algorithm.encoder.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if "running" in key}


def test_token_noise_is_refused() -> None:
    cls: Any = algorithm_class("imix_npair")
    with pytest.raises(UserError, match="--views mask"):
        check_fit(cls(small("table"), views="noise"), 8, 1)


@pytest.mark.parametrize("kind", SMALL)
def test_a_saved_encoder_is_complete(kind: str, tmp_path: Path) -> None:
    encoder = small(kind).float()
    encoder.train()(random_batch(SMALL[kind][0], 4).views[0])
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, encoder, "mlp")
    inputs = random_batch(SMALL[kind][0], 4, seed=1).views[0]
    features: Tensor = load_encoder(path, SMALL[kind][0])(inputs).mean
    assert torch.equal(features, encoder.eval()(inputs).mean)
