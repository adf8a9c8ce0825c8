"""Shared by the algorithms' plain twins: loops over examples in float64, draws read from the seed one by one."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dabsmix.model.encoder import Embedded, Encoder
from dabsmix.pretext.algorithm import Algorithm
from dabsmix.registry import algorithm_class, algorithms
from dabsmix.spec import Batch
from dabsmix.testing import SPECS, random_batch, small_encoder

B = 8
TRAINED = [name for name in algorithms() if algorithm_class(name).trains]
SMALL: Mapping[str, dict[str, Any]] = {"moco": {"queue": 21}, "imix_moco": {"queue": 21}}
KINDS = ["sensor", "table", "image+text"]


def build(name: str, kind: str, *, dropout: float = 0.0, attend_padding: bool = False, **hyper: Any) -> Algorithm:
    torch.manual_seed(0)
    encoder = small_encoder(SPECS[kind], dropout=dropout, attend_padding=attend_padding)
    return algorithm_class(name)(encoder, **{**SMALL.get(name, {}), **hyper}).double()


def batch_of(kind: str, *, label: bool = False, seed: int = 0, num_views: int = 1) -> Batch:
    batch = random_batch(SPECS[kind], B, label=label, seed=seed, num_views=num_views)
    views = tuple(tuple(x.double() if x.is_floating_point() else x for x in view) for view in batch.views)
    return batch._replace(views=views)


def feature(encoder: Encoder, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The mean-pooled feature ``(D,)`` of one example's tokens ``(L, D)``, encoded alone."""
    hidden = encoder.encode(Embedded(tokens[None], None if mask is None else mask[None]))[0]
    real = [hidden[0]] + [h for p, h in enumerate(hidden[1:]) if mask is None or mask[p]]
    return torch.stack(real).sum(dim=0) / len(real)


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float(a @ b) / math.sqrt(float(a @ a)) / math.sqrt(float(b @ b))


def cross_entropy(logits: list[float], label: int) -> float:
    return math.log(sum(math.exp(x) for x in logits)) - logits[label]


def draw(seed: int, alpha: float = 1.0) -> tuple[np.random.Generator, list[int], list[float]]:
    """The generator after its first draws: the partners and λ, rounded to float32."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(B).tolist()
    weight = rng.beta(alpha, alpha, size=B)
    return rng, order, [float(np.float32(max(x, 1 - x))) for x in weight]


def mixed_up(
    tokens: Tensor, mask: Tensor | None, order: list[int], weight: list[float]
) -> tuple[list[Tensor], list[float]]:
    """Mixup by loops: each example's mixed tokens and the weight of its own label."""
    out, lams = [], []
    for i in range(B):
        rows, total, length = [], 0.0, 0
        for p in range(tokens.shape[1]):
            mine = mask is None or bool(mask[i, p])
            both = mine and (mask is None or bool(mask[order[i], p]))
            w = weight[i] if both else 1.0
            rows.append(w * tokens[i, p] + (1 - w) * tokens[order[i], p])
            total, length = total + w * mine, length + mine
        out.append(torch.stack(rows))
        lams.append(total / length)
    return out, lams


def patched(
    tokens: Tensor, mask: Tensor | None, order: list[int], weight: list[float], draws: np.ndarray[Any, Any]
) -> tuple[list[Tensor], list[float]]:
    """Patch mixing by loops: each example's mixed tokens and the weight of its own label."""
    out, lams = [], []
    for i in range(B):
        mine = [p for p in range(tokens.shape[1]) if mask is None or mask[i, p]]
        both = [p for p in mine if mask is None or mask[order[i], p]]
        count = min(round(float(np.float32(1) - np.float32(weight[i])) * len(mine)), len(both))
        replaced = sorted(both, key=lambda p: draws[i, p])[:count]
        out.append(torch.stack([tokens[order[i] if p in replaced else i, p] for p in range(tokens.shape[1])]))
        lams.append(1 - count / len(mine))
    return out, lams


def projections(algorithm: Algorithm, head: Any, batches: list[list[Tensor]], mask: Tensor | None) -> list[Tensor]:
    """Heads of several batches of examples, whose batch norm sees all of them together."""
    features = [
        feature(algorithm.encoder, tokens, None if mask is None else mask[i])
        for examples in batches
        for i, tokens in enumerate(examples)
    ]
    return list(head(torch.stack(features)).split(B))


def assert_loss(algorithm: Algorithm, batch: Batch, expected: float) -> None:
    assert float(algorithm(batch).value.detach()) == pytest.approx(expected, rel=1e-6)


def npair_loss(anchors: Tensor, keys: Tensor, order: list[int], weight: list[float], temperature: float) -> float:
    total = 0.0
    for i in range(B):
        logits = [cosine(anchors[i], keys[j]) / temperature for j in range(B)]
        total += weight[i] * cross_entropy(logits, i) + (1 - weight[i]) * cross_entropy(logits, order[i])
    return total / B


def corrupted_places(
    rng: np.random.Generator, mask: Tensor | None, length: int, rate: float, least: int
) -> list[list[int]]:
    """The positions of each example that are corrupted, in the order drawn."""
    order = rng.random((B, length), dtype=np.float32)
    out = []
    for i in range(B):
        mine = [p for p in range(length) if mask is None or mask[i, p]]
        count = min(len(mine), max(least, math.ceil(rate * len(mine))))
        out.append(sorted(mine, key=lambda p: order[i, p])[:count])
    return out


def moved_by_gradient(algorithm: Algorithm, batch: Batch) -> None:
    """One step of gradient descent, and the after_step that follows it."""
    algorithm.zero_grad()
    algorithm(batch).value.backward()
    with torch.no_grad():
        for p in algorithm.parameters():
            if p.grad is not None:
                p.sub_(0.1 * p.grad)
    algorithm.after_step(0.5)
