"""The runs of a folder with their status, progress, last loss and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dabsmix.errors import UserError
from dabsmix.run import Run, readable_runs
from dabsmix.scoring.results import in_percent, read_transfer

__all__ = ["Listed", "as_plain", "runs", "show"]


@dataclass(frozen=True)
class Listed:
    """One run.

    Attributes:
        name: of its folder.
        status: ``finished``, ``running`` (a process works on it now), ``interrupted`` (``--resume`` goes on with it) or
            ``failed``.
        step, steps: done, by the last line of metrics or the newest checkpoint, and requested; both 0 if nothing is
            trained.
        loss: of the last line of metrics; None without one.
        scores: by task, the headline of each transfer in the metric's own unit.
        metrics: by task, what the score is.
        failure: what stopped a failed run.
        created: when, ISO 8601 in UTC.
    """

    name: str
    status: str
    step: int
    steps: int
    loss: float | None
    scores: Mapping[str, float]
    metrics: Mapping[str, str]
    failure: str
    created: str


def runs(out: Path) -> list[Listed]:
    """The runs under a folder, the oldest first.

    Raises:
        UserError: there is no such folder.
    """
    if not out.is_dir():
        raise UserError(f"--out {out}: no such folder; name the folder in which `dabsmix pretrain` made its runs")
    return sorted((_listed(run) for run in readable_runs(out)), key=lambda run: (run.created, run.name))


def as_plain(listed: Sequence[Listed]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(run) for run in listed]


def show(listed: Sequence[Listed]) -> None:
    """Print as a table, or as tab-separated lines if the output is not a terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    rows = [(run.name, run.status, f"{run.step}/{run.steps}", _loss(run), _result(run)) for run in listed]
    if not console.is_terminal:
        for row in rows:
            print(*row, sep="\t")
        return
    table = Table("run", "status", "steps", "loss", "scores", box=None, header_style="bold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _listed(run: Run) -> Listed:
    record = run.record
    status = record.status
    if status == "running" and not run.locked:
        status = "interrupted"  # killed before it could say so
    lines: list[dict[str, Any]] = []
    with suppress(UserError):  # list a run even if a line is damaged
        lines = run.metrics()
    headlines = {}
    for path in sorted(run.path.glob("transfer/*.json")):
        with suppress(UserError):
            headlines[path.stem] = read_transfer(path).headline
    return Listed(
        name=run.path.name,
        status=status,
        step=max(lines[-1]["step"] if lines else 0, run.checkpoint_step),
        steps=record.steps,
        loss=lines[-1].get("loss") if lines else None,
        scores={task: result.value for task, result in headlines.items()},
        metrics={task: result.metric for task, result in headlines.items()},
        failure=record.failure,
        created=record.created,
    )


def _loss(listed: Listed) -> str:
    return "" if listed.loss is None else f"{listed.loss:.3f}"


def _result(listed: Listed) -> str:
    """Scores, or what stopped the run."""
    if listed.failure:
        return listed.failure
    return ", ".join(
        f"{task} {100 * value:.1f}" if in_percent(listed.metrics[task]) else f"{task} {value:.3g}"
        for task, value in listed.scores.items()
    )
