"""DABS's averages over data sets: a plain mean, and only where every data set has a score."""

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from test_table import row

from dabsmix.board.averages import AVERAGES, averages
from dabsmix.board.page import page
from dabsmix.board.row import Row
from dabsmix.board.standings import standings
from dabsmix.board.table import render
from dabsmix.registry import domain

VALUES = {task: 0.3 + 0.01 * place for place, task in enumerate(AVERAGES["GLUE"])}


def glue(tmp_path: Path, seed: int = 0, **changes: Any) -> list[Row]:
    """One row for each task of GLUE, of a run on WikiText-103 under ``dabs``."""
    run: dict[str, Any] = {"domain": "wikitext103", "protocol": "dabs", "seed": seed} | changes
    return [row(tmp_path, value + 0.1 * seed, task=task, **run) for task, value in VALUES.items()]


def test_glue_is_the_plain_mean_over_its_ten_tasks_and_their_seeds(tmp_path: Path) -> None:
    (average,) = averages(standings(glue(tmp_path, 0) + glue(tmp_path, 1)))
    assert average.value == pytest.approx(fmean(VALUES.values()) + 0.05)
    assert (average.name, average.domain, average.algorithm) == ("GLUE", "wikitext103", "dmix")
    assert (average.tasks, average.seeds) == (10, 2)


@pytest.mark.parametrize("missing", AVERAGES["GLUE"])
def test_an_average_that_lacks_a_task_is_not_shown(tmp_path: Path, missing: str) -> None:
    rows = [run for run in glue(tmp_path) if run.task != missing]
    other = [replace(run, recipe="another") for run in glue(tmp_path) if run.task == missing]
    assert averages(standings(rows + other)) == []


def test_averages_are_of_one_protocol_probe_and_share_of_labels(tmp_path: Path) -> None:
    other: list[dict[str, Any]] = [{"protocol": "v2"}, {"probe": "knn"}, {"label_fraction": "0.1"}]
    for changes in other:
        assert averages(standings(glue(tmp_path, **changes))) == []


def test_the_board_shows_only_complete_averages(tmp_path: Path) -> None:
    complete, partial = glue(tmp_path), glue(tmp_path)[1:]
    title, mean = "Averages as DABS defines them", f"{100 * fmean(VALUES.values()):.2f}"
    for shown in (render(complete, "table"), render(complete, "md"), page(complete)):
        assert title in shown
        assert mean in shown
    for shown in (render(partial, "table"), render(partial, "md"), page(partial)):
        assert title not in shown


def test_the_lists_are_those_that_the_pretraining_domains_transfer_to() -> None:
    for tasks in AVERAGES.values():
        assert [domain(task).name for task in tasks] == list(tasks)
    for name, source in (
        *(("GLUE", "wikitext103"), ("natural images", "imagenet_224"), ("natural images, small", "imagenet")),
        *(("captioned images", "mscoco_224"), ("medical images", "chexpert_224"), ("speech", "librispeech")),
        *(("PAWS-X", "mc4"), ("proteins", "pfam"), ("genomics", "genomics"), ("particle physics", "higgs")),
        ("semiconductors", "wafer"),
    ):
        assert sorted(domain(source).transfers) == sorted(AVERAGES[name]), name
