"""What a transfer returns: one result per probe and share of the labels, and the record that its file stores."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from dabsmix.errors import UserError
from dabsmix.files import parsed, write

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from dabsmix.data.domain import Data, Split

__all__ = [
    "AT_EDGE",
    "BY_CLASS",
    "PROTOCOLS",
    "Gain",
    "HeadMix",
    "HeadMixes",
    "MixSchedules",
    "ProtocolName",
    "Result",
    "TransferRecord",
    "by_example",
    "default_protocol",
    "in_percent",
    "mixed_probe",
    "prediction_key",
    "probes_of",
    "read_predictions",
    "read_transfer",
    "read_yardstick_predictions",
    "share_in_words",
    "write_transfer",
    "yardstick_key",
]

ProtocolName = Literal["v2", "v1", "dabs", "imix", "finetune"]
"""How a run may be scored. Scores of two protocols are never ranked together."""

PROTOCOLS: tuple[str, ...] = get_args(ProtocolName)

AT_EDGE = "chose the edge of its grid"
"""In a record's notes, by which a leaderboard knows those that it can say shorter."""

HeadMixes = Literal["none", "mixup", "cutmix", "manifold", "mixupe", "regmixup", "guided"]
"""What may be mixed while labels are learned, see ``head_mix.py``."""

MixSchedules = Literal["constant", "easy", "hard", "easy-hard-easy"]
"""How strongly over the course of training, see ``head_mix.alpha_at``."""


@dataclass(frozen=True)
class HeadMix:
    """What is mixed while labels are learned, and how strongly.

    Attributes:
        method: see the table in ``head_mix.py``; ``none`` mixes nothing.
        alpha: λ ~ Beta(α, α), before the schedule; None for 20 under regmixup and 1 under every other.
        schedule: see ``head_mix.alpha_at``.
        epochs: after this many, training goes on without mixing; None to mix to the end.
    """

    method: HeadMixes = "none"
    alpha: float | None = None
    schedule: MixSchedules = "constant"
    epochs: int | None = None

    @property
    def strength(self) -> float:
        """α before the schedule."""
        return self.alpha if self.alpha is not None else 20.0 if self.method == "regmixup" else 1.0

    def __str__(self) -> str:
        """``mixup``, or with what differs from the defaults: ``mixup-alpha2-easy-until20``; empty for ``none``."""
        if self.method == "none":
            return ""
        parts: list[str] = [self.method]
        parts += [f"alpha{self.strength:g}"] if self.strength != HeadMix(self.method).strength else []
        parts += [self.schedule] if self.schedule != "constant" else []
        parts += [f"until{self.epochs}"] if self.epochs is not None else []
        return "-".join(parts)

    @classmethod
    def parse(cls, text: str) -> HeadMix:
        """What `str` wrote.

        Raises:
            ValueError: it is something else.
        """
        schedules = "|".join(sorted(get_args(MixSchedules), key=len, reverse=True))
        parts = re.fullmatch(rf"([a-z]+)(?:-alpha(.+?))?(?:-({schedules}))?(?:-until(\d+))?", text or "none")
        if parts is None or parts[1] not in get_args(HeadMixes):
            raise ValueError(f"{text!r} does not say what is mixed")
        method, alpha, schedule, epochs = parts.groups()
        return cls(method, alpha and float(alpha), schedule or "constant", epochs and int(epochs))  # type: ignore[arg-type]  # the pattern admits no others

    @property
    def flags(self) -> str:
        """On the command line of transfer; empty for ``none``."""
        if self.method == "none":
            return ""
        flags = [f"--head-mix {self.method}"]
        flags += [f"--mix-alpha {self.alpha:g}"] if self.alpha is not None else []
        flags += [f"--mix-schedule {self.schedule}"] if self.schedule != "constant" else []
        flags += [f"--mix-epochs {self.epochs}"] if self.epochs is not None else []
        return " ".join(flags)

    def check(self, kind: str, has_tokens: bool) -> None:
        """Refuse a method that is not defined for labels of this kind or for an encoder without tokens.

        Raises:
            UserError: it is not defined, or a number is out of range.
        """
        if self.alpha is not None and not 0 < self.alpha <= 1000:
            raise UserError(f"--mix-alpha {self.alpha:g}: give a number above 0 and up to 1000")
        if self.epochs is not None and self.epochs < 1:
            raise UserError(f"--mix-epochs {self.epochs}: give at least 1, or --head-mix none")
        if self.method == "none":
            if self != HeadMix():
                raise UserError("--mix-alpha, --mix-schedule and --mix-epochs need a --head-mix other than none")
            return
        if kind == "tokens":
            raise UserError(f"--head-mix {self.method} is not defined for a label of each token: use --head-mix none")
        if kind == "regression" and self.method == "mixupe":
            raise UserError("--head-mix mixupe is defined for classes, not for quantities: use --head-mix mixup")
        if self.method in ("cutmix", "manifold") and not has_tokens:
            raise UserError(f"--head-mix {self.method} mixes tokens, and this encoder has none: use --head-mix mixup")


BY_CLASS = ("accuracy", "balanced_accuracy", "f1_macro", "f1_weighted", "matthews")
"""Metrics of the predicted class alone: their predictions are stored as class numbers, those of others as scores."""


SAME_FOR_CONSTANTS = ("balanced_accuracy", "matthews", "auroc_macro", "spearman")
"""Metrics by which every constant prediction has the same score, whatever the labels are."""


def default_protocol(pretraining: str) -> str:
    """How a run is scored by default: ``v2``, or as its pretraining protocol's source scores."""
    return "v2" if pretraining == "v1" else pretraining


def probes_of(protocol: str, kind: str, head_mix: str = "") -> tuple[str, ...]:
    """Every probe that a protocol fits for a task of this kind, at each share of the labels."""
    if head_mix:
        return (mixed_probe(protocol, head_mix),)
    named: dict[str, tuple[str, ...]] = {"dabs": ("linear",), "imix": ("linear", "pinv"), "finetune": ("finetune",)}
    defined = {"knn": kind != "tokens", "pinv": kind == "classes"}
    return tuple(probe for probe in named.get(protocol, ("linear", "knn", "ridge")) if defined.get(probe, True))


def mixed_probe(protocol: str, head_mix: str) -> str:
    """The name of what is trained with mixing, ``finetune+mixup`` or ``linear+mixup``, which is a separate probe."""
    return f"{'finetune' if protocol == 'finetune' else 'linear'}+{head_mix}"


def prediction_key(probe: str, share: str) -> str:
    """The name of a result's predictions in ``TASK.predictions.npz``: ``linear@1``, ``knn@5 per class``."""
    return f"{probe}@{share.replace('/', ' per ')}"


def yardstick_key(name: str, key: str) -> str:
    """The name of a yardstick's predictions in ``TASK.yardsticks.npz``, ``raw linear@1``; see `prediction_key`."""
    return f"{name} {key}"


def in_percent(metric: str) -> bool:
    """Whether a score is shown in percent: shares and correlations are, other quantities are not."""
    from dabsmix.scoring.metrics import known

    resolved = known(metric)
    return resolved is not None and resolved.span[1] == 1


@dataclass(frozen=True)
class Result:
    """One score.

    Attributes:
        probe: what was fitted on the features.
        label_fraction: the share of the training labels that it was fitted with (``1``, ``0.1``, ``5/class``).
        metric: a name that ``metrics.metric`` knows.
        value: in the metric's own unit; ``low`` and ``high`` are its 95 % interval, None if there is no interval.
        n: test examples; ``units`` is the number of independent ones among them (groups), 0 if not counted.
        draws: subsets of the labels that the value is the mean over.
        num_features: numbers that the probe read of each example, the most over draws; 0 if not counted.
        selected: the setting that validation chose, its validation score, and from how many candidates.
        test_reads: how often this encoder's scores on this task under this protocol had read the test split, this one
            included: more than 1 where shares of the labels were added later.
        others: further metrics of the same predictions, by name, for a user's own data; nothing was chosen by them.
    """

    probe: str
    label_fraction: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int
    units: int = 0
    draws: int = 1
    selected: Mapping[str, Any] = field(default_factory=dict)
    test_reads: int = 1
    num_features: int = 0
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def ends(self) -> tuple[float, float] | None:
        """The interval as it is shown: none for a majority class that has the same score on all data."""
        fixed = self.probe == "majority" and self.metric in SAME_FOR_CONSTANTS
        return None if fixed or self.low is None or self.high is None else (self.low, self.high)

    @classmethod
    def from_plain(cls, values: Any) -> Result:
        """From JSON values; ValueError says what is wrong."""
        return parsed(cls, values)


@dataclass(frozen=True)
class Gain:
    """This encoder against random ones of its shape, all scored alike; no claim about the algorithm that made it.

    Attributes:
        probe, label_fraction, metric: of the scores.
        random: the mean score of the random encoders; ``random_low`` and ``random_high`` are its 95 % interval.
        seeds: how many random encoders.
        value: this encoder's score minus ``random``; ``low`` and ``high`` are its 95 % interval over test examples (or
            groups) and over the random seeds, None where the test rows come from too few groups.
        p: two-sided, for no difference; None in older files.
    """

    probe: str
    label_fraction: str
    metric: str
    random: float
    random_low: float | None
    random_high: float | None
    seeds: int
    value: float
    low: float | None
    high: float | None
    p: float | None = None

    @property
    def direction(self) -> int:
        """1 where more of the metric is better, else -1."""
        from dabsmix.scoring.metrics import known

        metric = known(self.metric)
        return 1 if metric is None or metric.higher else -1

    @property
    def sign(self) -> int:
        """1 where this encoder is better and the interval leaves 0 out, -1 where it is worse, 0 where neither shows."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return 0
        return self.direction if self.value > 0 else -self.direction

    def clause(self, shown: bool) -> str:
        """``with all labels this encoder is better than a random one by 7.1 points (...)``, if that is shown."""
        percent = in_percent(self.metric)

        def text(number: float) -> str:
            shown = self.direction * number * (100 if percent else 1)
            return f"{round(shown, 1) + 0.0:+.1f}" if percent else f"{shown + 0.0:+.3g}"  # no -0.0

        metric = self.metric.replace("_", " ")
        unit = f"points of {metric}" if percent else metric
        share = f"with {share_in_words(self.label_fraction)}"
        if self.low is None or self.high is None:
            return f"{share} it differs from a random one by {text(self.value)} {unit} (too few groups for an interval)"
        low, high = (self.low, self.high) if self.direction > 0 else (self.high, self.low)
        ends = f"95 % interval {text(low)} to {text(high)}"
        if shown and self.sign:
            how = "better" if self.sign > 0 else "worse"
            return f"{share} this encoder is {how} than a random one by {text(self.value).lstrip('+-')} {unit} ({ends})"
        ends += "; not significant by Holm over the shares of the labels" if self.sign else ""
        return f"{share} no difference from a random one is shown, {text(self.value)} {unit} ({ends})"


def share_in_words(share: str) -> str:
    """``all labels``, ``10 % of the labels`` or ``5 labels of each class``."""
    if share == "1":
        return "all labels"
    if "/" not in share:
        return f"{100 * float(share):.3g} % of the labels"
    number = share.removesuffix("/class")
    return f"{number} label{'s' * (number != '1')} of each class"


@dataclass(frozen=True)
class TransferRecord:
    """The scores of one run on one task: what ``transfer/TASK.json`` holds.

    Attributes:
        run: the name of the run's folder.
        task: the data set that was scored on.
        protocol: one of `PROTOCOLS`.
        kind: the task's, see ``domain.Task``.
        results: one per probe and share of the labels; the first is the headline.
        yardsticks: what the results are held against, by name.
        test_reads: how often this run's scores on this task have read the test split.
        train_value: the score of what was fitted with all labels, by the linear probe or finetuning, on its own
            training examples; None without all labels.
        frechet_distance: between the training features and the test features.
        classes: the class names in label order.
        data_fingerprint: digest of the task's data; ``encoder_sha256`` that of the encoder.
        notes: what a reader of the scores has to know, in whole sentences.
        asked: the `prediction_key` of every requested result; empty in older files.
        gains: over random encoders, one per share of the labels; empty in older files and for random encoders.
        splits: examples of each part, and their groups if there are groups; empty in older files.
        of: for a user's files that were given to transfer, the flags that name them.
        head_mix: what was mixed while labels were learned, as ``head_mix.HeadMix`` spells it; empty for nothing.
    """

    task: str
    protocol: str
    results: tuple[Result, ...]
    run: str = ""
    kind: str = ""
    yardsticks: Mapping[str, tuple[Result, ...]] = field(default_factory=dict)
    test_reads: int = 1
    train_value: float | None = None
    frechet_distance: float | None = None
    classes: tuple[str, ...] = ()
    data_fingerprint: str = ""
    encoder_sha256: str = ""
    notes: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    gains: tuple[Gain, ...] = ()
    splits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    of: str = ""
    head_mix: str = ""

    @property
    def answer(self) -> str:
        """Did pretraining help? One sentence, and a second one where it did or harmed; empty without random encoders.

        Differences are shown by Holm over the shares of the labels, in files that lack p values by each interval.
        Of untrained encoders too, some are better than others: docs/evaluation.md has how many are called so.
        """
        if not self.gains:
            return ""
        from dabsmix.scoring.intervals import holm

        p = [gain.p for gain in self.gains if gain.p is not None]
        shown = holm(p) if len(p) == len(self.gains) else [True] * len(self.gains)
        signs = [gain.sign * rejected for gain, rejected in zip(self.gains, shown, strict=True)]
        clauses = "; ".join(map(Gain.clause, self.gains, shown))
        verdict = "yes" if 1 in signs and -1 not in signs else "no" if -1 in signs and 1 not in signs else "not shown"
        verdict = "yes and no" if 1 in signs and -1 in signs else verdict
        caution = " One encoder may owe this to its first weights: compare several seeds." if any(signs) else ""
        measured = f" Measured on {self.headline.n:,} test examples."
        return f"Did pretraining help? {verdict.capitalize()}: {clauses}.{measured}{caution}"

    @property
    def headline(self) -> Result:
        """The first result: under most protocols the linear probe with the largest share that was requested first."""
        return self.results[0]

    @property
    def unbeaten(self) -> tuple[str, ...]:
        """Names of the yardsticks, fitted without pretraining, that the headline's value does not exceed."""
        from dabsmix.scoring.metrics import known

        first = self.headline
        metric = known(first.metric)
        sign = 1 if metric is None or metric.higher else -1
        return tuple(
            name
            for name, results in self.yardsticks.items()
            if name != "supervised"
            and any(
                result.metric == first.metric
                and (result.label_fraction == first.label_fraction or result.probe == "majority")
                and sign * result.value >= sign * first.value
                for result in results
            )
        )

    def as_plain(self) -> dict[str, Any]:
        """JSON values as the file holds them, with the headline's values for human readers."""
        first = asdict(self.headline)
        return {
            "run": self.run,
            "task": self.task,
            "protocol": self.protocol,
            "kind": self.kind,
            "metric": first["metric"],
            **{key: first[key] for key in ("value", "low", "high", "n", "probe", "label_fraction", "selected")},
            "test_reads": self.test_reads,
            "results": [asdict(result) for result in self.results],
            "yardsticks": {name: [asdict(result) for result in results] for name, results in self.yardsticks.items()},
            "train_value": self.train_value,
            "frechet_distance": self.frechet_distance,
            "classes": list(self.classes),
            "data_fingerprint": self.data_fingerprint,
            "encoder_sha256": self.encoder_sha256,
            "notes": list(self.notes),
            "asked": list(self.asked),
            "gains": [asdict(gain) for gain in self.gains],
            "answer": self.answer,
            "splits": {name: dict(sizes) for name, sizes in self.splits.items()},
            "of": self.of,
            **({"head_mix": self.head_mix} if self.head_mix else {}),
        }

    @classmethod
    def from_plain(cls, values: Any) -> TransferRecord:
        """From JSON values, of older and newer versions too: unknown entries are ignored, missing ones get defaults.

        Raises:
            ValueError: it lacks its task, protocol or results, or an entry is of another type.
        """
        record = parsed(cls, values)
        return replace(
            record,
            results=tuple(Result.from_plain(result) for result in record.results),
            yardsticks={
                name: tuple(Result.from_plain(result) for result in results)
                for name, results in record.yardsticks.items()
            },
            classes=tuple(record.classes),
            notes=tuple(record.notes),
            asked=tuple(record.asked),
            gains=tuple(parsed(Gain, gain) for gain in record.gains),
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per score, the run's first; the column ``of`` says ``encoder`` or names the yardstick."""
        import pandas as pd

        scores = [("encoder", result) for result in self.results]
        scores += [(name, result) for name, results in self.yardsticks.items() for result in results]
        columns = ("probe", "label_fraction", "metric", "value", "low", "high", "n", "units", "draws", "num_features")
        rows = [{"of": owner} | {name: getattr(result, name) for name in columns} for owner, result in scores]
        return pd.DataFrame(rows).assign(run=self.run, task=self.task, protocol=self.protocol)

    def __str__(self) -> str:
        """Plain lines for a person: one per score, the yardsticks beneath, and what a reader has to know."""
        first = self.headline
        groups = f" in {first.units} groups" if 0 < first.units < first.n else ""
        lines = [f"{self.run}  {self.task}  {first.metric}  protocol {self.protocol}  n {first.n}{groups}"]
        rows = [("encoder", result) for result in self.results]
        rows += [(name, result) for name, results in self.yardsticks.items() for result in results]
        factor = 100 if in_percent(first.metric) else 1
        for name, r in rows:
            interval = "" if r.ends is None else "  [{:.1f}, {:.1f}]".format(*(factor * end for end in r.ends))
            read = f"  {r.num_features} features" if r.num_features else ""
            lines.append(
                f"  {name:<14} {r.probe:<8} labels {r.label_fraction:<8} {factor * r.value:6.2f}{interval}{read}"
            )
        if groups and first.low is None:
            lines.append(
                f"  The test split holds {first.units} of the groups. With fewer than 5 there is no interval, because "
                "so few do not show how groups differ."
            )
        lines += [f"  {note}" for note in self.notes]
        if first.others:
            further = (
                f"{name} {f'{100 * value:.4g} %' if in_percent(name) else f'{value:.4g}'}"
                for name, value in first.others.items()
            )
            lines.append(f"  The first of these by other metrics: {', '.join(further)}.")
        if self.unbeaten:
            share = share_in_words(first.label_fraction)
            unbeaten = ", ".join(self.unbeaten)
            lines.append(f"  With {share} the {first.probe} probe does not beat {unbeaten}: nothing is shown.")
        lines += [f"  {self.answer}"] * bool(self.gains)
        return "\n".join(lines)


def read_transfer(path: Path) -> TransferRecord:
    """The record that a transfer file holds.

    Raises:
        UserError: the file cannot be read, or is not a transfer's.
    """
    try:
        return TransferRecord.from_plain(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}; delete it and transfer again") from None


def write_transfer(
    path: Path,
    record: TransferRecord,
    predictions: Mapping[str, NDArray[Any]] | None = None,
    yardstick_predictions: Mapping[str, NDArray[Any]] | None = None,
    by_example: Iterator[pd.DataFrame] | None = None,
    el2n: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Write a record, after its predictions, yardsticks' predictions, table by example and EL2N scores, if any."""
    archives = {".predictions": predictions, ".yardsticks": yardstick_predictions, ".el2n": el2n}
    for suffix, arrays in archives.items():
        if arrays:
            write(path.with_suffix(f"{suffix}.npz"), partial(_save_arrays, arrays=arrays))
    if by_example is not None:
        write(path.with_suffix(".predictions.parquet"), partial(_save_frames, frames=by_example))
    write(path, lambda p: p.write_text(json.dumps(record.as_plain(), indent=1), encoding="utf-8"))


def _save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    import numpy as np

    with path.open("wb") as file:
        np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]  # its stub takes any keyword for a flag


def _save_frames(path: Path, frames: Iterator[pd.DataFrame]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = pa.Table.from_pandas(next(frames), preserve_index=False)
    with pq.ParquetWriter(path, first.schema) as file:
        file.write_table(first)
        for frame in frames:
            file.write_table(pa.Table.from_pandas(frame, schema=first.schema, preserve_index=False))


def read_predictions(path: Path) -> dict[str, NDArray[Any]]:
    """The predictions beside a transfer file, by `prediction_key`.

    Raises:
        UserError: their file is missing or damaged.
    """
    return _read_arrays(path.with_suffix(".predictions.npz"), path)


def read_yardstick_predictions(path: Path) -> dict[str, NDArray[Any]]:
    """The yardsticks' predictions beside a transfer file, by `yardstick_key`; empty if none were kept.

    Raises:
        UserError: their file is damaged.
    """
    file = path.with_suffix(".yardsticks.npz")
    return _read_arrays(file, path) if file.exists() else {}


def _read_arrays(file: Path, path: Path) -> dict[str, NDArray[Any]]:
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{file} is damaged ({error}): delete it and {path.name} beside it, and transfer again"
        ) from error


EXAMPLES, PROBABILITIES = 1 << 16, 1 << 22
"""Rows and probabilities of `by_example` at a time, at most."""


def by_example(outputs: NDArray[Any], data: Data) -> Iterator[pd.DataFrame]:
    """The headline's prediction of every test example, one row each, a bounded number of rows at a time.

    Columns are ``key`` (a file's name, ``file:row``, or the row's number), ``group`` if there are groups, ``truth``,
    ``prediction``, and the probability of each class as ``p_CLASS``. With several labels per example the names of its
    classes are joined by ``|``.
    """
    import numpy as np

    test = data.require_labelled().test
    rows = min(EXAMPLES, max(1, PROBABILITIES // (outputs.shape[1] if outputs.ndim > 1 else 1)))
    for start in range(0, len(test), rows):
        index = np.arange(start, min(start + rows, len(test)))
        yield _frame(outputs[index], data, test.take(index))


def _frame(outputs: NDArray[Any], data: Data, test: Split) -> pd.DataFrame:
    """The rows of `by_example` for some examples."""
    import numpy as np
    import pandas as pd
    from scipy.special import expit, softmax

    task = data.require_labelled().task
    assert test.label is not None
    columns: dict[str, Any] = {"key": [str(row) for row in test.rows] if data.names is None else data.names(test.rows)}
    if test.group is not None:
        columns["group"] = test.group
    if task.kind == "regression":
        return pd.DataFrame({**columns, "truth": test.label, "prediction": outputs})
    names = np.array(task.classes, dtype=object)
    if task.kind == "classes":
        probability = softmax(outputs.astype(float), axis=1)
        columns |= {"truth": names[test.label], "prediction": names[outputs.argmax(axis=1)]}
    else:
        probability = expit(outputs.astype(float))
        for column, chosen in (("truth", test.label > 0), ("prediction", outputs > 0)):
            columns[column] = ["|".join(names[row]) for row in chosen]
    return pd.DataFrame(columns | {f"p_{name}": p for name, p in zip(names, probability.T, strict=True)})
