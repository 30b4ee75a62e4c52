"""What a trained model does: write on, fill in blanks."""

from __future__ import annotations

import re

import lightning as L
import torch
from tokenizers import Tokenizer as Words


def write_on(module: L.LightningModule, words: Words, prompt: str, length: int, seed: int = 0, **sampling) -> str:
    """The prompt and `length` tokens more. `sampling` as in DecoderTransformer.generate; top_k=50 by default."""
    ids = torch.tensor([words.encode(prompt).ids], device=module.device)
    if ids.numel() == 0:
        raise ValueError(f"prompt={prompt!r}: must hold at least one word")
    generator = torch.Generator(module.device).manual_seed(seed)
    was_training = module.training
    module.eval()
    written = module.model.generate(ids, length, generator=generator, **{"top_k": 50} | sampling)
    module.train(was_training)
    return words.decode(written[0].tolist(), skip_special_tokens=False)


def fill_blanks(module: L.LightningModule, words: Words, text: str, k: int = 5) -> list[list[tuple[str, float]]]:
    """For each `___` in the text, the k likeliest words and their probabilities, likeliest first."""
    ids = torch.tensor([words.encode(re.sub("_{3,}", "[MASK]", text)).ids], device=module.device)
    blanks = ids[0] == words.token_to_id("[MASK]")
    if not blanks.any():
        raise ValueError(f"text={text!r}: must hold at least one blank, written ___")
    with torch.inference_mode():
        likely = module.model(ids)[0][blanks].softmax(-1).topk(k)
    return [
        [(words.id_to_token(i), p) for i, p in zip(row.tolist(), chances.tolist(), strict=True)]
        for row, chances in zip(likely.indices, likely.values, strict=True)
    ]
