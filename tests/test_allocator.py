"""Freed memory is reused: counted in page faults, in a separate process."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from dabsmix.cli import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
np.ones(2 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(2 << 20)  # 16 MiB, 4096 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    completed = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(completed.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library is another")
def test_what_is_freed_is_used_again_without_page_faults() -> None:
    assert faults("kept") < 100
