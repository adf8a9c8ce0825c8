"""The i-Mix recipe: its rates by plain loops, and whole optimizer steps on its MLP against plain twins in float64."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dabsmix.config import PretrainConfig, TransferConfig, resolve
from dabsmix.errors import UserError
from dabsmix.model.encoder import Embedded, build_encoder
from dabsmix.model.shapes import MLPConfig
from dabsmix.registry import algorithm_class
from dabsmix.source import Source
from dabsmix.spec import Batch, Table
from dabsmix.training import accelerate, learning_rate, make_optimizer
from dabsmix.verbs.pretrain import pretrain
from dabsmix.verbs.transfer import transfer

IMIX = PretrainConfig(Source("digits", protocol="imix"), algo="imix_npair", encoder="tiny")
B = 8


def test_epochs_become_steps_and_the_rate_grows_with_the_batch() -> None:
    config, recipe = resolve(replace(IMIX, epochs=3), 512, 1300)
    assert (recipe.steps, recipe.lr, recipe.optimizer, config.epochs) == (6, 0.25, "sgd", None)
    assert resolve(IMIX, 128, 1300)[1].steps == 500 * 10
    assert resolve(replace(IMIX, lr=0.03), 512, 1300)[1].lr == 0.03
    v1 = replace(IMIX, source=Source("digits"))
    assert resolve(replace(v1, epochs=3), 128, 1300)[1].steps == 30
    assert resolve(v1, 128, 1300)[1].steps == 100_000
    with pytest.raises(UserError, match="give one of them"):
        resolve(replace(IMIX, epochs=3, steps=4), 128, 1300)
    with pytest.raises(UserError, match="--epochs 0"):
        resolve(replace(IMIX, epochs=0), 128, 1300)


@pytest.mark.parametrize(("epochs", "warm"), [(20, 5), (600, 10)])
@pytest.mark.parametrize("schedule", ["epoch-cosine", "epoch-steps"])
def test_learning_rates_equal_the_reference_except_that_warm_up_lags(epochs: int, warm: int, schedule: str) -> None:
    """As the reference's loop sets them: a rate per epoch, overridden at every step of the warm-up.

    There a step of the warm-up counts itself, ``batch + 1``; here it does not (docs/protocols.md).
    """
    per_epoch, peak = 7, 0.25
    for epoch in range(epochs):
        if schedule == "epoch-cosine":
            rate = 0.5 * peak * (1 + math.cos(math.pi * epoch / epochs))
        else:
            rate = peak * 0.1 ** ((epoch >= 0.6 * epochs) + (epoch >= 0.8 * epochs))
        for batch in range(per_epoch):
            expected = rate
            if epoch < warm:
                floor = peak * 0.1**3
                to = floor + (peak - floor) * (1 + math.cos(math.pi * warm / epochs)) / 2
                to = to if schedule == "epoch-cosine" else peak
                expected = to * (batch + epoch * per_epoch) / (warm * per_epoch)
            step = epoch * per_epoch + batch
            computed = learning_rate(step, epochs * per_epoch, peak, schedule, per_epoch)
            assert computed == pytest.approx(expected, rel=1e-12)


Views = tuple[Tensor, Tensor]


def encode(module: Any, rows: Tensor) -> Tensor:
    hidden: Tensor = module.encode(Embedded(rows[:, None], None))[:, 0]
    return hidden


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b) / (a @ a).sqrt() / (b @ b).sqrt()


def mixture(algorithm: Any, rows: Tensor, rng: np.random.Generator) -> tuple[Tensor, list[int], list[float]]:
    """Raw rows mixed one by one, their partners and the weights of their own labels."""
    order, weight = list(range(B)), [1.0] * B
    if algorithm.mixing == "mixup":
        order = rng.permutation(B).tolist()
        weight = [float(np.float32(max(x, 1 - x))) for x in rng.beta(algorithm.alpha, algorithm.alpha, size=B)]
    return torch.stack([weight[i] * rows[i] + (1 - weight[i]) * rows[order[i]] for i in range(B)]), order, weight


def contrast(
    anchor: Tensor, keys: list[Tensor], positives: list[list[int]], weight: float, temperature: float
) -> Tensor:
    """The loss of one anchor: two sets of positive keys, of which the first has the weight; means within a set."""
    logits = torch.stack([cosine(anchor, key) / temperature for key in keys])
    normaliser = logits.exp().sum().log()
    own, other = (normaliser - logits[places].mean() for places in positives)
    loss: Tensor = weight * own + (1 - weight) * other
    return loss


def one_way(algorithm: Any, first: Tensor, second: Tensor, rng: np.random.Generator, classes: list[int]) -> Tensor:
    """N-pair, MoCo and BYOL: anchors of the first view, mixed or not, against keys of the second."""
    mixed, order, weight = mixture(algorithm, first, rng)
    name, total = type(algorithm).__name__, first.new_zeros(())
    if "NPair" in name:  # anchors and keys share a pass, and its batch norm
        anchors, keys = algorithm.head(encode(algorithm.encoder, torch.cat([mixed, second]))).split(B)
        for i in range(B):
            sets = [[k] for k in (i, order[i])]
            if "Sup" in name:
                sets = [[j for j in range(B) if classes[j] == classes[k]] for k in (i, order[i])]
            total = total + contrast(anchors[i], list(keys), sets, weight[i], algorithm.temperature)
        return total / B
    anchors = algorithm.head(encode(algorithm.encoder, mixed))
    with torch.no_grad():
        keys = algorithm.key_head(encode(algorithm.key_encoder, second))
    if "BYOL" in name:
        predicted = algorithm.predictor(anchors)
        for i in range(B):
            own, other = cosine(predicted[i], keys[i]), cosine(predicted[i], keys[order[i]])
            total = total + 2 - 2 * (weight[i] * own + (1 - weight[i]) * other)
        return total / B
    past = list(algorithm.queue.keys.clone())
    for i in range(B):
        if name == "MoCo":
            total = total + contrast(anchors[i], [keys[i], *past], [[0], [0]], 1, algorithm.temperature)
        else:
            sets = [[i], [order[i]]]
            total = total + contrast(anchors[i], [*keys, *past], sets, weight[i], algorithm.temperature)
    return total / B


def all_views(algorithm: Any, views: Views, rng: np.random.Generator, classes: list[int]) -> Tensor:
    """SimCLR and SupCon: every view, mixed or not, against all clean ones but its own."""
    mixed, orders, weights = zip(*(mixture(algorithm, view, rng) for view in views), strict=True)
    passed = views if algorithm.mixing == "none" else (*mixed, *views)
    projected: Tensor = algorithm.head(encode(algorithm.encoder, torch.cat(passed)))
    total = projected.new_zeros(())
    for view in range(2):
        for i in range(B):
            itself = view * B + i
            others = [column for column in range(2 * B) if column != itself]
            keys = [projected[-2 * B :][column] for column in others]
            sets = []
            for k in (i, orders[view][i]):
                columns = [(1 - view) * B + k]
                if "SupCon" in type(algorithm).__name__:
                    columns = [column for column in others if classes[column % B] == classes[k]]
                sets.append([others.index(column) for column in columns])
            total = total + contrast(projected[itself], keys, sets, weights[view][i], algorithm.temperature)
    return total / (2 * B)


def plain_loss(algorithm: Any, views: Views, classes: list[int], seed: int) -> Tensor:
    """The loss of one batch by loops over examples."""
    rng = np.random.default_rng(seed)
    if "SimCLR" in type(algorithm).__name__ or "SupCon" in type(algorithm).__name__:
        return all_views(algorithm, views, rng, classes)
    loss = one_way(algorithm, *views, rng, classes)
    if getattr(algorithm, "symmetric", False):
        loss = loss + one_way(algorithm, *views[::-1], rng, classes)
    return loss


RECIPES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ("npair", "imix_npair", "supnpair", "imix_supnpair")),
    *((name, {}) for name in ("simclr", "imix_simclr", "supcon", "imix_supcon")),
    *((name, {"queue": 11, "momentum": 0.5}) for name in ("moco", "imix_moco")),
    *((name, {"momentum": 0.5}) for name in ("byol", "imix_byol")),
    *((name, {"momentum": 0.5, "symmetric": True}) for name in ("byol", "imix_byol")),
    ("imix_byol", {"momentum": 0.5, "cosine_momentum": True}),
]


@pytest.mark.parametrize(("name", "hyper"), RECIPES, ids=lambda value: value if isinstance(value, str) else str(value))
def test_steps_equal_the_plain_twins(name: str, hyper: dict[str, Any]) -> None:
    """Three steps with momentum and decay, the key network moving between them: every parameter, in float64."""
    torch.manual_seed(0)
    cls: Any = algorithm_class(name)
    encoder = build_encoder((Table(5),), MLPConfig((6, 7, 8)))
    algorithm = cls(encoder, views="augment", **hyper).double().train()
    twin = copy.deepcopy(algorithm)
    parameters = [p for p in algorithm.parameters() if p.requires_grad]
    optimizer = make_optimizer("sgd", parameters, 0.1, 1e-2)
    velocity: dict[str, Tensor] = {}
    classes = [0, 1, 0, 2, 1, 3, 2, 3]
    rel, rtol, atol = (1e-6, 1e-4, 1e-6) if "supcon" in name else (1e-9, 1e-6, 1e-9)  # its thirds are float32
    for step in range(3):
        rate = 0.1 * (step + 1)
        first, second = torch.randn(2, B, 5, generator=torch.Generator().manual_seed(step)).double()

        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = algorithm(Batch(((first,), (second,)), torch.tensor(classes), torch.arange(B), step)).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        algorithm.after_step((step + 1) / 3)

        plain = plain_loss(twin, (first, second), classes, step)
        assert float(plain.detach()) == pytest.approx(float(loss.detach()), rel=rel)
        named = {key: p for key, p in twin.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(plain, list(named.values()))
        with torch.no_grad():
            for (key, p), gradient in zip(named.items(), gradients, strict=True):
                push = gradient + 1e-2 * p
                velocity[key] = push if step == 0 else 0.9 * velocity[key] + push
                p -= rate * velocity[key]
            for key, p in twin.named_parameters():
                if key.startswith("key_"):
                    momentum = 0.5
                    if "cosine_momentum" in hyper:
                        momentum = 1 - 0.5 * (1 + math.cos(math.pi * (step + 1) / 3)) / 2
                    p.copy_(momentum * p + (1 - momentum) * named[key.removeprefix("key_")])
            if hasattr(twin, "queue"):
                twin.queue.load_state_dict(algorithm.queue.state_dict())  # tested elsewhere
        for (key, mine), theirs in zip(algorithm.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol, msg=f"{key} after step {step}")


def test_a_run_under_the_protocol(tmp_path: Path) -> None:
    config = replace(IMIX, epochs=2, batch_size=256, out=tmp_path, hyper={"views": "augment"})
    with pytest.raises(UserError, match="no augmentation"):
        pretrain(config, accelerator=accelerate())
    run = pretrain(replace(config, hyper={}), accelerator=accelerate())
    assert run.record.protocol == "imix"
    assert run.record.steps == 2 * (1149 // 256)
    assert "optimizer: sgd" in (run.path / "config.yaml").read_text()
    assert run.metrics()[-1]["loss"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("domain", "encoder", "width"), [("breast_cancer", "mlp_quarter", 512), ("digits", "resnet18", 512)]
)
def test_an_encoder_without_tokens_is_scored_by_v2(domain: str, encoder: str, width: int, tmp_path: Path) -> None:
    config = PretrainConfig(Source(domain), algo="npair", encoder=encoder, steps=5, batch_size=32, out=tmp_path)
    run = pretrain(config, accelerator=accelerate())
    transferred = TransferConfig(run=(run.path,), protocol="v2", labels=("1",))
    (record,) = transfer(transferred, accelerator=accelerate(), answer=False)
    assert {result.probe for result in record.results} == {"linear", "knn", "ridge"}
    assert all(result.value > 0.3 for result in record.results)
    (file,) = (run.path / "features").glob("*-test.safetensors")
    assert {name: x.shape[1] for name, x in load_file(file).items()}["mean"] == width
