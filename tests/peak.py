"""How much the memory of this process grows while a block runs."""

import threading
import time
from pathlib import Path
from types import TracebackType

import pytest

MEASURED = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")


class Peak:
    """The growth of the process's anonymous memory, in bytes, while the block runs."""

    growth = 0

    def __enter__(self) -> "Peak":
        self.start, self.ended = anonymous(), threading.Event()
        self.watcher = threading.Thread(target=self.watch)
        self.watcher.start()
        return self

    def watch(self) -> None:
        while not self.ended.is_set():
            self.growth = max(self.growth, anonymous() - self.start)
            time.sleep(0.002)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self.watcher.join()


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
