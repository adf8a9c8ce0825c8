"""Finding algorithms and domains: the file system is the registry, entry points and ``module:Class`` reach outside."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import dabsmix.algorithms
import dabsmix.domains
from dabsmix.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from dabsmix.data.domain import Domain
    from dabsmix.pretext.algorithm import Algorithm

__all__ = [
    "Flag",
    "algorithm_class",
    "algorithm_dabs",
    "algorithm_flags",
    "algorithm_summary",
    "algorithms",
    "domain",
    "domains",
]


def _stems(package: Any) -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def _entry_points(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


# --- algorithms


def algorithms() -> list[str]:
    """Names of the algorithms to be had: our files and entry points of group ``dabsmix.algorithms``."""
    ours = _stems(dabsmix.algorithms)
    theirs = _entry_points("dabsmix.algorithms")
    _refuse_twice(ours, theirs, "algorithm")
    return sorted([*ours, *theirs])


def _module_and_class(name: str) -> tuple[str, str | None]:
    """Where an algorithm lives: its module, and its class where the name states one."""
    if ":" in name:
        module, _, cls = name.partition(":")
        return module, cls
    if name in _stems(dabsmix.algorithms):
        return f"dabsmix.algorithms.{name}", None
    points = _entry_points("dabsmix.algorithms")
    if name in points:
        return points[name].module, points[name].attr or None
    known = algorithms()
    raise UserError(
        f"unknown algorithm {name!r}{did_you_mean(name, known)}; there are: {', '.join(known)}; "
        "your own is --algo my_package.my_module:MyClass"
    )


def _source(name: str) -> tuple[ast.Module, str, str | None]:
    module, cls = _module_and_class(name)
    if module == "__main__":
        raise UserError(f"{name}: flags are read from a file, so an algorithm needs one of its own, as my_file:{cls}")
    if ":" in name and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a file in the folder where one works; a console script does not look there
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None or found.origin is None:
        raise UserError(
            f"--algo {name}: no module {module!r} in this folder or among the installed packages; "
            f"start where {module.partition('.')[0]} lies, or install its package"
        )
    return ast.parse(Path(found.origin).read_text(encoding="utf-8")), found.origin, cls


def _class_node(name: str) -> tuple[ast.ClassDef, str, ast.Module]:
    tree, path, cls = _source(name)
    wanted = (cls or name.replace("_", "")).lower()
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name.lower() == wanted:
            return node, path, tree
    raise UserError(f"{path}: no class {cls or name.replace('_', '')!r} (upper and lower case do not matter) in it")


def algorithm_class(name: str) -> type[Algorithm]:
    """The class behind a name; imports torch.

    Raises:
        UserError: no such algorithm, what is there is none, or it has hyperparameters that its file does not state.
    """
    from dabsmix.pretext.algorithm import Algorithm

    module, _ = _module_and_class(name)
    node, path, _ = _class_node(name)
    cls = getattr(importlib.import_module(module), node.name)
    if not (isinstance(cls, type) and issubclass(cls, Algorithm)):
        raise UserError(f"{path}: {node.name} is no subclass of dabsmix.pretext.algorithm.Algorithm")
    keywords = {key for key, p in inspect.signature(cls).parameters.items() if p.kind is p.KEYWORD_ONLY}
    unread = keywords - {flag.name for flag in algorithm_flags(name)}
    if unread or dict(cls.dabs) != algorithm_dabs(name):
        what = f"the constructor's keywords {', '.join(sorted(unread))}" if unread else "the class attribute dabs"
        raise UserError(
            f"{path}: {node.name} inherits or computes {what}: flags are read from the class, repeat it there"
        )
    return cls


def algorithm_summary(name: str) -> str:
    """First line of the algorithm's docstring, read without importing it."""
    node, _, tree = _class_node(name)
    return (ast.get_docstring(node) or ast.get_docstring(tree) or "").partition("\n")[0]


@dataclass(frozen=True)
class Flag:
    """One hyperparameter: a keyword of the constructor."""

    name: str
    type: Any
    default: Any
    help: str


def algorithm_flags(name: str) -> list[Flag]:
    """The hyperparameters of an algorithm, read from its source without importing torch.

    Raises:
        UserError: the algorithm is unknown, or a keyword has no plain type or no literal default.
    """
    node, path, _ = _class_node(name)
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is None:
        return []
    helps = _args_section(ast.get_docstring(node) or "") | _args_section(ast.get_docstring(init) or "")
    flags = []
    for arg, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True):
        if default is None or arg.annotation is None:
            raise UserError(f"{path}: hyperparameter {arg.arg!r} of {node.name} needs a type and a default")
        try:
            value = ast.literal_eval(default)
            kind = _plain_type(arg.annotation)
        except ValueError as error:
            raise UserError(
                f"{path}: hyperparameter {arg.arg!r} of {node.name} must be bool, int, float, str or a Literal "
                f"with a literal default, got {ast.unparse(arg.annotation)} = {ast.unparse(default)}"
            ) from error
        flags.append(Flag(arg.arg, kind, value, helps.get(arg.arg, "")))
    return flags


def algorithm_dabs(name: str) -> dict[str, Any]:
    """What ``--protocol dabs`` sets for an algorithm: its class attribute ``dabs``, read without importing torch."""
    node, path, _ = _class_node(name)
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name("dabs"), value=ast.expr() as value):
                pass
            case ast.Assign(targets=[ast.Name("dabs")], value=value):
                pass
            case _:
                continue
        try:
            return dict(ast.literal_eval(value))
        except ValueError as error:
            raise UserError(f"{path}: {node.name}.dabs must be a literal dict") from error
    return {}


def _plain_type(annotation: ast.expr) -> Any:
    from typing import Literal

    plain = {"bool": bool, "int": int, "float": float, "str": str}
    if isinstance(annotation, ast.Name) and annotation.id in plain:
        return plain[annotation.id]
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in ("Literal", "typing.Literal"):
        choices = ast.literal_eval(annotation.slice)
        return Literal[choices if isinstance(choices, tuple) else (choices,)]
    raise ValueError(ast.unparse(annotation))


def _args_section(doc: str) -> dict[str, str]:
    """``name: text`` pairs of a docstring's Args section."""
    found: dict[str, str] = {}
    inside, key = False, ""
    for line in doc.splitlines():
        if line.strip() == "Args:":
            inside = True
        elif inside and line and not line.startswith(" "):
            inside = False
        elif inside and line.startswith("    ") and not line.startswith("     ") and ":" in line:
            key, _, text = line.strip().partition(":")
            found[key] = text.strip()
        elif inside and key and line.strip():
            found[key] += " " + line.strip()
    return found


# --- domains


@cache
def domains() -> dict[str, Domain]:
    """Every domain to be had, by name: our files and entry points of group ``dabsmix.domains``.

    An entry point names a module with ``DOMAINS``, or that tuple itself.
    """
    found: dict[str, Domain] = {}
    for stem in _stems(dabsmix.domains):
        for each in importlib.import_module(f"dabsmix.domains.{stem}").DOMAINS:
            _refuse_twice([each.name], found, "domain")
            found[each.name] = each
    for point in _entry_points("dabsmix.domains").values():
        loaded = point.load()
        for each in getattr(loaded, "DOMAINS", loaded):
            _refuse_twice([each.name], found, "domain")
            found[each.name] = each
    return dict(sorted(found.items()))


def domain(name: str) -> Domain:
    """The domain of this name, or of which this is an alias.

    Raises:
        UserError: there is none.
    """
    if name in _stems(dabsmix.domains):  # the usual case: no other file need be imported
        for each in importlib.import_module(f"dabsmix.domains.{name}").DOMAINS:
            if each.name == name:
                return cast("Domain", each)
    known = domains()
    for card in known.values():
        if name in card.aliases:
            return card
    if name not in known:
        raise UserError(
            f"unknown domain {name!r}{did_you_mean(name, known)}; `dabsmix list domains` shows all {len(known)}"
        )
    return known[name]


def _refuse_twice(names: Iterable[str], others: Iterable[str], kind: str) -> None:
    twice = sorted(set(names) & set(others))
    if twice:
        raise UserError(f"two {kind}s are called {twice[0]!r}: rename one of them or uninstall its package")
