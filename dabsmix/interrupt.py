"""Requests to stop: training saves its state, and the process exits with a status that says "resume me"."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["RESUME_ME", "Interrupted", "Stop", "stop_on_signals"]

RESUME_ME = 75
"""Exit status of interrupted training: EX_TEMPFAIL of sysexits.h. torchrun and accelerate turn it into 1."""

SIGNALS = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT")
SAME = 1.0  # seconds: a launcher passes on a SIGINT that the terminal has already sent to its workers


class Interrupted(Exception):
    """Training was asked to stop and has saved its state; the message says where."""


class Stop:
    """Whether a signal has asked this process to stop."""

    def __init__(self) -> None:
        self.asked = False
        self._first = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal. A second SIGINT ends the process at once."""
        now = time.monotonic()
        if self.asked and number == signal.SIGINT and now - self._first > SAME:
            raise KeyboardInterrupt
        if not self.asked:
            self._first = now
        self.asked = True


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Record signals instead of ending the process, if this is the main thread: only that can set handlers."""
    stop = Stop()
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]  # Windows has fewer
        before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
