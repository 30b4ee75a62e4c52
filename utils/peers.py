"""The same models by others, for utils/benchmark.py to measure ours against: transformers, torch, timm, vit-pytorch."""

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

from torch import Tensor, nn
from torch.nn import functional as F

from transformer import ALL, ClassHead, Transformer
from utils.linear import faster
from utils.pretrained import describe, save_pretrained


class Torchvision:
    """timm imports torchvision, of which its ViT uses nothing: names without content do."""

    class Name(type):
        def __getattr__(cls, name: str) -> str:
            return name

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == "torchvision" else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module) -> None:
        module.__getattr__ = lambda name: self.Name(name, (), {})


def import_timm():
    """timm's ViT, with or without torchvision."""
    if find_spec("torchvision"):
        return importlib.import_module("timm.models.vision_transformer")
    sys.meta_path.insert(0, stand_in := Torchvision())
    try:
        return importlib.import_module("timm.models.vision_transformer")
    finally:
        sys.meta_path.remove(stand_in)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # transformers would take it for the real one


def import_vit_pytorch():
    """vit_pytorch/vit.py alone: the package around it wants torchvision."""
    path = Path(find_spec("vit_pytorch").submodule_search_locations[0], "vit.py")
    spec = spec_from_file_location("vit_pytorch_vit", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of_transformers(ours: Transformer, weights: bool = True, **changes) -> nn.Module:
    """The same model by transformers, with our weights or random ones; `changes` go to its configuration."""
    import transformers

    kind, settings = describe(ours, None)
    build = getattr(transformers, settings["architectures"][0])
    if not weights:
        return build(transformers.AutoConfig.for_model(**settings | {"model_type": kind} | changes))
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        return build.from_pretrained(save_pretrained(ours, Path(folder, "model")), **changes)


class OfTorch(nn.Module):
    """Our two ends around the blocks of torch.nn.TransformerEncoder, with our weights."""

    def __init__(self, ours: Transformer) -> None:
        super().__init__()
        ours, config = deepcopy(ours), ours.config
        self.causal, self.embed, self.norm, self.head = config.causal, ours.embed, ours.norm, ours.head
        sizes = {"d_model": config.d_model, "nhead": config.n_heads, "dim_feedforward": config.d_ff}
        how = {"layer_norm_eps": config.norm_eps, "norm_first": config.norm_first, "batch_first": True}
        gelu = partial(F.gelu, approximate="tanh" if config.activation == "gelu_tanh" else "none")
        layer = nn.TransformerEncoderLayer(**sizes, **how, dropout=config.dropout, activation=gelu)
        self.blocks = nn.TransformerEncoder(layer, config.n_layers, enable_nested_tensor=False)
        for theirs, block in zip(self.blocks.layers, ours.blocks, strict=True):
            attention = theirs.self_attn
            attention.in_proj_weight, attention.in_proj_bias = block.attention.qkv.parameters()
            attention.out_proj.load_state_dict(block.attention.out.state_dict())
            theirs.linear1, theirs.linear2 = block.mlp.up, block.mlp.down
            theirs.norm1, theirs.norm2 = block.norm1, block.norm2

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.embed(inputs)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], x.device) if self.causal else None
        x = self.norm(self.blocks(x, mask, is_causal=self.causal))
        return self.head(x[:, 0] if isinstance(self.head, ClassHead) else x)


def of_timm(ours: Transformer) -> nn.Module:
    config, n_classes = ours.config, ours.head.classifier.out_features
    sizes = {"embed_dim": config.d_model, "depth": config.n_layers, "num_heads": config.n_heads}
    size, patch = ours.embed.input_shape[-1], ours.embed.project.kernel_size[0]
    return import_timm().VisionTransformer(img_size=size, patch_size=patch, num_classes=n_classes, **sizes)


def of_vit_pytorch(ours: Transformer) -> nn.Module:
    config, n_classes = ours.config, ours.head.classifier.out_features
    sizes = {"dim": config.d_model, "depth": config.n_layers, "heads": config.n_heads, "mlp_dim": config.d_ff}
    size, patch = ours.embed.input_shape[-1], ours.embed.project.kernel_size[0]
    width = config.d_model // config.n_heads
    vit = import_vit_pytorch().ViT
    return vit(image_size=size, patch_size=patch, num_classes=n_classes, dim_head=width, **sizes)


def loss_of_transformers(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """What its models return beside the logits; GPT-2 would shift the targets, which spares it a copy here."""
    more = {"shift_labels": targets.contiguous(), "use_cache": False} if "GPT2" in type(model).__name__ else {}
    return model(inputs, labels=targets, **more).loss


def loss_of_logits(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """As one writes it: the cross-entropy of all logits, -100 left out."""
    return F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


def loss_of_scored(model: Transformer, inputs: Tensor, targets: Tensor) -> Tensor:
    """As LitTransformer does: of our models alone, which compute what is scored."""
    scored = targets != -100
    scored = ALL if scored.all() else scored
    return F.cross_entropy(model(inputs, scored=scored).flatten(0, -2), targets[scored].flatten())


Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def peers(kind: str, ours: Transformer) -> dict[str, tuple[Callable[[], nn.Module], Loss]]:
    """By name: what builds the peer, and how it computes its loss; on AMD's processors also ours by MKL."""
    found = {"transformers": (lambda: of_transformers(ours), loss_of_transformers)}
    if kind == "GPT":  # its default writes the tanh form of GELU out in single operations
        fused = {"activation_function": "gelu_pytorch_tanh"}
        found["transformers, GELU of PyTorch"] = (lambda: of_transformers(ours, **fused), loss_of_transformers)
    found["torch.nn.TransformerEncoder"] = (lambda: OfTorch(ours), loss_of_logits)
    if kind == "ViT":
        found |= {"timm": (lambda: of_timm(ours), loss_of_logits)}
        found |= {"vit-pytorch": (lambda: of_vit_pytorch(ours), loss_of_logits)}
    if faster():
        found["ours by MKL, bare loop"] = (lambda: deepcopy(ours), loss_of_scored)
    return found
