"""Fetch a file, check it, unpack it. One cache folder holds everything, and nothing enters it unchecked."""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import sys
import threading
import time
import uuid
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

import gdown
import requests  # comes with gdown

TRIES = 3
PAUSE = 1.0  # seconds before the second try, twice that before the third
CONNECT_TIMEOUT = 10.0  # seconds to reach the server
TIMEOUT = 30.0  # seconds without a new chunk (gdown's are 512 KiB) before a try is given up


class DownloadError(OSError):
    """A file could not be fetched. The message is one line: which address, what was wrong, what to do."""


@dataclass(frozen=True)
class Remote:
    """A file's address and what it must hash to: "sha256:HEX", "md5:HEX", "blob:HEX" (git's id), None if unknown."""

    url: str
    hash: str | None


def cache_dir() -> Path:
    """The folder for everything downloaded: $TRANSFORMER_CACHE, else one-transformer in the user's cache folder."""
    if chosen := os.environ.get("TRANSFORMER_CACHE"):
        return Path(chosen).expanduser()
    user = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "one-transformer"


def _shown(path: Path) -> str:
    """The path as a user would type it: a notebook that is passed on then names nobody's home."""
    home = Path.home()
    return str(Path("~") / path.relative_to(home)) if path.is_relative_to(home) else str(path)


def file_hash(path: Path, kind: str) -> str:
    """Lower-case hex digest of a file, read 1 MiB at a time. ValueError if kind is not sha256, md5 or blob."""
    algorithm = {"sha256": "sha256", "md5": "md5", "blob": "sha1"}.get(kind)
    if algorithm is None:
        raise ValueError(f"hash kind is {kind!r}, expected sha256, md5 or blob")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        if kind == "blob":
            digest.update(b"blob %d\0" % os.fstat(file.fileno()).st_size)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def fetch(remote: Remote, name: str, folder: str = "") -> Path:
    """The verified file cache_dir()/folder/name, downloaded unless it is there already.

    A file that is there but does not verify is never returned; a good download replaces it. With no hash known,
    one printed line says so, and only an empty file and a web page are refused.
    Raises DownloadError after TRIES tries, or at once if the cache folder cannot be written.
    """
    path = cache_dir() / folder / name
    fault = _fault(path, remote) if path.is_file() else "not downloaded yet"
    for attempt in range(TRIES):
        if fault:
            time.sleep(PAUSE * attempt)
            fault = _download(remote, path)
    if fault:
        raise DownloadError(f"{remote.url}: {fault}. Try again, or save the file by hand as {_shown(path)}")
    if remote.hash is None:
        print(f"{name}: no hash is known for {remote.url}, so the file could not be checked.")
    return path


def _fault(file: Path, remote: Remote) -> str | None:
    """What is wrong with a file on disk, in a few words; None if nothing is."""
    if remote.hash is not None:
        kind, _, expected = remote.hash.lower().partition(":")
        actual = file_hash(file, kind)
        return None if actual == expected else f"{kind} is {actual}, expected {expected}"
    with open(file, "rb") as opened:
        start = opened.read(1024).lower()
    if not start:
        return "the file is empty"
    is_page = b"<html" in start or b"<!doctype html" in start
    return "a web page (HTML) came instead of the file" if is_page and file.suffix != ".html" else None


def _download(remote: Remote, path: Path) -> str | None:
    """One try: into a name of its own beside path, checked, then renamed. Returns what went wrong, or None.

    What an interrupted try had fetched is left for the next one to go on from, if a hash will tell whether it fits.
    """
    part = path.with_name(f".part-{uuid.uuid4().hex}-{path.name}")
    left = path.with_name(f".left-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if remote.hash is not None and left.is_file():
            with contextlib.suppress(FileNotFoundError):  # another process took it first
                os.rename(left, part)
        file = open(part, "ab")  # noqa: SIM115 (closed below; here only whether it can be made)
    except OSError as error:
        what = f"cannot write to the cache folder {path.parent} ({error.strerror})"
        raise DownloadError(f"{what}: set TRANSFORMER_CACHE to a folder that you can write, and try again") from None
    interrupted = True
    try:
        with file:
            fault = _copy(remote.url, file, path)
        interrupted = bool(fault)
        fault = fault or _fault(part, remote)
        if not fault:
            os.replace(part, path)
        return fault
    except OSError as error:
        return error.strerror or str(error)
    finally:
        if interrupted and remote.hash is not None and part.stat().st_size:
            os.replace(part, left)
        part.unlink(missing_ok=True)


def _copy(url: str, file: BinaryIO, path: Path) -> str | None:
    """Have gdown write url into an open file, with a time limit. Returns what went wrong, or None.

    Of a file that holds the beginning already, the server is asked for the rest.

    gdown 5 has no timeout, so it works in a thread. One that stalls is left behind: the caller closes the file,
    so it can write nothing more, and it does not keep the program alive.
    """
    faults, start = [], file.tell()
    headers = {"Range": f"bytes={start}-", "Accept-Encoding": "identity"} if start else {}

    def work() -> None:
        try:
            # gdown 5 saves an error page as if it were the file, so look at the status first.
            with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, TIMEOUT)) as answer:
                if answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                    for chunk in answer.iter_content(1 << 19):
                        file.write(chunk)
                    return
                if not start or answer.status_code != 416:  # 416: there is no such rest
                    answer.raise_for_status()
            file.truncate(0)
            watched = sys.stderr.isatty() or "ipykernel" in sys.modules  # a notebook shows progress, too
            gdown.download(url, file, quiet=not watched, log_messages={"output": f"To: {_shown(path)}\n"})
        except Exception as error:
            faults.append(_reason(error))

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    before, now = -1, 0  # bytes
    while worker.is_alive() and now > before:
        before = now
        worker.join(TIMEOUT)
        now = file.tell()
    if worker.is_alive():
        return f"timed out after {TIMEOUT:g} s"
    return faults[0] if faults else None


def _reason(error: BaseException) -> str:
    """An exception in a few words on one line."""
    if isinstance(error, requests.HTTPError):
        return f"{error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_TIMEOUT:g} s"
    while error.__context__:  # down to the first cause, such as "Connection refused"
        error = error.__context__
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split()).rstrip(".")


def unpack(archive: Path, folder: Path) -> Path:
    """Unzip archive into folder, and return folder. One that exists is complete, and is returned at once.

    Everything is unpacked beside folder and renamed at the end, so a failure leaves nothing.
    Raises ValueError if a member would leave the folder or is a symbolic link, or if the archive is damaged.
    """
    if folder.is_dir():
        return folder
    part = folder.with_name(f".part-{uuid.uuid4().hex}-{folder.name}")
    try:
        part.mkdir(parents=True)
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                inside = PureWindowsPath(member.filename)  # knows both slashes, and drive letters
                if inside.anchor or ".." in inside.parts or stat.S_ISLNK(member.external_attr >> 16):
                    raise ValueError(f"member {member.filename!r} would lead out of the folder")
            opened.extractall(part)
        os.rename(part, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError) as error:
        if not folder.is_dir():  # it is there if another process was faster
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a damaged offset
                raise
            what = str(error) or "it ends too soon"
            raise ValueError(f"{archive} cannot be unpacked ({what}). Delete it and try again") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder
