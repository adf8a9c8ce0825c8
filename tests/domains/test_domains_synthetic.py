"""The synthetic sets are deterministic; only the arrangement of parts separates classes, and no linear map reads it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier

from dabsmix.data.domain import Data, Split
from dabsmix.domains import synthetic
from dabsmix.model.encoder import make_encoder
from dabsmix.registry import domain
from dabsmix.spec import Tokens

MODALITIES = ("image", "spectrogram", "sensor", "tabular", "text")
CHANCE = 1 / synthetic.CLASSES


def load(modality: str) -> Data:
    return domain(f"synthetic_{modality}").load(Path("nowhere"), "v1")


def stored(split: Split) -> NDArray[np.float64]:
    return np.asarray(np.nan_to_num(split.inputs[0][split.rows]), dtype=np.float64)


def accuracy(train: NDArray[np.float64], test: NDArray[np.float64], data: Data) -> float:
    mean, std = train.mean(axis=0), train.std(axis=0) + 1e-6
    labelled = data.require_labelled()
    model = RidgeClassifier(alpha=100.0).fit((train - mean) / std, labelled.train.label)
    return float(model.score((test - mean) / std, labelled.test.label))


def binding(x: NDArray[np.float64], modality: str) -> NDArray[np.float64]:
    """The arrangement: for every position, the part without its sign and without its synonyms."""
    n, parts = len(x), np.eye(synthetic.PARTS)
    if modality == "text":
        plain = parts[(x[:, : synthetic.PLACES].astype(int) - 1) % synthetic.PARTS]
    elif modality == "tabular":
        size = np.floor(np.abs(x[:, :12]) * synthetic.PARTS / 2).clip(0, synthetic.PARTS - 1)
        plain = parts[np.concatenate([size, x[:, 12:] % synthetic.PARTS], axis=1).astype(int)]
    else:
        if modality == "sensor":
            patches = x.reshape(n, 3, 16, 4).transpose(0, 2, 1, 3).reshape(n, 16, 12)
        else:
            side = x.shape[-1] // 4
            tiles = x.reshape(n, 4, side, 4, side).transpose(0, 1, 3, 2, 4).reshape(n, 16, side, side)
            patches = tiles.mean(axis=3) if modality == "spectrogram" else tiles.reshape(n, 16, -1)
        plain = np.einsum("npi,npj->npij", patches, patches)
    return np.asarray(plain.reshape(n, -1), dtype=np.float64)


def test_arrangements_have_the_same_parts_in_every_class() -> None:
    label, parts, arrangements = synthetic.arrange(np.random.default_rng(0))
    assert {tuple(np.sort(arrangement)) for arrangement in arrangements} == {tuple(np.sort(np.arange(16) % 8))}
    assert len({tuple(arrangement) for arrangement in arrangements}) == synthetic.CLASSES
    agreement = (parts == arrangements[label]).mean()
    by_chance = 1 / synthetic.PARTS
    assert agreement == pytest.approx(1 - synthetic.SCRAMBLED * (1 - by_chance), abs=0.01)


@pytest.mark.parametrize("modality", MODALITIES)
def test_sizes_names_and_determinism(modality: str) -> None:
    card, data = domain(f"synthetic_{modality}"), load(modality)
    assert card.modality == modality
    assert card.title.startswith("Synthetic")
    labelled = data.require_labelled()
    assert (len(labelled.train), len(labelled.validation), len(labelled.test)) == (3000, 500, 1000)
    reloaded = load(modality)
    assert reloaded.fingerprint == data.fingerprint
    np.testing.assert_array_equal(stored(reloaded.require_labelled().test), stored(labelled.test))
    assert len({load(modality).fingerprint for modality in MODALITIES}) == len(MODALITIES)


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_encoder_takes_it(modality: str) -> None:
    data = load(modality)
    encoder = make_encoder("tiny", data.specs)
    assert torch.isfinite(encoder(data.normalise(data.pretrain.batch(np.arange(4)))).mean).all()


@pytest.mark.parametrize("modality", MODALITIES)
def test_arrangement_separates_the_classes_and_a_linear_map_of_the_input_does_not(modality: str) -> None:
    data = load(modality)
    labelled = data.require_labelled()
    train, test = stored(labelled.train), stored(labelled.test)
    assert accuracy(binding(train, modality), binding(test, modality), data) > 0.85
    if isinstance(spec := data.specs[0], Tokens):
        # raw input of a sentence is its bag of words
        bags = [np.stack([np.bincount(row.astype(int), minlength=spec.vocab) for row in x]) for x in (train, test)]
        train, test = (bag.astype(np.float64) for bag in bags)
    assert accuracy(train.reshape(len(train), -1), test.reshape(len(test), -1), data) < CHANCE + 0.1


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_random_encoder_does_not_separate_the_classes(modality: str) -> None:
    data = load(modality)
    torch.manual_seed(0)
    encoder = make_encoder("tiny", data.specs).eval()
    labelled = data.require_labelled()
    with torch.no_grad():
        train, test = (
            torch.cat([encoder(split.batch(part)).mean for part in np.array_split(np.arange(len(split)), 8)])
            for split in (labelled.train, labelled.test)
        )
    assert accuracy(train.double().numpy(), test.double().numpy(), data) < 0.6
