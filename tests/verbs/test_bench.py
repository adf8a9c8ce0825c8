"""The matrix: finished cells are not repeated, failures are recorded, and workers share the rest."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transferring
import yaml

from dabsmix import cli
from dabsmix.board.row import read
from dabsmix.board.submit import validate
from dabsmix.config import BenchConfig, PretrainConfig
from dabsmix.errors import UserError
from dabsmix.interrupt import Interrupted
from dabsmix.model import encoder
from dabsmix.source import Source
from dabsmix.training import accelerate
from dabsmix.verbs import bench as module
from dabsmix.verbs.bench import Cell, ChosenSettings, bench, cells, dry_run
from dabsmix.verbs.budget import step_cost
from dabsmix.verbs.pretrain import pretrain

QUICK: dict[str, Any] = dict(domains=("digits",), seeds=(0,), steps=3, batch_size=16, labels=("1",))


def plan(folder: Path, **changes: Any) -> BenchConfig:
    return BenchConfig(**(QUICK | dict(out=folder / "runs", leaderboard=folder / "board" / "results.csv") | changes))


def words(folder: Path, *flags: str) -> list[str]:
    line = "bench --domains digits --algos none emix --seeds 0 --steps 3 --batch-size 16 --labels 1"
    return [
        *line.split(),
        "--out",
        f"{folder / 'runs'}",
        "--leaderboard",
        f"{folder / 'board' / 'results.csv'}",
        *flags,
    ]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and short probes."""
    monkeypatch.setattr("dabsmix.verbs.transfer.protocol", lambda name, batch_size, specs: transferring.QUICK)


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells that were worked on; their rows are on the board, but nothing is trained."""
    messages: list[str] = []
    fill = module._fill

    def noted(cell: Cell, chosen: ChosenSettings) -> str:
        messages.append(str(cell))
        return fill(cell, chosen)

    monkeypatch.setattr(module, "_fill", noted)
    return messages


def test_cells_complete_a_data_set_before_the_next(tmp_path: Path) -> None:
    names = [str(cell) for cell in cells([plan(tmp_path, domains=("digits", "uci_har"), algos=("none", "emix"))])]
    assert names == ["digits none seed 0", "digits emix seed 0", "uci_har none seed 0", "uci_har emix seed 0"]


def test_a_row_may_set_hyperparameters(tmp_path: Path) -> None:
    (cell,) = cells([plan(tmp_path, algos=("contpred:score=masked,temperature=1e-1",))])
    assert cell.pretraining.algo == "contpred"
    assert cell.pretraining.hyper == {"score": "masked", "temperature": 0.1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(domains=()), "no cells: name --domains"),
        (dict(domains=("digit",)), "did you mean 'digits'"),
        (dict(data=(Path("x"),)), "name one of the two"),
        (dict(algos=("emix:beta=1",)), "no hyperparameter 'beta'"),
        (dict(algos=("emix:alpha=x",)), "float"),
        (dict(algos=("contpred:score=some",)), "one of all, masked"),
        (dict(domains=(), data=(Path(__file__),), modality="text"), "needs --label"),
    ],
)
def test_mistakes_in_a_plan_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cells([plan(tmp_path, **changes)])


def test_a_plan_s_fast_paths_are_those_of_its_cells(tmp_path: Path) -> None:
    fast: dict[str, Any] = dict(precision="bf16", attention="fastest", dropout_masks="fast")
    ((plain,), (cell,)) = (cells([plan(tmp_path, algos=("emix",), **changes)]) for changes in ({}, fast))
    assert {name: getattr(cell.pretraining, name) for name in fast} == fast
    assert cell.pretraining == replace(plain.pretraining, **fast)
    assert cell.setting == f"{plain.setting} bf16 fastest fast"  # rates chosen in fp32 are not its own


def test_flags_override_the_parts_of_a_plan(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    parts = [{"domains": ["digits"]}, {"domains": ["fsdd", "covtype"], "steps": 7}]
    file.write_text(yaml.safe_dump({"algos": ["none"], "steps": 5, "compile": True, "parts": parts}))
    configs, path = cli._read_plan([str(file), "--seeds", "4", "5", "--encoder=vit_small"])
    assert path == file
    assert [config.domains for config in configs] == [("digits",), ("fsdd", "covtype")]
    assert [(config.steps, config.seeds, config.encoder, config.compile) for config in configs] == [
        (5, (4, 5), "vit_small", True),
        (7, (4, 5), "vit_small", True),
    ]
    assert [config.steps for config in cli._read_plan([str(file), "--steps", "9"])[0]] == [9, 9]


def test_an_unknown_field_of_a_plan_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("domain: [digits]\n")
    with pytest.raises(UserError, match=r"unknown field 'domain' \(did you mean 'domains'"):
        cli._read_plan([str(file)])


def test_cells_on_the_board_are_not_repeated(tmp_path: Path, filled: list[str]) -> None:
    matrix = plan(tmp_path, algos=("none",))
    (before,) = dry_run([matrix], chosen_path=tmp_path / "c.json")
    assert (before.state, before.seconds) == ("missing", None)
    assert bench([matrix], chosen_path=tmp_path / "c.json") == {}
    rows = read(matrix.leaderboard)
    assert {(row.task, row.algorithm, row.label_fraction) for row in rows} == {("digits", "none", "1")}
    bench([matrix], chosen_path=tmp_path / "c.json")
    assert filled == ["digits none seed 0"]
    assert read(matrix.leaderboard) == rows
    finished, other = dry_run([plan(tmp_path, algos=("none",), seeds=(0, 1))], chosen_path=tmp_path / "c.json")
    assert (finished.state, other.state) == ("done", "missing")
    assert other.seconds is not None  # extrapolated from the measured cell


def test_an_online_score_alone_does_not_complete_a_cell(tmp_path: Path) -> None:
    matrix = plan(tmp_path, algos=("shed",))
    bench([matrix], chosen_path=tmp_path / "c.json")
    assert [cell.state for cell in dry_run([matrix], chosen_path=tmp_path / "c.json")] == ["done"]
    header, *lines = matrix.leaderboard.read_text().splitlines(keepends=True)
    online = [line for line in lines if ",online," in line]
    assert len(online) == 1
    matrix.leaderboard.write_text(header + online[0])
    assert [cell.state for cell in dry_run([matrix], chosen_path=tmp_path / "c.json")] == ["missing"]


def test_a_failure_is_recorded_and_the_other_cells_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = True

    def fill(cell: Cell, chosen: ChosenSettings) -> str:
        if cell.row == "emix" and broken:
            raise RuntimeError("out of memory")
        return original(cell, chosen)

    original = module._fill
    monkeypatch.setattr(module, "_fill", fill)
    matrix, messages = plan(tmp_path, algos=("emix", "none")), list[str]()
    failed = bench([matrix], chosen_path=tmp_path / "c.json", say=messages.append)
    assert [(failure["algorithm"], failure["reason"]) for failure in failed.values()] == [
        ("emix", "RuntimeError: out of memory")
    ]
    assert json.loads((matrix.leaderboard.parent / "failures.json").read_text()) == failed
    assert messages[0] == "failed: digits emix seed 0: RuntimeError: out of memory"
    assert {row.algorithm for row in read(matrix.leaderboard)} == {"none"}
    broken = False
    assert bench([matrix], chosen_path=tmp_path / "c.json").keys() == failed.keys()  # tried again only on request
    assert [cell.state for cell in dry_run([matrix], chosen_path=tmp_path / "c.json")] == ["failed", "done"]
    retried = plan(tmp_path, algos=("emix", "none"), retry=True)
    assert bench([retried], chosen_path=tmp_path / "c.json") == {}
    assert {row.algorithm for row in read(matrix.leaderboard)} == {"none", "emix"}
    assert json.loads((matrix.leaderboard.parent / "failures.json").read_text()) == {}


def test_a_run_that_crashes_has_a_row_without_a_score(tmp_path: Path) -> None:
    matrix = plan(tmp_path, algos=("emix",), lr=1e30)
    assert bench([matrix], chosen_path=tmp_path / "c.json")
    (row,) = read(matrix.leaderboard)
    assert row.failure.startswith("training diverged")
    assert validate(matrix.leaderboard) == []
    bench([replace(matrix, retry=True)], chosen_path=tmp_path / "c.json")  # it fails again
    assert repr(read(matrix.leaderboard)) == repr([row])  # its value is NaN, which does not equal itself
    assert [cell.state for cell in dry_run([matrix], chosen_path=tmp_path / "c.json")] == ["failed"]


def test_an_interrupted_cell_is_not_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(cell: Cell, chosen: ChosenSettings) -> str:
        raise Interrupted("asked to stop")

    monkeypatch.setattr(module, "_fill", fill)
    matrix = plan(tmp_path, algos=("none",))
    with pytest.raises(Interrupted):
        bench([matrix], chosen_path=tmp_path / "c.json")
    assert not (matrix.leaderboard.parent / "failures.json").exists()


def test_an_interrupted_or_failed_command_is_reported() -> None:
    def python(line: str) -> list[str]:
        return [sys.executable, "-c", f"import sys; {line}"]

    assert module._child(python("print('out')")) == "out\n"
    with pytest.raises(Interrupted):
        module._child(python("sys.exit(75)"))
    with pytest.raises(Interrupted):  # under torchrun
        module._child(python("sys.exit('dabsmix: runs/a is interrupted after step 3: --resume continues from there')"))
    with pytest.raises(UserError, match="dabsmix: no such thing"):
        module._child(python("sys.exit('dabsmix: no such thing')"))


def test_damage_beside_a_cell_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = plan(tmp_path, algos=("none",), precision="bf16")
    (tmp_path / "runs" / "damaged").mkdir(parents=True)
    (tmp_path / "runs" / "damaged" / "run.json").write_text("{")
    (tmp_path / "runs" / "times.jsonl").write_text('{"setting": ["dig')
    (estimate,) = dry_run([matrix], chosen_path=tmp_path / "c.json")
    assert (estimate.state, estimate.seconds) == ("missing", None)
    config = module._settled(estimate.cell, ChosenSettings(tmp_path / "c.json"))
    trained = transferring.pretrained(tmp_path / "elsewhere")
    monkeypatch.setattr(module, "_child", lambda command: f"{trained.path}\n")
    assert module._pretrained(config, matrix).path == trained.path


def test_the_rate_is_chosen_on_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {1e-3: 0.5, 1e-2: 0.8, 1e-1: 0.7}
    trials: list[PretrainConfig] = []

    def pretrained(config: PretrainConfig, bench: BenchConfig) -> Any:
        trials.append(config)
        return config

    monkeypatch.setattr(module, "_pretrained", pretrained)
    monkeypatch.setattr(module, "_validation_score", lambda run, source: scores[run.lr])
    chosen = ChosenSettings(tmp_path / "c.json")
    matrix = plan(tmp_path, algos=("none", "emix"), rates=tuple(scores), seeds=(3, 4), steps=9)
    for lr in scores:
        module._try(module.Trial(cells([matrix])[1], lr), chosen)
    assert {(trial.seed, trial.steps) for trial in trials} == {(3, 3)}
    (entry,) = json.loads((tmp_path / "c.json").read_text()).values()
    assert (entry["lr"], entry["trial_steps"], entry["trial_seed"]) == (1e-2, 3, 3)
    assert [module._settled(cell, chosen).lr for cell in cells([matrix])] == [
        3e-4,
        1e-2,
        3e-4,
        1e-2,
    ]  # none has no rate


def test_a_rate_that_diverges_is_not_chosen(tmp_path: Path) -> None:
    matrix = plan(tmp_path, algos=("emix",), rates=(1e-3, 1e-2))
    (cell,) = cells([matrix])
    chosen = ChosenSettings(tmp_path / "c.json")
    module._note_rate(module.Trial(cell, 1e-3), None, chosen)
    module._note_rate(module.Trial(cell, 1e-2), None, chosen)
    with pytest.raises(UserError, match=r"every one of the rates 0.001, 0.01 failed"):
        chosen.lr(cell)
    assert "every one of the rates" in next(iter(bench([matrix], chosen_path=chosen.path).values()))["reason"]


@pytest.mark.slow
def test_two_workers_share_the_cells(tmp_path: Path) -> None:
    flags = ["--seeds", "0", "1", "--workers", "2"]
    completed = subprocess.run(
        [sys.executable, "-m", "dabsmix", *words(tmp_path), *flags], capture_output=True, text=True
    )
    assert completed.returncode == 0, completed.stderr
    submitted = [line.partition(":")[0] for line in completed.stderr.splitlines() if "linear" in line]
    assert sorted(submitted) == sorted({f"digits {algo} seed {seed}" for algo in ("none", "emix") for seed in (0, 1)})
    assert len(list((tmp_path / "runs").glob("*/run.json"))) == 4


@pytest.mark.slow
def test_after_a_killed_worker_only_missing_cells_are_done(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dabsmix", *words(tmp_path, "--seeds", "0", "1")]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert first.stderr is not None
    assert "digits none seed 0" in next(line for line in first.stderr if line.startswith("digits"))
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    completed = subprocess.run(command, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    submitted = [line.partition(":")[0] for line in completed.stderr.splitlines() if "linear" in line]
    assert "digits none seed 0" not in submitted
    assert len({(row.algorithm, row.seed) for row in read(tmp_path / "board" / "results.csv")}) == 4


def test_a_claimed_cell_is_skipped(tmp_path: Path) -> None:
    (cell,) = cells([plan(tmp_path, algos=("none",))])
    chosen = ChosenSettings(tmp_path / "c.json")
    with module._claimed(cell, chosen) as first, module._claimed(cell, chosen) as second:
        assert (first, second) == (True, False)


# --- budgets


def linear_flops(width: int, mlp: int, inner: int, tokens: int) -> int:
    """Of one block's forward on one example: qkv, both products of attention, projection, MLP."""
    return 2 * tokens * (width * 3 * inner + inner * width + 2 * width * mlp) + 4 * tokens * tokens * inner


def test_flops_are_those_of_the_encoder_passes() -> None:
    batch, tokens, depth = 8, 64, 4  # digits: 8 x 8 pixels, one a token
    config = PretrainConfig(Source("digits"), algo="emix", encoder="tiny", batch_size=batch)
    from dabsmix.source import load

    tokens = sum(spec.num_tokens for spec in load(config.source).specs) + 1
    block = depth * linear_flops(64, 128, 64, tokens) * batch
    flops = step_cost(config).flops
    # emix: one pass of a mixed and a clean batch, each with its backward, which is twice a forward
    assert flops == pytest.approx(2 * 3 * block, rel=0.05)


def test_steps_are_timed_with_the_fast_paths_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []

    def noted(name: str) -> Callable[..., Any]:
        function = getattr(encoder, name)

        def wrapped(*inputs: Any) -> Any:
            used.append(name)
            return function(*inputs)

        return wrapped

    for name in ("explicit_is_faster", "fast_mask"):
        monkeypatch.setattr(encoder, name, noted(name))
    config = PretrainConfig(Source("digits"), algo="shed", encoder="tiny", batch_size=8, precision="bf16")
    step_cost(config)
    assert not used
    step_cost(replace(config, attention="fastest", dropout_masks="fast"))
    assert set(used) == {"explicit_is_faster", "fast_mask"}


def test_a_run_records_the_flops_of_all_its_steps(tmp_path: Path) -> None:
    config = PretrainConfig(Source("digits"), algo="emix", encoder="tiny", batch_size=24, steps=3, out=tmp_path)
    run = pretrain(config, accelerator=accelerate())
    assert run.record.flops == pytest.approx(3 * step_cost(config).flops, rel=0.02)
    assert pretrain(replace(config, algo="none"), accelerator=accelerate()).record.flops == 0


def test_equal_compute_gives_costly_algorithms_fewer_steps(tmp_path: Path) -> None:
    matrix = plan(tmp_path, algos=("emix", "shed", "none"), steps=100, budget="equal-compute")
    chosen = ChosenSettings(tmp_path / "c.json")
    emix, shed, none = (module._settled(cell, chosen).steps for cell in cells([matrix]))
    assert (emix, none) == (100, 100)
    ratio = step_cost(cells([matrix])[0].pretraining).flops / step_cost(cells([matrix])[1].pretraining).flops
    assert shed == round(100 * ratio)
    assert shed != 100
