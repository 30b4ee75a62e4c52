"""Sentence embeddings: one vector for each sentence, so that sentences of like meaning have like vectors."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from transformer import Transformer
from utils.data.batches import pad


@torch.inference_mode()
def sentence_embeddings(model: Transformer, tokenizer: Tokenizer, sentences: list[str], batch_size: int = 32) -> Tensor:
    """Return a vector of length 1 for each sentence, (N, C): the mean of its hidden states, normalised.

    The dot product of two such vectors is their cosine similarity (Reimers and Gurevych 2019, "Sentence-BERT",
    section 3). model: a BERT without a head, such as load_pretrained("all-MiniLM-L6-v2") returns. A sentence of more
    than max_len tokens is cut off there.
    """
    max_len = model.config.max_len
    device = next(model.parameters()).device
    embeddings = []
    for start in range(0, len(sentences), batch_size):
        batch = tokenizer.encode_batch(sentences[start : start + batch_size])
        ids, mask = pad([encoding.ids[:max_len] for encoding in batch])  # (B, T) each
        ids, mask = ids.to(device), mask.to(device)
        states = model(ids, mask=mask) * mask[..., None]  # (B, T, C), zero at padding
        means = states.sum(1) / mask.sum(1, keepdim=True)  # (B, C)
        embeddings.append(F.normalize(means, dim=-1))
    return torch.cat(embeddings)
