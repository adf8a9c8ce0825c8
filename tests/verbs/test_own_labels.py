"""A run on unlabelled data, scored on labelled files that are read with the run's columns and tokenizer."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from transferring import QUICK

import dabsmix
from dabsmix.config import TransferConfig
from dabsmix.errors import UserError
from dabsmix.files import sha256
from dabsmix.run import Run
from dabsmix.source import Modality, Source, load_as
from dabsmix.training import accelerate
from dabsmix.verbs import transfer as module


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "protocol", lambda name, batch_size, specs: QUICK)


def patients(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    sick = rng.integers(2, size=n)
    return pd.DataFrame(
        {
            "age": rng.normal(50, 9, n).round(1),
            "marker": (rng.normal(size=n) + 2 * sick).round(3),
            "ward": rng.choice(["A", "B"], n),
            "clinic": rng.choice([f"c{i}" for i in range(12)], n),
            "ill": np.where(sick, "yes", "no"),
            "days": (rng.normal(size=n) + sick).round(4),
        }
    )


def run_of_patients(tmp_path: Path) -> Run:
    patients(300, 0).drop(columns=["ill", "days", "clinic"]).to_csv(tmp_path / "all.csv", index=False)
    data = dabsmix.load(data=tmp_path / "all.csv", modality="tabular")
    return dabsmix.pretrain(data, "none", encoder="tiny", out=tmp_path / "runs")


def test_several_files_and_labels_of_a_table(tmp_path: Path) -> None:
    run = run_of_patients(tmp_path)
    table = patients(160, 1)
    table.loc[3, "ward"] = "C"  # a column that the run does not know
    table.loc[:19, "ill"] = ""
    table.to_csv(tmp_path / "here.csv", index=False)
    patients(120, 2).to_csv(tmp_path / "there.csv", index=False)
    config = TransferConfig(
        run=(run.path,),
        data=(tmp_path / "here.csv", tmp_path / "there.csv"),
        label=("ill", "days"),
        group="clinic",
        labels=("1",),
    )
    records = module.transfer(config, accelerator=accelerate())
    messages = str(records[0]).splitlines()
    assert [record.task for record in records] == ["here-ill", "here-days", "there-ill", "there-days"]
    assert all(record.headline.value > 0.7 for record in records if record.task.endswith("ill"))
    assert "  Columns that the run was not trained on are left out: 'days'." in messages
    assert 0 < records[0].headline.units <= 12
    assert any("20 of 160 rows have no label and are not used" in line for line in messages)
    assert any("1 cell holds a category that no training row has" in line for line in messages)
    # a quantity, from Python; a DataFrame is the same data
    both = [
        dabsmix.transfer(run, data=labels, label="days", options={"ignore": ["ill", "clinic"]}, labels=(1,))
        for labels in (tmp_path / "there.csv", pd.read_csv(tmp_path / "there.csv"))
    ]
    assert [record.headline.metric for record in both] == ["spearman"] * 2
    assert both[0].headline.value == both[1].headline.value


@pytest.mark.parametrize("changed", ["label", "group"])
@pytest.mark.parametrize("modality", ["tabular", "text", "sequence"])
def test_corrected_labels_or_groups_make_other_data(modality: Modality, changed: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    letters = ["".join(rng.choice(list("ACGT"), 12)) for _ in range(200)]
    table = pd.DataFrame(
        {
            "x": rng.normal(size=200) if modality == "tabular" else letters,
            "group": [f"g{row // 5}" for row in range(200)],
            "label": rng.choice(["a", "b"], 200),
        }
    )
    path, column = tmp_path / "t.csv", {} if modality == "tabular" else {"column": "x"}
    table[["x"]].to_csv(path, index=False)
    state = dabsmix.load(data=path, modality=modality, options=column).state
    own, further = set(), set()
    for values in (table[changed], table[changed].to_numpy()[::-1]):
        table.assign(**{changed: values}).to_csv(path, index=False)
        options = {"group": "group", **column}
        own.add(dabsmix.load(data=path, modality=modality, label="label", options=options).fingerprint)
        further.add(load_as(Source(data=path, label="label", group="group"), modality, state).fingerprint)
    assert len(own) == len(further) == 2


@pytest.mark.parametrize("modality", ["tabular", "text", "sensor"])
def test_labelled_files_may_have_another_encoding(modality: Modality, tmp_path: Path) -> None:
    table = patients(128, 0).assign(time=np.arange(128), group=np.arange(128) // 16, text=["Übung", "Café"] * 64)
    inputs = {"tabular": ["age", "marker"], "text": ["text"], "sensor": ["time", "group", "age", "marker"]}[modality]
    table["ill"] = np.where(np.arange(128) // 8 % 2, "krank", "gesünder")
    table[inputs].to_csv(tmp_path / "all.csv", index=False)
    table[[*inputs, "ill"]].to_csv(tmp_path / "utf.csv", index=False)
    table[[*inputs, "ill"]].to_csv(tmp_path / "latin.csv", index=False, encoding="latin-1")
    (tmp_path / "o.yaml").write_text("encoding: latin-1\n")
    state = dabsmix.load(
        data=tmp_path / "all.csv", modality=modality, options={"window": 8} if modality == "sensor" else None
    ).state
    with pytest.raises(UserError, match=r"latin\.csv.*`encoding: latin-1` in the file that --options names"):
        load_as(Source(data=tmp_path / "latin.csv", label="ill"), modality, state)
    one = load_as(Source(data=tmp_path / "utf.csv", label="ill"), modality, state).require_labelled()
    source = Source(data=tmp_path / "latin.csv", label="ill", options=tmp_path / "o.yaml")
    other = load_as(source, modality, state).require_labelled()
    assert one.task == other.task
    rows = np.arange(len(one.train))
    np.testing.assert_array_equal(one.train.batch(rows)[0], other.train.batch(rows)[0])


def test_statistics_are_those_of_the_run(tmp_path: Path) -> None:
    run = run_of_patients(tmp_path)
    shifted = patients(100, 1).drop(columns=["days", "clinic"])
    shifted["age"] += 30
    shifted.to_csv(tmp_path / "old.csv", index=False)
    data = load_as(Source(data=tmp_path / "old.csv", label="ill"), "tabular", run.record.data_state)
    (x,) = data.normalise(data.require_labelled().train.batch(np.arange(20)))
    assert x[:, 0].mean() > 2


def test_mistakes_are_reported(tmp_path: Path) -> None:
    run = run_of_patients(tmp_path)
    table = patients(100, 1)
    table.to_csv(tmp_path / "t.csv", index=False)

    def fails(match: str, **changes: object) -> None:
        config = TransferConfig(**{"run": (run.path,), "data": (tmp_path / "t.csv",), "label": ("ill",)} | changes)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=match):
            module.transfer(config, accelerator=accelerate())

    fails("--label .sick.: .* has no such column", label=("sick",))
    fails("--label ward: the encoder reads this column", label=("ward",))
    fails("name the column that is to be predicted with --label", label=())
    fails("is image, and the run was pretrained on tabular", modality="image")
    fails("both make the task t-ill", data=(tmp_path / "t.csv", tmp_path / "." / "t.csv"))
    fails("--label ill is for your own data", data=())
    fails("score one after the other", task=("digits",))


def test_images_by_folder_with_a_run_of_a_folder_without_labels(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(60):
        kind = "dark" if number % 2 else "light"
        for folder in (tmp_path / "all", tmp_path / "sorted" / kind):
            folder.mkdir(parents=True, exist_ok=True)
            low = 0 if kind == "dark" else 120
            Image.fromarray(rng.integers(low, low + 130, (20, 20, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    data = dabsmix.load(data=tmp_path / "all", modality="image", options={"size": 16, "patch": 8})
    run = dabsmix.pretrain(data, "none", encoder="tiny", out=tmp_path / "runs")
    record = dabsmix.transfer(run, data=tmp_path / "sorted", label="folder", labels=(1,))
    assert (record.task, record.headline.n, record.headline.value) == ("sorted-folder", 12, 1.0)
    assert record.classes == ("dark", "light")
    before = sha256(run.path / "transfer" / "sorted-folder.json")
    dabsmix.transfer(run, data=tmp_path / "sorted", label="folder", labels=(1,))
    assert sha256(run.path / "transfer" / "sorted-folder.json") == before


def test_texts_and_readings_as_the_run_reads_them(tmp_path: Path) -> None:
    words = np.random.default_rng(0).choice(["good", "bad", "film", "song", "day"], (120, 6))
    texts = pd.DataFrame({"text": [" ".join(row) for row in words], "y": np.where(words[:, 0] == "good", "+", "-")})
    texts[["text"]].to_csv(tmp_path / "texts.csv", index=False)
    texts.rename(columns={"text": "review"}).to_csv(tmp_path / "reviews.csv", index=False)
    data = dabsmix.load(data=tmp_path / "texts.csv", modality="text", options={"vocab_size": 300, "length": 16})
    run = dabsmix.pretrain(data, "none", encoder="tiny", out=tmp_path / "runs")
    record = dabsmix.transfer(run, data=tmp_path / "reviews.csv", label="y", options={"column": "review"}, labels=(1,))
    assert record.headline.n == 24

    parts = []
    for person in range(12):
        reading = np.random.default_rng(person).normal(size=128) + np.repeat([0, 4, 0, 0], 32)
        parts.append(
            pd.DataFrame(
                {"time": np.arange(128), "group": person, "x": reading, "what": np.repeat(["sit", "go", "", ""], 32)}
            )
        )
    table = pd.concat(parts)
    table.drop(columns="what").to_csv(tmp_path / "r.csv", index=False)
    table.to_csv(tmp_path / "labelled.csv", index=False)
    data = dabsmix.load(data=tmp_path / "r.csv", modality="sensor", options={"window": 16})
    run = dabsmix.pretrain(data, "none", encoder="tiny", out=tmp_path / "runs")
    record = dabsmix.transfer(run, data=tmp_path / "labelled.csv", label="what", labels=(1,))
    assert record.headline.value > 0.9
    assert record.headline.n == record.headline.units * 4
