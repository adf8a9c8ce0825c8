"""Does the Fréchet distance of train and test features, or the probe's train-test gap, predict the transfer score?

    python scripts/theory/fed_and_gap.py leaderboard/runs/*        # the records of the board
    python scripts/theory/fed_and_gap.py runs/*                    # or runs of your own

Of each run, the linear probe with all labels. Within a data set and a budget (steps × batch): Spearman's rank
correlation over algorithms, each the mean over its seeds, and a 95 % interval by resampling algorithms, because seeds
of one are not independent cases. The train-test gap has the test score in it; the gap to validation does not.
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from figure import COLOURS, panels, save
from matplotlib.ticker import MaxNLocator
from scipy.stats import spearmanr

from dabsmix.board.record import transfers
from dabsmix.run import read_record

LEAST, RESAMPLES = 5, 2000
Point = tuple[float, float, float, float]  # FED, train minus test, train minus validation, test


def read(folders: list[Path]) -> dict[str, dict[str, list[Point]]]:
    """By data set, protocol and budget, then algorithm, a point for each run; `none` belongs to every budget."""
    points: dict[str, dict[str, list[Point]]] = defaultdict(lambda: defaultdict(list))
    untrained: dict[str, list[Point]] = defaultdict(list)
    for folder in folders:
        if not (folder / "run.json").is_file():
            continue
        run = read_record(folder)
        for record in transfers(folder).values():
            first = record.headline
            if record.frechet_distance is None or record.train_value is None or first.label_fraction != "1":
                continue
            if record.head_mix:
                continue
            train, validation = record.train_value, float(first.selected["validation"])
            point = (record.frechet_distance, train - first.value, train - validation, first.value)
            place = f"{record.task}, {record.protocol}"
            if run.algorithm == "none":
                untrained[place].append(point)
            else:
                points[f"{place}, {run.steps} × {run.batch_size}"][run.algorithm].append(point)
    for name, algorithms in points.items():
        if same := untrained[name.rpartition(", ")[0]]:
            algorithms["none"] = list(dict.fromkeys(same))  # a seed that was run for two budgets counts once
    return points


def correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    rng = np.random.default_rng(0)
    values: list[float] = []
    while len(values) < RESAMPLES:
        rows = rng.integers(len(x), size=len(x))
        if len(np.unique(x[rows])) > 2 and len(np.unique(y[rows])) > 2:
            values.append(float(spearmanr(x[rows], y[rows]).statistic))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(spearmanr(x, y).statistic), float(low), float(high)


def main() -> None:
    points_of = read([Path(word) for word in sys.argv[1:]])
    sets = {name: algorithms for name, algorithms in points_of.items() if len(algorithms) >= LEAST}
    if not sets:
        raise SystemExit(
            f"no data set with {LEAST} algorithms: python scripts/theory/fed_and_gap.py leaderboard/runs/*"
        )
    titles = (
        "Fréchet distance, train to test features",
        "train score minus test score, points",
        "train score minus validation score, points",
    )
    figure, axes = panels(len(titles), len(sets))
    for number, (name, algorithms) in enumerate(sorted(sets.items())):
        for which, title in enumerate(titles):
            axis, scale = axes[3 * number + which], 100 if which else 1
            means = {label: np.mean(points, axis=0) for label, points in sorted(algorithms.items())}
            x, y = (np.array([mean[column] for mean in means.values()]) for column in (which, 3))
            rank, low, high = correlation(x, y)
            seeds = " to ".join(str(number) for number in sorted({len(points) for points in algorithms.values()}))
            print(
                f"{name}; {title.split(',')[0]}: rank correlation {rank:.2f} ({low:.2f} to {high:.2f}), "
                f"{len(means)} algorithms, {seeds} seeds each"
            )
            for points in algorithms.values():
                values = np.array(points)
                axis.scatter(values[:, which] * scale, 100 * values[:, 3], s=12, color=COLOURS[which], alpha=0.35)
            axis.scatter(x * scale, 100 * y, s=36, color=COLOURS[which])
            for label, mean in means.items():
                axis.annotate(
                    label, (mean[which] * scale, 100 * mean[3]), (5, 4), textcoords="offset points", fontsize=8
                )
            axis.set(xlabel=title, ylabel="test score, %", title=f"{name}\nρ = {rank:.2f} ({low:.2f} to {high:.2f})")
            axis.margins(0.2, 0.1)
            axis.ticklabel_format(axis="x", scilimits=(-3, 3))
            axis.xaxis.set_major_locator(MaxNLocator(5))
    save(figure, "fed_and_gap")


if __name__ == "__main__":
    main()
