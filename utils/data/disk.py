"""What is too long for memory, or takes long to make of the user's files: kept on disk.

A long text is read from its files in blocks, again each time. Its token ids, and the pixels of many pictures, are
arrays in the folder `arrays` of the cache, which are made once.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from utils.download import cache_dir
from utils.files import whole

BLOCK = 2**20  # bytes of a file that are read at once
PIECE = 2**16  # characters, at most, of each piece of a sample


@dataclass(frozen=True)
class LongText:
    """A text that is read in blocks. `read` starts reading it anew; `sample` are pieces of it at even distances.

    The tokeniser and the baselines are fitted on the sample alone.
    """

    read: Callable[[], Iterator[str]]
    sample: str
    n_characters: int
    n_bytes: int
    sha256: str

    def __len__(self) -> int:
        return self.n_characters


Text = str | LongText


def sample_of(text: Text) -> str:
    """Return the sample of a long text, and any other text whole."""
    return text.sample if isinstance(text, LongText) else text


def n_bytes(text: Text) -> int:
    """Return how many bytes a text has in UTF-8."""
    return text.n_bytes if isinstance(text, LongText) else len(text.encode())


def long_text(read: Callable[[], Iterator[str]], n_characters: int, sample: int) -> LongText:
    """Return the text of n_characters that `read` yields, with a sample of about `sample` of them. Reads it once."""
    every = max(1, n_characters // sample) * PIECE  # from the beginning of a piece of the sample to the next one
    n, n_bytes, digest, taken = 0, 0, hashlib.sha256(), []
    with progress("sampling", n_characters, "char", PIECE * 256) as bar:
        for block in read():
            encoded = block.encode()
            n_bytes += len(encoded)
            digest.update(encoded)
            for start in range(n // every * every - n, len(block), every):  # of the pieces that reach into the block
                taken.append(block[max(start, 0) : max(start + PIECE, 0)])
            n += len(block)
            bar.update(len(block))
    return LongText(read, "".join(taken), n, n_bytes, digest.hexdigest())


def read_blocks(path: Path) -> Iterator[str]:
    r"""Yield the text of a UTF-8 file in blocks, with \n for \r\n. Raises ValueError for what is no text."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    place, rest = 0, ""  # rest: a \r at the end of a block, whose \n may begin the next one
    with path.open("rb") as file:
        while True:
            content = file.read(BLOCK)
            waiting = len(decoder.getstate()[0])  # bytes of a character that the last block has begun
            try:
                text = rest + decoder.decode(content, final=not content)
            except UnicodeDecodeError as error:
                bad = f"byte {place - waiting + error.start} is not; save the file as UTF-8, or move it elsewhere"
                raise ValueError(f"data={str(path)!r}: must be UTF-8 text, and {bad}") from error
            if "\0" in text:
                raise ValueError(f"data={str(path)!r}: must be UTF-8 text, and it holds NUL bytes, as binary files do")
            place += len(content)
            rest = "\r" if content and text.endswith("\r") else ""
            yield text.removesuffix("\r" if rest else "").replace("\r\n", "\n")
            if not content:
                return


def kept(name: str, write: Callable[[BinaryIO], None]) -> Path:
    """Return the path of a file in the cache's folder `arrays`. Where it is not there, `write` writes it.

    name: what tells it from all others, such as a hash of what it is made of.
    Raises OSError, and leaves nothing behind, where the disk has no room.
    """
    path = cache_dir() / "arrays" / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with whole(path) as draft, draft.open("wb") as file:
                write(file)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            room = "make room on its disk, or set TRANSFORMER_CACHE to a folder on another"
            raise OSError(f"{path} cannot be written ({error.strerror}): {room}") from error
    return path


def progress(task: str, total: int, unit: str, long: int) -> tqdm:
    """Return a progress bar for so many units; it is shown for `long` of them and more, where somebody can see it."""
    seen = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(desc=task, total=total, unit=unit, unit_scale=True, disable=total < long or not seen)
