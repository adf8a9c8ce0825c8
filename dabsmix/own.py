"""Where the examples come from: a named domain, or a user's own files through the reader of their modality."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import yaml

from dabsmix.config import PretrainConfig, data_root
from dabsmix.domain import Data
from dabsmix.download import ensure
from dabsmix.errors import UserError
from dabsmix.plugins import did_you_mean, domain

__all__ = ["load_domain", "load_for", "source_name"]

OWN_BATCH_SIZE = 256


def load_domain(name: str, protocol: str, root: Path | None) -> Data:
    """A named domain's data; fetched first where they are missing and can be fetched.

    Raises:
        UserError: unknown domain, missing or damaged files.
    """
    card = domain(name)
    return card.load(ensure(card, data_root(root)), protocol)


def source_name(config: PretrainConfig) -> str:
    """What a run's folder and its record call the data: the domain's name, or the file's or folder's own.

    Raises:
        UserError: neither or both of --domain and --data are given, or --data lacks its modality.
    """
    if (config.domain is None) == (config.data is None):
        raise UserError("name what to pretrain on: either --domain NAME (see `dabsmix list domains`) or --data PATH")
    if config.domain is not None:
        return config.domain
    assert config.data is not None
    if config.modality is None:
        raise UserError("--data also needs --modality image, spectrogram, sensor, tabular or text")
    return config.data.resolve().stem


def load_for(config: PretrainConfig) -> tuple[Data, int]:
    """The data that a configuration asks for, and the batch size that goes with them.

    Raises:
        UserError: see `source_name`; unknown domain; missing or damaged files; an unknown option.
    """
    source_name(config)
    if config.domain is not None:
        return load_domain(config.domain, config.protocol, config.data_root), domain(config.domain).batch_size
    assert config.data is not None
    if not config.data.exists():
        raise UserError(f"--data {config.data}: no such file or folder")
    own = importlib.import_module(f"dabsmix.modalities.{config.modality}").own
    options = _read_options(config.options)
    known = [name for name in inspect.signature(own).parameters if name not in ("path", "label", "on_bad")]
    for name in options:
        if name not in known:
            raise UserError(
                f"{config.options}: unknown option {name!r}{did_you_mean(name, known)}; "
                f"{config.modality} data take: {', '.join(known)}"
            )
    data: Data = own(config.data, label=config.label, on_bad=config.on_bad, **options)
    return data, min(OWN_BATCH_SIZE, len(data.pretrain))


def _read_options(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--options {path}: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict):
        raise UserError(f"--options {path}: expected lines `name: value`")
    return options
