"""What a person sees while something runs: a progress bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Bar", "progress", "watched"]

T = TypeVar("T")


class Bar:
    """A progress bar on standard error with a loss, a throughput and the remaining time; silent off a terminal."""

    def __init__(self, title: str, *, total: int, start: int = 0, shown: bool = True) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._progress.add_task(title, total=total, completed=start, text="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, steps: int = 1) -> None:
        """One step further."""
        self._progress.advance(self._task, steps)

    def show(self, **values: str) -> None:
        """The values beside the bar, in this order."""
        self._progress.update(self._task, text="  ".join(f"{k} {v}" if k != "rate" else v for k, v in values.items()))


def watched(title: str, items: Iterable[int]) -> Iterator[int]:
    """The items of a loop, with a bar while they are worked through."""
    things = list(items)
    with Bar(title, total=len(things)) as bar:
        for each in things:
            yield each
            bar.advance()


def progress(items: Iterable[T], text: str, total: int | None = None) -> Iterable[T]:
    """The items, with a progress bar on standard error where that is a terminal."""
    if not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, text, total=total, console=Console(stderr=True), transient=True)
