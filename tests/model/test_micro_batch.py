"""Small passes with recomputed activations give the loss and the gradients of one large pass, in less memory."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transferring import pretrained
from twins import KINDS, TRAINED, batch_of, build

from dabsmix.errors import UserError
from dabsmix.model.encoder import Transformer, make_encoder
from dabsmix.pretext.algorithm import Algorithm
from dabsmix.registry import algorithm_class
from dabsmix.spec import Grid


def stepped(algorithm: Algorithm, kind: str, size: int | None) -> tuple[Tensor, dict[str, Tensor]]:
    algorithm.encoder.micro_batch = size
    batch = batch_of(kind, label=algorithm.needs_labels, num_views=algorithm.num_views)
    loss = algorithm(batch).value
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in algorithm.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", TRAINED)
def test_micro_batches_contrast_the_whole_batch(name: str) -> None:
    for kind in KINDS:
        if algorithm_class(name).needs_labels and kind != KINDS[0]:
            continue
        loss, gradients = stepped(build(name, kind), kind, None)
        small_loss, small_gradients = stepped(build(name, kind), kind, 3)
        torch.testing.assert_close(small_loss, loss, rtol=1e-9, atol=1e-11)
        assert small_gradients.keys() == gradients.keys()
        for parameter, gradient in gradients.items():
            # float64; the order of sums differs
            torch.testing.assert_close(small_gradients[parameter], gradient, rtol=1e-9, atol=1e-11)


def test_dropout_is_the_same_when_activations_are_computed_again() -> None:
    encoder = build("dmix", "sensor", dropout=0.5).encoder
    assert isinstance(encoder, Transformer)
    encoder.micro_batch = 3
    inputs = batch_of("sensor").views[0]
    encoder(inputs).mean.sum().backward()
    (first,) = [p.grad.clone() for name, p in encoder.named_parameters() if name == "cls" and p.grad is not None]
    numeric = []
    for sign in (1, -1):
        with torch.no_grad():
            encoder.cls[0, 0, 0] += sign * 1e-6
        torch.manual_seed(0)
        numeric.append(float(encoder(inputs).mean.sum().detach()))
        with torch.no_grad():
            encoder.cls[0, 0, 0] -= sign * 1e-6
    encoder.zero_grad()
    torch.manual_seed(0)
    encoder(inputs).mean.sum().backward()
    assert encoder.cls.grad is not None
    assert float(encoder.cls.grad[0, 0, 0]) == pytest.approx((numeric[0] - numeric[1]) / 2e-6, rel=1e-5)
    assert not torch.equal(first, encoder.cls.grad)  # other draws, other gradient


def test_a_micro_batch_is_computed_twice_and_only_its_tokens_are_held() -> None:
    held: list[int] = []
    calls: list[int] = []
    for size in (None, 4):
        encoder = make_encoder("tiny", (Grid(1, (8, 8), (2, 2)),))
        encoder.micro_batch = size
        encoder.blocks[0].register_forward_pre_hook(lambda _, x: calls.append(len(x[0])))
        numbers: list[int] = []

        def hold(x: Tensor, numbers: list[int] = numbers) -> Tensor:
            numbers.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda x: x):
            mean = encoder((torch.randn(16, 1, 8, 8),)).mean
        mean.sum().backward()
        held.append(sum(numbers))
    assert calls == [16] + [4] * 4 + [4] * 4  # forward, and again in the backward pass
    assert held[1] < held[0] / 20


def test_without_gradient_there_is_one_pass() -> None:
    encoder = build("dmix", "sensor").encoder
    inputs = batch_of("sensor").views[0]
    with torch.no_grad():
        full = encoder(inputs).mean
        encoder.micro_batch = 3
        assert torch.equal(encoder(inputs).mean, full)


def test_pretrain_accepts_micro_batch(tmp_path: Path) -> None:
    full, small = (pretrained(tmp_path, algo="none", micro_batch=size) for size in (None, 4))
    assert "micro_batch" not in (full.path / "config.yaml").read_text()
    assert "micro_batch: 4" in (small.path / "config.yaml").read_text()
    assert full.record.config_hash != small.record.config_hash
    with pytest.raises(UserError, match="--micro-batch 0: must be at least 1"):
        pretrained(tmp_path, micro_batch=0)
    with pytest.raises(UserError, match="--micro-batch: --encoder resnet18 normalises over the batch"):
        pretrained(tmp_path, encoder="resnet18", micro_batch=4)
