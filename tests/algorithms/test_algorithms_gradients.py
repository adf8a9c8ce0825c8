"""Where gradient flows in the i-Mix family: every objective's gradient against torch's of a plain loss."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from twins import B, batch_of, build

from dabsmix.model.encoder import Embedded
from dabsmix.pretext.algorithm import Algorithm
from dabsmix.spec import Batch

CLASSES = [0, 1, 1, 0, 2, 1, 0, 1]


def soft(logits: Tensor, label: Tensor) -> Tensor:
    return -(label * logits.log_softmax(dim=1)).sum(dim=1).mean()


def encoded(encoder: Any, head: Any, *batches: Tensor) -> tuple[Tensor, ...]:
    """Projections of several batches of tokens; they share the head's batch norm."""
    hidden = encoder.encode(Embedded(torch.cat(batches), None))
    return head(hidden.mean(dim=1)).split(B)  # type: ignore[no-any-return]  # encoder and head of any kind


def unit(*projections: Tensor) -> Tensor:
    return F.normalize(torch.cat(projections), dim=1)


def drawn(rng: np.random.Generator, tokens: Tensor, mixed: bool) -> tuple[Tensor, Tensor]:
    """Mixup with gradient on both sides, or none, and the virtual labels ``(B, B)`` of the examples."""
    own = torch.eye(B, dtype=torch.float64)
    if not mixed:
        return tokens, own
    order = rng.permutation(B)
    weight = np.array([float(np.float32(max(x, 1 - x))) for x in rng.beta(1, 1, size=B)])
    lam = torch.from_numpy(weight)
    out = lam[:, None, None] * tokens + (1 - lam[:, None, None]) * tokens[order]
    return out, lam[:, None] * own + (1 - lam[:, None]) * own[order]


def plain_loss(algorithm: Any, batch: Batch, objective: str, mixed: bool) -> Tensor:
    """The objective in a few lines of torch, for a batch without padding."""
    rng = np.random.default_rng(batch.seed)
    tokens, _ = algorithm.encoder.embed(batch.views[0])
    anchor, label = drawn(rng, tokens, mixed)
    if objective == "npair":
        z, keys = encoded(algorithm.encoder, algorithm.head, anchor, tokens)
        return soft(unit(z) @ unit(keys).T / 0.2, label)
    if objective in ("moco", "byol"):
        (z,) = encoded(algorithm.encoder, algorithm.head, anchor)
        with torch.no_grad():
            clean, _ = algorithm.key_encoder.embed(batch.views[0])
            keys = unit(*encoded(algorithm.key_encoder, algorithm.key_head, clean))
        if objective == "byol":
            return 2 - 2 * (label * (unit(algorithm.predictor(z)) @ keys.T)).sum(dim=1).mean()
        queue = algorithm.queue.keys.clone()
        if not mixed:  # its own key against the queue alone
            logits = torch.cat([(unit(z) * keys).sum(dim=1, keepdim=True), unit(z) @ queue.T], dim=1) / 0.2
            return F.cross_entropy(logits, torch.zeros(B, dtype=torch.long))
        return soft(unit(z) @ torch.cat([keys, queue]).T / 0.2, F.pad(label, (0, len(queue))))

    other, other_label = drawn(rng, tokens, mixed)
    if mixed:
        *anchors, one, two = encoded(algorithm.encoder, algorithm.head, anchor, other, tokens, tokens)
    else:
        anchors = [one, two] = list(encoded(algorithm.encoder, algorithm.head, tokens, tokens))
    itself = torch.eye(2 * B, dtype=torch.bool)
    logits = (unit(*anchors) @ unit(one, two).T / 0.2).masked_fill(itself, -1e9)
    if objective == "simclr":
        return soft(logits, torch.cat([F.pad(label, (B, 0)), F.pad(other_label, (0, B))]))
    classes = torch.tensor(CLASSES)
    same = (classes[:, None] == classes).double().repeat(1, 2)
    target = []
    for i, weights in enumerate([*label, *other_label]):  # for each of the two mixed examples: the columns of its class
        positive = same * (torch.arange(2 * B) != i)
        target.append(weights @ (positive / positive.sum(dim=1, keepdim=True)))
    return soft(logits, torch.stack(target))


def gradients(algorithm: Algorithm, loss: Tensor) -> dict[str, Tensor]:
    parameters = {k: p for k, p in algorithm.named_parameters() if p.requires_grad}
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


@pytest.mark.parametrize("objective", ["npair", "simclr", "supcon", "moco", "byol"])
@pytest.mark.parametrize("mixed", [False, True])
def test_gradient_reaches_anchors_keys_and_partners(objective: str, mixed: bool) -> None:
    """Gradients flow through anchors and partners, and through keys except those of a momentum encoder."""
    algorithm = build(f"imix_{objective}" if mixed else objective, "sensor")
    batch = batch_of("sensor")._replace(label=torch.tensor(CLASSES))
    plain = plain_loss(algorithm, batch, objective, mixed)
    expected = gradients(algorithm, plain)
    value = algorithm(batch).value
    torch.testing.assert_close(value, plain)
    torch.testing.assert_close(gradients(algorithm, value), expected, rtol=1e-5, atol=1e-8)  # SupCon's labels: float32
