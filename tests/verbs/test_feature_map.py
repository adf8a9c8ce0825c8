"""The page's map and nearest neighbours: each kind of example is shown as what it is."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import upstream_image
from PIL import Image
from transferring import QUICK

import dabsmix
from dabsmix.cli import main
from dabsmix.data.domain import Data
from dabsmix.errors import UserError
from dabsmix.run import Run
from dabsmix.training import accelerate
from dabsmix.verbs import feature_map as maps
from dabsmix.verbs import transfer as module
from dabsmix.verbs.report import report


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "protocol", lambda name, batch_size, specs: QUICK)


def scored(out: Path, data: Data, **flags: Any) -> Run:
    run = dabsmix.pretrain(data, "none", encoder="tiny", out=out / "runs", **flags)
    dabsmix.transfer(run, labels=(1,))
    return run


def neighbours(page: str) -> list[list[str]]:
    """The cells of the table of neighbours, row by row."""
    table = re.search(r'<table class="neighbours">.*?</table>', page, re.DOTALL)
    assert table is not None
    rows = re.findall(r"<tr>\n?(<td>.*?)</tr>", table[0], re.DOTALL)
    return [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in rows]


@pytest.mark.slow
def test_images_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "TEST", 120)
    run = scored(tmp_path, dabsmix.load("digits"))
    monkeypatch.setattr("sys.argv", ["dabsmix", "report", "--run", str(run.path), "--map"])
    main()
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "120 of 539 test examples, drawn at random, by the frozen encoder" in page
    assert "t-SNE (perplexity 30, started from principal components)" in page
    assert "Distances between far clusters mean nothing" in page
    assert "The nearest of all 1,079 training examples" in page
    rows = neighbours(page)
    assert [len(row) for row in rows] == [5] * 6
    assert all("<image" in cell for row in rows for cell in row)
    for _, *near in rows:
        similarity = [float(value) for value in re.findall(r"similarity (-?\d\.\d\d)", "".join(near))]
        assert len(similarity) == 4
        assert similarity == sorted(similarity, reverse=True)
    for query, *_ in rows[3:]:  # mistakes
        truth, prediction = re.search(r"<b>(\d)</b>.*predicted (\d)", query, re.DOTALL).groups()  # type: ignore[union-attr]
        assert truth != prediction
    before = page
    report(run, accelerate())
    assert (run.path / "report.html").read_text(encoding="utf-8") == before
    assert "Map of the features" not in report(run).read_text(encoding="utf-8")


def walks(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    (folder / "walks").mkdir()
    for i in range(24):
        label = ("run", "walk")[i % 2]
        x = np.sin(np.arange(40)[:, None] * (0.3 + 0.5 * (i % 2)) + rng.normal(size=2))
        table = pd.DataFrame({"time": np.arange(40) / 20, "ax": x[:, 0], "ay": x[:, 1], "gait": label})
        table.to_csv(folder / "walks" / f"{i}.csv", index=False)
    return {"data": folder / "walks", "modality": "sensor", "label": "gait", "options": {"window": 16}}


def calls(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    for i in range(24):
        kind = ("owl", "jay")[i % 2]
        (folder / "calls" / kind).mkdir(parents=True, exist_ok=True)
        tone = np.sin(np.arange(4000) * (0.1 + 0.3 * (i % 2))) + 0.1 * rng.normal(size=4000)
        soundfile.write(folder / "calls" / kind / f"{i}.wav", 0.5 * tone, 8000)
    options = {"rate": 8000, "seconds": 0.5}
    return {"data": folder / "calls", "modality": "spectrogram", "label": "folder", "options": options}


def reviews(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    words = np.array(["<script>", "fine", "café", "day", "$5"])
    texts = [f"{' '.join(rng.choice(words, 6))} number {i}" for i in range(60)]
    labels = ["good" if i % 2 else "bad" for i in range(60)]
    pd.DataFrame({"text": texts, "y": labels}).to_csv(folder / "reviews.csv", index=False)
    return {"data": folder / "reviews.csv", "modality": "text", "label": "y", "options": {"vocab_size": 300}}


def ships(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    columns = {f"x{i}": rng.normal(size=60).round(3) for i in range(6)}
    port = rng.choice(["<i>Oslo</i>", "Bergen"], 60)
    sailed = pd.date_range("2024-01-01", periods=60).strftime("%Y-%m-%d")
    table = pd.DataFrame({"port": port, "sailed": sailed, **columns, "tons": rng.normal(size=60).round(4)})
    table.loc[:40, "x0"] = None
    table.to_csv(folder / "ships.csv", index=False)
    return {"data": folder / "ships.csv", "modality": "tabular", "label": "tons"}


def genes(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    texts = ["".join(rng.choice(list("ACGT"), 20)) for _ in range(60)]
    pd.DataFrame({"sequence": texts, "y": [text[0] in "AC" for text in texts]}).to_csv(
        folder / "genes.csv", index=False
    )
    return {"data": folder / "genes.csv", "modality": "sequence", "label": "y", "options": {"length": 20}}


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (walks, r"<path "),
        (calls, r"<image "),
        (reviews, r'<div class="line">(?=.*number \d+</div>)(&lt;script&gt;|fine|café|day|\$5) '),
        (ships, r'line">port: (&lt;i&gt;Oslo&lt;/i&gt;|Bergen)</div><div class="line">sailed: 2024-\d\d-\d\d</div>'),
        (genes, r'<div class="line">[ACGT]{20}</div>'),
    ],
    ids=["sensor", "spectrogram", "text", "tabular", "sequence"],
)
def test_own_files(make: Callable[[Path, np.random.Generator], dict[str, Any]], shown: str, tmp_path: Path) -> None:
    run = scored(tmp_path, dabsmix.load(**make(tmp_path, np.random.default_rng(0))))
    page = report(run, accelerate()).read_text(encoding="utf-8")
    rows = neighbours(page)
    assert rows
    assert all(re.search(shown, cell) for row in rows for cell in row)
    assert "<script>" not in page
    assert "<i>" not in page
    if make is ships:
        assert "x0: (empty)" in page
        assert "and 2 more columns" in page
        assert "first two principal components; t-SNE needs 50 examples" in page


def test_images_with_texts_are_pictures_and_words(tmp_path: Path) -> None:
    upstream_image.write_vqa(tmp_path)
    upstream_image.write_words(tmp_path)
    run = scored(tmp_path, dabsmix.load("vqa", data_root=tmp_path), batch_size=16)
    rows = neighbours(report(run, accelerate()).read_text(encoding="utf-8"))
    assert rows
    for cell in (cell for row in rows for cell in row):
        assert "<image " in cell
        assert re.search(r'<div class="line">what is it [012] (dog|cat|bus)</div>', cell)


def test_labelled_files_that_change_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    colours = {"red": (250, 20, 20), "blue": (20, 20, 250)}
    for name, colour in colours.items():
        (tmp_path / "all" / name).mkdir(parents=True)
        for i in range(30):
            pixels = np.clip(np.array(colour) + rng.integers(-20, 20, (8, 8, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "all" / name / f"{i}.png")
    run = dabsmix.pretrain(
        dabsmix.load(data=tmp_path / "all", modality="image", options={"size": 8}),
        "none",
        encoder="tiny",
        out=tmp_path / "runs",
    )
    with pytest.raises(UserError, match="run `dabsmix transfer --run"):
        report(run, accelerate())
    dabsmix.transfer(run, data=tmp_path / "all", label="folder", labels=(1,))
    monkeypatch.setattr(maps, "TRAIN", 20)
    page = report(run, accelerate()).read_text(encoding="utf-8")
    assert "The nearest of 20 of " in page
    assert all("<image" in cell for row in neighbours(page) for cell in row)
    (tmp_path / "all" / "red" / "0.png").unlink()
    with pytest.raises(UserError, match=r"have changed since .* was scored on them: transfer again"):
        report(run, accelerate())
    shutil.rmtree(tmp_path / "all")
    with pytest.raises(UserError, match="all: no such file or folder"):
        report(run, accelerate())
