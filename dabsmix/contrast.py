"""Telling instances apart, over all processes: the logits, and the loss against a mixed virtual label.

b examples on this process, n in the global batch, P dimensions of a projection.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dabsmix.gather import gather_with_grad, rank

__all__ = ["mixed_cross_entropy", "own_rows", "similarities"]


def own_rows(examples: Tensor) -> Tensor:
    """The global rows ``(b,)`` of this process's examples: their virtual labels."""
    return rank() * len(examples) + torch.arange(len(examples), device=examples.device)


def similarities(anchors: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Cosine similarities over temperature, float32 ``(b, n)``: own anchors ``(b, P)`` by the keys of every process.

    Gradient flows to the anchors and to the keys, wherever these live.
    """
    anchors, keys = F.normalize(anchors.float(), dim=1), F.normalize(keys.float(), dim=1)
    with torch.autocast(anchors.device.type, enabled=False):
        return anchors @ gather_with_grad(keys).T / temperature


def mixed_cross_entropy(logits: Tensor, own: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """``λ CE(logits, own) + (1 - λ) CE(logits, partner)`` of each example, ``(b,)`` (i-Mix, Lee et al. 2021, eq. 6).

    Equal to the cross-entropy against the soft label that has λ at ``own`` and 1 - λ at ``partner``, since
    cross-entropy is linear in the label.
    """
    cost = -logits.log_softmax(dim=1)
    at_own, at_partner = cost.gather(1, own[:, None])[:, 0], cost.gather(1, partner[:, None])[:, 0]
    return weight * at_own + (1 - weight) * at_partner
