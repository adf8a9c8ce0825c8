"""Mixing with known labels against loops over single examples, and the samples that a guided student learns from."""

import math
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from dabsmix.data.domain import Data, Labelled, Split, Task
from dabsmix.errors import UserError
from dabsmix.model.encoder import EncoderConfig, Transformer
from dabsmix.scoring.finetune import FinetuneRecipe, Network, finetune
from dabsmix.scoring.head_mix import (
    Drawn,
    MixedLoss,
    alpha_at,
    cut,
    draw,
    el2n,
    interpolate,
    losses,
    mixupe,
    no_worse,
    targets,
)
from dabsmix.scoring.results import HeadMix, HeadMixes
from dabsmix.spec import Table, Tokens
from dabsmix.training import accelerate

B, C, L = 8, 3, 6
CLASSES = Task("classes", "accuracy", ("a", "b", "c"))
rng = torch.Generator().manual_seed(0)
OUTPUTS = torch.randn(B, C, generator=rng, dtype=torch.float64)
CLEAN = torch.randn(B, C, generator=rng, dtype=torch.float64)
LABEL = torch.tensor([0, 1, 2, 0, 1, 2, 2, 0])
PARTNER = torch.tensor([3, 0, 1, 2, 5, 4, 7, 6])
WEIGHT = torch.rand(B, generator=rng, dtype=torch.float64)


def softmax(row: Tensor) -> list[float]:
    powers = [math.exp(x) for x in row.tolist()]
    return [power / sum(powers) for power in powers]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def mixed_target() -> Tensor:
    own = targets(LABEL, CLASSES, 0, 1, OUTPUTS)
    return WEIGHT[:, None] * own + (1 - WEIGHT[:, None]) * own[PARTNER]


def test_the_loss_of_mixed_classes_is_the_mixed_loss() -> None:
    computed = losses(OUTPUTS, mixed_target(), "classes")
    for i in range(B):
        p, lam = softmax(OUTPUTS[i]), WEIGHT[i].item()
        plain = -lam * math.log(p[LABEL[i]]) - (1 - lam) * math.log(p[LABEL[PARTNER[i]]])
        assert computed[i].item() == pytest.approx(plain, abs=1e-12)


def test_the_loss_of_mixed_labels_and_quantities() -> None:
    several = torch.rand(B, C, generator=rng, dtype=torch.float64)
    computed = losses(OUTPUTS, several, "multilabel")
    for i in range(B):
        total = 0.0
        for c in range(C):
            p, y = sigmoid(OUTPUTS[i, c].item()), several[i, c].item()
            total -= y * math.log(p) + (1 - y) * math.log(1 - p)
        assert computed[i].item() == pytest.approx(total / C, abs=1e-12)
    quantity = targets(torch.arange(B).double(), Task("regression", "r2"), 3.0, 2.0, OUTPUTS)
    computed = losses(OUTPUTS[:, :1], quantity, "regression")
    for i in range(B):
        assert computed[i].item() == pytest.approx((OUTPUTS[i, 0].item() - (i - 3) / 2) ** 2, abs=1e-12)


@pytest.mark.parametrize("kind", ["classes", "multilabel"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_mixupe_is_its_formula_and_its_factor_has_no_gradient(kind: str, eta: float) -> None:
    outputs = CLEAN.clone().requires_grad_()
    own = targets(LABEL, CLASSES, 0, 1, OUTPUTS)
    mixed = losses(OUTPUTS, mixed_target(), "classes").mean()
    computed = mixupe(mixed, outputs, own, kind, eta)
    total = 0.0
    for i in range(B):
        p = softmax(CLEAN[i]) if kind == "classes" else [sigmoid(x) for x in CLEAN[i].tolist()]
        total += abs(sum((own[i, c].item() - p[c]) * CLEAN[i, c].item() for c in range(C)))
    r = 0.5 / B * total
    expected = mixed.item() + eta * r
    assert computed.item() == pytest.approx(abs(mixed.item()) / abs(expected) * expected, abs=1e-12)
    if eta:
        computed.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        assert outputs.grad is not None
        assert outputs.grad.abs().max() > 1e-3


def test_guided_selects_by_the_formula() -> None:
    target = mixed_target()
    student, teacher = losses(OUTPUTS, target, "classes"), losses(CLEAN, target, "classes")
    for i, chosen in enumerate(no_worse(teacher, student).tolist()):
        s, t, y = softmax(OUTPUTS[i]), softmax(CLEAN[i]), target[i].tolist()
        r = sum(-y[c] * math.log(t[c]) for c in range(C)) - sum(-y[c] * math.log(s[c]) for c in range(C))
        assert chosen == (r <= 0)
    # no student beats a teacher that gives the mixed target itself: every sample is learned from
    perfect = losses(target.clamp_min(1e-12).log(), target, "classes")
    assert no_worse(perfect, student).all()
    # a teacher that gives only the heavier class is beaten on every sample that is really mixed
    sure = torch.where(target == target.amax(dim=1, keepdim=True), 0.0, -50.0).double()
    worse = losses(sure, target, "classes")
    assert no_worse(worse, student).tolist() == [
        (w - s) <= 0 for w, s in zip(worse.tolist(), student.tolist(), strict=True)
    ]
    assert not no_worse(worse, student).all()


def test_el2n() -> None:
    computed = el2n(OUTPUTS, LABEL)
    for i in range(B):
        p = softmax(OUTPUTS[i])
        plain = math.sqrt(sum((p[c] - (c == LABEL[i].item())) ** 2 for c in range(C)))
        assert computed[i].item() == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize("padded", [False, True])
def test_tokens_are_interpolated_or_cut_where_both_are_real(padded: bool) -> None:
    hidden = torch.randn(B, L, 2, generator=rng, dtype=torch.float64)
    real = torch.arange(L) < torch.tensor([6, 3, 4, 6, 1, 2, 5, 6])[:, None] if padded else None
    inside = torch.tensor([False, True, True, False, False, True])
    drawn = Drawn(PARTNER, WEIGHT, inside)
    blended, of_blended = interpolate(hidden, real, drawn)
    pasted, of_pasted = cut(hidden, real, drawn)
    for i in range(B):
        j, lam = int(PARTNER[i]), WEIGHT[i].item()
        length = unmixed = replaced = 0
        for p in range(L):
            mine, both = real is None or bool(real[i, p]), real is None or bool(real[i, p] and real[j, p])
            mixture = lam * hidden[i, p] + (1 - lam) * hidden[j, p] if both else hidden[i, p]
            torch.testing.assert_close(blended[i, p], mixture)
            assert torch.equal(pasted[i, p], hidden[j, p] if both and inside[p] else hidden[i, p])
            length, unmixed, replaced = (
                length + mine,
                unmixed + (mine and not both),
                replaced + (both and bool(inside[p])),
            )
        assert of_blended[i].item() == pytest.approx(lam + (1 - lam) * unmixed / length)
        assert of_pasted[i].item() == pytest.approx(1 - replaced / length)


def test_schedules() -> None:
    def at(schedule: Literal["constant", "easy", "hard", "easy-hard-easy"], *progress: float) -> list[float]:
        return [alpha_at(HeadMix("mixup", 2.0, schedule), place) for place in progress]

    assert at("constant", 0, 0.5, 1) == [2, 2, 2]
    assert at("hard", 0, 0.5, 1) == pytest.approx([0, 2, 20])
    assert at("easy", 0, 0.5, 1) == pytest.approx([20, 2, 0])
    assert at("easy-hard-easy", 0, 0.25, 0.5, 0.75, 1) == pytest.approx([0, 2, 20, 2, 0])
    assert str(HeadMix("mixup", 2.0, "easy", 20)) == "mixup-alpha2-easy-until20"
    assert str(HeadMix("regmixup", 20.0)) == "regmixup"
    assert HeadMix("regmixup").strength == 20
    for mix in (HeadMix(), HeadMix("regmixup"), HeadMix("mixup", 1e-05, "easy-hard-easy", 20), HeadMix("guided", 2.0)):
        assert HeadMix.parse(str(mix)) == mix
    for text in ("shake", "mixup-until", "mixup-alphax"):
        with pytest.raises(ValueError, match=r"does not say|convert"):
            HeadMix.parse(text)
    flags = HeadMix("mixup", 2.0, "easy", 20).flags
    assert flags == "--head-mix mixup --mix-alpha 2 --mix-schedule easy --mix-epochs 20"


def encoder() -> Transformer:
    torch.manual_seed(0)
    config = EncoderConfig(width=16, depth=2, heads=2, head_dim=8, mlp=32, position_std=0.1, dropout=0.0)
    return Transformer((Table(4),), config)


METHODS: tuple[HeadMixes, ...] = ("mixup", "cutmix", "manifold", "mixupe", "regmixup", "guided")


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_a_batch_equals_that_of_its_single_examples(method: HeadMixes) -> None:
    network, teacher = Network(encoder(), CLASSES).double().eval(), Network(encoder(), CLASSES).double().eval()
    with torch.no_grad():
        teacher.head.weight.normal_(generator=torch.Generator().manual_seed(5))
    x = torch.randn(B, 4, generator=rng, dtype=torch.float64)
    drawn = draw(np.random.default_rng(1), HeadMix(method), 1.0, B, network.encoder, x.device)
    assert drawn is not None
    batch_loss, share = MixedLoss(network, HeadMix(method))((x,), LABEL, drawn, teacher)

    def outputs(network: Network, i: int) -> Tensor:
        """The outputs for the mixture of example i and its partner, computed alone."""
        pair = torch.stack([x[i], x[drawn.partner[i]]])
        tokens, lam = network.encoder.embed((pair,)).tokens, drawn.weight[i]
        if drawn.inside is not None:
            tokens = torch.where(drawn.inside[:, None], tokens[1], tokens[0])[None]
        elif drawn.block is None:
            tokens = (lam * tokens[0] + (1 - lam) * tokens[1])[None]
        cls = network.encoder.cls.expand(len(tokens), -1, -1)  # type: ignore[operator]  # typed as Tensor | Module
        hidden = torch.cat([cls, tokens], dim=1) + network.encoder.positions  # type: ignore[operator]  # likewise
        for number, block in enumerate(network.encoder.blocks):
            if number == drawn.block:
                hidden = (lam * hidden[0] + (1 - lam) * hidden[1])[None]
            hidden = block(hidden, None)
        normed = network.encoder.norm(hidden)  # type: ignore[operator]  # typed as Tensor | Module
        logits: torch.Tensor = network.head(network.norm(normed.mean(dim=1)))
        return logits[0]

    total, clean, derivative, number = 0.0, 0.0, 0.0, 0
    for i in range(B):
        lam = drawn.weight[i].item() if drawn.inside is None else 1 - drawn.inside.double().mean().item()
        y = [lam * (c == LABEL[i].item()) + (1 - lam) * (c == LABEL[drawn.partner[i]].item()) for c in range(C)]
        loss = -sum(y[c] * math.log(p) for c, p in enumerate(softmax(outputs(network, i).detach())))
        own = network((x[i : i + 1],))[0].detach()
        clean -= math.log(softmax(own)[LABEL[i]])
        derivative += abs(sum(((c == LABEL[i].item()) - softmax(own)[c]) * own[c].item() for c in range(C)))
        if method == "guided":
            taught = -sum(y[c] * math.log(p) for c, p in enumerate(softmax(outputs(teacher, i).detach())))
            if taught - loss > 0:
                continue
        total, number = total + loss, number + 1
    plain = total / number + (clean / B if method == "regmixup" else 0)
    assert batch_loss.item() == pytest.approx(plain, abs=1e-6)  # MixupE's factor keeps the size of the mixed loss
    assert share.item() == pytest.approx(number / B)
    if method == "mixupe":
        eta_r = derivative / B / 2
        before = torch.autograd.grad(batch_loss, network.head.bias, retain_graph=True)[0]
        assert before.norm() > 0
        assert eta_r > 0


def table(n: int = 400) -> Data:
    x = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    label = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)
    train, validation, test = (Split((x,), rows, label[rows]) for rows in np.split(np.arange(n), [n // 2, 3 * n // 4]))
    return Data((Table(4),), train, Labelled(CLASSES, train, validation, test), "0" * 64)


def test_finetuning_with_mixing_is_a_separate_probe_and_stops_mixing_on_request() -> None:
    recipe = FinetuneRecipe(rates=(3e-3,), batch_size=50, epochs=5, steps=(20, 20))
    plain = finetune(encoder(), table(), ("1",), recipe, accelerator=accelerate())
    guided = finetune(encoder(), table(), ("1",), recipe, accelerator=accelerate(), mix=HeadMix("guided"))
    stopped = finetune(encoder(), table(), ("1",), recipe, accelerator=accelerate(), mix=HeadMix("mixup", 1e-9))
    assert plain.results[0].probe == "finetune"
    assert guided.results[0].probe == "finetune+guided"
    assert len(guided.results[0].selected["kept"]) == 5
    assert 0 < guided.results[0].selected["kept"][0] <= 1
    assert guided.el2n is not None
    assert guided.el2n.shape == (200,)
    assert 0 <= guided.el2n.min() <= guided.el2n.max() <= math.sqrt(2)
    assert np.array_equal(stopped.predictions["finetune+mixup-alpha1e-09@1"], plain.predictions["finetune@1"])


def test_undefined_combinations_are_refused() -> None:
    tokens, quantity = Task("tokens", "accuracy", ("a", "b")), Task("regression", "r2")
    for mix, task, word in [
        (HeadMix("mixup"), tokens, "each token"),
        (HeadMix("mixupe"), quantity, "mixupe"),
        (HeadMix("mixup", 0.0), CLASSES, "--mix-alpha 0"),
        (HeadMix("mixup", None, "easy", 0), CLASSES, "--mix-epochs 0"),
        (HeadMix("none", 2.0), CLASSES, "other than none"),
    ]:
        with pytest.raises(UserError, match=word):
            mix.check(task.kind, True)


def test_mixing_inside_the_network_does_not_change_padding() -> None:
    torch.manual_seed(0)
    config = EncoderConfig(width=16, depth=2, heads=2, head_dim=8, mlp=32, dropout=0.0)
    network = Network(Transformer((Tokens(5, 9, pad=0),), config), CLASSES)
    words = torch.tensor([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]])
    drawn = Drawn(torch.tensor([1, 0]), torch.tensor([0.5, 0.5]), None, 1)
    loss, _ = MixedLoss(network, HeadMix("manifold"))((words,), torch.tensor([0, 1]), drawn)
    assert loss.isfinite()
