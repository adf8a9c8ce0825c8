"""MAE, masked reconstruction of the raw input (DABS 2.0, Tamkin et al. 2022).

Of the N real tokens of each example ceil(rate · N) are set to zero, before positions are added. From the encoder's
output h at a masked place, the raw input there is reconstructed. For each input, the mean over masked places of

    patches      | x - W relu(h) |           the L2 norm of the difference of the flattened patch, where it was read
    word ids     CE(E h, x)                  E the table of token embeddings, all of the vocabulary
    columns      (x - w · relu(h))²          numeric
                 CE(E_j h, x)                categorical, E_j the embeddings of column j's categories

and the mean over inputs. Padding and empty cells are not scored. DABS's own code runs on some of its data sets only
(not on PAMAP2, Higgs, LibriSpeech); this one runs on every spec.
"""

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dabsmix.model.encoder import Embedded, Encoder, GridEmbed, TableEmbed, TokenEmbed
from dabsmix.pretext.algorithm import Algorithm, Loss, check_positive, check_share
from dabsmix.pretext.tokens import choose, corrupted, draw_order, mean_over
from dabsmix.spec import Batch, Grid, PaddedGrid, Spec, Table

__all__ = ["MAE"]


class MAE(Algorithm):
    """MAE (DABS 2.0): reconstructs the raw input at masked tokens.

    Args:
        encoder: what is trained.
        rate: share of an example's tokens that are masked
    """

    min_batch: ClassVar[int] = 1
    min_tokens: ClassVar[int] = 2
    fit_reason: ClassVar[str] = "a masked token is reconstructed from the others of its example"

    def __init__(self, encoder: Encoder, *, rate: float = 0.15) -> None:
        super().__init__(encoder)
        check_positive(rate=rate)
        check_share(rate=rate)
        self.rate = rate
        self.predictors = nn.ModuleList(_predictor(spec, encoder.width) for spec in encoder.specs)

    def forward(self, batch: Batch) -> Loss:
        """The mean of the inputs' reconstruction losses."""
        rng = np.random.default_rng(batch.seed)
        inputs = batch.views[0]
        clean = self.encoder.embed(inputs)
        real = clean.real
        masked = choose(draw_order(rng, clean), corrupted(real, self.rate), real)
        hidden = self.encoder.encode(Embedded(clean.tokens.masked_fill(masked[..., None], 0), clean.mask))

        lengths = [spec.num_tokens for spec in self.encoder.specs]
        parts = zip(
            self.encoder.embedders,
            self.predictors,
            inputs,
            torch.split(hidden[:, 1:], lengths, dim=1),
            torch.split(masked, lengths, dim=1),
            strict=True,
        )
        losses = torch.stack([_reconstruction(*part) for part in parts])
        names = [f"loss_{type(spec).__name__.lower()}_{i}" for i, spec in enumerate(self.encoder.specs)]
        metrics = dict(zip(names, losses.detach(), strict=True)) if len(names) > 1 else {}
        return Loss(losses.mean(), metrics, None)


def _predictor(spec: Spec, width: int) -> nn.Module:
    match spec:
        case Grid():
            return nn.Sequential(nn.ReLU(), nn.Linear(width, spec.patch_dim))
        case Table() if 0 in spec.cardinalities:
            return nn.Sequential(nn.ReLU(), nn.Linear(width, 1))
        case _:
            return nn.Identity()  # ids and categories are predicted with their embeddings


def _reconstruction(embedder: nn.Module, predictor: nn.Module, x: Tensor, hidden: Tensor, masked: Tensor) -> Tensor:
    """The loss of one input ``x`` given the encoder's output ``(B, L, D)`` at its tokens."""
    match embedder:
        case GridEmbed():
            difference = embedder.patches(x) - predictor(hidden)
            if isinstance(embedder.spec, PaddedGrid):
                difference = torch.where(difference.isnan(), 0.0, difference)
            return mean_over(torch.linalg.vector_norm(difference, dim=-1), masked)
        case TokenEmbed():
            logits = F.linear(
                hidden[masked], embedder.table.weight
            )  # at masked places only, because a vocabulary is large
            costs = F.cross_entropy(logits.float(), x[masked], reduction="none")
            return mean_over(costs, torch.ones_like(costs, dtype=torch.bool))
        case TableEmbed():
            return mean_over(_column_costs(embedder, predictor, x.nan_to_num(nan=0.0), hidden), masked & ~x.isnan())
        case _:
            raise TypeError(f"no reconstruction for {type(embedder).__name__}")


def _column_costs(embedder: TableEmbed, predictor: nn.Module, x: Tensor, hidden: Tensor) -> Tensor:
    """Squared error or cross-entropy of every cell, ``(B, num_features)``."""
    costs = torch.zeros_like(x)
    if embedder.weight is not None:
        predicted = predictor(hidden[:, embedder.numeric])[..., 0]
        costs = costs.index_copy(1, embedder.numeric, (x[:, embedder.numeric] - predicted).square().to(x.dtype))
    if embedder.category is not None:
        logits = F.linear(hidden[:, embedder.categorical], embedder.category.weight).float()  # (B, columns, all)
        row = torch.arange(logits.shape[2], device=x.device)
        first, size = embedder.offsets[:, None], embedder.sizes[:, None]
        logits = logits.masked_fill((row < first) | (row >= first + size), torch.finfo(logits.dtype).min)
        target = x[:, embedder.categorical].long() + embedder.offsets
        cost = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
        costs = costs.index_copy(1, embedder.categorical, cost.to(x.dtype))
    return costs
