"""Which examples: a named domain, or a user's own files through the reader of their modality."""

from __future__ import annotations

import collections.abc
import glob
import hashlib
import importlib
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_origin, get_type_hints

import yaml

from dabsmix.errors import UserError, did_you_mean
from dabsmix.files import data_root
from dabsmix.registry import domain

if TYPE_CHECKING:
    from dabsmix.data.domain import Data, Domain

__all__ = [
    "Modality",
    "Source",
    "absolute",
    "batch_size",
    "load",
    "load_as",
    "modality_of",
    "read_options",
    "read_yaml",
    "state_of_further",
    "with_metric",
]

Modality = Literal["image", "spectrogram", "sensor", "tabular", "text", "sequence"]

HUB = "hf:"
"""How ``--data`` names a data set of the Hugging Face hub, or a folder that `datasets` saved."""

FLAGS = ("label", "on_bad", "root")
"""Keywords that a reader gets from the command line; its other keywords are options."""

WRITTEN = {
    "sensor": ("separator", "decimal", "encoding"),
    "tabular": ("separator", "decimal", "encoding"),
    "text": ("encoding",),
}
"""By modality, the options that only say how files are written, in which further files may differ from a run's own."""

READS_FILES = {
    "image": "size",
    "spectrogram": "form",
    "sensor": "channels",
    "tabular": "columns",
    "text": "tokenizer",
    "sequence": "alphabet",
}
"""By modality, the entry of a run's state that its reader needs to read files."""


@dataclass(frozen=True)
class Source:
    """Which examples to read: those of a named domain, or those in the user's own files."""

    domain: str | None = None
    """Data set (see: dabsmix list domains)."""
    data: Path | None = None
    """Your own data, in place of --domain: a folder, a file, a pattern ('shards/*.tar'), or hf:ORG/NAME[:CONFIG]."""
    modality: Modality | None = None
    """What your own data are."""
    label: str | None = None
    """Column (or, for folders, 'folder') that holds the label of your own data; without it nothing is scored."""
    options: Path | None = None
    """YAML with further options for reading your own data (README, "Your own data")."""
    group: str | None = None
    """Column of your own data that says which examples belong together; same as the option of that name."""
    ignore: str | None = None
    """Columns of your own table to leave out, comma separated; same as the option of that name."""
    on_bad: Literal["error", "skip"] = "error"
    """What to do with unreadable examples of your own data; skipped ones are counted and listed."""
    protocol: Literal["v1", "dabs", "imix"] = "v1"
    """v1: ours. dabs: as the DABS reference does, including its faults, to compare with its published numbers. imix: as
    the i-Mix reference trains."""
    data_root: Path | None = None
    """Folder of the raw data [$DABSMIX_DATA, else the user's cache folder]."""

    @property
    def name(self) -> str:
        """The name of the data in a run's folder and record: the domain's, or that of the file or folder."""
        if self.domain is not None:
            return domain(self.domain).name
        if self.data is None:
            return "memory"
        if str(self.data).startswith(HUB):
            return re.sub(r"[^A-Za-z0-9._-]+", "-", str(self.data).removeprefix(HUB).rstrip("/").rpartition("/")[2])
        path = self.data.expanduser().resolve()
        if glob.has_magic(path.name) and not path.exists():
            return path.parent.name
        return path.name if path.is_dir() else re.sub(r"\.(csv|tar|json|jsonl|ndjson)$", "", path.stem)  # of .csv.gz

    @property
    def revision(self) -> int:
        """How many times the examples of a named domain have changed under this protocol; 0 for a user's own data."""
        return 0 if self.domain is None else domain(self.domain).revisions.get(self.protocol, 0)

    def check(self) -> None:
        """Refuse a source that does not name its data completely.

        Raises:
            UserError: neither or both of --domain and --data are given, the domain is unknown, --data does not exist
                or lacks its modality, --options cannot be read, or a flag for files is given with --domain.
        """
        if self.domain is not None and self.data is not None:
            raise UserError(f"--domain {self.domain} and --data {self.data}: give --domain or --data, not both")
        if self.domain is None and self.data is None:
            raise UserError("name the data: either --domain NAME (see `dabsmix list domains`) or --data PATH")
        if self.domain is not None:
            for flag in ("modality", "label", "options", "group", "ignore", "on_bad"):
                if (value := getattr(self, flag)) not in (None, "error"):
                    name = flag.replace("_", "-")
                    raise UserError(f"--{name} {value} is for your own data (--data PATH); leave it out with --domain")
            domain(self.domain)
            return
        assert self.data is not None
        packed = _is_packed(self)
        if not packed and not self.data.expanduser().exists():
            raise UserError(f"--data {self.data}: no such file or folder")
        if self.modality is None and not packed:
            raise UserError("--data also needs --modality image, spectrogram, sensor, tabular, text or sequence")
        read_options(self.options)

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Source:
        """The source that a ``config.yaml`` names, among other fields."""
        known: dict[str, Any] = {f.name: values[f.name] for f in fields(cls) if values.get(f.name) is not None}
        known |= {name: Path(known[name]) for name in ("data", "options", "data_root") if name in known}
        if "domain" in known:
            known.pop("on_bad", None)  # older versions took it here, where it changes nothing
        return cls(**known)


def load(source: Source) -> Data:
    """The data of a source; those of a named domain are fetched first if they are missing and can be fetched.

    The fingerprint of a user's own data covers the label and the options too: other options make other data of the
    same files.

    Raises:
        UserError: see `Source.name`; unknown domain; missing or damaged files; an unknown option.
    """
    import numpy as np

    from dabsmix.modalities.files import digest
    from dabsmix.modalities.summary import class_lines, imbalance_note

    source.check()
    if source.domain is not None:
        card = domain(source.domain)
        if source.protocol == "dabs" and card.dabs:
            raise UserError(
                f"--protocol dabs: DABS has no {card.name}, it has this data set at another size: name {card.dabs}"
            )
        named = card.load(ensure(card, data_root(source.data_root)), source.protocol)
        if revision := card.revisions.get(source.protocol):  # the same files, but other examples
            named = replace(named, fingerprint=digest([named.fingerprint, f"revision {revision}"]))
        return replace(named, source=source)

    source, path, options, notes = _opened(source)
    read = importlib.import_module(f"dabsmix.modalities.{source.modality}").load_own
    _check_options(source, options, _options_of(read) | {"metric": str})
    metric_name = options.pop("metric", None)
    with _named(path, source):
        data: Data = read(path, label=source.label, on_bad=source.on_bad, **_root(read, source), **options)
    key = digest([data.fingerprint, json.dumps([source.label, options], sort_keys=True, default=str)])
    if _divides_small_spreads(data.state):  # an earlier version read such files otherwise, which are thus other data
        key = digest([key, "small spreads are divided"])
    data = replace(data, fingerprint=key, source=source, notes=(*notes, *data.notes))
    if data.labelled is None:
        return data
    task = data.labelled.task
    labels = [split.label for split in data.labelled.splits.values() if split.label is not None]
    uneven = imbalance_note(task.classes, np.concatenate(labels)) if task.kind == "classes" else ()
    data = replace(data, summary=(*data.summary, *class_lines(task, labels)), notes=(*data.notes, *uneven))
    return with_metric(data, metric_name)


def _divides_small_spreads(state: Mapping[str, Any]) -> bool:
    """Whether a column or channel has a spread that is small beside a large mean, see `standardise.divisor`."""
    import numpy as np

    from dabsmix.data.standardise import is_constant

    if "mean" not in state:
        return False
    mean, std = np.asarray(state["mean"], float), np.asarray(state["std"], float)
    return bool((is_constant(mean, std) & (std > 1)).any())


def with_metric(data: Data, name: str | None) -> Data:
    """A user's labelled data, scored by the metric of this name, or without a name by `metrics.by_labels`.

    Raises:
        UserError: the metric is not one of those offered for such labels.
    """
    import numpy as np

    from dabsmix.scoring.metrics import OFFERED, by_labels

    labelled = data.require_labelled()
    task, train = labelled.task, labelled.train.label
    offered = OFFERED.get(task.kind, (task.metric,))
    if name is not None and name not in offered:
        labels = "classes" if task.kind == "classes" else "a quantity"
        raise UserError(f"metric {name!r}{did_you_mean(name, offered)}: for {labels} there are {', '.join(offered)}")
    assert train is not None
    metric = name or (by_labels(task.kind, train) if task.kind in OFFERED else task.metric)
    notes = data.notes
    if metric == "balanced_accuracy" and name is None:
        counts = np.unique(train, return_counts=True)[1]
        notes += (
            f"The metric is balanced accuracy, the mean of the classes' recalls: the most frequent class has "
            f"{counts.max()} training labels, the rarest {counts.min()} (`metric` chooses).",
        )
    return replace(data, labelled=replace(labelled, task=replace(task, metric=metric)), notes=notes)


def load_as(source: Source, modality: str, state: Mapping[str, Any]) -> Data:
    """A user's labelled data, read with the columns, categories, tokenizer and statistics of a run.

    A fifth of the labelled examples (or groups) is the test split, as in pretraining on them.

    Args:
        source: the data, with a label.
        modality: of the run.
        state: ``Data.state`` of the run, with everything that its modality's reader needs.

    Raises:
        UserError: the data are of another modality, lack a column or have no label, or an option does not apply.
    """
    from dabsmix.modalities.files import digest, divided

    if source.label is None:
        raise UserError(f"--data {source.data}: name the column that is to be predicted with --label")
    source = replace(source, modality=source.modality or cast(Modality, modality))
    source.check()
    source, path, options, notes = _opened(source)
    if source.modality != modality:
        raise UserError(f"--data {source.data} is {source.modality}, and the run was pretrained on {modality}")
    read = importlib.import_module(f"dabsmix.modalities.{modality}").load_further_labelled
    _check_options(source, options, _options_of(read) | dict.fromkeys(("metric", *WRITTEN.get(modality, ())), str))
    metric_name = options.pop("metric", None)
    state = _as_written(state, modality, options)
    root = {} if source.data_root is None else {"data_root": str(source.data_root)}  # where tokenizers lie
    with _named(path, source):
        marked = read(path, {**state, **root}, label=source.label, on_bad=source.on_bad, **options)
    data = with_metric(divided(marked), metric_name)
    settings = json.dumps([source.label, options, state], sort_keys=True, default=str)
    columns = [marked.label] if marked.group is None else [marked.label, marked.group]
    sums = [hashlib.sha256(column.tobytes()).hexdigest() for column in columns]
    rows = [marked.data.fingerprint or _content(marked.data), *sums]
    notes = (*notes, *data.notes, "It is not known whether test examples were among those that were pretrained on.")
    return replace(data, fingerprint=digest([*rows, settings]), source=source, notes=notes)


def state_of_further(state: Mapping[str, Any], source: Source) -> Mapping[str, Any]:
    """A run's state, with what the options of further files of its modality say of how they are written.

    Raises:
        UserError: an option says something else, or the file of options cannot be read.
    """
    assert source.modality is not None
    options = read_options(source.options)
    _check_options(source, options, dict.fromkeys(WRITTEN.get(source.modality, ()), str))
    return _as_written(state, source.modality, options)


def _as_written(state: Mapping[str, Any], modality: str, options: dict[str, Any]) -> Mapping[str, Any]:
    """A run's state that reads files which are written as these options say; they are removed from the others."""
    written = {name: options.pop(name) for name in WRITTEN.get(modality, ()) if name in options}
    if modality == "text":
        return {**state, **written}
    return {**state, "reading": {**state.get("reading", {}), **written}} if written else state


def _content(data: Data) -> str:
    """Digest of examples that come without the fingerprint of a file."""
    import numpy as np

    content = hashlib.sha256()
    for start in range(0, len(data.pretrain), 4096):
        index = np.arange(start, min(start + 4096, len(data.pretrain)))
        for array in data.pretrain.batch(index):
            content.update(array.numpy().tobytes())
    return content.hexdigest()


def _opened(source: Source) -> tuple[Source, Path, dict[str, Any], tuple[str, ...]]:
    """A user's own data as files: what they are, where they are, the reader's options, and notes for the user."""
    assert source.data is not None
    path, options = source.data.expanduser(), read_options(source.options)
    notes: tuple[str, ...] = ()
    if _is_packed(source):
        from dabsmix.modalities.packed import unpacked

        inside = unpacked(path, source.modality, options)
        beside = {name: value for name, value in inside.options.items() if source.label or name != "labels"}
        path, notes, options = inside.path, inside.notes, beside | options
        source = replace(source, modality=cast(Modality, inside.modality))
    flags = {name: getattr(source, name) for name in ("group", "ignore") if getattr(source, name) is not None}
    return source, path, options | flags, notes


@contextmanager
def _named(path: Path, source: Source) -> Iterator[None]:
    """Messages name what the user gave, not the file in the cache that it was unpacked to."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(path), str(source.data))) from error


def _is_packed(source: Source) -> bool:
    """Whether the examples have to be taken out of what holds them first."""
    from dabsmix.modalities.packed import is_packed

    return source.data is not None and is_packed(source.data.expanduser(), source.modality)


def absolute(path: Path) -> Path:
    """An absolute path; the name of a data set on the hub does not change."""
    place = str(path)
    if place.startswith(HUB) and not Path(place.removeprefix(HUB)).expanduser().exists():
        return path
    return Path(HUB * place.startswith(HUB) + str(Path(place.removeprefix(HUB)).expanduser().absolute()))


def _root(read: Callable[..., Data], source: Source) -> dict[str, Path]:
    """The data root, for readers that look for a tokenizer there."""
    return {"root": data_root(source.data_root)} if "root" in inspect.signature(read).parameters else {}


def batch_size(source: Source) -> int:
    """The default batch size: that of the domain's source; ours for a user's own data."""
    from dabsmix.data.domain import BATCH_SIZE

    return BATCH_SIZE if source.domain is None else domain(source.domain).batch_size


def modality_of(source: Source) -> str:
    """The modality of the examples: the domain's, or the one that a user states for their own data."""
    return source.modality or ("" if source.domain is None else domain(source.domain).modality)


def read_options(path: Path | None) -> dict[str, Any]:
    """The options in the file that ``--options`` names; none without it.

    Raises:
        UserError: the file is missing, or not YAML of lines ``name: value``.
    """
    if path is None:
        return {}
    if path.exists() and not path.is_file():
        raise UserError(f"--options {path}: not a file; write the options to one, because they are read more than once")
    return read_yaml(path, f"--options {path}", "name: value")


def read_yaml(path: Path, place: str, expected: str) -> dict[str, Any]:
    """The values of a YAML file.

    Args:
        path: the file.
        place: what messages call it.
        expected: how its lines are written.

    Raises:
        UserError: the file is missing or cannot be read, or it is not YAML of such lines.
    """
    try:
        values = yaml.safe_load(path.expanduser().read_text(encoding="utf-8")) or {}
    except FileNotFoundError as error:
        raise UserError(f"{place}: no such file; name a file of lines `{expected}`") from error
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror}); name a file of lines `{expected}`") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not encoded as utf-8 ({error.reason}); convert the file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or getattr(error, "reason", error)
        line = "" if mark is None else f", line {mark.line + 1}"
        raise UserError(
            f'{place}{line}: not YAML ({reason}); a value such as a comma needs quotes: `decimal: ","`'
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{place}: expected lines `{expected}`")
    return values


def _options_of(read: Callable[..., Any]) -> dict[str, Any]:
    """The options that a reader takes, and their types."""
    types = get_type_hints(read)
    parameters = inspect.signature(read).parameters.values()
    return {p.name: types[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in FLAGS}


def _check_options(source: Source, options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse an option that is not among the known ones, or does not have its type."""
    for name, value in options.items():
        if name not in known:
            raise UserError(
                f"{source.options or f'--{name}'}: unknown option {name!r}{did_you_mean(str(name), known)}; "
                f"{source.modality} data take: {', '.join(known) or 'none here'}"
            )
        if not _is_a(value, known[name]):
            raise UserError(f"{source.options or f'--{name}'}: {name} is {value!r}, not {_in_words(known[name])}")


def _is_a(value: object, kind: Any) -> bool:
    """Whether a YAML value has the type that a reader's signature states."""
    match get_origin(kind):
        case typing.Literal:
            return value in get_args(kind)
        case typing.Union | types.UnionType:
            return any(_is_a(value, argument) for argument in get_args(kind))
        case collections.abc.Sequence:
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return type(value) in ((int, float) if kind is float else (kind,))


def _in_words(kind: Any) -> str:
    """What a user is told that an option takes."""
    match get_origin(kind):
        case typing.Literal:
            return " or ".join(map(repr, get_args(kind)))
        case typing.Union | types.UnionType:
            return " or ".join(_in_words(argument) for argument in get_args(kind) if argument is not types.NoneType)
        case collections.abc.Sequence:
            return "a list of them"
    words = {int: "a whole number", float: "a number", str: "text (quotes make it text)"}
    return words.get(kind, str(kind))


def ensure(domain: Domain, root: Path) -> Path:
    """The folder of a domain's raw files, fetched when it is missing and can be fetched.

    Existing files are used without a download, even if they are a subset, unless an earlier download was interrupted.

    Raises:
        UserError: the files are missing and cannot be fetched, or the data root cannot be written.
    """
    from dabsmix.data.download import fetch_all

    folder = root / domain.folder
    if not domain.folder:
        return root  # embedded
    if (present := domain.present(root)) and not domain.interrupted(root):
        return present
    if not domain.downloads:
        how = domain.manual or "obtain the files from their source"
        raise UserError(
            f"{domain.name}: {folder} is missing; {how}; set --data-root or $DABSMIX_DATA if they are elsewhere"
        )
    fetch_all(domain.downloads, root)
    if not folder.exists():
        files = ", ".join(download.file for download in domain.downloads)
        raise UserError(f"{domain.name}: {files} did not provide {folder}; {domain.manual or 'please report this'}")
    return folder
