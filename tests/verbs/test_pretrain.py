"""The loop gives the same numbers interrupted or not, on one process or two."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from dabsmix.config import PretrainConfig
from dabsmix.data.batches import make_views
from dabsmix.data.domain import Data, Labelled, Split, Task
from dabsmix.errors import UserError
from dabsmix.model.checkpoint import load_encoder
from dabsmix.model.encoder import make_encoder
from dabsmix.pretext.algorithm import Algorithm
from dabsmix.registry import algorithms
from dabsmix.run import Run
from dabsmix.source import Source
from dabsmix.spec import Grid, Table
from dabsmix.training import accelerate, learning_rate
from dabsmix.verbs.pretrain import _faster_flags, pretrain

CONFIG = PretrainConfig(
    Source("digits"), algo="emix", encoder="tiny", steps=30, batch_size=16, evaluate_every=9, checkpoint_every=7
)


def go(out: Path, domain: str = "digits", **changes: Any) -> Run:
    config = replace(CONFIG, source=Source(domain), out=out, **changes)
    return pretrain(config, accelerator=accelerate(config.precision))


def lines(run: Run) -> list[dict[str, Any]]:
    """Metrics without times."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "examples_per_s")} for line in run.metrics()]


def weights(run: Run) -> bytes:
    return (run.path / "encoder.safetensors").read_bytes()


def tabular(label: Any = None, task: Task | None = None) -> Data:
    store = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    split = Split((store,), np.arange(64), label)
    labelled = None if task is None else Labelled(task, split, split, split)
    return Data((Table(4),), split, labelled, "0" * 64)


def with_data(monkeypatch: pytest.MonkeyPatch, data: Data, other: Data | None = None) -> None:
    """``data`` for every source but that named "other"."""
    monkeypatch.setattr("dabsmix.verbs.pretrain.load", lambda source: other if source.domain == "other" else data)


@pytest.fixture
def classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes of short rows, the cheapest data."""
    with_data(monkeypatch, tabular(np.arange(64) % 2, Task("classes", "accuracy", ("a", "b"))))


# --- what a run holds


def test_a_run_holds_its_files(tmp_path: Path) -> None:
    run = go(tmp_path)
    names = {p.name for p in run.path.iterdir()}
    complete = {"config.yaml", "run.json", "metrics.jsonl", "encoder.safetensors", "checkpoints", ".lock"}
    assert names == complete | {"online.json", "online.predictions.npz"}
    assert run.finished
    logged = run.metrics()
    # every 20 steps, at scores (9), before checkpoints (7), and at the end
    assert [line["step"] for line in logged] == [7, 9, 14, 18, 20, 21, 27, 28, 30]
    assert ["online_validation" in line for line in logged] == [
        step in (9, 18, 27, 30) for step in (7, 9, 14, 18, 20, 21, 27, 28, 30)
    ]
    assert all(math.isfinite(value) for line in logged for value in line.values())
    assert run.record.metrics["step"] == 30
    assert 0 <= run.record.metrics["online_test"] <= 1
    encoder = load_encoder(run.path / "encoder.safetensors")
    assert run.record.parameters == sum(p.numel() for p in encoder.parameters())


def test_none_is_written_at_step_0_with_the_initial_weights(tmp_path: Path) -> None:
    none = go(tmp_path, algo="none")
    assert none.finished
    assert none.record.steps == 0
    assert not (none.path / "metrics.jsonl").exists()
    still = go(tmp_path, steps=1, lr=0.0, weight_decay=0.0)
    assert weights(still) == weights(none)
    assert weights(go(tmp_path, algo="none", seed=1)) != weights(none)


def test_learning_lowers_the_loss_and_the_online_loss(tmp_path: Path) -> None:
    logged = go(tmp_path, steps=60, batch_size=32, lr=1e-3, evaluate_every=1000, checkpoint_every=1000).metrics()
    assert logged[-1]["loss"] < logged[0]["loss"] - 0.2
    assert logged[-1]["online_loss"] < logged[0]["online_loss"] - 0.1


@pytest.mark.usefixtures("classes")
def test_logged_loss_is_the_mean_over_its_steps(tmp_path: Path) -> None:
    logged = lines(go(tmp_path, steps=20, evaluate_every=1, checkpoint_every=100))
    together = lines(go(tmp_path, steps=20, evaluate_every=20, checkpoint_every=100))
    assert len(logged) == 20
    assert len(together) == 1
    assert together[0]["loss"] == pytest.approx(np.mean([line["loss"] for line in logged]), rel=1e-6)
    assert together[0]["online_validation"] == logged[-1]["online_validation"]


@pytest.mark.usefixtures("classes")
def test_equal_seeds_give_equal_runs_and_other_seeds_others(tmp_path: Path) -> None:
    first, second, other = go(tmp_path), go(tmp_path), go(tmp_path, seed=1)
    assert lines(first) == lines(second)
    assert weights(first) == weights(second)
    assert weights(first) != weights(other)


@pytest.mark.usefixtures("classes")
def test_bf16(tmp_path: Path) -> None:
    fp32 = lines(go(tmp_path, steps=5))[-1]
    AcceleratorState._reset_state()
    run = go(tmp_path, steps=5, precision="bf16")
    bf16 = lines(run)[-1]
    assert bf16["loss"] != fp32["loss"]
    assert bf16["loss"] == pytest.approx(fp32["loss"], rel=0.05)
    state = load_encoder(run.path / "encoder.safetensors").state_dict()
    assert {value.dtype for value in state.values()} == {torch.float32}


# --- interrupted


class Killed(BaseException):
    """Stops training as abruptly as is possible within one process."""


def interrupt(out: Path, monkeypatch: pytest.MonkeyPatch, after: int, **changes: Any) -> None:
    """Train until the first line that is logged after this step, then stop in the middle of the next one."""
    log = Run.log

    def fatal(run: Run, line: Mapping[str, Any]) -> None:
        log(run, line)
        if line["step"] > after:
            with (run.path / "metrics.jsonl").open("a") as file:
                file.write('{"step": 99, "lo')
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", fatal)
        with pytest.raises(Killed):
            go(out, **changes)


@pytest.mark.usefixtures("classes")
@pytest.mark.parametrize("algo", ["emix", "imix_moco", "imix_byol", "shed"])
def test_interrupted_and_resumed_equals_uninterrupted(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if algo not in algorithms():
        pytest.skip(f"no algorithm {algo} here")
    uninterrupted = go(tmp_path / "whole", algo=algo)
    interrupt(tmp_path / "cut", monkeypatch, after=5, algo=algo)  # before the first checkpoint: training starts again
    interrupt(tmp_path / "cut", monkeypatch, after=17, algo=algo, resume=True)
    run = go(tmp_path / "cut", algo=algo, resume=True)
    assert [p.name for p in (tmp_path / "cut").iterdir()] == [run.path.name]
    assert lines(run) == lines(uninterrupted)
    assert weights(run) == weights(uninterrupted)
    for key in ("loss", "online_test"):
        assert run.record.metrics[key] == uninterrupted.record.metrics[key]


@pytest.mark.usefixtures("classes")
def test_fast_paths_give_other_numbers_and_resume_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast: dict[str, Any] = dict(precision="bf16", attention="fastest", dropout_masks="fast")
    uninterrupted = go(tmp_path / "whole", **fast)
    interrupt(tmp_path / "cut", monkeypatch, after=17, **fast)
    run = go(tmp_path / "cut", resume=True, **fast)
    assert lines(run) == lines(uninterrupted)
    assert weights(run) == weights(uninterrupted)
    plain = go(tmp_path / "plain", precision="bf16")
    runs = [go(tmp_path / name, precision="bf16", **{name: fast[name]}) for name in ("attention", "dropout_masks")]
    assert len({weights(other) for other in (uninterrupted, plain, *runs)}) == 4
    assert len({other.record.config_hash for other in (uninterrupted, plain, *runs)}) == 4
    assert run.metrics()[-1]["loss"] == pytest.approx(plain.metrics()[-1]["loss"], rel=0.1)


@pytest.mark.usefixtures("classes")
@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        (dict(), "--attention fastest --dropout-masks fast"),
        (dict(attention="fastest"), "--dropout-masks fast"),
        (dict(dropout_masks="fast"), "--attention fastest"),
        (dict(encoder="vit_small"), "--attention fastest"),  # it has no dropout
        (dict(attention="fastest", dropout_masks="fast"), None),
        (dict(precision="fp32"), None),
        (dict(algo="none"), None),
    ],
)
def test_what_would_make_bf16_faster_is_said_at_the_start(
    tmp_path: Path, changes: dict[str, Any], flags: str | None
) -> None:
    config = replace(CONFIG, out=tmp_path, **{"precision": "bf16", "steps": 1, **changes})
    said: list[str] = []
    pretrain(config, accelerator=accelerate(config.precision), say=said.append)
    line = f"bf16 on a CPU is faster with {flags} (both: 1.7 to 2.3 times as fast); it gives other numbers"
    assert [text for text in said if text.startswith("bf16")] == ([] if flags is None else [line])


def test_no_flag_is_named_that_would_change_nothing_or_be_refused() -> None:
    config = replace(CONFIG, precision="bf16")
    image = Grid(3, (64, 64), (1, 1))  # more tokens than explicit attention is used for
    assert _faster_flags(config, make_encoder("tiny", (image,))) == "--dropout-masks fast"
    assert _faster_flags(config, make_encoder("resnet18", (image,))) == ""


@pytest.mark.usefixtures("classes")
def test_fields_that_change_no_number_change_no_hash(tmp_path: Path) -> None:
    plain = go(tmp_path, steps=8)
    for same in (dict(attention="fastest"), dict(checkpoint_activations=True)):  # in fp32 the fused path is the fastest
        run = go(tmp_path, steps=8, **same)
        assert weights(run) == weights(plain)
        assert run.record.config_hash == plain.record.config_hash


def scaled() -> Accelerator:
    """An accelerator of fp16 on the CPU, where Accelerate makes no scaler; the scale is too large at first."""
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision="fp16")
    accelerator.native_amp, accelerator.scaler = True, torch.amp.grad_scaler.GradScaler("cpu", init_scale=2.0**22)
    return accelerator


@pytest.mark.usefixtures("classes")
def test_fp16_scales_skips_what_overflows_and_keeps_its_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, precision="fp16")
    fp32 = lines(go(tmp_path / "fp32"))
    uninterrupted = pretrain(replace(config, out=tmp_path / "whole"), accelerator=scaled())
    assert uninterrupted.metrics()[0]["skipped"] > 0
    assert uninterrupted.metrics()[-1]["skipped"] == 0
    assert uninterrupted.metrics()[-1]["loss"] == pytest.approx(fp32[-1]["loss"], rel=0.15)

    log = Run.log

    def fatal(run: Run, line: Mapping[str, Any]) -> None:
        log(run, line)
        if line["step"] > 21:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", fatal)
        with pytest.raises(Killed):
            pretrain(replace(config, out=tmp_path / "cut"), accelerator=scaled())
    run = pretrain(replace(config, out=tmp_path / "cut", resume=True), accelerator=scaled())
    assert lines(run) == lines(uninterrupted)
    assert weights(run) == weights(uninterrupted)


def test_fp16_is_refused_on_a_cpu() -> None:
    with pytest.raises(UserError, match="--precision fp16 is for CUDA GPUs without bf16, and this is a cpu: use bf16"):
        accelerate("fp16")


@pytest.mark.slow
def test_killed_at_a_random_step_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    config: dict[str, Any] = dict(
        domain="digits", algo="emix", encoder="tiny", steps=60, batch_size=8, evaluate_every=25
    )
    words = [f"--{name.replace('_', '-')}={value}" for name, value in config.items()] + ["--checkpoint-every=7"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dabsmix", "pretrain", "--domain=digits", *words, "--out", str(tmp_path / "cut")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    pause = random.uniform(0, 0.2)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("cut/*/checkpoints/0*.pt")):
        assert process.poll() is None, "it ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was finished already"
    uninterrupted = go(tmp_path / "whole", **config)
    run = go(tmp_path / "cut", resume=True, **config)
    assert lines(run) == lines(uninterrupted), pause
    assert weights(run) == weights(uninterrupted), pause


@pytest.mark.usefixtures("classes")
def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    run = go(tmp_path, steps=3)
    before = weights(run), (run.path / "run.json").read_text()
    messages: list[str] = []
    config = replace(CONFIG, steps=3, out=tmp_path, resume=True)
    finished = pretrain(config, accelerator=accelerate(), say=messages.append)
    assert finished.path == run.path
    assert messages == [f"{run.path} is finished already: nothing to resume"]
    assert (weights(run), (run.path / "run.json").read_text()) == before


@pytest.mark.usefixtures("classes")
def test_only_the_same_configuration_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no run of this configuration to resume"):
        go(tmp_path, resume=True)
    interrupt(tmp_path, monkeypatch, after=8)
    for change in (dict(seed=1), dict(lr=1e-3), dict(hyper={"alpha": 0.5})):
        with pytest.raises(UserError, match="no run of this configuration to resume"):
            go(tmp_path, resume=True, **change)
    (run,) = [Run(path) for path in tmp_path.iterdir()]
    run.update(data_fingerprint="other")
    with pytest.raises(UserError, match="the data have changed"):
        go(tmp_path, resume=True)


@pytest.mark.usefixtures("classes")
def test_a_run_of_other_data_is_neither_continued_nor_taken_for_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = go(tmp_path, steps=3)
    config = replace(CONFIG, steps=3, out=tmp_path, resume=True)
    first.update(data_fingerprint="other")
    assert pretrain(config, accelerator=accelerate()).path == first.path  # without `begin`, as it always was
    second = pretrain(config, accelerator=accelerate(), begin=True)
    assert second.path != first.path
    assert pretrain(config, accelerator=accelerate(), begin=True).path == second.path
    for run in (second, first):  # the newest is of other data; the one before it is not
        run.update(status="interrupted", data_fingerprint=second.record.data_fingerprint)
    second.update(data_fingerprint="other")
    assert go(tmp_path, steps=3, resume=True).path == first.path


# --- refused


@pytest.mark.usefixtures("classes")
def test_a_loss_that_is_not_finite_is_one_line_and_leaves_no_spoilt_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss is \S+ after step .*lower --lr") as caught:
        go(tmp_path, lr=1e30, schedule="constant", checkpoint_every=3)
    assert "\n" not in str(caught.value)
    (run,) = [Run(path) for path in tmp_path.iterdir()]
    assert not run.finished
    assert all(math.isfinite(line["loss"]) for line in run.metrics())
    assert not (run.path / "encoder.safetensors").exists()
    state = run.load_checkpoint()
    assert state is None or state["step"] <= 3


def test_without_labels_nothing_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_data(monkeypatch, tabular())
    run = go(tmp_path, steps=10)
    assert not any(name.startswith("online") for line in run.metrics() for name in line)
    assert "online_test" not in run.record.metrics


def test_pretraining_data_without_labels_are_not_scored_online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tabular(np.arange(64) % 2, Task("classes", "accuracy", ("a", "b")))
    with_data(monkeypatch, replace(data, pretrain=replace(data.pretrain, label=None)))
    assert not any(name.startswith("online") for line in go(tmp_path, steps=10).metrics() for name in line)


@pytest.mark.slow
def test_a_class_for_each_token_is_scored_by_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    label = np.where(np.abs(store) < 0.2, -1, store > 0).astype(np.int64)
    with_data(monkeypatch, tabular(label, Task("tokens", "accuracy", ("a", "b"))))
    run = go(tmp_path, steps=400, lr=1e-4, evaluate_every=400, checkpoint_every=400)
    assert run.record.metrics["online_test"] > 0.8


@pytest.mark.slow
def test_the_online_probe_learns_on_another_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = np.random.default_rng(1).normal(size=(48, 4)).astype(np.float32)
    split = Split((store,), np.arange(48), (store[:, 0] > 0).astype(np.int64))
    task = Task("classes", "accuracy", ("a", "b"))
    other = Data((Table(4),), replace(split, label=None), Labelled(task, split, split, split), "1" * 64)
    with_data(monkeypatch, tabular(), other)
    run = go(tmp_path, online="other", steps=300, lr=1e-4, evaluate_every=300, checkpoint_every=300)
    assert run.record.online == "other"
    assert run.record.metrics["online_test"] > 0.7
    logged = [line["step"] for line in run.metrics() if "online_loss" in line]
    assert logged == list(range(20, 301, 20))
    plain = go(tmp_path, steps=300, lr=1e-4, evaluate_every=300, checkpoint_every=300)
    assert weights(run) == weights(plain)  # the probe changes nothing

    interrupt(tmp_path / "cut", monkeypatch, after=17, online="other")
    assert lines(go(tmp_path / "cut", online="other", resume=True)) == lines(go(tmp_path / "whole", online="other"))


def test_another_data_set_for_the_probe_has_the_same_input_and_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"--online breast_cancer is Table.* and the encoder reads Grid"):
        go(tmp_path, online="breast_cancer")
    with_data(monkeypatch, tabular(), tabular())
    with pytest.raises(UserError, match="--online other has no labels"):
        go(tmp_path, online="other")
    assert list(tmp_path.iterdir()) == []


def test_regression_is_standardised_for_the_online_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tabular(np.linspace(900, 1100, 64, dtype=np.float32), Task("regression", "mse"))
    with_data(monkeypatch, data)
    run = go(tmp_path, steps=10, online_every=1)
    assert run.metrics()[0]["online_loss"] < 5


def test_configurations_that_do_not_fit_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="needs a global batch of at least 2, got 1"):
        go(tmp_path, batch_size=1)
    with pytest.raises(UserError, match="unknown encoder 'tinny'"):
        go(tmp_path, encoder="tinny")
    for flag in ("attention", "dropout_masks"):
        changes = {"attention": "fastest", "precision": "bf16"} if flag == "attention" else {flag: "fast"}
        with pytest.raises(
            UserError, match=f"--{flag.replace('_', '-')} .* is for transformers, and --encoder resnet18"
        ):
            pretrain(
                replace(CONFIG, out=tmp_path, encoder="resnet18", **changes),  # type: ignore[arg-type]
                accelerator=accelerate(),
            )
    with pytest.raises(UserError, match="--dropout-masks fast: --encoder vit_small has no dropout"):
        go(tmp_path, encoder="vit_small", dropout_masks="fast")
    with pytest.raises(UserError, match="must be above 0"):
        go(tmp_path, hyper={"temperature": 0.0})
    numbers = np.arange(64, dtype=np.float32)
    for data in (tabular(), tabular(numbers, Task("regression", "mse", ()))):
        with_data(monkeypatch, data)
        with pytest.raises(UserError, match="learns from one class per example"):
            go(tmp_path, algo="supcon")
    assert list(tmp_path.iterdir()) == []


# --- parts


def test_learning_rate_warms_up_and_follows_half_a_cosine() -> None:
    rates = [learning_rate(step, 200, 2.0, "cosine") for step in range(200)]
    assert rates[:10] == pytest.approx([2.0 * (k + 1) / 10 for k in range(10)])
    assert rates[10:] == pytest.approx([1 + math.cos(math.pi * k / 190) for k in range(190)])
    assert {learning_rate(step, 200, 2.0, "constant") for step in range(200)} == {2.0}
    assert learning_rate(0, 1, 2.0, "cosine") == 2.0


def test_views_are_the_inputs_or_the_domain_s_augmentation() -> None:
    def shift(inputs: tuple[torch.Tensor, ...], generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        return tuple(x + torch.randn(x.shape, generator=generator) for x in inputs)

    def halved(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(x / 2 for x in inputs)

    class Two(Algorithm):
        num_views = 2

    stored = (torch.ones(3, 4),)
    algorithm = Two(make_encoder("tiny", (Table(4),)))
    data = replace(tabular(), normalise=halved, augment=shift)
    (view,) = make_views(data, stored, algorithm.num_augmented, seed=3)
    assert torch.equal(view[0], torch.full((3, 4), 0.5))
    algorithm.views = "augment"
    first, second = make_views(data, stored, algorithm.num_augmented, seed=3)
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(first[0], 0.5 + torch.randn(3, 4, generator=generator))
    assert torch.equal(second[0], 0.5 + torch.randn(3, 4, generator=generator))


def test_specs_reach_the_encoder_s_file(tmp_path: Path) -> None:
    run = go(tmp_path, algo="none")
    assert load_encoder(run.path / "encoder.safetensors").specs == (Grid(1, (8, 8), (2, 2)),)


# --- two processes

SCRIPT = """
import sys
from dataclasses import replace
from dabsmix.cli import main
from dabsmix.model.encoder import ENCODERS

ENCODERS["tiny"] = replace(ENCODERS["tiny"], dropout=0.0)  # its draws are each process's own
sys.argv[0] = "dabsmix"
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["emix", "imix_moco", "mae"])
def test_two_processes_equal_one(algo: str, tmp_path: Path) -> None:
    if algo not in algorithms():
        pytest.skip(f"no algorithm {algo} here")
    script = tmp_path / "pretrain.py"
    script.write_text(SCRIPT)
    config = dict(domain="digits", algo=algo, encoder="tiny", steps=12, batch_size=16, evaluate_every=1)
    words = ["pretrain", *(f"--{name.replace('_', '-')}={value}" for name, value in config.items())]
    words += ["--checkpoint-every=6", "--schedule=constant"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    weights = []
    for name, launcher in (("one", [sys.executable]), ("two", launch)):
        completed = subprocess.run(
            [*launcher, str(script), *words, "--out", str(tmp_path / name)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
        )
        assert completed.returncode == 0, completed.stderr
        (run,) = [Run(path) for path in (tmp_path / name).iterdir()]
        weights.append(run)
    one, two = weights
    assert (one.record.processes, two.record.processes) == (1, 2)
    assert one.record.config_hash == two.record.config_hash
    for a, b in zip(lines(one), lines(two), strict=True):
        for name in a.keys() - {"accuracy", "online_validation"}:  # counts, which rounding changes by whole examples
            assert a[name] == pytest.approx(b[name], rel=2e-3, abs=2e-3), (a["step"], name)
    assert lines(one)[0]["loss"] == pytest.approx(lines(two)[0]["loss"], rel=1e-5)
    assert json.loads((two.path / "run.json").read_text())["status"] == "finished"


@pytest.mark.usefixtures("classes")
def test_every_online_probe_learns_equally_often_and_never_changes_the_encoder(tmp_path: Path) -> None:
    updates, encoders = {}, {}
    for algo, every in (("dmix", None), ("mae", None), ("dmix", 5), ("dmix", 1)):
        run = go(tmp_path, algo=algo, steps=20, evaluate_every=5, online_every=every)
        updates[algo, every] = [line["step"] for line in run.metrics() if "online_loss" in line]
        encoders[algo, every] = run.record.encoder_sha256
    assert updates["dmix", None] == updates["mae", None] == [10, 20]
    assert updates["dmix", 5] == [5, 10, 15, 20]
    assert updates["dmix", 1] == [5, 7, 10, 14, 15, 20]  # every logged line, including those of checkpoints
    assert encoders["dmix", None] == encoders["dmix", 5] == encoders["dmix", 1]
    with pytest.raises(UserError, match="--online-every 0"):
        go(tmp_path, online_every=0)
