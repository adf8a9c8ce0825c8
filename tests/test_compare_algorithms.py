"""The comparison of algorithms: its rows, its differences, and that nothing is done twice."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from recorded import run_record

from dabsmix.errors import UserError
from dabsmix.run import Run
from dabsmix.scoring.results import TransferRecord

SCRIPT = Path(__file__).parent.parent / "scripts" / "compare_algorithms.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_algorithms", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "value"),
    [("rate=1", 1.0), ("normalize=true", True), ("score=masked", "masked"), ("temperature=1e-1", 0.1)],
)
def test_a_row_sets_hyperparameters_of_their_type(script: ModuleType, text: str, value: Any) -> None:
    key, found = script.setting("contpred", text)
    assert key == text.partition("=")[0]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alpha=1", "no hyperparameter 'alpha'; there are: rate"),
        ("score=some", "one of all, masked"),
        ("rate=x", "float"),
    ],
)
def test_a_row_with_a_mistake_is_refused(script: ModuleType, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        script.setting("contpred", text)


def test_difference_is_the_mean_over_seeds_and_draws(script: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(3, size=40)

    def scored(name: str, right: float) -> Any:
        wrong = rng.random((2, 40)) > right  # two draws of few labels
        run = Run.create(tmp_path, name, {}, run_record())
        (run.path / "transfer").mkdir()
        predicted = np.where(wrong, (label + 1) % 3, label)
        np.savez(run.path / "transfer" / "t.predictions.npz", **{"label": label, "linear@5 per class": predicted})  # type: ignore[arg-type]  # its stub takes any keyword for a flag
        return script.Scored(run, TransferRecord("t", "v1", (), classes=("a", "b", "c"))), float(1 - wrong.mean())

    (one, one_mean), (two, two_mean) = scored("one", 0.9), scored("two", 0.8)
    (three, three_mean), (four, four_mean) = scored("three", 0.5), scored("four", 0.6)
    found = script.comparison([one, two], [three, four], "5/class")
    assert found.difference == pytest.approx((one_mean - three_mean + two_mean - four_mean) / 2)
    assert (found.seeds, found.units) == (2, 40)


def test_picture_without_the_baseline_is_refused(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no domain has a finished cell of the baseline none"):
        script.draw({}, script.Config(), tmp_path / "a.png")


def cells_of(rows: list[str], name: str) -> list[str]:
    (row,) = (row for row in rows if row.startswith(f"| {name} |"))
    return row.split("|")


def test_picture_without_matplotlib_says_what_to_install(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        script.draw({}, script.Config(), tmp_path / "a.png")


@pytest.mark.slow
def test_matrix_is_trained_once_and_shown(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "x --domains digits --algos none emix:alpha=2 --seeds 0 --steps 2 --batch-size 8 --labels 1 1/class --out"
    picture = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", [*line.split(), str(tmp_path), "--plot", str(picture)])
    script.main()
    table = capsys.readouterr().out
    with Image.open(picture) as drawn:
        assert len({pixel for _, pixel in drawn.convert("RGB").getcolors(1 << 20) or []}) > 3
    rows = [
        row for row in table.splitlines() if row.startswith(("| none | 1 |", "| emix:alpha=2 | 1 |", "| *raw input*"))
    ]
    assert len(rows) == 3
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("digits-none-s0/transfer/digits.json"))
    validation = [r["selected"]["validation"] for r in record["results"] if r["probe"] == "linear"]
    assert [cell.strip() for cell in cells_of(rows, "none")[-3:-1]] == [f"{100 * value:.1f}" for value in validation]
    assert "1,079 pretrain" in table

    def again(*_: object, **__: object) -> None:
        raise AssertionError("trained twice")

    monkeypatch.setattr(script, "pretrain", again)
    script.main()
    assert capsys.readouterr().out == table
