"""Data sets that hold their examples inside: Hugging Face data sets, Parquet with media, WebDataset tars, JSON lines.

Each is read once into the cache, from its first row to its last: media into a zip archive, with a ``labels.csv`` of the
other columns, and everything else into one Parquet file. The readers of a user's own files then read these, so that a
batch is a function of seed and step here too.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from dabsmix.data.cache import fingerprint, prepared
from dabsmix.errors import UserError
from dabsmix.modalities.files import walk
from dabsmix.modalities.image import IMAGE_SUFFIXES
from dabsmix.modalities.spectrogram import SUFFIXES
from dabsmix.modalities.tables import PARQUET, opened
from dabsmix.terminal import progress

__all__ = ["HUB", "Unpacked", "is_packed", "json_rows", "unpacked"]

HUB = "hf:"
TARS = (".tar", ".tar.gz", ".tgz")
JSON_LINES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
MEDIA = {"image": IMAGE_SUFFIXES, "spectrogram": SUFFIXES}
"""Modalities whose examples are files, and their suffixes."""

TEXTS = {"text": "text", "sequence": "sequence"}
"""Modalities that read one column of a table, and the usual name of that column."""

LOOK = 100
"""Rows from which the modality is guessed if it is not named."""

PROSE = 30
"""A column whose texts are longer than this many characters on average makes the set one of texts."""

# Part of the cache key: raise it when the same data would be unpacked into other files.
PREPARATION = 1

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Unpacked:
    """A packed data set as a file that a reader of a user's own data can read.

    Attributes:
        path: a zip archive of media, or a Parquet file.
        modality: what the examples are.
        options: for the reader; a user's own options take precedence.
        notes: which column and split were read, in whole sentences.
    """

    path: Path
    modality: str
    options: dict[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Packed:
    """A data set to unpack.

    Attributes:
        name: for messages.
        key: changes with the content.
        rows: reads the rows from the first to the last; media are ``{"bytes": ..., "path": ...}``.
        media: columns of media, with the modality of each, or None if it is not known.
        notes: as in `Unpacked`.
    """

    name: str
    key: str
    rows: Callable[[], Iterator[Fields]]
    media: Mapping[str, str | None]
    notes: tuple[str, ...] = ()


def is_packed(path: Path, modality: str | None) -> bool:
    """Whether the value of ``--data`` has to be unpacked before a reader can read it."""
    if str(path).startswith(HUB) or _is_saved(path):
        return True
    files = _shards(path)
    if files and all(file.name.lower().endswith(TARS) for file in files):
        return True
    if files and files[0].name.lower().endswith(JSON_LINES):
        return modality not in MEDIA
    if not files or not all(file.name.lower().endswith(PARQUET) for file in files):
        return False
    # the readers of tables accept a Parquet file or a folder of them; those of texts accept one file
    return modality in (None, *MEDIA) or (modality in TEXTS and files != [path]) or _is_pattern(path)


def unpacked(path: Path, modality: str | None, user_options: Mapping[str, Any]) -> Unpacked:
    """The file to read instead.

    Args:
        path: ``hf:ORG/NAME``, ``hf:ORG/NAME:CONFIG``, a folder that ``save_to_disk`` wrote (with or without ``hf:``), a
            tar, a Parquet file, a file of JSON lines, a folder or a pattern (``shards/*.parquet``) of one of these.
        modality: what the examples are; None to guess it from the columns.
        user_options: for the reader; ``column`` names the column of texts.

    Raises:
        UserError: the data set cannot be loaded or read, or no column holds the modality.
    """
    packed = _open(path)
    modality = modality or _guess(packed)
    notes = list(packed.notes)
    if modality in MEDIA:
        columns = [name for name, kind in packed.media.items() if kind in (None, modality)]
        if not columns:
            raise UserError(f"{packed.name}: no column holds {modality} files; name another --modality")
        column = columns[0]
        notes.append(f"The {modality} data are the column {column!r} of {packed.name}.")
        folder = prepared("unpacked", _key(packed, modality, column), lambda to: _to_zip(packed, modality, column, to))
        return Unpacked(folder / "examples.zip", modality, {"labels": "labels.csv"}, tuple(notes))
    options: dict[str, Any] = {}
    if modality in TEXTS and "column" not in user_options:
        options = {"column": _text_column(packed, TEXTS[modality])}
        notes.append(f"The texts are the column {options['column']!r} of {packed.name}.")
    folder = prepared("unpacked", _key(packed, "table", ""), lambda to: _to_parquet(packed, to))
    return Unpacked(folder / "rows.parquet", modality, options, tuple(notes))


def _key(packed: _Packed, modality: str, column: str) -> str:
    return json.dumps([packed.key, modality, column, PREPARATION])


def _open(path: Path) -> _Packed:
    if str(path).startswith(HUB) or _is_saved(path):
        return _hub(path)
    files = _shards(path)
    name = files[0].name.lower()
    read = _tars if name.endswith(TARS) else _json_lines if name.endswith(JSON_LINES) else _parquets
    return read(path, files)


# --- which files


def _is_pattern(path: Path) -> bool:
    return not path.exists() and glob.has_magic(str(path))


def _is_saved(path: Path) -> bool:
    """Whether the folder was written by ``save_to_disk`` of the library `datasets`."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _shards(path: Path) -> list[Path]:
    """The shards at a path, sorted: the file itself, those below a folder, or those of a pattern.

    Tars and Parquet files count whatever lies beside them; JSON lines only in a folder of nothing else, since JSON also
    describes other files.
    """
    if path.is_dir():
        candidates = [path / name for name in walk(path, ("",))]
    elif _is_pattern(path):
        candidates = [Path(file) for file in glob.glob(str(path), recursive=True)]
    else:
        candidates = [path]

    def ending(suffixes: tuple[str, ...]) -> list[Path]:
        return sorted(file for file in candidates if file.name.lower().endswith(suffixes) and file.is_file())

    if shards := ending((*TARS, *PARQUET)):
        return shards
    lines = ending(JSON_LINES)
    of_nothing_else = not path.is_dir() or len(lines) == len(candidates)
    return lines if of_nothing_else else []


def _identity(files: Sequence[Path]) -> str:
    """The digests of the files in order, which depend on their contents and not on their folder."""
    return " ".join(fingerprint(file.parent, [file]) for file in files)


# --- Hugging Face data sets


def _hub(path: Path) -> _Packed:
    import datasets

    name = str(path)
    address = name.removeprefix(HUB)
    try:
        if _is_saved(Path(address).expanduser()):
            dataset = datasets.load_from_disk(str(Path(address).expanduser()))
        else:
            repository, _, config = address.partition(":")
            dataset = datasets.load_dataset(repository, config or None)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"--data {name}: cannot be loaded ({reason}); check the name, its configuration (hf:ORG/NAME:CONFIG) and "
            "the network, or give a folder that `datasets` wrote with save_to_disk"
        ) from error
    notes = []
    if isinstance(dataset, dict):
        split = "train" if "train" in dataset else next(iter(dataset))
        others = [name for name in dataset if name != split]
        if others:
            notes.append(f"The split {split!r} of {name} is read; its other splits are: {', '.join(others)}.")
        dataset = dataset[split]
    key = f"hub {dataset._fingerprint}"
    media: dict[str, str | None] = {}
    for column, feature in dataset.features.items():
        if isinstance(feature, datasets.Image | datasets.Audio):
            media[column] = "image" if isinstance(feature, datasets.Image) else "spectrogram"
            dataset = dataset.cast_column(column, type(feature)(decode=False))
    class_names = _class_names(dataset.features)

    def rows() -> Iterator[Fields]:
        for row in progress(f"reading {name}", dataset, len(dataset)):
            yield _with_names(row, class_names)

    return _Packed(name, key, rows, media, tuple(notes))


def _class_names(features: Any) -> dict[str, Sequence[str]]:
    """The names of the classes, by column of class numbers."""
    import datasets

    return {column: feature.names for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)}


def _with_names(row: Fields, class_names: Mapping[str, Sequence[str]]) -> Fields:
    """The row with class names for class numbers; None for -1, which test splits with hidden labels have."""
    if not class_names:
        return row
    named = dict(row)
    for column, names in class_names.items():
        code = row[column]
        named[column] = names[code] if code is not None and 0 <= code < len(names) else None
    return named


# --- Parquet


def _parquets(path: Path, files: Sequence[Path]) -> _Packed:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet

    def opened(file: Path) -> Any:
        try:
            return pyarrow.parquet.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{file}: cannot be read as Parquet ({' '.join(str(error).split())}); fix it") from error

    schema = opened(files[0]).schema_arrow
    features = datasets.Features.from_arrow_schema(schema)
    class_names = _class_names(features)
    media: dict[str, str | None] = {}
    for field in schema:
        feature = features.get(field.name)
        if isinstance(feature, datasets.Image | datasets.Audio):
            media[field.name] = "image" if isinstance(feature, datasets.Image) else "spectrogram"
        elif _holds_files(field.type):
            media[field.name] = None

    def rows() -> Iterator[Fields]:
        for file in progress(f"reading {path.resolve().name}", files):
            table = opened(file)
            if set(table.schema_arrow.names) != set(schema.names):
                raise UserError(
                    f"{file}: its columns differ from those of {files[0]}: {', '.join(table.schema_arrow.names)}"
                )
            for batch in table.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    yield _with_names(row, class_names)

    return _Packed(str(path), f"parquet {_identity(files)}", rows, media)


def _holds_files(kind: Any) -> bool:
    """Whether a column of this Arrow type holds the bytes of files."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


# --- WebDataset tars: the files of one example are consecutive and share their name up to the first dot


def _tars(path: Path, files: Sequence[Path]) -> _Packed:
    def rows() -> Iterator[Fields]:
        for file in progress(f"reading {path.resolve().name}", files):
            yield from _samples(file)

    first = next(_samples(files[0]), None)
    if first is None:
        raise UserError(f"{files[0]}: holds no file; is it the right archive?")
    media: dict[str, str | None] = {name: kind for name, kind in (("image", "image"), ("sound", "spectrogram"))}
    media = {name: kind for name, kind in media.items() if name in first}
    return _Packed(str(path), f"tar {_identity(files)}", rows, media)


def _samples(file: Path) -> Iterator[Fields]:
    """Columns ``image`` or ``sound``, ``text``, ``cls``, and those of the JSON; ``key`` is the name in the archive."""
    try:
        with tarfile.open(file, mode="r|*") as archive:
            key, row = "", dict[str, Any]()
            for member in archive:
                name = PurePosixPath(member.name)
                if not member.isfile() or name.name.startswith("."):
                    continue
                stem, _, ending = name.name.partition(".")
                this = str(name.with_name(stem))
                if row and this != key:
                    yield row
                    row = {}
                key = this
                stream = archive.extractfile(member)
                assert stream is not None
                row |= {"key": key} | _entry(file, member.name, f".{ending.lower()}", stream.read())
            if row:
                yield row
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"{file}: cannot be read as a tar archive ({error}); fetch it again") from error


def _entry(file: Path, name: str, ending: str, content: bytes) -> dict[str, Any]:
    """The columns that one file of a sample gives; none if its kind is not known."""
    try:
        if ending.endswith(IMAGE_SUFFIXES):
            return {"image": {"bytes": content, "path": name}}
        if ending.endswith(SUFFIXES):
            return {"sound": {"bytes": content, "path": name}}
        if ending.endswith((".txt", ".text")):
            return {"text": content.decode()}
        if ending.endswith((".cls", ".cls2")):
            return {ending.rpartition(".")[2]: content.decode().strip()}
        if ending.endswith(".json"):
            columns = json.loads(content)
            return columns if isinstance(columns, dict) else {}
    except ValueError as error:
        raise UserError(f"{file}: {name}: cannot be read ({error}); fix it in the archive") from error
    return {}


# --- JSON lines


def _json_lines(path: Path, files: Sequence[Path]) -> _Packed:
    def rows() -> Iterator[Fields]:
        for file in progress(f"reading {path.resolve().name}", files):
            yield from json_rows(file)

    return _Packed(str(path), f"json {_identity(files)}", rows, {})


def json_rows(file: Path) -> Iterator[Fields]:
    """The objects of a file with one on each line, gzipped or not, from the first to the last.

    Raises:
        UserError: the file cannot be read or is empty, or a line is not a JSON object.
    """
    number = 0
    for number, line in enumerate(_lines(file), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{file}:{number}: not a JSON object, and each line has to be one; fix the line")
        yield row
    if not number:
        raise UserError(f"{file}: it is empty; fetch it again")


def _lines(file: Path) -> Iterator[str]:
    try:
        with opened(file, "utf-8") as stream:
            yield from stream
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        raise UserError(
            f"{file}: cannot be read ({' '.join(str(error).split())}); fix it, or fetch it again"
        ) from error


# --- what the examples are


def _guess(packed: _Packed) -> str:
    """The modality: that of the media if there are any, else text if a column holds long texts, else a table."""
    kinds = [kind for kind in packed.media.values() if kind is not None]
    if kinds:
        return kinds[0]
    if packed.media:
        raise UserError(f"{packed.name}: name the --modality of the column {next(iter(packed.media))!r}")
    return "text" if max(_lengths(packed).values(), default=0.0) > PROSE else "tabular"


def _lengths(packed: _Packed) -> dict[str, float]:
    """The mean number of characters of each column of texts, over the first rows."""
    totals: dict[str, list[int]] = {}
    rows = packed.rows()
    for _ in range(LOOK):
        for name, value in (next(rows, None) or {}).items():
            if isinstance(value, str) and name != "key":
                totals.setdefault(name, []).append(len(value))
    return {name: sum(lengths) / len(lengths) for name, lengths in totals.items()}


def _text_column(packed: _Packed, usual: str) -> str:
    lengths = _lengths(packed)
    if usual in lengths:
        return usual
    if not lengths:
        raise UserError(f"{packed.name}: no column of texts in its first {LOOK} rows; name another --modality")
    return max(lengths, key=lambda name: lengths[name])


# --- into the cache


def _to_zip(packed: _Packed, modality: str, column: str, folder: Path) -> None:
    """Media unchanged, named by their row number; ``labels.csv`` holds every other column."""
    columns: dict[str, None] = {}
    table: list[dict[str, str]] = []
    with zipfile.ZipFile(folder / "examples.zip", "w", zipfile.ZIP_STORED) as archive:
        for number, row in enumerate(packed.rows()):
            content, suffix = _media(packed, number, row.get(column), MEDIA[modality])
            name = f"{number:09d}{suffix}"
            archive.writestr(zipfile.ZipInfo(name), content)  # without the time of day: equal data, equal bytes
            cells = {key: text for key, value in row.items() if (text := _cell(value)) is not None and key != "file"}
            columns |= dict.fromkeys(cells)
            table.append({"file": name, **cells})
        stream = io.StringIO()
        writer = csv.DictWriter(stream, ["file", *columns], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        try:
            archive.writestr(zipfile.ZipInfo("labels.csv"), stream.getvalue())
        except UnicodeEncodeError as error:
            raise _no_character(packed, 1, table) from error


def _media(packed: _Packed, number: int, value: Any, known: tuple[str, ...]) -> tuple[bytes, str]:
    """The bytes of an example's file and the ending of its name."""
    media: Mapping[str, Any] = value if isinstance(value, dict) else {"bytes": value}
    path, content = media.get("path") or "", media.get("bytes")
    if content is None and path:
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"{packed.name}: row {number}: cannot read {path} ({error.strerror})") from error
    suffix = PurePosixPath(path).suffix.lower()
    # a row without a file becomes an empty file, which the reader then reports as damaged
    return content or b"", suffix if suffix in known else known[-1]  # decoders look at the content, not at the name


def _cell(value: Any) -> str | None:
    """A value as a cell of a CSV; None if it is not a single value."""
    if value is None:
        return ""
    if isinstance(value, date | datetime):
        return value.isoformat()
    return str(value) if isinstance(value, str | bool | int | float) else None


BLOCK = 10_000
"""Rows that are written at once; the first block decides the columns of a table and their types."""


def _to_parquet(packed: _Packed, folder: Path) -> None:
    """Write the columns of single values; their types are those of the first rows, and other values are an error."""
    import pyarrow as pa
    import pyarrow.parquet

    writer, first, plain = None, 1, list[Fields]()
    rows = packed.rows()
    try:
        while block := [row for _, row in zip(range(BLOCK), rows, strict=False)]:
            plain = [{name: value for name, value in row.items() if _is_single(value)} for row in block]
            if writer is None:
                names = dict.fromkeys(name for row in plain for name in row)
                if not names:
                    raise UserError(f"{packed.name}: no column of single values; it cannot be read as a table")
                schema = pa.Table.from_pylist([{name: row.get(name) for name in names} for row in plain]).schema
                schema = pa.schema([pa.field(f.name, pa.string() if f.type == pa.null() else f.type) for f in schema])
                writer = pyarrow.parquet.ParquetWriter(folder / "rows.parquet", schema)
            _refuse_new_columns(packed, first, plain, names)
            writer.write_table(pa.Table.from_pylist(plain, schema=schema))
            first += len(block)
        if writer is None:
            raise UserError(f"{packed.name}: the data set has no rows")
    except UnicodeEncodeError as error:
        raise _no_character(packed, first, plain) from error
    except (pa.ArrowException, OverflowError) as error:
        raise UserError(f"{packed.name}: cannot be read as a table ({' '.join(str(error).split())})") from error
    finally:
        if writer is not None:
            writer.close()


def _refuse_new_columns(packed: _Packed, first: int, rows: Sequence[Fields], known: Mapping[str, None]) -> None:
    """Raise UserError if these rows, of which the first has this number, have a column that the first block lacks."""
    if not set().union(*rows) - known.keys():
        return
    for number, row in enumerate(rows, first):
        for name in row.keys() - known.keys():
            if row[name] is not None:
                raise UserError(
                    f"{packed.name}: row {number}: the column {name!r} has no single value in the first {BLOCK} rows, "
                    f"which decide what columns there are; move row {number} to the front, or remove the column"
                )


def _no_character(packed: _Packed, first: int, rows: Sequence[Fields]) -> UserError:
    """Which of these rows, of which the first has this number, cannot be written as UTF-8.

    JSON may escape half of a surrogate pair, as is left of an emoji where a text was cut.
    """
    number, name, half = next(
        (number, name, symbol)
        for number, row in enumerate(rows, first)
        for name, value in row.items()
        for symbol in f"{name}{value}"
        if "\ud800" <= symbol <= "\udfff"
    )
    return UserError(
        f"{packed.name}: row {number}: the column {name!r} holds {half!r}, half of a surrogate pair and no character; "
        "fix or remove it"
    )


def _is_single(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float | date | datetime)
