"""A summary of a user's data, shown before training, and what looks wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.domain import Data, Task
from dabsmix.modalities.columns import CHUNK, Column, Matrix, mistaken
from dabsmix.spec import Tokens

__all__ = ["class_lines", "files_summary", "imbalance_note", "summarise", "tokens_summary"]

SHOWN = 30
"""The most columns that the summary lists one by one."""

IMBALANCE = 0.9
"""If one class has at least this share of the labels, accuracy says little."""

LOOKED_AT = 1000
"""Files whose headers are read for a summary, evenly spaced among all."""

CLASSES = 10
"""Classes that the summary counts one by one."""


def summarise(matrix: Matrix) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Lines for ``Data.summary``, one per column, and for ``Data.notes``, about what a user should check.

    A line states a column's kind or number of categories, the share of empty cells, and three examples.
    """
    lines, flags = [], []
    n = len(matrix.x)
    width = max((len(column.name) for column in matrix.columns), default=0)
    for j, column in enumerate(matrix.columns):
        values = np.concatenate([matrix.x[start : start + CHUNK, j] for start in range(0, n, CHUNK)])
        filled = values[~np.isnan(values)]
        flags += _flags(column, values, filled)
        if j >= SHOWN:
            continue
        if column.categories is not None:
            kind = f"{len(column.categories)} categor{'y' if len(column.categories) == 1 else 'ies'}"
        else:
            kind = "dates" if column.dates else "numbers"
        empty = f"{1 - len(filled) / n:.1%} empty" if len(filled) < n else ""
        examples = ", ".join(_example(column, value) for value in _first_distinct(filled))
        lines.append(f"  {column.name:<{width}}  {kind:<16} {empty:<12} {examples}".rstrip())
    if len(matrix.columns) > SHOWN:
        lines.append(f"  and {len(matrix.columns) - SHOWN} more columns")
    columns = f"{len(matrix.columns)} column{'s' * (len(matrix.columns) != 1)}"
    return (f"{n} rows, {columns}:", *lines), tuple(flags)


def _first_distinct(values: NDArray[np.float32]) -> list[float]:
    return list(dict.fromkeys(values[:1000].tolist()))[:3]


def _example(column: Column, value: float) -> str:
    if column.categories is not None:
        text = column.categories[int(value)]
        return repr(text if len(text) <= 30 else f"{text[:29]}…")
    if column.dates:
        return str(np.datetime64(0, "s") + np.timedelta64(round(value * 86400), "s"))[:16].replace("T00:00", "")
    return f"{value:.6g}"


def _flags(column: Column, values: NDArray[np.float32], filled: NDArray[np.float32]) -> list[str]:
    name = f"Column {column.name!r}"
    option = "ignore" if column.name else 'ignore: [""]'  # a name is missing over the index that pandas writes
    leave_out = f"leave it out with the option `{option}`"
    if not len(filled):
        return [f"{name} is empty; {leave_out}."]
    if (filled == filled[0]).all():
        gaps = " where it is filled in" if len(filled) < len(values) else ""
        return [f"{name} has one value{gaps}; {leave_out} unless it is informative."]
    if column.dates:
        form = ", day first" if column.day_first else ""
        return [f"{name} holds dates{form}: each is read as days since 1970-01-01 (UTC)."]
    if column.categories is None:
        counts_rows = len(values) == len(filled) > 2 and (np.diff(values.astype(np.float64)) == 1).all()
        return [f"{name} counts the rows; {leave_out}."] if counts_rows else []
    if likely := mistaken(column.categories):
        return [f"{name} is read as categories, but {likely}."]
    if len(column.categories) > 0.9 * len(filled) and len(filled) > 10:
        return [f"{name} has a different category in nearly every row; {leave_out}."]
    return []


def imbalance_note(classes: Sequence[str], label: NDArray[np.int64]) -> tuple[str, ...]:
    """For ``Data.notes``: whether one class has nearly all of the labels. Rows without a label are -1."""
    counts = np.bincount(label[label >= 0], minlength=len(classes))
    share = counts.max() / max(1, counts.sum())
    if share < IMBALANCE:
        return ()
    return (
        f"{share:.0%} of the labels are {classes[int(counts.argmax())]!r}: compare accuracy with that of the majority "
        "class.",
    )


def class_lines(task: Task, labels: Sequence[NDArray[Any]]) -> tuple[str, ...]:
    """How often each class occurs, the most frequent first; the range of a quantity; nothing for other labels."""
    label = np.concatenate(labels)
    if task.kind == "regression":
        return (f"labels: {label.min():.6g} to {label.max():.6g}, mean {label.mean():.6g}",)
    if task.kind != "classes":
        return ()
    counts = np.bincount(label, minlength=len(task.classes))
    order = np.argsort(-counts, kind="stable")
    listed = ", ".join(
        f"{task.classes[code]!r} {counts[code]} ({counts[code] / len(label):.0%})" for code in order[:CLASSES]
    )
    more = f" and {len(order) - CLASSES} more, the rarest {counts.min()}" if len(order) > CLASSES else ""
    return (f"labels of {len(task.classes)} classes: {listed}{more}",)


def files_summary(
    noun: str,
    files: Sequence[str],
    of_file: Callable[[str], tuple[str, float, str] | None],
    unit: str,
    not_read: Counter[str],
) -> tuple[str, ...]:
    """What the headers of a user's files say, in lines: their kinds and their sizes.

    Args:
        noun: for the files: ``images``.
        files: their names.
        of_file: a file's kind, its size as a number and in words; None where its header cannot be read.
        unit: what the size is: ``longer side``.
        not_read: how many files of other kinds lie beside them, by suffix.
    """
    looked_at = np.unique(np.linspace(0, len(files) - 1, min(LOOKED_AT, len(files))).astype(np.int64))
    headers = [header for place in looked_at if (header := of_file(files[place])) is not None]
    sample_note = f" (of {len(looked_at)} that were looked at)" if len(looked_at) < len(files) else ""
    lines = [f"{len(files)} {noun}:"]
    if not_read:
        listed = ", ".join(f"{suffix} {count}" for suffix, count in not_read.most_common(CLASSES))
        lines.append(f"  other files, which are not read: {listed}")
    if headers:
        kinds = Counter(kind for kind, _, _ in headers).most_common(CLASSES)
        damaged = f", header not readable: {len(looked_at) - len(headers)}" if len(headers) < len(looked_at) else ""
        lines.append(f"  {', '.join(f'{kind}: {count}' for kind, count in kinds)}{damaged}{sample_note}")
        ordered = sorted((size, words) for _, size, words in headers)
        smallest, middle, largest = (ordered[place][1] for place in (0, len(ordered) // 2, -1))
        lines.append(f"  {unit}: {smallest} to {largest}, median {middle}{sample_note}")
    return tuple(lines)


def tokens_summary(noun: str, unit: str, data: Data, examples: Sequence[str]) -> tuple[str, ...]:
    """How long a user's texts or sequences are, and how the first of them begin.

    Args:
        noun: for the examples: ``texts``.
        unit: of the lengths: ``tokens``.
        data: whose one input holds all of them.
        examples: the first of them.
    """
    (spec,) = data.specs
    assert isinstance(spec, Tokens)
    rows = np.asarray(data.pretrain.inputs[0])
    lengths = np.count_nonzero(rows != (-1 if spec.pad is None else spec.pad), axis=1)
    low, middle, high = (int(np.quantile(lengths, part, method="nearest")) for part in (0.05, 0.5, 0.95))
    begin = [" ".join(text.split()) for text in examples]
    return (
        f"{len(lengths)} {noun}, a vocabulary of {spec.vocab}:",
        f"  {unit}: {lengths.min()} to {lengths.max()}, median {middle} (5 % at most {low}, 5 % at least {high}); "
        f"{(lengths == spec.length).mean():.1%} fill all {spec.length}",
        *(f"  {text if len(text) <= 70 else text[:69] + '…'!r}" for text in begin),
    )
