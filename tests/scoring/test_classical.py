"""Yardsticks without pretraining against plain loops, and on data that only some of them can separate."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dabsmix.data.domain import Data, Labelled, Split, Task
from dabsmix.scoring import baselines
from dabsmix.scoring.classical import (
    Classical,
    EstimatorHead,
    Patches,
    _spectrum,
    _statistics,
    classical,
    fit_boosting,
    fit_words,
    random_patches,
)
from dabsmix.scoring.evaluate import score
from dabsmix.scoring.heads import Features
from dabsmix.scoring.linear import LinearGrid
from dabsmix.scoring.metrics import metric
from dabsmix.scoring.protocols import v1
from dabsmix.spec import Grid, Spec, Table, Tokens

ACCURACY = metric("accuracy")
RULES = replace(v1(), linear=LinearGrid(rates=(0.1,), epochs=20))
TWO = Task("classes", "accuracy", ("a", "b"))


def plainly(patches: Patches, x: Tensor) -> list[float]:
    """Responses to one example, averaged, patch by patch."""
    positions = [range(size - side + 1) for size, side in zip(patches.size, patches.side, strict=True)]
    positive, negative = {}, {}
    for place in itertools.product(*positions):
        cut = x[(slice(None), *(slice(p, p + s) for p, s in zip(place, patches.side, strict=True)))].flatten()
        cut = (cut - cut.mean()) / math.sqrt(float(cut.var(correction=0)) + patches.floor)
        response = cut @ patches.filters - patches.offset
        positive[place], negative[place] = (response - 0.25).clamp_min(0), (-response - 0.25).clamp_min(0)
    parts = []
    for responses in (positive, negative):
        for k in range(patches.filters.shape[1]):
            for part in itertools.product(range(patches.parts), repeat=len(positions)):
                # torch's adaptive pooling divides an axis in this way
                spans = [
                    range(i * len(p) // patches.parts, -(-(i + 1) * len(p) // patches.parts))
                    for i, p in zip(part, positions, strict=True)
                ]
                parts.append(float(np.mean([float(responses[place][k]) for place in itertools.product(*spans)])))
    return parts


@pytest.mark.parametrize("size", [(20,), (9, 8), (5, 6, 5)])
def test_patches_equal_a_loop_over_positions(size: tuple[int, ...]) -> None:
    x = torch.randn(30, 2, *size, generator=torch.Generator().manual_seed(0))
    patches = random_patches(Grid(2, size, (1,) * len(size)), x, width=4 * patches_parts(size))
    computed = patches(x[:3])
    assert computed.shape == (3, 4 * patches_parts(size))
    torch.testing.assert_close(
        computed, torch.tensor([plainly(patches, image) for image in x[:3]]), rtol=1e-3, atol=1e-4
    )


def patches_parts(size: tuple[int, ...]) -> int:
    """Parts of the whole grid."""
    return {1: 4, 2: 4, 3: 8}[len(size)]


def test_filters_are_whitened_patches_of_unit_length() -> None:
    x = torch.randn(200, 1, 40, generator=torch.Generator().manual_seed(1)).cumsum(dim=2)
    patches = random_patches(Grid(1, (40,), (1,)), x, width=800)
    rows = x.unfold(2, 8, 1).flatten(0, 2)
    rows = (rows - rows.mean(dim=1, keepdim=True)) / (
        rows.var(dim=1, keepdim=True, correction=0) + patches.floor
    ).sqrt()
    response = rows @ patches.filters - patches.offset
    assert response.mean(dim=0).abs().max() < 0.1
    # along a whitened direction of unit length the spread is 1 at most: the floor of the eigenvalues shrinks weak ones
    assert 0.3 < response.std(dim=0).mean() < 1.1


def test_a_large_grid_is_averaged_down_first() -> None:
    x = torch.randn(4, 1, 100, 40)
    patches = random_patches(Grid(1, (100, 40), (1, 1)), x, width=16)
    assert patches.size == (32, 32)
    assert patches(x).shape == (4, 16)


def data_of(spec: Spec, x: NDArray[Any], label: NDArray[np.int64]) -> Data:
    """Two thirds for training, the rest halved."""
    cuts = [2 * len(x) // 3, 5 * len(x) // 6]
    train, validation, test = (Split((x,), rows, label[rows]) for rows in np.split(np.arange(len(x)), cuts))
    return Data((spec,), train, Labelled(TWO, train, validation, test), "f" * 64)


def scores(data: Data) -> dict[str, float]:
    """The accuracy of each yardstick with all labels."""
    accuracies = {}
    for yardstick in classical(data, RULES, width=16):
        ((chosen, test),) = baselines._of(yardstick, data, RULES, ("1",), torch.device("cpu"))
        (result,), _ = score(chosen, test, TWO)
        accuracies[yardstick.name] = result.value
    return accuracies


def test_the_spectrum_separates_sensors_by_frequency() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(2, size=240)
    time = np.arange(64)
    x = np.sin(2 * np.pi * (np.where(label, 5, 7)[:, None] * time / 64 + rng.random((240, 1))))[:, None]
    accuracies = scores(data_of(Grid(1, (64,), (2,)), x.astype(np.float32), label))
    assert accuracies.keys() == {"patches", "patches_narrow", "statistics", "spectrum"}
    assert accuracies["spectrum"] == 1
    assert accuracies["patches"] > 0.9


def test_statistics_separate_classes_by_a_louder_band() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(2, size=240)
    x = rng.normal(size=(240, 1, 8, 16))
    x[:, :, 3] *= np.where(label, 1, 2)[:, None, None]
    accuracies = scores(data_of(Grid(1, (8, 16), (2, 2)), x.astype(np.float32), label))
    assert accuracies.keys() == {"patches", "patches_narrow", "statistics"}
    assert accuracies["statistics"] > 0.9


def test_words_and_pairs_of_words() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 40, size=(300, 12))
    label = rng.integers(2, size=300)
    ids[:, 5], ids[:, 6] = np.where(label, 1, 2), np.where(label, 2, 1)  # only the order of words separates the classes
    ids[:, 10:] = 0
    accuracies = scores(data_of(Tokens(12, 40, pad=0), ids, label))
    assert accuracies.keys() == {"words", "words_narrow"}
    assert accuracies["words"] > 0.9 > accuracies["words_narrow"]


def test_trees_separate_classes_that_no_linear_model_separates() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 5)).astype(np.float32)
    x[:, [2, 4]] = rng.integers(3, size=(600, 2))
    label = ((x[:, 0] > 0) ^ (x[:, 2] == 1)).astype(np.int64)
    x[rng.random(600) < 0.05, 1] = np.nan
    x[:500, 3:] = np.nan  # columns without any value in training, of which one holds categories
    assert scores(data_of(Table(5, (0, 0, 3, 0, 3)), x, label)) == {"boosting": pytest.approx(1, abs=0.03)}


@pytest.mark.parametrize("kind", ["classes", "multilabel", "regression"])
def test_every_kind_of_task(kind: Any) -> None:
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(200, 2)).astype(np.float32)
    ids = np.where(columns[:, :1] > 0, 1, 2) + np.zeros((200, 3), dtype=np.int64)
    labels: dict[str, NDArray[Any]] = {
        "classes": (columns[:, 0] > 0).astype(np.int64) * 2,  # class 1 of three does not occur in training
        "multilabel": np.stack([columns[:, 0] > 0, np.zeros(200)], axis=1).astype(np.uint8),  # one label never occurs
        "regression": (columns[:, 0] > 0).astype(np.float32),
    }
    task = Task(kind, "accuracy", {"classes": ("a", "b", "c"), "multilabel": ("a", "b"), "regression": ()}[kind])
    cells = Features({"raw": torch.from_numpy(np.concatenate([columns, np.zeros_like(columns)], axis=1))}, labels[kind])
    texts = Features({"raw": torch.from_numpy(ids)}, labels[kind])
    heads = [(fit_boosting(cells, task, [0, 0])[0], cells), (fit_words(texts, task)[-1], texts)]
    for head, features in heads:
        outputs = head.predict(features)
        assert outputs.dtype == np.float32
        assert np.isfinite(outputs).all()
        if kind == "classes":
            assert outputs.shape == (200, 3)
            assert ACCURACY(outputs, labels[kind]) == 1
        elif kind == "multilabel":
            assert ((outputs > 0) == labels[kind]).all()
        else:
            assert np.abs(outputs - labels[kind]).max() < 0.05


def test_few_labels_are_as_many_if_only_some_rows_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(2, size=600)
    data = data_of(Grid(1, (16,), (2,)), rng.normal(size=(600, 1, 16)).astype(np.float32), label)
    seen = []

    def watched(train: Features) -> Any:
        seen.append(len(train))
        return fit(train)

    (patches,) = (y for y in classical(data, RULES, 16) if y.name == "patches")
    fit = patches.few["ridge"]
    few = type(patches)(patches.name, patches.read, {"ridge": watched}, {"ridge": watched}, rows=100)
    results = baselines._of(few, data, RULES, ("1", "0.1", "5/class"), torch.device("cpu"))
    assert [label for chosen, _ in results for _, label in chosen] == ["1", "0.1", "5/class"]
    assert set(seen) == {100, 40, 10}


def test_statistics_ignore_unread_values() -> None:
    x = torch.randn(4, 2, 9)
    short = torch.cat([x, torch.full((4, 2, 5), torch.nan)], dim=2)
    torch.testing.assert_close(_statistics(short), _statistics(x))


def test_the_spectrum_equals_a_plain_sum() -> None:
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    plain = []
    for example in x.double().numpy():
        for channel in example:
            for frequency in range(9):
                turns = np.exp(-2j * np.pi * frequency * np.arange(16) / 16)
                plain.append(math.log(abs(np.sum(channel * turns)) ** 2 / 16 + 1e-6))
    torch.testing.assert_close(_spectrum(x), torch.tensor(plain).view(2, 27).float(), rtol=1e-4, atol=1e-4)


def tf_idf(texts: list[list[Any]]) -> NDArray[np.float64]:
    """Sublinear counts, smoothed inverse document frequency, rows of unit length; columns in sorted order."""
    terms = sorted({term for text in texts for term in text})
    rows = np.zeros((len(texts), len(terms)))
    for j, term in enumerate(terms):
        frequency = sum(term in text for text in texts)
        for i, text in enumerate(texts):
            if term in text:
                rows[i, j] = (1 + math.log(text.count(term))) * (1 + math.log((1 + len(texts)) / (1 + frequency)))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_words_are_weighted_by_tf_idf() -> None:
    ids = np.array([[1, 2, 1, 1], [2, 3, -1, -1], [1, 3, 3, -1]])
    head = fit_words(Features({"raw": torch.from_numpy(ids)}, np.array([0, 1, 1])), TWO)[0]
    words = [[word for word in row.tolist() if word >= 0] for row in ids]
    terms = [[*((word,) for word in text), *itertools.pairwise(text)] for text in words]
    np.testing.assert_allclose(np.asarray(head.prepare(ids).todense()), tf_idf(terms))


def test_narrow_words_lie_along_the_first_singular_vectors() -> None:
    rng = np.random.default_rng(0)
    topic = rng.integers(3, size=90)  # of ten words each: the randomised solver needs a gap after the third value
    ids = 1 + 10 * topic[:, None] + rng.integers(10, size=(90, 30))
    data = data_of(Tokens(30, 40, pad=0), ids, rng.integers(2, size=90))
    (narrow,) = (yardstick for yardstick in classical(data, RULES, width=3) if yardstick.name == "words_narrow")
    train = ids[:60]
    features = narrow.read((torch.from_numpy(train),)).double().numpy()
    u, s, _ = np.linalg.svd(tf_idf(train.tolist()), full_matrices=False)
    assert features.shape == (60, 3)
    # products, because the sign of a singular vector is arbitrary
    np.testing.assert_allclose(features @ features.T, (u[:, :3] * s[:3] ** 2) @ u[:, :3].T, atol=1e-4)


def test_trees_split_categories_as_categories() -> None:
    x, label = np.random.default_rng(0).integers(5, size=(60, 3)).astype(np.float32), np.arange(60) % 2
    (trees,) = classical(data_of(Table(3, (0, 5, 256)), x, label), RULES, width=16)
    (head,) = trees.probes["boosting"](Features({"raw": trees.read((torch.from_numpy(x),))}, label))
    assert isinstance(head, EstimatorHead)
    assert head.estimator.is_categorical_.tolist() == [False, True, False]


def test_yardsticks_are_made_of_the_training_part_alone() -> None:
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(120, 1, 16)).astype(np.float32), rng.integers(2, size=120)
    other = np.concatenate([x[:80], 3 + rng.normal(size=(40, 1, 16)).astype(np.float32)])
    spec, probe = Grid(1, (16,), (2,)), (torch.from_numpy(x[:5]),)
    for one, two in zip(
        classical(data_of(spec, x, label), RULES, 16), classical(data_of(spec, other, label), RULES, 16), strict=True
    ):
        assert torch.equal(one.read(probe), two.read(probe)), one.name


class Scaled:
    """A head without weights that predicts a multiple of the first feature."""

    def __init__(self, factor: float) -> None:
        self.setting, self.factor = {"factor": factor}, factor

    def predict(self, features: Features) -> NDArray[np.float32]:
        return np.float32(self.factor) * np.asarray(features.pooled["raw"][:, 0], dtype=np.float32)


@pytest.mark.parametrize("name", ["mae", "r2"])  # lower is better, higher is better
def test_the_best_probe_on_validation_is_scored(name: str) -> None:
    x = np.random.default_rng(0).normal(size=(120, 1)).astype(np.float32)
    task = Task("regression", name)
    parts = [Split((x,), rows, x[rows, 0]) for rows in np.split(np.arange(120), [80, 100])]
    data = Data((Table(1),), parts[0], Labelled(task, *parts), "f" * 64)
    probes: dict[str, Any] = {
        "far": lambda train: [Scaled(-1.0)],
        "near": lambda train: [Scaled(0.9)],
        "off": lambda train: [Scaled(0.5)],
    }
    yardstick = Classical("raw", lambda inputs: inputs[0], probes, probes)
    ((chosen, _),) = baselines._of(yardstick, data, RULES, ("1",), torch.device("cpu"))
    assert list(chosen) == [("near", "1")]
