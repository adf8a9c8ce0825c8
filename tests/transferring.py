"""Shared by the tests of transfer: short probes, small generated data, a run to score."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dabsmix.config import PretrainConfig, TransferConfig
from dabsmix.data.domain import Data, Domain, Labelled, Split, Task
from dabsmix.registry import domain as named
from dabsmix.run import Run
from dabsmix.scoring.linear import LinearGrid
from dabsmix.scoring.protocols import TransferProtocol
from dabsmix.source import Source
from dabsmix.spec import Table
from dabsmix.training import accelerate
from dabsmix.verbs import transfer
from dabsmix.verbs.pretrain import pretrain

QUICK = TransferProtocol("v1", "", LinearGrid(rates=(1e-2, 1e-1), epochs=5), neighbours=(5,), penalties=(0.1,), draws=2)


def trained(protocol: TransferProtocol) -> LinearGrid:
    """The grid of a protocol whose heads are trained by gradient descent."""
    assert isinstance(protocol.linear, LinearGrid)
    return protocol.linear


def pretrained(out: Path, domain: str = "digits", **changes: Any) -> Run:
    config = PretrainConfig(Source(domain), algo="none", encoder="tiny", out=out)
    return pretrain(replace(config, **changes), accelerator=accelerate())


def go(run: Run, **changes: Any) -> dict[str, Any]:
    messages: list[str] = []
    (record,) = transfer.transfer(
        TransferConfig(run=(run.path,), **changes), accelerator=accelerate(), say=messages.append
    )
    return record.as_plain() | {"said": messages}


def clusters(n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Two classes that a linear probe separates."""
    rng = np.random.default_rng(seed)
    label = rng.integers(2, size=n)
    return (rng.normal(size=(n, 6)) + 2 * label[:, None]).astype(np.float32), label


def small(labels: Callable[[NDArray[np.int64]], NDArray[Any]] = lambda y: y, task: Task | None = None) -> Data:
    """A table of 6 columns: 200 examples to train on, 60 to choose on, 101 to score on."""
    x, y = clusters(361, 0)
    rows = np.split(np.arange(361), [200, 260])
    train, validation, test = (Split((x,), r, labels(y)[r]) for r in rows)
    task = task or Task("classes", "accuracy", ("a", "b"))
    return Data((Table(6),), train, Labelled(task, train, validation, test), "0" * 64)


def installed(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Register some data as a domain named ``small``."""
    card = Domain("small", "tabular", "generated", "MIT", "", lambda folder, protocol: data, batch_size=64)
    for place in ("source", "verbs.tasks"):
        monkeypatch.setattr(f"dabsmix.{place}.domain", lambda name: card if name == "small" else named(name))
