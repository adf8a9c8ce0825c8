"""What a data set is to the harness: splits of rows, a task, and where the raw files come from.

A domain file (``domains/NAME.py``) declares ``DOMAINS``, a tuple of `Domain`. Importing one is cheap: no torch, no
pandas, no file is touched before ``load``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.download import Download
from dabsmix.spec import Spec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dabsmix.source import Source

__all__ = ["BATCH_SIZE", "Data", "Domain", "Labelled", "Rows", "Split", "Task", "as_stored"]


BATCH_SIZE = 256
"""Examples a step where the source of the data states no other."""


class Rows(Protocol):
    """Stored examples of one input: a numpy array or memory map, or anything that answers a whole batch at once."""

    def __len__(self) -> int:
        """How many rows there are."""

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[Any]:
        """The rows asked for, stacked; in memory, free to change."""


@dataclass(frozen=True)
class Task:
    """What is predicted from features.

    Attributes:
        kind: ``classes`` (labels int64 ``(n,)``), ``multilabel`` (labels uint8 ``(n, C)``), ``regression`` (labels
            float32 ``(n,)``), ``tokens`` (one class per token: int64 ``(n, L)``, -1 where a token is not scored).
        metric: the main score, a name that ``metrics.metric`` knows.
        classes: the class names in label order; empty for regression.
    """

    kind: Literal["classes", "multilabel", "regression", "tokens"]
    metric: str
    classes: tuple[str, ...] = ()

    @property
    def num_outputs(self) -> int:
        """Outputs of a linear head: one per class, one for regression."""
        return max(1, len(self.classes))

    def target_scale(self, label: NDArray[Any]) -> tuple[float, float]:
        """Mean and standard deviation of a regression's training labels, 1 where they are constant; else (0, 1).

        A head predicts the standardised target; `scores` gives it in its own unit again.
        """
        return (float(label.mean()), float(label.std()) or 1.0) if self.kind == "regression" else (0.0, 1.0)

    def loss(self, outputs: Tensor, label: Tensor, center: float | Tensor = 0.0, scale: float | Tensor = 1.0) -> Tensor:
        """The mean loss of a head's outputs.

        Cross-entropy for classes and scored tokens, binary cross-entropy for several labels, squared error for
        regression.

        Args:
            outputs: ``(B, C)``, or ``(B, L, C)`` for tokens; ``(B, 1)`` for regression.
            label: of these examples, in the form of the task's kind.
            center, scale: of `target_scale`.
        """
        import torch.nn.functional as F

        match self.kind:
            case "regression":
                return F.mse_loss(outputs[:, 0], (label - center) / scale)
            case "multilabel":
                return F.binary_cross_entropy_with_logits(outputs, label.to(outputs.dtype))
            case _:
                total = F.cross_entropy(outputs.flatten(0, -2), label.flatten(), ignore_index=-1, reduction="sum")
                return total / (label >= 0).sum().clamp(min=1)

    def scores(self, outputs: Tensor, center: float | Tensor = 0.0, scale: float | Tensor = 1.0) -> Tensor:
        """A head's outputs as metrics take them: those of a regression ``(B,)``, in the unit of its labels."""
        return outputs[:, 0] * scale + center if self.kind == "regression" else outputs


@dataclass(frozen=True)
class Split:
    """Rows of a data set, by number. Nothing is read before a batch is asked for.

    Attributes:
        inputs: one store per input of the domain.
        rows: int64 ``(n,)``, this split's rows of the stores.
        label: the labels of these rows in the form that the task's kind states, or None.
        group: int64 ``(n,)``: rows of one group are not independent (subject, recording, patient, speaker);
            None where each row stands alone. Intervals are bootstrapped over groups.
    """

    inputs: tuple[Rows, ...]
    rows: NDArray[np.int64]
    label: NDArray[Any] | None = None
    group: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        for name, values in (("label", self.label), ("group", self.group)):
            if values is not None and len(values) != len(self.rows):
                raise ValueError(f"{len(values)} values of {name} for {len(self.rows)} rows")

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, index: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """The examples at these places of the split, as stored: one CPU tensor per input, first axis ``len(index)``."""
        import torch

        rows = self.rows[index]
        return tuple(torch.from_numpy(np.ascontiguousarray(store[rows])) for store in self.inputs)

    def take(self, index: NDArray[np.int64]) -> Split:
        """The part of this split at these places, in their order."""
        return Split(
            self.inputs,
            self.rows[index],
            None if self.label is None else self.label[index],
            None if self.group is None else self.group[index],
        )

    def drop_partial_label(self) -> Split:
        """This split without its labels where some of its rows have none (-1 or NaN); else itself."""
        if self.label is None:
            return self
        lacking = np.isnan(self.label) if self.label.dtype.kind == "f" else self.label < 0
        return Split(self.inputs, self.rows, None, self.group) if lacking.any() else self


def as_stored(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The default ``Data.normalise``: examples are stored as the specs state them."""
    return inputs


@dataclass(frozen=True)
class Labelled:
    """A task and the three splits that have its labels.

    Attributes:
        task: what is predicted.
        train: what probes are fitted on.
        validation: what they are chosen on; carved from the data set's training part, by group where there are groups.
        test: what they are scored on, once.

    Raises:
        ValueError: a split has no labels.
    """

    task: Task
    train: Split
    validation: Split
    test: Split

    def __post_init__(self) -> None:
        for name, split in self.splits.items():
            if split.label is None:
                raise ValueError(f"the {name} split of a labelled data set has no labels")

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


@dataclass(frozen=True)
class Data:
    """A loaded data set.

    Attributes:
        specs: one per input.
        pretrain: what pretraining sees; its labels, if any, serve the online probe alone.
        labelled: the task and its splits; None where the set has no labels.
        normalise: stored inputs to what the specs state, a whole batch at a time and on whatever device it lies
            (uint8 to float, standardising). Deterministic.
        augment: the domain's own augmentation of this process's normalised inputs on their device, or None. The
            generator is in the same state on every process: what is drawn for each example is drawn for the global
            batch and cut by rank (`dabsmix.distributed.local`).
        fingerprint: hex digest of the files that were read.
        notes: what a reader of a score has to know, in whole sentences.
        summary: for a user's own data, what was read, line by line, to be shown before training.
        state: all that further examples need to be read alike (options, statistics, category and class names,
            tokenizer); plain JSON values.
        source: what was asked for; None where a domain's ``load`` was called by itself.
        names: what these rows of the stores are called, such as a file's name; None where their number is all there is.
    """

    specs: tuple[Spec, ...]
    pretrain: Split
    labelled: Labelled | None
    fingerprint: str
    normalise: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] = as_stored
    augment: Callable[[tuple[Tensor, ...], torch.Generator], tuple[Tensor, ...]] | None = None
    notes: tuple[str, ...] = ()
    summary: tuple[str, ...] = ()
    state: Mapping[str, Any] = field(default_factory=dict)
    source: Source | None = None
    names: Callable[[NDArray[np.int64]], list[str]] | None = None

    def __new__(cls, *values: Any, **named: Any) -> Self:
        """Refuse the former fields train, validation, test and task, of which `labelled` took the place."""
        if named.keys() & {"train", "validation", "test", "task"} or isinstance((*values, None, None, None)[2], Split):
            raise TypeError(
                "Data takes labelled=Labelled(task, train, validation, test), or labelled=None without labels, in "
                "place of train, validation, test and task; update the domain's file"
            )
        return super().__new__(cls)

    def require_labelled(self) -> Labelled:
        """`labelled`, for what needs labels.

        Raises:
            ValueError: there are none.
        """
        if self.labelled is None:
            raise ValueError("these data have no labels")
        return self.labelled


@dataclass(frozen=True)
class Domain:
    """A data set's card.

    Attributes:
        name: its name on the command line.
        modality: image, spectrogram, sensor, tabular, text, or several joined with ``+``.
        title: one line: what it is and whose.
        licence: as the source states it, or "not stated".
        folder: where its raw files lie under the data root, upstream's name; empty for embedded sets.
        load: ``load(folder, protocol)`` reads the raw files (``folder`` is the data root joined with `folder`) and
            returns the splits; ``protocol`` is ``v1`` or ``dabs``, or another of transfer's protocols, for which
            the data are v1's. Raises UserError for files that are missing or damaged.
        downloads: what to fetch when the folder is missing.
        manual: how to obtain the files where they cannot be fetched; its first word is ``register`` where an account
            or an agreement is needed; empty otherwise.
        sizes: examples for training and for the test where the source states them: ``50,000 / 10,000``; else empty.
            Under v1 validation is carved from the former, unless the source has one.
        batch_size: the global batch that the source trains with.
        transfers: names of the domains to transfer to; empty means itself.
        stand_ins: other folders that will do where `folder` is missing, such as a small part of the set.
        aliases: other names that it answers to, such as the name that DABS has for it.
        needs: files under the data root that a load cannot do without, as patterns; ``a|b`` is either of two.
        dabs: where DABS has the data set at another size only, the domain of that size: ``--protocol dabs`` names it.
        revisions: by protocol, how often the examples that pretraining sees have changed since the first release.
            It enters a run's configuration hash.
    """

    name: str
    modality: str
    title: str
    licence: str
    folder: str
    load: Callable[[Path, str], Data] = field(repr=False)
    downloads: tuple[Download, ...] = ()
    manual: str = ""
    sizes: str = ""
    batch_size: int = BATCH_SIZE
    transfers: tuple[str, ...] = ()
    stand_ins: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    dabs: str = ""
    revisions: Mapping[str, int] = field(default_factory=dict)

    def present(self, root: Path) -> Path | None:
        """The folder of raw files that is there under a data root, its own before a stand-in; None without one."""
        return next((root / name for name in (self.folder, *self.stand_ins) if (root / name).exists()), None)

    def complete(self, root: Path) -> bool:
        """Whether all the files that a load needs are there."""
        needed = all(any(any(root.glob(name)) for name in pattern.split("|")) for pattern in self.needs)
        return not self.folder or (self.present(root) is not None and needed)
