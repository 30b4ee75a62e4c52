"""Fill in the blanks of a text with BERT, and see what the blanks attend to."""

from __future__ import annotations

import re

import lightning as L
import torch
from tokenizers import Encoding, Tokenizer

from transformer import MLMHead, require
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
