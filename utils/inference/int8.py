"""Sample faster on a CPU: `quick = in_int8(model)` stores each weight of the linear layers in one byte instead of four.

To sample a token, every weight is read once, so a quarter of the bytes takes less time. How much, and what the rounding
costs in bits per byte, stands in utils/training/README.md. `python -m utils.benchmark --rows sampling` measures it.
"""

from __future__ import annotations

import warnings
from copy import deepcopy

from torch import nn

from transformer import Transformer, require


def in_int8(model: Transformer) -> Transformer:
    """Return a copy of the model whose linear layers compute in int8. It can be used on a CPU, and cannot be trained.

    Each row of a weight is divided by a number of its own, so that its values lie between -128 and 127, and rounded.
    The inputs of a layer are rounded when it is called, all by one number ("dynamic quantisation"). Embeddings stay as
    they are; a head that shared its weight with them gets one of its own.
    """
    # PyTorch moves these functions to the package torchao. Its int8 layers are slower than float32 on a CPU, unless
    # they are compiled, so they are no replacement yet.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

        device = next(model.parameters()).device
        require(device.type == "cpu", "model", f"a model on {device}", "on the CPU: call .cpu() before")
        model = deepcopy(model).float().eval()
        for module in model.modules():
            if isinstance(module, nn.Linear):  # also of a class made by fast_on_cpu
                module.__class__ = nn.Linear
        return quantize_dynamic(model, {nn.Linear: per_channel_dynamic_qconfig}, inplace=True)
