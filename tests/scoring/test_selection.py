"""Selection on validation, few labels, and the leak test: permuted labels give chance under every protocol."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from dabsmix.data.domain import Task
from dabsmix.scoring.heads import Features, Setting
from dabsmix.scoring.intervals import interval, measure
from dabsmix.scoring.metrics import Undefined, metric
from dabsmix.scoring.protocols import PROBED, fits, protocol
from dabsmix.scoring.selection import few_labels, label_subsets, select

CLASSES = Task("classes", "accuracy", tuple("0123456789"))


@pytest.fixture(scope="module")
def digits() -> tuple[Features, Features, Features]:
    """Train, validation and test of scikit-learn's digits, their pixels as features."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x = torch.from_numpy(data.data.astype(np.float32) / 16)
    every = Features({"mean": x, "cls": x.flip(1)}, data.target.astype(np.int64))
    return every.take(order[:900]), every.take(order[900:1200]), every.take(order[1200:])


@dataclass(frozen=True)
class Fixed:
    """A head with given outputs, indexed by the first feature of a row."""

    answers: NDArray[np.float32]
    setting: Setting = field(default_factory=dict)

    def predict(self, features: Features) -> NDArray[np.float32]:
        return np.asarray(self.answers[features.pooled["mean"][:, 0].long().numpy()])


def rows(numbers: Sequence[int], label: Sequence[int]) -> Features:
    return Features({"mean": torch.tensor(numbers).float()[:, None]}, np.array(label))


def test_the_setting_is_the_best_mean_over_draws_and_the_same_for_all() -> None:
    good, bad = [[0, 1]], [[1, 0]]
    # correct on rows 0 and 1; on 0, 2 and 3; on none, and not finite
    answers = [good + good + bad + bad, good + bad + good + good, [[0, np.nan]] * 4]
    heads = [Fixed(np.array(a, dtype=np.float32), {"number": i}) for i, a in enumerate(answers)]
    draws = [(rows([0], [1]), rows([0, 1], [1, 1])), (rows([1], [1]), rows([2, 3], [1, 1]))]
    chosen = select(lambda train: heads, draws, metric("accuracy"))
    assert [c.setting for c in chosen] == [{"number": 1}] * 2
    assert [c.validation for c in chosen] == [0.75] * 2
    assert chosen[0].candidates == 3
    first_draw_alone = select(lambda train: heads, draws[:1], metric("accuracy"))
    assert first_draw_alone[0].setting == {"number": 0}
    with pytest.raises(ValueError, match="all 1 settings"):
        select(lambda train: heads[2:], draws, metric("accuracy"))


@pytest.mark.parametrize(
    ("right", "edge"),
    [
        ((900, 800, 700), True),  # the first, 10 points above its neighbour
        ((700, 800, 900), True),
        ((700, 900, 800), False),
        ((700, 899, 900), False),  # 0.1 points above: the grid is long enough
        ((800, 900), False),  # a grid of two settings has no interior
    ],
)
def test_a_choice_at_the_edge_of_its_grid_is_noted_if_it_gains(right: tuple[int, ...], edge: bool) -> None:
    answers = [np.eye(2, dtype=np.float32)[(np.arange(1000) < number).astype(int)] for number in right]
    heads = [Fixed(answer, {"pooling": "mean", "C": i}) for i, answer in enumerate(answers)]
    heads += [Fixed(np.zeros((1000, 2), np.float32), {"pooling": "cls", "C": i}) for i in range(3)]  # another grid
    validation = rows(range(1000), [1] * 1000)
    assert select(lambda train: heads, [(validation, validation)], metric("accuracy"))[0].at_edge == edge


def test_lower_is_better_for_error_metrics() -> None:
    heads = [Fixed(np.array([v], dtype=np.float32), {"number": v}) for v in (3.0, 1.0, 2.0)]
    chosen = select(lambda train: heads, [(rows([0], [1]), rows([0], [1]))], metric("mse"))
    assert chosen[0].setting == {"number": 1.0}


def test_a_draw_without_a_score_is_ignored() -> None:
    heads = [Fixed(np.array([[0, 1], [0, 0]], dtype=np.float32), {"number": 0})]
    blind, seeing = rows([0, 1], [1, 1]), rows([0, 1], [1, 0])
    assert select(lambda train: heads, [(blind, blind), (seeing, seeing)], metric("auroc_macro"))[0].validation == 1
    with pytest.raises(Undefined, match="validation labels"):
        select(lambda train: heads, [(blind, blind)], metric("auroc_macro"))


def test_no_function_of_selection_can_be_given_the_test_split() -> None:
    for function in (select, few_labels, fits):
        assert not any("test" in name for name in inspect.signature(function).parameters)


@pytest.mark.parametrize("name", PROBED)
def test_every_probe_of_a_protocol_learns_and_permuted_labels_give_chance(
    name: str, digits: tuple[Features, Features, Features]
) -> None:
    train, validation, test = digits
    rng = np.random.default_rng(3)
    shuffled = [Features(f.pooled, rng.permutation(f.label)) for f in (train, validation)]
    for probe, fit in fits(protocol(name, 16), CLASSES).items():
        real = select(fit, [(train, validation)], metric("accuracy"))[0]
        accuracy = metric("accuracy")
        assert accuracy(real.head.predict(test), test.label) > 0.8, probe
        null = select(fit, [(shuffled[0], shuffled[1])], metric("accuracy"))[0]
        interval_of_null = interval(accuracy, [measure(accuracy, [null.head.predict(test)], test.label)])
        assert interval_of_null.low is not None
        assert interval_of_null.high is not None
        # chance for ten classes; the interval covers one probe only, hence the margin
        assert interval_of_null.low - 0.02 < 0.1 < interval_of_null.high + 0.02, probe


def test_stratified_subsets() -> None:
    rng = np.random.default_rng(0)
    label = rng.permutation(np.repeat([0, 1, 2, 3], [500, 300, 150, 5]))
    subsets = label_subsets(label, CLASSES, fraction=0.1, draws=3, seed=1)
    assert [np.bincount(label[part]).tolist() for part in subsets] == [[50, 30, 15, 1]] * 3  # 0.5 of a row is one
    assert all((np.diff(part) > 0).all() for part in subsets)
    assert len({tuple(part) for part in subsets}) == 3
    repeated = label_subsets(label, CLASSES, fraction=0.1, draws=2, seed=1)
    # draw i does not depend on the others
    assert all(np.array_equal(a, b) for a, b in zip(subsets, repeated, strict=False))
    other = label_subsets(label, CLASSES, fraction=0.1, seed=2)
    assert not np.array_equal(subsets[0], other[0])
    few = label_subsets(label, CLASSES, per_class=8, seed=1)[0]
    assert np.bincount(label[few]).tolist() == [8, 8, 8, 5]


def test_subsets_of_other_kinds() -> None:
    label = np.zeros((200, 3), dtype=np.uint8)
    label[:100, 0] = 1
    label[7, 1] = 1
    task = Task("multilabel", "auroc_macro", ("a", "b", "never"))
    for part in label_subsets(label, task, fraction=0.05, draws=5):
        assert 10 <= len(part) <= 12
        assert label[part].any(axis=0).tolist() == [True, True, False]
    assert len(label_subsets(np.arange(50.0), Task("regression", "mse"), fraction=0.01)[0]) == 2
    with pytest.raises(ValueError, match="per class"):
        label_subsets(label, task, per_class=3)
    with pytest.raises(ValueError, match="at most 1"):
        label_subsets(label, task, fraction=10)


def test_validation_shrinks_with_train(digits: tuple[Features, Features, Features]) -> None:
    train, validation, _ = digits
    assert few_labels(train, validation, CLASSES) == [(train, validation)]
    draws = few_labels(train, validation, CLASSES, fraction=0.1, draws=2)
    assert [len(part) for part, _ in draws] == pytest.approx([90, 90], abs=6)
    assert [len(part) for _, part in draws] == pytest.approx([30, 30], abs=6)
    few = few_labels(train, validation, CLASSES, per_class=5, draws=1)[0]
    assert np.bincount(few[0].label).tolist() == [5] * 10
    assert len(few[1]) == pytest.approx(50 / 900 * 300, abs=6)


def test_more_labels_score_better(digits: tuple[Features, Features, Features]) -> None:
    train, validation, test = digits
    score = []
    for fraction in (0.02, 0.2, 1.0):
        draws = few_labels(train, validation, CLASSES, fraction=fraction)
        chosen = select(fits(protocol("v1", 64), CLASSES)["ridge"], draws, metric("accuracy"))
        assert len({str(c.setting) for c in chosen}) == 1
        score.append(measure(metric("accuracy"), [c.head.predict(test) for c in chosen], test.label).value)
    assert score == sorted(score)
