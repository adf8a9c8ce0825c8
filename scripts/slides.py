"""The registered test of docs/slides.md, from the rows of a board: scores, contrasts with Holm's correction, verdicts.

    python scripts/slides.py leaderboard/plans/slides_cpu.yaml [--csv leaderboard/results.csv]

Rates and counted steps are those of PLAN.chosen.json. Nothing is computed before every run has a row, be it one that
says why it failed: the registration allows no interim look. A run is of an arm only if its whole configuration is that
of the plan, so rows of other hyperparameters, views, precisions or protocols do not enter.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from dabsmix.arguments import read_plan
from dabsmix.board.failures import Failures
from dabsmix.board.record import predictions_of
from dabsmix.board.row import Row, read
from dabsmix.errors import UserError
from dabsmix.run import commit
from dabsmix.scoring.intervals import Difference, Measured, average, compare, holm, measure
from dabsmix.scoring.metrics import metric
from dabsmix.verbs.cells import Cell, cells
from dabsmix.verbs.chosen import ChosenSettings

ENDPOINTS = ("online", "knn", "linear")
CONTRASTS = (("dmix", "emix"), ("emix", "shed"))


@dataclass(frozen=True)
class Arm:
    """One algorithm on one data set under one budget.

    Attributes:
        lr, steps: as chosen and counted; ``edge`` is whether the rate is the largest or smallest that was tried.
        runs: by endpoint and seed.
        lacking: seeds that have neither scores nor a row that says that they failed.
    """

    domain: str
    algorithm: str
    lr: float
    steps: int
    edge: bool
    runs: Mapping[str, Mapping[int, Measured]]
    lacking: tuple[int, ...]


Key = tuple[str, str, str, str]
"""Data set, endpoint, and the two algorithms of a contrast."""


def families(plan_path: Path, csv: Path) -> dict[str, list[Arm]]:
    """The arms of each budget.

    Raises:
        UserError: the plan or the board cannot be read, or runs are missing.
    """
    plans, path = read_plan([str(plan_path)])
    chosen = ChosenSettings((path or plan_path).with_suffix(".chosen.json"), keep=False)
    rows, failed = read(csv), set(Failures(csv).read())
    of_arm: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells(plans):
        if cell.trains:
            of_arm.setdefault((cell.plan.budget, cell.pretraining.source.name, cell.row), []).append(cell)
    arms: dict[str, list[Arm]] = {}
    for (budget, *_), of_cells in of_arm.items():
        arms.setdefault(budget, []).append(arm_of(of_cells, chosen, rows, failed))
    lacking = [
        f"{arm.domain} {arm.algorithm} seed {seed} ({budget})"
        for budget, of_budget in arms.items()
        for arm in of_budget
        for seed in arm.lacking
    ]
    if lacking:
        raise UserError(
            f"{len(lacking)} runs have no row yet, the first of them {lacking[0]}: the registration allows no interim "
            f"look; finish them with `dabsmix bench {plan_path}`"
        )
    return arms


def arm_of(of_cells: Sequence[Cell], chosen: ChosenSettings, rows: Sequence[Row], failed: Set[str]) -> Arm:
    """One arm, from the rows of exactly its configurations."""
    runs: dict[str, dict[int, Measured]] = {endpoint: {} for endpoint in ENDPOINTS}
    lacking = []
    for cell in of_cells:
        seed, key = cell.pretraining.seed, settled_key(cell, chosen)
        own = [row for row in rows if row.config_hash == key and row.task == cell.pretraining.source.name]
        for endpoint, of_endpoint in runs.items():
            # the online probe belongs to the pretraining, whose protocol its row states
            scores = [
                row
                for row in own
                if (row.probe, row.label_fraction) == (endpoint, "1") and (endpoint == "online" or row.protocol == "v2")
            ]
            if scores:
                of_endpoint[seed] = average([measured(row) for row in scores])
        ended = key in failed or any(row.failure for row in own)
        if not (key and (ended or all(seed in of_endpoint for of_endpoint in runs.values()))):
            lacking.append(seed)
    first = of_cells[0]
    rate = 0.0 if lacking else chosen.lr(first) or 0.0
    return Arm(
        first.pretraining.source.name,
        first.row,
        rate,
        0 if lacking else chosen.steps(first),
        rate in (min(first.plan.rates), max(first.plan.rates)),
        runs,
        tuple(lacking),
    )


def settled_key(cell: Cell, chosen: ChosenSettings) -> str:
    """The hash of a cell's configuration; empty before its rate is chosen and its steps are counted."""
    counted = cell.plan.budget == "equal-steps" or "steps" in chosen.read().get(cell.setting, {})
    return chosen.key(cell) if counted else ""


def measured(row: Row) -> Measured:
    """The row's predictions, reduced to what a comparison needs."""
    stored = predictions_of(row)
    if stored is None:
        raise UserError(f"{row.record}: no predictions of {row.probe}, so nothing can be compared")
    return measure(metric(row.metric), stored.scores, stored.label, stored.group)


def contrasts(arms: Sequence[Arm], without: frozenset[int] = frozenset()) -> dict[Key, Difference]:
    """Every contrast of one budget."""
    by_name = {(arm.domain, arm.algorithm): arm for arm in arms}
    return {
        (domain, endpoint, first, second): difference_of(
            *(
                [run for seed, run in by_name[domain, name].runs[endpoint].items() if seed not in without]
                for name in (first, second)
            )
        )
        for domain in dict.fromkeys(arm.domain for arm in arms)
        for endpoint in ENDPOINTS
        for first, second in CONTRASTS
    }


def difference_of(first: Sequence[Measured], second: Sequence[Measured]) -> Difference:
    """The first minus the second; nothing is shown if every run of a side failed."""
    if not first or not second:
        return Difference(math.nan)
    if len({run.rows for run in (*first, *second)}) > 1:
        raise UserError("runs of one contrast are scored on different test data, so nothing can be compared")
    return compare(first, second)


def verdicts(of: Mapping[Key, Difference]) -> dict[Key, str]:
    """What the registration calls each contrast of a family."""
    rejected = holm([difference.p for difference in of.values()])
    return {
        key: "not shown" if not reject else "holds" if difference.value > 0 else "reversed"
        for (key, difference), reject in zip(of.items(), rejected, strict=True)
    }


def report(arms: Sequence[Arm]) -> list[str]:
    """The tables of one budget, as Markdown."""
    lines = ["| data | algorithm | steps | rate | " + " | ".join(ENDPOINTS) + " |", "|---" * 7 + "|"]
    for arm in arms:
        means = (
            f"{100 * fmean(run.value for run in runs.values()):.1f} ({len(runs)} seeds)" if runs else "–"
            for runs in arm.runs.values()
        )
        rate = f"{arm.lr:g}{', edge of the grid' if arm.edge else ''}"
        lines.append(f"| {arm.domain} | {arm.algorithm} | {arm.steps:,} | {rate} | {' | '.join(means)} |")
    of_all, of_rest = contrasts(arms), contrasts(arms, frozenset({0}))
    called, called_rest = verdicts(of_all), verdicts(of_rest)
    lines += ["", "| data | endpoint | contrast | points | p | verdict | without seed 0 |", "|---" * 7 + "|"]
    for (domain, endpoint, first, second), difference in of_all.items():
        key = (domain, endpoint, first, second)
        lines.append(
            f"| {domain} | {endpoint} | {first} − {second} | {points(difference)} | {difference.p:.4f} | {called[key]} "
            f"| {points(of_rest[key])}, {called_rest[key]} |"
        )
    lines.append("")
    for domain, endpoint in dict.fromkeys(key[:2] for key in of_all):
        holds = all(called[domain, endpoint, *pair] == "holds" for pair in CONTRASTS)
        lines.append(f"- {domain}, {endpoint}: the slides' order {'holds' if holds else 'is not shown to hold'}.")
    return lines


def points(difference: Difference) -> str:
    """A difference of shares in points, with its interval."""
    if math.isnan(difference.value):
        return "–"
    text = f"{100 * difference.value:+.1f}"
    if difference.low is None or difference.high is None:
        return text
    return f"{text} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--csv", type=Path, default=Path("leaderboard/results.csv"))
    options = parser.parse_args()
    try:
        arms = families(options.plan, options.csv)
    except UserError as error:
        parser.error(str(error))
    for budget, of_budget in arms.items():
        print("\n".join([f"### {budget}", "", *report(of_budget), ""]))
    print(f"Computed at commit {commit() or 'unknown'}.")


if __name__ == "__main__":
    main()
