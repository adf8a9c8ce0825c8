"""Whether features have collapsed: their spread and effective rank, and the Fréchet distance of two sets of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from dabsmix.data.domain import Data
from dabsmix.model.encoder import Encoder
from dabsmix.scoring.features import features

__all__ = ["collapsed", "feature_std", "frechet_distance", "health", "rankme"]

NUMBERS = 1 << 22  # of features that are in memory in float64 at a time
HEALTH_ROWS = 512  # examples whose features are watched for collapse
# Features have collapsed where either measure is below this share of what features that fill the sphere have, and well
# below what it was at the start: positions drawn from N(0, 1) keep even random features in a narrow cone. The rank is
# not enough, for a constant with a little noise has nearly 2; nor is the spread, where most directions are dead.
COLLAPSED = {"feature_std": 0.05, "effective_rank": 0.02}
COLLAPSED_SINCE_START = 0.75


def frechet_distance(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Fréchet distance between Gaussians fitted to two sets of L2-normalised embeddings ``(n, D)`` and ``(m, D)``.

    ``|μ1 - μ2|² + tr(S1 + S2 - 2 (S1 S2)^½)`` (Dowson and Landau 1982); between train and test embeddings it is
    i-Mix's measure of the generalisation gap (Lee et al. 2021, appendix C.3).

    Raises:
        ValueError: either set has fewer than two rows.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"Fréchet distance needs two rows on each side, got {len(first)} and {len(second)}")
    (mean1, cov1), (mean2, cov2) = map(_gaussian, (first, second))
    # tr (S1 S2)^½ = tr (S1^½ S2 S1^½)^½, whose eigenvalues are real and, up to rounding, not negative
    values, vectors = np.linalg.eigh(cov1)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov2 @ root).clip(0)).sum()
    distance = ((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * cross
    return float(max(distance, 0.0))


def _gaussian(features: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and covariance of L2-normalised embeddings, about `NUMBERS` numbers at a time."""
    n, width = features.shape
    rows = max(1, NUMBERS // width)
    parts = [features[start : start + rows] for start in range(0, n, rows)]
    mean = sum(_normalised(part).sum(axis=0) for part in parts) / n
    covariance = np.zeros((width, width))
    for part in parts:
        centred = _normalised(part) - mean
        covariance += centred.T @ centred
    return mean, covariance * (1 / (n - 1))


def rankme(features: NDArray[Any]) -> float:
    """Effective rank of features ``(n, D)``, between 1 and min(n, D): RankMe (Garrido et al. 2023, equation 1).

    The exponential of the entropy of the singular values, scaled to sum to one.
    """
    singular = np.linalg.svd(features.astype(float), compute_uv=False)
    share = singular / singular.sum() + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


def feature_std(features: NDArray[Any]) -> float:
    """Mean over dimensions of the standard deviation of L2-normalised features ``(n, D)``.

    0 where all features have collapsed to one direction, about ``1/sqrt(D)`` where they fill the sphere (Chen and He
    2021, figure 2).
    """
    return float(_normalised(features).std(axis=0).mean())


def _normalised(features: NDArray[Any]) -> NDArray[np.float64]:
    x = np.asarray(features, dtype=np.float64)
    unit: NDArray[np.float64] = x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)
    return unit


def health(encoder: Encoder, data: Data, accelerator: Accelerator) -> dict[str, float]:
    """Standard deviation and effective rank of the features of one fixed set of examples: collapse shows here.

    Both are NaN where a feature is not finite.
    """
    spread = torch.linspace(0, len(data.pretrain) - 1, min(HEALTH_ROWS, len(data.pretrain))).long().numpy()
    pooled = features(encoder, data.pretrain.take(spread), data.normalise, accelerator=accelerator, autocast=True)
    if not pooled.mean.isfinite().all():
        return {"feature_std": math.nan, "effective_rank": math.nan}
    return {"feature_std": feature_std(pooled.mean.numpy()), "effective_rank": rankme(pooled.mean.numpy())}


def collapsed(now: Mapping[str, float], start: Mapping[str, float], width: int) -> bool:
    """Whether features of this width may have collapsed, from what `health` said at the start and says now."""
    full = {"feature_std": width**-0.5, "effective_rank": min(width, HEALTH_ROWS)}
    return any(
        now[name] < min(share * full[name], COLLAPSED_SINCE_START * start[name]) for name, share in COLLAPSED.items()
    )
