"""What a run is scored on: the tasks of its domain, those that are named, or a user's own labelled files."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, cast

from dabsmix.errors import UserError
from dabsmix.registry import domain
from dabsmix.run import Run, finished_runs
from dabsmix.source import READS_FILES, Modality, Source, batch_size, load, load_as, with_metric

if TYPE_CHECKING:
    from dabsmix.config import TransferConfig
    from dabsmix.data.domain import Data

__all__ = ["load_task", "read_as", "tasks_of", "to_score"]


def to_score(config: TransferConfig, data: Data | None = None) -> list[tuple[Run, dict[str, Source | None]]]:
    """The runs to score, each with its tasks by name; the value of a task on a user's own files is their source.

    This needs no torch, so the command line calls it before torch is imported.

    Args:
        config: what to score.
        data: loaded data to score on, in place of tasks.

    Raises:
        UserError: there is no such run, it is unfinished, a task is unknown, or the flags for files contradict others.
    """
    runs, sources = finished_runs(config.run, config.out), _own_sources(config)
    for run, source in product(runs, sources.values()):
        replace(source, modality=source.modality or cast(Modality, run.modality)).check()
    if data is not None and data.source is not None:
        return [(run, {data.source.name: None}) for run in runs]
    return [(run, {**sources} or dict.fromkeys(tasks_of(run, config.task))) for run in runs]


def tasks_of(run: Run, names: tuple[str, ...]) -> tuple[str, ...]:
    """The requested tasks, by their main names; by default those of the pretraining domain, or the domain itself."""
    if names:
        return tuple(task if task == run.record.domain else domain(task).name for task in names)
    name = run.record.domain
    return (name,) if run.record.own_data else domain(name).transfers or (name,)


def load_task(task: str, name: str, run: Run, config: TransferConfig, loaded: Data | None) -> tuple[Data, int]:
    """The data of a task, and the batch size that their source trains with.

    Args:
        task: its name.
        name: of the protocol.
        run: whose encoder is to be scored.
        config: says where data are, and names the metric of a user's own.
        loaded: the data, if they are loaded already.

    Raises:
        UserError: the encoder reads another modality, or the data have changed since the run was made.
    """
    pretrained_on = bool(run.record.own_data) and task == run.record.domain
    if loaded is not None and loaded.source is not None:
        source = loaded.source
    elif pretrained_on:
        source = Source.from_plain(run.config)
        if source.data is None:
            raise UserError(f"{run.path} was pretrained on an array in memory, which has no labels: name a --task")
    else:
        _check_modality(run, task)
        root = config.data_root or run.data_root
        source = Source(task, protocol="dabs" if name == "dabs" else "v1", data_root=root)
    data = load(source) if loaded is None else loaded
    if source.domain is None and config.metric is not None and data.labelled is not None:
        data = with_metric(data, config.metric)
    elif config.metric is not None:
        raise UserError(f"--metric {config.metric} is for your own data: {task} has its own metric")
    if config.data:
        return data, batch_size(source)
    if source.domain is None and data.fingerprint != run.record.data_fingerprint:
        changed = "changed since" if pretrained_on else "to be those that were pretrained on when"
        raise UserError(f"{source.data} or its options have {changed} {run.path} was made: pretrain again")
    return data, batch_size(source)


def _check_modality(run: Run, task: str) -> None:
    """Refuse a task of another modality before its data are fetched."""
    if domain(task).modality != run.modality:
        raise UserError(
            f"{task} is {domain(task).modality} data, and the encoder of {run.path} reads {run.modality}: name a task "
            "of that modality (see `dabsmix list domains`)"
        )


def _own_sources(config: TransferConfig) -> dict[str, Source]:
    """A source for each of the user's own files and each label, by the name of the task; empty without files.

    Raises:
        UserError: there is no label, a flag for files is given without files, or two files have the same name.
    """
    if not config.data:
        for flag in ("modality", "label", "options", "group", "ignore"):
            if value_of_flag := getattr(config, flag):
                value = value_of_flag if flag != "label" else " ".join(value_of_flag)
                raise UserError(f"--{flag} {value} is for your own data (--data PATH); leave it out with --task")
        return {}
    if config.task:
        raise UserError(f"--data {config.data[0]} and --task {config.task[0]}: score one after the other")
    if not config.label:
        raise UserError(f"--data {config.data[0]}: name the column that is to be predicted with --label")
    sources: dict[str, Source] = {}
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
        if name in sources:
            raise UserError(f"--data {sources[name].data} {path}: both make the task {name}; rename one of them")
        sources[name] = source
    return sources


def read_as(run: Run, source: Source) -> Data:
    """A user's labelled data with the run's columns, categories, tokenizer and statistics."""
    if READS_FILES.get(run.modality) not in run.record.data_state:
        raise UserError(f"{run.path} does not say how further files are read: name a --task, or pretrain on files")
    return load_as(replace(source, data_root=source.data_root or run.data_root), run.modality, run.record.data_state)
