"""Properties of every algorithm: the contract, and what algorithms share."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from twins import KINDS, SMALL, TRAINED, B, batch_of, build

from dabsmix.errors import UserError
from dabsmix.model.encoder import GridEmbed
from dabsmix.pretext.algorithm import check_fit
from dabsmix.registry import algorithm_class, algorithm_dabs, algorithm_flags, algorithms
from dabsmix.spec import Batch, Grid
from dabsmix.testing import SPECS, check_algorithm, random_batch, small_encoder

# --- the contract


@pytest.mark.parametrize("name", algorithms())
def test_algorithm_keeps_the_contract_on_every_kind_of_data(name: str) -> None:
    check_algorithm(algorithm_class(name), **SMALL.get(name, {}))


@pytest.mark.parametrize("name", [name for name in TRAINED if algorithm_dabs(name)])
def test_dabs_protocol_keeps_the_contract(name: str) -> None:
    check_algorithm(algorithm_class(name), **algorithm_dabs(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TRAINED if algorithm_class(name).num_views == 2])
@pytest.mark.parametrize("views", ["noise", "mask", "augment"])
def test_the_family_takes_every_view_and_inputmix(name: str, views: str) -> None:
    check_algorithm(algorithm_class(name), views=views, inputmix=2, **SMALL.get(name, {}))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["npair", "simclr", "supcon", "moco", "byol"])
@pytest.mark.parametrize("mixing", ["mixup", "patch", "cutmix"])
def test_the_family_takes_every_mixing(name: str, mixing: str) -> None:
    hyper = {"in_batch_negatives": True} if name == "moco" else {}
    check_algorithm(algorithm_class(name), mixing=mixing, **hyper, **SMALL.get(name, {}))


# --- properties of all algorithms


# not mae: the padding id is a wrong answer among its vocabulary
@pytest.mark.parametrize("name", [name for name in TRAINED if name != "mae"])
def test_padding_does_not_change_the_loss(name: str) -> None:
    """The embedding of padding changes no loss and gets no gradient."""
    label = algorithm_class(name).needs_labels
    one, batch = build(name, "text"), batch_of("text", label=label)
    two = copy.deepcopy(one)
    tables: list[Any] = [a.encoder.embedders[0] for a in (one, two)]
    with torch.no_grad():
        tables[1].table.weight[0] = 100.0
        if hasattr(two, "key_encoder"):
            two.get_submodule("key_encoder.embedders.0.table").weight[0] = 100.0  # type: ignore[operator]
    losses = [a(batch).value for a in (one, two)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)
    losses[0].backward()
    assert not tables[0].table.weight.grad[0].any()


@pytest.mark.parametrize("name", TRAINED)
def test_padding_of_recordings_does_not_change_the_loss(name: str) -> None:
    """The loss does not depend on the tokens of the padding of a recording, with mixing, views or masks."""
    hyper: dict[str, Any] = {"inputmix": 1} if algorithm_class(name).num_views == 2 else {}
    one = build(name, "sensor, padded", **hyper)
    batch = batch_of("sensor, padded", label=algorithm_class(name).needs_labels)
    two = copy.deepcopy(one)

    def spoil(module: Any, inputs: Any, out: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, real = out
        assert not real.all()
        return torch.where(real[..., None], tokens, 100.0), real

    for module in two.modules():
        if isinstance(module, GridEmbed):
            module.register_forward_hook(spoil)
    assert one(batch).value.item() == pytest.approx(two(batch).value.item(), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["npair", "moco", "byol", "simclr", "supcon"])
@pytest.mark.parametrize("mixing", ["mixup", "patch", "cutmix"])
def test_mixed_objective_with_weight_one_equals_the_unmixed(kind: str, name: str, mixing: str) -> None:
    batch = batch_of(kind, label=name == "supcon")
    hyper = {"in_batch_negatives": True} if name == "moco" else {}
    unmixed = build(name, kind, **hyper)
    mixed = build(f"imix_{name}", kind, mixing=mixing, alpha=1e-9)  # Beta(α, α) is then 0 or 1
    mixed.load_state_dict(unmixed.state_dict())
    torch.testing.assert_close(mixed(batch).value, unmixed(batch).value)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("kind", ["sensor", "table"])
@pytest.mark.parametrize("trouble", ["constant", "zero", "two"])
def test_bfloat16_stays_finite_in_extreme_cases(name: str, kind: str, trouble: str) -> None:
    algorithm = build(name, kind, dropout=0.1).float()
    batch = random_batch(SPECS[kind], 2 if trouble == "two" else B, label=algorithm.needs_labels)
    if trouble == "constant":
        batch = batch._replace(views=(tuple(x[:1].expand_as(x) for x in batch.views[0]),))
    elif trouble == "zero":
        for x in batch.views[0]:
            x[0] = 0
    for _ in range(3):
        algorithm.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            value = algorithm(batch).value
        value.backward()
        assert value.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in algorithm.parameters())
        algorithm.after_step(0.5)


@pytest.mark.parametrize("name", TRAINED)
def test_loss_falls_on_a_fixed_batch_with_fixed_draws(name: str) -> None:
    algorithm = build(name, "sensor").float()
    batch = random_batch(SPECS["sensor"], B, label=algorithm.needs_labels)
    optimizer = torch.optim.Adam([p for p in algorithm.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(3):
        algorithm(batch)  # a queue is full of this batch's keys from the start
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        value = algorithm(batch).value
        value.backward()
        optimizer.step()
        algorithm.after_step(0.5)
        losses.append(value.item())
    assert sum(losses[-5:]) < 0.98 * sum(losses[:5])


def test_shed_beats_the_entropy_of_its_class_prior_on_an_easy_set() -> None:
    """The data are ramps along the axis, so the height of a token shows whether it is out of place."""
    spec = (Grid(1, (16,), (1,)),)
    torch.manual_seed(0)
    algorithm = algorithm_class("shed")(small_encoder(spec, dropout=0.0))
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=3e-3)
    losses = []
    for step in range(150):
        ramp = torch.linspace(-2, 2, 16) + 0.05 * torch.randn(64, 1, 16)
        value = algorithm(Batch(((ramp,),), None, torch.arange(64), step)).value
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    moved = math.ceil(0.15 * 16) / 16
    prior = -moved * math.log(moved) - (1 - moved) * math.log(1 - moved)
    assert sum(losses[-20:]) / 20 < 0.5 * prior


def test_identical_views_differ_by_dropout_alone() -> None:
    for dropout, same in ((0.1, False), (0.0, True)):
        algorithm: Any = build("npair", "sensor", dropout=dropout)
        inputs: list[Tensor] = []
        algorithm.head.register_forward_pre_hook(lambda module, args, inputs=inputs: inputs.append(args[0]))
        algorithm(batch_of("sensor"))
        one, two = inputs[0].chunk(2)
        assert torch.allclose(one, two) == same


@pytest.mark.parametrize("name", ["moco", "imix_moco", "byol", "imix_byol"])
def test_dropout_is_active_in_the_key_pass(name: str) -> None:
    """Two passes over the same batch give different keys; without dropout they are equal."""
    for dropout, same in ((0.1, False), (0.0, True)):
        algorithm: Any = build(name, "sensor", dropout=dropout)
        inputs: list[Tensor] = []
        algorithm.key_head.register_forward_pre_hook(lambda module, args, inputs=inputs: inputs.append(args[0]))
        for _ in range(2):
            algorithm(batch_of("sensor"))
        one, two = inputs
        assert torch.allclose(one, two) == same


# --- what the probe reads

CLEAN = ["emix", "dmix", "contdmix", "npair", "simclr", "supcon", "imix_npair", "imix_simclr", "imix_supcon"]
CLEAN += ["supnpair", "imix_supnpair"]


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("kind", ["sensor", "image+text"])
def test_the_probe_reads_the_clean_pass_or_nothing(name: str, kind: str) -> None:
    algorithm, batch = build(name, kind), batch_of(kind, label=algorithm_class(name).needs_labels)
    features = algorithm(batch).features
    assert (features is not None) == (name in CLEAN)
    if features is not None:
        torch.testing.assert_close(features, algorithm.encoder(batch.views[0]).mean.detach())


@pytest.mark.parametrize("name", [name for name in TRAINED if algorithm_class(name).num_views == 2])
@pytest.mark.parametrize("hyper", [{"views": "noise"}, {"views": "augment"}, {"inputmix": 1}, {"inputmix": 2}])
def test_the_probe_never_reads_an_altered_view(name: str, hyper: dict[str, Any]) -> None:
    algorithm = build(name, "sensor", **hyper)
    batch = batch_of("sensor", label=algorithm.needs_labels, num_views=2)
    assert algorithm(batch).features is None


# --- refusals


@pytest.mark.parametrize("name", TRAINED)
def test_hyperparameters_out_of_range_are_refused(name: str) -> None:
    wrong: dict[str, Any] = {"alpha": 0.0, "temperature": -1.0, "rate": 0.0, "momentum": 1.5, "queue": 0, "beta": -0.1}
    wrong["contpred_temperature"] = 0.0
    flags = [flag.name for flag in algorithm_flags(name) if flag.type in (float, int)]
    assert set(flags) <= set(wrong)
    for flag in flags:
        with pytest.raises(UserError, match=f"--{flag.replace('_', '-')} must"):
            build(name, "sensor", **{flag: wrong[flag]})


@pytest.mark.parametrize("name", ["shed", "contpred", "contdmix", "mae", "dmix"])
def test_a_single_token_is_refused_with_the_reason(name: str) -> None:
    algorithm = build(name, "sensor")
    check_fit(algorithm, 8, 2)
    with pytest.raises(UserError, match=r"at least 2 tokens per example, got 1: .*token"):
        check_fit(algorithm, 8, 1)


@pytest.mark.parametrize("name", sorted({*TRAINED} - {"shed", "contpred", "mae"}))
def test_a_single_example_is_refused_with_the_reason(name: str) -> None:
    algorithm = build(name, "sensor")
    check_fit(algorithm, 2, 2)
    with pytest.raises(UserError, match=r"global batch of at least 2, got 1: .*example"):
        check_fit(algorithm, 1, 2)


def test_reversed_softmax_over_the_batch_is_refused() -> None:
    with pytest.raises(UserError, match="--direction target"):
        build("contpred", "sensor", negatives="batch", direction="target")
