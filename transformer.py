"""One Transformer: BERT, GPT and ViT are one network, and this file is that network.

    embed -> n x Block(Attention, MLP) -> norm -> head

BERT reads both ways and fills in blanks, GPT reads from left to right and writes on, ViT reads the patches of a
picture and names it. All three are made of the same `Block`; only the two ends, `embed` and `head`, differ.

Shapes: B batch, T length, S keys seen so far (T without a cache), C = d_model, H heads, D = C // H, V words, K classes.
Papers: Vaswani (2017, "Attention is all you need"), BERT (Devlin 2018), GPT-2 (Radford 2019), ViT (Dosovitskiy 2020),
RoFormer (Su 2021).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise a ValueError that names the argument, its value and what is allowed, unless `ok`."""
    if not ok:
        raise ValueError(f"{name}={value!r}: must be {allowed}")


# ------------------------------------------------------------------------------------------------ settings
ACTIVATIONS = {"gelu": nn.GELU, "gelu_tanh": partial(nn.GELU, approximate="tanh"), "relu": nn.ReLU}
POSITIONS = ("learned", "sinusoidal", "rotary")
ALL = slice(None)  # every place: the default of `scored` below


@dataclass(frozen=True)
class Config:
    """What every block reads. The defaults are GPT-2's sizes (GPT-2, table 2)."""

    n_layers: int = 12
    n_heads: int = 12
    d_model: int = 768
    d_ff: int = 3072  # width inside the MLP
    max_len: int = 1024  # the longest sequence the positions can tell apart
    dropout: float = 0.0
    causal: bool = False  # True: a position sees itself and what came before, never what comes after
    norm_first: bool = True  # True: pre-norm (GPT-2, ViT); False: post-norm (Vaswani, BERT)
    norm_eps: float = 1e-5
    activation: str = "gelu"
    positions: str = "learned"
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("n_layers", "n_heads", "d_model", "d_ff", "max_len"):
            value = getattr(self, name)
            require(isinstance(value, int) and value > 0, name, value, "a whole number above 0")
        require(self.d_model % self.n_heads == 0, "d_model", self.d_model, f"divisible by n_heads={self.n_heads}")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "at least 0 and below 1")
        require(self.norm_eps > 0, "norm_eps", self.norm_eps, "above 0")
        require(self.activation in ACTIVATIONS, "activation", self.activation, f"one of {', '.join(ACTIVATIONS)}")
        require(self.positions in POSITIONS, "positions", self.positions, f"one of {', '.join(POSITIONS)}")
        even = self.positions == "learned" or self.d_model // self.n_heads % 2 == 0
        require(even, "d_model", self.d_model, f"an even number of times n_heads for {self.positions} positions")


GPT2 = Config(causal=True, activation="gelu_tanh")
BERT_BASE = Config(max_len=512, norm_first=False, norm_eps=1e-12)
VIT_B16 = Config(max_len=197, norm_eps=1e-12)  # 14 x 14 patches and the class token; the eps of transformers' file


# ------------------------------------------------------------------------------------------------ the trunk
class KVCache:
    """The keys and values that one layer has read so far, in memory set aside once: (B, H, size, D) each."""
    def __init__(self, batch: int, size: int, config: Config, like: Tensor) -> None:
        shape = (batch, config.n_heads, size, config.d_model // config.n_heads)
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (B, H, T, D) behind what is there; return all S of them."""
        start, self.length = self.length, self.length + k.shape[2]
        self.keys[:, :, start : self.length] = k
        self.values[:, :, start : self.length] = v
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


def frequencies(start: int, stop: int, width: int, device: torch.device | None = None) -> Tensor:
    """(stop - start, width / 2): position x frequency, from 1 down towards 1/10000 in equal ratios (Vaswani, 3.5)."""
    positions = torch.arange(start, stop, device=device)[:, None]
    return positions * 10_000.0 ** -(torch.arange(0, width, 2, device=device) / width)


def rotate(x: Tensor, start: int = 0) -> Tensor:
    """Turn each pair of features (i, i + D/2) of x (..., T, D), by position x frequency (RoFormer, 3.2).

    A query at position m and a key at n then meet at an angle that depends on m - n alone. The paper pairs neighbours
    (2i, 2i + 1); halves, which are cut out at once, are the order of GPT-NeoX.
    """
    angles = frequencies(start, start + x.shape[-2], x.shape[-1], x.device)  # float32, whatever x is
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(D)) V in H heads at once (Vaswani, 3.2)."""
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_heads, self.causal, self.dropout = config.n_heads, config.causal, config.dropout
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)
        self.rotary = config.positions == "rotary"

    def project(self, x: Tensor, cache: KVCache | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, C) -> queries (B, H, T, D), keys and values (B, H, S, D)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
        qk, v = qkv[:2], qkv[2]
        q, k = rotate(qk, start=0 if cache is None else cache.length) if self.rotary else qk
        return (q, k, v) if cache is None else (q, *cache.append(k, v))

    def visible(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor | None:
        """True where a query may look at a key, to broadcast to (B, H, T, S); None where all may look at all."""
        seen = None if mask is None else mask[:, None, None, :]
        if self.causal and q.shape[2] > 1:
            # The last query is the newest of the S keys, so the diagonal is shifted by S - T.
            past = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
            return past if seen is None else past & seen
        return seen

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C). `mask` (B, S) is False at padding, which comes last."""
        q, k, v = self.project(x, cache)
        # SDPA's own causal mask is aligned to the top left: right only while no earlier keys are cached.
        is_causal = self.causal and mask is None and q.shape[2] == k.shape[2]
        visible = None if is_causal else self.visible(q, k, mask)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout, is_causal=is_causal)
        return self.out(y.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The map that `forward` mixes the values with: (B, T, C) -> (B, H, T, T), each row a distribution."""
        q, k, _ = self.project(x)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        visible = self.visible(q, k, mask)
        return (scores if visible is None else scores.masked_fill(~visible, -math.inf)).softmax(-1)


class MLP(nn.Module):
    """Two linear maps with a bend between them, at every position alike (Vaswani, 3.3)."""
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ff)
        self.activation = ACTIVATIONS[config.activation]()
        self.down = nn.Linear(config.d_ff, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """Attention moves information between positions, the MLP works on each; both add to the residual stream."""
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention, self.mlp = Attention(config), MLP(config)
        self.norm1 = nn.LayerNorm(config.d_model, config.norm_eps)
        self.norm2 = nn.LayerNorm(config.d_model, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None, scored=ALL) -> Tensor:
        """(B, T, C) -> (B, T, C), or x[scored]: the MLP works on no others, as it needs no neighbours."""
        if self.norm_first:
            x = (x + self.dropout(self.attention(self.norm1(x), mask, cache)))[scored]
            return x + self.dropout(self.mlp(self.norm2(x)))
        x = self.norm1((x + self.dropout(self.attention(x, mask, cache)))[scored])
        return self.norm2(x + self.dropout(self.mlp(x)))


class Transformer(nn.Module):
    """embed -> blocks -> norm -> head: what the three models have in common."""
    def __init__(self, config: Config, embed: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.config, self.embed = config, embed
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        # In post-norm every block has normalised its own output.
        self.norm = nn.LayerNorm(config.d_model, config.norm_eps) if config.norm_first else nn.Identity()
        self.head = head
        self.init_weights()

    def init_weights(self) -> None:
        """Normal weights, zero biases; what writes to the residual stream is scaled by its depth (GPT-2, 2.3)."""
        for module in self.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if name == "bias":
                    nn.init.zeros_(parameter)
                elif not isinstance(module, nn.LayerNorm):
                    nn.init.normal_(parameter, std=self.config.init_std)
        for block in self.blocks:
            for layer in (block.attention.out, block.mlp.down):
                nn.init.normal_(layer.weight, std=self.config.init_std / math.sqrt(2 * len(self.blocks)))

    def forward(self, *inputs: Tensor, mask: Tensor | None = None, caches: list[KVCache] | None = None, scored=ALL):
        """What `embed` takes -> logits (B, T, V), or (B, K) from a ClassHead.

        mask: (B, S), False at padding, which comes last. caches: one per layer; the input goes on where they end.
        scored: an index of the logits wanted, such as a boolean mask (B, T) of N places, which gives (N, V); what only
        the others need is not computed.
        """
        good = mask is None or mask.dtype == torch.bool
        require(good, "mask", getattr(mask, "dtype", None), "boolean: True where there is something to see")
        x = self.embed(*inputs) if caches is None else self.embed(*inputs, start=caches[0].length)
        scored = (scored, 0) if isinstance(self.head, ClassHead) else scored  # a class is read off the first state
        wanted = [ALL] * (len(self.blocks) - 1) + [scored]  # only the last block may leave places out
        for block, cache, places in zip(self.blocks, caches or [None] * len(self.blocks), wanted, strict=True):
            x = block(x, mask, cache, places)
        return self.head(self.norm(x))

    @torch.no_grad()
    def attention_maps(self, *inputs: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Each layer's attention map (B, H, T, T), layer 0 first."""
        maps, x = [], self.embed(*inputs)
        for block in self.blocks:
            maps.append(block.attention.weights(block.norm1(x) if block.norm_first else x, mask))
            x = block(x, mask)
        return maps


# ------------------------------------------------------------------------------------------------ the two ends
class Positions(nn.Module):
    """Tell each vector where it stands: by a learned table, by sines, or not here (rotary: attention does)."""
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.max_len, self.scale = config.max_len, 1.0
        if config.positions == "learned":
            self.table = nn.Parameter(torch.empty(config.max_len, config.d_model))
        elif config.positions == "sinusoidal":
            angles = frequencies(0, config.max_len, config.d_model)
            self.table = nn.Buffer(torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1), persistent=False)
            self.scale = math.sqrt(config.d_model)  # so that the sines do not drown the words (Vaswani, 3.4)
        else:
            self.table = None

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """(B, T, C) -> (B, T, C); x[:, 0] stands at position `start`."""
        stop = start + x.shape[1]
        require(stop <= self.max_len, "sequence length", stop, f"at most max_len={self.max_len}")
        return x if self.table is None else self.scale * x + self.table[start:stop]


class TokenEmbedding(nn.Module):
    """Word ids to vectors: word + position (+ segment and a norm in BERT: BERT, figure 2)."""
    def __init__(self, config: Config, vocab_size: int, n_segments: int = 0) -> None:
        super().__init__()
        require(vocab_size > 1, "vocab_size", vocab_size, "at least 2")
        self.tokens = nn.Embedding(vocab_size, config.d_model)
        self.segments = nn.Embedding(n_segments, config.d_model) if n_segments else None
        self.positions = Positions(config)
        self.norm = nn.Identity() if config.norm_first else nn.LayerNorm(config.d_model, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor, segments: Tensor | None = None, start: int = 0) -> Tensor:
        """ids and segments (B, T) of int64 -> (B, T, C)."""
        x = self.look_up("ids", ids, self.tokens, "vocab_size")
        require(segments is None or self.segments is not None, "segments", "given", "left out: this model has none")
        if self.segments is not None:
            segments = torch.zeros_like(ids) if segments is None else segments
            x = x + self.look_up("segments", segments, self.segments, "n_segments")
        return self.dropout(self.norm(self.positions(x, start)))

    @staticmethod
    def look_up(name: str, ids: Tensor, table: nn.Embedding, size: str) -> Tensor:
        require(ids.ndim == 2 and ids.dtype == torch.long, name, f"{ids.dtype} {tuple(ids.shape)}", "int64 (B, T)")
        if ids.device.type == "cpu" and ids.numel():  # elsewhere, looking would hold up the device
            low, high, n = ids.min().item(), ids.max().item(), table.num_embeddings
            require(low >= 0 and high < n, name, f"{low}..{high}", f"at least 0 and below {size}={n}")
        return table(ids)


class PatchEmbedding(nn.Module):
    """A picture as a sentence: a class token, then each patch through one linear map (ViT, 3.1)."""
    def __init__(self, config: Config, image_size: int, patch_size: int, channels: int = 3) -> None:
        super().__init__()
        self.input_shape = (channels, image_size, image_size)
        # A convolution whose stride is its width is that linear map, slid over the patches.
        self.project = nn.Conv2d(channels, config.d_model, kernel_size=patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, config.d_model))
        self.positions = Positions(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, T, C), T = 1 + patches, row by row from the top left."""
        good = images.ndim == 4 and tuple(images.shape[1:]) == self.input_shape
        require(good, "images", tuple(images.shape), "(B, {}, {}, {})".format(*self.input_shape))
        patches = self.project(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.expand(len(images), -1, -1), patches), dim=1)
        return self.dropout(self.positions(x))


class MLMHead(nn.Sequential):
    """States (..., C) to words (..., V): dense, activation, norm, then the word table read backwards (BERT's code)."""
    def __init__(self, config: Config, tokens: nn.Embedding, tied: bool = True) -> None:
        decoder = nn.Linear(config.d_model, tokens.num_embeddings)
        if tied:
            decoder.weight = tokens.weight
        dense, activation = nn.Linear(config.d_model, config.d_model), ACTIVATIONS[config.activation]()
        super().__init__(dense, activation, nn.LayerNorm(config.d_model, config.norm_eps), decoder)


class ClassHead(nn.Sequential):
    """States (..., C), of the first tokens, to classes (..., K); BERT pools by dense and tanh first (BERT's code)."""
    def __init__(self, config: Config, n_classes: int, pooler: bool = False) -> None:
        require(n_classes > 1, "n_classes", n_classes, "at least 2")
        super().__init__()
        self.pooler = nn.Sequential(nn.Linear(config.d_model, config.d_model), nn.Tanh()) if pooler else nn.Identity()
        self.classifier = nn.Linear(config.d_model, n_classes)


# ------------------------------------------------------------------------------------------------ the models
class EncoderTransformer(Transformer):
    """BERT and ViT: every position sees every other."""
    @classmethod
    def bert(cls, config: Config, vocab_size: int, n_segments: int = 2, n_classes: int = 0, tied: bool = True):
        """ids (B, T) -> logits (B, T, V) for every word or, given `n_classes`, (B, K) for the whole text."""
        require(not config.causal, "causal", config.causal, "False in an encoder")
        embed = TokenEmbedding(config, vocab_size, n_segments)
        head = ClassHead(config, n_classes, pooler=True) if n_classes else MLMHead(config, embed.tokens, tied)
        return cls(config, embed, head)

    @classmethod
    def vit(cls, config: Config, image_size: int, patch_size: int, n_classes: int, channels: int = 3):
        """images (B, channels, image_size, image_size) -> logits (B, K). Sets max_len to 1 + the patches."""
        require(not config.causal, "causal", config.causal, "False in an encoder")
        tiles = patch_size > 0 and image_size % patch_size == 0
        require(tiles, "patch_size", patch_size, f"a divisor of image_size={image_size}")
        config = replace(config, max_len=1 + (image_size // patch_size) ** 2)
        embed = PatchEmbedding(config, image_size, patch_size, channels)
        return cls(config, embed, ClassHead(config, n_classes))


class DecoderTransformer(Transformer):
    """GPT: a position sees only itself and what came before, so that the model can write on."""
    def __init__(self, config: Config, vocab_size: int, tied: bool = True) -> None:
        require(config.causal, "causal", config.causal, "True in a decoder")
        embed = TokenEmbedding(config, vocab_size)
        head = nn.Linear(config.d_model, vocab_size, bias=False)
        if tied:
            head.weight = embed.tokens.weight
        super().__init__(config, embed, head)

    @torch.inference_mode()
    def stream(
        self, ids: Tensor, max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None,
        top_p: float | None = None, generator: torch.Generator | None = None, use_cache: bool = True,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Write on from ids (B, T), T >= 1, one word at a time: yields its ids (B,) and the logits (B, V) behind it.

        Call eval() first, or dropout is on. When max_len is reached, the older half of the context is forgotten and
        the rest read again.
        """
        require(ids.ndim == 2 and ids.numel() > 0, "ids", tuple(ids.shape), "(B, T) with at least one word")
        require(max_new_tokens >= 0, "max_new_tokens", max_new_tokens, "at least 0")
        size = min(self.config.max_len, ids.shape[1] + max_new_tokens)
        ids, caches = ids[:, -self.config.max_len :], None
        for _ in range(max_new_tokens):
            if ids.shape[1] > self.config.max_len:
                ids, caches = ids[:, -(self.config.max_len // 2 + 1) :], None
            new = ids if caches is None else ids[:, -1:]
            if use_cache and caches is None:
                caches = [KVCache(len(ids), size, self.config, self.embed.tokens.weight) for _ in self.blocks]
            logits = self(new, caches=caches, scored=(ALL, -1))
            chosen = torch.multinomial(next_word(logits, temperature, top_k, top_p), 1, generator=generator)
            ids = torch.cat((ids, chosen), dim=1)
            yield chosen[:, 0], logits

    def generate(self, ids: Tensor, max_new_tokens: int, **sampling) -> Tensor:
        """ids (B, T) -> (B, T + max_new_tokens). `sampling`: temperature, top_k, top_p, generator, use_cache."""
        return torch.cat((ids, *(word[:, None] for word, _ in self.stream(ids, max_new_tokens, **sampling))), dim=1)


def next_word(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Logits (B, V) -> the probabilities (B, V) to draw from: sharpened, then cut to k words, then to mass p."""
    require(temperature >= 0, "temperature", temperature, "at least 0 (0: always the likeliest word)")
    require(top_k is None or top_k >= 1, "top_k", top_k, "at least 1, or None for all words")
    require(top_p is None or 0 < top_p <= 1, "top_p", top_p, "above 0 and at most 1, or None for all words")
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -math.inf)
    if top_p is not None and top_p < 1:
        ordered = logits.sort(descending=True).values
        above = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # mass of the likelier words
        least = ordered.masked_fill(above >= top_p, math.inf).amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < least, -math.inf)
    return logits.softmax(-1)


# ------------------------------------------------------------------------------------------------ training
@dataclass(frozen=True)
class Recipe:
    """How a model is trained. Weight decay is for matrices that multiply: not for embeddings, norms and biases."""

    optimizer: str = "adamw"  # or "muon": for the blocks' matrices, which then learn faster; AdamW for the rest
    lr: float = 1e-3  # AdamW's
    muon_lr: float = 0.02
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: int = 100  # steps over which the learning rate rises from 0
    final_lr: float = 0.1  # the fraction of the learning rate on which the cosine ends
    seed: int = 0  # of dropout

    def __post_init__(self) -> None:
        require(self.optimizer in ("adamw", "muon"), "optimizer", self.optimizer, "adamw or muon")
        for name in ("lr", "muon_lr", "weight_decay", "warmup", "final_lr"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")


torch.serialization.add_safe_globals([Config, Recipe])  # checkpoints hold them, and load with weights_only=True


class LitTransformer(L.LightningModule):
    """The one training step: `*inputs, targets = batch`; a last, boolean input is the mask; -100 is not scored."""
    def __init__(self, model: Transformer, n_classes: int, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self.criterion = nn.CrossEntropyLoss()
        self.accuracy_fn = MulticlassAccuracy(n_classes, average="micro", validate_args=False)

    def step(self, batch: tuple[Tensor, ...], stage: str) -> Tensor:
        """Loss over the N scored targets. Logged per step and, weighted by N and so exact, per epoch."""
        *inputs, targets = batch
        mask = inputs.pop() if inputs[-1].dtype == torch.bool else None
        scored = targets != -100
        scored = ALL if scored.all() else scored  # a mask makes copies: 1 % of a step of a small GPT
        logits = self.model(*inputs, mask=mask, scored=scored).flatten(0, -2)  # (N, V), or (B, K) as it is
        targets = targets[scored].flatten()
        loss = self.criterion(logits, targets)
        figures = {f"{stage}_loss": loss, f"{stage}_acc": self.accuracy_fn(logits, targets)}
        how = {"on_step": stage != "test", "on_epoch": True, "prog_bar": True, "sync_dist": stage != "train"}
        self.log_dict(figures, batch_size=float(len(targets)), **how)  # a float: Lightning rounds a mean off
        return loss

    def training_step(self, batch: tuple[Tensor, ...], _: int) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, ...], _: int) -> Tensor:
        return self.step(batch, "val")

    def test_step(self, batch: tuple[Tensor, ...], _: int) -> Tensor:
        return self.step(batch, "test")

    def configure_optimizers(self) -> dict:
        """AdamW or Muon, and the learning rate's course, as the recipe says: utils/optim.py."""
        from utils.optim import optimizer_and_schedule

        return optimizer_and_schedule(self, self.recipe)


class BERT(LitTransformer):
    """Words in, with some masked; the masked words out (BERT, 3.1). With `n_classes`, a text's class instead."""
    def __init__(self, config: Config, vocab_size: int, recipe: Recipe, n_classes: int = 0, tied: bool = True) -> None:
        model = EncoderTransformer.bert(config, vocab_size, n_classes=n_classes, tied=tied)
        super().__init__(model, n_classes or vocab_size, recipe)
        self.save_hyperparameters(logger=False)


class GPT(LitTransformer):
    """Words in, the next word out at every position (GPT-2, 2)."""
    def __init__(self, config: Config, vocab_size: int, recipe: Recipe, tied: bool = True) -> None:
        super().__init__(DecoderTransformer(config, vocab_size, tied), vocab_size, recipe)
        self.save_hyperparameters(logger=False)


class ViT(LitTransformer):
    """A picture in, its class out (ViT, 3.1)."""
    def __init__(self, config: Config, image_size: int, patch_size: int, n_classes: int, recipe: Recipe, channels=3):
        super().__init__(EncoderTransformer.vit(config, image_size, patch_size, n_classes, channels), n_classes, recipe)
        self.save_hyperparameters(logger=False)


def train(module: LitTransformer, data: L.LightningDataModule, out: str | Path, resume: bool = False, **options):
    """Fit `module` on `data`, return it; `options` go to Lightning's Trainer, which is then `module.trainer`.

    Leaves `out`/metrics.csv and `out`/checkpoints/{best,last}.ckpt, best by the validation loss. `resume` goes on
    from last.ckpt, to the weights, bit for bit on a CPU, that an uninterrupted run reaches.
    """
    from utils.optim import Repeatable

    require(options.get("limit_val_batches") != 0, "limit_val_batches", 0, "above 0: the validation picks best.ckpt")
    last = Path(out, "checkpoints", "last.ckpt")
    require(last.is_file() or not resume, "resume", resume, f"False where there is no checkpoint {last}")
    keep = {"dirpath": last.parent, "enable_version_counter": False}
    savers = [ModelCheckpoint(filename="best", monitor="val_loss", **keep), ModelCheckpoint(filename="last", **keep)]
    options = {"gradient_clip_val": 1.0, "num_sanity_val_steps": 0, "log_every_n_steps": 10} | options
    options["callbacks"] = [*savers, *options.get("callbacks", []), Repeatable()]  # `best` first: the Trainer's own
    # The data modules themselves deal out their batches to several devices.
    trainer = L.Trainer(**options, logger=CSVLogger(out, name="", version=""), use_distributed_sampler=False)
    trainer.fit(module.train(), data, ckpt_path=last if resume else None)  # Lightning keeps the mode that it finds
    return module


def train_bert(data: L.LightningDataModule, config: Config, recipe: Recipe, **options) -> BERT:
    """Train BERT on a utils.text.BERTData; `options` as in `train`."""
    return train(BERT(config, data.vocab_size, recipe), data, **options)


def train_gpt(data: L.LightningDataModule, config: Config, recipe: Recipe, **options) -> GPT:
    """Train GPT on a utils.text.GPTData; `options` as in `train`."""
    return train(GPT(config, data.vocab_size, recipe), data, **options)


def train_vit(data: L.LightningDataModule, config: Config, patch_size: int, recipe: Recipe, **options) -> ViT:
    """Train ViT on a utils.images.ImageData; `options` as in `train`."""
    return train(ViT(config, data.image_size, patch_size, data.n_classes, recipe, data.channels), data, **options)


def main(arguments: list[str] | None = None) -> None:
    """python transformer.py bert|gpt|vit ...: train a preset, score it on the test part, leave everything in --out."""
    from utils.command import command

    raise SystemExit(command(arguments))


if __name__ == "__main__":
    main()
