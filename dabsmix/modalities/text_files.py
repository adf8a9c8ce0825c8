"""Text files to texts: lines, GLUE's tables, and a user's own files, every row accounted for by file and number."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from dabsmix.errors import UserError
from dabsmix.modalities.files import walk
from dabsmix.modalities.tables import CSV, EMPTY, PARQUET

__all__ = ["OwnText", "read_lines", "read_own", "read_tsv"]


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and the lines of a UTF-8 file, without byte order mark and line end.

    Raises:
        UserError: the file is missing, cannot be read, or a line of it is not UTF-8.
    """
    try:
        # only "\\n" ends a line: upstream's files hold other characters that Python would split at
        with file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise UserError(f"{file}:{number}: not UTF-8 ({error.reason}); convert the file") from error
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; fetch the data set again or put the file there") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error


def read_tsv(file: Path, columns: Sequence[str], header: Sequence[str] = ()) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and the wanted cells of a tab-separated file without quoting, as GLUE's are.

    Args:
        file: its first line names the columns unless ``header`` does.
        columns: which cells, in which order.
        header: the columns of a file that does not name them.

    Raises:
        UserError: the file lacks a column, a row has another number of cells, or see `read_lines`.
    """
    names = list(header)
    for number, line in read_lines(file):
        cells = [cell.strip() for cell in line.split("\t")]
        if not names:
            names = cells
            missing = [column for column in columns if column not in names]
            if missing:
                raise UserError(f"{file}:{number}: no column {missing[0]!r} among {', '.join(names)}; is it this file?")
            continue
        if len(cells) != len(names):
            raise UserError(f"{file}:{number}: {len(cells)} cells where the table has {len(names)}; fix the row")
        yield number, [cells[names.index(column)] for column in columns]


# --- a user's own files


class OwnText(NamedTuple):
    """One text: what it is called (file name, or ``file:row``), and its class and group, empty where there is none."""

    key: str
    text: str
    label: str
    group: str


def read_own(
    path: Path, column: str, label: str | None, group: str | None, on_bad: Literal["error", "skip"]
) -> tuple[list[OwnText], list[str]]:
    """The texts of a folder of ``.txt`` files, of the lines of one, or of a table; and what was skipped and why.

    Args:
        path: the folder or file.
        column: a table's column of texts.
        label: a table's column of classes; ``folder`` for a folder of class folders; None where none is wanted.
        group: a table's column of groups, or None.
        on_bad: ``error`` raises at the first text that is empty or broken, or lacks its group; ``skip`` leaves it out.

    Raises:
        UserError: an unknown column, no text at all, or see ``on_bad``.
    """
    found: list[OwnText] = []
    bad: list[str] = []
    for key, text, of_class, of_group, fault in _candidates(path, column, label, group):
        if not fault and not text.strip():
            fault = "no text"
        if not fault and group is not None and of_group in EMPTY:
            fault = f"no {group}"
        if not fault:
            found.append(OwnText(key, text, "" if of_class in EMPTY else of_class, of_group))
        elif on_bad == "error":
            raise UserError(f"{path}: {key}: {fault}; fix it, or leave such texts out with --on-bad skip")
        else:
            bad.append(f"{key}: {fault}")
    if not found:
        raise UserError(f"{path}: not one text in it" + (f"; the first fault: {bad[0]}" if bad else ""))
    return found, bad


Candidate = tuple[str, str, str, str, str]
"""Key, text, class, group, and what is wrong; empty where nothing is."""


def _candidates(path: Path, column: str, label: str | None, group: str | None) -> Iterator[Candidate]:
    name = path.name.lower()
    if path.is_file() and name.endswith((*CSV, *PARQUET)):
        yield from (_parquet if name.endswith(PARQUET) else _csv)(path, column, label, group)
        return
    if group or label not in (None, "folder"):
        raise UserError(f"{path}: plain texts have no column {group or label!r}; give a table, or --label folder")
    if path.is_dir():
        for file in walk(path, (".txt",)):
            try:
                text, fault = (path / file).read_text(encoding="utf-8-sig"), ""
            except (OSError, UnicodeDecodeError) as error:
                text, fault = "", f"cannot be read as UTF-8 ({error})"
            yield file, text, file.split("/")[0] if "/" in file else "", "", fault
    elif label:
        raise UserError(f"{path}: the lines of a file have no class; give a table and its column with --label")
    else:
        for number, line in read_lines(path):
            yield f"{path.name}:{number}", line.strip(), "", "", ""


def _csv(path: Path, column: str, label: str | None, group: str | None) -> Iterator[Candidate]:
    """Rows count from 1, the header included; a cell may span lines, as texts do."""
    import gzip

    csv.field_size_limit(1 << 30)  # a cell may be a book
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            stream.seek(0)
            reader = csv.reader(stream, delimiter=max(",;\t", key=first.count), strict=True)
            names = [name.strip() for name in next(reader, [])]
            places = _places(path, names, column, label, group)
            for number, cells in enumerate(reader, start=2):
                if len(cells) == len(names):
                    text, of_class, of_group = (cells[place].strip() if place >= 0 else "" for place in places)
                    yield f"{path.name}:{number}", text, of_class, of_group, ""
                else:
                    fault = f"{len(cells)} cells where the table has {len(names)} columns"
                    yield f"{path.name}:{number}", "", "", "", fault
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({error}); fix it") from error


def _parquet(path: Path, column: str, label: str | None, group: str | None) -> Iterator[Candidate]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        places = _places(path, file.schema_arrow.names, column, label, group)
        wanted = sorted({file.schema_arrow.names[place] for place in places if place >= 0})
        number = 0
        for batch in file.iter_batches(columns=wanted):
            for row in batch.to_pylist():
                number += 1
                cells = ("" if name is None or row[name] is None else str(row[name]) for name in (column, label, group))
                text, of_class, of_group = cells
                yield f"{path.name}:{number}", text, of_class, of_group, ""
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({' '.join(str(error).split())}); fix it") from error


def _places(path: Path, names: Sequence[str], *columns: str | None) -> list[int]:
    """Where these columns stand, -1 for None."""
    for column in columns:
        if column is not None and column not in names:
            raise UserError(f"{path}: no column {column!r} among {', '.join(names)}")
    return [-1 if column is None else list(names).index(column) for column in columns]
