"""The user's metric, and the table of predictions by example."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from transferring import QUICK

import dabsmix
from dabsmix.errors import UserError
from dabsmix.scoring import results
from dabsmix.verbs import transfer as module


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "protocol", lambda name, batch_size, specs: QUICK)


def table(share: float) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    sick = rng.random(240) < share
    return pd.DataFrame(
        {"x": rng.normal(size=240) + 1.5 * sick, "z": rng.normal(size=240), "y": np.where(sick, "b", "a")}
    )


def scored(path: Path, **how: Any) -> Any:
    data = dabsmix.load(data=path, modality="tabular", label="y", options=how.pop("options", None))
    run = dabsmix.pretrain(data, "none", encoder="tiny", out=path.parent / "runs")
    return run, dabsmix.transfer(run, labels=(1,), **how)


def test_the_default_metric_follows_the_training_labels_and_another_may_be_asked_for(tmp_path: Path) -> None:
    table(0.2).to_csv(tmp_path / "rare.csv", index=False)
    run, record = scored(tmp_path / "rare.csv")
    assert record.headline.metric == "balanced_accuracy"
    assert any("The metric is balanced accuracy" in note for note in record.notes)
    assert set(record.headline.others) == {"accuracy", "f1_macro", "matthews", "auroc_macro", "average_precision"}
    assert record.yardsticks["majority"][0].value == 0.5
    again = dabsmix.transfer(run, metric="auroc_macro", labels=(1,))
    assert (again.headline.metric, again.test_reads) == ("auroc_macro", 2)
    assert again.headline.value == pytest.approx(record.headline.others["auroc_macro"], abs=0.1)
    one_class = table(0.5).assign(who=np.repeat(range(12), 20), y=np.repeat(["a", "b"] * 6, 20))
    one_class.to_csv(tmp_path / "groups.csv", index=False)
    with pytest.raises(
        UserError, match="auroc_macro has no value on the validation labels: use more, or another metric"
    ):
        scored(tmp_path / "groups.csv", options={"metric": "auroc_macro", "group": "who"})
    with pytest.raises(UserError, match=r"metric 'acuracy' \(did you mean 'accuracy'\?\): for classes there are"):
        dabsmix.transfer(run, metric="acuracy")

    table(0.5).to_csv(tmp_path / "even.csv", index=False)
    assert scored(tmp_path / "even.csv")[1].headline.metric == "accuracy"
    _, chosen = scored(tmp_path / "even.csv", options={"metric": "f1_macro"})
    assert chosen.headline.metric == "f1_macro"
    assert re.search(r"The first of these by other metrics: accuracy \d+(\.\d+)? %, ", str(chosen))


def test_shares_without_a_label_of_each_class_are_left_out_of_the_default(tmp_path: Path) -> None:
    table(0.5).to_csv(tmp_path / "t.csv", index=False)  # 173 rows for training
    own = dabsmix.load(data=tmp_path / "t.csv", modality="tabular", label="y")
    assert module._default_shares((0.01, 0.1, 1.0), own) == ("1.0", "0.1")
    assert module._default_shares((0.01, 0.1, 1.0), dabsmix.load("digits")) == ("1.0", "0.1", "0.01")


def test_an_error_is_better_when_it_is_less(tmp_path: Path) -> None:
    rows = table(0.5)
    rows["y"] = (2 * rows["x"] + np.random.default_rng(1).normal(size=240)).round(4)
    rows.to_csv(tmp_path / "q.csv", index=False)
    run, record = scored(tmp_path / "q.csv", metric="mae")
    first = record.headline
    assert first.low is not None
    assert first.high is not None
    assert 0 < first.low < first.value < first.high
    assert first.value < record.yardsticks["majority"][0].value
    assert "majority" not in record.unbeaten
    explained = dabsmix.transfer(run, metric="r2", labels=(1,))
    low, high = explained.headline.low, explained.headline.high
    assert low is not None
    assert high is not None
    assert low < explained.headline.value < high < 1
    assert explained.headline.others.keys() == {"spearman", "mae"}
    predictions = pd.read_parquet(run.path / "transfer" / "q.predictions.parquet")
    assert np.abs(predictions["truth"] - predictions["prediction"]).mean() == pytest.approx(
        explained.headline.others["mae"], rel=1e-4
    )


def test_predictions_by_row_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "EXAMPLES", 7)  # several row groups
    lines = table(0.5).to_csv(index=False).splitlines()
    lines.insert(3, "1,2")  # row 4 of the file is bad
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    data = dabsmix.load(data=tmp_path / "t.csv", modality="tabular", label="y", on_bad="skip")
    run = dabsmix.pretrain(data, "none", encoder="tiny", out=tmp_path / "runs")
    record = dabsmix.transfer(run, labels=(1,))
    predictions = pd.read_parquet(run.path / "transfer" / "t.predictions.parquet")
    assert list(predictions.columns) == ["key", "truth", "prediction", "p_a", "p_b"]
    assert len(predictions) == record.headline.n
    assert (predictions["truth"] == predictions["prediction"]).mean() == pytest.approx(record.headline.value)
    np.testing.assert_allclose(predictions["p_a"] + predictions["p_b"], 1, atol=1e-6)
    for key, truth in zip(predictions["key"], predictions["truth"], strict=True):
        name, _, row = key.partition(":")
        assert name == "t.csv"
        assert lines[int(row) - 1].endswith(f",{truth}")


def test_predictions_by_name_of_the_picture(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(40):
        kind = "dark" if number % 2 else "light"
        (tmp_path / "p" / kind).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (3 * number + 100 * (kind == "light"), 0, 0)).save(
            tmp_path / "p" / kind / f"{number}.png"
        )
    data = dabsmix.load(data=tmp_path / "p", modality="image", label="folder", options={"size": 16, "patch": 8})
    run = dabsmix.pretrain(data, "none", encoder="tiny", out=tmp_path / "runs")
    dabsmix.transfer(run, labels=(1,))
    predictions = pd.read_parquet(run.path / "transfer" / "p.predictions.parquet")
    assert all(key.split("/")[0] == truth for key, truth in zip(predictions["key"], predictions["truth"], strict=True))
    assert json.loads((run.path / "transfer" / "p.json").read_text())["n"] == len(predictions)
