"""`scripts/slides.py`: the registered contrasts, on rows of the committed matrix, and their verdicts."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from script_module import script

from dabsmix.arguments import read_plan
from dabsmix.board.record import predictions_of
from dabsmix.board.row import COLUMNS, read, text
from dabsmix.errors import UserError
from dabsmix.scoring.intervals import Difference
from dabsmix.verbs.cells import cells
from dabsmix.verbs.chosen import ChosenSettings

BOARD = Path(__file__).parents[1] / "leaderboard"
PLAN: dict[str, Any] = {
    "encoder": "tiny",
    "batch_size": 64,
    "steps": 400,
    "rates": [3e-4, 1e-3, 3e-3],
    "seeds": [0, 1, 2],
    "algos": ["none", "shed", "emix", "dmix"],
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


def test_rows_of_other_settings_do_not_enter(slides: ModuleType, tmp_path: Path) -> None:
    rows = read(BOARD / "results.csv")
    like = {(row.domain, row.seed): row for row in rows if row.algorithm == "dmix" and row.protocol == "v2"}
    other = [  # scores of the random encoder, as if of dmix with another hyperparameter
        replace(row, algorithm="dmix", config_hash="f" * 16, steps=400, lr=like[row.domain, row.seed].lr)
        for row in rows
        if row.algorithm == "none" and row.domain in ("cifar10", "uci_har") and row.steps == 0 and row.protocol == "v2"
    ]
    assert other
    for name, of_rows in (("with", [*other, *rows]), ("only", [*other, *(r for r in rows if r.algorithm != "dmix")])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "runs").symlink_to(BOARD / "runs")
        (tmp_path / name / "results.csv").write_text(",".join(COLUMNS) + "\n" + text(of_rows))
    path = plan(tmp_path)
    arms = slides.families(path, tmp_path / "with" / "results.csv")
    assert slides.report(arms["equal-steps"]) == slides.report(
        slides.families(path, BOARD / "results.csv")["equal-steps"]
    )
    with pytest.raises(UserError, match=r"6 runs have no row yet, the first of them cifar10 dmix seed 0"):
        slides.families(path, tmp_path / "only" / "results.csv")


def test_an_arm_whose_runs_all_failed_shows_nothing(slides: ModuleType, tmp_path: Path) -> None:
    path = plan(tmp_path)
    chosen = ChosenSettings(path.with_suffix(".chosen.json"), keep=False)
    failed = {
        chosen.key(cell): {"reason": "it diverged"}
        for cell in cells(read_plan([str(path)])[0])
        if (cell.row, cell.pretraining.source.name) == ("shed", "cifar10")
    }
    board = tmp_path / "board"
    board.mkdir()
    (board / "runs").symlink_to(BOARD / "runs")
    rows = [row for row in read(BOARD / "results.csv") if row.config_hash not in failed]
    (board / "results.csv").write_text(",".join(COLUMNS) + "\n" + text(rows))
    with pytest.raises(UserError, match="3 runs have no row yet"):
        slides.families(path, board / "results.csv")
    (board / "failures.json").write_text(json.dumps(failed))
    told = slides.report(slides.families(path, board / "results.csv")["equal-steps"])
    assert sum(line.startswith("| cifar10 | shed |") and line.endswith("| – | – | – |") for line in told) == 1
    assert sum("emix − shed | – | 1.0000 | not shown | –, not shown |" in line for line in told) == 3


def test_mistakes_in_the_plan_are_one_line(slides: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nope\.yaml"):
        slides.families(tmp_path / "nope.yaml", BOARD / "results.csv")
    with pytest.raises(UserError, match="runs have no row yet"):  # seeds in its parts, and bf16
        slides.families(BOARD / "plans" / "slides.yaml", BOARD / "results.csv")


def test_verdicts_are_corrected_within_the_family(slides: ModuleType) -> None:
    p = {"a": 0.004, "b": -0.003, "c": 0.03, "d": 0.9}  # the sign is that of the difference
    keys = {name: ("d", "linear", name, "x") for name in p}
    called = slides.verdicts(
        {keys[name]: Difference(1 if each > 0 else -1, -1, 1, abs(each)) for name, each in p.items()}
    )
    assert [called[keys[name]] for name in p] == ["holds", "reversed", "not shown", "not shown"]
