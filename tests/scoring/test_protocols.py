"""The protocols follow their sources; the dabs head equals torch's Linear, loss and AdamW."""

import numpy as np
import pytest
import torch
from torch import nn
from transferring import trained

from dabsmix.data.domain import Task
from dabsmix.errors import UserError
from dabsmix.scoring.heads import Features
from dabsmix.scoring.linear import fit_linear
from dabsmix.scoring.protocols import PROBED, dabs, fits, imix, protocol, v1
from dabsmix.scoring.results import probes_of
from dabsmix.spec import Grid, Table


def test_v1_has_a_sufficient_grid() -> None:
    grid = trained(v1())
    assert len(grid.rates) >= 10
    assert grid.poolings == ("mean", "cls")
    assert len(grid.decays) >= 2
    assert v1().neighbours == (5, 20, 200)
    assert v1().fractions == (0.01, 0.1, 1.0)
    assert v1().draws >= 20
    assert grid.standardise


def test_imix_drops_the_rate_at_80_90_and_95_epochs() -> None:
    schedule = trained(imix()).schedule
    epochs = [schedule(epoch / 100) for epoch in (0, 79, 80, 89, 90, 94, 95, 99)]
    assert epochs == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04, 0.008, 0.008])


def test_dabs_trains_one_head_like_the_reference() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(40, 6)).astype(np.float32))
    label = rng.integers(2, size=40)
    task = Task("classes", "accuracy", ("no", "yes"))
    heads = fit_linear(Features({"mean": x, "cls": x}, label), task, trained(dabs(16)), seed=5)
    assert len(heads) == 1
    assert heads[0].weight.shape == (6, 1)

    draws = torch.Generator().manual_seed(5)
    linear = nn.Linear(6, 1)
    start = (2 * torch.rand(7, 1, generator=draws) - 1) / 6**0.5  # torch's default: uniform in ±1/sqrt(fan_in)
    linear.weight.data, linear.bias.data = start[:6].T.clone(), start[6].clone()
    optimizer = torch.optim.AdamW(linear.parameters(), lr=1e-4, weight_decay=1e-4)
    for _ in range(100):
        order = torch.randperm(40, generator=draws)
        for index in (order[:16], order[16:32]):  # the incomplete batch is dropped
            loss = nn.functional.binary_cross_entropy_with_logits(
                linear(x[index])[:, 0], torch.from_numpy(label).float()[index]
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
            optimizer.step()
    torch.testing.assert_close(heads[0].weight, linear.weight.detach().T, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(heads[0].bias, linear.bias.detach(), rtol=1e-4, atol=1e-6)


def test_probes_that_are_not_defined_for_a_task_are_left_out() -> None:
    tokens = Task("tokens", "accuracy", ("a", "b"))
    classes = Task("classes", "accuracy", ("a", "b"))
    assert set(fits(v1(), classes)) == {"linear", "knn", "ridge"}
    assert set(fits(v1(), tokens)) == {"linear", "ridge"}
    assert set(fits(imix(), classes)) == {"linear", "pinv"}
    assert set(fits(imix(), Task("regression", "mse"))) == {"linear"}
    for name, build in PROBED.items():  # results that a record must have
        for task in (classes, tokens, Task("regression", "mse")):
            assert tuple(fits(build(64, ()), task)) == probes_of(name, task.kind)


def test_a_protocol_has_its_name_and_note() -> None:
    assert [protocol(name, 64).name for name in PROBED] == list(PROBED)
    assert "watches during training" in dabs(64).note
    assert trained(dabs(64)).batch_size == 64
    with pytest.raises(UserError, match="did you mean 'dabs'"):
        protocol("dab", 64)


def test_imix_has_its_own_recipe_for_tables_and_for_imagenet() -> None:
    assert trained(imix((Table(54),))).batch_size == 512
    assert trained(imix((Grid(3, (32, 32), (4, 4)),))).batch_size == 256
    assert "crops and mirrors" in imix((Grid(3, (32, 32), (4, 4)),)).note
    large = trained(imix((Grid(3, (224, 224), (16, 16)),)))
    assert large.rates == (30.0,)
    assert [large.schedule(epoch / 100) for epoch in (0, 59, 60, 79, 80, 99)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    assert protocol("imix", 64, (Table(3),)) == imix((Table(3),))
