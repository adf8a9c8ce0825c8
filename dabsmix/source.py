"""Where the examples come from: a named domain, or a user's own files through the reader of their modality."""

from __future__ import annotations

import collections.abc
import importlib
import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, get_args, get_origin, get_type_hints

from dabsmix.config import PretrainConfig, read_options
from dabsmix.data.domain import Data, Domain
from dabsmix.data.download import fetch_all, interrupted
from dabsmix.errors import UserError, did_you_mean
from dabsmix.files import data_root
from dabsmix.modalities.files import digest
from dabsmix.registry import domain

__all__ = ["load_domain", "load_for", "source_name"]

OWN_BATCH_SIZE = 256
FLAGS = ("path", "label", "on_bad")
"""What a reader takes from the command line; its other keywords are options."""


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
    path = config.data.expanduser().resolve()
    return path.name if path.is_dir() else path.stem.removesuffix(".csv")  # of .csv.gz


def load_for(config: PretrainConfig) -> tuple[Data, int]:
    """The data that a configuration asks for, and the batch size that goes with them.

    The fingerprint of a user's own data covers the label and the options too: with others, the same files are other
    data.

    Raises:
        UserError: see `source_name`; unknown domain; missing or damaged files; an unknown option.
    """
    source_name(config)
    if config.domain is not None:
        return load_domain(config.domain, config.protocol, config.data_root), domain(config.domain).batch_size
    assert config.data is not None
    path = config.data.expanduser()
    if not path.exists():
        raise UserError(f"--data {config.data}: no such file or folder")
    own = importlib.import_module(f"dabsmix.modalities.{config.modality}").own
    options = read_options(config.options)
    _check_options(config, own, options)
    data: Data = own(path, label=config.label, on_bad=config.on_bad, **options)
    source = digest([data.fingerprint, json.dumps([config.label, options], sort_keys=True, default=str)])
    return replace(data, fingerprint=source), min(OWN_BATCH_SIZE, len(data.pretrain))


def _check_options(config: PretrainConfig, own: Callable[..., Data], options: Mapping[str, Any]) -> None:
    kinds = get_type_hints(own)
    known = {name: each.annotation for name, each in inspect.signature(own).parameters.items() if name not in FLAGS}
    for name, value in options.items():
        if name not in known:
            raise UserError(
                f"{config.options}: unknown option {name!r}{did_you_mean(str(name), known)}; "
                f"{config.modality} data take: {', '.join(known)}"
            )
        if not _is_a(value, kinds[name]):
            raise UserError(f"{config.options}: {name} is {value!r}, not {known[name]}; mend the line")


def _is_a(value: object, kind: Any) -> bool:
    """Whether a YAML value has the type that a reader's signature states."""
    match get_origin(kind):
        case typing.Literal:
            return value in get_args(kind)
        case typing.Union | types.UnionType:
            return any(_is_a(value, each) for each in get_args(kind))
        case collections.abc.Sequence:
            return isinstance(value, list) and all(isinstance(each, str) for each in value)
    return type(value) in ((int, float) if kind is float else (kind,))


def ensure(domain: Domain, root: Path) -> Path:
    """The folder of a domain's raw files, fetched when it is missing and can be fetched.

    What lies there is taken as it is, subsets included, unless an earlier download of ours was interrupted.

    Raises:
        UserError: the files are missing and cannot be fetched, or the data root cannot be written.
    """
    folder = root / domain.folder
    if not domain.folder:
        return root  # embedded
    # what lies elsewhere, a tokenizer, other domains fetch too: it says nothing of this one
    own = [each for each in domain.downloads if each.is_archive or PurePath(each.file).is_relative_to(domain.folder)]
    if (found := domain.present(root)) and not interrupted(own, root):
        return found
    if not domain.downloads:
        how = domain.manual or "obtain the files from their source"
        raise UserError(f"{domain.name}: {folder} is missing; {how}; other places: --data-root or $DABSMIX_DATA")
    fetch_all(domain.downloads, root)
    if not folder.exists():
        files = ", ".join(each.file for each in domain.downloads)
        raise UserError(f"{domain.name}: {files} did not bring {folder}; {domain.manual or 'report this, please'}")
    return folder
