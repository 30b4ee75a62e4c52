"""Check a function that a learner has written, and say which mistake it makes: `f = lesson.check("causal_mask", f)`.

A task (utils/lessons/tasks/) has a reference, cases to call it with, and a catalogue of known mistakes, each of which
is itself a function. A learner's function that gives what a mistake gives, in every case, has made that mistake. A
function that is not written yet gets a hint when its cell is run for the second time.
"""

from __future__ import annotations

import copy
import math
import traceback
from collections.abc import Callable

import torch
from torch import Tensor

from transformer import require
from utils.lessons.tasks import TASKS
from utils.lessons.tasks.task import Task

checked: set[str] = set()  # the names of the tasks that `check` was called for
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5}  # absolute and relative; float32 has 7 digits


def check(name: str, mine: Callable) -> Callable:
    """Compare `mine` with the reference of the task `name`, and print whether it is right or what is wrong with it.

    Returns `mine` if it is right. Otherwise it returns the reference, so that the notebook can go on.
    """
    require(name in TASKS, "name", name, f"one of {', '.join(TASKS)}")
    require(callable(mine), name, mine, "a function")
    task = TASKS[name]
    complaint = examine(task, mine, hint=name in checked)
    checked.add(name)
    if complaint is None:
        print(f"✓ {name}: right in all {len(task.cases())} cases.")
        return mine
    print(f"✗ {name}: {complaint}\n  Until it is right, the notebook goes on with the reference.")
    return task.reference


def examine(task: Task, mine: Callable, hint: bool = True) -> str | None:
    """What is wrong with `mine`, in words; None if it does what the reference does. hint: give one where nothing is
    written yet.
    """
    cases = task.cases()
    expected = outcomes(task.reference, cases)
    got = outcomes(mine, cases)
    if any(isinstance(outcome, NotImplementedError) for outcome in got):
        then = f"Hint: {task.hint}" if hint else "(For a hint, run this cell once more.)"
        return f"not written yet. It has to return {task.returns}. {then}"
    wrong = [i for i in range(len(cases)) if not same(expected[i], got[i])]
    if not wrong:
        changed = [i for i, arguments in enumerate(cases) if not same(arguments, task.cases()[i])]
        return changed_input(cases[changed[0]]) if changed else None
    for mistake in task.mistakes:
        made = outcomes(mistake.function, task.cases())
        if all(same(one, other) for one, other in zip(made, got, strict=True)):
            return mistake.diagnosis
    first = wrong[0]
    where = f"called with {', '.join(map(described, task.cases()[first]))}"
    return f"{difference(expected[first], got[first], task.returns)} ({where})"


def outcomes(function: Callable, cases: list[tuple]) -> list:
    """What the function returns in each case, or the exception that it raises."""
    results = []
    for arguments in cases:
        try:
            result = function(*arguments)
            # A copy, because a function that works in place may return what it changes in the next case.
            results.append(copy.deepcopy(result.detach() if isinstance(result, Tensor) else result))
        except Exception as error:  # whatever a learner's code raises is part of the diagnosis
            results.append(error)
    return results


def same(one: object, other: object) -> bool:
    """Whether two results are equal: tensors in shape, type and, within TOLERANCE, values; NaN equals NaN."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        return bool(close(one, other).all())
    if isinstance(one, torch.nn.Module) and isinstance(other, torch.nn.Module):
        return same(one.state_dict(), other.state_dict())
    if isinstance(one, torch.Generator) and isinstance(other, torch.Generator):
        return True
    if isinstance(one, Exception) or isinstance(other, Exception):
        return type(one) is type(other) and str(one) == str(other)
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and same(tuple(one.values()), tuple(other.values()))
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, (float, int)):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6)
    return type(one) is type(other) and one == other


def close(one: Tensor, other: Tensor) -> Tensor:
    """Which elements of two tensors of one shape and type are equal, within TOLERANCE."""
    if not one.is_floating_point():
        return one == other
    tolerance = TOLERANCE[one.dtype]
    return torch.isclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


def difference(expected: object, got: object, returns: str) -> str:
    """How a result differs from the expected one: the error, the type, the shape, or the first wrong element."""
    if isinstance(got, Exception):
        return f"it raises {type(got).__name__}{at_line(got)}: {got}"
    if got is None:
        return f"it returns None: is the line with `return` missing? It has to return {returns}"
    if isinstance(expected, (tuple, list)) and isinstance(got, (tuple, list)) and len(expected) == len(got):
        place = next(i for i in range(len(got)) if not same(expected[i], got[i]))
        return f"item {place} of what it returns: {difference(expected[place], got[place], returns)}"
    if not isinstance(expected, Tensor) or not isinstance(got, Tensor):
        return f"it returns {described(got)} where {described(expected)} is right: {returns}"
    if got.shape != expected.shape:
        order = ""
        if sorted(got.shape) == sorted(expected.shape):
            order = ": the same sizes in another order, so a transpose is missing or one too many"
        return f"it returns the shape {tuple(got.shape)} where {tuple(expected.shape)} is right{order}: {returns}"
    if got.dtype != expected.dtype:
        return f"it returns {got.dtype} where {expected.dtype} is right: {returns}"
    place = (~close(expected, got)).nonzero()[0].tolist()
    share = (~close(expected, got)).float().mean().item()
    index = ", ".join(map(str, place))
    yours, right = got[tuple(place)].item(), expected[tuple(place)].item()
    shown = f"at [{index}] " if place else ""
    return f"{share:.0%} of the numbers differ. The first: {shown}yours is {yours:.6g}, the reference {right:.6g}"


def changed_input(arguments: tuple) -> str:
    """What to say to a function that is right but changes what it is given."""
    return (
        f"the result is right, but it changes its input ({', '.join(map(described, arguments))}) in place. "
        "Whoever calls it may need the input again: make a new tensor"
    )


def at_line(error: Exception) -> str:
    """Where in the learner's code an error happened."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)[1:] if frame.line]
    return f" at the line `{frames[0].line}`" if frames else ""


def described(value: object) -> str:
    """A value in a few words: a tensor by its shape and type."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, torch.nn.Module):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
