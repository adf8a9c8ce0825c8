"""The formulas of ``scripts/theory/`` against loops over eight examples."""

import math
from types import ModuleType

import numpy as np
import pytest
import torch
from script_module import SCRIPTS, script
from torch import Tensor

B = 8


@pytest.fixture(autouse=True)
def in_their_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS / "theory")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(blobs: ModuleType) -> torch.nn.Module:
    torch.manual_seed(3)
    network: torch.nn.Module = blobs.Features(hidden=6, width=4).double()
    return network


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_losses_of_the_toy_are_those_of_the_slides(weight: float) -> None:
    blobs = script("theory/blobs")
    f = features(blobs)
    x1, x2, negative = (numbers(B, 2, seed=seed) for seed in (1, 2, 3))
    t = blobs.Triples(x1, x2, negative, torch.full((B, 1), weight, dtype=torch.float64))
    unmixed = mixed = 0.0
    with torch.no_grad():
        for i in range(B):
            f1, f2, f_ = f(x1[i]), f(x2[i]), f(negative[i])
            assert f1.norm().item() == pytest.approx(1)
            m = f(weight * x1[i] + (1 - weight) * x2[i])

            def contrast(anchor: Tensor, positive: Tensor, other: Tensor = f_) -> float:
                own, against = math.exp(float(anchor @ positive)), math.exp(float(anchor @ other))
                return -math.log(own / (own + against))

            unmixed += contrast(f2, f1) / B
            mixed += (weight * contrast(m, f1) + (1 - weight) * contrast(m, f2)) / B
        assert blobs.unmixed_loss(f, t).item() == pytest.approx(unmixed, abs=1e-12)
        assert blobs.mixed_loss(f, t).item() == pytest.approx(mixed, abs=1e-12)


def test_the_expansion_is_the_second_order_polynomial_in_lambda() -> None:
    """Averaged over λ ~ Beta(1, 1), whose first two moments are 1/2 and 1/3; derivatives by differences."""
    blobs, taylor = script("theory/blobs"), script("theory/taylor")
    f = features(blobs)
    x1, x2, negative = (numbers(B, 2, seed=seed) for seed in (1, 2, 3))

    def loss(i: int, lam: float) -> float:
        weight = torch.tensor([[lam]], dtype=torch.float64)
        with torch.no_grad():
            one = blobs.Triples(x1[i : i + 1], x2[i : i + 1], negative[i : i + 1], weight)
            return float(blobs.mixed_loss(f, one))

    plain, h = 0.0, 0.001  # so near x₂ that no ReLU has its kink there
    for i in range(B):
        before, at, after = loss(i, -h), loss(i, 0), loss(i, h)
        plain += (at + (after - before) / (2 * h) / 2 + (after - 2 * at + before) / h**2 / 2 / 3) / B
    terms = taylor.terms(f, blobs.Triples(x1, x2, negative, torch.full((B, 1), 0.5, dtype=torch.float64)))
    assert terms["with curvature"] == pytest.approx(plain, abs=1e-7)
    assert abs(terms["expansion"] - plain) > 1e-5  # the curvature of features of length one is not nothing
    assert terms["true"] == pytest.approx(sum(loss(i, 0.5) for i in range(B)) / B, abs=1e-12)


def test_the_norm_of_input_gradients() -> None:
    blobs, gradients = script("theory/blobs"), script("theory/input_gradients")
    f, x = features(blobs), numbers(B, 2)
    norms = gradients.norms(f.float(), x.float())
    for i in range(B):
        jacobian = torch.func.jacrev(f.double())(x[i])
        assert norms[i].item() == pytest.approx(
            math.sqrt(sum(value.item() ** 2 for value in jacobian.flatten())), rel=1e-4
        )


def test_alpha_times_norms_is_the_directional_derivative() -> None:
    alpha_script = script("theory/mixupe_alpha")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 10)).double()
    x, label, centre = numbers(B, 5), torch.tensor([0, 3, 9, 1, 5, 5, 2, 7]), numbers(5, seed=1)
    alpha, norm, term = alpha_script.alphas(network, x, label, centre)
    for i in range(B):
        jacobian = torch.func.jacrev(network)(x[i])
        g = network(x[i]).softmax(dim=0)
        total = 0.0
        for k in range(10):
            slope, direction = jacobian[k], centre - x[i]
            wrong = g[k].item() - (k == label[i].item())
            cosine = (slope @ direction).item() / slope.norm().item() / direction.norm().item()
            assert alpha[i, k].item() == pytest.approx(wrong * cosine, abs=1e-12)
            assert norm[i, k].item() == pytest.approx(slope.norm().item(), abs=1e-12)
            total += wrong * (slope @ direction).item()
        assert term[i].item() == pytest.approx(total, abs=1e-12)  # q of MixupE


def test_the_squared_network_its_gradient_and_its_noise() -> None:
    squared = script("theory/common_and_rare")
    x, w = numbers(B, 3, 5), numbers(2, 4, 5, seed=1).requires_grad_()
    target, share = (
        torch.rand(B, 1, dtype=torch.float64) * torch.tensor([1.0, -1.0]) + torch.tensor([0.0, 1.0]),
        torch.ones(B),
    )
    share[2] = share[5] = 0
    losses, by_example = [], []
    for i in range(B):
        f = torch.stack(
            [torch.stack([(w[k, r] @ x[i, p]) ** 2 for p in range(3) for r in range(4)]).sum() for k in range(2)]
        )
        loss = torch.stack([-target[i, k] * (f[k].exp() / f.exp().sum()).log() for k in range(2)]).sum()
        torch.testing.assert_close(squared.outputs(w, x)[0][i], f)
        losses.append(loss)
        by_example.append(torch.autograd.grad(loss, w, retain_graph=True)[0])
    (plain,) = torch.autograd.grad(torch.stack([losses[i] for i in range(B) if share[i]]).mean(), w)
    torch.testing.assert_close(squared.gradient(w, x, target, share).detach(), plain)
    mean = torch.stack(by_example).mean(dim=0)
    noise = math.sqrt(sum((one - mean).square().sum().item() for one in by_example) / B)
    computed = squared.norm_and_noise(w, squared.Data(x, target))
    assert computed == pytest.approx((mean.norm().item(), noise))


def test_the_data_of_definition_3_1() -> None:
    squared = script("theory/common_and_rare")
    data = squared.draw(0, 400)
    kinds = {"rare": 0, "common": 0}
    for x, target in zip(data.x, data.target, strict=True):
        label = int(target.argmax())
        own = [p for p in range(len(x)) if x[p].max() == 1]
        weak = [p for p in range(len(x)) if x[p, :2].max() == pytest.approx(squared.FEATURE_NOISE)]
        assert (len(own), len(weak)) == (1, 1)
        axis = int(x[own[0]].argmax())
        assert axis % 2 == label
        kinds["rare" if axis >= 2 else "common"] += 1
        for p in set(range(len(x))) - {own[0], weak[0]}:
            assert not x[p, :4].any()  # orthogonal to all four features
    assert 0.04 < kinds["rare"] / 400 < 0.13


@pytest.mark.parametrize("mixup", [False, True])
def test_gradient_descent_of_the_linear_toy(mixup: bool) -> None:
    bias = script("theory/implicit_bias")
    x, y, best = bias.data(np.random.default_rng(0))
    x, y = x[[0, 1, 2, 3, -4, -3, -2, -1]], y[[0, 1, 2, 3, -4, -3, -2, -1]]
    assert np.linalg.norm(best) == pytest.approx(1)
    computed = bias.descend(x, y, np.random.default_rng(1), np.array([0, 1, 3]), mixup=mixup)
    rng, w, after = np.random.default_rng(1), torch.zeros(2, dtype=torch.float64, requires_grad=True), []
    for _ in range(4):
        after.append(w.detach().numpy().copy())
        lam = rng.random((8, 1)) if mixup else np.ones((8, 1))
        other = rng.permutation(8)
        loss = torch.zeros((), dtype=torch.float64)
        for i in range(8):
            share, j = float(lam[i, 0]), int(other[i])
            p = 1 / (1 + (-(torch.from_numpy(share * x[i] + (1 - share) * x[j]) @ w)).exp())
            target = share * (y[i] == 1) + (1 - share) * (y[j] == 1)
            loss = loss - (target * p.log() + (1 - target) * (1 - p).log()) / 8
        (slope,) = torch.autograd.grad(loss, w)
        w = (w - bias.RATE * slope).detach().requires_grad_()
    np.testing.assert_allclose(computed, np.array(after)[[0, 1, 3]], atol=1e-12)


def test_a_rank_correlation_resamples_algorithms() -> None:
    fed = script("theory/fed_and_gap")
    x = np.arange(8.0)
    assert fed.correlation(x, x**3) == pytest.approx((1, 1, 1))
    rank, low, high = fed.correlation(x, np.array([1.0, 0, 3, 2, 5, 4, 7, 6]))
    assert rank == pytest.approx(1 - 6 * 8 / (8 * 63))  # 1 - 6 Σd² / (n (n² - 1)), each d = ±1
    assert low < rank < high
