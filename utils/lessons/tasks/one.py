"""The functions of notebooks/one.ipynb: a loss in bits, and one step of writing by uncovering.

Letters as in transformer.py: B sequences, T positions, V tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.inference.blanks import uncover
from utils.lessons.tasks.task import Mistake, Task, draw

# ------------------------------------------------------------------------------------------------ bits


def bits(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits (B, T, V), targets (B, T) -> the mean of -log2 of the probabilities that the targets have."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()) / math.log(2)


def chances(logits: Tensor, targets: Tensor, axis: int = -1) -> Tensor:
    """The probabilities (B, T) of the targets, by a softmax over this axis of the logits."""
    return logits.softmax(axis).gather(-1, targets[..., None])[..., 0]


def bits_cases() -> list[tuple]:
    cases = []
    for seed, (rows, length, size, dtype) in enumerate(
        ((1, 3, 2, torch.float64), (2, 4, 5, torch.float32), (3, 6, 4, torch.float64))
    ):
        targets = torch.randint(size, (rows, length), generator=torch.Generator().manual_seed(seed))
        cases.append((draw(rows, length, size, seed=seed, dtype=dtype), targets))
    return cases


BITS = Task(
    bits,
    bits_cases,
    "a tensor with one number: the mean of -log2 p over all targets",
    "logits.log_softmax(-1) is log p of every token, in nats; `gather` takes those of the targets, or F.cross_entropy "
    "does both and takes the mean. A nat is 1 / log(2) bits.",
    (
        Mistake(
            "this is in nats. Divide by log(2), math.log(2), for bits.",
            lambda logits, targets: bits(logits, targets) * math.log(2),
        ),
        Mistake(
            "multiplied by log(2): log2(p) is log(p) / log(2).",
            lambda logits, targets: bits(logits, targets) * math.log(2) ** 2,
        ),
        Mistake("the sign is missing: log2 of a probability is negative.", lambda *given: -bits(*given)),
        Mistake(
            "this is the sum over the targets. Wanted is the mean, bits for one token.",
            lambda logits, targets: bits(logits, targets) * targets.numel(),
        ),
        Mistake(
            "this is the sum over each sequence. Wanted is the mean over all targets, bits for one token.",
            lambda logits, targets: bits(logits, targets) * targets.shape[1],
        ),
        Mistake(
            "the mean is taken of the probabilities, and then the logarithm. A compressor pays -log2 p for each token: "
            "first the logarithm, then the mean.",
            lambda *given: -chances(*given).mean().log2(),
        ),
        Mistake(
            "the softmax goes over the positions. Probabilities add up to 1 over the vocabulary, the last axis.",
            lambda logits, targets: -chances(logits, targets, 1).log2().mean(),
        ),
        Mistake(
            "there are two softmaxes: F.cross_entropy has one inside, so it takes logits.",
            lambda logits, targets: bits(logits.softmax(-1), targets),
        ),
        Mistake(
            "the logarithm is to the base 10. Bits take the base 2.",
            lambda *given: -chances(*given).log10().mean(),
        ),
        Mistake(
            "these are the bits of each target. Wanted is their mean.",
            lambda *given: -chances(*given).log2(),
        ),
    ),
)

# ------------------------------------------------------------------------------------------------ uncover

HIDDEN = 9  # the number of the token [MASK] in the cases


def uncover_cases() -> list[tuple]:
    """The last row of the last two cases has fewer masks than are to be uncovered."""
    cases = []
    for seed, (rows, length, n, masks) in enumerate(((1, 6, 2, 4), (3, 8, 2, 5), (2, 7, 3, 5), (2, 5, 2, 4))):
        generator = torch.Generator().manual_seed(seed)
        ids, drawn = (torch.randint(HIDDEN, (rows, length), generator=generator) for _ in range(2))
        drawn = torch.where(drawn == ids, (ids + 1) % HIDDEN, drawn)  # so that a wrong replacement is seen
        priority = torch.rand(rows, length, generator=generator)
        ids[:, :masks] = HIDDEN
        if seed >= 2:
            ids[-1, 1:masks] = 0
        shuffled = torch.randperm(length, generator=generator)
        cases.append((ids[:, shuffled], drawn, priority, n, HIDDEN))
    return cases


def uncovered(places: Callable[..., Tensor]) -> Callable:
    """A function that uncovers the places (B, T) that `places` returns."""

    def function(ids: Tensor, drawn: Tensor, priority: Tensor, n: int, mask: int) -> Tensor:
        return torch.where(places(ids == mask, priority, n), drawn, ids)

    return function


def largest(priority: Tensor, n: int) -> Tensor:
    """Where the n largest of each row are (B, T)."""
    return torch.zeros_like(priority, dtype=torch.bool).scatter(1, priority.topk(n).indices, True)


def of_hidden(hidden: Tensor, priority: Tensor) -> Tensor:
    """The priorities of the hidden tokens; -inf at the others."""
    return priority.masked_fill(~hidden, -math.inf)


UNCOVER = Task(
    uncover,
    uncover_cases,
    "ids (B, T) with the tokens of `drawn` in n places of each row: of those that hold `mask`, the ones with the "
    "highest priority, or all where there are fewer than n",
    "hidden = ids == mask tells where a mask stands. Give all other places the priority -inf (masked_fill), find the n "
    "largest of each row (topk), make True of these places (scatter into zeros_like(hidden)), and take drawn there and "
    "ids elsewhere (torch.where). Where a row has fewer than n masks, topk also finds places that hold none: & hidden.",
    (
        Mistake(
            "tokens that were there already are overwritten: the n highest priorities of all places are taken. Only "
            "places that hold a mask count.",
            uncovered(lambda hidden, priority, n: largest(priority, n)),
        ),
        Mistake(
            "too few are uncovered: the n highest priorities are found among all places, and most of these hold no "
            "mask. Find them among the masks.",
            uncovered(lambda hidden, priority, n: largest(priority, n) & hidden),
        ),
        Mistake(
            "a row that has fewer than n masks loses tokens that were there already: topk always finds n places. Keep "
            "those that hold a mask.",
            uncovered(lambda hidden, priority, n: largest(of_hidden(hidden, priority), n)),
        ),
        Mistake(
            "the masks with the lowest priority are uncovered. Wanted are those with the highest.",
            uncovered(lambda hidden, priority, n: largest(of_hidden(hidden, -priority), n) & hidden),
        ),
        Mistake(
            "all masks are uncovered at once. Wanted are n in each row.",
            uncovered(lambda hidden, priority, n: hidden),
        ),
        Mistake(
            "n are uncovered in the whole batch. Wanted are n in each row: topk works along the last axis.",
            uncovered(
                lambda hidden, priority, n: (
                    largest(of_hidden(hidden, priority).view(1, -1), n).view_as(hidden) & hidden
                )
            ),
        ),
        Mistake(
            "one is uncovered in each row. Wanted are n: topk, not argmax.",
            uncovered(lambda hidden, priority, n: largest(of_hidden(hidden, priority), 1) & hidden),
        ),
        Mistake(
            "the first n masks of each row are uncovered. Wanted are those with the highest priority.",
            uncovered(lambda hidden, priority, n: hidden & (hidden.cumsum(1) <= n)),
        ),
        Mistake(
            "what was there already is gone: every other place holds a mask now. Take ids there.",
            lambda ids, drawn, priority, n, mask: torch.where(
                largest(of_hidden(ids == mask, priority), n) & (ids == mask), drawn, mask
            ),
        ),
    ),
)

TASKS = {"bits": BITS, "uncover": UNCOVER}
