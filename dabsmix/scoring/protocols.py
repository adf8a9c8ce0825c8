"""The named protocols for probing frozen features. Rows of two protocols are never ranked together.

``finetune`` trains the encoder itself and has no head here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from dabsmix.data.domain import Task
from dabsmix.errors import UserError, did_you_mean
from dabsmix.scoring.heads import Features, Head, Setting, fit_knn, fit_pinv, fit_ridge
from dabsmix.scoring.linear import LinearGrid, fit_linear
from dabsmix.scoring.logistic import LogisticGrid, fit_logistic
from dabsmix.spec import Grid, Spec, Table

__all__ = [
    "PROBED",
    "Fit",
    "TransferProtocol",
    "dabs",
    "fits",
    "imix",
    "protocol",
    "quicker",
    "refit",
    "v1",
    "v2",
]

Fit = Callable[[Features], Sequence[Head]]


@dataclass(frozen=True)
class TransferProtocol:
    """What is fitted on frozen features, and how.

    Attributes:
        name: stamped on every row.
        note: whole sentences that every output under this protocol shows; may be empty.
        linear: the grid of linear heads, trained by gradient descent or solved.
        poolings: which features are read.
        neighbours: each k of the nearest-neighbour probe; empty for none.
        penalties: each penalty of ridge regression; empty for none.
        pinv: whether i-Mix's pseudo-inverse probe is fitted, for tasks of one class per example.
        fractions: shares of the labels to fit and choose with.
        draws: how many subsets of a share below 1 are drawn: this many for small shares, whose choice of setting and
            score vary most; for larger shares, enough draws to cover half the labels in total, at least three.
        within: with few labels, whether each draw chooses by cross-validation within its own labels, and
            falls back on these settings, by probe, where a class has fewer than two; None: validation is reduced
            equally and chooses for all draws together.
        dropout: whether the training features are drawn anew each epoch with the encoder's dropout on.
    """

    name: str
    note: str
    linear: LinearGrid | LogisticGrid
    poolings: tuple[str, ...] = ("mean", "cls")
    neighbours: tuple[int, ...] = ()
    penalties: tuple[float, ...] = ()
    pinv: bool = False
    fractions: tuple[float, ...] = (1.0,)
    draws: int = 1
    within: Mapping[str, Setting] | None = None
    dropout: bool = False


def fits(
    protocol: TransferProtocol, task: Task, *, seed: int = 0, redraw: Callable[[int], Features] | None = None
) -> Mapping[str, Fit]:
    """The protocol's probes for a task: by name, a function from training features to one head per setting.

    Args:
        protocol: which.
        task: any kind; probes that are not defined for it are left out.
        seed: of the linear heads' minibatches and initial weights.
        redraw: training features of each epoch, see ``linear.fit_linear``.
    """
    if isinstance(protocol.linear, LogisticGrid):
        probes: dict[str, Fit] = {"linear": partial(fit_logistic, task=task, grid=protocol.linear)}
    else:
        probes = {"linear": partial(fit_linear, task=task, grid=protocol.linear, seed=seed, redraw=redraw)}
    if protocol.neighbours and task.kind != "tokens":
        probes["knn"] = partial(fit_knn, task=task, neighbours=protocol.neighbours)
    if protocol.penalties:
        probes["ridge"] = partial(fit_ridge, task=task, penalties=protocol.penalties)
    if protocol.pinv and task.kind == "classes":
        probes["pinv"] = partial(fit_pinv, task=task)
    return probes


def quicker(protocol: TransferProtocol) -> TransferProtocol:
    """The protocol with linear heads solved less precisely, which is enough to compare settings over many draws."""
    if not isinstance(protocol.linear, LogisticGrid):
        return protocol
    return replace(protocol, linear=replace(protocol.linear, tolerance=1e-3))


def refit(protocol: TransferProtocol, task: Task, probe: str, fit: Fit, train: Features, setting: Setting) -> Head:
    """The head of a probe with this setting, or with its first setting if it does not have this one.

    Args:
        protocol, task: whose probe it is.
        probe: its name.
        fit: fits all its settings; for a solved head only one is fitted, which takes a fraction of the time.
        train: the training part.
        setting: which head.
    """
    if probe == "linear" and isinstance(protocol.linear, LogisticGrid) and "C" in setting:
        pooling = next(name for name in (str(setting["pooling"]), *train.pooled) if name in train.pooled)
        only = replace(protocol.linear, poolings=(pooling,), strengths=(float(setting["C"]),))
        return fit_logistic(train, task, only)[0]
    heads = fit(train)
    return next((head for head in heads if head.setting == setting), heads[0])


def v2() -> TransferProtocol:
    """Our current protocol: solvers converge, few labels are cross-validated, and encoders are read at every depth.

    Features are standardised and come from one pass in eval mode. With all labels every choice is made on validation.
    The test split is read once.
    """
    return TransferProtocol(
        name="v2",
        note="",
        linear=LogisticGrid(),
        poolings=("mean", "cls", "blocks"),
        neighbours=(5, 20, 200),
        penalties=(10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6),  # of equal ones the strongest is taken
        fractions=(0.01, 0.1, 1.0),
        draws=20,
        within={
            "linear": {"pooling": "mean", "C": 1.0},
            "knn": {"pooling": "mean", "neighbours": 5},
            "ridge": {"pooling": "mean", "penalty": 0.1},
        },
    )


def v1() -> TransferProtocol:
    """Our first protocol, retained for its existing rows; its linear heads stop before they have converged.

    It has standardised eval-mode features and three probes. Every choice is made on validation; test is read once.
    """
    return TransferProtocol(
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


def dabs(batch_size: int) -> TransferProtocol:
    """The protocol of DABS (Tamkin et al. 2021, its reference code), to compare with its published numbers.

    One head on raw mean features, AdamW at a constant rate of 1e-4, 100 epochs, the data set's batch, binary tasks
    with one logit. Differs in the bias, which decays there by 1e-8 a step and here not at all.
    """
    return TransferProtocol(
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


def imix(specs: tuple[Spec, ...] = ()) -> TransferProtocol:
    """The protocol of i-Mix (Lee et al. 2021, its reference code): SGD, seven rates, 100 epochs, drops at 80, 90, 95.

    Tables have batches of 512 with the rates for 256, as in the reference. Images of 224x224 have its ImageNet recipe:
    one rate, with drops to a tenth at 60 and 80. The reference picks the rate by test accuracy; here it is chosen on
    validation.

    Args:
        specs: the inputs of the data.
    """
    table = any(isinstance(spec, Table) for spec in specs)
    image = any(isinstance(spec, Grid) and len(spec.size) == 2 and spec.channels == 3 for spec in specs)
    imagenet = any(isinstance(spec, Grid) and spec.size == (224, 224) and spec.channels == 3 for spec in specs)
    note = "The rate is chosen on a validation split; the i-Mix reference chooses it on the test split."
    if imagenet:
        note = "The rate, 30, and its drops are those that the i-Mix reference has for ImageNet."
    if image:
        note += " The head is trained on the images as they are; the reference crops and mirrors them."
    return TransferProtocol(
        name="imix",
        note=note,
        linear=LinearGrid(
            poolings=("mean",),
            rates=(30.0,) if imagenet else (1.0, 3.0, 5.0, 10.0, 30.0, 50.0, 70.0),  # times b/256 for b = 256
            optimizer="sgd",
            batch_size=512 if table else 256,
            schedule=_imagenet_milestones if imagenet else _milestones,
            standardise=False,
            start="normal",
        ),
        pinv=True,
    )


# Each is made from the batch size with which the data set's source trains, and from the specs of the inputs.
PROBED: Mapping[str, Callable[[int, tuple[Spec, ...]], TransferProtocol]] = {
    "v2": lambda batch_size, specs: v2(),
    "v1": lambda batch_size, specs: v1(),
    "dabs": lambda batch_size, specs: dabs(batch_size),
    "imix": lambda batch_size, specs: imix(specs),
}


def protocol(name: str, batch_size: int, specs: tuple[Spec, ...] = ()) -> TransferProtocol:
    """The protocol of this name, for a data set of these inputs whose source trains with this batch size.

    Raises:
        UserError: no protocol for frozen features has this name.
    """
    if name not in PROBED:
        raise UserError(f"unknown protocol {name!r}{did_you_mean(name, PROBED)}; there are: {', '.join(PROBED)}")
    return PROBED[name](batch_size, specs)


def _cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def _imagenet_milestones(progress: float) -> float:
    return 0.1 ** sum(progress >= milestone for milestone in (0.60, 0.80))


def _milestones(progress: float) -> float:
    return 0.2 ** sum(progress >= milestone for milestone in (0.80, 0.90, 0.95))
