"""ShED, ContPred, Contdmix and MAE against plain twins in float64."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from twins import (
    KINDS,
    B,
    assert_loss,
    batch_of,
    build,
    corrupted_places,
    cosine,
    cross_entropy,
    draw,
    npair_loss,
    patched,
    projections,
)

from dabsmix.algorithms.shed import shuffle
from dabsmix.model.encoder import Embedded
from dabsmix.pretext.tokens import corrupted
from dabsmix.registry import algorithm_dabs
from dabsmix.spec import Grid, Table
from dabsmix.testing import SPECS


@pytest.mark.parametrize("kind", [*KINDS, "text", "sensor, padded"])
@pytest.mark.parametrize("rate", [0.15, 0.5, 1.0])
def test_shed(kind: str, rate: float) -> None:
    algorithm: Any = build("shed", kind, rate=rate)
    batch = batch_of(kind)
    tokens, mask = algorithm.encoder.embed(batch.views[0])
    length = tokens.shape[1]
    chosen = corrupted_places(np.random.default_rng(batch.seed), mask, length, rate, 2)
    costs, hits = [], []
    for i in range(B):
        moved = tokens[i].clone()
        for k, p in enumerate(chosen[i]):
            moved[p] = tokens[i, chosen[i][k - 1]]  # the first gets the last one's token
        hidden = algorithm.encoder.encode(Embedded(moved[None], None if mask is None else mask[i : i + 1]))[0]
        for p in range(length):
            if mask is None or mask[i, p]:
                logits = algorithm.classifier(hidden[1 + p]).tolist()
                costs.append(cross_entropy(logits, int(p in chosen[i])))
                hits.append((logits[1] > logits[0]) == (p in chosen[i]))
    loss = algorithm(batch)
    assert float(loss.value) == pytest.approx(sum(costs) / len(costs), rel=1e-5)
    assert float(loss.metrics["accuracy"]) == pytest.approx(sum(hits) / len(hits))


@pytest.mark.parametrize("length", [2, 3, 6, 7, 40])
def test_shed_moves_exactly_its_share_of_the_tokens(length: int) -> None:
    tokens = torch.arange(B * length).view(B, length, 1).double()
    real = torch.arange(length) < torch.randint(1, length + 1, (B, 1), generator=torch.Generator().manual_seed(0))
    count = corrupted(real, 0.15, least=2)
    order = torch.rand(B, length).masked_fill(~real, torch.inf)
    out, moved = shuffle(tokens, count, order)
    assert torch.equal(out.sort(dim=1).values, tokens)  # the multiset of tokens is unchanged
    assert torch.equal(moved.sum(dim=1), count)
    assert torch.equal(moved, (out != tokens)[..., 0])
    assert not (moved & ~real).any()


def contpred_loss(
    predictions: list[Tensor],
    targets: list[Tensor],
    scored: list[list[int]],
    real: list[list[int]],
    *,
    temperature: float,
    normalize: bool,
    reverse: bool = False,
) -> float:
    def score(a: Tensor, b: Tensor) -> float:
        return (cosine(a, b) if normalize else float(a @ b)) / temperature

    costs = []
    for i in range(B):
        for p in scored[i]:
            pairs = [(q, p) if reverse else (p, q) for q in real[i]]
            logits = [score(predictions[i][a], targets[i][b]) for a, b in pairs]
            costs.append(cross_entropy([x - max(logits) for x in logits], real[i].index(p)))
    return sum(costs) / len(costs)


def contpred_accuracy(
    predictions: list[Tensor],
    targets: list[Tensor],
    masked: list[list[int]],
    candidates: list[list[tuple[int, int]]],
    *,
    normalize: bool,
) -> float:
    """Only masked positions count: finding an unmasked token is nearly copying it."""
    hits = []
    for i in range(B):
        for p in masked[i]:
            own = predictions[i][p]
            scores = {
                (j, q): cosine(own, targets[j][q]) if normalize else float(own @ targets[j][q])
                for j, q in candidates[i]
            }
            hits.append(max(scores, key=lambda place: scores[place]) == (i, p))
    return sum(hits) / len(hits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("score", ["all", "masked"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("direction", ["prediction", "target"])
def test_contpred(kind: str, score: str, normalize: bool, direction: str) -> None:
    algorithm: Any = build("contpred", kind, score=score, normalize=normalize, direction=direction, rate=0.3)
    batch = batch_of(kind)
    tokens, mask = algorithm.encoder.embed(batch.views[0])
    chosen = corrupted_places(np.random.default_rng(batch.seed), mask, tokens.shape[1], 0.3, 1)
    real = [[p for p in range(tokens.shape[1]) if mask is None or mask[i, p]] for i in range(B)]
    predictions = []
    for i in range(B):
        hidden = tokens[i].clone()
        hidden[chosen[i]] = 0
        out = algorithm.encoder.encode(Embedded(hidden[None], None if mask is None else mask[i : i + 1]))[0]
        predictions.append(algorithm.predictor(out[1:]))
    scored = real if score == "all" else chosen
    expected = contpred_loss(
        predictions, list(tokens), scored, real, temperature=0.07, normalize=normalize, reverse=direction == "target"
    )
    assert_loss(algorithm, batch, expected)
    within = [[(i, q) for q in real[i]] for i in range(B)]
    hits = contpred_accuracy(predictions, list(tokens), chosen, within, normalize=normalize)
    assert float(algorithm(batch).metrics["accuracy"]) == pytest.approx(hits)

    if direction == "prediction":  # the same candidates for all: the scored tokens of the batch
        algorithm.negatives = "batch"
        flat = [(i, p) for i in range(B) for p in scored[i]]
        every = [torch.stack([predictions[i][p] for i, p in flat])], [torch.stack([tokens[i, p] for i, p in flat])]
        one = list(range(len(flat)))
        joint = contpred_loss(every[0] * B, every[1] * B, [one] * B, [one] * B, temperature=0.07, normalize=normalize)
        assert_loss(algorithm, batch, joint)
        hits = contpred_accuracy(predictions, list(tokens), chosen, [flat] * B, normalize=normalize)
        assert float(algorithm(batch).metrics["accuracy"]) == pytest.approx(hits)


@pytest.mark.parametrize("kind", KINDS)
def test_contpred_of_the_dabs_protocol_has_the_references_reversed_softmax(kind: str) -> None:
    """Logits (B, predictions, targets) and labels (B, targets): torch takes the classes along dimension 1."""
    algorithm: Any = build("contpred", kind, attend_padding=True, **algorithm_dabs("contpred"))
    batch = batch_of(kind)
    tokens, mask = algorithm.encoder.embed(batch.views[0])
    assert mask is None
    length = tokens.shape[1]
    chosen = corrupted_places(np.random.default_rng(batch.seed), None, length, 0.15, 1)
    masked = tokens.clone()
    for i in range(B):
        masked[i, chosen[i]] = 0
    predictions = algorithm.predictor(algorithm.encoder.encode(Embedded(masked, None)))[:, 1:]
    logits = predictions @ tokens.mT / 0.07
    reference = F.cross_entropy(logits, torch.arange(length).expand(B, -1))
    assert_loss(algorithm, batch, float(reference))
    documented = F.cross_entropy(logits.flatten(0, 1), torch.arange(length).repeat(B))
    assert abs(float(documented) - float(reference)) > 1e-4
    assert_loss(build("contpred", kind, attend_padding=True), batch, float(documented))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("score", "normalize"), [("all", False), ("masked", True)])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_contdmix(kind: str, score: str, normalize: bool, beta: float) -> None:
    algorithm: Any = build("contdmix", kind, score=score, normalize=normalize, beta=beta)
    batch = batch_of(kind)
    tokens, mask = algorithm.encoder.embed(batch.views[0])
    length = tokens.shape[1]
    rng, order, weight = draw(batch.seed)
    mixed, lam = patched(tokens, mask, order, weight, rng.random((B, length), dtype=np.float32))
    chosen = corrupted_places(rng, mask, length, 0.15, 1)
    real = [[p for p in range(length) if mask is None or mask[i, p]] for i in range(B)]
    zeroed = [m.clone() for m in mixed]
    predictions = []
    for i in range(B):
        zeroed[i][chosen[i]] = 0
        out = algorithm.encoder.encode(Embedded(zeroed[i][None], None if mask is None else mask[i : i + 1]))[0]
        predictions.append(algorithm.predictor(out[1:]))
    anchors, keys = projections(algorithm, algorithm.head, [zeroed, list(tokens)], mask)
    dmix = npair_loss(anchors, keys, order, lam, 0.2)
    scored = real if score == "all" else chosen
    contpred = contpred_loss(predictions, mixed, scored, real, temperature=0.07, normalize=normalize)
    assert_loss(algorithm, batch, dmix + beta * contpred)
    within = [[(i, q) for q in real[i]] for i in range(B)]
    hits = contpred_accuracy(predictions, mixed, chosen, within, normalize=normalize)
    assert float(algorithm(batch).metrics["accuracy_contpred"]) == pytest.approx(hits)


TARGETS: list[tuple[str, dict[str, Any]]] = [
    ("contpred", {}),
    ("contpred", {"negatives": "batch"}),
    ("contpred", {"negatives": "batch", "score": "masked", "normalize": True}),
    ("contdmix", {"temperature": 1e12}),
]


@pytest.mark.parametrize(("name", "hyper"), TARGETS)
@pytest.mark.parametrize("detach", [True, False])
def test_gradient_stops_at_the_targets_where_it_should(name: str, hyper: dict[str, Any], detach: bool) -> None:
    """With every token masked, gradients reach the embedder only through the targets, or not at all.

    In Contdmix they also reach it through the clean keys, unless the temperature is so high that d-mix has no
    gradient.
    """
    algorithm = build(name, "sensor", rate=1.0, detach_targets=detach, **hyper)
    algorithm(batch_of("sensor")).value.backward()
    reached = max(float(p.grad.abs().max()) for p in algorithm.encoder.embedders.parameters() if p.grad is not None)
    assert (reached < 1e-9) == detach


@pytest.mark.parametrize("detach", [True, False])
def test_contdmix_stops_at_the_partner_where_it_should(detach: bool) -> None:
    """The tokens of example 1 enter the loss of a batch of two as a partner, and as its own targets of ContPred."""
    algorithm: Any = build("contdmix", "sensor", detach_partner=detach, temperature=1e12, score="all")
    batch = batch_of("sensor")
    encoded: list[Tensor] = []
    algorithm.encoder.embedders[0].register_forward_hook(lambda module, args, out: encoded.append(out[0]))
    loss = algorithm(batch).value
    (grad,) = torch.autograd.grad(loss, encoded[0])
    rng, order, weight = draw(batch.seed)
    draws = rng.random((B, 6), dtype=np.float32)
    lent = torch.zeros(B, 6, dtype=torch.bool)  # what an example gives away
    _, lam = patched(encoded[0].detach(), None, order, weight, draws)
    own = torch.ones(B, 6, dtype=torch.bool)
    for i in range(B):
        for p in sorted(range(6), key=lambda p: draws[i, p])[: round((1 - lam[i]) * 6)]:
            lent[order[i], p], own[i, p] = True, False
    only_lent = lent & ~own  # its own sequence has the partner's token there
    assert only_lent.any()
    assert bool((grad[only_lent].abs() < 1e-9).all()) == detach


@pytest.mark.parametrize("kind", ["sensor", "sensor, padded", "image", "table", "text", "image+text"])
def test_mae(kind: str) -> None:
    algorithm: Any = build("mae", kind, rate=0.5)
    encoder, batch = algorithm.encoder, batch_of(kind)
    tokens, mask = encoder.embed(batch.views[0])
    chosen = corrupted_places(np.random.default_rng(batch.seed), mask, tokens.shape[1], 0.5, 1)
    losses, start = [], 0
    for spec, embedder, predictor, x in zip(
        SPECS[kind], encoder.embedders, algorithm.predictors, batch.views[0], strict=True
    ):
        costs = []
        for i in range(B):
            zeroed = tokens[i].clone()
            zeroed[chosen[i]] = 0
            hidden = encoder.encode(Embedded(zeroed[None], None if mask is None else mask[i : i + 1]))[0, 1:]
            for p in chosen[i]:
                q = p - start
                if not 0 <= q < spec.num_tokens:
                    continue
                if isinstance(spec, Grid):
                    pairs = zip(embedder.patches(x)[i, q].tolist(), predictor(hidden[p]).tolist(), strict=True)
                    costs.append(math.sqrt(sum((a - b) ** 2 for a, b in pairs if not math.isnan(a))))
                elif isinstance(spec, Table):
                    if x[i, q].isnan():
                        continue
                    if not spec.cardinalities[q]:
                        costs.append((float(x[i, q]) - float(predictor(hidden[p]))) ** 2)
                        continue
                    before = sum(spec.cardinalities[:q])
                    rows = embedder.category.weight[before : before + spec.cardinalities[q]]
                    costs.append(cross_entropy([float(row @ hidden[p]) for row in rows], int(x[i, q])))
                else:
                    logits = [float(row @ hidden[p]) for row in embedder.table.weight]
                    costs.append(cross_entropy(logits, int(x[i, q])))
        losses.append(sum(costs) / len(costs))
        start += spec.num_tokens
    assert float(algorithm(batch).value) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
