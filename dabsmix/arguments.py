"""From the words of a command line to configurations.

A flag counts before the value of a file, and that before the protocol's and the default. The values of a file are read
as flags are, so that they are checked in the same way.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections import ChainMap
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

from dabsmix.config import BenchConfig, PretrainConfig
from dabsmix.errors import UserError, did_you_mean
from dabsmix.source import Source, read_yaml

__all__ = ["read", "read_plan", "read_pretrain"]

SEEDS = "Several seeds in place of --seed: one run each, one after the other; --resume continues where they stopped."

T = TypeVar("T")
_USAGE = {"bench": "bench [PLAN.yaml]"}


def read(kind: type[T], command: str, args: list[str]) -> T:
    """The configuration that a command's arguments ask for.

    Raises:
        UserError: tyro's complaint on one line.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            prog = f"dabsmix {_USAGE.get(command, command)}"
            return tyro.cli(kind, prog=prog, args=args, config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as error:
        if error.code in (0, None):  # --help
            raise
        message = _in_words(_on_one_line(complaint.getvalue()), kind)
        raise UserError(f"{message}; see `dabsmix {command} --help`") from None


def _on_one_line(box: str) -> str:
    """What tyro prints in a box: the complaint, and the flag that it finds nearest."""
    title = 1 if box.startswith("╭") else 2  # a terminal without UTF-8 gets no frame, and a rule below the title
    lines = [line.strip(" │") for line in box.strip().splitlines()[title:] if not line.startswith("╰")]
    lines = ["" if set(line) <= set("─-") else line for line in lines]
    end = lines.index("") if "" in lines else len(lines)  # a rule ends the complaint; hints follow
    words = " ".join(lines[:end]).split() or ["these", "arguments", "cannot", "be", "read"]
    missing = next((n for n, word in enumerate(words) if word.endswith(":") and words[0] == "Missing"), None)
    message = " ".join(words if missing is None else words[: missing + 2]).rstrip(".")
    close = next((line.split()[0] for line in lines[1:] if line.startswith("--")), None)
    return f"{message} (did you mean {close}?)" if close is not None and message.startswith("Unrecognized") else message


def _in_words(message: str, kind: type[Any]) -> str:
    """The same complaint with what the flag's type allows; tyro names types as code, and choices in any order."""
    if match := re.match(r"Error parsing --(\S+): .*\[(.*)\]", message):
        declared = str(_types(kind).get(match[1].replace("-", "_")))
        words = {"int": "a whole number", "float": "a number", "bool": "True or False"}
        allowed = next((text for name, text in words.items() if name in declared), "of another type")
        return f"--{match[1]} {match[2].replace(chr(39), '')}: must be {allowed}"
    match = re.match(r"(invalid choice '(.*)' for argument '(?:--)?(.*)'\. Expected one of )\((.*)\)", message)
    if match is None:
        return message
    declared = str(_types(kind).get(match[3].replace("-", "_")))
    choices = sorted(
        set(re.findall("'(.*?)'", match[4])) - {"None"}, key=lambda name: (declared.find(repr(name)), name)
    )
    return f"{match[1]}{', '.join(choices)}{did_you_mean(match[2], choices)}"


def _types(kind: Any) -> dict[str, Any]:
    """The types of a dataclass's fields by name, with those of the dataclasses in it."""
    types = get_type_hints(kind)
    inner = [_types(part) for part in types.values() if is_dataclass(part)]
    return dict(ChainMap(types, *inner))


# --- pretrain's flags: flag > file > protocol > default


def read_pretrain(args: list[str]) -> tuple[PretrainConfig, tuple[int, ...]]:
    """What pretrain's arguments ask for, and the seeds to repeat it with.

    The algorithm's hyperparameters are flags too, so its name is read first. The values of ``--config`` come before the
    other arguments, so that they are read, checked and overridden as flags are: of a flag given twice the last counts.
    """
    from dabsmix.registry import algorithm_dabs, algorithm_flags

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--config", "--algo", "--protocol"):
        first.add_argument(name, nargs="?")  # tyro complains about a missing value
    known, _ = first.parse_known_args(args)
    if "--config" in args and known.config is None:
        raise UserError("--config: name a YAML file, such as a run's config.yaml")
    file = {} if known.config is None else _read_fields(Path(known.config), "--config ")
    algo = known.algo or str(file.get("algo") or PretrainConfig.algo)  # a file may hold a list by mistake
    protocol = known.protocol or file.get("protocol") or Source.protocol

    hyper = {flag.name: flag for flag in algorithm_flags(algo)}
    names = [f.name for kind in (PretrainConfig, Source) for f in fields(kind) if f.name not in ("source", "hyper")]
    for name in file:
        if name not in names and name not in hyper:
            raise UserError(f"{known.config}: unknown field {name!r}{did_you_mean(name, [*names, *hyper])}")
    for name in hyper:
        if name in names:
            raise UserError(f"--algo {algo}: its hyperparameter {name!r} has the name of a flag of pretrain; rename it")

    dabs = algorithm_dabs(algo) if protocol == "dabs" else {}
    hyper_fields: list[Any] = [
        (flag.name, Annotated[flag.type, tyro.conf.arg(help=flag.help or None)], dabs.get(flag.name, flag.default))
        for flag in hyper.values()
    ]
    parts: list[Any] = [
        ("config", Annotated[PretrainConfig, tyro.conf.arg(name="")]),
        ("algorithm", make_dataclass("Algorithm", hyper_fields, namespace={"__doc__": f"Hyperparameters of {algo}."})),
        ("seeds", Annotated[tuple[int, ...], tyro.conf.arg(help=SEEDS)], ()),
    ]
    switches = {f.name for f in fields(PretrainConfig) if isinstance(f.default, bool)}
    switches |= {flag.name for flag in hyper.values() if flag.type is bool}
    flags: Any = read(
        make_dataclass("Pretrain", parts, namespace={"__doc__": PretrainConfig.__doc__}),
        "pretrain",
        [*_as_words(file, switches), *_without(args, "--config")],
    )
    return replace(flags.config, hyper=vars(flags.algorithm)), flags.seeds or (flags.config.seed,)


def _read_fields(path: Path, flag: str = "") -> dict[str, Any]:
    """The values of a YAML file of fields."""
    return read_yaml(path, f"{flag}{path}", "field: value")


def _as_words(values: Mapping[str, Any], switches: Set[str], several: Set[str] = frozenset()) -> list[str]:
    """A file's values as arguments; a field that is left empty takes its default.

    Args:
        values: by field.
        switches: fields that are set by ``--flag`` and ``--no-flag``.
        several: fields that take several values.
    """
    words = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if name in switches and isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif name in several and isinstance(value, list):
            words += [f"--{flag}", *map(str, value)]
        elif value is not None:
            words.append(f"--{flag}={value}")
    return words


def _without(args: list[str], flag: str) -> list[str]:
    """The arguments without a flag and its value."""
    others, skip = [], False
    for word in args:
        if skip:
            skip = False
        elif word == flag:
            skip = True
        elif not word.startswith(f"{flag}="):
            others.append(word)
    return others


# --- bench's plan: flag > part of the plan > plan > default


def read_plan(args: list[str]) -> tuple[list[BenchConfig], Path | None]:
    """One `BenchConfig` per part of the plan, if the arguments name one: first, or a YAML file anywhere among them."""
    place = _plan_among(args)
    if place is None:
        return [read(BenchConfig, "bench", args)], None
    path, flags = Path(args[place]), [*args[:place], *args[place + 1 :]]
    plan = _read_fields(path)
    parts = plan.pop("parts", [{}])
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{path}: parts: expected a list of matrices, each with lines `field: value`")
    known = [f.name for f in fields(BenchConfig)]
    switches = {f.name for f in fields(BenchConfig) if isinstance(f.default, bool)}
    several = {f.name for f in fields(BenchConfig) if f.type.startswith("tuple")}
    configs = []
    for part in parts:
        values = plan | part
        for name in values:
            if name not in known:
                raise UserError(f"{path}: unknown field {name!r}{did_you_mean(name, known)}")
        configs.append(read(BenchConfig, "bench", _last_given([*_as_words(values, switches, several), *flags])))
    return configs, path


def _plan_among(args: list[str]) -> int | None:
    """Which argument is the plan; a YAML file after a flag that takes a path is that flag's."""
    if args and not args[0].startswith("-"):
        return 0
    of_paths, flag = {f"--{f.name.replace('_', '-')}" for f in fields(BenchConfig) if "Path" in f.type}, ""
    for place, word in enumerate(args):
        if word.startswith("--"):
            flag = word
        elif word.endswith((".yaml", ".yml")) and flag not in of_paths:
            return place
    return None


def _last_given(words: list[str]) -> list[str]:
    """Each flag once, with the values that were given last."""
    groups: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            groups[name] = [value] if value else []
        else:
            groups.setdefault(name, []).append(word)
    return [word for name, values in groups.items() for word in (name, *values)]
