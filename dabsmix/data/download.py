"""Fetching raw data: resumable, from the first mirror that answers, checked, unpacked without leaving its folder."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import http.client
import logging
import os
import re
import shutil
import ssl
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dabsmix.errors import UserError
from dabsmix.terminal import Bar

__all__ = ["Download", "fetch", "fetch_all", "interrupted"]

log = logging.getLogger(__name__)

TIMEOUT = 30.0
"""Seconds of silence after which a server counts as gone."""
ATTEMPTS = 4
"""Consecutive tries per mirror that bring no data before it is given up."""
PAUSE = 1.0
"""Seconds before the second try, doubled before each further one."""
MOST, ROOM = 100, 2**30  # an archive unpacks to at most so many times its size, and so many bytes
CHUNK = 1 << 20


@dataclass(frozen=True)
class Download:
    """One file to fetch.

    Attributes:
        urls: mirrors, tried in order.
        file: its name under the data root; an archive is unpacked beside itself.
        checksum: ``md5:...`` or ``sha256:...``; empty if no published one can be cited.
        cited: where the checksum is published (library, file, version); empty without a checksum.
        nested: archives inside the archive, which are unpacked too; a mirror may have their contents instead.
    """

    urls: tuple[str, ...]
    file: str
    checksum: str = ""
    cited: str = ""
    nested: tuple[str, ...] = ()

    @property
    def is_archive(self) -> bool:
        """Whether it is unpacked after the download."""
        return self.file.endswith((".zip", ".tar", ".tar.gz", ".tgz"))


def fetch_all(downloads: Sequence[Download], root: Path) -> None:
    """Fetch every file, and only then unpack the archives, so that a folder appears when little can still fail.

    Raises:
        UserError: see `fetch`.
    """
    for download in downloads:
        fetch(download, root, unpack=False)
    for download in downloads:
        fetch(download, root)


def interrupted(downloads: Sequence[Download], root: Path) -> bool:
    """Whether an earlier fetch of these files began and did not finish."""
    paths = [root / download.file for download in downloads]
    begun = any(_part(path).exists() or _record(path).exists() for path in paths)
    return begun and not all(_finished(download, root) for download in downloads)


def fetch(download: Download, root: Path, *, unpack: bool = True) -> Path:
    """The path of the file under the data root; it is fetched, checked and unpacked if that was not done before.

    If several processes need it at once, one of them does the work. ``FILE.sha256`` is written beside the file, in the
    format of ``sha256sum -c``, with a line that says what the checksum was verified against, if anything. A later
    download is compared with the checksum of the first one.

    Raises:
        UserError: no mirror answers, the checksum is wrong, an archive is damaged or hostile, or the disk is full or
            read-only. The message names the URLs, the file and where to put it by hand.
    """
    from filelock import FileLock

    path = root / download.file
    if _finished(download, root):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock")
        with FileLock(lock):
            try:
                if not path.exists() and not _finished(download, root):
                    _fetch(download, path)
                elif path.exists() and not _finished(download, root):  # put there by hand, or not unpacked yet
                    _check(download, path, path, "by hand")
                if unpack and not _finished(download, root):
                    _unpack(path, download.nested)
            finally:
                with contextlib.suppress(OSError):  # Windows keeps an open file
                    lock.unlink()  # a waiting process finds the work done; the data root stays free of our files
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{root}: disk full while fetching {download.file}; make room or set $DABSMIX_DATA"
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); choose another folder with --data-root or $DABSMIX_DATA"
            ) from error
        raise
    return path


# --- on disk: FILE, its .part while it is fetched, its .sha256, and for an archive .unpacked, which lists its contents


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _marker(path: Path) -> Path:
    return path.with_name(f"{path.name}.unpacked")


def _finished(download: Download, root: Path) -> bool:
    path = root / download.file
    if not download.is_archive:
        return path.exists() and _record(path).exists()
    if not _marker(path).exists():
        return False
    return all((path.parent / name).exists() for name in _marker(path).read_text(encoding="utf-8").splitlines())


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


# --- fetching


class _CutError(Exception):
    """The transfer ended early; the data received so far are kept."""


NETWORK = (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, TimeoutError, ConnectionError, _CutError)
"""Faults of a server or of the connection to it; any other OSError is a fault of the disk."""


def _fetch(download: Download, path: Path) -> None:
    failures = []
    for url in download.urls:
        try:
            _fetch_from(url, download, path)
            _check(download, _part(path), path, url)
        except NETWORK as error:
            failures.append(f"{url} ({getattr(error, 'reason', None) or error})")
        except UserError as error:
            if url == download.urls[-1]:
                raise
            log.warning("%s; trying the next mirror", error)
            failures.append(f"{url} (refused)")
        else:
            os.replace(_part(path), path)
            return
    raise UserError(
        f"could not fetch {download.file} from {', '.join(failures)}; fetch it by other means and put it at {path}"
    )


def _fetch_from(url: str, download: Download, path: Path) -> None:
    """Fetch the whole file into the part, in as many pieces as the connection needs."""
    tries, pause = ATTEMPTS, PAUSE
    while True:
        before = _size(_part(path))
        try:
            return _fetch_piece(url, download, path)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise  # asking again will not help
            failure: Exception = error
        except NETWORK as error:
            failure = error
        tries, pause = (ATTEMPTS, PAUSE) if _size(_part(path)) > before else (tries - 1, pause * 2)
        if tries == 0:
            raise failure
        time.sleep(pause)


def _fetch_piece(url: str, download: Download, path: Path) -> None:
    part, origin = _part(path), _part(path).with_suffix(".origin")
    # A part is continued only from the same URL, and only if the server confirms (If-Range) that the file is the same.
    came_from, _, validator = origin.read_text(encoding="utf-8").partition("\n") if origin.exists() else ("", "", "")
    offset = _size(part) if came_from == url and validator else 0
    request = urllib.request.Request(url, headers={"User-Agent": "dabsmix"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        request.add_header("If-Range", validator)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is not the beginning of what the server has
            origin.unlink()
            raise _CutError("the file changed on the server") from error
        raise
    with response:
        resumed = re.match(rf"bytes {offset}-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not (offset and response.status == 206 and resumed):
            offset = 0  # a server that ignores Range sends everything
        total = None if response.length is None else offset + response.length  # None if the header is not a number
        etag = response.headers.get("ETag", "")
        validator = response.headers.get("Last-Modified", "") if etag.startswith("W/") or not etag else etag
        origin.write_text(f"{url}\n{validator}", encoding="utf-8")
        bar = Bar(download.file, total=total, start=offset, in_bytes=True)
        with part.open("ab" if offset else "wb") as stream, bar:
            while data := _read(response):
                stream.write(data)
                bar.advance(len(data))
            stream.flush()
            os.fsync(stream.fileno())
    if total is not None and _size(part) != total:
        raise _CutError(f"cut after {_size(part)} of {total} bytes")
    origin.unlink()


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK)
    except OSError as error:  # distinguished here from an error of the disk
        raise _CutError(str(error)) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# --- checking


def _check(download: Download, file: Path, path: Path, source: str) -> None:
    """Compare ``file``, to become ``path``, with the published checksum or that of the first download; record it.

    A file that fails is removed, unless it was put there by hand.
    """
    kind, _, published = download.checksum.partition(":")
    recorded = _record(path).read_text(encoding="utf-8").split()[0] if _record(path).exists() else ""
    fault, sum256 = "", _digest(file, "sha256")
    if published and (actual := _digest(file, kind)) != published.lower():
        fault = f"its {kind} is {actual}, {download.cited} has {published}"
    elif not published and recorded and recorded != sum256:
        fault = f"its sha256 is {sum256}, that of the first download was {recorded} ({_record(path).name})"
    elif download.is_archive and not (zipfile.is_zipfile(file) or tarfile.is_tarfile(file)):
        fault = "it is neither a zip nor a tar archive (perhaps a page of the server)"
    if fault:
        if file != path:
            file.unlink()
        raise UserError(f"{path} from {source}: {fault}; fetch it by other means and put it there, or delete it")
    if recorded == sum256:
        return
    note = (
        f"verified against {download.checksum} ({download.cited})"
        if published
        else f"unverified: first seen from {source}"
    )
    _write(_record(path), f"{sum256}  {path.name}\n# {note}\n")
    if not published:
        log.warning("%s: no published checksum; its sha256 is recorded in %s (unverified)", path, _record(path).name)


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, kind).hexdigest()


# --- unpacking


def _unpack(archive: Path, nested: Sequence[str]) -> None:
    """Unpack into a temporary folder beside the archive, then move each entry into place."""
    into = archive.with_name(f".{archive.name}.unpacking")
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    try:
        _extract(archive, into)
        for inner in (into / name for name in nested):
            if inner.exists():
                _extract(inner, inner.parent)
                inner.unlink()
        names = sorted(entry.name for entry in into.iterdir())
        for name in names:
            _move(into / name, archive.parent / name)
        _write(_marker(archive), "".join(f"{name}\n" for name in names))
    except tarfile.FilterError as error:
        raise UserError(
            f"{archive}: refused, a member is a device or a link out of the folder ({error}); delete it"
        ) from error
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError) as error:
        raise UserError(f"{archive}: damaged archive ({error}); delete it and start again") from error
    finally:
        shutil.rmtree(into, ignore_errors=True)


def _extract(archive: Path, into: Path) -> None:
    unpacked = 0
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                _refuse_outside(archive, info.filename)
                unpacked += info.file_size
                _refuse_bomb(archive, unpacked)
                if not info.filename.startswith("__MACOSX/"):  # added by macOS
                    zipped.extract(info, into)
    else:
        with tarfile.open(archive) as tar:
            for member in tar:
                _refuse_outside(archive, member.name)
                unpacked += member.size
                _refuse_bomb(archive, unpacked)
                tar.extract(member, into, filter="data")
            while tar.fileobj is not None and tar.fileobj.read(CHUNK):
                pass  # read to the end, where the checksum of a compressed stream is: tarfile stops before it


def _refuse_outside(archive: Path, member: str) -> None:
    name = PurePosixPath(member.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or any(":" in part for part in name.parts[:1]):
        raise UserError(f"{archive}: refused, its member {member!r} would leave the folder; delete the archive")


def _refuse_bomb(archive: Path, unpacked: int) -> None:
    if unpacked > MOST * archive.stat().st_size + ROOM:
        raise UserError(
            f"{archive}: refused, it unpacks to more than {unpacked:,} bytes, as no archive of data of this size does; "
            "delete it"
        )


def _move(source: Path, target: Path) -> None:
    """Rename; if both are folders, move their entries (archives of one data set share a top folder)."""
    if source.is_dir() and target.is_dir():
        for entry in sorted(source.iterdir()):
            _move(entry, target / entry.name)
    else:
        os.replace(source, target)
