"""Leaderboards are merged without losing a row, a record or the first of two scores."""

import shutil
from pathlib import Path

import pytest
from test_submit import edit, write_run, write_transfer

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


@pytest.mark.parametrize("to", ["one", "new"])
def test_two_records_of_one_run_that_differ_are_refused(tmp_path: Path, to: str) -> None:
    run, again = write_run(tmp_path / "run"), write_run(tmp_path / "again")
    (again / "transfer/digits-v1.json").unlink()
    write_transfer(again, "mnist")
    edit(again / "run.json", flops=1.5e9)  # trained a second time, by another version
    boards = [tmp_path / name / "results.csv" for name in ("one", "two")]
    for folder, csv in zip((run, again), boards, strict=True):
        submit(folder, "Ada", csv)
    to_csv = tmp_path / to / "results.csv"
    before = to_csv.read_bytes() if to_csv.exists() else None
    with pytest.raises(UserError, match="differ: submit that run's further scores instead"):
        merge(to_csv, boards)
    assert (to_csv.read_bytes() if to_csv.exists() else None) == before
    assert before or not (to_csv.parent / "runs").exists()


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
