"""The online probe: learns beside the encoder, never into it, and scores a whole split."""

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dabsmix.data.batches import Batches, Raw
from dabsmix.data.domain import Data, Labelled, Split, Task
from dabsmix.model.encoder import EncoderConfig, Transformer
from dabsmix.scoring.features import features
from dabsmix.scoring.online import OnlineProbe, watch_online
from dabsmix.spec import Table
from dabsmix.training import accelerate

CLASSES = Task("classes", "accuracy", ("a", "b", "c"))


def clusters(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (n,), generator=generator)
    centers = 3 * torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    return centers[label] + torch.randn(n, 8, generator=generator), label


def fit(probe: OnlineProbe, steps: int) -> list[float]:
    losses = []
    for step in range(steps):
        losses.append(probe.learn(*clusters(64, seed=step), seed=step).item())
    return losses


def test_it_learns_separable_classes() -> None:
    torch.manual_seed(0)
    probe = OnlineProbe(8, CLASSES, "v1")
    features, label = clusters(500, seed=-1)
    before = probe.score(features, label.numpy())
    fit(probe, 300)
    assert probe.score(features, label.numpy()) > max(0.9, before)


def test_no_gradient_reaches_the_features() -> None:
    features, label = clusters(16, seed=0)
    features.requires_grad_()
    loss = OnlineProbe(8, CLASSES, "v1").learn(features, label, seed=0)
    assert not loss.requires_grad
    assert features.grad is None


@pytest.mark.parametrize("protocol", ["v1", "dabs"])
def test_one_update_equals_the_plain_one(protocol: str) -> None:
    torch.manual_seed(0)
    probe = OnlineProbe(8, CLASSES, protocol)
    weight = probe.head.weight.detach().clone().requires_grad_()
    bias = probe.head.bias.detach().clone().requires_grad_()
    features, label = clusters(32, seed=1)
    loss = probe.learn(features, label, seed=5)

    optimizer: torch.optim.Optimizer
    if protocol == "dabs":
        mask = torch.rand(32, 8, generator=torch.Generator().manual_seed(5)) >= 0.2
        x = torch.where(mask, features / 0.8, 0.0)
        optimizer = torch.optim.Adam([weight, bias], lr=1e-4)
    else:
        x = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-5).sqrt()
        optimizer = torch.optim.AdamW([weight, bias], lr=1e-3)
    expected = F.cross_entropy(x @ weight.T + bias, label)
    expected.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    optimizer.step()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(probe.head.weight, weight)
    torch.testing.assert_close(probe.head.bias, bias)


@pytest.mark.parametrize("protocol", ["v1", "dabs"])
def test_the_online_probe_learns_from_a_separate_pass(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In eval mode, so that an algorithm's dropout and masks have no effect; under dabs with dropout, as in DABS."""
    x, label = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32), np.arange(60) % 3
    train, validation, test = (Split((x,), part, label[part]) for part in np.split(np.arange(60), [40, 50]))
    data = Data((Table(6),), train, Labelled(CLASSES, train, validation, test), "0" * 64)
    encoder = Transformer(data.specs, EncoderConfig(16, depth=2, heads=2, head_dim=8, mlp=32, dropout=0.5)).train()
    online = watch_online(encoder, data, None, protocol, 2, Batches(train, 10, seed=0), accelerate())
    assert online is not None
    inputs: list[torch.Tensor] = []
    monkeypatch.setattr(OnlineProbe, "learn", lambda probe, features, label, seed: inputs.append(features))
    raw = train.batch(np.arange(10))
    for step in (1, 2, 3, 4):
        online.learn(encoder, step, Raw(raw, torch.arange(10) % 3, torch.arange(10)), 0, accelerate())
    assert len(inputs) == 2  # every second step
    assert encoder.training
    clean = features(encoder, train.take(np.arange(10)), data.normalise, accelerator=accelerate()).mean
    assert [torch.allclose(features, clean, atol=1e-6) for features in inputs] == [protocol == "v1"] * 2


def test_dropout_follows_its_seed_and_not_torch_s_own_generator() -> None:
    features, label = clusters(16, seed=0)
    torch.manual_seed(0)
    states = []
    for noise, seed in ((1, 7), (2, 7), (1, 8)):
        torch.manual_seed(0)
        probe = OnlineProbe(8, CLASSES, "dabs")
        torch.manual_seed(noise)  # like another process
        probe.learn(features, label, seed)
        states.append(probe.head.weight.detach().clone())
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_scoring_does_not_change_the_probe() -> None:
    torch.manual_seed(0)
    probe = OnlineProbe(8, CLASSES, "v1")
    fit(probe, 3)
    before = {key: value.clone() for key, value in probe.state_dict().items()}
    features, label = clusters(40, seed=9)
    scores = [probe.score(features, label.numpy()), probe.score(features, label.numpy())]
    assert scores[0] == scores[1]
    assert all(torch.equal(value, before[key]) for key, value in probe.state_dict().items())


@pytest.mark.parametrize(("kind", "metric"), [("regression", "spearman"), ("multilabel", "auroc_macro")])
def test_other_tasks(kind: Literal["regression", "multilabel"], metric: str) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(256, 8, generator=generator)
    if kind == "regression":
        label = 100 + 5 * features[:, 0]
        probe = OnlineProbe(8, Task(kind, metric), "v1", (100.0, 5.0))
    else:
        label = (features[:, :2] > 0).to(torch.uint8)
        probe = OnlineProbe(8, Task(kind, metric, ("p", "q")), "v1")
    losses = [probe.learn(features, label, seed=step).item() for step in range(1500)]
    assert losses[-1] < 0.6 * losses[0]
    assert probe.score(features, label.numpy()) > 0.9


def test_tokens_without_a_label_are_left_out() -> None:
    task = Task("tokens", "accuracy", ("a", "b"))
    features = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(0))
    label = torch.randint(-1, 2, (6, 5), generator=torch.Generator().manual_seed(1))
    labelled = features[label >= 0], label[label >= 0]
    states = []
    for x, y, kind in ((features, label, task), (*labelled, replace(task, kind="classes"))):
        torch.manual_seed(0)
        probe = OnlineProbe(8, kind, "v1")
        probe.learn(x, y, seed=0)
        states.append((probe.head.weight.detach().clone(), probe.score(x, y.numpy())))
    assert torch.equal(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]


def test_a_score_that_is_not_defined_is_nan() -> None:
    probe = OnlineProbe(8, Task("multilabel", "auroc_macro", ("p",)), "v1")
    assert math.isnan(probe.score(torch.randn(5, 8), np.zeros((5, 1), dtype=np.uint8)))


def test_regression_is_scored_in_the_target_s_own_units(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions: list[NDArray[np.float64]] = []

    def watched(prediction: NDArray[np.float64], label: NDArray[np.float64]) -> float:
        predictions.append(prediction)
        return 0.0

    monkeypatch.setattr("dabsmix.scoring.online.metric", lambda name: watched)
    probe = OnlineProbe(8, Task("regression", "spearman"), "dabs", (100.0, 5.0))
    features = torch.randn(10, 8)
    probe.score(features, np.zeros(10))
    with torch.no_grad():
        expected = 100 + 5 * probe.head(features)[:, 0]
    np.testing.assert_allclose(predictions[0], expected.numpy(), rtol=1e-5)
