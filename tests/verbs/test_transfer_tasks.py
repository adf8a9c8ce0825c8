"""Transfer under every protocol, to every kind of task, across data sets, on any number of processes."""

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
from numpy.typing import NDArray
from transferring import QUICK, go, installed, pretrained, small

from dabsmix.board.standings import standings
from dabsmix.board.submit import read, submit, validate
from dabsmix.config import TransferConfig
from dabsmix.data.domain import Data, Labelled, Split, Task
from dabsmix.errors import UserError
from dabsmix.files import data_root
from dabsmix.registry import domain as named
from dabsmix.scoring import frozen
from dabsmix.scoring.features import features
from dabsmix.scoring.finetune import FINETUNE
from dabsmix.scoring.metrics import metric
from dabsmix.scoring.results import read_transfer
from dabsmix.spec import Table
from dabsmix.training import accelerate
from dabsmix.verbs import tasks
from dabsmix.verbs import transfer as module


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and short probes."""
    monkeypatch.setattr(module, "protocol", lambda name, batch_size, specs: replace(QUICK, name=name))


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Data], None]:
    """Makes some data a domain named ``small``."""
    return lambda data: installed(data, monkeypatch)


# --- protocols


def test_dabs_draws_its_training_features_anew_each_epoch(
    tmp_path: Path, install: Callable[[Data], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(small())
    run = pretrained(tmp_path, domain="small", batch_size=8)
    calls: list[tuple[bool, float]] = []

    def spy(encoder: Any, split: Split, *words: Any, dropout: bool = False, **how: Any) -> Any:
        computed = features(encoder, split, *words, dropout=dropout, **how)
        calls.append((dropout, computed.mean.sum().item()))
        return computed

    monkeypatch.setattr(frozen, "features", spy)
    record = go(run, protocol="dabs")
    drawn = [total for dropout, total in calls if dropout]
    assert len(set(drawn)) == len(drawn) == 100
    assert len(calls) == 103
    assert [(result["probe"], result["label_fraction"]) for result in record["results"]] == [("linear", "1")]
    assert any("watches during training" in note for note in record["notes"])
    printed = str(read_transfer(run.path / "transfer" / "small-dabs.json"))
    assert "watches during training" in printed
    with pytest.raises(UserError, match="only with all labels"):
        go(run, protocol="dabs", labels=("0.1",))


def test_a_mean_over_batches_is_recorded_with_the_value_over_all_examples(
    tmp_path: Path, install: Callable[[Data], None], quick: None
) -> None:
    noise = np.random.default_rng(0).normal(size=361).astype(np.float32)
    install(small(lambda y: y + noise, Task("regression", "pearson/32")))
    run = pretrained(tmp_path, domain="small", batch_size=8)
    record = go(run, labels=("1",))
    (linear,) = (result for result in record["results"] if result["probe"] == "linear")
    with np.load(run.path / "transfer" / "small.predictions.npz") as arrays:
        scores, label = arrays["linear@1"][0], arrays["label"]
    correlation = np.corrcoef(scores, label)[0, 1]
    assert linear["metric"] == "pearson/32"
    assert linear["value"] == pytest.approx(metric("pearson/32")(scores, label), abs=1e-5)
    assert abs(linear["value"] - correlation) > 1e-3
    assert any(f"linear {correlation:.4f}" in note for note in record["notes"])


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
    install(Data((Table(6),), train, Labelled(task, train, validation, test), "2" * 64))
    run = pretrained(tmp_path, domain="small", batch_size=8)
    record = go(run, labels=("1", "0.5"))
    probes = {"linear", "ridge"} | ({"knn"} if kind != "tokens" else set())
    assert {result["probe"] for result in record["results"]} == probes
    assert len(record["results"]) == 2 * len(probes)
    assert all(result["low"] <= result["value"] <= result["high"] for result in record["results"])
    assert {result["units"] for result in record["results"]} == {len(np.unique(group[260:]))}
    values = {result["probe"]: result["value"] for result in record["results"] if result["label_fraction"] == "1"}
    if least is None:
        assert values["ridge"] < record["yardsticks"]["majority"][0]["value"] / 2
    else:
        assert values["ridge"] > least
    board = tmp_path / "board" / "results.csv"
    submit(run.path, "somebody", board)
    assert validate(board) == []  # the stored predictions reproduce the values


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
    assert record["data_fingerprint"] != run.record.data_fingerprint
    assert record["n"] > 50
    assert record["yardsticks"].keys() > {"raw", "majority"}
    if task == "traffic_sign":  # for the others, a small encoder on so few rows shows nothing
        chance = 1 / len(record["classes"])
        deviation = (chance * (1 - chance) / record["n"]) ** 0.5
        assert max(result["value"] for result in record["results"]) > chance + 3 * deviation


# --- features do not depend on the machine


def test_stored_features_are_reused_only_for_the_same_encoder_and_data(
    tmp_path: Path, quick: None, install: Callable[[Data], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(small())
    run = pretrained(tmp_path, domain="small", batch_size=8)
    go(run, labels=("1",))
    passes: list[int] = []

    def spy(*words: Any, **how: Any) -> Any:
        passes.append(1)
        return features(*words, **how)

    monkeypatch.setattr(frozen, "features", spy)
    go(run, labels=("0.5",))
    assert passes == []
    install(replace(small(), fingerprint="1" * 64))
    go(run, labels=("1",))
    assert len(passes) == 3


@pytest.mark.slow
def test_scores_do_not_depend_on_the_batch_size(
    tmp_path: Path, install: Callable[[Data], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(small())
    run = pretrained(tmp_path, domain="small", batch_size=8)
    values = []
    for batch_size in (7, 256):
        monkeypatch.setattr(frozen, "features", lambda *w, size=batch_size, **how: features(*w, **how, batch_size=size))
        for file in run.path.glob("features/*"):
            file.unlink()
        for file in run.path.glob("transfer/*"):
            file.unlink()
        values.append([result["value"] for result in go(run, labels=("1",))["results"]])
    assert values[0] == pytest.approx(values[1], abs=0.011)  # a test example at a boundary may go either way


SCRIPT = """
import sys
import numpy as np, torch
from dabsmix.data.domain import Split
from dabsmix.model.encoder import make_encoder
from dabsmix.scoring.features import features, token_features
from dabsmix.training import accelerate
from dabsmix.spec import Table
from dabsmix.training import accelerate

torch.manual_seed(0)
encoder = make_encoder("tiny", (Table(3),))
store = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
accelerator = accelerate()
encoded = {}
for n in (1, 2, 37):  # fewer rows than processes, too
    split = Split((store,), np.arange(n))
    how = dict(accelerator=accelerator, batch_size=5)
    pooled = features(encoder, split, lambda x: x, **how)
    encoded |= {f"mean{n}": pooled.mean, f"cls{n}": pooled.cls}
    encoded[f"tokens{n}"] = token_features(encoder, split, lambda x: x, **how)
np.savez(f"{sys.argv[1]}-{accelerator.process_index}.npz", **{k: v.numpy() for k, v in encoded.items()})
accelerator.end_training()
"""


def launch(processes: int, *words: object) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    completed = subprocess.run(
        [*command, *map(str, words)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert completed.returncode == 0, completed.stderr


@pytest.mark.slow
def test_scores_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    records = []
    for processes in (1, 2, 3):
        run = pretrained(tmp_path / str(processes))
        # without the dashes torchrun would read --run as its own flag
        launch(processes, "-m", "--", "dabsmix", "transfer", "--run", run.path, "--labels", "1")
        records.append(json.loads((run.path / "transfer" / "digits.json").read_text()))
    for record in records[1:]:
        assert record["n"] == records[0]["n"] == 539
        for other, first in zip(record["results"], records[0]["results"], strict=True):
            assert other["value"] == pytest.approx(first["value"], abs=2.1 / 539)  # a row at a boundary or two


@pytest.mark.slow
def test_features_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    scores = []
    for processes in (1, 2, 3):
        launch(processes, script, tmp_path / f"of{processes}")
        for rank in range(processes):
            with np.load(tmp_path / f"of{processes}-{rank}.npz") as arrays:
                scores.append(dict(arrays))
    assert scores[0]["mean37"].shape == (37, 64)
    assert scores[0]["tokens37"].shape == (37, 3, 64)
    for other in scores[1:]:
        for name, values in scores[0].items():
            np.testing.assert_allclose(other[name], values, atol=1e-5, err_msg=name)


# --- one of several tasks that cannot be scored


def test_a_task_that_fails_is_named_and_the_others_are_scored(
    tmp_path: Path, install: Callable[[Data], None], quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(small())
    run = pretrained(tmp_path, domain="small", batch_size=8)
    monkeypatch.setattr("dabsmix.source.ensure", lambda card, root: pytest.fail(f"{card.name} was looked for"))
    monkeypatch.setattr(tasks, "load", lambda source: small())
    messages: list[str] = []
    config = TransferConfig(run=(run.path,), task=("cifar10", "small"))
    with pytest.raises(module.Incomplete, match="not scored: cifar10") as caught:
        module.transfer(config, accelerator=accelerate(), say=messages.append)
    assert [record.task for record in caught.value.records] == ["small"]
    assert any("cifar10 is image data" in line and "reads tabular" in line for line in messages)
    with pytest.raises(UserError, match="cifar10 is image data") as alone:
        go(run, task=("cifar10",))
    assert not isinstance(alone.value, module.Incomplete)


@pytest.mark.slow
def test_mixed_scores_have_separate_records_and_can_be_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(FINETUNE, rates=(1e-3,), epochs=1, steps=(2, 2))
    monkeypatch.setattr(module, "FINETUNE", short)
    monkeypatch.setattr(module, "LINEAR", short)
    run = pretrained(tmp_path)
    go(run, protocol="finetune", labels=("1",))
    mixed = go(run, protocol="finetune", labels=("1",), head_mix="guided", mix_schedule="easy")
    head = go(run, protocol="v1", labels=("1",), head_mix="mixup")
    assert "head_mix" not in json.loads((run.path / "transfer" / "digits-finetune.json").read_text())
    assert mixed["head_mix"] == "guided-easy"
    assert [(result["probe"], result["test_reads"]) for result in mixed["results"]] == [("finetune+guided-easy", 2)]
    assert [result["probe"] for result in head["results"]] == ["linear+mixup"]
    assert len(mixed["results"][0]["selected"]["kept"]) >= 1
    with np.load(run.path / "transfer" / "digits-finetune+guided-easy.el2n.npz") as arrays:
        assert arrays["row"].shape == arrays["el2n"].shape
    board = tmp_path / "board" / "results.csv"
    assert {row.probe for row in submit(run.path, "me", board)} == {"finetune", "finetune+guided-easy", "linear+mixup"}
    assert validate(board) == []
    blocks = [block for section in standings(read(board)) for block in section.blocks]
    assert sorted(block.probe for block in blocks) == ["finetune", "finetune+guided-easy", "linear+mixup"]
    with pytest.raises(UserError, match="use it with --protocol finetune"):
        go(run, protocol="v2", head_mix="cutmix")
    with pytest.raises(UserError, match="is not defined under --protocol imix"):
        go(run, protocol="imix", head_mix="mixup")
