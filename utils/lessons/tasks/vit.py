"""The functions of notebooks/vit.ipynb: patches, the class token, an accuracy's interval, and attention rollout.

Letters as in transformer.py: B pictures, T positions, C features of a hidden state, K classes. N patches of P x P
pixels, T = 1 + N.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from utils.data.baselines import interval
from utils.inference.interpret import rollout
from utils.lessons.tasks.task import Mistake, Task, draw

# ------------------------------------------------------------------------------------------------ patches


def cut_patches(images: Tensor, patch_size: int) -> Tensor:
    """(B, channels, height, width) -> (B, N, channels * P * P): the patches row by row, each as one long vector."""
    return tiles(images, patch_size).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def tiles(images: Tensor, patch_size: int) -> Tensor:
    """(B, channels, height, width) -> (B, channels, rows, P, columns, P)."""
    count, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    return images.reshape(count, channels, rows, patch_size, columns, patch_size)


def reordered(*order: int, keep: int = 3) -> Callable:
    """A function that orders the axes of `tiles` in another way; the first `keep` of them become B and N."""

    def function(images: Tensor, patch_size: int) -> Tensor:
        return tiles(images, patch_size).permute(*order).flatten(keep).flatten(1, keep - 1)

    return function


def spread_out(images: Tensor, patch_size: int) -> Tensor:
    """The mistake of splitting height into (P, rows): each patch takes pixels that lie far apart."""
    count, channels, height, width = images.shape
    shape = count, channels, patch_size, height // patch_size, patch_size, width // patch_size
    return images.reshape(shape).permute(0, 3, 5, 1, 2, 4).flatten(3).flatten(1, 2)


def numbered(*shape: int) -> Tensor:
    """A picture whose pixels are 0, 1, 2 and so on."""
    return torch.arange(math.prod(shape), dtype=torch.float32).view(shape)


CUT_PATCHES = Task(
    cut_patches,
    lambda: [(numbered(1, 1, 4, 4), 2), (draw(2, 3, 6, 6, seed=1), 3), (draw(2, 2, 4, 8, seed=2), 2)],
    "(B, N, channels * P * P): for each picture its patches, row by row from the top, each as one vector",
    "reshape to (B, channels, rows, P, columns, P), so that a pixel is found by its patch's row, its row in the patch, "
    "its patch's column and its column in the patch. Then permute to (B, rows, columns, channels, P, P), and flatten: "
    "flatten(3) makes one vector of the last three axes, flatten(1, 2) one axis of the rows and columns.",
    (
        Mistake(
            "the patches mix regions: the pixels keep their order, so a run of pixels that goes across the whole "
            "picture becomes a patch. Split height and width, move the axes with permute, then flatten.",
            lambda images, patch_size: images.reshape(len(images), -1, images.shape[1] * patch_size**2),
        ),
        Mistake(
            "the patches mix regions: a patch takes pixels from all over the picture. Height splits into (rows, P), in "
            "this order, and width into (columns, P).",
            spread_out,
        ),
        Mistake(
            "the patches come column by column. Wanted is row by row: the axis of the rows stands before that of the "
            "columns.",
            reordered(0, 4, 2, 1, 3, 5),
        ),
        Mistake(
            "within each patch, rows and columns are swapped: the row in the patch comes before the column.",
            reordered(0, 2, 4, 1, 5, 3),
        ),
        Mistake(
            "within each patch the channels come last. Wanted is channel by channel, as in the weight of a "
            "convolution: (channels, P, P).",
            reordered(0, 2, 4, 3, 5, 1),
        ),
        Mistake(
            "each channel makes patches of its own. A patch holds all channels of its place.",
            reordered(0, 1, 2, 4, 3, 5, keep=4),
        ),
        Mistake(
            "rows and columns of patches are still two axes: flatten(1, 2) makes one of them.",
            lambda images, patch_size: tiles(images, patch_size).permute(0, 2, 4, 1, 3, 5).flatten(3),
        ),
        Mistake(
            "the patches are still small pictures: flatten makes one vector of each.",
            lambda images, patch_size: tiles(images, patch_size).permute(0, 2, 4, 1, 3, 5).flatten(1, 2),
        ),
        Mistake(
            "all patches of a picture end in one vector. Flatten rows and columns, and, apart from them, the pixels.",
            lambda images, patch_size: tiles(images, patch_size).permute(0, 2, 4, 1, 3, 5).flatten(1),
        ),
    ),
)


def project_patches(patches: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Patches (B, N, channels * P * P), weight (C, channels, P, P), bias (C,) -> hidden states (B, N, C)."""
    return patches @ weight.flatten(1).mT + bias


def projection_cases() -> list[tuple]:
    cases = []
    for seed, (count, n, width, channels, side, dtype) in enumerate(
        ((1, 2, 3, 1, 2, torch.float64), (2, 4, 5, 3, 2, torch.float32), (2, 4, 8, 2, 2, torch.float64))
    ):
        patches = draw(count, n, channels * side**2, seed=seed, dtype=dtype)
        weight = draw(width, channels, side, side, seed=seed + 5, dtype=dtype)
        cases.append((patches, weight, draw(width, seed=seed + 9, dtype=dtype)))
    return cases


PROJECT_PATCHES = Task(
    project_patches,
    projection_cases,
    "(B, N, C): each patch times the weights of each of the C features, plus the bias",
    "weight.flatten(1) has the shape (C, channels * P * P): one row for each feature. patches @ that matrix's "
    "transpose (.mT) is (B, N, C); the bias (C,) is added to it.",
    (
        Mistake("the bias is missing.", lambda patches, weight, bias: patches @ weight.flatten(1).mT),
        Mistake(
            "the weight is reshaped where it has to be transposed: view changes which numbers belong together. "
            "Flatten it to (C, channels * P * P), then transpose with .mT.",
            lambda patches, weight, bias: patches @ weight.reshape(-1, len(weight)) + bias,
        ),
        Mistake(
            "within each patch, rows and columns of the weight are swapped: flatten it without a transpose of its last "
            "two axes.",
            lambda patches, weight, bias: patches @ weight.mT.flatten(1).mT + bias,
        ),
        Mistake(
            "the bias is subtracted.",
            lambda patches, weight, bias: patches @ weight.flatten(1).mT - bias,
        ),
    ),
)


# ------------------------------------------------------------------------------------------------ the class token


def add_class_token(x: Tensor, class_token: Tensor, positions: Tensor) -> Tensor:
    """Patches (B, N, C), class token (C,), positions (1 + N, C) -> (B, 1 + N, C): the class token first."""
    return with_token(x, class_token) + positions


def with_token(x: Tensor, class_token: Tensor) -> Tensor:
    """The class token in front of the patches, (B, 1 + N, C)."""
    return torch.cat((class_token.expand(len(x), 1, -1), x), dim=1)


ADD_CLASS_TOKEN = Task(
    add_class_token,
    lambda: [
        (draw(count, n, width, seed=seed), draw(width, seed=seed + 5), draw(1 + n, width, seed=seed + 9))
        for seed, (count, n, width) in enumerate(((1, 3, 2), (2, 4, 6), (3, 9, 4)))
    ],
    "(B, 1 + N, C): the class token, then the patches, each plus its position",
    "class_token.expand(len(x), 1, -1) is (B, 1, C), the same vector for each picture. torch.cat((a, b), dim=1) puts "
    "b behind a. Add the positions last, to all 1 + N.",
    (
        Mistake(
            "the class token stands at the end. It comes first, and the head reads the first position.",
            lambda x, token, positions: torch.cat((x, token.expand(len(x), 1, -1)), dim=1) + positions,
        ),
        Mistake("the positions are missing.", lambda x, token, positions: with_token(x, token)),
        Mistake(
            "the class token has no position: add the positions after it is in its place.",
            lambda x, token, positions: torch.cat((token.expand(len(x), 1, -1), x + positions[1:]), dim=1),
        ),
        Mistake(
            "the positions are off by one: they are added to the patches before the class token is there, so that the "
            "first patch gets the class token's.",
            lambda x, token, positions: with_token(x + positions[:-1], token),
        ),
        Mistake(
            "the class token is added to every patch. It is a position of its own.",
            lambda x, token, positions: x + token + positions[1:],
        ),
        Mistake("the class token is missing.", lambda x, token, positions: x + positions[1:]),
        Mistake(
            "the positions are added twice.",
            lambda x, token, positions: with_token(x, token) + 2 * positions,
        ),
    ),
)


def read_class(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Last hidden states (B, T, C), weight (K, C), bias (K,) -> a logit for each class, (B, K)."""
    return states[:, 0] @ weight.mT + bias


READ_CLASS = Task(
    read_class,
    lambda: [
        (draw(count, n, width, seed=seed), draw(classes, width, seed=seed + 5), draw(classes, seed=seed + 9))
        for seed, (count, n, width, classes) in enumerate(((1, 3, 2, 2), (4, 5, 6, 3), (3, 10, 4, 10)))
    ],
    "(B, K): for each picture one logit for each class, from the hidden state of the class token",
    "states[:, 0] is the first position of every picture, (B, C). Times weight.mT it is (B, K); then the bias.",
    (
        Mistake(
            "it reads the last position, a patch. The class token is the first.",
            lambda states, weight, bias: states[:, -1] @ weight.mT + bias,
        ),
        Mistake(
            "it reads the second position, the first patch: count from 0.",
            lambda states, weight, bias: states[:, 1] @ weight.mT + bias,
        ),
        Mistake(
            "it reads the first picture of the batch. The first axis counts the pictures, the second the positions: "
            "states[:, 0].",
            lambda states, weight, bias: states[0] @ weight.mT + bias,
        ),
        Mistake(
            "it reads the mean of all positions. That is another model (some ViTs do it); here the class token alone.",
            lambda states, weight, bias: states.mean(1) @ weight.mT + bias,
        ),
        Mistake(
            "it reads the mean of the patches, without the class token. That is another model; here it alone is read.",
            lambda states, weight, bias: states[:, 1:].mean(1) @ weight.mT + bias,
        ),
        Mistake(
            "every position gets logits. Only the class token is read: states[:, 0].",
            lambda states, weight, bias: states @ weight.mT + bias,
        ),
        Mistake(
            "softmax comes after the logits. The loss, cross_entropy, applies it itself.",
            lambda states, weight, bias: read_class(states, weight, bias).softmax(-1),
        ),
        Mistake(
            "it returns the most likely class. Wanted are the logits of all, from which a loss can be taken.",
            lambda states, weight, bias: read_class(states, weight, bias).argmax(-1),
        ),
        Mistake("the bias is missing.", lambda states, weight, bias: states[:, 0] @ weight.mT),
    ),
)


# ------------------------------------------------------------------------------------------------ the interval


def accuracy_interval(right: int, n: int) -> tuple[float, float]:
    """right of n pictures -> the lower and the upper end of the 95 % interval (Wilson 1927)."""
    low, high = interval(right / n, n)
    return low, high


def around(middle: float, half: float) -> tuple[float, float]:
    return middle - half, middle + half


def wilson(p: float, n: int, z: float = 1.96, square: float | None = None) -> tuple[float, float]:
    """The interval's formula with another z, or with another number in the place of z squared."""
    square = z * z if square is None else square
    middle = (p + square / (2 * n)) / (1 + square / n)
    return around(middle, z / (1 + square / n) * math.sqrt(p * (1 - p) / n + square / (4 * n * n)))


ACCURACY_INTERVAL = Task(
    accuracy_interval,
    lambda: [(50, 75), (940, 1000), (3, 12)],
    "two numbers, the lower and the upper end: middle - half and middle + half",
    "z = 1.96 and p = right / n. Write middle and half as in the formula above, with math.sqrt, and return "
    "(middle - half, middle + half).",
    (
        Mistake(
            "it is the simple interval p ± z √(p (1 - p) / n). Near 0 and 1 it is too narrow and can leave 0 to 1; the "
            "formula above has a corrected middle and width.",
            lambda right, n: around(right / n, 1.96 * math.sqrt(right / n * (1 - right / n) / n)),
        ),
        Mistake(
            "the middle is p itself. It has to move towards 1/2: (p + z² / 2n) / (1 + z² / n).",
            lambda right, n: around(right / n, (accuracy_interval(right, n)[1] - accuracy_interval(right, n)[0]) / 2),
        ),
        Mistake(
            "z is 1: that is an interval of 68 %, not of 95 %.",
            lambda right, n: wilson(right / n, n, 1.0),
        ),
        Mistake(
            "z is 1.645: that is an interval of 90 %, not of 95 %.",
            lambda right, n: wilson(right / n, n, 1.645),
        ),
        Mistake(
            "it returns the middle and half the width. Wanted are the two ends.",
            lambda right, n: (
                sum(accuracy_interval(right, n)) / 2,
                (accuracy_interval(right, n)[1] - accuracy_interval(right, n)[0]) / 2,
            ),
        ),
        Mistake(
            "the ends are swapped: first the lower one.",
            lambda right, n: accuracy_interval(right, n)[::-1],
        ),
        Mistake(
            "z is not squared where the formula has z².",
            lambda right, n: wilson(right / n, n, square=1.96),
        ),
        Mistake(
            "the root lacks its second term, z² / 4n².",
            lambda right, n: around(
                sum(accuracy_interval(right, n)) / 2,
                1.96 / (1 + 1.96**2 / n) * math.sqrt(right / n * (1 - right / n) / n),
            ),
        ),
        Mistake(
            "half the width is not divided by 1 + z² / n.",
            lambda right, n: around(
                sum(accuracy_interval(right, n)) / 2,
                1.96 * math.sqrt(right / n * (1 - right / n) / n + 1.96**2 / (4 * n * n)),
            ),
        ),
        Mistake(
            "`right` is used as if it were the share of right answers: p = right / n.",
            lambda right, n: wilson(right, n),
        ),
    ),
)


# ------------------------------------------------------------------------------------------------ rollout


def maps_of(count: int, heads: int, length: int, layers: int, seed: int) -> list[Tensor]:
    """Attention of each layer (B, H, T, T), every row of which sums to 1."""
    shape = count, heads, length, length
    return [(2 * draw(*shape, seed=seed + i, dtype=torch.float32)).softmax(-1) for i in range(layers)]


def flow_of(maps: list[Tensor], step: Callable) -> Tensor:
    """Go through the layers with `step(flow, mean of the heads, identity)`."""
    flow = identity = torch.eye(maps[0].shape[-1])
    for layer in maps:
        flow = step(flow, layer.mean(1), identity)
    return flow


ROLLOUT = Task(
    rollout,
    lambda: [(maps_of(1, 1, 2, 1, 0),), (maps_of(2, 3, 4, 3, 10),), (maps_of(2, 2, 5, 2, 20),)],
    "(B, T, T): row t, column s is the share of what stood at position s at the beginning in position t at the end",
    "begin with flow = torch.eye(T). For each layer: mixed = (layer.mean(1) + torch.eye(T)) / 2, then "
    "flow = mixed @ flow.",
    (
        Mistake(
            "the order of the product is reversed: a later layer mixes what the earlier ones made, so it stands on the "
            "left: mixed @ flow.",
            lambda maps: flow_of(maps, lambda flow, mean, one: flow @ (mean + one) / 2),
        ),
        Mistake(
            "the residual stream is left out: half of what a layer passes on stays where it is.",
            lambda maps: flow_of(maps, lambda flow, mean, one: mean @ flow),
        ),
        Mistake(
            "the rows do not sum to 1: divide the sum of attention and identity by 2.",
            lambda maps: flow_of(maps, lambda flow, mean, one: (mean + one) @ flow),
        ),
        Mistake(
            "only the last layer counts. Multiply the matrices of all layers.",
            lambda maps: flow_of(maps, lambda flow, mean, one: (mean + one) / 2),
        ),
        Mistake(
            "the matrices are added. Two steps one after the other are a product of matrices.",
            lambda maps: flow_of(maps, lambda flow, mean, one: flow + (mean + one) / 2),
        ),
        Mistake(
            "the matrices are multiplied element by element (*). Use the product of matrices, @.",
            lambda maps: flow_of(maps, lambda flow, mean, one: (mean + one) / 2 * flow),
        ),
        Mistake(
            "the heads are added up. Take their mean: each row has to sum to 1.",
            lambda maps: rollout([layer.sum(1, keepdim=True) for layer in maps]),
        ),
        Mistake(
            "only the first head is followed. Take the mean of all: layer.mean(1).",
            lambda maps: rollout([layer[:, :1] for layer in maps]),
        ),
        Mistake(
            "every head is followed on its own, (B, H, T, T). Take their mean first: layer.mean(1).",
            lambda maps: torch.stack(
                [rollout([layer[:, head : head + 1] for layer in maps]) for head in range(maps[0].shape[1])], 1
            ),
        ),
        Mistake(
            "the mean goes over the pictures of the batch (axis 0). The heads are axis 1.",
            lambda maps: rollout([layer.transpose(0, 1) for layer in maps]),
        ),
    ),
)

TASKS = {
    "cut_patches": CUT_PATCHES,
    "project_patches": PROJECT_PATCHES,
    "add_class_token": ADD_CLASS_TOKEN,
    "read_class": READ_CLASS,
    "accuracy_interval": ACCURACY_INTERVAL,
    "rollout": ROLLOUT,
}
