"""One Transformer: BERT, GPT and ViT are one network, and this file is that network.

    tokens or patches -> embed -> Block -> Block -> ... -> Block -> norm -> head -> logits

A text is cut into tokens, which are words, pieces of words or characters. Each has a number, its
id, in a fixed list, the vocabulary. BERT reads a text in both directions and predicts tokens that
were masked, that is, hidden from it. GPT reads from left to right and predicts the next token. ViT
cuts a picture into patches, reads them like a text, and predicts the picture's class. Logits are
the scores of every token or class; softmax turns them into probabilities.

All three are built from the same `Block`. They differ mainly in three places: what goes in
(`embed`), which positions may attend to which, that is, read from them (`Config.causal`), and what
comes out (`head`; the heads of attention are something else). BERT also normalises the hidden
states at other places (`Config.norm_first`).

The file reads from top to bottom: settings, attention, the block, the whole network, what goes in,
what comes out, the three models, sampling from GPT, and training. It needs nothing but torch,
lightning and torchmetrics to build the models, train them on any data with the optimiser AdamW, and
sample. The folder utils/ has data sets, official weights, the command line, and Muon, an
alternative to AdamW.

Shapes stand in comments as tuples of these letters:

    B  sequences (texts or pictures) in a batch
    T  positions in each sequence; in sampling with a cache, of its new tokens only
    C  features of a hidden state (the vector of one position between two layers): d_model
    H  attention heads: n_heads
    D  features of one head: C // H
    S  positions that can be attended to: T, or more in sampling (see KVCache)
    V  tokens in the vocabulary
    K  classes
    N  positions that the loss is computed on

Papers: "Attention is all you need" (Vaswani 2017), BERT (Devlin 2018), GPT-2 (Radford 2019),
ViT (Dosovitskiy 2020), RoFormer (Su 2021), AdamW (Loshchilov 2017). "Vaswani, 3.2" is section 3.2
of the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy

# ---------------------------------------------------------------------------------------- settings


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Unless `condition` holds, raise a ValueError that says: NAME=VALUE: must be ALLOWED."""
    if not condition:
        raise ValueError(f"{name}={value!r}: must be {allowed}")


ACTIVATIONS = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,  # x * P(Z < x), Z standard normal: a smooth relative of ReLU (BERT, ViT)
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),  # nearly the same, by tanh (GPT-2)
}
POSITIONS = ("learned", "sinusoidal", "rotary")


@dataclass(frozen=True)
class Config:
    """The sizes and choices that the models share. The default sizes are the smallest GPT-2's."""

    n_layers: int = 12  # blocks
    n_heads: int = 12  # H, the attention heads in every block
    d_model: int = 768  # C, the width of the hidden states
    d_ff: int = 3072  # the width inside the feed-forward network, the second half of a block (MLP)
    max_len: int = 1024  # the longest sequence
    # In training, this share of the features of each layer's result, chosen at random, is set to 0,
    # and so is this share of the attention weights (see Attention). The rest is enlarged to make up
    # for it. So the model learns to rely on no single one.
    dropout: float = 0.0
    causal: bool = False  # True: a position attends to itself and to earlier positions only
    # norm_first=True: a LayerNorm before attention and one before the feed-forward network
    # (pre-norm: GPT-2, ViT), which makes deep models easier to train. False: one after each sum
    # (post-norm: Vaswani, BERT). A LayerNorm brings each vector to mean 0 and variance 1, then
    # multiplies each feature by a learned number, the gain, and adds another, the bias.
    norm_first: bool = True
    norm_eps: float = 1e-5  # added to the variance, so that a LayerNorm never divides by 0
    activation: str = "gelu"  # one of ACTIVATIONS
    # One of POSITIONS. Attention by itself does not know the order of the tokens; this tells it:
    # by a trained vector for each position (learned), or by fixed angles (sinusoidal and rotary,
    # see position_angles).
    positions: str = "learned"
    init_std: float = 0.02  # the standard deviation of the initial weights

    def __post_init__(self) -> None:
        for name in ("n_layers", "n_heads", "d_model", "d_ff", "max_len"):
            value = getattr(self, name)
            require(isinstance(value, int) and value > 0, name, value, "a whole number above 0")
        divisible = self.d_model % self.n_heads == 0
        require(divisible, "d_model", self.d_model, f"divisible by n_heads={self.n_heads}")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "at least 0 and below 1")
        require(self.norm_eps > 0, "norm_eps", self.norm_eps, "above 0")
        require(self.init_std > 0, "init_std", self.init_std, "above 0")
        names = ", ".join(ACTIVATIONS)
        require(self.activation in ACTIVATIONS, "activation", self.activation, f"one of {names}")
        names = ", ".join(POSITIONS)
        require(self.positions in POSITIONS, "positions", self.positions, f"one of {names}")
        if self.positions == "rotary":
            even = (self.d_model // self.n_heads) % 2 == 0
            allowed = f"an even number of features for each of n_heads={self.n_heads} heads"
            require(even, "d_model", self.d_model, f"{allowed}, for rotary positions")
        if self.positions == "sinusoidal":
            allowed = "an even number for sinusoidal positions"
            require(self.d_model % 2 == 0, "d_model", self.d_model, allowed)


# The official sizes. ViT-B/16 cuts pictures of 224 x 224 pixels into 14 rows of 14 patches of
# 16 x 16 pixels. These 196 patches and a class token (see PatchEmbedding) are 197 positions. Each
# norm_eps is the value in the config.json that is published with the weights.
GPT2 = Config(causal=True, activation="gelu_tanh")
BERT_BASE = Config(max_len=512, norm_first=False, norm_eps=1e-12)
VIT_B16 = Config(max_len=197, norm_eps=1e-12)


# --------------------------------------------------------------------------------------- attention


class Attention(nn.Module):
    """Multi-head self-attention: softmax(q k^T / sqrt(D)) v in every head (Vaswani, 3.2).

    Every position sends out a query (what it looks for) and offers a key (what it can be found by)
    and a value (what it hands over). A score is the dot product of a query with a key. Softmax
    turns a query's scores into weights that sum to 1, and the result for its position is the
    weighted average of the values. The H heads do this side by side, each with its own D features,
    so that a position can attend to several others for several reasons. "Self": queries, keys and
    values come from the same sequence.

    Why sqrt(D): a dot product is a sum of D products. If these are independent, their variances
    add, so its standard deviation grows like sqrt(D). Large scores would make softmax put nearly
    all weight on one key. Then small changes of the scores change almost nothing: the gradients are
    close to 0, and little is learned. After the division, scores have the same size for every D.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.causal = config.causal
        self.rotary = config.positions == "rotary"
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)  # queries, keys, values at once
        self.out = nn.Linear(config.d_model, config.d_model)  # mixes the features of the heads

    def project(self, x: Tensor, cache: KVCache | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states x (B, T, C) -> queries (B, H, T, D), keys and values (B, H, S, D).

        cache: used in sampling alone; at a first reading, take it to be None, and S = T. It holds
        the keys and values of the tokens before these T. Those of the T tokens are appended to it,
        and all S are returned. (KVCache and `rotate` stand below.)
        """
        H = self.n_heads
        qkv = self.qkv(x)  # (B, T, 3C): C features of queries, C of keys, C of values
        qkv = qkv.unflatten(-1, (3 * H, -1))  # (B, T, 3H, D): each C is cut into H heads
        # (B, 3H, T, D): first the H heads of queries, then the H of keys, then the H of values
        qkv = qkv.transpose(1, 2)
        qk = qkv[:, : 2 * H]  # (B, 2H, T, D): queries and keys together, to rotate both in one call
        v = qkv[:, 2 * H :]  # (B, H, T, D)
        if self.rotary:
            start = 0 if cache is None else cache.length
            qk = rotate(qk, start)
        q, k = qk.chunk(2, dim=1)  # (B, H, T, D) each
        if cache is not None:
            k, v = cache.append(k, v)  # (B, H, S, D) each
        return q, k, v

    def visible(self, T: int, S: int, mask: Tensor | None, device: torch.device) -> Tensor | None:
        """Which of the S keys each of the T queries may attend to: True where it may.

        mask: (B, S), True at tokens and False at padding; None if there is no padding. Returns a
        tensor that broadcasts to the scores (B, H, T, S), or None if nothing is hidden.
        """
        padding = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, S)
        if not self.causal:
            return padding
        if T == 1:  # the only query is the newest token; no key is later than that
            return padding
        # The T queries stand at the last T of the S positions. Each sees the keys up to its own
        # position. For T = 3 and S = 5, where a cache holds the first two tokens:
        #     1 1 1 0 0
        #     1 1 1 1 0
        #     1 1 1 1 1
        # tril(n) keeps True where column <= row + n.
        past = torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)  # (T, S)
        return past if padding is None else past & padding

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """(B, T, C) -> (B, T, C).

        mask: (B, S), boolean. Shorter texts of a batch are filled up with padding tokens, and the
        mask is True at tokens and False at padding. Padding stands at the end. If it stood at the
        beginning of a causal text, the first query would see nothing but padding, all its scores
        would be -inf, and the softmax 0/0. cache: the keys and values of earlier tokens, which
        these T continue.
        """
        q, k, v = self.project(x, cache)
        T, S = q.shape[2], k.shape[2]
        dropout = self.dropout if self.training else 0.0
        # One call of PyTorch for the scores, their division by sqrt(D), the softmax, dropout on the
        # attention weights, and the average of the values: y is (B, H, T, D). The method `weights`
        # has the first three steps written out.
        if self.causal and mask is None and T == S:
            # PyTorch's built-in causal mask is the fastest. It lets query i see the keys 0 to i,
            # which is right only if T == S.
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        else:
            visible = self.visible(T, S, mask, x.device)
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, attn_mask=visible)
        y = y.transpose(1, 2).flatten(2)  # (B, T, C): the heads side by side again
        return self.out(y)

    def weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attention weights of `forward`, before dropout: (B, T, C) -> (B, H, T, T). Training
        does not use this method; it is for pictures of who attends to whom.
        """
        q, k, _ = self.project(x)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, T)
        visible = self.visible(q.shape[2], k.shape[2], mask, x.device)
        if visible is not None:
            scores = scores.masked_fill(~visible, -math.inf)  # softmax turns this into weight 0
        return scores.softmax(-1)  # every row sums to 1


def position_angles(
    start: int, stop: int, width: int, device: torch.device | None = None
) -> Tensor:
    """Angles that encode a position, one for each of width / 2 pairs of features (Vaswani, 3.5).

    `Positions` adds the sine and the cosine of each angle to a pair of features; `rotate` turns the
    pair by the angle. Think of one clock hand for each pair. From one position to the next, hand i
    turns by 10000^(-2i / width) radians: the first, i = 0, by 1, each further hand by less, the
    last one by little more than 1/10000. The fast hands tell neighbours apart, the slow ones
    distant positions. Returns the angles at the positions from `start` to `stop` - 1:
    (stop - start, width / 2), float32.
    """
    # float32 also in a model of 16 bits, whose numbers are too coarse to tell 256 from 257.
    positions = torch.arange(start, stop, dtype=torch.float32, device=device)
    even = torch.arange(0, width, 2, dtype=torch.float32, device=device)  # 2i for every i
    speeds = 10_000.0 ** -(even / width)
    return positions[:, None] * speeds


def rotate(x: Tensor, start: int = 0) -> Tensor:
    """Rotary positions: turn pairs of features of x (..., T, D) by the angles of their positions.

    Queries and keys are turned, because positions should decide how much is read from whom. Values
    are not: what is read should not depend on its position. A score is the sum of D/2 dot products,
    each of a pair of the query with the same pair of the key. Let query and key both move on by 100
    positions: the two pairs turn further by the same angle, and their dot product, which depends
    only on their lengths and on the angle between them, stays the same. So if the text moves on as
    a whole, no score changes: of the positions, only how far apart query and key are matters
    (RoFormer, 3.2). The paper pairs neighbouring features; here feature i is paired with
    feature i + D/2. It makes no difference: training decides what each feature means. `start` is
    the position of the first of the T vectors.
    """
    angles = position_angles(start, start + x.shape[-2], x.shape[-1], x.device)  # (T, D/2)
    cos = angles.cos().to(x.dtype)
    sin = angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)  # (..., T, D/2) each
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


class KVCache:
    """The keys and values of one block's attention for the tokens that GPT has read so far.

    GPT's tokens do not attend to later ones. When the text grows, the hidden states of the earlier
    tokens therefore stay the same in every block, and so do their keys and values: sampling
    computes them once. Memory for `size` positions is reserved at the start.
    """

    def __init__(self, batch: int, size: int, config: Config, like: Tensor) -> None:
        """`like`: a tensor of the model; the cache gets its device and its number type."""
        shape = (batch, config.n_heads, size, config.d_model // config.n_heads)
        self.keys = like.new_empty(shape)  # (B, H, size, D)
        self.values = like.new_empty(shape)  # (B, H, size, D)
        self.length = 0  # how many of the `size` positions are filled

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values (B, H, T, D) of T new tokens; return those of all S tokens."""
        start = self.length
        self.length = start + k.shape[2]
        self.keys[:, :, start : self.length] = k
        self.values[:, :, start : self.length] = v
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]  # (B, H, S, D)


# --------------------------------------------------------------------------------------- the block


class MLP(nn.Module):
    """The feed-forward network, or multi-layer perceptron: two linear layers with an activation in
    between (Vaswani, 3.3).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ff)
        self.activation = ACTIVATIONS[config.activation]()
        self.down = nn.Linear(config.d_ff, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C). Every position is treated alike and on its own."""
        return self.down(self.activation(self.up(x)))


def select(x: Tensor, keep: Tensor | int | None) -> Tensor:
    """The hidden states of x (B, T, C) at the positions whose logits are wanted. `keep` is

    - None: all positions, as in GPT's training -> (B, T, C)
    - a number: this position of every sequence, the last (-1) in sampling and the first (0) where
      the class is read -> (B, C)
    - a boolean tensor (B, T): the N positions at which it is True, for BERT the tokens that it has
      to predict -> (N, C)
    """
    if keep is None:
        return x
    if isinstance(keep, int):
        return x[:, keep]
    return x[keep]


class Block(nn.Module):
    """Attention moves information between positions; the feed-forward network then works on each
    position alone. Both add their result to x instead of replacing it, so that gradients reach the
    first layers past all the others. x is called the residual stream. (In a post-norm block a
    LayerNorm follows each sum.)
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = Attention(config)
        self.mlp = MLP(config)
        self.norm1 = nn.LayerNorm(config.d_model, config.norm_eps)
        self.norm2 = nn.LayerNorm(config.d_model, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        keep: Tensor | int | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C), or the positions of it that `keep` names.

        mask, cache: as in Attention. keep: as in `select`. Only the last block gets one: any other
        block must return every position, for the attention of the next block.
        """
        # Step 1: attention.
        if self.norm_first:
            x = x + self.dropout(self.attention(self.norm1(x), mask, cache))
        else:
            x = self.norm1(x + self.dropout(self.attention(x, mask, cache)))

        # What follows works on each position alone. In the last block, go on with those positions
        # whose logits are wanted, and save the work on the others.
        x = select(x, keep)

        # Step 2: the feed-forward network.
        if self.norm_first:
            x = x + self.dropout(self.mlp(self.norm2(x)))
        else:
            x = self.norm2(x + self.dropout(self.mlp(x)))
        return x


# ------------------------------------------------------------------------------- the whole network


class Transformer(nn.Module):
    """embed -> blocks -> norm -> head: what BERT, GPT and ViT have in common."""

    def __init__(
        self, config: Config, embed: nn.Module, head: nn.Module, head_position: int | None = None
    ) -> None:
        """`head_position`: which positions the head reads if `forward` is given no `keep`: 0, the
        first one only; None, all of them.
        """
        super().__init__()
        self.config = config
        self.embed = embed
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        if config.norm_first:
            self.norm = nn.LayerNorm(config.d_model, config.norm_eps)
        else:
            self.norm = nn.Identity()  # a post-norm block has already normalised its output
        self.head = head
        self.head_position = head_position
        self.init_weights()

    def init_weights(self) -> None:
        """Draw all weights from a normal distribution with mean 0; set biases to 0.

        LayerNorms keep the gain 1 that PyTorch gives them. A weight that embedding and head share
        is drawn twice; the second draw counts.
        """
        std = self.config.init_std
        for module in self.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if name == "bias":
                    nn.init.zeros_(parameter)
                elif not isinstance(module, nn.LayerNorm):
                    nn.init.normal_(parameter, std=std)
        # Each of the n_layers blocks adds to the residual stream twice, and a sum of 2 * n_layers
        # independent terms has sqrt(2 * n_layers) times the standard deviation of one. To make up
        # for that, the layers whose results are added, the last of attention and the last of the
        # feed-forward network, are drawn again, smaller by this factor (GPT-2, 2.3). Post-norm
        # models, where a LayerNorm follows each sum, would not need it; one rule is simpler.
        for block in self.blocks:
            for layer in (block.attention.out, block.mlp.down):
                nn.init.normal_(layer.weight, std=std / math.sqrt(2 * len(self.blocks)))

    def forward(
        self,
        *inputs: Tensor,
        mask: Tensor | None = None,
        caches: list[KVCache] | None = None,
        keep: Tensor | int | None = None,
    ) -> Tensor:
        """Compute the logits, the unnormalised scores of every token or class.

        inputs: what `embed` takes. mask: (B, T), boolean, False at padding, which comes last.
        caches: one for each block; the inputs continue the tokens whose keys and values they hold.
        Give no mask with caches: texts that are continued together are equally long, unpadded.
        keep: the positions whose logits are wanted, as in `select`; if None, those that the head
        reads. Only these go through the last feed-forward network, the norm and the head.

        Returns (B, T, V) from a head that reads every position, (B, K) from one that reads one
        position; with `keep`, (B, V) for one position or (N, V) for a boolean tensor.
        """
        if mask is not None:
            allowed = "boolean: True at tokens, False at padding"
            require(mask.dtype == torch.bool, "mask", mask.dtype, allowed)
        if keep is None:
            keep = self.head_position

        if caches is None:
            x = self.embed(*inputs)  # (B, T, C)
            caches = [None] * len(self.blocks)
        else:  # texts only: PatchEmbedding takes no start
            x = self.embed(*inputs, start=caches[0].length)  # (B, T, C)
        for i, block in enumerate(self.blocks):
            if i < len(self.blocks) - 1:
                x = block(x, mask, caches[i])  # (B, T, C)
            else:
                x = block(x, mask, caches[i], keep)  # (B, T, C), (B, C) or (N, C)
        return self.head(self.norm(x))

    @torch.no_grad()
    def attention_maps(self, *inputs: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """The attention weights (B, H, T, T) of every block, the first block's first. Call eval()
        on the model before, or dropout is on.
        """
        maps = []
        x = self.embed(*inputs)
        for block in self.blocks:
            seen = block.norm1(x) if block.norm_first else x
            maps.append(block.attention.weights(seen, mask))
            x = block(x, mask)
        return maps


# ------------------------------------------------------------------------------------ what goes in


class Positions(nn.Module):
    """Add learned or sinusoidal positions. Rotary positions are not added: Attention uses them."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.kind = config.positions
        self.max_len = config.max_len
        if self.kind == "learned":
            table = torch.empty(config.max_len, config.d_model)
            self.table = nn.Parameter(table)  # Transformer.init_weights fills it
        if self.kind == "sinusoidal":  # even features are sines, odd ones cosines (Vaswani, 3.5)
            angles = position_angles(0, config.max_len, config.d_model)  # (max_len, C/2)
            pairs = torch.stack((angles.sin(), angles.cos()), dim=-1)  # (max_len, C/2, 2)
            table = pairs.flatten(1)  # (max_len, C): sine, cosine, sine, cosine, ...
            # A buffer is not trained, but moves to a GPU with the model. This one is not saved with
            # the weights, because it can be computed again.
            self.table = nn.Buffer(table, persistent=False)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """(B, T, C) -> (B, T, C). `start` is the position of x[:, 0]."""
        stop = start + x.shape[1]
        # Rotary positions have no table that ends, but are checked as well: a model does badly at
        # positions that it was not trained on.
        allowed = f"at most max_len={self.max_len}"
        require(stop <= self.max_len, "sequence length", stop, allowed)
        if self.kind == "rotary":
            return x
        return x + self.table[start:stop]


def check_ids(name: str, ids: Tensor, size_name: str, size: int) -> None:
    """Raise a ValueError unless ids is an int64 tensor (B, T) of numbers from 0 to size - 1."""
    good = ids.ndim == 2 and ids.dtype == torch.long
    require(good, name, f"{ids.dtype} {tuple(ids.shape)}", "int64 (B, T)")
    # Skipped on a GPU, which lags behind Python: to read a value, Python would have to wait for it.
    # Skipped under torch.compile, too: it would have to cut the compiled code in two here.
    if ids.device.type == "cpu" and ids.numel() > 0 and not torch.compiler.is_compiling():
        low, high = ids.min().item(), ids.max().item()
        inside = low >= 0 and high < size
        require(inside, name, f"{low}..{high}", f"at least 0 and below {size_name}={size}")


class TokenEmbedding(nn.Module):
    """Token ids to vectors: the vector of the token + that of its position, if it has one.
    nn.Embedding is a table with one trained vector for each id.

    BERT also adds a segment embedding (BERT, figure 2). Its official weights were trained on pairs
    of texts, and the segment says whether a token belongs to the first (0) or the second (1). As
    in BERT, post-norm models get a LayerNorm after the sum.
    """

    def __init__(self, config: Config, vocab_size: int, n_segments: int = 0) -> None:
        super().__init__()
        require(vocab_size > 1, "vocab_size", vocab_size, "at least 2")
        self.tokens = nn.Embedding(vocab_size, config.d_model)
        self.segments = nn.Embedding(n_segments, config.d_model) if n_segments else None
        self.positions = Positions(config)
        if config.norm_first:
            self.norm = nn.Identity()  # a pre-norm block normalises its input itself
        else:
            self.norm = nn.LayerNorm(config.d_model, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor, segments: Tensor | None = None, start: int = 0) -> Tensor:
        """ids and segments (B, T), int64 -> (B, T, C). `start` is the position of ids[:, 0]."""
        check_ids("ids", ids, "vocab_size", self.tokens.num_embeddings)
        x = self.tokens(ids)  # (B, T, C)
        if self.segments is None:
            allowed = "left out: this model has no segment embeddings"
            require(segments is None, "segments", "a tensor", allowed)
        else:
            if segments is None:
                segments = torch.zeros_like(ids)  # a single text, as in all data of utils/data
            check_ids("segments", segments, "n_segments", self.segments.num_embeddings)
            x = x + self.segments(segments)  # (B, T, C)
        if self.positions.kind == "sinusoidal":
            # Sines reach 1, which would drown embeddings whose initial size is 0.02 (init_std). So
            # the embeddings are enlarged (Vaswani, 3.4). PatchEmbedding does not do this: it sums
            # over all the pixels of a patch, which makes its vectors larger.
            x = x * math.sqrt(x.shape[-1])
        x = self.positions(x, start)
        return self.dropout(self.norm(x))


class PatchEmbedding(nn.Module):
    """A picture to a sequence of vectors: the class token and the patches, with positions added
    (ViT, 3.1).

    Each patch becomes a vector by one linear map. The class token is a learned vector that belongs
    to no patch. Attention gathers information about the whole picture in it, and the head reads it.
    `channels`: 3 for red, green and blue, 1 for grey.
    """

    def __init__(
        self, config: Config, image_size: int, patch_size: int, channels: int = 3
    ) -> None:
        super().__init__()
        self.input_shape = (channels, image_size, image_size)
        # A convolution multiplies a small window of the picture by its weight, at many places. If
        # the window is a patch and moves on by one patch (stride), it is one linear map per patch.
        self.project = nn.Conv2d(channels, config.d_model, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, config.d_model))
        self.positions = Positions(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, height, width) -> (B, T, C). T = 1 + patches, row by row from the top."""
        good = images.ndim == 4 and tuple(images.shape[1:]) == self.input_shape
        channels, height, width = self.input_shape
        require(good, "images", tuple(images.shape), f"(B, {channels}, {height}, {width})")
        x = self.project(images)  # (B, C, rows, columns)
        x = x.flatten(2).transpose(1, 2)  # (B, patches, C)
        class_tokens = self.class_token.expand(len(images), -1, -1)  # (B, 1, C): shared by all
        x = torch.cat((class_tokens, x), dim=1)  # (B, T, C)
        return self.dropout(self.positions(x))


# ---------------------------------------------------------------------------------- what comes out


class MLMHead(nn.Module):
    """BERT's head for predicting masked tokens ("masked language model", MLM). It turns a hidden
    state into a logit for every token.

    Before the last layer come a linear layer, an activation and a LayerNorm. BERT's published code
    has them; the paper does not mention them.
    """

    def __init__(self, config: Config, tokens: nn.Embedding, tied: bool = True) -> None:
        """`tied`: the last layer has the token embeddings (V, C) as its weight, which saves V * C
        weights. The logit of a token is then the dot product of the hidden state with the token's
        embedding, plus a bias. BERT's code calls this layer the decoder. It has nothing to do with
        DecoderTransformer.
        """
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.activation = ACTIVATIONS[config.activation]()
        self.norm = nn.LayerNorm(config.d_model, config.norm_eps)
        self.decoder = nn.Linear(config.d_model, tokens.num_embeddings)
        if tied:
            self.decoder.weight = tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., V)."""
        x = self.norm(self.activation(self.dense(x)))  # (..., C)
        return self.decoder(x)


class ClassHead(nn.Module):
    """It turns the hidden state of the first position into a logit for every class.

    The first position holds ViT's class token, or the token [CLS] that stands in front of every
    text of BERT's. Transformer passes it alone (head_position=0). BERT first applies one more
    linear layer and tanh, which its code calls the pooler.
    """

    def __init__(self, config: Config, n_classes: int, pooler: bool = False) -> None:
        super().__init__()
        require(n_classes > 1, "n_classes", n_classes, "at least 2")
        self.pooler = nn.Linear(config.d_model, config.d_model) if pooler else None
        self.classifier = nn.Linear(config.d_model, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) -> (B, K)."""
        if self.pooler is not None:
            x = torch.tanh(self.pooler(x))
        return self.classifier(x)


# -------------------------------------------------------------------------------- the three models


class EncoderTransformer(Transformer):
    """BERT and ViT: every position attends to all. Vaswani 2017 calls this an encoder."""

    @classmethod
    def bert(
        cls,
        config: Config,
        vocab_size: int,
        n_segments: int = 2,
        n_classes: int = 0,
        tied: bool = True,
    ) -> EncoderTransformer:
        """ids (B, T) -> logits (B, T, V); with `n_classes`, logits (B, K) for the whole text."""
        require(not config.causal, "causal", config.causal, "False in an encoder")
        embed = TokenEmbedding(config, vocab_size, n_segments)
        if n_classes:
            return cls(config, embed, ClassHead(config, n_classes, pooler=True), head_position=0)
        return cls(config, embed, MLMHead(config, embed.tokens, tied))

    @classmethod
    def vit(
        cls, config: Config, image_size: int, patch_size: int, n_classes: int, channels: int = 3
    ) -> EncoderTransformer:
        """images (B, channels, image_size, image_size) -> logits (B, K).

        The number of patches decides max_len, whatever `config` says.
        """
        require(not config.causal, "causal", config.causal, "False in an encoder")
        divides = patch_size > 0 and image_size % patch_size == 0
        require(divides, "patch_size", patch_size, f"a divisor of image_size={image_size}")
        n_patches = (image_size // patch_size) ** 2
        config = replace(config, max_len=1 + n_patches)
        embed = PatchEmbedding(config, image_size, patch_size, channels)
        return cls(config, embed, ClassHead(config, n_classes), head_position=0)


class DecoderTransformer(Transformer):
    """GPT: a position attends to itself and to earlier positions only, so it can predict what comes
    next. ids (B, T) -> logits (B, T, V).

    Vaswani 2017 calls this a decoder. The decoder there translates: its blocks also attend, by
    cross-attention, to the output of an encoder that has read the other language. GPT has none.
    """

    def __init__(self, config: Config, vocab_size: int, tied: bool = True) -> None:
        """`tied`: head and token embeddings are one weight, as in MLMHead."""
        require(config.causal, "causal", config.causal, "True in a decoder")
        embed = TokenEmbedding(config, vocab_size)
        head = nn.Linear(config.d_model, vocab_size, bias=False)
        if tied:
            head.weight = embed.tokens.weight
        super().__init__(config, embed, head)

    # Inside this method, no gradients are computed. In the loop that asks it for tokens they are as
    # usual: PyTorch leaves inference mode at every `yield`, and enters it again afterwards.
    @torch.inference_mode()
    def stream(
        self,
        ids: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        use_cache: bool = True,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Continue the token ids (B, T) of B equally long texts, one token at a time.

        Yields, for each step, the ids (B,) of the new tokens, one for every text, and the logits
        (B, V) that they were sampled from. temperature, top_k, top_p: see sampling_probabilities.
        use_cache: keep keys and values, which is faster; False gives the same logits up to rounding
        errors. Call eval() on the model before, or dropout is on. If ids are longer than max_len,
        only their end is read, and of a text that grows beyond max_len the older half is forgotten.
        """
        good = ids.ndim == 2 and ids.numel() > 0
        require(good, "ids", tuple(ids.shape), "(B, T) with at least one token")
        require(max_new_tokens >= 0, "max_new_tokens", max_new_tokens, "at least 0")
        max_len = self.config.max_len
        cache_size = min(max_len, ids.shape[1] + max_new_tokens)  # positions to reserve memory for
        ids = ids[:, -max_len:]
        caches = None
        for _ in range(max_new_tokens):
            if ids.shape[1] > max_len:
                # Keep the newer half of the text, whose positions now begin at 0. The cached keys
                # were made with the old positions, so the half is read again, into empty caches.
                # Reading again is slow; if more than half were kept, it would happen more often.
                # (+ 1, because with max_len = 1 the slice would be -0:, which is the whole text.)
                ids = ids[:, -(max_len // 2 + 1) :]
                caches = None
            if not use_cache:
                new = ids  # all tokens are read again at every step
            elif caches is None:
                new = ids  # all tokens are read once, into empty caches
                like = self.embed.tokens.weight
                caches = [KVCache(len(ids), cache_size, self.config, like) for _ in self.blocks]
            else:
                new = ids[:, -1:]  # (B, 1): the caches hold all but the newest token
            # The logits of the last position (B, V). Each block also appends to its cache, if any.
            logits = self(new, caches=caches, keep=-1)
            probabilities = sampling_probabilities(logits, temperature, top_k, top_p)  # (B, V)
            token = torch.multinomial(probabilities, 1, generator=generator)  # (B, 1)
            ids = torch.cat((ids, token), dim=1)  # (B, T + 1)
            yield token[:, 0], logits

    def generate(self, ids: Tensor, max_new_tokens: int, **sampling) -> Tensor:
        """ids (B, T) -> (B, T + max_new_tokens). `sampling`: the other arguments of `stream`."""
        for token, _ in self.stream(ids, max_new_tokens, **sampling):
            ids = torch.cat((ids, token[:, None]), dim=1)
        return ids


def sampling_probabilities(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Logits (B, V) -> the probabilities (B, V) from which the next token is drawn.

    The arguments take effect in their order, each on what the one before has left.
    temperature: below 1 makes likely tokens even likelier; 0 always takes the likeliest. top_k:
    only the top_k likeliest tokens remain possible (more, if others are as likely as the last).
    top_p: only the likeliest tokens remain possible, as few as together reach the probability
    top_p (Holtzman 2019, "The curious case of neural text degeneration").
    """
    require(temperature >= 0, "temperature", temperature, "at least 0 (0: the likeliest token)")
    require(top_k is None or top_k >= 1, "top_k", top_k, "at least 1, or None for all tokens")
    good = top_p is None or 0 < top_p <= 1
    require(good, "top_p", top_p, "above 0 and at most 1, or None for all tokens")
    vocab_size = logits.shape[-1]
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), vocab_size).to(logits.dtype)

    # At least float32: in 16 bits many tokens would get exactly the same probability.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Softmax does not change when all logits are lowered alike. Now the largest is 0, and stays 0
    # when it is divided by a tiny temperature. The others may become -inf, which is probability 0;
    # inf, which would give NaN, cannot occur.
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    if top_k is not None and top_k < vocab_size:
        smallest = logits.topk(top_k).values[:, -1:]  # (B, 1): the smallest logit that remains
        logits = logits.masked_fill(logits < smallest, -math.inf)
    if top_p is not None and top_p < 1:
        ordered, places = logits.sort(descending=True)  # (B, V) each, the likeliest token first
        probabilities = ordered.softmax(-1)
        # For each token, the total probability of all likelier ones. Probabilities of 0.5, 0.3, 0.2
        # give 0, 0.5, 0.8; with top_p = 0.7 the third token is dropped.
        before = probabilities.cumsum(-1) - probabilities
        ordered = ordered.masked_fill(before >= top_p, -math.inf)
        logits = logits.scatter(-1, places, ordered)  # write each logit back to its own place
    return logits.softmax(-1)


# ---------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: the optimiser and the learning rate."""

    # "adamw": AdamW for all weights. "muon": AdamW for the embedding, the head, norms and biases,
    # and Muon for the matrices of the blocks. Muon, too, averages the gradients of a matrix, and
    # then makes all singular values of this average about equal (explained in utils/muon.py).
    optimizer: str = "adamw"
    lr: float = 1e-3  # AdamW's learning rate, which `lr_factor` below scales at every step
    muon_lr: float = 0.02  # Muon's, scaled alike
    # AdamW keeps two running averages for each weight: of its gradient and of the square of it. In
    # every step, new average = beta * old average + (1 - beta) * new value. Both begin at 0, so
    # they are too small at first, and are divided by 1 - beta^step to make up for it. Then
    # weight -= learning rate * first average / (sqrt(second average) + 1e-8): weights with small
    # gradients move as far as others.
    betas: tuple[float, float] = (0.9, 0.95)  # of the gradient, of the squared gradient
    # Every step also subtracts learning rate * weight_decay * weight, from the weights that
    # `configure_optimizers` below chooses.
    weight_decay: float = 0.1
    # Steps in which the learning rate rises. At first the running averages are of few gradients, so
    # the steps depend much on chance, and are kept short.
    warmup: int = 100
    final_lr: float = 0.1  # the learning rate at the end, as a fraction of lr and muon_lr
    # Decides what dropout sets to 0 at each step. (The initial weights depend on torch.manual_seed,
    # the order of the examples on the seed of the data module.)
    seed: int = 0

    def __post_init__(self) -> None:
        known = self.optimizer in ("adamw", "muon")
        require(known, "optimizer", self.optimizer, "adamw or muon")
        for name in ("lr", "muon_lr", "weight_decay", "warmup", "final_lr"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, "at least 0, and finite")


# BERT, GPT and ViT below save their Config and Recipe in checkpoints. A checkpoint is written by
# pickle, Python's module for saving objects, and such a file can contain code that runs when it is
# loaded. So nothing is loaded from it but tensors, plain Python values and the classes that are
# named here.
torch.serialization.add_safe_globals([Config, Recipe])


class LitTransformer(L.LightningModule):
    """The training step of all three models, as a module of Lightning.

    Lightning's Trainer runs the training. For every batch it does what would otherwise be written
    (the clipping because `train` below asks for it):

        loss = module.training_step(batch, batch_idx)
        optimizer.zero_grad()  # forget the gradients of the last batch
        loss.backward()  # compute the gradient of the loss for every weight
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)  # scale large gradients down
        optimizer.step()  # change the weights
        scheduler.step()  # set the learning rate of the next step

    A batch is a tuple: the inputs of the model, an optional padding mask (the only boolean input),
    the targets. The targets are classes (B,) or tokens (B, T). The data modules put -100 where a
    token is not to be predicted; such targets are ignored.
    """

    def __init__(self, model: Transformer, n_outputs: int, recipe: Recipe) -> None:
        """`n_outputs`: how many logits each prediction has: V for tokens or K for classes."""
        super().__init__()
        self.model = model
        self.n_outputs = n_outputs
        self.recipe = recipe
        # From logits, the mean of -ln(p), where p is the probability that softmax gives to the
        # right token or class.
        self.criterion = nn.CrossEntropyLoss()

    def step(self, batch: tuple[Tensor, ...], stage: str) -> Tensor:
        """The loss of one batch: the mean cross-entropy of its N targets. `stage`: train, val or
        test.
        """
        *inputs, targets = batch
        mask = None
        if inputs[-1].dtype == torch.bool:
            mask = inputs.pop()  # (B, T)
        scored = targets != -100  # True at N targets
        # (Here Python does have to wait for a GPU: what comes next depends on the answer.)
        if scored.all():  # GPT in training, or models that predict classes
            logits = self.model(*inputs, mask=mask)  # (B, T, V) or (B, K)
        else:
            # BERT predicts the chosen tokens only. (The data choose at least one in every text, so
            # N is not 0.) GPT predicts all tokens in training. In validation and tests, it reads
            # the text in windows that overlap: positions 0 to 99, 50 to 149, 100 to 199, for
            # example. Each window but the first is scored on its second half only. So every token
            # is scored once, and after the first window each has at least 50 before it.
            logits = self.model(*inputs, mask=mask, keep=scored)  # (N, V)
        if logits.ndim == 3:
            logits = logits.flatten(0, 1)  # (B, T, V) -> (N, V)
        targets = targets[scored]  # (N,), in the order of the logits
        loss = self.criterion(logits, targets)
        # "micro": the number of right predictions divided by the number of all. To validate the
        # arguments at every step would take time.
        accuracy = multiclass_accuracy(
            logits, targets, self.n_outputs, average="micro", validate_args=False
        )
        # on_step: log the figures of this batch (of the test, only the average is of interest).
        # on_epoch: log their average in the epoch. By that of val_loss, `train` below picks the
        # best weights.
        # sync_dist: average over several GPUs.
        self.log_dict(
            {f"{stage}_loss": loss, f"{stage}_acc": accuracy},
            on_step=stage != "test",
            on_epoch=True,
            # How much this batch counts in the average of the epoch: by its number of targets, N.
            # A float, because Lightning takes the mean of this number over several GPUs.
            batch_size=float(len(targets)),
            sync_dist=stage != "train",  # not in training, where it would slow down every step
            prog_bar=True,
        )
        return loss

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        return self.step(batch, "val")

    def test_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        return self.step(batch, "test")

    def configure_optimizers(self) -> dict:
        """The optimiser, and a scheduler that sets the learning rate for the next step.

        Weight decay is for the matrices of linear layers and of the patch projection: small weights
        make it harder to memorise single examples. Embeddings do not decay: the vector of a rare
        token would fade between the few steps that train it. (If the head shares their weight, a
        step trains all of it, and it might decay. For one rule it does not.) Nor do positions and
        the class token, where habits differ, and LayerNorms and biases, by custom.
        """
        recipe = self.recipe
        # `parameter in matrices` is True if this same tensor object is in the set; its values do
        # not matter. A weight that head and embedding share is in both sets.
        matrices = {m.weight for m in self.modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
        embeddings = {m.weight for m in self.modules() if isinstance(m, nn.Embedding)}
        decay, no_decay = [], []
        for parameter in self.parameters():
            if not parameter.requires_grad:  # frozen
                continue
            if parameter in matrices and parameter not in embeddings:
                decay.append(parameter)
            else:
                no_decay.append(parameter)
        groups = [{"params": decay}, {"params": no_decay, "weight_decay": 0.0}]

        optimizer_class = torch.optim.AdamW
        if recipe.optimizer == "muon":
            from utils.muon import Muon, muon_groups  # here, for without Muon utils/ is not needed

            # Put the blocks' matrices into groups of their own, with muon_lr. The class updates
            # these as Muon does, and all other groups as AdamW does.
            groups = muon_groups(groups, self.model.blocks, recipe.muon_lr)
            optimizer_class = Muon
        optimizer = optimizer_class(
            groups,
            lr=recipe.lr,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            fused=True,  # updates all parameters in one call, which is faster
        )
        # This matters in float16 only, on GPUs that have no bfloat16. float16 has no number between
        # 0 and 6e-8, so Lightning enlarges the loss, lest small gradients become 0. Before clipping
        # the gradients have to be made smaller again. By this flag, fused optimisers tell Lightning
        # that they do it in their step. That is after clipping, so they are not to.
        optimizer._step_supports_amp_scaling = False
        # Multiplies the learning rate of every group by lr_factor(step).
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def lr_factor(self, step: int) -> float:
        """The learning rate at a step, as a fraction of the recipe's: a warm-up times a cosine.

        Both begin at step 0. When the warm-up ends, the cosine has fallen a little already, so with
        a warm-up the learning rate never quite reaches the recipe's.
        """
        # Rises from 1 / (warmup + 1) at step 0 to 1 at step `warmup`, then stays.
        warmup = min(1.0, (step + 1) / (self.recipe.warmup + 1))
        cosine = (1 + math.cos(math.pi * self.progress(step))) / 2  # falls from 1 to 0
        final = self.recipe.final_lr
        return warmup * (final + (1 - final) * cosine)  # the second factor falls from 1 to final

    def progress(self, step: int) -> float:
        """How much of the run is done at a step, from 0 to 1: the share of the steps that are done
        or, if that is larger, the share of the time limit that has passed.
        """
        if step == 0:  # LambdaLR asks as soon as it is made; the Trainer need not be ready
            return 0.0
        n_steps = self.trainer.estimated_stepping_batches  # optimiser steps in the whole run
        done = step / n_steps
        for callback in self.trainer.callbacks:
            if isinstance(callback, Timer):  # the Trainer has one if it was given max_time
                elapsed, left = callback.time_elapsed(), callback.time_remaining()
                done = max(done, elapsed / (elapsed + left))
        return min(done, 1.0)


class BERT(LitTransformer):
    """BERT with its training step. Inputs: ids (B, T), in which BERTData of utils/data/text.py has
    chosen some of the tokens, by default 15 %. Of these it has replaced 80 % by the token [MASK]
    and 10 % by random tokens, and left 10 % as they are, so that BERT cannot rely on [MASK] to mark
    the tokens that it has to predict. Targets: the original ids at the chosen positions, -100 at
    all others (BERT, 3.1). The paper's second task, whether one text follows another, is left out,
    so all segments are 0. With `n_classes`: ids (B, T) and a padding mask (B, T) from TableData of
    utils/data/labelled.py, and the classes (B,).
    """

    def __init__(
        self,
        config: Config,
        vocab_size: int,
        recipe: Recipe,
        n_classes: int = 0,
        tied: bool = True,
    ) -> None:
        model = EncoderTransformer.bert(config, vocab_size, n_classes=n_classes, tied=tied)
        n_outputs = n_classes if n_classes else vocab_size
        super().__init__(model, n_outputs, recipe)
        # Save the arguments of __init__, which Lightning finds by itself, in checkpoints.
        self.save_hyperparameters(logger=False)


class GPT(LitTransformer):
    """GPT with its training step. Inputs: ids (B, T). Targets: at each position the id of the token
    that follows (GPT-2, 2); GPTData of utils/data/text.py shifts the text by one token.
    """

    def __init__(
        self, config: Config, vocab_size: int, recipe: Recipe, tied: bool = True
    ) -> None:
        super().__init__(DecoderTransformer(config, vocab_size, tied), vocab_size, recipe)
        self.save_hyperparameters(logger=False)  # as in BERT


class ViT(LitTransformer):
    """ViT with its training step. Inputs: pictures. Targets: their classes (ViT, 3.1)."""

    def __init__(
        self,
        config: Config,
        image_size: int,
        patch_size: int,
        n_classes: int,
        recipe: Recipe,
        channels: int = 3,
    ) -> None:
        model = EncoderTransformer.vit(config, image_size, patch_size, n_classes, channels)
        super().__init__(model, n_classes, recipe)
        self.save_hyperparameters(logger=False)  # as in BERT


def train(
    module: LitTransformer,
    data: L.LightningDataModule,
    out: str | Path,
    resume: bool = False,
    callbacks: list[L.Callback] | None = None,
    pick_best: bool = True,
    **options,
) -> LitTransformer:
    """Train `module` on `data` and return it; afterwards `module.trainer` is Lightning's Trainer.

    out: the folder for metrics.csv, checkpoints/best.ckpt (of the lowest validation loss) and
    checkpoints/last.ckpt. The module that is returned has the last weights.
    resume: continue from last.ckpt. On a CPU the weights at the end are then equal, to the last
    bit, to those of a run that was never interrupted. Two conditions: the data module goes on at
    the right batch, as those of utils/ do, and the run has no time limit (see `progress`).
    callbacks: objects whose methods Lightning calls during the training, besides those made here.
    pick_best: False puts the weights of the end into best.ckpt, whatever their loss; for so little
    validation data that the lowest loss is a matter of chance.
    options: other arguments of Lightning's Trainer, such as max_steps.
    """
    validated = options.get("limit_val_batches") != 0
    require(validated, "limit_val_batches", 0, "above 0: the validation loss picks best.ckpt")
    folder = Path(out, "checkpoints")
    last = folder / "last.ckpt"
    require(last.is_file() or not resume, "resume", resume, f"False: there is no checkpoint {last}")

    # After each validation, best.ckpt is saved if the figure that it monitors is better than ever
    # before, and last.ckpt, which monitors none, always. enable_version_counter=False: a new file
    # overwrites the old one, instead of being called best-v1.ckpt.
    best = {"monitor": "val_loss", "mode": "min"}
    if not pick_best:  # Lightning's number of the step, which is always higher than ever before
        best = {"monitor": "step", "mode": "max"}
    save_best = ModelCheckpoint(folder, "best", enable_version_counter=False, **best)
    save_last = ModelCheckpoint(folder, "last", enable_version_counter=False)
    defaults = {
        "gradient_clip_val": 1.0,  # scale all gradients down together if their norm exceeds 1
        "num_sanity_val_steps": 0,  # no validation before the training
        "log_every_n_steps": 10,
    }
    trainer = L.Trainer(
        **(defaults | options),
        callbacks=[save_best, save_last, *(callbacks or [])],
        logger=CSVLogger(out, name="", version=""),
        # The data modules divide the data among several GPUs, so Lightning need not.
        use_distributed_sampler=False,
    )
    # If there is a time limit, the Trainer adds a Timer to its callbacks, which ends the run.
    # Housekeeping (at the end of this file) has to see that it has, so it comes after it: last.
    trainer.callbacks.append(Housekeeping())
    module.train()  # training mode (dropout on); Lightning leaves the mode as it is
    trainer.fit(module, data, ckpt_path=last if resume else None)
    return module


def train_bert(data: L.LightningDataModule, config: Config, recipe: Recipe, **options) -> BERT:
    """Train BERT on a BERTData of utils/data/text.py. options: `out` and the others of `train`."""
    return train(BERT(config, data.vocab_size, recipe), data, **options)


def train_gpt(data: L.LightningDataModule, config: Config, recipe: Recipe, **options) -> GPT:
    """Train GPT on a GPTData of utils/data/text.py. options: `out` and the others of `train`."""
    return train(GPT(config, data.vocab_size, recipe), data, **options)


def train_vit(
    data: L.LightningDataModule, config: Config, patch_size: int, recipe: Recipe, **options
) -> ViT:
    """Train ViT on an ImageData of utils/data/images.py. options: `out` and others of `train`."""
    module = ViT(config, data.image_size, patch_size, data.n_classes, recipe, data.channels)
    return train(module, data, **options)


# ------------------------------------------------------------ details to skip at a first reading


class Housekeeping(L.Callback):
    """What the training of `train` needs besides its recipe."""

    def on_train_batch_start(
        self, trainer: L.Trainer, module: LitTransformer, batch: object, batch_idx: int
    ) -> None:
        """Let dropout depend on the recipe's seed and on the number of the batch alone.

        Otherwise it would depend on all random numbers drawn before, and a resumed run has not
        drawn them.
        """
        # The number of the batch in the run; batch_idx restarts in every epoch. A step of the
        # optimiser may take several batches (accumulate_grad_batches) and average their gradients.
        # For example, with 4 batches a step: after 10 steps, the next batches have the numbers 40,
        # 41, 42 and 43.
        per_step = trainer.accumulate_grad_batches
        number = trainer.global_step * per_step + batch_idx % per_step
        # With several GPUs, each draws its own dropout: global_rank numbers them from 0 on.
        number = number * trainer.world_size + trainer.global_rank
        # Runs with other seeds draw other numbers, if they have at most a million batches on all
        # GPUs together.
        seed = module.recipe.seed * 1_000_003 + number
        if module.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # torch.manual_seed is slower: it seeds GPUs
        else:
            torch.get_device_module(module.device).manual_seed(seed)

    def on_train_batch_end(self, trainer: L.Trainer, *_) -> None:
        """After the last step, let Lightning end the epoch, validate and save the checkpoints."""
        if trainer.global_step >= trainer.estimated_stepping_batches:
            trainer.should_stop = True  # Lightning then ends the epoch, validates, and ends the run
        if trainer.should_stop:  # also where a time limit has set it
            # But it validates only if the number of the epoch is a multiple of
            # check_val_every_n_epoch. The value None removes this condition.
            trainer.check_val_every_n_epoch = None


# ------------------------------------------------------------------------------- the command line


def main(arguments: list[str] | None = None) -> None:
    """python transformer.py bert|gpt|vit ...: train a model, test it, and keep the results."""
    # utils/training/command.py imports this file, so this file does not import it, which would be a
    # circle: it is found by its name, and only when the command line is used.
    command = resolve_name("utils.training.command:command")
    raise SystemExit(command(arguments))


if __name__ == "__main__":
    main()
