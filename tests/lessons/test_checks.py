"""The checks of the functions that learners write: what is right passes, and every known mistake is named."""

import itertools
import re

import nbformat
import pytest
import torch

from utils.lessons import checks
from utils.lessons import notebook as lesson
from utils.lessons.checks import examine, outcomes, same
from utils.lessons.tasks import TASKS
from utils.lessons.tasks.task import Mistake, Task
from utils.maintenance.notebooks import NAMES, ROOT, your_turns

tasks = pytest.mark.parametrize("name", TASKS)


@tasks
def test_the_reference_is_right(name):
    assert examine(TASKS[name], TASKS[name].reference) is None


@tasks
def test_every_mistake_has_its_own_diagnosis(name):
    for mistake in TASKS[name].mistakes:
        assert examine(TASKS[name], mistake.function) == mistake.diagnosis


@tasks
def test_no_two_mistakes_are_the_same(name):
    task = TASKS[name]
    made = [outcomes(mistake.function, task.cases()) for mistake in task.mistakes]
    for one, other in itertools.combinations(made, 2):
        assert not same(one, other)
    assert len({mistake.diagnosis for mistake in task.mistakes}) == len(task.mistakes) >= 3


@tasks
def test_the_cases_are_the_same_at_every_call(name):
    assert same(TASKS[name].cases(), TASKS[name].cases())


@tasks
def test_what_is_not_written_gets_a_hint(name, capsys, monkeypatch):
    monkeypatch.setattr(checks, "checked", set())

    def mine(*_):
        raise NotImplementedError

    for hint in (False, True):  # not at the first run of the cell
        assert lesson.check(name, mine) is TASKS[name].reference
        said = capsys.readouterr().out
        assert "not written yet" in said and "goes on with the reference" in said
        assert (TASKS[name].hint in said) == hint


@tasks
def test_another_error_is_told(name):
    def mine(*_):
        return torch.ones(3) @ torch.ones(4)

    complaint = examine(TASKS[name], mine)
    assert "it raises RuntimeError at the line `return torch.ones(3) @ torch.ones(4)`" in complaint


@tasks
def test_a_missing_return_is_told(name):
    assert "is the line with `return` missing?" in examine(TASKS[name], lambda *_: None)


def test_what_is_right_is_kept(capsys):
    def mine(T):
        return torch.arange(T)[:, None] >= torch.arange(T)

    assert lesson.check("causal_mask", mine) is mine
    assert capsys.readouterr().out == "✓ causal_mask: right in all 4 cases.\n"


def double(x):
    return 2 * x


PAIRS = Task(
    double,
    lambda: [(torch.ones(2, 3),), (torch.arange(6.0).view(2, 3),)],
    "twice x",
    "2 * x",
    (Mistake("it triples.", lambda x: 3 * x),),
)


@pytest.mark.parametrize(
    "mine, complaint",
    [
        (lambda x: 2 * x + (x == 4), "17% of the numbers differ. The first: at [1, 1] yours is 9, the reference 8"),
        (lambda x: (2 * x).T, "it returns the shape (3, 2) where (2, 3) is right: the same sizes in another order"),
        (lambda x: (2 * x)[:1], "it returns the shape (1, 3) where (2, 3) is right: twice x"),
        (lambda x: (2 * x).double(), "it returns torch.float64 where torch.float32 is right"),
        (lambda x: (2 * x).tolist(), "it returns [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]] where a tensor (2, 3)"),
        (lambda x: x.mul_(2), "it changes its input (a tensor (2, 3) of float32) in place"),
        (lambda x: 3 * x, "it triples."),
        (lambda x: 2 * x / (x != 5), "17% of the numbers differ. The first: at [1, 2] yours is inf, the reference 10"),
    ],
)
def test_an_unknown_mistake_is_shown_where_it_is(mine, complaint):
    assert complaint in examine(PAIRS, mine)


def test_a_result_within_the_tolerance_is_right():
    assert examine(PAIRS, lambda x: x * (2 + 1e-6)) is None
    assert examine(PAIRS, lambda x: x * (2 + 1e-3)) is not None


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match="name='nothing': must be one of scores, "):
        lesson.check("nothing", double)
    with pytest.raises(ValueError, match="scores=None: must be a function"):
        lesson.check("scores", None)


@pytest.mark.parametrize("notebook", NAMES)
def test_the_solutions_are_right(notebook):
    """Each function that a notebook asks for has a hidden solution, which passes its check by itself."""
    cells = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4)
    asked = re.findall(r"lesson\.check\(\"(\w+)\"", "\n".join(c.source for c in cells.cells if c.cell_type == "code"))
    solutions = your_turns(cells)
    assert sorted(asked) == sorted(solutions)
    names = {"math": __import__("math"), "torch": torch, "F": torch.nn.functional}
    for name, code in solutions.items():
        exec(code, names)
        assert examine(TASKS[name], names[name]) is None, name
