"""The models that the benchmark trains, and made-up data to train them on.

The data are random, because their content does not change how long a training step takes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from transformer import BERT, BERT_BASE, GPT, GPT2, VIT_B16, Config, LitTransformer, Recipe, ViT
from utils.data.images import ImageData, ImageSet
from utils.data.text import BERTData, Corpus, GPTData

RECIPE = Recipe(lr=3e-4, warmup=10)  # AdamW
ADAMW = {"lr": RECIPE.lr, "betas": RECIPE.betas, "fused": True}  # the arguments of torch.optim.AdamW in a bare loop
LARGE = {"n_layers": 6, "n_heads": 6, "d_model": 384, "d_ff": 1536}


# ------------------------------------------------------------------------------------------------ made-up data
def random_tokenizer(vocab_size: int) -> Tokenizer:
    """A tokeniser that splits at spaces. It knows BERT's special tokens and the tokens w0, w1, w2, ..."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    names += [f"w{i}" for i in range(vocab_size - len(names))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def random_corpus(vocab_size: int, n_tokens: int = 100_000) -> Corpus:
    """A text of random tokens of `random_tokenizer`. The validation and test parts are a twentieth of it."""
    ids = torch.randint(vocab_size - 5, (n_tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    text = " ".join(f"w{i}" for i in ids)
    short = text[: len(text) // 20].rpartition(" ")[0]
    return Corpus("random", text, short, short, "made up")


def random_images(size: int, n: int = 512, channels: int = 3, n_classes: int = 10) -> ImageSet:
    """n pictures of random pixels, `size` pixels high and wide. The validation and test parts are the first 32."""
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (n, channels, size, size), generator=draw, dtype=torch.uint8)
    labels = torch.arange(n) % n_classes
    few = pictures[:32], labels[:32]
    return ImageSet("random", [str(i) for i in range(n_classes)], (pictures, labels), few, few, "made up")


# ------------------------------------------------------------------------------------------------ models
def large_gpt(device: str = "cpu", vocab_size: int = 1024) -> tuple[LitTransformer, GPTData]:
    """GPT, 6 layers of width 384. `device`: "meta" gives a model that has shapes but takes no memory."""
    data = GPTData(random_corpus(vocab_size), context=256, batch_size=8, tokenizer=random_tokenizer(vocab_size))
    with torch.device(device):
        return GPT(replace(GPT2, **LARGE, max_len=256), vocab_size, RECIPE), data


def large_bert(device: str = "cpu", vocab_size: int = 1024) -> tuple[LitTransformer, BERTData]:
    """BERT, 6 layers of width 384. `device` as for `large_gpt`."""
    data = BERTData(random_corpus(vocab_size), context=128, batch_size=16, tokenizer=random_tokenizer(vocab_size))
    with torch.device(device):
        return BERT(replace(BERT_BASE, **LARGE, max_len=128), vocab_size, RECIPE), data


def large_vit(device: str = "cpu") -> tuple[LitTransformer, ImageData]:
    """ViT, 6 layers of width 384, patches of 16 pixels. `device` as for `large_gpt`."""
    data = ImageData(random_images(112), batch_size=32)
    with torch.device(device):
        return ViT(replace(VIT_B16, **LARGE), 112, 16, data.n_classes, RECIPE), data


LARGE_TASKS = {
    "GPT": ("GPT 6x384, 8 x 256 tokens", large_gpt),
    "BERT": ("BERT 6x384, 16 x 128 tokens", large_bert),
    "ViT": ("ViT 6x384, 32 pictures of 112 x 112", large_vit),
}


def small_gpt(context: int, batch_size: int, vocab_size: int) -> tuple[LitTransformer, GPTData]:
    """GPT, 4 layers of width 128: 0.8 million parameters without the token embeddings."""
    config = Config(4, 4, 128, 512, context, causal=True)
    data = GPTData(random_corpus(vocab_size, 700_000), context, batch_size, random_tokenizer(vocab_size))
    return GPT(config, vocab_size, RECIPE), data


def small_vit() -> tuple[LitTransformer, ImageData]:
    """ViT, 4 layers of width 96, on grey pictures of the size of MNIST's digits."""
    data = ImageData(random_images(28, 4500, 1), batch_size=100)
    return ViT(Config(4, 4, 96, 384), 28, 7, 10, RECIPE, channels=1), data
