"""`python -m utils.stamp [OWNER/REPO]`: write this repository's name into every badge and notebook.

Without an argument the name comes from `git remote get-url origin`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+?"
# Where the name stands: Colab's address of a notebook, and the address to clone.
PLACES = re.compile(rf"(colab\.research\.google\.com/github/|https://github\.com/)({NAME})(?=/blob/|/tree/|\.git\b)")


def stamped_files(root: Path = ROOT) -> list[Path]:
    """README.md and the notebooks."""
    return [root / "README.md", *sorted((root / "notebooks").glob("*.ipynb"))]


def names(root: Path = ROOT) -> set[str]:
    """Every OWNER/REPO that stands in them."""
    return {name for path in stamped_files(root) for _, name in PLACES.findall(path.read_text(encoding="utf-8"))}


def stamp(name: str, root: Path = ROOT) -> int:
    """Put `name` in all these places; returns how many there were. ValueError unless it is OWNER/REPO."""
    if not re.fullmatch(NAME, name):
        raise ValueError(f"name={name!r}: must be OWNER/REPO")
    places = 0
    for path in stamped_files(root):
        text, n = PLACES.subn(rf"\g<1>{name}", path.read_text(encoding="utf-8"))
        path.write_text(text, encoding="utf-8")
        places += n
    return places


def remote_name() -> str:
    """OWNER/REPO of the remote called origin. ValueError where there is none."""
    found = subprocess.run(["git", "remote", "get-url", "origin"], cwd=ROOT, capture_output=True, text=True)
    match = re.search(rf"[:/]({NAME})(?:\.git)?/?$", found.stdout.strip())
    if match is None:
        raise ValueError("no git remote named origin that ends in OWNER/REPO: give the name as an argument")
    return match[1]


if __name__ == "__main__":
    try:
        name = sys.argv[1] if len(sys.argv) > 1 else remote_name()
        print(f"{name} written in {stamp(name)} places")
    except ValueError as error:
        sys.exit(f"stamp: error: {error}")
