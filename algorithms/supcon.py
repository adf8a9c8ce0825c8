"""SupCon: SimCLR with every example of the same class as a positive (Khosla et al. 2020). It uses labels.

    L_ab = cos(z_a, z_b) / τ             a, b any of the 2n views of the batch, b ≠ a
    v_ab = 1 where a and b are of one class, b ≠ a, divided by their number
    loss = mean_a CE(L_a, v_a)                               2n-1 ways

An example alone in its class has its own other view as its only positive. The head is i-Mix's N-pair head.
"""

from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F

from dabsmix.distributed import gather, own_rows
from dabsmix.model.encoder import Encoder, mean_features
from dabsmix.pretext.algorithm import Algorithm, Loss, check_positive
from dabsmix.pretext.contrast import class_of, same_class, two_view_similarities
from dabsmix.pretext.heads import mlp_head
from dabsmix.pretext.views import two_views
from dabsmix.spec import Batch

__all__ = ["SupCon"]


class SupCon(Algorithm):
    """SupCon (uses labels), unmixed: the baseline of imix_supcon.

    Args:
        encoder: what is trained.
        temperature: divides the cosine similarities
        views: how the two views of an example differ
        inputmix: auxiliary examples mixed into each view, labels untouched
        head_norm: layers of the projection head that batch norm follows
    """

    num_views: ClassVar[int] = 2
    needs_labels: ClassVar[bool] = True

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
        """The contrast of every view against all others."""
        rng = np.random.default_rng(batch.seed)
        first, second = two_views(self.encoder, self.encoder, batch.views, rng, self.views, self.inputmix)
        features = mean_features(self.encoder, first.own, second.own)
        projections = self.head(features)

        logits = two_view_similarities(projections, projections, self.temperature)
        label, itself = class_of(batch), own_rows(features.chunk(2)[0])
        everyone = gather(label)
        target = same_class(label.repeat(2), everyone.repeat(2), torch.cat([itself, len(everyone) + itself]))
        loss = F.cross_entropy(logits, target)
        accuracy = target.gather(1, logits.argmax(dim=1, keepdim=True)).gt(0).float().mean()
        clean = features.chunk(2)[0].detach() if first.clean else None
        return Loss(loss, {"accuracy": accuracy}, clean)
