"""What `dabsmix list` prints for a domain, on a terminal of 120 columns too."""

from pathlib import Path
from typing import Any

import pytest
import rich.console
from script_module import script
from upstream_image import write_cifar100, write_imagenet

from dabsmix.catalogue import catalogue, show
from dabsmix.model.shapes import ENCODERS
from dabsmix.registry import algorithms, domains

REPOSITORY = Path(__file__).parents[1]


def entries(root: Path) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in catalogue("domains", root)["domains"]}


def test_entries_say_what_is_present_and_how_to_obtain_the_rest(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()  # holds nothing
    write_cifar100(tmp_path)
    write_imagenet(tmp_path)
    listed = entries(tmp_path)
    assert listed.keys() == domains().keys()
    assert {name: listed[name]["files"] for name in ("cifar100", "imagenet")} == {
        "cifar100": "here",
        "imagenet": "here",
    }
    assert {name: listed[name]["files"] for name in ("cifar10", "chexpert", "fsdd", "digits")} == {
        **{"cifar10": "download", "chexpert": "register", "fsdd": "by hand", "digits": "embedded"}
    }
    assert (listed["imagenet"]["present"], listed["imagenet"]["obtained"]) == (True, "register")
    assert (listed["digits"]["present"], listed["cifar10"]["present"]) == (True, False)
    assert listed["cifar10"]["sizes"] == "50,000 / 10,000"


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "synthetic_text"])
def test_sizes_are_those_of_the_splits(name: str) -> None:
    data = domains()[name].load(Path(), "v1")
    labelled = data.require_labelled()
    assert entries(Path())[name]["sizes"] == f"{len(labelled.train):,} / {len(labelled.test):,}"


def test_a_domain_is_a_line_of_120_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Terminal(rich.console.Console):
        def __init__(self) -> None:
            super().__init__(width=120, force_terminal=True, color_system=None)

    monkeypatch.setattr(rich.console, "Console", Terminal)
    rows = catalogue("domains", Path("no such folder"))
    show(rows)
    _, header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "modality", "train", "/", "test", "files", "licence", "title"]
    assert len(lines) == len(rows["domains"])
    for entry, line in zip(rows["domains"], lines, strict=True):
        assert len(line) <= 120
        shown = line.split()
        assert shown[:2] == [entry["name"], entry["modality"]]
        assert all(word in line for word in (entry["sizes"], entry["files"]))  # these columns are not truncated


def test_the_page_of_names_is_complete() -> None:
    list_domains = script("list_domains")
    page = (REPOSITORY / "docs" / "domains.md").read_text(encoding="utf-8")
    assert page == list_domains.page(), "run scripts/list_domains.py"
    first = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert first == [*domains(), *algorithms(), *ENCODERS]
    assert all(f"also {alias}" in page or f", {alias}" in page for card in domains().values() for alias in card.aliases)
