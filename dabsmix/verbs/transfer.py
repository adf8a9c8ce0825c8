"""Transfer, top to bottom: a frozen encoder, features once, probes chosen on validation, the test split read once.

Under the ``finetune`` protocol the encoder is trained instead.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shlex
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

import dabsmix
from dabsmix.config import TransferConfig
from dabsmix.data.domain import Data, Labelled, Split
from dabsmix.errors import UserError
from dabsmix.files import write
from dabsmix.model.encoder import Encoder, Transformer
from dabsmix.registry import domain
from dabsmix.run import Run, newest_run
from dabsmix.scoring.baselines import yardsticks
from dabsmix.scoring.collapse import frechet_distance
from dabsmix.scoring.evaluate import choose, score, share
from dabsmix.scoring.features import all_poolings, features, token_features
from dabsmix.scoring.finetune import FINETUNE, finetune, supervised
from dabsmix.scoring.heads import Features, scored
from dabsmix.scoring.metrics import OFFERED, metric
from dabsmix.scoring.protocols import Protocol, protocol, v2
from dabsmix.scoring.random_init import gain, random_encoders
from dabsmix.scoring.results import Gain, Result, TransferRecord, default_protocol, prediction_key, read_transfer
from dabsmix.source import Source, batch_size, load, load_as, with_metric
from dabsmix.terminal import progress, stage
from dabsmix.verbs.embed import READS_FILES, modality_of_run

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Incomplete", "tasks_of", "transfer"]

log = logging.getLogger(__name__)


class Incomplete(UserError):
    """Some tasks could not be scored; ``records`` are those of the others."""

    def __init__(self, failed: Sequence[str], records: Sequence[TransferRecord]) -> None:
        super().__init__(f"not scored: {', '.join(failed)} (the reasons are above); the others are")
        self.records = tuple(records)


def transfer(
    config: TransferConfig,
    *,
    accelerator: Accelerator,
    data: Data | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[TransferRecord]:
    """Score each run's encoder on each task and write ``transfer/TASK.json`` with the predictions beside it.

    What is there already is not scored again; further shares of the labels are added to it.

    Args:
        config: what to score, and how.
        accelerator: where to do it.
        data: what to score on where it is loaded already, in place of tasks.
        say: told what a user should know, in whole sentences.

    Raises:
        UserError: no such run, an unfinished one, an encoder that does not fit the task's data, data without labels.
        Incomplete: the same of one among several tasks, after the others have been scored.
    """
    runs = [Run(path) for path in config.run]
    runs = runs or [newest_run(config.out, lambda run: run.finished, "finished run")]
    for run in runs:
        if not run.finished:
            raise UserError(f"{run.path} is unfinished: go on with `dabsmix pretrain --resume`")
    sources = own_sources(config)
    records, failed = [], []
    for run in runs:
        say(f"run: {run.path}")
        name = config.protocol or default_protocol(run.record.protocol)
        asked = tasks_of(run, config.task) if data is None or data.source is None else (data.source.name,)
        tasks: list[tuple[str, Source | None]] = [(task, None) for task in asked] if not sources else [*sources.items()]
        with run.lock() if accelerator.is_main_process else nullcontext():
            for task, source in tasks:
                try:
                    given = data if source is None else _read_as(run, source)
                    records.append(_transfer_to(task, name, run, config, given, accelerator, say))
                except UserError as error:
                    if len(runs) * len(tasks) == 1:
                        raise
                    failed.append(task if len(runs) == 1 else f"{run.path.name} on {task}")
                    say(f"{task} is not scored: {error}")
    if failed:
        raise Incomplete(failed, records)
    return records


class Scored(NamedTuple):
    """What one look at the test split gave, and what it is held against."""

    results: list[Result]
    predictions: dict[str, NDArray[Any]]
    train_value: float | None
    frechet: float | None
    outputs: NDArray[Any]  # the headline's scores of every test example, of its first draw


def _transfer_to(
    task: str,
    name: str,
    run: Run,
    config: TransferConfig,
    given: Data | None,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> TransferRecord:
    # What to score on, and what is scored.
    data, batch_size = _load(task, name, run, config, given)
    if data.labelled is None:
        raise UserError(f"{task} has no labels to transfer to: name another --task")
    # when finetuning, of the yardsticks alone
    rules = v2() if name == "finetune" else protocol(name, batch_size, data.specs)
    encoder = run.encoder(data.specs)
    if data.labelled.task.kind == "tokens" and not encoder.has_tokens:
        raise UserError(f"{task} has a label for each token, and the encoder of {run.path} has no tokens")
    if name == "dabs" and not encoder.has_tokens:
        raise UserError(
            f"--protocol dabs scores DABS's transformer, and {run.path} holds another encoder: use imix or v2"
        )
    fractions = (1.0,) if name == "finetune" else rules.fractions
    labels = config.labels or tuple(str(part) for part in sorted(fractions, reverse=True))
    labels = tuple(dict.fromkeys(_plain(label) for label in labels))
    for label in labels:
        share(label, data.labelled.task, data.labelled.train.label)  # a mistake is told before anything is computed

    # What is there already.
    path = _record_path(run, task, name)
    before = _read(path, data, run)
    earlier = 0 if before is None else before.test_reads
    if before is not None and before.headline.metric != data.labelled.task.metric:
        say(f"{path} was scored by {before.headline.metric}: scored again by {data.labelled.task.metric}")
        before = None
    results = () if before is None else before.results
    done = dict.fromkeys(each.label_fraction for each in results)
    missing = tuple(label for label in labels if label not in done)
    kept = {} if before is None or not missing else _predictions(path)
    beside = {} if before is None else dict(before.yardsticks)
    if config.supervised and "supervised" not in beside:
        beside["supervised"] = supervised(encoder, data, accelerator=accelerator, watch=progress)
    if before is not None and not missing:
        record = replace(
            before, yardsticks=beside, gains=_gains(before, {}, path, run, encoder, data, rules, accelerator)
        )
        if record == before:
            say(f"{path}: scored already")
        else:
            _write(path, record, {}, {}, accelerator)
        return record
    stage(f"{task}: what needs no pretraining")
    blocks = "blocks" in rules.poolings and encoder.has_tokens
    width = encoder.width * (len(encoder.blocks) if blocks else 1)  # the widest that a probe reads
    measured = yardsticks(data, rules, (*done, *missing), accelerator.device, width)
    beside |= measured.results

    if name == "finetune":
        found = _score_finetuned(encoder, data, missing, accelerator)
    else:
        found = _score_frozen(encoder, data, rules, missing, task, run, accelerator)
    beside_it = _whole_split(found, data.labelled)
    notes = (*data.notes, *([rules.note] if rules.note else []), *_edges(found.results), *beside_it)
    reads = earlier + 1
    results = (*results, *(replace(each, test_reads=reads) for each in found.results))
    record = TransferRecord(
        run=run.path.name,
        task=task,
        protocol=name,
        kind=data.labelled.task.kind,
        results=results,
        yardsticks=beside,
        test_reads=reads,
        train_value=before.train_value if before is not None and found.train_value is None else found.train_value,
        frechet_distance=found.frechet,
        classes=data.labelled.task.classes,
        data_fingerprint=data.fingerprint,
        encoder_sha256=run.record.encoder_sha256,
        notes=notes,
        asked=tuple(prediction_key(each.probe, each.label_fraction) for each in results),
        gains=() if before is None else before.gains,
        splits={name: _sizes(split) for name, split in data.labelled.splits.items()},
        of=_flags(data.source) if config.data and data.source is not None else "",
    )
    predictions = kept | found.predictions
    record = replace(record, gains=_gains(record, predictions, path, run, encoder, data, rules, accelerator))
    _write(path, record, predictions, measured.predictions, accelerator)
    if before is None and data.labelled.task.kind != "tokens" and accelerator.is_main_process:
        by_example = _by_example(found.outputs, data)
        write(path.with_suffix(".predictions.parquet"), lambda p: by_example.to_parquet(p, index=False))
    for note in notes:
        say(note)
    return record


def _sizes(split: Split) -> dict[str, int]:
    groups = {} if split.group is None else {"groups": len(np.unique(split.group))}
    return {"examples": len(split), **groups}


def _flags(source: Source) -> str:
    """A user's files as they were named on the command line."""
    names = ("data", "label", "options", "group", "ignore")
    given = {name: getattr(source, name) for name in names if getattr(source, name) is not None}
    given |= {"on-bad": source.on_bad} if source.on_bad != "error" else {}
    return " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in given.items())


def _by_example(outputs: NDArray[Any], data: Data) -> pd.DataFrame:
    """The headline's prediction of every test example, one row each.

    Columns are ``key`` (a file's name, ``file:row``, or the row's number), ``group`` where there are groups, ``truth``,
    ``prediction``, and the probability of each class as ``p_CLASS``; for several labels at once the classes' names are
    joined by ``|``.
    """
    import pandas as pd
    from scipy.special import expit, softmax

    labelled = data.require_labelled()
    task, test = labelled.task, labelled.test
    assert test.label is not None
    columns: dict[str, Any] = {"key": [str(row) for row in test.rows] if data.names is None else data.names(test.rows)}
    if test.group is not None:
        columns["group"] = test.group
    if task.kind == "regression":
        return pd.DataFrame({**columns, "truth": test.label, "prediction": outputs})
    names = np.array(task.classes, dtype=object)
    if task.kind == "classes":
        probability = softmax(outputs.astype(float), axis=1)
        columns |= {"truth": names[test.label], "prediction": names[outputs.argmax(axis=1)]}
    else:
        probability = expit(outputs.astype(float))
        for column, chosen in (("truth", test.label > 0), ("prediction", outputs > 0)):
            columns[column] = ["|".join(names[row]) for row in chosen]
    return pd.DataFrame(columns | {f"p_{name}": p for name, p in zip(names, probability.T, strict=True)})


def _gains(
    record: TransferRecord,
    predictions: Mapping[str, NDArray[Any]],
    path: Path,
    run: Run,
    encoder: Encoder,
    data: Data,
    rules: Protocol,
    accelerator: Accelerator,
) -> tuple[Gain, ...]:
    """The headline's probe against random encoders, for every share of the labels; of ``path`` where none are given.

    A run that took no step is a random encoder itself, and has none.
    """
    labelled = data.require_labelled()
    known = {each.label_fraction: each for each in record.gains}
    asked = [each for each in record.results if each.probe == record.headline.probe]
    lacking = tuple(each.label_fraction for each in asked if each.label_fraction not in known)
    if not lacking or not run.record.steps:
        return record.gains
    stage(f"{record.task}: random encoders of the same shape")

    def score_with(shares: tuple[str, ...], other: Encoder) -> tuple[list[Result], dict[str, NDArray[Any]]]:
        if record.protocol == "finetune":
            found = _score_finetuned(other, data, shares, accelerator)
        else:
            linear = replace(rules, neighbours=(), penalties=(), pinv=False)
            found = _score_frozen(other, data, linear, shares, f"{record.task}: random encoder", None, accelerator)
        return found.results, found.predictions

    random = random_encoders(
        encoder,
        labelled,
        data.fingerprint,
        record.protocol,
        lacking,
        lambda shares: partial(score_with, shares),
        accelerator,
    )
    predictions = predictions or _predictions(path)
    for each in asked:
        if each.label_fraction in random:
            known[each.label_fraction] = gain(each, predictions, labelled, random[each.label_fraction])
    return tuple(known[each.label_fraction] for each in asked)


def _whole_split(found: Scored, labelled: Labelled) -> tuple[str, ...]:
    """A note with the value over all examples, where the metric is DABS's mean over batches."""
    whole, slash, rows = labelled.task.metric.partition("/")
    if not slash:
        return ()
    label = labelled.test.label
    assert label is not None
    values = []
    for each in found.results:
        scores = found.predictions[prediction_key(each.probe, each.label_fraction)][0]
        values.append(f"{each.probe} {metric(whole)(scores, label):.4f}")
    return (
        f"{labelled.task.metric} is the mean over batches of {rows}, as in DABS. "
        f"Over all examples: {', '.join(values)}.",
    )


def _score_frozen(
    encoder: Encoder,
    data: Data,
    rules: Protocol,
    labels: tuple[str, ...],
    task: str,
    run: Run | None,
    accelerator: Accelerator,
) -> Scored:
    """Features of the frozen encoder, once per split; every probe chosen, then scored. Kept where it is a run's."""
    labelled = data.require_labelled()
    encoder.to(accelerator.device)

    def encode(split: Split, part: str) -> Features:
        title = f"{task}: features of {part}"
        if run is None:
            watch = partial(progress, title)
            return _as_features(
                _encode(encoder, split, data, accelerator, rules.poolings, watch=watch), split, accelerator
            )
        keep = run.path / "features" / f"{task}-{rules.name}-{part}.safetensors"
        return _kept_features(encoder, split, data, accelerator, rules.poolings, run, title, keep)

    train, validation = encode(labelled.train, "train"), encode(labelled.validation, "validation")

    stage(f"{task}: probes")
    # Chosen without the test split, which nothing below this line and above the next has seen.
    redraw = partial(_with_dropout, encoder, labelled.train, data, accelerator) if rules.dropout else None
    chosen = choose(train, validation, labelled.task, rules, labels, redraw=redraw)

    # Read once.
    test = encode(labelled.test, "test")
    results, predictions = score(chosen, test, labelled.task, _others(data))
    full = chosen.get(("linear", "1"))
    return Scored(
        results,
        predictions | _truth(labelled.test),
        metric(labelled.task.metric)(full[0].head.predict(train), train.label) if full else None,
        frechet_distance(_rows(train), _rows(test)) if min(len(train), len(test)) > 1 else None,
        next(iter(chosen.values()))[0].head.predict(test),
    )


def _score_finetuned(encoder: Encoder, data: Data, labels: tuple[str, ...], accelerator: Accelerator) -> Scored:
    """The whole network trained, the rate chosen on validation; no features to compare."""
    test = data.require_labelled().test
    found = finetune(encoder, data, labels, FINETUNE, accelerator=accelerator, watch=progress, others=_others(data))
    return Scored(found.results, found.predictions | _truth(test), found.train_value, None, found.outputs)


def _others(data: Data) -> tuple[str, ...]:
    """Metrics to report beside a user's own data's: all that are offered; a named domain has its one."""
    task = data.require_labelled().task
    own = data.source is not None and data.source.domain is None
    return tuple(name for name in OFFERED.get(task.kind, ()) if name != task.metric) if own else ()


def _write(
    path: Path,
    record: TransferRecord,
    predictions: Mapping[str, NDArray[Any]],
    of_yardsticks: Mapping[str, NDArray[Any]],
    accelerator: Accelerator,
) -> None:
    """The predictions, if there are new ones, and then the record."""
    if accelerator.is_main_process:
        for suffix, arrays in ((".predictions.npz", predictions), (".yardsticks.npz", of_yardsticks)):
            if arrays:
                write(path.with_suffix(suffix), partial(_save_arrays, arrays=arrays))
        write(path, lambda p: p.write_text(json.dumps(record.as_plain(), indent=1), encoding="utf-8"))
    accelerator.wait_for_everyone()


def _truth(test: Split) -> dict[str, NDArray[Any]]:
    """What predictions are compared with."""
    assert test.label is not None
    return {"label": test.label} if test.group is None else {"label": test.label, "group": test.group}


# --- pieces


def tasks_of(run: Run, asked: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks asked for, by their own names; else those that the pretraining data name, else these themselves."""
    if asked:
        return tuple(task if task == run.record.domain else domain(task).name for task in asked)
    name = run.record.domain
    return (name,) if run.record.own_data else domain(name).transfers or (name,)


def _edges(results: list[Result]) -> list[str]:
    return [
        f"The {each.probe} probe with labels {each.label_fraction} chose the edge of its grid: {dict(each.selected)}."
        for each in results
        if each.selected.get("at_edge") and each.probe in ("linear", "ridge")
    ]


def _record_path(run: Run, task: str, name: str) -> Path:
    """``TASK.json`` for the run's default protocol, or for another where an older version wrote that there."""
    plain, named = (run.path / "transfer" / f"{stem}.json" for stem in (task, f"{task}-{name}"))
    if plain.exists():
        return plain if read_transfer(plain).protocol == name else named
    return plain if name == default_protocol(run.record.protocol) else named


def _load(task: str, name: str, run: Run, config: TransferConfig, given: Data | None) -> tuple[Data, int]:
    own = bool(run.record.own_data) and task == run.record.domain
    if given is not None and given.source is not None:
        source = given.source
    elif own:
        source = Source.from_plain(yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8")))
        if source.data is None:
            raise UserError(f"{run.path} was pretrained on an array in memory, which has no labels: name a --task")
    else:
        _check_modality(run, task)
        source = Source(task, protocol="dabs" if name == "dabs" else "v1", data_root=config.data_root)
    data = load(source) if given is None else given
    if source.domain is None and config.metric is not None and data.labelled is not None:
        data = with_metric(data, config.metric)
    elif config.metric is not None:
        raise UserError(f"--metric {config.metric} is for your own data: {task} has its own metric")
    if config.data:
        return data, batch_size(source)
    if source.domain is None and data.fingerprint != run.record.data_fingerprint:
        changed = "changed since" if own else "to be those that were pretrained on when"
        raise UserError(f"{source.data} or its options have {changed} {run.path} was made: pretrain again")
    return data, batch_size(source)


def _check_modality(run: Run, task: str) -> None:
    """Refuse a task of another modality before its data are fetched."""
    reads = modality_of_run(run)
    if domain(task).modality != reads:
        raise UserError(
            f"{task} is {domain(task).modality} data, and the encoder of {run.path} reads {reads}: name a task of that "
            "modality (see `dabsmix list domains`)"
        )


def own_sources(config: TransferConfig) -> dict[str, Source]:
    """Each of the user's own files with each label, by the name of the task that they make; empty without files.

    Raises:
        UserError: there is no label, a flag of theirs is given without files, or two files make one name.
    """
    if not config.data:
        for flag in ("modality", "label", "options", "group", "ignore"):
            if given := getattr(config, flag):
                said = given if flag != "label" else " ".join(given)
                raise UserError(f"--{flag} {said} is for your own data (--data PATH); leave it out with --task")
        return {}
    if config.task:
        raise UserError(f"--data {config.data[0]} and --task {config.task[0]}: score one after the other")
    if not config.label:
        raise UserError(f"--data {config.data[0]}: name the column that is to be predicted with --label")
    found: dict[str, Source] = {}
    for path, label in product(config.data, config.label):
        source = Source(
            data=path,
            modality=config.modality,
            label=label,
            options=config.options,
            group=config.group,
            ignore=config.ignore,
            on_bad=config.on_bad,
            data_root=config.data_root,
        )
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{source.name}-{label}")
        if name in found:
            raise UserError(f"--data {found[name].data} {path}: both make the task {name}; rename one of them")
        found[name] = source
    return found


def _read_as(run: Run, source: Source) -> Data:
    """A user's labelled data with the run's columns, categories, tokenizer and statistics."""
    modality = modality_of_run(run)
    if READS_FILES.get(modality) not in run.record.data_state:
        raise UserError(f"{run.path} does not say how further files are read: name a --task, or pretrain on files")
    return load_as(source, modality, run.record.data_state)


def _plain(label: str) -> str:
    """One spelling for each share: ``1.0`` and ``1`` are one."""
    try:
        return f"{float(label):g}"
    except ValueError:
        return label


def _kept_features(
    encoder: Encoder,
    split: Split,
    data: Data,
    accelerator: Accelerator,
    poolings: tuple[str, ...],
    run: Run,
    title: str,
    keep: Path,
) -> Features:
    """Features of a split, from the run's folder where this encoder has read these very data before."""
    key = f"{run.record.encoder_sha256} {data.fingerprint} {len(split)} {dabsmix.__version__}"
    found = _kept(keep, key)
    if found is None:
        found = _encode(encoder, split, data, accelerator, poolings, watch=partial(progress, title))
        if accelerator.is_main_process:
            content = save({k: v.contiguous() for k, v in found.items()}, {"key": key, "sha256": _digest(found)})
            write(keep, lambda p: p.write_bytes(content))
    return _as_features(found, split, accelerator)


def _with_dropout(encoder: Encoder, split: Split, data: Data, accelerator: Accelerator, epoch: int) -> Features:
    """Features of one epoch with the encoder's dropout on, as DABS's reference trains its heads."""
    torch.manual_seed(epoch)
    return _as_features(_encode(encoder, split, data, accelerator, ("mean", "cls"), dropout=True), split, accelerator)


def _encode(
    encoder: Encoder, split: Split, data: Data, accelerator: Accelerator, poolings: tuple[str, ...], **how: Any
) -> dict[str, Tensor]:
    if data.require_labelled().task.kind == "tokens":
        return {"tokens": token_features(encoder, split, data.normalise, accelerator=accelerator, **how)}
    if not encoder.has_tokens:  # one feature: there is nothing to pool
        return {"mean": features(encoder, split, data.normalise, accelerator=accelerator, **how).mean}
    if "blocks" in poolings and isinstance(encoder, Transformer):
        return all_poolings(encoder, split, data.normalise, accelerator=accelerator, **how)
    return features(encoder, split, data.normalise, accelerator=accelerator, **how)._asdict()


def _kept(path: Path, key: str) -> dict[str, Tensor] | None:
    """The features of a file; None where there is none, it is of other data, or it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("key") != key or "sha256" not in metadata:
            return None
        found = load_file(str(path))
        if _digest(found) == metadata["sha256"]:
            return found
    except (OSError, SafetensorError):
        pass
    log.warning("%s is damaged: its features are computed again", path)
    return None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Hex sha256 over names, shapes and values."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].cpu().contiguous().numpy()
        found.update(f"{name} {values.dtype} {values.shape}\n".encode())
        found.update(values.data)
    return found.hexdigest()


def _as_features(found: Mapping[str, Tensor], split: Split, accelerator: Accelerator) -> Features:
    assert split.label is not None
    return Features({name: x.to(accelerator.device) for name, x in found.items()}, split.label, split.group)


def _rows(part: Features) -> NDArray[np.float32]:
    """Mean features, or those of the scored tokens, ``(m, D)``."""
    name = "tokens" if "tokens" in part.pooled else "mean"
    return scored(part.pooled[name], part.label)[0].cpu().numpy()


def _read(path: Path, data: Data, run: Run) -> TransferRecord | None:
    """What this very encoder scored on these very data before; None where it did not."""
    if not path.exists():
        return None
    found = read_transfer(path)
    same = (found.data_fingerprint, found.encoder_sha256) == (data.fingerprint, run.record.encoder_sha256)
    return found if same else None


def _predictions(path: Path) -> dict[str, NDArray[Any]]:
    kept = path.with_suffix(".predictions.npz")
    try:
        with np.load(kept, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{kept} is damaged ({error}): delete it and {path.name} beside it, and transfer again"
        ) from error


def _save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]  # its stub takes any keyword for a flag
