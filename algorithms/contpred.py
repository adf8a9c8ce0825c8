"""ContPred, contrastive prediction of masked tokens (DABS, Tamkin et al. 2021; its code and DABS 2.0 call it capri).

Of the N real tokens T of each example ceil(rate · N) are set to zero, before positions are added; a linear predictor on
the encoder's output, CLS aside, says for every position which token of the example was there:

    L_pq = <W h_p, sg T_q> / τ           cosine instead of the product with normalize
    loss = mean over scored p of CE(L_p, p)

DABS's code takes the softmax over p for each q instead, the reverse of what it documents: ``direction="target"``. It
scores every position (predicting an unmasked token is nearly a copy), does not normalise, and lets gradient into the
targets T. The first two are the defaults here too; the stop-gradient sg is ours, by measurement (docs/comparison.md).
The accuracy that is logged is always over targets, at masked positions.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from torch import nn

from dabsmix.errors import UserError
from dabsmix.model.encoder import Embedded, Encoder
from dabsmix.pretext.algorithm import Algorithm, Loss, check_positive, check_share
from dabsmix.pretext.contrast import position_costs, position_costs_in_batch
from dabsmix.pretext.tokens import choose, corrupted, draw_order, mean_over
from dabsmix.spec import Batch

__all__ = ["NAMES", "ContPred"]

NAMES = {"capri": "ContPred"}


class ContPred(Algorithm):
    """ContPred (DABS, also: capri): predicts which token of the example was at each masked position.

    Args:
        encoder: what is trained.
        rate: share of an example's tokens that are masked
        temperature: divides the products
        score: positions whose predictions count
        normalize: cosines instead of products
        detach_targets: stop the gradient at the tokens that are predicted
        negatives: the candidates: tokens of the same example, or the scored tokens of the whole batch
        direction: softmax over targets for each prediction, or the reverse (a fault of the DABS reference)
    """

    min_batch: ClassVar[int] = 1
    min_tokens: ClassVar[int] = 2
    fit_reason: ClassVar[str] = "a token is distinguished from the others of its example"
    dabs: ClassVar[Mapping[str, object]] = {
        "score": "all",
        "normalize": False,
        "detach_targets": False,
        "negatives": "sequence",
        "direction": "target",
    }

    def __init__(
        self,
        encoder: Encoder,
        *,
        rate: float = 0.15,
        temperature: float = 0.07,
        score: Literal["all", "masked"] = "all",
        normalize: bool = False,
        detach_targets: bool = True,
        negatives: Literal["sequence", "batch"] = "sequence",
        direction: Literal["prediction", "target"] = "prediction",
    ) -> None:
        super().__init__(encoder)
        check_positive(rate=rate, temperature=temperature)
        check_share(rate=rate)
        if negatives == "batch" and direction == "target":
            raise UserError("--direction target is a reverse within the sequence: not with --negatives batch")
        self.rate = rate
        self.temperature = temperature
        self.score = score
        self.normalize = normalize
        self.detach_targets = detach_targets
        self.negatives = negatives
        self.direction = direction
        self.predictor = nn.Linear(encoder.width, encoder.width)

    def forward(self, batch: Batch) -> Loss:
        """The cross-entropy of predicted against other tokens."""
        rng = np.random.default_rng(batch.seed)
        clean = self.encoder.embed(batch.views[0])
        real = clean.real
        masked = choose(draw_order(rng, clean), corrupted(real, self.rate), real)
        hidden = self.encoder.encode(Embedded(clean.tokens.masked_fill(masked[..., None], 0), clean.mask))

        predictions = self.predictor(hidden[:, 1:])
        targets = clean.tokens.detach() if self.detach_targets else clean.tokens
        scored = masked if self.score == "masked" else real
        if self.negatives == "batch":
            cost, hit = position_costs_in_batch(predictions, targets, scored, self.temperature, self.normalize)
        else:
            cost, hit = position_costs(
                predictions, targets, real, self.temperature, self.normalize, reverse=self.direction == "target"
            )
        return Loss(mean_over(cost, scored), {"accuracy": mean_over(hit.float(), masked)}, None)
