"""What every modality needs besides the content of files: folders, archives, lists, and a user's labels and splits."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dabsmix.data.cache import fingerprint
from dabsmix.data.domain import Data, Labelled, Task
from dabsmix.data.splits import LabelledParts, divide_labelled
from dabsmix.errors import UserError, did_you_mean
from dabsmix.modalities.tables import TableSource, blocks, column_names

__all__ = [
    "LISTED",
    "Folder",
    "Marked",
    "OwnSplit",
    "class_names",
    "codes",
    "content",
    "digest",
    "divided",
    "division_notes",
    "empty_files_note",
    "endings_not_read",
    "lines",
    "marked",
    "marked_files",
    "named",
    "own_files",
    "own_labels",
    "own_split",
    "read_labels",
    "require_labels",
    "rows_named",
    "skipped_note",
    "split_note",
    "usable_rows",
    "walk",
]

LISTED = 20
"""The most names that a note lists."""

HIDDEN = re.compile(r"(^|/)(\.|__MACOSX/)")
"""Files and folders that are not part of the data, by their relative path."""

RUN = ("run.json", "config.yaml")
"""The files of a folder that holds a run, or the record of one, and so none of a user's data."""

Folder = Path | zipfile.Path
"""Where examples lie: a folder, or a folder in a zip archive, which has the same interface."""

FEW = 5
"""Up to this many skipped examples are named one by one in a note; more are counted by reason."""


def walk(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """All files below a folder with one of these suffixes: relative paths with "/", sorted.

    Links are followed, except a link to a folder that contains it. Files and folders whose name begins with a dot are
    left out, and so are the folders of runs and everything that is not a regular file, such as a pipe.

    Raises:
        UserError: the folder does not exist, or a folder below it cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; the data set is missing or has another layout")
    files: list[str] = []

    def visit(path: str, prefix: str, above: frozenset[tuple[int, int]]) -> None:
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        if identity in above or (prefix and all(os.path.isfile(f"{path}/{name}") for name in RUN)):
            return
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    visit(entry.path, f"{prefix}{entry.name}/", above | {identity})
                elif entry.name.lower().endswith(suffixes) and (entry.is_file() or not os.path.exists(entry.path)):
                    files.append(prefix + entry.name)  # a broken link too: reading it gives an error that names it

    try:
        visit(str(folder), "", frozenset())
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); fix its permissions") from error
    return sorted(files)


def content(path: Folder) -> Path | BytesIO:
    """A file for libraries that accept a path or an open file: its path, or its bytes if it is in an archive.

    Raises:
        UserError: it is damaged in its archive.
    """
    if isinstance(path, Path):
        return path
    try:
        return BytesIO(path.read_bytes())
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be read from its archive ({error}); fetch the archive again") from error


def lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        UserError: the file is missing, or is not UTF-8 text.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch the data set again") from error


def rows_named(path: Path, names: Sequence[str], rows: Mapping[str, int]) -> NDArray[np.int64]:
    """The rows of the images named in a list, in the order of the list.

    Raises:
        UserError: an image of the list does not exist; the message states the line.
    """
    for number, name in enumerate(names, 1):
        if name not in rows:
            raise UserError(f"{path}, line {number}: no image {name!r} beside it; fetch the data set again")
    return np.array([rows[name] for name in names], dtype=np.int64)


def codes(values: Sequence[str]) -> NDArray[np.int64]:
    """Each value's index among the sorted distinct values: group and class numbers, int64 ``(n,)``."""
    return np.unique(np.asarray(values), return_inverse=True)[1].astype(np.int64)


def digest(lines: Sequence[str]) -> str:
    """Hex sha256 of lines joined by newlines."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def split_note(test: Sequence[str]) -> str:
    """A note for a test part that upstream does not fix, with a checksum by which two users can compare theirs."""
    return f"The split is drawn here by seed over sorted names; sha256 of the {len(test)} test names: {digest(test)}."


# --- a user's own folder of files, one example each


def own_files(path: Path, suffixes: tuple[str, ...]) -> tuple[Folder, list[str]]:
    """The folder and its files, as `walk` lists them; for a single file, its folder and its name.

    A zip archive is read in place, as if it were a folder.

    Raises:
        UserError: there is no file with such a suffix, or the archive is damaged.
    """
    if path.suffix.lower() == ".zip" and path.is_file():
        return _zipped(path, suffixes)
    if path.is_file() and not path.name.lower().endswith(suffixes):
        raise UserError(f"{path}: its name ends in none of {', '.join(suffixes)}; are the file and --modality right?")
    if path.is_file():
        return path.parent, [path.name]
    files = walk(path, suffixes)
    if not files:
        raise UserError(f"{path}: no file below it ends in {', '.join(suffixes)}; is it the right folder?")
    return path, files


def _zipped(path: Path, suffixes: tuple[str, ...]) -> tuple[zipfile.Path, list[str]]:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read as a zip archive ({error}); fetch it again") from error
    files = sorted(
        name for name in archive.namelist() if name.lower().endswith(suffixes) and HIDDEN.search(name) is None
    )
    if not files:
        raise UserError(f"{path}: no file in it ends in {', '.join(suffixes)}; is it the right archive?")
    return zipfile.Path(archive), files


def endings_not_read(path: Path, suffixes: tuple[str, ...], *read: str) -> Counter[str]:
    """How many files at ``path`` end in each of the suffixes that `own_files` leaves out, of those that `walk` lists.

    Args:
        path: see `own_files`.
        suffixes: of the files that are examples.
        read: files below it that are read as something else, such as a table of labels.
    """
    if path.is_dir():
        names = walk(path, ("",))
    elif path.suffix.lower() == ".zip":
        names = [name for name in zipfile.ZipFile(path).namelist() if not name.endswith("/")]
    else:
        names = []
    left_out = (
        name
        for name in names
        if not name.lower().endswith(suffixes) and HIDDEN.search(name) is None and name not in read
    )
    return Counter(Path(name).suffix.lower() or "no suffix" for name in left_out)


Named = Mapping[str, tuple[str, str]]
"""Class and group by file; the group is the file's name if no column of groups is given."""


def own_labels(
    folder: Folder,
    files: Sequence[str],
    label: str | None,
    labels: str,
    group: str | None,
    on_bad: Literal["error", "skip"],
) -> tuple[Named | None, str, tuple[str, ...]]:
    """The classes and groups of a user's files (None without a label), the table's fingerprint, and notes on its rows.

    Args:
        folder: of the data.
        files: below it.
        label: ``folder`` if each class has its own folder; with `labels`, the column of the class.
        labels: a CSV as `read_labels` reads it; its path is relative to the folder of the data.
        group: the column of `labels` that says which files belong together.
        on_bad: ``skip`` leaves out rows of the table that name no file.

    Raises:
        UserError: one of the three options needs another one; or as `read_labels`.
    """
    if labels and label is None:
        raise UserError(f"labels {labels}: name its column of classes with --label")
    if not labels and (group or label not in (None, "folder")):
        raise UserError(
            f"files have no column {group or label!r}: give --label folder, or name a CSV in the option labels"
        )
    if label is None:
        return None, "", ()
    if not labels:
        return {file: (file.split("/")[0], file) for file in files if "/" in file}, "", ()
    table = folder / labels if isinstance(folder, zipfile.Path) else folder / Path(labels).expanduser()
    require_labels(table)
    named, notes = read_labels(table, files, label, group, on_bad)
    # in an archive the fingerprint of the files covers the table too
    return named, fingerprint(table.parent, [table]) if isinstance(table, Path) else "", notes


def require_labels(table: Folder) -> None:
    """Refuse a table of labels that does not exist."""
    if not table.is_file():
        raise UserError(f"{table}: no such file; the option `labels` is relative to --data")


@dataclass(frozen=True)
class OwnSplit:
    """How a user's files are divided; a row is a file's index in the list.

    Attributes:
        parts: the rows of each part; without labels all usable rows are for pretraining.
        label: int64 ``(n,)``, -1 for rows without a label and for unusable ones; None without labels.
        task: None without labels.
        group: int64 ``(n,)``, or None.
        notes: how the splits were made, and what was skipped.
        skipped: what was wrong with each skipped file.
    """

    parts: LabelledParts
    label: NDArray[np.int64] | None
    task: Task | None
    group: NDArray[np.int64] | None
    notes: tuple[str, ...]
    skipped: tuple[str, ...]


def own_split(
    noun: str,
    folder: Folder,
    files: Sequence[str],
    named: Named | None,
    bad: Mapping[int, str],
    *,
    grouped: bool,
    on_bad: Literal["error", "skip"],
) -> OwnSplit:
    """Divide a user's files: a fifth of the labelled ones of every class (or of the groups) become the test part.

    Files without a label are used for pretraining only.

    Args:
        noun: for the files, in messages: ``images``.
        folder: of the data.
        files: below it.
        named: see `own_labels`.
        bad: for each bad row, what is wrong with it.
        grouped: whether the groups are kept whole.
        on_bad: ``skip`` leaves out the bad rows, counts them and lists them.

    Raises:
        UserError: a row is bad and not skipped, no row can be used, or there is only one class.
    """
    rows = usable_rows(noun, len(files), bad, on_bad)
    skipped = tuple(bad[row] for row in sorted(bad))
    if named is None:
        parts = LabelledParts(rows, rows[:0], rows[:0], rows[:0])
        return OwnSplit(parts, None, None, None, skipped_note(noun, skipped, len(files)), skipped)
    label, group = np.full(len(files), -1, dtype=np.int64), np.full(len(files), -1, dtype=np.int64)
    of_class = [named[files[row]][0] if files[row] in named else "" for row in rows]
    classes = class_names(of_class, folder, noun)
    label[rows] = [classes.index(name) if name else -1 for name in of_class]
    # a file that the table does not name is a group by itself
    group[rows] = codes([named[files[row]][1] if files[row] in named else f"/{files[row]}" for row in rows])
    indices = divide_labelled(label[rows] >= 0, label=label[rows], group=group[rows] if grouped else None, seeds=(0, 0))
    parts = LabelledParts(*(rows[part] for part in indices))
    task = Task("classes", "accuracy", classes)
    notes = (
        *division_notes(noun, task, parts, label, len(rows), group=group if grouped else None),
        *skipped_note(noun, skipped, len(files)),
    )
    return OwnSplit(parts, label, task, group if grouped else None, notes, skipped)


def usable_rows(noun: str, total: int, bad: Mapping[int, str], on_bad: Literal["error", "skip"]) -> NDArray[np.int64]:
    """The rows of a user's files that are not bad.

    Raises:
        UserError: a row is bad and not skipped, or no row can be used.
    """
    if bad and on_bad == "error":
        others = f" ({len(bad) - 1} more of {total} {noun} are bad)" if len(bad) > 1 else ""
        raise UserError(f"{bad[min(bad)]}, or leave such files out with --on-bad skip{others}")
    rows = np.array([row for row in range(total) if row not in bad], dtype=np.int64)
    if not len(rows):
        raise UserError(f"none of the {total} {noun} can be used; the first: {bad[0]}")
    return rows


def named(names: Sequence[str]) -> Callable[[NDArray[np.int64]], list[str]]:
    """For ``Data.names``: a function from rows to their names in a list."""
    return lambda rows: [names[row] for row in rows]


# --- further examples with labels, read as a run read its own


class Marked(NamedTuple):
    """Further examples with their labels, before they are divided.

    Attributes:
        data: all of them as ``pretrain``, in order.
        keys: the name of each.
        noun: for the examples, in messages: ``images``.
        task: what is predicted.
        label: of each example, -1 or NaN if it has none.
        group: int64 ``(n,)``, or None.
        notes: what was decided here.
    """

    data: Data
    keys: Sequence[str]
    noun: str
    task: Task
    label: NDArray[Any]
    group: NDArray[np.int64] | None
    notes: tuple[str, ...] = ()


def marked(
    data: Data, keys: Sequence[str], noun: str, place: Folder, label: Sequence[str], group: Sequence[str] | None
) -> Marked:
    """Examples whose classes and groups are given as text; an empty class stands for no label.

    Raises:
        UserError: there are fewer than two classes.
    """
    classes = class_names(label, place, noun)
    numbers = {name: code for code, name in enumerate(("", *classes), -1)}
    code = np.array([numbers[name] for name in label], np.int64)
    return Marked(data, keys, noun, Task("classes", "accuracy", classes), code, None if group is None else codes(group))


def marked_files(
    noun: str,
    path: Path,
    suffixes: tuple[str, ...],
    read: tuple[Data, Sequence[str]],
    label: str,
    labels: str,
    group: str | None,
    on_bad: Literal["error", "skip"],
) -> Marked:
    """Files below ``path``, already ``read``, with the classes and groups of `own_labels`."""
    folder, files = own_files(path, suffixes)
    data, keys = read
    named, _, notes = own_labels(folder, files, label, labels, group, on_bad)
    assert named is not None
    pairs = [named.get(key, ("", f"/{key}")) for key in keys]  # a file without a label is a group by itself
    groups = [name for _, name in pairs] if group is not None else None
    return marked(data, keys, noun, folder, [name for name, _ in pairs], groups)._replace(notes=notes)


def divided(examples: Marked) -> Data:
    """Labelled examples in three parts, divided as a user's own data are; examples without a label are not used."""
    data, task, label = examples.data, examples.task, examples.label
    has_label = ~np.isnan(label) if label.dtype.kind == "f" else label >= 0
    of_class = label if task.kind == "classes" else None
    parts = divide_labelled(has_label, label=of_class, group=examples.group)
    all_rows = replace(data.pretrain, label=label, group=examples.group)
    train, validation, test = (all_rows.take(part) for part in parts[1:])
    notes = division_notes(examples.noun, task, parts, label, len(label), group=examples.group, used=False)
    rows, keys = data.pretrain.rows, examples.keys
    order = np.argsort(rows, kind="stable")

    def names(of_rows: NDArray[np.int64]) -> list[str]:
        return [keys[place] for place in order[np.searchsorted(rows, of_rows, sorter=order)].tolist()]

    return replace(
        data,
        pretrain=train,
        labelled=Labelled(task, train, validation, test),
        names=names,
        notes=(*notes, *examples.notes, *data.notes),
    )


def class_names(labels: Iterable[str], path: Folder, noun: str) -> tuple[str, ...]:
    """The distinct labels in order, without the empty one, which stands for no label.

    Raises:
        UserError: there are fewer than two, or no two labels are the same.
    """
    labelled = [label for label in labels if label]
    classes = tuple(sorted(set(labelled)))
    if not classes:
        raise UserError(f"{path}: none of the {noun} has a label; leave out --label, or fill some in")
    if len(classes) < 2:
        raise UserError(f"{path}: all {noun} with a label have {classes[0]!r}; a task needs two classes")
    if len(classes) == len(labelled) > 2:
        raise UserError(
            f"{path}: all {len(labelled)} labels of {noun} differ ({classes[0]!r}, {classes[1]!r}, ...), but are "
            "read as classes; quantities are predicted of tables only"
        )
    return classes


def division_notes(
    noun: str,
    task: Task,
    parts: LabelledParts,
    label: NDArray[Any],
    total: int,
    *,
    group: NDArray[np.int64] | None,
    used: bool = True,
) -> tuple[str, ...]:
    """For ``Data.notes``: how the splits were made, their sizes, rows without a label, and classes missing from a part.

    Args:
        noun: for the rows: ``images``.
        task: what is predicted.
        parts: the rows of each part.
        label: of all rows; -1 or NaN for rows without one.
        total: how many rows can be used.
        group: of all rows, if groups were kept whole.
        used: whether rows without a label are used for pretraining.
    """
    by_class = task.kind == "classes"
    how = "whole groups" if group is not None else f"{noun} of every class" if by_class else noun
    sizes = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    named = ", ".join(f"{len(rows)} {name}{_in_groups(group, rows)}" for name, rows in sizes.items())
    notes = [f"The splits are ours, of {how}, seeded: {named}."]
    scored = sum(map(len, sizes.values()))
    if scored < total and not used:
        have, are = ("has", "is") if total - scored == 1 else ("have", "are")
        notes.append(f"{total - scored} of {total} {noun} {have} no label and {are} not used.")
    elif scored < total:
        unlabelled = len(parts.pretrain) - len(parts.train)
        beside = total - scored - unlabelled
        kept_out = f"; {beside} in groups of validation or test are not used" if beside else ""
        have = "has" if total - scored == 1 else "have"
        notes.append(
            f"{total - scored} of {total} {noun} {have} no label: pretraining sees {unlabelled} of them beside the "
            f"{len(parts.train)} of train{kept_out}."
        )
    if not by_class:
        return tuple(notes)
    counts = np.bincount(label[label >= 0].astype(np.int64), minlength=len(task.classes))
    if single := [name for name, count in zip(task.classes, counts, strict=True) if count == 1]:
        notes.append(f"Classes with one example, which cannot be both trained on and scored: {_listed(single)}.")
    for name, rows in sizes.items():
        present = set(np.unique(label[rows]).tolist())
        if absent := [name for code, name in enumerate(task.classes) if code not in present]:
            notes.append(f"None of the {name} {noun} has the class {_listed(absent)}.")
    return tuple(notes)


def _in_groups(group: NDArray[np.int64] | None, rows: NDArray[np.int64]) -> str:
    if group is None:
        return ""
    number = len(np.unique(group[rows]))
    return f" in {number} group{'s' * (number != 1)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(repr(name) for name in names[:LISTED]) + more


def skipped_note(noun: str, skipped: Sequence[str], total: int) -> tuple[str, ...]:
    """For ``Data.notes``: how many were skipped, and the first of them; all of them are in ``Data.state``."""
    if not skipped:
        return ()
    listing = "; ".join(skipped)
    if len(skipped) > FEW:
        reasons: dict[str, list[str]] = {}
        for entry in skipped:
            key, reason = _key_and_reason(entry)
            reasons.setdefault(reason, []).append(key)
        counted = sorted(reasons.items(), key=lambda item: -len(item[1]))
        listing = "; ".join(f"{reason}: {len(keys)} (the first: {keys[0]})" for reason, keys in counted[:LISTED])
        listing += "; run.json lists them all"
    return (f"{len(skipped)} of {total} {noun} {'was' if len(skipped) == 1 else 'were'} skipped: {listing}.",)


def empty_files_note(files: Sequence[Path]) -> tuple[str, ...]:
    """For ``Data.notes``: tables of which no row was read."""
    return (f"No row was read of the files {_listed([file.name for file in files])}.",) if files else ()


def _key_and_reason(skipped: str) -> tuple[str, str]:
    """Split ``folder/a.png: damaged image (truncated); fetch it again`` into the file (and row) and what is wrong."""
    match = re.match(r"(.*?(?:: row \d+|:\d+)?): (.*)", skipped)
    key, reason = match.groups() if match else (skipped, "not usable")
    return key, re.split(r" \(|;", reason)[0]


def _same_name(file: str, files: Sequence[str]) -> str:
    """A hint at a file that lies elsewhere, or whose path a table writes in another way."""
    name = file.replace("\\", "/").rpartition("/")[2]
    namesake = next((path for path in files if path.rpartition("/")[2] == name), None)
    return f" (did you mean {namesake!r}?)" if namesake and name else ""


def read_labels(
    path: Folder, files: Sequence[str], label: str, group: str | None, on_bad: Literal["error", "skip"]
) -> tuple[dict[str, tuple[str, str]], tuple[str, ...]]:
    """Class and group of each file, from a user's CSV with the column ``file``, and notes on rows that were left out.

    By default each file is a group, and so is one whose row has neither class nor group. With ``skip``, rows that name
    a file which is not below the folder are left out.

    Raises:
        UserError: a column is missing; a row has another number of cells, has no group, or names a file that is not
            below the folder or has another row; or as `blocks`.
    """
    source, existing = (
        TableSource(path) if isinstance(path, Path) else TableSource(Path(str(path)), archived=path),
        set(files),
    )
    columns = column_names(source)
    needed = ["file", label, *([group] if group else [])]
    if missing := [name for name in needed if name not in columns]:
        what = ", of the files' paths below the data folder," if missing[0] == "file" else ""
        hint = did_you_mean(missing[0], columns)
        raise UserError(f"{path}: no column {missing[0]!r}{what}{hint} among {', '.join(columns)}")

    def refuse(file: Path, row: int, reason: str) -> None:
        raise UserError(f"{file}, row {row}: {reason}")

    labelled: dict[str, tuple[str, str]] = {}
    absent: list[str] = []
    for block in blocks(source, needed, refuse, always=("",)):  # a class may be called "NA"
        cells = (block.cells[name].fill_null("").to_pylist() for name in needed)
        for row, file, *values in zip(block.rows.tolist(), *cells, strict=True):
            if file not in existing and on_bad == "skip":
                absent.append(f"row {row}, {file!r}")
                continue
            if file not in existing:
                fix = "fix the row, or leave such rows out with --on-bad skip"
                refuse(source.path, row, f"no file {file!r} below the data folder{_same_name(file, files)}; {fix}")
            if file in labelled:
                refuse(source.path, row, f"{file!r} has an earlier row; remove one of them")
            if group and not values[-1]:
                if not values[0]:  # like a file that the table does not name
                    continue
                refuse(source.path, row, f"{group} is empty; fill it in")
            labelled[file] = (values[0], values[-1] if group else file)
    if not absent:
        return labelled, ()
    return labelled, (f"{path}: skipped rows that name no file: {len(absent)} (the first: {absent[0]}).",)
