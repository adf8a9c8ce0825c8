"""Files on disk: written whole or not at all, hashed, and where data and caches lie."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from dabsmix.errors import UserError

__all__ = ["cache_folder", "data_root", "sha256", "unwritable", "write"]


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Have ``save`` write a temporary sibling, then put it in place of ``path`` in one step.

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


def unwritable(path: Path, error: OSError) -> UserError:
    """What a user is told when a file cannot be written."""
    reason = error.strerror or str(error)
    return UserError(f"cannot write {path}: {reason}; free some space there or choose another folder")


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
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "dabsmix" / "data"


def cache_folder() -> Path:
    """``$DABSMIX_CACHE``, else the user's cache folder for dabsmix (``$XDG_CACHE_HOME`` or ``~/.cache``)."""
    if own := os.environ.get("DABSMIX_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "dabsmix"
