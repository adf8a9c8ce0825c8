"""``failures.json`` beside a leaderboard: cells of a matrix that have no score, and why."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from filelock import FileLock

from dabsmix.files import read_json, write_json

__all__ = ["Failures"]


class Failures:
    """By configuration hash, which cell failed, when, and why.

    Runs that failed while they were trained have rows as well; what failed before or after that is here alone.

    Args:
        csv: the leaderboard's CSV.
    """

    def __init__(self, csv: Path) -> None:
        self.path = csv.with_name("failures.json")

    def read(self) -> dict[str, dict[str, Any]]:
        """The failures so far.

        Raises:
            UserError: the file cannot be read.
        """
        return read_json(self.path)

    def without_row(self, hashes: Collection[str]) -> list[dict[str, Any]]:
        """The failures of configurations other than these, which have rows."""
        return [entry for key, entry in self.read().items() if key not in hashes]

    def note(self, key: str, entry: dict[str, Any]) -> None:
        """Record a failure.

        Args:
            key: the configuration's hash.
            entry: ``domain``, ``algorithm``, ``seed``, ``encoder``, ``steps``, ``reason``, ``date`` and ``commit``.
        """
        self._change(lambda values: values.update({key: entry}))

    def clear(self, key: str) -> None:
        """Remove a failure, because the cell has succeeded or is tried again."""
        if key in self.read():
            self._change(lambda values: values.pop(key, None))

    def _change(self, change: Callable[[dict[str, Any]], object]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            values = self.read()
            change(values)
            write_json(self.path, values)
