"""The contract of a pretraining algorithm, under the name that algorithms outside this repository import."""

from dabsmix.pretext.algorithm import Algorithm, Loss, check_fit, check_positive, check_share

__all__ = ["Algorithm", "Loss", "check_fit", "check_positive", "check_share"]
