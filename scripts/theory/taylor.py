"""The i-Mix InfoNCE loss against its expansion ½ L_un + R1 + R2 over training.

    python scripts/theory/taylor.py

With s = f(x₂)ᵀ(f(x₁) - f(x₋)), s₂ = f(x₂)ᵀ(f(x₂) - f(x₋)), ℓ(s) = log(1 + exp(-s)) and the derivative d of f at x₂
along x₁ - x₂, the expansion to second order in λ around λ = 0, averaged over λ ~ Beta(1, 1), has

    R1 = ½ ℓ(s₂)
    R2 = ⅓ ℓ'(s) dᵀ(f(x₁) - f(x₋)) + ⅙ ℓ'(s₂) dᵀ(f(x₂) - f(x₋)) + ⅙ ℓ''(s₂) (dᵀ(f(x₂) - f(x₋)))²

which are the terms of the slides, whose constants c₁, c₂ and c₃ are open. Their R1 has f of the mixture in it; both are
computed. λ is not small: it is uniform between 0 and 1.

The slides take ∇²f = 0, as ReLU has none. Features of length one have: with the second derivative c of f at x₂ along
x₁ - x₂ there is one more term of second order, ⅙ ℓ'(s₂) cᵀ(f(x₂) - f(x₋)), "with curvature".
"""

import numpy as np
import torch
import torch.nn.functional as F
from blobs import Features, Triples, dot, mixed_loss, train, triples, unmixed_loss
from figure import COLOURS, band, panels, save, summary
from scipy.stats import spearmanr
from torch import Tensor

SEEDS, STEPS, EVERY = 8, 300, 10


@torch.no_grad()
def terms(f: Features, t: Triples) -> dict[str, float]:
    def derivative(x: Tensor) -> Tensor:
        return torch.func.jvp(f, (x,), (t.one - t.two,))[1]  # type: ignore[no-any-return]  # torch leaves it untyped

    two = f(t.two)
    along, bend = torch.func.jvp(derivative, (t.two,), (t.one - t.two,))[:2]
    one, negative = f(t.one), f(t.negative)
    s, s2 = dot(two, one - negative), dot(two, two - negative)
    first, second = dot(along, one - negative), dot(along, two - negative)
    slope, slope2 = -torch.sigmoid(-s), -torch.sigmoid(-s2)
    curve2 = torch.sigmoid(s2) * torch.sigmoid(-s2)
    half, r1 = unmixed_loss(f, t) / 2, F.softplus(-s2).mean() / 2
    r2 = (slope * first / 3 + slope2 * second / 6 + curve2 * second**2 / 6).mean()
    curvature = (slope2 * dot(bend, two - negative) / 6).mean()
    of_mixture = F.softplus(-(1 - dot(f(t.mixed), negative))).mean() / 2
    return {
        "true": mixed_loss(f, t).item(),
        "without R2": (half + r1).item(),
        "expansion": (half + r1 + r2).item(),
        "slides": (half + of_mixture + r2).item(),
        "with curvature": (half + r1 + r2 + curvature).item(),
    }


def main() -> None:
    torch.set_num_threads(1)
    t = triples(4000, torch.Generator().manual_seed(99))
    runs = []
    for seed in range(SEEDS):
        networks = train(seed, mixed=True, steps=STEPS)
        runs.append([terms(f, t) for step, f in enumerate(networks) if step % EVERY == 0])
    curves = {name: np.array([[step[name] for step in run] for run in runs]) for name in runs[0][0]}
    steps = np.arange(0, STEPS + 1, EVERY)

    figure, (losses, errors) = panels(2)
    band(losses, steps, curves["true"], COLOURS[0], "true i-Mix loss")
    band(losses, steps, curves["expansion"], COLOURS[1], "½ L_un + R1 + R2", "--")
    band(losses, steps, curves["without R2"], COLOURS[2], "½ L_un + R1", ":")
    losses.set(xlabel="step", ylabel="loss", title="The loss and its expansion")
    losses.legend()
    names = ("expansion", "without R2", "slides", "with curvature")
    for name, colour in zip(names, COLOURS[1:], strict=True):
        label = "R1 with the mixture, as in the slides" if name == "slides" else name
        band(errors, steps, curves[name] - curves["true"], colour, label)
    errors.axhline(0, color="black", linewidth=0.8)
    errors.set(xlabel="step", ylabel="expansion minus true", title="Error", ylim=(-0.005, 0.0095))
    errors.legend()

    print(f"{SEEDS} seeds, {STEPS} steps; mean and 95 % interval over seeds")
    for name in names:
        error = curves[name] - curves["true"]
        rank = [spearmanr(a, b).statistic for a, b in zip(curves[name], curves["true"], strict=True)]
        print(
            f"{name:<14} error at the start {summary(error[:, 0], 4)}, at the end {summary(error[:, -1], 4)}, "
            f"at most {np.abs(error).max():.4f} in any seed; "
            f"rank correlation with the true loss over training {summary(rank)}"
        )
    print(f"true loss at the end {summary(curves['true'][:, -1], 4)}")
    save(figure, "taylor")


if __name__ == "__main__":
    main()
