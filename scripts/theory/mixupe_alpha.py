"""Does mixup regularise input gradients? The cosines of MixupE's first-order term while a network learns digits.

    python scripts/theory/mixupe_alpha.py

The term is Σ_k α_ki |∇f_k(x_i)| |x̄ - x_i| with α_ki = (g_k - y_ik) cos(∇f_k(x_i), x̄ - x_i). Where α is negative, a
smaller loss asks for a larger gradient.
"""

import numpy as np
import torch
import torch.nn.functional as F
from figure import COLOURS, band, panels, save, summary
from sklearn.datasets import load_digits
from torch import Tensor, nn

SEEDS, STEPS, EVERY, ROWS = 5, 400, 20, 300


def alphas(network: nn.Module, x: Tensor, label: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """α ``(n, K)``, the norms ``|∇f_k|`` ``(n, K)``, and the term's sum over k ``(n,)``."""
    jacobian = torch.func.vmap(torch.func.jacrev(network))(x).detach()  # (n, K, D)
    direction = (centre - x)[:, None]
    cosine = F.cosine_similarity(jacobian, direction, dim=-1)
    wrong = network(x).detach().softmax(dim=1) - F.one_hot(label, 10)
    alpha, norm = wrong * cosine, jacobian.norm(dim=-1)
    return alpha, norm, (alpha * norm).sum(dim=1) * direction.norm(dim=-1)[:, 0]


def run(seed: int, x: Tensor, label: Tensor, *, mixup: bool) -> list[tuple[float, float, float, float]]:
    """The share of negative α, the least α, the mean norm of ∇f_k and the mean term, at regular steps."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    curve = []
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            alpha, norm, term = alphas(network, x[:ROWS], label[:ROWS], x.mean(dim=0))
            share = (alpha < 0).float().mean().item()
            curve.append((share, alpha.min().item(), norm.mean().item(), term.mean().item()))
        rows = torch.randint(len(x), (128,))
        other, lam = rows[torch.randperm(128)], torch.rand(128, 1) if mixup else torch.ones(128, 1)
        target = lam * F.one_hot(label[rows], 10) + (1 - lam) * F.one_hot(label[other], 10)
        loss = F.cross_entropy(network(lam * x[rows] + (1 - lam) * x[other]), target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return curve


def main() -> None:
    torch.set_num_threads(1)
    raw, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(raw))[:1200]
    x, label = torch.from_numpy(raw[order]).float() / 16, torch.from_numpy(classes[order])
    steps = np.arange(0, STEPS + 1, EVERY)
    curves = {
        name: np.array([run(seed, x, label, mixup=name == "mixup") for seed in range(SEEDS)])
        for name in ("mixup", "plain")
    }
    figure, axes = panels(4)
    for (name, by_seed), colour in zip(curves.items(), COLOURS, strict=False):
        for which, axis in enumerate(axes):
            band(axis, steps, by_seed[:, :, which], colour, name)
        middle = by_seed[:, len(steps) // 2]
        print(
            f"{name:<5} share of negative α at the start {summary(by_seed[:, 0, 0])}, halfway {summary(middle[:, 0])}, "
            f"at the end {summary(by_seed[:, -1, 0])}; least α at the end {summary(by_seed[:, -1, 1])}; "
            f"mean |∇f_k| at the end {summary(by_seed[:, -1, 2])}, of the term {summary(by_seed[:, -1, 3])}"
        )
    axes[0].set(title="Share of α below 0", xlabel="step", ylim=(0, 1))
    axes[1].set(title="The least α", xlabel="step")
    axes[2].set(title="Mean of |∇f_k|", xlabel="step")
    axes[3].set(title="Mean of the term", xlabel="step")
    of = {name: by_seed[:, -1] for name, by_seed in curves.items()}
    ratio, less = of["mixup"][:, 2] / of["plain"][:, 2], of["mixup"][:, 3] - of["plain"][:, 3]
    print(f"at the end: |∇f_k|, mixup over plain {summary(ratio)}; the term, mixup minus plain {summary(less)}")
    axes[0].axhline(0.5, color="black", linewidth=0.8)
    axes[0].legend()
    save(figure, "mixupe_alpha")


if __name__ == "__main__":
    main()
