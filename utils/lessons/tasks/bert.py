"""The functions of notebooks/bert.ipynb: choosing and hiding tokens, the loss, the neighbour table, and mean pooling.

Letters as in transformer.py: B sequences, T positions, C features of a hidden state, V tokens in the vocabulary.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.lessons.tasks.task import Mistake, Task, draw

CLS, SEP, MASK = 2, 3, 4  # the ids of the special tokens in the cases
VOCABULARY = 50


def windows(rows: int, length: int, seed: int = 0) -> Tensor:
    """Windows [CLS] tokens [SEP], (rows, length), the same at every call."""
    tokens = torch.randint(MASK + 1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0], tokens[:, -1] = CLS, SEP
    return tokens


def uniform(*shape: int, seed: int = 0) -> Tensor:
    """Numbers between 0 and 1, the same at every call."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------ masking


def choose_tokens(ids: Tensor, draws: Tensor, n: int) -> Tensor:
    """Ids (B, T) of windows [CLS] tokens [SEP] and a random number for each -> True at n tokens of every window."""
    draws = draws.clone()
    draws[:, 0] = -1
    draws[:, -1] = -1
    places = draws.topk(n).indices
    return torch.zeros_like(ids, dtype=torch.bool).scatter(1, places, True)


def largest(draws: Tensor, n: int) -> Tensor:
    """True at the n largest draws of each row."""
    return torch.zeros_like(draws, dtype=torch.bool).scatter(1, draws.topk(n).indices, True)


def inner(ids: Tensor) -> Tensor:
    """True at all positions but the first and the last."""
    inside = torch.ones_like(ids, dtype=torch.bool)
    inside[:, 0] = inside[:, -1] = False
    return inside


def some_inside(rows: int, length: int, n: int, seed: int = 0) -> Tensor:
    """True at n places of each row, none of them at its ends."""
    draws = uniform(rows, length, seed=seed)
    return choose_tokens(draws, draws, n)


def choose_in_batch(ids: Tensor, draws: Tensor, n: int) -> Tensor:
    return largest(draws.masked_fill(~inner(ids), -1).flatten()[None], n).view_as(ids)


CHOOSE_TOKENS = Task(
    choose_tokens,
    lambda: [
        (windows(1, 6), torch.tensor([[0.9, 0.1, 0.8, 0.3, 0.6, 0.95]]), 2),
        (windows(3, 10, seed=1), uniform(3, 10), 3),
        (windows(4, 16, seed=2), uniform(4, 16, seed=5), 1),
    ],
    "a boolean tensor (B, T): True at n tokens of each window, never at its first or last position",
    "set the draws of the first and the last position to -1, in a copy. draws.topk(n).indices are then the places of "
    "the n largest, (B, n); torch.zeros_like(ids, dtype=torch.bool).scatter(1, places, True) puts True there.",
    (
        Mistake(
            "[CLS] and [SEP] can be chosen too. They stand in every window, so there is nothing to guess: give the "
            "first and the last position a draw below all others.",
            lambda ids, draws, n: largest(draws, n),
        ),
        Mistake(
            "only [CLS] is kept out. The last position, [SEP], must not be chosen either.",
            lambda ids, draws, n: largest(draws.masked_fill(torch.arange(draws.shape[1]) == 0, -1), n),
        ),
        Mistake(
            "the places are returned, not a boolean tensor: make one with scatter.",
            lambda ids, draws, n: draws.masked_fill(~inner(ids), -1).topk(n).indices,
        ),
        Mistake(
            "it chooses the n smallest draws, not the largest.",
            lambda ids, draws, n: largest((-draws).masked_fill(~inner(ids), -1), n),
        ),
        Mistake(
            "it is True where nothing is chosen, and False at the chosen places.",
            lambda ids, draws, n: ~choose_tokens(ids, draws, n),
        ),
        Mistake(
            "it chooses the tokens whose draw is below n / T. Then some windows get more of them than others, and some "
            "none at all; wanted are exactly n in each.",
            lambda ids, draws, n: (draws < n / draws.shape[1]) & inner(ids),
        ),
        Mistake(
            "it chooses n tokens in the whole batch; wanted are n in each window: topk along the last axis.",
            choose_in_batch,
        ),
        Mistake(
            "the tensor is not boolean. Make it with dtype=torch.bool: it is used as a condition later.",
            lambda ids, draws, n: choose_tokens(ids, draws, n).long(),
        ),
    ),
)


def hide_tokens(ids: Tensor, chosen: Tensor, fate: Tensor, others: Tensor, mask_id: int) -> Tensor:
    """Of the chosen tokens, 80 % become [MASK], 10 % another token, and 10 % stay (BERT, section 3.1)."""
    hidden = torch.where(chosen & (fate < 0.9), mask_id, ids)
    return torch.where(chosen & (fate < 0.1), others, hidden)


def hiding_cases() -> list[tuple]:
    first = torch.tensor([[CLS, 10, 11, 12, 13, SEP]])
    chosen = torch.tensor([[False, True, True, False, True, False]])
    fate = torch.tensor([[0.5, 0.3, 0.05, 0.02, 0.95, 0.2]])
    cases = [(first, chosen, fate, torch.tensor([[20, 21, 22, 23, 24, 25]]), MASK)]
    for seed in (1, 2):
        ids = windows(6, 20, seed=seed)
        others = torch.randint(MASK + 1, VOCABULARY, ids.shape, generator=torch.Generator().manual_seed(9 + seed))
        cases.append((ids, some_inside(6, 20, 8, seed=seed), uniform(6, 20, seed=seed + 5), others, MASK))
    return cases


HIDE_TOKENS = Task(
    hide_tokens,
    hiding_cases,
    "ids (B, T): at the chosen places [MASK], another token or the token itself; elsewhere unchanged",
    "two calls of torch.where(condition, a, b), which takes a where the condition is True and b elsewhere. The first "
    "puts [MASK] where chosen & (fate < 0.9), the second, on top of it, the others where chosen & (fate < 0.1).",
    (
        Mistake(
            "`chosen` is not used: tokens that nobody chose are hidden too.",
            lambda ids, chosen, fate, others, mask_id: hide_tokens(ids, chosen | True, fate, others, mask_id),
        ),
        Mistake(
            "all chosen tokens become [MASK]. 10 % have to become another token, and 10 % stay as they are.",
            lambda ids, chosen, fate, others, mask_id: ids.masked_fill(chosen, mask_id),
        ),
        Mistake(
            "no chosen token stays as it is: those with a fate of 0.9 and more have to.",
            lambda ids, chosen, fate, others, mask_id: torch.where(
                chosen & (fate < 0.1), others, torch.where(chosen, mask_id, ids)
            ),
        ),
        Mistake(
            "no chosen token becomes another one: those with a fate below 0.1 are masked too. Put the others on top of "
            "the masked ids, after [MASK].",
            lambda ids, chosen, fate, others, mask_id: ids.masked_fill(chosen & (fate < 0.9), mask_id),
        ),
        Mistake(
            "the tokens with a fate below 0.1 stay as they are: they have to become another token.",
            lambda ids, chosen, fate, others, mask_id: ids.masked_fill(chosen & (fate >= 0.1) & (fate < 0.9), mask_id),
        ),
        Mistake(
            "80 % become another token, and 10 % become [MASK]. It is the other way round.",
            lambda ids, chosen, fate, others, mask_id: torch.where(
                chosen & (fate < 0.1), mask_id, torch.where(chosen & (fate < 0.9), others, ids)
            ),
        ),
        Mistake(
            "it hides the tokens that were not chosen.",
            lambda ids, chosen, fate, others, mask_id: hide_tokens(ids, ~chosen, fate, others, mask_id),
        ),
        Mistake(
            "tokens that were not chosen become another one too: the condition of the others lacks `chosen`.",
            lambda ids, chosen, fate, others, mask_id: torch.where(
                fate < 0.1, others, torch.where(chosen & (fate < 0.9), mask_id, ids)
            ),
        ),
        Mistake(
            "tokens that were not chosen are masked too: the condition of [MASK] lacks `chosen`.",
            lambda ids, chosen, fate, others, mask_id: torch.where(
                chosen & (fate < 0.1), others, torch.where(fate < 0.9, mask_id, ids)
            ),
        ),
        Mistake(
            "the comparisons are the wrong way round: [MASK] stands where the fate is 0.1 or more, also above 0.9, and "
            "those below 0.1 stay.",
            lambda ids, chosen, fate, others, mask_id: ids.masked_fill(chosen & (fate >= 0.1), mask_id),
        ),
    ),
)


def masked_targets(ids: Tensor, chosen: Tensor) -> Tensor:
    """The original ids (B, T) at the chosen places, -100 at all others."""
    return ids.masked_fill(~chosen, -100)


MASKED_TARGETS = Task(
    masked_targets,
    lambda: [
        (windows(1, 6), torch.tensor([[False, True, False, False, True, False]])),
        (windows(3, 12, seed=1), some_inside(3, 12, 4)),
    ],
    "targets (B, T): the id of the token at the chosen places, -100 at all others",
    "ids.masked_fill(condition, -100) puts -100 where the condition is True. ~chosen is True where nothing is chosen.",
    (
        Mistake(
            "-100 stands at the chosen places, and the others are asked for: the loss would be taken on tokens that "
            "the model sees.",
            lambda ids, chosen: ids.masked_fill(chosen, -100),
        ),
        Mistake(
            "all tokens are targets. Most of them stand in the input, so the model would learn to copy.",
            lambda ids, chosen: ids.clone(),
        ),
        Mistake(
            "0 stands where nothing is asked for, and 0 is the id of a token. Use -100, which cross_entropy ignores.",
            lambda ids, chosen: ids.masked_fill(~chosen, 0),
        ),
        Mistake(
            "only the chosen ids are returned, without their places. Keep the shape (B, T).",
            lambda ids, chosen: ids[chosen],
        ),
    ),
)


# ------------------------------------------------------------------------------------------------ the loss


def masked_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits (B, T, V) and targets (B, T), -100 where nothing is asked -> the mean loss of the others, one number."""
    asked = targets != -100
    return F.cross_entropy(logits[asked], targets[asked])


def loss_cases() -> list[tuple]:
    cases = []
    for seed, (rows, length, tokens) in enumerate(((1, 4, 5), (2, 6, 9), (3, 8, 17))):
        numbers = torch.Generator().manual_seed(seed)
        targets = torch.randint(tokens, (rows, length), generator=numbers)
        asked = some_inside(rows, length, 2 if length < 8 else 3, seed=seed)
        asked[0, 1] = True  # not equally many in each window
        dtype = torch.float32 if seed == 2 else torch.float64
        cases.append((3 * draw(rows, length, tokens, seed=seed, dtype=dtype), targets.masked_fill(~asked, -100)))
    return cases


def all_places(logits: Tensor, targets: Tensor, **options) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), **options)


MASKED_LOSS = Task(
    masked_loss,
    loss_cases,
    "one number: the mean of -ln p over the places whose target is not -100",
    "asked = targets != -100 is True at the places that count. logits[asked] is then (N, V) and targets[asked] is "
    "(N,): what F.cross_entropy takes.",
    (
        Mistake(
            "the sum is divided by all B T places. Divide by the number of those that are asked for.",
            lambda logits, targets: all_places(logits, targets, reduction="sum") / targets.numel(),
        ),
        Mistake(
            "softmax comes before the loss. cross_entropy takes logits and applies log_softmax itself.",
            lambda logits, targets: all_places(logits.softmax(-1), targets),
        ),
        Mistake(
            "it is the sum, not the mean.",
            lambda logits, targets: all_places(logits, targets, reduction="sum"),
        ),
        Mistake(
            "places that are not asked for count as if their answer were token 0. Leave them out.",
            lambda logits, targets: all_places(logits, targets.clamp(min=0)),
        ),
        Mistake(
            "it is the mean over the windows of each window's mean. Then a token counts less in a window with many of "
            "them; wanted is the mean over all tokens that are asked for.",
            lambda logits, targets: torch.stack(
                [F.cross_entropy(row, wanted) for row, wanted in zip(logits, targets, strict=True)]
            ).mean(),
        ),
        Mistake(
            "the sign is wrong: the loss is minus the logarithm of the probability.",
            lambda logits, targets: -all_places(logits, targets),
        ),
        Mistake(
            "the targets are shifted by one, as for GPT. BERT predicts the token at the same place.",
            lambda logits, targets: masked_loss(logits[:, :-1], targets[:, 1:]),
        ),
        Mistake(
            "it is the loss of each place. Wanted is their mean, one number.",
            lambda logits, targets: masked_each(logits, targets),
        ),
    ),
)


def masked_each(logits: Tensor, targets: Tensor) -> Tensor:
    asked = targets != -100
    return F.cross_entropy(logits[asked], targets[asked], reduction="none")


# ------------------------------------------------------------------------------------------------ the neighbour table


def neighbour_table(ids: list[int]) -> dict[tuple[int, int], int]:
    """For each pair (left, right), the token that stands between them most often; of several, the first that did."""
    return most_common(between(ids))


def between(ids: list[int], step: int = 1) -> dict[tuple[int, int], Counter]:
    """For each pair (left, right), how often each token stands between them; only every `step`-th place is counted."""
    counts = defaultdict(Counter)
    for left, centre, right in list(zip(ids, ids[1:], ids[2:], strict=False))[::step]:
        counts[left, right][centre] += 1
    return counts


def most_common(counts: dict[tuple[int, int], Counter]) -> dict[tuple[int, int], int]:
    return {pair: counter.most_common(1)[0][0] for pair, counter in counts.items()}


def next_after_pair(ids: list[int]) -> dict[tuple[int, int], int]:
    after = defaultdict(Counter)
    for first, second, third in zip(ids, ids[1:], ids[2:], strict=False):
        after[first, second][third] += 1
    return most_common(after)


NEIGHBOUR_TABLE = Task(
    neighbour_table,
    lambda: [
        ([7, 1, 9, 7, 2, 9, 7, 2, 9],),
        ([1, 5, 2, 1, 5, 2, 1, 6, 2, 1, 6, 2, 2, 5, 1],),
        (torch.randint(4, (120,), generator=torch.Generator().manual_seed(0)).tolist(),),
        ([3, 4],),
    ],
    "a dictionary: (left, right) -> the token that stands between them most often",
    "between = defaultdict(Counter) makes a Counter for each new key. Go through zip(ids, ids[1:], ids[2:]) and count "
    "the one in the middle; at the end take each Counter's most_common(1)[0][0].",
    (
        Mistake(
            "the last token that stood between the two is kept, not the most frequent one: count them.",
            lambda ids: {(left, right): centre for left, centre, right in zip(ids, ids[1:], ids[2:], strict=False)},
        ),
        Mistake(
            "the token that came first is kept, not the most frequent one.",
            lambda ids: {pair: next(iter(counter)) for pair, counter in between(ids).items()},
        ),
        Mistake(
            "it is a table of what follows two tokens, as a language model that reads from the left would use it. "
            "The key is the left and the right neighbour, the value the token between them.",
            next_after_pair,
        ),
        Mistake(
            "each value is the token together with its count. Only the token is wanted: most_common(1)[0][0].",
            lambda ids: {pair: counter.most_common(1)[0] for pair, counter in between(ids).items()},
        ),
        Mistake(
            "each value is a Counter of all tokens. Only the most frequent one is wanted.",
            lambda ids: dict(between(ids)),
        ),
        Mistake(
            "the rarest token is kept, not the most frequent one.",
            lambda ids: {pair: min(counter, key=counter.get) for pair, counter in between(ids).items()},
        ),
        Mistake(
            "only every second token is looked at as the middle one: move on by one place.",
            lambda ids: most_common(between(ids, 2)),
        ),
        Mistake(
            "only every third token is looked at as the middle one: move on by one place.",
            lambda ids: most_common(between(ids, 3)),
        ),
        Mistake(
            "left and right are swapped in the key.",
            lambda ids: {(right, left): centre for (left, right), centre in neighbour_table(ids).items()},
        ),
        Mistake(
            "of several that are equally frequent it takes another than the first. Counter.most_common keeps the order "
            "in which they were met.",
            lambda ids: {pair: max(reversed(list(counter)), key=counter.get) for pair, counter in between(ids).items()},
        ),
    ),
)


# ------------------------------------------------------------------------------------------------ sentences


def mean_pool(states: Tensor, mask: Tensor) -> Tensor:
    """Hidden states (B, T, C), mask (B, T), True at tokens -> the mean state of each text's tokens (B, C)."""
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def pooling_cases() -> list[tuple]:
    def mask(lengths: list[int], longest: int) -> Tensor:
        return torch.arange(longest) < torch.tensor(lengths)[:, None]

    return [
        (draw(1, 3, 2), mask([2], 3)),
        (draw(3, 5, 4, seed=1), mask([5, 1, 3], 5)),
        (draw(2, 6, 8, seed=2, dtype=torch.float32), mask([4, 6], 6)),
    ]


MEAN_POOL = Task(
    mean_pool,
    pooling_cases,
    "(B, C): for each text, the sum of its tokens' states divided by the number of its tokens",
    "mask[..., None] is (B, T, 1). Multiplied by it, the states at padding become 0; then sum over axis 1, and divide "
    "by mask.sum(1, keepdim=True), the number of tokens.",
    (
        Mistake(
            "padding is averaged as well: the same text would get another vector in a batch with longer ones.",
            lambda states, mask: states.mean(1),
        ),
        Mistake(
            "the states at padding are 0, but they still count: divide by the number of tokens, not by T.",
            lambda states, mask: (states * mask[..., None].to(states.dtype)).mean(1),
        ),
        Mistake(
            "it is the sum. Divide by the number of tokens.",
            lambda states, mask: (states * mask[..., None].to(states.dtype)).sum(1),
        ),
        Mistake(
            "it is the state of the first token, not the mean of all.",
            lambda states, mask: states[:, 0],
        ),
        Mistake(
            "the mask is the wrong way round: it averages padding.",
            lambda states, mask: mean_pool(states, ~mask),
        ),
        Mistake(
            "it averages the features, not the tokens: sum over axis 1.",
            lambda states, mask: states.mean(-1),
        ),
        Mistake(
            "it divides by the number of tokens in the whole batch. Each text has its own: mask.sum(1, keepdim=True).",
            lambda states, mask: (states * mask[..., None].to(states.dtype)).sum(1) / mask.sum(),
        ),
        Mistake(
            "one mean over all texts comes out: states[mask] forgets which token belongs to which text.",
            lambda states, mask: states[mask].mean(0),
        ),
    ),
)

TASKS = {
    "choose_tokens": CHOOSE_TOKENS,
    "hide_tokens": HIDE_TOKENS,
    "masked_targets": MASKED_TARGETS,
    "masked_loss": MASKED_LOSS,
    "neighbour_table": NEIGHBOUR_TABLE,
    "mean_pool": MEAN_POOL,
}
