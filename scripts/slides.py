"""The registered test of docs/slides.md, from the rows of a board: scores, contrasts with Holm's correction, verdicts.

    python scripts/slides.py leaderboard/plans/slides_cpu.yaml [--csv leaderboard/results.csv]

Rates and counted steps are those of PLAN.chosen.json. Nothing is computed before every run has a row, be it one that
says why it failed: the registration allows no interim look.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dabsmix.board.record import predictions_of
from dabsmix.board.row import Row, read
from dabsmix.errors import UserError
from dabsmix.run import commit
from dabsmix.scoring.intervals import Difference, Measured, compare, holm, measure
from dabsmix.scoring.metrics import metric

ENDPOINTS = ("online", "knn", "linear")
CONTRASTS = (("dmix", "emix"), ("emix", "shed"))
ARMS = ("shed", "emix", "dmix")


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
    plan = yaml.safe_load(plan_path.read_text(encoding="utf-8"))
    chosen_path = plan_path.with_suffix(".chosen.json")
    chosen = json.loads(chosen_path.read_text(encoding="utf-8")) if chosen_path.exists() else {}
    rows = read(csv)
    arms: dict[str, list[Arm]] = {}
    for part in plan["parts"]:
        budget = part.get("budget", "equal-steps")
        arms.setdefault(budget, []).extend(
            arm_of(rows, chosen, plan, domain, algorithm, budget) for domain in part["domains"] for algorithm in ARMS
        )
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


def arm_of(
    rows: Sequence[Row], chosen: Mapping[str, Any], plan: Mapping[str, Any], domain: str, algorithm: str, budget: str
) -> Arm:
    """One arm, from the rows of its configuration."""
    of = "" if budget == "equal-steps" else " of emix in FLOPs"
    setting = f"{domain} {algorithm} {plan['encoder']} {plan['steps']} steps{of} of {plan['batch_size']}"
    entry = chosen.get(setting, {})
    lr, steps = entry.get("lr") or 0.0, entry.get("steps", plan["steps"])
    cells = (domain, domain, algorithm, plan["encoder"], steps, plan["batch_size"], lr)
    own = [
        row
        for row in rows
        if (row.domain, row.task, row.algorithm, row.encoder, row.steps, row.batch_size, row.lr) == cells
        and row.seed in plan["seeds"]
    ]
    runs: dict[str, dict[int, Measured]] = {endpoint: {} for endpoint in ENDPOINTS}
    for row in own:
        # the online probe belongs to the pretraining, whose protocol its row states
        if (
            row.probe in runs
            and row.label_fraction == "1"
            and row.protocol in ("v2", "v1")[: 1 + (row.probe == "online")]
        ):
            runs[row.probe].setdefault(row.seed, measured(row))
    complete = set.intersection(*(set(of_endpoint) for of_endpoint in runs.values()))
    ended = complete | {row.seed for row in own if row.failure}
    return Arm(
        domain,
        algorithm,
        lr,
        steps,
        lr in (min(plan["rates"]), max(plan["rates"])),
        runs,
        tuple(seed for seed in plan["seeds"] if seed not in ended),
    )


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
        (domain, endpoint, first, second): compare(
            *(
                [run for seed, run in by_name[domain, name].runs[endpoint].items() if seed not in without]
                for name in (first, second)
            )
        )
        for domain in dict.fromkeys(arm.domain for arm in arms)
        for endpoint in ENDPOINTS
        for first, second in CONTRASTS
    }


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
            f"{100 * sum(run.value for run in runs.values()) / len(runs):.1f} ({len(runs)} seeds)"
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
