"""i-Mix with the SupCon objective (Lee et al. 2021, appendix A.2; Khosla et al. 2020). It uses labels.

Within each of the two views, with r a random permutation and λ_a ~ Beta(α, α), λ_a ≥ 1/2,

    L_ab = cos(z(mix(x_a, x_r(a); λ_a)), z(x_b)) / τ         a, b any of the 2n views of the batch, b ≠ a
    v_ab = 1 where a and b are of one class, divided by their number
    loss = mean_a λ_a CE(L_a, v_a) + (1-λ_a) CE(L_a, v_r(a))

a's own clean view is no column of L_a, so both labels leave it out: also v_r(a), where a is of its partner's class. The
clean and the mixed batch both go through the encoder. The head is i-Mix's N-pair head.
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
from dabsmix.pretext.mixing import check_mixing, mix
from dabsmix.pretext.views import two_views
from dabsmix.spec import Batch

__all__ = ["IMixSupCon"]


class IMixSupCon(Algorithm):
    """i-Mix, SupCon (uses labels): contrast of mixed views against all unmixed ones, by class.

    Args:
        encoder: what is trained.
        mixing: how two examples' tokens are mixed
        alpha: λ ~ Beta(alpha, alpha)
        share: one λ for each example or for the batch; operator, as the source's code: the batch for cutmix
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
        mixing: Literal["mixup", "patch", "cutmix"] = "mixup",
        alpha: float = 1.0,
        share: Literal["operator", "example", "batch"] = "operator",
        temperature: float = 0.2,
        views: Literal["identical", "noise", "augment"] = "identical",
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
        """The contrast of every mixed view against all clean ones but its own."""
        rng = np.random.default_rng(batch.seed)
        first, second = two_views(self.encoder, self.encoder, batch.views, rng, self.views, self.inputmix)
        mixed_first, partner_first = mix(first, rng, self.mixing, self.alpha, self.share)
        mixed_second, partner_second = mix(second, rng, self.mixing, self.alpha, self.share)
        features = mean_features(self.encoder, mixed_first.embedded, mixed_second.embedded, first.own, second.own)
        anchors, keys = self.head(features).chunk(2)

        logits = two_view_similarities(anchors, keys, self.temperature)
        label, own = class_of(batch), own_rows(features.chunk(4)[0])
        everyone = gather(label)
        itself = torch.cat([own, len(everyone) + own])
        own_target = same_class(label.repeat(2), everyone.repeat(2), itself)
        partners = everyone[torch.cat([partner_first, partner_second])]
        partner_target = same_class(partners, everyone.repeat(2), itself)
        weight = torch.cat([mixed_first.weight, mixed_second.weight])[:, None]
        loss = F.cross_entropy(logits, weight * own_target + (1 - weight) * partner_target)
        accuracy = own_target.gather(1, logits.argmax(dim=1, keepdim=True)).gt(0).float().mean()
        clean = features.chunk(4)[2].detach() if first.clean else None
        return Loss(loss, {"accuracy": accuracy}, clean)
