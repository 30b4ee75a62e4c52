"""The functions of notebooks/attention.ipynb: a block, piece by piece.

Letters as in transformer.py: B sequences, T positions that look, S positions that are looked at, C features, H heads of
D = C / H features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from transformer import Block, Config
from utils.lessons.tasks.task import Mistake, Task, draw

INF = math.inf
# The example of the notebook: queries, keys and values of four tokens. The first feature of queries and keys stands for
# persons and animals, the second for actions.
FOUR = (
    torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 0.0], [1.0, 1.0]]),
    torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, -1.0], [2.0, 1.0]]),
    torch.tensor([[10.0, 0.0], [0.0, 10.0], [0.0, 0.0], [5.0, 5.0]]),
    ("Mia", "fed", "her", "cat"),
)


# ------------------------------------------------------------------------------------------------ scores


def scores(q: Tensor, k: Tensor) -> Tensor:
    """(..., T, D), (..., S, D) -> (..., T, S)."""
    return q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])


def scores_cases() -> list[tuple]:
    return [
        (draw(4, 2), draw(4, 2, seed=1)),
        (draw(3, 8), draw(5, 8, seed=1)),  # fewer queries than keys
        (draw(2, 3, 5, 6, dtype=torch.float32), draw(2, 3, 5, 6, seed=1, dtype=torch.float32)),
    ]


SCORES = Task(
    scores,
    scores_cases,
    "the scores (..., T, S): a row for every query, a column for every key",
    "the dot products of all queries with all keys are one matrix product, q @ k.transpose(-2, -1). Then divide by the "
    "square root of D = q.shape[-1].",
    (
        Mistake(
            "the division by sqrt(D) is missing. The scores then grow with D, and softmax puts nearly all weight "
            "on one key.",
            lambda q, k: q @ k.transpose(-2, -1),
        ),
        Mistake(
            "it divides by D instead of its square root. A sum of D independent products grows like sqrt(D).",
            lambda q, k: q @ k.transpose(-2, -1) / q.shape[-1],
        ),
        Mistake(
            "it multiplies by sqrt(D) instead of dividing.",
            lambda q, k: q @ k.transpose(-2, -1) * math.sqrt(q.shape[-1]),
        ),
        Mistake(
            "it divides by the square root of the number of keys. The scores grow with the number of features, D.",
            lambda q, k: q @ k.transpose(-2, -1) / math.sqrt(k.shape[-2]),
        ),
        Mistake(
            "it divides by the square root of the number of queries, q.shape[-2]. D is the last size, q.shape[-1].",
            lambda q, k: q @ k.transpose(-2, -1) / math.sqrt(q.shape[-2]),
        ),
        Mistake(
            "it divides by sqrt(2). D is 2 in the example only: use q.shape[-1].",
            lambda q, k: q @ k.transpose(-2, -1) / math.sqrt(2),
        ),
        Mistake(
            "rows and columns are exchanged: row t has to hold the scores of query t, so q comes first in the product.",
            lambda q, k: k @ q.transpose(-2, -1) / math.sqrt(q.shape[-1]),
        ),
        Mistake(
            "it normalises already: softmax belongs to the next function.",
            lambda q, k: scores(q, k).softmax(-1),
        ),
    ),
)


# ------------------------------------------------------------------------------------------------ the causal mask


def causal_mask(T: int) -> Tensor:
    """T -> (T, T), boolean: True where the query of the row may look at the key of the column."""
    return torch.ones(T, T, dtype=torch.bool).tril()


CAUSAL_MASK = Task(
    causal_mask,
    lambda: [(1,), (2,), (4,), (7,)],
    "a boolean tensor (T, T): True where the position of the row may look at the position of the column",
    "start from torch.ones(T, T, dtype=torch.bool); .tril() keeps the lower triangle with its diagonal.",
    (
        Mistake(
            "the mask is inverted: it is True for the future. Row t has to be True at the columns 0 to t.",
            lambda T: torch.ones(T, T, dtype=torch.bool).triu(1),
        ),
        Mistake(
            "this is the upper triangle: every position sees itself and what comes after. Wanted is the past.",
            lambda T: torch.ones(T, T, dtype=torch.bool).triu(),
        ),
        Mistake(
            "the diagonal is missing: a position may look at itself. Without it, the first position sees nothing, and "
            "its softmax is 0 / 0.",
            lambda T: torch.ones(T, T, dtype=torch.bool).tril(-1),
        ),
        Mistake(
            "one position too many: each position also sees the next one, which is the answer that it has to predict.",
            lambda T: torch.ones(T, T, dtype=torch.bool).tril(1),
        ),
        Mistake("it hides nothing: every position sees all.", lambda T: torch.ones(T, T, dtype=torch.bool)),
        Mistake("it hides all but the diagonal: the past is lost.", lambda T: torch.eye(T, dtype=torch.bool)),
        Mistake(
            "right, but as numbers: `visible` has to be boolean, so that it can be inverted with ~ and used as an "
            "index.",
            lambda T: torch.ones(T, T).tril(),
        ),
        Mistake(
            "this is a mask to be added to the scores, 0 and -inf. Here the mask is boolean; the next function "
            "applies it.",
            lambda T: torch.zeros(T, T).masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -INF),
        ),
    ),
)


# ------------------------------------------------------------------------------------------------ weights


def attention_weights(scores: Tensor, visible: Tensor) -> Tensor:
    """Scores (..., T, S) and a mask (T, S), True where a query may look -> weights (..., T, S)."""
    return scores.masked_fill(~visible, -INF).softmax(-1)


def weights_cases() -> list[tuple]:
    return [
        (draw(4, 4), causal_mask(4)),
        (draw(2, 3, 5, 5), torch.ones(5, 5, dtype=torch.bool)),
        (draw(2, 3, 5, 5, seed=2, dtype=torch.float32), causal_mask(5)),
        (draw(3, 5), torch.tensor([[True, False, True, True, False]]).expand(3, 5)),  # the rest is padding
        (5_000 * draw(4, 4, seed=3), causal_mask(4)),  # large scores: -1,000 would not hide them
    ]


WEIGHTS = Task(
    attention_weights,
    weights_cases,
    "the weights (..., T, S): in every row they are 0 at what is hidden, and sum to 1",
    "scores.masked_fill(~visible, -math.inf) makes the hidden scores -inf; softmax(-1) turns each row into "
    "weights, and exp(-inf) is 0.",
    (
        Mistake(
            "the mask is not used: hidden positions get weight.",
            lambda scores, visible: scores.softmax(-1),
        ),
        Mistake(
            "the mask is inverted: it hides what may be seen. masked_fill fills where its mask is True, so it needs "
            "~visible.",
            lambda scores, visible: scores.masked_fill(visible, -INF).softmax(-1),
        ),
        Mistake(
            "softmax runs over the wrong axis: the columns sum to 1. Each query, a row, divides its attention "
            "among the keys: softmax(-1).",
            lambda scores, visible: scores.masked_fill(~visible, -INF).softmax(-2),
        ),
        Mistake(
            "hidden scores are set to 0. exp(0) is 1, so hidden positions still get weight. They have to be -inf.",
            lambda scores, visible: scores.masked_fill(~visible, 0).softmax(-1),
        ),
        Mistake(
            "the mask comes after the softmax: the hidden weights are 0, but the others no longer sum to 1.",
            lambda scores, visible: scores.softmax(-1) * visible,
        ),
        Mistake(
            "hidden scores are set to -1,000. Larger scores exist (the last case has them), and then what is hidden is "
            "seen. Only -inf is below all.",
            lambda scores, visible: scores.masked_fill(~visible, -1e3).softmax(-1),
        ),
        Mistake(
            "the hidden scores are -inf, but softmax is missing.",
            lambda scores, visible: scores.masked_fill(~visible, -INF),
        ),
        Mistake(
            "hidden scores are set to +inf. The smallest score is wanted, -math.inf.",
            lambda scores, visible: scores.masked_fill(~visible, INF).softmax(-1),
        ),
        Mistake(
            "exp of a large score is inf, and inf / inf is NaN. Use .softmax(-1), which subtracts the largest score "
            "of the row first.",
            lambda scores, visible: (
                (e := scores.masked_fill(~visible, -INF).exp()) / e.sum(-1, keepdim=True)
            ),
        ),
        Mistake(
            "exp without the division: the weights of a row do not sum to 1. Use softmax(-1).",
            lambda scores, visible: scores.masked_fill(~visible, -INF).exp(),
        ),
        Mistake(
            "these are the logarithms of the weights: log_softmax instead of softmax.",
            lambda scores, visible: scores.masked_fill(~visible, -INF).log_softmax(-1),
        ),
    ),
)


# ------------------------------------------------------------------------------------------------ mixing


def mix(weights: Tensor, v: Tensor) -> Tensor:
    """Weights (..., T, S) and values (..., S, D) -> (..., T, D)."""
    return weights @ v


def mix_cases() -> list[tuple]:
    square, several = draw(4, 4).softmax(-1), draw(2, 3, 4, 4, seed=1, dtype=torch.float32).softmax(-1)
    return [
        (square, draw(4, 4, seed=2)),
        (several, draw(2, 3, 4, 2, seed=3, dtype=torch.float32)),
        (draw(3, 5, seed=4).softmax(-1), draw(5, 2, seed=5)),
    ]


MIX = Task(
    mix,
    mix_cases,
    "the mixed values (..., T, D): row t is the average of the rows of v by the weights of row t",
    "a weighted sum of the rows of v, for every row of the weights, is one matrix product.",
    (
        Mistake(
            "the weights are transposed: row t has to be averaged by the weights of query t, not by those that others "
            "give to it.",
            lambda weights, v: weights.transpose(-2, -1) @ v,
        ),
        Mistake(
            "it takes the value of the largest weight alone. Attention is an average: all values count, by their "
            "weights.",
            lambda weights, v: torch.nn.functional.one_hot(weights.argmax(-1), v.shape[-2]).to(v.dtype) @ v,
        ),
        Mistake(
            "it takes the plain mean of the values: the weights are not used.",
            lambda weights, v: torch.ones_like(weights) / v.shape[-2] @ v,
        ),
        Mistake(
            "the product is the wrong way round: the weights come first, weights @ v.",
            lambda weights, v: v @ weights,
        ),
        Mistake(
            "* multiplies element by element. The product of matrices is @.",
            lambda weights, v: weights * v,
        ),
        Mistake(
            "the result is divided by the number of keys. The weights sum to 1 already.",
            lambda weights, v: weights @ v / v.shape[-2],
        ),
    ),
)


# ------------------------------------------------------------------------------------------------ heads


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """(B, T, C) -> (B, H, T, D): head h gets the features h D to (h + 1) D - 1 of every position."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def merge_heads(y: Tensor) -> Tensor:
    """(B, H, T, D) -> (B, T, C): the features of the heads side by side."""
    return y.transpose(1, 2).flatten(2)


SPLIT_HEADS = Task(
    split_heads,
    lambda: [(draw(2, 4, 6), 3), (draw(1, 3, 8, dtype=torch.float32), 2), (draw(3, 4, 4), 4), (draw(2, 3, 4), 1)],
    "a tensor (B, H, T, D): for every head, a row of D features for every position",
    "x.unflatten(-1, (n_heads, -1)) cuts the last axis into heads: (B, T, H, D). Then exchange the axes 1 and 2.",
    (
        Mistake(
            "the shape is right, but the numbers are cut in the order of their indices, so a head gets "
            "other positions. First cut the last axis, to (B, T, H, D), then exchange the axes 1 and 2.",
            lambda x, n_heads: x.reshape(len(x), n_heads, x.shape[1], -1),
        ),
        Mistake(
            "the heads take turns: head 0 gets the features 0, H, 2H and so on. It has to get the first D ones: "
            "cut the last axis into (H, D), not into (D, H).",
            lambda x, n_heads: x.unflatten(-1, (-1, n_heads)).permute(0, 3, 1, 2),
        ),
        Mistake(
            "the axes of heads and positions are not exchanged: it returns (B, T, H, D).",
            lambda x, n_heads: x.unflatten(-1, (n_heads, -1)),
        ),
        Mistake(
            "D features are H heads: the last axis is cut into heads of n_heads features. Cut it into n_heads heads.",
            lambda x, n_heads: x.unflatten(-1, (-1, n_heads)).transpose(1, 2),
        ),
    ),
)

MERGE_HEADS = Task(
    merge_heads,
    lambda: [(draw(2, 3, 4, 2),), (draw(1, 2, 3, 4, dtype=torch.float32),), (draw(3, 4, 4, 1),), (draw(2, 1, 3, 4),)],
    "a tensor (B, T, C): at every position the features of head 0, then those of head 1, and so on",
    "undo split_heads: exchange the axes 1 and 2, to (B, T, H, D), then join the last two, with .flatten(2).",
    (
        Mistake(
            "the heads are merged without the transpose: the shape is right, but a position gets features of other "
            "positions. Exchange the axes 1 and 2 first.",
            lambda y: y.reshape(len(y), y.shape[2], -1),
        ),
        Mistake(
            "the features of the heads take turns. Those of head 0 come first, then those of head 1.",
            lambda y: y.permute(0, 2, 3, 1).flatten(2),
        ),
        Mistake(
            "the axes of heads and positions are not exchanged back before the last axes are joined. First "
            "transpose(1, 2), then flatten(2).",
            lambda y: y.flatten(2),
        ),
        Mistake("the last two axes are not joined: it returns (B, T, H, D).", lambda y: y.transpose(1, 2)),
        Mistake("it averages the heads. They stand side by side, so that none is lost.", lambda y: y.mean(1)),
    ),
)


# ------------------------------------------------------------------------------------------------ the block


def attend(x: Tensor, layers: Block, visible: Tensor, project: bool = True, n_heads: int | None = None) -> Tensor:
    """What attention adds: (B, T, C) -> (B, T, C)."""
    q, k, v = layers.attention.qkv(x).chunk(3, dim=-1)
    q, k, v = (split_heads(part, n_heads or layers.attention.n_heads) for part in (q, k, v))
    y = merge_heads(mix(attention_weights(scores(q, k), visible), v))
    return layers.attention.out(y) if project else y


def block(x: Tensor, layers: Block, visible: Tensor) -> Tensor:
    """(B, T, C) -> (B, T, C), with the layers of a pre-norm `transformer.Block`."""
    x = x + attend(layers.norm1(x), layers, visible)
    return x + layers.mlp(layers.norm2(x))


def block_cases() -> list[tuple]:
    cases = []
    for seed, (heads, width, length, dtype) in enumerate(((2, 8, 5, torch.float64), (4, 16, 3, torch.float32))):
        layers = Block(Config(n_heads=heads, d_model=width, d_ff=2 * width)).to(dtype).requires_grad_(False)
        for number, parameter in enumerate(layers.parameters()):  # no weight is 0 or 1, so none can be left out
            parameter.copy_(draw(*parameter.shape, seed=100 * seed + number, dtype=dtype) / 2)
        cases.append((draw(2, length, width, seed=seed, dtype=dtype), layers, causal_mask(length)))
    everything = torch.ones(length, length, dtype=torch.bool)
    cases.append((draw(1, length, width, seed=5, dtype=dtype), layers, everything))  # as in BERT
    return cases


def post_norm(x: Tensor, layers: Block, visible: Tensor) -> Tensor:
    x = layers.norm1(x + attend(x, layers, visible))
    return layers.norm2(x + layers.mlp(x))


def normed_residual(x: Tensor, layers: Block, visible: Tensor) -> Tensor:
    x = layers.norm1(x)
    x = layers.norm2(x + attend(x, layers, visible))
    return x + layers.mlp(x)


def values_first(x: Tensor, layers: Block, visible: Tensor) -> Tensor:
    v, k, q = layers.attention.qkv(layers.norm1(x)).chunk(3, dim=-1)
    q, k, v = (split_heads(part, layers.attention.n_heads) for part in (q, k, v))
    x = x + layers.attention.out(merge_heads(mix(attention_weights(scores(q, k), visible), v)))
    return x + layers.mlp(layers.norm2(x))


def keys_first(x: Tensor, layers: Block, visible: Tensor) -> Tensor:
    k, q, v = layers.attention.qkv(layers.norm1(x)).chunk(3, dim=-1)
    q, k, v = (split_heads(part, layers.attention.n_heads) for part in (q, k, v))
    x = x + layers.attention.out(merge_heads(mix(attention_weights(scores(q, k), visible), v)))
    return x + layers.mlp(layers.norm2(x))


def half(x: Tensor, layers: Block, visible: Tensor, **options) -> Tensor:
    """The block with its attention changed."""
    x = x + attend(layers.norm1(x), layers, visible, **options)
    return x + layers.mlp(layers.norm2(x))


def no_residuals(x: Tensor, layers: Block, visible: Tensor) -> Tensor:
    return layers.mlp(layers.norm2(attend(layers.norm1(x), layers, visible)))


def no_first_residual(x: Tensor, layers: Block, visible: Tensor) -> Tensor:
    x = attend(layers.norm1(x), layers, visible)
    return x + layers.mlp(layers.norm2(x))


def scaled_by_model_width(x: Tensor, layers: Block, visible: Tensor) -> Tensor:
    q, k, v = layers.attention.qkv(layers.norm1(x)).chunk(3, dim=-1)
    q, k, v = (split_heads(part, layers.attention.n_heads) for part in (q, k, v))
    scaled = q @ k.transpose(-2, -1) / math.sqrt(x.shape[-1])
    x = x + layers.attention.out(merge_heads(mix(attention_weights(scaled, visible), v)))
    return x + layers.mlp(layers.norm2(x))


BLOCK = Task(
    block,
    block_cases,
    "the hidden states (B, T, C) after both steps of a pre-norm block",
    "two steps: x = x + attention(norm1(x)), then x + mlp(norm2(x)). layers.attention.qkv(...).chunk(3, dim=-1) "
    "gives queries, keys and values; split them into layers.attention.n_heads heads, use your functions, merge "
    "the heads, and pass the result through layers.attention.out.",
    (
        Mistake(
            "both residual connections are missing: each step has to add its result to x, not replace it.",
            no_residuals,
        ),
        Mistake("the residual connection around attention is missing: x = x + ...", no_first_residual),
        Mistake(
            "the residual connection around the feed-forward network is missing: x + layers.mlp(...)",
            lambda x, layers, visible: layers.mlp(layers.norm2(x + attend(layers.norm1(x), layers, visible))),
        ),
        Mistake(
            "the norms stand after the additions. That is post-norm, as in BERT; here they stand before attention and "
            "before the feed-forward network, and x itself is never normalised.",
            post_norm,
        ),
        Mistake(
            "x is replaced by its norm, and the result is added to that. Only what attention and the feed-forward "
            "network read is normalised; the sum goes on with x as it was.",
            normed_residual,
        ),
        Mistake(
            "both norms are missing.",
            lambda x, layers, visible: (y := x + attend(x, layers, visible)) + layers.mlp(y),
        ),
        Mistake(
            "norm1 is missing: attention has to read layers.norm1(x).",
            lambda x, layers, visible: (y := x + attend(x, layers, visible)) + layers.mlp(layers.norm2(y)),
        ),
        Mistake(
            "norm2 is missing: the feed-forward network has to read layers.norm2(x).",
            lambda x, layers, visible: (y := x + attend(layers.norm1(x), layers, visible)) + layers.mlp(y),
        ),
        Mistake(
            "norm1 is used twice. The second norm has a gain and a bias of its own.",
            lambda x, layers, visible: (
                (y := x + attend(layers.norm1(x), layers, visible)) + layers.mlp(layers.norm1(y))
            ),
        ),
        Mistake(
            "the feed-forward network reads x from before attention, so it does not see what attention has gathered.",
            lambda x, layers, visible: (
                x + attend(layers.norm1(x), layers, visible) + layers.mlp(layers.norm2(x))
            ),
        ),
        Mistake(
            "the feed-forward network is missing.",
            lambda x, layers, visible: x + attend(layers.norm1(x), layers, visible),
        ),
        Mistake(
            "layers.attention.out is missing: this last linear layer mixes the features of the heads.",
            lambda x, layers, visible: half(x, layers, visible, project=False),
        ),
        Mistake(
            "there is one head only: queries, keys and values have to be split into layers.attention.n_heads heads.",
            lambda x, layers, visible: half(x, layers, visible, n_heads=1),
        ),
        Mistake(
            "the mask is not used.",
            lambda x, layers, visible: half(x, layers, torch.ones_like(visible)),
        ),
        Mistake(
            "it makes a causal mask of its own. Use the argument `visible`: BERT, for one, passes a mask that hides "
            "nothing.",
            lambda x, layers, visible: half(x, layers, causal_mask(len(visible))),
        ),
        Mistake(
            "the norms stand on the results. They belong on what is read: x + attention(norm1(x)), not "
            "x + norm1(attention(x)).",
            lambda x, layers, visible: (
                (y := x + layers.norm1(attend(x, layers, visible))) + layers.norm2(layers.mlp(y))
            ),
        ),
        Mistake(
            "for the second step x is replaced by norm2(x), and the result is added to that. The feed-forward network "
            "reads the normalised copy; the sum goes on with x as it was.",
            lambda x, layers, visible: (
                (y := layers.norm2(x + attend(layers.norm1(x), layers, visible))) + layers.mlp(y)
            ),
        ),
        Mistake(
            "the mask is transposed or inverted: positions see the future.",
            lambda x, layers, visible: half(x, layers, visible.T),
        ),
        Mistake(
            "the scores are divided by the square root of C, the model's width, instead of D, the width of one head.",
            scaled_by_model_width,
        ),
        Mistake(
            "queries and keys are exchanged: the first third of layers.attention.qkv is the queries.",
            keys_first,
        ),
        Mistake(
            "queries and values are exchanged: layers.attention.qkv gives queries, keys, values, in this order.",
            values_first,
        ),
    ),
)


TASKS = {
    "scores": SCORES,
    "causal_mask": CAUSAL_MASK,
    "attention_weights": WEIGHTS,
    "mix": MIX,
    "split_heads": SPLIT_HEADS,
    "merge_heads": MERGE_HEADS,
    "block": BLOCK,
}
