"""What a trained model does: write on, fill in blanks, tell which sentences mean the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import lightning as L
import torch
from tokenizers import Encoding
from tokenizers import Tokenizer as Words
from torch.nn import functional as F

from transformer import DecoderTransformer, MLMHead, Transformer, next_word, require
from utils.batches import pad

BLANK = re.compile(r"_{3,}|\[MASK\]")  # what stands for a word to be guessed


@contextmanager
def evaluating(model: Transformer) -> Iterator[None]:
    """Without dropout; afterwards the model is in the mode that it came in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def write_on(module: L.LightningModule, words: Words, prompt: str, length: int, seed: int = 0, **sampling) -> str:
    """The prompt and `length` tokens more. `sampling` as in DecoderTransformer.generate; top_k=50 by default."""
    ids = torch.tensor([words.encode(prompt).ids], device=module.device)
    if ids.numel() == 0:
        raise ValueError(f"prompt={prompt!r}: must hold at least one word")
    generator = torch.Generator(module.device).manual_seed(seed)
    with evaluating(module.model):
        written = module.model.generate(ids, length, generator=generator, **{"top_k": 50} | sampling)
    return words.decode(written[0].tolist(), skip_special_tokens=False)


@dataclass(frozen=True)
class Written:
    """One token that GPT wrote: its text, the probability it had, and what else could have stood there.

    candidates: (text, probability in the model's eyes, probability it was drawn with), likeliest first.
    taken: which of them it is.
    """

    text: str
    probability: float
    candidates: list[tuple[str, float, float]]
    taken: int


def write_tokens(
    model: DecoderTransformer, words: Words, prompt: str, length: int, seed: int = 0, k: int = 8,
    temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, use_cache: bool = True,
) -> Iterator[Written]:  # fmt: skip
    """Write on from the prompt, one `Written` at a time, each with its `k` likeliest candidates and the one taken."""
    device = next(model.parameters()).device
    ids = torch.tensor([words.encode(prompt, add_special_tokens=False).ids], dtype=torch.long, device=device)
    if ids.numel() == 0:
        raise ValueError(f"prompt={prompt!r}: must hold at least one word")
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    generator, written = torch.Generator(device).manual_seed(seed), ids[0].tolist()[-8:]
    with evaluating(model):
        for chosen, logits in model.stream(ids, length, generator=generator, use_cache=use_cache, **settings):
            before, after = logits.softmax(-1)[0], next_word(logits, **settings)[0]
            token, likely = chosen.item(), before.topk(min(k, len(before))).indices.tolist()
            places = likely if token in likely else [*likely, token]
            texts = [words.decode([i], skip_special_tokens=False) for i in places]
            table = list(zip(texts, before[places].tolist(), after[places].tolist(), strict=True))
            # A byte of a longer character has no text until its last one comes, so the text is what decoding gains.
            old, written = words.decode(written, skip_special_tokens=False).rstrip("\ufffd"), [*written, token]
            new = words.decode(written, skip_special_tokens=False).rstrip("\ufffd")
            yield Written(new[len(old) :], before[token].item(), table, places.index(token))
            written = written[-12:]


def read_blanks(words: Words, text: str) -> tuple[Encoding, list[int]]:
    """The text's tokens, and at which places among them the blanks are."""
    mask = words.token_to_id("[MASK]")
    if mask is None:
        raise ValueError("tokenizer: must hold the token [MASK]")
    line = words.encode(BLANK.sub("[MASK]", text))
    return line, [i for i, token in enumerate(line.ids) if token == mask]


def put_in(text: str, blank: int, word: str) -> str:
    """The text with a word in one of its blanks, which are counted from 0. "##ing" goes on with the word before it."""
    place = list(BLANK.finditer(text))[blank]
    before = text[: place.start()]
    return (before.rstrip() if word.startswith("##") else before) + word.removeprefix("##") + text[place.end() :]


@torch.inference_mode()
def blank_attention(
    module: L.LightningModule, words: Words, text: str, layer: int, head: int
) -> list[list[tuple[str, float]]]:
    """For each `___` or [MASK] in the text, every token and the weight with which the blank looks at it."""
    line, blanks = read_blanks(words, text)
    with evaluating(module.model):
        maps = module.model.attention_maps(torch.tensor([line.ids], device=module.device))
    if not 0 <= layer < len(maps) or not 0 <= head < maps[0].shape[1]:
        raise ValueError(f"layer={layer}, head={head}: must be below {len(maps)} and {maps[0].shape[1]}")
    return [list(zip(line.tokens, maps[layer][0, head, row].tolist(), strict=True)) for row in blanks]


@torch.inference_mode()
def fill_blanks(module: L.LightningModule, words: Words, text: str, k: int = 5) -> list[list[tuple[str, float]]]:
    """For each `___` or [MASK] in the text, the k likeliest words and their probabilities, likeliest first."""
    line, blanks = read_blanks(words, text)
    if not blanks:
        raise ValueError(f"text={text!r}: must hold at least one blank, written ___")
    head = module.model.head
    require(isinstance(head, MLMHead), "model.head", type(head).__name__, "an MLMHead, which guesses words")
    with evaluating(module.model):
        logits = module.model(torch.tensor([line.ids], device=module.device))[0, blanks]
    likely = logits.softmax(-1).topk(k)
    return [
        [(words.id_to_token(i), p) for i, p in zip(row.tolist(), chances.tolist(), strict=True)]
        for row, chances in zip(likely.indices, likely.values, strict=True)
    ]


@torch.inference_mode()
def sentence_embeddings(model: Transformer, words: Words, sentences: list[str], batch_size: int = 32) -> torch.Tensor:
    """(N, C): each sentence's states, averaged and scaled to length 1 (Reimers 2019, "Sentence-BERT", 3).

    model: one without a head, such as load_pretrained("all-MiniLM-L6-v2") gives. Longer texts are cut at its max_len.
    """
    found = []
    device = next(model.parameters()).device
    for start in range(0, len(sentences), batch_size):
        lines = [text.ids[: model.config.max_len] for text in words.encode_batch(sentences[start : start + batch_size])]
        ids, mask = pad(lines)
        ids, mask = ids.to(device), mask.to(device)
        states = model(ids, mask=mask) * mask[..., None]
        found.append(F.normalize(states.sum(1) / mask.sum(1, keepdim=True), dim=-1))
    return torch.cat(found)
