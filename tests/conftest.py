"""Tiny models, in float64 with bold weights: with the usual small ones a wrong formula hides behind rounding."""

import torch
from torch import nn

from transformer import Config, DecoderTransformer, EncoderTransformer

TINY = {"n_layers": 2, "n_heads": 2, "d_model": 16, "d_ff": 32, "max_len": 12}
VOCAB = 23


def bold(module: nn.Module, seed: int = 0, std: float = 0.3) -> nn.Module:
    """The module in float64 and evaluation mode, its weights drawn anew; gains of norms lie around 1."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            gain = isinstance(part, nn.LayerNorm) and name == "weight"
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data = std * noise + (1.0 if gain else 0.0)
    return module


def tiny_gpt(**changes) -> DecoderTransformer:
    return bold(DecoderTransformer(Config(**TINY | {"causal": True} | changes), VOCAB))


def tiny_bert(n_classes: int = 0, **changes) -> EncoderTransformer:
    return bold(EncoderTransformer.bert(Config(**TINY | {"norm_first": False} | changes), VOCAB, n_classes=n_classes))


def tiny_vit(**changes) -> EncoderTransformer:
    """Pictures of 2 x 8 x 8 in four patches, three classes."""
    return bold(EncoderTransformer.vit(Config(**TINY | changes), image_size=8, patch_size=4, n_classes=3, channels=2))


def words(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random ids."""
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def pictures(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
