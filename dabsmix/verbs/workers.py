"""Workers of `dabsmix bench` on this machine: the same command in several processes, which share the cells."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from dabsmix.interrupt import Interrupted

__all__ = ["share"]


def share(words: Sequence[str], workers: int) -> int:
    """Run a bench command in several processes and return the worst of their exit statuses.

    Args:
        words: the command line after ``dabsmix``.
        workers: number of processes.

    Raises:
        Interrupted: SIGTERM came meanwhile; the processes were asked to stop, and have ended.
    """
    command = [sys.executable, "-m", "dabsmix", *words, "--workers", "1"]
    # what a worker says goes to stderr; the answer on stdout is given once, when all have ended
    children: list[subprocess.Popen[bytes]] = []
    asked = False

    def stop(*_: Any) -> None:
        nonlocal asked
        asked = True
        for child in children:
            child.terminate()

    before = signal.signal(signal.SIGTERM, stop)  # each writes a checkpoint, and is waited for
    try:
        children += [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(workers)]
        status = max(abs(child.wait()) for child in children)
    except BaseException:
        stop()
        raise
    finally:
        for child in children:
            child.wait()
        signal.signal(signal.SIGTERM, before)
    if asked:
        raise Interrupted("the workers were asked to stop; the same command goes on from here")
    return status
