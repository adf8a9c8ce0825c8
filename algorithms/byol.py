"""BYOL: each example's projection predicts a momentum encoder's projection of its other view (i-Mix's baseline).

    F_i = z_key(x'_i) / |z_key(x'_i)|, the key encoder's parameters following: θ_key ← m θ_key + (1-m) θ
    loss = mean_i 2 - 2 cos(g(z(x_i)), F_i)              g the predictor

Not symmetrised, as in i-Mix (Lee et al. 2021, eq. 11). The heads are i-Mix's for CIFAR: batch norm after the first
layer; for speech after both of the projection's, for tables after both everywhere.
"""

from typing import ClassVar, Literal

import numpy as np
import torch

from dabsmix.model.encoder import Encoder, mean_features
from dabsmix.pretext.algorithm import Algorithm, Loss, check_share
from dabsmix.pretext.contrast import unit
from dabsmix.pretext.heads import PROJECTION, mlp_head
from dabsmix.pretext.momentum import follow, momentum_copy
from dabsmix.pretext.views import two_views
from dabsmix.spec import Batch

__all__ = ["BYOL"]


class BYOL(Algorithm):
    """BYOL, unmixed: the baseline of imix_byol.

    Args:
        encoder: what is trained.
        momentum: m of the key encoder
        views: how the two views of an example differ
        inputmix: auxiliary examples mixed into each view, labels untouched
        head_norm: layers of the projection head that batch norm follows
        predictor_norm: layers of the predictor that batch norm follows
    """

    num_views: ClassVar[int] = 2
    fit_reason: ClassVar[str] = "batch norm needs examples that differ"

    def __init__(
        self,
        encoder: Encoder,
        *,
        momentum: float = 0.999,
        views: Literal["identical", "noise", "augment"] = "identical",
        inputmix: Literal[0, 1, 2] = 0,
        head_norm: Literal["none", "first", "both"] = "first",
        predictor_norm: Literal["none", "first", "both"] = "first",
    ) -> None:
        super().__init__(encoder)
        check_share(momentum=momentum)
        self.momentum = momentum
        self.views = views
        self.inputmix = inputmix
        self.head = mlp_head(encoder.width, encoder.width, head_norm)
        self.predictor = mlp_head(PROJECTION, encoder.width, predictor_norm)
        self.key_encoder = momentum_copy(encoder)
        self.key_head = momentum_copy(self.head)

    def forward(self, batch: Batch) -> Loss:
        """The distance of the first view's predictions from the targets of the second."""
        rng = np.random.default_rng(batch.seed)
        anchor, key = two_views(self.encoder, self.key_encoder, batch.views, rng, self.views, self.inputmix)
        predicted = unit(self.predictor(self.head(mean_features(self.encoder, anchor.own))))
        with torch.no_grad():
            target = unit(self.key_head(mean_features(self.key_encoder, key.own)))

        similarity = (predicted * target).sum(dim=1).mean()
        return Loss(2 - 2 * similarity, {"similarity": similarity.detach()}, None)

    def after_step(self, progress: float) -> None:
        """Moves the key encoder and its head, before the next step's targets are made."""
        follow(self.key_encoder, self.encoder, self.momentum)
        follow(self.key_head, self.head, self.momentum)
