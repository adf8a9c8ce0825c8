"""i-Mix with the MoCo objective (Lee et al. 2021, eq. 8 and 9).

Every example of the batch is a class of its own. With r a random permutation and λ_i ~ Beta(α, α), λ_i ≥ 1/2,

    k_i = z_key(x'_i), the key encoder's parameters following: θ_key ← m θ_key + (1-m) θ
    L_i = cos(z(mix(x_i, x_r(i); λ_i)), [k_1 ... k_n ; queue]) / τ       x, x' the two views
    loss = mean_i λ_i CE(L_i, i) + (1-λ_i) CE(L_i, r(i))

and then the keys of the batch enter the queue, first in first out. The other keys of the batch are negatives beside the
queue, since the partner's has to be a label: the "revised MoCo". The head is i-Mix's for CIFAR: batch norm after the
first layer; after both for speech and tables, none for ImageNet. Its batch norm has one set of statistics for anchors
and another for keys.
"""

from typing import ClassVar, Literal

import numpy as np
import torch

from dabsmix.distributed import gather, own_rows
from dabsmix.model.encoder import Encoder, mean_features
from dabsmix.pretext.algorithm import Algorithm, Loss, check_positive, check_share
from dabsmix.pretext.contrast import mixed_cross_entropy, products, unit
from dabsmix.pretext.heads import PROJECTION, mlp_head
from dabsmix.pretext.mixing import check_mixing, mix
from dabsmix.pretext.momentum import Queue, follow, momentum_copy
from dabsmix.pretext.views import two_views
from dabsmix.spec import Batch

__all__ = ["IMixMoCo"]


class IMixMoCo(Algorithm):
    """i-Mix, MoCo: contrast of mixed anchors against a momentum encoder's keys, of this batch and of the past.

    Args:
        encoder: what is trained.
        mixing: how two examples' tokens are mixed
        alpha: λ ~ Beta(alpha, alpha); 2 for CovType in the source
        share: one λ for each example or for the batch; operator, as the source's code: the batch for cutmix
        temperature: divides the cosine similarities; 0.2 for images, 0.5 for speech, 0.1 for tables in the source
        momentum: m of the key encoder
        queue: number of past keys; 65536 for ImageNet in the source
        views: how the two views of an example differ
        inputmix: auxiliary examples mixed into each view, labels untouched
        head_norm: layers of the projection head that batch norm follows
    """

    num_views: ClassVar[int] = 2

    def __init__(
        self,
        encoder: Encoder,
        *,
        mixing: Literal["mixup", "patch", "cutmix"] = "mixup",
        alpha: float = 1.0,
        share: Literal["operator", "example", "batch"] = "operator",
        temperature: float = 0.2,
        momentum: float = 0.999,
        queue: int = 4096,
        views: Literal["identical", "noise", "augment"] = "identical",
        inputmix: Literal[0, 1, 2] = 0,
        head_norm: Literal["none", "first", "both"] = "first",
    ) -> None:
        super().__init__(encoder)
        check_positive(alpha=alpha, temperature=temperature, queue=queue)
        check_mixing(mixing, encoder.num_tokens)
        check_share(momentum=momentum)
        self.mixing = mixing
        self.alpha = alpha
        self.share = share
        self.temperature = temperature
        self.momentum = momentum
        self.views = views
        self.inputmix = inputmix
        self.head = mlp_head(encoder.width, encoder.width, head_norm)
        self.key_encoder = momentum_copy(encoder)
        self.key_head = momentum_copy(self.head)
        self.queue = Queue(queue, PROJECTION)

    def forward(self, batch: Batch) -> Loss:
        """The contrast of the mixed first view against the keys of the second and of the past."""
        rng = np.random.default_rng(batch.seed)
        anchor, key = two_views(self.encoder, self.key_encoder, batch.views, rng, self.views, self.inputmix)
        mixed, partner = mix(anchor, rng, self.mixing, self.alpha, self.share)
        anchors = unit(self.head(mean_features(self.encoder, mixed.embedded)))
        with torch.no_grad():
            keys = gather(unit(self.key_head(mean_features(self.key_encoder, key.own))))

        logits = products(anchors, torch.cat([keys, self.queue.keys])) / self.temperature
        own = own_rows(anchors)
        loss = mixed_cross_entropy(logits, own, partner, mixed.weight).mean()
        self.queue.push(keys)
        accuracy = (logits.argmax(dim=1) == own).float().mean()
        return Loss(loss, {"accuracy": accuracy}, None)

    def after_step(self, progress: float) -> None:
        """Moves the key encoder and its head, before the next step's keys are made."""
        follow(self.key_encoder, self.encoder, self.momentum)
        follow(self.key_head, self.head, self.momentum)
