"""Draw the leaderboard's overview: each algorithm's gain over the random encoder, a panel for each data set.

    python scripts/draw_overview.py [--csv leaderboard/results.csv] [--out docs/overview.svg]

Of the fullest overview (encoder and protocol): the linear probe with all labels, or ``--probe`` and ``--labels``.
"""

import math
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import tyro

from dabsmix.board.overview import Overview, overviews
from dabsmix.board.row import read
from dabsmix.board.table import label_text, place
from dabsmix.errors import UserError
from dabsmix.files import write
from dabsmix.registry import domain
from dabsmix.scoring.results import in_percent


@dataclass
class Config:
    """What to draw."""

    csv: Path = Path("leaderboard/results.csv")
    probe: str = "linear"
    labels: str = "1"
    out: Path = Path("docs/overview.svg")


def main(config: Config) -> None:
    all_overviews = overviews(
        read(config.csv), lambda name: domain(name).modality, probe=config.probe, label_fraction=config.labels
    )
    if not all_overviews:
        raise UserError(f"{config.csv} has no {config.probe} scores with labels {config.labels}")
    content = draw(all_overviews[0])
    write(config.out, lambda path: path.write_bytes(content))
    print(config.out)


def draw(overview: Overview) -> bytes:
    """SVG: gains in points with 95 % intervals, filled where they are shown, four data sets in a row.

    Data sets without any interval, which takes three seeds, are left out. Of a data set with several budgets the one
    with the most intervals is drawn, and of equal ones the first.

    Raises:
        UserError: no data set has an interval.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "dabsmix"  # the same file for the same rows
    import matplotlib.pyplot as plt

    panels: dict[str, tuple[int, int]] = {}  # by data set: how many intervals, and the number of the column
    for i, cells in enumerate(zip(*overview.cells, strict=True)):
        intervals, name = sum(cell is not None and cell.low is not None for cell in cells), place(overview.columns[i])
        if intervals > panels.get(name, (0, 0))[0]:
            panels[name] = intervals, i
    if not panels:
        raise UserError("nothing to draw: no gain has an interval, which takes 3 seeds of an algorithm and of none")
    names = list(reversed(overview.algorithms))
    across = min(len(panels), 4)
    down = math.ceil(len(panels) / across)
    figure, axes = plt.subplots(
        down,
        across,
        figsize=(1.8 + 3.2 * across, 0.4 + down * (1.1 + 0.32 * len(names))),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (_, i) in zip(axes.flat, panels.values(), strict=False):
        column = overview.columns[i]
        scale = 100 if in_percent(column.metric) else 1
        for y, name in enumerate(names):
            cell = overview.cells[overview.algorithms.index(name)][i]
            if cell is None or cell.gain is None:
                failed = cell is not None and cell.score is None
                axis.text(0, y, "failed" if failed else "not run", ha="center", va="center", color="0.6", fontsize=8)
                continue
            colour = ("#0b6e4f" if cell.gain > 0 else "#a3341f") if cell.shown else "0.35"
            if cell.low is not None and cell.high is not None:
                axis.plot([scale * cell.low, scale * cell.high], [y, y], color=colour, linewidth=1.6)
            fill = colour if cell.shown else "white"
            axis.plot(scale * cell.gain, y, "o", color=colour, markerfacecolor=fill, markersize=6)
        axis.axvline(0, color="0.7", linewidth=1, zorder=0)
        unit = " points" if scale == 100 else ""
        none = f"{scale * (column.none or 0):.1f}"
        axis.set_title(f"{place(column)} ({column.modality})\n{column.budget}; none: {none}", fontsize=10)
        axis.set_xlabel(f"gain in {column.metric}{unit}", fontsize=9)
        axis.set_yticks(range(len(names)), names)
        axis.tick_params(length=0)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    labels = "all labels" if overview.label_fraction == "1" else f"labels {label_text(overview.label_fraction)}"
    figure.suptitle(
        f"Gain over the random encoder: {overview.encoder}, {overview.protocol}, {overview.probe} probe, {labels}",
        fontsize=11,
    )
    file = BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None}, facecolor="white")
    plt.close(figure)
    return file.getvalue()


if __name__ == "__main__":
    main(tyro.cli(Config))
