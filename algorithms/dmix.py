"""d-mix: e-mix with discrete patch mixup, in which no token is interpolated.

Every example of the batch is a class of its own. With r a random permutation and λ_i ~ Beta(α, α), λ_i ≥ 1/2,
k_i = round((1-λ_i) N) of the N tokens of example i, chosen uniformly, are replaced by its partner's at the same places:

    M_i[p] = T_r(i)[p] if p is chosen else T_i[p]       T tokens before positions
    λ'_i = 1 - k_i / N                                   what was really kept
    L_ij = cos(encode(M)_i, encode(T)_j) / τ
    loss = mean_i λ'_i CE(L_i, i) + (1-λ'_i) CE(L_i, r(i))
"""

from typing import Literal

import numpy as np

from dabsmix.algorithm import Algorithm, Loss
from dabsmix.contrast import mixed_cross_entropy, own_rows, similarities
from dabsmix.encoder import Embedded, Encoder
from dabsmix.errors import UserError
from dabsmix.projection import dabs_head
from dabsmix.mixing import concatenate, draw_order, draw_pairs, partners, patch_mix
from dabsmix.spec import Batch

__all__ = ["DMix"]


class DMix(Algorithm):
    """d-mix: N-pair contrast of mixed against clean tokens; patch mixing.

    Args:
        encoder: what is trained.
        alpha: λ ~ Beta(alpha, alpha)
        temperature: divides the cosine similarities
        partner: whether gradient reaches the embedder through the partner's tokens
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        alpha: float = 1.0,
        temperature: float = 0.2,
        partner: Literal["detached", "trained"] = "detached",
    ) -> None:
        super().__init__(encoder)
        if alpha <= 0 or temperature <= 0:
            raise UserError(f"alpha and temperature must be above 0, got {alpha} and {temperature}")
        self.alpha = alpha
        self.temperature = temperature
        self.partner = partner
        self.head = dabs_head(encoder.width)

    def forward(self, batch: Batch) -> Loss:
        """The contrast of the mixed batch against the clean one."""
        rng = np.random.default_rng(batch.seed)
        inputs = batch.views[0]
        clean = self.encoder.embed(inputs)
        pairs = draw_pairs(rng, clean, self.alpha)
        partner = partners(self.encoder, inputs, clean, pairs.partner)
        if self.partner == "detached":
            partner = Embedded(partner.tokens.detach(), partner.mask)
        mixed = patch_mix(clean, partner, pairs.weight, draw_order(rng, clean))

        both = concatenate(Embedded(mixed.tokens, clean.mask), clean)
        pooled = self.encoder.pool(self.encoder.encode(both), both.mask).mean
        anchors, keys = self.head(pooled).chunk(2)

        logits, own = similarities(anchors, keys, self.temperature), own_rows(anchors)
        loss = mixed_cross_entropy(logits, own, pairs.partner, mixed.weight).mean()
        accuracy = (logits.argmax(dim=1) == own).float().mean()
        return Loss(loss, {"accuracy": accuracy}, pooled.chunk(2)[1].detach())
