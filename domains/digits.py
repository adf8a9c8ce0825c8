"""Digits (Alpaydin & Kaynak 1998, as scikit-learn embeds them): 1,797 handwritten digits of 8x8 pixels."""

import hashlib
from pathlib import Path

import numpy as np

from dabsmix.data.domain import Data, Domain, Labelled, Split, Task
from dabsmix.data.splits import divide_in_three
from dabsmix.spec import Grid


def _load(folder: Path, protocol: str) -> Data:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)  # counts of ink from 0 to 16
    label = digits.target.astype(np.int64)
    parts = divide_in_three(len(label), label=label, test=0.3, validation=1 / 7)
    splits = [Split((images,), rows, label[rows]) for rows in parts]
    return Data(
        specs=(Grid(1, (8, 8), (2, 2)),),
        pretrain=splits[0],
        labelled=Labelled(Task("classes", "accuracy", tuple("0123456789")), splits[0], splits[1], splits[2]),
        fingerprint=hashlib.sha256(images.tobytes() + label.tobytes()).hexdigest(),
        notes=("The splits are ours (60/10/30 %, by class); scikit-learn's copy does not say who wrote which digit.",),
    )


DOMAINS = (
    Domain(
        name="digits",
        modality="image",
        title="Optical recognition of handwritten digits, 8x8 (Alpaydin & Kaynak 1998; embedded in scikit-learn)",
        licence="CC BY 4.0",
        folder="",
        load=_load,
        sizes="1,079 / 539",
        batch_size=128,
    ),
)
