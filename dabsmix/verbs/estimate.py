"""How long the cells of a plan will take, by the times of those that are done."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dabsmix.board.failures import Failures
from dabsmix.board.row import Row, read
from dabsmix.config import BenchConfig, PretrainConfig
from dabsmix.run import Run
from dabsmix.verbs.cells import Cell, cells, on_board, usual_batch
from dabsmix.verbs.chosen import ChosenSettings

__all__ = ["CellTime", "dry_run", "lines", "log_time"]


def log_time(cell: Cell, config: PretrainConfig, run: Run, seconds: Mapping[str, float]) -> None:
    """Keep the seconds of a finished cell's ``pretraining`` and ``transfer`` beside the runs."""
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
        key = "" if untried else chosen.key(cell)
        state = "failed" if key in failures else "done" if key and on_board(cell, key, rows) else "missing"
        trials = 0 if cell.setting in counted else len(untried)
        counted.add(cell.setting)
        if state == "missing":
            similar = _similar(cell, times) or _similar(cell, times_of_board)
            estimates.append(CellTime(cell, state, *_seconds(cell, chosen, similar, trials)))
        else:
            estimates.append(CellTime(cell, state))
    return estimates


def lines(of_cells: list[CellTime]) -> Iterator[str]:
    """A line for each cell with its state and time, and one for all."""
    missing = [one for one in of_cells if one.state == "missing"]
    measured = [one for one in missing if one.pretraining is not None]
    for one in of_cells:
        time = ""
        if one.pretraining is not None:
            time = f"  about {(one.pretraining + (one.transfer or 0)) / 60:.1f} min"
            time += " without transfer" if one.transfer is None else ""
        yield f"{one.state:<8} {one.cell}, {one.cell.budget}{time}"
    hours = sum((one.pretraining or 0) + (one.transfer or 0) for one in measured) / 3600
    text = (
        f"{len(missing)} of {len(of_cells)} cells are missing; {len(measured)} of them take about {hours:.1f} h on one "
        f"worker of the kind that was measured; {len(missing) - len(measured)} were never measured"
    )
    untimed = sum(one.transfer is None for one in measured)
    yield text + (f"; the transfer of {untimed} is not counted, because no times of it are in --out" if untimed else "")


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
    name, usual = pretraining.source.name, pretraining.batch_size or usual_batch(pretraining.source)
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
