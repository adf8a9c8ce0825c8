"""Finding algorithms and domains: files of ours, entry points of other packages, and ``module:Class``."""

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
    "algorithm_added",
    "algorithm_class",
    "algorithm_dabs",
    "algorithm_flags",
    "algorithm_needs_labels",
    "algorithm_summary",
    "algorithms",
    "canonical_algorithm",
    "domain",
    "domains",
]


def _stems(package: Any) -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def _entry_points(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


# --- algorithms


def algorithms() -> list[str]:
    """Names of the available algorithms: our files, their presets, and entry points of group ``dabsmix.algorithms``."""
    ours, theirs = _ours(), _entry_points("dabsmix.algorithms")
    _refuse_twice(ours, theirs, "algorithm")
    return sorted([*(name for name in ours if canonical_algorithm(name) == name), *theirs])


def canonical_algorithm(name: str) -> str:
    """The name under which an algorithm is recorded and hashed: that of its file for an alias."""
    module, cls = _ours().get(name, (name, ""))
    return module if _is_named(cls, module) else name


@cache
def _ours() -> dict[str, tuple[str, str]]:
    """The file and the class of each of our algorithms, by name: the file's own name and those in its ``NAMES``."""
    classes_by_name: dict[str, tuple[str, str]] = {}
    for stem in _stems(dabsmix.algorithms):
        module = _Source.of(f"dabsmix.algorithms.{stem}")
        assert module is not None
        classes = {stem: stem.replace("_", "")} | module.constant("NAMES", {})
        for name, cls in classes.items():
            _refuse_twice([name], classes_by_name, "algorithm")
            classes_by_name[name] = (stem, cls)
    return classes_by_name


def _is_named(cls: str, name: str) -> bool:
    return cls.lower() == name.replace("_", "").lower()


def _module_and_class(name: str) -> tuple[str, str]:
    """The module of an algorithm, and the name of its class in any case."""
    if ":" in name:
        module, _, cls = name.partition(":")
        return module, cls
    if name in _ours():
        stem, cls = _ours()[name]
        return f"dabsmix.algorithms.{stem}", cls
    points = _entry_points("dabsmix.algorithms")
    if name in points:
        return points[name].module, points[name].attr or name.replace("_", "")
    known = algorithms()
    raise UserError(
        f"unknown algorithm {name!r}{did_you_mean(name, [*known, *_ours()])}; there are: {', '.join(known)}; "
        "for your own write --algo my_package.my_module:MyClass"
    )


@dataclass(frozen=True)
class _Source:
    """A module's source, parsed but not run."""

    module: str
    path: str
    tree: ast.Module

    @classmethod
    def of(cls, module: str) -> _Source | None:
        """The source of this module, or None if there is no such module.

        Raises:
            UserError: the source is not Python.
        """
        try:
            spec = importlib.util.find_spec(module)
        except ImportError:  # no such module, or a name that begins with a dot
            return None
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            return None  # modules of the interpreter itself have 'frozen' or 'built-in' for a path
        try:
            return cls(module, spec.origin, ast.parse(Path(spec.origin).read_bytes()))
        except (SyntaxError, ValueError) as error:
            raise UserError(f"{spec.origin} is not Python: {error}") from None

    def find_class(self, name: str) -> ast.ClassDef | None:
        """The class of this name, in any case."""
        classes = [node for node in self.tree.body if isinstance(node, ast.ClassDef)]
        return next((node for node in classes if _is_named(node.name, name)), None)

    def constant(self, name: str, default: Any) -> Any:
        """The literal value that the module assigns to a name."""
        return _constant(self.tree.body, name, default, self.path)

    def import_of(self, name: str) -> tuple[str, str] | None:
        """The module that a name is imported from, and its name there."""
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        dots = "." * node.level
                        package = self.module.rpartition(".")[0]
                        module = importlib.util.resolve_name(dots + (node.module or ""), package)
                        return module, alias.name
        return None


def _constant(body: list[ast.stmt], name: str, default: Any, where: str) -> Any:
    """The literal value that is assigned to ``name`` in the body of a module or class."""
    for statement in body:
        match statement:
            case ast.AnnAssign(target=ast.Name(target), value=ast.expr() as value):
                pass
            case ast.Assign(targets=[ast.Name(target)], value=value):
                pass
            case _:
                continue
        if target == name:
            try:
                return ast.literal_eval(value)
            except ValueError as error:
                raise UserError(f"{where}: {name} must be a literal, got {ast.unparse(value)}") from error
    return default


def _lineage(name: str) -> list[tuple[ast.ClassDef, _Source]]:
    """An algorithm's class and those of its base classes that are imported by name, read from their sources."""
    module, cls = _module_and_class(name)
    if module == "__main__":
        raise UserError(f"{name}: flags are read from a file, so the algorithm has to be in a file, as my_file:{cls}")
    if ":" in name and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for a file in the working folder, where a console script does not look
    source = _Source.of(module)
    if source is None:
        raise UserError(
            f"--algo {name}: no module {module!r} in this folder or among the installed packages; "
            f"start in the folder that holds {module.partition('.')[0]}, or install its package"
        )
    node = source.find_class(cls)
    if node is None:
        raise UserError(f"{source.path}: it has no class {cls!r} (in any case)")
    lineage = [(node, source)]
    while node.bases and isinstance(base := node.bases[0], ast.Name):
        base_class = source.find_class(base.id)
        if base_class is None and (place := source.import_of(base.id)) is not None:
            module, cls = place
            if module.partition(".")[0] == "torch" or (other := _Source.of(module)) is None:
                break
            source, base_class = other, other.find_class(cls)
        if base_class is None or base_class is node:
            break
        node = base_class
        lineage.append((node, source))
    return lineage


def algorithm_class(name: str) -> type[Algorithm]:
    """The class behind a name; imports torch.

    Raises:
        UserError: it does not exist, its class is not an `Algorithm`, or it has hyperparameters that cannot be
            read from its source, or what its module imports is missing.
    """
    from dabsmix.pretext.algorithm import Algorithm

    node, source = _lineage(name)[0]
    try:
        cls = getattr(importlib.import_module(source.module), node.name)
    except ImportError as error:
        raise UserError(f"{source.path} cannot be imported: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Algorithm)):
        raise UserError(f"{source.path}: {node.name} is not a subclass of dabsmix.pretext.algorithm.Algorithm")
    unread = _keywords(cls) - {flag.name for flag in algorithm_flags(name)}
    if unread or dict(cls.dabs) != algorithm_dabs(name) or tuple(cls.added) != algorithm_added(name):
        part = f"the keywords {', '.join(sorted(unread))}" if unread else "the class attribute dabs or added"
        raise UserError(
            f"{source.path}: {node.name} computes {part}, or inherits it from a class that is not imported by name: "
            "flags are read from the source, so state it in the class"
        )
    return cls


def _keywords(cls: type) -> set[str]:
    """The keywords of a class's constructors, up to the first that does not pass keywords on to its base class."""
    keywords: set[str] = set()
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            keywords |= {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return keywords


def algorithm_summary(name: str) -> str:
    """First line of the algorithm's docstring, read without importing it."""
    node, source = _lineage(name)[0]
    return (ast.get_docstring(node) or ast.get_docstring(source.tree) or "").partition("\n")[0]


@dataclass(frozen=True)
class Flag:
    """One hyperparameter: a keyword of the constructor."""

    name: str
    type: Any
    default: Any
    help: str


def algorithm_flags(name: str) -> list[Flag]:
    """The hyperparameters of an algorithm, read from its source without importing torch.

    They are the keywords of its constructor and, if this takes ``**others``, those of its base class.

    Raises:
        UserError: the algorithm is unknown, or a keyword has no plain type or no literal default.
    """
    constructors = []
    for node, source in _lineage(name):
        init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if init is not None:
            constructors.append((node, source, init))
            if init.args.kwarg is None:
                break
    flags: dict[str, Flag] = {}
    for node, source, init in reversed(constructors):  # a subclass's own defaults come last, and count
        helps = _args_section(ast.get_docstring(node) or "") | _args_section(ast.get_docstring(init) or "")
        for arg, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True):
            if default is None or arg.annotation is None:
                raise UserError(f"{source.path}: hyperparameter {arg.arg!r} of {node.name} needs a type and a default")
            try:
                value = ast.literal_eval(default)
                kind = _plain_type(arg.annotation)
            except ValueError as error:
                raise UserError(
                    f"{source.path}: hyperparameter {arg.arg!r} of {node.name} must be bool, int, float, str or a "
                    f"Literal with a literal default, got {ast.unparse(arg.annotation)} = {ast.unparse(default)}"
                ) from error
            inherited = flags[arg.arg].help if arg.arg in flags else ""
            flags[arg.arg] = Flag(arg.arg, kind, value, helps.get(arg.arg, inherited))
    return list(flags.values())


def algorithm_dabs(name: str) -> dict[str, Any]:
    """The hyperparameters that ``--protocol dabs`` sets: the class attribute ``dabs``, read without importing torch."""
    return dict(_class_constant(name, "dabs", {}))


def algorithm_added(name: str) -> tuple[str, ...]:
    """The hyperparameters in the class attribute ``added``, read without importing torch."""
    return tuple(_class_constant(name, "added", ()))


def algorithm_needs_labels(name: str) -> bool:
    """The class attribute ``needs_labels``, read without importing torch."""
    return bool(_class_constant(name, "needs_labels", False))


def _class_constant(name: str, attribute: str, default: Any) -> Any:
    missing = object()
    for node, source in _lineage(name):
        value = _constant(node.body, attribute, missing, f"{source.path}: {node.name}")
        if value is not missing:
            return value
    return default


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
    texts: dict[str, str] = {}
    inside, key = False, ""
    for line in doc.splitlines():
        if line.strip() == "Args:":
            inside = True
        elif inside and line and not line.startswith(" "):
            inside = False
        elif inside and line.startswith("    ") and not line.startswith("     ") and ":" in line:
            key, _, text = line.strip().partition(":")
            texts[key] = text.strip()
        elif inside and key and line.strip():
            texts[key] += " " + line.strip()
    return texts


# --- domains


@cache
def domains() -> dict[str, Domain]:
    """Every available domain, by name: our files and entry points of group ``dabsmix.domains``.

    An entry point names a module with ``DOMAINS``, or that tuple itself.
    """
    cards: dict[str, Domain] = {}
    for stem in _stems(dabsmix.domains):
        for card in importlib.import_module(f"dabsmix.domains.{stem}").DOMAINS:
            _refuse_twice([card.name], cards, "domain")
            cards[card.name] = card
    for point in _entry_points("dabsmix.domains").values():
        loaded = point.load()
        for card in getattr(loaded, "DOMAINS", loaded):
            _refuse_twice([card.name], cards, "domain")
            cards[card.name] = card
    return dict(sorted(cards.items()))


def domain(name: str) -> Domain:
    """The domain with this name or alias.

    Raises:
        UserError: there is none.
    """
    if name in _stems(dabsmix.domains):  # the usual case: no other file has to be imported
        for card in importlib.import_module(f"dabsmix.domains.{name}").DOMAINS:
            if card.name == name:
                return cast("Domain", card)
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
