"""The structure of the project: imports run one way, rooms are small, and transformer.py stays readable."""

import ast
from graphlib import TopologicalSorter

import pytest

from utils.files import ROOT

# From top to bottom: a file imports only from its own room and from those above it.
ROOMS = ["tools", "transformer", "data", "weights", "inference", "training", "lessons", "studies", "benchmark", "maintenance"]
FILES = [ROOT / "transformer.py", *sorted((ROOT / "utils").rglob("*.py"))]


def module(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports(code, package=""):
    """The full names of all that the code imports, also inside functions; a name may be a module or be in one."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def graph(sources):
    """{module: the modules of the project that it imports}, of {module: code}."""
    found = {}
    for name, code in sources.items():
        wanted = imports(code)
        # `from a.b import c` imports the module a.b.c if there is one, else the module a.b.
        wanted = {full if full in sources else full.rpartition(".")[0] for full in wanted}
        found[name] = {other for other in wanted if other in sources and other != name}
    return found


def room(name):
    parts = name.split(".")
    if parts[0] == "transformer":
        return "transformer"
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "tools"  # utils/files.py and its neighbours


def check(found):
    """No circle, and no import from a room further down."""
    list(TopologicalSorter(found).static_order())  # raises CycleError
    for name, others in found.items():
        for other in others:
            assert ROOMS.index(room(other)) <= ROOMS.index(room(name)), f"{name} imports {other}"


def test_imports_run_one_way():
    found = graph({module(path): path.read_text(encoding="utf-8") for path in FILES})
    assert found["utils.training.command"] >= {"transformer", "utils.weights.loading"}  # it does see imports
    assert "utils.muon" in found["transformer"]  # inside a function, too
    check(found)


@pytest.mark.parametrize(
    "sources",
    [
        {"utils.data.a": "from utils.data import b", "utils.data.b": "def f():\n    from utils.data.a import x"},
        {"utils.data.a": "import utils.lessons.b", "utils.lessons.b": ""},
        {"transformer": "from utils.data.a import x", "utils.data.a": ""},
        {"utils.files": "from transformer import require", "transformer": ""},
    ],
)
def test_a_circle_and_an_import_against_the_order_are_seen(sources):
    with pytest.raises((ValueError, AssertionError)):  # a CycleError is a ValueError
        check(graph(sources))


def test_a_folder_holds_at_most_eight_files():
    for folder in {path.parent for path in FILES}:
        files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 8, f"{folder.name}: {files}"


def test_lines_of_transformer_py():
    lines = (ROOT / "transformer.py").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 100] == []
