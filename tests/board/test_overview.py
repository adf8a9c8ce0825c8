"""The overview's matrix and aggregates, on rows written here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_table import row, seeds, write_record

from dabsmix.board.overview import as_plain, overviews, text
from dabsmix.board.row import Row


def domain(tmp_path: Path, name: str, **gains: float) -> list[Row]:
    """Three seeds of each algorithm at 0.6 plus its gain."""
    place: dict[str, Any] = {"domain": name, "task": name}
    rows = seeds(tmp_path / name, 0.6, algorithm="none", steps=0, **place)
    for algorithm, gain in gains.items():
        rows += seeds(tmp_path / name, 0.6 + gain, algorithm=algorithm, **place)
    return rows


def modality(name: str) -> str:
    return {"digits": "image", "cifar10": "image", "uci_har": "sensor"}[name]


def test_gains_missing_cells_and_the_data_sets_of_an_aggregate(tmp_path: Path) -> None:
    rows = domain(tmp_path, "digits", dmix=0.2, emix=0.0) + domain(tmp_path, "uci_har", dmix=0.1, emix=-0.1)
    rows += domain(tmp_path, "cifar10", dmix=0.3)
    (overview,) = overviews(rows, modality)
    assert [column.domain for column in overview.columns] == ["cifar10", "digits", "uci_har"]
    assert overview.algorithms == ("dmix", "emix")
    dmix, emix = overview.cells
    assert [cell and round(cell.gain or 0, 6) for cell in dmix] == [0.3, 0.2, 0.1]
    assert emix[0] is None
    assert [cell.shown for cell in dmix if cell] == [True, True, True]
    assert emix[1] is not None
    assert not emix[1].shown
    assert overview.over == {"all": 2, "image": 1, "sensor": 1}  # emix has no cifar10
    best, other = overview.aggregates["all"]
    each = np.concatenate([(0.2 + np.array([-1, 0, 1]) * 0.002) / 0.4, (0.1 + np.array([-1, 0, 1]) * 0.002) / 0.4])
    assert best.mean == pytest.approx(np.sort(each)[1:-1].mean())
    assert best.low < best.mean < best.high
    assert best.improvement == 1
    assert other.improvement == pytest.approx(0.25)
    drawn = text([overview])
    assert "+20.0* (+" in drawn
    assert "–" in drawn
    json.dumps(as_plain([overview]))


def test_the_gain_of_an_error_metric_is_its_decrease(tmp_path: Path) -> None:
    rows = seeds(tmp_path, 0.6, algorithm="none", steps=0, metric="mse") + seeds(tmp_path, 0.3, metric="mse")
    (overview,) = overviews(rows, modality)
    (only,) = overview.aggregates["all"]
    assert only.mean == pytest.approx(0.5)  # half of the way to no error
    assert only.improvement == 1


def test_resamples_in_which_the_random_encoder_makes_no_mistake_are_left_out(tmp_path: Path) -> None:
    label = np.arange(20) % 2
    rows = []
    for algorithm, wrong in (("none", 1), ("dmix", 3)):
        for seed in range(3):
            steps = 0 if algorithm == "none" else 300
            rows.append(row(tmp_path, 1 - wrong / 20, half=0.05, algorithm=algorithm, seed=seed, steps=steps, n=20))
            write_record(rows[-1], scores=np.where(np.arange(20) < wrong, 1 - label, label)[None], label=label)
    (overview,) = overviews(rows, modality)
    (only,) = overview.aggregates["all"]
    assert only.mean == pytest.approx(-2)
    assert only.low < only.mean < only.high < 1e-9


def test_without_a_random_encoder_there_is_no_gain(tmp_path: Path) -> None:
    (overview,) = overviews([row(tmp_path, 0.8)], modality)
    assert overview.cells[0][0] is not None
    assert overview.cells[0][0].gain is None
    assert overview.aggregates == {}
    assert "(80.0)" in text([overview])


def test_other_probes_and_online_scores_are_not_mixed_in(tmp_path: Path) -> None:
    rows = domain(tmp_path, "digits", dmix=0.1) + seeds(tmp_path / "o", 0.9, probe="online")
    (overview,) = overviews(rows, modality)
    assert overview.cells[0][0] is not None
    assert overview.cells[0][0].score == pytest.approx(0.7)
