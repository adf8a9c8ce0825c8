"""Unmixed is mixed with λ = 1: the objectives' losses and gradients as they are written without any mixing."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from twins import KINDS, B, batch_of, build

from dabsmix.errors import UserError
from dabsmix.pretext.tokens import mix
from dabsmix.pretext.views import View, two_views
from dabsmix.spec import Batch


def features(encoder: Any, batch: Batch) -> Tensor:
    return encoder(batch.views[0]).mean  # type: ignore[no-any-return]


def projected(algorithm: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Unit projections of the two views, whose batch norm sees both."""
    both = features(algorithm.encoder, batch).repeat(2, 1)
    first, second = F.normalize(algorithm.head(both)).chunk(2)
    return first, second


def keys_of(algorithm: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        return F.normalize(algorithm.key_head(features(algorithm.key_encoder, batch)))


def npair(algorithm: Any, batch: Batch) -> Tensor:
    first, second = projected(algorithm, batch)
    return F.cross_entropy(first @ second.T / 0.2, torch.arange(B))


def all_pairs(algorithm: Any, batch: Batch) -> Tensor:
    z = torch.cat(projected(algorithm, batch))
    return (z @ z.T / 0.2).masked_fill(torch.eye(2 * B, dtype=torch.bool), float("-inf"))


def simclr(algorithm: Any, batch: Batch) -> Tensor:
    return F.cross_entropy(all_pairs(algorithm, batch), torch.arange(2 * B).roll(B))


def supcon(algorithm: Any, batch: Batch) -> Tensor:
    assert batch.label is not None
    label, cost = batch.label.repeat(2), -all_pairs(algorithm, batch).log_softmax(dim=1)
    rows = []
    for a in range(2 * B):
        same = [b for b in range(2 * B) if b != a and label[b] == label[a]]
        rows.append((cost[a, same] * float(np.float32(1 / len(same)))).sum())  # labels are float32
    return torch.stack(rows).mean()


def moco(algorithm: Any, batch: Batch) -> Tensor:
    anchors = F.normalize(algorithm.head(features(algorithm.encoder, batch)))
    own = (anchors * keys_of(algorithm, batch)).sum(dim=1, keepdim=True)
    logits = torch.cat([own, anchors @ algorithm.queue.keys.clone().T], dim=1) / 0.2
    return F.cross_entropy(logits, torch.zeros(B, dtype=torch.long))


def byol(algorithm: Any, batch: Batch) -> Tensor:
    predicted = F.normalize(algorithm.predictor(algorithm.head(features(algorithm.encoder, batch))))
    return 2 - 2 * (predicted * keys_of(algorithm, batch)).sum(dim=1).mean()


PLAIN: dict[str, Callable[[Any, Batch], Tensor]] = {
    "npair": npair,
    "simclr": simclr,
    "supcon": supcon,
    "moco": moco,
    "byol": byol,
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_the_plain_objectives(name: str, kind: str) -> None:
    algorithm: Any = build(name, kind, temperature=0.2) if name != "byol" else build(name, kind)
    batch, plain = batch_of(kind, label=True), copy.deepcopy(algorithm)
    expected = PLAIN[name](plain, batch)
    expected.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    loss = algorithm(batch).value
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-7)
    for (key, mine), theirs in zip(algorithm.named_parameters(), plain.parameters(), strict=True):
        if mine.requires_grad:
            assert mine.grad is not None, key
            assert theirs.grad is not None, key
            assert float((mine.grad - theirs.grad).abs().max()) <= 1e-7, key


def test_without_mixing_nothing_is_drawn_or_changed() -> None:
    algorithm, batch = build("npair", "text"), batch_of("text")
    encoder = algorithm.encoder
    rng, untouched = np.random.default_rng(0), np.random.default_rng(0)
    view: View = two_views(encoder, encoder, batch.views, rng, "identical", 0)[0]
    mixed, partner = mix(view, rng, "none", 1.0, "operator")
    assert mixed.embedded is view.own
    assert torch.equal(mixed.weight, torch.ones(B))
    assert torch.equal(partner, torch.arange(B))
    assert rng.random() == untouched.random()


def test_moco_refuses_to_mix_without_the_partners_key() -> None:
    for name, hyper in (("moco", {"mixing": "mixup"}), ("imix_moco", {"in_batch_negatives": False})):
        with pytest.raises(UserError, match="--mixing mixup needs --in-batch-negatives"):
            build(name, "sensor", **hyper)
