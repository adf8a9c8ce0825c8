"""Contdmix: d-mix and ContPred from one pass over a sequence that is mixed and then masked.

Known only by the phrase "generalize d-mix by combining ContPred"; the rest is our reading. Of the patch-mixed tokens M
with weights λ' (see dmix), ceil(rate · N) are set to zero before positions are added, and one pass H of the encoder
serves two losses:

    L_dmix     = mean_i λ'_i CE(L_i, i) + (1-λ'_i) CE(L_i, r(i)),    L_ij = cos(z(H_i), z(encode(T)_j)) / τ
    L_contpred = mean over scored p of CE(S_p, p),                   S_pq = cos(W H_p, M_q) / τ'
    loss       = L_dmix + β L_contpred

The target of a position is the token that M had there before masking, whichever example it came from. S are cosines,
not products as in ContPred: the loss of products starts ten times higher, which leaves almost nothing of d-mix's
gradient after clipping (docs/comparison.md).
"""

from typing import ClassVar, Literal

import numpy as np
from torch import nn

from dabsmix.distributed import own_rows
from dabsmix.errors import UserError
from dabsmix.model.encoder import Embedded, Encoder, concatenate
from dabsmix.pretext.algorithm import Algorithm, Loss, check_positive, check_share
from dabsmix.pretext.contrast import dabs_head, mixed_cross_entropy, position_costs, similarities
from dabsmix.pretext.tokens import choose, corrupted, draw_order, draw_pairs, mean_over, patch_mix
from dabsmix.pretext.views import View
from dabsmix.spec import Batch

__all__ = ["ContDMix"]


class ContDMix(Algorithm):
    """Contdmix: d-mix's contrast and ContPred's prediction from one pass over mixed and masked tokens.

    Args:
        encoder: what is trained.
        alpha: λ ~ Beta(alpha, alpha)
        temperature: divides the cosine similarities of d-mix
        detach_partner: stop the gradient at the partner's tokens, as e-mix does
        beta: weight of ContPred's loss
        rate: share of an example's tokens that are masked
        contpred_temperature: divides ContPred's products
        score: positions whose predictions count
        normalize: use cosines in ContPred's part, not products as ContPred alone does
        detach_targets: stop the gradient at the tokens that are predicted
    """

    min_tokens: ClassVar[int] = 2
    fit_reason: ClassVar[str] = "examples are distinguished within the batch, and tokens within their example"

    def __init__(
        self,
        encoder: Encoder,
        *,
        alpha: float = 1.0,
        temperature: float = 0.2,
        detach_partner: bool = True,
        beta: float = 1.0,
        rate: float = 0.15,
        contpred_temperature: float = 0.07,
        score: Literal["all", "masked"] = "all",
        normalize: bool = True,
        detach_targets: bool = False,
    ) -> None:
        super().__init__(encoder)
        check_positive(alpha=alpha, temperature=temperature, rate=rate, contpred_temperature=contpred_temperature)
        check_share(rate=rate)
        if beta < 0:
            raise UserError(f"--beta must be 0 or more, got {beta}")
        self.alpha = alpha
        self.temperature = temperature
        self.detach_partner = detach_partner
        self.beta = beta
        self.rate = rate
        self.contpred_temperature = contpred_temperature
        self.score = score
        self.normalize = normalize
        self.detach_targets = detach_targets
        self.head = dabs_head(encoder.width)
        self.predictor = nn.Linear(encoder.width, encoder.width)

    def forward(self, batch: Batch) -> Loss:
        """The sum of both losses."""
        rng = np.random.default_rng(batch.seed)
        clean = View(self.encoder, batch.views[0], self.encoder.embed(batch.views[0]))
        pairs = draw_pairs(rng, clean.own, self.alpha)
        partner = clean.rows(pairs.partner)
        if self.detach_partner:
            partner = Embedded(partner.tokens.detach(), partner.mask)
        mixed = patch_mix(clean.own, partner, pairs.weight, draw_order(rng, clean.own))
        tokens, mask = mixed.embedded
        real = mixed.embedded.real
        masked = choose(draw_order(rng, clean.own), corrupted(real, self.rate), real)

        both = concatenate(Embedded(tokens.masked_fill(masked[..., None], 0), mask), clean.own)
        hidden = self.encoder.encode(both)
        features = self.encoder.pool(hidden, both.mask).mean
        anchors, keys = self.head(features).chunk(2)

        logits, own = similarities(anchors, keys, self.temperature), own_rows(anchors)
        dmix = mixed_cross_entropy(logits, own, pairs.partner, mixed.weight).mean()
        accuracy = (logits.argmax(dim=1) == own).float().mean()

        cost, hit = position_costs(
            self.predictor(hidden[: len(tokens), 1:]),
            tokens.detach() if self.detach_targets else tokens,
            real,
            self.contpred_temperature,
            self.normalize,
        )
        contpred = mean_over(cost, masked if self.score == "masked" else real)
        metrics = {
            "accuracy": accuracy,
            "loss_dmix": dmix.detach(),
            "loss_contpred": contpred.detach(),
            "accuracy_contpred": mean_over(hit.float(), masked),
        }
        return Loss(dmix + self.beta * contpred, metrics, features.chunk(2)[1].detach())
