"""`scripts/slides.py`: the registered contrasts, on rows of the committed matrix, and their verdicts."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from script_module import script

from dabsmix.board.record import predictions_of
from dabsmix.board.row import read
from dabsmix.errors import UserError
from dabsmix.scoring.intervals import Difference

BOARD = Path(__file__).parents[1] / "leaderboard"
PLAN: dict[str, Any] = {
    "encoder": "tiny",
    "batch_size": 64,
    "steps": 400,
    "rates": [3e-4, 1e-3, 3e-3],
    "seeds": [0, 1, 2],
}


@pytest.fixture(scope="module")
def slides() -> ModuleType:
    return script("slides")


def plan(folder: Path, **changes: Any) -> Path:
    """The shape of `slides_cpu.yaml`, with the steps and the chosen rates of the matrix."""
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAN | {"parts": [{"domains": ["cifar10"]}, {"domains": ["uci_har"]}]} | changes))
    path.with_suffix(".chosen.json").write_text((BOARD / "plans" / "cpu.chosen.json").read_text())
    return path


def test_contrasts_are_of_the_predictions_of_all_seeds(slides: ModuleType, tmp_path: Path) -> None:
    arms = slides.families(plan(tmp_path), BOARD / "results.csv")
    assert list(arms) == ["equal-steps"]
    of = slides.contrasts(arms["equal-steps"])
    assert len(of) == 12
    rates = json.loads((BOARD / "plans" / "cpu.chosen.json").read_text())
    means = {}
    for algorithm in ("dmix", "emix"):  # right answers, counted example by example
        rate = rates[f"cifar10 {algorithm} tiny 400 steps of 64"]["lr"]
        right = []
        for row in read(BOARD / "results.csv"):
            own = (row.domain, row.algorithm, row.probe, row.label_fraction, row.protocol, row.steps, row.lr)
            if own == ("cifar10", algorithm, "linear", "1", "v2", 400, rate) and row.seed < 3:
                stored = predictions_of(row)
                assert stored is not None
                right += [guess == label for guess, label in zip(stored.scores[0], stored.label, strict=True)]
        assert len(right) == 3 * 1000
        means[algorithm] = np.mean(right)
    difference = of["cifar10", "linear", "dmix", "emix"]
    assert difference.value == pytest.approx(means["dmix"] - means["emix"])
    assert difference.low < difference.value < difference.high
    text = "\n".join(slides.report(arms["equal-steps"]))
    assert text.count("(3 seeds)") == 2 * 3 * 3
    assert text.count("the slides' order") == 6
    fewer = slides.contrasts(arms["equal-steps"], frozenset({0}))
    assert {one.low for one in fewer.values()} == {None}  # two seeds have no interval


def test_there_is_no_look_before_every_run_has_a_row(slides: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"6 runs have no row yet, the first of them cifar10 shed seed 17 \(equal-steps\)"
    ):
        slides.families(plan(tmp_path, seeds=[0, 17]), BOARD / "results.csv")


def test_verdicts_are_corrected_within_the_family(slides: ModuleType) -> None:
    p = {"a": 0.004, "b": -0.003, "c": 0.03, "d": 0.9}  # the sign is that of the difference
    keys = {name: ("d", "linear", name, "x") for name in p}
    called = slides.verdicts(
        {keys[name]: Difference(1 if each > 0 else -1, -1, 1, abs(each)) for name, each in p.items()}
    )
    assert [called[keys[name]] for name in p] == ["holds", "reversed", "not shown", "not shown"]
