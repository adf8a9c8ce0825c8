"""The slides' linear toy: gradient descent on separable data, with and without mixup, against the largest margin.

    python scripts/theory/implicit_bias.py

The slides claim the same implicit bias for both: the loss falls, the norm of w grows without bound, and w turns to the
direction of the largest margin.
"""

import numpy as np
from figure import COLOURS, band, panels, save, summary
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.svm import SVC

SEEDS, STEPS, N, RATE = 8, 10_000, 40, 0.5
Array = NDArray[np.float64]


def data(rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Separable points with labels ±1, and the direction of the largest margin through the origin."""
    y = np.repeat([1.0, -1.0], N // 2)
    x = y[:, None] * np.array([1.2, 0.6]) + 0.35 * rng.normal(size=(N, 2))
    x = x[(keep := y * x[:, 0] > 0.3)]
    y = y[keep]
    mirrored = np.concatenate([x * y[:, None], -x * y[:, None]])  # through the origin: no bias
    w = SVC(C=1e6, kernel="linear").fit(mirrored, np.repeat([1, -1], len(x))).coef_[0]
    return x, y, w / np.linalg.norm(w)


def descend(x: Array, y: Array, rng: np.random.Generator, at: Array, *, mixup: bool) -> Array:
    """w after the steps of ``at``: full-batch gradient descent on the logistic loss."""
    w, weights = np.zeros(2), []
    target = (y + 1) / 2
    for step in range(int(at[-1]) + 1):
        if step in at:
            weights.append(w.copy())
        lam = rng.random((len(x), 1)) if mixup else np.ones((len(x), 1))
        other = rng.permutation(len(x))
        mixed, mixed_target = lam * x + (1 - lam) * x[other], lam[:, 0] * target + (1 - lam[:, 0]) * target[other]
        w -= RATE * mixed.T @ (expit(mixed @ w) - mixed_target) / len(x)
    return np.array(weights)


def main() -> None:
    at = np.unique(np.geomspace(1, STEPS, 25).astype(int))
    curves: dict[str, list[Array]] = {"plain": [], "mixup": []}
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        x, y, best = data(rng)
        for name, by_seed in curves.items():
            w = descend(x, y, rng, at, mixup=name == "mixup")
            norm = np.linalg.norm(w, axis=1)
            cosine = np.clip(w @ best / norm, -1, 1)
            margin = (y * (x @ best)).min() - ((w / norm[:, None]) @ (x * y[:, None]).T).min(axis=1)
            loss = np.logaddexp(0, -(w @ (x * y[:, None]).T)).mean(axis=1)
            by_seed.append(np.stack([norm, loss, np.degrees(np.arccos(cosine)), margin]))
    figure, axes = panels(4, width=3.6)
    names = (
        "norm of w",
        "loss on the unmixed points",
        "angle to the largest margin, degrees",
        "margin below the largest",
    )
    for (name, by_seed), colour in zip(curves.items(), COLOURS, strict=False):
        values = np.array(by_seed)
        half = len(at) - 5
        for which, axis in enumerate(axes):
            band(axis, at, values[:, which], colour, name)
        print(
            f"{name}: norm of w at step {at[half]} {summary(values[:, 0, half])}, at step {at[-1]} "
            f"{summary(values[:, 0, -1])}; at the end loss {summary(values[:, 1, -1], 5)}, angle "
            f"{summary(values[:, 2, -1], 2)} degrees, margin below the largest {summary(values[:, 3, -1])}"
        )
        since = values[:, :, -1] - values[:, :, half]
        print(
            f"{name}, since step {at[half]}: norm {summary(since[:, 0])}, loss {summary(since[:, 1], 5)}; "
            f"since step 1: angle {summary(values[:, 2, -1] - values[:, 2, 0], 2)} degrees, "
            f"margin below the largest {summary(values[:, 3, -1] - values[:, 3, 0])}"
        )
    last = {name: np.array(by_seed)[:, :, -1] for name, by_seed in curves.items()}
    print(
        f"at the end, mixup minus plain: angle {summary(last['mixup'][:, 2] - last['plain'][:, 2], 2)} degrees, "
        f"margin below the largest {summary(last['mixup'][:, 3] - last['plain'][:, 3])}"
    )
    for axis, title in zip(axes, names, strict=True):
        axis.set(title=title, xscale="log", xlabel="step")
    axes[1].set_yscale("log")
    axes[0].legend()
    save(figure, "implicit_bias")


if __name__ == "__main__":
    main()
