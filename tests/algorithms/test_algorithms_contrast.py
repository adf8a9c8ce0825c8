"""The i-Mix family against plain twins in float64."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from twins import (
    KINDS,
    B,
    assert_loss,
    batch_of,
    build,
    cosine,
    cross_entropy,
    draw,
    feature,
    mixed_up,
    moved_by_gradient,
    npair_loss,
    patched,
    projections,
)

from dabsmix.errors import UserError
from dabsmix.model.encoder import Embedded
from dabsmix.pretext.algorithm import Algorithm
from dabsmix.registry import algorithm_dabs
from dabsmix.spec import Batch

# --- N-pair, e-mix, d-mix


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("alpha", "temperature"), [(1.0, 0.2), (2.0, 0.07), (0.3, 1.0)])
def test_emix(kind: str, alpha: float, temperature: float) -> None:
    algorithm, batch = build("emix", kind, alpha=alpha, temperature=temperature), batch_of(kind)
    tokens, mask = algorithm.encoder.embed(batch.views[0])
    _, order, weight = draw(batch.seed, alpha)
    mixed, lam = mixed_up(tokens, mask, order, weight)
    anchors, keys = projections(algorithm, algorithm.head, [mixed, list(tokens)], mask)
    assert_loss(algorithm, batch, npair_loss(anchors, keys, order, lam, temperature))


@pytest.mark.parametrize("kind", KINDS)
def test_emix_of_the_dabs_protocol_has_the_references_broadcast_loss(kind: str) -> None:
    """λ of shape (B, 1, 1) times costs of shape (B,) is (B, 1, B): every λ meets every cost."""
    algorithm = build("emix", kind, attend_padding=True, **algorithm_dabs("emix"))
    batch = batch_of(kind)
    tokens, mask = algorithm.encoder.embed(batch.views[0])
    assert mask is None  # the reference knows no padding
    _, order, weight = draw(batch.seed)
    mixed, _ = mixed_up(tokens, None, order, weight)
    anchors, keys = projections(algorithm, algorithm.head, [mixed, list(tokens)], None)
    logits = F.normalize(anchors, dim=1) @ F.normalize(keys, dim=1).T / 0.2
    coefficient = torch.tensor(weight, dtype=torch.float64).view(-1, 1, 1)
    costs = nn.CrossEntropyLoss(reduction="none")
    own, partner = costs(logits, torch.arange(B)), costs(logits, torch.tensor(order))
    reference = coefficient * own + (1 - coefficient) * partner
    assert reference.shape == (B, 1, B)
    assert_loss(algorithm, batch, float(reference.mean()))
    corrected = build("emix", kind, attend_padding=True)
    assert abs(float(corrected(batch).value) - float(reference.mean())) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("alpha", "temperature"), [(1.0, 0.2), (0.3, 0.07)])
@pytest.mark.parametrize("detach", [True, False])
def test_dmix(kind: str, alpha: float, temperature: float, detach: bool) -> None:
    algorithm = build("dmix", kind, alpha=alpha, temperature=temperature, detach_partner=detach)
    batch = batch_of(kind)
    tokens, mask = algorithm.encoder.embed(batch.views[0])
    rng, order, weight = draw(batch.seed, alpha)
    mixed, lam = patched(tokens, mask, order, weight, rng.random(tokens.shape[:2], dtype=np.float32))
    anchors, keys = projections(algorithm, algorithm.head, [mixed, list(tokens)], mask)
    assert_loss(algorithm, batch, npair_loss(anchors, keys, order, lam, temperature))


@pytest.mark.parametrize(("name", "detach"), [("emix", True), ("dmix", True), ("dmix", False)])
def test_gradient_stops_at_the_partner_where_it_should(name: str, detach: bool) -> None:
    algorithm: Any = build(name, "sensor", **({"detach_partner": detach} if name == "dmix" else {}))
    batch = batch_of("sensor")
    tokens, _ = algorithm.encoder.embed(batch.views[0])
    rng, order, weight = draw(batch.seed)
    partner = tokens[order].detach() if detach else tokens[order]
    lam = torch.tensor(weight, dtype=torch.float64)
    if name == "emix":
        mixed = lam[:, None, None] * tokens + (1 - lam[:, None, None]) * partner
    else:
        draws = torch.from_numpy(rng.random(tokens.shape[:2], dtype=np.float32))
        replaced = draws.argsort(dim=1).argsort(dim=1) < torch.round((1 - lam.float()) * 6)[:, None]
        mixed = torch.where(replaced[..., None], partner, tokens)
        lam = 1 - replaced.double().mean(dim=1)
    anchors, keys = (
        F.normalize(algorithm.head(algorithm.encoder.encode(Embedded(x, None)).mean(dim=1))) for x in (mixed, tokens)
    )
    logits = anchors @ keys.T / 0.2
    own, other = (F.cross_entropy(logits, torch.tensor(at), reduction="none") for at in (list(range(B)), order))
    weights = list(algorithm.encoder.embedders.parameters())
    expected = torch.autograd.grad((lam * own + (1 - lam) * other).mean(), weights)
    for mine, theirs in zip(torch.autograd.grad(algorithm(batch).value, weights), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head_norm", ["none", "first", "both"])
def test_npair_and_its_mixed_form(kind: str, head_norm: str) -> None:
    algorithm, batch = build("npair", kind, head_norm=head_norm, temperature=0.5), batch_of(kind)
    tokens, mask = algorithm.encoder.embed(batch.views[0])
    anchors, keys = projections(algorithm, algorithm.head, [list(tokens), list(tokens)], mask)
    assert_loss(algorithm, batch, npair_loss(anchors, keys, list(range(B)), [1.0] * B, 0.5))

    algorithm = build("imix_npair", kind, head_norm=head_norm, alpha=2.0)
    tokens, mask = algorithm.encoder.embed(batch.views[0])
    _, order, weight = draw(batch.seed, 2.0)
    mixed, lam = mixed_up(tokens, mask, order, weight)
    anchors, keys = projections(algorithm, algorithm.head, [mixed, list(tokens)], mask)
    assert_loss(algorithm, batch, npair_loss(anchors, keys, order, lam, 0.2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["supnpair", "imix_supnpair"])
def test_supervised_npair_and_its_mixed_form(kind: str, name: str) -> None:
    algorithm: Any = build(name, kind)
    batch = batch_of(kind)._replace(label=torch.tensor([0, 1, 0, 2, 1, 0, 3, 1]))
    tokens, mask = algorithm.encoder.embed(batch.views[0])
    order, lam, examples = list(range(B)), [1.0] * B, list(tokens)
    if name == "imix_supnpair":
        _, order, weight = draw(batch.seed)
        examples, lam = mixed_up(tokens, mask, order, weight)
    anchors, keys = projections(algorithm, algorithm.head, [examples, list(tokens)], mask)
    assert batch.label is not None
    classes, total = batch.label.tolist(), 0.0
    for i in range(B):
        logits = [cosine(anchors[i], keys[j]) / 0.2 for j in range(B)]
        for share, target in ((lam[i], classes[i]), (1 - lam[i], classes[order[i]])):
            same = [j for j in range(B) if classes[j] == target]
            total += share * sum(cross_entropy(logits, j) for j in same) / len(same)
    assert_loss(algorithm, batch, total / B)


def test_noise_is_part_of_what_is_mixed() -> None:
    """The anchors' noise is drawn first, then the keys'; a partner is mixed in with the noise of its own view."""
    algorithm, batch = build("imix_npair", "sensor", views="noise"), batch_of("sensor")
    tokens, _ = algorithm.encoder.embed(batch.views[0])
    rng = np.random.default_rng(batch.seed)
    first, second = (
        torch.stack(
            [
                torch.stack([t * (u >= 0.2) for t, u in zip(*row, strict=True)])
                for row in zip(tokens, noise, strict=True)
            ]
        )
        for noise in (rng.random((B, 6)), rng.random((B, 6)))
    )
    order = rng.permutation(B).tolist()
    drawn = rng.beta(1, 1, size=B)
    weight = [float(np.float32(max(x, 1 - x))) for x in drawn]
    mixed, lam = mixed_up(first, None, order, weight)
    anchors, keys = projections(algorithm, algorithm.head, [mixed, list(second)], None)
    assert_loss(algorithm, batch, npair_loss(anchors, keys, order, lam, 0.2))


# --- SimCLR, SupCon


def two_view_loss(
    anchors: list[Tensor], keys: list[Tensor], labels: Callable[[int, int], list[float]], temperature: float
) -> float:
    """Both lists hold the first and the second view; ``labels(view, i)`` are the weights of the 2B columns."""
    total, columns = 0.0, [key for view in keys for key in view]
    for view in range(2):
        for i in range(B):
            itself = view * B + i
            logits = {c: cosine(anchors[view][i], z) / temperature for c, z in enumerate(columns) if c != itself}
            normaliser = math.log(sum(math.exp(x) for x in logits.values()))
            total += sum(v * (normaliser - logits[c]) for c, v in enumerate(labels(view, i)) if v)
    return total / (2 * B)


def one_hot(column: int) -> list[float]:
    return [float(c == column) for c in range(2 * B)]


TWO_VIEWS = [("sensor", "augment"), ("table", "augment"), ("image+text", "identical")]


def mixed_views(
    algorithm: Algorithm, batch: Batch
) -> tuple[list[list[Tensor]], list[Tensor], Tensor | None, list[list[float]], list[list[int]]]:
    """Mixed and clean tokens of both views, their mask, λ and partners; each view has its own draws."""
    views = batch.views if len(batch.views) == 2 else batch.views * 2
    embedded = [algorithm.encoder.embed(view) for view in views]
    rng = np.random.default_rng(batch.seed)
    mixed, lams, orders = [], [], []
    for tokens, mask in embedded:
        order = rng.permutation(B).tolist()
        weight = [float(np.float32(max(x, 1 - x))) for x in rng.beta(1, 1, size=B)]
        examples, weights = mixed_up(tokens, mask, order, weight)
        mixed.append(examples)
        lams.append(weights)
        orders.append(order)
    return mixed, [tokens for tokens, _ in embedded], embedded[0].mask, lams, orders


@pytest.mark.parametrize(("kind", "views"), TWO_VIEWS)
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_simclr_and_its_mixed_form(kind: str, views: str, temperature: float) -> None:
    batch = batch_of(kind, num_views=2 if views == "augment" else 1)
    algorithm = build("simclr", kind, temperature=temperature, views=views)
    _, clean, mask, _, _ = mixed_views(algorithm, batch)
    keys = projections(algorithm, algorithm.head, [list(view) for view in clean], mask)
    assert_loss(algorithm, batch, two_view_loss(keys, keys, lambda v, i: one_hot((1 - v) * B + i), temperature))

    algorithm = build("imix_simclr", kind, temperature=temperature, views=views)
    mixed, clean, mask, lams, orders = mixed_views(algorithm, batch)
    *anchors, one, two = projections(algorithm, algorithm.head, [*mixed, *(list(view) for view in clean)], mask)

    def labels(view: int, i: int) -> list[float]:
        own, partner = one_hot((1 - view) * B + i), one_hot((1 - view) * B + orders[view][i])
        return [lams[view][i] * a + (1 - lams[view][i]) * b for a, b in zip(own, partner, strict=True)]

    assert_loss(algorithm, batch, two_view_loss(anchors, [one, two], labels, temperature))


@pytest.mark.parametrize(("kind", "views"), TWO_VIEWS)
@pytest.mark.parametrize("classes", [[0, 1, 1, 0, 2, 1, 0, 1], [3] * B, list(range(B))])
def test_supcon_and_its_mixed_form(kind: str, views: str, classes: list[int]) -> None:
    """All examples in one class, every example alone in its class, and a case between the two."""
    batch = batch_of(kind, num_views=2 if views == "augment" else 1)._replace(label=torch.tensor(classes))

    def label(of: int, view: int, i: int) -> list[float]:
        positive = [float(classes[c % B] == classes[of] and c != view * B + i) for c in range(2 * B)]
        return [x / sum(positive) for x in positive]

    algorithm = build("supcon", kind, views=views)
    _, clean, mask, _, _ = mixed_views(algorithm, batch)
    keys = projections(algorithm, algorithm.head, [list(view) for view in clean], mask)
    assert_loss(algorithm, batch, two_view_loss(keys, keys, lambda v, i: label(i, v, i), 0.2))

    algorithm = build("imix_supcon", kind, views=views)
    mixed, clean, mask, lams, orders = mixed_views(algorithm, batch)
    *anchors, one, two = projections(algorithm, algorithm.head, [*mixed, *(list(view) for view in clean)], mask)

    def labels(view: int, i: int) -> list[float]:
        pairs = zip(label(i, view, i), label(orders[view][i], view, i), strict=True)
        return [lams[view][i] * a + (1 - lams[view][i]) * b for a, b in pairs]

    assert_loss(algorithm, batch, two_view_loss(anchors, [one, two], labels, 0.2))


def test_supcon_refuses_labels_that_are_not_classes() -> None:
    batch = batch_of("sensor")
    algorithm = build("supcon", "sensor")
    with pytest.raises(UserError, match="no labels"):
        algorithm(batch)
    with pytest.raises(UserError, match=r"torch.uint8 \(8, 3\)"):
        algorithm(batch._replace(label=torch.ones(B, 3, dtype=torch.uint8)))


# --- MoCo, BYOL


def key_projections(algorithm: Any, batch: Batch) -> Tensor:
    tokens, mask = algorithm.key_encoder.embed(batch.views[0])
    examples = [feature(algorithm.key_encoder, t, None if mask is None else mask[i]) for i, t in enumerate(tokens)]
    return F.normalize(algorithm.key_head(torch.stack(examples)), dim=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["moco", "moco in batch", "imix_moco"])
@pytest.mark.parametrize("head_norm", ["none", "first", "both"])
def test_moco_over_steps_that_fill_the_queue(kind: str, name: str, head_norm: str) -> None:
    hyper = {"in_batch_negatives": True} if name == "moco in batch" else {}
    algorithm: Any = build(name.split()[0], kind, head_norm=head_norm, momentum=0.5, **hyper)
    queue = list(algorithm.queue.keys.clone())
    for step in range(4):
        batch = batch_of(kind, seed=step)
        twin = copy.deepcopy(algorithm)
        tokens, mask = twin.encoder.embed(batch.views[0])
        order, lam, examples = list(range(B)), [1.0] * B, list(tokens)
        if name == "imix_moco":
            _, order, weight = draw(batch.seed)
            examples, lam = mixed_up(tokens, mask, order, weight)
        (anchors,) = projections(twin, twin.head, [examples], mask)
        keys = key_projections(twin, batch)
        total = 0.0
        for i in range(B):
            past = [cosine(anchors[i], k) / 0.2 for k in queue]
            if name == "moco":
                total += cross_entropy([cosine(anchors[i], keys[i]) / 0.2, *past], 0)
            else:
                logits = [cosine(anchors[i], k) / 0.2 for k in keys] + past
                total += lam[i] * cross_entropy(logits, i) + (1 - lam[i]) * cross_entropy(logits, order[i])
        assert_loss(copy.deepcopy(algorithm), batch, total / B)

        moved_by_gradient(algorithm, batch)
        for i in range(B):  # first in, first out, into a queue of 21 places
            queue[(step * B + i) % 21] = keys[i]
        torch.testing.assert_close(algorithm.queue.keys, torch.stack(queue).to(algorithm.queue.keys))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head_norm", ["none", "first", "both"])
@pytest.mark.parametrize("predictor_norm", ["none", "first", "both"])
def test_byol_and_its_mixed_form(kind: str, head_norm: str, predictor_norm: str) -> None:
    batch = batch_of(kind)
    for name in ("byol", "imix_byol"):
        algorithm: Any = build(name, kind, head_norm=head_norm, predictor_norm=predictor_norm, momentum=0.5)
        moved_by_gradient(algorithm, batch)  # so that the key encoder differs from the encoder
        twin = copy.deepcopy(algorithm)
        tokens, mask = twin.encoder.embed(batch.views[0])
        order, lam, examples = list(range(B)), [1.0] * B, list(tokens)
        if name == "imix_byol":
            _, order, weight = draw(batch.seed)
            examples, lam = mixed_up(tokens, mask, order, weight)
        (projected,) = projections(twin, twin.head, [examples], mask)
        predicted, target = twin.predictor(projected), key_projections(twin, batch)
        total = 0.0
        for i in range(B):
            own, partner = cosine(predicted[i], target[i]), cosine(predicted[i], target[order[i]])
            total += 2 - 2 * (lam[i] * own + (1 - lam[i]) * partner)
        assert_loss(algorithm, batch, total / B)


@pytest.mark.parametrize("name", ["byol", "imix_byol"])
def test_symmetric_byol_is_the_sum_of_both_directions(name: str) -> None:
    views = batch_of("sensor", num_views=2)
    hyper: dict[str, Any] = {"views": "augment", "mixing": "none"} if name == "byol" else {"views": "augment"}
    one_way, both_ways = build(name, "sensor", **hyper), build(name, "sensor", symmetric=True, **hyper)
    if name == "byol":  # nothing is drawn, so the directions can be computed separately
        forth = float(one_way(views).value.detach())
        reversed_views = float(one_way(views._replace(views=views.views[::-1])).value.detach())
        assert_loss(both_ways, views, forth + reversed_views)
    else:
        assert not torch.equal(both_ways(views).value, 2 * one_way(views).value)


def test_momentum_rises_by_half_a_cosine() -> None:
    algorithm: Any = build("byol", "sensor", momentum=0.9, cosine_momentum=True)
    with torch.no_grad():
        for p in algorithm.key_head.parameters():
            p.fill_(1.0)
        for p in algorithm.head.parameters():
            p.fill_(0.0)
    expected = 1.0
    for step in range(4):
        algorithm.after_step((step + 1) / 4)
        expected *= 1 - (1 - 0.9) * (1 + math.cos(math.pi * (step + 1) / 4)) / 2
        assert float(next(algorithm.key_head.parameters()).flatten()[0].detach()) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["moco", "imix_moco", "byol", "imix_byol"])
def test_keys_follow_by_momentum_without_gradient(name: str) -> None:
    algorithm: Any = build(name, "sensor", momentum=0.9)
    before = copy.deepcopy(algorithm)
    moved_by_gradient(algorithm, batch_of("sensor"))
    for part in ("encoder", "head"):
        keys = zip(
            getattr(before, f"key_{part}").parameters(),
            getattr(algorithm, f"key_{part}").parameters(),
            getattr(algorithm, part).parameters(),
            strict=True,
        )
        for old, new, query in keys:
            torch.testing.assert_close(new, 0.9 * old + 0.1 * query)
            assert new.grad is None
            assert not new.requires_grad
    moved = zip(before.encoder.parameters(), algorithm.encoder.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in moved)
