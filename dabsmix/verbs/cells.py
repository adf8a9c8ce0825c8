"""The cells of a plan of `dabsmix bench`, and which of them the board has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, get_args

from dabsmix.board.record import ONLINE
from dabsmix.board.row import Row
from dabsmix.config import BenchConfig, PretrainConfig
from dabsmix.errors import UserError
from dabsmix.registry import algorithm_class, algorithm_flags, domain
from dabsmix.source import Source, batch_size, load

__all__ = ["OPERATING", "REFERENCE", "Cell", "Trial", "cells", "on_board", "tasks", "usual_batch"]

REFERENCE = "emix"  # whose steps an equal-compute budget is stated in
OPERATING = ("leaderboard", "out", "chosen", "on", "workers", "partition", "hours", "retry", "dry_run")
"""Fields that say how the matrices are worked on; workers take them from the first."""


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
    # packed data tell their modality themselves, and the hash of a run has it
    of_files = [source if source.modality else load(source).source or source for source in of_files]
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


@cache
def usual_batch(source: Source) -> int:
    """The batch size of data if the plan names none: of own data at most the number of examples."""
    usual = batch_size(source)
    return usual if source.domain else min(usual, len(load(source).pretrain))


def tasks(source: Source) -> tuple[str, ...]:
    """The tasks that an encoder of these data is scored on."""
    return (source.name,) if source.domain is None else domain(source.domain).transfers or (source.domain,)


def on_board(cell: Cell, key: str, rows: Sequence[Row]) -> bool:
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
    return {(task, share) for task in tasks(source) for share in shares} <= scored
