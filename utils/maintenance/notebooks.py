"""Run the notebooks, each in a fresh kernel.

python -m utils.maintenance.notebooks gpt bert vit           # in full; the outputs are written back (make notebooks)
python -m utils.maintenance.notebooks --fast gpt bert vit    # a few steps each and the exercises' solutions; no outputs
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import inspect
import os
import re
import time
from operator import attrgetter
from pathlib import Path

import nbformat
from nbclient import NotebookClient

import transformer
from utils.files import ROOT, whole
from utils.maintenance import stamp

WIDGET = "application/vnd.jupyter.widget-view+json"
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def code_hash(notebook: nbformat.NotebookNode) -> str:
    """SHA-256 of the code cells and of the code that they print, whatever the repository is called.

    A run records it. The tests compare it, so that outputs cannot be older than the code that made them.
    """
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    code = "\0".join([*cells, *printed_code(cells)])
    return hashlib.sha256(stamp.PLACES.sub(r"\1OWNER/REPO", code).encode()).hexdigest()


def printed_code(cells: list[str]) -> list[str]:
    """The code of every class and function of transformer.py that the cells print with lesson.source(...)."""
    trees = [ast.parse(cell) for cell in cells if "lesson.source(" in cell]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    printing = [call for call in calls if ast.unparse(call.func) == "lesson.source"]
    names = [ast.unparse(argument).removeprefix("transformer.") for call in printing for argument in call.args]
    return [inspect.getsource(attrgetter(name)(transformer)) for name in names]


def hidden_code(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """The summaries of what is folded away in the notebook's text, each with the code in it."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    hidden = re.findall(r"<details><summary>(.*?)</summary>(.*?)</details>", text, re.DOTALL)
    return [(summary, code) for summary, part in hidden for code in re.findall(r"```python\n(.*?)```", part, re.DOTALL)]


def solutions(notebook: nbformat.NotebookNode) -> list[str]:
    """The code of the exercises' hidden solutions."""
    return [code for summary, code in hidden_code(notebook) if summary == "Solution"]


def your_turns(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """The hidden solutions of the functions that the learner writes, by their names: those that are headed
    `Solution: NAME`.
    """
    return {
        summary.removeprefix("Solution: "): code
        for summary, code in hidden_code(notebook)
        if summary.startswith("Solution: ")
    }


def write_solutions(notebook: nbformat.NotebookNode) -> None:
    """Put the hidden solutions in the place of the functions left to the learner, and demand that they pass."""
    for name, code in your_turns(notebook).items():
        checked = f'{name} = lesson.check("{name}", {name})'
        (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and checked in cell.source]
        rest = cell.source[cell.source.index(checked) :].removeprefix(checked)
        cell.source = f"{code}\nwritten = {name}\n{checked}\nassert {name} is written{rest}"


def add_pictures(notebook: nbformat.NotebookNode) -> None:
    """Put a picture beside each widget, for pages without a kernel: that of assets/, with a model of `make demo`."""
    for cell in notebook.cells:
        shown = re.search(r"display\((sampler|fill_mask|image_explorer)\(", cell.source)
        for output in cell.get("outputs", []):
            if shown and WIDGET in output.get("data", {}):
                picture = ROOT / "assets" / f"{shown[1].replace('_', '-')}.png"
                output.data["image/png"] = base64.b64encode(picture.read_bytes()).decode()


def run(name: str, fast: bool) -> float:
    """Execute notebooks/NAME.ipynb and return how many seconds that took.

    fast: train for a few steps only, with the solutions in the place of the learner's functions, run the exercises'
    solutions too, and leave the file as it is. Otherwise the notebook runs as it stands and is written back with its
    outputs; ValueError if one of them shows a path of this machine.
    """
    path = ROOT / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    if fast:
        write_solutions(notebook)
        notebook.cells += [nbformat.v4.new_code_cell(code) for code in solutions(notebook)]
    os.environ["FAST_RUN"] = str(int(fast))
    began = time.perf_counter()
    folder = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=3600, kernel_name="python3", resources=folder).execute()
    seconds = time.perf_counter() - began
    if not fast:
        for cell in notebook.cells:
            private = any(str(place) in str(cell.get("outputs")) for place in (ROOT, Path.home()))
            allowed = f"free of this machine's paths; the output of cell {cell.id} shows one"
            transformer.require(not private, "notebook", name, allowed)
            cell.metadata.pop("execution", None)  # when each cell ran
        add_pictures(notebook)
        notebook.metadata.pop("widgets", None)
        notebook.metadata["one_transformer"] = {"code_sha256": code_hash(notebook), "seconds": round(seconds)}
        with whole(path) as draft:
            nbformat.write(notebook, draft)
    return seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--fast", action="store_true")
    options = parser.parse_args()
    for name in options.names:
        print(f"{name}: {run(name, options.fast):.0f} s", flush=True)
