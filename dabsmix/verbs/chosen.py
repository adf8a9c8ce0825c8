"""The rates and steps of a plan's cells: chosen once, and stored in a small file that workers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from dabsmix.config import PretrainConfig, config_hash, resolve
from dabsmix.errors import UserError
from dabsmix.files import read_json, write_json
from dabsmix.run import commit
from dabsmix.verbs.cells import REFERENCE, Cell, Trial, usual_batch

__all__ = ["ChosenSettings"]


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

    def settled(self, cell: Cell) -> PretrainConfig:
        """The cell's configuration with its rate, its steps and every open field filled in, as its hash needs it."""
        pretraining = replace(cell.pretraining, steps=self.steps(cell), lr=self.lr(cell))
        return resolve(pretraining, usual_batch(pretraining.source))[0]

    def key(self, cell: Cell) -> str:
        """The hash of the cell's configuration; that of the plan's configuration if every rate failed."""
        if self.untried(cell):
            return ""
        try:
            return config_hash(self.settled(cell))
        except UserError:
            return config_hash(cell.pretraining)

    def tried(self, trial: Trial) -> PretrainConfig:
        """The configuration of a trial: a third of the cell's steps, with the plan's first seed."""
        cell = trial.cell
        steps = max(1, self.steps(cell) // 3)
        trial_config = replace(
            cell.pretraining, lr=trial.lr, steps=steps, seed=cell.plan.seeds[0], out=cell.plan.out / "rates"
        )
        return resolve(trial_config, usual_batch(trial_config.source))[0]

    def note_rate(self, trial: Trial, score: float | None, reason: str = "") -> None:
        """Keep the validation score of a trial, or the reason why it has none."""

        def change(entry: dict[str, Any]) -> None:
            tried = entry.setdefault("validation", {})
            tried[f"{trial.lr:g}"] = score
            if score is None:
                entry.setdefault("failed", {})[f"{trial.lr:g}"] = reason
            known = {lr: value for lr, value in tried.items() if value is not None}
            entry["lr"] = float(max(sorted(known, key=float), key=lambda lr: known[lr])) if known else None
            entry["trial_steps"] = self.tried(trial).steps
            entry["trial_seed"] = trial.cell.plan.seeds[0]
            entry["commit"] = commit()

        self.note(trial.cell.setting, change)


def _budgeted_steps(cell: Cell) -> int:
    from dabsmix.verbs.budget import step_cost

    cost = step_cost(cell.pretraining)
    if cell.plan.budget == "equal-steps":
        assert cell.plan.minutes is not None
        return max(1, round(60 * cell.plan.minutes / cost.seconds))
    reference = step_cost(replace(cell.pretraining, algo=REFERENCE, hyper={}))
    steps = cell.plan.steps if cell.plan.minutes is None else 60 * cell.plan.minutes / reference.seconds
    return max(1, round(steps * reference.flops / cost.flops))
