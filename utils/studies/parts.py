"""What is each part of the network worth? A small GPT is trained many times, each time with one thing left out or
changed, and scored by its loss on text that it has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from transformer import GPT, Attention, Block, Config, KVCache, Recipe, select
from utils.studies.common import BLOCKS, SMALL_BLOCKS, Task, tasks, train_for
from utils.studies.house import RECIPE

N_STEPS = 200


def leave_positions_out(gpt: GPT) -> None:
    """Let the vectors of the positions be 0, and stay 0. Only the causal mask then tells the order."""
    table = gpt.model.embed.positions.table
    table.requires_grad_(False).zero_()


def leave_residuals_out(gpt: GPT) -> None:
    """Replace x + f(x) by f(x), in attention and in the feed-forward network."""
    for block in gpt.model.blocks:
        block.forward = partial(without_residual, block)


def without_residual(
    block: Block, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None, keep: Tensor | int | None = None
) -> Tensor:
    """Block.forward of a pre-norm block, without the two sums. (B, T, C) -> (B, T, C)."""
    x = select(block.attention(block.norm1(x), mask, cache), keep)
    return block.mlp(block.norm2(x))


def leave_scaling_out(gpt: GPT) -> None:
    """Undo the division of the scores by sqrt(D): multiply the queries by it."""
    for block in gpt.model.blocks:
        block.attention.project = partial(unscaled, block.attention)


def unscaled(attention: Attention, x: Tensor, cache: KVCache | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Attention.project with queries that are larger by sqrt(D)."""
    q, k, v = Attention.project(attention, x, cache)
    return q * math.sqrt(q.shape[-1]), k, v


@dataclass(frozen=True)
class Change:
    """What is different: arguments of Config, of Recipe and of GPT, and what is done to the untrained model."""

    config: dict = field(default_factory=dict)
    recipe: dict = field(default_factory=dict)
    tied: bool = True
    change: Callable[[GPT], None] = lambda gpt: None


CHANGES = {
    "as it is": Change(),
    "no positions": Change(change=leave_positions_out),
    "sinusoidal positions": Change({"positions": "sinusoidal"}),
    "rotary positions": Change({"positions": "rotary"}),
    "one head": Change({"n_heads": 1}),
    "no residual": Change(change=leave_residuals_out),
    "no 1/sqrt(D)": Change(change=leave_scaling_out),
    "no warm-up": Change(recipe={"warmup": 0}),
    "post-norm": Change({"norm_first": False}),
    "post-norm, no warm-up": Change({"norm_first": False}, {"warmup": 0}),
    "ReLU": Change({"activation": "relu"}),
    "AdamW": Change(recipe={"optimizer": "adamw"}),
    "AdamW, post-norm": Change({"norm_first": False}, {"optimizer": "adamw"}),
    "AdamW, post-norm, no warm-up": Change({"norm_first": False}, {"optimizer": "adamw", "warmup": 0}),
    "head not tied": Change(tied=False),
}


def build(name: str, blocks: dict, seed: int) -> GPT:
    """An untrained GPT for the task of the next token, with this change."""
    change = CHANGES[name]
    torch.manual_seed(seed)
    data = tasks()["next token"].data
    config = Config(**{**blocks, "max_len": data.context, "causal": True, **change.config})
    gpt = GPT(config, data.vocab_size, Recipe(**{**RECIPE, "seed": seed, **change.recipe}), change.tied)
    change.change(gpt)
    return gpt


def loss(task: Task, gpt: GPT) -> float:
    """Nats per token of the test part; infinite if training has failed, so that the loss is not a number."""
    found = gpt.trainer.test(gpt, task.data, verbose=False)[0]["test_loss"]
    return found if math.isfinite(found) else math.inf


def unigram(seen: Tensor, held_out: Tensor, vocab_size: int) -> float:
    """Nats per token of a model that knows how frequent each token is, and nothing else. Token ids (N,)."""
    counts = seen.long().bincount(minlength=vocab_size).float() + 1
    return F.cross_entropy(counts.log().expand(len(held_out), -1), held_out.long()).item()


def study(seeds: list[int], fast: bool, note: Callable[[str], None]) -> dict:
    """Return the losses in nats per token of the test part, {change: [one for each seed]}."""
    blocks, n_steps = (SMALL_BLOCKS, 4) if fast else (BLOCKS, N_STEPS)
    task = tasks()["next token"]
    found: dict[str, list[float]] = {}
    for seed in seeds:
        for name in CHANGES:
            found.setdefault(name, []).append(loss(task, train_for(task, build(name, blocks, seed), n_steps)))
            note(f"seed {seed}: {name}: {found[name][-1]:.3f} nats per token")
    baselines = {"unigram": unigram(task.data.train, task.data.test, task.data.vocab_size)}
    return {"loss": found, "baselines": baselines, "steps": n_steps, "blocks": blocks}
