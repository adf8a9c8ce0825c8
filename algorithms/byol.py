"""BYOL, and i-Mix with the BYOL objective (Lee et al. 2021, eq. 11 and 12): projections predict a momentum encoder's.

With x and x' the two views, r a random permutation of the batch and λ_i ~ Beta(α, α), λ_i ≥ 1/2,

    F_i = z_key(x'_i) / |z_key(x'_i)|, the key encoder's parameters following: θ_key ← m θ_key + (1-m) θ
    g_i = g(z(mix(x_i, x_r(i); λ_i)))                        g the predictor
    loss = mean_i 2 - 2 [λ_i cos(g_i, F_i) + (1-λ_i) cos(g_i, F_r(i))]

Unmixed, λ_i = 1: the baseline of i-Mix. Not symmetrised by default, as there; ``symmetric`` adds the loss with the
views exchanged, whose noise and mixtures are drawn anew. The heads are i-Mix's for CIFAR: batch norm after the first
layer; for speech after both of the projection's, for tables after both everywhere.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from dabsmix.distributed import gather
from dabsmix.model.encoder import Encoder, mean_features
from dabsmix.pretext.algorithm import Algorithm, Loss, check_positive, check_share
from dabsmix.pretext.contrast import PROJECTION, mlp_head, unit
from dabsmix.pretext.momentum import follow, momentum_at, momentum_copy
from dabsmix.pretext.tokens import check_mixing, mix
from dabsmix.pretext.views import two_views
from dabsmix.spec import Batch

__all__ = ["BYOL", "NAMES", "IMixBYOL"]

NAMES = {"imix_byol": "IMixBYOL"}


class BYOL(Algorithm):
    """BYOL, unmixed: the baseline of imix_byol.

    Args:
        encoder: what is trained.
        mixing: how two examples' tokens are mixed
        alpha: λ ~ Beta(alpha, alpha); 2 for CovType in the source
        share: one λ for each example or for the batch; operator: as in the source's code, the batch for cutmix only
        momentum: m of the key encoder
        cosine_momentum: let the momentum rise to 1 by half a cosine, an option of the source's code
        symmetric: add the loss of the second view's predictions of the first, an option of the source's code
        views: how the two views of an example differ
        inputmix: auxiliary examples mixed into each view, labels untouched
        head_norm: layers of the projection head that batch norm follows
        predictor_norm: layers of the predictor that batch norm follows
    """

    num_views: ClassVar[int] = 2
    needs_tokens: ClassVar[bool] = False
    fit_reason: ClassVar[str] = "batch norm needs examples that differ"
    added: ClassVar[tuple[str, ...]] = ("mixing", "alpha", "share", "cosine_momentum", "symmetric")

    def __init__(
        self,
        encoder: Encoder,
        *,
        mixing: Literal["none", "mixup", "patch", "cutmix"] = "none",
        alpha: float = 1.0,
        share: Literal["operator", "example", "batch"] = "operator",
        momentum: float = 0.999,
        cosine_momentum: bool = False,
        symmetric: bool = False,
        views: Literal["identical", "noise", "mask", "augment"] = "identical",
        inputmix: Literal[0, 1, 2] = 0,
        head_norm: Literal["none", "first", "both"] = "first",
        predictor_norm: Literal["none", "first", "both"] = "first",
    ) -> None:
        super().__init__(encoder)
        check_positive(alpha=alpha)
        check_mixing(mixing, encoder.num_tokens)
        check_share(momentum=momentum)
        self.mixing = mixing
        self.alpha = alpha
        self.share = share
        self.momentum = momentum
        self.cosine_momentum = cosine_momentum
        self.symmetric = symmetric
        self.views = views
        self.inputmix = inputmix
        self.head = mlp_head(encoder.width, encoder.width, head_norm)
        self.predictor = mlp_head(PROJECTION, encoder.width, predictor_norm)
        self.key_encoder = momentum_copy(encoder)
        self.key_head = momentum_copy(self.head)

    def forward(self, batch: Batch) -> Loss:
        """The distance of the predictions of the first view, mixed or not, from the targets of the second."""
        rng = np.random.default_rng(batch.seed)
        loss, similarity = self._distance(batch.views, rng)
        if self.symmetric:
            loss = loss + self._distance(batch.views[::-1], rng)[0]
        return Loss(loss, {"similarity": similarity.detach().mean()}, None)

    def _distance(self, views: Sequence[tuple[Tensor, ...]], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The mean loss in one direction, and each example's similarity to its own target ``(b,)``."""
        anchor, key = two_views(self.encoder, self.key_encoder, views, rng, self.views, self.inputmix)
        mixed, partner = mix(anchor, rng, self.mixing, self.alpha, self.share)
        predicted = unit(self.predictor(self.head(mean_features(self.encoder, mixed.embedded))))
        with torch.no_grad():
            target = unit(self.key_head(mean_features(self.key_encoder, key.own)))
            partner_target = gather(target)[partner]
        to_own = (predicted * target).sum(dim=1)
        to_partner = (predicted * partner_target).sum(dim=1)
        return (2 - 2 * (mixed.weight * to_own + (1 - mixed.weight) * to_partner)).mean(), to_own

    def after_step(self, progress: float) -> None:
        """Move the key encoder and its head, before the next step's targets are made."""
        momentum = momentum_at(progress, self.momentum, cosine=self.cosine_momentum)
        follow(self.key_encoder, self.encoder, momentum)
        follow(self.key_head, self.head, momentum)


class IMixBYOL(BYOL):
    """i-Mix, BYOL: a mixed example predicts a momentum encoder's projections of both examples that are in it."""

    fit_reason: ClassVar[str] = "an example is mixed with another, and batch norm needs examples that differ"
    added: ClassVar[tuple[str, ...]] = ("cosine_momentum", "symmetric")

    def __init__(
        self, encoder: Encoder, *, mixing: Literal["mixup", "patch", "cutmix"] = "mixup", **others: Any
    ) -> None:
        super().__init__(encoder, mixing=mixing, **others)
