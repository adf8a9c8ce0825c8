"""The matrix: finished cells are not repeated, failures are recorded, and workers share the rest."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transferring
import yaml
from PIL import Image

from dabsmix import arguments
from dabsmix.board.row import read
from dabsmix.board.submit import validate
from dabsmix.cli import main
from dabsmix.config import BenchConfig, PretrainConfig
from dabsmix.errors import UserError
from dabsmix.interrupt import RESUME_ME, Interrupted
from dabsmix.model import encoder
from dabsmix.run import Run
from dabsmix.scoring.finetune import FINETUNE
from dabsmix.source import Source
from dabsmix.training import accelerate
from dabsmix.verbs import bench as module
from dabsmix.verbs import cells as cells_module
from dabsmix.verbs.bench import bench
from dabsmix.verbs.budget import StepCost, step_cost
from dabsmix.verbs.cells import Cell, Trial, cells
from dabsmix.verbs.chosen import ChosenSettings
from dabsmix.verbs.estimate import dry_run, lines
from dabsmix.verbs.pretrain import pretrain
from dabsmix.verbs.verify import rows_of

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
        (dict(domains=(), data=(Path(__file__),) * 2, modality="text", label="x"), "other data here are called"),
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


def test_a_cell_that_two_parts_name_is_one_cell(tmp_path: Path) -> None:
    parts = [plan(tmp_path, algos=("none", "emix")), plan(tmp_path, algos=("emix", "shed"), seeds=(0, 1))]
    names = [str(cell) for cell in cells(parts)]
    assert names == [
        f"digits {what}" for what in ("none seed 0", "emix seed 0", "shed seed 0", "emix seed 1", "shed seed 1")
    ]
    longer = [parts[0], replace(parts[0], steps=4)]
    assert [cell.budget for cell in cells(longer)] == ["3 steps"] * 2 + ["4 steps"] * 2
    assert len(cells([parts[0], replace(parts[0], budget="equal-compute")])) == 4


@pytest.mark.parametrize("field", cells_module.OPERATING)
def test_parts_that_are_to_be_run_in_different_ways_are_refused(tmp_path: Path, field: str) -> None:
    others: dict[str, Any] = {"on": "slurm", "workers": 2, "hours": 1.0, "retry": True, "dry_run": True}
    other: dict[str, Any] = {field: others.get(field, tmp_path / "other")}
    with pytest.raises(UserError, match=f"part 2 of the plan: {field} "):
        cells([plan(tmp_path), replace(plan(tmp_path), **other)])


def test_the_plan_may_stand_behind_flags(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("algos: [none]\n")
    for line in (["--dry-run", f"{file}"], ["--seeds", "4", f"{file}"], [f"{file}", "--seeds", "4"]):
        (config,), path = arguments.read_plan(line)
        assert (path, config.algos) == (file, ("none",))
        assert config.dry_run is ("--dry-run" in line)
        assert config.seeds == ((4,) if "4" in line else (0, 1, 2))
    (config,), path = arguments.read_plan(["--options", f"{file}"])
    assert (path, config.options) == (None, file)


def test_flags_override_the_parts_of_a_plan(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    parts = [{"domains": ["digits"]}, {"domains": ["fsdd", "covtype"], "steps": 7}]
    file.write_text(yaml.safe_dump({"algos": ["none"], "steps": 5, "compile": True, "parts": parts}))
    configs, path = arguments.read_plan([str(file), "--seeds", "4", "5", "--encoder=vit_small"])
    assert path == file
    assert [config.domains for config in configs] == [("digits",), ("fsdd", "covtype")]
    assert [(config.steps, config.seeds, config.encoder, config.compile) for config in configs] == [
        (5, (4, 5), "vit_small", True),
        (7, (4, 5), "vit_small", True),
    ]
    assert [config.steps for config in arguments.read_plan([str(file), "--steps", "9"])[0]] == [9, 9]


def test_an_unknown_field_of_a_plan_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("domain: [digits]\n")
    with pytest.raises(UserError, match=r"unknown field 'domain' \(did you mean 'domains'"):
        arguments.read_plan([str(file)])


def test_cells_on_the_board_are_not_repeated(tmp_path: Path, filled: list[str]) -> None:
    matrix = plan(tmp_path, algos=("none",))
    (before,) = dry_run([matrix], chosen_path=tmp_path / "c.json")
    assert (before.state, before.pretraining, before.transfer) == ("missing", None, None)
    assert bench([matrix], chosen_path=tmp_path / "c.json") == {}
    rows = read(matrix.leaderboard)
    assert {(row.task, row.algorithm, row.label_fraction) for row in rows} == {("digits", "none", "1")}
    bench([matrix], chosen_path=tmp_path / "c.json")
    assert filled == ["digits none seed 0"]
    assert read(matrix.leaderboard) == rows
    finished, other = dry_run([plan(tmp_path, algos=("none",), seeds=(0, 1))], chosen_path=tmp_path / "c.json")
    assert (finished.state, other.state) == ("done", "missing")
    assert other.transfer  # as in the measured cell
    assert (finished.transfer, other.pretraining) == (None, 0)


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
    assert (estimate.state, estimate.transfer) == ("missing", None)
    config = ChosenSettings(tmp_path / "c.json").settled(estimate.cell)
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
        module._try(Trial(cells([matrix])[1], lr), chosen)
    assert {(trial.seed, trial.steps) for trial in trials} == {(3, 3)}
    (entry,) = json.loads((tmp_path / "c.json").read_text()).values()
    assert (entry["lr"], entry["trial_steps"], entry["trial_seed"]) == (1e-2, 3, 3)
    assert [chosen.settled(cell).lr for cell in cells([matrix])] == [
        3e-4,
        1e-2,
        3e-4,
        1e-2,
    ]  # none has no rate


def test_a_rate_that_diverges_is_not_chosen(tmp_path: Path) -> None:
    matrix = plan(tmp_path, algos=("emix",), rates=(1e-3, 1e-2))
    (cell,) = cells([matrix])
    chosen = ChosenSettings(tmp_path / "c.json")
    chosen.note_rate(Trial(cell, 1e-3), None)
    chosen.note_rate(Trial(cell, 1e-2), None)
    with pytest.raises(UserError, match=r"every one of the rates 0.001, 0.01 failed"):
        chosen.lr(cell)
    assert "every one of the rates" in next(iter(bench([matrix], chosen_path=chosen.path).values()))["reason"]


def test_rates_that_all_failed_say_why_and_are_tried_again_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(config: PretrainConfig, matrix: BenchConfig) -> Any:
        raise MemoryError("no memory left")

    matrix = plan(tmp_path, algos=("emix",), rates=(1e-3, 3e-3))
    with monkeypatch.context() as patched:
        patched.setattr(module, "_pretrained", no_memory)
        (failure,) = bench([matrix], chosen_path=tmp_path / "c.json").values()
    assert failure["reason"] == "every one of the rates 0.001, 0.003 failed: MemoryError: no memory left"
    (entry,) = json.loads((tmp_path / "c.json").read_text()).values()
    assert entry["failed"] == dict.fromkeys(("0.001", "0.003"), "MemoryError: no memory left")
    assert len(bench([matrix], chosen_path=tmp_path / "c.json")) == 1
    assert bench([replace(matrix, retry=True)], chosen_path=tmp_path / "c.json") == {}
    (entry,) = json.loads((tmp_path / "c.json").read_text()).values()
    assert None not in entry["validation"].values()
    assert "failed" not in entry
    assert {row.algorithm for row in read(matrix.leaderboard)} == {"emix"}


def test_one_rate_that_failed_stays_out_of_a_choice_that_cells_follow_from(tmp_path: Path) -> None:
    matrix = plan(tmp_path, algos=("emix",), rates=(1e-3, 1e-2), retry=True)
    (cell,) = cells([matrix])
    chosen = ChosenSettings(tmp_path / "c.json")
    chosen.note_rate(Trial(cell, 1e-3), 0.5)
    chosen.note_rate(Trial(cell, 1e-2), None, "it diverged")
    chosen.forget_failures(cell)
    assert (chosen.untried(cell), chosen.lr(cell)) == ([], 1e-3)
    assert chosen.read()[cell.setting]["failed"] == {"0.01": "it diverged"}


def table(file: Path, seed: int) -> Path:
    """40 rows of two classes, which the first column tells apart."""
    rng = np.random.default_rng(seed)
    lines = [f"{rng.normal() + 3 * (i % 2):.3f},{rng.normal():.3f},{'ab'[i % 2]}" for i in range(40)]
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(["x,y,kind", *lines]) + "\n")
    return file


def of_table(folder: Path, file: Path, **changes: Any) -> BenchConfig:
    return plan(folder, domains=(), data=(file,), modality="tabular", label="kind", **changes)


def test_packed_data_tell_their_modality_and_are_done_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with tarfile.open(tmp_path / "shards.tar", "w") as archive:
        for number in range(60):
            picture = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(picture, "png")
            for ending, content in (("png", picture.getvalue()), ("cls", b"%d" % (number % 2))):
                member = tarfile.TarInfo(f"{number:03}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    matrix = plan(tmp_path, domains=(), data=(tmp_path / "shards.tar",), label="cls", algos=("none",))
    assert bench([matrix], chosen_path=tmp_path / "c.json") == {}
    rows = read(matrix.leaderboard)
    assert {row.domain for row in rows} == {"shards"}
    assert bench([matrix], chosen_path=tmp_path / "c.json") == {}
    assert read(matrix.leaderboard) == rows


def test_other_files_of_the_same_name_have_rates_of_their_own(tmp_path: Path) -> None:
    ours, theirs = table(tmp_path / "a" / "data.csv", 0), table(tmp_path / "b" / "data.csv", 1)
    rates: dict[str, Any] = dict(algos=("emix",), rates=(1e-3, 1e-2))
    ((mine,), (other,)) = (cells([of_table(tmp_path, file, **rates)]) for file in (ours, theirs))
    chosen = ChosenSettings(tmp_path / "c.json")
    for lr in mine.plan.rates:
        chosen.note_rate(Trial(mine, lr), lr)
    assert (chosen.untried(mine), chosen.untried(other)) == ([], [1e-3, 1e-2])


def test_a_table_that_has_changed_is_pretrained_on_again(tmp_path: Path) -> None:
    file = table(tmp_path / "data.csv", 0)
    matrix = of_table(tmp_path, file, algos=("none", "emix"))
    assert bench([matrix], chosen_path=tmp_path / "c.json") == {}
    assert [cell.state for cell in dry_run([matrix], chosen_path=tmp_path / "c.json")] == ["done", "done"]
    table(file, 1)
    load_again()
    assert [cell.state for cell in dry_run([matrix], chosen_path=tmp_path / "c.json")] == ["missing", "missing"]
    assert bench([matrix], chosen_path=tmp_path / "c.json") == {}
    assert [cell.state for cell in dry_run([matrix], chosen_path=tmp_path / "c.json")] == ["done", "done"]
    runs = {(row.run.rpartition("-")[0], row.pretrain_fingerprint) for row in read(matrix.leaderboard)}
    assert sorted(name for name, _ in runs) == ["data-emix-s0", "data-emix-s0-2", "data-none-s0", "data-none-s0-2"]
    assert len({fingerprint for _, fingerprint in runs}) == 2
    assert validate(matrix.leaderboard) == []
    for name in ("data-none-s0", "data-none-s0-2"):  # with the same encoder
        rows = rows_of(Run(matrix.out / name), matrix.leaderboard)
        assert {row.run.rpartition("-")[0] for row in rows} == {name}


def test_a_run_that_crashes_on_a_changed_table_has_a_row_too(tmp_path: Path) -> None:
    file = table(tmp_path / "data.csv", 0)
    matrix = of_table(tmp_path, file, algos=("emix",), lr=1e30, retry=True)
    for seed in (0, 1):
        table(file, seed)
        load_again()
        (failure,) = bench([matrix], chosen_path=tmp_path / "c.json").values()
        assert "training diverged" in failure["reason"]
    rows = read(matrix.leaderboard)
    assert len({row.pretrain_fingerprint for row in rows}) == len(rows) == 2


def test_children_continue_a_run_of_the_same_data_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, commands = table(tmp_path / "data.csv", 0), list[Sequence[str]]()
    matrix = of_table(tmp_path, file, algos=("emix",), gpus=2)
    (cell,) = cells([matrix])
    config = ChosenSettings(tmp_path / "c.json").settled(cell)
    run = pretrain(replace(config, resume=False), accelerator=accelerate())

    def child(command: Sequence[str]) -> str:
        commands.append(command)
        return f"{run.path}\n"

    monkeypatch.setattr(module, "_child", child)
    assert module._pretrained(config, matrix).path == run.path
    assert commands == []  # it is finished
    run.update(status="interrupted")
    module._pretrained(config, matrix)
    run.update(status="finished")
    table(file, 1)
    module._pretrained(config, matrix)
    run.update(status="interrupted")
    module._pretrained(config, matrix)
    assert ["--resume" in command for command in commands] == [True, False, False]


def load_again() -> None:
    """Forget what was remembered of files, as a new process does."""
    cells_module._content.cache_clear()
    cells_module.usual_batch.cache_clear()


def test_own_data_end_with_advice_on_them_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, seed in (("other", 1), ("mine", 0)):
        file = table(tmp_path / folder / "data.csv", seed)
        line = words(tmp_path, "--data", f"{file}", "--modality", "tabular", "--label", "kind")
        monkeypatch.setattr(sys, "argv", ["dabsmix", "bench", *line[3:]])
        main()
    printed = capsys.readouterr().out.split("Gain over none")
    assert len(printed) == 3  # each run of the command has one overview
    assert printed[2].count("data (tiny, v2, 3 × 16") == 1
    assert "no interval: that takes 3 seeds" in printed[2]


@pytest.mark.parametrize(
    ("flags", "setting"),
    [
        (["--protocol", "finetune"], "finetune, 3 × 16, finetune probe"),
        (["--labels", "0.5"], "v2, 3 × 16, linear probe, 50 % of labels"),
    ],
)
def test_the_advice_is_from_the_scores_that_there_are(
    flags: list[str],
    setting: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = replace(FINETUNE, rates=(1e-3,), epochs=1, steps=(1, 1))
    monkeypatch.setattr("dabsmix.verbs.transfer.FINETUNE", short)
    file = table(tmp_path / "data.csv", 0)
    line = words(tmp_path, "--data", f"{file}", "--modality", "tabular", "--label", "kind", *flags)
    monkeypatch.setattr(sys, "argv", ["dabsmix", "bench", *line[3:]])
    main()
    printed = capsys.readouterr().out
    assert "Gain over none" in printed
    assert f"data (tiny, {setting}" in printed


def test_a_budget_in_minutes_is_measured_once_and_a_dry_run_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([0.5, 0.1, 0.2])
    monkeypatch.setattr("dabsmix.verbs.budget.step_cost", lambda config: StepCost(1, next(seconds)))
    matrix = plan(tmp_path, algos=("shed", "none"), minutes=1.0, steps=7)
    assert [cell.state for cell in dry_run([matrix], chosen_path=tmp_path / "c.json")] == ["missing"] * 2
    assert not (tmp_path / "c.json").exists()
    chosen = ChosenSettings(tmp_path / "c.json")
    assert [chosen.steps(cell) for cell in cells([matrix]) * 2] == [600, 7, 600, 7]
    assert ChosenSettings(tmp_path / "c.json").steps(cells([matrix])[0]) == 600


def test_a_fresh_folder_takes_the_times_of_pretraining_from_the_board(tmp_path: Path) -> None:
    matrix = plan(tmp_path, algos=("emix",))
    bench([matrix], chosen_path=tmp_path / "c.json")
    (tmp_path / "runs" / "times.jsonl").unlink()
    longer = replace(matrix, seeds=(1,), steps=6)
    (estimate,) = dry_run([longer], chosen_path=tmp_path / "c.json")
    seconds = read(matrix.leaderboard)[0].seconds
    assert estimate.pretraining == pytest.approx(2 * seconds)
    assert estimate.transfer is None
    told = list(lines([estimate]))
    assert told[0].startswith("missing  digits emix seed 1, 6 steps  about ")
    assert told[0].endswith("without transfer")
    assert "the transfer of 1 is not counted" in told[1]
    (untrained,) = dry_run([replace(longer, algos=("none",))], chosen_path=tmp_path / "c.json")
    assert (untrained.pretraining, untrained.transfer) == (None, None)  # all of its time is transfer


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
def test_workers_stop_with_the_process_that_started_them(tmp_path: Path) -> None:
    flags = ["--algos", "emix", "dmix", "--steps", "100000", "--workers", "2"]
    command = [sys.executable, "-m", "dabsmix", *words(tmp_path, *flags)]
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 300
    while len(list((tmp_path / "runs").glob("*/run.json"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    parent.terminate()
    _, errors = parent.communicate(timeout=300)
    assert parent.returncode == RESUME_ME, errors
    assert "the same command goes on from here" in errors
    with pytest.raises(ProcessLookupError):  # no process of its session is left
        os.killpg(parent.pid, 0)


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


def test_a_folder_that_cannot_be_made_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "afile").touch()
    monkeypatch.setattr(sys, "argv", ["dabsmix", *words(tmp_path, "--out", f"{tmp_path / 'afile' / 'x'}")])
    with pytest.raises(SystemExit) as status:
        main()
    assert status.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dabsmix: cannot write {tmp_path / 'afile' / 'x' / 'claims'}")
    assert line.endswith(": Not a directory; free some space there or choose another folder")


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
    emix, shed, none = (chosen.settled(cell).steps for cell in cells([matrix]))
    assert (emix, none) == (100, 100)
    ratio = step_cost(cells([matrix])[0].pretraining).flops / step_cost(cells([matrix])[1].pretraining).flops
    assert shed == round(100 * ratio)
    assert shed != 100
