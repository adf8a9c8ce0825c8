"""Files on disk: written whole or not at all, hashed, and where data and caches lie."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from dabsmix.errors import UserError

__all__ = ["cache_folder", "data_root", "is_temporary", "parsed", "sha256", "sweep", "unwritable", "write"]


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Let ``save`` write a temporary file beside ``path``, then replace ``path`` with it in one step.

    Raises:
        UserError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        save(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is a temporary file of `write`, which is left behind only when `write` is killed."""
    return re.fullmatch(r"\..+\.[a-z0-9_]{8}", name) is not None


def sweep(folder: Path) -> None:
    """Delete the remains of killed writes directly in a folder. Call it under the lock of the writers."""
    for path in folder.glob(".*"):
        if is_temporary(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> UserError:
    """The error for a file that cannot be written."""
    reason = error.strerror or str(error)
    other = "set $DABSMIX_CACHE to" if path.is_relative_to(cache_folder()) else "choose"
    return UserError(f"cannot write {path}: {reason}; free some space there or {other} another folder")


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_root(given: Path | None) -> Path:
    """``--data-root``, else ``$DABSMIX_DATA``, else a folder of the user's cache."""
    if given is not None:
        return given.expanduser()
    if os.environ.get("DABSMIX_DATA"):
        return Path(os.environ["DABSMIX_DATA"]).expanduser()
    return _user_cache() / "dabsmix" / "data"


def _user_cache() -> Path:
    """``$XDG_CACHE_HOME`` unless it is unset or empty, else ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def cache_folder() -> Path:
    """``$DABSMIX_CACHE``, else the user's cache folder for dabsmix (``$XDG_CACHE_HOME`` or ``~/.cache``)."""
    if own := os.environ.get("DABSMIX_CACHE"):
        return Path(own).expanduser().absolute()
    return _user_cache().absolute() / "dabsmix"


T = TypeVar("T")


def parsed(kind: type[T], values: Any) -> T:
    """A dataclass from JSON values: unknown entries are ignored, missing ones get the field's default.

    Raises:
        ValueError: the values are not an object, an entry without a default is missing, or an entry does not have the
            plain type of its field.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"expected a JSON object, found a {type(values).__name__}")
    given = {}
    for each in fields(kind):  # type: ignore[arg-type]  # a dataclass
        if each.name in values:
            given[each.name] = values[each.name]
            if not _is_a(given[each.name], each.type):
                raise ValueError(f"{each.name} is {values[each.name]!r}, not {each.type}")
        elif each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"it lacks {each.name!r}")
    return kind(**given)


_PLAIN: dict[str, tuple[type, ...]] = {"str": (str,), "bool": (bool,), "int": (int,), "float": (int, float)}
_PLAIN |= {"Mapping": (dict,), "tuple": (list, tuple)}


def _is_a(value: object, annotation: Any) -> bool:
    """Whether a JSON value has a field's type; only the outermost type is checked."""
    names = [name.strip().partition("[")[0] for name in str(annotation).split(" | ")]
    kinds = {kind for name in names for kind in _PLAIN.get(name, (object,) if name != "None" else (type(None),))}
    return object in kinds or type(value) in kinds
