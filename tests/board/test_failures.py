"""Cells of a matrix that failed without a row: told under every form of the leaderboard."""

import json
from pathlib import Path

import pytest
from test_table import row

from dabsmix.board.failures import Failures
from dabsmix.board.page import page
from dabsmix.board.table import render
from dabsmix.errors import UserError

CELL = {"domain": "digits", "algorithm": "emix:alpha=<2>", "seed": 1, "encoder": "tiny", "steps": 9}
CELL |= {"reason": "no memory left", "date": "2026-11-28", "commit": "c" * 40}


def test_failures_without_a_row_are_told(tmp_path: Path) -> None:
    failures = Failures(tmp_path / "results.csv")
    for key in ("a" * 12, "c" * 12):
        failures.note(key, CELL)
    rows = [row(tmp_path, 0.8)]  # of the configuration c...c
    failed = failures.without_row({each.config_hash for each in rows})
    assert failed == [CELL]
    told = "Failed, without a row: digits emix:alpha=<2> seed 1, tiny: no memory left (2026-11-28)"
    assert told in render(rows, "table", failed=failed)
    escaped = told.replace("<", "&lt;").replace(">", "&gt;")
    assert escaped in page(rows, failed=failed)
    assert told.replace("<", "&lt;") in render(rows, "md", failed=failed)
    assert "no memory left" not in render(rows, "csv", failed=failed)
    assert "without a row" not in render(rows, "table") + page(rows) + render(rows, "md")


def test_a_failure_is_cleared_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    failures = Failures(tmp_path / "board" / "results.csv")
    assert failures.read() == {}
    failures.clear("a" * 12)  # nothing to clear, so nothing is written
    assert not failures.path.exists()
    failures.note("a" * 12, CELL)
    assert json.loads(failures.path.read_text()) == {"a" * 12: CELL}
    failures.clear("a" * 12)
    assert failures.read() == {}
    failures.path.write_text("[]")
    with pytest.raises(UserError, match=r"failures.json: expected a JSON object"):
        failures.read()
