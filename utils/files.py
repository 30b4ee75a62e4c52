"""Write files whole or not at all: a reader never meets half a file, and a failure leaves the old one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the project's folder
DRAFT = ".part"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to. It takes the place of `path` once all is on the disk; on an error it goes.

    A process that is killed leaves its draft behind; `remove_drafts` removes it.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}{DRAFT}")  # unique: another process may write it, too
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())  # else a power cut could leave the new name with half of the contents
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def shown(path: str | Path) -> str:
    """A path or a name as text that can be printed and written: bytes that are no UTF-8 become U+FFFD."""
    return os.fsencode(path).decode("utf-8", errors="replace")


def remove_drafts(folder: Path) -> None:
    """Remove what killed processes left half written in a folder that no process writes to now."""
    for draft in folder.glob(f".*{DRAFT}"):
        draft.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, whole or not at all."""
    with whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_between_marks(page: Path, name: str, text: str) -> None:
    """Replace what stands between <!-- NAME --> and <!-- end of NAME --> in a Markdown page."""
    before, start, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    if not end:
        raise ValueError(f"page={str(page)!r}: must hold the marks <!-- {name} --> and <!-- end of {name} -->")
    write_text(page, f"{before}{start}{text}\n{end}{after}")
