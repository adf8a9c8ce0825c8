"""N-pair: each example is told from the others of its batch by its other view (the baseline of Lee et al. 2021).

    L_ij = cos(z_i, z'_j) / τ            z, z' projections of the two views
    loss = mean_i CE(L_i, i)

Gradient flows through both sides. With identical views dropout is the only difference between them. The head is i-Mix's
for CIFAR and Speech Commands, with batch norm after both layers; its ImageNet head has none.
"""

from typing import ClassVar, Literal

import numpy as np
import torch.nn.functional as F

from dabsmix.distributed import own_rows
from dabsmix.model.encoder import Encoder, mean_features
from dabsmix.pretext.algorithm import Algorithm, Loss, check_positive
from dabsmix.pretext.contrast import similarities
from dabsmix.pretext.heads import mlp_head
from dabsmix.pretext.views import two_views
from dabsmix.spec import Batch

__all__ = ["NPair"]


class NPair(Algorithm):
    """N-pair contrast of two views, unmixed: the baseline of imix_npair.

    Args:
        encoder: what is trained.
        temperature: divides the cosine similarities; 0.2 for images, 0.5 for speech, 0.1 for tables in the source
        views: how the two views of an example differ
        inputmix: auxiliary examples mixed into each view, labels untouched
        head_norm: layers of the projection head that batch norm follows
    """

    num_views: ClassVar[int] = 2

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: float = 0.2,
        views: Literal["identical", "noise", "augment"] = "identical",
        inputmix: Literal[0, 1, 2] = 0,
        head_norm: Literal["none", "first", "both"] = "both",
    ) -> None:
        super().__init__(encoder)
        check_positive(temperature=temperature)
        self.temperature = temperature
        self.views = views
        self.inputmix = inputmix
        self.head = mlp_head(encoder.width, encoder.width, head_norm)

    def forward(self, batch: Batch) -> Loss:
        """The contrast of the first view against the second."""
        rng = np.random.default_rng(batch.seed)
        anchor, key = two_views(self.encoder, self.encoder, batch.views, rng, self.views, self.inputmix)
        features = mean_features(self.encoder, anchor.own, key.own)
        anchors, keys = self.head(features).chunk(2)

        logits, own = similarities(anchors, keys, self.temperature), own_rows(anchors)
        accuracy = (logits.argmax(dim=1) == own).float().mean()
        clean = features.chunk(2)[1].detach() if key.clean else None
        return Loss(F.cross_entropy(logits, own), {"accuracy": accuracy}, clean)
