"""Raw features against values computed by hand."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transferring import trained

from dabsmix.data.domain import Data, Labelled, Split, Task
from dabsmix.scoring import baselines as yardsticks
from dabsmix.scoring.baselines import raw_reader
from dabsmix.scoring.linear import LinearGrid
from dabsmix.scoring.protocols import TransferProtocol, v1
from dabsmix.scoring.results import prediction_key, yardstick_key
from dabsmix.spec import Grid, Table, Tokens


def test_a_small_grid_is_flattened() -> None:
    x = torch.randn(3, 2, 8)
    reader = raw_reader((Grid(2, (8,), (4,)),), [])
    assert torch.equal(reader((x,)), x.flatten(1))


@pytest.mark.parametrize("size", [(6000,), (90, 60), (30, 20, 10)])
def test_averaging_a_large_grid_keeps_its_mean(size: tuple[int, ...]) -> None:
    spec = Grid(2, size, (1,) * len(size))
    features = raw_reader((spec,), [])((torch.full((1, 2, *size), 5.0),))
    assert 384 < features.shape[1] <= yardsticks.RAW_WIDTH
    torch.testing.assert_close(features, torch.full_like(features, 5.0))


def test_columns_of_a_table() -> None:
    x = torch.tensor([[1.5, 2.0], [math.nan, 0.0], [0.5, math.nan]])
    features = raw_reader((Table(2, (0, 3)),), [])((x,))
    expected = [[0, 0, 1.5, 0, 0, 1], [1, 0, 0, 1, 0, 0], [0, 1, 0.5, 0, 0, 0]]
    assert features.tolist() == expected


def test_words_are_counted_without_rare_words_and_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yardsticks, "RAW_WIDTH", 2)
    train = [(torch.tensor([[5, 5, 3, 0]]),), (torch.tensor([[3, 5, 1, 0]]),)]
    reader = raw_reader((Tokens(4, 8, pad=0),), train)
    assert [ids.tolist() for ids in reader.counted if ids is not None] == [[3, 5]]
    assert reader((torch.tensor([[5, 3, 5, 0], [1, 7, 0, 0]]),)).tolist() == [[1, 2], [0, 0]]


def test_inputs_share_the_width() -> None:
    specs = (Grid(3, (64, 64), (8, 8)), Tokens(4, 5000), Table(2))
    tokens = torch.arange(4000).view(1000, 4)
    inputs = (torch.randn(1000, 3, 64, 64), tokens, torch.randn(1000, 2))
    reader = raw_reader(specs, [inputs])
    assert reader(inputs).shape[1] == 3 * 11 * 11 + yardsticks.RAW_WIDTH // 2 + 4


def test_inputs_are_concatenated() -> None:
    specs = (Grid(1, (4,), (2,)), Tokens(2, 3))
    tokens = torch.tensor([[2, 2]])
    reader = raw_reader(specs, [(torch.zeros(1, 1, 4), tokens)])
    assert reader((torch.ones(1, 1, 4), tokens)).tolist() == [[1, 1, 1, 1, 2]]


def labelled(task: Task, label: NDArray[Any], seed: int = 0) -> Data:
    """A table of two columns whose sign separates the first two classes."""
    x = np.random.default_rng(seed).normal(size=(len(label), 2)).astype(np.float32) + 4 * (label.reshape(-1, 1) > 0)
    train, validation, test = (Split((x,), rows, label[rows]) for rows in np.split(np.arange(len(label)), [100, 150]))
    return Data((Table(2),), train, Labelled(task, train, validation, test), f"{seed:064}")


def test_raw_input_and_majority_class_are_scored_and_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path))
    label = np.random.default_rng(0).choice(2, size=250, p=[0.3, 0.7])
    data = labelled(Task("classes", "accuracy", ("a", "b")), label)
    rules = replace(v1(), linear=LinearGrid(rates=(0.1,), epochs=20), draws=2)
    computed, predictions = yardsticks.yardsticks(data, rules, ("1", "0.5"), torch.device("cpu"), 4)
    assert [(result.probe, result.label_fraction) for result in computed["raw"]] == [("linear", "1"), ("linear", "0.5")]
    assert computed["raw"][0].value > 0.95
    assert [result.value for result in computed["majority"]] == [(label[150:] == 1).mean()]
    for name, results in computed.items():
        for result in results:
            predicted = predictions[yardstick_key(name, prediction_key(result.probe, result.label_fraction))]
            assert (predicted == label[150:]).mean() == pytest.approx(result.value)
    monkeypatch.setattr(yardsticks, "choose", lambda *_, **__: pytest.fail("computed again"))
    repeated = yardsticks.yardsticks(data, v1_like(rules), ("1", "0.5"), torch.device("cpu"), 4)
    assert repeated.results == computed
    assert {name: scores.tolist() for name, scores in repeated.predictions.items()} == {
        name: scores.tolist() for name, scores in predictions.items()
    }
    (file,) = (tmp_path / "yardsticks").iterdir()
    file.write_bytes(file.read_bytes()[:-30])  # a damaged file is computed again
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        yardsticks.yardsticks(data, rules, ("1", "0.5"), torch.device("cpu"), 4)
    splits = data.require_labelled()
    divided = replace(data, labelled=replace(splits, test=splits.test.take(np.arange(50))))  # other rows of the files
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        yardsticks.yardsticks(divided, rules, ("1", "0.5"), torch.device("cpu"), 4)


def v1_like(rules: TransferProtocol) -> TransferProtocol:
    """The same rules with an equal but distinct schedule."""
    return replace(rules, linear=replace(trained(rules), schedule=lambda progress: 1.0))


def test_tokens_have_no_raw_probe() -> None:
    label = np.random.default_rng(0).choice(3, size=(250, 2), p=[0.2, 0.3, 0.5]) - 1
    x = np.zeros((250, 2), dtype=np.float32)
    train, validation, test = (Split((x,), rows, label[rows]) for rows in np.split(np.arange(250), [100, 150]))
    data = Data((Table(2),), train, Labelled(Task("tokens", "accuracy", ("a", "b")), train, validation, test), "t" * 64)
    results = yardsticks.yardsticks(data, v1(), ("1",), torch.device("cpu"), 4).results
    assert results.keys() == {"majority"}
    scored = label[150:][label[150:] >= 0]
    assert results["majority"][0].value == pytest.approx((scored == 1).mean())
