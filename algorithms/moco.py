"""MoCo v2: each example is told from a queue of past keys by a momentum encoder's key (i-Mix's baseline).

    k_i = z_key(x'_i), the key encoder's parameters following: θ_key ← m θ_key + (1-m) θ
    L_i = cos(z(x_i), [k_i ; queue]) / τ
    loss = mean_i CE(L_i, 0)

and then the keys of the batch enter the queue, first in first out. With ``in_batch_negatives`` the contrast is
[k_1 ... k_n ; queue]: the "revised MoCo" of i-Mix (Lee et al. 2021, eq. 8), which is what imix_moco mixes. The head is
i-Mix's for CIFAR: batch norm after the first layer; after both for speech and tables, none for ImageNet. Its batch norm
has one set of statistics for anchors and another for keys.
"""

from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F

from dabsmix.distributed import gather, own_rows
from dabsmix.model.encoder import Encoder, mean_features
from dabsmix.pretext.algorithm import Algorithm, Loss, check_positive, check_share
from dabsmix.pretext.contrast import products, unit
from dabsmix.pretext.heads import PROJECTION, mlp_head
from dabsmix.pretext.momentum import Queue, follow, momentum_copy
from dabsmix.pretext.views import two_views
from dabsmix.spec import Batch

__all__ = ["MoCo"]


class MoCo(Algorithm):
    """MoCo v2, unmixed: the baseline of imix_moco.

    Args:
        encoder: what is trained.
        temperature: divides the cosine similarities; 0.2 for images, 0.5 for speech, 0.1 for tables in the source
        momentum: m of the key encoder
        queue: number of past keys; 65536 for ImageNet in the source
        in_batch_negatives: whether the other keys of the batch are negatives too, as in i-Mix's revised MoCo
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
        momentum: float = 0.999,
        queue: int = 4096,
        in_batch_negatives: bool = False,
        views: Literal["identical", "noise", "augment"] = "identical",
        inputmix: Literal[0, 1, 2] = 0,
        head_norm: Literal["none", "first", "both"] = "first",
    ) -> None:
        super().__init__(encoder)
        check_positive(temperature=temperature, queue=queue)
        check_share(momentum=momentum)
        self.temperature = temperature
        self.momentum = momentum
        self.in_batch_negatives = in_batch_negatives
        self.views = views
        self.inputmix = inputmix
        self.head = mlp_head(encoder.width, encoder.width, head_norm)
        self.key_encoder = momentum_copy(encoder)
        self.key_head = momentum_copy(self.head)
        self.queue = Queue(queue, PROJECTION)

    def forward(self, batch: Batch) -> Loss:
        """The contrast of the first view against the keys of the second and of the past."""
        rng = np.random.default_rng(batch.seed)
        anchor, key = two_views(self.encoder, self.key_encoder, batch.views, rng, self.views, self.inputmix)
        anchors = unit(self.head(mean_features(self.encoder, anchor.own)))
        with torch.no_grad():
            keys = unit(self.key_head(mean_features(self.key_encoder, key.own)))
            everyone = gather(keys)

        own = own_rows(anchors)
        past = products(anchors, self.queue.keys.clone())
        if self.in_batch_negatives:
            logits = torch.cat([products(anchors, everyone), past], dim=1) / self.temperature
            target = own
        else:
            logits = torch.cat([(anchors * keys).sum(dim=1, keepdim=True), past], dim=1) / self.temperature
            target = torch.zeros_like(own)
        self.queue.push(everyone)
        accuracy = (logits.argmax(dim=1) == target).float().mean()
        return Loss(F.cross_entropy(logits, target), {"accuracy": accuracy}, None)

    def after_step(self, progress: float) -> None:
        """Moves the key encoder and its head, before the next step's keys are made."""
        follow(self.key_encoder, self.encoder, self.momentum)
        follow(self.key_head, self.head, self.momentum)
