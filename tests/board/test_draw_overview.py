"""`scripts/draw_overview.py`: a panel for each data set that has an interval, with its budget."""

from pathlib import Path

import pytest
from script_module import script
from test_overview import domain, modality
from test_table import seeds

from dabsmix.board.overview import overviews
from dabsmix.errors import UserError

draw = script("draw_overview").draw


def test_data_sets_without_an_interval_are_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")  # text as text
    one_seed = [row for row in domain(tmp_path, "uci_har", dmix=0.1) if row.algorithm == "none" or row.seed == 0]
    (overview,) = overviews(domain(tmp_path, "digits", dmix=0.2) + one_seed, modality)
    drawn = draw(overview).decode()
    assert "digits (image)" in drawn
    assert f"{overview.columns[0].budget}; none: 60.0" in drawn
    assert "uci_har" not in drawn


def test_of_several_budgets_the_one_with_the_most_intervals_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")  # text as text
    rows = domain(tmp_path, "digits", dmix=0.2, emix=0.1)
    rows += seeds(tmp_path / "longer", 0.8, algorithm="dmix", steps=150, domain="digits", task="digits")
    (overview,) = overviews(rows, modality)
    assert [column.budget for column in overview.columns] == ["150 × 128", "300 × 128"]
    drawn = draw(overview).decode()
    assert "300 × 128; none: 60.0" in drawn
    assert "150 × 128" not in drawn


def test_a_board_without_any_interval_is_one_line(tmp_path: Path) -> None:
    rows = [row for row in domain(tmp_path, "digits", dmix=0.2) if row.seed == 0]
    (overview,) = overviews(rows, modality)
    with pytest.raises(UserError, match="no gain has an interval"):
        draw(overview)
