"""Transfer, top to bottom: a frozen encoder, features once, probes chosen on validation, the test split read once.

Under the ``finetune`` protocol the encoder is trained instead.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from dabsmix.errors import UserError
from dabsmix.run import Run
from dabsmix.scoring.baselines import yardsticks
from dabsmix.scoring.evaluate import share
from dabsmix.scoring.finetune import FINETUNE, LINEAR, Finetuned, Network, features_as_data, finetune, supervised
from dabsmix.scoring.frozen import FeatureStore, TaskScores, encoding, notes_on, other_metrics, score_frozen, truth
from dabsmix.scoring.protocols import TransferProtocol, protocol, v2
from dabsmix.scoring.random_init import gain, random_encoders
from dabsmix.scoring.results import (
    Gain,
    HeadMix,
    Result,
    TransferRecord,
    by_example,
    default_protocol,
    prediction_key,
    read_predictions,
    read_transfer,
    read_yardstick_predictions,
    write_transfer,
)
from dabsmix.terminal import progress, stage
from dabsmix.verbs.tasks import load_task, read_as, tasks_of, to_score

if TYPE_CHECKING:
    from dabsmix.config import TransferConfig
    from dabsmix.data.domain import Data, Split
    from dabsmix.model.encoder import Encoder
    from dabsmix.source import Source

__all__ = ["Incomplete", "tasks_of", "transfer"]

Observe = Callable[[Path, Network, "Data"], None]


class Incomplete(UserError):
    """Some tasks could not be scored; ``records`` are those of the others."""

    def __init__(self, failed: Sequence[str], records: Sequence[TransferRecord]) -> None:
        others = "; the others are" if records else ""
        super().__init__(f"not scored: {', '.join(failed)} (the reasons are above){others}")
        self.records = tuple(records)


def transfer(
    config: TransferConfig,
    *,
    accelerator: Accelerator,
    data: Data | None = None,
    say: Callable[[str], None] = lambda _: None,
    observe: Observe = lambda path, network, data: None,
    answer: bool = True,
) -> list[TransferRecord]:
    """Score each run's encoder on each task and write ``transfer/TASK.json`` with the predictions beside it.

    Scores that exist are not computed again; further shares of the labels are added to them.

    Args:
        config: what to score, and how.
        accelerator: where to do it.
        data: loaded data to score on, in place of tasks.
        say: called with what the user should know, in complete sentences.
        observe: called with the path of a record before it is written, the finetuned network behind it, and the data.
        answer: whether to score three random encoders beside each run, which answers whether pretraining helped.

    Raises:
        UserError: there is no such run, it is unfinished, its encoder does not fit the data, or they have no labels.
        Incomplete: this holds for one of several tasks; the others have been scored.
    """
    runs = to_score(config, data)
    records, failed = [], []
    for run, tasks in runs:
        say(f"run: {run.path}")
        name = config.protocol or default_protocol(run.record.protocol)
        with run.lock() if accelerator.is_main_process else nullcontext():
            for task, source in tasks.items():
                try:
                    loaded = data if source is None else read_as(run, source)
                    records.append(_transfer_to(task, name, run, config, loaded, accelerator, say, observe, answer))
                except UserError as error:
                    if len(runs) * len(tasks) == 1:
                        raise
                    failed.append(task if len(runs) == 1 else f"{run.path.name} on {task}")
                    say(f"{task} is not scored: {error}")
    if failed:
        raise Incomplete(failed, records)
    return records


def _transfer_to(
    task: str,
    name: str,
    run: Run,
    config: TransferConfig,
    loaded: Data | None,
    accelerator: Accelerator,
    say: Callable[[str], None],
    observe: Observe,
    answer: bool,
) -> TransferRecord:
    # What to score on, and what is scored.
    data, batch_size = load_task(task, name, run, config, loaded)
    if data.labelled is None:
        raise UserError(f"{task} has no labels to transfer to: name another --task, or your own labelled --data")
    # finetuning needs rules only for the yardsticks
    rules = v2() if name == "finetune" else protocol(name, batch_size, data.specs)
    encoder = run.encoder(data.specs)
    if data.labelled.task.kind == "tokens" and not encoder.has_tokens:
        raise UserError(f"{task} has a label for each token, and the encoder of {run.path} has no tokens")
    if name == "dabs" and not encoder.has_tokens:
        raise UserError(
            f"--protocol dabs scores DABS's transformer, and {run.path} holds another encoder: use imix or v2"
        )
    mix = HeadMix(config.head_mix, config.mix_alpha, config.mix_schedule, config.mix_epochs)
    if str(mix) and name not in ("finetune", "v2", "v1"):
        raise UserError(f"--head-mix {mix.method} is not defined under --protocol {name}: use finetune or v2")
    mix.check(data.labelled.task.kind, encoder.has_tokens)
    if mix.method in ("cutmix", "manifold") and name != "finetune":
        raise UserError(f"--head-mix {mix.method} mixes inside the network: use it with --protocol finetune")
    fractions = (1.0,) if name == "finetune" or str(mix) else rules.fractions
    labels = config.labels or _default_shares(fractions, data)
    labels = tuple(dict.fromkeys(_plain(label) for label in labels))
    for label in labels:
        share(label, data.labelled.task, data.labelled.train.label)  # refuse a mistake before anything is computed

    # What has been scored already.
    path = _record_path(run, task, name, str(mix))
    before = _read(path, data, run)
    if before is not None and before.headline.metric != data.labelled.task.metric:
        say(f"{path} was scored by {before.headline.metric}: scored again by {data.labelled.task.metric}")
        before = None
    results = () if before is None else before.results
    scored_labels = dict.fromkeys(result.label_fraction for result in results)
    missing = tuple(label for label in labels if label not in scored_labels)
    earlier_predictions = {} if before is None or not missing else read_predictions(path)
    beside = {} if before is None else dict(before.yardsticks)
    beside_predictions = {} if before is None else read_yardstick_predictions(path)
    if config.supervised and "supervised" not in beside:
        trained_by_labels = supervised(encoder, data, accelerator=accelerator, watch=progress, mix=mix)
        beside |= trained_by_labels.results
        beside_predictions |= trained_by_labels.predictions
    if before is not None and not missing:
        gains = _gains(before, {}, path, run, encoder, data, rules, accelerator) if answer else before.gains
        record = replace(before, yardsticks=beside, gains=gains)
        if record == before:
            say(f"{path}: scored already")
        elif accelerator.is_main_process:
            write_transfer(path, record, yardstick_predictions=beside_predictions)
        accelerator.wait_for_everyone()
        return record
    reads = _reads(run, task, name, data) + 1
    stage(f"{task}: what needs no pretraining")
    blocks = "blocks" in rules.poolings and encoder.has_tokens
    width = encoder.width * (len(encoder.blocks) if blocks else 1)  # the widest that a probe reads
    measured = yardsticks(data, rules, (*scored_labels, *missing), accelerator.device, width)
    beside |= measured.results
    beside_predictions |= measured.predictions

    keep = FeatureStore(run.path / "features", run.record.encoder_sha256)
    trained: Finetuned | None = None
    if name == "finetune":
        trained = _finetuned(encoder, data, missing, accelerator, mix)
    elif str(mix):
        trained = _mixed_head(encoder, data, rules, missing, accelerator, mix, task, keep)
    if trained is None:
        scored = score_frozen(encoder, data, rules, missing, accelerator, title=task, keep=keep)
    else:
        scored = _of(trained, data)
    notes = (*data.notes, *([rules.note] if rules.note else []), *notes_on(scored, data.labelled))
    results = (*results, *(replace(result, test_reads=reads) for result in scored.results))
    record = TransferRecord(
        run=run.path.name,
        task=task,
        protocol=name,
        kind=data.labelled.task.kind,
        results=results,
        yardsticks=beside,
        test_reads=reads,
        train_value=before.train_value if before is not None and scored.train_value is None else scored.train_value,
        frechet_distance=scored.frechet,
        classes=data.labelled.task.classes,
        data_fingerprint=data.fingerprint,
        encoder_sha256=run.record.encoder_sha256,
        notes=tuple(dict.fromkeys((*(() if before is None else before.notes), *notes))),
        asked=tuple(prediction_key(result.probe, result.label_fraction) for result in results),
        gains=() if before is None else before.gains,
        splits={name: _sizes(split) for name, split in data.labelled.splits.items()},
        of=_flags(data.source) if config.data and data.source is not None else "",
        head_mix=str(mix),
    )
    if name == "finetune" and trained is not None and trained.network is not None:
        observe(path, trained.network, data)
    el2n: dict[str, NDArray[Any]] = {}
    if trained is not None and trained.el2n is not None:
        el2n = {"row": data.labelled.train.rows, "el2n": trained.el2n}
    predictions = earlier_predictions | scored.predictions
    if answer:
        record = replace(record, gains=_gains(record, predictions, path, run, encoder, data, rules, accelerator))
    if accelerator.is_main_process:
        first = before is None and data.labelled.task.kind != "tokens"
        write_transfer(
            path, record, predictions, beside_predictions, by_example(scored.outputs, data) if first else None, el2n
        )
    accelerator.wait_for_everyone()
    return record


def _default_shares(fractions: Sequence[float], data: Data) -> tuple[str, ...]:
    """A protocol's shares of the labels, the largest first; of own data those that hold a label of each class."""
    labelled = data.require_labelled()
    own_data = data.source is not None and data.source.domain is None
    least = len(labelled.task.classes) if labelled.task.kind == "classes" else 2
    enough = (part for part in fractions if part == 1 or not own_data or part * len(labelled.train) >= least)
    return tuple(str(part) for part in sorted(enough, reverse=True))


def _sizes(split: Split) -> dict[str, int]:
    groups = {} if split.group is None else {"groups": len(np.unique(split.group))}
    return {"examples": len(split), **groups}


def _flags(source: Source) -> str:
    """A user's files as they were named on the command line."""
    names = ("data", "label", "options", "group", "ignore")
    flags = {name: getattr(source, name) for name in names if getattr(source, name) is not None}
    flags |= {"on-bad": source.on_bad} if source.on_bad != "error" else {}
    return " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in flags.items())


def _gains(
    record: TransferRecord,
    predictions: Mapping[str, NDArray[Any]],
    path: Path,
    run: Run,
    encoder: Encoder,
    data: Data,
    rules: TransferProtocol,
    accelerator: Accelerator,
) -> tuple[Gain, ...]:
    """The headline's probe against random encoders, for every share of the labels.

    Predictions are read from ``path`` if none are given. A run without steps, which began with random weights, is
    itself a random encoder: no gains. Mixed scores have none either: they are compared with the run's own scores
    without mixing.
    """
    labelled = data.require_labelled()
    known = {stored.label_fraction: stored for stored in record.gains}
    headline_results = [result for result in record.results if result.probe == record.headline.probe]
    lacking = tuple(result.label_fraction for result in headline_results if result.label_fraction not in known)
    is_random = not run.record.steps and "init" not in run.record.hyper
    if not lacking or is_random or record.head_mix:
        return record.gains
    stage(f"{record.task}: random encoders of the same shape")

    def score_with(shares: tuple[str, ...], other: Encoder) -> tuple[list[Result], dict[str, NDArray[Any]]]:
        if record.protocol == "finetune":
            scored = _of(_finetuned(other, data, shares, accelerator, HeadMix()), data)
        else:
            linear = replace(rules, neighbours=(), penalties=(), pinv=False)
            scored = score_frozen(other, data, linear, shares, accelerator, title=f"{record.task}: random encoder")
        return scored.results, scored.predictions

    random = random_encoders(
        encoder,
        labelled,
        data.fingerprint,
        record.protocol,
        lacking,
        lambda shares: partial(score_with, shares),
        accelerator,
    )
    predictions = predictions or read_predictions(path)
    for result in headline_results:
        if result.label_fraction in random:
            known[result.label_fraction] = gain(result, predictions, labelled, random[result.label_fraction])
    return tuple(known[result.label_fraction] for result in headline_results)


def _finetuned(
    encoder: Encoder, data: Data, labels: tuple[str, ...], accelerator: Accelerator, mix: HeadMix
) -> Finetuned:
    """Train the whole network, with the rate chosen on validation."""
    others = other_metrics(data)
    return finetune(encoder, data, labels, FINETUNE, accelerator=accelerator, watch=progress, others=others, mix=mix)


def _mixed_head(
    encoder: Encoder,
    data: Data,
    rules: TransferProtocol,
    labels: tuple[str, ...],
    accelerator: Accelerator,
    mix: HeadMix,
    task: str,
    keep: FeatureStore,
) -> Finetuned:
    """Train a linear head with mixing on the frozen encoder's mean features, with the rate chosen on validation."""
    encode = encoding(encoder, data, rules, accelerator, title=task, keep=keep)
    parts = (encode(split, part) for part, split in data.require_labelled().splits.items())
    head, features = features_as_data(data, *parts)
    others = other_metrics(data)
    return finetune(head, features, labels, LINEAR, accelerator=accelerator, watch=progress, others=others, mix=mix)


def _of(trained: Finetuned, data: Data) -> TaskScores:
    """Scores of a trained network, which has no frozen features to compare."""
    predictions = trained.predictions | truth(data.require_labelled().test)
    return TaskScores(trained.results, predictions, trained.train_value, None, trained.outputs)


# --- pieces


def _record_path(run: Run, task: str, name: str, mix: str) -> Path:
    """``TASK.json`` for the run's default protocol, or for another one that an older version wrote there."""
    if mix:
        return run.path / "transfer" / f"{task}-{name}+{mix}.json"
    plain, named = (run.path / "transfer" / f"{stem}.json" for stem in (task, f"{task}-{name}"))
    if plain.exists():
        return plain if read_transfer(plain).protocol == name else named
    return plain if name == default_protocol(run.record.protocol) else named


def _reads(run: Run, task: str, name: str, data: Data) -> int:
    """How often the test split has been read under this protocol, with and without mixing."""
    key = (task, name, data.fingerprint, run.record.encoder_sha256)
    records = [read_transfer(path) for path in (run.path / "transfer").glob("*.json")]
    same = [r for r in records if (r.task, r.protocol, r.data_fingerprint, r.encoder_sha256) == key]
    return max((record.test_reads for record in same), default=0)


def _plain(label: str) -> str:
    """One spelling for each share: ``1.0`` and ``1`` are one."""
    try:
        return f"{float(label):g}"
    except ValueError:
        return label


def _read(path: Path, data: Data, run: Run) -> TransferRecord | None:
    """The earlier scores of the same encoder on the same data; None if there are none."""
    if not path.exists():
        return None
    record = read_transfer(path)
    same = (record.data_fingerprint, record.encoder_sha256) == (data.fingerprint, run.record.encoder_sha256)
    return record if same else None
