"""What every modality reads of a data set besides its content: folders, lists, a user's labels, sums of lists."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dabsmix.errors import UserError

__all__ = ["codes", "digest", "lines", "read_labels", "rows_named", "split_note", "walk"]


def walk(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """All files below a folder with one of these endings, relative, with "/", sorted.

    Links are followed; files and folders whose name begins with a dot are left out.

    Raises:
        UserError: there is no such folder, or one below it cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; the data set is not there or has another layout")

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); mend its permissions") from error

    found: list[str] = []
    for root, _, files in os.walk(folder, onerror=refuse, followlinks=True):
        inside = Path(root).relative_to(folder)
        if not any(part.startswith(".") for part in inside.parts):
            found += [
                (inside / file).as_posix() for file in files if file.lower().endswith(suffixes) and file[0] != "."
            ]
    return sorted(found)


def lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        UserError: it is missing or no text.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch the data set again") from error


def rows_named(path: Path, names: Sequence[str], rows: Mapping[str, int]) -> NDArray[np.int64]:
    """Rows of the images that the lines of a list name, in the list's order.

    Raises:
        UserError: an image of the list is not there; the message has the list's line.
    """
    for number, name in enumerate(names, 1):
        if name not in rows:
            raise UserError(f"{path}, line {number}: no image {name!r} beside it; fetch the data set again")
    return np.array([rows[name] for name in names], dtype=np.int64)


def codes(values: Sequence[str]) -> NDArray[np.int64]:
    """Each value's place among the sorted distinct values: group and class numbers, int64 ``(n,)``."""
    return np.unique(np.asarray(values), return_inverse=True)[1].astype(np.int64)


def digest(lines: Sequence[str]) -> str:
    """Hex sha256 of lines joined by newlines."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def split_note(test: Sequence[str]) -> str:
    """A note for a test part that upstream does not fix: the sum by which two readers can tell that theirs is one."""
    return f"The split is drawn here by seed over sorted names; sha256 of the {len(test)} test names: {digest(test)}."


def read_labels(path: Path, files: Sequence[str], label: str, group: str | None) -> dict[str, tuple[str, str]]:
    """Class and group of each file, from a user's CSV with the column ``file``; without `group` each is its own.

    Raises:
        UserError: a column is missing, a row has another number of cells, no label, or a file that is not there or
            had a row before.
    """
    found: dict[str, tuple[str, str]] = {}
    there = set(files)
    wanted = ["file", label, *([group] if group else [])]
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = reader.fieldnames or []
            if missing := [name for name in wanted if name not in columns]:
                raise UserError(f"{path}: no column {missing[0]!r} among {', '.join(columns)}")
            for number, row in enumerate(reader, 2):
                if None in row or None in row.values():
                    raise UserError(f"{path}, row {number}: not {len(columns)} cells, as the header has")
                file, *values = (row[name].strip() for name in wanted)
                if file not in there:
                    raise UserError(f"{path}, row {number}: no file {file!r} below the data folder")
                if file in found:
                    raise UserError(f"{path}, row {number}: {file!r} had a row before; leave one of them out")
                if not all(values):
                    raise UserError(f"{path}, row {number}: {wanted[1 + values.index('')]} is empty; fill it in")
                found[file] = (values[0], values[-1] if group else file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"labels {path}: cannot be read ({error})") from error
    return found
