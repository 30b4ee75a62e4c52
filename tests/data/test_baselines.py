"""Baselines: each against a slow or hand-made computation."""

import lzma
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from samples import TEXT

from utils.data import baselines


def slow_witten_bell(train: bytes, held_out: bytes, order: int) -> list[float]:
    """With a dictionary for each length of history."""
    followers = [defaultdict(Counter) for _ in range(order)]
    padded = b"\n" * (order - 1) + train
    for n in range(order):
        for i in range(order - 1, len(padded)):
            followers[n][padded[i - n : i]][padded[i]] += 1

    def p(history: bytes, byte: int) -> float:
        seen = followers[len(history)].get(history)
        shorter = p(history[1:], byte) if history else 1 / 256
        if seen is None:
            return shorter
        return (seen[byte] + len(seen) * shorter) / (seen.total() + len(seen))

    asked = b"\n" * (order - 1) + held_out
    return [p(asked[i - order + 1 : i], asked[i]) for i in range(order - 1, len(asked))]


def as_bytes(written: str) -> np.ndarray:
    return np.frombuffer(written.encode(), np.uint8).astype(np.uint64)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_witten_bell(order):
    old, new = TEXT[:1500], TEXT[3000:3300] + "\u0416 zzz \xff"
    fast = baselines.witten_bell(as_bytes(old), as_bytes(new), order)
    assert fast == pytest.approx(slow_witten_bell(old.encode(), new.encode(), order), rel=1e-9)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_witten_bell_sums_to_1_over_the_next_byte(order):
    old = as_bytes(TEXT[:500])
    for history in (b"", b"zz", TEXT[40:50].encode()):
        new = [np.frombuffer(history + bytes([byte]), np.uint8).astype(np.uint64) for byte in range(256)]
        assert sum(baselines.witten_bell(old, asked, order)[-1] for asked in new) == pytest.approx(1)


def test_text_ladder():
    old, new = TEXT[:6000], TEXT[6000:7000]
    ladder = baselines.text_ladder(old, new)
    assert list(ladder) == ["uniform", "unigram", "bigram", "5-gram", "lzma"]
    assert ladder["uniform"] == 8
    for name, order in {"unigram": 1, "bigram": 2, "5-gram": 5}.items():
        expected = slow_witten_bell(old.encode(), new.encode(), order)
        assert ladder[name] == pytest.approx(-sum(map(math.log2, expected)) / len(expected))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 26}]
    before, after = (len(lzma.compress(t.encode(), lzma.FORMAT_RAW, filters=filters)) for t in (old, old + new))
    assert ladder["lzma"] == pytest.approx(8 * (after - before) / len(new))


def test_neighbour_table_by_hand():
    # 1 2 3 twice and 1 4 3 once: between 1 and 3 stands 2. After 5 comes 6. The commonest token is 1.
    train = torch.tensor([1, 2, 3, 1, 2, 3, 1, 4, 3, 5, 6, 1, 7, 1])
    tokens = torch.tensor([[1, 2, 3], [5, 6, 8], [8, 1, 9], [1, 4, 3]])
    targets = torch.full_like(tokens, -100)
    targets[:, 1] = tokens[:, 1]
    masked = tokens.where(targets == -100, 0)
    ladder = baselines.masked_ladder(train, masked, targets, tokens, vocab_size=10)
    assert ladder["neighbour table"]["accuracy"] == 3 / 4  # by both, by the left one, by frequency; 4 is missed
    assert ladder["unigram"]["accuracy"] == 1 / 4
    p = [(n + 1) / (len(train) + 10) for n in (2, 1, 5, 1)]  # of 2, 6, 1 and 4
    assert ladder["unigram"]["cross_entropy"] == pytest.approx(-sum(map(math.log, p)) / 4)
    assert ladder["uniform"] == {"accuracy": 0.1, "cross_entropy": pytest.approx(math.log(10))}


def test_neighbour_table_with_what_the_model_sees():
    train = torch.tensor([1, 2, 3, 1, 2, 3, 9, 9, 9, 9])
    tokens = torch.tensor([[1, 2, 3, 1]])
    targets, masked = torch.tensor([[-100, 2, 3, -100]]), torch.tensor([[1, 0, 0, 1]])
    ladder = baselines.masked_ladder(train, masked, targets, tokens, vocab_size=10)
    assert ladder["neighbour table"]["accuracy"] == 1
    assert ladder["neighbour table, masked neighbours"]["accuracy"] == 1 / 2  # 2 after 1; then 9, the commonest


def test_image_ladder():
    labels = torch.tensor([0, 1, 1, 2] * 10)
    pictures = (labels * 90).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).to(torch.uint8)
    ladder = baselines.image_ladder((pictures, labels), (pictures[:12], labels[:12]))
    assert ladder["largest class"] == 0.5
    assert ladder["logistic regression"] == 1


def test_image_losses():
    labels = torch.tensor([0, 1, 1, 2] * 10)
    pictures = (labels * 90).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).to(torch.uint8)
    losses = baselines.image_losses((pictures, labels), (pictures[:12], labels[:12]))
    assert losses["guessing"] == pytest.approx(1.5 * math.log(2))  # half of them 1, a quarter each 0 and 2
    assert 0 < losses["logistic regression"] < 0.5


@pytest.mark.parametrize("right, n, low, high", [(31, 75, 0.3087, 0.5263), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)])
def test_interval(right, n, low, high):
    assert baselines.interval(right / n, n) == pytest.approx((low, high), abs=2e-4)


def test_baselines_of_many_items_are_fitted_on_a_sample(monkeypatch):
    assert torch.equal(baselines.sample(baselines.MOST), torch.arange(baselines.MOST))
    some = baselines.sample(3 * baselines.MOST)
    assert len(set(some.tolist())) == len(some) == baselines.MOST and some.max() > 2 * baselines.MOST
    monkeypatch.setattr(baselines, "MOST", 400)
    texts = [f"{'good' if i % 2 else 'bad'} {i}" for i in range(2000)]
    ladder = baselines.table_ladder((texts, [i % 2 for i in range(2000)]), (texts[:100], [i % 2 for i in range(100)]))
    assert ladder == {"largest class": 0.5, "TF-IDF, logistic regression": 1.0}
