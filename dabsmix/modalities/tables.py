"""Table files to cells of text: CSV and Parquet are read in blocks of rows, each known by its file and number.

Nothing here knows what a column means; `columns` turns the cells into numbers.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dabsmix.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = [
    "DECIMAL_COMMA",
    "Refuse",
    "TableSource",
    "TextBlock",
    "blocks",
    "codec",
    "column_names",
    "encoding_fault",
    "first_row",
    "is_utf8",
    "opened",
    "table_files",
    "table_sources",
]

CSV = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
PARQUET = (".parquet", ".pq")

EMPTY = ("", "NA", "N/A", "NaN", "nan", "NULL", "null")
"""Texts that stand for an empty cell in any column."""

DECIMAL_COMMA = r"^[+-]?(\d+,\d*|,\d+)(e[+-]?\d+)?$"
"""A number with a decimal comma."""

BLOCK = 1 << 24
"""Bytes of text that are parsed at once, and 100 times the rows of a Parquet batch. It bounds the memory."""

Refuse = Callable[[Path, int, str], None]
"""Called with the file, number and fault of a bad row: raises, or returns to leave the row out."""


@dataclass(frozen=True)
class TableSource:
    """One table file.

    Attributes:
        path: CSV or TSV, gzipped or not, or Parquet.
        header: column names of a file without a header line.
        skip: lines before the header, or before the first row if ``header`` is given.
        frame: rows in memory, a pandas DataFrame; `path` is then its name in messages.
        archived: a CSV in a zip archive; `path` is then its name in messages.
        separator: separates the cells of a CSV; if empty, the most frequent of comma, semicolon and tab in the first
            line.
        decimal: the decimal mark of a CSV, a point or a comma.
        encoding: of a CSV, by Python's name.
    """

    path: Path
    header: tuple[str, ...] = ()
    skip: int = 0
    frame: pd.DataFrame | None = None
    archived: zipfile.Path | None = None
    separator: str = ""
    decimal: str = "."
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        if len(self.separator) > 1:
            raise UserError(f'option separator: {self.separator!r} is not one character; a tab is written "\\t"')
        if self.decimal not in (".", ","):
            raise UserError(f"option decimal: {self.decimal!r} is neither a point nor a comma")
        is_utf8(self.encoding)

    @property
    def is_csv(self) -> bool:
        """Whether it is text: neither Parquet nor in memory."""
        return self.frame is None and not self.path.name.lower().endswith(PARQUET)


@dataclass(frozen=True)
class TextBlock:
    """Consecutive rows of one file.

    Attributes:
        path: the file.
        rows: int64 ``(n,)``, their numbers, counted from 1. A CSV's header line counts as a row; blank lines do not.
        cells: one string array ``(n,)`` per column that is read, without surrounding blanks; null for an empty cell.
    """

    path: Path
    rows: NDArray[np.int64]
    cells: dict[str, pa.Array]


def table_sources(data: Path | pd.DataFrame, reading: Mapping[str, Any] | None = None) -> tuple[TableSource, ...]:
    """The tables of a file or a folder, or the one in memory; ``reading`` are fields of `TableSource` for CSV files.

    Raises:
        UserError: see `table_files`.
    """
    if isinstance(data, Path):
        return tuple(TableSource(file, **(reading or {})) for file in table_files(data))
    return (TableSource(Path("the DataFrame"), frame=data),)


def table_files(path: Path) -> list[Path]:
    """The table files at ``path``: the file itself, or all that lie directly in the folder, sorted by name.

    Raises:
        UserError: there is no file, or none of a known kind.
    """
    known = (*CSV, *PARQUET)
    if path.is_dir():
        tables = sorted(file for file in path.iterdir() if file.name.lower().endswith(known))
        if not tables:
            raise UserError(f"{path}: no table in this folder; looked for {', '.join(known)}")
        return tables
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if not path.name.lower().endswith(known):
        raise UserError(f"{path}: not a table that can be read; its name should end in one of {', '.join(known)}")
    return [path]


def column_names(source: TableSource) -> tuple[str, ...]:
    """The columns of a file, in its order.

    Raises:
        UserError: the file is empty or damaged, or two columns have the same name.
    """
    if source.frame is not None:
        names = tuple(str(name) for name in source.frame.columns)
    elif not source.is_csv:
        names = tuple(_parquet(source.path).schema_arrow.names)
    else:
        names = source.header or _header(source)[0]
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise UserError(f"{source.path}: two columns are called {twice[0]!r}; rename one")
    return names


def first_row(source: TableSource) -> int:
    """The number of the first row of cells, as `TextBlock` counts rows."""
    return 1 + source.skip + (not source.header) if source.is_csv else 1


def blocks(
    source: TableSource,
    columns: Collection[str],
    refuse: Refuse,
    missing: tuple[str, ...] = (),
    *,
    always: tuple[str, ...] = EMPTY,
) -> Iterator[TextBlock]:
    """The rows of a file, a bounded number at a time; ``refuse`` is called for rows with the wrong number of cells.

    Args:
        source: the file.
        columns: those to read, at least one; what others hold does not matter.
        refuse: called with file, row number and reason; if it returns, the row is left out.
        missing: further texts that stand for an empty cell.
        always: the texts that do so in any table.

    Raises:
        UserError: the file cannot be read, a quote in it is never closed, or a column is of a type that has no text.
            What ``refuse`` raises is passed on.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    empty = pa.array([*always, *missing])
    names = [name for name in column_names(source) if name in columns]
    if source.is_csv:
        batches = _csv_batches(source, names, refuse)
    else:
        batches = _parquet_batches(source, names) if source.frame is None else _frame_batches(source, names)
    try:
        for rows, batch in batches:
            cells = {}
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                text = pc.utf8_trim_whitespace(column)
                if source.is_csv and pc.any(pc.match_substring(text, "\n")).as_py():
                    row = int(rows[pc.index(pc.match_substring(text, "\n"), True).as_py()])
                    raise UserError(f"{source.path}: row {row}: a cell of {name!r} spans lines; is a quote not closed?")
                if source.is_csv and source.decimal == ",":
                    with_comma = pc.match_substring_regex(text, DECIMAL_COMMA, ignore_case=True)
                    text = pc.if_else(with_comma, pc.replace_substring(text, ",", "."), text)
                cells[name] = pc.if_else(pc.is_in(text, empty), pa.scalar(None, pa.string()), text)
            yield TextBlock(source.path, rows, cells)
    except (pa.ArrowException, OSError, EOFError, UnicodeError) as error:
        raise _unreadable(source, error) from error


def _csv_batches(source: TableSource, names: Sequence[str], refuse: Refuse) -> Iterator[tuple[NDArray[np.int64], Any]]:
    import pyarrow as pa
    import pyarrow.csv

    _, delimiter, encoding = _header(source)
    bad: list[Any] = []

    def on_bad(row: Any) -> str:
        bad.append(row)  # an exception would be lost inside Arrow
        return "skip"

    def report() -> None:
        while bad:
            row = bad.pop(0)
            left_out.append(row.number)
            refuse(
                source.path,
                row.number,
                f"{row.actual_columns} cells where the table has {row.expected_columns} columns",
            )

    left_out: list[int] = []
    first = first_row(source)
    try:
        reader = pyarrow.csv.open_csv(
            source.path if source.archived is None else source.archived.open("rb"),
            # Arrow reports the number of a bad row only without threads
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False,
                block_size=BLOCK,
                column_names=column_names(source),
                skip_rows=first - 1,
                encoding="utf8" if is_utf8(source.encoding) else encoding,
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=on_bad
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), include_columns=names, strings_can_be_null=False
            ),
        )
        for batch in reader:
            report()
            # the handler has seen this block and perhaps the next, so the bad rows of this block are known
            numbers = np.arange(first, first + batch.num_rows + len(left_out))
            rows = numbers[~np.isin(numbers, left_out)][: batch.num_rows]
            if len(rows):
                first = int(rows[-1]) + 1
            yield rows, batch
    finally:
        report()


def _parquet_batches(source: TableSource, names: Sequence[str]) -> Iterator[tuple[NDArray[np.int64], Any]]:
    import pyarrow as pa

    first = first_row(source)
    for batch in _parquet(source.path).iter_batches(batch_size=BLOCK // 100, columns=names):
        rows = np.arange(first, first + batch.num_rows)
        first += batch.num_rows
        # Arrow also returns a column "a.b" where "a" is asked for
        columns = [_as_text(source, name, batch.column(name)) for name in names]
        yield rows, pa.record_batch(columns, names=names)


def _frame_batches(source: TableSource, names: Sequence[str]) -> Iterator[tuple[NDArray[np.int64], Any]]:
    import pyarrow as pa

    assert source.frame is not None
    # one column at a time is faster: operations on a whole DataFrame check all of its dtypes
    places = [column_names(source).index(name) for name in names]
    arrays = [pa.array(source.frame.iloc[:, place], from_pandas=True) for place in places]
    table = pa.table([_as_text(source, name, array) for name, array in zip(names, arrays, strict=True)], names=names)
    first = first_row(source)
    for batch in table.to_batches(max_chunksize=BLOCK // 100):
        yield np.arange(first, first + batch.num_rows), batch
        first += batch.num_rows


def _as_text(source: TableSource, name: str, column: Any) -> Any:
    import pyarrow as pa

    try:
        return column.cast(pa.string())
    except pa.ArrowException as error:
        raise UserError(
            f"{source.path}: column {name!r} of type {column.type} cannot be read as numbers or text; convert it, "
            "or leave it out (pretrain's option `ignore`)"
        ) from error


def _parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({_one_line(error)}); fix it or fetch it again") from error


def _header(source: TableSource) -> tuple[tuple[str, ...], str, str]:
    """The cells of the first line after ``skip``, their separator, and the file's codec."""
    try:
        with opened(source.archived or source.path, source.encoding, newline="") as stream:
            encoding = stream.encoding
            lines = [stream.readline() for _ in range(source.skip + 1)]
    except (OSError, EOFError, UnicodeError) as error:
        raise _unreadable(source, error) from error
    line = lines[-1].strip("\r\n")
    if not line:
        raise UserError(f"{source.path}: line {len(lines)} is empty, where the table should begin")
    delimiter = source.separator or max(",;\t", key=line.count)
    return tuple(name.strip() for name in next(csv.reader([line], delimiter=delimiter))), delimiter, encoding


def _unreadable(source: TableSource, error: BaseException) -> UserError:
    """One line with the remedy; another encoding is recognised by the reader's own message."""
    if source.is_csv and (isinstance(error, UnicodeError) or "utf8" in str(error).lower()):
        return UserError(f"{source.path}: {encoding_fault(source.encoding, error)}")
    return UserError(f"{source.path}: cannot be read as a table ({_one_line(error)}); fix it or fetch it again")


# --- encodings of text files

MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",  # before UTF-16, whose mark begins the one of UTF-32
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

HEAD = 4096
"""The first bytes of a file, which are looked at for its encoding."""


class Wide(UnicodeError):
    """A file is UTF-16 or UTF-32 and is said to be neither; the message is the name of the codec that reads it."""


def is_utf8(encoding: str) -> bool:
    """Whether this is a name of UTF-8.

    Raises:
        UserError: Python knows no such encoding.
    """
    try:
        return codecs.lookup(encoding).name == "utf-8"
    except LookupError as error:
        raise UserError(f"option encoding: {encoding!r} is not known; try latin-1, cp1252 or utf-16") from error


def codec(content: IO[bytes] | gzip.GzipFile, encoding: str) -> str:
    """The codec that reads an open file without its byte order mark; the file is rewound.

    Raises:
        UserError: Python knows no such encoding.
        Wide: the file's first bytes show UTF-16 or UTF-32, and ``encoding`` is neither.
    """
    shown = _wide(content.read(HEAD))
    content.seek(0)
    if is_utf8(encoding) and not shown:
        return "utf-8-sig"
    if shown and b"\0" not in "\n".encode(encoding):
        raise Wide(shown)
    return shown or encoding


def _wide(head: bytes) -> str:
    """UTF-16 or UTF-32, if a file begins so: with a byte order mark, or with zeros in every other byte only."""
    for mark, name in MARKS.items():
        if head.startswith(mark):
            return name
    first, second = head[::2].count(0), head[1::2].count(0)
    # even a text without Latin letters has blanks and line ends, of which one byte is zero
    if max(first, second) <= len(head) / 40 or min(first, second):
        return ""
    return "utf-16-be" if first else "utf-16-le"


@contextmanager
def opened(path: Path | zipfile.Path, encoding: str, newline: str | None = None) -> Iterator[io.TextIOWrapper]:
    """A text file, gzipped or not, without its byte order mark; ``newline`` is as for `open`.

    Raises:
        UserError, Wide: as `codec`.
        OSError, EOFError, UnicodeError: it cannot be read, or has another encoding.
    """
    packed = path.name.lower().endswith(".gz")
    with path.open("rb") as file, gzip.open(file) if packed else nullcontext(file) as content:
        yield io.TextIOWrapper(content, codec(content, encoding), newline=newline)


def encoding_fault(encoding: str, error: BaseException) -> str:
    """What to say of a file that does not have the stated encoding, with the remedy."""
    fault, own = f"not encoded as {encoding}", "latin-1"
    if isinstance(error, Wide):
        fault, own = f"encoded as {str(error)[:6].upper()}", str(error)
    return (
        f"{fault}; convert the file to {encoding}, or name its own encoding, as `encoding: {own}` in the file that "
        "--options names (sequences and tables of labels have no such option)"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
