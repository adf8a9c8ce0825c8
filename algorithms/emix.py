"""e-mix: i-Mix on embedded inputs (DABS, Tamkin et al. 2021; after i-Mix, Lee et al. 2021).

Every example of the batch is a separate class. With r a random permutation and λ_i ~ Beta(α, α), λ_i ≥ 1/2,

    M_i = λ_i T_i + (1-λ_i) sg(T_r(i))            T tokens before positions, sg stop-gradient
    L_ij = cos(encode(M)_i, encode(T)_j) / τ
    loss = mean_i λ_i CE(L_i, i) + (1-λ_i) CE(L_i, r(i))

DABS's own code loses λ_i to broadcasting and computes mean(λ) mean_i CE(L_i, i) + (1 - mean(λ)) mean_i CE(L_i, r(i));
``label_weight="batch-mean"`` does the same, for comparison with its published numbers.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from dabsmix.distributed import own_rows
from dabsmix.model.encoder import Embedded, Encoder, mean_features
from dabsmix.pretext.algorithm import Algorithm, Loss, check_positive
from dabsmix.pretext.contrast import dabs_head, mixed_cross_entropy, similarities
from dabsmix.pretext.tokens import draw_pairs, mixup
from dabsmix.pretext.views import View
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
        check_positive(alpha=alpha, temperature=temperature)
        self.alpha = alpha
        self.temperature = temperature
        self.label_weight = label_weight
        self.head = dabs_head(encoder.width)

    def forward(self, batch: Batch) -> Loss:
        """The contrast of the mixed batch against the clean one."""
        rng = np.random.default_rng(batch.seed)
        clean = View(self.encoder, batch.views[0], self.encoder.embed(batch.views[0]))
        pairs = draw_pairs(rng, clean.own, self.alpha)
        partner = clean.rows(pairs.partner)
        mixed = mixup(clean.own, Embedded(partner.tokens.detach(), partner.mask), pairs.weight)

        features = mean_features(self.encoder, mixed.embedded, clean.own)
        anchors, keys = self.head(features).chunk(2)

        logits, own = similarities(anchors, keys, self.temperature), own_rows(anchors)
        weight = pairs.mean_weight if self.label_weight == "batch-mean" else mixed.weight
        loss = mixed_cross_entropy(logits, own, pairs.partner, weight).mean()
        accuracy = (logits.argmax(dim=1) == own).float().mean()
        return Loss(loss, {"accuracy": accuracy}, features.chunk(2)[1].detach())
