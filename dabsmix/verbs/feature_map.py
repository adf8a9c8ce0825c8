"""The test examples of a task in the encoder's features: a map in two dimensions, and the nearest training examples.

Features are those that the nearest-neighbour probe reads: pooled as it chose, standardised by the training part, and
scaled to length 1. Of large splits a sample is encoded, so that the page of any data set is made in minutes.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from dabsmix.config import TransferConfig
from dabsmix.data.domain import Data, Split, Task
from dabsmix.errors import UserError
from dabsmix.modalities.showing import CHANNELS, draw, limits, to_draw, written
from dabsmix.model.encoder import Encoder, Transformer
from dabsmix.run import Run
from dabsmix.scoring.features import all_poolings, features
from dabsmix.scoring.heads import Scale
from dabsmix.scoring.results import TransferRecord
from dabsmix.source import Source
from dabsmix.spec import Grid
from dabsmix.terminal import progress, stage
from dabsmix.verbs.tasks import load_task, read_as

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["FeatureMap", "Shown", "feature_map"]

TEST, TRAIN = 1000, 5000
"""Test examples on the map, and training examples among which neighbours are looked for, at most."""

FEW = 50
"""Fewer examples than this are not arranged by t-SNE."""

PERPLEXITY = 30.0  # scikit-learn's default; van der Maaten and Hinton (2008) name 5 to 50
RANDOM, MISTAKES, NEIGHBOURS = 3, 3, 4
CLASSES = 18  # that have a colour of their own, the most frequent ones
POINT, OTHERS = "#2f7ed8", "#8f959e"
POOLINGS = {"mean": "means over tokens", "cls": "CLS tokens", "blocks": "means over tokens after every block"}


class Shown(NamedTuple):
    """One example as it is shown: inputs that are drawn, lines of words for the others, its label, and a note."""

    pictures: tuple[Callable[[Axes], None], ...]
    lines: tuple[str, ...]
    label: str
    note: str


class FeatureMap(NamedTuple):
    """A map of test examples, and some of them with their nearest training examples.

    Attributes:
        title: of the map.
        draw: draws it.
        caption: how it was made and how it is to be read, in sentences.
        neighbours: rows of a test example and its nearest training examples, the nearest first.
        among: how these were found, in a sentence.
    """

    title: str
    draw: Callable[[Axes], None]
    caption: str
    neighbours: tuple[tuple[Shown, ...], ...]
    among: str


def feature_map(
    run: Run,
    record: TransferRecord,
    predictions: pd.DataFrame | None,
    mistakes: Sequence[int],
    accelerator: Accelerator,
) -> FeatureMap:
    """Encode samples of a scored task's test and training part, then arrange and compare the features.

    Args:
        run: a finished run.
        record: of the task.
        predictions: of every test example, in the order of the split; None if they were not stored.
        mistakes: the rows of the worst predictions, the worst first.
        accelerator: where to encode.

    Raises:
        UserError: the data are missing, have changed since they were scored, or have fewer than three test examples.
    """
    data = _data(run, record)
    labelled = data.require_labelled()
    if len(labelled.test) < 3:
        raise UserError(f"{record.task} has {len(labelled.test)} test examples, and a map needs three: leave out --map")
    order = np.random.default_rng(0).permutation(len(labelled.test))
    at_random = order[:RANDOM].tolist()
    shown = [*at_random, *[i for i in mistakes if i not in at_random][:MISTAKES]]
    on_map, queries = labelled.test.take(order[:TEST]), labelled.test.take(np.array(shown))
    train = labelled.train.take(np.random.default_rng(0).permutation(len(labelled.train))[:TRAIN])

    encoder = run.encoder(data.specs).to(accelerator.device)
    pooling = _pooling(record)
    encode = partial(_encode, encoder, data, pooling, accelerator)
    train_rows = encode(train, f"{record.task}: features of train for the map")
    unit = partial(_unit, Scale.of(train_rows))
    test_rows = unit(encode(on_map, f"{record.task}: features of test for the map"))
    query_rows = unit(encode(queries, f"{record.task}: features of single examples"))
    similarity, nearest = (query_rows @ unit(train_rows).T).topk(min(NEIGHBOURS, len(train)), dim=1)
    stage(f"{record.task}: map")
    points, method = _arranged(test_rows.numpy())

    rows = []
    for i, near in enumerate(nearest.numpy()):
        predicted = "" if predictions is None else f"predicted {_plain(predictions['prediction'].iloc[shown[i]])}"
        notes = [predicted, *(f"similarity {value:.2f}" for value in similarity[i].tolist())]
        rows.append(_row(data, run, queries.take(np.array([i])), train.take(near), notes))
    return FeatureMap(
        title=f"{record.task}: map of the features",
        draw=partial(_draw_map, points=points, task=labelled.task, label=on_map.label),
        caption=f"{_sample(on_map, labelled.test, 'test')}, by the frozen encoder's "
        f"{POOLINGS[pooling] if encoder.has_tokens else 'features'}, standardised and scaled to length 1. {method}",
        neighbours=tuple(rows),
        among=_among(data, train, len(shown)),
    )


def _data(run: Run, record: TransferRecord) -> Data:
    """The data that the record is of."""
    if record.of:  # a user's files, as they were named on the command line
        words = shlex.split(record.of)
        flags = {
            name.removeprefix("--").replace("-", "_"): value
            for name, value in zip(words[::2], words[1::2], strict=True)
        }
        data = read_as(run, Source.from_plain(flags))
    else:
        data, _ = load_task(record.task, record.protocol, run, TransferConfig(), None)
    if data.labelled is None or data.fingerprint != record.data_fingerprint:
        raise UserError(
            f"the data of {record.task} have changed since {run.path} was scored on them: transfer again, or leave out "
            "--map"
        )
    return data


def _pooling(record: TransferRecord) -> str:
    """The pooling that the nearest-neighbour probe chose with the most labels; ``mean`` without such a probe."""
    chosen = [result.selected.get("pooling") for result in record.results if result.probe == "knn"]
    return next((str(pooling) for pooling in chosen if pooling in POOLINGS), "mean")


def _encode(encoder: Encoder, data: Data, pooling: str, accelerator: Accelerator, split: Split, title: str) -> Tensor:
    """The features of a split, ``(n, D)``."""
    watch = partial(progress, title)
    if pooling == "blocks" and isinstance(encoder, Transformer):
        return all_poolings(encoder, split, data.normalise, accelerator=accelerator, watch=watch)["blocks"]
    pooled = features(encoder, split, data.normalise, accelerator=accelerator, watch=watch)
    return pooled.cls if pooling == "cls" else pooled.mean


def _unit(scale: Scale, rows: Tensor) -> Tensor:
    """Standardised rows of length 1."""
    return F.normalize(scale(rows), dim=1)


def _arranged(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], str]:
    """A place ``(n, 2)`` for every row, and how it was found and is to be read, in sentences."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if not np.ptp(rows, axis=0).any():
        return np.zeros((len(rows), 2), np.float32), "All features are equal: the encoder has collapsed."
    if len(rows) < FEW:
        points: NDArray[np.float32] = PCA(2, random_state=0).fit_transform(rows)
        return points, f"The axes are the first two principal components; t-SNE needs {FEW} examples."
    perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(rows)
    return points, (
        f"Arranged by t-SNE (perplexity {perplexity:.3g}, started from principal components): neighbours on the map "
        "have similar features. Distances between far clusters mean nothing, nor do the sizes of clusters."
    )


def _among(data: Data, train: Split, shown: int) -> str:
    """What the table of neighbours shows, in sentences."""
    sample = _sample(train, data.require_labelled().train, "training")
    worst = "; the others are the worst predictions" if shown > RANDOM else ""
    sentences = [
        f"The nearest of {sample} by the cosine of the same features.",
        f"The first {RANDOM} test examples are drawn at random{worst}.",
    ]
    for spec in data.specs:
        if isinstance(spec, Grid) and len(spec.size) == 1 and spec.channels > CHANNELS:
            sentences.append(f"Of {spec.channels} channels the first {CHANNELS} are drawn, on one scale.")
    return " ".join(sentences)


def _sample(part: Split, whole: Split, name: str) -> str:
    if len(part) == len(whole):
        return f"all {len(whole):,} {name} examples"
    return f"{len(part):,} of {len(whole):,} {name} examples, drawn at random"


# --- what is shown of the examples


def _row(data: Data, run: Run, query: Split, near: Split, notes: Sequence[str]) -> tuple[Shown, ...]:
    """A test example and its neighbours. Their pictures have one scale, so that they can be compared."""
    both = (query.batch(np.arange(len(query))), near.batch(np.arange(len(near))))
    stored = tuple(torch.cat(parts) for parts in zip(*both, strict=True))
    state = data.state if run.data_root is None else {**data.state, "data_root": str(run.data_root)}
    pictures: list[list[Callable[[Axes], None]]] = [[] for _ in notes]
    lines: list[list[str]] = [[] for _ in notes]
    for spec, raw, read in zip(data.specs, stored, data.normalise(stored), strict=True):
        if isinstance(spec, Grid):
            values = to_draw(spec, run.modality, raw.numpy(), read.numpy())
            low, high = limits(values)
            for of_example, value in zip(pictures, values, strict=True):
                of_example.append(partial(draw, modality=run.modality, example=value, low=low, high=high))
        else:
            for words, more in zip(lines, written(spec, raw.numpy(), read.numpy(), state), strict=True):
                words.extend(more)
    task = data.require_labelled().task
    assert query.label is not None
    assert near.label is not None
    labels = [_label(task, label) for label in (*query.label, *near.label)]
    return tuple(
        Shown(tuple(drawn), tuple(words), label, note)
        for drawn, words, label, note in zip(pictures, lines, labels, notes, strict=True)
    )


def _label(task: Task, label: Any) -> str:
    match task.kind:
        case "classes":
            return task.classes[int(label)]
        case "regression":
            return _plain(label)
        case "multilabel":
            return "|".join(name for name, holds in zip(task.classes, label, strict=True) if holds > 0)
        case _:
            return ""  # one for each token


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def _draw_map(axes: Axes, points: NDArray[np.float32], task: Task, label: NDArray[Any] | None) -> None:
    """Draw the points, coloured by class or by quantity; in one colour where an example has several labels."""
    import matplotlib

    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    style: dict[str, Any] = {"s": 12 if len(points) > 200 else 30, "linewidths": 0}
    if label is None or task.kind not in ("classes", "regression"):
        axes.scatter(*points.T, color=POINT, **style)
        return
    if task.kind == "regression":
        # its darkest and its lightest colour can be seen on dark and on light paper
        drawn = axes.scatter(points[:, 0], points[:, 1], c=label, cmap="cool", **style)
        axes.figure.colorbar(drawn, ax=axes)
        return
    present, counts = np.unique(label, return_counts=True)
    coloured = np.sort(present[np.argsort(-counts, kind="stable")[:CLASSES]])
    if len(coloured) <= 10:
        colours = list(matplotlib.colormaps["tab10"](range(10)))
    else:  # without its two greys, which are for other classes
        colours = [colour for i, colour in enumerate(matplotlib.colormaps["tab20"](range(20))) if i not in (14, 15)]
    others = ~np.isin(label, coloured)
    if others.any():
        axes.scatter(*points[others].T, color=OTHERS, label="other classes", **style)
    for number, colour in zip(coloured, colours, strict=False):
        name = task.classes[number]
        name = name if len(name) <= 20 else f"{name[:19]}…"
        axes.scatter(*points[label == number].T, color=colour, label=name, **style)
    axes.legend(frameon=False, fontsize=8, markerscale=2, handletextpad=0.1, loc="center left", bbox_to_anchor=(1, 0.5))
