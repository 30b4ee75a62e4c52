"""What can be read off a model: which input moves which output, where attention flows, how positions differ."""

from __future__ import annotations

import torch
from torch import Tensor

from transformer import Transformer, frequencies


def input_gradients(model: Transformer, ids: Tensor) -> Tensor:
    """(T, T): how far the likeliest logit at position t (row) moves with the input at position s (column).

    ids (1, T). The length of the gradient at what `embed` gives; in a causal model all above the diagonal is 0.
    """
    states: list[Tensor] = []
    hook = model.embed.register_forward_hook(lambda _, __, x: states.append(x.detach().requires_grad_()) or states[0])
    try:
        logits = model(ids)[0]
    finally:
        hook.remove()
    rows = [torch.autograd.grad(row.max(), states[0], retain_graph=True)[0][0].norm(dim=-1) for row in logits]
    return torch.stack(rows)


def rollout(maps: list[Tensor]) -> Tensor:
    """(B, T, T): attention followed through all layers, half of each being the residual stream (Abnar 2020, 3)."""
    flow = torch.eye(maps[0].shape[-1], device=maps[0].device)
    for layer in maps:
        mixed = layer.mean(1) + torch.eye(layer.shape[-1], device=layer.device)
        flow = mixed / 2 @ flow
    return flow


def similarities(vectors: Tensor) -> Tensor:
    """(N, N): cosines between the rows of (N, C)."""
    unit = torch.nn.functional.normalize(vectors.detach(), dim=-1)
    return unit @ unit.mT


def rotary_cosines(length: int, width: int) -> Tensor:
    """(width / 2, length): what is left of each pair's product when query and key are so far apart (RoFormer, 3.2)."""
    return frequencies(0, length, width).cos().mT


@torch.no_grad()
def class_attention(model: Transformer, images: Tensor, layer: int | None = None, head: int | None = None) -> Tensor:
    """(B, side, side): what the class token looks at. layer None: rollout through all; head None: the heads' mean."""
    maps = model.attention_maps(images)
    for name, value, n in (("layer", layer, len(maps)), ("head", head, maps[0].shape[1])):
        if value is not None and not 0 <= value < n:
            raise ValueError(f"{name}={value}: must be at least 0 and below {n}")
    flow = rollout(maps) if layer is None else maps[layer].mean(1) if head is None else maps[layer][:, head]
    patches = flow[:, 0, 1:]
    side = round(patches.shape[1] ** 0.5)
    return patches.unflatten(1, (side, side))


def hide_patches(images: Tensor, attention: Tensor, n: int, highest: bool = True) -> Tensor:
    """A copy of normalised images (B, channels, h, w) whose `n` patches of most (or least) attention are grey.

    attention (B, side, side). Grey is 0, the mean of the training pictures.
    """
    side = attention.shape[-1]
    if not 0 <= n <= side**2:
        raise ValueError(f"n={n}: must be at least 0 and at most {side**2}, the number of patches")
    flat = attention.flatten(1)
    hidden = torch.zeros_like(flat, dtype=torch.bool).scatter(1, flat.topk(n, largest=highest).indices, True)
    width = images.shape[-1] // side
    mask = hidden.unflatten(1, (1, side, side)).repeat_interleave(width, 2).repeat_interleave(width, 3)
    return images.masked_fill(mask, 0.0)
