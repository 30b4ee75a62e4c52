"""A lower limit, the floor, of the time that a piece of work takes on this machine.

A piece of work consists of floating-point operations (FLOPs) and of bytes to read and write. `Machine` measures how
many of each this machine does per second. The floor leaves out everything besides the matrix products and the weights,
so in practice no program reaches it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from transformer import PatchEmbedding, Transformer
from utils.training.cpu import OneDNNLinear

# FLOPs per second of dense matrix products in bfloat16, as the makers state them.
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "RTX 4090": 165e12}


# ------------------------------------------------------------------------------------------------ work to do
def parameters_of(model: nn.Module) -> int:
    """The number of parameters; parameters that are shared count once."""
    return sum(p.numel() for p in model.parameters())


def linear_weights(part: nn.Module) -> int:
    """The number of weights in the linear layers of `part`, without biases."""
    return sum(module.weight.numel() for module in part.modules() if isinstance(module, nn.Linear))


def patch_products(model: Transformer, length: int) -> int:
    """Multiplications in ViT's patch projection for one picture; 0 for a model of tokens."""
    if not isinstance(model.embed, PatchEmbedding):
        return 0
    return (length - 1) * model.embed.project.weight.numel()  # the class token is not projected


def forward_flops(model: Transformer, batch: int, length: int, kept: int, past: int = 0) -> float:
    """FLOPs of the matrix products in a forward pass; a multiplication and an addition count as two.

    length: positions in a sequence. kept: how many hidden states of the whole batch the last feed-forward network and
    the head work on. past: positions before these whose keys and values are in a cache.
    """
    config = model.config
    if config.causal:
        pairs = length * (past + (length + 1) / 2)
    else:
        pairs = length * (past + length)
    blocks = linear_weights(model.blocks)
    last = linear_weights(model.blocks[-1].mlp)
    head = linear_weights(model.head)
    products = batch * length * (blocks - last) + kept * (last + head)
    # Queries times keys, then attention weights times values: d_model multiplications each for every pair of positions.
    products += batch * config.n_layers * 2 * pairs * config.d_model
    products += batch * patch_products(model, length)
    return 2 * products


def training_flops(model: Transformer, batch: int, length: int, kept: int) -> float:
    """FLOPs of the matrix products in a training step; the arguments are those of `forward_flops`.

    The backward pass computes two products for every one of the forward pass, except that pictures need no gradient.
    """
    return 3 * forward_flops(model, batch, length, kept) - 2 * batch * patch_products(model, length)


def training_bytes(model: nn.Module) -> float:
    """The bytes that a training step in float32 must at least read and write.

    For every weight: two reads, in the forward and the backward pass; the gradient, written once; and in AdamW four
    numbers read (weight, gradient, two moments) and three written.
    """
    return 4 * parameters_of(model) * (2 + 1 + 4 + 3)


def sampling_bytes(model: Transformer, batch: int, past: int) -> float:
    """The bytes that sampling one more token in float32 must at least read.

    They are all weights, but only one row of the position table, and the keys and values of the `past` positions.
    """
    config = model.config
    weights = parameters_of(model) - (config.max_len - 1) * config.d_model
    cache = batch * past * 2 * config.n_layers * config.d_model
    return 4 * (weights + cache)


def model_flops(model: Transformer, batch: int, length: int) -> float:
    """FLOPs of a training step as they are counted for the model FLOPs utilisation, MFU (PaLM, appendix B).

    6 for each weight and token, plus 12 x layers x width x length for attention, as if nothing were masked.
    """
    config = model.config
    weights = parameters_of(model) - config.max_len * config.d_model  # without the position table
    return batch * length * (6 * weights + 12 * config.n_layers * config.d_model * length)


def card_peak(name: str) -> float | None:
    """The stated peak, in FLOPs per second, of the GPU called `name`; None for a GPU that PEAKS does not hold."""
    return next((peak for card, peak in PEAKS.items() if re.search(rf"\b{card}\b", name)), None)


# ------------------------------------------------------------------------------------------------ the machine
@dataclass
class Machine:
    """The best rates that were measured in this run."""

    device: torch.device
    flops: float = 0.0  # FLOPs per second of a large matrix product
    bandwidth: float = 0.0  # bytes per second of reading a large tensor

    def measure(self, side: int = 2048, size: int = 2**26) -> None:
        """Measure both rates again and keep the better ones.

        A machine is not equally fast at all times, so the benchmark measures it after every group of rows. side: the
        height and width of the matrices. size: the number of float32 values to read.
        """
        a = torch.randn(side, side, device=self.device)
        x = torch.randn(size, device=self.device)
        layers = [kind(side, side, bias=False, device=self.device) for kind in (nn.Linear, OneDNNLinear)]
        with torch.inference_mode():
            fastest = min(shortest(lambda layer=layer: layer(a), self.device) for layer in layers)
        self.flops = max(self.flops, 2 * side**3 / fastest)
        reads = (lambda: x.sum(), lambda: torch.dot(x, x), lambda: x.view(-1, 4096) @ x[:4096])
        fastest = min(shortest(read, self.device) for read in reads)
        self.bandwidth = max(self.bandwidth, 4 * size / fastest)

    def floor(self, flops: float, n_bytes: float) -> float:
        """The least seconds for this much work. Computing and reading can overlap, so the longer time counts."""
        return max(flops / self.flops, n_bytes / self.bandwidth)


def wait(device: torch.device) -> float:
    """Wait until the device has finished all its work; return the time on a clock in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def shortest(work: Callable[[], object], device: torch.device, n: int = 5) -> float:
    """The shortest of n times that the work took, in seconds, after one call that is not timed."""
    work()
    seconds = []
    for _ in range(n):
        began = wait(device)
        work()
        seconds.append(wait(device) - began)
    return min(seconds)
