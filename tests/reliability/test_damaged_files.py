"""Damaged archives and circular links are never accepted silently."""

import io
import os
import random
import tarfile
from pathlib import Path

import pytest

from dabsmix.data.download import Download, fetch
from dabsmix.errors import UserError
from dabsmix.modalities.files import walk


def tarred(folder: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for number in range(20):
            info = tarfile.TarInfo(f"set/{number}.bin")
            info.size = 500
            archive.addfile(info, io.BytesIO(random.Random(number).randbytes(500)))
    return out.getvalue()


def unpack(content: bytes, root: Path) -> list[bytes]:
    root.mkdir()
    (root / "set.tar.gz").write_bytes(content)
    fetch(Download((), "set.tar.gz"), root)
    return [(root / "set" / f"{number}.bin").read_bytes() for number in range(20)]


def test_a_flipped_bit_in_a_compressed_archive_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    content = tarred(tmp_path)
    good = unpack(content, tmp_path / "good")
    rng = random.Random(0)
    refused = 0
    for number in range(60):
        damaged = bytearray(content)
        bit = rng.randrange(8 * len(content))
        damaged[bit // 8] ^= 1 << bit % 8
        root = tmp_path / str(number)
        try:
            files = unpack(bytes(damaged), root)
        except UserError:
            refused += 1
            files = [] if (root / "set").exists() else good
        assert files == good, bit
    assert refused > 50  # a few bits of the header do not affect the content


def test_an_archive_that_changed_before_it_was_unpacked_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.tar.gz").write_bytes(tarred(tmp_path))
    item = Download((), "set.tar.gz")
    fetch(item, tmp_path, unpack=False)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("set/other.bin"))
    (tmp_path / "set.tar.gz").write_bytes(out.getvalue())
    with pytest.raises(UserError, match="that of the first download was"):
        fetch(item, tmp_path)


def test_a_walk_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "real" / "cats").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for number in range(4):
        (tmp_path / "real" / "cats" / f"{number}.png").write_bytes(b"")
    (tmp_path / "elsewhere" / "dog.png").write_bytes(b"")
    (tmp_path / "real" / "dogs").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "real" / "cats" / "up").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "self").symlink_to(".")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "real")
    assert walk(tmp_path / "real", (".png",)) == [*(f"cats/{number}.png" for number in range(4)), "dogs/dog.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_walk_leaves_out_non_files_but_lists_a_broken_link(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "broken.png").symlink_to("nowhere.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "a.png").write_bytes(b"")
    assert walk(tmp_path, (".png",)) == ["a.png", "broken.png"]  # a broken link is an error when it is read
