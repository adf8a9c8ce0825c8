"""Mixing with known labels against loops over single examples, and the samples that a guided student learns from."""

import importlib
import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dabsmix.data.domain import Data, Labelled, Split, Task
from dabsmix.errors import UserError
from dabsmix.model.contract import Embedded
from dabsmix.model.encoder import EncoderConfig, Transformer
from dabsmix.scoring.finetune import FinetuneRecipe, Network, finetune, supervised
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
from dabsmix.spec import Grid, Table, Tokens
from dabsmix.training import accelerate

module = importlib.import_module("dabsmix.scoring.finetune")
B, C, L = 8, 3, 6
FOUR_COLUMNS = Table(4)
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


def encoder(spec: Table | Tokens = FOUR_COLUMNS) -> Transformer:
    torch.manual_seed(0)
    config = EncoderConfig(width=16, depth=2, heads=2, head_dim=8, mlp=32, position_std=0.1, dropout=0.0)
    return Transformer((spec,), config)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 20.0])
def test_weights_are_of_the_beta_distribution_and_partners_a_permutation(alpha: float) -> None:
    generator = np.random.default_rng(0)
    drawn = draw(generator, HeadMix("mixup"), alpha, 4000, encoder(), torch.device("cpu"))
    assert drawn is not None
    assert drawn.weight.mean().item() == pytest.approx(0.5, abs=0.03)
    assert drawn.weight.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
    assert sorted(drawn.partner.tolist()) == list(range(4000))
    blocks = [draw(generator, HeadMix("manifold"), alpha, 2, encoder(), torch.device("cpu")) for _ in range(40)]
    assert {drawn.block for drawn in blocks if drawn is not None} == {0, 1}
    assert draw(generator, HeadMix("mixup"), 1e-9, 8, encoder(), torch.device("cpu")) is None
    assert draw(generator, HeadMix("mixup"), alpha, 1, encoder(), torch.device("cpu")) is None  # alone in its batch


@pytest.mark.parametrize("seed", range(4))
def test_cutmix_cuts_a_rectangle_around_a_uniform_centre_out_of_every_input(seed: int) -> None:
    network = Transformer(
        (Grid(1, (12, 10), (2, 2)), Table(5)),
        EncoderConfig(width=16, depth=1, heads=2, head_dim=8, mlp=32, dropout=0.0),
    )
    drawn = draw(np.random.default_rng(seed), HeadMix("cutmix"), 1.0, B, network, torch.device("cpu"))
    assert drawn is not None
    assert drawn.inside is not None
    generator = np.random.default_rng(seed)
    generator.permutation(B)
    lam = generator.beta(1.0, 1.0)
    assert drawn.weight.tolist() == pytest.approx([lam] * B)  # one for the batch
    plain = []
    for grid in ((6, 5), (5,)):
        ranges = []
        for length in grid:
            side = round(length * (1 - lam) ** (1 / len(grid)))
            start = int(generator.integers(length)) - side // 2
            ranges.append(range(max(start, 0), min(start + side, length)))
        plain += [all(i in span for i, span in zip(place, ranges, strict=True)) for place in np.ndindex(*grid)]
    assert drawn.inside.tolist() == plain


METHODS: tuple[HeadMixes, ...] = ("mixup", "cutmix", "manifold", "mixupe", "regmixup", "guided")
TASKS = {
    "classes": CLASSES,
    "multilabel": Task("multilabel", "auroc_macro", ("a", "b", "c")),
    "regression": Task("regression", "r2"),
}
LABELS = {
    "classes": LABEL,
    "multilabel": torch.tensor(
        [[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 1], [0, 0, 1], [1, 1, 0]]
    ),
    "regression": torch.tensor([0.5, -1.0, 2.0, 7.5, 3.0, 4.0, -2.5, 1.0], dtype=torch.float64),
}


def one(network: Network, x: Tensor, i: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden rows of example i with CLS, ``(1, 1+L, D)``, before the first block; which are real; the block's mask."""
    tokens, mask = network.encoder.embed((x[i : i + 1],))
    encoder = network.encoder
    assert isinstance(encoder, Transformer)
    real = torch.ones(1 + tokens.shape[1], dtype=torch.bool)
    real[1:] = True if mask is None else mask[0]
    return torch.cat([encoder.cls, tokens], dim=1) + encoder.positions, real, real[None, None, None, :]


def mixed_alone(network: Network, x: Tensor, drawn: Drawn, i: int) -> tuple[Tensor, float]:
    """The outputs for the mixture of example i and its partner, position by position, and its own target's weight."""
    encoder, lam = network.encoder, drawn.weight[i].item()
    assert isinstance(encoder, Transformer)
    (own, real, mask), (other, real_other, mask_other) = (one(network, x, row) for row in (i, int(drawn.partner[i])))
    kept = 1.0

    def mix(first: int) -> Tensor:
        """The rows, from ``first`` on mixed where both are real."""
        nonlocal kept
        rows, replaced = [], 0.0
        for p in range(len(real)):
            share = 1.0
            if p >= first and real[p] and real_other[p]:
                share = lam if drawn.inside is None else 1.0 - float(drawn.inside[p - 1])
            rows.append(share * own[0, p] + (1 - share) * other[0, p])
            replaced += 1 - share
        kept = 1 - replaced / real[first:].sum().item()
        return torch.stack(rows)[None]

    if drawn.block is None:
        own, other = own - encoder.positions, other - encoder.positions
        own = mix(1) + encoder.positions
    for number, block in enumerate(encoder.blocks):
        if number == drawn.block:
            own = mix(0)
        own, other = block(own, mask), block(other, mask_other)
    normed = encoder.norm(own)[0]
    mean = sum(normed[p] for p in range(len(real)) if real[p]) / real.sum()
    return network.head(network.norm(mean)), kept


def plain_loss(outputs: Tensor, y: list[float], kind: str) -> Tensor:
    """Of one example's outputs ``(C,)``."""
    total = torch.zeros((), dtype=torch.float64)
    if kind == "regression":
        return (outputs[0] - y[0]) ** 2
    for c in range(C):
        if kind == "classes":
            total = total - y[c] * (outputs[c].exp() / outputs.exp().sum()).log()
        else:
            p = 1 / (1 + (-outputs[c]).exp())
            total = total - (y[c] * p.log() + (1 - y[c]) * (1 - p).log()) / C
    return total


def plain_target(label: Tensor, i: int, kind: str) -> list[float]:
    match kind:
        case "classes":
            return [float(c == label[i].item()) for c in range(C)]
        case "multilabel":
            return [float(value) for value in label[i]]
        case _:
            return [(label[i].item() - 3.0) / 2.0]


@pytest.mark.parametrize(("alpha", "padded"), [(0.3, False), (1.0, True), (20.0, False)])
@pytest.mark.parametrize(
    ("method", "kind"),
    [(method, kind) for method in METHODS for kind in TASKS if (method, kind) != ("mixupe", "regression")],
)
def test_a_batch_has_the_loss_and_gradients_of_its_single_examples(
    method: HeadMixes, kind: str, alpha: float, padded: bool
) -> None:
    spec = Tokens(5, 9, pad=0) if padded else Table(4)
    network, teacher = (Network(encoder(spec), TASKS[kind], 3.0, 2.0).double().eval() for _ in range(2))
    numbers = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in (network.head.weight, teacher.head.weight):
            parameter.normal_(generator=numbers)
    x = torch.randn(B, 4, generator=numbers, dtype=torch.float64)
    if padded:
        x = torch.randint(1, 9, (B, 5), generator=numbers)
        x[torch.arange(5) >= torch.tensor([5, 3, 4, 5, 1, 2, 5, 4])[:, None]] = 0
    label = LABELS[kind]
    drawn = draw(np.random.default_rng(1), HeadMix(method), alpha, B, network.encoder, x.device)
    assert drawn is not None
    drawn = drawn._replace(weight=drawn.weight.double())
    batch_loss, share = MixedLoss(network, HeadMix(method))((x,), label, drawn, teacher)

    clean, derivative = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    learned_from = []
    for i in range(B):
        own, others = (plain_target(label, row, kind) for row in (i, int(drawn.partner[i])))
        outputs, kept = mixed_alone(network, x, drawn, i)
        y = [kept * mine + (1 - kept) * theirs for mine, theirs in zip(own, others, strict=True)]
        loss = plain_loss(outputs, y, kind)
        unmixed = network((x[i : i + 1],))[0]
        clean = clean + plain_loss(unmixed, own, kind) / B
        if method == "mixupe":
            g = unmixed.exp() / unmixed.exp().sum() if kind == "classes" else 1 / (1 + (-unmixed).exp())
            derivative = derivative + sum((own[c] - g[c]) * unmixed[c] for c in range(C)).abs() / B
        if method != "guided" or plain_loss(mixed_alone(teacher, x, drawn, i)[0], y, kind) - loss <= 0:
            learned_from.append(loss)
    plain = torch.stack(learned_from).mean()
    if method == "regmixup":
        plain = clean + plain
    if method == "mixupe":
        regularised = plain + 0.5 * derivative  # η = 1, E[1-λ] = 1/2
        plain = (plain.detach() / regularised.detach()) * regularised
    exact = 1e-7 if padded else 1e-12  # shares of real tokens are float32
    assert batch_loss.item() == pytest.approx(plain.item(), abs=exact)
    assert share.item() == pytest.approx(len(learned_from) / B)
    parameters = [p for p in network.parameters() if p.requires_grad]
    computed, by_hand = (torch.autograd.grad(value, parameters, allow_unused=True) for value in (batch_loss, plain))
    for ours, looped in zip(computed, by_hand, strict=True):
        torch.testing.assert_close(ours, looped, rtol=100 * exact, atol=exact)


def test_guided_learns_from_some_samples_and_leaves_others_out() -> None:
    """So that the test above tells the filter from its opposite, and from none."""
    network, teacher = (Network(encoder(), CLASSES).double().eval() for _ in range(2))
    with torch.no_grad():
        teacher.head.weight.normal_(generator=torch.Generator().manual_seed(5))
    x = torch.randn(B, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    _, share = MixedLoss(network, HeadMix("guided"))((x,), LABEL, Drawn(PARTNER, WEIGHT), teacher)
    assert 0 < share.item() < 1


class Perfect(nn.Module):
    """A teacher that gives the mixed target itself."""

    def __init__(self, network: Network, target: Tensor) -> None:
        super().__init__()
        self.encoder, self.target = network.encoder, target

    def read(self, embedded: Embedded) -> Tensor:
        assert len(embedded.tokens) == B
        return self.target.clamp_min(1e-300).log()


@pytest.mark.parametrize("seed", range(3))
def test_a_guided_student_of_a_perfect_teacher_learns_from_every_sample(seed: int) -> None:
    network = Network(encoder(), CLASSES).double().eval()
    x = torch.randn(B, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn = Drawn(PARTNER, torch.rand(B, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    own = targets(LABEL, CLASSES, 0, 1, OUTPUTS)
    target = drawn.weight[:, None] * own + (1 - drawn.weight[:, None]) * own[PARTNER]
    by_mixup, _ = MixedLoss(network, HeadMix("mixup"))((x,), LABEL, drawn)
    for teacher in (Perfect(network, target), network):  # an equal is no worse either: r̂ = 0 is kept
        loss, share = MixedLoss(network, HeadMix("guided"))((x,), LABEL, drawn, teacher)
        assert share == 1
        assert loss.item() == pytest.approx(by_mixup.item(), abs=1e-12)
    # a teacher that is sure of a class that neither example has is beaten everywhere: nothing is learned
    wrong = torch.full((B, C), 1e-9, dtype=torch.float64)
    wrong[torch.arange(B), [({0, 1, 2} - {int(LABEL[i]), int(LABEL[PARTNER[i]])}).pop() for i in range(B)]] = 1
    loss, share = MixedLoss(network, HeadMix("guided"))((x,), LABEL, drawn, Perfect(network, wrong))
    assert (loss, share) == (0, 0)


def table(n: int = 400) -> Data:
    x = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    label = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)
    train, validation, test = (Split((x,), rows, label[rows]) for rows in np.split(np.arange(n), [n // 2, 3 * n // 4]))
    return Data((Table(4),), train, Labelled(CLASSES, train, validation, test), "0" * 64)


def test_finetuning_with_mixing_is_a_separate_probe_and_records_what_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = FinetuneRecipe(rates=(3e-3,), batch_size=50, epochs=5, steps=(20, 20))
    shares = []

    class Watched(MixedLoss):
        def forward(
            self, inputs: tuple[Tensor, ...], label: Tensor, drawn: Drawn | None, teacher: Network | None = None
        ) -> tuple[Tensor, Tensor]:
            loss, share = super().forward(inputs, label, drawn, teacher)
            if teacher is not None:
                shares.append(share.item())
            return loss, share

    monkeypatch.setattr(module, "MixedLoss", Watched)
    plain = finetune(encoder(), table(), ("1",), recipe, accelerator=accelerate())
    guided = finetune(encoder(), table(), ("1",), recipe, accelerator=accelerate(), mix=HeadMix("guided"))
    unmixed = finetune(encoder(), table(), ("1",), recipe, accelerator=accelerate(), mix=HeadMix("mixup", 1e-9))
    assert plain.results[0].probe == "finetune"
    assert guided.results[0].probe == "finetune+guided"
    by_epoch = [sum(shares[4 * epoch : 4 * epoch + 4]) / 4 for epoch in range(5)]
    assert len(shares) == 20
    assert len(guided.results[0].selected["kept"]) == 5
    assert 0 < guided.results[0].selected["kept"][0] <= 1
    assert guided.el2n is not None
    assert guided.el2n.shape == (200,)
    assert 0 <= guided.el2n.min() <= guided.el2n.max() <= math.sqrt(2)
    assert guided.results[0].selected["kept"] == pytest.approx(by_epoch, abs=5e-5)
    assert len(set(by_epoch)) > 1
    assert np.array_equal(unmixed.predictions["finetune+mixup-alpha1e-09@1"], plain.predictions["finetune@1"])


def test_el2n_scores_are_of_the_training_examples_at_the_last_step_of_a_short_training() -> None:
    recipe = FinetuneRecipe(rates=(3e-3,), batch_size=50, epochs=5, steps=(20, 20))
    trained = finetune(encoder(), table(), ("1",), recipe, accelerator=accelerate(), mix=HeadMix("mixup"))
    assert trained.network is not None
    assert trained.el2n is not None
    assert trained.el2n.shape == (200,)
    labelled = table().require_labelled()
    with torch.no_grad():
        outputs = trained.network.eval()((torch.from_numpy(labelled.train.inputs[0][np.arange(8)]),))
    for i in range(8):
        p = softmax(outputs[i])
        assert labelled.train.label is not None
        plain = math.sqrt(sum((p[c] - (c == labelled.train.label[i])) ** 2 for c in range(C)))
        assert trained.el2n[i] == pytest.approx(plain, abs=1e-5)


def test_mixing_stops_on_request_follows_its_schedule_and_el2n_is_of_epoch_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = FinetuneRecipe(rates=(3e-3,), batch_size=50, epochs=12, steps=(1, 100))
    alphas: list[float] = []
    drawn_before: list[int] = []

    def counted(rng: np.random.Generator, mix: HeadMix, alpha: float, *rest: Any) -> Drawn | None:
        alphas.append(alpha)
        return draw(rng, mix, alpha, *rest)

    def scored(scores: Tensor, label: Tensor) -> Tensor:
        drawn_before.append(len(alphas))
        return el2n(scores, label)

    monkeypatch.setattr(module, "draw", counted)
    monkeypatch.setattr(module, "el2n", scored)
    to_the_end, until_third = HeadMix("mixup", 2.0, "hard"), HeadMix("mixup", 2.0, "easy-hard-easy", 3)
    finetune(encoder(), table(), ("1",), recipe, accelerator=accelerate(), mix=to_the_end)
    assert alphas == [alpha_at(to_the_end, step / 48) for step in range(48)]  # four steps an epoch
    assert drawn_before == [40]
    alphas.clear()
    finetune(encoder(), table(), ("1",), recipe, accelerator=accelerate(), mix=until_third)
    assert alphas == [alpha_at(until_third, step / 48) for step in range(12)]


def test_supervised_training_with_mixing_is_stored_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    short = FinetuneRecipe(rates=(3e-3,), layer_decay=1.0, batch_size=50, epochs=2, steps=(8, 8))
    monkeypatch.setattr(module, "SUPERVISED", short)
    plain = supervised(encoder(), table(), accelerator=accelerate())
    mixed = supervised(encoder(), table(), accelerator=accelerate(), mix=HeadMix("mixup"))
    assert [result.probe for result in plain.results["supervised"]] == ["finetune"]
    assert [result.probe for result in mixed.results["supervised"]] == ["finetune+mixup"]
    assert mixed.predictions.keys() == {"supervised finetune+mixup@1"}


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
