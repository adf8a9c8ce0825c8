"""Submitting, reading and validating on run folders written here in the form that pretrain and transfer write them."""

import csv
import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml

from dabsmix.board.forgery import MAX_PREDICTIONS
from dabsmix.board.overview import overviews
from dabsmix.board.overview import text as overview_text
from dabsmix.board.page import page
from dabsmix.board.record import transfer_of
from dabsmix.board.row import lines
from dabsmix.board.standings import standings
from dabsmix.board.submit import COLUMNS, read, submit, validate
from dabsmix.board.table import Format, render
from dabsmix.config import PretrainConfig, as_plain, config_hash, resolve
from dabsmix.errors import UserError
from dabsmix.scoring.intervals import interval, measure
from dabsmix.scoring.metrics import metric
from dabsmix.source import Source

OURS = Path(__file__).parents[2] / "leaderboard" / "results.csv"
RESULTS = (("linear", "1", 0.9), ("ridge", "1", 0.61), ("knn", "1", 0.8))


def write_run(
    out: Path,
    *,
    name: str = "digits-dmix-s0",
    seed: int = 0,
    tasks: tuple[str, ...] = ("digits",),
    lr: float = 3e-4,
    checkpoint_activations: bool = False,
) -> Path:
    """A finished run that was transferred to these tasks; another seed gives another encoder and configuration."""
    folder = out / name
    (folder / "transfer").mkdir(parents=True)
    encoder = f"generated weights {name} {seed} {lr}".encode()
    (folder / "encoder.safetensors").write_bytes(encoder)
    pretraining = PretrainConfig(Source("digits"), algo="dmix", encoder="tiny", steps=300, seed=seed, lr=lr, out=out)
    config, _ = resolve(replace(pretraining, checkpoint_activations=checkpoint_activations), 128)
    (folder / "config.yaml").write_text(yaml.safe_dump(as_plain(config)))
    run = {
        **{"name": name, "status": "finished", "domain": "digits", "algorithm": "dmix", "encoder": "tiny"},
        **{"protocol": "v1", "seed": seed, "steps": 300, "batch_size": 128, "hyper": dict(config.hyper)},
        **{"views": "identical", "uses_labels": False, "version": "0.1.0", "commit": "", "data_fingerprint": "f" * 12},
        **{"config_hash": config_hash(config), "parameters": 1000},
        **{"encoder_sha256": hashlib.sha256(encoder).hexdigest(), "seconds": 12.34, "device": "cpu", "metrics": {}},
    }
    (folder / "run.json").write_text(json.dumps(run))
    for task in tasks:
        write_transfer(folder, task)
    return folder


def write_transfer(folder: Path, task: str, results: tuple[tuple[str, str, float], ...] = RESULTS) -> Path:
    """One transfer file and its predictions."""
    cells = [
        {"probe": probe, "label_fraction": fraction, "metric": "accuracy", "value": value, "low": value - 0.08}
        | {"high": value + 0.08, "n": 100, "selected": {"lr": 0.1}, "test_reads": 1}
        for probe, fraction, value in results
    ]
    path = folder / "transfer" / f"{task}-v1.json"
    content = {"task": task, "protocol": "v1", "data_fingerprint": "d" * 12, "kind": "classes", "results": cells}
    path.write_text(json.dumps(content | cells[0]))
    label = np.arange(100) % 10
    rng = np.random.default_rng(list(str(folder).encode()))  # different encoders make different mistakes
    wrong = {
        f"{p}@{f.replace('/', ' per ')}": np.where(rng.permutation(100) < 100 * v, label, 9 - label)[None]
        for p, f, v in results
    }
    arrays: dict[str, Any] = {"label": label, **wrong}
    np.savez(path.with_suffix(".predictions.npz"), **arrays)
    return path


def edit(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_submit_writes_one_row_per_probe_and_fraction_and_the_record_behind_them(tmp_path: Path) -> None:
    board = tmp_path / "leaderboard" / "results.csv"
    rows = submit(write_run(tmp_path), "Ada", board)
    with board.open() as file:
        written = list(csv.DictReader(file))
    assert [(r["probe"], r["label_fraction"], float(r["value"])) for r in written] == list(RESULTS)
    assert tuple(written[0]) == COLUMNS
    assert written[0]["by"] == "Ada"
    assert written[0]["uses_labels"] == "false"
    assert written[0]["hyper"] == '{"alpha":1.0,"detach_partner":true,"temperature":0.2}'
    assert rows == read(board)
    record = board.parent / "runs" / written[0]["run"]
    copied = sorted(str(path.relative_to(record)) for path in record.rglob("*") if path.is_file())
    assert copied == ["config.yaml", "run.json", "transfer/digits-v1.json", "transfer/digits-v1.predictions.npz"]
    assert validate(board) == []


def test_a_board_without_a_new_column_is_read_and_gets_it_with_the_next_row(tmp_path: Path) -> None:
    board = tmp_path / "results.csv"
    submit(write_run(tmp_path), "Ada", board)
    new = board.read_text().splitlines()
    added = ",units,train_flops,num_features,failure"
    assert all(line.endswith(",,,,") for line in new[1:])  # the records of this test have none of them
    old = [line.removesuffix(end) for line, end in zip(new, [added, *[",,,,"] * 3], strict=True)]
    board.write_text("\n".join(old) + "\n")
    assert [(row.units, row.train_flops, row.num_features) for row in read(board)] == [(None, None, None)] * 3
    assert validate(board) == []
    run = write_run(tmp_path, name="digits-dmix-s1", seed=1)
    edit(run / "run.json", flops=1.23456e15)
    path = run / "transfer" / "digits-v1.json"
    results = json.loads(path.read_text())["results"]
    edit(path, results=[result | {"units": 40, "num_features": 256} for result in results])
    rows = submit(run, "Ada", board)
    assert [(row.units, row.train_flops, row.num_features) for row in rows] == [(40, 1.235e15, 256)] * 3
    assert board.read_text().splitlines()[:4] == new
    assert validate(board) == []
    board.write_text(board.read_text().replace(",40,", ",50,"))
    assert len(validate(board)) == 3


def test_large_predictions_are_not_stored(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    path = run / "transfer" / "digits-v1.predictions.npz"
    with np.load(path) as file:
        arrays: dict[str, Any] = dict(file)
    np.savez(path, **arrays, more=np.zeros(MAX_PREDICTIONS, np.uint8))
    row = submit(run, "Ada", tmp_path / "results.csv")[0]
    assert not list(row.record.rglob("*.npz"))


def test_same_run_twice_is_refused_and_a_further_task_is_added(tmp_path: Path) -> None:
    run, board = write_run(tmp_path), tmp_path / "results.csv"
    submit(run, "Ada", board)
    before = board.read_bytes()
    with pytest.raises(UserError, match="already"):
        submit(run, "Bob", board)
    assert board.read_bytes() == before
    write_transfer(run, "mnist")
    assert {row.task for row in submit(run, "Ada", board)} == {"mnist"}
    assert validate(board) == []


def test_the_same_encoder_trained_again_adds_to_its_first_record(tmp_path: Path) -> None:
    board = tmp_path / "results.csv"
    submit(write_run(tmp_path / "first"), "Ada", board)
    again = write_run(tmp_path / "again")
    edit(again / "run.json", device="another machine", seconds=99.0)
    write_transfer(again, "mnist")
    rows = submit(again, "Bob", board)
    assert {(row.task, row.device) for row in rows} == {("mnist", "cpu")}
    assert validate(board) == []


def test_another_score_of_the_same_probe_is_refused_and_a_further_share_is_added(tmp_path: Path) -> None:
    run, board = write_run(tmp_path), tmp_path / "results.csv"
    submit(run, "Ada", board)
    write_transfer(run, "digits", (("linear", "1", 0.95), *RESULTS[1:]))
    with pytest.raises(UserError, match=r"linear at 1 scored 0.9 and now 0.95; only the first counts"):
        submit(run, "Ada", board)
    write_transfer(run, "digits", tuple((probe, "0.1", value - 0.1) for probe, _, value in RESULTS))
    assert {row.label_fraction for row in submit(run, "Ada", board)} == {"0.1"}
    assert validate(board) == []  # the files behind the earlier rows stay


def test_a_run_may_be_scored_again_on_changed_data_and_others_are_still_submitted(tmp_path: Path) -> None:
    run, board = write_run(tmp_path), tmp_path / "results.csv"
    submit(run, "Ada", board)
    path = run / "transfer" / "digits-v1.json"
    edit(path, data_fingerprint="e" * 12)
    with np.load(path.with_suffix(".predictions.npz")) as file:
        arrays: dict[str, Any] = dict(file)
    reverse = {name: value[..., ::-1] for name, value in arrays.items()}  # other labels, the same scores
    np.savez(path.with_suffix(".predictions.npz"), **reverse)
    rows = submit(run, "Ada", board)
    assert {row.data_fingerprint for row in rows} == {"e" * 12}
    stems = {row.data_fingerprint: source.stem for row in read(board) if (source := transfer_of(row))}
    assert stems == {"d" * 12: "digits-v1", "e" * 12: "digits-v1-2"}
    assert submit(write_run(tmp_path / "other", seed=1), "Bob", board)
    assert validate(board) == []


def test_the_wide_interval_of_a_score_with_a_rare_class_is_valid(tmp_path: Path) -> None:
    run, board = write_run(tmp_path), tmp_path / "results.csv"
    path = run / "transfer" / "digits-v1.json"
    label = np.repeat([0, 1, 2], [500, 499, 1])
    predicted = np.where(np.arange(1000) % 50 == 0, (label + 1) % 3, label)
    balanced = metric("balanced_accuracy")
    ends = interval(balanced, [measure(balanced, [predicted], label)])
    score = {"metric": "balanced_accuracy", "value": ends.value, "low": ends.low, "high": ends.high, "n": 1000}
    edit(path, results=[result | score for result in json.loads(path.read_text())["results"]])
    arrays: dict[str, Any] = {"label": label, **{f"{probe}@1": predicted[None] for probe, *_ in RESULTS}}
    np.savez(path.with_suffix(".predictions.npz"), **arrays)
    submit(run, "Ada", board)
    assert validate(board) == []


def test_an_error_in_a_large_unit_keeps_its_digits(tmp_path: Path) -> None:
    run, board = write_run(tmp_path), tmp_path / "results.csv"
    path = run / "transfer" / "digits-v1.json"
    rng = np.random.default_rng(0)
    label = rng.normal(size=100)
    predicted = label + 1e-7 * rng.normal(size=100)
    value = float(np.abs(predicted - label).mean())
    error = {"metric": "mae", "value": value, "low": 0.9 * value, "high": 1.1 * value}
    edit(path, kind="regression", results=[result | error for result in json.loads(path.read_text())["results"]])
    arrays: dict[str, Any] = {"label": label, **{f"{probe}@1": predicted[None] for probe, *_ in RESULTS}}
    np.savez(path.with_suffix(".predictions.npz"), **arrays)
    row, *others = submit(run, "Ada", board)
    assert row.value == pytest.approx(value, rel=1e-5)
    assert [one.value for one in read(board)] == [row.value, *(other.value for other in others)]
    assert validate(board) == []
    board.write_text(board.read_text().replace(str(row.value), str(float(f"{1.01 * value:.6g}"))))
    assert any("value is" in problem for problem in validate(board))


def test_predictions_must_reproduce_the_score(tmp_path: Path) -> None:
    board = tmp_path / "results.csv"
    row = submit(write_run(tmp_path), "Ada", board)[0]
    (path,) = row.record.rglob("*.npz")
    with np.load(path) as file:
        arrays: dict[str, Any] = dict(file)
    np.savez(path, **arrays | {"knn@1": arrays["linear@1"]})
    assert validate(board) == [f"{board}:4: value is 0.8, its predictions give 0.900000"]
    path.write_bytes(b"PK damaged")
    problems = validate(board)
    assert len(problems) == 3
    assert all("predictions.npz cannot be read" in problem for problem in problems)


def write_failed(out: Path, *, seed: int = 1, reason: str = "the loss is nan after step 7") -> Path:
    """A run that stopped while it was trained."""
    run = write_run(out, name=f"digits-dmix-s{seed}", seed=seed, tasks=())
    (run / "encoder.safetensors").unlink()
    edit(run / "run.json", status="failed", failure=reason, encoder_sha256="", seconds=None)
    return run


def test_a_failed_run_has_a_row_that_says_why_and_is_not_ranked(tmp_path: Path) -> None:
    board, run = tmp_path / "results.csv", write_failed(tmp_path)
    submit(write_run(tmp_path), "Ada", board)
    with pytest.raises(UserError, match="submit its failure with --failed"):
        submit(run, "Ada", board)
    with pytest.raises(UserError, match="--failed is for runs that failed"):
        submit(tmp_path / "digits-dmix-s0", "Ada", board, failed=True)
    (row,) = submit(run, "Ada", board, failed=True)
    with pytest.raises(UserError, match="already"):
        submit(run, "Ada", board, failed=True)
    assert (row.failure, row.seed, row.probe, row.encoder_sha256) == ("the loss is nan after step 7", 1, "", "")
    assert repr(read(board)[-1]) == repr(row)  # its value is NaN, which does not equal itself
    assert board.read_text().splitlines()[-1].endswith(",the loss is nan after step 7")
    assert validate(board) == []
    assert validate(board) == []  # as it is remembered

    rows = read(board)
    assert repr(read(board, probe="knn")) == repr([other for other in rows if other.probe == "knn" or other.failure])
    (section,) = [section for section in standings(rows) if section.failed]
    assert repr(section.failed) == repr((row,))
    assert not any(row in line.rows for part in standings(rows) for block in part.blocks for line in block.lines)
    for format in get_args(Format):
        assert "the loss is nan after step 7" in render(rows, format)
    assert "the loss is nan after step 7" in page(rows)
    beside = [replace(other, protocol="v2", data_fingerprint=row.data_fingerprint) for other in rows]
    (overview,) = overviews(beside, lambda domain: "image")
    assert ", 1 failed" in overview_text([overview])
    (overview,) = overviews([row], lambda domain: "image")
    assert [cell.score for cells in overview.cells for cell in cells if cell] == [None]

    again = write_run(tmp_path / "again", name="digits-dmix-s1", seed=1)  # now it is finished
    submit(again, "Ada", board)
    assert validate(board) == []
    assert not any(section.failed for section in standings(read(board)))


def test_a_forged_failure_is_found(tmp_path: Path) -> None:
    board = tmp_path / "results.csv"
    submit(write_run(tmp_path), "Ada", board)
    record = submit(write_failed(tmp_path), "Ada", board, failed=True)[0].record
    assert validate(board) == []
    honest, run_json = board.read_text(), (record / "run.json").read_text()

    def reports(says: str) -> None:
        problems = "\n".join(validate(board))
        assert re.search(says, problems), problems
        board.write_text(honest)
        (record / "run.json").write_text(run_json)

    set_cell(board, 5, "failure", "no memory")
    reports("failure is 'no memory', .* records 'the loss is nan")
    set_cell(board, 5, "failure", "")
    reports("probe is empty")
    set_cell(board, 5, "value", "0.1")
    reports("value is 0.1 though the run failed")
    set_cell(board, 2, "failure", "hides a score")
    reports("value is 0.9 though the run failed")
    for status in ("finished", "running"):
        edit(record / "run.json", status=status)
        reports("records no such result")
    edit(record / "run.json", encoder_sha256="ab" * 32)
    reports("it has an encoder or scores")
    edit(record / "run.json", failure="")
    reports("does not say why it failed")
    (other,) = {row.record for row in read(board) if not row.failure}
    of_rival = (other / "run.json").read_text()
    for status, says in (("failed", "records no such result"), ("running", "neither 'finished' nor 'failed'")):
        edit(other / "run.json", status=status, failure="a poor score")
        reports(says)
        (other / "run.json").write_text(of_rival)


def test_two_machines_same_name_do_not_collide(tmp_path: Path) -> None:
    board = tmp_path / "results.csv"
    first = submit(write_run(tmp_path / "a", seed=0), "Ada", board)
    second = submit(write_run(tmp_path / "b", seed=1), "Bob", board)
    assert first[0].run != second[0].run
    assert validate(board) == []


def test_runs_share_a_recipe_exactly_if_only_their_seeds_differ(tmp_path: Path) -> None:
    board = tmp_path / "results.csv"
    runs = [
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", seed=1, checkpoint_activations=True),  # the data root changes no number
        write_run(tmp_path / "c", seed=2, lr=1e-3),
    ]
    recipes = [submit(run, "Ada", board)[0].recipe for run in runs]
    assert recipes[0] == recipes[1] != recipes[2]


def test_submit_refuses_invalid_runs(tmp_path: Path) -> None:
    board = tmp_path / "results.csv"

    def refused(run: Path, says: str, by: str = "Ada") -> None:
        with pytest.raises(UserError, match=says) as error:
            submit(run, by, board)
        assert "\n" not in str(error.value)
        assert not board.exists()

    refused(write_run(tmp_path / "a"), "--by", by="  ")
    refused(write_run(tmp_path / "a2"), "--by", by="two\nlines")
    for number, by in enumerate(("=1+1", "+1", "-1", "@SUM(1)")):  # a spreadsheet would evaluate them as formulas
        refused(write_run(tmp_path / f"a{number + 3}"), "by", by=by)
    refused(write_run(tmp_path / "b", tasks=()), "dabsmix transfer --run")
    refused(tmp_path / "nowhere", "holds no run.json")
    run = write_run(tmp_path / "c")
    edit(run / "run.json", status="running")
    refused(run, "'running'")
    run = write_run(tmp_path / "d")
    (run / "encoder.safetensors").write_bytes(b"other weights")
    refused(run, "not this run's encoder")
    (run / "encoder.safetensors").unlink()
    refused(run, "cannot read .*encoder.safetensors")
    run = write_run(tmp_path / "e")
    (run / "transfer" / "digits-v1.json").write_text("{")
    refused(run, "cannot read .*digits-v1.json")
    run = write_run(tmp_path / "e2")
    edit(run / "run.json", config_hash=None)
    refused(run, r"run.json is damaged \(config_hash is None, not str\)")
    run = write_run(tmp_path / "f")
    (run / "config.yaml").write_text("lr: [1\nprecision")
    refused(run, "config.yaml")
    run = write_run(tmp_path / "g")
    write_transfer(run, "digits", (("linear", "1", 1.2),))
    refused(run, "outside")
    run = write_run(tmp_path / "h")
    write_transfer(run, "digits", (*RESULTS, RESULTS[0]))
    refused(run, "two results")
    run = write_run(tmp_path / "i")
    edit(run / "transfer" / "digits-v1.json", protocol="v7")
    refused(run, "protocol 'v7' is unknown")


def test_broken_header_names_the_columns(tmp_path: Path) -> None:
    board = tmp_path / "results.csv"
    broken = ",".join(COLUMNS).replace("metric,value", "metric,score")
    board.write_text(broken + "\n")
    run = write_run(tmp_path)
    for action in (lambda: submit(run, "Ada", board), lambda: read(board), lambda: validate(board)):
        with pytest.raises(UserError, match="no column value; unknown column 'score'"):
            action()
    assert board.read_text() == broken + "\n"


@pytest.mark.parametrize("text", ["", "\n", ",".join(reversed(COLUMNS)) + "\n"])
def test_other_broken_headers(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(UserError, match="broken header"):
        read(tmp_path / "results.csv")


def test_missing_leaderboard(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no leaderboard at"):
        read(tmp_path / "results.csv")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        submit(write_run(tmp_path), "Ada", tmp_path / "file" / "results.csv")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    run, folder = write_run(tmp_path), tmp_path / "leaderboard"
    folder.mkdir(mode=0o555)
    with pytest.raises(UserError, match="cannot write"):
        submit(run, "Ada", folder / "results.csv")


def _submit_all(runs: list[Path], by: str, board: Path) -> None:
    for run in runs:
        submit(run, by, board)


@pytest.mark.slow
def test_sixteen_submitters_at_once_lose_no_row(tmp_path: Path) -> None:
    board, submitters, runs_each = tmp_path / "results.csv", 16, 2
    runs = [
        [write_run(tmp_path / f"{i}-{j}", seed=i * runs_each + j) for j in range(runs_each)] for i in range(submitters)
    ]
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_submit_all, args=(mine, f"by{i}", board)) for i, mine in enumerate(runs)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * submitters
    assert len(read(board)) == submitters * runs_each * len(RESULTS)
    assert validate(board) == []
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".results.csv")]


def _submit_or_refuse(run: Path, board: Path, results: "multiprocessing.Queue[str]") -> None:
    try:
        submit(run, "Ada", board)
        results.put("added")
    except UserError as error:
        results.put("already" if "already" in str(error) else str(error))


def test_the_same_run_from_several_submitters_enters_once(tmp_path: Path) -> None:
    run, board, spawn = write_run(tmp_path), tmp_path / "results.csv", multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[str] = spawn.Queue()
    processes = [spawn.Process(target=_submit_or_refuse, args=(run, board, results)) for _ in range(3)]
    for process in processes:
        process.start()
    assert sorted(results.get(timeout=60) for _ in processes) == ["added", "already", "already"]
    for process in processes:
        process.join()
    assert len(read(board)) == len(RESULTS)


def test_a_crash_while_writing_does_not_change_the_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = tmp_path / "results.csv"
    submit(write_run(tmp_path / "a"), "Ada", board)
    before = board.read_bytes()
    replace = os.replace

    def fails(source: Any, target: Any) -> None:
        if Path(target) == board:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    run = write_run(tmp_path / "b", seed=1)
    with pytest.raises(UserError, match="No space left"):
        submit(run, "Ada", board)
    assert board.read_bytes() == before
    monkeypatch.undo()
    submit(run, "Ada", board)  # the record that was already written is harmless
    assert validate(board) == []


def set_cell(board: Path, line: int, column: str, value: str) -> None:
    """Overwrite one cell; the header is line 1."""
    with board.open(newline="") as file:
        rows = list(csv.reader(file))
    rows[line - 1][COLUMNS.index(column)] = value
    with board.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("value", "0.95", "outside its interval"),
        ("value", "0.62", "value is 0.62, .* records 0.61"),
        ("value", "nan", "finite"),
        ("value", "high", "value 'high' is not a float"),
        ("low", "", "both given or both empty"),
        ("seed", "1.5", "seed '1.5' is not an int"),
        ("uses_labels", "no", "uses_labels 'no' is not a bool"),
        ("uses_labels", "true", "uses_labels is True"),
        ("protocol", "v9", "protocol 'v9' is unknown"),
        ("metric", "niceness", "metric 'niceness' is unknown"),
        ("test_reads", "0", "must be at least 1"),
        ("date", "2026-13-01", "not a past day"),
        ("date", "2999-01-01", "not a past day"),
        ("label_fraction", "1.5", "label_fraction '1.5'"),
        ("hyper", "[]", "not a JSON object"),
        ("n", "0", "at least 1"),
        ("by", "", "by is empty"),
        ("encoder_sha256", "0" * 64, "records no such result"),
        ("data_fingerprint", "0" * 12, "records no such result"),
        ("commit", "abc", "commit is 'abc'"),
        ("run", "elsewhere", "no record"),
        ("run", "../../etc", "is not a folder's name"),
    ],
)
def test_validate_names_the_line(tmp_path: Path, column: str, value: str, says: str) -> None:
    board = tmp_path / "results.csv"
    submit(write_run(tmp_path), "Ada", board)
    set_cell(board, 3, column, value)
    problems = "\n".join(problem for problem in validate(board) if problem.startswith(f"{board}:3: "))
    assert re.search(says, problems), problems


def test_validate_finds_duplicate_and_removed_rows(tmp_path: Path) -> None:
    board = tmp_path / "results.csv"
    submit(write_run(tmp_path), "Ada", board)
    lines = board.read_text().splitlines(keepends=True)
    board.write_text("".join([*lines, lines[2]]))
    assert validate(board) == [f"{board}:5: the same result as line 3"]
    board.write_text("".join(lines[:-1]))
    assert [problem.partition(": ")[2] for problem in validate(board)] == [
        f"no row for digits v1 knn 1, which {read(board)[0].run} records"
    ]
    board.write_text("".join(lines) + "<<<<<<< ours\n")
    assert validate(board) == [f"{board}:5: 1 cells for {len(COLUMNS)} columns"]
    with pytest.raises(UserError, match=r"results.csv:5: 1 cells"):
        read(board)


def test_a_score_without_interval_is_read_back_without_interval(tmp_path: Path) -> None:
    run, board = write_run(tmp_path), tmp_path / "results.csv"
    path = run / "transfer" / "digits-v1.json"
    results = [result | {"low": None, "high": None} for result in json.loads(path.read_text())["results"]]
    edit(path, results=results)
    submit(run, "Ada", board)
    assert [(row.low, row.high) for row in read(board)] == [(None, None)] * len(RESULTS)
    assert validate(board) == []


def test_text_is_read_back_unchanged(tmp_path: Path) -> None:
    run, board = write_run(tmp_path), tmp_path / "results.csv"
    edit(run / "run.json", device='NVIDIA "H200", 1×')
    submit(run, "Zoë, |<b>", board)
    row = read(board)[0]
    hyper = {"alpha": 1.0, "detach_partner": True, "temperature": 0.2}
    assert (row.by, row.device, json.loads(row.hyper)) == ("Zoë, |<b>", 'NVIDIA "H200", 1×', hyper)
    assert validate(board) == []


def test_importing_the_board_is_light() -> None:
    heavy = "{'torch', 'pandas', 'sklearn', 'scipy', 'rich', 'matplotlib'}"
    modules = "dabsmix.board.submit, dabsmix.board.table, dabsmix.board.page"
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_our_own_leaderboard_is_valid() -> None:
    assert validate(OURS) == []


def test_rows_share_their_equal_cells(tmp_path: Path) -> None:
    """A board may have half a million rows, and `validate` holds all of them."""
    header, *rows = OURS.read_text().splitlines(keepends=True)
    board = tmp_path / "results.csv"
    board.write_text("".join([header, *rows * 3]))
    tracemalloc.start()
    try:
        held = list(lines(board))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(held) == 3 * len(rows)
    assert peak / len(held) < 1200  # bytes, of which the list of cells takes about 400
