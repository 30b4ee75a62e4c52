"""Tokenisers: how each kind is assembled, and how it is trained on a text."""

from __future__ import annotations

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from transformer import require

# BERT's special tokens, by the role that each plays.
SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def char_tokenizer(text: str) -> Tokenizer:
    """Return a tokeniser with one token per character of `text`, numbered by code point from 1.

    Every other character becomes [UNK], which is token 0.
    """
    vocabulary = {character: i for i, character in enumerate(["[UNK]", *sorted(set(text))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def bpe_tokenizer(text: str, vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE tokeniser trained on `text` (GPT-2, section 2.2).

    It has no unknown token: every text can be encoded, and decoding gives it back unchanged.
    """
    tokenizer = assemble_byte_level_bpe(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def assemble_byte_level_bpe(model: models.BPE) -> Tokenizer:
    """Return the tokeniser around a BPE model, trained or empty, that reads and writes bytes as GPT-2 does."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def wordpiece_tokenizer(text: str, vocab_size: int) -> Tokenizer:
    """Return a lower-case WordPiece tokeniser trained on `text` (BERT, section 3).

    It writes a text as [CLS] text [SEP], and [MASK] in a text stands for a hidden token.
    Raises ValueError where `vocab_size` is too small to give every letter of the text a token.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = list(SPECIAL_TOKENS.values())

    # The trainer would number the pieces ##a, ##b, ... in random order and break ties by their numbers. Listed as
    # special tokens they are numbered in sorted order, so that the same text always gives the same vocabulary.
    words = pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))
    pieces = sorted({"##" + letter for word, _ in words for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special + pieces, show_progress=False)

    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizer
    trained.train_from_iterator([text], trainer)
    size = trained.get_vocab_size()
    require(size <= vocab_size, "vocab_size", vocab_size, f"at least {size}: every letter of the text needs an id")
    return assemble_wordpiece(trained.get_vocab())  # a new tokeniser, in which ##a is an ordinary token


def assemble_wordpiece(vocabulary: dict[str, int], lowercase: bool = True) -> Tokenizer:
    """Return BERT's tokeniser with this vocabulary (token -> id), which must hold all of SPECIAL_TOKENS.

    It writes a text as [CLS] A [SEP] and a pair as [CLS] A [SEP] B [SEP], with segment 1 for B and its [SEP].
    lowercase: read all letters as lower-case ones without accents.
    """
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> Tensor:
    """Return the ids (N,) of a text, int64, without [CLS] and [SEP]."""
    return torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids, dtype=torch.long)
