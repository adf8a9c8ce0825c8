"""MoCo v2, and i-Mix with the MoCo objective (Lee et al. 2021, eq. 8 and 9): contrast with a queue of past keys.

With x and x' the two views, r a random permutation of the batch and λ_i ~ Beta(α, α), λ_i ≥ 1/2,

    k_i = z_key(x'_i), the key encoder's parameters following: θ_key ← m θ_key + (1-m) θ
    L_i = cos(z(mix(x_i, x_r(i); λ_i)), [k_1 ... k_n ; queue]) / τ
    loss = mean_i λ_i CE(L_i, i) + (1-λ_i) CE(L_i, r(i))

and then the keys of the batch enter the queue, first in first out. The other keys of the batch are negatives beside the
queue, since the partner's key has to be one of the classes (the "revised MoCo"). Unmixed, λ_i = 1, and MoCo v2
contrasts with its own key and the queue alone, L_i = cos(z(x_i), [k_i ; queue]) / τ, unless ``in_batch_negatives``
is set.

The head is i-Mix's for CIFAR: batch norm after the first layer; after both for speech and tables, none for ImageNet.
Its batch norm has one set of statistics for anchors and another for keys.
"""

from typing import Any, ClassVar, Literal

import numpy as np
import torch

from dabsmix.distributed import gather, own_rows
from dabsmix.errors import UserError
from dabsmix.model.encoder import Encoder, mean_features
from dabsmix.pretext.algorithm import Algorithm, Loss, check_positive, check_share
from dabsmix.pretext.contrast import PROJECTION, mixed_cross_entropy, mlp_head, products, unit
from dabsmix.pretext.momentum import Queue, follow, momentum_at, momentum_copy
from dabsmix.pretext.tokens import check_mixing, mix
from dabsmix.pretext.views import two_views
from dabsmix.spec import Batch

__all__ = ["NAMES", "IMixMoCo", "MoCo"]

NAMES = {"imix_moco": "IMixMoCo"}


class MoCo(Algorithm):
    """MoCo v2, unmixed: the baseline of imix_moco.

    Args:
        encoder: what is trained.
        mixing: how two examples' tokens are mixed; all but none need in_batch_negatives
        alpha: λ ~ Beta(alpha, alpha); 2 for CovType in the source
        share: one λ for each example or for the batch; operator: as in the source's code, the batch for cutmix only
        temperature: divides the cosine similarities; 0.2 for images, 0.5 for speech, 0.1 for tables in the source
        momentum: m of the key encoder
        cosine_momentum: let the momentum rise to 1 by half a cosine, an option of the source's code
        queue: number of past keys; 65536 for ImageNet in the source
        in_batch_negatives: whether the other keys of the batch are negatives too, as in i-Mix's revised MoCo
        views: how the two views of an example differ
        inputmix: auxiliary examples mixed into each view, labels untouched
        head_norm: layers of the projection head that batch norm follows
    """

    num_views: ClassVar[int] = 2
    needs_tokens: ClassVar[bool] = False
    added: ClassVar[tuple[str, ...]] = ("mixing", "alpha", "share", "cosine_momentum")

    def __init__(
        self,
        encoder: Encoder,
        *,
        mixing: Literal["none", "mixup", "patch", "cutmix"] = "none",
        alpha: float = 1.0,
        share: Literal["operator", "example", "batch"] = "operator",
        temperature: float = 0.2,
        momentum: float = 0.999,
        cosine_momentum: bool = False,
        queue: int = 4096,
        in_batch_negatives: bool = False,
        views: Literal["identical", "noise", "mask", "augment"] = "identical",
        inputmix: Literal[0, 1, 2] = 0,
        head_norm: Literal["none", "first", "both"] = "first",
    ) -> None:
        super().__init__(encoder)
        check_positive(alpha=alpha, temperature=temperature, queue=queue)
        check_mixing(mixing, encoder.num_tokens)
        check_share(momentum=momentum)
        if mixing != "none" and not in_batch_negatives:
            raise UserError(
                f"--mixing {mixing} needs --in-batch-negatives: the partner's key has to be in the contrast"
            )
        self.mixing = mixing
        self.alpha = alpha
        self.share = share
        self.temperature = temperature
        self.momentum = momentum
        self.cosine_momentum = cosine_momentum
        self.in_batch_negatives = in_batch_negatives
        self.views = views
        self.inputmix = inputmix
        self.head = mlp_head(encoder.width, encoder.width, head_norm)
        self.key_encoder = momentum_copy(encoder)
        self.key_head = momentum_copy(self.head)
        self.queue = Queue(queue, PROJECTION)

    def forward(self, batch: Batch) -> Loss:
        """The contrast of the first view, mixed or not, against the keys of the second and of the past."""
        rng = np.random.default_rng(batch.seed)
        anchor, key = two_views(self.encoder, self.key_encoder, batch.views, rng, self.views, self.inputmix)
        mixed, partner = mix(anchor, rng, self.mixing, self.alpha, self.share)
        anchors = unit(self.head(mean_features(self.encoder, mixed.embedded)))
        with torch.no_grad():
            keys = unit(self.key_head(mean_features(self.key_encoder, key.own)))
            all_keys = gather(keys)

        own = own_rows(anchors)
        if self.in_batch_negatives:
            logits = products(anchors, torch.cat([all_keys, self.queue.keys])) / self.temperature
        else:
            past = products(anchors, self.queue.keys.clone())  # the backward pass needs them as they were
            logits = torch.cat([(anchors * keys).sum(dim=1, keepdim=True), past], dim=1) / self.temperature
            own = partner = torch.zeros_like(own)
        loss = mixed_cross_entropy(logits, own, partner, mixed.weight).mean()
        self.queue.push(all_keys)
        accuracy = (logits.argmax(dim=1) == own).float().mean()
        return Loss(loss, {"accuracy": accuracy}, None)

    def after_step(self, progress: float) -> None:
        """Move the key encoder and its head, before the next step's keys are made."""
        momentum = momentum_at(progress, self.momentum, cosine=self.cosine_momentum)
        follow(self.key_encoder, self.encoder, momentum)
        follow(self.key_head, self.head, momentum)


class IMixMoCo(MoCo):
    """i-Mix, MoCo: contrast of mixed anchors against a momentum encoder's keys, of this batch and of the past."""

    added: ClassVar[tuple[str, ...]] = ("in_batch_negatives", "cosine_momentum")

    def __init__(
        self,
        encoder: Encoder,
        *,
        mixing: Literal["mixup", "patch", "cutmix"] = "mixup",
        in_batch_negatives: bool = True,
        **others: Any,
    ) -> None:
        super().__init__(encoder, mixing=mixing, in_batch_negatives=in_batch_negatives, **others)
