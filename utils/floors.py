"""How fast a machine could do a model's work: its multiplications, and the bytes that it must move."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from transformer import PatchEmbedding, Transformer
from utils.linear import OneDNNLinear

PEAKS = {  # dense bfloat16 FLOPs per second, as the makers state them
    "H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "RTX 4090": 165e12,
}  # fmt: skip


def forward_flops(model: Transformer, batch: int, length: int, scored: int, past: int = 0) -> float:
    """FLOPs of the matrix products in one forward pass; a multiplication and an addition count two.

    length: positions of a sequence; past: those read before, that a cache holds; scored: how many states of the whole
    batch go through the last MLP to the head.
    """
    config = model.config
    pairs = length * (past + (length + 1) / 2) if config.causal else length * (past + length)
    blocks, last, head = (linear_weights(part) for part in (model.blocks, model.blocks[-1].mlp, model.head))
    # Queries meet keys, then weights meet values: two products of width d_model for each pair of positions.
    products = batch * length * (blocks - last) + batch * config.n_layers * 2 * pairs * config.d_model
    products += scored * (last + head)
    return 2 * (products + batch * patch_products(model, length))


def linear_weights(part: nn.Module) -> int:
    return sum(module.weight.numel() for module in part.modules() if isinstance(module, nn.Linear))


def patch_products(model: Transformer, length: int) -> float:
    return (length - 1) * model.embed.project.weight.numel() if isinstance(model.embed, PatchEmbedding) else 0


def training_flops(model: Transformer, batch: int, length: int, scored: int) -> float:
    """The backward pass takes two products for each one forwards, but that no gradient goes back into a picture."""
    return 3 * forward_flops(model, batch, length, scored) - 2 * batch * patch_products(model, length)


def training_bytes(model: nn.Module) -> float:
    """Weights read forwards and backwards, gradients written; AdamW reads four numbers a weight and writes three."""
    return sum(4 * p.numel() * (2 + 1 + 4 + 3) for p in model.parameters())


def sampling_bytes(model: Transformer, batch: int, past: int) -> float:
    """What one more word must read: the weights, but of the positions one row, and the keys and values so far."""
    config = model.config
    weights = sum(p.numel() for p in model.parameters()) - (config.max_len - 1) * config.d_model
    return 4 * (weights + batch * past * 2 * config.n_layers * config.d_model)


@dataclass
class Machine:
    """The best rates that were seen in this run: FLOPs per second of a matrix product, bytes per second of reading."""

    device: torch.device
    flops: float = 0.0
    bandwidth: float = 0.0

    def measure(self, side: int = 2048, size: int = 2**26) -> None:
        """Look again: between the rows, since the machine's speed may change, and a floor wants the best."""
        a = torch.randn(side, side, device=self.device)
        x = torch.randn(size, device=self.device)
        products = [layer(side, side, bias=False, device=self.device) for layer in (nn.Linear, OneDNNLinear)]
        with torch.inference_mode():
            fastest = min(best(lambda layer=layer: layer(a), self.device) for layer in products)
        self.flops = max(self.flops, 2 * side**3 / fastest)
        reads = (lambda: x.sum(), lambda: torch.dot(x, x), lambda: x.view(-1, 4096) @ x[:4096])
        self.bandwidth = max(self.bandwidth, *(4 * size / best(read, self.device) for read in reads))

    def floor(self, flops: float, n_bytes: float) -> float:
        """Seconds; both may go on at the same time, so the longer counts."""
        return max(flops / self.flops, n_bytes / self.bandwidth)


def wait(device: torch.device) -> float:
    """The time, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def best(work: Callable[[], object], device: torch.device, n: int = 5) -> float:
    """The shortest of n times, in seconds."""
    work()
    seconds = []
    for _ in range(n):
        began = wait(device)
        work()
        seconds.append(wait(device) - began)
    return min(seconds)


def parameters_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def card_peak(name: str) -> float | None:
    return next((peak for card, peak in PEAKS.items() if re.search(rf"\b{card}\b", name)), None)


def model_flops(model: Transformer, batch: int, length: int) -> float:
    """As MFU is usually reckoned (PaLM, appendix B): 6 for each weight and token, and attention without its mask."""
    config = model.config
    weights = parameters_of(model) - config.max_len * config.d_model
    return batch * length * (6 * weights + 12 * config.n_layers * config.d_model * length)
