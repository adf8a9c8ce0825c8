"""SupCon (Khosla et al. 2020), and i-Mix with the SupCon objective (Lee et al. 2021, appendix A.2). Both use labels.

SimCLR with every example of the same class as a positive. Within each of the two views, with r a random permutation of
the batch and λ_a ~ Beta(α, α), λ_a ≥ 1/2,

    L_ab = cos(z(mix(x_a, x_r(a); λ_a)), z(x_b)) / τ         a, b any of the 2n views of the batch, b ≠ a
    v_ab = 1 where a and b are of one class, b ≠ a, divided by their number
    loss = mean_a λ_a CE(L_a, v_a) + (1-λ_a) CE(L_a, v_r(a))                                  2n-1 ways

Unmixed, λ_a = 1 and the anchors are the keys. Mixed, the clean and the mixed batch both go through the encoder. a's own
clean view is not a column of L_a, so both labels leave it out, v_r(a) too if a is of its partner's class. An example
alone in its class has its own other view as its only positive. The head is i-Mix's N-pair head.
"""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F

from dabsmix.distributed import gather, own_rows
from dabsmix.model.encoder import Encoder, mean_features
from dabsmix.pretext.algorithm import Algorithm, Loss, check_positive
from dabsmix.pretext.contrast import class_of, mlp_head, same_class, two_view_similarities
from dabsmix.pretext.tokens import check_mixing, mix
from dabsmix.pretext.views import two_views
from dabsmix.spec import Batch

__all__ = ["NAMES", "IMixSupCon", "SupCon"]

NAMES = {"imix_supcon": "IMixSupCon"}


class SupCon(Algorithm):
    """SupCon (uses labels), unmixed: the baseline of imix_supcon.

    Args:
        encoder: what is trained.
        mixing: how two examples' tokens are mixed
        alpha: λ ~ Beta(alpha, alpha)
        share: one λ for each example or for the batch; operator: as in the source's code, the batch for cutmix only
        temperature: divides the cosine similarities
        views: how the two views of an example differ
        inputmix: auxiliary examples mixed into each view, labels untouched
        head_norm: layers of the projection head that batch norm follows
    """

    num_views: ClassVar[int] = 2
    needs_tokens: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True
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
        """The contrast of every view, mixed or not, against all clean ones but its own."""
        rng = np.random.default_rng(batch.seed)
        first, second = two_views(self.encoder, self.encoder, batch.views, rng, self.views, self.inputmix)
        mixed_first, partner_first = mix(first, rng, self.mixing, self.alpha, self.share)
        mixed_second, partner_second = mix(second, rng, self.mixing, self.alpha, self.share)
        mixed = [] if self.mixing == "none" else [mixed_first.embedded, mixed_second.embedded]
        features = mean_features(self.encoder, *mixed, first.own, second.own)
        projections, own = self.head(features), own_rows(first.own.tokens)
        anchors, keys = projections[: 2 * len(own)], projections[-2 * len(own) :]  # the same if nothing is mixed

        logits = two_view_similarities(anchors, keys, self.temperature)
        label = class_of(batch)
        all_labels = gather(label)
        itself = torch.cat([own, len(all_labels) + own])
        own_target = same_class(label.repeat(2), all_labels.repeat(2), itself)
        partners = all_labels[torch.cat([partner_first, partner_second])]
        partner_target = same_class(partners, all_labels.repeat(2), itself)
        weight = torch.cat([mixed_first.weight, mixed_second.weight])[:, None]
        loss = F.cross_entropy(logits, weight * own_target + (1 - weight) * partner_target)
        accuracy = own_target.gather(1, logits.argmax(dim=1, keepdim=True)).gt(0).float().mean()
        clean = features[-2 * len(own) : -len(own)].detach() if first.clean else None
        return Loss(loss, {"accuracy": accuracy}, clean)


class IMixSupCon(SupCon):
    """i-Mix, SupCon (uses labels): contrast of mixed views against all unmixed ones, by class."""

    added: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, encoder: Encoder, *, mixing: Literal["mixup", "patch", "cutmix"] = "mixup", **others: Any
    ) -> None:
        super().__init__(encoder, mixing=mixing, **others)
