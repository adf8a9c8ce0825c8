"""One synthetic set per modality, drawn when it is loaded: the same parts in every class, arranged differently.

An example has 16 places, and at each one of eight parts. Every class is an arrangement of the parts, each part twice;
an example is its class's arrangement with `SCRAMBLED` of the places drawn anew. So all classes have the same parts, and
differ only in their arrangement. A part looks different every time (with either sign, in noise, as any of several
words), so that a linear map of the raw input cannot tell the classes apart, and the pooled features of an encoder with
random weights, which hold the parts much better than their places, can do so only badly.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.domain import Data, Domain, Labelled, Split, Task
from dabsmix.spec import Grid, Spec, Table, Tokens

TRAIN, VALIDATION, TEST = 3000, 500, 1000
CLASSES, PLACES, PARTS = 6, 16, 8
SCRAMBLED = 0.6
NOISE = 0.3
WORDS = 4

PartIds = NDArray[np.int64]
"""The part at each place: ``(n, PLACES)``."""


def arrange(rng: np.random.Generator) -> tuple[NDArray[np.int64], PartIds, PartIds]:
    """Labels ``(n,)``, the examples' parts, and the classes' arrangements ``(CLASSES, PLACES)``."""
    n = TRAIN + VALIDATION + TEST
    label = rng.integers(0, CLASSES, n)
    arrangements = np.stack([rng.permutation(np.arange(PLACES) % PARTS) for _ in range(CLASSES)])
    anew = rng.random((n, PLACES)) < SCRAMBLED
    return label, np.where(anew, rng.integers(0, PARTS, (n, PLACES)), arrangements[label]), arrangements


def _patches(rng: np.random.Generator, parts: PartIds, dim: int) -> NDArray[np.float32]:
    """Each part a random direction with either sign, in noise: ``(n, PLACES, dim)``."""
    directions = rng.standard_normal((PARTS, dim))
    sign = rng.choice([-1.0, 1.0], (*parts.shape, 1))
    noise = rng.standard_normal((*parts.shape, dim), dtype=np.float32)
    patches: NDArray[np.float32] = (directions[parts] * sign + NOISE * noise).astype(np.float32)
    return patches


def _grid(patches: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Sixteen square patches as a picture of four by four: ``(n, 1, 4 * side, 4 * side)``."""
    tiles = patches.reshape(-1, 4, 4, side, side).transpose(0, 1, 3, 2, 4)
    return np.ascontiguousarray(tiles.reshape(-1, 1, 4 * side, 4 * side))


def _image(rng: np.random.Generator, parts: PartIds) -> tuple[Spec, NDArray[Any]]:
    return Grid(1, (16, 16), (4, 4)), _grid(_patches(rng, parts, 16), 4)


def _spectrogram(rng: np.random.Generator, parts: PartIds) -> tuple[Spec, NDArray[Any]]:
    """Two partials per part, about the mean in decibels; each patch holds eight bands of eight frames."""
    bands = _patches(rng, parts, 8)[..., None]
    fading = np.cos(np.pi * (np.arange(8) - 3.5) / 10)  # along the frames
    noise = NOISE * rng.standard_normal((*parts.shape, 8, 8), dtype=np.float32)
    return Grid(1, (32, 32), (8, 8)), _grid((bands * fading + noise).astype(np.float32), 8)


def _sensor(rng: np.random.Generator, parts: PartIds) -> tuple[Spec, NDArray[Any]]:
    """Three channels of 64 readings; each place is a gesture of four."""
    gestures = _patches(rng, parts, 12).reshape(-1, PLACES, 3, 4)
    return Grid(3, (64,), (4,)), np.ascontiguousarray(gestures.transpose(0, 2, 1, 3).reshape(-1, 3, 64))


def _tabular(rng: np.random.Generator, parts: PartIds) -> tuple[Spec, NDArray[Any]]:
    """Twelve numbers whose size is the part and four categories, each part several of them; a cell in 20 is empty."""
    size = (parts + 0.5) * (2.0 / PARTS)
    numbers = size * rng.choice([-1.0, 1.0], parts.shape) + 0.05 * rng.standard_normal(parts.shape)
    table = np.where(np.arange(PLACES) < 12, numbers, parts + PARTS * rng.integers(0, WORDS, parts.shape))
    table[rng.random(parts.shape) < 0.05] = np.nan
    return Table(PLACES, (0,) * 12 + (PARTS * WORDS,) * 4), table.astype(np.float32)


def _text(rng: np.random.Generator, parts: PartIds) -> tuple[Spec, NDArray[Any]]:
    """Sentences of 16 words, each part any of four, and up to four words of no meaning after them; 0 pads."""
    words = 1 + parts + PARTS * rng.integers(0, WORDS, parts.shape)
    vocab = 1 + PARTS * WORDS + 4
    tail = rng.integers(vocab - 4, vocab, (len(parts), 4))
    tail[np.arange(4) >= rng.integers(0, 5, (len(parts), 1))] = 0
    return Tokens(PLACES + 4, vocab, pad=0), np.concatenate([words, tail], axis=1)


Draw = Callable[[np.random.Generator, PartIds], tuple[Spec, NDArray[Any]]]


def _load(seed: int, draw: Draw, folder: Path, protocol: str) -> Data:
    rng = np.random.default_rng(seed)
    label, parts, _ = arrange(rng)
    spec, examples = draw(rng, parts)
    train, validation, test = (
        Split((examples,), rows, label[rows]) for rows in np.split(np.arange(len(label)), [TRAIN, TRAIN + VALIDATION])
    )
    return Data(
        specs=(spec,),
        pretrain=train,
        labelled=Labelled(
            Task("classes", "accuracy", tuple(f"arrangement {i}" for i in range(CLASSES))), train, validation, test
        ),
        fingerprint=hashlib.sha256(examples.tobytes() + label.tobytes()).hexdigest(),
        notes=(
            "Synthetic: drawn by a program, for tests and first trials; no score on it says anything of real data.",
        ),
    )


DOMAINS = tuple(
    Domain(
        name=f"synthetic_{modality}",
        modality=modality,
        title=f"Synthetic {title}: the same parts in every class, arranged differently (drawn when loaded)",
        licence="MIT",
        folder="",
        load=partial(_load, seed, draw),
        sizes=f"{TRAIN:,} / {TEST:,}",
        batch_size=128,
    )
    for seed, (modality, title, draw) in enumerate(
        (
            ("image", "images", _image),
            ("spectrogram", "spectrograms", _spectrogram),
            ("sensor", "sensor windows", _sensor),
            ("tabular", "table, mixed columns", _tabular),
            ("text", "sentences", _text),
        )
    )
)
