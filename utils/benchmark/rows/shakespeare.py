"""The row about Shakespeare: the seconds of training until a known loss is reached."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import lightning as L
import torch
from torch import Tensor

from transformer import GPT, Config, LitTransformer, Recipe
from utils.benchmark.peers import loss_of_all_logits
from utils.benchmark.run import Run
from utils.benchmark.table import Row
from utils.benchmark.turns import fit
from utils.data.text import GPTData, load_corpus

TARGET = 1.886  # nats per character of the last tenth: nanoGPT's published figure for a CPU
CONTEXT, BATCH_SIZE = 64, 12
SETTINGS = {
    "ours": {
        "config": {"positions": "rotary", "init_std": 0.05},
        "recipe": Recipe("muon", lr=4e-3, warmup=20, final_lr=0.0),
        "steps": 450,
        "every": 25,  # steps between two looks at the held-out loss
    },
    "plain": {
        "config": {},
        "recipe": Recipe(lr=1e-3, warmup=100, final_lr=0.1, weight_decay=0.1, betas=(0.9, 0.99)),
        "steps": 2000,
        "every": 100,
    },
}


class Watch(L.Callback):
    """Note after how many seconds of training the held-out loss is at most `target`.

    The loss is computed after every `every` steps from step `first` on, and after the last step; the time that this
    takes does not count. Afterwards `reached` and `reached_step` say when the target was reached (None: never), and
    `seconds` and `loss` what the last look found.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, first: int, every: int, target: float = TARGET) -> None:
        self.windows, self.first, self.every, self.target = (inputs, targets), first, every, target
        self.seconds = self.reached = self.reached_step = self.loss = None

    def on_train_start(self, *_) -> None:
        self.began, self.looking = time.perf_counter(), 0.0

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_) -> None:
        step = trainer.global_step
        due = step >= self.first and step % self.every == 0
        if not due and step < trainer.max_steps:
            return
        now = time.perf_counter()
        self.seconds = now - self.began - self.looking
        self.loss = mean_nats(module, *self.windows)
        if self.reached is None and self.loss <= self.target:
            self.reached, self.reached_step = self.seconds, step
        self.looking += time.perf_counter() - now


@torch.no_grad()
def mean_nats(module: LitTransformer, inputs: Tensor, targets: Tensor) -> float:
    """The mean loss, in nats per token, of windows (N, T) that do not overlap.

    As in training, the first token of a window is predicted from nothing before the window.
    """
    module.eval()
    parts = zip(inputs.split(128), targets.split(128), strict=True)
    total = sum(loss_of_all_logits(module.model, *part).item() * len(part[0]) for part in parts)
    module.train()
    return total / len(inputs)


def windows(ids: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """ids (N,) -> inputs and targets (N // width, width), the targets one token further on."""
    n = (len(ids) - 1) // width * width
    return ids[:n].view(-1, width), ids[1 : n + 1].view(-1, width)


def shakespeare(run: Run) -> None:
    """The time to 1.886 nats per character on the last tenth of the text, against 2,000 steps of a plain recipe."""
    corpus = load_corpus(run.shakespeare).refit()  # both train on the first nine tenths
    tokenizer = GPTData(corpus, CONTEXT, BATCH_SIZE, "char").tokenizer
    watches: dict[str, list[Watch]] = {who: [] for who in SETTINGS}
    for turn in range(1 if run.quick else 3):
        for who, setting in SETTINGS.items():
            torch.manual_seed(turn)
            data = GPTData(corpus, CONTEXT, BATCH_SIZE, tokenizer, seed=turn)
            config = Config(4, 4, 128, 512, CONTEXT, causal=True, **setting["config"])
            module = GPT(config, data.vocab_size, replace(setting["recipe"], seed=turn))
            watch = Watch(*windows(data.test, CONTEXT), first=setting["steps"] // 2, every=setting["every"])
            fit(module, data, [watch], setting["steps"], accelerator="cpu")
            watches[who].append(watch)

    ours = [watch.reached or math.inf for watch in watches["ours"]]
    theirs = [watch.seconds for watch in watches["plain"]]
    row = Row("shakespeare", f"Shakespeare by character to {TARGET} nats", "2,000 AdamW steps", ours, theirs)
    row.must, row.aim = {"ratio": 0.5}, {"ratio": 1 / 3}
    losses = {who: ", ".join(f"{watch.loss:.3f}" for watch in seen) for who, seen in watches.items()}
    steps = {who: ", ".join(str(watch.reached_step or "never") for watch in seen) for who, seen in watches.items()}
    row.note = f"steps until then: {steps['ours']}, by the plain recipe: {steps['plain']}"
    row.note += f"; loss at the end: {losses['ours']}, by the plain recipe: {losses['plain']}"
    run.add(row)
