"""Preparing raw data once: a fingerprint of the source, and a cache of memory-mapped arrays keyed by it."""

from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["cache_folder", "fingerprint", "prepared"]


def cache_folder() -> Path:
    """``$DABSMIX_CACHE``, else the user's cache folder for dabsmix."""
    raise NotImplementedError


def fingerprint(folder: Path, files: Iterable[Path]) -> str:
    """Hex digest over the relative names, sizes and contents of files below ``folder``, whatever their order."""
    raise NotImplementedError


def prepared(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """The folder that ``build`` filled for this name and key; builds it when there is none."""
    raise NotImplementedError
