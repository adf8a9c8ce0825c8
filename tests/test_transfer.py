"""Transfer: chosen on validation, test read once, the same on every machine; a mistake is one line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dabsmix import transfer as module
from dabsmix.board import submit, validate
from dabsmix.cli import main
from dabsmix.config import PretrainConfig, TransferConfig, data_root
from dabsmix.domain import Data, Domain, Split, Task
from dabsmix.encoder import make_encoder
from dabsmix.errors import UserError
from dabsmix.evaluate import choose, score, share
from dabsmix.features import features
from dabsmix.linear import LinearGrid
from dabsmix.metrics import metric
from dabsmix.plugins import domain as named
from dabsmix.pretrain import accelerate, pretrain
from dabsmix.protocols import Protocol, protocol, v1
from dabsmix.readout import Features
from dabsmix.run import Run, load_encoder, save_encoder, sha256
from dabsmix.spec import Table

QUICK = Protocol("v1", "", LinearGrid(rates=(1e-2, 1e-1), epochs=5), neighbours=(5,), penalties=(0.1,), draws=2)
OF_RESULT = {"probe", "label_fraction", "metric", "value", "low", "high", "n", "draws", "selected", "test_reads"}
OF_RECORD = {"task", "protocol", "metric", "value", "low", "high", "n", "probe", "selected", "test_reads", "results"}


def pretrained(out: Path, **changes: Any) -> Run:
    config = PretrainConfig(domain="digits", algo="none", encoder="tiny", out=out)
    return pretrain(replace(config, **changes), accelerator=accelerate())


def go(run: Run, **changes: Any) -> dict[str, Any]:
    said: list[str] = []
    (record,) = module.transfer(TransferConfig(run=(run.path,), **changes), accelerator=accelerate(), say=said.append)
    return record | {"said": said}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and short probes."""
    monkeypatch.setattr(module, "protocol", lambda name, batch_size: replace(QUICK, name=name))


def clusters(n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Two classes that a linear probe tells apart."""
    rng = np.random.default_rng(seed)
    label = rng.integers(2, size=n)
    return (rng.normal(size=(n, 6)) + 2 * label[:, None]).astype(np.float32), label


def small(labels: Callable[[NDArray[np.int64]], NDArray[Any]] = lambda y: y, task: Task | None = None) -> Data:
    """A table of 6 columns: 200 examples to train on, 60 to choose on, 101 to score on."""
    x, y = clusters(361, 0)
    rows = np.split(np.arange(361), [200, 260])
    train, validation, test = (Split((x,), r, labels(y)[r]) for r in rows)
    task = task or Task("classes", "accuracy", ("a", "b"))
    return Data((Table(6),), train, train, validation, test, task, "0" * 64)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Data], None]:
    """Makes some data a domain named ``small``."""

    def put(data: Data) -> None:
        card = Domain("small", "tabular", "generated", "MIT", "", lambda folder, protocol: data, batch_size=64)
        monkeypatch.setattr("dabsmix.own.domain", lambda name: card if name == "small" else named(name))
        monkeypatch.setattr("dabsmix.transfer.domain", lambda name: card if name == "small" else named(name))

    return put


# --- what a transfer writes


def test_v1_on_digits_writes_what_it_promises(tmp_path: Path) -> None:
    run = pretrained(tmp_path)
    record = go(run)
    path = run.path / "transfer" / "digits.json"
    stored = json.loads(path.read_text())
    assert stored == {key: value for key, value in record.items() if key != "said"}
    assert stored.keys() >= OF_RECORD
    assert all(each.keys() >= OF_RESULT for each in stored["results"])
    assert {(each["probe"], each["label_fraction"]) for each in stored["results"]} == {
        (probe, part) for probe in ("linear", "knn", "ridge") for part in ("1", "0.1", "0.01")
    }
    assert {each["draws"] for each in stored["results"] if each["label_fraction"] == "0.01"} == {20}
    assert (stored["test_reads"], stored["protocol"], stored["task"]) == (1, "v1", "digits")
    assert stored["value"] > 0.85 > stored["yardsticks"]["majority"][0]["value"] + 0.6
    assert stored["train_value"] >= stored["value"] - 0.02
    assert 0 < stored["frechet_distance"] < 1
    assert all(0 <= each["low"] <= each["value"] <= each["high"] <= 1 for each in stored["results"])
    raw = {each["label_fraction"]: each["value"] for each in stored["yardsticks"]["raw"]}
    assert raw.keys() == {"1", "0.1", "0.01"}
    assert raw["1"] > 0.9


def test_predictions_reproduce_the_value(tmp_path: Path, quick: None) -> None:
    run = pretrained(tmp_path)
    record = go(run, labels=("1", "2/class"))
    accuracy = metric(record["metric"])
    with np.load(run.path / "transfer" / "digits.predictions.npz") as arrays:
        label = arrays["label"]
        for each in record["results"]:
            drawn = arrays[f"{each['probe']}@{each['label_fraction'].replace('/', ' per ')}"]
            assert drawn.shape == (each["draws"], each["n"])
            values = [accuracy(np.eye(10)[predicted], label) for predicted in drawn]
            assert each["value"] == pytest.approx(np.mean(values))


def test_test_is_read_once_and_after_choosing(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    run = pretrained(tmp_path)
    data = named("digits").load(tmp_path, "v1")
    assert data.test is not None
    happened: list[str] = []
    parts = {len(split.rows): name for name, split in vars(data).items() if isinstance(split, Split)}

    def spy_features(encoder: Any, split: Split, *words: Any, **how: Any) -> Any:
        happened.append(parts[len(split.rows)])
        return features(encoder, split, *words, **how)

    def spy_choose(train: Features, validation: Features, *words: Any, **how: Any) -> Any:
        assert data.test is not None
        for given in (train, validation):
            assert len(given) != len(data.test)
        assert not any(isinstance(word, Features | Split | Data) for word in (*words, *how.values()))
        happened.append("choose")
        return choose(train, validation, *words, **how)

    monkeypatch.setattr(module, "features", spy_features)
    monkeypatch.setattr(module, "choose", spy_choose)
    assert go(run)["test_reads"] == 1
    assert happened == ["train", "validation", "choose", "test"]


def test_what_is_scored_is_not_scored_again_and_other_shares_are_added(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pretrained(tmp_path)
    first = go(run, labels=("1",))
    path = run.path / "transfer" / "digits.json"
    content = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(module, "choose", lambda *_: pytest.fail("chosen again"))
        again = go(run, labels=("1.0",))
    assert again["said"][-1] == f"{path}: scored already"
    assert path.read_bytes() == content
    more = go(run, labels=("1", "0.5", "3/class"))
    assert more["results"][: len(first["results"])] == first["results"]
    assert [each["label_fraction"] for each in more["results"] if each["probe"] == "linear"] == ["1", "0.5", "3/class"]
    assert more["test_reads"] == 2
    assert {each["test_reads"] for each in more["results"]} == {1}
    assert more["train_value"] == first["train_value"]
    with np.load(path.with_suffix(".predictions.npz")) as arrays:
        assert {"linear@1", "linear@0.5", "linear@3 per class", "label"} <= set(arrays)


def test_other_data_are_scored_anew(tmp_path: Path, quick: None, install: Callable[[Data], None]) -> None:
    install(small())
    run = pretrained(tmp_path, domain="small", batch_size=8)
    assert go(run, labels=("1",))["test_reads"] == 1
    install(replace(small(lambda y: 1 - y), fingerprint="1" * 64))
    record = go(run, labels=("1",))
    assert (record["data_fingerprint"], record["test_reads"]) == ("1" * 64, 1)
    assert record["value"] > 0.8


def test_several_runs(tmp_path: Path, quick: None) -> None:
    runs = [pretrained(tmp_path, seed=seed) for seed in (0, 1)]
    config = TransferConfig(run=tuple(run.path for run in runs), labels=("1",))
    records = module.transfer(config, accelerator=accelerate())
    assert [record["run"] for record in records] == ["digits-none-s0", "digits-none-s1"]
    assert records[0]["encoder_sha256"] != records[1]["encoder_sha256"]
    shown = module.show(records)
    assert "digits-none-s0  digits  accuracy  protocol v1" in shown
    assert f"{100 * records[1]['value']:6.2f}" in shown


# --- protocols


def test_dabs_draws_its_training_features_anew_each_epoch(
    tmp_path: Path, install: Callable[[Data], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(small())
    run = pretrained(tmp_path, domain="small", batch_size=8)
    seen: list[tuple[bool, float]] = []

    def spy(encoder: Any, split: Split, *words: Any, dropout: bool = False, **how: Any) -> Any:
        found = features(encoder, split, *words, dropout=dropout, **how)
        seen.append((dropout, found.mean.sum().item()))
        return found

    monkeypatch.setattr(module, "features", spy)
    record = go(run, protocol="dabs")
    drawn = [total for dropout, total in seen if dropout]
    assert len(set(drawn)) == len(drawn) == 100
    assert len(seen) == 103
    assert [(each["probe"], each["label_fraction"]) for each in record["results"]] == [("linear", "1")]
    assert any("watches during training" in note for note in record["notes"])
    assert any("watches during training" in text for text in record["said"])
    assert (run.path / "transfer" / "small-dabs.json").exists()
    with pytest.raises(UserError, match="with all labels alone"):
        go(run, protocol="dabs", labels=("0.1",))


@pytest.mark.parametrize("name", ["v1", "dabs", "imix"])
def test_permuted_labels_give_chance(name: str) -> None:
    task = Task("classes", "accuracy", ("a", "b"))
    rules = protocol(name, 64)

    def value(permuted: bool) -> float:
        parts = []
        for n, seed in ((3000, 1), (100, 2), (1500, 3)):
            x, label = clusters(n, seed)
            label = np.random.default_rng(seed).permutation(label) if permuted else label
            pooled = torch.from_numpy(3 * (x - 1))
            parts.append(Features({"mean": pooled, "cls": pooled}, label))
        train, validation, test = parts
        redraw = (lambda epoch: train) if rules.dropout else None
        results, _ = score(choose(train, validation, task, rules, ("1",), redraw=redraw), test, task)
        return max(abs(float(each["value"]) - 0.5) for each in results)

    assert value(permuted=True) < 0.06  # 4.6 standard deviations
    assert value(permuted=False) > 0.4


Kind = Literal["regression", "multilabel", "tokens"]


@pytest.mark.parametrize(
    ("kind", "metric", "least"),
    [
        ("regression", "pearson", 0.8),
        ("regression", "mse", None),
        ("multilabel", "auroc_macro", 0.9),
        ("multilabel", "f1_macro", 0.8),
        ("tokens", "accuracy", 0.8),
        ("tokens", "matthews", 0.6),
    ],
)
def test_every_kind_of_task(
    kind: Kind, metric: str, least: float | None, tmp_path: Path, quick: None, install: Callable[[Data], None]
) -> None:
    x = np.random.default_rng(0).normal(size=(361, 6)).astype(np.float32)
    label: NDArray[Any]
    match kind:
        case "regression":
            label = (50 + 3 * x[:, 0] - 2 * x[:, 1]).astype(np.float32)
        case "multilabel":
            label = (x[:, :2] > 0).astype(np.uint8)
        case _:
            label = np.where(np.abs(x) < 0.2, -1, x > 0).astype(np.int64)
    group = np.arange(361) // 3
    train, validation, test = (Split((x,), r, label[r], group[r]) for r in np.split(np.arange(361), [200, 260]))
    task = Task(kind, metric, () if kind == "regression" else ("p", "q"))
    install(Data((Table(6),), train, train, validation, test, task, "2" * 64))
    run = pretrained(tmp_path, domain="small", batch_size=8)
    record = go(run, labels=("1", "0.5"))
    probes = {"linear", "ridge"} | ({"knn"} if kind != "tokens" else set())
    assert {each["probe"] for each in record["results"]} == probes
    assert len(record["results"]) == 2 * len(probes)
    assert all(each["low"] <= each["value"] <= each["high"] for each in record["results"])
    assert {each["units"] for each in record["results"]} == {len(np.unique(group[260:]))}
    values = {each["probe"]: each["value"] for each in record["results"] if each["label_fraction"] == "1"}
    if least is None:
        assert values["ridge"] < record["yardsticks"]["majority"][0]["value"] / 2
    else:
        assert values["ridge"] > least
    board = tmp_path / "board" / "results.csv"
    submit(run.path, "somebody", board)
    assert validate(board) == []  # the kept predictions give the values again


# --- from one data set to another of the same modality, on real files


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "task"), [("cifar10", "traffic_sign"), ("wikitext2_valid", "rte"), ("fsdd", "speech_commands")]
)
def test_pretrained_on_one_set_and_transferred_to_another(source: str, task: str, tmp_path: Path, quick: None) -> None:
    if not os.environ.get("DABSMIX_DATA"):
        pytest.skip("real data: set DABSMIX_DATA to their folder")
    for name in (source, task):
        card = named(name)
        if card.present(data_root(None)) is None:
            pytest.skip(f"no {card.folder} under $DABSMIX_DATA")
    run = pretrained(tmp_path, domain=source, algo="emix", steps=3, batch_size=8)
    record = go(run, task=(task,), labels=("1",))
    assert (record["run"], record["task"]) == (f"{source}-emix-s0", task)
    assert record["data_fingerprint"] != run.record["data_fingerprint"]
    assert record["n"] > 50
    assert record["yardsticks"].keys() == {"raw", "majority"}
    if task == "traffic_sign":  # of the others, a small encoder tells nothing on so few rows
        chance = 1 / len(record["classes"])
        deviation = (chance * (1 - chance) / record["n"]) ** 0.5
        assert max(each["value"] for each in record["results"]) > chance + 3 * deviation


# --- what features are, whatever the machine


def test_features_are_kept_for_the_same_encoder_and_data_alone(
    tmp_path: Path, quick: None, install: Callable[[Data], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(small())
    run = pretrained(tmp_path, domain="small", batch_size=8)
    go(run, labels=("1",))
    passes: list[int] = []

    def spy(*words: Any, **how: Any) -> Any:
        passes.append(1)
        return features(*words, **how)

    monkeypatch.setattr(module, "features", spy)
    go(run, labels=("0.5",))
    assert passes == []
    install(replace(small(), fingerprint="1" * 64))
    go(run, labels=("1",))
    assert len(passes) == 3


def test_scores_do_not_depend_on_the_batch_size(
    tmp_path: Path, install: Callable[[Data], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(small())
    run = pretrained(tmp_path, domain="small", batch_size=8)
    values = []
    for batch_size in (7, 256):
        monkeypatch.setattr(module, "features", lambda *w, size=batch_size, **how: features(*w, **how, batch_size=size))
        for kept in run.path.glob("features/*"):
            kept.unlink()
        for kept in run.path.glob("transfer/*"):
            kept.unlink()
        values.append([each["value"] for each in go(run, labels=("1",))["results"]])
    assert values[0] == pytest.approx(values[1], abs=0.011)  # a test example at a boundary may go either way


SCRIPT = """
import sys
import numpy as np, torch
from dabsmix.domain import Split
from dabsmix.encoder import make_encoder
from dabsmix.features import features, token_features
from dabsmix.pretrain import accelerate
from dabsmix.spec import Table

torch.manual_seed(0)
encoder = make_encoder("tiny", (Table(3),))
store = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
accelerator = accelerate()
found = {}
for n in (1, 2, 37):  # fewer rows than processes, too
    split = Split((store,), np.arange(n))
    how = dict(accelerator=accelerator, batch_size=5)
    pooled = features(encoder, split, lambda x: x, **how)
    found |= {f"mean{n}": pooled.mean, f"cls{n}": pooled.cls}
    found[f"tokens{n}"] = token_features(encoder, split, lambda x: x, **how)
np.savez(f"{sys.argv[1]}-{accelerator.process_index}.npz", **{k: v.numpy() for k, v in found.items()})
accelerator.end_training()
"""


@pytest.mark.slow
def test_features_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    found = []
    for processes in (1, 2, 3):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        words = [sys.executable, *launch, str(script), str(tmp_path / f"of{processes}")]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        for rank in range(processes):
            with np.load(tmp_path / f"of{processes}-{rank}.npz") as arrays:
                found.append(dict(arrays))
    assert found[0]["mean37"].shape == (37, 64)
    assert found[0]["tokens37"].shape == (37, 3, 64)
    for other in found[1:]:
        for name, values in found[0].items():
            np.testing.assert_allclose(other[name], values, atol=1e-5, err_msg=name)


# --- refused


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that a command is refused with."""
    monkeypatch.setattr(sys, "argv", ["dabsmix", "transfer", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("run: ")]
    assert len(lines) == 1, lines
    return lines[0]


def test_mistakes_are_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pretrained(tmp_path)
    capsys.readouterr()

    def refused(*words: object) -> str:
        return call(monkeypatch, capsys, "--run", run.path, *words)

    assert "was made for Grid" in refused("--task", "breast_cancer")
    assert "unknown domain 'digit' (did you mean 'digits'?)" in refused("--task", "digit")
    for label in ("0", "1.5", "nan", "x", "0/class", "-3/class", "1.5/class"):
        assert f"--labels {label}: give a fraction" in refused(f"--labels={label}")
    run.update(status="running")
    assert "is unfinished" in refused()
    assert "is no run" in call(monkeypatch, capsys, "--run", tmp_path)
    assert "no finished run under" in call(monkeypatch, capsys, "--out", tmp_path / "nowhere")
    assert not (run.path / "transfer").exists()


def test_an_encoder_that_is_not_the_run_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    run = pretrained(tmp_path)
    capsys.readouterr()
    path = run.path / "encoder.safetensors"
    whole = path.read_bytes()
    with safe_open(str(path), framework="pt") as file:
        header = file.metadata()
    state = load_file(str(path))
    state["another.weight"] = state.pop("blocks.0.attn.qkv.weight")
    save_file(state, str(path), header)
    line = call(monkeypatch, capsys, "--run", run.path)
    assert "missing ['blocks.0.attn.qkv.weight'], unexpected ['another.weight']" in line

    torch.manual_seed(7)
    save_encoder(path, make_encoder("tiny", load_encoder_specs(whole, tmp_path)), "tiny")
    assert sha256(path) != run.record["encoder_sha256"]
    assert "is not the encoder that this run ended with" in call(monkeypatch, capsys, "--run", run.path)


def load_encoder_specs(content: bytes, folder: Path) -> Any:
    (folder / "copy.safetensors").write_bytes(content)
    return load_encoder(folder / "copy.safetensors").specs


def test_without_labels_there_is_nothing_to_transfer_to(tmp_path: Path, install: Callable[[Data], None]) -> None:
    data = small()
    install(replace(data, task=None, train=None, validation=None, test=None))
    run = pretrained(tmp_path, domain="small", batch_size=8)
    with pytest.raises(UserError, match="small has no labels to transfer to"):
        go(run)


def test_labels_per_class_need_classes() -> None:
    assert share("5/class", Task("classes", "accuracy", ("a", "b"))) == {"per_class": 5}
    assert share("0.25", Task("regression", "mse")) == {"fraction": 0.25}
    with pytest.raises(UserError, match="kind regression has no labels per class"):
        share("5/class", Task("regression", "mse"))


def test_small_shares_are_drawn_often_and_large_ones_seldom() -> None:
    task = Task("classes", "accuracy", ("a", "b"))
    parts = [Features({"mean": torch.from_numpy(x)}, y) for x, y in (clusters(400, 0), clusters(200, 1))]
    rules = replace(QUICK, draws=v1().draws)
    chosen = choose(parts[0], parts[1], task, rules, ("1", "0.5", "0.1", "0.01", "2/class", "50/class"))
    drawn = {label: len(each) for (probe, label), each in chosen.items() if probe == "ridge"}
    assert drawn == {"1": 1, "0.5": 3, "0.1": 5, "0.01": 20, "2/class": 20, "50/class": 3}


# --- several seeds, from the command line


def test_seeds_are_trained_one_by_one_resumed_and_scored_together(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dabsmix(*words: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["dabsmix", *map(str, words)])
        main()
        return capsys.readouterr().out.splitlines()

    words = ["pretrain", "--domain=digits", "--algo=emix", "--encoder=tiny", "--steps=2", "--batch-size=8"]
    words += ["--out", str(tmp_path)]
    first = dabsmix(*words, "--seeds", 3, 4)
    assert first == [str(tmp_path / f"digits-emix-s{seed}") for seed in (3, 4)]
    single = dabsmix(*words, "--seed", 4)
    files = [Path(path) / "encoder.safetensors" for path in (first[1], *single)]
    assert files[0].read_bytes() == files[1].read_bytes()  # a seed is the same run alone and among others
    assert dabsmix(*words, "--resume", "--seeds", 3, 5) == [first[0], str(tmp_path / "digits-emix-s5")]
    with pytest.raises(SystemExit):
        dabsmix(*words, "--seeds", 3, 3)
    assert "--seeds 3 3: each seed once" in capsys.readouterr().err
    shown = dabsmix("transfer", "--run", *first, "--labels", "1", "--json")
    assert [record["run"] for record in json.loads("\n".join(shown))] == ["digits-emix-s3", "digits-emix-s4"]
