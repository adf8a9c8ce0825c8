"""Contrasts between instances or between positions: projection heads, logits over all processes, and losses.

b examples on this process, n in the global batch, P dimensions of a projection, L tokens, D width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dabsmix.distributed import gather, gather_with_grad, local, own_rows
from dabsmix.errors import UserError
from dabsmix.model.batch_norm import GlobalBatchNorm
from dabsmix.spec import Batch

__all__ = [
    "PROJECTION",
    "HeadNorm",
    "class_of",
    "dabs_head",
    "mixed_cross_entropy",
    "mlp_head",
    "position_costs",
    "position_costs_in_batch",
    "products",
    "same_class",
    "similarities",
    "two_view_similarities",
    "unit",
]


# --- projection heads: from pooled features to the space in which instances are compared

HeadNorm = Literal["none", "first", "both"]

PROJECTION = 128
"""Length of a projection, in DABS and in i-Mix."""


def dabs_head(width: int) -> nn.Module:
    """LayerNorm and Linear to 128 (DABS, Tamkin et al. 2021): ``(B, width)`` to ``(B, 128)``."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, PROJECTION))


def mlp_head(width: int, hidden: int, norm: HeadNorm) -> nn.Module:
    """Linear, ReLU, Linear to 128, ``(B, width)`` to ``(B, 128)`` (i-Mix, Lee et al. 2021).

    Batch norm follows the first layer, both layers, or none.
    """
    layers: list[nn.Module] = [nn.Linear(width, hidden)]
    if norm != "none":
        layers.append(GlobalBatchNorm(hidden))
    layers += [nn.ReLU(), nn.Linear(hidden, PROJECTION)]
    if norm == "both":
        layers.append(GlobalBatchNorm(PROJECTION))
    return nn.Sequential(*layers)


# --- logits and losses


def unit(x: Tensor) -> Tensor:
    """Rows scaled to length 1, in float32 or higher. A row of zeros stays as it is."""
    # eps is far below any real length, but not so small that the gradient of a collapsed batch explodes
    return F.normalize(_precise(x), dim=-1, eps=1e-5)


def products(rows: Tensor, columns: Tensor) -> Tensor:
    """``rows @ columnsᵀ`` in the precision of its arguments: bf16 products are too coarse for a low temperature."""
    with torch.autocast(rows.device.type, enabled=False):
        return rows @ columns.mT


def similarities(anchors: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Cosine similarities over temperature, ``(b, n)``: this process's anchors ``(b, P)`` by the keys of all processes.

    Gradient flows to the anchors and to the keys, on whichever process they are.
    """
    return products(unit(anchors), gather_with_grad(unit(keys))) / temperature


def two_view_similarities(anchors: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """SimCLR's logits, ``(2b, 2n)``: every anchor against both views of every example, except its own clean view.

    Rows of ``anchors`` and ``keys`` ``(2b, P)`` are the first view and then the second; so are the columns, of the
    global batch. An anchor's own column gets the lowest finite logit, hence probability 0.
    """
    first, second = unit(keys).chunk(2)
    logits = products(unit(anchors), torch.cat([gather_with_grad(first), gather_with_grad(second)])) / temperature
    itself = torch.cat([own_rows(first), logits.shape[1] // 2 + own_rows(first)])
    return logits.scatter(1, itself[:, None], torch.finfo(logits.dtype).min)


def mixed_cross_entropy(logits: Tensor, own: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """``λ CE(logits, own) + (1 - λ) CE(logits, partner)`` of each example, ``(b,)`` (i-Mix, Lee et al. 2021, eq. 6).

    Equal to the cross-entropy against the soft label that has λ at ``own`` and 1 - λ at ``partner``, since
    cross-entropy is linear in the label.
    """
    cost = -logits.log_softmax(dim=1)
    at_own, at_partner = cost.gather(1, own[:, None])[:, 0], cost.gather(1, partner[:, None])[:, 0]
    return weight * at_own + (1 - weight) * at_partner


def class_of(batch: Batch) -> Tensor:
    """The classes ``(b,)`` of a batch.

    Raises:
        UserError: the batch has no labels, or labels other than one class per example.
    """
    if batch.label is None or batch.label.dim() != 1 or batch.label.is_floating_point():
        labels = "no labels" if batch.label is None else f"{batch.label.dtype} {tuple(batch.label.shape)}"
        raise UserError(
            f"a supervised contrast needs one class per example, and these data have {labels}: use another --algo"
        )
    return batch.label


def same_class(rows: Tensor, label: Tensor, excluded: Tensor | None = None) -> Tensor:
    """SupCon's virtual labels ``(k, n)``: equal weight on every column of the row's class, summing to 1.

    Args:
        rows: the classes ``(k,)`` of the rows.
        label: the classes ``(n,)`` of the columns.
        excluded: one column ``(k,)`` per row that gets no weight, where the anchor itself is among them.
    """
    positive = (rows[:, None] == label).float()
    if excluded is not None:
        positive = positive.scatter(1, excluded[:, None], 0.0)
    return positive / positive.sum(dim=1, keepdim=True)


def position_costs(
    predictions: Tensor, targets: Tensor, real: Tensor, temperature: float, normalize: bool, *, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """ContPred within each example: which token does the prediction at each position match?

    Args:
        predictions: ``(b, L, D)``.
        targets: the tokens before masking, ``(b, L, D)``.
        real: bool ``(b, L)``; padding is not a candidate, and the values returned there are meaningless.
        temperature: divides the products.
        normalize: whether the products are cosines.
        reverse: softmax over predictions for each target, as DABS's code does, instead of softmax over targets for each
            prediction, as DABS documents.

    Returns:
        The cross-entropy at each position, and whether its prediction's best target is its own, both ``(b, L)``.
    """
    logits = products(_scaled(predictions, normalize), _scaled(targets, normalize)) / temperature
    logits = logits.masked_fill(~(real[:, :, None] & real[:, None, :]), torch.finfo(logits.dtype).min)
    cost = -logits.log_softmax(dim=1 if reverse else 2).diagonal(dim1=1, dim2=2)
    return cost, logits.argmax(dim=2) == torch.arange(logits.shape[1], device=logits.device)


def position_costs_in_batch(
    predictions: Tensor, targets: Tensor, scored: Tensor, temperature: float, normalize: bool
) -> tuple[Tensor, Tensor]:
    """As `position_costs`, but the candidates are the scored tokens of the whole global batch.

    Args:
        predictions: ``(b, L, D)``.
        targets: the tokens before masking, ``(b, L, D)``.
        scored: bool ``(b, L)``; the values returned elsewhere are 0.
        temperature: divides the products.
        normalize: whether the products are cosines.
    """
    everywhere = gather(scored)
    target = local((everywhere.flatten().cumsum(0) - 1).view_as(everywhere))[scored]
    candidates = gather_with_grad(_scaled(targets, normalize))[everywhere]
    logits = products(_scaled(predictions, normalize)[scored], candidates) / temperature
    cost = F.cross_entropy(logits, target, reduction="none")
    hit = logits.argmax(dim=1) == target
    nothing = cost.new_zeros(scored.shape)
    return nothing.masked_scatter(scored, cost), torch.zeros_like(scored).masked_scatter(scored, hit)


def _scaled(x: Tensor, normalize: bool) -> Tensor:
    return unit(x) if normalize else _precise(x)


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
