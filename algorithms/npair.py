"""N-pair, and i-Mix with the N-pair objective (Lee et al. 2021, eq. 5 and 6): each example is its own class.

With x and x' the two views, r a random permutation of the batch and λ_i ~ Beta(α, α), λ_i ≥ 1/2,

    L_ij = cos(z(mix(x_i, x_r(i); λ_i)), z(x'_j)) / τ
    loss = mean_i λ_i CE(L_i, i) + (1-λ_i) CE(L_i, r(i))

Unmixed, λ_i = 1 and the loss is mean_i CE(L_i, i), the baseline of i-Mix. Tokens are mixed, for every modality. Patch
mixing and cutmix weight the label by the share of tokens that an example keeps.

Gradient flows through both sides. With identical views, dropout is the only difference between them. The head is
i-Mix's for CIFAR and Speech Commands, with batch norm after both layers; its ImageNet head has none.

The supervised form (appendix C.2) has in place of i every key of i's class, with equal weights: for v_i the vector of
these, loss = mean_i λ_i CE(L_i, v_i) + (1-λ_i) CE(L_i, v_r(i)).
"""

from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from dabsmix.distributed import gather, own_rows
from dabsmix.model.encoder import Encoder, mean_features
from dabsmix.pretext.algorithm import Algorithm, Loss, check_positive
from dabsmix.pretext.contrast import class_of, mixed_cross_entropy, mlp_head, same_class, similarities
from dabsmix.pretext.tokens import check_mixing, mix
from dabsmix.pretext.views import two_views
from dabsmix.spec import Batch

__all__ = ["NAMES", "IMixNPair", "IMixSupNPair", "NPair", "SupNPair"]

NAMES = {"imix_npair": "IMixNPair", "supnpair": "SupNPair", "imix_supnpair": "IMixSupNPair"}


class NPair(Algorithm):
    """N-pair contrast of two views, unmixed: the baseline of imix_npair.

    Args:
        encoder: what is trained.
        mixing: how two examples' tokens are mixed
        alpha: λ ~ Beta(alpha, alpha); 2 for CovType in the source
        share: one λ for each example or for the batch; operator: as in the source's code, the batch for cutmix only
        temperature: divides the cosine similarities; 0.2 for images, 0.5 for speech, 0.1 for tables in the source
        views: how the two views of an example differ
        inputmix: auxiliary examples mixed into each view, labels untouched
        head_norm: layers of the projection head that batch norm follows
    """

    num_views: ClassVar[int] = 2
    needs_tokens: ClassVar[bool] = False
    added: ClassVar[tuple[str, ...]] = ("mixing", "alpha", "share")

    def __init__(
        self,
        encoder: Encoder,
        *,
        mixing: Literal["none", "mixup", "patch", "cutmix"] = "none",
        alpha: float = 1.0,
        share: Literal["operator", "example", "batch"] = "operator",
        temperature: float = 0.2,
        views: Literal["identical", "noise", "mask", "augment"] = "identical",
        inputmix: Literal[0, 1, 2] = 0,
        head_norm: Literal["none", "first", "both"] = "both",
    ) -> None:
        super().__init__(encoder)
        check_positive(alpha=alpha, temperature=temperature)
        check_mixing(mixing, encoder.num_tokens)
        self.mixing = mixing
        self.alpha = alpha
        self.share = share
        self.temperature = temperature
        self.views = views
        self.inputmix = inputmix
        self.head = mlp_head(encoder.width, encoder.width, head_norm)

    def forward(self, batch: Batch) -> Loss:
        """The contrast of the first view, mixed or not, against the second."""
        rng = np.random.default_rng(batch.seed)
        anchor, key = two_views(self.encoder, self.encoder, batch.views, rng, self.views, self.inputmix)
        mixed, partner = mix(anchor, rng, self.mixing, self.alpha, self.share)
        features = mean_features(self.encoder, mixed.embedded, key.own)
        anchors, keys = self.head(features).chunk(2)

        logits, own = similarities(anchors, keys, self.temperature), own_rows(anchors)
        loss = self._costs(logits, own, partner, mixed.weight, batch).mean()
        accuracy = (logits.argmax(dim=1) == own).float().mean()
        clean = features.chunk(2)[1].detach() if key.clean else None
        return Loss(loss, {"accuracy": accuracy}, clean)

    def _costs(self, logits: Tensor, own: Tensor, partner: Tensor, weight: Tensor, batch: Batch) -> Tensor:
        """The loss of each anchor, ``(b,)``: its class is its own place in the batch."""
        return mixed_cross_entropy(logits, own, partner, weight)


class IMixNPair(NPair):
    """i-Mix, N-pair: contrast of mixed anchors against unmixed keys."""

    added: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, encoder: Encoder, *, mixing: Literal["mixup", "patch", "cutmix"] = "mixup", **others: Any
    ) -> None:
        super().__init__(encoder, mixing=mixing, **others)


class SupNPair(NPair):
    """Supervised N-pair (uses labels), unmixed: contrast by class, the baseline of imix_supnpair."""

    needs_labels: ClassVar[bool] = True
    added: ClassVar[tuple[str, ...]] = ()

    def _costs(self, logits: Tensor, own: Tensor, partner: Tensor, weight: Tensor, batch: Batch) -> Tensor:
        label = class_of(batch)
        everyone = gather(label)
        mine, theirs = same_class(label, everyone), same_class(everyone[partner], everyone)
        return -((weight[:, None] * mine + (1 - weight[:, None]) * theirs) * logits.log_softmax(dim=1)).sum(dim=1)


class IMixSupNPair(SupNPair):
    """i-Mix, supervised N-pair (uses labels): contrast of mixed anchors against unmixed keys, by class."""

    def __init__(
        self, encoder: Encoder, *, mixing: Literal["mixup", "patch", "cutmix"] = "mixup", **others: Any
    ) -> None:
        super().__init__(encoder, mixing=mixing, **others)
