"""What is committed of the notebooks. That every cell runs is checked by `python -m utils.notebooks --fast`."""

import re

import nbformat
import pytest

from utils.notebooks import NAMES, ROOT, code_hash, solutions

notebooks = pytest.mark.parametrize("name", NAMES)


def read(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def code(name):
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


@notebooks
def test_outputs_are_of_a_whole_run_of_this_code(name):
    notebook, cells = read(name), code(name)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert notebook.metadata["one_transformer"]["code_sha256"] == code_hash(notebook)
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    text = "".join(str(output) for output in outputs)
    assert re.search(r"scale: (small|full) ", text) and "FAST" not in text
    assert not re.search(r"(/home/|/root/|/tmp/|/Users/|[A-Z]:\\\\)", text)
    assert not re.search(r"it/s\]|━━|Warning", text)  # no progress bar, no warning


@notebooks
def test_no_widget_state_and_not_large(name):
    assert "widgets" not in read(name).metadata
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < 2_000_000


@notebooks
def test_training_leaves_one_picture(name):
    (cell,) = [cell for cell in code(name) if "LiveCurve(" in cell.source]
    assert [list(output.data) for output in cell.outputs if "data" in output] == [["image/png", "text/plain"]]


@notebooks
def test_shape(name):
    """Short cells, five exercises with solutions, a GPU asked for, and no model code of its own."""
    notebook = read(name)
    assert all(len(cell.source.splitlines()) <= 25 for cell in code(name))
    assert len(solutions(notebook)) == 5
    assert notebook.metadata["accelerator"] == "GPU" and notebook.metadata.kernelspec.name == "python3"
    assert not re.search(r"class \w+\((nn|torch\.nn|L)\.", "\n".join(cell.source for cell in code(name)))
    titles = re.findall(r"^## (.*)$", "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"), re.M)
    assert titles == ["The idea", "The data, looked at", "The model", "What has to be beaten", "Training",
                      "The result, beside the ladder", "A look inside", "Play with it", "Official weights", "Break it", "Exercises"]  # fmt: skip


def test_all_three_are_there():
    assert NAMES == ["bert", "gpt", "vit"]
