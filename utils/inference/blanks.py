"""Fill in the blanks of a text with BERT, see what the blanks attend to, and write a text that is blank as a whole."""

from __future__ import annotations

import math
import re

import lightning as L
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from transformer import MLMHead, Transformer, require, sampling_probabilities
from utils.inference.generate import evaluating
from utils.inference.interpret import check_layer_and_head

BLANK = re.compile(r"_{3,}|\[MASK\]")  # the two ways to write a blank


def read_blanks(tokenizer: Tokenizer, text: str) -> tuple[Encoding, list[int]]:
    """Return the tokens of a text, and the positions of its blanks among them.

    Raises ValueError where the tokeniser has no token [MASK].
    """
    mask = tokenizer.token_to_id("[MASK]")
    if mask is None:
        raise ValueError("tokenizer: must hold the token [MASK]")
    encoding = tokenizer.encode(BLANK.sub("[MASK]", text))
    return encoding, [position for position, token in enumerate(encoding.ids) if token == mask]


def put_in(text: str, blank: int, token: str) -> str:
    """Return the text with a token in the place of one of its blanks, which are counted from 0.

    A token that begins with ## is joined to the word before it, as in WordPiece.
    """
    found = list(BLANK.finditer(text))[blank]
    before, after = text[: found.start()], text[found.end() :]
    if token.startswith("##"):
        before = before.rstrip()
    return before + token.removeprefix("##") + after


@torch.inference_mode()
def fill_blanks(
    module: L.LightningModule, tokenizer: Tokenizer, text: str, k: int = 5
) -> list[list[tuple[str, float]]]:
    """Return, for each blank in the text, its k likeliest tokens with their probabilities, likeliest first.

    A blank is written ___ or [MASK]. Raises ValueError where the text has none, or where the model is no BERT with the
    head that predicts tokens.
    """
    encoding, blanks = read_blanks(tokenizer, text)
    if not blanks:
        raise ValueError(f"text={text!r}: must hold at least one blank, written ___")
    head = module.model.head
    require(isinstance(head, MLMHead), "model.head", type(head).__name__, "an MLMHead, which predicts tokens")
    ids = torch.tensor([encoding.ids], device=module.device)  # (1, T)
    with evaluating(module.model):
        logits = module.model(ids)[0, blanks]  # (blanks, V)
    likeliest = logits.softmax(-1).topk(k)  # (blanks, k)
    answers = []
    for candidates, probabilities in zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True):
        tokens = [tokenizer.id_to_token(i) for i in candidates]
        answers.append(list(zip(tokens, probabilities, strict=True)))
    return answers


@torch.inference_mode()
def blank_attention(
    module: L.LightningModule, tokenizer: Tokenizer, text: str, layer: int, head: int
) -> list[list[tuple[str, float]]]:
    """Return, for each blank in the text, every token of the text with the blank's attention weight on it.

    layer, head: whose attention, both counted from 0.
    """
    encoding, blanks = read_blanks(tokenizer, text)
    check_layer_and_head(module.model, layer, head)
    ids = torch.tensor([encoding.ids], device=module.device)  # (1, T)
    with evaluating(module.model):
        maps = module.model.attention_maps(ids)
    weights = maps[layer][0, head, blanks]  # (blanks, T)
    return [list(zip(encoding.tokens, row, strict=True)) for row in weights.tolist()]


@torch.inference_mode()
def unmask(
    model: Transformer,
    ids: Tensor,
    mask: int,
    n_steps: int,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    surest: bool = False,
) -> Tensor:
    """Put sampled tokens in the place of every `mask` in ids (B, T), equally many in each of `n_steps` steps.

    In every step BERT predicts all hidden tokens, and some of them are uncovered: those at random places, or with
    `surest` those whose sampled token has the highest probability. Tokens that are uncovered in the same step do not
    know of each other, so the fewer steps, the less they fit together. A model that was trained with every share of the
    tokens hidden is needed (Hoogeboom 2021, "Autoregressive diffusion models"; for `surest` Chang 2022, "MaskGIT").
    """
    require(n_steps >= 1, "n_steps", n_steps, "at least 1")
    with evaluating(model):
        for step in range(n_steps):
            hidden = ids == mask  # (B, T)
            n = math.ceil(hidden.sum(1).max().item() / (n_steps - step))
            if n == 0:
                break
            logits = model(ids, keep=hidden)  # (N, V)
            logits[:, mask] = -math.inf
            probabilities = sampling_probabilities(logits, temperature)
            tokens = torch.multinomial(probabilities, 1, generator=generator)  # (N, 1)
            drawn = ids.masked_scatter(hidden, tokens)
            priority = torch.rand(ids.shape, generator=generator, device=ids.device)
            if surest:
                priority = priority.masked_scatter(hidden, probabilities.gather(1, tokens))
            ids = uncover(ids, drawn, priority, n, mask)
    return ids


def uncover(ids: Tensor, drawn: Tensor, priority: Tensor, n: int, mask: int) -> Tensor:
    """Return ids (B, T) in which n tokens `mask` of every row, those with the highest priority, are replaced.

    drawn: the tokens to put there (B, T); priority: (B, T). A row with fewer than n masks gets all of them replaced.
    """
    hidden = ids == mask  # (B, T)
    priority = priority.masked_fill(~hidden, -math.inf)
    chosen = torch.zeros_like(hidden).scatter(1, priority.topk(n).indices, True)
    return torch.where(chosen & hidden, drawn, ids)
