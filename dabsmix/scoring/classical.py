"""What a practitioner would try before any pretraining: random patches, spectra, statistics, words, boosted trees.

Each yardstick reads the inputs that it is made for, and leaves the others of an example out. Nothing here is trained
but its last step, which is chosen on validation like every probe.
"""

# B examples, P positions of a patch, d numbers of a patch, K filters, D features

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dabsmix.data.domain import Data, Task
from dabsmix.scoring.heads import Features, Setting, collected, fit_ridge
from dabsmix.scoring.protocols import Fit, TransferProtocol, fits
from dabsmix.spec import Grid, Spec, Table, Tokens

__all__ = ["Classical", "EstimatorHead", "Patches", "classical", "fit_boosting", "fit_words", "random_patches"]

ReadRows = Callable[[tuple[Tensor, ...]], Tensor]

PATCHES_WIDTH = 2048  # numbers of an example in random patches: more gain little, and ridge costs their cube
PATCHES_ROWS = 20_000  # training examples at most: 6,000 images of 32×32 are read in half a minute on one core
ROWS = 100_000  # training examples at most for all others
PREDICTED = 16_384  # rows that an estimator predicts at a time
PENALTIES = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass(frozen=True)
class Classical:
    """One yardstick.

    Attributes:
        name: what records and tables call it.
        read: normalised inputs of B examples to ``(B, D)``.
        probes: what is fitted on all labels; the best on validation counts.
        few: what is fitted on few labels.
        rows: training examples that are read at most, a random subset fixed by the seed.
    """

    name: str
    read: ReadRows
    probes: Mapping[str, Fit]
    few: Mapping[str, Fit]
    rows: int = ROWS


def classical(data: Data, rules: TransferProtocol, width: int) -> list[Classical]:
    """The yardsticks for these data.

    - ``patches``, for grids: random whitened patches with 2,048 numbers (Coates and Ng 2012) and ridge regression.
    - ``patches_narrow``: the same with about as many numbers as the encoder gives.
    - ``statistics``, for sensors and for the bands of a spectrogram: mean, standard deviation, least, greatest and mean
      absolute step over time. A grey image is a grid like a spectrogram's and is read alike, by rows.
    - ``spectrum``, for sensors: the log power spectrum of each channel.
    - ``words``, for texts: logistic regression on the tf-idf of words and pairs of words.
    - ``words_narrow``: its first principal directions (LSA), about as many as the encoder gives numbers.
    - ``boosting``, for tables: histogram gradient boosting on whole rows.

    Args:
        data: with labels, not one per token.
        rules: the protocol, whose linear probe is tried beside ridge regression.
        width: numbers that the encoder gives for an example.
    """
    labelled = data.require_labelled()
    task, train = labelled.task, labelled.train
    grids, columns, texts = ([i for i, s in enumerate(data.specs) if isinstance(s, k)] for k in (Grid, Table, Tokens))
    ridge: dict[str, Fit] = {"ridge": partial(fit_ridge, task=task, penalties=PENALTIES)}
    either = {"linear": fits(rules, task)["linear"]} | ridge

    def sample(size: int) -> tuple[Tensor, ...]:
        order = np.random.default_rng(0).permutation(len(train))[:size]
        return data.normalise(train.batch(np.sort(order)))

    yardsticks = []
    if grids:
        examples = sample(2000)
        for name, numbers in (("patches", PATCHES_WIDTH), ("patches_narrow", width)):
            readers = {i: random_patches(_grid(data.specs[i]), examples[i], numbers // len(grids)) for i in grids}
            yardsticks.append(Classical(name, partial(_side_by_side, readers), ridge, ridge, PATCHES_ROWS))
    summaries = {i: _statistics for i in grids if _is_series(_grid(data.specs[i]))}
    if summaries:
        yardsticks.append(Classical("statistics", partial(_side_by_side, summaries), either, ridge))
    spectra = {i: _spectrum for i in grids if len(_grid(data.specs[i]).size) == 1}
    if spectra:
        yardsticks.append(Classical("spectrum", partial(_side_by_side, spectra), either, ridge))
    if texts:
        read = partial(_words, data.specs, texts)
        fixed: dict[str, Fit] = {"tfidf": partial(fit_words, task=task, strengths=(10.0,))}
        yardsticks.append(Classical("words", read, {"tfidf": partial(fit_words, task=task)}, fixed))
        yardsticks.append(Classical("words_narrow", _lsa(read(sample(PATCHES_ROWS)), width, read), ridge, ridge))
    if columns:
        cardinalities = [c for i in columns for c in _table(data.specs[i]).cardinalities]
        trees: dict[str, Fit] = {"boosting": partial(fit_boosting, task=task, cardinalities=cardinalities)}
        yardsticks.append(Classical("boosting", partial(_columns, columns), trees, trees))
    return yardsticks


def _side_by_side(readers: Mapping[int, Callable[[Tensor], Tensor]], inputs: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([read(inputs[i].float()) for i, read in readers.items()], dim=1)


def _grid(spec: Spec) -> Grid:
    assert isinstance(spec, Grid)
    return spec


def _table(spec: Spec) -> Table:
    assert isinstance(spec, Table)
    return spec


def _is_series(spec: Grid) -> bool:
    return len(spec.size) == 1 or (len(spec.size) == 2 and spec.channels == 1)


# --- grids

# By the number of axes: longest axis that is read (a longer one is averaged down), side of a patch, parts of each axis
# over which the responses are averaged.
LONGEST = (512, 32, 16)
SIDE = (8, 6, 4)
PARTS = (4, 2, 2)
THRESHOLD = 0.25  # of a response, in units of a whitened patch's length
POOL: tuple[Callable[..., Tensor], ...] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)


@dataclass(frozen=True)
class Patches:
    """Responses of random whitened patches, averaged over parts of the grid: a network of one layer, not trained.

    Each patch of the input has its own mean taken off and is divided by its standard deviation, is whitened, and is
    compared with K patches of the training part, whitened alike and of unit length: ``relu(±w·x - 0.25)``.

    Attributes:
        size: of the grid after averaging.
        side: of a patch, per axis.
        parts: per axis.
        floor: added to the variance of a patch, so that noise in flat ones is not blown up.
        filters, offset: ``(d, K)`` and ``(K,)``: whitening and comparison in one.
    """

    size: tuple[int, ...]
    side: tuple[int, ...]
    parts: int
    floor: float
    filters: Tensor
    offset: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """``(B, channels, *size)`` to ``(B, 2 K parts^axes)``."""
        axes = len(self.size)
        shape = [size - side + 1 for size, side in zip(self.size, self.side, strict=True)]
        pooled = []
        for chunk in torch.split(_averaged(x, self.size), max(1, (1 << 16) // math.prod(shape))):
            rows = _even(_unfolded(chunk, self.side), self.floor)  # (b, P, d)
            response = rows @ self.filters.to(x) - self.offset.to(x)
            both = torch.cat([F.relu(response - THRESHOLD), F.relu(-response - THRESHOLD)], dim=2)
            pooled.append(POOL[axes - 1](both.mT.reshape(len(both), -1, *shape), (self.parts,) * axes).flatten(1))
        return torch.cat(pooled)


def random_patches(spec: Grid, train: Tensor, width: int, seed: int = 0) -> Patches:
    """Filters drawn from training examples, as many as give about ``width`` numbers of an example.

    Args:
        spec: the grid.
        train: some examples ``(n, channels, *size)``, normalised.
        width: of the features; at least one filter is drawn.
        seed: of the draw.
    """
    axes = len(spec.size)
    size = tuple(min(length, LONGEST[axes - 1]) for length in spec.size)
    side = tuple(min(SIDE[axes - 1], length) for length in size)
    parts = min(PARTS[axes - 1], *(length - s + 1 for length, s in zip(size, side, strict=True)))
    number = max(1, width // (2 * parts**axes))
    draw = torch.Generator().manual_seed(seed)
    x = _averaged(train.float().cpu(), size)
    rows = []
    for chunk in torch.split(x[torch.randperm(len(x), generator=draw)], 100):
        patches = _unfolded(chunk, side)
        which = torch.randint(patches.shape[1], (len(chunk), max(1, 20_000 // len(x))), generator=draw)
        rows.append(patches.gather(1, which[..., None].expand(-1, -1, patches.shape[2])).flatten(0, 1))
    drawn = torch.cat(rows)
    floor = 0.1 * float(drawn.var(correction=0)) + 1e-8
    drawn = _even(drawn, floor).double()
    mean = drawn.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov(drawn.T, correction=0).reshape(drawn.shape[1], -1))
    whiten = vectors @ torch.diag((values + 0.1 * values.mean() + 1e-12).rsqrt()) @ vectors.T
    chosen = drawn[torch.randperm(len(drawn), generator=draw)[:number]]
    filters = whiten @ F.normalize((chosen - mean) @ whiten, dim=1).T
    return Patches(size, side, parts, floor, filters.float(), (mean @ filters).float())


def _averaged(x: Tensor, size: tuple[int, ...]) -> Tensor:
    x = _filled(x)
    return x if x.shape[2:] == size else POOL[len(size) - 1](x, size)


def _unfolded(x: Tensor, side: tuple[int, ...]) -> Tensor:
    """Every patch of the grid, ``(B, P, d)``."""
    axes = len(side)
    for axis, length in enumerate(side):
        x = x.unfold(2 + axis, length, 1)
    return x.movedim(1, 1 + axes).flatten(1 + axes).flatten(1, axes)


def _even(rows: Tensor, floor: float) -> Tensor:
    """Each patch with mean 0 and spread about 1."""
    var, mean = torch.var_mean(rows, dim=-1, keepdim=True, correction=0)
    return (rows - mean) / (var + floor).sqrt()


def _filled(x: Tensor) -> Tensor:
    """With missing readings replaced by 0, the mean of a channel."""
    return x.nan_to_num(nan=0.0)


def _statistics(x: Tensor) -> Tensor:
    """Five numbers over the readings of the last axis, ``(B, 5 · the other axes)``; 0 where there are none."""
    if x.isnan().any():
        step = x.diff(dim=-1).abs().nanmean(dim=-1)
        spread = (x - x.nanmean(dim=-1, keepdim=True)).square().nanmean(dim=-1).sqrt()
        low, high = x.nan_to_num(nan=torch.inf).amin(dim=-1), x.nan_to_num(nan=-torch.inf).amax(dim=-1)
        parts = [part.flatten(1) for part in (x.nanmean(dim=-1), spread, low, high, step)]
        return torch.cat(parts, dim=1).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    step = x.diff(dim=-1).abs().mean(dim=-1) if x.shape[-1] > 1 else torch.zeros_like(x[..., 0])
    statistics = (x.mean(dim=-1), x.std(dim=-1, correction=0), x.amin(dim=-1), x.amax(dim=-1), step)
    return torch.cat([part.flatten(1) for part in statistics], dim=1)


def _spectrum(x: Tensor) -> Tensor:
    """Log power in frequency bands of each channel of ``(B, channels, length)``, about 1,000 numbers at most."""
    power = torch.fft.rfft(_filled(x), norm="ortho").abs().square()
    bands = min(power.shape[-1], max(8, 1024 // x.shape[1]))
    return (F.adaptive_avg_pool1d(power, bands) + 1e-6).log().flatten(1)


# --- texts and tables, by scikit-learn


@dataclass(frozen=True)
class EstimatorHead:
    """A fitted scikit-learn estimator, and what makes its input of the features."""

    setting: Setting
    estimator: Any
    prepare: Callable[[NDArray[Any]], Any]
    task: Task

    def predict(self, features: Features) -> NDArray[np.float32]:
        """Log probabilities of classes, logits of several labels, or values."""
        raw = features.pooled["raw"].cpu().numpy()
        parts = (raw[start : start + PREDICTED] for start in range(0, len(raw), PREDICTED))
        return collected(map(self._scores, parts), len(raw))

    def _scores(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        x = self.prepare(rows)
        match self.task.kind:
            case "regression":
                return np.asarray(self.estimator.predict(x), dtype=np.float32)
            case "multilabel":
                share = np.stack([_positive(estimator, x) for estimator in self.estimator], axis=1).clip(1e-6, 1 - 1e-6)
                return np.asarray(np.log(share / (1 - share)), dtype=np.float32)
            case _:
                share = np.zeros((len(rows), self.task.num_outputs), dtype=np.float32)
                share[:, self.estimator.classes_] = self.estimator.predict_proba(x)
                return np.asarray(np.log(share.clip(1e-12)), dtype=np.float32)


def _positive(estimator: Any, x: Any) -> NDArray[np.float64]:
    """Share of class 1, for an estimator that may have seen one class alone."""
    share = np.asarray(estimator.predict_proba(x))
    columns = np.flatnonzero(estimator.classes_ == 1)
    return share[:, columns[0]] if len(columns) else np.zeros(len(share))


def _fitted(classifier: Any, regressor: Any, x: Any, label: NDArray[Any], task: Task) -> Any:
    """One fitted estimator, or one per label if there are several."""
    from sklearn.base import clone
    from sklearn.dummy import DummyClassifier

    if task.kind == "regression":
        return regressor.fit(x, label)

    def one(y: NDArray[Any]) -> Any:
        return (clone(classifier) if len(np.unique(y)) > 1 else DummyClassifier()).fit(x, y)

    return [one(label[:, j]) for j in range(label.shape[1])] if task.kind == "multilabel" else one(label)


def fit_words(train: Features, task: Task, strengths: Sequence[float] = (1.0, 10.0, 100.0)) -> list[EstimatorHead]:
    """Logistic regression, or ridge for a quantity, on the tf-idf of words and pairs of neighbouring words.

    Args:
        train: ``raw`` ids ``(n, L)``, negative for padding.
        task: not of one label per token.
        strengths: C of the logistic regression; ``1 / C`` is ridge's penalty.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge

    vectoriser = TfidfVectorizer(analyzer=_grams, sublinear_tf=True)
    x = vectoriser.fit_transform(train.pooled["raw"].cpu().numpy())
    heads = []
    for strength in strengths:
        pair = (LogisticRegression(C=strength, max_iter=300), Ridge(1 / strength))
        estimator = _fitted(*pair, x, train.label, task)
        heads.append(EstimatorHead({"C": strength}, estimator, vectoriser.transform, task))
    return heads


def _grams(ids: NDArray[np.int64]) -> Iterable[tuple[int, ...]]:
    words = ids[ids >= 0].tolist() or [-1]
    return [*((word,) for word in words), *pairwise(words)]


def _words(specs: tuple[Spec, ...], which: Sequence[int], inputs: tuple[Tensor, ...]) -> Tensor:
    """Ids of all texts of an example, one after the other, -1 for padding."""
    parts = []
    for i in which:
        spec = specs[i]
        assert isinstance(spec, Tokens)
        parts.append(inputs[i] if spec.pad is None else inputs[i].masked_fill(inputs[i] == spec.pad, -1))
    return torch.cat(parts, dim=1)


def _lsa(ids: Tensor, width: int, read: ReadRows) -> ReadRows:
    """Latent semantic analysis: tf-idf of words along its first singular vectors."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectoriser = TfidfVectorizer(analyzer=lambda row: row[row >= 0].tolist() or [-1], sublinear_tf=True)
    counted = vectoriser.fit_transform(ids.cpu().numpy())
    directions = TruncatedSVD(min(width, *(n - 1 for n in counted.shape)) or 1, random_state=0).fit(counted)

    def project(inputs: tuple[Tensor, ...]) -> Tensor:
        return torch.from_numpy(directions.transform(vectoriser.transform(read(inputs).cpu().numpy()))).float()

    return project


def fit_boosting(train: Features, task: Task, cardinalities: Sequence[int]) -> list[EstimatorHead]:
    """Histogram gradient boosting as scikit-learn has it by default, leaves as small as few rows need.

    Args:
        train: ``raw``: the columns, and then for each whether its cell is empty.
        task: not of one label per token.
        cardinalities: of each column, 0 for a numeric one; one of more than 255 categories is read as a number.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    options: dict[str, Any] = {
        "early_stopping": False,
        "random_state": 0,
        "min_samples_leaf": max(1, min(20, len(train) // 20)),
        "categorical_features": [0 < c <= 255 for c in cardinalities],
    }
    pair = (HistGradientBoostingClassifier(**options), HistGradientBoostingRegressor(**options))
    x = _cells(train.pooled["raw"].cpu().numpy())
    x[:, np.isnan(x).all(axis=0)] = 0  # scikit-learn cannot bin a column without values; a constant is never split
    estimator = _fitted(*pair, x, train.label, task)
    return [EstimatorHead({}, estimator, _cells, task)]


def _columns(which: Sequence[int], inputs: tuple[Tensor, ...]) -> Tensor:
    x = torch.cat([inputs[i].float() for i in which], dim=1)
    return torch.cat([x.nan_to_num(nan=0.0), x.isnan().float()], dim=1)


def _cells(columns: NDArray[Any]) -> NDArray[Any]:
    """Whole rows with NaN in the empty cells, of what `_columns` gives."""
    values, empty = np.split(columns, 2, axis=1)
    return np.where(empty > 0, np.nan, values)
