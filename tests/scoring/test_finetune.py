"""Finetuning: rates by layer, one step against torch's own AdamW, chosen on validation, and no leak of labels."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dabsmix.data.domain import Data, Labelled, Split, Task
from dabsmix.model.encoder import Encoder, EncoderConfig, Transformer, build_encoder
from dabsmix.scoring import finetune as module
from dabsmix.scoring.finetune import FINETUNE, FinetuneRecipe, Network, finetune, layer_groups, supervised
from dabsmix.spec import Table
from dabsmix.training import accelerate

SHORT = FinetuneRecipe(rates=(1e-3, 3e-3), batch_size=32, epochs=3, steps=(30, 30), draws=2)
CLASSES = Task("classes", "accuracy", ("a", "b"))


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Transformer((Table(4),), EncoderConfig(width=16, depth=2, heads=2, head_dim=8, mlp=32, position_std=0.1))


def table(task: Task, answer: Callable[[NDArray[np.float32]], NDArray[Any]]) -> Data:
    """Rows of four numbers; the label is a function of them."""
    x = np.random.default_rng(0).normal(size=(800, 4)).astype(np.float32)
    label = answer(x)
    train, validation, test = (Split((x,), rows, label[rows]) for rows in np.split(np.arange(800), [400, 500]))
    return Data((Table(4),), train, Labelled(task, train, validation, test), "0" * 64)


def sign(x: NDArray[np.float32]) -> NDArray[np.int64]:
    return (x[:, 0] > 0).astype(np.int64)


def test_rates_fall_from_layer_to_layer_and_biases_do_not_decay() -> None:
    network = Network(encoder(), CLASSES)
    groups = layer_groups(network, 0.1, 0.5, 0.05)
    names = [name for name, _ in network.named_parameters()]
    peak = {name: group["peak"] for name, group in zip(names, groups, strict=True)}
    decay = {name: group["weight_decay"] for name, group in zip(names, groups, strict=True)}
    assert peak["head.weight"] == peak["norm.bias"] == pytest.approx(0.1)
    assert peak["encoder.blocks.1.attn.qkv.weight"] == pytest.approx(0.05)
    assert peak["encoder.blocks.0.mlp.fc1.bias"] == pytest.approx(0.025)
    for name in ("encoder.cls", "encoder.positions", "encoder.embedders.0.weight"):
        assert peak[name] == pytest.approx(0.0125)
    assert decay["head.weight"] == decay["encoder.blocks.1.attn.qkv.weight"] == 0.05
    assert {decay[name] for name in names if name.endswith("bias") and "embedders" not in name} == {0.0}
    assert decay["encoder.cls"] == decay["encoder.positions"] == decay["encoder.blocks.0.norm1.weight"] == 0.0
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained == {id(p) for p in network.parameters()}


def test_one_step_moves_every_parameter_by_its_own_rate() -> None:
    data = table(CLASSES, sign)
    start = encoder()
    recipe = replace(SHORT, rates=(1e-2,), layer_decay=0.5, weight_decay=0.0, steps=(1, 1))
    networks: list[Network] = []
    train = module._train

    def spy(*words: Any) -> Any:
        trained = train(*words)
        networks.append(copy.deepcopy(trained.network))
        return trained

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_train", spy)
        finetune(start, data, ("1",), recipe, accelerator=accelerate())
    # Adam's first step is the rate times the gradient's sign; a schedule of one step is all warm-up
    for name, layer in (("blocks.1.mlp.fc1.weight", 1), ("blocks.0.mlp.fc1.weight", 2), ("embedders.0.weight", 3)):
        moved = (networks[0].encoder.get_parameter(name) - start.get_parameter(name)).abs()
        assert moved.max().item() == pytest.approx(1e-2 * 0.5**layer, rel=1e-3)


@pytest.mark.slow
def test_finetuning_learns_chooses_on_validation_and_does_not_change_the_encoder() -> None:
    data, start = table(CLASSES, sign), encoder()
    before = copy.deepcopy(start.state_dict())
    recipe = replace(SHORT, rates=(1e-9, 3e-3), steps=(60, 60))
    finetuned = finetune(start, data, ("1", "0.2", "8/class"), recipe, accelerator=accelerate())
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
    assert [result.label_fraction for result in finetuned.results] == ["1", "0.2", "8/class"]
    assert [result.draws for result in finetuned.results] == [1, 2, 2]
    assert {result.probe for result in finetuned.results} == {"finetune"}
    best = finetuned.results[0]
    assert best.selected["rate"] == 3e-3
    assert best.selected["candidates"] == 2
    assert best.value > 0.9
    assert finetuned.train_value is not None
    assert finetuned.train_value > 0.9
    label = data.require_labelled().test.label
    assert (finetuned.predictions["finetune@1"][0] == label).mean() == pytest.approx(best.value)
    repeated = finetune(start, data, ("1",), recipe, accelerator=accelerate())
    assert repeated.results[0] == best


def test_the_test_split_is_read_once_per_draw_and_after_choosing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = table(CLASSES, sign)
    happened: list[str] = []
    predict, train = module._predict, module._train

    labelled = data.require_labelled()

    def spy_predict(network: Network, split: Split, *words: Any) -> Any:
        happened.append("test" if split is labelled.test else "other")
        return predict(network, split, *words)

    def spy_train(start: Encoder, part: Split, *words: Any) -> Any:
        assert part is not labelled.test
        assert labelled.test not in words
        happened.append("train")
        return train(start, part, *words)

    monkeypatch.setattr(module, "_predict", spy_predict)
    monkeypatch.setattr(module, "_train", spy_train)
    finetune(encoder(), data, ("1",), SHORT, accelerator=accelerate())
    tried = ["train", "other", "other"]  # EL2N scores of train, then validation
    assert happened == [*tried, *tried, "test", "other"]  # the last pass is the score on train


def test_permuted_labels_give_chance() -> None:
    def permuted(x: NDArray[np.float32]) -> NDArray[np.int64]:
        return np.random.default_rng(1).permutation(sign(x))

    finetuned = finetune(encoder(), table(CLASSES, permuted), ("1",), SHORT, accelerator=accelerate())
    assert abs(finetuned.results[0].value - 0.5) < 0.12  # 4 standard deviations


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "metric", "answer"),
    [
        ("regression", "pearson", lambda x: (100 + 5 * x[:, 0]).astype(np.float32)),
        ("multilabel", "auroc_macro", lambda x: (x[:, :2] > 0).astype(np.uint8)),
        ("tokens", "accuracy", lambda x: np.where(np.abs(x) < 0.1, -1, x > 0).astype(np.int64)),
    ],
)
def test_every_kind_of_task(
    kind: Literal["regression", "multilabel", "tokens"], metric: str, answer: Callable[..., NDArray[Any]]
) -> None:
    classes = () if kind == "regression" else ("p", "q")
    data = table(Task(kind, metric, classes), answer)
    recipe = replace(SHORT, steps=(80, 80))
    finetuned = finetune(encoder(), data, ("1", "0.5"), recipe, accelerator=accelerate())
    assert finetuned.results[0].value > 0.9
    labelled = data.require_labelled()
    assert labelled.test.label is not None
    outputs = finetuned.predictions["finetune@1"]
    assert outputs.shape == (1, *labelled.test.label.shape, *((2,) if kind == "tokens" else ()))
    if kind == "regression":
        assert abs(outputs.mean() - 100) < 1


def test_supervised_training_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SUPERVISED", replace(SHORT, layer_decay=1.0, steps=(60, 60)))
    data, start = table(CLASSES, sign), encoder()
    first = supervised(start, data, accelerator=accelerate())
    (result,) = first.results["supervised"]
    assert (result.probe, result.label_fraction) == ("finetune", "1")
    assert result.value > 0.85
    truth = data.require_labelled().test.label
    assert (first.predictions["supervised finetune@1"] == truth).mean() == pytest.approx(result.value)
    torch.manual_seed(5)
    other = build_encoder(start.specs, start.config)  # other weights, the same encoder
    monkeypatch.setattr(module, "finetune", lambda *_, **__: pytest.fail("trained again"))
    repeated = supervised(other, data, accelerator=accelerate())
    assert repeated.results == first.results
    assert np.array_equal(repeated.predictions["supervised finetune@1"], first.predictions["supervised finetune@1"])
    splits = data.require_labelled()  # the same files, divided in another way
    divided = replace(data, labelled=replace(splits, train=splits.train.take(np.arange(100))))
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        supervised(start, divided, accelerator=accelerate())


def test_the_recipe_is_that_of_its_sources() -> None:
    assert 0.65 <= FINETUNE.layer_decay <= 0.75
    assert len(FINETUNE.rates) >= 3
    assert module.SUPERVISED.layer_decay == 1.0


def test_transfer_under_the_finetune_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dabsmix.board.record import yardstick_predictions
    from dabsmix.board.submit import submit
    from dabsmix.config import PretrainConfig, TransferConfig
    from dabsmix.source import Source
    from dabsmix.verbs import transfer
    from dabsmix.verbs.pretrain import pretrain

    monkeypatch.setattr(transfer, "FINETUNE", replace(SHORT, rates=(3e-3,)))
    monkeypatch.setattr(module, "SUPERVISED", replace(SHORT, rates=(3e-3,)))
    run = pretrain(
        PretrainConfig(Source("digits"), algo="none", encoder="tiny", out=tmp_path), accelerator=accelerate()
    )
    config = TransferConfig(run=(run.path,), protocol="finetune")
    (before,) = transfer.transfer(config, accelerator=accelerate())
    config = replace(config, supervised=True)  # it is added to an existing record, and the other predictions stay
    (record,) = transfer.transfer(config, accelerator=accelerate())
    assert record.results == before.results
    assert [(result.probe, result.label_fraction) for result in record.results] == [("finetune", "1")]
    assert record.yardsticks.keys() >= {"raw", "majority", "patches", "supervised"}
    assert (run.path / "transfer" / "digits-finetune.json").exists()
    assert record.headline.value > record.yardsticks["majority"][0].value
    (row,) = submit(run.path, "somebody", tmp_path / "board" / "results.csv")
    assert row.probe == "finetune"
    for name, results in record.yardsticks.items():  # each is compared on the same test examples
        for result in results:
            predictions = yardstick_predictions(row, name, result)
            assert predictions is not None
            assert (predictions.scores == predictions.label).mean() == pytest.approx(result.value), name  # classes
    messages: list[str] = []
    assert transfer.transfer(config, accelerator=accelerate(), say=messages.append) == [record]
    assert messages[-1].endswith("scored already")
