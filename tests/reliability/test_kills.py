"""A command that is killed before a file is moved into place, and restarted, ends as if it had not been killed."""

import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from csv import DictReader
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from dabsmix.board.submit import validate

KILLED = 9
# A server that has imported everything forks each command: no threads of this process go with it.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    ["dabsmix.cli", "dabsmix.verbs.pretrain", "dabsmix.verbs.transfer", "dabsmix.board.submit", "sklearn.base"]
)


def command(words: Sequence[str], kill_at: int | None, environment: dict[str, str]) -> None:
    """Run a command; exit without clean-up when its ``kill_at``-th file is complete."""
    os.environ.update(environment)
    from dabsmix.cli import main

    replace, writes = os.replace, count()

    def killed(source: Any, target: Any) -> None:
        if next(writes) == kill_at:
            os._exit(KILLED)
        replace(source, target)

    os.replace = killed  # type: ignore[assignment]  # of the same two arguments
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        sys.argv = ["dabsmix", *words]
        main()


def run(words: Sequence[str], kill_at: int | None = None, seconds: float | None = None) -> int:
    """The exit status of a command in a process of its own, which is killed at a write or after some seconds."""
    environment = {
        name: value for name, value in os.environ.items() if name.startswith(("DABSMIX_", "OMP_", "HF_", "ACC"))
    }
    process = context.Process(target=command, args=(words, kill_at, environment))
    process.start()
    if seconds is not None:
        process.join(seconds)
        process.kill()
    process.join(120)
    assert process.exitcode is not None, "the command hangs"
    return process.exitcode


def pretrain(folder: Path) -> list[str]:
    line = "pretrain --domain breast_cancer --algo dmix --encoder tiny --steps 4 --batch-size 16 --evaluate-every 2"
    return [*line.split(), "--checkpoint-every", "2", "--out", str(folder / "runs")]


def transfer(folder: Path) -> list[str]:
    return ["transfer", "--run", str(next((folder / "runs").iterdir())), "--labels", "1"]


def submit(folder: Path) -> list[str]:
    board = folder / "board" / "results.csv"
    return ["submit", "--run", str(next((folder / "runs").iterdir())), "--by", "Ada", "--leaderboard", str(board)]


def bench(folder: Path) -> list[str]:
    line = "bench --domains breast_cancer --algos dmix --seeds 0 --encoder tiny --steps 4 --batch-size 16 --labels 1"
    board = folder / "board" / "results.csv"
    return [*line.split(), "--by", "Ada", "--out", str(folder / "runs"), "--leaderboard", str(board)]


def again(folder: Path, words: Callable[[Path], list[str]]) -> None:
    """Run the command again as a user would: with --resume if there is a run to resume."""
    for leftover in folder.glob("runs/.*"):  # files of killed processes are deleted after a minute
        os.utime(leftover, (0, 0))
    if words is pretrain and run([*pretrain(folder), "--resume"]) == 0:
        return
    assert run(words(folder)) == 0


def content(folder: Path) -> dict[str, Any]:
    """The files that a command leaves: weights, scores, predictions and rows, without any temporary file."""
    content_by_name: dict[str, Any] = {}
    for path in sorted(entry for entry in folder.rglob("*") if entry.is_file() and entry.suffix != ".lock"):
        name = str(path.relative_to(folder))
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                content_by_name |= {f"{name}:{key}": arrays[key].tobytes() for key in arrays}
        elif path.parent.name == "features":  # the order of a header's entries does not matter
            content_by_name |= {f"{name}:{key}": values.tobytes() for key, values in load_file(path).items()}
        elif path.name not in ("run.json", "metrics.jsonl") and "checkpoint" not in name:  # these hold times
            content_by_name[name] = path.read_bytes()
    return content_by_name


def rows(board: Path) -> list[dict[str, str]]:
    """The rows without what differs between two trainings that are equal."""
    with board.open(encoding="utf-8") as file:
        return [
            {name: cell for name, cell in row.items() if name not in ("date", "seconds")} for row in DictReader(file)
        ]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["write", "time"])
def test_a_killed_bench_goes_on_where_it_was_killed(tmp_path: Path, when: str) -> None:
    folder, draws = tmp_path / "work", random.Random(0)
    begun = time.monotonic()
    assert run(bench(folder)) == 0
    seconds = time.monotonic() - begun
    intact = rows(folder / "board" / "results.csv")
    encoder = next(folder.glob("runs/*/encoder.safetensors")).read_bytes()
    for _ in range(4):
        shutil.rmtree(folder)
        if when == "write":
            run(bench(folder), kill_at=draws.randrange(24))  # it may be done before so many files are written
        else:
            run(bench(folder), seconds=draws.random() * seconds)
        again(folder, bench)
        assert rows(folder / "board" / "results.csv") == intact
        assert [path.read_bytes() for path in folder.glob("runs/*/encoder.safetensors")] == [encoder]
        assert validate(folder / "board" / "results.csv") == []


@pytest.mark.slow
def test_killed_at_each_write_and_restarted_equals_uninterrupted(tmp_path: Path) -> None:
    before, folder = tmp_path / "before", tmp_path / "work"  # always the same path, because config.yaml contains it
    before.mkdir()
    for words in (pretrain, transfer, submit):
        shutil.copytree(before, folder)
        assert run(words(folder)) == 0
        intact = content(folder)
        for kill_at in count():
            shutil.rmtree(folder)
            shutil.copytree(before, folder)
            status = run(words(folder), kill_at)
            if status == 0:
                break  # there are no more files to write
            assert status == KILLED
            again(folder, words)
            assert content(folder).keys() == intact.keys(), (words, kill_at)
            assert content(folder) == intact, (words, kill_at)
        assert kill_at >= 4
        shutil.rmtree(before)
        folder.rename(before)
    assert validate(before / "board" / "results.csv") == []
