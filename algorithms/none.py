"""No pretraining: the randomly initialised encoder, the baseline of DABS (Tamkin et al. 2021)."""

from typing import ClassVar

from dabsmix.pretext.algorithm import Algorithm

__all__ = ["NONE"]


class NONE(Algorithm):
    """No pretraining: the randomly initialised encoder, which every other algorithm has to beat."""

    min_batch: ClassVar[int] = 1
    needs_tokens: ClassVar[bool] = False
    trains: ClassVar[bool] = False
