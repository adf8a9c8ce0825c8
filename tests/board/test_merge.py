"""Leaderboards are merged without losing a row, a record or the first of two scores."""

import shutil
from pathlib import Path

import pytest
from test_submit import write_run

from dabsmix.board.merge import merge
from dabsmix.board.submit import read, submit, validate
from dabsmix.errors import UserError


def board(folder: Path, seed: int, **run: float) -> Path:
    csv = folder / "board" / "results.csv"
    submit(write_run(folder, name=f"digits-dmix-s{seed}", seed=seed, **run), "Ada", csv)  # type: ignore[arg-type]
    return csv


def test_the_merged_board_has_the_rows_and_records_of_all(tmp_path: Path) -> None:
    ours, *others = (board(tmp_path / name, seed) for seed, name in enumerate("abc"))
    assert merge(ours, others) == 6
    assert validate(ours) == []
    assert [row.seed for row in read(ours)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    before = ours.read_bytes()
    assert merge(ours, others) == 0  # merging again adds nothing
    assert ours.read_bytes() == before
    new = tmp_path / "new" / "results.csv"
    assert merge(new, [ours]) == 9
    assert validate(new) == []


def test_another_score_of_the_same_result_and_a_forged_board_are_refused(tmp_path: Path) -> None:
    ours, other = board(tmp_path / "a", 0), board(tmp_path / "b", 1)
    shutil.copytree(ours.parent, tmp_path / "c")
    changed = tmp_path / "c" / "results.csv"
    changed.write_text(changed.read_text().replace(",0.9,", ",0.91,"))
    before = ours.read_bytes()
    with pytest.raises(UserError, match="so nothing is merged"):
        merge(ours, [other, changed])
    assert ours.read_bytes() == before
    assert len(list((ours.parent / "runs").iterdir())) == 1
