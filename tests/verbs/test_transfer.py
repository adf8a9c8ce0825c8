"""Transfer: chosen on validation, test read once, the same on every machine; a mistake is one line."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transferring import QUICK, go, installed, pretrained, small

from dabsmix.cli import main
from dabsmix.config import TransferConfig
from dabsmix.data.domain import Data, Split
from dabsmix.errors import UserError
from dabsmix.files import sha256
from dabsmix.model.checkpoint import load_encoder, save_encoder
from dabsmix.model.encoder import make_encoder
from dabsmix.registry import domain as named
from dabsmix.scoring import frozen
from dabsmix.scoring.evaluate import choose
from dabsmix.scoring.features import features
from dabsmix.scoring.heads import Features
from dabsmix.scoring.metrics import metric
from dabsmix.training import accelerate
from dabsmix.verbs import transfer as module

OF_RESULT = {"probe", "label_fraction", "metric", "value", "low", "high", "n", "draws", "selected", "test_reads"}
OF_RECORD = {"task", "protocol", "metric", "value", "low", "high", "n", "probe", "selected", "test_reads", "results"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and short probes."""
    monkeypatch.setattr(module, "protocol", lambda name, batch_size, specs: replace(QUICK, name=name))


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Data], None]:
    """Makes some data a domain named ``small``."""
    return lambda data: installed(data, monkeypatch)


# --- what a transfer writes


def test_v2_on_digits_writes_its_record(tmp_path: Path) -> None:
    run = pretrained(tmp_path)
    record = go(run)
    path = run.path / "transfer" / "digits.json"
    stored = json.loads(path.read_text())
    assert stored == {key: value for key, value in record.items() if key != "said"}
    assert stored.keys() >= OF_RECORD
    assert all(result.keys() >= OF_RESULT for result in stored["results"])
    assert {(result["probe"], result["label_fraction"]) for result in stored["results"]} == {
        (probe, part) for probe in ("linear", "knn", "ridge") for part in ("1", "0.1", "0.01")
    }
    assert stored["asked"] == [f"{result['probe']}@{result['label_fraction']}" for result in stored["results"]]
    assert {result["draws"] for result in stored["results"] if result["label_fraction"] == "0.01"} == {20}
    assert (stored["test_reads"], stored["protocol"], stored["task"]) == (1, "v2", "digits")
    assert stored["value"] > 0.85 > stored["yardsticks"]["majority"][0]["value"] + 0.6
    assert stored["train_value"] >= stored["value"] - 0.02
    assert 0 < stored["frechet_distance"] < 1
    assert all(0 <= result["low"] <= result["value"] <= result["high"] <= 1 for result in stored["results"])
    raw = {result["label_fraction"]: result["value"] for result in stored["yardsticks"]["raw"]}
    assert raw.keys() == {"1", "0.1", "0.01"}
    assert raw["1"] > 0.9


def test_predictions_reproduce_the_value(tmp_path: Path, quick: None) -> None:
    run = pretrained(tmp_path)
    record = go(run, labels=("1", "2/class"))
    accuracy = metric(record["metric"])
    with np.load(run.path / "transfer" / "digits.predictions.npz") as arrays:
        label = arrays["label"]
        for result in record["results"]:
            drawn = arrays[f"{result['probe']}@{result['label_fraction'].replace('/', ' per ')}"]
            assert drawn.shape == (result["draws"], result["n"])
            values = [accuracy(np.eye(10)[predicted], label) for predicted in drawn]
            assert result["value"] == pytest.approx(np.mean(values))


def test_test_is_read_once_and_after_choosing(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    run = pretrained(tmp_path)
    data = named("digits").load(tmp_path, "v1")
    happened: list[str] = []
    parts = {len(split): name for name, split in data.require_labelled().splits.items()}

    def spy_features(encoder: Any, split: Split, *words: Any, **how: Any) -> Any:
        happened.append(parts[len(split.rows)])
        return features(encoder, split, *words, **how)

    def spy_choose(train: Features, validation: Features, *words: Any, **how: Any) -> Any:
        for part in (train, validation):
            assert len(part) != len(data.require_labelled().test)
        assert not any(isinstance(word, Features | Split | Data) for word in (*words, *how.values()))
        happened.append("choose")
        return choose(train, validation, *words, **how)

    monkeypatch.setattr(frozen, "features", spy_features)
    monkeypatch.setattr(frozen, "choose", spy_choose)
    assert go(run)["test_reads"] == 1
    assert happened == ["train", "validation", "choose", "test"]


def test_scores_are_reused_and_further_shares_added(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pretrained(tmp_path)
    first = go(run, labels=("1",))
    path = run.path / "transfer" / "digits.json"
    noted = json.loads(path.read_text()) | {"notes": [*first["notes"], "An earlier note."]}
    path.write_text(json.dumps(noted))
    content = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(frozen, "choose", lambda *_: pytest.fail("chosen again"))
        repeated = go(run, labels=("1.0",))
    assert repeated["said"][-1] == f"{path}: scored already"
    assert path.read_bytes() == content
    extended = go(run, labels=("1", "0.5", "3/class"))
    assert extended["results"][: len(first["results"])] == first["results"]
    assert [result["label_fraction"] for result in extended["results"] if result["probe"] == "linear"] == [
        "1",
        "0.5",
        "3/class",
    ]
    assert extended["test_reads"] == 2
    assert {result["label_fraction"]: result["test_reads"] for result in extended["results"]} == {
        "1": 1,
        "0.5": 2,
        "3/class": 2,
    }
    assert extended["train_value"] == first["train_value"]
    assert set(extended["notes"]) >= {*first["notes"], "An earlier note."}
    with np.load(path.with_suffix(".predictions.npz")) as arrays:
        assert {"linear@1", "linear@0.5", "linear@3 per class", "label"} <= set(arrays)


def test_a_damaged_record_beside_it_is_found_before_anything_is_computed(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pretrained(tmp_path)
    (run.path / "transfer").mkdir()
    (run.path / "transfer" / "other.json").write_text("{")
    monkeypatch.setattr(module, "yardsticks", lambda *_: pytest.fail("computed first"))
    with pytest.raises(UserError, match=r"cannot read .*other\.json"):
        go(run)


def test_other_data_are_scored_anew(tmp_path: Path, quick: None, install: Callable[[Data], None]) -> None:
    install(small())
    run = pretrained(tmp_path, domain="small", batch_size=8)
    assert go(run, labels=("1",))["test_reads"] == 1
    install(replace(small(lambda y: 1 - y), fingerprint="1" * 64))
    record = go(run, labels=("1",))
    assert (record["data_fingerprint"], record["test_reads"]) == ("1" * 64, 1)
    assert record["value"] > 0.8


def test_several_runs(tmp_path: Path, quick: None) -> None:
    runs = [pretrained(tmp_path, seed=seed) for seed in (0, 1)]
    config = TransferConfig(run=tuple(run.path for run in runs), labels=("1",))
    records = module.transfer(config, accelerator=accelerate())
    assert [record.run for record in records] == ["digits-none-s0", "digits-none-s1"]
    assert records[0].encoder_sha256 != records[1].encoder_sha256
    assert str(records[0]).startswith("digits-none-s0  digits  accuracy  protocol v2")
    assert f"{100 * records[1].headline.value:6.2f}" in str(records[1])


# --- refused


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The line of standard error with which a command is refused."""
    monkeypatch.setattr(sys, "argv", ["dabsmix", "transfer", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("run: ")]
    assert len(lines) == 1, lines
    return lines[0]


def test_mistakes_are_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pretrained(tmp_path)
    capsys.readouterr()

    def refused(*words: object) -> str:
        return call(monkeypatch, capsys, "--run", run.path, *words)

    assert "breast_cancer is tabular data" in refused("--task", "breast_cancer")
    assert "unknown domain 'digit' (did you mean 'digits'?)" in refused("--task", "digit")
    for label in ("0", "1.5", "nan", "x", "0/class", "-3/class", "1.5/class"):
        assert f"--labels {label}: give a fraction" in refused(f"--labels={label}")
    run.update(status="running")
    assert "is unfinished" in refused()
    assert "is not a run" in call(monkeypatch, capsys, "--run", tmp_path)
    assert "no finished run under" in call(monkeypatch, capsys, "--out", tmp_path / "nowhere")
    assert not (run.path / "transfer").exists()


def test_an_encoder_that_is_not_the_run_s_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    run = pretrained(tmp_path)
    capsys.readouterr()
    path = run.path / "encoder.safetensors"
    content = path.read_bytes()
    with safe_open(str(path), framework="pt") as file:
        header = file.metadata()
    state = load_file(str(path))
    state["another.weight"] = state.pop("blocks.0.attn.qkv.weight")
    save_file(state, str(path), header)
    ours = run.record.encoder_sha256
    run.update(encoder_sha256=sha256(path))
    line = call(monkeypatch, capsys, "--run", run.path)
    assert "missing ['blocks.0.attn.qkv.weight'], unexpected ['another.weight']" in line

    run.update(encoder_sha256=ours)
    torch.manual_seed(7)
    save_encoder(path, make_encoder("tiny", load_encoder_specs(content, tmp_path)), "tiny")
    assert sha256(path) != run.record.encoder_sha256
    assert "is not the encoder that this run ended with" in call(monkeypatch, capsys, "--run", run.path)


def load_encoder_specs(content: bytes, folder: Path) -> Any:
    (folder / "copy.safetensors").write_bytes(content)
    return load_encoder(folder / "copy.safetensors").specs


def test_without_labels_there_is_nothing_to_transfer_to(tmp_path: Path, install: Callable[[Data], None]) -> None:
    data = small()
    install(replace(data, labelled=None))
    run = pretrained(tmp_path, domain="small", batch_size=8)
    with pytest.raises(UserError, match="small has no labels to transfer to"):
        go(run)


# --- several seeds, from the command line


def test_seeds_are_trained_one_by_one_resumed_and_scored_together(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dabsmix(*words: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["dabsmix", *map(str, words)])
        main()
        return capsys.readouterr().out.splitlines()

    words = ["pretrain", "--domain=digits", "--algo=emix", "--encoder=tiny", "--steps=2", "--batch-size=8"]
    words += ["--out", str(tmp_path)]
    first = dabsmix(*words, "--seeds", 3, 4)
    assert first == [str(tmp_path / f"digits-emix-s{seed}") for seed in (3, 4)]
    single = dabsmix(*words, "--seed", 4)
    files = [Path(path) / "encoder.safetensors" for path in (first[1], *single)]
    assert files[0].read_bytes() == files[1].read_bytes()  # a seed gives the same run alone and among others
    assert dabsmix(*words, "--resume", "--seeds", 3, 5) == [first[0], str(tmp_path / "digits-emix-s5")]
    with pytest.raises(SystemExit):
        dabsmix(*words, "--seeds", 3, 3)
    assert "--seeds 3 3: each seed once" in capsys.readouterr().err
    shown = dabsmix("transfer", "--run", *first, "--labels", "1", "--json")
    assert [record["run"] for record in json.loads("\n".join(shown))] == ["digits-emix-s3", "digits-emix-s4"]
