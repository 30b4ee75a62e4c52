"""The committed notebooks: their outputs, their form, and their first cell, which fetches the project in Colab.

That every cell runs is checked by `python -m utils.maintenance.notebooks --fast`.
"""

import base64
import os
import re
import shutil
from contextlib import suppress

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from utils.lessons.notebook import choose_scale, preset, steps
from utils.lessons.tasks import TASKS
from utils.maintenance import notebooks as maintenance
from utils.maintenance import stamp
from utils.maintenance.notebooks import NAMES, ROOT, WIDGET, code_hash, printed_code, solutions, your_turns
from utils.training.presets import PRESETS

MODELS = ["bert", "gpt", "vit"]
ORDER = [
    "What you need", "The idea", "The data, looked at", "The model", "What has to be beaten", "Training",
    "The result, beside the ladder", "A look inside", "Break it", "Play with it", "Transfer", "Exercises", "Glossary", "Papers",
]  # fmt: skip
notebooks = pytest.mark.parametrize("name", NAMES)


def read(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def code(name):
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def text_of(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


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
def test_every_widget_has_a_picture(name):
    outputs = [output.get("data", {}) for cell in read(name).cells for output in cell.get("outputs", [])]
    widgets = [data for data in outputs if WIDGET in data]
    assert widgets and all(base64.b64decode(data["image/png"]).startswith(b"\x89PNG") for data in widgets)


@notebooks
def test_no_widget_state_and_not_large(name):
    assert "widgets" not in read(name).metadata
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < 2_000_000


def test_the_lessons_are_there():
    assert NAMES == ["attention", "bert", "gpt", "one", "vit"]


@pytest.mark.parametrize("name", MODELS)
def test_training_leaves_one_picture(name):
    (cell,) = [cell for cell in code(name) if "LiveCurve(" in cell.source]
    assert [list(output.data) for output in cell.outputs if "data" in output] == [["image/png", "text/plain"]]


@notebooks
def test_shape(name):
    """Short cells, a GPU asked for, no network of its own, and five exercises with space for an answer."""
    notebook = read(name)
    assert all(len(cell.source.splitlines()) <= 25 for cell in code(name))
    assert notebook.metadata["accelerator"] == "GPU" and notebook.metadata.kernelspec.name == "python3"
    assert not re.search(r"class \w+\((nn|torch\.nn|L)\.", "\n".join(cell.source for cell in code(name)))
    assert len(solutions(notebook)) == len([cell for cell in code(name) if cell.source == "# your answer"]) == 5


@notebooks
def test_order(name):
    titles = re.findall(r"^## (.*)$", text_of(read(name)), re.M)
    assert [titles[0], *titles[-3:]] == ["What you need", "Exercises", "Glossary", "Papers"]
    if name in MODELS:
        assert [title for title in titles if title in ORDER] == ORDER


@notebooks
def test_every_section_has_a_sentence_to_take_away(name):
    sections = re.split(r"^## ", text_of(read(name)), flags=re.M)[1:]
    for section in sections:
        title = section.splitlines()[0]
        if title not in ("What you need", "Exercises", "Glossary", "Papers"):
            assert section.count("> **Take away.**") == 1, title


@notebooks
def test_figures_in_the_text_are_those_of_the_outputs(name):
    """Every decimal number in the text of a lesson stands in an output, unless its sentence cites a paper."""
    notebook = read(name)
    printed = "\n".join(str(output.get("text", "")) for cell in code(name) for output in cell.outputs)
    prose = re.split(r"^## Exercises", text_of(notebook), flags=re.M)[0]
    for pattern in (r"<details>.*?</details>", r"```.*?```", r"\$\$.*?\$\$", r"^\|.*?$", r"\$[^$]*\$", r"`[^`]*`", r"\]\([^)]*\)"):
        prose = re.sub(pattern, " ", prose, flags=re.S | re.M)
    for sentence in re.split(r"(?<=[.:;?!])\s", prose):
        if re.search(r"\b(19|20)\d\d\b|[Ss]ections? |[A-Z]\w+, \d\.\d", sentence):  # a paper, or a section of one
            continue
        for number in re.findall(r"\d+\.\d+", sentence):
            assert number in printed, sentence


def test_every_task_is_in_a_notebook():
    written = [task for name in NAMES for task in your_turns(read(name))]
    assert sorted(written) == sorted(TASKS)


# ------------------------------------------------------------------------------------------------ the recorded hash


def hash_of(*cells):
    return code_hash(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]))


def changed(x, start=0):
    """What takes the place of a function of transformer.py."""
    return x


@pytest.mark.parametrize(
    "printed, cell",
    [("rotate", "lesson.source(transformer.rotate)"), ("Attention.visible", "lesson.source(Block, Attention.visible)")],
)
def test_the_hash_covers_the_code_that_is_printed(printed, cell, monkeypatch):
    before = hash_of("!git clone", "print(1)"), hash_of("!git clone", cell)
    monkeypatch.setattr(f"transformer.{printed}", changed)
    after = hash_of("!git clone", "print(1)"), hash_of("!git clone", cell)
    assert before[0] == after[0] and before[1] != after[1]


@notebooks
def test_the_hash_covers_every_print_of_code(name):
    """No notebook prints code in a way that the hash would miss."""
    imports = [cell.source for cell in code(name) if "lesson.source(" not in cell.source]
    for cell in code(name):
        shows_code = 'class="highlight"' in str(cell.outputs)  # what IPython wraps around coloured code
        assert shows_code == bool(printed_code([*imports, cell.source])), cell.source


def test_the_hash_of_a_fork_is_the_same():
    assert hash_of("https://github.com/a/b.git") == hash_of("https://github.com/alice/my-fork.git")
    assert hash_of("print(1)") != hash_of("print(2)")


# ------------------------------------------------------------------------------------------------ the first cell

ADDRESS = "https://github.com/alice/my-fork.git"
# They write what they are asked for to the file $CALLS. Git, which takes the folder's name from the address unless it
# is told another, copies the project's main file.
FAKE_GIT = """#!/bin/sh
echo "git $@" >> "$CALLS"
test -z "$GIT_FAILS" || exit 128
for last; do :; done
folder=$(basename "$last" .git)
mkdir "$folder" && cp "$PROJECT/transformer.py" "$folder"
"""
FAKE_PIP = """#!/bin/sh
echo "pip $@" >> "$CALLS"
test -z "$PIP_FAILS" || exit 1
"""
COLAB = "import sys\nsys.modules['google.colab'] = sys"
WHERE = "import importlib.util, os\nprint(os.path.relpath(importlib.util.find_spec('transformer').origin, start))"


@pytest.fixture
def run_first_cell(tmp_path, monkeypatch):
    """A function that runs the first cell of an alice/my-fork in a fresh kernel: (its outputs, what stands in the last
    cell's output, the calls of git and pip)."""
    for name, content in (("git", FAKE_GIT), ("pip", FAKE_PIP)):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(content, encoding="utf-8")
        program.chmod(0o755)
    calls, first = tmp_path / "calls", stamp.PLACES.sub(r"\g<1>alice/my-fork", code("gpt")[0].source)
    assert ADDRESS in first

    def run(folder, before=COLAB, times=1, **variables):
        calls.write_text("", encoding="utf-8")
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "CALLS": str(calls), "PROJECT": str(ROOT), **variables}
        sources = [f"{before}\nimport os\nstart = os.getcwd()", *[first] * times, WHERE]
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
        client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
        with suppress(CellExecutionError):
            client.execute(env=environment)
        last = "".join(output.get("text", "") for output in notebook.cells[-1].outputs)
        return notebook.cells[1].outputs, last.strip(), calls.read_text(encoding="utf-8").splitlines()

    return run


def test_the_first_cell_is_the_same_everywhere():
    assert len({code(name)[0].source for name in NAMES}) == 1


def test_the_first_cell_fetches_a_fork_of_another_name(run_first_cell, tmp_path):
    """It does so once, also if it is run again, in the same session or in a new one."""
    (tmp_path / "content").mkdir()
    clone = f"git clone --depth 1 {ADDRESS} one-transformer"
    install = "pip install --requirement one-transformer/requirements.txt"
    outputs, origin, calls = run_first_cell(tmp_path / "content", times=2)
    assert (origin, calls) == ("one-transformer/transformer.py", [clone, install])
    assert not [output for output in outputs if output.output_type == "error"]
    outputs, origin, calls = run_first_cell(tmp_path / "content")
    assert (origin, calls) == ("one-transformer/transformer.py", [install])


@pytest.mark.parametrize(
    "fails, called, message",
    [("GIT_FAILS", ["git"], f"{ADDRESS} could not be cloned"), ("PIP_FAILS", ["git", "pip"], "could not be installed")],
)
def test_the_first_cell_stops_with_one_line(fails, called, message, run_first_cell, tmp_path):
    (tmp_path / "content").mkdir()
    outputs, later, calls = run_first_cell(tmp_path / "content", **{fails: "1"})
    (error,) = [output for output in outputs if output.output_type == "error"]
    assert error.ename == "SystemExit" and message in error.evalue and "\n" not in error.evalue
    lines = "\n".join(error.traceback).strip().splitlines()
    assert lines[0].startswith("An exception has occurred, use %tb") and message in lines[-1]
    assert len([line for line in lines if line]) == 2  # the other one is IPython's own
    assert later == "" and [call.split()[0] for call in calls] == called
    # Once the cause is gone, the cell does what is left.
    _, later, calls = run_first_cell(tmp_path / "content")
    assert later == "one-transformer/transformer.py" and calls[-1].startswith("pip")


@pytest.mark.parametrize(
    "folder, before, origin",
    [(".", "", "transformer.py"), ("notebooks", "", "../transformer.py"), (".", COLAB, "transformer.py")],
    ids=["root", "notebooks", "Colab"],
)
def test_the_first_cell_leaves_a_checkout_alone(folder, before, origin, run_first_cell, tmp_path):
    checkout = tmp_path / "checkout"
    (checkout / "notebooks").mkdir(parents=True)
    shutil.copy(ROOT / "transformer.py", checkout)
    outputs, found, calls = run_first_cell(checkout / folder, before)
    assert (list(outputs), found, calls) == ([], origin, [])


# ------------------------------------------------------------------------------------------------ what they share


def test_an_unknown_scale_is_named():
    with pytest.raises(ValueError, match="SCALE='huge': must be auto, small or full"):
        choose_scale("huge")


def test_checks_that_every_cell_runs_can_end_all_training_early(monkeypatch):
    for name in ("FAST_RUN", "STEPS", "SCALE"):
        monkeypatch.delenv(name, raising=False)
    assert (steps(300), choose_scale("small")) == (300, "small")
    monkeypatch.setenv("STEPS", "3")
    monkeypatch.setenv("SCALE", "full")
    assert (steps(300), steps(2), choose_scale("small")) == (3, 2, "full")
    monkeypatch.delenv("STEPS")
    monkeypatch.setenv("FAST_RUN", "1")
    assert (steps(300), choose_scale()) == (12, "fast")


@pytest.mark.parametrize("model", PRESETS)
def test_the_sizes_are_those_of_the_presets(model):
    assert preset(model, "small") == PRESETS[model]["small"] and preset(model, "full") == PRESETS[model]["full"]
    preset(model, "fast")["config"]["n_layers"] = 99
    assert preset(model, "fast")["config"]["n_layers"] == 2  # and PRESETS is as it was


# ------------------------------------------------------------------------------------------------ before a run


def test_a_missing_picture_is_told_before_the_notebook_runs(tmp_path, monkeypatch):
    """A whole run takes minutes, and the picture of the widget is needed at its end."""
    monkeypatch.setattr(maintenance, "widget_picture", lambda cell: tmp_path / "none.png")
    monkeypatch.setattr(maintenance, "execute", lambda notebook: pytest.fail("it has run"))
    with pytest.raises(ValueError, match="picture='none.png'"):
        maintenance.run("attention")
