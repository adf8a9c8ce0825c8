"""Downloads from a local server: interrupted connections, mirrors, checksums, hostile archives, no server."""

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dabsmix.data import download
from dabsmix.data.domain import Domain
from dabsmix.data.download import Download, fetch
from dabsmix.errors import UserError
from dabsmix.source import ensure

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Server(ThreadingHTTPServer):
    """Serves ``files``; closes the connection after ``cut_after`` bytes of a response, as often as ``cuts`` says."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cuts = 0
        self.cut_after = 300_000
        self.knows_range = True
        self.length: str | None = None  # sent in place of the true Content-Length
        self.requests: list[tuple[str, str | None]] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.strip("/")
        byte_range = self.headers.get("Range")
        self.server.requests.append((name, byte_range))
        if name not in self.server.files:
            self.send_error(404)
            return
        content = self.server.files[name]
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        if byte_range and self.server.knows_range and self.headers.get("If-Range") == etag:
            start = int(byte_range.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("ETag", etag)
        self.send_header("Content-Length", self.server.length or str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if self.server.cuts > 0:
            self.server.cuts -= 1
            body = body[: self.server.cut_after]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE", 0.001)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def left(root: Path) -> list[str]:
    """The files under the root."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_a_cut_connection_is_resumed_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = CONTENT
    server.cuts = 2
    path = fetch(Download((server.url("data.bin"),), "data.bin", sha256(CONTENT), "this test"), tmp_path)
    assert path.read_bytes() == CONTENT
    assert [byte_range for _, byte_range in server.requests] == [None, "bytes=300000-", "bytes=600000-"]
    assert left(tmp_path) == ["data.bin", "data.bin.sha256"]


def test_an_interrupted_download_is_resumed_by_the_next_start(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = CONTENT
    server.cuts, server.cut_after = 99, 0
    item = Download((server.url("data.bin"),), "data.bin")
    (tmp_path / ".data.bin.part").write_bytes(CONTENT[:1000])
    (tmp_path / ".data.bin.origin").write_text(f'{item.urls[0]}\n"{hashlib.md5(CONTENT).hexdigest()}"')
    with pytest.raises(UserError, match="cut after 1000 of 1048576 bytes"):
        fetch(item, tmp_path)
    server.cuts = 0
    assert fetch(item, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == ("data.bin", "bytes=1000-")


def test_a_server_that_ignores_range_sends_everything_again(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = CONTENT
    server.cuts, server.knows_range = 1, False
    assert fetch(Download((server.url("data.bin"),), "data.bin"), tmp_path).read_bytes() == CONTENT
    assert [byte_range for _, byte_range in server.requests] == [None, "bytes=300000-"]


def test_a_file_that_changed_on_the_server_is_downloaded_anew(server: Server, tmp_path: Path) -> None:
    item = Download((server.url("data.bin"),), "data.bin")
    (tmp_path / ".data.bin.part").write_bytes(b"old" * 100)
    (tmp_path / ".data.bin.origin").write_text(f'{item.urls[0]}\n"of the old file"')
    server.files["data.bin"] = CONTENT
    assert fetch(item, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("length", ["a lot", "-5", "1e6"])
def test_a_content_length_that_is_not_a_number_is_ignored(server: Server, tmp_path: Path, length: str) -> None:
    server.files["data.bin"], server.length = CONTENT, length
    assert fetch(Download((server.url("data.bin"),), "data.bin"), tmp_path).read_bytes() == CONTENT


def test_the_second_mirror_serves_when_the_first_does_not(server: Server, tmp_path: Path) -> None:
    server.files["b/data.bin"] = CONTENT
    item = Download((server.url("a/data.bin"), server.url("b/data.bin")), "data.bin", sha256(CONTENT), "this test")
    assert fetch(item, tmp_path).read_bytes() == CONTENT
    assert [name for name, _ in server.requests] == ["a/data.bin", "b/data.bin"]


def test_a_mirror_with_the_wrong_content_is_skipped(server: Server, tmp_path: Path) -> None:
    server.files |= {"a": b"something else", "b": CONTENT}
    item = Download((server.url("a"), server.url("b")), "data.bin", sha256(CONTENT), "this test")
    assert fetch(item, tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = CONTENT
    item = Download((server.url("data.bin"),), "data.bin", "md5:" + "0" * 32, "a library 1.0")
    with pytest.raises(UserError, match=f"md5 is {hashlib.md5(CONTENT).hexdigest()}, a library 1.0 has 0000"):
        fetch(item, tmp_path)
    assert left(tmp_path) == []


def test_without_a_published_sum_the_first_one_is_kept_and_called_unverified(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.files["data.bin"] = CONTENT
    item = Download((server.url("data.bin"),), "data.bin")
    path = fetch(item, tmp_path)
    record = (tmp_path / "data.bin.sha256").read_text()
    assert record.startswith(f"{hashlib.sha256(CONTENT).hexdigest()}  data.bin\n")
    assert "unverified" in record
    assert "unverified" in caplog.text
    path.unlink()
    server.files["data.bin"] = CONTENT[:-1]
    with pytest.raises(UserError, match="that of the first download was"):
        fetch(item, tmp_path)
    assert left(tmp_path) == ["data.bin.sha256"]


def test_a_finished_download_contacts_no_server(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = CONTENT
    item = Download((server.url("data.bin"),), "data.bin")
    fetch(item, tmp_path)
    fetch(item, tmp_path)
    assert len(server.requests) == 1


def test_two_processes_download_once(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = CONTENT
    item = Download((server.url("data.bin"),), "data.bin")
    threads = [threading.Thread(target=fetch, args=(item, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_an_unreachable_server_is_reported_with_file_source_and_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PAUSE", 0.001)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as unused:
        url = f"http://127.0.0.1:{unused.server_port}/data.bin"
    with pytest.raises(UserError) as caught:
        fetch(Download((url,), "deep/data.bin"), tmp_path)
    line = str(caught.value)
    assert url in line
    assert str(tmp_path / "deep" / "data.bin") in line
    assert left(tmp_path) == []
    assert "\n" not in line


def zipped(**members: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return out.getvalue()


def tarred(*members: tarfile.TarInfo, mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]  # mode is a plain str here
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, 3 if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize("file", ["set.zip", "set.tar.gz", "set.tgz", "set.tar"])
def test_an_archive_is_unpacked_beside_itself(server: Server, tmp_path: Path, file: str) -> None:
    tar = tarred(member("set/a.txt"), member("set/b/c.txt"), mode="w" if file.endswith("tar") else "w:gz")
    content = zipped(**{"set/a.txt": "xxx", "set/b/c.txt": "xxx"}) if file.endswith("zip") else tar
    server.files[file] = content
    fetch(Download((server.url(file),), file), tmp_path)
    assert left(tmp_path) == [file, f"{file}.sha256", f"{file}.unpacked", "set/a.txt", "set/b/c.txt"]
    assert (tmp_path / "set/b/c.txt").read_text() == "xxx"


def test_an_archive_within_an_archive_is_unpacked_where_it_lies(server: Server, tmp_path: Path) -> None:
    inner = tarred(member("images/1.txt"))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("set/images.tar.gz", inner)
        archive.writestr("set/notes.zip", zipped(**{"notes.txt": "xxx"}))
    server.files["set.zip"] = out.getvalue()
    # one of the three named archives is missing: another mirror has it
    item = Download((server.url("set.zip"),), "set.zip", nested=("set/images.tar.gz", "set/notes.zip", "set/more.zip"))
    fetch(item, tmp_path)
    assert left(tmp_path / "set") == ["images/1.txt", "notes.txt"]
    fetch(item, tmp_path)
    assert len(server.requests) == 1


def test_a_hostile_archive_within_an_archive_is_refused(server: Server, tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("set/good.txt", "xxx")
        archive.writestr("set/inner.zip", zipped(**{"../../../evil.txt": ""}))
    server.files["set.zip"] = out.getvalue()
    with pytest.raises(UserError, match="refused"):
        fetch(Download((server.url("set.zip"),), "set.zip", nested=("set/inner.zip",)), tmp_path / "root")
    assert left(tmp_path) == ["root/set.zip", "root/set.zip.sha256"]


HOSTILE = {
    "zip_up.zip": zipped(**{"good.txt": "", "../evil.txt": ""}),
    "zip_absolute.zip": zipped(**{"/evil.txt": ""}),
    "zip_backslash.zip": zipped(**{"..\\evil.txt": ""}),
    "zip_drive.zip": zipped(**{"C:/evil.txt": ""}),
    "tar_up.tar.gz": tarred(member("good.txt"), member("a/../../evil.txt")),
    "tar_absolute.tar.gz": tarred(member("/evil.txt")),
    "tar_link.tar.gz": tarred(member("out", tarfile.SYMTYPE, "../.."), member("out/evil.txt")),
    "tar_hard.tar.gz": tarred(member("out", tarfile.LNKTYPE, "../secret")),
    "tar_device.tar.gz": tarred(member("null", tarfile.CHRTYPE)),
}


@pytest.mark.parametrize("file", HOSTILE)
def test_a_hostile_archive_is_refused_and_nothing_is_unpacked(server: Server, tmp_path: Path, file: str) -> None:
    server.files[file] = HOSTILE[file]
    root = tmp_path / "root"
    with pytest.raises(UserError, match="refused"):
        fetch(Download((server.url(file),), file), root)
    assert left(tmp_path) == [f"root/{file}", f"root/{file}.sha256"]


@pytest.mark.parametrize("file", ["bomb.zip", "bomb.tar.gz"])
def test_an_archive_that_unpacks_to_far_too_much_is_refused(
    server: Server, tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dabsmix.data.download.ROOM", 0)
    archive = io.BytesIO()
    if file.endswith("zip"):
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped_file:
            zipped_file.writestr("zeros", bytes(2_000_000))
    else:
        with tarfile.open(fileobj=archive, mode="w:gz") as tar:
            header = tarfile.TarInfo("zeros")
            header.size = 2_000_000
            tar.addfile(header, io.BytesIO(bytes(2_000_000)))
    server.files[file] = archive.getvalue()
    with pytest.raises(UserError, match="unpacks to more than 2,000,000 bytes"):
        fetch(Download((server.url(file),), file), tmp_path / "root")
    assert left(tmp_path) == [f"root/{file}", f"root/{file}.sha256"]


@pytest.mark.parametrize("file", ["set.zip", "set.tar.gz"])
def test_a_page_instead_of_an_archive_is_refused(server: Server, tmp_path: Path, file: str) -> None:
    server.files[file] = b"<html>please sign in</html>"
    with pytest.raises(UserError, match="neither a zip nor a tar archive"):
        fetch(Download((server.url(file),), file), tmp_path)
    assert left(tmp_path) == []


def test_a_truncated_archive_is_one_line(server: Server, tmp_path: Path) -> None:
    archive = tarred(*(member(f"set/{i}.txt") for i in range(50)))
    server.files["set.tar.gz"] = archive[: len(archive) * 3 // 4]
    with pytest.raises(UserError, match="damaged archive"):
        fetch(Download((server.url("set.tar.gz"),), "set.tar.gz"), tmp_path)
    assert not (tmp_path / "set").exists()


def card(server: Server, *files: str, manual: str = "") -> Domain:
    def load(folder: Path, protocol: str) -> None:
        raise AssertionError("not under test")

    downloads = tuple(Download((server.url(file),), file) for file in files)
    return Domain("toy", "image", "", "", "toy", load, downloads, manual)  # type: ignore[arg-type]  # load never runs


def test_ensure_uses_existing_files(server: Server, tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    assert ensure(card(server, "toy.zip"), tmp_path) == tmp_path / "toy"
    assert server.requests == []


def test_ensure_fetches_every_archive_into_a_shared_folder(server: Server, tmp_path: Path) -> None:
    server.files |= {"one.zip": zipped(**{"toy/1.txt": ""}), "two.zip": zipped(**{"toy/2.txt": ""})}
    folder = ensure(card(server, "one.zip", "two.zip"), tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["1.txt", "2.txt"]


def test_ensure_finishes_what_was_interrupted_between_two_archives(server: Server, tmp_path: Path) -> None:
    server.files |= {"one.zip": zipped(**{"toy/1.txt": ""}), "two.zip": zipped(**{"toy/2.txt": ""})}
    fetch(Download((server.url("one.zip"),), "one.zip"), tmp_path)
    assert (tmp_path / "toy").exists()
    ensure(card(server, "one.zip", "two.zip"), tmp_path)
    assert (tmp_path / "toy/2.txt").exists()


def test_a_file_that_others_fetch_too_starts_no_download(server: Server, tmp_path: Path) -> None:
    """The set was put there by hand, and a tokenizer that it needs was downloaded for another set."""
    server.files |= {"toy.zip": zipped(**{"toy/1.txt": ""}), "bert/vocab.txt": b"[PAD]"}
    fetch(Download((server.url("bert/vocab.txt"),), "bert/vocab.txt"), tmp_path)
    (tmp_path / "toy").mkdir()
    ensure(card(server, "toy.zip", "bert/vocab.txt"), tmp_path)
    assert [name for name, _ in server.requests] == ["bert/vocab.txt"]


def test_ensure_finishes_what_was_interrupted_between_two_files(server: Server, tmp_path: Path) -> None:
    server.files |= {"toy/train.mat": b"1", "toy/test.mat": b"2"}
    fetch(Download((server.url("toy/train.mat"),), "toy/train.mat"), tmp_path)
    ensure(card(server, "toy/train.mat", "toy/test.mat"), tmp_path)
    assert (tmp_path / "toy/test.mat").read_bytes() == b"2"


def test_ensure_names_missing_files_and_how_to_obtain_them(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"toy: .*toy is missing; register at example\.org"):
        ensure(card(server, manual="register at example.org"), tmp_path)


def test_an_archive_without_the_folder_is_an_error(server: Server, tmp_path: Path) -> None:
    server.files["toy.zip"] = zipped(**{"other/1.txt": ""})
    with pytest.raises(UserError, match=r"toy\.zip did not provide .*toy"):
        ensure(card(server, "toy.zip"), tmp_path)


def test_a_data_root_that_cannot_be_written_is_one_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file where a folder belongs")
    with pytest.raises(UserError, match="--data-root"):
        ensure(card(server, "toy.zip"), tmp_path / "root")
