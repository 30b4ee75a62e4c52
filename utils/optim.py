"""What a Recipe asks for: AdamW or Muon over groups of parameters, the learning rate's course, and the seed of dropout.

Muon: Jordan 2024, "Muon: an optimizer for hidden layers in neural networks".
"""

from __future__ import annotations

import math

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from torch import Tensor, nn

from transformer import LitTransformer, Recipe


def optimizer_and_schedule(module: LitTransformer, recipe: Recipe) -> dict:
    """What LightningModule.configure_optimizers returns; the learning rate changes with every step."""
    groups = parameter_groups(module)
    if recipe.optimizer == "muon":
        for group, parts in zip(groups, (3, 1), strict=False):  # the fused qkv is three matrices, each C x C
            group |= {"lr": recipe.muon_lr, "momentum": 0.95, "parts": parts}
    kind = Muon if recipe.optimizer == "muon" else torch.optim.AdamW
    # One kernel for all of AdamW takes a third of the time. It could also unscale float16's gradients, but only after
    # they were clipped, so Lightning would refuse to clip: it is told to unscale them itself, as for other optimisers.
    optimizer = kind(groups, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True)
    optimizer._step_supports_amp_scaling = False
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(recipe, module.trainer, step))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def parameter_groups(module: LitTransformer) -> list[dict]:
    """Fused qkv, other matrices of the blocks, other matrices, and what must not decay: tables, norms and biases.

    A matrix that is tied to a table of embeddings counts as a table. What does not learn (requires_grad False) is in
    no group.
    """
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    linear = {id(m.weight) for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d))} - tables
    qkv = {id(block.attention.qkv.weight) for block in module.model.blocks}
    blocks = linear & {id(p) for p in module.model.blocks.parameters()}
    kinds = (qkv, blocks - qkv, linear - blocks, {id(p) for p in module.parameters()} - linear)
    learning = [p for p in module.parameters() if p.requires_grad]
    groups = [{"params": [p for p in learning if id(p) in kind]} for kind in kinds]
    groups[3]["weight_decay"] = 0.0
    return groups


def lr_factor(recipe: Recipe, trainer: L.Trainer, step: int) -> float:
    """Linear warm-up, then a cosine over the run's steps or its time, whichever is nearer to its end."""
    # Asked at step 0, Lightning would set up the batches before it has read where a resumed run goes on.
    done = step / trainer.estimated_stepping_batches if step else 0.0
    for timer in (c for c in trainer.callbacks if isinstance(c, Timer)):
        done = max(done, timer.time_elapsed() / (timer.time_elapsed() + timer.time_remaining()))
    low, warm = recipe.final_lr, min(1, (step + 1) / (recipe.warmup + 1))
    return warm * (low + (1 - low) * (1 + math.cos(math.pi * min(done, 1))) / 2)


class Repeatable(L.Callback):
    """A resumed run repeats an uninterrupted one: the dropout of a batch depends on the seed and its place alone.

    And a run is validated, and so saved, where it ends, wherever that falls.
    """

    def on_train_batch_start(self, trainer: L.Trainer, module: LitTransformer, batch: object, batch_idx: int) -> None:
        k = trainer.accumulate_grad_batches
        place = (trainer.global_step * k + batch_idx % k) * trainer.world_size + trainer.global_rank
        # torch.manual_seed asks every kind of device there could be: 1 % of a step of a small GPT.
        source = torch.default_generator if module.device.type == "cpu" else torch.get_device_module(module.device)
        source.manual_seed(module.recipe.seed * 1_000_003 + place)

    def on_train_batch_end(self, trainer: L.Trainer, *_) -> None:
        trainer.should_stop |= trainer.global_step >= trainer.estimated_stepping_batches
        if trainer.should_stop:  # also between two validations that are several passes apart
            trainer.check_val_every_n_epoch = None


class Muon(torch.optim.AdamW):
    """AdamW, but for parameter groups with `momentum` and `parts`: momentum steps made orthogonal (Muon).

    All directions of a matrix then learn at one speed, not only those with large gradients. A matrix that holds
    several, one above the other, is cut into `parts`.
    """

    @torch.no_grad()
    def step(self, closure=None):
        """One step; the matrices first. Their gradients are set to None, so AdamW passes over them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if "momentum" in group:
                self.orthogonal_step(group)
        super().step()
        return loss

    def orthogonal_step(self, group: dict) -> None:
        by_shape: dict[torch.Size, list] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                state = self.state[parameter]
                if not state:
                    state["velocity"] = torch.zeros_like(parameter)
                    state["step"] = torch.tensor(0.0)  # AdamW looks for it when it loads a checkpoint
                state["velocity"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(state["velocity"], group["momentum"])  # Nesterov
                parts = ahead.chunk(group["parts"])
                by_shape.setdefault(parts[0].shape, []).append((parameter, parts))
                parameter.grad = None
        for (rows, columns), entries in by_shape.items():
            steps = orthogonalize(torch.stack([part for _, parts in entries for part in parts]))
            steps *= max(1, rows / columns) ** 0.5
            steps = iter(steps)
            for parameter, parts in entries:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(torch.cat([next(steps) for _ in parts]), alpha=-group["lr"])


def orthogonalize(matrices: Tensor) -> Tensor:
    """(N, rows, columns): replace all singular values by about 1, by five Newton-Schulz steps (Muon)."""
    # Half precision is enough and fast on a GPU; most CPUs only emulate it.
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)
