"""Seconds to validate a large leaderboard, to print its overview, and to draw its page.

    python scripts/bench_board.py --rows 100000

No board has so many rows yet, so this one is synthetic: the committed board is repeated in a temporary folder, each
time with other fingerprints of data and encoders, as if it were of other data. Every record is a folder of its own, but
the predictions are links to the same few files, which are cheaper to read from the system's cache than the files of a
real board from a disk.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from dabsmix.board.forgery import record_name
from dabsmix.board.page import page
from dabsmix.board.row import COLUMNS, Row, read
from dabsmix.board.row import text as rows_text
from dabsmix.files import cache_folder, parsed
from dabsmix.run import RunRecord, commit, device_name

BOARD = Path(__file__).parents[1] / "leaderboard" / "results.csv"
T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--page", type=int, default=5_000, help="number of rows on the page; default: %(default)s")
    options = parser.parse_args()

    print(f"{device_name(torch.device('cpu'))}, commit {commit()[:7]}, {torch.get_num_threads()} threads")
    place = cache_folder()  # not the working tree, where `git add` would find what a killed process leaves behind
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        csv_path = Path(folder) / "results.csv"
        rows = repeated(read(BOARD), options.rows, csv_path.parent / "runs")
        print(f"{len(rows):,} synthetic rows, the committed board {len(rows) // len(read(BOARD))} times")
        csv_path.write_text(f"{','.join(COLUMNS)}\n{rows_text(rows)}", encoding="utf-8")
        os.environ["DABSMIX_CACHE"] = str(csv_path.parent / "cache")  # empty: nothing is remembered yet
        for title in ("validate for the first time", "validate again"):
            print(f"  {timed(title, lambda: command('validate', '--csv', str(csv_path)))[-100:].strip()}")
        for title in ("overview for the first time", "overview again"):
            timed(title, lambda: command("--csv", str(csv_path), "--json"))
        shown = next(row for row in rows if (row.probe, row.label_fraction) == ("linear", "1"))
        os.utime(shown.record / "run.json")
        timed("overview after a record has changed", lambda: command("--csv", str(csv_path), "--json"))
        some = read(csv_path)[: options.page]
        drawn = timed(f"page of {options.page:,} rows", lambda: page(some))
        print(f"  {len(drawn) / 2**20:.1f} MiB")


def command(*words: str) -> str:
    """What `dabsmix leaderboard` prints, in a process of its own: nothing is left in memory from the one before."""
    return subprocess.run(
        [sys.executable, "-m", "dabsmix", "leaderboard", *words], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def timed(title: str, call: Callable[[], T]) -> T:
    began, used = time.perf_counter(), sum(os.times()[:4])
    result = call()
    wall, cpu = time.perf_counter() - began, sum(os.times()[:4]) - used
    print(f"{title}: {wall:.2f} s, {cpu:.2f} s of CPU in all processes", flush=True)
    return result


def repeated(board: list[Row], count: int, records: Path) -> list[Row]:
    """The board, repeated until there are ``count`` rows."""
    rows: list[Row] = []
    turn = 0
    while len(rows) < count:
        names = {record: copied(record, records, turn) for record in dict.fromkeys(row.record for row in board)}
        for row in board:
            name = names[row.record]
            copy = replace(
                row,
                run=name,
                record=records / name,
                data_fingerprint=other(row.data_fingerprint, turn),
                pretrain_fingerprint=other(row.pretrain_fingerprint, turn),
                encoder_sha256=other(row.encoder_sha256, turn),
            )
            rows.append(copy)
        turn += 1
    return rows


def copied(record: Path, records: Path, turn: int) -> str:
    """Copy a record with other fingerprints and return its name."""
    run = changed(record / "run.json", turn)
    target = records / record_name(parsed(RunRecord, run))
    (target / "transfer").mkdir(parents=True, exist_ok=True)
    (target / "run.json").write_text(json.dumps(run))
    linked(record / "config.yaml", target / "config.yaml")
    for file in (*(record / "transfer").iterdir(), *record.glob("online.*")):
        path = target / file.relative_to(record)
        if file.suffix == ".json":
            path.write_text(json.dumps(changed(file, turn)))
        else:
            linked(file, path)
    return target.name


def linked(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:  # links do not cross file systems
        shutil.copy(file, target)


def changed(file: Path, turn: int) -> dict[str, Any]:
    """The values of a JSON file with other fingerprints."""
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    names = ("data_fingerprint", "encoder_sha256")
    return values | {name: other(values[name], turn) for name in names if values.get(name)}


def other(digest: str, turn: int) -> str:
    return hashlib.sha256(f"{digest} {turn}".encode()).hexdigest()


if __name__ == "__main__":
    main()
