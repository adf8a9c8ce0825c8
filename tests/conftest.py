"""Every test sees the same machine: a CPU with two cores, one process, no network, a cache of its own."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports torch or accelerate. Two workers of pytest-xdist take one core each: threads that wait for a
# busy core are many times slower than one thread. Workers inherit what their parent set here, so they overwrite it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["ACCELERATE_USE_CPU"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def cache() -> Iterator[Path]:
    """Prepared data are written to a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="dabsmix-cache-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DABSMIX_CACHE", folder)
        yield Path(folder)


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps its precision for the whole process; each test chooses its own."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.fixture(autouse=True)
def no_random_encoders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three random encoders beside each run take most of a transfer: tests of them are marked ``answered``."""
    if request.node.get_closest_marker("answered") is None and "dabsmix.verbs.transfer" in sys.modules:
        monkeypatch.setattr("dabsmix.verbs.transfer._gains", lambda record, *_: record.gains)
