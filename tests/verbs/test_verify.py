"""A spot check of the leaderboard detects a score that its encoder does not give."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import transferring

from dabsmix.board.submit import read, submit
from dabsmix.cli import main
from dabsmix.config import PretrainConfig, TransferConfig
from dabsmix.run import Run
from dabsmix.scoring.finetune import FINETUNE
from dabsmix.source import Source
from dabsmix.training import accelerate
from dabsmix.verbs.pretrain import pretrain
from dabsmix.verbs.transfer import transfer
from dabsmix.verbs.verify import rows_of, verify


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Path]:
    """A run of three steps, its scores on a leaderboard."""
    monkeypatch.setattr("dabsmix.verbs.transfer.protocol", lambda *_: transferring.QUICK)
    config = PretrainConfig(Source("digits"), algo="emix", encoder="tiny", steps=3, batch_size=16, out=tmp_path)
    run = pretrain(config, accelerator=accelerate())
    transfer(TransferConfig(run=(run.path,), protocol="v1", labels=("1",)), accelerator=accelerate())
    submit(run.path, "Ada", tmp_path / "board" / "results.csv")
    return run, tmp_path / "board" / "results.csv"


def test_recomputed_scores_are_equal_or_reported_as_outside(
    submitted: tuple[Run, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, csv = submitted
    verified = verify(rows_of(run, csv), run, accelerator=accelerate())
    assert {verification.verdict for verification in verified} == {"equal"}
    assert len(verified) == len(read(csv)) == 4
    assert [row.probe for row in read(csv)] == ["linear", "knn", "ridge", "online"]

    row = read(csv)[0]
    assert row.low is not None
    first, *others = csv.read_text().splitlines()[1:]
    text = csv.read_text().replace(first, first.replace(f",{row.value:g},{row.low:g},", ",0.999,0.998,", 1))
    csv.write_text(text.replace(f",{row.high:g},", ",0.9995,", 1))
    words = ["dabsmix", "leaderboard", "verify", "--csv", str(csv), "--run", str(row.record), "--retrain"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as status:
        main()
    assert status.value.code == 2
    out = capsys.readouterr()
    assert "the submitted one, bit for bit" in out.err
    assert "1 of 4 scores" in out.err
    assert f"outside  digits v1 linear 1 accuracy: 0.999 on the leaderboard, {row.value:.6g} now" in out.out
    assert len(others) == 3
    assert "equal    digits v1 online 1 accuracy" in out.out

    monkeypatch.setattr(sys, "argv", [*words[:-2], str(run.path)])
    with pytest.raises(SystemExit):
        main()
    out = capsys.readouterr()
    assert "it takes --retrain" in out.err
    assert "online" not in out.out


def test_mixed_scores_and_those_by_another_metric_are_recomputed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dabsmix.verbs.transfer.protocol", lambda *_: transferring.QUICK)
    short = replace(FINETUNE, rates=(1e-2,), epochs=1, steps=(20, 20))
    monkeypatch.setattr("dabsmix.verbs.transfer.LINEAR", short)
    x, y = transferring.clusters(200, 0)
    table = pd.DataFrame(x, columns=[f"x{j}" for j in range(6)]).assign(y=np.where(y, "a", "b"))
    table.to_csv(tmp_path / "t.csv", index=False)
    source = Source(data=tmp_path / "t.csv", modality="tabular", label="y")
    config = PretrainConfig(source, algo="none", encoder="tiny", batch_size=16, out=tmp_path)
    run = pretrain(config, accelerator=accelerate())
    plain = TransferConfig(run=(run.path,), protocol="v1", labels=("1",), metric="f1_macro")
    mixed = replace(plain, head_mix="mixup", mix_alpha=0.5, mix_schedule="easy-hard-easy", mix_epochs=9)
    for scored in (plain, mixed):
        transfer(scored, accelerator=accelerate(), answer=False)
    csv = tmp_path / "board" / "results.csv"
    probes = [row.probe for row in submit(run.path, "Ada", csv)]
    assert probes == ["linear", "knn", "ridge", "linear+mixup-alpha0.5-easy-hard-easy-until9"]
    verified = verify(rows_of(run, csv), run, accelerator=accelerate())
    assert [(v.row.probe, v.verdict) for v in verified] == [(probe, "equal") for probe in probes]


def test_scores_on_further_files_are_told_and_the_others_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dabsmix.verbs.transfer.protocol", lambda *_: transferring.QUICK)
    for seed, name in enumerate(("own", "further")):
        x, y = transferring.clusters(200, seed)
        table = pd.DataFrame(x, columns=[f"x{j}" for j in range(6)]).assign(y=np.where(y, "a", "b"))
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    source = Source(data=tmp_path / "own.csv", modality="tabular", label="y")
    config = PretrainConfig(source, algo="none", encoder="tiny", batch_size=16, out=tmp_path)
    run = pretrain(config, accelerator=accelerate())
    itself = TransferConfig(run=(run.path,), protocol="v1", labels=("1",))
    for scored in (itself, replace(itself, data=(tmp_path / "further.csv",), label=("y",))):
        transfer(scored, accelerator=accelerate(), answer=False)
    csv = tmp_path / "board" / "results.csv"
    assert {row.task for row in submit(run.path, "Ada", csv)} == {"own", "further-y"}
    monkeypatch.setattr(sys, "argv", ["dabsmix", "leaderboard", "verify", "--csv", str(csv), "--run", str(run.path)])
    main()
    out = capsys.readouterr()
    assert out.err.count("the scores on further-y are not checked: ") == 1
    assert [line.split()[:4] for line in out.out.splitlines()] == [
        ["equal", "own", "v1", probe] for probe in ("linear", "knn", "ridge")
    ]


def test_a_changed_encoder_is_refused(
    submitted: tuple[Run, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, csv = submitted
    with (run.path / "encoder.safetensors").open("ab") as file:
        file.write(b"x")
    monkeypatch.setattr(sys, "argv", ["dabsmix", "leaderboard", "verify", "--csv", str(csv), "--run", str(run.path)])
    with pytest.raises(SystemExit):
        main()
    assert "is not the encoder that this run ended with" in capsys.readouterr().err


def test_rows_of_another_encoder_of_the_same_configuration_are_ignored() -> None:
    board = Path(__file__).parents[2] / "leaderboard"
    for name in ("uci_har-dmix-s0-0f291784", "uci_har-dmix-s0-1edb4e56"):  # on two processors
        rows = rows_of(Run(board / "runs" / name), board / "results.csv")
        assert {row.run for row in rows} == {name}
