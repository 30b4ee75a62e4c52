"""What a trained model does: write on, fill in blanks, tell which sentences mean the same."""

from __future__ import annotations

import re

import lightning as L
import torch
from tokenizers import Tokenizer as Words
from torch.nn import functional as F

from transformer import Transformer
from utils.batches import pad


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
