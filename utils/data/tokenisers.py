"""Tokenisers: how each kind is assembled, and how it is trained on a text."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from tqdm import tqdm

from transformer import require

PIECE = 2**16  # characters; a long text is read in pieces of about this size
LONG = 10**7  # characters; tokenising a text of this size shows its progress
# Where a text can be cut: before a single space or line break between two words. No token of GPT-2 or BERT reaches
# across it, so the tokens of the pieces are those of the whole text.
CUT = re.compile(r"(?<=\S)[ \n](?=\S)")

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
    tokenizer.pre_tokenizer = with_bounded_words(tokenizer.pre_tokenizer, 128)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(pieces(text), trainer)
    return tokenizer


def with_bounded_words(pre_tokenizer: pre_tokenizers.PreTokenizer, length: int) -> pre_tokenizers.PreTokenizer:
    """Return a pre-tokeniser that also cuts the words of `pre_tokenizer` into pieces of at most `length` characters.

    The time to train a tokeniser grows with the square of the longest word. Texts without spaces (Thai, DNA, base64)
    are one word, and would never end.
    """
    pieces = pre_tokenizers.Split(Regex(rf"[\s\S]{{1,{length}}}"), "isolated")
    return pre_tokenizers.Sequence([pre_tokenizer, pieces])


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
    pre_tokenizer = with_bounded_words(pre_tokenizers.BertPreTokenizer(), 64)
    special = list(SPECIAL_TOKENS.values())

    # The trainer would number the pieces ##a, ##b, ... in random order and break ties by their numbers. Listed as
    # special tokens they are numbered in sorted order, so that the same text always gives the same vocabulary.
    letters: set[str] = set()
    for piece in pieces(text):
        for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(piece)):
            letters.update(word[1:])
    special += sorted("##" + letter for letter in letters)
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)

    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizer
    trained.train_from_iterator(pieces(text), trainer)
    size = trained.get_vocab_size()
    require(size <= vocab_size, "vocab_size", vocab_size, f"at least {size}: every letter of the text needs an id")
    tokenizer = assemble_wordpiece(trained.get_vocab())  # a new tokeniser, in which ##a is an ordinary token
    tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


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
    """Return the ids (N,) of a text, int64, without [CLS] and [SEP]. A long text is read in pieces, on all cores."""
    seen = sys.stderr.isatty() or "ipykernel" in sys.modules
    bar = tqdm(desc="tokenising", total=len(text), unit="char", unit_scale=True, disable=len(text) < LONG or not seen)
    ids = [torch.zeros(0, dtype=torch.long)]
    batch: list[str] = []
    with bar:
        for piece in pieces(text):
            batch.append(piece)
            if len(batch) == 32:
                ids += encode_batch(tokenizer, batch)
                bar.update(sum(map(len, batch)))
                batch = []
        ids += encode_batch(tokenizer, batch)
    return torch.cat(ids)


def encode_batch(tokenizer: Tokenizer, texts: list[str]) -> list[Tensor]:
    """Return the ids (N,) of each text, without special tokens."""
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [torch.tensor(encoding.ids, dtype=torch.long) for encoding in encodings]


def pieces(text: str) -> Iterator[str]:
    """Cut a text into pieces of PIECE characters or a little more, and of twice as many where it has no spaces."""
    start = 0
    while start < len(text):
        cut = CUT.search(text, start + PIECE, start + 2 * PIECE)
        stop = cut.start() if cut else min(len(text), start + 2 * PIECE)
        yield text[start:stop]
        start = stop
