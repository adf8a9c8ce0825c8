"""How common and rare features are learned: plain, mixup, mixup stopped early, and training guided by a teacher.

    python scripts/theory/common_and_rare.py

Data of definition 3.1 of Zou et al. (2023), as the slides quote it. One patch of each example holds its class's
feature: a common one (v or u) with probability 1 - ρ, a rare one (v' or u') else. One patch holds weak feature noise, α
times u or v at random. The others hold Gaussian noise orthogonal to all four features. The network has two layers and
squares: F_k(x) = Σ_p Σ_r ⟨w_kr, x_p⟩². Full-batch gradient descent. What is learned of a feature is Σ_r ⟨w_1r, v⟩².

Noise is strong enough, and rare features rare enough, that noise is memorised first: the case of the paper's theorem.
Weaker and stronger noise, fixed before any of it was run, shows where that case ends.

The gradient norm is |∇L|, the noise sqrt(mean_i |∇L - ∇ℓ_i|²), both of the unmixed training loss.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from figure import COLOURS, band, panels, save, summary
from torch import Tensor

SEEDS, STEPS, EVERY, RATE = 8, 1500, 25, 0.1
N, PATCHES, D, WIDTH = 120, 4, 80, 6
RARE, FEATURE_NOISE, NOISE, START, STOP = 0.08, 0.15, 0.3, 0.01, 900
OTHER_NOISE = (0.1, 0.2, 0.4)
METHODS = ("plain", "mixup", "stopped early", "guided")


class Data(NamedTuple):
    """Examples ``(N, P, D)`` and their classes as one-hot codes ``(N, 2)``."""

    x: Tensor
    target: Tensor


def draw(seed: int, number: int, noise: float = NOISE) -> Data:
    """The features v, u, v', u' are the first four axes."""
    rng = np.random.default_rng(seed)
    label, rare = rng.integers(2, size=number), rng.random(number) < RARE
    x = noise * rng.normal(size=(number, PATCHES, D))
    x[..., :4] = 0
    for i in range(number):
        own, weak = rng.permutation(PATCHES)[:2]
        x[i, own] = np.eye(D)[label[i] + 2 * rare[i]]
        x[i, weak] = FEATURE_NOISE * np.eye(D)[rng.integers(2)]
    return Data(torch.from_numpy(x).float(), torch.eye(2)[torch.from_numpy(label)])


def outputs(w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """F ``(N, 2)``, and the products ``(N, P, 2, R)`` of patches and weights ``(2, R, D)``."""
    products = torch.einsum("npd,krd->npkr", x, w)
    return (products**2).sum(dim=(1, 3)), products


def gradient(w: Tensor, x: Tensor, target: Tensor, share: Tensor) -> Tensor:
    """Of the mean cross-entropy with each example weighted by its share."""
    f, products = outputs(w, x)
    residual = (f.softmax(dim=1) - target) * share[:, None] / share.sum().clamp_min(1)
    return 2 * torch.einsum("nk,npkr,npd->krd", residual, products, x)


def norm_and_noise(w: Tensor, data: Data) -> tuple[float, float]:
    f, products = outputs(w, data.x)
    gradients = 2 * torch.einsum("nk,npkr,npd->nkrd", f.softmax(dim=1) - data.target, products, data.x).flatten(1)
    mean = gradients.mean(dim=0)
    return mean.norm().item(), (gradients - mean).norm(dim=1).pow(2).mean().sqrt().item()


def train(seed: int, data: Data, test: Data, method: str, teacher: Tensor | None = None) -> tuple[Tensor, np.ndarray]:
    """The weights, and at regular steps: common, rare, gradient norm, noise, share learned from, test accuracy."""
    generator = torch.Generator().manual_seed(seed)
    w = START * torch.randn(2, WIDTH, D, generator=generator)
    curve = []
    for step in range(STEPS + 1):
        x, target, share = data.x, data.target, torch.ones(N)
        if method != "plain" and not (method == "stopped early" and step >= STOP):
            other, lam = torch.randperm(N, generator=generator), torch.rand(N, 1, generator=generator)
            x = lam[..., None] * x + (1 - lam[..., None]) * x[other]
            target = lam * target + (1 - lam) * target[other]
            if teacher is not None:
                student, taught = (
                    F.cross_entropy(outputs(weights, x)[0], target, reduction="none") for weights in (w, teacher)
                )
                share = (taught - student <= 0).float()
        if step % EVERY == 0:
            learned = (w[0, :, :4] ** 2).sum(dim=0)
            right = (outputs(w, test.x)[0].argmax(dim=1) == test.target.argmax(dim=1)).float().mean().item()
            curve.append((learned[0].item(), learned[2].item(), *norm_and_noise(w, data), share.mean().item(), right))
        w = w - RATE * gradient(w, x, target, share)
    return w, np.array(curve)


def main() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    curves: dict[str, list[np.ndarray]] = {name: [] for name in METHODS}
    for seed in range(SEEDS):
        data, test, teacher = draw(seed, N), draw(1000 + seed, 1000), None
        for name in METHODS:
            last, curve = train(seed, data, test, name, teacher if name == "guided" else None)
            teacher = last if name == "mixup" else teacher
            curves[name].append(curve)
    steps = np.arange(0, STEPS + 1, EVERY)
    figure, axes = panels(5, width=3.7)
    titles = (
        "Common feature learned",
        "Rare feature learned",
        "Gradient norm",
        "Noise of the gradient",
        "Test accuracy",
    )
    for colour, (name, by_seed) in zip(COLOURS, curves.items(), strict=False):
        values = np.array(by_seed)
        for which, axis in zip((0, 1, 2, 3, 5), axes, strict=True):
            band(axis, steps, values[:, :, which], colour, name)
        print(
            f"{name:<13} at the end: common {summary(values[:, -1, 0])}, rare {summary(values[:, -1, 1])}, "
            f"gradient norm {summary(values[:, -1, 2], 4)}, noise {summary(values[:, -1, 3], 4)}, "
            f"test accuracy {summary(values[:, -1, 5])}"
        )
    ends = {name: np.array(by_seed)[:, -1] for name, by_seed in curves.items()}
    pairs = (("mixup", "plain"), ("stopped early", "plain"), ("stopped early", "mixup"), ("guided", "mixup"))
    for name, baseline in pairs:
        common, rare, accuracy = ((ends[name] - ends[baseline])[:, which] for which in (0, 1, 5))
        print(
            f"{name} minus {baseline}: rare feature {summary(rare)}, common feature {summary(common)}, "
            f"test accuracy {summary(accuracy)}"
        )
    shares = np.array(curves["guided"])[:, :, 4]
    print(f"share kept by the guide: at the start {summary(shares[:, 0])}, at the end {summary(shares[:, -1])}")
    for noise in OTHER_NOISE:
        plain, mixup = (
            np.array(
                [
                    train(seed, draw(seed, N, noise), draw(1000 + seed, 1000, noise), name)[1][-1, 1]
                    for seed in range(SEEDS)
                ]
            )
            for name in ("plain", "mixup")
        )
        print(
            f"noise {noise} in place of {NOISE}: rare feature, plain {summary(plain)}, mixup {summary(mixup)}, "
            f"mixup minus plain {summary(mixup - plain)}"
        )
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="step")
        axis.axvline(STOP, color="black", linewidth=0.6, linestyle=":")
    for axis in axes[2:4]:
        axis.set_yscale("log")
    axes[0].legend()
    save(figure, "common_and_rare")


if __name__ == "__main__":
    main()
