"""`dabsmix runs`, and the record of a run that is running, was killed, or failed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from recorded import run_record

from dabsmix.cli import main
from dabsmix.config import PretrainConfig, RunsConfig, config_hash
from dabsmix.errors import UserError
from dabsmix.run import LOCK, Run
from dabsmix.source import Source
from dabsmix.training import accelerate
from dabsmix.verbs.pretrain import pretrain
from dabsmix.verbs.runs import runs

TINY = dict(algo="emix", encoder="tiny", steps=20, batch_size=8)


def go(out: Path, **changes: object) -> Run:
    config = PretrainConfig(Source("digits"), out=out, **(TINY | changes))  # type: ignore[arg-type]
    return pretrain(config, accelerator=accelerate(device=config.device))


def test_every_state_is_listed(tmp_path: Path) -> None:
    finished = go(tmp_path, name="first")
    (finished.path / "transfer").mkdir()
    result = dict(probe="linear", label_fraction="1", metric="accuracy", value=0.5, low=None, high=None, n=2)
    scored = dict(run="first", task="digits", protocol="v2", results=[result])
    (finished.path / "transfer" / "digits.json").write_text(json.dumps(scored))
    with pytest.raises(UserError, match="diverged"):
        go(tmp_path, name="second", lr=1e12)
    killed = Run.create(tmp_path, "third", {}, run_record(created="3000-01-01"))
    killed.log({"step": 2, "loss": 1.25})
    working = Run.create(tmp_path, "fourth", {}, run_record(created="3000-01-02"))
    with FileLock(working.path / LOCK):
        listed = runs(tmp_path)
    assert [(listed_run.name, listed_run.status, listed_run.step, listed_run.steps) for listed_run in listed] == [
        ("first", "finished", 20, 20),
        ("second", "failed", 0, 20),
        ("third", "interrupted", 2, 3),
        ("fourth", "running", 0, 3),
    ]
    assert listed[0].scores == {"digits": 0.5}
    assert "lower --lr" in listed[1].failure
    with pytest.raises(UserError, match=r"second has failed \(training diverged: .* lower --lr .*\): start again"):
        Run(tmp_path / "second").require_finished()
    assert listed[2].loss == 1.25


def test_an_interrupted_run_is_listed_with_the_steps_of_its_checkpoint(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "stopped", {}, run_record(steps=500))
    run.log({"step": 20, "loss": 1.5})
    run.save_checkpoint(10, {"step": 10})
    assert runs(tmp_path)[0].step == 20
    run.save_checkpoint(26, {"step": 26})  # a signal comes between two lines of metrics
    assert (runs(tmp_path)[0].step, runs(tmp_path)[0].loss) == (26, 1.5)


@pytest.mark.parametrize("algo", ["dmix", "mae"])
def test_a_rate_that_is_far_too_high_ends_with_one_line(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--steps", "40", "--batch-size", "8", "--encoder", "tiny", "--out", str(tmp_path)]
    command = ["dabsmix", "pretrain", "--domain", "digits", "--algo", algo, "--lr", "1e9", *flags]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(r"dabsmix: training diverged: the loss is .* start again with a lower --lr \(now 1e\+09\)", last)
    assert not list(tmp_path.rglob("encoder.safetensors"))


def test_a_missing_folder_of_runs_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        runs(RunsConfig(tmp_path / "nowhere").out)


def test_name_device_and_tracker_are_neither_hashed_nor_stored(tmp_path: Path) -> None:
    plain = PretrainConfig(Source("digits"), **TINY)  # type: ignore[arg-type]
    run = go(tmp_path, name="named", device="cpu", track="tensorboard")
    text = (run.path / "config.yaml").read_text()
    assert not {"name:", "device:", "track:"} & set(text.split())
    assert run.record.config_hash == go(tmp_path).record.config_hash != config_hash(plain)  # open fields are filled in


def test_tensorboard_holds_the_lines_of_metrics(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = go(tmp_path, track="tensorboard")
    events_file = events.EventAccumulator(str(run.path / "tensorboard"))
    events_file.Reload()
    losses = {event.step: event.value for event in events_file.Scalars("loss")}
    assert losses == pytest.approx({line["step"]: line["loss"] for line in run.metrics()})


@pytest.mark.slow
def test_mlflow_holds_the_lines_of_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow: Any = pytest.importorskip("mlflow", reason="needs pip install 'dabsmix[track]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    run = go(tmp_path, track="mlflow")
    client = mlflow.MlflowClient()
    (tracked,) = client.search_runs([client.get_experiment_by_name("dabsmix").experiment_id])
    assert tracked.info.run_name == run.path.name
    losses = {point.step: point.value for point in client.get_metric_history(tracked.info.run_id, "loss")}
    assert losses == pytest.approx({line["step"]: line["loss"] for line in run.metrics()})


@pytest.mark.slow
def test_wandb_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs pip install 'dabsmix[track]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run = go(tmp_path, track="wandb")
    (written,) = (tmp_path / "wandb").rglob("*.wandb")
    content = written.read_bytes()
    assert run.path.name.encode() in content
    assert b"online_validation" in content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(name="a/b"), "--name a/b"),
        (dict(device="cuda:77"), "--device cuda:77: not available"),
        (dict(device="tpu"), "--device tpu: not known"),
        (dict(track="mlflow"), "dabsmix\\[track\\]"),
    ],
)
def test_mistakes_leave_no_folder(
    changes: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dabsmix.tracking.find_spec", lambda _: None)
    with pytest.raises(UserError, match=message):
        go(tmp_path / "runs", **changes)
    assert not (tmp_path / "runs").exists()
