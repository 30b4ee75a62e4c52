"""Continue a prompt with GPT, as a whole or token by token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import lightning as L
import torch
from tokenizers import Tokenizer
from torch import Tensor

from transformer import DecoderTransformer, Transformer, sampling_probabilities
from utils.data.tokenisers import encode

RECENT = 12  # tokens that are decoded together with a new one, to find the text that it adds


@contextmanager
def evaluating(model: Transformer) -> Iterator[None]:
    """Put the model into evaluation mode, in which there is no dropout, and restore its mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def prompt_ids(tokenizer: Tokenizer, prompt: str, device: torch.device) -> Tensor:
    """Return the token ids (1, T) of a prompt. Raises ValueError where it has none."""
    ids = encode(tokenizer, prompt)[None].to(device)
    if ids.numel() == 0:
        raise ValueError(f"prompt={prompt!r}: must hold at least one token")
    return ids


def write_on(
    module: L.LightningModule, tokenizer: Tokenizer, prompt: str, length: int, seed: int = 0, **sampling
) -> str:
    """Return the prompt with `length` sampled tokens after it.

    sampling: temperature, top_k, top_p and use_cache, as in DecoderTransformer.stream; top_k is 50 unless given.
    """
    ids = prompt_ids(tokenizer, prompt, module.device)
    generator = torch.Generator(module.device).manual_seed(seed)
    sampling = {"top_k": 50} | sampling
    with evaluating(module.model):
        ids = module.model.generate(ids, length, generator=generator, **sampling)
    return tokenizer.decode(ids[0].tolist(), skip_special_tokens=False)


@dataclass(frozen=True)
class Written:
    """One sampled token, and the tokens that could have been sampled in its place."""

    text: str  # what the token adds to the text
    probability: float  # the model's, before temperature, top_k and top_p
    candidates: list[tuple[str, float, float]]  # (text, the model's probability, sampling probability)
    taken: int  # the index of this token in `candidates`


def write_tokens(
    model: DecoderTransformer,
    tokenizer: Tokenizer,
    prompt: str,
    length: int,
    seed: int = 0,
    k: int = 8,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    use_cache: bool = True,
) -> Iterator[Written]:
    """Sample `length` tokens after the prompt and yield each as a `Written`.

    Its candidates are the k tokens that the model finds likeliest, likeliest first. The sampled token comes last where
    it is not one of them. The other arguments are those of DecoderTransformer.stream.
    """
    device = next(model.parameters()).device
    ids = prompt_ids(tokenizer, prompt, device)
    recent = ids[0].tolist()[-RECENT:]
    generator = torch.Generator(device).manual_seed(seed)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    with evaluating(model):
        for sampled, logits in model.stream(ids, length, generator=generator, use_cache=use_cache, **settings):
            token = sampled.item()
            before = logits.softmax(-1)[0]  # (V,): the model's probabilities
            after = sampling_probabilities(logits, **settings)[0]  # (V,)
            shown = before.topk(min(k, len(before))).indices.tolist()
            if token not in shown:
                shown.append(token)
            texts = [tokenizer.decode([i], skip_special_tokens=False) for i in shown]
            candidates = list(zip(texts, before[shown].tolist(), after[shown].tolist(), strict=True))
            text = added_text(tokenizer, recent, token)
            recent = [*recent, token][-RECENT:]
            yield Written(text, before[token].item(), candidates, shown.index(token))


def added_text(tokenizer: Tokenizer, recent: list[int], token: int) -> str:
    """Return the text that a token adds to the text of the tokens before it.

    A token of a byte-level tokeniser may be a part of a character. The character is added by the token that completes
    it; until then, decoding shows U+FFFD in its place.
    """
    old = tokenizer.decode(recent, skip_special_tokens=False).rstrip("\ufffd")
    new = tokenizer.decode([*recent, token], skip_special_tokens=False).rstrip("\ufffd")
    return new[len(old) :]
