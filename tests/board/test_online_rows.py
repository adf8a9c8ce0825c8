"""The online score of a run as a row: written by pretraining, validated, and compared with no other probe."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dabsmix.board.page import page
from dabsmix.board.row import read
from dabsmix.board.standings import standings
from dabsmix.board.submit import submit, validate
from dabsmix.config import PretrainConfig
from dabsmix.run import Run
from dabsmix.scoring.results import read_transfer
from dabsmix.source import Source
from dabsmix.training import accelerate
from dabsmix.verbs.pretrain import pretrain


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs")
    config = PretrainConfig(Source("digits"), algo="shed", encoder="tiny", steps=4, batch_size=16, out=out)
    return pretrain(config, accelerator=accelerate())


@pytest.fixture
def board(trained: Run, tmp_path: Path) -> Path:
    submit(trained.path, "Ada", tmp_path / "results.csv")
    return tmp_path / "results.csv"


def test_pretraining_writes_its_last_logged_score_and_predictions(trained: Run) -> None:
    record = read_transfer(trained.path / "online.json")
    assert (record.task, record.protocol, record.encoder_sha256) == ("digits", "v1", trained.record.encoder_sha256)
    assert record.headline.value == pytest.approx(trained.record.metrics["online_test"], abs=1e-9)
    with np.load(trained.path / "online.predictions.npz") as arrays:
        right = [int(a == b) for a, b in zip(arrays["online@1"][0], arrays["label"], strict=True)]
    assert sum(right) / len(right) == pytest.approx(record.headline.value, abs=1e-9)
    assert record.headline.n == len(right) == 539
    assert record.headline.metric == "accuracy"


def test_an_online_score_is_a_row_of_a_separate_block(board: Path) -> None:
    (row,) = read(board)
    assert (row.probe, row.protocol, row.label_fraction, row.test_reads) == ("online", "v1", "1", 1)
    assert validate(board) == []
    (section,) = standings([row])
    (block,) = section.blocks
    assert block.probe == "online"
    assert [line.best for line in block.lines] == [False]
    assert any("learned while the encoder was trained" in note for note in section.notes)
    assert "all but online" in page([row])


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def other_score(board: Path) -> None:
    (row,) = read(board)
    path = row.record / "online.json"
    content = json.loads(path.read_text())
    content["results"][0] |= {"value": 0.9, "low": 0.88, "high": 0.92}
    path.write_text(json.dumps(content))
    cells = board.read_text().replace(f",{row.value:g},", ",0.9,", 1)
    assert row.low is not None
    assert row.high is not None
    board.write_text(cells.replace(f",{row.low:g},", ",0.88,", 1).replace(f",{row.high:g},", ",0.92,", 1))


def linked(record: Path) -> None:
    shutil.move(record / "online.json", record / "elsewhere")
    (record / "online.json").symlink_to("elsewhere")


FORGERIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "another score": (other_score, "online_test"),
    "no predictions": (lambda record: (record / "online.predictions.npz").unlink(), "no predictions of online"),
    "another encoder": (lambda record: change(record / "online.json", encoder_sha256="ab" * 32), "another encoder"),
    "other rules": (lambda record: change(record / "online.json", protocol="dabs"), "not what run.json says"),
    "a link": (linked, "no links"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_online_score_is_detected(board: Path, name: str) -> None:
    forge, says = FORGERIES[name]
    forge(board if forge is other_score else read(board)[0].record)
    assert any(says in problem for problem in validate(board))
