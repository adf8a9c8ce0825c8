"""What a person sees while something runs: a progress bar on a terminal, log lines elsewhere.

The lines go to the logger ``dabsmix`` at level INFO, which the command line shows on standard error. A library call is
silent until its caller asks for them: ``logging.basicConfig(level=logging.INFO)``.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Bar", "log_lines", "progress", "stage"]

T = TypeVar("T")

log = logging.getLogger("dabsmix")

LINES = 20
"""Log lines of a stage: one at each 5 %."""

SECONDS = 1.0
"""Shortest time between two log lines of a stage."""


class Bar:
    """The progress of one stage, on standard error.

    On a terminal a bar; elsewhere a line at the start and at each 5 %, at most one a second.

    Args:
        title: the name of the stage.
        total: the number of its steps; None if it is unknown.
        start: the number of steps that are done already.
        shown: False on all but one of several processes.
        in_bytes: whether the steps are bytes of a file.
    """

    def __init__(
        self, title: str, *, total: int | None, start: int = 0, shown: bool = True, in_bytes: bool = False
    ) -> None:
        self._title, self._total, self._start, self._text = title, total, start, ""
        self._done = self._next = start
        self._began = self._said_at = time.monotonic()
        self._lines = shown and not sys.stderr.isatty()
        self._bar = _bar(title, total, start, in_bytes) if shown and sys.stderr.isatty() else None

    def __enter__(self) -> Bar:
        if self._bar is not None:
            self._bar.start()
        if self._lines:
            log.info("%s: %s", self._title, "starts" if not self._start else f"goes on after {self._start}")
            self._set_next()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, steps: int = 1) -> None:
        """Count this many steps as done."""
        self._done += steps
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], steps)
        elif self._lines and self._total and self._done >= self._next:
            self._line(self._total)

    def show(self, **values: str) -> None:
        """Show these values beside the bar or in the line, in this order."""
        self._text = "  ".join(f"{k} {v}" if k != "rate" else v for k, v in values.items())
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], text=self._text)

    def _line(self, total: int) -> None:
        now = time.monotonic()
        if now - self._said_at >= SECONDS:
            self._said_at = now
            remaining = (now - self._began) / (self._done - self._start) * (total - self._done)
            share = f"{100 * self._done / total:.0f} %"
            parts = (f"{self._title}: {self._done}/{total} ({share})", self._text, f"{_clock(remaining)} left")
            log.info("%s", "  ".join(part for part in parts if part))
        self._set_next()

    def _set_next(self) -> None:
        """The number of steps at which the next twentieth is complete."""
        if self._total:
            self._next = -(-(self._done * LINES // self._total + 1) * self._total // LINES)


def progress(title: str, items: Iterable[T], total: int | None = None) -> Iterator[T]:
    """The items of a loop, with a bar while they are worked through.

    Args:
        title: the name of the stage.
        items: what to loop over.
        total: how many there are, if their number is not known from them.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Bar(title, total=total) as bar:
        for item in items:
            yield item
            bar.advance()


def stage(title: str) -> None:
    """Log the start of a stage that has no steps to count."""
    log.info("%s: starts", title)


@contextmanager
def log_lines() -> Iterator[None]:
    """Show the log lines on standard error, unless that is a terminal, which shows bars."""
    if sys.stderr.isatty():
        yield
        return
    before, handler = log.level, _StandardError()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


class _StandardError(logging.Handler):
    """Whatever standard error is at the moment, with the time of day."""

    def emit(self, record: logging.LogRecord) -> None:
        print(time.strftime("%H:%M:%S"), record.getMessage(), file=sys.stderr, flush=True)


def _bar(title: str, total: int | None, start: int, in_bytes: bool) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bar = Progress(
        TextColumn(title, markup=False),
        BarColumn(),
        *((DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    bar.add_task(title, total=total, completed=start, text="")
    return bar


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
