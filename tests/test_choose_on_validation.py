"""`scripts/choose_on_validation.py` scores on validation only, and seeds of one setting together."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from script_module import script

import dabsmix
from dabsmix.data.domain import Data


@pytest.fixture(scope="module")
def choosing() -> ModuleType:
    return script("choose_on_validation")


def without_test(data: Data) -> Data:
    """The same data with a test split that cannot be read."""
    labelled = data.require_labelled()
    return replace(data, labelled=replace(labelled, test=replace(labelled.test, inputs=())))


def test_settings_are_ranked_without_the_test_split(
    choosing: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = dabsmix.load("digits")
    settings = {"short": {"steps": 1}, "long": {"steps": 2}}
    runs = {
        (name, seed): dabsmix.pretrain(
            digits, "mae", encoder="tiny", batch_size=8, seed=seed, out=tmp_path / name, **values
        )
        for name, values in settings.items()
        for seed in (0, 1)
    }
    repeated = dabsmix.pretrain(digits, "mae", encoder="tiny", batch_size=8, seed=0, out=tmp_path / "again", steps=1)
    monkeypatch.setattr(dabsmix, "load", lambda name: without_test(digits))
    scores = {key: choosing.score(run, "1/class") for key, run in runs.items()}
    assert all(0.1 < value < 0.9 for value in scores.values())
    by_path = {run.path: scores[key] for key, run in runs.items()} | {repeated.path: scores["short", 0]}
    monkeypatch.setattr(choosing, "score", lambda run, share: by_path[run.path])
    choosing.main("1/class", *map(str, by_path))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    means = {name: np.mean([scores[name, 0], scores[name, 1]]) for name in settings}
    best, other = sorted(means, key=lambda name: -means[name])
    assert lines == [
        [f"{means[best]:.4f}", "2", str(runs[best, 0].path)],
        [f"{means[other]:.4f}", "2", str(runs[other, 0].path)],
    ]


def test_the_training_examples_are_few_and_those_of_train(
    choosing: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dabsmix.load("digits")
    labelled = data.require_labelled()
    monkeypatch.setattr(choosing, "CANDIDATES", 100)
    swapped = choosing.on_validation(data).require_labelled()
    assert swapped.test is labelled.validation
    assert len(swapped.train) == 100
    assert set(swapped.train.rows) <= set(labelled.train.rows)
