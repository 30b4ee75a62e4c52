"""A trunk moves house: blocks that were trained for one task are given the ends of another (Lu 2021, "Pretrained
transformers as universal computation engines").

The blocks of a GPT, a BERT and a ViT of one width go on to the other two tasks. *frozen*: only the norms, the embedding
and the head are trained. *tuned*: everything is. Beside them stand frozen blocks with random weights, and a model that
is trained from nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from transformer import LitTransformer, Recipe
from utils.studies.common import BLOCKS, SMALL_BLOCKS, Task, accuracy, tasks, train_for

TRUNKS = {"GPT": "next token", "BERT": "hidden token", "ViT": "digits"}  # what each trunk was trained for
PRETRAINING, MOVED = 800, 200  # steps
RECIPE = {"optimizer": "muon", "lr": 3e-3, "warmup": 30, "weight_decay": 0.1, "final_lr": 0.0}

Weights = dict[str, torch.Tensor]


def study(seeds: list[int], fast: bool, note: Callable[[str], None]) -> dict:
    """Return the accuracies on the test parts, {task: {way: [one for each seed]}}, and how many weights each trains."""
    blocks, pretraining, moved = (SMALL_BLOCKS, 4, 4) if fast else (BLOCKS, PRETRAINING, MOVED)
    blocks = {**blocks, "positions": "rotary"}  # with learned ones, BERT learns next to nothing in so few steps
    found: dict[str, dict[str, list[float]]] = {name: {} for name in tasks()}
    trained: dict[str, dict[str, int]] = {name: {} for name in tasks()}
    for seed in seeds:
        trunks = {}
        for trunk, name in TRUNKS.items():
            torch.manual_seed(seed)
            module = train_for(tasks()[name], tasks()[name].build(blocks, Recipe(**RECIPE, seed=seed)), pretraining)
            trunks[trunk] = {key: weight.clone() for key, weight in module.model.blocks.state_dict().items()}
            note(f"seed {seed}: {trunk} trained for {name}: {accuracy(tasks()[name], module):.3f}")
        for name, task in tasks().items():
            for way, weights, frozen in ways(name, trunks):
                torch.manual_seed(seed)
                module = move_in(task, blocks, weights, frozen, seed)
                trained[name][way] = sum(p.numel() for p in module.parameters() if p.requires_grad)
                result = accuracy(task, train_for(task, module, moved))
                found[name].setdefault(way, []).append(result)
                note(f"seed {seed}: {name}, {way}: {result:.3f}")
    ladder = {name: {task.baseline: task.score} for name, task in tasks().items()}
    steps = {"pretraining": pretraining, "moved": moved}
    return {"accuracy": found, "trained": trained, "baselines": ladder, "steps": steps, "blocks": blocks}


def ways(name: str, trunks: dict[str, Weights]) -> list[tuple[str, Weights | None, bool]]:
    """The ways to a model for a task: (what it is called, the blocks' weights, whether they are frozen)."""
    others = {trunk: weights for trunk, weights in trunks.items() if TRUNKS[trunk] != name}
    frozen = [(f"{trunk}, frozen", weights, True) for trunk, weights in others.items()]
    tuned = [(f"{trunk}, tuned", weights, False) for trunk, weights in others.items()]
    return [("random, frozen", None, True), *frozen, ("from nothing", None, False), *tuned]


def move_in(task: Task, blocks: dict, weights: Weights | None, frozen: bool, seed: int) -> LitTransformer:
    """A module for the task with these weights in its blocks, or with random ones."""
    module = task.build(blocks, Recipe(**RECIPE, seed=seed))
    if weights is not None:
        module.model.blocks.load_state_dict(weights)
    if frozen:
        freeze(module.model.blocks)
    return module


def freeze(blocks: nn.Module) -> None:
    """Train nothing in the blocks but their norms."""
    for module in blocks.modules():
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(isinstance(module, nn.LayerNorm))
