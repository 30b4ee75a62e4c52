"""The peers: the same models in other libraries (transformers, torch.nn, timm, vit-pytorch, CTranslate2), and their
losses.
"""

from __future__ import annotations

import importlib
import io
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from copy import deepcopy
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transformer import ClassHead, Transformer
from utils.training.cpu import onednn_is_faster
from utils.weights.saving import describe, save_pretrained

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, inputs, targets) -> the mean loss


# ------------------------------------------------------------------------------------------------ imports
class TorchvisionStub:
    """An importer that makes up torchvision: every module exists, and every name in it is an empty class.

    timm imports torchvision, but its ViT uses nothing of it.
    """

    class Name(type):
        def __getattr__(cls, name: str) -> str:
            return name

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if is_torchvision(name) else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None  # Python then makes an ordinary module

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = lambda name: self.Name(name, (), {})


def is_torchvision(name: str) -> bool:
    return name.partition(".")[0] == "torchvision"


def import_timm() -> ModuleType:
    """Import timm.models.vision_transformer, also where torchvision is not installed."""
    if find_spec("torchvision"):
        return importlib.import_module("timm.models.vision_transformer")
    stub = TorchvisionStub()
    sys.meta_path.insert(0, stub)
    try:
        return importlib.import_module("timm.models.vision_transformer")
    finally:
        sys.meta_path.remove(stub)
        for name in [name for name in sys.modules if is_torchvision(name)]:
            del sys.modules[name]  # or transformers would take it for the real one


def import_vit_pytorch() -> ModuleType:
    """Import the file vit_pytorch/vit.py alone, because the package around it needs torchvision."""
    path = Path(find_spec("vit_pytorch").submodule_search_locations[0], "vit.py")
    spec = spec_from_file_location("vit_pytorch_vit", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------------------ models
def transformers_model(ours: Transformer, weights: bool = True, **changes) -> nn.Module:
    """The same model in transformers, with our weights, or with random ones for `weights=False`.

    changes: settings of its configuration to change.
    """
    import transformers

    kind, settings = describe(ours, None)
    build = getattr(transformers, settings["architectures"][0])
    if not weights:
        return build(transformers.AutoConfig.for_model(**settings | {"model_type": kind} | changes))
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        return build.from_pretrained(save_pretrained(ours, Path(folder, "model")), **changes)


class TorchEncoderModel(nn.Module):
    """The same model with the blocks of torch.nn.TransformerEncoder; embedding, head and weights are copies of ours."""

    def __init__(self, ours: Transformer) -> None:
        super().__init__()
        ours = deepcopy(ours)
        config = ours.config
        self.causal, self.embed, self.norm, self.head = config.causal, ours.embed, ours.norm, ours.head
        sizes = {"d_model": config.d_model, "nhead": config.n_heads, "dim_feedforward": config.d_ff}
        norms = {"layer_norm_eps": config.norm_eps, "norm_first": config.norm_first}
        gelu = partial(F.gelu, approximate="tanh" if config.activation == "gelu_tanh" else "none")
        layer = nn.TransformerEncoderLayer(**sizes, **norms, batch_first=True, dropout=config.dropout, activation=gelu)
        self.blocks = nn.TransformerEncoder(layer, config.n_layers, enable_nested_tensor=False)
        for theirs, block in zip(self.blocks.layers, ours.blocks, strict=True):
            attention = theirs.self_attn
            attention.in_proj_weight, attention.in_proj_bias = block.attention.qkv.parameters()
            attention.out_proj.load_state_dict(block.attention.out.state_dict())
            theirs.linear1, theirs.linear2 = block.mlp.up, block.mlp.down
            theirs.norm1, theirs.norm2 = block.norm1, block.norm2

    def forward(self, inputs: Tensor) -> Tensor:
        """Token ids (B, T) or pictures -> logits (B, T, V) or (B, K)."""
        x = self.embed(inputs)  # (B, T, C)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], x.device) if self.causal else None
        x = self.norm(self.blocks(x, mask, is_causal=self.causal))  # (B, T, C)
        return self.head(x[:, 0] if isinstance(self.head, ClassHead) else x)


def timm_model(ours: Transformer) -> nn.Module:
    """timm's ViT of the same sizes, with random weights."""
    config = ours.config
    return import_timm().VisionTransformer(
        img_size=ours.embed.input_shape[-1],
        patch_size=ours.embed.project.kernel_size[0],
        num_classes=ours.head.classifier.out_features,
        embed_dim=config.d_model,
        depth=config.n_layers,
        num_heads=config.n_heads,
    )


def vit_pytorch_model(ours: Transformer) -> nn.Module:
    """vit-pytorch's ViT of the same sizes, with random weights."""
    config = ours.config
    return import_vit_pytorch().ViT(
        image_size=ours.embed.input_shape[-1],
        patch_size=ours.embed.project.kernel_size[0],
        num_classes=ours.head.classifier.out_features,
        dim=config.d_model,
        depth=config.n_layers,
        heads=config.n_heads,
        dim_head=config.d_model // config.n_heads,
        mlp_dim=config.d_ff,
    )


def ctranslate2_model(ours: Transformer, number_type: str) -> object:
    """The same GPT in CTranslate2, a library that only samples: a Generator, whose tokens are ids written as texts.

    number_type: of the weights, "float32" or "int8".
    """
    import ctranslate2
    from ctranslate2.converters.transformers import GPT2Loader

    spec = GPT2Loader().get_model_spec(transformers_model(ours))
    spec.register_vocabulary([str(i) for i in range(ours.embed.tokens.num_embeddings)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
    spec.validate()
    spec.optimize(quantization="int8" if number_type == "int8" else None)
    with tempfile.TemporaryDirectory() as folder:
        spec.save(folder)
        return ctranslate2.Generator(folder, compute_type=number_type, intra_threads=torch.get_num_threads())


# ------------------------------------------------------------------------------------------------ losses
def loss_by_transformers(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The loss that a model of transformers computes itself.

    GPT-2 would shift the targets by one; `shift_labels` says that they are already shifted, and saves it a copy.
    """
    more = {}
    if "GPT2" in type(model).__name__:
        more = {"shift_labels": targets.contiguous(), "use_cache": False}
    return model(inputs, labels=targets, **more).loss


def loss_of_all_logits(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The loss as it is usually written: compute all logits, then ignore the targets that are -100."""
    return F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


def loss_of_kept_logits(model: Transformer, inputs: Tensor, targets: Tensor) -> Tensor:
    """The loss as LitTransformer computes it, for our models only: no logits where the target is -100."""
    scored = targets != -100
    keep = None if scored.all() else scored
    return F.cross_entropy(model(inputs, keep=keep).flatten(0, -2), targets[scored])


def peers(kind: str, ours: Transformer) -> dict[str, tuple[Callable[[], nn.Module], Loss]]:
    """The peers of one of our models by name: a function that builds the peer, and its loss.

    kind: "GPT", "BERT" or "ViT". On AMD's processors our own model without oneDNN is a peer, too.
    """
    found = {"transformers": (lambda: transformers_model(ours), loss_by_transformers)}
    if kind == "GPT":  # by default, transformers computes GPT-2's GELU in single operations
        fused = {"activation_function": "gelu_pytorch_tanh"}
        found["transformers, GELU of PyTorch"] = (lambda: transformers_model(ours, **fused), loss_by_transformers)
    found["torch.nn.TransformerEncoder"] = (lambda: TorchEncoderModel(ours), loss_of_all_logits)
    if kind == "ViT":
        found["timm"] = (lambda: timm_model(ours), loss_of_all_logits)
        found["vit-pytorch"] = (lambda: vit_pytorch_model(ours), loss_of_all_logits)
    if onednn_is_faster():
        found["ours by MKL, bare loop"] = (lambda: deepcopy(ours), loss_of_kept_logits)
    return found


def in_float32(loss: Loss) -> Loss:
    """The same loss, computed in float32 also where autocast is on."""

    def without_autocast(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            return loss(model, inputs, targets)

    return without_autocast
