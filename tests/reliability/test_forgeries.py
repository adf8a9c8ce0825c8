"""Every forgery of a score that can be detected without training is detected, and damage gives one line."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dabsmix.board import forgery
from dabsmix.board import submit as board_submit
from dabsmix.board.forgery import check_record
from dabsmix.board.overview import overviews
from dabsmix.board.submit import checked, read, submit, validate
from dabsmix.board.table import render
from dabsmix.errors import UserError
from dabsmix.files import cache_folder
from dabsmix.registry import algorithm_class, algorithms

OURS = Path(__file__).parents[2] / "leaderboard"
DMIX = "uci_har-dmix-s0-0f291784"
RUNS = (DMIX, "uci_har-emix-s0-f0a5504d", "uci_har-none-s0-45808ff5")


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """The first three runs of our own leaderboard: one data set, ``v1``."""
    copy = tmp_path / "board"
    for run in RUNS:
        shutil.copytree(OURS / "runs" / run, copy / "runs" / run)
    shutil.copy(OURS / "labels.json", copy)
    header, *lines = (OURS / "results.csv").read_text().splitlines(keepends=True)
    (copy / "results.csv").write_text("".join([header, *(line for line in lines if any(run in line for run in RUNS))]))
    return copy / "results.csv"


def record(board: Path) -> Path:
    return board.parent / "runs" / DMIX


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def replace(board: Path, old: str, new: str) -> None:
    """In the lines of the forged run."""
    lines = board.read_text().splitlines(keepends=True)
    board.write_text("".join(line.replace(old, new) if DMIX in line else line for line in lines))


def arrays(board: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = record(board) / "transfer" / "uci_har.predictions.npz"
    with np.load(path) as file:
        entries = dict(file)
    np.savez_compressed(path, **edit(entries))


@pytest.mark.parametrize("algorithm", algorithms())
def test_a_record_says_whether_its_algorithm_uses_labels(board: Path, algorithm: str) -> None:
    needed = algorithm_class(algorithm).needs_labels
    for claimed in (needed, not needed):
        change(record(board) / "run.json", algorithm=algorithm, uses_labels=claimed)
        problems = [problem for problem in check_record(record(board)) if "uses_labels" in problem]
        assert len(problems) == (claimed != needed)


def results(board: Path, **values: Any) -> None:
    """Change the first result, in the transfer file and in its row."""
    path = record(board) / "transfer" / "uci_har.json"
    content = json.loads(path.read_text())
    first = content["results"][0]
    lines = board.read_text().splitlines()
    number = next(i for i, line in enumerate(lines) if DMIX in line)
    for name, value in values.items():
        cell = f"{first[name]:.6f}".rstrip("0") if isinstance(first[name], float) else str(first[name])
        assert f",{cell}," in lines[number], cell
        lines[number] = lines[number].replace(f",{cell},", f",{value},", 1)
        first[name] = value
    path.write_text(json.dumps(content))
    board.write_text("\n".join(lines) + "\n")


def run(**values: Any) -> Callable[[Path], None]:
    """Change run.json and the CSV alike."""

    def forge(board: Path) -> None:
        old = json.loads((record(board) / "run.json").read_text())
        for name, value in values.items():
            text = [str(entry).lower() if isinstance(entry, bool) else str(entry) for entry in (old[name], value)]
            replace(board, f",{text[0]},", f",{text[1]},")
        change(record(board) / "run.json", **values)

    return forge


def perfect(entries: dict[str, Any]) -> dict[str, Any]:
    return {name: np.broadcast_to(entries["label"], x.shape) if "@" in name else x for name, x in entries.items()}


def swapped(board: Path) -> None:
    """The predictions become the labels."""
    arrays(
        board,
        lambda entries: {**entries, "linear@1": entries["label"][None], "label": entries["linear@1"][0].astype(int)},
    )


def only_right_rows(board: Path) -> None:
    def keep(entries: dict[str, Any]) -> dict[str, Any]:
        right = entries["linear@1"][0] == entries["label"]
        return {name: x[:, right] if "@" in name else x[right] for name, x in entries.items()}

    arrays(board, keep)
    results(board, value=1.0, low=1.0, high=1.0)


def renamed(board: Path) -> None:
    record(board).rename(record(board).with_name("better"))
    board.write_text(board.read_text().replace(DMIX, "better"))


def linked(board: Path) -> None:
    record(board).rename(board.parent / "elsewhere")
    record(board).symlink_to(board.parent / "elsewhere")


def copied(board: Path) -> None:
    """A rival's record under another name."""
    shutil.copytree(record(board), record(board).with_name("mine"))
    mine = [line.replace(DMIX, "mine") for line in board.read_text().splitlines() if DMIX in line]
    board.write_text(board.read_text() + "\n".join(mine) + "\n")


def low_yardstick(board: Path) -> None:
    path = record(board) / "transfer" / "uci_har.json"
    content = json.loads(path.read_text())
    for result in content["yardsticks"]["raw"]:
        result["value"] -= 0.2
    path.write_text(json.dumps(content))


def without_a_poor_probe(board: Path) -> None:
    """Removed from the transfer file, from the list of requested results, and from the CSV."""
    path = record(board) / "transfer" / "uci_har.json"
    content = json.loads(path.read_text())
    results = [
        result for result in content["results"] if (result["probe"], result["label_fraction"]) != ("knn", "5/class")
    ]
    path.write_text(json.dumps(content | {"results": results, "asked": []}))
    lines = board.read_text().splitlines(keepends=True)
    board.write_text("".join(line for line in lines if not (DMIX in line and ",knn,0,5/class," in line)))


def weak_yardstick(board: Path) -> None:
    """Predictions that would make the comparison with a yardstick easy."""
    archive: dict[str, Any] = {"raw linear@1": np.zeros((1, 950), np.int32)}
    np.savez(record(board) / "transfer" / "uci_har.yardsticks.npz", **archive)


def other_config(board: Path) -> None:
    path = record(board) / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"lr": 0.1}))


FORGERIES: dict[str, Callable[[Path], object]] = {
    "npz deleted": lambda b: (record(b) / "transfer" / "uci_har.predictions.npz").unlink(),
    "keys renamed": lambda b: arrays(b, lambda entries: {f"x{name}": x for name, x in entries.items()}),
    "one key renamed": lambda b: arrays(b, lambda entries: {n.replace("knn@1", "x"): x for n, x in entries.items()}),
    "perfect predictions": lambda b: arrays(b, perfect),
    "labels are the predictions": swapped,
    "only the right rows": only_right_rows,
    "no interval to speak of": lambda b: results(b, low=0.871579, high=0.871579),
    "a million examples": lambda b: results(b, n=1_000_000),
    "a better value": lambda b: results(b, value=0.9),
    "another algorithm": run(algorithm="emix"),
    "another seed": run(seed=3),
    "fewer steps": run(steps=10),
    "labels denied or claimed": run(uses_labels=True),
    "another hash": run(config_hash="0123456789ab"),
    "another commit": run(commit="the very latest"),
    "other hyperparameters": lambda b: change(record(b) / "run.json", hyper={"alpha": 2.0}),
    "zeros for a digest": run(encoder_sha256="0" * 64),
    "another encoder": lambda b: change(record(b) / "transfer" / "uci_har.json", encoder_sha256="ab" * 32),
    "another configuration": other_config,
    "another protocol": lambda b: change(record(b) / "transfer" / "uci_har.json", protocol="dabs"),
    "another fingerprint": lambda b: change(record(b) / "transfer" / "uci_har.json", data_fingerprint="f" * 64),
    "asked for more": lambda b: change(record(b) / "transfer" / "uci_har.json", asked=["linear@1", "pinv@1"]),
    "a poor probe left out": without_a_poor_probe,
    "renamed folder": renamed,
    "linked folder": linked,
    "a rival's record": copied,
    "lower yardsticks": low_yardstick,
    "predictions of a weak yardstick": weak_yardstick,
    "formula": lambda b: replace(b, ",dabsmix,", ",=1+1,"),
    "digits of Python": lambda b: replace(b, ",950,", ",9_50,"),
    "labels.json without the data": lambda b: (b.parent / "labels.json").write_text('{"a b": "c"}'),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_found(board: Path, name: str) -> None:
    assert validate(board) == []  # from now on the records are remembered as valid
    FORGERIES[name](board)
    assert validate(board)


def test_what_is_remembered_does_not_hide_a_file_that_keeps_its_size_and_time(board: Path, tmp_path: Path) -> None:
    def problems() -> str:
        command = [sys.executable, "-m", "dabsmix", "leaderboard", "validate", "--csv", str(board)]
        return subprocess.run(command, capture_output=True, text=True).stderr

    assert problems() == ""
    assert list(cache_folder().glob("memory/accounts-*"))
    assert not list(tmp_path.rglob("accounts-*"))  # a memory beside the records could be committed with a forgery
    path = record(board) / "run.json"
    before = path.stat()
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert "problems" in problems()


def test_what_is_remembered_is_examined_once_and_still_compared(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert validate(board) == []
    monkeypatch.setattr(forgery, "account", lambda record: pytest.fail(f"{record} is checked again"))
    assert validate(board) == []
    labels = board.parent / "labels.json"
    labels.write_text(json.dumps(dict.fromkeys(json.loads(labels.read_text()), "0" * 64)))
    assert any("test labels are not those" in problem for problem in validate(board))
    board.write_text(board.read_text() + board.read_text().splitlines()[-1] + "\n")
    monkeypatch.undo()
    assert any("the same result as line" in problem for problem in validate(board))


def test_several_processes_find_the_same_problems(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weak_yardstick(board)
    replace(board, "linear", "knn")
    lines = board.read_text().splitlines(keepends=True)
    board.write_text("".join([*lines, "a,line,of,other,length\n"]))
    of_one = validate(board)
    assert len(of_one) > 3
    monkeypatch.setattr(board_submit, "MANY", 0)
    assert checked(board, processes=2)[1] == of_one


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize(
    "file", ["run.json", "config.yaml", "transfer/uci_har.json", "transfer/uci_har.predictions.npz"]
)
def test_no_file_of_a_record_can_hang_or_fill_the_memory(board: Path, file: str) -> None:
    path = record(board) / file
    path.unlink()
    path.symlink_to("/dev/zero")
    assert any("no links" in problem for problem in validate(board))
    path.unlink()
    os.mkfifo(path)
    assert any("is not a plain file" in problem for problem in validate(board))
    path.unlink()
    path.write_text("[" * 100_000)
    assert validate(board)


def test_headers_that_claim_too_much_and_aliases_are_refused(board: Path) -> None:
    arrays(board, lambda entries: {**entries, "knn@1": np.zeros((1, 950), np.int32)})
    config = record(board) / "config.yaml"
    pairs = zip("abcdefgh", "bcdefghi", strict=True)
    bomb = "a: &a [1]\n" + "".join(f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in pairs)
    config.write_text(config.read_text() + bomb)
    assert any("alias" in problem for problem in validate(board))


def test_submit_scores_predictions_again_before_it_writes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(OURS / "runs" / DMIX, folder)
    (folder / "encoder.safetensors").write_bytes(b"weights")
    import hashlib

    digest = hashlib.sha256(b"weights").hexdigest()
    change(folder / "run.json", encoder_sha256=digest)
    change(folder / "transfer" / "uci_har.json", encoder_sha256=digest)
    npz = folder / "transfer" / "uci_har.predictions.npz"
    intact = npz.read_bytes()
    for content in (intact[:-100], b""):
        npz.write_bytes(content)
        with pytest.raises(UserError, match=r"cannot read|transfer again") as caught:
            submit(folder, "Ada", tmp_path / "board" / "results.csv")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "board" / "results.csv").exists()
    npz.write_bytes(intact)
    submit(folder, "Ada", tmp_path / "board" / "results.csv")
    assert validate(tmp_path / "board" / "results.csv") == []


BAD: tuple[str, ...] = (
    "",
    "nan",
    "inf",
    "-1",
    "1e999",
    "9" * 400,
    "x" * 200_000,
    '"',
    "\0",
    "\x1b[2J",
    "../..",
    "/dev/zero",
    "{}",
)
BAD += ("[" * 50_000, "true", "=1+1", "ünï", "5/class", "a\rb", "0x10", "1_0", ".", "..")


def mutated(content: str, rng: random.Random) -> str:
    lines = content.splitlines()
    for _ in range(rng.randint(1, 3)):
        number = rng.randrange(len(lines))
        cells = lines[number].split(",")
        place = rng.randrange(len(cells))
        cells[place] = rng.choice([*BAD, rng.choice(cells)])
        lines[number] = ",".join(cells)
        if rng.random() < 0.1:
            lines.insert(rng.randrange(len(lines)), rng.choice([lines[number], "", ",,,", '"open']))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("count", [4, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_mutation_of_the_csv_is_a_traceback(board: Path, count: int) -> None:
    content, rng = board.read_text(), random.Random(0)
    for _ in range(count):
        board.write_text(mutated(content, rng), encoding="utf-8", newline="")
        for look in (validate, lambda path: render(read(path), "table")):
            try:
                look(board)
            except UserError as error:
                assert "\n" not in str(error)  # noqa: PT017  # what else it raises fails the test


DAMAGE: tuple[Callable[[bytes], bytes], ...] = (
    lambda content: b"",
    lambda content: content[: len(content) // 2],
    lambda content: bytes(byte ^ (i % 97 == 0) for i, byte in enumerate(content)),
    lambda content: b"[" * 50_000,
    lambda content: b"{}",
    lambda content: b"\0" * len(content),
)


@pytest.mark.slow
def test_no_damaged_file_of_a_record_is_a_traceback(board: Path) -> None:
    looks: tuple[Callable[[], object], ...] = (
        lambda: render(read(board), "table"),
        lambda: overviews(read(board), lambda domain: "sensor"),
    )
    for file in sorted(path for path in record(board).rglob("*") if path.is_file()):
        content = file.read_bytes()
        for damage in (*DAMAGE, None):  # a folder in its place
            file.unlink()
            file.mkdir() if damage is None else file.write_bytes(damage(content))
            assert validate(board) != []
            for look in looks:
                try:
                    look()
                except UserError as error:
                    assert "\n" not in str(error)  # noqa: PT017  # what else it raises fails the test
            file.rmdir() if damage is None else file.unlink()
            file.write_bytes(content)
    assert validate(board) == []
