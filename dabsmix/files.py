"""Files on disk: written whole or not at all, hashed, and where data and caches lie."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from dabsmix.errors import UserError

__all__ = [
    "cache_folder",
    "data_root",
    "is_temporary",
    "memory",
    "parsed",
    "read_json",
    "remember",
    "sha256",
    "sweep",
    "unwritable",
    "write",
    "write_json",
]


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


def require_writable(path: Path) -> None:
    """Refuse a file that `write` could not write, before the work whose result goes there. Nothing is created.

    Raises:
        UserError: the path is a folder, or the folder that it lies in, or the nearest that exists above it, cannot be
            written.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError
        with tempfile.TemporaryFile(dir=next(folder for folder in path.absolute().parents if folder.exists())):
            pass
    except OSError as error:
        raise unwritable(path, error) from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or an empty one if the file does not exist.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; delete it, or restore an earlier version") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object; delete it, or restore an earlier version")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object, as `write` does."""
    write(path, lambda p: p.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8"))


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
    if path.is_dir():
        return UserError(f"cannot write {path}: it is a folder; name a file")
    reason = error.strerror or str(error)
    other = "set $DABSMIX_CACHE to" if path.is_relative_to(cache_folder()) else "choose"
    return UserError(f"cannot write {path}: {reason}; free some space there or {other} another folder")


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_root(folder: Path | None) -> Path:
    """``--data-root``, else ``$DABSMIX_DATA``, else a folder of the user's cache."""
    if folder is not None:
        return folder.expanduser()
    if os.environ.get("DABSMIX_DATA"):
        return Path(os.environ["DABSMIX_DATA"]).expanduser()
    return _user_cache() / "dabsmix" / "data"


def _user_cache() -> Path:
    """``$XDG_CACHE_HOME`` unless it is unset or empty, else ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def cache_folder() -> Path:
    """``$DABSMIX_CACHE``, else the user's cache folder for dabsmix (``$XDG_CACHE_HOME`` or ``~/.cache``)."""
    if folder := os.environ.get("DABSMIX_CACHE"):
        return Path(folder).expanduser().absolute()
    return _user_cache().absolute() / "dabsmix"


def memory(name: str) -> Path:
    """The file of the user's cache that holds what this very source code remembered under this name, if it did."""
    return cache_folder() / "memory" / f"{name}-{_code()}"


def remember(name: str, save: Callable[[Path], object]) -> None:
    """Let ``save`` write `memory`'s file, in place of what was remembered under this name.

    It is not an error if the cache cannot be written: it only saves time.
    """
    path = memory(name)
    with suppress(UserError, OSError):
        for older in path.parent.glob(f"{name}-*"):
            older.unlink(missing_ok=True)
        write(path, save)


@cache
def _code() -> str:
    """Digest of this package's source files."""
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(Path(__file__).parent, followlinks=True):
        folders.sort()
        for name in sorted(name for name in files if name.endswith(".py")):
            digest.update(Path(folder, name).read_bytes())
    return digest.hexdigest()[:16]


T = TypeVar("T")


def parsed(kind: type[T], values: Any) -> T:
    """A dataclass from JSON values: unknown entries are ignored, missing ones get the field's default.

    Raises:
        ValueError: the values are not an object, an entry without a default is missing, or an entry does not have the
            plain type of its field.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"expected a JSON object, found a {type(values).__name__}")
    known = {}
    for name, (types, annotation, required) in _expected(kind).items():  # type: ignore[arg-type]  # a class is hashable
        if name in values:
            known[name] = values[name]
            if types is not None and type(known[name]) not in types:
                raise ValueError(f"{name} is {values[name]!r}, not {annotation}")
        elif required:
            raise ValueError(f"it lacks {name!r}")
    return kind(**known)


_PLAIN: dict[str, tuple[type, ...]] = {"str": (str,), "bool": (bool,), "int": (int,), "float": (int, float)}
_PLAIN |= {"Mapping": (dict,), "tuple": (list, tuple)}


@cache
def _expected(kind: type) -> dict[str, tuple[frozenset[type] | None, Any, bool]]:
    """Of each field the types that its JSON value may have, None for any, how they are written, and if it is required.

    Only the outermost type is checked.
    """
    expected = {}
    for field in fields(kind):
        names = [name.strip().partition("[")[0] for name in str(field.type).split(" | ")]
        kinds = {kind for name in names for kind in _PLAIN.get(name, (object,) if name != "None" else (type(None),))}
        required = field.default is MISSING and field.default_factory is MISSING
        expected[field.name] = (None if object in kinds else frozenset(kinds), field.type, required)
    return expected
