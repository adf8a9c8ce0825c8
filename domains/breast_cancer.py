"""Breast cancer Wisconsin, diagnostic (Wolberg et al. 1995, as scikit-learn embeds it): 569 tumours, 30 features."""

import hashlib
from pathlib import Path

import numpy as np

from dabsmix.data.domain import Data, Domain, Labelled, Split, Task
from dabsmix.data.splits import divide_in_three
from dabsmix.data.standardise import Standardise
from dabsmix.spec import Table


def _load(folder: Path, protocol: str) -> Data:
    from sklearn.datasets import load_breast_cancer

    cancer = load_breast_cancer()
    table = cancer.data.astype(np.float32)
    label = cancer.target.astype(np.int64)
    parts = divide_in_three(len(label), label=label, test=0.3, validation=1 / 7)
    splits = [Split((table,), rows, label[rows]) for rows in parts]
    return Data(
        specs=(Table(table.shape[1]),),
        pretrain=splits[0],
        labelled=Labelled(
            Task("classes", "accuracy", tuple(str(name) for name in cancer.target_names)),
            splits[0],
            splits[1],
            splits[2],
        ),
        fingerprint=hashlib.sha256(table.tobytes() + label.tobytes()).hexdigest(),
        normalise=Standardise.of(table, parts[0]),
        notes=("The splits are ours (60/10/30 %, by class).",),
    )


DOMAINS = (
    Domain(
        name="breast_cancer",
        modality="tabular",
        title="Breast cancer Wisconsin, diagnostic (Wolberg et al. 1995; embedded in scikit-learn)",
        licence="CC BY 4.0",
        folder="",
        load=_load,
        sizes="341 / 171",
        batch_size=64,
    ),
)
