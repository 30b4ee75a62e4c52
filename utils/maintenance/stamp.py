"""Write this repository's name into the badges and addresses of the README and the notebooks.

    python -m utils.maintenance.stamp [OWNER/REPO]        # or: make stamp [REPO=OWNER/REPO]

Without an argument, the name is taken from `git remote get-url origin`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from utils.files import ROOT

NAME = r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+?"
# The name stands in the addresses of notebooks in Colab and in those of files and clones on GitHub.
PLACES = re.compile(rf"(colab\.research\.google\.com/github/|https://github\.com/)({NAME})(?=/blob/|/tree/|\.git\b)")


def stamped_files(root: Path = ROOT) -> list[Path]:
    """The files that contain the name: README.md and the notebooks."""
    return [root / "README.md", *sorted((root / "notebooks").glob("*.ipynb"))]


def names(root: Path = ROOT) -> set[str]:
    """Every OWNER/REPO that these files contain."""
    found = set()
    for path in stamped_files(root):
        text = path.read_text(encoding="utf-8")
        found |= {name for _, name in PLACES.findall(text)}
    return found


def stamp(name: str, root: Path = ROOT) -> int:
    """Replace OWNER/REPO by `name` in these files and return in how many places.

    Raises a ValueError unless `name` has the form OWNER/REPO.
    """
    if not re.fullmatch(NAME, name):
        raise ValueError(f"name={name!r}: must be OWNER/REPO")
    places = 0
    for path in stamped_files(root):
        text, n = PLACES.subn(rf"\g<1>{name}", path.read_text(encoding="utf-8"))
        path.write_text(text, encoding="utf-8")
        places += n
    return places


def remote_name() -> str:
    """OWNER/REPO of the git remote named origin. Raises a ValueError if there is none."""
    answer = subprocess.run(["git", "remote", "get-url", "origin"], cwd=ROOT, capture_output=True, text=True)
    match = re.search(rf"[:/]({NAME})(?:\.git)?/?$", answer.stdout.strip())
    if match is None:
        raise ValueError("there is no git remote named origin that ends in OWNER/REPO; give the name as an argument")
    return match[1]


if __name__ == "__main__":
    try:
        name = sys.argv[1] if len(sys.argv) > 1 else remote_name()
        places = stamp(name)
        print(f"{name} is now written in {places} places")
    except ValueError as error:
        sys.exit(f"stamp: error: {error}")
