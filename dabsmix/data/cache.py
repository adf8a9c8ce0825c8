"""Preparing raw data once: a fingerprint of the source, and a cache of memory-mapped arrays keyed by it."""

import errno
import hashlib
import itertools
import json
import logging
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dabsmix.errors import UserError
from dabsmix.files import cache_folder, sha256, write
from dabsmix.terminal import Bar

__all__ = [
    "BLOCK",
    "Parts",
    "allocate",
    "check",
    "check_all",
    "fingerprint",
    "prepared",
    "prepared_in_parts",
    "scratch",
    "stacked",
    "stored_rows",
]

log = logging.getLogger(__name__)

COMPLETE = "complete"
"""Name of the file that is written last; a prepared folder without it is ignored."""

SUMS = "sums.json"
"""Name of the file with the size, time stamp and sha256 of every other file of a prepared folder."""

PART = 2**30
"""Bytes of a part of a large set: little enough to lose when a process is killed, and not too many files."""

BLOCK = 256
"""The length of a part is a multiple of this, so that rows are read in the same blocks as without parts."""

FULL = {errno.ENOSPC, errno.EDQUOT}
FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


# --- fingerprint


def fingerprint(folder: Path | zipfile.Path, files: Iterable[Path | str]) -> str:
    """Hex sha256 over the relative names, sizes and contents of files below ``folder``, in any order.

    A file whose size and times have not changed since it was last hashed is not read again, so that a million files
    take a few microseconds each. If several processes need it at once, one of them reads the files.

    Args:
        folder: where the files lie; for files in a zip archive, the whole archive is hashed.
        files: paths, or names relative to the folder, with "/".

    Raises:
        UserError: a file is missing or cannot be read.
    """
    if isinstance(folder, zipfile.Path):
        archive = Path(str(folder.root.filename))
        named = "\n".join(sorted(map(str, files)))
        return hashlib.sha256(f"{fingerprint(archive.parent, [archive])}\n{named}".encode()).hexdigest()
    names = sorted({file if isinstance(file, str) else file.relative_to(folder).as_posix() for file in files})
    states = {name: _state(folder, name) for name in names}
    known = _remembered(folder)
    if unread := _changed(states, known):
        with _alone(folder):
            known = _remembered(folder)  # another process may have read them meanwhile
            if unread := _changed(states, known):
                known |= {name: [*states[name], digest] for name, digest in _digests(folder, unread)}
                _remember(folder, known)
    lines = (f"{name}\0{states[name][0]}\0{known[name][-1]}\n" for name in names)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _state(folder: Path, name: str) -> list[int]:
    path = f"{folder}/{name}"  # making a Path would take ten times as long as the system call
    try:
        stat = os.stat(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    # ctime reveals a file that was replaced by another of equal size and mtime (cp -p, tar)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _changed(states: Mapping[str, list[int]], known: Mapping[str, list[Any]]) -> list[str]:
    return [name for name, state in states.items() if name not in known or known[name][:-1] != state]


def _digests(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The sha256 of each file. Threads read them, since a file on a network takes long to open."""

    def digest(name: str) -> str:
        path = f"{folder}/{name}"
        try:
            with open(path, "rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise _unreadable(path, error) from error

    title = f"reading {folder.resolve().name}"  # a folder named "." has a name too
    with Bar(title, total=len(names), shown=len(names) > 1) as bar, ThreadPoolExecutor() as pool:
        for start in range(0, len(names), BLOCK):
            block = names[start : start + BLOCK]
            yield from zip(block, pool.map(digest, block), strict=True)
            bar.advance(len(block))


def _unreadable(path: str, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read ({error.strerror}); fix or fetch it again")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time hash a folder; without a writable cache, each process hashes it."""
    from filelock import FileLock

    lock = FileLock(_memory(folder).with_suffix(".lock"))
    with suppress(OSError):
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _memory(folder: Path) -> Path:
    return cache_folder() / "hashes" / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]}.json"


def _remembered(folder: Path) -> dict[str, list[Any]]:
    """[size, mtime, ctime, sha256] by name, for the files of this folder that were hashed before."""
    try:
        entries = json.loads(_memory(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {name: entry for name, entry in entries.items() if isinstance(entry, list) and len(entry) == 4}


def _remember(folder: Path, entries: dict[str, list[Any]]) -> None:
    """Store the hashes. Without a writable cache they are computed again the next time, which is only slower."""
    memory = _memory(folder)
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=memory.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(entries, stream)
        os.replace(temporary, memory)
    except OSError:
        return


# --- prepared folders


def prepared(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """The folder that ``build`` filled for this name and key; it is built if it does not exist.

    ``key`` states everything that the contents depend on: the fingerprint of the source, the preprocessing and its
    version. ``build`` gets an empty folder and writes ``.npy`` files (large ones through `allocate`), to be read with
    ``np.load(path, mmap_mode="r")``. The folder gets its final name only when it is complete and on disk. If several
    processes need it at once, one of them builds it. The remains of an interrupted build are deleted. Every call
    compares the sizes of the files, and the contents if a time stamp has changed; a damaged folder is built again.

    Raises:
        UserError: the cache folder cannot be written or the disk is full. What ``build`` raises is passed on.
    """
    final = _place(name, key)
    _prepare(final, key, build, wait=True)
    return final


def prepared_in_parts(
    name: str, key: str, num_rows: int, row_bytes: int, build: Callable[[Path, range], None]
) -> list[Path]:
    """The folders of a set of rows, in order: one for a small set, one for each `PART` bytes of a larger one.

    Each is made as by `prepared`; a damaged one is built again without the others. Processes that need the set at the
    same time, on one machine or on several that share the cache folder, divide the work: each builds the next part that
    no other one is building. What a killed process had finished stays; its last part is built by another one, or by the
    next call. A set that an earlier version prepared in one folder stays there.

    Args:
        name, key: as in `prepared`.
        num_rows: of the whole set.
        row_bytes: of a stored row.
        build: ``build(folder, rows)`` writes these rows of the set.

    Raises:
        UserError: as `prepared`.
    """
    size = max(1, PART // row_bytes // BLOCK) * BLOCK
    if num_rows <= size or (_place(name, key) / COMPLETE).is_file():
        return [prepared(name, key, lambda folder: build(folder, range(num_rows)))]
    parts = [range(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]
    keys = {part: f"{key} rows {part.start} to {part.stop - 1}" for part in parts}

    def ready(part: range, *, wait: bool) -> bool:
        return _prepare(_place(name, keys[part]), keys[part], lambda folder: build(folder, part), wait=wait)

    others = [part for part in parts if not ready(part, wait=False)]
    for part in others:  # being built by other processes, unless one of them was killed
        ready(part, wait=True)
    return [_place(name, keys[part]) for part in parts]


def _place(name: str, key: str) -> Path:
    return cache_folder() / name / hashlib.sha256(key.encode()).hexdigest()[:32]


def _prepare(final: Path, key: str, build: Callable[[Path], None], *, wait: bool) -> bool:
    """Build a folder if need be; False if another process is building it and this one is not to wait."""
    if (final / COMPLETE).is_file() and _unchanged(final):
        return True
    from filelock import FileLock, Timeout

    try:
        final.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(_explained(error) or _refused(error)) from error
    try:
        with FileLock(final.with_suffix(".lock"), timeout=-1 if wait else 0):
            if (final / COMPLETE).is_file() and (damaged := check(final)):
                log.warning("%s is damaged (%s): the data are prepared again", final, ", ".join(damaged))
                shutil.rmtree(final)
            if not (final / COMPLETE).is_file():
                _build(final, key, build)
    except Timeout:
        return False
    except OSError as error:
        if (final / COMPLETE).is_file() and not check(final):
            return True  # the cache may be read-only
        if (line := _explained(error)) is None:
            raise  # not a fault of the cache's disk, but for example of a raw file
        raise UserError(line) from error
    return True


def _build(final: Path, key: str, build: Callable[[Path], None]) -> None:
    building = final.with_suffix(".building")
    for leftover in (building, final):
        if leftover.exists():
            shutil.rmtree(leftover)
    building.mkdir()
    try:
        build(building)
        _write_sums(building)
        (building / COMPLETE).write_text(key, encoding="utf-8")
        for path in sorted(building.rglob("*")):
            _sync(path)
        _sync(building)
        os.rename(building, final)
        _sync(final.parent)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


# --- checksums of prepared folders


def check(folder: Path, *, thorough: bool = False) -> list[str]:
    """The names of the damaged files of a prepared folder.

    Args:
        folder: a folder that `prepared` returned.
        thorough: whether to read every file; by default, only files whose time stamp has changed are read.
    """
    known = _sums(folder)
    if known is None:  # prepared by a version without checksums
        if os.access(folder, os.W_OK):
            _write_sums(folder)
        return []
    damaged = []
    for name, (size, modified, digest) in known.items():
        path = folder / name
        try:
            status = path.stat()
            same = status.st_size == size and status.st_mtime_ns == modified
            if status.st_size != size or ((thorough or not same) and sha256(path) != digest):
                damaged.append(name)
        except OSError:
            damaged.append(name)
    if not damaged and not _unchanged(folder):
        _write_sums(folder, {name: entry[-1] for name, entry in known.items()})
    return damaged


def check_all() -> dict[Path, list[str]]:
    """Every prepared folder of the cache with the names of its damaged files; damaged folders will be built again.

    Raises:
        UserError: the mark of a damaged folder cannot be removed.
    """
    damaged = {}
    for mark in sorted(cache_folder().glob(f"*/*/{COMPLETE}")):
        damaged[mark.parent] = check(mark.parent, thorough=True)
        if damaged[mark.parent]:
            try:
                mark.unlink()
            except OSError as error:
                raise UserError(f"{mark.parent} is damaged and cannot be removed: {error.strerror}") from error
    return damaged


def _unchanged(folder: Path) -> bool:
    """Whether every file has the size and the time stamp that it was written with."""
    known = _sums(folder)
    try:
        return known is not None and all(
            [(status := os.stat(folder / name)).st_size, status.st_mtime_ns] == entry[:2]
            for name, entry in known.items()
        )
    except OSError:
        return False


def _sums(folder: Path) -> dict[str, list[Any]] | None:
    try:
        stored = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        return {str(name): [int(size), int(modified), str(digest)] for name, (size, modified, digest) in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _write_sums(folder: Path, digests: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write the checksums of a folder's files; those in ``digests`` are not read. A read-only folder gets none."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (SUMS, COMPLETE) and not path.name.startswith("."):
            status = path.stat()
            entries[name] = [status.st_size, status.st_mtime_ns, digests.get(name) or sha256(path)]
    with suppress(UserError):
        write(folder / SUMS, lambda p: p.write_text(json.dumps(entries), encoding="utf-8"))


def _sync(path: Path) -> None:
    """Flush a file to the disk, or the entries of a folder if the system can open folders."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explained(error: OSError) -> str | None:
    """A fault of the cache's disk as one line with the remedy; None for any other error."""
    cache = cache_folder()
    inside = error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(cache)
    if error.errno in FULL:
        return f"{cache}: disk full while preparing data; make room or set $DABSMIX_CACHE to another disk"
    return _refused(error) if error.errno in FORBIDDEN and inside else None


def _refused(error: OSError) -> str:
    return f"{cache_folder()}: cannot write prepared data ({error.strerror}); set $DABSMIX_CACHE to a folder of yours"


def allocate(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """A new ``.npy`` file as a writable memory map with its space reserved, so that a full disk is an OSError here.

    Without the reservation it would be a SIGBUS at some later write, which kills the process without a message.
    """
    sizes = tuple(int(size) for size in shape)  # the header would spell a numpy integer as a call
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=sizes)
    with path.open("r+b") as stream:
        _reserve(stream.fileno(), path.stat().st_size)
    return array


def _reserve(handle: int, size: int) -> None:
    """Reserve space for an open file; OSError if the disk is full."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno in FULL:
            raise  # any other error means that the file system cannot reserve space


# --- reading prepared rows


class Parts:
    """Rows that are stored in several arrays, one after another; all but the last are of equal length.

    Args:
        arrays: with the same dtype and shape of a row.
    """

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        self._arrays = arrays

    def __len__(self) -> int:
        return sum(map(len, self._arrays))

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[Any]:
        first = self._arrays[0]
        part, row = np.divmod(rows, len(first))
        gathered = np.empty((len(rows), *first.shape[1:]), first.dtype)
        for place, (number, index) in enumerate(zip(part.tolist(), row.tolist(), strict=True)):
            gathered[place] = self._arrays[number][index]
        return gathered


def stored_rows(folders: Sequence[Path], name: str) -> NDArray[Any] | Parts:
    """The array of this name in the folders of `prepared_in_parts`, memory-mapped."""
    # plain arrays over the memory maps: indexing np.memmap itself costs more, at every batch
    arrays = [np.asarray(np.load(folder / name, mmap_mode="r")) for folder in folders]
    return arrays[0] if len(arrays) == 1 else Parts(arrays)


# --- large arrays that are needed only while a command runs

IN_MEMORY = 1 << 24
"""Bytes up to which an array of `scratch` lies in memory."""


def scratch(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """A new array to fill; a large one lies in a file of the cache folder instead of memory, whatever its length.

    The system writes pages of such an array to the disk and drops them where memory is short. The file has no name:
    it ends with the array, or with the process.

    Raises:
        UserError: the cache folder cannot be written, or the disk is full.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= IN_MEMORY:
        return np.empty(shape, dtype)
    with _room(), _nameless() as file:
        _reserve(file.fileno(), size)
        return np.asarray(np.memmap(file, dtype, mode="r+", shape=shape))


def stacked(parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
    """Arrays one after another, at least one, as `np.concatenate` joins them; where they are large, as `scratch`.

    Raises:
        UserError: the cache folder cannot be written, or the disk is full.
    """
    first: list[NDArray[Any]] = []
    remaining = iter(parts)
    for part in remaining:
        first.append(part)
        if sum(array.nbytes for array in first) > IN_MEMORY:
            break
    else:
        return np.concatenate(first)
    length = 0
    with _room():
        file = _nameless()
    with file:
        for part in itertools.chain(first, remaining):
            with _room():
                file.write(np.ascontiguousarray(part).data)
            length += len(part)
        with _room():
            file.flush()
            return np.asarray(np.memmap(file, part.dtype, mode="r+", shape=(length, *part.shape[1:])))


def _nameless() -> IO[bytes]:
    """A new file of the cache folder without a name."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=cache_folder())


@contextmanager
def _room() -> Iterator[None]:
    """What the cache's disk refuses is one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{cache_folder()}: no room for temporary data ({reason}); make room or set $DABSMIX_CACHE to another disk"
        ) from error
