"""The overview's matrix and aggregates, on rows written here."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_table import row, seeds, write_record

from dabsmix import cli
from dabsmix.board import overview as board_overview
from dabsmix.board import row as board_row
from dabsmix.board.gains import RESAMPLES, Gains, aggregate, normalised_gains
from dabsmix.board.overview import as_plain, overviews, text
from dabsmix.board.page import page
from dabsmix.board.row import COLUMNS, Row
from dabsmix.board.standings import Line
from dabsmix.scoring.intervals import Measured


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
    gains = np.concatenate([(0.2 + np.array([-1, 0, 1]) * 0.002) / 0.4, (0.1 + np.array([-1, 0, 1]) * 0.002) / 0.4])
    assert best.mean == pytest.approx(np.repeat(np.sort(gains), 2)[3:-3].mean())  # the middle half of six
    assert best.low < best.mean < best.high
    assert best.improvement == 1
    assert other.improvement == pytest.approx(0.25)
    drawn = text([overview])
    assert "+20.0* (+" in drawn
    assert "–" in drawn
    json.dumps(as_plain([overview]))


def test_every_data_set_counts_alike_in_an_aggregate_whatever_its_number_of_seeds() -> None:
    rng = np.random.default_rng(0)
    few, many = (Gains(rng.normal(size=n), rng.normal(size=(RESAMPLES, n)), 0.5) for n in (3, 5))
    # 120 equal parts, 20 of each of three values and 12 of each of five, of which the middle 60 count
    values = sorted(
        [each for each in few.measured for _ in range(20)] + [each for each in many.measured for _ in range(12)]
    )
    over_both = aggregate("dmix", [few, many])
    assert over_both.mean == pytest.approx(np.mean(values[30:90]))
    assert over_both.low < over_both.mean < over_both.high
    again = Gains(np.tile(few.measured, 2), np.tile(few.resampled, 2), 0.5)
    one, other = aggregate("dmix", [few, many]), aggregate("dmix", [again, many])
    assert (one.mean, one.low, one.high) == pytest.approx((other.mean, other.low, other.high))


def test_a_table_that_is_too_wide_goes_on_below(tmp_path: Path) -> None:
    rows = domain(tmp_path, "digits", dmix=0.2) + domain(tmp_path, "uci_har", dmix=0.1)
    rows += domain(tmp_path, "cifar10", dmix=0.3)
    (overview,) = overviews(rows, modality)
    wide, narrow, least = (text([overview], width).splitlines() for width in (240, 70, 45))
    for drawn, parts in ((wide, 1), (narrow, 2), (least, 3)):
        assert sum(line.startswith("  dmix") and "*" in line for line in drawn) == parts
        for name in ("cifar10", "digits", "uci_har"):
            assert sum(name in line.split() for line in drawn) == 1
    table = narrow[: narrow.index("")] + narrow[narrow.index("") + 1 :]
    assert max(len(line) for line in table if not line.startswith("  *")) <= 70


@pytest.mark.parametrize("format", ["table", "html"])
def test_the_overview_is_of_the_scores_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    rows = domain(tmp_path, "digits", dmix=0.2) + domain(tmp_path / "knn", "digits", dmix=0.25)
    rows = [replace(each, probe="knn", label_fraction="5/class") if i >= 6 else each for i, each in enumerate(rows)]
    csv = tmp_path / "results.csv"
    csv.write_text(",".join(COLUMNS) + "\n" + board_row.text(rows))

    def shown(*flags: str) -> str:
        monkeypatch.setattr(sys, "argv", ["dabsmix", "leaderboard", "--csv", f"{csv}", "--format", format, *flags])
        cli.main()
        return re.sub(r"<section id=.scores.*|<form.*", "", capsys.readouterr().out, flags=re.DOTALL)

    assert "+20.0*" in shown()
    knn = shown("--probe", "knn", "--labels", "5/class")
    assert "+25.0*" in knn
    assert "+20.0*" not in knn
    for flags, message in [
        (("--probe", "kn"), "--probe kn: .*no such probe \\(did you mean 'knn'"),
        (("--probe", "knn"), "--labels 1: .*no such knn score; it has 5/class"),
        (("--labels", "10/class"), "--labels 10/class: .*no such linear score; it has 1"),
    ]:
        with pytest.raises(SystemExit) as ended:
            shown(*flags)
        assert ended.value.code == 2
        assert re.search(message, capsys.readouterr().err)


def test_an_algorithm_with_few_data_sets_takes_none_from_the_others(tmp_path: Path) -> None:
    rows = domain(tmp_path, "digits", dmix=0.2, emix=0.0) + domain(tmp_path, "uci_har", dmix=0.1, emix=-0.1)
    (before,) = overviews(rows, modality)
    place: dict[str, Any] = {"domain": "digits", "task": "digits"}
    rows += seeds(tmp_path / "digits", 0.9, algorithm="contpred", **place)
    rows += seeds(tmp_path / "digits", 0.9, algorithm="shed", **place)[:2]  # one seed too few
    (overview,) = overviews(rows, modality)
    assert overview.aggregates == before.aggregates
    assert overview.over == {"all": 2, "image": 1, "sensor": 1}
    assert overview.without == {"contpred": 1, "shed": 0}
    left_out = "contpred (has 1 of 2 data sets), shed (has 0 of 2 data sets)"
    assert f"not in these: {left_out}" in text([overview])
    assert f"Not in the table: {left_out}." in page(rows, modality=modality)
    assert before.without == {}


@pytest.mark.parametrize("trial", range(50))
def test_an_aggregates_algorithms_have_all_its_data_sets_and_none_that_does_is_left_out(
    tmp_path: Path, trial: int
) -> None:
    rng, kinds = np.random.default_rng(trial), ("cifar10", "digits", "uci_har")
    has = {name: [kind for kind in kinds if rng.random() < 0.6] for name in ("dmix", "emix", "shed", "mae")}
    rows = []
    for kind in kinds:
        rows += domain(tmp_path, kind, **{name: 0.1 for name, places in has.items() if kind in places})
    (overview,) = overviews(rows, modality)
    compared = {one.algorithm for one in overview.aggregates.get("all", ())}
    scored = {name for name, places in has.items() if places}
    if not scored:
        assert overview.aggregates == {}
        return
    assert compared
    common = [kind for kind in kinds if all(kind in has[name] for name in compared)]
    assert overview.over["all"] == len(common) > 0  # no data set that all of them have is left out
    assert compared == {name for name in scored if set(common) <= set(has[name])}
    assert set(overview.without) == scored - compared


def test_the_page_has_one_table_of_aggregates_with_a_column_for_each_kind_of_data(tmp_path: Path) -> None:
    rows = domain(tmp_path, "digits", dmix=0.2, emix=0.0) + domain(tmp_path, "uci_har", dmix=0.1, emix=-0.1)
    (overview,) = overviews(rows, modality)
    table = page(rows, modality=modality).partition("<h3>Over data sets</h3>")[2].partition("</table>")[0]
    heads = re.findall(r'<th class="number">(.*?)<span class="interval">(.*?)</span>', table)
    assert heads == [("all", "2 data sets"), ("image", "1 data set"), ("sensor", "1 data set")]
    best_first = re.findall(r"<tr><th>(.*?)</th>", table.partition("<tbody>")[2])
    assert best_first == ["dmix", "emix"]
    means = re.findall(r'<td class="number">(.*?)<span', table)
    expected = [
        {one.algorithm: one.mean for one in overview.aggregates[kind]}[name]
        for name in ("dmix", "emix")
        for kind in ("all", "image", "sensor")
    ]
    assert means == [f"{100 * value:+.1f}" for value in expected]


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


def test_a_better_score_than_perfect_in_a_resample_does_not_turn_a_loss_into_a_gain() -> None:
    def line(*values: float) -> Line:
        runs = tuple(Measured(value, np.linspace(-0.05, 0.05, 20), None, 20, 20) for value in values)
        return Line("x", "ranked", 3, float(np.mean(values)), None, None, None, 20, runs=runs)

    gains = normalised_gains("auroc_macro", {"dmix": line(0.96, 0.97, 0.98)}, line(0.99, 0.99, 0.99))["dmix"]
    assert (gains.measured < 0).all()
    defined = gains.resampled[np.isfinite(gains.resampled)]
    assert 0 < len(defined) < gains.resampled.size
    assert (defined < 0).all()


def test_a_data_set_with_two_budgets_counts_once_in_an_aggregate(tmp_path: Path) -> None:
    rows = domain(tmp_path, "digits", dmix=0.2, emix=0.1) + domain(tmp_path, "uci_har", dmix=0.1, emix=-0.1)
    (once,) = overviews(rows, modality)
    more = [replace(one, steps=900, recipe="long", run=f"{one.run}-l") for one in rows if one.steps]
    (overview,) = overviews([*rows, *[one for one in more if one.domain == "digits"]], modality)
    assert len(overview.columns) == 3
    assert overview.over == once.over == {"all": 2, "image": 1, "sensor": 1}
    assert overview.aggregates == once.aggregates


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


@pytest.fixture
def measured_rows(tmp_path: Path) -> list[Row]:
    """Three seeds of three algorithms with their predictions."""
    rng, label = np.random.default_rng(0), np.arange(400) % 4
    rows = []
    for algorithm, level, steps in (("none", 0.6, 0), ("dmix", 0.7, 300), ("emix", 0.65, 300)):
        for seed in range(3):
            scores = np.where(rng.random((1, 400)) < level, label, (label + 1) % 4)
            value = float((scores == label).mean())
            rows.append(row(tmp_path, value, half=0.05, algorithm=algorithm, seed=seed, steps=steps))
            write_record(rows[-1], scores=scores, label=label)
    return rows


def test_what_is_remembered_changes_no_number(
    tmp_path: Path, measured_rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "cache"))
    computed = []

    def parts(rows: list[Row]) -> Any:
        computed.append(len(rows))
        return of_section(rows)

    of_section = board_overview._parts
    monkeypatch.setattr(board_overview, "_parts", parts)
    first = as_plain(overviews(measured_rows, modality))
    assert as_plain(overviews(measured_rows, modality)) == first
    assert computed == [9]  # the second time everything is recalled

    (memory,) = (tmp_path / "cache" / "memory").iterdir()
    content = bytearray(memory.read_bytes())
    content[len(content) // 2] ^= 1  # in the resampled gains
    memory.write_bytes(content)
    assert as_plain(overviews(measured_rows, modality)) == first
    assert computed == [9, 9]

    predictions = measured_rows[3].record / "transfer" / "digits-v1.predictions.npz"
    arrays: dict[str, Any] = {"linear@1": np.zeros((1, 400), int), "label": np.arange(400) % 4}
    np.savez(predictions, **arrays)  # they do not give the row's score
    changed = as_plain(overviews(measured_rows, modality))
    assert changed != first
    memory.unlink()
    assert as_plain(overviews(measured_rows, modality)) == changed
    overviews(measured_rows[:-1], modality)
    assert computed == [9, 9, 9, 9, 8]


def test_several_processes_give_the_same_overview(
    tmp_path: Path, measured_rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_overview, "MANY", 0)
    overview_of_one = overviews(measured_rows, modality)
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "cache"))
    assert as_plain(overviews(measured_rows, modality, processes=2)) == as_plain(overview_of_one)
