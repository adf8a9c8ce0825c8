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


def plain_loss(algorithm: Any, rows: Tensor, seed: int) -> Tensor:
    """The loss of one batch by loops over examples; raw rows are mixed."""
    rng = np.random.default_rng(seed)
    order, weight = list(range(B)), [1.0] * B
    if algorithm.mixing == "mixup":
        order = rng.permutation(B).tolist()
        weight = [float(np.float32(max(x, 1 - x))) for x in rng.beta(algorithm.alpha, algorithm.alpha, size=B)]
    mixed = torch.stack([weight[i] * rows[i] + (1 - weight[i]) * rows[order[i]] for i in range(B)])

    def encode(module: Any, x: Tensor) -> Tensor:
        hidden: Tensor = module.encode(Embedded(x[:, None], None))[:, 0]
        return hidden

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b) / (a @ a).sqrt() / (b @ b).sqrt()

    name = type(algorithm).__name__
    if "NPair" in name:  # anchors and keys share a pass, and its batch norm
        anchors, keys = algorithm.head(encode(algorithm.encoder, torch.cat([mixed, rows]))).split(B)
        pasts: list[Tensor] = []
    else:
        anchors = algorithm.head(encode(algorithm.encoder, mixed))
        with torch.no_grad():
            keys = algorithm.key_head(encode(algorithm.key_encoder, rows))
        if "BYOL" in name:
            predicted = algorithm.predictor(anchors)
            total = rows.new_zeros(())
            for i in range(B):
                own, other = cosine(predicted[i], keys[i]), cosine(predicted[i], keys[order[i]])
                total = total + 2 - 2 * (weight[i] * own + (1 - weight[i]) * other)
            return total / B
        pasts = list(algorithm.queue.keys.clone())
    total = rows.new_zeros(())
    for i in range(B):
        logits = torch.stack([cosine(anchors[i], key) / algorithm.temperature for key in [*keys, *pasts]])
        for share, label in ((weight[i], i), (1 - weight[i], order[i])):
            total = total + share * (logits.exp().sum().log() - logits[label])
    return total / B


@pytest.mark.parametrize("name", ["npair", "imix_npair", "imix_moco", "byol", "imix_byol"])
def test_steps_equal_the_plain_twins(name: str) -> None:
    """Three steps with momentum and decay, the key network moving between them: every parameter, in float64."""
    torch.manual_seed(0)
    cls: Any = algorithm_class(name)
    encoder = build_encoder((Table(5),), MLPConfig((6, 7, 8)))
    algorithm = cls(encoder, **({"queue": 11, "momentum": 0.5} if "moco" in name else {})).double().train()
    twin = copy.deepcopy(algorithm)
    parameters = [p for p in algorithm.parameters() if p.requires_grad]
    optimizer = make_optimizer("sgd", parameters, 0.1, 1e-2)
    velocity: dict[str, Tensor] = {}
    for step in range(3):
        rate = 0.1 * (step + 1)
        rows = torch.randn(B, 5, generator=torch.Generator().manual_seed(step)).double()

        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = algorithm(Batch(((rows,),), None, torch.arange(B), step)).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        algorithm.after_step((step + 1) / 3)

        plain = plain_loss(twin, rows, step)
        assert float(plain.detach()) == pytest.approx(float(loss.detach()), rel=1e-9)
        named = {key: p for key, p in twin.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(plain, list(named.values()))
        with torch.no_grad():
            for (key, p), gradient in zip(named.items(), gradients, strict=True):
                push = gradient + 1e-2 * p
                velocity[key] = push if step == 0 else 0.9 * velocity[key] + push
                p -= rate * velocity[key]
            for key, p in twin.named_parameters():
                if key.startswith("key_"):
                    followed = named[key.removeprefix("key_")]
                    p.copy_(twin.momentum * p + (1 - twin.momentum) * followed)
            if hasattr(twin, "queue"):
                twin.queue.load_state_dict(algorithm.queue.state_dict())  # tested elsewhere
        for (key, mine), theirs in zip(algorithm.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9, msg=f"{key} after step {step}")


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
