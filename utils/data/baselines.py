"""Baselines: what simple methods, fitted on the training part, score on the same held-out part as the model."""

from __future__ import annotations

import lzma
import math
from collections import Counter

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# ------------------------------------------------------------------------------------------------ text


def text_ladder(train: str, held_out: str) -> dict[str, float]:
    """Return bits per byte of `held_out` for uniform guessing, three n-gram models over bytes, and lzma."""
    train_bytes, held_out_bytes = train.encode(), held_out.encode()
    old, new = (np.frombuffer(content, np.uint8).astype(np.uint64) for content in (train_bytes, held_out_bytes))
    ladder = {"uniform": 8.0}
    for name, order in {"unigram": 1, "bigram": 2, "5-gram": 5}.items():
        ladder[name] = float(-np.log2(witten_bell(old, new, order)).mean())
    ladder["lzma"] = lzma_bits(train_bytes, held_out_bytes)
    return ladder


def witten_bell(train: np.ndarray, held_out: np.ndarray, order: int) -> np.ndarray:
    """Return the probability of each held-out byte (N,) given the `order` - 1 bytes before it, its history.

    The counts of the training bytes are smoothed with those of shorter histories (Witten and Bell 1991):
    p_n(w | h) = (count(h w) + kinds(h) p_{n-1}(w | shorter h)) / (count(h) + kinds(h)), p_0 = 1/256,
    where kinds(h) is how many different bytes follow h. Line breaks are the history at the start of each text.
    train, held_out: byte values as uint64, so that up to 8 of them can be packed into one number.
    """
    start = np.full(order - 1, ord("\n"), np.uint64)
    p = np.full(len(held_out), 1 / 256)
    for n in range(1, order + 1):
        seen = pack(np.concatenate((start[: n - 1], train)), n)
        asked = pack(np.concatenate((start[: n - 1], held_out)), n)
        p = smoothed(p, seen, asked)
    return p


def smoothed(p: np.ndarray, seen: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return p_n of `witten_bell` for each asked gram, given p_{n-1}.

    seen, asked: the grams of the training and of the held-out part, each a whole number: 256 x its history + its byte.
    """
    grams, counts = np.unique(seen, return_counts=True)
    histories, first, kinds = np.unique(grams // 256, return_index=True, return_counts=True)  # sorted, as the grams are
    totals = np.add.reduceat(counts, first)
    count = look_up(grams, counts, asked)
    total, kind = look_up(histories, totals, asked // 256), look_up(histories, kinds, asked // 256)
    return np.where(total > 0, (count + kind * p) / np.maximum(total + kind, 1), p)


def pack(text: np.ndarray, n: int) -> np.ndarray:
    """Return each run of n bytes as one number, the last byte in the lowest bits."""
    length = len(text) - n + 1
    return sum(text[i : i + length] << np.uint64(8 * (n - 1 - i)) for i in range(n))


def look_up(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the value of each asked key, or 0 where `keys`, which must be sorted, do not contain it."""
    place = np.searchsorted(keys, asked).clip(max=len(keys) - 1)
    return np.where(keys[place] == asked, values[place], 0)


def lzma_bits(train: bytes, held_out: bytes) -> float:
    """Return how many bits each held-out byte adds when the training part is compressed together with it."""

    def size(content: bytes) -> int:
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 64 * 2**20}]
        return len(lzma.compress(content, lzma.FORMAT_RAW, filters=filters))

    return 8 * (size(train + held_out) - size(train)) / len(held_out)


# ------------------------------------------------------------------------------------------------ masked tokens


def masked_ladder(train: Tensor, masked: Tensor, targets: Tensor, tokens: Tensor, vocab_size: int) -> dict[str, dict]:
    """Return the accuracy on masked tokens, and where there is one the cross-entropy in nats, of each baseline.

    train: token ids (N,). masked: windows (B, T) with [MASK] in them. targets (B, T): the masked tokens, and -100 at
    all other places. tokens: the same windows (B, T) without [MASK].

    The neighbour table answers with the training part's commonest token between the same two neighbours; where there
    is none, with the commonest one after the left neighbour; and else with the commonest of all. It is scored twice:
    with the true neighbours, which the model cannot see where they are masked as well, and with what the model sees.
    """
    counts = torch.bincount(train, minlength=vocab_size)
    commonest = counts.argmax()
    rows, columns = (targets != -100).nonzero(as_tuple=True)
    answers = targets[rows, columns]
    shares = (counts + 1) / (counts + 1).sum()  # no token has a share of 0
    unigram = F.cross_entropy(shares.log().expand(len(answers), -1), answers)

    left, centre, right = train[:-2], train[1:-1], train[2:]
    between = commonest_centres(left * vocab_size + right, centre, vocab_size)
    after = commonest_centres(train[:-1], train[1:], vocab_size)

    def accuracy(windows: Tensor) -> float:
        """The neighbour table's accuracy with these neighbours."""
        before, behind = windows[rows, columns - 1], windows[rows, columns + 1]
        by_both = look_up(*between, (before * vocab_size + behind).numpy())
        by_left = look_up(*after, before.numpy())
        guess = np.where(by_both > 0, by_both, by_left)
        guess = np.where(guess > 0, guess - 1, int(commonest))
        return float((guess == answers.numpy()).mean())

    return {
        "uniform": {"accuracy": 1 / vocab_size, "cross_entropy": math.log(vocab_size)},
        "unigram": {"accuracy": float((answers == commonest).float().mean()), "cross_entropy": float(unigram)},
        "neighbour table": {"accuracy": accuracy(tokens)},
        "neighbour table, masked neighbours": {"accuracy": accuracy(masked)},
    }


def commonest_centres(context: Tensor, centre: Tensor, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted contexts and, for each, 1 + the token that is most often its centre: 0 is left for "none"."""
    pairs, counts = np.unique((context * vocab_size + centre).numpy(), return_counts=True)
    pairs = pairs[np.lexsort((-counts, pairs // vocab_size))]  # by context, and within a context the commonest first
    contexts, first = np.unique(pairs // vocab_size, return_index=True)
    return contexts, pairs[first] % vocab_size + 1


# ------------------------------------------------------------------------------------------------ classes

MOST = 20_000  # training items that logistic regression is fitted on; more take minutes and gigabytes
LARGEST = 2_500_000  # words times classes: the weights of the regression on words


def image_ladder(train: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Return the accuracy of the training part's largest class, and of logistic regression on the pixels.

    train, held_out: pictures (N, channels, h, w) and the numbers of their classes (N,).
    """
    probabilities, labels = regression(train, held_out)
    largest = train[1].bincount().argmax()
    return {
        "largest class": float((labels == largest).float().mean()),
        "logistic regression": float((probabilities.argmax(-1) == labels).float().mean()),
    }


def image_losses(train: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Return the cross-entropy in nats of the classes' shares in the training part, and of logistic regression.

    train, held_out: pictures (N, channels, h, w) and the numbers of their classes (N,).
    """
    probabilities, labels = regression(train, held_out)
    shares = train[1].bincount(minlength=probabilities.shape[1]) / len(train[1])
    return {
        "guessing": float(F.nll_loss(shares.log().expand(len(labels), -1), labels)),
        "logistic regression": float(F.nll_loss(probabilities.log(), labels)),
    }


def regression(train: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the probabilities (N, K) by logistic regression on the held-out pixels, and the true classes (N,)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def features(pictures: Tensor) -> np.ndarray:
        # Large photographs are averaged down first: at full size, the regression has more weights than it can fit.
        side = min(pictures.shape[-1], 32)
        return F.adaptive_avg_pool2d(pictures.float(), side).flatten(1).numpy()

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    some = sample(len(train[1]))
    model.fit(features(train[0][some]), train[1][some].numpy())
    probabilities = model.predict_proba(features(held_out[0]))
    return torch.from_numpy(probabilities), held_out[1]


def table_ladder(train: tuple[list[str], list[int]], held_out: tuple[list[str], list[int]]) -> dict[str, float]:
    """Return the accuracy of the training part's largest class, and of logistic regression on TF-IDF of words.

    train, held_out: texts and the numbers of their classes.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts, labels = held_out
    counts = Counter(train[1])
    largest = max(sorted(counts), key=counts.get)
    most_words = max(2000, LARGEST // len(counts))
    words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+|[^\w\s]", max_features=most_words)
    model = make_pipeline(words, LogisticRegression(C=10.0, max_iter=1000))
    some = sample(len(train[1])).tolist()
    model.fit([train[0][i] for i in some], [train[1][i] for i in some])
    return {
        "largest class": labels.count(largest) / len(labels),
        "TF-IDF, logistic regression": float(model.score(texts, labels)),
    }


def sample(n: int) -> Tensor:
    """Return the numbers of at most MOST of n training items, drawn at random: in their order where they are all."""
    if n <= MOST:
        return torch.arange(n)
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:MOST]


def interval(accuracy: float, n: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of an accuracy that was measured on n items (Wilson 1927)."""
    z = 1.96
    middle = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
