"""`dabsmix bench`: workers that share the cells of a plan that the board lacks.

A cell is one data set, algorithm and seed: pretrained, transferred and submitted by the functions of the command line.
It is done when the board has its rows, so nothing else records what is done. Workers share nothing but a folder: each
claims a cell by a lock on a file, which the system releases however the worker ends.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from dabsmix.board.failures import Failures
from dabsmix.board.record import FAILED
from dabsmix.board.row import read
from dabsmix.board.submit import submit
from dabsmix.config import BenchConfig, PretrainConfig, TransferConfig, as_plain, config_hash
from dabsmix.errors import UserError
from dabsmix.files import unwritable, write
from dabsmix.interrupt import RESUME_ME, Interrupted
from dabsmix.run import Run, commit, readable_runs
from dabsmix.source import Source, load
from dabsmix.verbs.cells import Cell, Trial, cells, on_board, tasks
from dabsmix.verbs.chosen import ChosenSettings
from dabsmix.verbs.estimate import log_time

__all__ = ["bench"]

WAIT = 2.0  # seconds between two looks at cells that other workers hold


def bench(
    plans: Sequence[BenchConfig], *, chosen_path: Path, say: Callable[[str], None] = lambda _: None
) -> dict[str, dict[str, Any]]:
    """Work on the matrix, together with other workers, until every cell is on the board or has failed.

    Args:
        plans: the matrices, in the order of their cells; they share a board and a folder of runs.
        chosen_path: the file of chosen rates and counted steps.
        say: called with one line per cell that was done.

    Returns:
        The failures among these cells, by configuration hash.

    Raises:
        UserError: a mistake in the plan, or its ``--out`` cannot be written.
    """
    all_cells, chosen, failures = cells(plans), ChosenSettings(chosen_path), Failures(plans[0].leaderboard)
    if plans[0].retry:
        for cell in all_cells:
            failures.clear(chosen.key(cell))
            chosen.forget_failures(cell)
    while jobs := list(_outstanding(all_cells, chosen, failures)):
        worked = False
        for job in jobs:
            with _claimed(job, chosen) as claimed:
                # another worker may have done it between the look at the board and the claim
                if claimed and job in list(_outstanding([_cell_of(job)], chosen, failures)):
                    _do(job, chosen, failures, say)
                    worked = True
                    break  # start again: a chosen rate makes cells ready, and blocks are finished in order
        if not worked:
            time.sleep(WAIT)
    known = failures.read()
    return {key: known[key] for key in (chosen.key(cell) for cell in all_cells) if key in known}


def _outstanding(all_cells: Sequence[Cell], chosen: ChosenSettings, failures: Failures) -> Iterator[Cell | Trial]:
    """The cells that are neither on the board nor failed, or the trials that they wait for."""
    board = all_cells[0].plan.leaderboard
    rows, failed = read(board) if board.exists() else [], failures.read()
    yielded = set()
    for cell in all_cells:
        if untried := chosen.untried(cell):
            yield from (Trial(cell, lr) for lr in untried if (cell.setting, lr) not in yielded)
            yielded |= {(cell.setting, lr) for lr in untried}
            continue
        key = chosen.key(cell)
        if key not in failed and not on_board(cell, key, rows):
            yield cell


def _cell_of(job: Cell | Trial) -> Cell:
    return job if isinstance(job, Cell) else job.cell


@contextmanager
def _claimed(job: Cell | Trial, chosen: ChosenSettings) -> Iterator[bool]:
    """Try to claim the cell for the duration of the block; yields whether this worker holds it.

    Raises:
        UserError: ``--out`` cannot be written.
    """
    cell = _cell_of(job)
    name = chosen.key(cell) if isinstance(job, Cell) else config_hash(chosen.tried(job))
    path = cell.plan.out / "claims" / f"{name}.lock"
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise unwritable(path, error) from None
    try:
        yield True
    finally:
        lock.release()


def _do(job: Cell | Trial, chosen: ChosenSettings, failures: Failures, say: Callable[[str], None]) -> None:
    """Do one piece of work; an error is recorded, and the other work continues."""
    began = time.perf_counter()
    reason, outcome = "", ""
    try:
        outcome = _try(job, chosen) if isinstance(job, Trial) else _fill(job, chosen)
    except Interrupted:
        raise
    except UserError as error:
        reason = str(error)
    except Exception as error:  # a bug, or no memory left: the other cells do not depend on it
        reason = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - began
    if reason and isinstance(job, Trial):
        chosen.note_rate(job, None, reason)
    elif reason:
        failures.note(chosen.key(_cell_of(job)), _failure(_cell_of(job), reason))
        try:
            _submit_failure(_cell_of(job), chosen.key(_cell_of(job)))
        except UserError as error:  # failures.json has it, and the other cells do not depend on it
            say(f"the failure is not on the board: {error}")
    elif isinstance(job, Cell):
        failures.clear(chosen.key(job))
    say(f"failed: {job}: {reason}" if reason else f"{job}: {outcome} ({seconds:.0f} s)")


def _submit_failure(cell: Cell, key: str) -> None:
    """Put a run that failed while it was trained on the board; other failures left no record of a run to show."""
    board = cell.plan.leaderboard
    rows = [row for row in read(board) if row.config_hash == key] if board.exists() else []
    shown = {row.pretrain_fingerprint for row in rows}  # on these data it failed before, or is scored already
    for run in readable_runs(cell.plan.out):
        failed = (run.record.config_hash, run.record.status) == (key, FAILED)
        if failed and run.record.data_fingerprint not in shown:
            submit(run.path, cell.plan.by, board, failed=True)
            return


def _failure(cell: Cell, reason: str) -> dict[str, Any]:
    pretraining = cell.pretraining
    return {
        "domain": pretraining.source.name,
        "algorithm": cell.row,
        "seed": pretraining.seed,
        "encoder": pretraining.encoder,
        "steps": pretraining.steps,
        "reason": reason,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
    }


def _try(trial: Trial, chosen: ChosenSettings) -> str:
    """Pretrain briefly with one rate, and score on validation, on which alone the choice of the rate rests.

    At its end every pretraining scores its online probe on the test split once; no choice depends on that.
    """
    config = chosen.tried(trial)
    run = _pretrained(config, trial.cell.plan)
    score = _validation_score(run, config.source)
    chosen.note_rate(trial, score)
    return f"validation {score:.4f}"


def _validation_score(run: Run, source: Source) -> float:
    """The best ridge probe's score on the validation split, with a sign that makes higher better.

    Ridge regression has a closed form, so it always converges. It uses mean features, all training labels, eight
    penalties, and the first task that the data set names.
    """
    from dabsmix.model.checkpoint import load_encoder
    from dabsmix.scoring.features import features, token_features
    from dabsmix.scoring.heads import Features, fit_ridge
    from dabsmix.scoring.metrics import metric

    task = tasks(source)[0]
    data = load(source if source.domain in (None, task) else Source(task, data_root=source.data_root))
    labelled, accelerator = data.require_labelled(), _accelerator("fp32")
    encoder = load_encoder(run.path / "encoder.safetensors", data.specs).to(accelerator.device)

    def part(split: Any) -> Features:
        if labelled.task.kind == "tokens":
            pooled = {"tokens": token_features(encoder, split, data.normalise, accelerator=accelerator)}
        else:
            pooled = {"mean": features(encoder, split, data.normalise, accelerator=accelerator).mean}
        return Features(pooled, split.label, split.group)

    heads = fit_ridge(part(labelled.train), labelled.task, penalties=[10.0**power for power in range(1, -7, -1)])
    validation, scale = part(labelled.validation), metric(labelled.task.metric)
    sign = 1 if scale.higher else -1
    return max(sign * scale(head.predict(validation), validation.label) for head in heads)


def _fill(cell: Cell, chosen: ChosenSettings) -> str:
    """Pretrain, transfer, submit: as the three commands do."""
    plan, config = cell.plan, chosen.settled(cell)
    run = _pretrained(config, plan)
    scoring = TransferConfig(run=(run.path,), protocol=plan.protocol, labels=plan.labels, data_root=plan.data_root)
    began = time.perf_counter()
    if plan.precision == "fp32":
        from dabsmix.verbs.transfer import transfer

        transfer(scoring, accelerator=_accelerator("fp32"), answer=False)  # the matrix has `none` itself
    else:
        _child([sys.executable, "-m", "dabsmix", "transfer", *_transfer_words(scoring)])
    seconds = {"pretraining": run.record.seconds or 0.0, "transfer": time.perf_counter() - began}
    rows = submit(run.path, plan.by, plan.leaderboard)
    log_time(cell, config, run, seconds)
    first = rows[0]
    return f"{first.probe} {first.label_fraction}: {first.value:.4f}"


def _pretrained(config: PretrainConfig, plan: BenchConfig) -> Run:
    """The finished run, trained in this process, or in children if a cell needs several or another precision."""
    if plan.gpus == 1 and plan.precision == "fp32":
        from dabsmix.verbs.pretrain import pretrain

        return pretrain(config, accelerator=_accelerator("fp32"), begin=True)
    same = [run for run in readable_runs(config.out) if run.record.config_hash == config_hash(config)]
    fingerprint = load(config.source).fingerprint if same else ""  # the hash names the files, and they may have changed
    begun = [run for run in same if run.record.data_fingerprint == fingerprint]
    if finished := [run for run in begun if run.finished]:
        return finished[0]
    start = ["torchrun", f"--nproc_per_node={plan.gpus}"] if plan.gpus > 1 else [sys.executable]
    file = config.out / "claims" / f"{config_hash(config)}.yaml"
    write(file, lambda p: p.write_text(yaml.safe_dump(as_plain(config), sort_keys=False), encoding="utf-8"))
    words = ["--config", str(file), "--out", str(config.out), *(["--resume"] if begun else [])]
    printed = _child([*start, "-m", "dabsmix", "pretrain", *words])
    return Run(Path(printed.strip().splitlines()[-1]))


def _transfer_words(config: TransferConfig) -> list[str]:
    words = ["--run", str(config.run[0])]
    words += ["--protocol", config.protocol] if config.protocol else []
    words += ["--labels", *config.labels] if config.labels else []
    return words + (["--data-root", str(config.data_root)] if config.data_root else [])


def _child(words: Sequence[str]) -> str:
    """Run a command and return what it prints.

    Raises:
        UserError: the command failed; its last line says why.
        Interrupted: the command was asked to stop, so this worker ends too.
    """
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    before = signal.signal(signal.SIGTERM, lambda number, frame: child.terminate())
    try:
        printed, errors = child.communicate()
    finally:
        signal.signal(signal.SIGTERM, before)
    # torchrun changes the status to 1, but its children's message remains
    if child.returncode == RESUME_ME or (child.returncode and "is interrupted after step" in errors):
        raise Interrupted("the same command goes on from here")
    if child.returncode:
        lines = errors.strip().splitlines() or [f"exit status {child.returncode}"]
        raise UserError(next((line for line in reversed(lines) if line.startswith("dabsmix: ")), lines[-1]))
    return printed


def _accelerator(precision: str) -> Any:
    from dabsmix.training import accelerate

    return accelerate(precision)  # one for each use, because it keeps what it has prepared
