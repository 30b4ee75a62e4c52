"""Download a file, verify it and unpack it. The cache folder only ever holds complete, verified files."""

import errno
import hashlib
import os
import stat
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryDirectory, TemporaryFile
from typing import TypeVar

import requests
from tqdm import tqdm

from utils.files import whole

TRIES = 3
PAUSE = 1.0  # seconds before the second try, and twice as long before the third
CONNECT_TIMEOUT = 10.0  # seconds to reach the server
Data = TypeVar("Data")
TIMEOUT = 30.0  # seconds without any data before a try is given up


class DownloadError(OSError):
    """A file could not be downloaded. The message is one line: the address, what went wrong and what to do."""


@dataclass(frozen=True)
class Remote:
    """The address of a file, and its hash: "sha256:HEX", "md5:HEX", "blob:HEX" (git's hash), or None if unknown."""

    url: str
    hash: str | None
    most: int = 2**28  # bytes that are downloaded: a server may send without end


def cache_dir() -> Path:
    """The folder for all downloads: $TRANSFORMER_CACHE, or else one-transformer in the user's cache folder."""
    if chosen := os.environ.get("TRANSFORMER_CACHE"):
        return Path(chosen).expanduser()
    user = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "one-transformer"


def file_hash(path: Path, kind: str) -> str:
    """The hash of a file in lower-case hexadecimal. ValueError if kind is not sha256, md5 or blob."""
    algorithm = {"sha256": "sha256", "md5": "md5", "blob": "sha1"}.get(kind)
    if algorithm is None:
        raise ValueError(f"hash kind is {kind!r}, expected sha256, md5 or blob")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    if kind == "blob":  # git puts a header before the content
        digest.update(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest()


def load_named(loaders: dict[str, Callable[..., Data]], name: str, fallback: str | None, *arguments: object) -> Data:
    """Return loaders[name](*arguments); if its download fails, the one of `fallback`, with one printed line.

    Without a fallback, a failed download raises DownloadError.
    """
    try:
        return loaders[name](*arguments)
    except DownloadError as error:
        if fallback is None:
            raise
        print(f"{name} cannot be downloaded, so {fallback} is used instead ({error}).")
        return loaders[fallback](*arguments)


def fetch(remote: Remote, name: str, folder: str = "") -> Path:
    """Return the path cache_dir()/folder/name of the verified file. Download it unless it is there already.

    A file in the cache that fails the verification is downloaded again. Without a known hash, only empty files
    and web pages are refused, and one printed line says that the file could not be checked.
    Raises DownloadError after TRIES tries, or at once if the cache folder cannot be written.
    """
    path = cache_dir() / folder / name
    if not path.is_file() or _fault(path, remote):
        _check_writable(path.parent)
        _download(remote, path)
    if remote.hash is None:
        print(f"{name}: no hash is known for {remote.url}, so the file could not be checked.")
    return path


def _fault(file: Path, remote: Remote) -> str | None:
    """Describe what is wrong with a file on disk. None if it is right."""
    if remote.hash is not None:
        kind, _, expected = remote.hash.lower().partition(":")
        actual = file_hash(file, kind)
        return None if actual == expected else f"{kind} is {actual}, expected {expected}"
    with open(file, "rb") as opened:
        start = opened.read(1024).lower()
    if not start:
        return "the file is empty"
    is_page = b"<html" in start or b"<!doctype html" in start
    if is_page and ".html" not in file.suffixes:
        return "a web page (HTML) came instead of the file"
    return None


def _check_writable(folder: Path) -> None:
    """Create the folder. DownloadError if this fails, or if no file can be created in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        what = f"cannot write to the cache folder {folder} ({error.strerror})"
        raise DownloadError(f"{what}: set TRANSFORMER_CACHE to a folder that you can write, and try again") from None


def _download(remote: Remote, path: Path) -> None:
    """Try up to TRIES times to download and verify the file."""
    handled = sys.exception()  # if the caller is handling an exception, it is not the reason of a failure here
    for attempt in range(TRIES):
        time.sleep(PAUSE * attempt)
        try:
            _download_once(remote, path)
            return
        except OSError as error:  # includes all errors of requests
            reason = _reason(error, handled)
    raise DownloadError(f"{remote.url}: {reason}. Try again, or save the file by hand as {_shown(path)}")


def _download_once(remote: Remote, path: Path) -> None:
    """Download and verify the file. OSError if this fails.

    An interrupted download resumes only when the hash is known, because only a hash can verify the joined file.
    """
    beginning = path.with_name(f".left-{path.name}")
    resumable = remote.hash is not None
    with whole(path) as part:
        if resumable:
            with suppress(FileNotFoundError):  # there is none, or another process resumes from it already
                os.rename(beginning, part)
        try:
            _transfer(remote, part, f"Downloading to {_shown(path)}")
        except BaseException:  # includes KeyboardInterrupt
            if resumable and part.exists():
                os.replace(part, beginning)
            raise
        if fault := _fault(part, remote):
            raise DownloadError(fault)


def _transfer(remote: Remote, part: Path, title: str) -> None:
    """Write what remote names to the file part. If part exists already, request only the rest and append it."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # uncompressed, so that the server counts the same bytes as we do
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(remote.url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, TIMEOUT)) as response:
        if response.status_code == 416:  # the server has no such rest, so the next try has to start from nothing
            part.unlink()
        response.raise_for_status()
        if response.status_code != 206:  # the server sends the whole file
            start = 0
        total = start + int(response.headers.get("Content-Length", 0))
        hidden = False if "ipykernel" in sys.modules else None  # None: hidden unless standard error is a terminal
        bar = tqdm(desc=title, initial=start, total=total, unit="B", unit_scale=True, disable=hidden)
        with bar, open(part, "ab" if start else "wb") as file:
            for chunk in response.iter_content(1 << 16):
                file.write(chunk)
                if file.tell() > remote.most:
                    file.truncate(0)  # nothing to go on from
                    raise DownloadError(f"the server sends more than {remote.most / 2**20:.0f} MiB")
                bar.update(len(chunk))


def _shown(path: Path) -> str:
    """The path with ~ for the home folder, so that a saved notebook does not name its user."""
    home = Path.home()
    return str(Path("~") / path.relative_to(home)) if path.is_relative_to(home) else str(path)


def _reason(error: BaseException, handled: BaseException | None) -> str:
    """Say in a few words why a download failed: the first cause after the exception `handled`, on one line."""
    if isinstance(error, requests.HTTPError):
        return f"{error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_TIMEOUT:g} s"
    while error.__context__ not in (None, handled):
        error = error.__context__
    if isinstance(error, TimeoutError):
        return f"timed out after {TIMEOUT:g} s"
    return " ".join((getattr(error, "strerror", None) or str(error)).split()).rstrip(".")


def unpack(archive: Path, folder: Path, most: int = 2**30) -> Path:
    """Unzip archive into folder, and return folder. If folder exists, it is complete and returned at once.

    The files are unpacked beside folder and renamed at the end, so a failure leaves nothing behind.
    most: bytes that the files may hold together. Raises ValueError if they hold more, if a member would leave the
    folder or is a symbolic link, or if the archive is damaged.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(prefix=".part-", dir=folder.parent) as part, zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                inside = PureWindowsPath(member.filename)  # understands both slashes, and drive letters
                if inside.anchor or ".." in inside.parts or stat.S_ISLNK(member.external_attr >> 16):
                    raise ValueError(f"member {member.filename!r} would lead out of the folder")
            size = sum(member.file_size for member in opened.infolist())
            if size > most:
                raise ValueError(f"its files hold {size / 2**20:.0f} MiB, more than {most / 2**20:.0f}")
            opened.extractall(Path(part, folder.name))
            os.rename(Path(part, folder.name), folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError) as error:
        if folder.is_dir():  # another process was faster
            return folder
        # EINVAL comes from a damaged offset, the others from a file and a folder of the same name.
        damaged = (errno.EINVAL, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
        if isinstance(error, OSError) and error.errno not in damaged:
            raise
        what = str(error) or "it ends too soon"
        raise ValueError(f"{archive} cannot be unpacked ({what}). Delete it and try again") from None
    return folder
