"""Transfer, top to bottom: a frozen encoder, features once, probes chosen on validation, the test split read once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import dabsmix
from dabsmix.config import PretrainConfig, TransferConfig
from dabsmix.domain import Data, Split, Task
from dabsmix.encoder import Encoder
from dabsmix.errors import UserError
from dabsmix.features import features
from dabsmix.intervals import bootstrap
from dabsmix.metrics import frechet_distance, metric
from dabsmix.own import load_domain, load_for
from dabsmix.plugins import domain
from dabsmix.prepare import cache_folder
from dabsmix.probe import Selected, few_labels, select
from dabsmix.protocols import Protocol, fits, protocol
from dabsmix.readout import Features, fit_constant
from dabsmix.run import Run, load_encoder, newest_run, sha256, write
from dabsmix.spec import describe
from dabsmix.terminal import watched
from dabsmix.yardsticks import raw_reader

__all__ = ["score", "show", "transfer"]

BY_CLASS = ("accuracy", "f1_macro", "f1_weighted", "matthews")  # metrics of the predicted class alone
OWN_DATA_BATCH = 256  # the `dabs` protocol's batch on a user's own data, which have no source to state one


def transfer(
    config: TransferConfig, *, accelerator: Accelerator, say: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Score a run's encoder on each task and write ``transfer/TASK.json`` with the predictions beside it.

    A task that is there already is not scored again.

    Raises:
        UserError: no such run, an unfinished one, an encoder that does not fit the task's data, data without labels.
    """
    run = Run(config.run) if config.run else newest_run(config.out, lambda run: run.finished, "finished run")
    if not run.finished:
        raise UserError(f"{run.path} is unfinished: go on with `dabsmix pretrain --resume`")
    say(f"run: {run.path}")
    name = config.protocol or run.record["protocol"]
    return [_transfer_to(task, name, run, config, accelerator, say) for task in config.task or _own_tasks(run)]


def _transfer_to(
    task: str, name: str, run: Run, config: TransferConfig, accelerator: Accelerator, say: Callable[[str], None]
) -> dict[str, Any]:
    # What to score on.
    data, batch_size = _load(task, name, run, config)
    rules = protocol(name, batch_size)
    labels = config.labels or tuple(f"{share:g}" for share in sorted(rules.fractions, reverse=True))
    if data.task is None or data.train is None or data.validation is None or data.test is None:
        raise UserError(f"{task} has no labels to transfer to: name another --task")
    path = run.path / "transfer" / (f"{task}.json" if name == run.record["protocol"] else f"{task}-{name}.json")
    before = _read(path)
    if (
        before
        and before["data_fingerprint"] == data.fingerprint
        and set(labels) <= {r["label_fraction"] for r in before["results"]}
    ):
        say(f"{path}: scored already")
        return before

    # What is scored: features of the frozen encoder, once per split.
    encoder = load_encoder(run.path / "encoder.safetensors", data.specs).to(accelerator.device)

    def encode(split: Split, part: str) -> Features:
        return _features(
            encoder,
            split,
            data,
            accelerator,
            title=f"{task}: features of {part}",
            keep=run.path / "features" / f"{task}-{name}-{part}.safetensors",
        )

    train, validation = encode(data.train, "train"), encode(data.validation, "validation")

    # Chosen without the test split, which nothing below this line and above the next has seen.
    redraw = partial(_with_dropout, encoder, data.train, data, accelerator) if rules.dropout else None
    chosen = choose(train, validation, data.task, rules, labels, redraw=redraw)

    # Read once.
    test = encode(data.test, "test")
    results, predictions = score(chosen, test, data.task)
    again = before["test_reads"] if before and before["data_fingerprint"] == data.fingerprint else 0
    full = next(
        (selected[0].head for (probe, share), selected in chosen.items() if (probe, share) == ("linear", "1")), None
    )
    record = {
        "task": task,
        "protocol": name,
        "kind": data.task.kind,
        "metric": data.task.metric,
        **{key: results[0][key] for key in ("value", "low", "high", "n", "probe", "label_fraction", "selected")},
        "test_reads": again + 1,
        "results": results,
        "yardsticks": _yardsticks(data, rules, labels, accelerator.device),
        "train_value": metric(data.task.metric)(full.predict(train), train.label) if full else None,
        "frechet_distance": frechet_distance(train.pooled["mean"].cpu().numpy(), test.pooled["mean"].cpu().numpy()),
        "classes": list(data.task.classes),
        "data_fingerprint": data.fingerprint,
        "encoder_sha256": run.record["encoder_sha256"],
        "notes": [*data.notes, *([rules.note] if rules.note else [])],
    }
    if accelerator.is_main_process:
        write(path.with_suffix(".predictions.npz"), lambda p: _save_arrays(p, predictions))
        write(path, lambda p: p.write_text(json.dumps(record, indent=1), encoding="utf-8"))
    accelerator.wait_for_everyone()
    for note in record["notes"]:
        say(note)
    return record


Chosen = Mapping[tuple[str, str], list[Selected]]  # by probe and share of the labels: one head per draw


def choose(
    train: Features,
    validation: Features,
    task: Task,
    rules: Protocol,
    labels: tuple[str, ...],
    *,
    redraw: Callable[[int], Features] | None = None,
) -> Chosen:
    """Every probe of a protocol at every share of the labels, fitted on train and chosen on validation."""
    probes = fits(rules, task, redraw=redraw)
    wanted = metric(task.metric)
    chosen = {}
    for share in labels:
        draws = few_labels(train, validation, task, draws=rules.draws, **_share(share))
        for probe, fit in probes.items():
            chosen[probe, share] = select(fit, draws, wanted)
    return chosen


def score(chosen: Chosen, test: Features, task: Task) -> tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]:
    """One result per probe and share of the labels, with its interval, and every test example's prediction."""
    wanted = metric(task.metric)
    results, predictions = [], {"label": test.label}
    if test.group is not None:
        predictions["group"] = test.group
    for (probe, share), selected in chosen.items():
        scores = [each.head.predict(test) for each in selected]
        interval = bootstrap(wanted, scores, test.label, test.group)
        first = selected[0]
        results.append(
            {
                "probe": probe,
                "label_fraction": share,
                "metric": wanted.name,
                "value": interval.value,
                "low": interval.low,
                "high": interval.high,
                "n": interval.n,
                "units": interval.units,
                "draws": len(selected),
                "selected": {**first.setting, "validation": first.validation, "candidates": first.candidates},
                "test_reads": 1,
            }
        )
        # the class alone is enough for a metric that reads no more; others need every score
        whole = np.stack(scores)
        by_class = task.kind == "classes" and wanted.name in BY_CLASS
        predictions[f"{probe}@{share.replace('/', ' per ')}"] = (
            whole.argmax(axis=-1).astype(np.int32) if by_class else whole
        )
    return results, predictions


def show(records: list[dict[str, Any]]) -> str:
    """Plain lines for a person: one per score, the yardsticks beneath."""
    lines = []
    for record in records:
        rows = [("encoder", r) for r in record["results"]]
        rows += [(name, r) for name, found in record["yardsticks"].items() for r in found]
        lines.append(f"{record['task']}  {record['metric']}  protocol {record['protocol']}  n {record['n']}")
        for name, r in rows:
            interval = "" if r["low"] is None else f"  [{100 * r['low']:.1f}, {100 * r['high']:.1f}]"
            lines.append(
                f"  {name:<8} {r['probe']:<8} labels {r['label_fraction']:<8} {100 * r['value']:6.2f}{interval}"
            )
    return "\n".join(lines)


# --- pieces


def _own_tasks(run: Run) -> tuple[str, ...]:
    """The tasks that the pretraining data name; themselves where they name none."""
    name = run.record["domain"]
    return (name,) if run.record["own_data"] else domain(name).transfers or (name,)


def _load(task: str, name: str, run: Run, config: TransferConfig) -> tuple[Data, int]:
    if run.record["own_data"] and task == run.record["domain"]:
        values = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
        paths = {k: Path(v) for k, v in values.items() if k in ("data", "options") and v is not None}
        wanted = ("data", "options", "modality", "label", "on_bad")
        data, _ = load_for(PretrainConfig(**({k: values[k] for k in wanted} | paths)))
        return data, OWN_DATA_BATCH
    return load_domain(task, name, config.data_root), domain(task).batch_size


def _share(text: str) -> dict[str, Any]:
    """``0.1`` or ``5/class`` as arguments of `few_labels`."""
    try:
        if text.endswith("/class") and int(text.removesuffix("/class")) > 0:
            return {"per_class": int(text.removesuffix("/class"))}
        if 0 < float(text) <= 1:
            return {"fraction": float(text)}
    except ValueError:
        pass
    raise UserError(f"--labels {text}: give a fraction above 0 and at most 1, or a number such as 5/class")


def _features(
    encoder: Encoder, split: Split, data: Data, accelerator: Accelerator, *, title: str, keep: Path
) -> Features:
    """Features of a split, from the run's folder where this encoder has read these very data before."""
    key = f"{sha256(keep.parent.parent / 'encoder.safetensors')} {data.fingerprint} {len(split)}"
    pooled = _kept(keep, key)
    if pooled is None:
        watch = partial(watched, title)
        pooled = features(encoder, split, data.normalise, accelerator=accelerator, watch=watch)._asdict()
        if accelerator.is_main_process:
            write(keep, lambda p: save_file({k: v.contiguous() for k, v in pooled.items()}, str(p), {"key": key}))
    return _as_features(pooled, split, accelerator)


def _with_dropout(encoder: Encoder, split: Split, data: Data, accelerator: Accelerator, epoch: int) -> Features:
    """Features of one epoch with the encoder's dropout on, as DABS's reference trains its heads."""
    torch.manual_seed(epoch)
    pooled = features(encoder, split, data.normalise, accelerator=accelerator, dropout=True)
    return _as_features(pooled._asdict(), split, accelerator)


def _kept(path: Path, key: str) -> dict[str, Tensor] | None:
    if not path.exists():
        return None
    with safe_open(str(path), framework="pt") as file:
        if (file.metadata() or {}).get("key") != key:
            return None
    return load_file(str(path))


def _as_features(pooled: Mapping[str, Tensor], split: Split, accelerator: Accelerator) -> Features:
    assert split.label is not None
    return Features({name: x.to(accelerator.device) for name, x in pooled.items()}, split.label, split.group)


def _yardsticks(data: Data, rules: Protocol, labels: tuple[str, ...], device: torch.device) -> dict[str, Any]:
    """What needs no encoder: the same linear probe on the raw input, and the majority class. Kept between runs."""
    assert data.task
    assert data.train
    assert data.validation
    assert data.test
    asked = json.dumps([data.fingerprint, str(rules), labels, dabsmix.__version__, describe(data.specs)])
    path = cache_folder() / "yardsticks" / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.json"
    if path.exists():
        return cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
    batches = [np.arange(start, min(start + 1024, len(data.train))) for start in range(0, len(data.train), 1024)]
    reader = raw_reader(data.specs, (data.normalise(data.train.batch(index)) for index in batches))

    def read(split: Split) -> Features:
        assert split.label is not None
        parts = (np.arange(start, min(start + 1024, len(split))) for start in range(0, len(split), 1024))
        raw = torch.cat([reader(data.normalise(split.batch(index))) for index in parts])
        return Features({"raw": raw.to(device)}, split.label, split.group)

    train, validation, test = read(data.train), read(data.validation), read(data.test)
    plain = replace(rules, neighbours=(), penalties=(), pinv=False)
    raw, _ = score(choose(train, validation, data.task, plain, labels), test, data.task)
    constant = select(partial(fit_constant, task=data.task), [(train, validation)], metric(data.task.metric))
    majority, _ = score({("majority", "1"): constant}, test, data.task)
    found = {"raw": raw, "majority": majority}
    write(path, lambda p: p.write_text(json.dumps(found), encoding="utf-8"))
    return found


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]  # its stub takes any keyword for a flag
