"""What may be wrong with a data set: duplicates, leaks between splits, groups, classes, values, order in the file.

Every example is read once, a bounded number at a time. Duplicates are found by a 64-bit hash of the stored bytes (the
probability that two different examples among ten million share a hash is 3e-6). Values are checked as the encoder gets
them, after ``Data.normalise``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.containment import NGRAM, Sequences, inside
from dabsmix.data.domain import Data, Split, Task
from dabsmix.spec import Grid, PaddedGrid, Spec, Table, Tokens
from dabsmix.terminal import progress

__all__ = ["Finding", "audit", "divided", "render"]

BYTES = 1 << 25
"""Stored bytes that are read at once."""

LISTED = 20
"""The most rows, classes or names that a finding lists."""

NAMED = 5
"""The most names of rows, which may be long, that a line lists."""

FEW_RUNS = 0.5
"""Labels depend on the order if they change less often than this share of the changes in a random order."""

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """One thing to know about a data set.

    Attributes:
        check: duplicates, leak, groups, overlap, splits, classes, values or order.
        severity: ``error`` spoils a score, ``warning`` may, ``info`` does not.
        split: the name of the split, or ``all``.
        message: the finding, on one line.
        count: how many rows it concerns.
        rows: the first of them, by their number in the store (``Split.rows``).
        names: of these rows in a user's own data, as `embed` calls them.
    """

    check: str
    severity: Severity
    split: str
    message: str
    count: int = 0
    rows: tuple[int, ...] = ()
    names: tuple[str, ...] = ()


def audit(data: Data) -> list[Finding]:
    """All findings about a data set, errors first."""
    labelled = data.labelled
    splits = {"pretrain": data.pretrain, **(labelled.splits if labelled else {})}
    if labelled is not None and _same(labelled.train, data.pretrain):
        del splits["pretrain"]  # one split under two names
    findings = list(_sizes(data, splits))
    digests = {}
    for name, split in splits.items():
        values = _Values(data, name)
        digests[name] = _read(data, name, split, values)
        findings += values.findings(split)
        findings += _duplicates(name, split, digests[name])
    findings += _leaks(splits, digests)
    findings += _groups(splits)
    findings += _overlaps(data, splits)
    if labelled is not None:
        for name, split in splits.items():
            if split.label is not None and len(split):
                findings += _classes(name, split, labelled.task)
                # a user's own data are divided at random, so the order of the files, often by class, does no harm
                if data.source is None or data.source.data is None:
                    findings += _order(name, split, labelled.task)
    findings += [Finding("reading", "info", "all", note) for note in data.notes]
    if data.names is not None:
        findings = [replace(finding, names=tuple(data.names(np.array(finding.rows, int)))) for finding in findings]
    order = ("error", "warning", "info")
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def divided(data: Data) -> tuple[str, ...]:
    """Lines that say how a data set is divided: examples and groups of each part, and the labels."""
    labelled = data.labelled
    splits = {"pretrain": data.pretrain, **(labelled.splits if labelled else {})}
    width = max(map(len, splits))
    lines = ["parts:"]
    for name, split in splits.items():
        number = 0 if split.group is None else len(np.unique(split.group))
        groups = "" if split.group is None else f", {number} group{'s' * (number != 1)}"
        lines.append(f"  {name:<{width}}  {len(split)} example{'s' * (len(split) != 1)}{groups}")
    if labelled is None:
        return tuple(lines)
    task, parts = labelled.task, labelled.splits.values()
    labels = [split.label for split in parts if split.label is not None]
    lines.append(f"scored by {task.metric}")
    if task.kind == "regression":
        ends = "; ".join(f"{x.min():.4g} to {x.max():.4g}, mean {x.mean():.4g}" for x in labels)
        return (*lines, f"labels of train, validation and test: {ends}")
    if task.kind == "classes":
        counts = np.stack([np.bincount(x, minlength=len(task.classes)) for x in labels], axis=1)
        lines.append(f"labels of {' / '.join(labelled.splits)}:")
        order = np.argsort(-counts.sum(axis=1), kind="stable")
        lines += [f"  {' / '.join(map(str, counts[code]))}  {task.classes[code]!r}" for code in order[:LISTED]]
        if len(order) > LISTED:
            rarest = counts.sum(axis=1).min()
            lines.append(f"  and {len(order) - LISTED} more classes, the rarest with {rarest} examples")
    return tuple(lines)


def render(findings: Sequence[Finding], *, as_json: bool = False) -> str:
    """One line per finding, or the same as a JSON list."""
    if as_json:
        return json.dumps([asdict(finding) for finding in findings], indent=2)
    lines = []
    for finding in findings:
        listed = finding.names[:NAMED] or tuple(map(str, finding.rows))
        more = ", ..." if finding.count > len(listed) else ""
        rows = f" ({'' if finding.names else 'rows '}{', '.join(listed)}{more})" if listed else ""
        lines.append(f"{finding.severity:7} {finding.check:10} {finding.split:10} {finding.message}{rows}")
    return "\n".join(lines)


def _same(first: Split, second: Split) -> bool:
    same_stores = all(one is other for one, other in zip(first.inputs, second.inputs, strict=True))
    return same_stores and np.array_equal(first.rows, second.rows)


def _finding(check: str, severity: Severity, name: str, split: Split, index: NDArray[Any], message: str) -> Finding:
    """A finding about the examples at these indices of a split."""
    return Finding(check, severity, name, message, len(index), tuple(split.rows[index[:LISTED]].tolist()))


# --- reading


def _batches(split: Split) -> Iterator[NDArray[np.int64]]:
    """The indices of a split, in batches of at most `BYTES` stored bytes."""
    if not len(split):
        return
    one = sum(np.asarray(store[split.rows[:1]]).nbytes for store in split.inputs)
    size = max(1, min(1 << 16, BYTES // max(1, one)))
    for start in range(0, len(split), size):
        yield np.arange(start, min(start + size, len(split)))


def _read(data: Data, name: str, split: Split, values: _Values) -> NDArray[np.uint64]:
    """Each example's hash ``(n,)``; every batch is passed to ``values`` too."""
    digests = np.empty(len(split), np.uint64)
    total = sum(1 for _ in _batches(split))
    for index in progress(f"reading {name}", _batches(split), total):
        stored = split.batch(index)
        arrays = [x.numpy() for x in stored]
        for i, example in enumerate(index):
            digest = hashlib.blake2b(digest_size=8)
            for array in arrays:
                digest.update(array[i].tobytes())
            digests[example] = int.from_bytes(digest.digest(), "little")
        values.see(index, [x.numpy() for x in data.normalise(stored)])
    return digests


# --- rows that occur twice


def _sizes(data: Data, splits: dict[str, Split]) -> Iterator[Finding]:
    for name, split in splits.items():
        if not len(split):
            yield Finding("splits", "error", name, "the split is empty")
    sizes = ", ".join(f"{len(split)} {name}" for name, split in splits.items())
    yield Finding("splits", "info", "all", f"rows: {sizes}")
    if data.labelled is None:
        yield Finding("splits", "info", "all", "there are no labels, so there is nothing to transfer to")


def _duplicates(name: str, split: Split, digests: NDArray[np.uint64]) -> Iterator[Finding]:
    _, inverse, counts = np.unique(digests, return_inverse=True, return_counts=True)
    index = np.flatnonzero(counts[inverse] > 1)
    if not len(index):
        return
    extra = int((counts - 1).sum())
    message = f"{len(index)} rows have a duplicate: {extra} could be removed without losing an example"
    if split.label is not None and split.label.ndim == 1:
        order = index[np.argsort(inverse[index], kind="stable")]
        same = inverse[order][1:] == inverse[order][:-1]
        differing = same & (split.label[order][1:] != split.label[order][:-1])
        conflicts = len(np.unique(inverse[order][1:][differing]))
        message += f"; {conflicts} {'example occurs' if conflicts == 1 else 'examples occur'} with different labels"
    yield _finding("duplicates", "warning", name, split, index, message)


def _leaks(splits: dict[str, Split], digests: dict[str, NDArray[np.uint64]]) -> Iterator[Finding]:
    for seen, held_out in _pairs(splits):
        index = np.flatnonzero(np.isin(digests[held_out], digests[seen]))
        if len(index):
            share = f"{100 * len(index) / len(splits[held_out]):.3g} %"
            severity: Severity = "error" if held_out == "test" else "warning"
            message = f"{len(index)} of its examples ({share}) {'is' if len(index) == 1 else 'are'} in {seen} too"
            yield _finding("leak", severity, held_out, splits[held_out], index, message)


WORDS = 1000
"""Tokens of a vocabulary at least this large are taken for words."""

MOST_TEXTS = 200_000
"""At most this many texts of a split are searched, which bounds the memory."""


def _overlaps(data: Data, splits: dict[str, Split]) -> Iterator[Finding]:
    """Held-out texts that lie inside a training text, or share `NGRAM` tokens in a row with one."""
    spec = data.specs[0]
    # in a small alphabet, such as that of DNA, any few symbols in a row occur everywhere by chance
    if len(data.specs) != 1 or not isinstance(spec, Tokens) or spec.vocab < WORDS or "train" not in splits:
        return
    texts = {
        name: Sequences.of(data.normalise(split.batch(np.arange(len(split))[:MOST_TEXTS]))[0].numpy(), spec.pad)
        for name, split in splits.items()
        if name != "pretrain" and len(split)
    }
    for name in ("validation", "test"):
        if name in texts and not _same(splits[name], splits["train"]):
            index = np.flatnonzero(inside(texts[name], texts["train"]))
            share = len(index) / len(texts[name].length)
            if len(index):
                severity: Severity = "warning" if share > 0.1 else "info"
                where = f"lie inside a training text, or share {NGRAM} tokens in a row with one"
                message = f"texts that {where}: {len(index)} ({share:.0%})"
                yield _finding("overlap", severity, name, splits[name], index, message)


def _groups(splits: dict[str, Split]) -> Iterator[Finding]:
    if all(split.group is None for split in splits.values()):
        yield Finding("groups", "info", "all", "no groups are stated: every row counts as independent of the others")
        return
    for seen, held_out in _pairs(splits):
        first, second = splits[seen].group, splits[held_out].group
        if first is None or second is None:
            continue
        shared = np.intersect1d(first, second)
        if len(shared):
            index = np.flatnonzero(np.isin(second, shared))
            names = ", ".join(map(str, shared[:LISTED])) + (", ..." if len(shared) > LISTED else "")
            message = f"{len(shared)} of its groups {'is' if len(shared) == 1 else 'are'} in {seen} too: {names}"
            yield _finding("groups", "error", held_out, splits[held_out], index, message)


def _pairs(splits: dict[str, Split]) -> Iterator[tuple[str, str]]:
    """Pairs of splits that should have no example in common."""
    for seen in ("pretrain", "train", "validation"):
        for held_out in ("validation", "test"):
            if seen != held_out and {seen, held_out} <= splits.keys():
                yield seen, held_out


# --- labels


def _classes(name: str, split: Split, task: Task) -> Iterator[Finding]:
    label = split.label
    assert label is not None
    if task.kind == "regression":
        wrong = np.flatnonzero(~np.isfinite(label))
        if len(wrong):
            yield _finding("classes", "error", name, split, wrong, f"labels that are not finite numbers: {len(wrong)}")
        low, high = np.nanmin(label), np.nanmax(label)
        if low == high:
            yield Finding("classes", "error", name, f"the label is constant: {low:g}", len(split))
        yield Finding("classes", "info", name, f"labels from {low:g} to {high:g}, mean {np.nanmean(label):g}")
        return
    if task.kind == "multilabel":
        counts = label.sum(axis=0).astype(int)
    else:
        scored = label[label >= 0] if task.kind == "tokens" else label
        outside = (label >= len(task.classes)) | (label < (-1 if task.kind == "tokens" else 0))
        wrong = np.flatnonzero(outside.reshape(len(label), -1).any(axis=1))
        if len(wrong):
            yield _finding("classes", "error", name, split, wrong, f"labels that are not a class number: {len(wrong)}")
        counts = np.bincount(scored[(scored >= 0) & (scored < len(task.classes))], minlength=len(task.classes))
    absent = [task.classes[i] for i in np.flatnonzero(counts == 0)]
    if absent:
        listed = ", ".join(absent[:LISTED]) + (", ..." if len(absent) > LISTED else "")
        severity: Severity = "error" if name == "train" else "warning"
        yield Finding("classes", severity, name, f"{len(absent)} of {len(counts)} classes do not occur: {listed}")
    if task.kind == "classes" and (counts > 0).sum() == 1:
        yield Finding(
            "classes", "error", name, f"the label is constant: {task.classes[int(counts.argmax())]}", len(split)
        )
    most, least = int(counts.argmax()), int(counts.argmin())
    often = f"{task.classes[most]} ({counts[most]}, {counts[most] / max(1, counts.sum()):.1%})"
    seldom = f"{task.classes[least]} ({counts[least]})"
    yield Finding("classes", "info", name, f"{len(counts)} classes; most often {often}, least often {seldom}")


def _order(name: str, split: Split, task: Task) -> Iterator[Finding]:
    """Whether equal labels follow each other in the order of the store's rows.

    In a random order, n labels with class shares p change about n(1 - Σp²) times from one row to the next.
    """
    label = split.label
    assert label is not None
    if label.ndim != 1 or len(label) < LISTED:
        return
    if task.kind == "regression":
        label = (label > np.median(label)).astype(np.int64)
    ordered = label[np.argsort(split.rows, kind="stable")]
    _, counts = np.unique(ordered, return_counts=True)
    expected = (len(ordered) - 1) * (1 - ((counts / len(ordered)) ** 2).sum())
    changes = int((ordered[1:] != ordered[:-1]).sum())
    if changes < FEW_RUNS * expected:
        yield Finding(
            "order",
            "warning",
            name,
            f"labels depend on the order in the file: they change {changes} times from one row to the next, and would "
            f"change about {expected:.0f} times in a random order; a part taken by position is not representative",
        )


# --- values


class _Values:
    """The range of every column or channel, and the rows with bad values, gathered batch by batch."""

    def __init__(self, data: Data, name: str) -> None:
        self.name = name
        self.specs = data.specs
        self.columns = [str(column[0]) for column in data.state.get("columns", ())]
        self.low: list[NDArray[Any]] = []
        self.high: list[NDArray[Any]] = []
        self.empty: list[NDArray[np.int64]] = []
        self.wrong: dict[tuple[int, str], list[NDArray[np.int64]]] = {}

    def see(self, index: NDArray[np.int64], inputs: Sequence[NDArray[Any]]) -> None:
        """Add a batch: its indices in the split, and one array per input in the shape of its spec."""
        for i, (spec, x) in enumerate(zip(self.specs, inputs, strict=True)):
            parts = x.reshape(len(x), _columns(spec), -1)  # rows, columns or channels, the rest
            nan = np.isnan(parts)
            with np.errstate(invalid="ignore"):
                low, high = (f(parts, axis=(0, 2), initial=w, where=~nan) for f, w in _extremes(parts))
            if len(self.low) == i:
                self.low.append(low)
                self.high.append(high)
                self.empty.append(np.zeros(parts.shape[1], np.int64))
            self.low[i], self.high[i] = np.minimum(self.low[i], low), np.maximum(self.high[i], high)
            self.empty[i] += nan.any(axis=2).sum(axis=0)
            for fault, bad in _bad(spec, x).items():
                if bad.any():
                    self.wrong.setdefault((i, fault), []).append(index[bad])

    def findings(self, split: Split) -> Iterator[Finding]:
        """The findings about the whole split."""
        for (i, fault), parts in self.wrong.items():
            index = np.concatenate(parts)
            severity: Severity = "warning" if fault.startswith("hold") else "error"
            yield _finding(
                "values", severity, self.name, split, index, f"{self._input(i)}rows that {fault}: {len(index)}"
            )
        for i, spec in enumerate(self.specs[: len(self.low)]):
            if isinstance(spec, Tokens):
                continue
            unit = "columns" if isinstance(spec, Table) else "channels"
            constant = np.flatnonzero(self.low[i] >= self.high[i])
            if len(constant):
                which = self._names(constant)
                yield Finding("values", "warning", self.name, f"{self._input(i)}constant {unit}: {which}")
            gaps = np.flatnonzero(self.empty[i]) if isinstance(spec, Table) else np.empty(0, np.int64)
            if len(gaps):
                cells = int(self.empty[i].sum())
                which = self._names(gaps)
                yield Finding("values", "info", self.name, f"{self._input(i)}{cells} empty cells, in columns {which}")
            numeric = _numeric(spec)
            if numeric.any() and np.isfinite(low := self.low[i][numeric]).any():
                high = self.high[i][numeric]
                yield Finding(
                    "values",
                    "info",
                    self.name,
                    f"{self._input(i)}normalised values from {low.min():.4g} to {high.max():.4g}",
                )

    def _input(self, i: int) -> str:
        return f"input {i + 1}: " if len(self.specs) > 1 else ""

    def _names(self, columns: Iterable[int]) -> str:
        names = [self.columns[j] if self.columns else str(j) for j in columns]
        return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def _columns(spec: Spec) -> int:
    match spec:
        case Grid():
            return spec.channels
        case Table():
            return spec.num_features
        case Tokens():
            return spec.length


def _numeric(spec: Spec) -> NDArray[np.bool_]:
    if isinstance(spec, Table):
        return np.array([size == 0 for size in spec.cardinalities])
    return np.ones(_columns(spec), dtype=np.bool_)


def _extremes(x: NDArray[Any]) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """``np.min`` and ``np.max``, each with its value for an empty array."""
    if np.issubdtype(x.dtype, np.floating):
        return (np.min, np.inf), (np.max, -np.inf)
    return (np.min, np.iinfo(x.dtype).max), (np.max, np.iinfo(x.dtype).min)


def _bad(spec: Spec, x: NDArray[Any]) -> dict[str, NDArray[np.bool_]]:
    """Masks ``(B,)`` of rows with values that the spec does not allow, or without content, by what is wrong."""
    flat = x.reshape(len(x), -1)
    match spec:
        case Grid():
            return {
                "have NaN": np.isnan(flat).any(axis=1) & (not isinstance(spec, PaddedGrid)),
                "have infinite values": np.isinf(flat).any(axis=1),
                "hold one value everywhere": (flat == flat[:, :1]).all(axis=1),
            }
        case Table():
            sizes = np.array(spec.cardinalities)
            coded = flat[:, sizes > 0]
            return {
                "have infinite values": np.isinf(flat).any(axis=1),
                "have a code that is not a category": ((coded < 0) | (coded >= sizes[sizes > 0])).any(axis=1),
                "hold nothing but empty cells": np.isnan(flat).all(axis=1),
            }
        case Tokens():
            return {
                "have an id outside the vocabulary": ((flat < 0) | (flat >= spec.vocab)).any(axis=1),
                "hold nothing but padding": np.equal(flat, -1 if spec.pad is None else spec.pad).all(axis=1),
            }
