"""Shared by the scripts of this folder: the style of figures, and intervals over seeds."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")  # before pyplot: the scripts run without a screen
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t

from dabsmix.run import commit, device_name

FOLDER = Path(__file__).parents[2] / "docs" / "science"
COLOURS = ("#2b4c7e", "#c8553d", "#4f9d69", "#8a6fb0", "#b8860b")

plt.rcParams.update(
    {
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "figure.constrained_layout.use": True,
        "font.size": 10,
        "grid.alpha": 0.25,
        "legend.frameon": False,
        "savefig.dpi": 110,
    }
)


def panels(number: int, rows: int = 1, *, width: float = 4.4, height: float = 3.5) -> tuple[Figure, list[Axes]]:
    """A figure with this many panels side by side, in one or more rows."""
    figure, axes = plt.subplots(rows, number, figsize=(width * number, height * rows), squeeze=False)
    return figure, list(axes.flat)


def over_seeds(values: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """The mean over the first axis, seeds, and the half width of its 95 % t interval."""
    by_seed = np.asarray(values, dtype=float)
    n = len(by_seed)
    half = t.ppf(0.975, n - 1) * by_seed.std(axis=0, ddof=1) / np.sqrt(n)
    return by_seed.mean(axis=0), half


def summary(values: ArrayLike, digits: int = 3) -> str:
    """``mean (low to high)`` over seeds."""
    mean, half = over_seeds(values)
    return f"{mean:.{digits}f} ({mean - half:.{digits}f} to {mean + half:.{digits}f})"


def band(axis: Axes, x: ArrayLike, values: ArrayLike, colour: str, label: str, style: str = "-") -> None:
    """A curve's mean over seeds, and its interval as a band."""
    mean, half = over_seeds(values)
    axis.plot(x, mean, style, color=colour, label=label, linewidth=1.8)
    axis.fill_between(x, mean - half, mean + half, color=colour, alpha=0.18, linewidth=0)


def save(figure: Figure, name: str) -> None:
    """Write the figure to ``docs/science``, and print the commit and machine that computed it."""
    # asked for before the figure changes, which would make the commit a dirty one
    computed_by = f"{device_name(torch.device('cpu'))}, torch {torch.__version__}, commit {commit()}"
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / f"{name}.png", metadata={"Software": None})
    print(f"{computed_by}: docs/science/{name}.png")
