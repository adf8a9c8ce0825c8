"""d-mix: e-mix with discrete patch mixup, in which no token is interpolated.

Every example of the batch is a separate class. With r a random permutation and λ_i ~ Beta(α, α), λ_i ≥ 1/2,
k_i = round((1-λ_i) N) of the N tokens of example i, chosen uniformly, are replaced by its partner's at the same places:

    M_i[p] = T_r(i)[p] if p is chosen else T_i[p]       T tokens before positions
    λ'_i = 1 - k_i / N                                   the share of tokens kept
    L_ij = cos(encode(M)_i, encode(T)_j) / τ
    loss = mean_i λ'_i CE(L_i, i) + (1-λ'_i) CE(L_i, r(i))
"""

from typing import ClassVar

import numpy as np

from dabsmix.distributed import own_rows
from dabsmix.model.encoder import Embedded, Encoder, mean_features
from dabsmix.pretext.algorithm import Algorithm, Loss, check_positive
from dabsmix.pretext.contrast import dabs_head, mixed_cross_entropy, similarities
from dabsmix.pretext.tokens import draw_order, draw_pairs, patch_mix
from dabsmix.pretext.views import View
from dabsmix.spec import Batch

__all__ = ["DMix"]


class DMix(Algorithm):
    """d-mix: N-pair contrast of mixed against clean tokens; patch mixing.

    Args:
        encoder: what is trained.
        alpha: λ ~ Beta(alpha, alpha)
        temperature: divides the cosine similarities
        detach_partner: stop the gradient at the partner's tokens, as e-mix does
    """

    min_tokens: ClassVar[int] = 2
    fit_reason: ClassVar[str] = "examples are distinguished within the batch, and mixing takes some of their tokens"

    def __init__(
        self, encoder: Encoder, *, alpha: float = 1.0, temperature: float = 0.2, detach_partner: bool = True
    ) -> None:
        super().__init__(encoder)
        check_positive(alpha=alpha, temperature=temperature)
        self.alpha = alpha
        self.temperature = temperature
        self.detach_partner = detach_partner
        self.head = dabs_head(encoder.width)

    def forward(self, batch: Batch) -> Loss:
        """The contrast of the mixed batch against the clean one."""
        rng = np.random.default_rng(batch.seed)
        clean = View(self.encoder, batch.views[0], self.encoder.embed(batch.views[0]))
        pairs = draw_pairs(rng, clean.own, self.alpha)
        partner = clean.rows(pairs.partner)
        if self.detach_partner:
            partner = Embedded(partner.tokens.detach(), partner.mask)
        mixed = patch_mix(clean.own, partner, pairs.weight, draw_order(rng, clean.own))

        features = mean_features(self.encoder, mixed.embedded, clean.own)
        anchors, keys = self.head(features).chunk(2)

        logits, own = similarities(anchors, keys, self.temperature), own_rows(anchors)
        loss = mixed_cross_entropy(logits, own, pairs.partner, mixed.weight).mean()
        accuracy = (logits.argmax(dim=1) == own).float().mean()
        return Loss(loss, {"accuracy": accuracy}, features.chunk(2)[1].detach())
