"""`dabsmix report`: one run on one page with all its pictures, and the same pictures as a PNG.

The page is `report.html`, a Jinja template beside this file, and matplotlib draws the pictures. Both libraries are
imported only when a report is made.
"""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dabsmix.errors import UserError
from dabsmix.files import write
from dabsmix.run import Run
from dabsmix.scoring.metrics import known
from dabsmix.scoring.results import (
    Gain,
    HeadMix,
    Result,
    TransferRecord,
    default_protocol,
    in_percent,
    read_transfer,
    share_in_words,
)

if TYPE_CHECKING:
    import pandas as pd
    from accelerate import Accelerator
    from matplotlib.axes import Axes

    from dabsmix.verbs.feature_map import FeatureMap

__all__ = ["report"]

INK = "#010203"  # text and axes; in the page it becomes the colour of the text, light or dark
ENCODER, RANDOM, RAW, OTHER = "#2f7ed8", "#8f959e", "#d9822b", "#6aa84f"
CURVES = {
    "loss": "loss",
    "online_validation": "online score on validation",
    "effective_rank": "effective rank of the features",
    "lr": "learning rate",
}
MANY = 25  # classes; a matrix of more cannot be read
FAILURES = 10
SMALL = (1.7, 1.3)  # inches of a single example

Ends = tuple[float, float | None, float | None]
"""A score and its interval."""


class _Drawn(NamedTuple):
    """A scored task with its pictures; without a map if it was not asked for, or is on the page already."""

    record: TransferRecord
    predictions: pd.DataFrame | None
    pictures: Sequence[tuple[str, Any]]
    map: FeatureMap | None


def report(run: Run, map_on: Accelerator | None = None) -> Path:
    """Write ``report.html`` and ``report.png`` into the run's folder.

    Args:
        run: a finished run.
        map_on: where to encode examples of every task for a map of the features and for nearest neighbours; None for
            a page without them, for which no data are read.

    Returns:
        The page.

    Raises:
        UserError: the run is unfinished, or one of its files is damaged; or a map is asked for and there are no scores,
            or their data are missing or have changed.
    """
    run.require_finished()
    tasks = [(path, read_transfer(path)) for path in sorted((run.path / "transfer").glob("*.json"))]
    if map_on is not None and not tasks:
        raise UserError(f"--map shows the tasks that a run is scored on: run `dabsmix transfer --run {run.path}` first")
    training = _training(run)
    drawn: list[_Drawn] = []
    for path, record in tasks:
        predictions = _predictions(path)
        shown = {(other.record.task, other.record.data_fingerprint) for other in drawn}
        is_new = (record.task, record.data_fingerprint) not in shown  # not scored by another protocol before
        feature_map = _map(run, record, predictions, map_on) if map_on is not None and is_new else None
        drawn.append(_Drawn(record, predictions, _of_task(record, predictions), feature_map))
    page = _page(run, training, drawn)
    pictures = [*training]
    for task in drawn:
        pictures += [*task.pictures, *([] if task.map is None else [(task.map.title, task.map.draw)])]
    write(run.path / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
    if pictures:
        write(run.path / "report.png", lambda path: path.write_bytes(_png(run.path.name, pictures)))
    return run.path / "report.html"


def _page(
    run: Run,
    training: Sequence[tuple[str, Any]],
    drawn: Sequence[_Drawn],
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    record = run.record
    environment = Environment(loader=PackageLoader("dabsmix.verbs", "."), autoescape=True, undefined=StrictUndefined)
    hyper = ", ".join(f"{name} {value}" for name, value in record.hyper.items())
    facts = {
        "data": f"{record.domain} ({record.own_data or record.modality or 'named domain'})",
        "algorithm": record.algorithm + (f" ({hyper})" if hyper else ""),
        "encoder": f"{record.encoder}, {record.parameters:,} weights",
        "training": f"{record.steps:,} steps of {record.batch_size}, seed {record.seed}, protocol {record.protocol}",
        "time": f"{record.seconds or 0:,.0f} s on {record.device or 'unknown'}{_processes(record.processes)}",
        "version": " ".join(filter(None, (record.version, record.commit[:12], f"torch {record.torch}"))),
        "made": f"{record.created[:16].replace('T', ' ')} UTC",
    }
    tasks = [
        {
            "name": task.task,
            "headline": _headline(task),
            "answer": task.answer,
            "unbeaten": ", ".join(task.unbeaten),
            "rows": _rows(task),
            "others": {
                _words(name): _shown(name, value) + " %" * in_percent(name)
                for name, value in task.headline.others.items()
            },
            "pictures": [(title, _svg(draw)) for title, draw in pictures],
            "failures": [] if predictions is None else _failures(predictions),
            "quantity": task.kind == "regression",
            "splits": task.splits,
            "grouped": any("groups" in sizes for sizes in task.splits.values()),
            "notes": task.notes,
            "reads": task.test_reads,
            "map": None if feature_map is None else _map_parts(feature_map),
        }
        for task, predictions, pictures, feature_map in drawn
    ]
    folder = shlex.quote(str(run.path))
    commands = [f"dabsmix pretrain --config {shlex.quote(str(run.path / 'config.yaml'))}"]
    commands += [_transfer_command(folder, task, run) for task, *_ in drawn]
    return environment.get_template("report.html").render(
        name=run.path.name,
        facts=facts,
        training=[(title, _svg(draw)) for title, draw in training],
        tasks=tasks,
        notes=record.notes,
        commands=commands,
    )


def _processes(number: int) -> str:
    return f" in {number} processes" if number > 1 else ""


def _headline(task: TransferRecord) -> str:
    first = task.headline
    grouped = f" of {first.units} groups" if 0 < first.units < first.n else ""
    without = "" if first.low is not None else ", too few groups for intervals" if grouped else ", without intervals"
    probe = f"{first.probe} probe with {share_in_words(first.label_fraction)}"
    return f"{_words(first.metric)}, {probe}, protocol {task.protocol}, {first.n:,} test examples{grouped}{without}"


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _transfer_command(folder: str, task: TransferRecord, run: Run) -> str:
    """The command that repeats these scores."""
    shares = " ".join(dict.fromkeys(result.label_fraction for result in task.results))
    words = ["dabsmix transfer --run", folder, task.of or f"--task {shlex.quote(task.task)}"]
    words += [] if task.protocol == default_protocol(run.record.protocol) else [f"--protocol {task.protocol}"]
    words += [HeadMix.parse(task.head_mix).flags] if task.head_mix else []
    of_files = task.of or (run.record.own_data and task.task == run.record.domain)
    words += [f"--metric {task.headline.metric}"] if of_files else []  # a named domain has only its own
    words += ["--supervised"] if "supervised" in task.yardsticks else []
    return " ".join([*words, "--labels", shares])


def _shown(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f}" if in_percent(metric) else f"{value:.4g}"


def _rows(task: TransferRecord) -> list[dict[str, str]]:
    """The table of scores: of the encoder, then of the random encoders, then of the yardsticks."""

    def row(
        of: str, probe: str, share: str, metric: str, ends: tuple[float, float | None, float | None]
    ) -> dict[str, str]:
        value, low, high = (_shown(metric, number) for number in ends)
        return {
            "of": of,
            "probe": probe,
            "labels": share,
            "value": value,
            "interval": f"{low} to {high}" if low else "",
        }

    def of_result(of: str, result: Result) -> dict[str, str]:
        ends = result.ends or (None, None)
        return row(of, result.probe, result.label_fraction, result.metric, (result.value, *ends))

    rows = [of_result("this encoder", result) for result in task.results]
    rows += [
        row(f"{gain.seeds} random encoders", gain.probe, gain.label_fraction, gain.metric, _ends(gain))
        for gain in task.gains
    ]
    return rows + [of_result(name, result) for name, results in task.yardsticks.items() for result in results]


def _ends(gain: Gain) -> Ends:
    return gain.random, gain.random_low, gain.random_high


# --- pictures: for each, a title and a function that draws it


def _training(run: Run) -> list[tuple[str, Any]]:
    """Curves over the steps; none for a run without steps."""
    from matplotlib.ticker import MaxNLocator

    lines = run.metrics()

    def curve(name: str) -> Callable[[Axes], None]:
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]

        def draw(axes: Axes) -> None:
            axes.plot(*zip(*points, strict=True), color=ENCODER, marker="o" if len(points) < 30 else "", markersize=3)
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))

        return draw

    return [(title, curve(name)) for name, title in CURVES.items() if any(line.get(name) is not None for line in lines)]


def _of_task(task: TransferRecord, predictions: pd.DataFrame | None) -> list[tuple[str, Any]]:
    ends = " with 95 % intervals" if task.headline.low is not None else ""
    pictures: list[tuple[str, Any]] = [(f"{task.task}: scores{ends}", lambda axes: _scores(axes, task))]
    if len({result.label_fraction for result in task.results}) > 1:
        pictures.append(
            (f"{task.task}: {_words(task.headline.metric)} over the number of labels", lambda axes: _few(axes, task))
        )
    if predictions is None:
        return pictures
    if task.kind == "regression":
        return [*pictures, (f"{task.task}: prediction and truth", lambda axes: _scatter(axes, predictions))]
    if task.kind == "classes":
        if len(task.classes) <= MANY:
            pictures.append(
                (f"{task.task}: truth and prediction", lambda axes: _confusion(axes, predictions, task.classes))
            )
        pictures.append((f"{task.task}: calibration", lambda axes: _calibration(axes, predictions)))
    return pictures


def _scores(axes: Axes, task: TransferRecord) -> None:
    """The headline score, and the scores that it is compared with at the same share of the labels."""
    first = task.headline
    bars = [("this encoder", first.value, first.low, first.high, ENCODER)]
    bars += [
        (f"{gain.seeds} random encoders", *_ends(gain), RANDOM)
        for gain in task.gains
        if gain.label_fraction == first.label_fraction
    ]
    for name, results in task.yardsticks.items():
        color = RAW if name == "raw" else RANDOM if name == "majority" else OTHER
        bars += [
            (name, result.value, *(result.ends or (None, None)), color)
            for result in results
            if result.label_fraction == first.label_fraction or result.probe == "majority"
        ]
    factor = 100 if in_percent(first.metric) else 1
    for y, (_, value, low, high, color) in enumerate(reversed(bars)):
        if low is not None and high is not None:
            axes.plot([factor * low, factor * high], [y, y], color=color, linewidth=2)
        axes.plot([factor * value], [y], "o", color=color)
    axes.set_yticks(range(len(bars)), [name for name, *_ in reversed(bars)])
    axes.set_ylim(-0.6, len(bars) - 0.4)
    axes.set_xlabel(_unit(first.metric))


def _unit(metric: str) -> str:
    scale = known(metric)
    better = "" if scale is None or scale.higher else ", less is better"
    return f"{_words(metric)}{', %' if in_percent(metric) else ''}{better}"


def _few(axes: Axes, task: TransferRecord) -> None:
    """The few-label curve: this encoder, random ones, raw input."""
    first = task.headline
    factor = 100 if in_percent(first.metric) else 1

    def points_of(results: Iterable[Result]) -> list[tuple[str, float, float | None, float | None]]:
        return [(result.label_fraction, result.value, result.low, result.high) for result in results]

    encoder = points_of(result for result in task.results if result.probe == first.probe)
    random = [(gain.label_fraction, *_ends(gain)) for gain in task.gains]
    raw = points_of(task.yardsticks.get("raw", ()))
    shares = sorted({share for share, *_ in encoder}, key=lambda share: _labels(share, task))
    for (name, points, color), shift in zip(
        (("this encoder", encoder, ENCODER), ("random encoders", random, RANDOM), ("raw input", raw, RAW)),
        (-0.06, 0.0, 0.06),
        strict=True,
    ):
        drawn = sorted((shares.index(point[0]) + shift, point[1:]) for point in points if point[0] in shares)
        if not drawn:
            continue
        x, y = [position for position, _ in drawn], [factor * ends[0] for _, ends in drawn]
        axes.plot(x, y, color=color, label=name, marker="o", markersize=4)
        for position, (_, low, high) in drawn:
            if low is not None and high is not None:
                axes.plot([position, position], [factor * low, factor * high], color=color, linewidth=1.5)
    axes.set_xticks(range(len(shares)), [_share(share, task) for share in shares])
    axes.set_xlabel("labels")
    axes.set_ylabel(_unit(first.metric))
    axes.legend(frameon=False)


def _labels(share: str, task: TransferRecord) -> float:
    """The approximate number of labels of a share, for the order on the axis."""
    train = task.splits.get("train", {}).get("examples", 0)
    if share.endswith("/class"):
        return int(share.removesuffix("/class")) * max(1, len(task.classes))
    return float(share) * (train or 1e9)


def _share(share: str, task: TransferRecord) -> str:
    train = task.splits.get("train", {}).get("examples", 0)
    if share.endswith("/class") or not train:
        return "all" if share == "1" else share
    return f"{round(float(share) * train):,}" + (" (all)" if share == "1" else "")


def _confusion(axes: Axes, predictions: pd.DataFrame, classes: Sequence[str]) -> None:
    from matplotlib.colors import to_rgb

    index = {name: number for number, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (predictions["truth"].map(index).to_numpy(), predictions["prediction"].map(index).to_numpy()), 1)
    share = counts / counts.sum(axis=1, keepdims=True).clip(1)
    # An empty cell is as light or dark as the page, and text in the page's ink can be read on the fullest one.
    cells = np.concatenate([np.broadcast_to(to_rgb(ENCODER), (*share.shape, 3)), 0.85 * share[..., None]], axis=2)
    axes.imshow(cells, interpolation="nearest")
    if len(classes) <= 12:
        for (row, column), count in np.ndenumerate(counts):
            axes.text(column, row, f"{count:.0f}", ha="center", va="center", fontsize=8)
    axes.spines[["top", "right"]].set_visible(True)
    names = [name if len(name) <= 14 else f"{name[:13]}…" for name in classes]
    if max(map(len, names)) <= 2:
        axes.set_xticks(range(len(classes)), names)
    else:
        axes.set_xticks(range(len(classes)), names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), names)
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")


def _calibration(axes: Axes, predictions: pd.DataFrame) -> None:
    """How often predictions are right at their probability, for ten groups of equally many examples."""
    sure = predictions.filter(regex="^p_").to_numpy().max(axis=1)
    right = (predictions["truth"] == predictions["prediction"]).to_numpy(dtype=float)
    order = np.argsort(sure, kind="stable")
    groups = [part for part in np.array_split(order, min(10, len(order))) if len(part)]
    axes.plot([0, 1], [0, 1], color=RANDOM, linewidth=1, linestyle="--")
    axes.plot([sure[part].mean() for part in groups], [right[part].mean() for part in groups], "o-", color=ENCODER)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("probability of the predicted class")
    axes.set_ylabel("share that is right")


def _scatter(axes: Axes, predictions: pd.DataFrame) -> None:
    truth, predicted = predictions["truth"].to_numpy(float), predictions["prediction"].to_numpy(float)
    shown = np.random.default_rng(0).permutation(len(truth))[:2000]
    ends = [truth.min(), truth.max()]
    axes.plot(ends, ends, color=RANDOM, linewidth=1, linestyle="--")
    axes.plot(truth[shown], predicted[shown], "o", color=ENCODER, markersize=3, alpha=0.5, markeredgewidth=0)
    axes.set_xlabel("truth")
    axes.set_ylabel("prediction")


# --- the predictions of single examples


def _predictions(path: Path) -> pd.DataFrame | None:
    """``TASK.predictions.parquet``; None in runs of older versions."""
    import pandas as pd

    table = path.with_suffix(".predictions.parquet")
    if not table.exists():
        return None
    try:
        with table.open("rb") as file:  # pandas reads a folder of that name as a table without columns
            return pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{table} is damaged ({error}): delete it and {path.name} beside it, and transfer again"
        ) from error


def _worst(predictions: pd.DataFrame) -> pd.Index[Any]:
    """The rows of the most confident mistakes, or of the largest errors, the worst first."""
    truth, predicted = predictions["truth"], predictions["prediction"]
    if truth.dtype.kind == "f":
        return (truth - predicted).abs().sort_values(ascending=False).index[:FAILURES]
    return _sure(predictions)[truth != predicted].sort_values(ascending=False).index[:FAILURES]


def _sure(predictions: pd.DataFrame) -> pd.Series[Any]:
    """The probability of each predicted class."""
    return predictions.filter(regex="^p_").max(axis=1)


def _failures(predictions: pd.DataFrame) -> list[dict[str, str]]:
    """The most confident mistakes, or the largest errors."""
    worst = _worst(predictions)
    if predictions["truth"].dtype.kind == "f":
        return [_failure(predictions.loc[i], f"{predictions.loc[i, 'prediction']:.4g}", "") for i in worst]
    sure = _sure(predictions)
    return [_failure(predictions.loc[i], str(predictions.loc[i, "prediction"]), f"{sure[i]:.2f}") for i in worst]


def _failure(row: pd.Series[Any], predicted: str, probability: str) -> dict[str, str]:
    truth = f"{row['truth']:.4g}" if isinstance(row["truth"], float | np.floating) else str(row["truth"])
    return {"key": str(row["key"]), "truth": truth, "prediction": predicted, "probability": probability}


# --- the map of the features


def _map(run: Run, record: TransferRecord, predictions: pd.DataFrame | None, accelerator: Accelerator) -> FeatureMap:
    from dabsmix.verbs.feature_map import feature_map  # needs torch, which a page without a map does not

    mistakes = [] if predictions is None else _worst(predictions).tolist()
    return feature_map(run, record, predictions, mistakes, accelerator)


def _map_parts(drawn: FeatureMap) -> dict[str, Any]:
    """What the template shows of a map."""
    return {
        "picture": _svg(drawn.draw, (7.5, 4.6)),
        "caption": drawn.caption[0].upper() + drawn.caption[1:],
        "among": drawn.among,
        "rows": [
            [example._asdict() | {"pictures": [_svg(draw, SMALL) for draw in example.pictures]} for example in row]
            for row in drawn.neighbours
        ],
    }


# --- matplotlib, without its global state


def _style() -> dict[Any, Any]:
    return {
        "svg.fonttype": "none",
        "text.parse_math": False,  # a dollar sign in the name of a class is a dollar sign
        "font.size": 10,
        "font.family": "sans-serif",
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "svg.hashsalt": "dabsmix",
    }


def _svg(draw: Callable[[Axes], None], size: tuple[float, float] = (5, 3.4)) -> str:
    """One picture as SVG for a page, in the colour of its text."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_style()):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def _png(title: str, pictures: Sequence[tuple[str, Any]]) -> bytes:
    """All pictures on one sheet."""
    import matplotlib
    from matplotlib.figure import Figure

    columns = min(3, len(pictures))
    rows = -(-len(pictures) // columns)
    with matplotlib.rc_context({**_style(), "figure.facecolor": "#ffffff", "axes.facecolor": "#ffffff"}):
        figure = Figure(figsize=(5 * columns, 3.6 * rows + 0.4), layout="constrained")
        figure.suptitle(title)
        for number, (name, draw) in enumerate(pictures, 1):
            axes = figure.add_subplot(rows, columns, number)
            draw(axes)
            axes.set_title(name, fontsize=10)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
