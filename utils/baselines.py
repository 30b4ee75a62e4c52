"""What a model has to beat: each ladder is fitted on the training part and scored on the same held-out part."""

from __future__ import annotations

import lzma
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def text_ladder(train: str, held_out: str) -> dict[str, float]:
    """Bits per byte of `held_out`: uniform, unigram, bigram, 5-gram (over bytes, Witten-Bell) and lzma."""
    old, new = (np.frombuffer(text.encode(), np.uint8).astype(np.uint64) for text in (train, held_out))
    ladder = {"uniform": 8.0}
    for name, order in {"unigram": 1, "bigram": 2, "5-gram": 5}.items():
        ladder[name] = float(-np.log2(witten_bell(old, new, order)).mean())
    ladder["lzma"] = lzma_bits(train.encode(), held_out.encode())
    return ladder


def witten_bell(train: np.ndarray, held_out: np.ndarray, order: int) -> np.ndarray:
    """The probability of each held-out byte given the `order` - 1 bytes before it.

    p_n(w | h) = (count(h w) + kinds(h) p_{n-1}(w | shorter h)) / (count(h) + kinds(h)), p_0 = 1/256, where kinds(h)
    is how many different bytes follow h (Witten and Bell 1991). At the start, the history is a line break.
    """
    pad = np.full(order - 1, ord("\n"), np.uint64)
    p = np.full(len(held_out), 1 / 256)
    for n in range(1, order + 1):
        old, new = (np.concatenate((pad[: n - 1], part)) for part in (train, held_out))
        seen, asked = pack(old, n), pack(new, n)
        grams, counts = np.unique(seen, return_counts=True)
        histories, first, kinds = np.unique(grams >> np.uint64(8), return_index=True, return_counts=True)
        totals = np.add.reduceat(counts, first)
        count = look_up(grams, counts, asked)
        total, kind = (look_up(histories, values, asked >> np.uint64(8)) for values in (totals, kinds))
        p = np.where(total > 0, (count + kind * p) / np.maximum(total + kind, 1), p)
    return p


def pack(text: np.ndarray, n: int) -> np.ndarray:
    """Each run of n bytes as one number, the latest byte lowest."""
    return sum(text[i : len(text) - n + 1 + i] << np.uint64(8 * (n - 1 - i)) for i in range(n))


def look_up(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """values[keys == asked] for each asked, 0 where there is none. `keys` are sorted."""
    place = np.searchsorted(keys, asked).clip(max=len(keys) - 1)
    return np.where(keys[place] == asked, values[place], 0)


def lzma_bits(train: bytes, held_out: bytes) -> float:
    """Bits that each held-out byte adds to the compressed training part."""

    def size(content: bytes) -> int:
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 64 * 2**20}]
        return len(lzma.compress(content, lzma.FORMAT_RAW, filters=filters))

    return 8 * (size(train + held_out) - size(train)) / len(held_out)


def masked_ladder(train: Tensor, shown: Tensor, targets: Tensor, words: Tensor, vocab_size: int) -> dict[str, dict]:
    """Accuracy (and cross-entropy in nats, where it has one) on the masked words.

    train: ids (N,). shown, targets, words (B, T): the masked windows, their targets (-100: not scored), and the same
    windows unmasked. The neighbour table answers with the commonest word between two neighbours, backing off to the
    left one, then to the commonest word. It is scored twice: with the true neighbours, which the model does not get
    to see where they are masked too, and with what the model sees.
    """
    counts = torch.bincount(train, minlength=vocab_size)
    rows, columns = (targets != -100).nonzero(as_tuple=True)
    answers = targets[rows, columns]
    unigram = F.cross_entropy(((counts + 1) / (counts + 1).sum()).log().expand(len(answers), -1), answers)

    def table(context: Tensor, centre: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Contexts, sorted, and the commonest centre of each."""
        pairs, n = np.unique((context * vocab_size + centre).numpy(), return_counts=True)
        best = np.lexsort((-n, pairs // vocab_size))  # by context, the commonest first
        contexts, first = np.unique(pairs[best] // vocab_size, return_index=True)
        return contexts, pairs[best][first] % vocab_size + 1  # + 1: 0 means none

    left, centre, right = train[:-2], train[1:-1], train[2:]
    between, after = table(left * vocab_size + right, centre), table(train[:-1], train[1:])

    def accuracy(window: Tensor) -> float:
        before, behind = window[rows, columns - 1], window[rows, columns + 1]
        guess = look_up(*between, (before * vocab_size + behind).numpy())
        guess = np.where(guess > 0, guess, look_up(*after, before.numpy()))
        guess = np.where(guess > 0, guess - 1, int(counts.argmax()))
        return float((guess == answers.numpy()).mean())

    return {
        "uniform": {"accuracy": 1 / vocab_size, "cross_entropy": math.log(vocab_size)},
        "unigram": {"accuracy": float((answers == counts.argmax()).float().mean()), "cross_entropy": float(unigram)},
        "neighbour table": {"accuracy": accuracy(words)},
        "neighbour table, masked neighbours": {"accuracy": accuracy(shown)},
    }


def image_ladder(train: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Accuracy of the largest class of the training part, and of logistic regression on the pixels."""
    chances, labels = regression(train, held_out)
    return {
        "largest class": float((labels == train[1].bincount().argmax()).float().mean()),
        "logistic regression": float((chances.argmax(-1) == labels).float().mean()),
    }


def image_losses(train: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Cross-entropy in nats of guessing by the classes' shares in the training part, and of logistic regression."""
    chances, labels = regression(train, held_out)
    shares = train[1].bincount(minlength=chances.shape[1]) / len(train[1])
    return {
        "guessing": float(F.nll_loss(shares.log().expand(len(labels), -1), labels)),
        "logistic regression": float(F.nll_loss(chances.log(), labels)),
    }


def regression(train: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The probabilities (N, K) that logistic regression on the pixels gives the held-out pictures, and their labels."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # Large photographs are first averaged down: at full size the regression has more weights than it can fit.
    small = [F.adaptive_avg_pool2d(x.float(), min(x.shape[-1], 32)).flatten(1).numpy() for x, _ in (train, held_out)]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    chances = model.fit(small[0], train[1].numpy()).predict_proba(small[1])
    return torch.from_numpy(chances), held_out[1]


def table_ladder(train: tuple[list[str], list[int]], held_out: tuple[list[str], list[int]]) -> dict[str, float]:
    """Accuracy of the largest class of the training part, and of logistic regression on words weighted by TF-IDF."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    largest = max(set(train[1]), key=train[1].count)
    words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
    model = make_pipeline(words, LogisticRegression(C=10.0, max_iter=1000))
    return {
        "largest class": sum(label == largest for label in held_out[1]) / len(held_out[1]),
        "TF-IDF, logistic regression": float(model.fit(*train).score(*held_out)),
    }


def interval(accuracy: float, n: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy measured on n items (Wilson 1927)."""
    z = 1.96
    middle = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
