"""The named protocols for probing frozen features. Rows of two protocols are never ranked together.

``finetune`` trains the encoder itself and has no head here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from dabsmix.data.domain import Task
from dabsmix.errors import UserError, did_you_mean
from dabsmix.scoring.heads import Features, Head, fit_knn, fit_pinv, fit_ridge
from dabsmix.scoring.linear import LinearGrid, fit_linear

__all__ = ["PROTOCOLS", "Fit", "Protocol", "dabs", "fits", "imix", "protocol", "v1"]

Fit = Callable[[Features], Sequence[Head]]


@dataclass(frozen=True)
class Protocol:
    """What is fitted on frozen features, and how.

    Attributes:
        name: stamped on every row.
        note: what every output under this protocol has to say, in whole sentences; empty where nothing.
        linear: the grid of linear heads.
        neighbours: each k of the nearest-neighbour probe; empty for none.
        penalties: each penalty of ridge regression; empty for none.
        pinv: whether i-Mix's pseudo-inverse probe is fitted, for tasks of one class per example.
        fractions: shares of the labels to fit and choose with.
        draws: how many subsets of a share below 1 are drawn: this many of small shares, whose choice of setting and
            score vary most; of larger ones as many as hold half of the labels together, but three.
        dropout: whether the training features are drawn anew each epoch with the encoder's dropout on.
    """

    name: str
    note: str
    linear: LinearGrid
    neighbours: tuple[int, ...] = ()
    penalties: tuple[float, ...] = ()
    pinv: bool = False
    fractions: tuple[float, ...] = (1.0,)
    draws: int = 1
    dropout: bool = False


def fits(
    protocol: Protocol, task: Task, *, seed: int = 0, redraw: Callable[[int], Features] | None = None
) -> Mapping[str, Fit]:
    """The protocol's probes for a task: by name, a function from training features to one head per setting.

    Args:
        protocol: which.
        task: any kind; probes that are not defined for it are left out.
        seed: of the linear heads' minibatches and initial weights.
        redraw: training features of each epoch, see ``linear.fit_linear``.
    """
    probes: dict[str, Fit] = {"linear": partial(fit_linear, task=task, grid=protocol.linear, seed=seed, redraw=redraw)}
    if protocol.neighbours and task.kind != "tokens":
        probes["knn"] = partial(fit_knn, task=task, neighbours=protocol.neighbours)
    if protocol.penalties:
        probes["ridge"] = partial(fit_ridge, task=task, penalties=protocol.penalties)
    if protocol.pinv and task.kind == "classes":
        probes["pinv"] = partial(fit_pinv, task=task)
    return probes


def v1() -> Protocol:
    """Ours: standardised eval-mode features, three probes, every choice made on validation, test read once."""
    return Protocol(
        name="v1",
        note="",
        linear=LinearGrid(
            rates=(1e-4, 3e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 3e-1),
            decays=(1e-4, 1e-3, 1e-2),
            schedule=_cosine,
            steps=(200, 2000),
        ),
        neighbours=(5, 20, 200),
        penalties=(10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6),  # of equal ones the strongest is taken
        fractions=(0.01, 0.1, 1.0),
        draws=20,
    )


def dabs(batch_size: int) -> Protocol:
    """DABS's own (Tamkin et al. 2021, its reference code), to compare with its published numbers.

    One head on raw mean features, AdamW at a constant rate of 1e-4, 100 epochs, the data set's batch, binary tasks
    with one logit. Differs in the bias, which decays there by 1e-8 a step and here not at all.
    """
    return Protocol(
        name="dabs",
        note="The reported split is also the one that DABS watches during training; dropout is on in the frozen "
        "encoder while the head is trained.",
        linear=LinearGrid(
            poolings=("mean",),
            rates=(1e-4,),
            decays=(1e-4,),
            optimizer="adamw",
            batch_size=batch_size,
            standardise=False,
            start="uniform",
            one_logit=True,
        ),
        dropout=True,
    )


def imix() -> Protocol:
    """i-Mix's (Lee et al. 2021, its reference code): SGD, seven rates, 100 epochs, drops at 80, 90 and 95.

    The reference picks the rate by test accuracy; here it is chosen on validation.
    """
    return Protocol(
        name="imix",
        note="The rate is chosen on a validation split; the i-Mix reference chooses it on the test split.",
        linear=LinearGrid(
            poolings=("mean",),
            rates=(1.0, 3.0, 5.0, 10.0, 30.0, 50.0, 70.0),  # times b/256 for a batch of b = 256
            optimizer="sgd",
            schedule=_milestones,
            standardise=False,
            start="normal",
        ),
        pinv=True,
    )


# Each from the batch size that the data set's source trains with.
PROTOCOLS: Mapping[str, Callable[[int], Protocol]] = {
    "v1": lambda batch_size: v1(),
    "dabs": dabs,
    "imix": lambda batch_size: imix(),
}


def protocol(name: str, batch_size: int) -> Protocol:
    """The protocol of this name, for a data set whose source trains with this batch size.

    Raises:
        UserError: no protocol for frozen features has this name.
    """
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}{did_you_mean(name, PROTOCOLS)}; there are: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name](batch_size)


def _cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def _milestones(progress: float) -> float:
    return 0.2 ** sum(progress >= milestone for milestone in (0.80, 0.90, 0.95))
