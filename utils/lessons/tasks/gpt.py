"""The functions of notebooks/gpt.ipynb: one merge of byte-level BPE, the loss, sampling, and the key-value cache.

Letters as in transformer.py: B sequences, T positions, S positions that are looked at, D features of one head, V tokens
in the vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.lessons.tasks.task import Mistake, Task, draw

INF = math.inf


# ------------------------------------------------------------------------------------------------ byte-pair encoding


def most_common_pair(ids: list[int]) -> tuple[int, int]:
    """The pair of neighbours that occurs most often; of several, the one that comes first in the list."""
    return Counter(zip(ids, ids[1:], strict=False)).most_common(1)[0][0]


MOST_COMMON_PAIR = Task(
    most_common_pair,
    lambda: [([1, 2, 3, 1, 2],), ([5, 4, 5, 4, 4, 5, 4],), ([3, 1, 2, 9, 9, 2, 1, 2, 1],), ([7, 8],)],
    "a tuple of two token ids",
    "zip(ids, ids[1:]) gives all pairs of neighbours, and collections.Counter counts them. Its most_common(1) is a "
    "list with one entry, (pair, count).",
    (
        Mistake(
            "it returns the pair together with its count. Only the pair is wanted: most_common(1)[0][0].",
            lambda ids: Counter(zip(ids, ids[1:], strict=False)).most_common(1)[0],
        ),
        Mistake(
            "it counts every second pair only: the pairs overlap. The token at place 1 belongs to a pair with the "
            "token at place 0 and to one with the token at place 2.",
            lambda ids: Counter(zip(ids[::2], ids[1::2], strict=False)).most_common(1)[0][0],
        ),
        Mistake(
            "it treats (a, b) and (b, a) as the same pair. The order of the two tokens counts.",
            lambda ids: Counter(
                zip(*(map(f, zip(ids, ids[1:], strict=False)) for f in (min, max)), strict=True)
            ).most_common(1)[0][0],
        ),
        Mistake(
            "of several pairs that occur equally often it returns the last one; wanted is the first. Counter keeps the "
            "order in which the pairs were met.",
            lambda ids: Counter(zip(ids[-2::-1], ids[:0:-1], strict=True)).most_common(1)[0][0],
        ),
        Mistake(
            "it returns the most common token, twice, and not the most common pair.",
            lambda ids: 2 * (Counter(ids).most_common(1)[0][0],),
        ),
    ),
)


def merge_pair(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    """The list with `new_id` in the place of the pair, from left to right."""
    merged, place = [], 0
    while place < len(ids):
        if tuple(ids[place : place + 2]) == tuple(pair):
            merged.append(new_id)
            place += 2
        else:
            merged.append(ids[place])
            place += 1
    return merged


def merge_first_only(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    for place in range(len(ids) - 1):
        if tuple(ids[place : place + 2]) == pair:
            return [*ids[:place], new_id, *ids[place + 2 :]]
    return list(ids)


def merge_one_step(ids: list[int], pair: tuple[int, int], new_id: int, skip: bool) -> list[int]:
    """Go on by one place after a merge, so that the second token of the pair is seen again."""
    merged = []
    for place, token in enumerate(ids):
        if tuple(ids[place : place + 2]) == pair:
            merged.append(new_id)
        elif not (skip and place and tuple(ids[place - 1 : place + 1]) == pair):
            merged.append(token)
    return merged


def merge_without_last(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    merged = merge_pair(ids, pair, new_id)
    return merged if tuple(ids[-2:]) == pair else merged[:-1]


def merge_any_order(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    merged, place = [], 0
    while place < len(ids):
        found = sorted(ids[place : place + 2]) == sorted(pair)
        merged.append(new_id if found else ids[place])
        place += 2 if found else 1
    return merged


MERGE_PAIR = Task(
    merge_pair,
    lambda: [
        ([1, 2, 3, 1, 2], (1, 2), 9),
        ([4, 4, 4, 5, 4, 4], (4, 4), 6),
        ([2, 1, 2, 1, 3], (1, 2), 7),
        ([1, 3], (1, 2), 7),
        ([1, 2, 1], (1, 2), 8),
    ],
    "a new list: the new id in the place of every occurrence of the pair, all other ids as they were",
    "go through the list with a place that you move on yourself (while place < len(ids)): by two where the pair "
    "begins, by one elsewhere.",
    (
        Mistake("it merges the first occurrence only. All of them have to be merged.", merge_first_only),
        Mistake(
            "after a merge it looks again at the second token of the pair and keeps it. Move on by two places.",
            lambda ids, pair, new_id: merge_one_step(ids, pair, new_id, skip=False),
        ),
        Mistake(
            "in a row such as 4 4 4 it merges overlapping pairs. A token that has been merged is gone: move on by two "
            "places.",
            lambda ids, pair, new_id: merge_one_step(ids, pair, new_id, skip=True),
        ),
        Mistake(
            "the last token is lost where it is not part of a merge: the loop ends one place too early.",
            merge_without_last,
        ),
        Mistake("it also merges the pair in the opposite order. (1, 2) is not (2, 1).", merge_any_order),
        Mistake("it changes nothing: the pair is never found.", lambda ids, pair, new_id: list(ids)),
    ),
)


# ------------------------------------------------------------------------------------------------ the loss


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Logits (B, T, V) and the ids (B, T) that they were computed from -> the mean loss, one number."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def loss_cases() -> list[tuple]:
    numbers = torch.Generator().manual_seed(0)
    return [
        (3 * draw(1, 3, 4), torch.tensor([[0, 2, 1]])),
        (3 * draw(2, 5, 7, seed=1), torch.randint(7, (2, 5), generator=numbers)),
        (3 * draw(3, 4, 11, seed=2, dtype=torch.float32), torch.randint(11, (3, 4), generator=numbers)),
    ]


def loss_of(logits: Tensor, targets: Tensor, **options) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), **options)


NEXT_TOKEN_LOSS = Task(
    next_token_loss,
    loss_cases,
    "one number: the mean of -ln p over the B (T - 1) tokens that have a token before them",
    "the logits at positions 0 to T - 2 predict the ids at positions 1 to T - 1: logits[:, :-1] and ids[:, 1:]. "
    "F.cross_entropy takes (N, V) and (N,), so flatten the first two axes.",
    (
        Mistake(
            "the targets are not shifted: at each position it asks for the token that stands there already, which the "
            "model has just read. Position t has to predict the token at t + 1.",
            lambda logits, ids: loss_of(logits, ids),
        ),
        Mistake(
            "the shift goes the wrong way: position t is asked for the token before it. The logits lose their last "
            "position, logits[:, :-1], and the ids their first, ids[:, 1:].",
            lambda logits, ids: loss_of(logits[:, 1:], ids[:, :-1]),
        ),
        Mistake(
            "the ids are rolled around, so that the last position is asked for the first token. The last position has "
            "no next token: leave it out.",
            lambda logits, ids: loss_of(logits, ids.roll(-1, dims=1)),
        ),
        Mistake(
            "softmax comes before the loss. cross_entropy takes logits and applies log_softmax itself; after a second "
            "softmax even a perfect answer costs something, and little is learned.",
            lambda logits, ids: loss_of(logits[:, :-1].softmax(-1), ids[:, 1:]),
        ),
        Mistake(
            "it is the sum over all tokens, not the mean: it would grow with the length of the text.",
            lambda logits, ids: loss_of(logits[:, :-1], ids[:, 1:], reduction="sum"),
        ),
        Mistake(
            "it is the loss of each token. Wanted is their mean, one number.",
            lambda logits, ids: loss_of(logits[:, :-1], ids[:, 1:], reduction="none"),
        ),
        Mistake(
            "the sign is wrong: the loss is minus the logarithm of the probability.",
            lambda logits, ids: -loss_of(logits[:, :-1], ids[:, 1:]),
        ),
        Mistake(
            "it is in bits, the logarithm in base 2. Wanted are nats, the natural logarithm, as in PyTorch.",
            lambda logits, ids: loss_of(logits[:, :-1], ids[:, 1:]) / math.log(2),
        ),
        Mistake(
            "it is the perplexity, the exponential of the loss.",
            lambda logits, ids: loss_of(logits[:, :-1], ids[:, 1:]).exp(),
        ),
    ),
)


# ------------------------------------------------------------------------------------------------ sampling


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits (B, V) and a temperature above 0 -> probabilities (B, V)."""
    return (logits / temperature).softmax(-1)


APPLY_TEMPERATURE = Task(
    apply_temperature,
    lambda: [(2 * draw(1, 3), 0.5), (2 * draw(2, 6, seed=1), 1.0), (draw(3, 9, seed=2, dtype=torch.float32), 2.0)],
    "probabilities (B, V): every row sums to 1",
    "divide the logits by the temperature, then softmax(-1).",
    (
        Mistake(
            "it multiplies by the temperature. Then a high temperature would make the likely tokens likelier.",
            lambda logits, temperature: (logits * temperature).softmax(-1),
        ),
        Mistake(
            "the probabilities are divided, not the logits: softmax comes first and the rows do not sum to 1.",
            lambda logits, temperature: logits.softmax(-1) / temperature,
        ),
        Mistake(
            "the temperature is not used.",
            lambda logits, temperature: logits.softmax(-1),
        ),
        Mistake(
            "it returns the divided logits. They still have to become probabilities, by softmax(-1).",
            lambda logits, temperature: logits / temperature,
        ),
        Mistake(
            "softmax runs over the texts of the batch (axis 0). Each text has its own probabilities: softmax(-1).",
            lambda logits, temperature: (logits / temperature).softmax(0),
        ),
        Mistake(
            "softmax twice: the probabilities are taken for logits.",
            lambda logits, temperature: (logits / temperature).softmax(-1).softmax(-1),
        ),
    ),
)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (B, V) -> logits (B, V): all but the k largest of each row are -inf."""
    smallest = logits.topk(k).values[:, -1:]
    return logits.masked_fill(logits < smallest, -INF)


KEEP_TOP_K = Task(
    keep_top_k,
    lambda: [(draw(1, 5), 2), (draw(3, 8, seed=1), 3), (draw(2, 6, seed=2, dtype=torch.float32), 1), (draw(1, 4), 4)],
    "logits (B, V): the k largest of each row as they were, all others -inf",
    "logits.topk(k).values are the k largest of each row, the largest first. What is smaller than the last of them "
    "becomes -inf (masked_fill).",
    (
        Mistake(
            "the others are set to 0. A logit of 0 still has a probability, exp(0) = 1 before the division. They have "
            "to be -inf.",
            lambda logits, k: logits.masked_fill(logits < logits.topk(k).values[:, -1:], 0),
        ),
        Mistake(
            "it keeps the k smallest.",
            lambda logits, k: logits.masked_fill(logits > logits.topk(k, largest=False).values[:, -1:], -INF),
        ),
        Mistake(
            "only the largest logit is left: it compares with the first of the k values. Compare with the last one.",
            lambda logits, k: logits.masked_fill(logits < logits.topk(k).values[:, :1], -INF),
        ),
        Mistake(
            "one too few is left: the k-th largest goes too. Drop what is smaller than it, not what equals it.",
            lambda logits, k: logits.masked_fill(logits <= logits.topk(k).values[:, -1:], -INF),
        ),
        Mistake(
            "it returns the k values alone, so the tokens that they belong to are lost. Keep the shape (B, V).",
            lambda logits, k: logits.topk(k).values,
        ),
        Mistake(
            "every row is compared with the k-th largest logit of the first row. Each text has its own.",
            lambda logits, k: logits.masked_fill(logits < logits.topk(k).values[:1, -1:], -INF),
        ),
        Mistake(
            "it returns probabilities. Wanted are logits, so that temperature and top-p can be applied as well.",
            lambda logits, k: keep_top_k(logits, k).softmax(-1),
        ),
    ),
)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits (B, V) -> logits (B, V): the fewest likeliest tokens with a total probability of at least p stay."""
    ordered, places = logits.sort(descending=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    return logits.scatter(-1, places, ordered.masked_fill(before >= p, -INF))


def top_p_cases() -> list[tuple]:
    three = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64).log()
    return [(three, 0.7), (three, 0.4), (2 * draw(3, 8, seed=1), 0.9), (draw(2, 6, seed=2, dtype=torch.float32), 0.6)]


def top_p_dropping_the_last(logits: Tensor, p: float) -> Tensor:
    ordered, places = logits.sort(descending=True)
    return logits.scatter(-1, places, ordered.masked_fill(ordered.softmax(-1).cumsum(-1) > p, -INF))


def top_p_ascending(logits: Tensor, p: float) -> Tensor:
    ordered, places = logits.sort()
    probabilities = ordered.softmax(-1)
    return logits.scatter(-1, places, ordered.masked_fill(probabilities.cumsum(-1) - probabilities >= p, -INF))


def top_p_in_order(logits: Tensor, p: float) -> Tensor:
    ordered, _ = logits.sort(descending=True)
    probabilities = ordered.softmax(-1)
    return ordered.masked_fill(probabilities.cumsum(-1) - probabilities >= p, -INF)


def top_p_gathered(logits: Tensor, p: float) -> Tensor:
    ordered, places = logits.sort(descending=True)
    probabilities = ordered.softmax(-1)
    kept = ordered.masked_fill(probabilities.cumsum(-1) - probabilities >= p, -INF)
    return kept.gather(-1, places)


def top_p_of_logits(logits: Tensor, p: float) -> Tensor:
    ordered, places = logits.sort(descending=True)
    return logits.scatter(-1, places, ordered.masked_fill(ordered.cumsum(-1) - ordered >= p, -INF))


def top_p_unsorted(logits: Tensor, p: float) -> Tensor:
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities.cumsum(-1) - probabilities >= p, -INF)


KEEP_TOP_P = Task(
    keep_top_p,
    top_p_cases,
    "logits (B, V): those of the likeliest tokens as they were, in their own places, all others -inf",
    "sort the logits, largest first; softmax; for each token the total probability of all likelier ones is "
    "cumsum(-1) minus its own. Where that is at least p, the token goes (-inf). logits.scatter(-1, places, ordered) "
    "writes sorted logits back to their places.",
    (
        Mistake(
            "the token that crosses p is dropped as well, so less than p is left; where one token alone has more than "
            "p, nothing is left at all. Drop a token only if the likelier ones already have p.",
            top_p_dropping_the_last,
        ),
        Mistake("it sorts the smallest first, so the unlikely tokens stay.", top_p_ascending),
        Mistake(
            "the result is in the order of the sorting, so a logit stands at another token's place. Write each back to "
            "its own: logits.scatter(-1, places, ordered).",
            top_p_in_order,
        ),
        Mistake(
            "gather instead of scatter: places[i] says where the i-th largest logit came from, so it has to be written "
            "there (scatter), not read from there.",
            top_p_gathered,
        ),
        Mistake("it sums logits, not probabilities: softmax is missing before cumsum.", top_p_of_logits),
        Mistake(
            "it sums in the order of the vocabulary. The likeliest tokens have to come first: sort.",
            top_p_unsorted,
        ),
        Mistake(
            "each token is compared with p by itself. It is the total of the likelier tokens that counts.",
            lambda logits, p: logits.masked_fill(logits.softmax(-1) < p, -INF),
        ),
        Mistake(
            "it keeps the tokens with at least 1 - p. It is the total of the likelier tokens that counts.",
            lambda logits, p: logits.masked_fill(logits.softmax(-1) < 1 - p, -INF),
        ),
    ),
)


# ------------------------------------------------------------------------------------------------ the cache


def attend_with_cache(
    q: Tensor, k: Tensor, v: Tensor, cached_keys: Tensor, cached_values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(1, D) each and the S keys and values (S, D) of earlier tokens -> result (1, D), keys, values (S + 1, D)."""
    keys, values = torch.cat((cached_keys, k)), torch.cat((cached_values, v))
    weights = (q @ keys.T / math.sqrt(q.shape[-1])).softmax(-1)
    return weights @ values, keys, values


def cache_cases() -> list[tuple]:
    return [
        tuple(draw(*shape, seed=seed) for seed, shape in enumerate([(1, 2)] * 3 + [(3, 2)] * 2)),
        tuple(draw(*shape, seed=seed, dtype=torch.float32) for seed, shape in enumerate([(1, 8)] * 3 + [(5, 8)] * 2)),
        tuple(draw(*shape, seed=seed) for seed, shape in enumerate([(1, 4)] * 3 + [(0, 4)] * 2)),  # the first token
    ]


def cached(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return (q @ keys.T / math.sqrt(q.shape[-1])).softmax(-1) @ values


def cache_masked(q: Tensor, k: Tensor, v: Tensor, cached_keys: Tensor, cached_values: Tensor) -> tuple:
    """With a causal mask whose first row is taken, so that only the oldest key is seen."""
    keys, values = torch.cat((cached_keys, k)), torch.cat((cached_values, v))
    return values[:1].clone(), keys, values


ATTEND_WITH_CACHE = Task(
    attend_with_cache,
    cache_cases,
    "three tensors: the result (1, D), and the keys and the values (S + 1, D) with those of the new token at the end",
    "torch.cat((cached_keys, k)) appends the new key, and likewise the value. Then attention as always, with one query "
    "and S + 1 keys; no mask is needed.",
    (
        Mistake(
            "the new token's key and value are not appended before it attends, so it does not see itself.",
            lambda q, k, v, ks, vs: (cached(q, ks, vs), torch.cat((ks, k)), torch.cat((vs, v))),
        ),
        Mistake(
            "the new token sees itself only: its query has to meet the cached keys, too.",
            lambda q, k, v, ks, vs: (cached(q, k, v), torch.cat((ks, k)), torch.cat((vs, v))),
        ),
        Mistake(
            "the new key and value stand in front of the cached ones. The result is the same here, but positions and "
            "later masks count on the order of the text: append at the end.",
            lambda q, k, v, ks, vs: (
                cached(q, torch.cat((k, ks)), torch.cat((v, vs))), torch.cat((k, ks)), torch.cat((v, vs)),
            ),
        ),
        Mistake(
            "it returns the cache as it was, so the next token will not see this one. Return the longer tensors.",
            lambda q, k, v, ks, vs: (cached(q, torch.cat((ks, k)), torch.cat((vs, v))), ks, vs),
        ),
        Mistake(
            "the keys are appended but the values are exchanged with them: the result averages values, not keys.",
            lambda q, k, v, ks, vs: (
                cached(q, torch.cat((ks, k)), torch.cat((ks, k))), torch.cat((ks, k)), torch.cat((vs, v)),
            ),
        ),
        Mistake(
            "a causal mask lined up at the top left hides all but the oldest key. The newest token may see the whole "
            "past: no mask is needed.",
            cache_masked,
        ),
        Mistake(
            "the division by sqrt(D) is missing.",
            lambda q, k, v, ks, vs: (
                (q @ torch.cat((ks, k)).T).softmax(-1) @ torch.cat((vs, v)), torch.cat((ks, k)), torch.cat((vs, v)),
            ),
        ),
        Mistake(
            "softmax is missing: the scores are not weights yet.",
            lambda q, k, v, ks, vs: (
                q @ torch.cat((ks, k)).T / math.sqrt(q.shape[-1]) @ torch.cat((vs, v)),
                torch.cat((ks, k)), torch.cat((vs, v)),
            ),
        ),
    ),
)


TASKS = {
    "most_common_pair": MOST_COMMON_PAIR,
    "merge_pair": MERGE_PAIR,
    "next_token_loss": NEXT_TOKEN_LOSS,
    "apply_temperature": APPLY_TEMPERATURE,
    "keep_top_k": KEEP_TOP_K,
    "keep_top_p": KEEP_TOP_P,
    "attend_with_cache": ATTEND_WITH_CACHE,
}
