"""The optimiser Muon (Jordan 2024, "Muon: an optimizer for hidden layers in neural networks")."""

from __future__ import annotations

import torch
from torch import Tensor


class Muon(torch.optim.AdamW):
    """AdamW, but for parameter groups with `momentum`: momentum steps made orthogonal (Muon).

    All directions of a matrix then learn at one speed, not only those with large gradients.
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
                # The fused qkv is three matrices, each C x C, with a direction of its own.
                parts = ahead.chunk(3) if len(ahead) == 3 * ahead.shape[1] else (ahead,)
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
