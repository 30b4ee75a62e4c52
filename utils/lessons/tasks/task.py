"""What a task for the learner consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mistake:
    """What a learner is told, and a function that makes the mistake."""

    diagnosis: str
    function: Callable


@dataclass(frozen=True)
class Task:
    """A function for the learner to write.

    reference: the right one. cases: makes the arguments of each call, the same at every call. returns: what the
    function has to return, in words and letters. hint: what a learner reads who has not begun.
    """

    reference: Callable
    cases: Callable[[], list[tuple]]
    returns: str
    hint: str
    mistakes: tuple[Mistake, ...]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal random numbers, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
