"""SimCLR (Chen et al. 2020), and i-Mix with the SimCLR objective (Lee et al. 2021, appendix A.1).

Each example is its own class, and each side's other examples are negatives too. Within each of the two views, with r a
random permutation of the batch and λ_a ~ Beta(α, α), λ_a ≥ 1/2,

    L_ab = cos(z(mix(x_a, x_r(a); λ_a)), z(x_b)) / τ         a, b any of the 2n views of the batch, b ≠ a
    loss = mean_a λ_a CE(L_a, a's other view) + (1-λ_a) CE(L_a, r(a)'s other view)            2n-1 ways

Unmixed, λ_a = 1 and the anchors are the keys. Mixed, the clean and the mixed batch both go through the encoder: twice
the work. With identical views, dropout is the only difference between them. The head is i-Mix's N-pair head.
"""

from typing import Any, ClassVar, Literal

import numpy as np
import torch

from dabsmix.distributed import own_rows
from dabsmix.model.encoder import Encoder, mean_features
from dabsmix.pretext.algorithm import Algorithm, Loss, check_positive
from dabsmix.pretext.contrast import mixed_cross_entropy, mlp_head, two_view_similarities
from dabsmix.pretext.tokens import check_mixing, mix
from dabsmix.pretext.views import two_views
from dabsmix.spec import Batch

__all__ = ["NAMES", "IMixSimCLR", "SimCLR"]

NAMES = {"imix_simclr": "IMixSimCLR"}


class SimCLR(Algorithm):
    """SimCLR, unmixed: the baseline of imix_simclr.

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
        n = logits.shape[1] // 2
        other, partner_other = torch.cat([n + own, own]), torch.cat([n + partner_first, partner_second])
        weight = torch.cat([mixed_first.weight, mixed_second.weight])
        loss = mixed_cross_entropy(logits, other, partner_other, weight).mean()
        accuracy = (logits.argmax(dim=1) == other).float().mean()
        clean = features[-2 * len(own) : -len(own)].detach() if first.clean else None
        return Loss(loss, {"accuracy": accuracy}, clean)


class IMixSimCLR(SimCLR):
    """i-Mix, SimCLR: contrast of mixed views against all unmixed ones."""

    added: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, encoder: Encoder, *, mixing: Literal["mixup", "patch", "cutmix"] = "mixup", **others: Any
    ) -> None:
        super().__init__(encoder, mixing=mixing, **others)
