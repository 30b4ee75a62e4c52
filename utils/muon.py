"""The optimiser Muon (Jordan 2024, "Muon: an optimizer for hidden layers in neural networks").

AdamW divides every weight's step by the size of that weight's recent gradients. Muon looks at a whole matrix: it
replaces the step by the nearest matrix whose singular values are all about 1. The directions in which the gradient is
small are then learned as fast as those in which it is large.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from utils.machine import has_bfloat16


def muon_groups(groups: list[dict], blocks: Iterable[nn.Module], lr: float) -> list[dict]:
    """Take the blocks' matrices out of AdamW's parameter groups and put them into groups for Muon.

    groups: parameter groups of an optimiser. blocks: the blocks of a Transformer. lr: Muon's learning rate.
    """
    fused = {block.attention.qkv.weight for block in blocks}
    single = {p for block in blocks for p in block.parameters() if p.ndim == 2} - fused
    found = []
    # One weight (3C, C) holds the matrices of queries, keys and values: Muon treats it as three.
    for matrices, parts in ((fused, 3), (single, 1)):
        for group in groups:
            taken = [p for p in group["params"] if p in matrices]
            if taken:
                found.append(group | {"params": taken, "lr": lr, "momentum": 0.95, "parts": parts})
    rest = [group | {"params": [p for p in group["params"] if p not in fused | single]} for group in groups]
    return found + rest


class Muon(torch.optim.AdamW):
    """Muon for the parameter groups that `muon_groups` has made, AdamW for the others."""

    @torch.no_grad()
    def step(self, closure=None):
        """One step of both optimisers. The gradients of Muon's matrices are None afterwards."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if "momentum" in group:
                self.orthogonal_step(group)
        super().step()  # AdamW skips parameters whose gradient is None
        return loss

    def orthogonal_step(self, group: dict) -> None:
        """Step all matrices of one group; those of one shape are made orthogonal together."""
        by_shape: dict[torch.Size, list] = {}
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["velocity"] = torch.zeros_like(parameter)
                state["step"] = torch.tensor(0.0)  # AdamW expects one when it loads a checkpoint
            state["velocity"].lerp_(parameter.grad, 1 - group["momentum"])
            ahead = parameter.grad.lerp(state["velocity"], group["momentum"])  # Nesterov momentum
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
    """Bring all singular values of every matrix (N, rows, columns) near 1, by five Newton-Schulz steps (Muon)."""
    # bfloat16 is precise enough, and two to four times as fast where the device computes in it.
    x = matrices.bfloat16() if has_bfloat16(matrices.device.type) else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)
