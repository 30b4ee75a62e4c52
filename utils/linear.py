"""Products of matrices as suits the processor: on AMD's by oneDNN, on others by MKL with GPT's words by columns.

PyTorch carries both libraries and takes MKL, whose kernels for AMD's processors are slow. The weights stay what they
are, and so does the result, but for the last digits. Of large products of float32 on a CPU alone: nothing else changes.
"""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn

from transformer import DecoderTransformer

SMALL = 2**19  # multiplications: below, handing the tensors over and back costs more than it wins


class OneDNNLinear(nn.Linear):
    """nn.Linear whose products, forwards and backwards, are oneDNN's."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        small = x.numel() * self.out_features < SMALL
        if small or x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return torch.ops.aten.mkldnn_linear(x.to_mkldnn(), self.weight, self.bias).to_dense()


def faster() -> bool:
    """Whether this machine's processor is one on which oneDNN is the faster of the two: AMD's, as far as is known."""
    facts = Path("/proc/cpuinfo")  # Linux
    amd = facts.is_file() and "AuthenticAMD" in facts.read_text(encoding="utf-8")
    return amd and torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()


def suited(model: nn.Module) -> nn.Module:
    """The model, in place, as it is fastest on this machine's CPU."""
    return by_onednn(model) if faster() else by_columns(model)


def by_columns(model: nn.Module) -> nn.Module:
    """Store a GPT's table of words column by column, nothing else changed: by MKL the logits of one position then take
    half the time, those of many positions the same.
    """
    if isinstance(model, DecoderTransformer):
        model.head.weight.data = model.head.weight.data.t().contiguous().t()
    return model


def by_onednn(model: nn.Module) -> nn.Module:
    """Give the model's linear layers, in place, to oneDNN; names, weights and optimisers stay what they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDNNLinear
    return model


class OneDNN(L.Callback):
    """Train by oneDNN where that is the faster way: on an AMD processor in float32. `use`: True or False decides."""

    def __init__(self, use: bool | None = None) -> None:
        self.use = faster() if use is None else use

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if self.use and trainer.strategy.root_device.type == "cpu":
            by_onednn(module)
