"""Progress off a terminal: a line at the start, and one at each 5 %, at most one a second."""

import logging
import sys

import pytest

from dabsmix.terminal import Bar, log, log_lines, progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("dabsmix.terminal.time.monotonic", lambda: now[0])
    return now


def test_a_line_at_the_start_and_at_each_twentieth(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with log_lines(), Bar("pretrain", total=390) as bar:
        for _ in range(390):
            clock[0] += 0.5
            bar.show(loss="1.5", rate="8 examples/s")
            bar.advance()
    start, *lines = [line[9:] for line in capsys.readouterr().err.splitlines()]  # after the time of day
    assert start == "pretrain: starts"
    assert len(lines) == 20
    assert lines[0] == "pretrain: 20/390 (5 %)  loss 1.5  8 examples/s  0:03:05 left"
    assert lines[-1] == "pretrain: 390/390 (100 %)  loss 1.5  8 examples/s  0:00:00 left"


def test_a_resumed_stage_counts_from_where_it_goes_on(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with log_lines(), Bar("pretrain", total=100, start=50) as bar:
        for _ in range(10):
            clock[0] += 2
            bar.advance()
    lines = [line[9:] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["pretrain: goes on after 50", "pretrain: 55/100 (55 %)  0:01:30 left", *lines[2:]]
    assert lines[2:] == ["pretrain: 60/100 (60 %)  0:01:20 left"]


def test_a_short_stage_is_one_line_and_a_library_call_none(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with log_lines():
        assert list(progress("reading", range(1000))) == list(range(1000))
    assert len(capsys.readouterr().err.splitlines()) == 1
    list(progress("reading", range(1000)))
    assert capsys.readouterr().err == ""
    assert not log.handlers
    assert log.level == logging.NOTSET


def test_a_terminal_shows_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with log_lines():
        assert not log.handlers
