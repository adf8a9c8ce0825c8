"""The page of a run is self-contained: pictures, mistakes and the commands to repeat it."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from transferring import QUICK

import dabsmix
from dabsmix.cli import main
from dabsmix.errors import UserError
from dabsmix.verbs import transfer as module
from dabsmix.verbs.report import report

pytestmark = pytest.mark.answered


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "protocol", lambda name, batch_size, specs: QUICK)


def test_a_run_with_classes_and_with_a_quantity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    sick = rng.integers(2, size=200)
    table = pd.DataFrame({"x": rng.normal(size=200) + sick, "z": rng.normal(size=200)})
    table.assign(y=np.where(sick, "<b>ill</b>", "well")).to_csv(tmp_path / "t.csv", index=False)
    table.assign(days=(table["x"] + rng.normal(size=200)).round(3)).to_csv(tmp_path / "more.csv", index=False)
    data = dabsmix.load(data=tmp_path / "t.csv", modality="tabular", label="y")
    run = dabsmix.pretrain(data, "dmix", encoder="tiny", steps=40, batch_size=32, out=tmp_path / "runs")
    dabsmix.transfer(run, labels=(1, 0.5))
    dabsmix.transfer(run, data=tmp_path / "more.csv", label="days", labels=(1,))
    main_args = ["report", "--run", str(run.path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["dabsmix", *main_args])
        main()
    page = Path(capsys.readouterr().out.strip()).read_text(encoding="utf-8")
    assert (run.path / "report.png").read_bytes().startswith(b"\x89PNG")
    # curves, scores, few labels, confusion, calibration; scores, scatter
    assert page.count("<svg") == 4 + 4 + 2
    assert "Did pretraining help?" in page
    assert "linear probe with all labels" in page
    assert not re.search(r'(src|href)="(?!#|data:image)', page)  # nothing is fetched
    assert "@media (prefers-color-scheme: dark)" in page
    assert "#010203" not in page
    assert "&lt;b&gt;ill&lt;/b&gt;" in page
    assert "<b>ill" not in page
    assert f"dabsmix pretrain --config {run.path / 'config.yaml'}" in page
    assert re.search(r"dabsmix transfer --run \S+ --data \S+more\.csv --label days --metric spearman --labels 1", page)
    assert re.search(r"dabsmix transfer --run \S+ --task t --metric accuracy --labels 1 0.5\b", page)
    assert "t.csv:" in page  # the most confident mistakes
    assert "The most confident mistakes on test" in page

    (predictions,) = run.path.glob("transfer/t.predictions.parquet")
    predictions.unlink()
    predictions.mkdir()
    with pytest.raises(UserError, match=r"t\.predictions\.parquet is damaged"):
        report(run)


def test_an_unscored_run_has_a_report_and_an_unfinished_run_has_none(tmp_path: Path) -> None:
    data = dabsmix.load("digits")
    run = dabsmix.pretrain(data, "none", encoder="tiny", out=tmp_path)
    assert "To repeat it" in report(run).read_text(encoding="utf-8")
    run.update(status="interrupted")
    with pytest.raises(UserError, match="is unfinished"):
        report(run)
