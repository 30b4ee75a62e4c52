"""Run the notebooks, each in a fresh kernel.

python -m utils.maintenance.notebooks attention gpt           # in full; the outputs are written back (make notebooks)
python -m utils.maintenance.notebooks --fast attention gpt    # a few steps each and all solutions; no outputs
python -m utils.maintenance.notebooks --scale full --steps 3 --keep pages gpt
    # at the size for a GPU, on any machine: training ends after 3 steps; the notebook and its pictures go to pages/
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
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

from transformer import require
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
    """The code of every class and function that the cells print with lesson.source(...): from the module that a cell
    imports it from, or else from transformer.py.
    """
    python = [TransformerManager().transform_cell(cell) for cell in cells if re.search(r"import |lesson\.source", cell)]
    nodes = [node for code in python for node in ast.walk(ast.parse(code))]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    modules = {alias.name: node.module for node in imports for alias in node.names}
    calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "lesson.source"]
    names = [ast.unparse(argument).removeprefix("transformer.") for call in calls for argument in call.args]
    homes = [import_module(modules.get(name.split(".")[0], "transformer")) for name in names]
    return [inspect.getsource(attrgetter(name)(home)) for name, home in zip(names, homes, strict=True)]


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


def widget_picture(cell: nbformat.NotebookNode) -> Path | None:
    """The picture in assets/ of the widget that the cell shows; None if it shows none."""
    shown = re.search(r"\b(attention_playground|sampler|fill_mask|image_explorer|switchboard)\(", cell.source)
    return ROOT / "assets" / f"{shown[1].replace('_', '-')}.png" if shown else None


def add_pictures(notebook: nbformat.NotebookNode) -> None:
    """Put a picture beside each widget, for pages without a kernel: that of assets/ (`make screenshots`)."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if WIDGET in output.get("data", {}):
                output.data["image/png"] = base64.b64encode(widget_picture(cell).read_bytes()).decode()


def run(name: str, fast: bool = False) -> float:
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
    else:  # what can fail is done now, and not after minutes of work
        code_sha256 = code_hash(notebook)
        for picture in filter(None, map(widget_picture, notebook.cells)):
            require(picture.is_file(), "picture", picture.name, "in assets/; `make screenshots` makes it")
    os.environ["FAST_RUN"] = str(int(fast))
    seconds = execute(notebook)
    if not fast:
        for cell in notebook.cells:
            private = any(str(place) in str(cell.get("outputs")) for place in (ROOT, Path.home()))
            allowed = f"free of this machine's paths; the output of cell {cell.id} shows one"
            require(not private, "notebook", name, allowed)
        add_pictures(notebook)
        notebook.metadata["one_transformer"] = {"code_sha256": code_sha256, "seconds": round(seconds)}
        with whole(path) as draft:
            nbformat.write(notebook, draft)
    return seconds


def execute(notebook: nbformat.NotebookNode) -> float:
    """Run a notebook of notebooks/ in a fresh kernel, which fills in its outputs; return the seconds."""
    began = time.perf_counter()
    folder = {"metadata": {"path": str(ROOT / "notebooks")}}
    NotebookClient(notebook, timeout=3600, kernel_name="python3", resources=folder).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran
    notebook.metadata.pop("widgets", None)
    return time.perf_counter() - began


def rehearse(name: str, scale: str, steps: int, keep: Path) -> float:
    """Execute notebooks/NAME.ipynb at a size, ending all training after `steps` steps; return the seconds.

    The file stays as it is. The notebook with its outputs and each picture go to the folder `keep`; ValueError if
    texts overlap in one of the pictures, or if it is wider than a page.
    """
    os.environ.update(SCALE=scale, STEPS=str(steps))
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    write_solutions(notebook)
    watch = nbformat.v4.new_code_cell("from utils.maintenance.figures import watch\nwatch()")
    first = next(i for i, cell in enumerate(notebook.cells) if "sys.path.insert" in cell.source)
    notebook.cells.insert(first + 1, watch)
    seconds = execute(notebook)
    add_pictures(notebook)
    keep.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(notebook.cells):
        for place, output in enumerate(cell.get("outputs", [])):
            if picture := output.get("data", {}).get("image/png"):
                (keep / f"{name}-{number:02d}-{place}.png").write_bytes(base64.b64decode(picture))
    nbformat.write(notebook, keep / f"{name}.ipynb")
    return seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--scale", choices=("small", "full"), default="full", help="with --steps")
    parser.add_argument("--steps", type=int, help="end all training after so many steps, and write to --keep")
    parser.add_argument("--keep", type=Path, default=Path("pages"), help="the folder for it")
    options = parser.parse_args()
    for name in options.names:
        if options.steps:
            seconds = rehearse(name, options.scale, options.steps, options.keep)
        else:
            seconds = run(name, options.fast)
        print(f"{name}: {seconds:.0f} s", flush=True)
