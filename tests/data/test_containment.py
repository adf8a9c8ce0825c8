"""Containment against plain loops over texts, and SST-2's validation, which must not lie inside train."""

import os
from pathlib import Path

import numpy as np
import pytest

from dabsmix.data.containment import NGRAM, SEVERAL, Sequences, inside, roots
from dabsmix.registry import domain


def drawn(seed: int, n: int, vocab: int = 3, longest: int = 12) -> tuple[list[list[int]], Sequences]:
    rng = np.random.default_rng(seed)
    texts = [rng.integers(1, vocab + 1, rng.integers(1, longest + 1)).tolist() for _ in range(n)]
    rows = np.zeros((n, longest + 2), np.int32)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text) + 2] = [101, *text, 102]
    return texts, Sequences.of(rows, pad=0)


def within(text: list[int], other: list[int]) -> bool:
    return any(other[i : i + len(text)] == text for i in range(len(other) - len(text) + 1))


@pytest.mark.parametrize("seed", range(5))
def test_roots_are_those_of_a_plain_loop(seed: int) -> None:
    texts, sequences = drawn(seed, 60)
    tops = [
        i
        for i, text in enumerate(texts)
        if not any(within(text, other) and (len(other) > len(text) or j < i) for j, other in enumerate(texts) if j != i)
    ]
    expected = []
    for i, text in enumerate(texts):
        around = [j for j in tops if within(text, texts[j])]
        expected.append(i if i in tops else around[0] if len(around) == 1 else SEVERAL)
    assert roots(sequences).tolist() == expected


@pytest.mark.parametrize("seed", range(3))
def test_inside_is_that_of_a_plain_loop(seed: int) -> None:
    texts, sequences = drawn(seed, 40, vocab=4, longest=20)
    others, longer = drawn(seed + 10, 40, vocab=4, longest=20)
    expected = []
    for text in texts:
        size = min(len(text), NGRAM)
        parts = [text[i : i + size] for i in range(len(text) - size + 1)]
        expected.append(any(within(part, other) for part in parts for other in others))
    assert inside(sequences, longer).tolist() == expected
    assert 0 < sum(expected) < len(texts)


def test_sst2_validation_does_not_lie_inside_train() -> None:
    root = Path(os.environ.get("DABSMIX_DATA", "no such folder"))
    card = domain("sst2")
    if not card.complete(root):
        pytest.skip("no real SST-2 under $DABSMIX_DATA")
    labelled = domain("sst2").load(root / card.folder, "v1").require_labelled()
    rows = {name: np.asarray(split.inputs[0][split.rows]) for name, split in labelled.splits.items()}
    known = {text for row in rows["train"] if (text := " ".join(map(str, row[row > 0][1:-1])))}
    haystack = "|" + "|".join(f" {text} " for text in known) + "|"
    chosen = np.random.default_rng(0).choice(len(rows["validation"]), 200, replace=False)
    for row in rows["validation"][chosen]:
        assert f" {' '.join(map(str, row[row > 0][1:-1]))} " not in haystack
    assert 0.08 < len(labelled.validation) / len(labelled.train) < 0.13
