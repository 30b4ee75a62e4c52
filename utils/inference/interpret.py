"""Look inside a model: which input moves which output, where attention flows, and how positions differ."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transformer import Transformer, position_angles, require


def input_gradients(model: Transformer, inputs: Tensor) -> Tensor:
    """Return how strongly each position's largest logit depends on each position's input, (T, T).

    Row t, column s: the length of the gradient of the largest logit at position t with respect to the output of
    `embed` at position s. In a causal model everything above the diagonal is 0. inputs: ids (1, T), or a picture
    (1, channels, h, w). A head that otherwise reads one position is applied to all of them.
    """
    embedded: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]  # in the place of the output

    length = model.embed(inputs).shape[1]
    hook = model.embed.register_forward_hook(keep)
    try:
        logits = model(inputs, keep=torch.ones(1, length, dtype=torch.bool, device=inputs.device))  # (T, V)
    finally:
        hook.remove()
    rows = []
    for row in logits:
        (gradient,) = torch.autograd.grad(row.max(), embedded[0], retain_graph=True)  # (1, T, C)
        rows.append(gradient[0].norm(dim=-1))  # (T,)
    return torch.stack(rows)


def rollout(maps: list[Tensor]) -> Tensor:
    """Return attention followed through all layers, (B, T, T), given each layer's maps (B, H, T, T).

    Half of what a layer passes on is its attention, averaged over heads; the other half stands for the residual stream,
    which leaves every position where it is (Abnar and Zuidema 2020, "Quantifying attention flow in transformers",
    section 3).
    """
    flow = torch.eye(maps[0].shape[-1], device=maps[0].device)  # (T, T)
    for layer in maps:
        residual = torch.eye(layer.shape[-1], device=layer.device)
        mixed = (layer.mean(1) + residual) / 2  # (B, T, T)
        flow = mixed @ flow
    return flow


def similarities(vectors: Tensor) -> Tensor:
    """Return the cosine similarity of every two rows of `vectors` (N, C), as (N, N)."""
    unit = F.normalize(vectors.detach(), dim=-1)
    return unit @ unit.mT


def rotary_cosines(length: int, width: int) -> Tensor:
    """Return how rotary positions scale the product of a query and a key, (width / 2, length).

    Row i, column d: the cosine of the angle between feature pair i of a query and that of an equal key d positions
    away (RoFormer, section 3.2). width: of one head.
    """
    return position_angles(0, length, width).cos().mT


def check_layer_and_head(model: Transformer, layer: int | None, head: int | None) -> None:
    """Raise ValueError unless the model has this layer and this head, both counted from 0. None is allowed."""
    n_layers, n_heads = model.config.n_layers, model.config.n_heads
    require(layer is None or 0 <= layer < n_layers, "layer", layer, f"at least 0 and below {n_layers}")
    require(head is None or 0 <= head < n_heads, "head", head, f"at least 0 and below {n_heads}")


@torch.no_grad()
def class_attention(model: Transformer, images: Tensor, layer: int | None = None, head: int | None = None) -> Tensor:
    """Return how much a ViT's class token attends to each patch, (B, side, side).

    images: (B, channels, height, width), normalised. layer: None for the rollout through all layers, in which `head`
    has no part. head: None for the mean of all heads.
    """
    check_layer_and_head(model, layer, head)
    maps = model.attention_maps(images)
    if layer is None:
        flow = rollout(maps)  # (B, T, T)
    elif head is None:
        flow = maps[layer].mean(1)
    else:
        flow = maps[layer][:, head]
    patches = flow[:, 0, 1:]  # (B, patches): from the class token to all others
    side = round(patches.shape[1] ** 0.5)
    return patches.unflatten(1, (side, side))


def hide_patches(images: Tensor, attention: Tensor, n: int, highest: bool = True) -> Tensor:
    """Return a copy of the images in which the n patches with the most attention are grey.

    images: (B, channels, height, width), normalised, so that 0 is the mean colour of the training pictures.
    attention: (B, side, side). highest: False for the n patches with the least attention.
    """
    side = attention.shape[-1]
    require(0 <= n <= side**2, "n", n, f"at least 0 and at most {side**2}, the number of patches")
    flat = attention.flatten(1)  # (B, patches)
    chosen = flat.topk(n, largest=highest).indices  # (B, n)
    hidden = torch.zeros_like(flat, dtype=torch.bool).scatter(1, chosen, True)  # (B, patches)
    hidden = hidden.unflatten(1, (1, side, side))  # (B, 1, side, side)
    patch_size = images.shape[-1] // side
    hidden = hidden.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)  # (B, 1, height, width)
    return images.masked_fill(hidden, 0.0)
