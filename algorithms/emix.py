"""e-mix: i-Mix on embedded inputs (DABS, Tamkin et al. 2021; after i-Mix, Lee et al. 2021).

Every example of the batch is a class of its own. With r a random permutation and λ_i ~ Beta(α, α), λ_i ≥ 1/2,

    M_i = λ_i T_i + (1-λ_i) sg(T_r(i))            T tokens before positions, sg stop-gradient
    L_ij = cos(encode(M)_i, encode(T)_j) / τ
    loss = mean_i λ_i CE(L_i, i) + (1-λ_i) CE(L_i, r(i))

DABS's own code loses λ_i to broadcasting and computes mean(λ) mean_i CE(L_i, i) + (1 - mean(λ)) mean_i CE(L_i, r(i));
``label_weight="batch-mean"`` does the same, for comparison with its published numbers.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from dabsmix.algorithm import Algorithm, Loss
from dabsmix.contrast import mixed_cross_entropy, own_rows, similarities
from dabsmix.encoder import Embedded, Encoder
from dabsmix.errors import UserError
from dabsmix.projection import dabs_head
from dabsmix.mixing import concatenate, draw_pairs, mixup, partners
from dabsmix.spec import Batch

__all__ = ["EMix"]


class EMix(Algorithm):
    """e-mix (DABS): N-pair contrast of mixed against clean tokens; mixup on tokens.

    Args:
        encoder: what is trained.
        alpha: λ ~ Beta(alpha, alpha)
        temperature: divides the cosine similarities
        label_weight: λ of each example, or the batch's mean λ for all (a fault of the DABS reference)
    """

    dabs: ClassVar[Mapping[str, object]] = {"label_weight": "batch-mean"}

    def __init__(
        self,
        encoder: Encoder,
        *,
        alpha: float = 1.0,
        temperature: float = 0.2,
        label_weight: Literal["example", "batch-mean"] = "example",
    ) -> None:
        super().__init__(encoder)
        if alpha <= 0 or temperature <= 0:
            raise UserError(f"alpha and temperature must be above 0, got {alpha} and {temperature}")
        self.alpha = alpha
        self.temperature = temperature
        self.label_weight = label_weight
        self.head = dabs_head(encoder.width)

    def forward(self, batch: Batch) -> Loss:
        """The contrast of the mixed batch against the clean one."""
        rng = np.random.default_rng(batch.seed)
        inputs = batch.views[0]
        clean = self.encoder.embed(inputs)
        pairs = draw_pairs(rng, clean, self.alpha)
        partner = partners(self.encoder, inputs, clean, pairs.partner)
        mixed = mixup(clean, Embedded(partner.tokens.detach(), partner.mask), pairs.weight)

        both = concatenate(Embedded(mixed.tokens, clean.mask), clean)
        pooled = self.encoder.pool(self.encoder.encode(both), both.mask).mean
        anchors, keys = self.head(pooled).chunk(2)

        logits, own = similarities(anchors, keys, self.temperature), own_rows(anchors)
        weight = pairs.mean_weight if self.label_weight == "batch-mean" else mixed.weight
        loss = mixed_cross_entropy(logits, own, pairs.partner, weight).mean()
        accuracy = (logits.argmax(dim=1) == own).float().mean()
        return Loss(loss, {"accuracy": accuracy}, pooled.chunk(2)[1].detach())
