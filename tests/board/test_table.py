"""Standings and their drawings, on rows and records written here."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dabsmix.board.advice import advice
from dabsmix.board.page import page
from dabsmix.board.row import Row, problems
from dabsmix.board.standings import Line, section_of, standings
from dabsmix.board.table import published, render, show
from dabsmix.scoring.intervals import Difference
from dabsmix.scoring.metrics import METRICS
from dabsmix.scoring.results import AT_EDGE, in_percent

BLOCK = {"domain": "digits", "task": "digits", "encoder": "tiny", "protocol": "v1", "probe": "linear"}
RUN = {"algorithm": "dmix", "seed": 0, "views": "identical", "uses_labels": False, "steps": 300, "hyper": "{}"}


def row(tmp_path: Path, value: float, *, half: float | None = 0.01, **changes: Any) -> Row:
    """A row with the interval value ± half; by default the recipe follows from the algorithm."""
    low, high = (None, None) if half is None else (value - half, value + half)
    cells: dict[str, Any] = {
        **BLOCK | RUN,
        **{"label_fraction": "1", "metric": "accuracy", "value": value, "low": low, "high": high, "n": 360},
        **{"by": "Ada", "date": "2026-01-31", "batch_size": 128, "lr": 3e-4, "precision": "fp32"},
        **{"pretrain_protocol": "v1", "version": "0.1.0", "commit": "", "config_hash": "c" * 12},
        **{"pretrain_fingerprint": "f" * 12, "data_fingerprint": "d" * 12, "encoder_sha256": "e" * 64},
        **{"parameters": 1000, "seconds": 1.0, "device": "cpu", "test_reads": 1},
    } | changes
    cells.setdefault("recipe", f"recipe-{cells['algorithm']}")
    cells.setdefault("run", f"{cells['algorithm']}-s{cells['seed']}-{cells['recipe']}")
    return Row(**cells, record=tmp_path / "runs" / cells["run"])


def write_record(
    row: Row,
    *,
    scores: NDArray[np.int64] | None = None,
    label: NDArray[np.int64] | None = None,
    yardsticks: dict[str, Any] | None = None,
    notes: tuple[str, ...] = (),
    units: int = 0,
    num_features: int = 0,
    selected: dict[str, Any] | None = None,
    of_yardsticks: dict[str, Any] | None = None,
) -> None:
    """The parts of a row's record that a table reads; scores: the predicted class, (draws, n)."""
    folder = row.record / "transfer"
    folder.mkdir(parents=True)
    result = {name: getattr(row, name) for name in ("probe", "label_fraction", "metric", "value", "low", "high", "n")}
    result |= {"units": units, "num_features": num_features, "selected": selected or {}}
    content: dict[str, Any] = {"task": row.task, "protocol": row.protocol, "kind": "classes", "results": [result]}
    content |= {"notes": notes, "yardsticks": yardsticks or {}}
    (folder / "digits-v1.json").write_text(json.dumps(content))
    if scores is not None and label is not None:
        arrays: dict[str, Any] = {"linear@1": scores, "label": label}
        np.savez(folder / "digits-v1.predictions.npz", **arrays)
    if of_yardsticks:
        np.savez(folder / "digits-v1.yardsticks.npz", **of_yardsticks)


def yardstick(value: float, **changes: Any) -> dict[str, Any]:
    """One result of a yardstick."""
    result = {"probe": "linear", "label_fraction": "1", "metric": "accuracy", "value": value, "n": 360}
    return result | {"low": value - 0.01, "high": value + 0.01} | changes


def lines(rows: list[Row]) -> dict[str, Line]:
    """The lines of the only block, by name."""
    (section,) = standings(rows)
    (block,) = section.blocks
    return {line.name: line for line in block.lines}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("protocol", "dabs"),
        ("encoder", "dabs"),
        ("domain", "mnist"),
        ("data_fingerprint", "0" * 12),
        ("pretrain_fingerprint", "0" * 12),
        ("probe", "knn"),
        ("label_fraction", "5/class"),
        ("metric", "f1_macro"),
    ],
)
def test_rows_of_different_settings_are_never_ranked_together(tmp_path: Path, name: str, value: str) -> None:
    changes: dict[str, Any] = {"algorithm": "emix", name: value}
    rows = [row(tmp_path, 0.9), row(tmp_path, 0.8, **changes)]
    blocks = [block for section in standings(rows) for block in section.blocks]
    assert [[line.name for line in block.lines] for block in blocks] in ([["dmix"], ["emix"]], [["emix"], ["dmix"]])


def test_seeds_share_a_line_and_a_repeated_seed_counts_once(tmp_path: Path) -> None:
    values = {0: 0.80, 1: 0.84, 2: 0.85}
    rows = [row(tmp_path, value, seed=seed) for seed, value in values.items()]
    rows += [row(tmp_path, 0.82, seed=0, run="elsewhere")]
    line = lines(rows)["dmix"]
    by_seed = [0.81, 0.84, 0.85]
    assert line.seeds == 3
    assert line.mean == pytest.approx(np.mean(by_seed))
    assert line.std == pytest.approx(np.std(by_seed, ddof=1))
    assert line.low is not None
    assert line.std is not None
    assert line.mean - line.low > 2.5 * line.std / 3**0.5  # Student's t of three seeds, and the test examples


def test_another_recipe_or_version_is_a_separate_line_with_its_difference(tmp_path: Path) -> None:
    rows = [
        row(tmp_path, 0.80, hyper='{"temperature":0.2}'),
        row(tmp_path, 0.82, recipe="b", hyper='{"temperature":0.1}'),
        row(tmp_path, 0.84, recipe="c", hyper='{"temperature":0.1}'),
    ]
    (section,) = standings(rows)
    assert [line.setting for line in section.blocks[0].lines] == [
        "temperature 0.1, recipe c",
        "temperature 0.1, recipe b",
        "temperature 0.2, recipe recipe-dmix",
    ]


def seeds(tmp_path: Path, value: float, count: int = 3, spread: float = 0.002, **changes: Any) -> list[Row]:
    """Runs under several seeds whose mean is the value."""
    shifts = np.linspace(-spread, spread, count)
    return [row(tmp_path, value + float(shift), seed=i, **changes) for i, shift in enumerate(shifts)]


def complete(tmp_path: Path, *others: list[Row], raw: float = 0.3, **changes: Any) -> list[Row]:
    """A block with a random encoder and the yardsticks beside these rows."""
    rows = [other for part in others for other in part] + seeds(tmp_path, 0.6, algorithm="none", steps=0, **changes)
    write_record(rows[0], yardsticks={"raw": [yardstick(raw, metric=rows[0].metric)]})
    return rows


def test_a_gain_over_none_is_shown_or_is_not(tmp_path: Path) -> None:
    rows = complete(tmp_path, seeds(tmp_path, 0.9), seeds(tmp_path, 0.61, algorithm="emix"))
    by_name = lines(rows)
    assert [(n, line.against and line.against.shown) for n, line in by_name.items()] == [
        ("dmix", True),
        ("emix", False),
        ("none (random init)", None),
        ("raw input", None),
    ]
    against = by_name["dmix"].against
    assert against is not None
    assert against.difference == pytest.approx(0.3)
    assert by_name["dmix"].best


@pytest.mark.parametrize(("ours", "theirs"), [(1, 3), (2, 3), (3, 2), (3, 1)])
def test_fewer_than_three_seeds_show_nothing_and_get_no_star(tmp_path: Path, ours: int, theirs: int) -> None:
    rows = seeds(tmp_path, 0.9, ours) + seeds(tmp_path, 0.5, theirs, algorithm="none", steps=0)
    write_record(rows[0], yardsticks={"raw": [yardstick(0.3)]})
    line = lines(rows)["dmix"]
    assert line.against is not None
    assert (line.against.shown, line.against.low, line.best) == (False, None, False)
    assert "Fewer than 3 seeds" in render(rows, "table")
    assert ", shown" not in render(rows, "table")


def test_the_family_against_none_is_corrected(tmp_path: Path) -> None:
    """A gain that would be shown alone is not shown as one of nine: Holm corrects the family against none."""

    def shown(others: int) -> bool:
        rows = seeds(tmp_path, 0.6 + 0.0165, algorithm="dmix") + seeds(tmp_path, 0.6, algorithm="none", steps=0)
        for i in range(others):
            rows += seeds(tmp_path, 0.6, algorithm=f"other{i}")
        against = lines(rows)["dmix"].against
        assert against is not None
        assert against.low is not None
        assert against.low > 0
        return against.shown

    assert [shown(0), shown(8)] == [True, False]


def test_budgets_are_separate_blocks_and_none_belongs_to_each(tmp_path: Path) -> None:
    rows = complete(tmp_path, seeds(tmp_path, 0.9, steps=100_000), seeds(tmp_path, 0.8, algorithm="emix", steps=1000))
    (section,) = standings(rows)
    assert [[line.name for line in block.lines if line.rows] for block in section.blocks] == [
        ["emix", "none (random init)"],
        ["dmix", "none (random init)"],
    ]
    assert section.blocks[1].lines[0].budget == "100000 × 128, lr 0.0003"
    assert "100000 × 128" in render(rows, "table")


def test_a_random_encoder_that_was_run_with_two_budgets_is_one_line(tmp_path: Path) -> None:
    rows = seeds(tmp_path, 0.9, algorithm="dmix")
    for recipe, encoders in (("one", "abc"), ("two", "abcd"), ("three", "xyz")):
        rows += [
            row(tmp_path, 0.6, algorithm="none", steps=0, seed=seed, recipe=recipe, encoder_sha256=64 * letter)
            for seed, letter in enumerate(encoders)
        ]
    (section,) = standings(rows)
    assert [(line.name, line.seeds) for line in section.blocks[0].lines if line.rows] == [
        ("dmix", 3),
        ("none (random init)", 4),
        ("none (random init)", 3),
    ]


def test_no_star_without_none_or_without_yardsticks(tmp_path: Path) -> None:
    rows = complete(tmp_path, seeds(tmp_path, 0.9))
    assert lines(rows)["dmix"].best
    assert not lines([run for run in rows if run.algorithm != "none"])["dmix"].best
    other = tmp_path / "without yardsticks"
    rows = seeds(other, 0.9) + seeds(other, 0.6, algorithm="none", steps=0)
    assert not lines(rows)["dmix"].best


def test_another_recipe_of_the_algorithm_does_not_remove_its_star(tmp_path: Path) -> None:
    rows = complete(tmp_path, seeds(tmp_path, 0.9), seeds(tmp_path, 0.9, recipe="b", lr=1e-3, version="0.2.0"))
    (section,) = standings(rows)
    assert section.blocks[0].lines[0].best
    rival = seeds(tmp_path, 0.9, algorithm="emix")
    assert not any(line.best for line in standings([*rows, *rival])[0].blocks[0].lines)


def test_the_best_of_several_recipes_needs_a_surer_lead_for_the_star(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead = Difference(0.1, 0.01, 0.19, p=0.03)
    monkeypatch.setattr("dabsmix.board.standings._difference", lambda line, other: (lead, True))
    rows = complete(tmp_path, seeds(tmp_path, 0.9))
    assert standings(rows)[0].blocks[0].lines[0].best
    rows += seeds(tmp_path, 0.9, recipe="b", lr=1e-3, version="0.2.0")
    assert not any(line.best for line in standings(rows)[0].blocks[0].lines)


def test_error_metrics_rank_the_other_way(tmp_path: Path) -> None:
    rows = complete(tmp_path, seeds(tmp_path, 0.1, metric="mse"), raw=0.9, metric="mse")
    by_name = lines(rows)
    assert next(iter(by_name)) == "dmix"
    assert by_name["dmix"].best


def test_paired_predictions_show_what_intervals_cannot(tmp_path: Path) -> None:
    label = np.arange(400) % 4
    rows: list[Row] = []
    for algorithm, wrong, steps in (("dmix", 80, 300), ("none", 100, 0)):
        for seed in range(3):
            value = 1 - (wrong + seed) / 400
            run = row(tmp_path, value, half=0.04, algorithm=algorithm, seed=seed, steps=steps)
            rows.append(run)
    alone = lines(rows)["dmix"].against
    assert alone is not None
    assert not alone.shown
    for run in rows:
        wrong = round((1 - run.value) * 400)
        write_record(run, scores=np.where(np.arange(400) < wrong, (label + 1) % 4, label)[None], label=label)
    against = lines(rows)["dmix"].against
    assert against is not None
    assert against.paired
    assert against.shown
    assert against.difference == pytest.approx(0.05)


def test_draws_of_labels_are_averaged_within_their_seed(tmp_path: Path) -> None:
    """Twenty draws of three seeds count as three runs; counted as sixty, this gain would be shown."""
    rng = np.random.default_rng(0)
    label = np.arange(400) % 4
    rows: list[Row] = []
    for algorithm, levels, steps in (("dmix", (0.60, 0.70, 0.80), 300), ("none", (0.55, 0.62, 0.70), 0)):
        for seed, level in enumerate(levels):
            draws = np.where(rng.random((20, 400)) < level, label, (label + 1) % 4)
            value = float((draws == label).mean())
            rows.append(row(tmp_path, value, half=0.04, algorithm=algorithm, seed=seed, steps=steps))
            write_record(rows[-1], scores=draws, label=label)
    section = section_of(rows, for_overview=True)
    line = next(line for line in section.blocks[0].lines if line.name == "dmix")
    assert line.runs is not None
    assert [run.value for run in line.runs] == pytest.approx([run.value for run in rows[:3]])
    against = line.against
    assert against is not None
    assert against.paired
    assert not against.shown


@pytest.mark.parametrize(("stored", "wrong", "best"), [(True, 100, True), (False, 100, False), (True, 99, False)])
def test_a_yardstick_is_compared_on_the_same_examples(tmp_path: Path, stored: bool, wrong: int, best: bool) -> None:
    """If its predictions are stored and reproduce its score."""
    label = np.arange(400) % 4

    def predicted(wrong: int) -> NDArray[np.int64]:
        return np.where(np.arange(400) < wrong, (label + 1) % 4, label)[None]

    for algorithm, errors, steps in (("dmix", 80, 300), ("none", 160, 0)):
        for seed in range(3):
            run = row(tmp_path, 1 - (errors + seed) / 400, half=0.04, algorithm=algorithm, seed=seed, steps=steps)
            raw = yardstick(0.75, low=0.71, high=0.79)
            archive = {"raw linear@1": predicted(wrong)} if stored else None
            scores = predicted(errors + seed)
            write_record(run, scores=scores, label=label, yardsticks={"raw": [raw]}, of_yardsticks=archive)
    rows = [row(tmp_path, 1 - (80 + seed) / 400, half=0.04, seed=seed) for seed in range(3)]
    rows += [row(tmp_path, 1 - (160 + s) / 400, half=0.04, algorithm="none", seed=s, steps=0) for s in range(3)]
    assert lines(rows)["dmix"].best == best


def test_a_gain_is_the_difference_of_the_means_that_are_printed_if_a_seed_was_run_twice(tmp_path: Path) -> None:
    label, rows = np.arange(100) % 2, []
    for algorithm, seed, wrong, run in (
        *(("none", seed, 40 + seed, "n") for seed in range(3)),
        *(("dmix", seed, 20 + seed, "d") for seed in range(3)),
        ("dmix", 0, 32, "elsewhere"),
    ):
        steps = {"steps": 0} if algorithm == "none" else {}
        rows.append(row(tmp_path, 1 - wrong / 100, algorithm=algorithm, seed=seed, run=f"{run}{seed}", n=100, **steps))
        write_record(rows[-1], scores=np.where(np.arange(100) < wrong, 1 - label, label)[None], label=label)
    by_name = lines(rows)
    dmix, none = by_name["dmix"], by_name["none (random init)"]
    assert dmix.seeds == 3
    assert dmix.mean == pytest.approx(1 - (26 + 21 + 22) / 300)
    assert dmix.against is not None
    assert dmix.against.paired
    assert dmix.against.difference == pytest.approx(dmix.mean - none.mean)


def test_predictions_of_other_examples_are_not_paired(tmp_path: Path) -> None:
    label = np.arange(400) % 4
    rows = seeds(tmp_path, 1.0, spread=0) + seeds(tmp_path, 1.0, spread=0, algorithm="none", steps=0)
    for run in rows:
        turned = np.roll(label, run.algorithm == "none")
        write_record(run, scores=turned[None], label=turned)
    against = lines(rows)["dmix"].against
    assert against is not None
    assert not against.paired


def test_yardsticks_come_last_and_can_prevent_the_star(tmp_path: Path) -> None:
    rows = seeds(tmp_path, 0.81) + seeds(tmp_path, 0.60, algorithm="none", steps=0)
    rows += seeds(tmp_path, 0.70, algorithm="emix")
    others = [yardstick(0.3, label_fraction="0.1"), yardstick(0.2, probe="knn"), yardstick(0.1, metric="f1_macro")]
    majority = [yardstick(0.1, probe="majority", label_fraction="0.1")]  # uses no labels, so the share does not matter
    write_record(rows[0], yardsticks={"raw": [*others, yardstick(0.84)], "majority": majority})
    by_name = lines(rows)
    assert [(name, line.part, round(line.mean, 6)) for name, line in by_name.items()] == [
        ("dmix", "ranked", 0.81),
        ("emix", "ranked", 0.70),
        ("raw input", "yardstick", 0.84),
        ("none (random init)", "yardstick", 0.60),
        ("majority class", "yardstick", 0.1),
    ]
    assert not by_name["dmix"].best


def test_a_yardstick_of_another_probe_is_marked(tmp_path: Path) -> None:
    rows = [row(tmp_path, 0.81, probe="ridge"), row(tmp_path, 0.6, probe="ridge", algorithm="none")]
    write_record(rows[0], yardsticks={"raw": [yardstick(0.9), yardstick(0.7, label_fraction="0.1")], "majority": []})
    assert [(name, line.mean) for name, line in lines(rows).items()] == [
        ("dmix", 0.81),
        ("raw input (linear)", 0.9),
        ("none (random init)", 0.6),
    ]


def test_the_number_of_groups_is_shown_and_few_groups_have_no_interval(tmp_path: Path) -> None:
    rows = seeds(tmp_path, 0.8, half=None)
    for run in rows:
        write_record(run, units=4)
    line = lines(rows)["dmix"]
    assert (line.groups, line.low) == (4, None)
    assert "fewer than 5 groups" in render(rows, "table")
    assert re.search(r" 360 +4 +–$", render(rows, "table"), flags=re.M)


def test_rows_with_augmentations_or_labels_are_separate(tmp_path: Path) -> None:
    rows = [
        row(tmp_path, 0.95, algorithm="supervised", uses_labels=True),
        row(tmp_path, 0.93, algorithm="imix", views="augment"),
        row(tmp_path, 0.92, algorithm="none", hyper='{"init":"timm:vit"}', steps=0),
        row(tmp_path, 0.81),
        row(tmp_path, 0.70, algorithm="emix"),
    ]
    by_name = lines(rows)
    assert [(line.part, line.marks) for line in by_name.values()] == [
        *[("ranked", "")] * 2,
        ("apart", "labels"),
        ("apart", "augment views"),
        ("apart", "from timm:vit"),
    ]
    for text in (render(rows, "table"), render(rows, "md"), page(rows)):
        assert "imix: augment views]" in text
        assert "supervised: labels]" in text
        assert "none: from timm:vit]" in text


def test_one_seed_and_missing_records_are_noted(tmp_path: Path) -> None:
    rows = [row(tmp_path, 0.81), row(tmp_path, 0.805, algorithm="emix")]
    write_record(rows[0], notes=("The reported split is also the one watched during training.",))
    text = render(rows, "table")
    assert "With 1 seed, the interval covers the draw of test examples alone" in text
    assert "No record of 1 run(s)" in text
    assert "The reported split is also the one watched" in text
    assert "With 1 seed" not in render([row(tmp_path, 0.8, seed=seed) for seed in (0, 1, 2)], "table")


def test_records_that_chose_the_edge_of_a_grid_share_one_note(tmp_path: Path) -> None:
    rows = [row(tmp_path, 0.8, seed=seed) for seed in (0, 1, 2)]
    for each, at_edge in zip(rows, (True, True, False), strict=True):
        own = f"The linear probe with labels 1 {AT_EDGE}: C {1e4 + each.seed}."
        write_record(each, notes=(own,) if at_edge else (), selected={"at_edge": at_edge})
    for text in (render(rows, "table"), render(rows, "md"), page(rows).replace("&#39;", "'")):
        assert text.count("linear, all labels: 2 of 3 scores chose the edge of the probe's grid.") == 1
        assert AT_EDGE not in text


def test_numbers_have_the_usual_format_of_their_metric(tmp_path: Path) -> None:
    rows = [row(tmp_path, 0.80, seed=0, half=0.02), row(tmp_path, 0.82, seed=1, half=0.02)]
    rows += [row(tmp_path, 1.5, metric="mse", task="tides")]
    text = render(rows, "table")
    assert re.search(r"linear +all +dmix +300 × 128, lr 0.0003 +– +2 +81\.0 ± 1\.4 +\d\d\.\d to \d\d\.\d +360", text)
    assert re.search(r"accuracy, %", text)
    assert re.search(r"dmix +300 × 128, lr 0.0003 +– +1 +1\.5000 +1\.4900 to 1\.5100", text)
    assert "digits → tides · encoder tiny · protocol v1 · data dddddddd" in text


def test_plain_text_has_no_terminal_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    rows = [row(tmp_path, 0.81), row(tmp_path, 0.5, algorithm="[bold]odd")]
    show(rows)
    piped = capsys.readouterr().out
    assert "\x1b" not in piped
    assert piped == render(rows, "table")
    assert "[bold]odd" in piped
    assert "\x1b" not in render(rows, "md") + render(rows, "csv") + page(rows)


def test_markdown_shows_what_was_written(tmp_path: Path) -> None:
    text = render([row(tmp_path, 0.8, algorithm="a|b_c")], "md")
    assert r"| a\|b\_c |" in text
    (table,) = re.findall(r"(?:^\|.*\n)+", text, flags=re.M)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_csv_gives_every_line_in_fractions(tmp_path: Path) -> None:
    rows = [row(tmp_path, 0.8), row(tmp_path, 0.5, algorithm="emix")]
    rows_read = list(csv.DictReader(io.StringIO(render(rows, "csv"))))
    assert [(f["name"], f["mean"], f["best"], f["against_shown"]) for f in rows_read] == [
        ("dmix", "0.8", "false", ""),
        ("emix", "0.5", "false", ""),
    ]


class Page(HTMLParser):
    """Collects what a page loads, and checks that its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [
            f"{tag} {name}={value}" for name, value in attrs if name == "src" or (tag, name) == ("link", "href")
        ]
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_self_contained_and_escaped(tmp_path: Path) -> None:
    rows = [row(tmp_path, 0.8, by="<script>alert(1)</script>"), row(tmp_path, 0.5, half=None, algorithm="<i>")]
    text = page(rows)
    parsed = Page()
    parsed.feed(text)
    assert parsed.open == []
    assert parsed.loads == []
    assert "<script>alert" not in text
    assert "<i>" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert "&lt;i&gt;" in text


def test_published_numbers_are_a_separate_section(tmp_path: Path) -> None:
    papers = published(Path(__file__).parents[2] / "leaderboard" / "published.csv")
    assert len(papers) > 200
    rows = [row(tmp_path, 0.3, task="cifar10")]
    assert {line.name for line in lines(rows).values()} == {"dmix"}
    text = render(rows, "md", papers)
    ours, _, theirs = text.partition("## Published numbers")
    assert "39.43" in theirs
    assert "39.43" not in ours
    assert "cu_birds" not in theirs
    assert "39.43" in page(rows, papers)
    assert "Published" not in render([row(tmp_path, 0.3)], "md", papers)
    assert published(tmp_path / "published.csv") == []


def test_empty_leaderboard_says_so() -> None:
    assert "empty" in render([], "table")
    assert "empty" in page([])


def test_every_metric_has_a_format() -> None:
    in_units = {name for name in METRICS if not in_percent(name)}
    assert in_units == {"mse", "mae"}


def test_a_mean_over_batches_is_a_metric_of_rows(tmp_path: Path) -> None:
    assert not [problem for problem in problems(row(tmp_path, 0.3, metric="pearson/128")) if "metric" in problem]
    assert in_percent("pearson/128")
    assert not in_percent("mse/128")
    for name in ("pearson/", "pearson/0", "accuracy/many", "pears/128"):
        assert any("is unknown" in problem for problem in problems(row(tmp_path, 0.3, metric=name)))


def test_the_table_says_which_algorithms_do_not_beat_the_yardsticks(tmp_path: Path) -> None:
    rows = complete(tmp_path, seeds(tmp_path, 0.9), seeds(tmp_path, 0.7, algorithm="emix"), raw=0.8)
    text = render(rows, "table")
    assert "Not above the best yardstick: emix (linear, all labels: raw input 80.0)." in text
    assert "has shown anything" not in text
    rows = complete(tmp_path / "low", seeds(tmp_path / "low", 0.7), raw=0.8)
    assert "No algorithm scores above the best yardstick" in render(rows, "table")


def test_every_line_has_its_flops(tmp_path: Path) -> None:
    rows = complete(tmp_path, seeds(tmp_path, 0.9, train_flops=1.234e15), seeds(tmp_path, 0.8, algorithm="emix"))
    by_name = lines(rows)
    assert [by_name[name].flops for name in ("dmix", "emix", "none (random init)")] == [1.234e15, None, 0]
    assert "1.2e15" in render(rows, "table")
    assert "1.2e15" in page(rows)


def test_advice_names_the_algorithm_its_gain_and_how_certain_it_is(tmp_path: Path) -> None:
    (shown,) = advice(
        complete(tmp_path / "a", seeds(tmp_path / "a", 0.9), seeds(tmp_path / "a", 0.61, algorithm="emix"))
    )
    assert re.search(
        r"^digits \(tiny, v1, 300 × 128, linear probe, all labels\): use dmix, which is 30.0 points better in accuracy "
        r"than a random encoder \(95 % interval \+\d+\.\d to \+\d+\.\d, shown at 5 % among all algorithms\)\.$",
        shown,
    )
    (chance,) = advice(complete(tmp_path / "b", seeds(tmp_path / "b", 0.605), raw=0.7))
    assert "no algorithm is shown to be better than a random encoder" in chance
    assert "dmix, is 0.5 points better" in chance
    assert "so it may be chance" in chance
    assert chance.endswith("with raw input and no pretraining the score is 70.0, with dmix 60.5, so try that first.")
    (one,) = advice(complete(tmp_path / "c", seeds(tmp_path / "c", 0.55, count=1)))
    assert "5.2 points worse in accuracy than a random encoder (no interval: that takes 3 seeds of both)" in one
    (alone,) = advice(seeds(tmp_path / "d", 0.9))
    assert "add none to --algos" in alone


def test_advice_says_of_which_budget_and_setting_it_is(tmp_path: Path) -> None:
    others = seeds(tmp_path, 0.7, steps=900), seeds(tmp_path, 0.8, steps=900, algorithm="emix")
    short, long = advice(complete(tmp_path, seeds(tmp_path, 0.9), *others))
    assert short.startswith("digits (tiny, v1, 300 × 128, linear probe, all labels): use dmix, which is 30.0 ")
    assert long.startswith("digits (tiny, v1, 900 × 128, linear probe, all labels): use emix, which is 20.0 ")
    assert "; shown to be better than a random encoder too: dmix; which of them is best was not tested." in long
    recipes = (seeds(tmp_path, value, recipe=str(value), lr=value) for value in (0.8, 0.9))
    (settings,) = advice(complete(tmp_path, *recipes))
    assert "use dmix (lr 0.9), which" in settings
    assert "too: dmix (lr 0.8);" in settings


def test_advice_on_errors_counts_lower_as_better(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"metric": "mse", "half": 0.004}
    rows = seeds(tmp_path, 0.2, **changes) + seeds(tmp_path, 0.6, algorithm="none", steps=0, **changes)
    (text,) = advice(rows)
    assert "use dmix, which is 0.4000 better in mse than a random encoder (95 % interval +0.3" in text


def test_every_line_has_its_number_of_features(tmp_path: Path) -> None:
    rows = [row(tmp_path, 0.8 + seed / 100, seed=seed, num_features=64 * seed) for seed in (1, 4)]
    rows.append(row(tmp_path, 0.82, seed=2))  # of a version without the column: its record has the number
    assert lines(rows)["dmix"].num_features == 256
    write_record(rows[-1], num_features=512)
    assert lines(rows)["dmix"].num_features == 512
    assert re.search(r" 360 +512", render(rows, "table"))
    assert render(rows, "csv").splitlines()[0].endswith(",num_features")
    assert ">512<" in page(rows)
