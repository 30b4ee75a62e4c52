"""Tokenisers: how each kind is assembled, and how it is trained on a text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from transformer import require
from utils.data.disk import LongText, Text, kept, progress

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


def encode(tokenizer: Tokenizer, text: Text) -> Tensor:
    """Return the ids (N,) of a text, without [CLS] and [SEP]. They are made in pieces, on all cores.

    The ids are int64. Those of a long text lie on disk, in uint16 where the vocabulary has at most 65,536 tokens and
    else in int32; they are made once for each text and tokeniser.
    """
    if isinstance(text, LongText):
        dtype = torch.uint16 if tokenizer.get_vocab_size() <= 2**16 else torch.int32
        key = hashlib.sha256(f"{text.sha256} {tokenizer.to_str()}".encode()).hexdigest()

        def write(file: BinaryIO) -> None:
            print(f"The token ids are written once for this text and tokenizer, into {Path(file.name).parent}")
            for ids in encode_pieces(tokenizer, pieces_of_blocks(text.read()), len(text)):
                file.write(ids.astype(str(dtype).removeprefix("torch.")).tobytes())

        path = kept(f"tokens-{key}", write)
        return torch.from_file(str(path), size=path.stat().st_size // dtype.itemsize, dtype=dtype)
    ids = list(encode_pieces(tokenizer, pieces(text), len(text)))
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *ids]))


def encode_pieces(tokenizer: Tokenizer, texts: Iterable[str], total: int) -> Iterator[np.ndarray]:
    """Yield the ids (N,) of each text, without special tokens. total: the characters of all texts together."""
    with progress("tokenising", total, "char", LONG) as bar:
        for batch in batched(texts, 32):
            for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                yield np.array(encoding.ids, np.int64)
            bar.update(sum(map(len, batch)))


def batched(texts: Iterable[str], n: int) -> Iterator[list[str]]:
    """Yield the texts in lists of n; the last one may be shorter."""
    texts = iter(texts)
    while batch := list(islice(texts, n)):
        yield batch


def pieces(text: str) -> Iterator[str]:
    """Cut a text into pieces of PIECE characters or a little more, and of twice as many where it has no spaces."""
    return pieces_of_blocks(iter([text]))


def pieces_of_blocks(blocks: Iterator[str]) -> Iterator[str]:
    """Cut the text of which these are the blocks, as `pieces` does, whatever the length of the blocks."""
    text, start = "", 0
    for block in blocks:
        text, start = text[start:] + block, 0
        while len(text) - start >= 2 * PIECE:
            cut = CUT.search(text, start + PIECE, start + 2 * PIECE)
            stop = cut.start() if cut else start + 2 * PIECE
            yield text[start:stop]
            start = stop
    while start < len(text):
        cut = CUT.search(text, start + PIECE, start + 2 * PIECE)
        stop = cut.start() if cut else start + 2 * PIECE
        yield text[start:stop]
        start = stop
