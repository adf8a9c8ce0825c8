"""The fingerprint of raw files, and prepared folders: complete or absent, built once."""

import errno
import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dabsmix.data import cache as prepare
from dabsmix.data.cache import allocate, fingerprint, prepared, scratch, stacked
from dabsmix.errors import UserError
from dabsmix.files import cache_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("one")
    (folder / "sub" / "b.txt").write_text("two")
    return folder


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_the_environment_sets_the_cache_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv("DABSMIX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/dabsmix")


# --- fingerprint


def test_a_fingerprint_depends_on_names_and_contents_only(raw: Path, tmp_path: Path) -> None:
    first = fingerprint(raw, files(raw))
    assert fingerprint(raw, reversed(files(raw))) == first
    assert fingerprint(raw, files(raw) * 2) == first
    moved = tmp_path / "moved"
    raw.rename(moved)
    assert fingerprint(moved, files(moved)) == first
    (moved / "sub" / "b.txt").rename(moved / "b.txt")
    assert fingerprint(moved, files(moved)) != first
    assert fingerprint(moved, files(moved)[:1]) != first


def test_a_change_with_equal_size_and_time_changes_the_fingerprint(raw: Path) -> None:
    first = fingerprint(raw, files(raw))
    stat = (raw / "a.txt").stat()
    (raw / "a.txt").write_text("eno")
    os.utime(raw / "a.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint(raw, files(raw)) != first


def test_unchanged_files_are_not_read_again(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fingerprint(raw, files(raw))
    read: list[Path] = []
    original = hashlib.file_digest

    def digested(stream: BufferedReader, kind: str) -> object:
        read.append(Path(stream.name))
        return original(stream, kind)

    monkeypatch.setattr(hashlib, "file_digest", digested)
    assert fingerprint(raw, files(raw)) == first
    assert read == []
    (raw / "a.txt").write_text("changed")
    read.clear()
    assert fingerprint(raw, files(raw)) != first
    assert read == [raw / "a.txt"]


def test_a_cache_that_cannot_be_written_only_costs_time(raw: Path, cache: Path) -> None:
    first = fingerprint(raw, files(raw))
    for path in sorted(cache.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    cache.rmdir()
    cache.write_text("a file where the folder belongs")
    assert fingerprint(raw, files(raw)) == first


@pytest.mark.parametrize("content", ["{", "[1]", '{"a.txt": 1}', '{"a.txt": {}}', '{"a.txt": [1]}', "[" * 100_000])
def test_damaged_hashes_are_computed_again(raw: Path, cache: Path, content: str) -> None:
    first = fingerprint(raw, files(raw))
    (memory,) = (cache / "hashes").glob("*.json")
    memory.write_text(content)
    assert fingerprint(raw, files(raw)) == first


def test_a_missing_file_is_one_line(raw: Path) -> None:
    with pytest.raises(UserError, match=r"c\.txt: cannot be read"):
        fingerprint(raw, [raw / "c.txt"])


# --- prepared folders


def write(value: int) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        allocate(folder / "x.npy", np.float32, (3, 2))[:] = value

    return build


def never(folder: Path) -> None:
    raise AssertionError("built again")


def test_a_folder_is_built_once_per_key() -> None:
    folder = prepared("set", "key 1", write(1))
    assert prepared("set", "key 1", never) == folder
    other = prepared("set", "key 2", write(2))
    assert np.load(folder / "x.npy", mmap_mode="r").tolist() == [[1, 1]] * 3
    assert np.load(other / "x.npy", mmap_mode="r").tolist() == [[2, 2]] * 3


def test_a_build_that_fails_leaves_nothing(cache: Path) -> None:
    def build(folder: Path) -> None:
        write(1)(folder)
        raise UserError("the third file is damaged")

    with pytest.raises(UserError, match="third file"):
        prepared("set", "key", build)
    assert [path.name for path in (cache / "set").iterdir() if path.is_dir()] == []
    assert np.load(prepared("set", "key", write(2)) / "x.npy").max() == 2


def build_and_die(cache: str) -> None:
    os.environ["DABSMIX_CACHE"] = cache

    def build(folder: Path) -> None:
        write(1)(folder)
        os.kill(os.getpid(), signal.SIGKILL)

    prepared("set", "key", build)


def test_a_killed_build_starts_over(cache: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=build_and_die, args=(str(cache),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [path for path in (cache / "set").iterdir() if path.is_dir()]  # the leftovers of the killed build
    folder = prepared("set", "key", write(2))
    assert np.load(folder / "x.npy").max() == 2
    assert [path for path in (cache / "set").iterdir() if path.is_dir()] == [folder]


def test_an_incomplete_folder_is_built_again() -> None:
    folder = prepared("set", "key", write(1))
    (folder / prepare.COMPLETE).unlink()
    prepared("set", "key", write(2))
    assert np.load(folder / "x.npy").max() == 2


def build_slowly(cache: str, log: str) -> None:
    os.environ["DABSMIX_CACHE"] = cache

    def build(folder: Path) -> None:
        with open(log, "a") as stream:
            stream.write("built\n")
        time.sleep(0.3)
        write(7)(folder)

    assert np.load(prepared("set", "key", build) / "x.npy").max() == 7


def test_only_one_of_two_processes_builds(cache: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=build_slowly, args=(str(cache), str(tmp_path / "log"))) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "log").read_text() == "built\n"


@pytest.mark.parametrize(
    ("code", "file", "message"),
    [
        (errno.ENOSPC, None, "disk full while preparing data"),
        (errno.EROFS, "cache/set/x.npy", "cannot write prepared data"),
        (errno.EACCES, "cache/set/x.npy", "cannot write prepared data"),
    ],
)
def test_a_failed_write_is_one_line_with_the_remedy(tmp_path: Path, code: int, file: str | None, message: str) -> None:
    def build(folder: Path) -> None:
        raise OSError(code, os.strerror(code), file and str(tmp_path / file))

    with pytest.raises(UserError, match=rf"{message}.*DABSMIX_CACHE"):
        prepared("set", "key", build)


def test_an_unreadable_raw_file_is_not_blamed_on_the_cache(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "raw.dat"))

    with pytest.raises(PermissionError):
        prepared("set", "key", build)


def test_a_cache_that_is_not_a_folder_is_one_line(cache: Path) -> None:
    cache.write_text("a file where the folder belongs")
    with pytest.raises(UserError, match="DABSMIX_CACHE"):
        prepared("set", "key", never)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc, where nobody may create a folder")
def test_a_cache_whose_parent_cannot_be_written_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", "/proc/nowhere/dabsmix")
    with pytest.raises(UserError, match=r"/proc/nowhere/dabsmix: cannot write.*DABSMIX_CACHE"):
        prepared("set", "key", never)


def test_space_is_reserved_before_it_is_written(tmp_path: Path) -> None:
    array = allocate(tmp_path / "x.npy", np.float32, (np.int64(1000), 100))  # type: ignore[arg-type]  # as callers pass it
    assert array.shape == (1000, 100)
    assert (tmp_path / "x.npy").stat().st_blocks * 512 >= 400_000


def test_a_full_disk_is_reported_when_space_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="disk full"):
        prepared("set", "key", write(1))


# --- large arrays that are needed only while a command runs


@pytest.mark.parametrize("in_memory", [0, 100, 1 << 20])
def test_large_arrays_hold_the_same_numbers_in_files_without_names(
    in_memory: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "IN_MEMORY", in_memory)
    parts = [np.arange(6 * n, dtype=np.int32).reshape(n, 2, 3) for n in (4, 0, 7)]
    whole = stacked(iter(parts))
    assert whole.dtype == np.int32
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    array = scratch((11, 2, 3), np.int32)
    array[:] = whole
    np.testing.assert_array_equal(array, whole)
    assert scratch((0, 3)).shape == (0, 3)
    assert not cache.exists() or not list(cache.iterdir())


def test_no_room_for_a_large_array_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "IN_MEMORY", 0)
    cache.write_text("a file in place of the folder")
    message = r"cache: no room for temporary data \(.*\); make room or set \$DABSMIX_CACHE"
    with pytest.raises(UserError, match=message):
        scratch((3,))
    with pytest.raises(UserError, match=message):
        stacked([np.ones(3)])


def test_an_error_of_what_is_stacked_is_not_blamed_on_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "IN_MEMORY", 0)

    def parts() -> Iterator[NDArray[np.float64]]:
        yield np.ones(3)
        raise PermissionError("raw data")

    with pytest.raises(PermissionError, match="raw data"):
        stacked(parts())
