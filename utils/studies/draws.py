"""GPT draws and BERT writes: both models on the same sequences of tokens, of digits and of text.

A digit is a sequence of its pixels, row by row, whose tokens are the 256 grey levels; a text is a sequence of tokens
of a byte-level BPE. GPT learns to continue a sequence. BERT learns to fill in any share of it, so that it too can
write: it begins with a sequence that is wholly hidden, and uncovers it step by step.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from transformer import BERT, GPT, Config, LitTransformer, Recipe, ViT
from utils.data import baselines
from utils.data.batches import Sequences, choose
from utils.data.images import ImageData, ImageSet, load_images
from utils.data.text import Corpus, load_corpus
from utils.data.tokenisers import bpe_tokenizer, encode
from utils.inference.blanks import unmask
from utils.inference.generate import evaluating
from utils.studies.common import BLOCKS, SMALL_BLOCKS, Task, train_for

SIDE = 14  # pixels: the digits of 28 x 28 are halved, which makes a sequence of 196 tokens
CONTEXT, VOCABULARY = 64, 1024  # of the text
STEPS = {"digits": 400, "text": 400, "reader": 400}
RECIPE = {"optimizer": "muon", "lr": 3e-3, "warmup": 30, "weight_decay": 0.1, "final_lr": 0.0}
UNITS = {"digits": "pixel", "text": "byte"}
N_DRAWN = 500  # test digits whose lower half is drawn
N_WRITTEN = 100  # texts that are written


# ------------------------------------------------------------------------------------------------ likelihood


@torch.inference_mode()
def bits_in_order(module: LitTransformer, data: Sequences) -> float:
    """Bits per token of the test part: the mean of -log2 of the probability of each token after those before it."""
    total = 0.0
    with evaluating(module.model):
        for ids in data.test.split(data.eval_batch_size):
            inputs, _ = data.make(ids, torch.Generator())
            total += F.cross_entropy(module.model(inputs).flatten(0, 1), ids.flatten(), reduction="sum").item()
    return total / data.test.numel() / math.log(2)


@torch.inference_mode()
def bits_in_any_order(module: LitTransformer, data: Sequences, draws: int = 8, seed: int = 0) -> float:
    """Bits per token of the test part when its tokens are uncovered one by one in random order.

    In a random order, a random number n of the T tokens is still hidden when a token's turn comes, each n from 1 to T
    with equal chance, and all hidden tokens are equally likely to be next. The mean over n, over the choice of the
    hidden tokens and over these of -log2 p is therefore the mean over all orders (Uria 2014, "A deep and tractable
    density estimator"). It is estimated here with `draws` numbers n for every sequence, spread evenly from 1 to T.
    """
    generator = torch.Generator().manual_seed(seed)
    losses = []
    with evaluating(module.model):
        for ids in data.test.split(data.eval_batch_size):
            for part in range(draws):
                share = (part + torch.rand((), generator=generator).item()) / draws
                n = 1 + int(share * data.length)
                hidden = choose(ids.shape, n, generator)
                logits = module.model(ids.masked_fill(hidden, data.special), keep=hidden)  # (B * n, V)
                losses.append(F.cross_entropy(logits, ids[hidden]).item() * len(ids))
    return sum(losses) / (draws * len(data.test)) / math.log(2)


def picture_ladder(train: Tensor, test: Tensor) -> dict[str, float]:
    """Bits per pixel of the test pictures (N, T) by simple methods that were fitted on the training pictures."""
    old, new = train.numpy(), test.numpy()
    shares = (np.bincount(old.ravel(), minlength=256) + 1) / (old.size + 256)
    ladder = {"uniform": 8.0, "unigram": float(-np.log2(shares[new]).mean())}
    # After the pixel to the left, then after that and the one above: counts, smoothed as in `baselines.witten_bell`.
    p = shares[new]
    for contexts in (left, left_and_above):
        p = baselines.smoothed(p, contexts(old) * 256 + old, contexts(new) * 256 + new)
    ladder["left and upper neighbour"] = float(-np.log2(p).mean())
    ladder["PNG"] = file_bits(test, format="PNG", optimize=True)
    ladder["WebP"] = file_bits(test, format="WEBP", lossless=True, quality=100, method=6)
    return ladder


def left(pictures: np.ndarray) -> np.ndarray:
    """The grey level to the left of every pixel of pictures (N, T); 0 at the edge."""
    grid = pictures.reshape(-1, SIDE, SIDE)
    return np.pad(grid, ((0, 0), (0, 0), (1, 0)))[:, :, :-1].reshape(pictures.shape)


def left_and_above(pictures: np.ndarray) -> np.ndarray:
    """The grey levels to the left of every pixel of pictures (N, T) and above it, as one number; 0 at the edge."""
    grid = pictures.reshape(-1, SIDE, SIDE)
    above = np.pad(grid, ((0, 0), (1, 0), (0, 0)))[:, :-1].reshape(pictures.shape)
    return left(pictures) * 256 + above


def file_bits(pictures: Tensor, **options) -> float:
    """Bits per pixel of the pictures (N, T) in one file; options of Pillow's Image.save.

    They stand in one large picture, so that the header of the file counts once, and not for every picture.
    """
    columns = max(n for n in range(1, math.isqrt(len(pictures)) + 1) if len(pictures) % n == 0)
    sheet = pictures.view(-1, columns, SIDE, SIDE).transpose(1, 2).reshape(-1, columns * SIDE)
    file = io.BytesIO()
    Image.fromarray(sheet.to(torch.uint8).numpy()).save(file, **options)
    return 8 * file.getbuffer().nbytes / pictures.numel()


# ------------------------------------------------------------------------------------------------ data


def halved(images: ImageSet) -> ImageSet:
    """The image set with every 2 x 2 pixels averaged to one."""

    def half(part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return F.avg_pool2d(part[0].float(), 2).round().to(torch.uint8), part[1]

    parts = {"train": half(images.train), "validation": half(images.validation), "test": half(images.test)}
    return replace(images, name=f"{images.name}, halved", **parts)


@cache
def digits() -> ImageSet:
    """5,000 digits of MNIST in 14 x 14 pixels."""
    return halved(load_images("mnist-5k"))


def digit_sequences(hide: bool) -> Sequences:
    """The digits as sequences of 196 grey levels."""
    parts = [pictures.flatten(1).long() for pictures, _ in (digits().train, digits().validation, digits().test)]
    return Sequences(*parts, vocab_size=256, hide=hide)


@cache
def documentation() -> tuple[Corpus, Tokenizer]:
    """Python's documentation, and a byte-level BPE of its training part."""
    corpus = load_corpus("python-docs")
    return corpus, bpe_tokenizer(corpus.train, VOCABULARY)


def text_sequences(hide: bool) -> Sequences:
    """The documentation in sequences of CONTEXT tokens."""
    corpus, tokenizer = documentation()
    parts = [encode(tokenizer, text).long() for text in (corpus.train, corpus.validation, corpus.test)]
    rows = [ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT) for ids in parts]
    return Sequences(*rows, vocab_size=VOCABULARY, hide=hide)


def bytes_of(ids: Tensor) -> int:
    """How many bytes the text of token ids (N, T) has."""
    return sum(len(text.encode()) for text in documentation()[1].decode_batch(ids.tolist()))


def build(data: Sequences, blocks: dict, seed: int) -> LitTransformer:
    """An untrained GPT or BERT for these sequences."""
    torch.manual_seed(seed)
    config = Config(**blocks, max_len=data.length, causal=not data.hide)
    return (BERT if data.hide else GPT)(config, data.vocab_size, Recipe(**RECIPE, seed=seed))


# ------------------------------------------------------------------------------------------------ drawing and writing


def draw(module: LitTransformer, data: Sequences, start: Tensor, n_steps: int, seed: int = 0) -> Tensor:
    """Complete the first tokens (B, S) of sequences to (B, T).

    GPT draws one token after the other. BERT uncovers the hidden tokens in n_steps steps, at random places.
    """
    generator = torch.Generator().manual_seed(seed)
    missing = data.length - start.shape[1]
    if data.hide:
        return unmask(module.model, F.pad(start, (0, missing), value=data.special), data.special, n_steps, generator)
    with evaluating(module.model):
        ids = F.pad(start, (1, 0), value=data.special)
        # One token more than positions, because the last one is never read again.
        drawn = module.model.generate(ids, missing, generator=generator)
    drawn = drawn[:, 1:]
    return drawn.masked_fill(drawn == data.special, 0)  # a trained GPT next to never draws it


def train_reader(blocks: dict, seed: int, n_steps: int) -> tuple[LitTransformer, ImageData]:
    """A ViT that reads digits of 14 x 14 pixels, and its data. It is the judge of the digits that are drawn."""
    torch.manual_seed(seed)
    data = ImageData(digits(), batch_size=64)
    module = ViT(Config(**blocks), SIDE, 2, 10, Recipe(**RECIPE, seed=seed), channels=1)
    return train_for(Task(data, None, "", 0.0), module, n_steps), data


@torch.inference_mode()
def read_right(reader: tuple[LitTransformer, ImageData], pictures: Tensor) -> float:
    """How many of the first test digits, in these pictures (N, T) of them, the reader reads right."""
    module, data = reader
    with evaluating(module.model):
        logits = module.model(data.normalize(pictures.view(-1, 1, SIDE, SIDE)))  # (N, 10)
    return float((logits.argmax(-1) == shuffled_test()[1][: len(pictures)]).float().mean())


@cache
def shuffled_test() -> tuple[Tensor, Tensor]:
    """The test digits (N, T) and their classes (N,) in random order; in the image set they are sorted by class."""
    pictures, labels = digits().test
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return pictures.flatten(1).long()[order], labels[order]


Models = dict[tuple[str, bool], tuple[LitTransformer, Sequences]]


def completions(models: Models, n: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """The first n test digits (n, T), whole, without their lower half, and with one that a model has drawn."""
    whole = shuffled_test()[0][:n]
    upper = whole[:, : whole.shape[1] // 2]
    yield "as they are", whole
    yield "upper half alone", F.pad(upper, (0, whole.shape[1] - upper.shape[1]))
    yield "GPT", draw(*models["digits", False], upper, 0, seed)
    for n_steps in (98, 14, 1):
        yield f"BERT, {n_steps} step{'s' * (n_steps > 1)}", draw(*models["digits", True], upper, n_steps, seed)


def writings(models: Models, n: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """n texts (n, CONTEXT) of the test part, and as many that a model has written from nothing."""
    test = models["text", True][1].test
    nothing = torch.empty(n, 0, dtype=torch.long)
    yield "people", test[torch.linspace(0, len(test) - 1, n).long()]
    yield "GPT", draw(*models["text", False], nothing, 0, seed)
    for n_steps in (64, 16, 4, 1):
        yield f"BERT, {n_steps} step{'s' * (n_steps > 1)}", draw(*models["text", True], nothing, n_steps, seed)


def judged(text: str, train: str) -> float:
    """Bits per byte of a text by the 5-gram model of the training text: how usual its words and phrases are."""
    old, new = (np.frombuffer(part.encode(), np.uint8).astype(np.uint64) for part in (train, text))
    return float(-np.log2(baselines.witten_bell(old, new, 5)).mean())


def as_text(pictures: Tensor) -> list[str]:
    """Each picture of grey levels (N, T) in base64, for the file of the results."""
    return [base64.b64encode(bytes(row)).decode() for row in pictures.tolist()]


# ------------------------------------------------------------------------------------------------ the study


def study(seeds: list[int], fast: bool, note: Callable[[str], None]) -> dict:
    """Return the likelihoods, how often completed digits are read right, how usual the written texts are, and some
    of both, drawn and written with the first seed.
    """
    blocks = SMALL_BLOCKS if fast else BLOCKS
    steps = dict.fromkeys(STEPS, 4) if fast else STEPS
    n_drawn, n_written = (20, 4) if fast else (N_DRAWN, N_WRITTEN)
    ladder = {
        "digits": picture_ladder(digit_sequences(False).train, digit_sequences(False).test),
        "text": baselines.text_ladder(documentation()[0].train, documentation()[0].test),
    }
    results: dict = {"bits": {"digits": {}, "text": {}}, "read": {}, "judged": {}, "baselines": ladder, "steps": steps}
    for seed in seeds:
        reader = train_reader(blocks, seed, steps["reader"])
        models = {}
        for name, sequences in {"digits": digit_sequences, "text": text_sequences}.items():
            for hide in (False, True):
                data = sequences(hide)
                module = build(data, blocks, seed)
                train_for(Task(data, None, "", 0.0), module, steps[name])
                bits = bits_in_any_order(module, data) if hide else bits_in_order(module, data)
                if name == "text":
                    bits *= data.test.numel() / bytes_of(data.test)
                models[name, hide] = module, data
                results["bits"][name].setdefault(type(module).__name__, []).append(bits)
                note(f"seed {seed}: {name}, {type(module).__name__}: {bits:.3f} bits per {UNITS[name]}")
        for way, pictures in completions(models, n_drawn, seed):
            found = read_right(reader, pictures)
            results["read"].setdefault(way, []).append(found)
            note(f"seed {seed}: digits, {way}: {found:.3f} read right")
            if seed == seeds[0]:
                results.setdefault("drawn", {})[way] = as_text(pictures[:10])
        for way, rows in writings(models, n_written, seed):
            written = documentation()[1].decode_batch(rows.tolist())
            found = judged("\n".join(written), documentation()[0].train)
            results["judged"].setdefault(way, []).append(found)
            note(f"seed {seed}: text, {way}: {found:.3f} bits per byte")
            if seed == seeds[0]:
                results.setdefault("written", {})[way] = written[:3]
    return results
