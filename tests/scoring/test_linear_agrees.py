"""The linear probe of v2 against scikit-learn's LogisticRegressionCV with the same candidates and selection."""

import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.linear_model import LogisticRegressionCV

from dabsmix.data.domain import Split
from dabsmix.model.encoder import Transformer, make_encoder
from dabsmix.scoring.evaluate import choose
from dabsmix.scoring.features import all_poolings
from dabsmix.scoring.heads import Features, Scale
from dabsmix.scoring.logistic import LogisticGrid
from dabsmix.scoring.metrics import metric
from dabsmix.scoring.protocols import v2
from dabsmix.source import Source, load
from dabsmix.training import accelerate

ROWS = 200  # training rows; with this many the fifteen cases take a minute
POINTS = 0.003


def first(split: Split, rows: int) -> Split:
    return split.take(np.sort(np.random.default_rng(0).permutation(len(split))[:rows]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["digits", "uci_har", "covtype"])
def test_the_score_equals_scikit_learns(name: str, seed: int) -> None:
    folder = {"digits": "", "uci_har": "UCI HAR Dataset", "covtype": "covtype"}[name]
    if folder and not (Path(os.environ.get("DABSMIX_DATA", "no such folder")) / folder).exists():
        pytest.skip(f"{folder} is not under $DABSMIX_DATA")
    accelerator: Accelerator = accelerate()
    data = load(Source(name))
    labelled = data.require_labelled()
    torch.manual_seed(seed)
    encoder = make_encoder("tiny", data.specs)
    assert isinstance(encoder, Transformer)

    def read(split: Split) -> Features:
        assert split.label is not None
        pooled = all_poolings(encoder, split, data.normalise, accelerator=accelerator)
        return Features(pooled, split.label, split.group)

    train = read(first(labelled.train, ROWS))
    validation, test = read(first(labelled.validation, 1000)), read(first(labelled.test, 2000))
    task = replace(labelled.task, metric="accuracy")
    rules = replace(v2(), neighbours=(), penalties=())
    assert isinstance(rules.linear, LogisticGrid)
    (ours,) = choose(train, validation, task, rules, ("1",))["linear", "1"]

    n = len(train)
    fold = [(np.arange(n), np.arange(n, n + len(validation)))]  # fitted on train, chosen on validation
    label = np.concatenate([train.label, validation.label])
    accuracies: list[tuple[float, float]] = []  # accuracy on validation and on test of each pooling's choice
    for pooling in rules.poolings:
        scale = Scale.of(train.pooled[pooling])
        x, y, z = (scale(part.pooled[pooling]).double().numpy() for part in (train, validation, test))
        theirs = LogisticRegressionCV(
            Cs=rules.linear.strengths, cv=fold, refit=False, scoring="accuracy", tol=1e-6, max_iter=1000
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # if classes are separable the weights grow without limit
            theirs.fit(np.concatenate([x, y]), label)
        accuracies.append((float(theirs.score(y, validation.label)), float(theirs.score(z, test.label))))
    expected = max(accuracies, key=lambda scores: scores[0])  # among equal poolings the first is chosen, as in ours
    assert metric("accuracy")(ours.head.predict(test), test.label) == pytest.approx(expected[1], abs=POINTS)
