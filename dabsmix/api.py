"""The functions of ``import dabsmix``: each turns its arguments into a configuration and calls the verb with it.

Data in memory that must be read again later, by transfer or by a repeated run, are stored as a file in the cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import yaml

from dabsmix.config import PretrainConfig, TransferConfig
from dabsmix.data.domain import Data
from dabsmix.errors import UserError, did_you_mean
from dabsmix.files import cache_folder, write
from dabsmix.modalities import memory
from dabsmix.registry import algorithm_flags
from dabsmix.run import Run
from dabsmix.scoring.results import ProtocolName, TransferRecord
from dabsmix.source import Modality, Source
from dabsmix.source import load as load_source
from dabsmix.training import accelerate

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["load", "pretrain", "transfer"]


def load(
    domain: str | None = None,
    *,
    data: str | Path | pd.DataFrame | Any = None,
    modality: Modality | None = None,
    label: str | None = None,
    options: str | Path | Mapping[str, Any] | None = None,
    on_bad: Literal["error", "skip"] = "error",
    protocol: Literal["v1", "dabs", "imix"] = "v1",
    data_root: str | Path | None = None,
) -> Data:
    """A data set: a named domain's, or your own.

    Args:
        domain: a name that `dabsmix list domains` shows; fetched first where it is missing and can be fetched.
        data: your own data instead: a file, a folder, or a DataFrame of rows; or, without a label, PIL images, strings,
            or an array: images ``(n, height, width)``, with 3 channels also first or last, windows of sensors
            ``(n, channels, length)``, rows of a table ``(n, columns)``.
        modality: what your own data are.
        label: the column, or ``"folder"``, that holds the label of your own data; without it nothing can be scored.
        options: how your own files are read, by name (``{"window": 128, "group": "person"}``) or as a YAML file; the
            guide to your own data lists them.
        on_bad: ``skip`` leaves out unreadable examples, and counts and lists them.
        protocol: ``dabs`` divides a named domain as the DABS reference does; ``imix`` trains as the i-Mix reference.
        data_root: the folder of the raw data; by default ``$DABSMIX_DATA``, else the user's cache folder.

    Raises:
        UserError: unknown domain or option, or missing or damaged files; one line with the remedy.
    """
    if data is None or isinstance(data, str | Path):
        place = None if data is None else Path(data)
    elif memory.is_frame(data):
        place = _frame_file(data)
    else:
        if label is not None or options is not None or modality is None:
            raise UserError("an array needs a modality, and takes no label or options: give a DataFrame for those")
        return replace(memory.whole(data, modality), source=Source(modality=modality))
    options_file = _options_file(options) if isinstance(options, Mapping) else options
    source = Source(
        domain=domain,
        data=place,
        modality=modality,
        label=label,
        options=None if options_file is None else Path(options_file),
        on_bad=on_bad,
        protocol=protocol,
        data_root=None if data_root is None else Path(data_root),
    )
    return load_source(source)


def pretrain(
    data: Data | str,
    algorithm: str = "dmix",
    *,
    encoder: str = "dabs",
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    out: str | Path = "runs",
    **settings: Any,
) -> Run:
    """Train an encoder without labels.

    Args:
        data: the result of `load`, or the name of a domain.
        algorithm: a name that `dabsmix list algorithms` shows, or your own as ``"module:Class"``.
        encoder: a name that `dabsmix list encoders` shows.
        steps: optimizer steps; 100,000 by default.
        batch_size: examples per step; by default that of the data's source.
        lr: AdamW's learning rate; by default the protocol's.
        seed: seed of weights, batches, partners, masks and dropout.
        out: the folder in which the run's folder is made.
        settings: the algorithm's hyperparameters, and any other field of `config.PretrainConfig` (``schedule``,
            ``weight_decay``, ``precision``, ``online``, ``resume``, ``name``, ``device``, ...).

    Returns:
        The run, finished; its folder is ``run.path``.

    Raises:
        UserError: any mistake in the arguments or the data, or a loss that is no longer finite.
    """
    from dabsmix.verbs import pretrain as verb

    if isinstance(data, str):
        data = load(data)
    if data.source is None:
        raise UserError("these data do not say where they are from: pass the result of dabsmix.load")
    known = {field.name for field in fields(PretrainConfig)} - {"source", "algo", "hyper", "out"}
    hyper = {flag.name for flag in algorithm_flags(algorithm)}
    for name in settings:
        if name not in known | hyper:
            raise UserError(f"pretrain has no setting {name!r}{did_you_mean(name, known | hyper)}")
    config = PretrainConfig(
        source=data.source,
        algo=algorithm,
        encoder=encoder,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        out=Path(out),
        hyper={name: value for name, value in settings.items() if name in hyper},
        **{name: value for name, value in settings.items() if name in known},
    )
    return verb.pretrain(config, accelerator=accelerate(config.precision, config.device), data=data)


def transfer(
    run: Run | str | Path,
    task: str | None = None,
    *,
    data: Data | str | Path | pd.DataFrame | None = None,
    label: str | None = None,
    options: str | Path | Mapping[str, Any] | None = None,
    metric: str | None = None,
    protocol: ProtocolName | None = None,
    labels: Sequence[str | float] | None = None,
    supervised: bool = False,
    data_root: str | Path | None = None,
) -> TransferRecord:
    """Score a run's frozen encoder on labelled data: probes chosen on validation, the test split read once.

    Args:
        run: a finished run, or its folder.
        task: the domain to score on; by default the pretraining domain.
        data: labelled examples of your own, for a run of any data of their modality: a file, a folder or a DataFrame,
            read with the run's columns, categories, tokenizer and statistics. Or what is loaded already: the run's
            own data, or another named domain's.
        label: the column, or ``"folder"``, of your own data that is to be predicted.
        options: how the labels of your own data are read, as in `load`: ``group``, ``labels``, ``column``, ``task``.
        metric: what your own data are scored by, see the guide to your own data; by default a rule on their labels.
        protocol: how to score; by default as the run was pretrained. ``finetune`` trains the whole network.
        labels: shares of the labels to score with, such as ``1``, ``0.1`` or ``"5/class"``.
        supervised: also train the same encoder on all labels from random weights, for comparison.
        data_root: the folder of the raw data.

    Returns:
        The scores; they print as a table, and ``to_frame()`` is a pandas DataFrame.

    Raises:
        UserError: the run is unfinished, its encoder does not fit the data, or they have no labels.
    """
    from dabsmix.verbs import transfer as verb

    run = run if isinstance(run, Run) else Run(Path(run))
    options_file = _options_file(options) if isinstance(options, Mapping) else options
    loaded = data if isinstance(data, Data) else None
    place = None
    if data is not None and loaded is None:
        place = _frame_file(cast("pd.DataFrame", data)) if memory.is_frame(data) else Path(cast("str | Path", data))
    config = TransferConfig(
        run=(run.path,),
        task=() if task is None else (task,),
        data=() if place is None else (place,),
        label=() if label is None else (label,),
        options=None if options_file is None else Path(options_file),
        metric=metric,
        protocol=protocol,
        labels=None if labels is None else tuple(str(share) for share in labels),
        supervised=supervised,
        data_root=None if data_root is None else Path(data_root),
    )
    if data is None and task is None and len(tasks := verb.tasks_of(run, ())) > 1:
        raise UserError(f"{run.path} transfers to {len(tasks)} tasks: name one of {', '.join(tasks)}")
    return verb.transfer(config, accelerator=accelerate(), data=loaded)[0]


# --- data in memory, stored as files that can be read again


def _frame_file(frame: pd.DataFrame) -> Path:
    """A DataFrame as Parquet, under the digest of its content."""
    named = frame.set_axis([str(name) for name in frame.columns], axis=1)
    return _stored("frame", ".parquet", lambda path: named.to_parquet(path, index=False))


def _options_file(options: Mapping[str, Any]) -> Path:
    content = yaml.safe_dump(json.loads(json.dumps(dict(options))))
    return _stored("options", ".yaml", lambda path: path.write_text(content, encoding="utf-8"))


def _stored(kind: str, suffix: str, save: Any) -> Path:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / f"data{suffix}"
        save(first)
        content = first.read_bytes()
    path = cache_folder() / "given" / f"{kind}-{hashlib.sha256(content).hexdigest()[:16]}{suffix}"
    if not path.exists():
        write(path, lambda p: p.write_bytes(content))
    return path
