"""``scripts/head_mix.py``: deformations against loops, and its tables of the board against docs/science.md."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from script_module import script

ROOT = Path(__file__).parents[1]
head_mix = script("head_mix")


@pytest.mark.parametrize("degrees", [0.0, 20.0, 40.0])
def test_rotation_interpolates_between_four_neighbours(degrees: float) -> None:
    side, x = 5, torch.rand(8, 2, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    turned = head_mix.rotation(x, torch.Generator().manual_seed(0), degrees)
    draws = torch.rand(8, generator=torch.Generator().manual_seed(0))
    for i in range(8):
        angle = (2 * draws[i].item() - 1) * math.radians(degrees)
        cos, sin = math.cos(angle), math.sin(angle)
        for row in range(side):
            for column in range(side):
                v, u = row - 2, column - 2
                r, c = sin * u + cos * v + 2, cos * u - sin * v + 2
                total = torch.zeros(2, dtype=torch.float64)
                for a in (math.floor(r), math.floor(r) + 1):
                    for b in (math.floor(c), math.floor(c) + 1):
                        if 0 <= a < side and 0 <= b < side:
                            total = total + (1 - abs(r - a)) * (1 - abs(c - b)) * x[i, :, a, b]
                torch.testing.assert_close(turned[i, :, row, column], total, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(6,), (4, 5)])
def test_blur_is_the_mean_of_the_neighbours_that_there_are(size: tuple[int, ...]) -> None:
    x = torch.rand(8, 2, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    blurred = head_mix.blur(x, torch.Generator())
    for place in np.ndindex(*size):
        near = [other for other in np.ndindex(*size) if max(abs(a - b) for a, b in zip(place, other, strict=True)) <= 1]
        mean = sum(x[(..., *other)] for other in near) / len(near)
        torch.testing.assert_close(blurred[(..., *place)], mean)


def test_noise_has_the_asked_standard_deviation() -> None:
    added = head_mix.noise(torch.ones(50, 1, 40, 40), torch.Generator().manual_seed(0), 0.5) - 1
    assert added.std().item() == pytest.approx(0.5, rel=0.02)
    assert added.mean().item() == pytest.approx(0, abs=0.01)


def test_the_linear_table_of_the_document_is_that_of_the_board() -> None:
    document = (ROOT / "docs" / "science.md").read_text(encoding="utf-8").splitlines()
    for domain in ("covtype", "uci_har", "traffic_sign", "cifar10", "sst2"):
        all_cells = head_mix.cells(ROOT / "leaderboard" / "runs", (domain,), ("none", *head_mix.ON_FEATURES))
        rows = head_mix.table(all_cells, "v2")
        assert rows
        assert set(rows) <= set(document)


def test_the_clean_scores_of_whole_networks_in_the_document_are_those_of_the_board() -> None:
    document = (ROOT / "docs" / "science.md").read_text(encoding="utf-8").replace("**", "").splitlines()
    for domain, best in (("digits", "contdmix"), ("traffic_sign", "emix")):
        all_cells = head_mix.cells(ROOT / "leaderboard" / "runs", (domain,), head_mix.MIXES)
        rows = [
            [cell.strip() for cell in row.strip("| ").split(" | ")] for row in head_mix.table(all_cells, "finetune")
        ]
        assert len(rows) == 2 * len(head_mix.MIXES)
        for _, start, _, mix, seeds, score, *difference in rows:
            assert start in ("none", best)
            assert seeds == "3"
            begins = f"| {start} | {mix} | {score if mix == 'none' else difference[0]} |"
            assert any(line.startswith(begins) for line in document), begins


def test_a_comparison_that_was_begun_keeps_its_algorithm(tmp_path: Path) -> None:
    for name in ("none", "emix", "mae"):
        for folder in (ROOT / "leaderboard" / "runs").glob(f"traffic_sign-{name}-s0-*"):
            shutil.copytree(folder, tmp_path / folder.name)
    (record,) = tmp_path.glob("traffic_sign-mae-s0-*/transfer/traffic_sign.json")
    better = json.loads(record.read_text())
    better["results"][0]["selected"]["validation"] = 1.0
    record.write_text(json.dumps(better))

    def starts() -> set[str]:
        return {cell.algorithm for cell in head_mix.cells(tmp_path, ("traffic_sign",), ("mixup",))}

    assert starts() == {"none", "emix"}
    for mixed in tmp_path.glob("*/transfer/*+*"):
        mixed.unlink()
    assert starts() == {"none", "mae"}


def test_a_run_of_the_best_algorithm_is_a_start_with_and_without_a_score_of_its_own(tmp_path: Path) -> None:
    board = ROOT / "leaderboard" / "runs"
    for name in ("none", "emix", "mae"):
        (folder,) = board.glob(f"traffic_sign-{name}-s0-*/transfer/traffic_sign.json")
        shutil.copytree(folder.parents[1], tmp_path / f"traffic_sign-{name}-s0")
    shutil.copytree(tmp_path / "traffic_sign-emix-s0", tmp_path / "traffic_sign-emix-s0-again")
    (tmp_path / "traffic_sign-emix-s0-again" / "transfer" / "traffic_sign.json").unlink()
    (tmp_path / "traffic_sign-claims").mkdir()
    all_cells = head_mix.cells(tmp_path, ("traffic_sign",), ("mixup",))
    assert [cell.run.name.removeprefix("traffic_sign-") for cell in all_cells] == [
        "none-s0",
        "emix-s0",
        "emix-s0-again",
    ]


def test_a_seed_that_was_pretrained_twice_counts_once(tmp_path: Path) -> None:
    board, mixes = ROOT / "leaderboard" / "runs", ("none", *head_mix.ON_FEATURES)
    for folder in board.glob("covtype-none-s*/transfer/covtype-v2+mixup.json"):
        shutil.copytree(folder.parents[1], tmp_path / folder.parts[-3])
    once = head_mix.table(head_mix.cells(tmp_path, ("covtype",), mixes), "v2")
    for run in list(tmp_path.iterdir()):
        shutil.copytree(run, run.with_name(f"{run.name}-again"))
    twice = head_mix.table(head_mix.cells(tmp_path, ("covtype",), mixes), "v2")
    assert [row.split("|")[5].strip() for row in once] == ["3"] * len(mixes)
    assert twice == once


def test_a_schedule_and_an_early_stop_are_asked_for_as_a_record_spells_them() -> None:
    cell = head_mix.Cell("digits", "none", 0, Path("run"), head_mix.spelled("mixup-alpha2-easy-until20"))
    asked = head_mix.asked_of(cell, "finetune")
    assert (asked.method, asked.alpha, asked.schedule, asked.epochs) == ("mixup", 2, "easy", 20)
    assert head_mix.stem(cell, "v2") == "digits-v2+mixup-alpha2-easy-until20"
    assert head_mix.spelled("none") == "none"
    assert head_mix.stem(cell._replace(mix="none"), "finetune") == "digits-finetune"
    assert head_mix.stem(cell._replace(mix="none"), "v2") == "digits-v2+mixup-alpha0.0005"  # nothing is mixed
    with pytest.raises(ValueError, match="does not say what is mixed"):
        head_mix.spelled("shake")
