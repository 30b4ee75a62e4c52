"""Run the notebooks from a fresh kernel.

    python -m utils.notebooks gpt bert vit           # whole, and keep what they print and draw (make notebooks)
    python -m utils.notebooks --fast gpt bert vit    # a few steps each, the exercises' solutions too; keep nothing
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from utils import stamp

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def code_hash(notebook: nbformat.NotebookNode) -> str:
    """SHA-256 of the code cells but for the repository's name: recorded at a run, compared by the tests."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(stamp.PLACES.sub(r"\1OWNER/REPO", code).encode()).hexdigest()


def solutions(notebook: nbformat.NotebookNode) -> list[str]:
    """The code of the solutions that the exercises hide."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    hidden = re.findall(r"<details>(.*?)</details>", text, re.DOTALL)
    return [code for part in hidden for code in re.findall(r"```python\n(.*?)```", part, re.DOTALL)]


def run(name: str, fast: bool) -> float:
    """Execute notebooks/NAME.ipynb; seconds. Unless `fast`, write it back with its outputs."""
    path = ROOT / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    if fast:
        notebook.cells += [nbformat.v4.new_code_cell(code) for code in solutions(notebook)]
    os.environ["FAST_RUN"] = str(int(fast))
    began = time.perf_counter()
    folder = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=3600, kernel_name="python3", resources=folder).execute()
    seconds = time.perf_counter() - began
    if not fast:
        for cell in notebook.cells:
            if any(str(folder) in str(cell.get("outputs")) for folder in (ROOT, Path.home())):
                raise ValueError(f"notebook={name!r}: must print no path of this machine; cell {cell.id} does")
            cell.metadata.pop("execution", None)  # when each cell ran
        notebook.metadata.pop("widgets", None)
        notebook.metadata["one_transformer"] = {"code_sha256": code_hash(notebook), "seconds": round(seconds)}
        draft = path.with_name(f".{path.name}.part")
        try:
            nbformat.write(notebook, draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    return seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--fast", action="store_true")
    options = parser.parse_args()
    for name in options.names:
        print(f"{name}: {run(name, options.fast):.0f} s", flush=True)
