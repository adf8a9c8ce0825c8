"""The page in a browser: sorting, filtering, a line's records and figures, without messages on the console."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dabsmix.board.page import page
from dabsmix.board.row import read

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]
BOARD = Path(__file__).parents[2] / "leaderboard" / "results.csv"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of our own board, which grows: no line below counts its rows."""
    path = tmp_path_factory.mktemp("page") / "index.html"
    modality = {"digits": "image", "uci_har": "sensor"}
    path.write_text(page(read(BOARD), modality=lambda domain: modality.get(domain, "other")), encoding="utf-8")
    return path


@pytest.fixture(params=["light", "dark", "phone"])
def view(request: pytest.FixtureRequest, file: Path) -> Iterator[tuple[Any, list[str]]]:
    """The opened page, and the messages of the console."""
    settings: dict[str, Any] = {"viewport": {"width": 390, "height": 844}} if request.param == "phone" else {}
    settings |= {"color_scheme": "dark"} if request.param == "dark" else {}
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_context(**settings, offline=True).new_page()
        messages: list[str] = []
        tab.on("console", lambda message: messages.append(message.text))
        tab.on("pageerror", lambda error: messages.append(str(error)))
        tab.goto(file.as_uri())
        yield tab, messages
        browser.close()


def column(tab: Any, name: str) -> list[str]:
    """The sort keys of a column's lines, from top to bottom."""
    number = [text.strip() for text in tab.locator("#scores thead button").all_inner_texts()].index(name)
    keys: list[str] = tab.eval_on_selector_all(
        "#scores tr.line", f"lines => lines.map(line => line.cells[{number}].dataset.value)"
    )
    return keys


def test_the_page_sorts_filters_and_opens_records(view: tuple[Any, list[str]]) -> None:
    tab, messages = view
    assert len(column(tab, "score")) == 200 < int(tab.inner_text("#count"))
    tab.check("#all")
    whole = column(tab, "score")
    assert tab.inner_text("#count") == str(len(whole))

    head = tab.locator("#scores thead button", has_text="score")
    head.focus()
    tab.keyboard.press("Enter")
    assert [float(value) for value in column(tab, "score")] == sorted(map(float, whole), reverse=True)
    head.click()
    assert [float(value) for value in column(tab, "score")] == sorted(map(float, whole))
    tab.locator("#scores thead button", has_text="gain over none").click()
    gains = column(tab, "gain over none")
    assert gains[-1] == ""  # lines without a gain come last in both directions
    assert gains[0] != ""
    tab.uncheck("#all")
    assert column(tab, "gain over none") == gains[:200]  # the first of all lines, not all of the first lines
    tab.check("#all")

    assert "online" not in column(tab, "probe")
    tab.select_option("#filters select[name=probe]", "online")
    assert set(column(tab, "probe")) == {"online"}
    tab.select_option("#filters select[name=probe]", "")
    tab.select_option("#filters select[name=modality]", "sensor")
    assert set(column(tab, "data set")) == {"uci_har"}
    tab.fill("#filters input", "DMIX")
    assert set(column(tab, "algorithm")) == {"dmix", "contdmix"}  # wherever the words stand in the line
    assert tab.inner_text("#count") == str(len(column(tab, "algorithm")))

    tab.locator("tr.line .name button").first.click()
    record = tab.locator("tr.record")
    assert "config hash" in record.inner_text()
    assert "dmix-s" in record.locator("a").first.get_attribute("href")  # one link for each seed
    tab.locator("tr.line .name button").first.click()
    assert record.count() == 0

    tab.fill("#filters input", "")
    tab.select_option("#filters select[name=modality]", "")
    assert len(column(tab, "score")) == len(whole)
    assert tab.locator("#labels circle").count() > 8
    tab.select_option("#of", index=1)
    assert messages == []
