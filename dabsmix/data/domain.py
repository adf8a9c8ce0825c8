"""What a data set is to the harness: splits of rows, a task, and where the raw files come from.

A domain file (``domains/NAME.py``) declares ``DOMAINS``, a tuple of `Domain`. Importing it is cheap: it imports neither
torch nor pandas, and reads no file before ``load``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.download import Download, interrupted
from dabsmix.spec import Spec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dabsmix.source import Source

__all__ = ["BATCH_SIZE", "Data", "Domain", "Labelled", "Rows", "Split", "Task", "as_stored"]


BATCH_SIZE = 256
"""Examples per step, unless the source of the data states another number."""


class Rows(Protocol):
    """Stored examples of one input: a numpy array, a memory map, or anything that is indexed by a whole batch."""

    def __len__(self) -> int:
        """How many rows there are."""

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[Any]:
        """These rows, stacked into an array in memory that the caller may change."""


@dataclass(frozen=True)
class Task:
    """What is predicted from features.

    Attributes:
        kind: ``classes`` (labels int64 ``(n,)``), ``multilabel`` (labels uint8 ``(n, C)``), ``regression`` (labels
            float32 ``(n,)``), ``tokens`` (one class per token: int64 ``(n, L)``, -1 for tokens that are not scored).
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
        """Mean and standard deviation (1 if constant) of a regression's training labels; (0, 1) for other tasks.

        A head predicts the standardised target; `scores` converts it back to the unit of the labels.
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
        """A head's outputs as metrics expect them: for a regression ``(B,)``, in the unit of its labels."""
        return outputs[:, 0] * scale + center if self.kind == "regression" else outputs


@dataclass(frozen=True)
class Split:
    """Rows of a data set, by number. Nothing is read before `batch` is called.

    Attributes:
        inputs: one store per input of the domain.
        rows: int64 ``(n,)``, this split's rows of the stores.
        label: the labels of these rows in the form that the task's kind states, or None.
        group: int64 ``(n,)``: rows of one group are not independent (subject, recording, patient, speaker);
            None if all rows are independent. Intervals count groups, not rows.
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
        """The examples at these indices of the split, as stored: one CPU tensor ``(len(index), ...)`` per input."""
        import torch

        rows = self.rows[index]
        return tuple(torch.from_numpy(np.ascontiguousarray(store[rows])) for store in self.inputs)

    def take(self, index: NDArray[np.int64]) -> Split:
        """The part of this split at these indices, in their order."""
        return Split(
            self.inputs,
            self.rows[index],
            None if self.label is None else self.label[index],
            None if self.group is None else self.group[index],
        )

    def drop_partial_label(self) -> Split:
        """This split without its labels if some of its rows have none (-1 or NaN); otherwise itself."""
        if self.label is None:
            return self
        unlabelled = np.isnan(self.label) if self.label.dtype.kind == "f" else self.label < 0
        return Split(self.inputs, self.rows, None, self.group) if unlabelled.any() else self


def as_stored(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The default ``Data.normalise``: examples are already stored as the specs state."""
    return inputs


@dataclass(frozen=True)
class Labelled:
    """A task and the three splits that have its labels.

    Attributes:
        task: what is predicted.
        train: probes are fitted on it.
        validation: probes are chosen on it; carved from the data set's training part, by group if there are groups.
        test: probes are scored on it, once.

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
        pretrain: what pretraining sees; its labels, if any, are used only by the online probe.
        labelled: the task and its splits; None if the set has no labels.
        normalise: converts stored inputs to what the specs state (uint8 to float, standardising), a whole batch at a
            time and on the batch's device. Deterministic.
        augment: the domain's augmentation of this process's normalised inputs on their device, or None. The generator
            is in the same state on every process: random numbers are drawn for the global batch and cut by rank
            (`dabsmix.distributed.local`).
        fingerprint: hex digest of the files that were read.
        notes: what a reader of a score has to know, in whole sentences.
        summary: for a user's own data, lines about what was read, to show before training.
        state: everything needed to read further examples the same way (options, statistics, category and class names,
            tokenizer); plain JSON values.
        source: what was loaded; None if a domain's ``load`` was called directly.
        names: a function from rows of the stores to their names, such as file names; None if rows have only numbers.
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
        """Refuse the former fields train, validation, test and task, which `labelled` replaced."""
        if named.keys() & {"train", "validation", "test", "task"} or isinstance((*values, None, None, None)[2], Split):
            raise TypeError(
                "Data takes labelled=Labelled(task, train, validation, test), or labelled=None without labels, in "
                "place of train, validation, test and task; update the domain's file"
            )
        return super().__new__(cls)

    def require_labelled(self) -> Labelled:
        """`labelled`, for callers that need labels.

        Raises:
            ValueError: there are no labels.
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
        folder: of its raw files under the data root, by upstream's name; empty for embedded sets.
        load: ``load(folder, protocol)`` reads the raw files (``folder`` is the data root joined with `folder`) and
            returns the splits; ``protocol`` is ``v1`` or ``dabs``, or another protocol of transfer, for which the data
            are those of v1. Raises UserError for files that are missing or damaged.
        downloads: what to fetch if the folder is missing.
        manual: how to obtain the files where they cannot be fetched; its first word is ``register`` where an account
            or an agreement is needed; empty otherwise.
        sizes: examples for training and for the test, if the source states them: ``50,000 / 10,000``; otherwise empty.
            Under v1 validation is carved from the training examples, unless the source has a validation part.
        batch_size: the source's global batch size.
        transfers: names of the domains to transfer to; empty means itself.
        stand_ins: other folders to use if `folder` is missing, such as a small part of the set.
        aliases: other accepted names, such as DABS's name for it.
        needs: files in its folder that a load requires, as patterns; ``a|b`` is either of two.
        dabs: if DABS has the data set only at another size, the domain of that size, which ``--protocol dabs`` names.
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
        """The folder of raw files that exists under a data root, its own before a stand-in; None if there is none."""
        return next((root / name for name in (self.folder, *self.stand_ins) if (root / name).exists()), None)

    def interrupted(self, root: Path) -> bool:
        """Whether an earlier download of its files began and did not finish."""
        return interrupted([download for download in self.downloads if self._own(download)], root)

    def complete(self, root: Path) -> bool:
        """Whether all files that a load needs exist: `needs`, and shared ones, such as a tokenizer."""
        if not self.folder:
            return True
        folder = self.present(root)
        if folder is None or self.interrupted(root):
            return False
        shared = [root / download.file for download in self.downloads if not self._own(download)]
        present = (any(any(folder.glob(name)) for name in pattern.split("|")) for pattern in self.needs)
        return all(path.exists() for path in shared) and all(present)

    def _own(self, download: Download) -> bool:
        """Whether a file belongs to this domain alone; others also fetch files elsewhere, such as a tokenizer."""
        return download.is_archive or PurePath(download.file).is_relative_to(self.folder)
