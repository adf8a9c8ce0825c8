"""The linear probe of v2 with all labels against scikit-learn's, at the setting that validation chose."""

import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.linear_model import LogisticRegression

from dabsmix.data.domain import Split
from dabsmix.model.encoder import Transformer, make_encoder
from dabsmix.scoring.evaluate import choose
from dabsmix.scoring.features import all_poolings
from dabsmix.scoring.heads import Features, Scale
from dabsmix.scoring.metrics import metric
from dabsmix.scoring.protocols import v2
from dabsmix.source import Source, load
from dabsmix.training import accelerate

ROWS = 400  # of train: scikit-learn's solver takes minutes on more
POINTS = 0.003


def first(split: Split, rows: int) -> Split:
    return split.take(np.sort(np.random.default_rng(0).permutation(len(split))[:rows]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["digits", "uci_har", "covtype"])
def test_the_score_is_scikit_learns(name: str, seed: int) -> None:
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
    validation, test = read(labelled.validation), read(labelled.test)
    task = replace(labelled.task, metric="accuracy")
    rules = replace(v2(), neighbours=(), penalties=())
    (ours,) = choose(train, validation, task, rules, ("1",))["linear", "1"]

    pooling, strength = str(ours.setting["pooling"]), float(ours.setting["C"])
    scale = Scale.of(train.pooled[pooling])
    x, z = (scale(part.pooled[pooling]).double().numpy() for part in (train, test))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where classes are separable the weights grow for ever
        theirs = LogisticRegression(C=strength, tol=1e-6, max_iter=20000).fit(x, train.label)
    found = metric("accuracy")(ours.head.predict(test), test.label)
    assert found == pytest.approx(float(theirs.score(z, test.label)), abs=POINTS)
