"""The facts about a release are the same wherever they are stated."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from script_module import script

import dabsmix
from dabsmix.config import PRETRAIN_PROTOCOLS
from dabsmix.scoring.results import PROTOCOLS

REPOSITORY = Path(__file__).resolve().parent.parent


def test_one_version_everywhere() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    changes = (REPOSITORY / "CHANGELOG.md").read_text()
    assert citation["version"] == version == dabsmix.__version__
    assert citation["license"] == "MIT"
    assert re.search(r"^## (\S+)", changes, flags=re.M)[1] == version  # type: ignore[index]


def test_the_changelog_lists_the_changes_of_each_protocol() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+)", (REPOSITORY / "CHANGELOG.md").read_text(), flags=re.M)
    assert sorted(name for name, kind in rows if kind == "pretraining") == sorted(PRETRAIN_PROTOCOLS)
    assert sorted(name for name, kind in rows if kind == "transfer") == sorted(PROTOCOLS)


def test_the_site_has_a_page_for_each_guide_and_no_broken_link(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="needs pip install '.[docs]'")
    site = script("site")
    site.guides(tmp_path)
    pages = {path.name: path.read_text() for path in tmp_path.glob("*.html")}
    assert {f"{path.stem}.html" for path in (REPOSITORY / "docs").glob("*.md")} <= set(pages)
    for name, text in pages.items():
        for target in re.findall(r'href="([^":]+)"', text):
            place, _, anchor = target.partition("#")
            if place.endswith(site.PICTURES):
                assert (tmp_path / place).exists(), f"{name}: {target}"
                continue
            if place != "api/dabsmix.html":  # which pdoc writes
                assert not place or place in pages, f"{name}: {target}"
                assert not anchor or f'id="{anchor}"' in pages[place or name], f"{name}: {target}"
    with pytest.raises(SystemExit, match="links to docs/nowhere"):
        site.with_pages("[guide](docs/nowhere.md)", "README.md", site.PAGES)
