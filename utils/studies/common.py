"""What the studies share: the three tasks of one width, short trainings without logs, and means over seeds."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev

import lightning as L
import torch

from transformer import BERT, GPT, Config, LitTransformer, Recipe, ViT, train
from utils.data import baselines
from utils.data.images import ImageData, load_images
from utils.data.text import BERTData, GPTData, load_corpus
from utils.lessons import notebook as lesson

# The same blocks fit into all three models. Positions are learned, and added before the first block, unless a study
# chooses others.
BLOCKS = {"n_layers": 4, "n_heads": 4, "d_model": 128, "d_ff": 512, "init_std": 0.05}
SMALL_BLOCKS = {"n_layers": 2, "n_heads": 2, "d_model": 32, "d_ff": 64, "init_std": 0.05}  # in checks that it runs
T_3 = 4.303  # the 97.5 % quantile of Student's t with 2 degrees of freedom, for the mean of 3 seeds


@dataclass(frozen=True)
class Task:
    """What a model is trained for: its data, how a fresh module for it is built, and what has to be beaten."""

    data: L.LightningDataModule
    build: Callable[[dict, Recipe], LitTransformer]  # (arguments of Config, recipe) -> an untrained module
    baseline: str  # the name of a simple method
    score: float  # its accuracy on the test part


@cache
def tasks() -> dict[str, Task]:
    """The next token and hidden tokens in Python's documentation, and handwritten digits; all scored by accuracy."""
    corpus = load_corpus("python-docs")
    text = {"context": 64, "batch_size": 32, "vocab_size": 1024}
    gpt_data, bert_data = GPTData(corpus, **text), BERTData(corpus, **text, mask_rate=0.3, random_rate=0, keep_rate=0)
    digits = load_images("mnist-5k")
    vit_data = ImageData(digits, batch_size=64)

    def gpt(blocks: dict, recipe: Recipe) -> GPT:
        return GPT(Config(**blocks, max_len=64, causal=True), gpt_data.vocab_size, recipe)

    def bert(blocks: dict, recipe: Recipe) -> BERT:
        return BERT(Config(**blocks, max_len=64), bert_data.vocab_size, recipe)

    def vit(blocks: dict, recipe: Recipe) -> ViT:
        return ViT(Config(**blocks), 28, 4, 10, recipe, channels=1)

    shown, answers = bert_data.held_out(bert_data.test)
    table = baselines.masked_ladder(bert_data.train, shown, answers, shown, bert_data.vocab_size)
    pixels = baselines.image_ladder(digits.train, digits.test)
    return {
        "next token": Task(gpt_data, gpt, "successor table", successor_table(gpt_data.train, gpt_data.test)),
        "hidden token": Task(bert_data, bert, "neighbour table", table["neighbour table"]["accuracy"]),
        "digits": Task(vit_data, vit, "logistic regression", pixels["logistic regression"]),
    }


def successor_table(seen: torch.Tensor, held_out: torch.Tensor) -> float:
    """How often the token that most often followed the one before it is right. seen, held_out: token ids (N,)."""
    after: dict[int, Counter] = {}
    for one, other in zip(seen.tolist(), seen[1:].tolist(), strict=False):
        after.setdefault(one, Counter())[other] += 1
    guesses = {one: counts.most_common(1)[0][0] for one, counts in after.items()}
    pairs = list(zip(held_out.tolist(), held_out[1:].tolist(), strict=False))
    return sum(guesses.get(one) == other for one, other in pairs) / len(pairs)


def train_for(task: Task, module: LitTransformer, n_steps: int) -> LitTransformer:
    """Train without logs and without picking among checkpoints; return the module."""
    train(
        module, task.data, out=folder().name, pick_best=False, max_steps=n_steps, precision=lesson.precision(),
        val_check_interval=None, check_val_every_n_epoch=10**6, limit_val_batches=1, **lesson.quiet(),
    )  # fmt: skip
    return module


@cache
def folder() -> tempfile.TemporaryDirectory:
    """A folder of this process for files that nobody will need; it is removed at the end."""
    return tempfile.TemporaryDirectory()


def accuracy(task: Task, module: LitTransformer) -> float:
    """The module's accuracy on the test part of the task."""
    return module.trainer.test(module, task.data, verbose=False)[0]["test_acc"]


def mean_with_interval(values: list[float]) -> tuple[float, float, float]:
    """The mean over the seeds, and the lower and upper end of its 95 % interval (Student's t; NaN for one seed)."""
    mean = fmean(values)
    if len(values) != 3:
        return mean, math.nan, math.nan
    half = T_3 * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half
