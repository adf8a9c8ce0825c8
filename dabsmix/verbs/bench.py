"""`dabsmix bench`, top to bottom: a plan, its cells, and workers that share what the board lacks.

A cell is one data set, algorithm and seed: pretrained, transferred and submitted by the functions of the command line.
It is done when the board has its rows, so nothing else records what is done. Workers share nothing but a folder: each
claims a cell by a lock on a file, which the system releases however the worker ends.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any, get_args

import yaml
from filelock import FileLock, Timeout

from dabsmix.board.failures import Failures
from dabsmix.board.record import FAILED, ONLINE
from dabsmix.board.row import Row, read
from dabsmix.board.submit import submit
from dabsmix.config import BenchConfig, PretrainConfig, TransferConfig, as_plain, config_hash, resolve
from dabsmix.errors import UserError
from dabsmix.files import read_json, write, write_json
from dabsmix.interrupt import RESUME_ME, Interrupted
from dabsmix.registry import algorithm_class, algorithm_flags, domain
from dabsmix.run import Run, commit, readable_runs
from dabsmix.source import Source, batch_size, load

__all__ = ["Cell", "Trial", "bench", "cells", "dry_run"]

REFERENCE = "emix"  # whose steps an equal-compute budget is stated in
OPERATING = ("leaderboard", "out", "chosen", "on", "workers", "partition", "hours", "retry", "dry_run")
"""Fields that say how the matrices are worked on; workers take them from the first."""
WAIT = 2.0  # seconds between two looks at cells that other workers hold


@dataclass(frozen=True)
class Cell:
    """One data set, algorithm and seed.

    Attributes:
        pretraining: its configuration; ``lr`` and ``steps`` may still have to be chosen.
        row: the algorithm as the plan writes it, ``ALGO`` or ``ALGO:KEY=VALUE,...``.
        plan: the matrix that it belongs to.
    """

    pretraining: PretrainConfig
    row: str
    plan: BenchConfig

    def __str__(self) -> str:
        return f"{self.pretraining.source.name} {self.row} seed {self.pretraining.seed}"

    @cached_property
    def trains(self) -> bool:
        """Whether the algorithm trains."""
        return algorithm_class(self.pretraining.algo).trains

    @property
    def budget(self) -> str:
        """The length of the pretraining, as the plan states it."""
        length = f"{self.plan.minutes:g} min" if self.plan.minutes else f"{self.plan.steps} steps"
        return length + ("" if self.plan.budget == "equal-steps" else f" of {REFERENCE} in FLOPs")

    @property
    def setting(self) -> str:
        """The key of a chosen rate and a measured number of steps: everything but the seed."""
        plan = self.plan
        usual = ((plan.precision, "fp32"), (plan.attention, "fused"), (plan.dropout_masks, "torch"))
        numerics = "".join(f" {value}" for value, default in usual if value != default)
        batch = plan.batch_size or "default"
        return f"{_content(self.pretraining.source)} {self.row} {plan.encoder} {self.budget} of {batch}{numerics}"


@cache
def _content(source: Source) -> str:
    """The name of the data, and of own data the fingerprint too: other files may have the same name."""
    return source.name if source.domain else f"{source.name} {load(source).fingerprint[:12]}"


@dataclass(frozen=True)
class Trial:
    """A short pretraining with one of the rates, scored on validation alone."""

    cell: Cell
    lr: float

    def __str__(self) -> str:
        return f"{self.cell.pretraining.source.name} {self.cell.row} rate {self.lr:g}"


# --- the cells of a plan


def cells(plans: Sequence[BenchConfig]) -> list[Cell]:
    """Every cell of the matrices once, ordered by data set, so that complete blocks come first.

    Raises:
        UserError: no data are named, two data sets have the same name, the matrices are to be run in different ways, a
            number is out of range, or a data set, algorithm, hyperparameter or encoder is unknown.
    """
    for number, plan in enumerate(plans[1:], 2):
        for name in OPERATING:
            if (here := getattr(plan, name)) != (first := getattr(plans[0], name)):
                raise UserError(f"part {number} of the plan: {name} {here}, but {first} in part 1; all need the same")
    matrix_cells = [
        Cell(_pretraining(source, row, seed, plan), row, plan)
        for plan in plans
        for source in _sources(plan)
        for seed in plan.seeds
        for row in plan.algos
    ]
    if not matrix_cells:
        raise UserError("no cells: name --domains or --data, --algos and --seeds, or a plan that does")
    for plan in plans:
        for row in plan.algos:
            _pretraining(Source(), row, 0, plan).check()
    once: dict[tuple[Any, ...], Cell] = {}  # parts may overlap
    for cell in matrix_cells:
        plan = cell.plan
        once.setdefault((str(cell), cell.setting, plan.rates, plan.lr, plan.protocol, plan.labels), cell)
    return list(once.values())


def _sources(plan: BenchConfig) -> list[Source]:
    if plan.domains and plan.data:
        raise UserError("--domains and --data: name one of the two")
    for flag in ("modality", "label", "options"):
        if not plan.data and (value := getattr(plan, flag)) is not None:
            raise UserError(f"--{flag} {value} is for your own data (--data PATH); leave it out with --domains")
    named = [Source(domain(name).name, data_root=plan.data_root) for name in plan.domains]
    of_files = [
        Source(data=path, modality=plan.modality, label=plan.label, options=plan.options, data_root=plan.data_root)
        for path in plan.data
    ]
    for source in of_files:
        source.check()
        if source.label is None:
            raise UserError(f"--data {source.data}: bench scores algorithms, so it needs --label")
    names = [source.name for source in named + of_files]
    for source in of_files:
        if names.count(source.name) > 1:
            raise UserError(f"--data {source.data}: other data here are called {source.name!r} too; rename the file")
    return named + of_files


def _pretraining(source: Source, row: str, seed: int, plan: BenchConfig) -> PretrainConfig:
    algo, _, settings = row.rpartition(":") if "=" in row else (row, "", "")
    return PretrainConfig(
        source,
        algo=algo,
        encoder=plan.encoder,
        steps=plan.steps,
        batch_size=plan.batch_size,
        lr=plan.lr,
        seed=seed,
        precision=plan.precision,
        compile=plan.compile,
        attention=plan.attention,
        dropout_masks=plan.dropout_masks,
        resume=True,
        out=plan.out,
        hyper=dict(_hyper(algo, text) for text in settings.split(",") if text),
    )


def _hyper(algo: str, text: str) -> tuple[str, Any]:
    """``alpha=2`` as a keyword of the algorithm and a value of its type."""
    key, _, value = text.partition("=")
    kinds = {flag.name: flag.type for flag in algorithm_flags(algo)}
    if key not in kinds:
        raise UserError(f"{algo}:{text}: no hyperparameter {key!r}; there are: {', '.join(kinds)}")
    kind = kinds[key]
    choices = {str(choice).lower(): choice for choice in (get_args(kind) or (True, False))}
    if kind is bool or get_args(kind):
        if value.lower() not in choices:
            raise UserError(f"{algo}:{text}: must be one of {', '.join(choices)}")
        return key, choices[value.lower()]
    try:
        return key, kind(value)
    except ValueError as error:
        raise UserError(f"{algo}:{text}: must be of type {kind.__name__}") from error


# --- rates and steps, chosen once and stored in a small file


class ChosenSettings:
    """The file of tried rates and counted steps.

    By `Cell.setting`: ``validation`` scores by rate, null for one that failed for the reason in ``failed``; ``steps``.

    Args:
        path: of the file.
        keep: whether changes are written to the file; otherwise this object alone knows them.
    """

    def __init__(self, path: Path, *, keep: bool = True) -> None:
        self.path, self._keep = path, keep
        self._unsaved: dict[str, dict[str, Any]] = {}

    def read(self) -> dict[str, dict[str, Any]]:
        """The contents of the file; empty if there is none yet."""
        return read_json(self.path) | self._unsaved

    def note(self, setting: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the entry of one setting; several workers may do so at once."""
        if not self._keep:
            self._unsaved[setting] = self.read().get(setting, {})
            return change(self._unsaved[setting])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            values = self.read()
            change(values.setdefault(setting, {}))
            write_json(self.path, dict(sorted(values.items())))

    def untried(self, cell: Cell) -> list[float]:
        """The rates that have not been tried yet."""
        if not cell.trains or not cell.plan.rates:
            return []
        tried = self.read().get(cell.setting, {}).get("validation", {})
        return [lr for lr in cell.plan.rates if f"{lr:g}" not in tried]

    def lr(self, cell: Cell) -> float | None:
        """The rate with the best validation score, the smallest among equals; the plan's rate if none are tried.

        Raises:
            UserError: every rate failed.
        """
        if not cell.trains or not cell.plan.rates:
            return cell.plan.lr
        tried = self.read()[cell.setting]["validation"]
        scores = {lr: tried[f"{lr:g}"] for lr in sorted(cell.plan.rates) if tried[f"{lr:g}"] is not None}
        if not scores:
            reasons = self.read()[cell.setting].get("failed", {})
            last = "".join(f": {reason}" for reason in [*reasons.values()][-1:])
            raise UserError(f"every one of the rates {', '.join(map(str, cell.plan.rates))} failed{last}")
        return max(scores, key=lambda lr: scores[lr])

    def forget_failures(self, cell: Cell) -> None:
        """Let the rates be tried again if every one of them failed: else cells may be done with one of the others."""

        def change(entry: dict[str, Any]) -> None:
            entry["validation"] = {}
            entry.pop("failed", None)

        tried = self.read().get(cell.setting, {}).get("validation", {})
        if tried and set(tried.values()) == {None}:
            self.note(cell.setting, change)

    def steps(self, cell: Cell) -> int:
        """The steps of the cell's budget; counted or measured once."""
        plan = cell.plan
        if not cell.trains or (plan.minutes is None and plan.budget == "equal-steps"):
            return plan.steps
        known = self.read().get(cell.setting, {}).get("steps")
        if known is None:
            known = _budgeted_steps(cell)
            self.note(cell.setting, lambda entry: entry.setdefault("steps", known))
            known = self.read()[cell.setting]["steps"]
        return int(known)


def _budgeted_steps(cell: Cell) -> int:
    from dabsmix.verbs.budget import step_cost

    cost = step_cost(cell.pretraining)
    if cell.plan.budget == "equal-steps":
        assert cell.plan.minutes is not None
        return max(1, round(60 * cell.plan.minutes / cost.seconds))
    reference = step_cost(replace(cell.pretraining, algo=REFERENCE, hyper={}))
    steps = cell.plan.steps if cell.plan.minutes is None else 60 * cell.plan.minutes / reference.seconds
    return max(1, round(steps * reference.flops / cost.flops))


def _settled(cell: Cell, chosen: ChosenSettings) -> PretrainConfig:
    """The cell's configuration with its rate, its steps and every open field filled in, as its hash needs it."""
    pretraining = replace(cell.pretraining, steps=chosen.steps(cell), lr=chosen.lr(cell))
    return resolve(pretraining, _usual_batch(pretraining.source))[0]


@cache
def _usual_batch(source: Source) -> int:
    usual = batch_size(source)
    return usual if source.domain else min(usual, len(load(source).pretrain))


# --- which cells are done (rows of the board) and which failed (a file beside it)


def _tasks(source: Source) -> tuple[str, ...]:
    return (source.name,) if source.domain is None else domain(source.domain).transfers or (source.domain,)


def _on_board(cell: Cell, key: str, rows: Sequence[Row]) -> bool:
    """Whether every task has a row for every share of the labels that the plan names."""
    protocol, source = cell.plan.protocol, cell.pretraining.source
    done = [
        row
        for row in rows
        if row.config_hash == key and row.probe != ONLINE and not row.failure and protocol in (None, row.protocol)
    ]
    if done and source.domain is None:  # the hash names the files, and they may have changed
        done = [row for row in done if row.pretrain_fingerprint == load(source).fingerprint]
    scored = {(row.task, row.label_fraction) for row in done}
    shares = cell.plan.labels or tuple({row.label_fraction for row in done}) or ("1",)
    shares = tuple(share if "/" in share else f"{float(share):g}" for share in shares)
    return {(task, share) for task in _tasks(source) for share in shares} <= scored


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


# --- the work


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
        UserError: a mistake in the plan.
    """
    all_cells, chosen, failures = cells(plans), ChosenSettings(chosen_path), Failures(plans[0].leaderboard)
    if plans[0].retry:
        for cell in all_cells:
            failures.clear(_key(cell, chosen))
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
    return {key: known[key] for key in (_key(cell, chosen) for cell in all_cells) if key in known}


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
        key = _key(cell, chosen)
        if key not in failed and not _on_board(cell, key, rows):
            yield cell


def _cell_of(job: Cell | Trial) -> Cell:
    return job if isinstance(job, Cell) else job.cell


def _key(cell: Cell, chosen: ChosenSettings) -> str:
    """The hash of the cell's configuration; that of the plan's configuration if every rate failed."""
    if chosen.untried(cell):
        return ""
    try:
        return config_hash(_settled(cell, chosen))
    except UserError:
        return config_hash(cell.pretraining)


@contextmanager
def _claimed(job: Cell | Trial, chosen: ChosenSettings) -> Iterator[bool]:
    """Try to claim the cell for the duration of the block; yields whether this worker holds it."""
    cell = _cell_of(job)
    name = _key(cell, chosen) if isinstance(job, Cell) else config_hash(_tried(job, chosen))
    folder = cell.plan.out / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
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
        _note_rate(job, None, chosen, reason)
    elif reason:
        failures.note(_key(_cell_of(job), chosen), _failure(_cell_of(job), reason))
        try:
            _submit_failure(_cell_of(job), _key(_cell_of(job), chosen))
        except UserError as error:  # failures.json has it, and the other cells do not depend on it
            say(f"the failure is not on the board: {error}")
    elif isinstance(job, Cell):
        failures.clear(_key(job, chosen))
    say(f"failed: {job}: {reason}" if reason else f"{job}: {outcome} ({seconds:.0f} s)")


def _submit_failure(cell: Cell, key: str) -> None:
    """Put a run that failed while it was trained on the board; other failures left no record of a run to show."""
    board = cell.plan.leaderboard
    if board.exists() and any(row.config_hash == key for row in read(board)):
        return  # it failed before, or is scored already
    for run in readable_runs(cell.plan.out):
        if (run.record.config_hash, run.record.status) == (key, FAILED):
            submit(run.path, cell.plan.by, board, failed=True)
            return


def _tried(trial: Trial, chosen: ChosenSettings) -> PretrainConfig:
    cell = trial.cell
    steps = max(1, chosen.steps(cell) // 3)
    trial_config = replace(
        cell.pretraining, lr=trial.lr, steps=steps, seed=cell.plan.seeds[0], out=cell.plan.out / "rates"
    )
    return resolve(trial_config, _usual_batch(trial_config.source))[0]


def _try(trial: Trial, chosen: ChosenSettings) -> str:
    """Pretrain briefly with one rate, and score on validation: the test split is not read."""
    config = _tried(trial, chosen)
    run = _pretrained(config, trial.cell.plan)
    score = _validation_score(run, config.source)
    _note_rate(trial, score, chosen)
    return f"validation {score:.4f}"


def _note_rate(trial: Trial, score: float | None, chosen: ChosenSettings, reason: str = "") -> None:
    def change(entry: dict[str, Any]) -> None:
        tried = entry.setdefault("validation", {})
        tried[f"{trial.lr:g}"] = score
        if score is None:
            entry.setdefault("failed", {})[f"{trial.lr:g}"] = reason
        known = {lr: value for lr, value in tried.items() if value is not None}
        entry["lr"] = float(max(sorted(known, key=float), key=lambda lr: known[lr])) if known else None
        entry["trial_steps"] = _tried(trial, chosen).steps
        entry["trial_seed"] = trial.cell.plan.seeds[0]
        entry["commit"] = commit()

    chosen.note(trial.cell.setting, change)


def _validation_score(run: Run, source: Source) -> float:
    """The best ridge probe's score on the validation split, with a sign that makes higher better.

    Ridge regression has a closed form, so it always converges. It uses mean features, all training labels, eight
    penalties, and the first task that the data set names.
    """
    from dabsmix.model.checkpoint import load_encoder
    from dabsmix.scoring.features import features, token_features
    from dabsmix.scoring.heads import Features, fit_ridge
    from dabsmix.scoring.metrics import metric

    task = _tasks(source)[0]
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
    plan, config = cell.plan, _settled(cell, chosen)
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
    _log_time(cell, config, run, seconds)
    first = rows[0]
    return f"{first.probe} {first.label_fraction}: {first.value:.4f}"


def _pretrained(config: PretrainConfig, plan: BenchConfig) -> Run:
    """The finished run, trained in this process, or in children if a cell needs several or another precision."""
    if plan.gpus == 1 and plan.precision == "fp32":
        from dabsmix.verbs.pretrain import pretrain

        return pretrain(config, accelerator=_accelerator("fp32"), begin=True)
    begun = [run for run in readable_runs(config.out) if run.record.config_hash == config_hash(config)]
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


# --- estimated times


def _log_time(cell: Cell, config: PretrainConfig, run: Run, seconds: Mapping[str, float]) -> None:
    line = {
        "setting": [config.source.name, cell.row, config.encoder, config.batch_size],
        "steps": run.record.steps,
        "device": run.record.device,
        **{name: round(value, 2) for name, value in seconds.items()},
    }
    with (cell.plan.out / "times.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class CellTime:
    """The state of a cell, its budget, and its estimated time.

    Attributes:
        state: ``done``, ``failed`` or ``missing``.
        pretraining: seconds, with the trials of rates; None if it is not missing or no similar cell was measured.
        transfer: seconds; None also where the board alone tells the time, because it has only that of pretraining.
    """

    cell: Cell
    state: str
    pretraining: float | None = None
    transfer: float | None = None


def dry_run(plans: Sequence[BenchConfig], *, chosen_path: Path) -> list[CellTime]:
    """Every cell, whether it is done, and its time by the finished cells of the same data set and algorithm.

    Times come from ``times.jsonl`` in the folder of the runs, or else from the board, whose rows give the time of
    pretraining alone; a cell of another algorithm on the same data set stands in where the algorithm was not measured.
    Steps count in proportion, transfer as it was. Trials of rates are included with the first cell that waits for them.
    Nothing is written.
    """
    all_cells, chosen = cells(plans), ChosenSettings(chosen_path, keep=False)
    failures, board = Failures(plans[0].leaderboard).read(), plans[0].leaderboard
    rows = read(board) if board.exists() else []
    times, times_of_board = _times(plans[0].out), _times_of(rows)
    estimates, counted = [], set()
    for cell in all_cells:
        untried = chosen.untried(cell)
        key = "" if untried else _key(cell, chosen)
        state = "failed" if key in failures else "done" if key and _on_board(cell, key, rows) else "missing"
        trials = 0 if cell.setting in counted else len(untried)
        counted.add(cell.setting)
        if state == "missing":
            similar = _similar(cell, times) or _similar(cell, times_of_board)
            estimates.append(CellTime(cell, state, *_seconds(cell, chosen, similar, trials)))
        else:
            estimates.append(CellTime(cell, state))
    return estimates


def _times(out: Path) -> list[dict[str, Any]]:
    """The measured times, without the lines that a killed worker left unfinished."""
    path, times = out / "times.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(ValueError):
            times.append(json.loads(line))
    return times


def _times_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What the board tells of the times, in the form of ``times.jsonl``: pretraining once for each run, no transfer."""
    runs = {row.run: row for row in rows if row.seconds and not row.failure}
    return [
        {
            "setting": [row.domain, row.algorithm, row.encoder, row.batch_size],
            "steps": row.steps,
            "device": row.device,
            "pretraining": row.seconds,
            "transfer": None,
        }
        for row in runs.values()
    ]


def _similar(cell: Cell, times: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The times of the same cell, or else of other algorithms on the same data set."""
    pretraining = cell.pretraining
    name, usual = pretraining.source.name, pretraining.batch_size or _usual_batch(pretraining.source)
    same = [entry for entry in times if entry["setting"] == [name, cell.row, pretraining.encoder, usual]]
    return same or [
        entry
        for entry in times
        if (entry["setting"][0], entry["setting"][2]) == (name, pretraining.encoder)
        and (entry["steps"] or not cell.trains)
    ]


def _seconds(
    cell: Cell, chosen: ChosenSettings, similar: Sequence[dict[str, Any]], trials: int
) -> tuple[float | None, float | None]:
    """Of pretraining and of transfer; None where nothing was measured."""
    if not similar:
        return None, None
    measured = [entry["transfer"] for entry in similar if entry["transfer"] is not None]
    transfer = sum(measured) / len(measured) if measured else None
    if not cell.trains:
        return (None if transfer is None else 0.0), transfer
    step = sum(entry["pretraining"] for entry in similar) / max(1, sum(entry["steps"] for entry in similar))
    return chosen.steps(cell) * step * (1 + trials / 3), transfer
