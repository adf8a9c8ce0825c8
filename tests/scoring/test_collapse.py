"""A run whose features collapse reports it; other runs do not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dabsmix.config import PretrainConfig
from dabsmix.data.domain import Data, Split
from dabsmix.run import Run
from dabsmix.scoring.collapse import feature_std, rankme
from dabsmix.source import Source
from dabsmix.spec import Table
from dabsmix.training import accelerate
from dabsmix.verbs.pretrain import pretrain

# targets without momentum and no batch norm: BYOL collapses to a constant
COLLAPSING = {"momentum": 0.0, "head_norm": "none", "predictor_norm": "none"}


def train(store: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[Run, bool]:
    """A run on rows of a table, and whether it reported a collapse."""
    data = Data((Table(4),), Split((store,), np.arange(64)), None, "0" * 64)
    monkeypatch.setattr("dabsmix.verbs.pretrain.load", lambda source: data)
    messages: list[str] = []
    config = PretrainConfig(Source("digits"), encoder="tiny", batch_size=32, **changes)
    run = pretrain(config, accelerator=accelerate(), say=messages.append)
    return run, any("they may have collapsed" in text for text in messages)


@pytest.mark.parametrize(("algo", "hyper", "expected"), [("byol", COLLAPSING, True), ("dmix", {}, False)])
def test_features_that_collapse_are_reported(
    algo: str, hyper: dict[str, Any], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    run, reported = train(store, monkeypatch, algo=algo, hyper=hyper, steps=60, lr=3e-3, out=tmp_path)
    assert reported == expected
    assert (run.record.metrics["feature_std"] < 0.05 / 8) == expected  # of width 64


def test_features_that_were_similar_from_the_start_have_not_collapsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = (1 + 1e-3 * np.random.default_rng(0).normal(size=(64, 4))).astype(np.float32)
    run, reported = train(store, monkeypatch, algo="dmix", steps=1, lr=0.0, out=tmp_path)
    assert run.record.metrics["feature_std"] < 0.05 / 8
    assert not reported


def test_measures_of_collapse() -> None:
    rng = np.random.default_rng(0)
    ball, direction = rng.normal(size=(512, 64)), rng.normal(size=64)
    assert feature_std(ball) == pytest.approx(1 / 8, rel=0.02)
    assert rankme(ball) > 50
    constant = direction + 0.01 * ball
    assert feature_std(constant) < 0.002
    assert rankme(constant) == pytest.approx(1.8, abs=0.3)  # no threshold near 1 would detect this
    plane = ball[:, :1] * direction + ball[:, 1:2] * rng.normal(size=64)
    assert feature_std(plane) > 0.1
    assert rankme(plane) < 2.1
