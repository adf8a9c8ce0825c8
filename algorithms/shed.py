"""ShED, shuffled-embedding detection: which tokens are not where they were? (DABS, Tamkin et al. 2021)

Of the N real tokens of each example max(2, ceil(rate · N)) are chosen at random and change places in a cycle, so that
none of them stays. A linear classifier on every token of the encoder's output, except CLS, separates moved from unmoved
tokens:

    loss = mean over tokens of CE(W h_p, was p moved?)

DABS moves ceil(rate · N) tokens: for six tokens or fewer this is one, which cannot move but is labelled as moved.
"""

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dabsmix.model.encoder import Embedded, Encoder
from dabsmix.pretext.algorithm import Algorithm, Loss, check_positive, check_share
from dabsmix.pretext.tokens import corrupted, draw_order, mean_over
from dabsmix.spec import Batch

__all__ = ["ShED", "shuffle"]


class ShED(Algorithm):
    """ShED (DABS): detects the tokens that were moved within their example.

    Args:
        encoder: what is trained.
        rate: share of an example's tokens that are moved
    """

    min_batch: ClassVar[int] = 1
    min_tokens: ClassVar[int] = 2
    fit_reason: ClassVar[str] = "a token moves by changing places with another of its example"

    def __init__(self, encoder: Encoder, *, rate: float = 0.15) -> None:
        super().__init__(encoder)
        check_positive(rate=rate)
        check_share(rate=rate)
        self.rate = rate
        self.classifier = nn.Linear(encoder.width, 2)

    def forward(self, batch: Batch) -> Loss:
        """The cross-entropy of moved against unmoved."""
        rng = np.random.default_rng(batch.seed)
        clean = self.encoder.embed(batch.views[0])
        real = clean.real
        count = corrupted(real, self.rate, least=2)
        tokens, moved = shuffle(clean.tokens, count, draw_order(rng, clean).masked_fill(~real, torch.inf))
        hidden = self.encoder.encode(Embedded(tokens, clean.mask))

        logits = self.classifier(hidden[:, 1:]).movedim(-1, 1).float()
        loss = mean_over(F.cross_entropy(logits, moved.long(), reduction="none"), real)
        hit = logits.detach().argmax(dim=1) == moved
        metrics = {"accuracy": mean_over(hit.float(), real), "recall": mean_over(hit.float(), moved)}
        return Loss(loss, metrics, None)


def shuffle(tokens: Tensor, count: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Move the ``count`` ``(B,)`` tokens that come first in ``order`` ``(B, L)``, each to the place of the next one.

    Returns:
        The tokens ``(B, L, D)`` and which places hold another place's token, bool ``(B, L)``.
    """
    place = torch.arange(tokens.shape[1], device=tokens.device)
    chosen = order.argsort(dim=1)
    before = torch.where(place == 0, count[:, None] - 1, place - 1)
    source = torch.where(place < count[:, None], chosen.gather(1, before.clamp_min(0)), chosen)
    source = torch.empty_like(chosen).scatter(1, chosen, source)
    return tokens.gather(1, source[..., None].expand_as(tokens)), source != place
