"""Merging leaderboards: the rows and records of others are added to one, and none is lost or replaced."""

from collections.abc import Sequence
from pathlib import Path

from dabsmix.board.record import transfers
from dabsmix.board.row import COLUMNS, Row, read, same, text
from dabsmix.board.submit import keep_labels, locked, validate, write_record
from dabsmix.errors import UserError
from dabsmix.files import write

__all__ = ["merge"]


def merge(csv_path: Path, others: Sequence[Path]) -> int:
    """Add the rows of other leaderboards, with the records behind them.

    Returns:
        How many rows were added; existing rows do not change.

    Raises:
        UserError: another leaderboard does not validate, has another score for the same result, or has other test
            labels for the same data; then no row is added.
    """
    for other in others:
        if problems := validate(other):
            raise UserError(f"{problems[0]}; {other} has {len(problems)} problems, so nothing is merged")
    with locked(csv_path):
        rows = read(csv_path) if csv_path.exists() else []
        known = {row.key: row for row in rows}
        added: list[Row] = []
        for row in (row for other in others for row in read(other)):
            first = known.setdefault(row.key, row)
            if first is row:
                added.append(row)
            elif not same(first.value, row.value) or first.run != row.run:
                raise UserError(
                    f"{row.record}: {row.task} {row.probe} at {row.label_fraction} is {row.value}, and "
                    f"{first.value} in {first.record}: remove one of the two"
                )
        sources = dict.fromkeys(row.record for row in added)
        begun: dict[str, Path] = {}
        for source in sources:
            ours, theirs = csv_path.parent / "runs" / source.name / "run.json", source / "run.json"
            known_run = begun.setdefault(source.name, ours if ours.exists() else theirs)
            if known_run.read_bytes() != theirs.read_bytes():
                raise UserError(f"{known_run} and {theirs} differ: submit that run's further scores instead")
        keep_labels(csv_path, rows, added)
        for source in sources:
            write_record(source, csv_path.parent / "runs" / source.name, list(transfers(source)))
        content = f"{','.join(COLUMNS)}\n{text([*rows, *added])}"
        write(csv_path, lambda path: path.write_text(content, encoding="utf-8", newline="\n"))
    return len(added)
