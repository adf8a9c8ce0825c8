"""Where features change most: the norm of ∇f over the plane, trained under L_un and under i-Mix.

    python scripts/theory/input_gradients.py

The slides claim that i-Mix makes the norm larger on the convex hull of the data.
"""

import numpy as np
import torch
from blobs import Features, points, train
from figure import COLOURS, panels, save, summary
from matplotlib.path import Path
from scipy.spatial import ConvexHull
from torch import Tensor

SEEDS, STEPS, SIDE, REACH = 8, 400, 81, 6.0


@torch.no_grad()
def norms(f: Features, x: Tensor) -> Tensor:
    """Frobenius norm of the Jacobian at ``(n, 2)``."""
    columns = [torch.func.jvp(f, (x,), (torch.eye(2)[axis].expand_as(x),))[1] for axis in range(2)]
    return torch.stack(columns, dim=-1).square().sum(dim=(1, 2)).sqrt()


def main() -> None:
    torch.set_num_threads(1)
    data = points(800, torch.Generator().manual_seed(99))[0].numpy()
    hull = ConvexHull(data)
    line = np.linspace(-REACH, REACH, SIDE)
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    inside = Path(data[hull.vertices]).contains_points(grid)

    maps: dict[str, list[np.ndarray]] = {"L_un": [], "i-Mix": []}
    for name, by_seed in maps.items():
        for seed in range(SEEDS):
            *_, f = train(seed, mixed=name == "i-Mix", steps=STEPS)
            by_seed.append(norms(f, torch.from_numpy(grid).float()).numpy())
    maps_by_name = {name: np.array(by_seed) for name, by_seed in maps.items()}

    figure, axes = panels(3)
    most = float(np.quantile([by_seed.mean(axis=0) for by_seed in maps_by_name.values()], 0.995))
    for axis, (name, of_seeds) in zip(axes[:2], maps_by_name.items(), strict=True):
        image = axis.pcolormesh(line, line, of_seeds.mean(axis=0).reshape(SIDE, SIDE), cmap="magma", vmin=0, vmax=most)
        axis.plot(*data[np.append(hull.vertices, hull.vertices[0])].T, color="white", linewidth=1.2)
        axis.scatter(data[:250, 0], data[:250, 1], s=3, color="white", alpha=0.5)
        axis.set(title=f"|∇f| trained under {name}", aspect="equal")
        axis.grid(False)
    figure.colorbar(image, ax=axes[1], shrink=0.85)
    print(f"{SEEDS} seeds, {STEPS} steps; mean and 95 % interval over seeds of |∇f|")
    on = {name: of_seeds[:, inside].mean(axis=1) for name, of_seeds in maps_by_name.items()}
    off = {name: of_seeds[:, ~inside].mean(axis=1) for name, of_seeds in maps_by_name.items()}
    for place, name in enumerate(maps_by_name):
        print(
            f"{name:<6} on the hull {summary(on[name])}, off it {summary(off[name])}, "
            f"ratio {summary(on[name] / off[name])}"
        )
        for x, values in enumerate((on[name], off[name])):
            axes[2].scatter(np.full(SEEDS, x + 0.2 * place - 0.1), values, color=COLOURS[place], s=18, label=name)
    for where, means in (("on the hull", on), ("off the hull", off)):
        print(f"{where}, i-Mix minus L_un: {summary(means['i-Mix'] - means['L_un'])}")
    print(f"ratio, i-Mix minus L_un: {summary(on['i-Mix'] / off['i-Mix'] - on['L_un'] / off['L_un'])}")
    peak = {name: of_seeds.max(axis=1) for name, of_seeds in maps_by_name.items()}
    print(
        f"largest on the map: L_un {summary(peak['L_un'])}, i-Mix {summary(peak['i-Mix'])}, "
        f"i-Mix minus L_un {summary(peak['i-Mix'] - peak['L_un'])}"
    )
    handles, labels = axes[2].get_legend_handles_labels()
    axes[2].legend(handles[::2], labels[::2])
    axes[2].set(xticks=[0, 1], xticklabels=["on the hull", "off the hull"], xlim=(-0.5, 1.5), ylabel="mean of |∇f|")
    axes[2].set_title("Each seed")
    save(figure, "input_gradients")


if __name__ == "__main__":
    main()
