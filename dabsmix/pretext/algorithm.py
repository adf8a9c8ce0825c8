"""The contract of a pretraining algorithm.

An algorithm file (``algorithms/NAME.py``) holds a public subclass of `Algorithm` with the name of the file, without
underscores and in any case. Its constructor's keywords are its hyperparameters and its flags on the command line: they
are read from the source without running it, so each needs a plain type and a literal default. A subclass that takes
``**others`` for its base class, or has no constructor, inherits the base's flags.

The file may declare further names, ``NAMES = {"imix_npair": "IMixNPair", "capri": "ContPred"}``: a subclass with
defaults of its own is a preset, and a second name of the file's class is an alias.
"""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from dabsmix.errors import UserError
from dabsmix.model.encoder import Encoder
from dabsmix.spec import Batch

__all__ = ["Algorithm", "Loss", "check_fit", "check_positive", "check_share"]


class Loss(NamedTuple):
    """The result of one step.

    Attributes:
        value: the scalar to minimise: the mean over this process's examples.
        metrics: scalars to log, detached.
        features: no longer read; algorithm files written for an older version still pass it.
    """

    value: Tensor
    metrics: Mapping[str, Tensor]
    features: Tensor | None = None


class Algorithm(nn.Module):
    """An encoder and whatever is trained beside it: heads, momentum copies and queues, all of it in ``state_dict``.

    It knows no loader, no optimizer, no device and no file. ``forward`` is a pure function of the weights, the buffers
    and the batch (and of torch's own generator, for dropout): all its random draws follow from ``batch.seed``.
    """

    num_views: ClassVar[int] = 1
    """Views per example that the algorithm can use: with ``views="augment"`` the batch carries this many."""
    needs_labels: ClassVar[bool] = False
    """Whether the batch must carry labels. Every table marks such algorithms; unlabelled data are refused."""
    min_batch: ClassVar[int] = 2
    """The fewest examples, over all processes, for which the loss is defined; `fit_reason` says why."""
    needs_tokens: ClassVar[bool] = True
    """Whether the encoder must have tokens. False says that the loss reads pooled features alone, and mixes by the
    operators of ``mixing``, so that an encoder without tokens will do: it mixes raw inputs."""
    min_tokens: ClassVar[int] = 1
    """The fewest tokens per example for which the loss is defined."""
    fit_reason: ClassVar[str] = "an example is distinguished from the others of its batch"
    """The end of the message that refuses a batch or sequence that is too small."""
    trains: ClassVar[bool] = True
    """False if there is nothing to optimise; the run is then written at step 0."""
    dabs: ClassVar[Mapping[str, object]] = {}
    """The hyperparameters that ``--protocol dabs`` sets, including the reference's faults."""
    added: ClassVar[tuple[str, ...]] = ()
    """Hyperparameters that are younger than the algorithm's first runs. They are recorded and hashed only where they
    differ from their defaults, so that earlier runs keep their hash."""
    views: str = "identical"
    """How views differ: ``identical``, ``noise``, ``mask`` or ``augment``; see `views.two_views`."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def num_augmented(self) -> int:
        """Augmented views that a batch carries; 0 where it carries the inputs as they are."""
        return self.num_views if self.views == "augment" else 0

    def forward(self, batch: Batch) -> Loss:
        """The loss of one batch; one call a step, so that DDP sees it.

        Raises:
            NotImplementedError: the algorithm does not train.
        """
        raise NotImplementedError(f"{type(self).__name__} has no training step")

    def after_step(self, progress: float) -> None:
        """Called after each optimizer step, to update momentum copies. ``progress``: the share of steps, in (0, 1]."""


def check_fit(algorithm: Algorithm, batch_size: int, num_tokens: int) -> None:
    """Refuse an encoder without tokens where they are needed, and a batch or a sequence too short for the loss.

    Raises:
        UserError: it says which, how many are needed and why.
    """
    name = type(algorithm).__name__
    if algorithm.needs_tokens and not algorithm.encoder.has_tokens:
        raise UserError(
            f"{name} needs an encoder with tokens, and this one reads an example as a whole: {algorithm.fit_reason}; "
            "use --encoder tiny or dabs, or an algorithm of the i-Mix family, such as --algo imix_npair"
        )
    if algorithm.views == "noise" and not algorithm.encoder.has_tokens:
        raise UserError("--views noise sets tokens to zero, and this encoder has none: use --views mask or augment")
    if batch_size < algorithm.min_batch:
        raise UserError(
            f"{name} needs a global batch of at least {algorithm.min_batch}, got {batch_size}: {algorithm.fit_reason}"
        )
    if num_tokens < algorithm.min_tokens:
        raise UserError(
            f"{name} needs at least {algorithm.min_tokens} tokens per example, got {num_tokens}: {algorithm.fit_reason}"
        )


def check_positive(**hyper: float) -> None:
    """Refuse hyperparameters that are not above 0.

    Raises:
        UserError: it says which.
    """
    for name, value in hyper.items():
        if not value > 0:
            raise UserError(f"--{name.replace('_', '-')} must be above 0, got {value}")


def check_share(**hyper: float) -> None:
    """Refuse hyperparameters outside 0 to 1.

    Raises:
        UserError: it says which.
    """
    for name, value in hyper.items():
        if not 0 <= value <= 1:
            raise UserError(f"--{name.replace('_', '-')} must lie between 0 and 1, got {value}")
