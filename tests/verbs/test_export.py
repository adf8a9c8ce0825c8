"""Exported encoders give the run's features, and a repository of the hub holds exactly what they need."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import dabsmix
from dabsmix.config import ExportConfig, PretrainConfig
from dabsmix.errors import UserError
from dabsmix.run import Run
from dabsmix.scoring.results import Result, TransferRecord, read_transfer, write_transfer
from dabsmix.source import Source
from dabsmix.training import accelerate
from dabsmix.verbs.export import export
from dabsmix.verbs.hub import Published, published
from dabsmix.verbs.pretrain import pretrain


def encoded(out: Path, source: Source) -> Run:
    config = PretrainConfig(source, algo="none", encoder="tiny", out=out)
    return pretrain(config, accelerator=accelerate())


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = encoded(tmp_path_factory.mktemp("runs"), Source("digits"))
    (run.path / "transfer").mkdir()
    result = dict(probe="linear", label_fraction="1", metric="accuracy", value=0.5, low=0.4, high=0.6, n=539, units=12)
    scored = dict(run=run.path.name, task="digits", protocol="v2", results=[result], yardsticks={"raw": [result]})
    scored["notes"] = ["Intervals are for these two people."]
    (run.path / "transfer" / "digits.json").write_text(json.dumps(scored))
    return run


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("table")
    rows = [f"{row / 10},{'red' if row % 3 else 'blue'},{'' if row % 7 == 0 else row % 5}" for row in range(40)]
    (folder / "secret.csv").write_text("\n".join(["size,colour,count", *rows]) + "\n")
    return encoded(folder, Source(data=folder / "secret.csv", modality="tabular"))


needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs pip install 'dabsmix[export]'",
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", pytest.param("onnx", marks=needs_onnx)])
def test_a_program_gives_the_features_of_raw_examples(kind: str, digits: Run, tmp_path: Path) -> None:
    path = export(ExportConfig(kind, digits.path, tmp_path))
    raw = np.random.default_rng(0).integers(0, 17, (7, 1, 8, 8)).astype(np.float32)
    if kind == "torch":
        mean, cls = (output.detach().numpy() for output in torch.export.load(path).module()(torch.from_numpy(raw)))
    else:
        import onnxruntime

        mean, cls = onnxruntime.InferenceSession(path).run(["mean", "cls"], {"input": raw})
    extractor = dabsmix.load_encoder(digits)
    np.testing.assert_allclose(mean, extractor.features(raw), atol=1e-4)
    np.testing.assert_allclose(cls, extractor.features(raw, pooling="cls"), atol=1e-4)
    description = json.loads((tmp_path / "encoder.json").read_text())
    assert description["inputs"] == [{"name": "input", "shape": ["batch", 1, 8, 8], "dtype": "float32"}]
    assert description["inputs_are"] == "raw, as stored"
    assert description["largest_difference"] <= 1e-4


@pytest.mark.slow
def test_a_table_s_categories_and_empty_cells_are_exported_too(table: Run, tmp_path: Path) -> None:
    path = export(ExportConfig("torch", table.path, tmp_path))
    extractor = dabsmix.load_encoder(table)
    data, _ = extractor.read(table.path.parent / "secret.csv")
    (stored,) = data.pretrain.batch(np.arange(10))
    mean, _ = torch.export.load(path).module()(stored)
    expected = extractor.features(table.path.parent / "secret.csv")[:10]
    np.testing.assert_allclose(mean.detach().numpy(), expected, atol=1e-5)


@pytest.mark.slow
def test_categories_are_told_in_the_encoder_s_order(tmp_path: Path) -> None:
    """The stored codes count those of the test rows too; a category is its place in the list of the training rows."""
    rows = pd.DataFrame({"size": np.arange(60) / 10, "town": [f"town {row // 2}" for row in range(60)]})
    rows.assign(kind=[f"k{row % 2}" for row in range(60)]).to_csv(tmp_path / "towns.csv", index=False)
    run = encoded(tmp_path / "runs", Source(data=tmp_path / "towns.csv", modality="tabular", label="kind"))
    program = torch.export.load(export(ExportConfig("torch", run.path, tmp_path))).module()
    description = json.loads((tmp_path / "encoder.json").read_text())
    size, town = description["columns"]
    assert size == {"name": "size", "kind": "number"}
    assert (town["name"], town["kind"]) == ("town", "category")
    assert 0 < len(town["categories"]) < 30
    assert "its index from 0 in the column's `categories`" in description["inputs_are"]
    codes = [town["categories"].index(name) if name in town["categories"] else np.nan for name in rows["town"]]
    mean, _ = program(torch.tensor(np.stack([rows["size"], codes], axis=1), dtype=torch.float32))
    expected = dabsmix.load_encoder(run).features(tmp_path / "towns.csv")
    np.testing.assert_allclose(mean.detach().numpy(), expected, atol=1e-5)


@pytest.mark.slow
def test_recordings_with_gaps_are_exported_with_their_padding(tmp_path: Path) -> None:
    for number, length in enumerate((9, 16, 12)):
        rows = [f"{row},{'' if row % 5 == 3 else np.sin(row + number)}" for row in range(length)]
        (tmp_path / f"{number}.csv").write_text("\n".join(["time,x", *rows]) + "\n")
    (tmp_path / "options").write_text("recording: file\ngaps: mask\n")
    source = Source(data=tmp_path, modality="sensor", options=tmp_path / "options")
    run = encoded(tmp_path / "runs", source)
    program = torch.export.load(export(ExportConfig("torch", run.path, tmp_path))).module()
    extractor = dabsmix.load_encoder(run)
    data, _ = extractor.read(tmp_path / "0.csv")
    (stored,) = data.pretrain.batch(np.arange(1))
    mean, _ = program(stored)
    assert stored.isnan().any()
    np.testing.assert_allclose(mean.detach().numpy(), extractor.features(tmp_path / "0.csv"), atol=1e-5)
    (described,) = json.loads((tmp_path / "encoder.json").read_text())["inputs"]
    assert described == {"name": "input", "shape": ["batch", 1, 16], "dtype": "float32"}


def test_a_repository_can_be_loaded_and_its_card_names_data_scores_and_licence(digits: Run, tmp_path: Path) -> None:
    folder = Path(export(ExportConfig("hub", digits.path, tmp_path, licence="cc-by-4.0")))
    raw = np.random.default_rng(0).random((3, 8, 8))
    ours, theirs = dabsmix.load_encoder(digits), dabsmix.load_encoder(Published.from_pretrained(str(folder)).run)
    np.testing.assert_array_equal(ours.features(raw), theirs.features(raw))
    _, head, card = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "cc-by-4.0"
    assert yaml.safe_load(head)["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5
    assert "| digits (v2) | accuracy | linear | 1 | 50.00 % | 40.00 to 60.00 | 539 in 12 groups |" in card
    assert "About digits (v2):\n- Intervals are for these two people." in card
    assert "*raw, linear*" in card
    assert "The data that they were learnt from: CC BY 4.0" in card


def test_a_repository_does_not_reveal_the_paths_of_own_data(table: Run, tmp_path: Path) -> None:
    data = table.path.parent / "secret.csv"
    (table.path / "transfer").mkdir()
    result = Result("linear", "1", "accuracy", 0.5, 0.4, 0.6, 8)
    of, notes = f"--data {data} --label colour", (f"1 row is skipped: {data.name}: row 3.",)
    write_transfer(table.path / "transfer" / "a.json", TransferRecord("a", "v2", (result,), of=of, notes=notes))
    folder = Path(export(ExportConfig("hub", table.path, tmp_path)))
    (scores,) = (folder / "transfer").iterdir()
    assert data.name not in scores.read_text()
    assert read_transfer(scores).results == (result,)
    for path in folder.rglob("*"):
        if path.is_file():
            assert str(table.path.parent).encode() not in path.read_bytes()
    assert len(dabsmix.load_encoder(folder).features(table.path.parent / "secret.csv")) == 40


def test_the_files_of_the_folder_are_uploaded(digits: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, Any] = {}

    class Api:
        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            uploaded["made"] = repo_id
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, **_: Any) -> None:
            uploaded["files"] = sorted(str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*.*"))
            uploaded["card"] = (Path(folder_path) / "README.md").read_text()

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    address = export(ExportConfig("hub:ada/digits", digits.path, tmp_path))
    assert address == "https://huggingface.co/ada/digits"
    assert uploaded["made"] == "ada/digits"
    files = ["README.md", "config.json", "config.yaml", "encoder.safetensors", "run.json", "transfer/digits.json"]
    assert uploaded["files"] == files
    assert 'load_encoder("hub:ada/digits")' in uploaded["card"]


def test_a_failed_export_is_one_line(digits: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--to tensorflow: choose torch"):
        export(ExportConfig("tensorflow", digits.path, tmp_path))
    monkeypatch.setattr("dabsmix.config.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"dabsmix\[export\]"):
        export(ExportConfig("onnx", digits.path, tmp_path))
    with pytest.raises(UserError, match="not uploaded"):  # there is no network here
        published(digits, "ada/digits", tmp_path / "hub", None, lambda _: None)
    with pytest.raises(UserError, match="cannot be fetched"):
        dabsmix.load_encoder("hub:ada/digits")
