"""Use the faster matrix library for this CPU: `model = fast_on_cpu(model)`.

PyTorch carries two libraries for matrix products, MKL and oneDNN, and uses MKL for nn.Linear. MKL is slow on AMD's
processors: there the linear layers are given to oneDNN. Elsewhere MKL stays, but GPT's head is stored column by
column, which halves the time of the logits of a single position. Weights and results stay the same except for the
last digits. Only large float32 products on a CPU are affected.
"""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn

from transformer import DecoderTransformer

SMALL = 2**19  # multiplications; below this, handing the tensors to oneDNN and back costs more than it saves


class OneDNNLinear(nn.Linear):
    """nn.Linear whose products, forward and backward, are computed by oneDNN."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        small = x.numel() * self.out_features < SMALL
        if small or x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return torch.ops.aten.mkldnn_linear(x.to_mkldnn(), self.weight, self.bias).to_dense()


def onednn_is_faster() -> bool:
    """Whether this is a processor on which oneDNN is faster than MKL: as far as is known, one of AMD's."""
    facts = Path("/proc/cpuinfo")  # Linux
    amd = facts.is_file() and "AuthenticAMD" in facts.read_text(encoding="utf-8")
    return amd and torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()


def fast_on_cpu(model: nn.Module) -> nn.Module:
    """Change the model, in place, to what is fastest on this machine's CPU; return it."""
    return use_onednn(model) if onednn_is_faster() else store_head_by_columns(model)


def use_onednn(model: nn.Module) -> nn.Module:
    """Give every linear layer, in place, to oneDNN. Names, weights and optimisers stay the same."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDNNLinear
    return model


def store_head_by_columns(model: nn.Module) -> nn.Module:
    """Store the weight of a GPT's head, in place, column by column; its values stay the same."""
    if isinstance(model, DecoderTransformer):
        model.head.weight.data = model.head.weight.data.t().contiguous().t()
    return model


class OneDNN(L.Callback):
    """Train with oneDNN on a CPU where it is faster, or where `use` says so."""

    def __init__(self, use: bool | None = None) -> None:
        self.use = onednn_is_faster() if use is None else use

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if self.use and trainer.strategy.root_device.type == "cpu":
            use_onednn(module)
