"""What pretraining has to beat: raw input, the majority class, and what a practitioner would try first."""

import hashlib
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import dabsmix
from dabsmix.data.domain import Data, Labelled, Split, Task
from dabsmix.files import cache_folder, write
from dabsmix.scoring.classical import Classical, classical
from dabsmix.scoring.evaluate import SelectedHeads, choose, score, share
from dabsmix.scoring.heads import Features, collected, fit_constant
from dabsmix.scoring.logistic import LogisticGrid
from dabsmix.scoring.metrics import metric
from dabsmix.scoring.protocols import Fit, TransferProtocol, fits, quicker, refit
from dabsmix.scoring.results import Result, yardstick_key
from dabsmix.scoring.selection import Selected, select
from dabsmix.spec import Grid, Spec, Table, Tokens, describe

__all__ = ["RawReader", "Yardsticks", "cached_yardsticks", "raw_reader", "rows_digests", "yardsticks"]

# Numbers per example: three channels of 16×16 pixels. A probe on 224×224×3 would have more weights than the
# encoder, and would take longer than all that is compared with it.
RAW_WIDTH = 768
READ = 1024  # examples at a time


class Yardsticks(NamedTuple):
    """Results of each yardstick, by its name, and every test example's prediction, by `results.yardstick_key`."""

    results: Mapping[str, tuple[Result, ...]]
    predictions: Mapping[str, NDArray[Any]]


def yardsticks(
    data: Data, rules: TransferProtocol, labels: tuple[str, ...], device: torch.device, width: int
) -> Yardsticks:
    """The scores and predictions of each yardstick.

    - ``raw``: the protocol's linear probe on the raw input, cut down to 768 numbers, see `RawReader`.
    - ``majority``: the majority class.
    - those of `classical.classical`: random patches, statistics, spectra, words, boosted trees.

    They belong to the data and not to a run, and are stored in the cache folder. A task of one label per token has only
    the majority class.

    Args:
        data: with labels.
        rules: the protocol.
        labels: shares of the labels, as for the encoder.
        device: where the probe is fitted.
        width: numbers that the encoder gives for an example; yardsticks called narrow have about as many.
    """
    labelled = data.require_labelled()
    task = labelled.task
    # the text of a schedule, a function, is its address: the protocol's name and the version identify it
    grid = {f.name: str(getattr(rules.linear, f.name)) for f in fields(rules.linear) if f.name != "schedule"}
    rules_text = [rules.name, rules.draws, grid, RAW_WIDTH, width, dabsmix.__version__]
    key = json.dumps([data.fingerprint, rows_digests(labelled), describe(data.specs), str(task), labels, rules_text])
    return cached_yardsticks("yardsticks", key, lambda: _yardsticks(data, rules, labels, device, width))


def rows_digests(labelled: Labelled) -> list[str]:
    """Which rows of the files each split has, for keys: `higgs_transfer` reads the last tenth of what `higgs` does."""
    return [hashlib.sha256(split.rows.tobytes()).hexdigest() for split in labelled.splits.values()]


def cached_yardsticks(folder: str, key: str, compute: Callable[[], Yardsticks], *, keep: bool = True) -> Yardsticks:
    """What was computed for this key before, or is computed now and stored in the cache.

    Args:
        folder: in the cache.
        key: states everything that the scores depend on.
        compute: returns them.
        keep: whether this process stores them; one of several processes does.
    """
    path = cache_folder() / folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    stored = _read_stored(path)
    if stored is None:
        stored = compute()
        if keep:
            _store(path, stored)
    return stored


RESULTS = "results"  # in the archive: the results as the bytes of their JSON, beside the predictions


def _store(path: Path, scored: Yardsticks) -> None:
    plain = {name: [asdict(result) for result in results] for name, results in scored.results.items()}
    arrays = {RESULTS: np.frombuffer(json.dumps(plain).encode(), np.uint8), **scored.predictions}

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its stub takes any keyword for a flag

    write(path, save)


def _read_stored(path: Path) -> Yardsticks | None:
    """What `_store` wrote; None if there is no file, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            predictions = dict(arrays)
        plain = json.loads(predictions.pop(RESULTS).tobytes())
        results = {name: tuple(map(Result.from_plain, entries)) for name, entries in plain.items()}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return Yardsticks(results, predictions)


def _yardsticks(
    data: Data, rules: TransferProtocol, labels: tuple[str, ...], device: torch.device, width: int
) -> Yardsticks:
    labelled, task = data.require_labelled(), data.require_labelled().task
    results_of: dict[str, tuple[Result, ...]] = {}
    predictions: dict[str, NDArray[Any]] = {}

    def score_on_test(name: str, chosen: SelectedHeads, test: Features) -> None:
        results, predicted = score(chosen, test, task)
        results_of[name] = (*results_of.get(name, ()), *results)
        predictions.update({yardstick_key(name, key): scores for key, scores in predicted.items()})

    if task.kind == "tokens":
        train, validation, test = (_labels(split) for split in labelled.splits.values())
    else:
        every = labelled.train
        reader = raw_reader(data.specs, (data.normalise(every.batch(index)) for index in _batches(every)))
        train, validation, test = (_read_all(reader, s, data, device) for s in labelled.splits.values())
        plain = replace(rules, neighbours=(), penalties=(), pinv=False)
        for label in labels:
            score_on_test("raw", _chosen(train, validation, task, plain, label), test)
        for yardstick in classical(data, quicker(rules), width):
            for chosen, read in _of(yardstick, data, rules, labels, device):
                score_on_test(yardstick.name, chosen, read)
    constant = select(partial(fit_constant, task=task), [(train, validation)], metric(task.metric))
    score_on_test("majority", {("majority", "1"): constant}, test)
    return Yardsticks(results_of, predictions)


def _of(
    yardstick: Classical, data: Data, rules: TransferProtocol, labels: tuple[str, ...], device: torch.device
) -> Iterator[tuple[SelectedHeads, Features]]:
    """For each share of the labels, the probe that is best on validation and the test features that it reads."""
    labelled, task = data.require_labelled(), data.require_labelled().task
    train, validation, test = (
        _read_all(yardstick.read, _some(s, rows), data, device)
        for s, rows in zip(labelled.splits.values(), (yardstick.rows, yardstick.rows // 4, None), strict=True)
    )
    for label in labels:
        share_of_read, amount = _of_those_read(label, len(labelled.train) / len(train), task), share(label, task)
        probes = yardstick.probes if amount.get("fraction") == 1 else yardstick.few
        chosen = _chosen(train, validation, task, rules, share_of_read, probes)
        sign = 1 if metric(task.metric).higher else -1
        best = max(chosen, key=lambda which: _validated(chosen[which], sign))
        yield {(best[0], label): chosen[best]}, test


def _chosen(
    train: Features,
    validation: Features,
    task: Task,
    rules: TransferProtocol,
    label: str,
    probes: Mapping[str, Fit] | None = None,
) -> SelectedHeads:
    """As `choose`; with all labels, settings are compared by rough solutions; the chosen one is solved precisely."""
    if share(label, task).get("fraction") != 1 or not isinstance(rules.linear, LogisticGrid):
        return choose(train, validation, task, rules, (label,), probes=probes)
    choices = choose(train, validation, task, quicker(rules), (label,), probes=probes)
    fit = fits(rules, task)["linear"]
    return {
        (probe, part): [
            replace(choice, head=refit(rules, task, probe, fit, train, choice.setting)) if probe == "linear" else choice
            for choice in draws
        ]
        for (probe, part), draws in choices.items()
    }


def _validated(draws: Sequence[Selected], sign: int) -> float:
    """A yardstick's validation score; larger is better."""
    scores = [choice.validation for choice in draws if choice.validation is not None]
    return sign * fmean(scores) if scores else -math.inf


def _some(split: Split, rows: int | None) -> Split:
    """At most this many rows of a split, drawn with a fixed seed."""
    if rows is None or len(split) <= rows:
        return split
    return split.take(np.sort(np.random.default_rng(0).permutation(len(split))[:rows]))


def _of_those_read(label: str, shrunk: float, task: Task) -> str:
    """The share of a part of the training examples that has as many labels as ``label`` has of all of them."""
    fraction = share(label, task).get("fraction")
    return label if fraction is None or shrunk == 1 else f"{min(1.0, fraction * shrunk):.9f}"


def _batches(split: Split) -> Iterable[np.ndarray[Any, np.dtype[np.int64]]]:
    return (np.arange(start, min(start + READ, len(split))) for start in range(0, len(split), READ))


def _read_all(
    reader: Callable[[tuple[Tensor, ...]], Tensor], split: Split, data: Data, device: torch.device
) -> Features:
    assert split.label is not None
    read = (reader(data.normalise(split.batch(index))).numpy() for index in _batches(split))
    raw = torch.from_numpy(collected(read, len(split)))
    return Features({"raw": raw.to(device)}, split.label, split.group)


def _labels(split: Split) -> Features:
    """Labels without features."""
    assert split.label is not None
    return Features({"nothing": torch.zeros(len(split), 1)}, split.label, split.group)


@dataclass(frozen=True)
class RawReader:
    """Reads raw features of normalised inputs, a batch at a time.

    Attributes:
        specs: one per input; their features are concatenated in this order.
        counted: for each input of token ids the ids that are counted, ascending int64 ``(W,)``; None for other inputs.
    """

    specs: tuple[Spec, ...]
    counted: tuple[Tensor | None, ...]

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """float32 ``(B, D)``.

        Grids and sequences of tokens share 768 numbers evenly. A grid is flattened, after average pooling to its share
        where it has more; a missing reading is 0. Tokens give how often each counted id occurs. A table is complete:
        its numeric columns, 0 for an empty cell, a one-hot code of each category, and for each column whether the cell
        is empty.
        """
        width = _width(self.specs)
        parts = [
            _read(spec, width, counted, x.float() if counted is None else x)
            for spec, counted, x in zip(self.specs, self.counted, inputs, strict=True)
        ]
        return torch.cat(parts, dim=1)


def raw_reader(specs: tuple[Spec, ...], train: Iterable[tuple[Tensor, ...]]) -> RawReader:
    """A reader that counts, of each input of token ids, the ids most frequent in the training part.

    Args:
        specs: one per input.
        train: batches of the training part's inputs, normalised; not read where no input has token ids.
    """
    counts = [torch.zeros(spec.vocab, dtype=torch.int64) if isinstance(spec, Tokens) else None for spec in specs]
    if any(count is not None for count in counts):
        for inputs in train:
            for spec, count, x in zip(specs, counts, inputs, strict=True):
                if isinstance(spec, Tokens) and count is not None:
                    count += torch.bincount(x.flatten().cpu(), minlength=spec.vocab)
    for spec, count in zip(specs, counts, strict=True):
        if isinstance(spec, Tokens) and count is not None and spec.pad is not None:
            count[spec.pad] = 0
    width = _width(specs)
    return RawReader(specs, tuple(None if count is None else _most_frequent(count, width) for count in counts))


def _width(specs: tuple[Spec, ...]) -> int:
    """How many numbers each grid and each sequence of tokens gets."""
    return RAW_WIDTH // max(1, sum(not isinstance(spec, Table) for spec in specs))


def _most_frequent(count: Tensor, width: int) -> Tensor:
    order = count.argsort(descending=True, stable=True)[:width]
    return order[count[order] > 0].sort().values


def _read(spec: Spec, width: int, counted: Tensor | None, x: Tensor) -> Tensor:
    match spec:
        case Grid():
            return _pooled(spec, width, x.nan_to_num(nan=0.0)).flatten(1)
        case Table():
            return _columns(spec, x)
        case Tokens():
            assert counted is not None
            column = torch.full((spec.vocab,), len(counted), device=x.device)  # the last column takes all other ids
            column[counted.to(x.device)] = torch.arange(len(counted), device=x.device)
            counts = torch.zeros(len(x), len(counted) + 1, device=x.device)
            return counts.scatter_add_(1, column[x], torch.ones(x.shape, device=x.device))[:, :-1]


def _pooled(spec: Grid, width: int, x: Tensor) -> Tensor:
    shrink = (width / (spec.channels * math.prod(spec.size))) ** (1 / len(spec.size))
    if shrink >= 1:
        return x
    pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(spec.size) - 1]
    return pool(x, tuple(max(1, math.floor(length * shrink)) for length in spec.size))


def _columns(spec: Table, x: Tensor) -> Tensor:
    empty = x.isnan()
    parts = [empty.to(x.dtype)]
    for j, cardinality in enumerate(spec.cardinalities):
        column = x[:, j].nan_to_num(nan=0.0)
        if cardinality == 0:
            parts.append(column[:, None])
        else:
            code = F.one_hot(column.long().clamp(0, cardinality - 1), cardinality).to(x.dtype)
            parts.append(code * ~empty[:, j : j + 1])
    return torch.cat(parts, dim=1)
