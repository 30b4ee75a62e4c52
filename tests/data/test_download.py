"""utils/download.py against a local server that does everything wrong, and against bad zip files."""

import contextlib
import hashlib
import io
import os
import stat
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from utils import download
from utils.download import DownloadError, Remote, cache_dir, fetch, file_hash, unpack

GOOD = bytes(range(256)) * 4096  # 1 MiB
PAGE = b"<!DOCTYPE html>\n<html><body>Not Found</body></html>"
SHA256 = "sha256:" + hashlib.sha256(GOOD).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Each address is one way to behave. The server keeps the requests it has seen in `seen`."""

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", length=None, **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.write(body)

    def write(self, body):
        with contextlib.suppress(ConnectionError):  # whoever only wanted the status has hung up
            self.wfile.write(body)

    def do_GET(self):
        kind, server = self.path.strip("/"), self.server
        server.seen.append(kind)
        if kind == "good":
            self.answer(200, GOOD)
        elif kind == "truncated":
            self.answer(200, GOOD[:-1000], length=len(GOOD))
        elif kind == "tampered":
            self.answer(200, b"!" + GOOD[1:])
        elif kind == "missing":
            self.answer(404, PAGE)
        elif kind == "missing-text":
            self.answer(404, b"404: Not Found")
        elif kind == "page":
            self.answer(200, PAGE)
        elif kind == "empty":
            self.answer(200)
        elif kind == "silent":  # accepts the connection, says nothing
            server.stop.wait()
        elif kind == "stalls":  # half of the file, then nothing
            self.answer(200, GOOD[: len(GOOD) // 2], length=len(GOOD))
            server.stop.wait()
        elif kind == "slow":
            self.answer(200, length=len(GOOD))
            for half in (GOOD[: len(GOOD) // 2], GOOD[len(GOOD) // 2 :]):
                server.stop.wait(0.6)
                self.write(half)
        elif kind == "redirect":
            self.answer(302, Location="/good")
        elif kind == "loop":
            self.answer(302, Location="/loop")
        elif kind == "flaky":  # wrong twice, then right
            self.answer(503 if server.seen.count(kind) <= 2 else 200, GOOD)
        elif kind.startswith("breaks"):  # in the middle, until the rest is asked for
            wanted = self.headers["Range"]
            server.ranges.append(wanted)
            if self.headers["Accept-Encoding"] != "identity":
                self.answer(500)  # the parts of a compressed file are not the parts of the file
            elif wanted is None:
                self.answer(200, GOOD[: len(GOOD) // 2], length=len(GOOD))
            elif kind == "breaks-for-good":
                self.answer(416)
            else:
                first = int(wanted.removeprefix("bytes=").removesuffix("-"))
                rest = b"?" * (len(GOOD) - first) if kind == "breaks-and-changes" else GOOD[first:]
                place = {"Content-Range": f"bytes {first}-{len(GOOD) - 1}/{len(GOOD)}"}
                self.answer(206, rest, **place)
        elif kind == "together":  # the file comes only when two downloads are under way
            server.together.wait(timeout=20)
            self.answer(200, GOOD)


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.stop, server.together = [], threading.Event(), threading.Barrier(2)
    server.ranges = []
    server.daemon_threads = True
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder, no proxy, no pauses."""
    monkeypatch.setenv("TRANSFORMER_CACHE", str(tmp_path / "cache"))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0.0)
    return tmp_path / "cache"


def files(folder: Path) -> list[str]:
    """Every file and folder below folder, temporary ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def interrupt(*args):
    raise KeyboardInterrupt


def message(caught: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- where things go -------------------------------------------------------------------------------------------


def test_cache_dir(monkeypatch, tmp_path):
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.setenv("TRANSFORMER_CACHE", "~/mine")
    assert cache_dir() == Path.home() / "mine"
    monkeypatch.delenv("TRANSFORMER_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "one-transformer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "one-transformer"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_dir() == tmp_path / "local" / "one-transformer"


def test_file_hash_by_hand(tmp_path):
    file = tmp_path / "hello"
    file.write_bytes(b"hello\n")  # the values that sha256sum, md5sum and git hash-object print
    assert file_hash(file, "sha256") == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert file_hash(file, "md5") == "b1946ac92492d2347c6235b4d2611184"
    assert file_hash(file, "blob") == "ce013625030ba8dba906f756967f9e9ca394464a"
    file.write_bytes(GOOD * 3)  # more than one piece
    assert file_hash(file, "sha256") == hashlib.sha256(GOOD * 3).hexdigest()
    with pytest.raises(ValueError, match="'crc32', expected sha256, md5 or blob"):
        file_hash(file, "crc32")


# ---- downloads that work ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["good", "redirect", "flaky"])
def test_good(server, cache, kind):
    path = fetch(Remote(f"{server.url}/{kind}", SHA256), "data.bin", "set")
    assert path == cache / "set" / "data.bin"
    assert path.read_bytes() == GOOD
    assert files(cache) == ["set", "set/data.bin"]


def test_slow_is_not_stalled(server, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 1.0)  # the whole file takes 1.2 s, but no half takes more than 0.6 s
    assert fetch(Remote(f"{server.url}/slow", SHA256), "data.bin").read_bytes() == GOOD


@pytest.mark.parametrize(
    "hash",
    [
        "md5:" + hashlib.md5(GOOD).hexdigest().upper(),
        "blob:" + hashlib.sha1(b"blob 1048576\0" + GOOD).hexdigest(),
    ],
)
def test_other_hashes(server, hash):
    assert fetch(Remote(f"{server.url}/good", hash), "data.bin").read_bytes() == GOOD
    with pytest.raises(DownloadError, match=f"expected {hash.split(':')[1].lower()}"):
        fetch(Remote(f"{server.url}/tampered", hash), "other.bin")


def test_second_fetch_asks_nobody(server):
    first = fetch(Remote(f"{server.url}/good", SHA256), "data.bin")
    asked = len(server.seen)
    assert asked > 0
    assert fetch(Remote(f"{server.url}/good", SHA256), "data.bin") == first
    assert len(server.seen) == asked


def test_stale_file_is_replaced(server, cache):
    cache.mkdir()
    (cache / "data.bin").write_bytes(b"last year's version")
    assert fetch(Remote(f"{server.url}/good", SHA256), "data.bin").read_bytes() == GOOD
    (cache / "data.bin").write_bytes(b"tampered with")
    with pytest.raises(DownloadError, match="404 Not Found"):  # no good one to be had: still not returned
        fetch(Remote(f"{server.url}/missing", SHA256), "data.bin")
    assert files(cache) == ["data.bin"]


def test_unknown_hash_says_so(server, capsys):
    for _ in range(2):  # downloaded, then from the cache
        assert fetch(Remote(f"{server.url}/good", None), "data.bin").read_bytes() == GOOD
        out = capsys.readouterr().out
        assert "data.bin" in out and "could not be checked" in out and out.count("\n") == 1
    fetch(Remote(f"{server.url}/good", SHA256), "data.bin")
    assert capsys.readouterr() == ("", "")  # a checked file is silent


def test_page_may_be_wanted(server):
    assert fetch(Remote(f"{server.url}/page", None), "page.html").read_bytes() == PAGE


def test_progress_bar_only_on_a_terminal(server, monkeypatch):
    for tty in (False, True):
        screen = io.StringIO()
        screen.isatty = lambda tty=tty: tty
        monkeypatch.setattr(sys, "stderr", screen)
        path = fetch(Remote(f"{server.url}/good", SHA256), f"{tty}.bin")
        assert ("100%" in screen.getvalue()) == tty
        assert (f"Downloading to {path}" in screen.getvalue()) == tty


# ---- downloads that fail ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "hash", "what"),
    [
        ("truncated", SHA256, "IncompleteRead"),
        ("truncated", None, "IncompleteRead"),
        ("tampered", SHA256, f"expected {SHA256[7:]}"),
        ("missing", SHA256, "404 Not Found"),
        ("missing", None, "404 Not Found"),
        ("missing-text", None, "404 Not Found"),
        ("page", SHA256, f"sha256 is {hashlib.sha256(PAGE).hexdigest()}"),
        ("page", None, "web page"),
        ("empty", None, "empty"),
        ("silent", SHA256, "timed out after 0.2 s"),
        ("stalls", SHA256, "timed out after 0.2 s"),
        ("stalls", None, "timed out after 0.2 s"),
        ("loop", SHA256, "redirects"),
    ],
)
def test_failure(server, cache, monkeypatch, kind, hash, what):
    monkeypatch.setattr(download, "TIMEOUT", 0.2 if kind in ("silent", "stalls") else 30.0)
    monkeypatch.setattr(download, "TRIES", 2)
    with pytest.raises(DownloadError) as caught:
        fetch(Remote(f"{server.url}/{kind}", hash), "data.bin")
    text = message(caught)
    assert f"{server.url}/{kind}" in text and what in text
    assert "ry again" in text and str(cache / "data.bin") in text
    # Neither a wrong file nor a temporary one; a beginning stays if a hash can tell whether it fits.
    assert files(cache) == ([".left-data.bin"] if hash and kind in ("truncated", "stalls") else [])


@pytest.mark.parametrize("hash", [SHA256, None])
def test_a_server_that_sends_too_much(server, cache, hash):
    with pytest.raises(DownloadError, match="sends more than 0 MiB"):
        fetch(Remote(f"{server.url}/good", hash, most=100_000), "data.bin")
    assert all(path.stat().st_size == 0 for path in cache.rglob("*") if path.is_file())
    assert fetch(Remote(f"{server.url}/good", hash), "data.bin").read_bytes() == GOOD


def test_no_connection(monkeypatch, cache):
    def no_answer(*args, **options):
        raise download.requests.ConnectTimeout("HTTPConnectionPool(host='10.0.0.1'): Max retries exceeded")

    monkeypatch.setattr(download.requests, "get", no_answer)
    with pytest.raises(DownloadError, match="http://10.0.0.1/x: no connection within 10 s. Try again"):
        fetch(Remote("http://10.0.0.1/x", SHA256), "data.bin")
    assert files(cache) == []


def test_long_reason_becomes_one_line(server, monkeypatch):
    def refuse(*args, **options):
        raise download.requests.ConnectionError("Failed to retrieve file url:\n\n\tToo many users.\n")

    monkeypatch.setattr(download.requests, "get", refuse)
    with pytest.raises(DownloadError) as caught:
        fetch(Remote(f"{server.url}/good", SHA256), "data.bin")
    assert "Failed to retrieve file url: Too many users. Try again" in message(caught)


def test_an_interrupted_download_goes_on(server, cache, monkeypatch):
    """In the same call, and in a later one."""
    path = fetch(Remote(f"{server.url}/breaks", SHA256), "data.bin")
    assert path.read_bytes() == GOOD and files(cache) == ["data.bin"]
    assert server.ranges[-1] == f"bytes={len(GOOD) // 2}-" and server.ranges[:-1] == [None] * (len(server.ranges) - 1)
    path.unlink()
    monkeypatch.setattr(download, "TRIES", 1)
    with pytest.raises(DownloadError):
        fetch(Remote(f"{server.url}/breaks", SHA256), "data.bin")
    assert files(cache) == [".left-data.bin"]
    assert fetch(Remote(f"{server.url}/breaks", SHA256), "data.bin").read_bytes() == GOOD
    assert files(cache) == ["data.bin"]


@pytest.mark.parametrize("kind", ["breaks-for-good", "breaks-and-changes"])
def test_a_rest_that_does_not_fit(server, cache, kind):
    """Refused, or of another file: the beginning is given up."""
    with pytest.raises(DownloadError):
        fetch(Remote(f"{server.url}/{kind}", SHA256), "data.bin")
    assert server.ranges == [None, f"bytes={len(GOOD) // 2}-", None]
    assert files(cache) == [".left-data.bin"]  # of the third try


def test_a_server_that_sends_the_whole_file_again(server, cache, monkeypatch):
    cache.mkdir()
    (cache / ".left-data.bin").write_bytes(GOOD[:1000])
    monkeypatch.setattr(download, "TRIES", 1)
    assert fetch(Remote(f"{server.url}/good", SHA256), "data.bin").read_bytes() == GOOD
    assert files(cache) == ["data.bin"]


def test_no_rest_without_a_hash(server, cache):
    """Two halves of different files could not be told from one file."""
    cache.mkdir()
    (cache / ".left-data.bin").write_bytes(GOOD[:1000])  # of an earlier download with a hash
    with pytest.raises(DownloadError):
        fetch(Remote(f"{server.url}/breaks", None), "data.bin")
    assert set(server.ranges) == {None} and files(cache) == [".left-data.bin"]


def test_server_down(server, cache):
    server.shutdown()
    server.server_close()
    try:
        raise KeyError("some earlier trouble of the caller")  # must not be taken for the reason
    except KeyError:
        with pytest.raises(DownloadError) as caught:
            fetch(Remote(f"{server.url}/good", SHA256), "data.bin")
    assert "refused" in message(caught) and "Pool" not in message(caught) and "trouble" not in message(caught)
    assert files(cache) == []


def test_three_tries_with_growing_pauses(server, monkeypatch):
    slept = []
    monkeypatch.setattr(download, "PAUSE", 1.0)
    monkeypatch.setattr(download.time, "sleep", slept.append)
    with pytest.raises(DownloadError):
        fetch(Remote(f"{server.url}/missing", SHA256), "data.bin")
    assert len(server.seen) == 3
    assert slept == [0.0, 1.0, 2.0]


def test_interrupted_by_the_user(server, cache, monkeypatch):
    remote = Remote(f"{server.url}/good", SHA256)
    with monkeypatch.context() as patch:
        patch.setattr(download.os, "replace", interrupt)  # at the last moment
        with pytest.raises(KeyboardInterrupt):
            fetch(remote, "data.bin")
    assert files(cache) == []
    with monkeypatch.context() as patch:
        patch.setattr(download.tqdm, "update", interrupt)  # after the first chunk
        with pytest.raises(KeyboardInterrupt):
            fetch(remote, "data.bin")
    assert files(cache) == [".left-data.bin"]
    assert fetch(remote, "data.bin").read_bytes() == GOOD and files(cache) == ["data.bin"]


def test_unwritable_cache(server, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("TRANSFORMER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DownloadError) as caught:
        fetch(Remote(f"{server.url}/good", SHA256), "data.bin")
    assert str(tmp_path / "file" / "cache") in message(caught) and "TRANSFORMER_CACHE" in message(caught)
    assert server.seen == []


def test_name_taken_by_a_folder(server, cache):
    (cache / "data.bin").mkdir(parents=True)
    with pytest.raises(DownloadError) as caught:
        fetch(Remote(f"{server.url}/good", SHA256), "data.bin")
    assert str(cache / "data.bin") in message(caught)
    assert files(cache) == ["data.bin"]


def test_two_threads_at_once(server, cache):
    remote = Remote(f"{server.url}/together", SHA256)
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: fetch(remote, "data.bin"), range(2)))
    assert paths == [cache / "data.bin"] * 2 and paths[0].read_bytes() == GOOD
    assert files(cache) == ["data.bin"]
    assert not server.together.broken and len(server.seen) == 2  # they did overlap


def test_two_processes_at_once(server, cache):
    remote = Remote(f"{server.url}/together", SHA256)
    code = f"from utils.download import Remote, fetch; print(fetch({remote!r}, 'data.bin'))"
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[2]
    both = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == [str(cache / "data.bin")] * 2
    assert (cache / "data.bin").read_bytes() == GOOD
    assert files(cache) == ["data.bin"]
    assert not server.together.broken and len(server.seen) == 2


# ---- zip files -------------------------------------------------------------------------------------------------


def zipped(path: Path, *members: str | zipfile.ZipInfo) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in ("train/a.txt", *members):
            archive.writestr(member, b"some text " * 100)
    return path


def test_unpack(tmp_path, monkeypatch):
    archive = zipped(tmp_path / "a.zip", "test/b.txt")
    folder = unpack(archive, tmp_path / "new" / "set")
    assert folder == tmp_path / "new" / "set"
    assert files(folder) == ["test", "test/b.txt", "train", "train/a.txt"]
    assert (folder / "test" / "b.txt").read_bytes() == b"some text " * 100
    assert files(tmp_path / "new") == ["set"] + ["set/" + name for name in files(folder)]
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert unpack(archive, folder) == folder  # it is there: the archive is not opened again


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3  # Unix
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "member",
    ["../evil.txt", "train/../../evil.txt", "/evil.txt", "..\\evil.txt", "C:\\evil.txt", "C:evil.txt", link("evil")],
)
def test_zip_slip(tmp_path, member):
    archive = zipped(tmp_path / "a.zip", member)
    with pytest.raises(ValueError) as caught:
        unpack(archive, tmp_path / "set")
    assert "evil" in message(caught) and str(archive) in message(caught)
    assert files(tmp_path) == ["a.zip"]


def test_a_zip_of_too_much(tmp_path):
    archive = zipped(tmp_path / "a.zip", "test/b.txt")
    with pytest.raises(ValueError, match="its files hold 0 MiB, more than 0"):
        unpack(archive, tmp_path / "set", most=1500)
    assert files(tmp_path) == ["a.zip"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("member", ["train", "train/a.txt/b.txt"])
def test_a_file_and_a_folder_of_one_name(tmp_path, member):
    archive = zipped(tmp_path / "a.zip", member)
    with pytest.raises(ValueError) as caught:
        unpack(archive, tmp_path / "set")
    assert str(archive) in message(caught) and "Delete it and try again" in message(caught)
    assert files(tmp_path) == ["a.zip"]


def damage(kind: str, whole: bytes) -> bytes:
    start = whole.index(b"train/a.txt") + len("train/a.txt")  # of the first member's compressed bytes
    table = whole.index(b"PK\x01\x02")
    return {
        "empty": b"",
        "no zip": PAGE,
        "cut off": whole[:-30],
        "bad data": whole[:start] + b"\xff" * 8 + whole[start + 8 :],
        "bad table": whole[:table] + b"XX" + whole[table + 2 :],
        "bad offset": whole[:-6] + b"\xff\xff\xff\x7f" + whole[-2:],
        "ends too soon": whole[:29] + b"\x48" + whole[30:],  # the first member would start behind the end
        "locked": whole[: table + 8] + b"\x01" + whole[table + 9 :],
    }[kind]


@pytest.mark.parametrize(
    "kind", ["empty", "no zip", "cut off", "bad data", "bad table", "bad offset", "ends too soon", "locked"]
)
def test_damaged_zip(tmp_path, kind):
    archive = zipped(tmp_path / "a.zip", "test/b.txt")
    archive.write_bytes(damage(kind, archive.read_bytes()))
    with pytest.raises(ValueError) as caught:
        unpack(archive, tmp_path / "set")
    assert str(archive) in message(caught) and "Delete it and try again" in message(caught)
    assert files(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_interrupted_unpack_leaves_nothing(tmp_path, monkeypatch, error):
    archive = zipped(tmp_path / "a.zip", "test/b.txt")
    opened = zipfile.ZipFile.open

    def second_fails(self, name, *args, **options):
        if name.filename == "test/b.txt":
            assert len(list(tmp_path.rglob("a.txt"))) == 1  # the first member is on the disk
            raise error
        return opened(self, name, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "open", second_fails)
        with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else OSError):
            unpack(archive, tmp_path / "set")
    assert files(tmp_path) == ["a.zip"]
    with monkeypatch.context() as patch:
        patch.setattr(download.os, "rename", interrupt)  # at the last moment
        with pytest.raises(KeyboardInterrupt):
            unpack(archive, tmp_path / "set")
    assert files(tmp_path) == ["a.zip"]
    assert files(unpack(archive, tmp_path / "set")) == ["test", "test/b.txt", "train", "train/a.txt"]


def test_two_unpack_at_once(tmp_path, monkeypatch):
    archive = zipped(tmp_path / "a.zip")
    both, rename = threading.Barrier(2), os.rename

    def rename_together(*args):
        both.wait(timeout=20)
        rename(*args)

    monkeypatch.setattr(download.os, "rename", rename_together)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: unpack(archive, tmp_path / "set"), range(2))) == [tmp_path / "set"] * 2
    assert files(tmp_path) == ["a.zip", "set", "set/train", "set/train/a.txt"]
