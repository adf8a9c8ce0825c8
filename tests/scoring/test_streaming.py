"""Features, heads and scores that lie in files: the same bits as in memory, and memory that does not grow with rows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peak import MEASURED, Peak
from transferring import QUICK

from dabsmix.data import cache
from dabsmix.data.domain import Split, Task
from dabsmix.scoring import collapse, evaluate, heads, influence, metrics
from dabsmix.scoring.collapse import frechet_distance
from dabsmix.scoring.features import each_row
from dabsmix.scoring.heads import Features, fit_knn, fit_ridge
from dabsmix.training import accelerate

WIDTH = 128
TASK = Task("classes", "auroc_macro", ("a", "b", "c"))


def drawn(n: int, seed: int) -> Features:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, WIDTH), dtype=np.float32)
    return Features({"mean": torch.from_numpy(x), "cls": torch.from_numpy(x**2)}, (x[:, :3] + x[:, 3:6]).argmax(axis=1))


def test_what_lies_in_files_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path))
    train, validation, test = drawn(400, 0), drawn(90, 1), drawn(200, 2)
    rules = replace(QUICK, neighbours=(5,), draws=3, within={})

    def scores() -> tuple[object, dict[str, np.ndarray]]:
        chosen = evaluate.choose(train, validation, TASK, rules, ("1", "0.2"))
        return evaluate.score(chosen, test, TASK, ("f1_weighted", "average_precision"))

    results, predictions = scores()
    monkeypatch.setattr(cache, "IN_MEMORY", 0)
    monkeypatch.setattr(heads, "NUMBERS", 50 * WIDTH)
    monkeypatch.setattr(metrics, "NUMBERS", 100)
    again, others = scores()
    assert results == again
    for key, array in predictions.items():
        np.testing.assert_array_equal(array, others[key])
    assert not list(tmp_path.iterdir())  # the files have no names


@pytest.mark.parametrize("kind", ["classes", "multilabel"])
def test_scores_and_influence_of_blocks_of_rows_are_those_of_the_whole(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    scores = rng.standard_normal((300, 9)).astype(np.float32)
    label = (scores + rng.standard_normal((300, 9))).argmax(axis=1)
    if kind == "multilabel":
        label = np.eye(9, dtype=np.uint8)[label]

    def values() -> list[np.ndarray]:
        named = map(metrics.metric, ("auroc_macro", "average_precision", "f1_macro", "f1_weighted"))
        return [np.array([scale(scores, label), *influence.influence(scale, scores, label)]) for scale in named]

    whole, distance = values(), frechet_distance(scores[:150], scores[150:])
    monkeypatch.setattr(metrics, "NUMBERS", 64)
    monkeypatch.setattr(influence, "NUMBERS", 64)
    monkeypatch.setattr(collapse, "NUMBERS", 64)
    for one, other in zip(whole, values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)
    assert distance == pytest.approx(frechet_distance(scores[:150], scores[150:]), rel=1e-12)


@MEASURED
def test_memory_does_not_grow_with_the_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path))
    for module, name, size in (
        (cache, "IN_MEMORY", 1 << 18),
        (heads, "NUMBERS", 1 << 16),
        (heads, "KNN_CHUNK", 1 << 18),
        (heads, "MOMENT_ROWS", 512),
        (metrics, "NUMBERS", 1 << 14),
        (collapse, "NUMBERS", 1 << 16),
    ):
        monkeypatch.setattr(module, name, size)
    torch.manual_seed(0)
    network, rng = torch.nn.Linear(4, WIDTH), np.random.default_rng(0)

    def scored(n: int) -> None:
        """What is done with the features of n training and n test rows, apart from solving by steps."""
        parts = []
        for _ in range(2):
            x = rng.standard_normal((n, 4), dtype=np.float32)
            split = Split((x,), np.arange(n))
            mean = each_row(network, lambda x: network(x[0]), (WIDTH,), split, lambda x: x, accelerate())
            parts.append(Features({"mean": mean}, x[:, :3].argmax(axis=1)))
        train, test = parts
        (ridge,) = fit_ridge(train, TASK, (1e-2,))
        (knn,) = fit_knn(train.take(np.arange(0, n, 2)), TASK, (5,))
        few = Features({"mean": test.pooled["mean"][:100]}, test.label[:100])
        evaluate.result("ridge", "1", [ridge.predict(test)], test, TASK, {}, ("f1_macro", "accuracy"))
        knn.predict(few)
        frechet_distance(train.pooled["mean"].numpy(), test.pooled["mean"].numpy())

    scored(2_000)  # what is imported, compiled and cached once
    with Peak() as peak:
        scored(50_000)
    features = 50_000 * WIDTH * 4
    assert peak.growth < features / 2, f"{peak.growth / 2**20:.0f} MiB for {features / 2**20:.0f} MiB of features"
