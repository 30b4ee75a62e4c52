"""Write files whole or not at all: a reader never meets half a file, and a failure leaves the old one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the project's folder


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to. It takes the place of `path` once all is written; on an error it goes."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # unique: another process may write it, too
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


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
