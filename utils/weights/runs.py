"""The way from a training run to a model, and from a loaded model to the next run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from transformer import (
    BERT,
    GPT,
    ClassHead,
    LitTransformer,
    PatchEmbedding,
    Recipe,
    Transformer,
    ViT,
    require,
)

BEST = Path("checkpoints", "best.ckpt")  # of a run, in its folder


def read_checkpoint(path: Path) -> dict | None:
    """Return the contents of a checkpoint of one of our runs; None for a file that is none, damaged or missing."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # damaged bytes make torch.load raise almost anything; the caller says that they are damaged
        return None
    parts = {"hyper_parameters", "global_step", "state_dict"}
    return saved if isinstance(saved, dict) and parts <= saved.keys() else None


def load_run(folder: Path, dropout: float = 0.0, n_classes: int | None = None) -> Transformer:
    """Return the best model of one of our own training runs, whose --out is `folder`.

    n_classes: give BERT or ViT a new, untrained classifier for as many classes.
    Raises ValueError for a checkpoint that is damaged, or whose weights are not finite.
    """
    checkpoint = read_checkpoint(folder / BEST)
    require(checkpoint is not None, "pretrained", str(folder), f"a run whose {BEST} is whole")
    finite = all(bool(weight.isfinite().all()) for weight in checkpoint["state_dict"].values())
    require(finite, "pretrained", str(folder), f"a run whose {BEST} has finite weights")
    settings = checkpoint["hyper_parameters"]
    try:
        if "image_size" in settings:
            kind = ViT
        elif settings["config"].causal:
            kind = GPT
        else:
            kind = BERT
        module = kind(**settings | {"config": replace(settings["config"], dropout=dropout)})
        module.load_state_dict(checkpoint["state_dict"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"pretrained={str(folder)!r}: must be a run whose {BEST} is whole ({error})") from error
    model = module.model
    if n_classes is not None:
        require(kind is not GPT, "n_classes", n_classes, "left out: GPT has no classifier")
        replace_head(model, ClassHead(model.config, n_classes, pooler=kind is BERT))
    return model


def replace_head(model: Transformer, head: ClassHead) -> None:
    """Give a model a new head, with weights as at the start of a training."""
    for name, parameter in head.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=model.config.init_std)
    model.head = head
    model.head_position = 0


def module_of(model: Transformer, recipe: Recipe) -> LitTransformer:
    """Return a GPT, BERT or ViT, ready to be trained, with a copy of the weights of `model`."""
    config, embed, head = model.config, model.embed, model.head
    n_classes = head.classifier.out_features if isinstance(head, ClassHead) else 0
    if isinstance(embed, PatchEmbedding):
        channels, image_size, _ = embed.input_shape
        patch_size = embed.project.kernel_size[0]
        module = ViT(config, image_size, patch_size, n_classes, recipe, channels)
    elif config.causal:
        tied = head.weight is embed.tokens.weight
        module = GPT(config, embed.tokens.num_embeddings, recipe, tied)
    else:
        has_head = not isinstance(head, nn.Identity)
        require(has_head, "model", "a BERT without a head", "one with a head, as n_classes gives")
        tied = n_classes > 0 or head.decoder.weight is embed.tokens.weight
        module = BERT(config, embed.tokens.num_embeddings, recipe, n_classes, tied)
    module.model.load_state_dict(model.state_dict())
    return module
