"""The official models that can be loaded by name, and their download from the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utils.download import Remote, cache_dir, fetch

HUB = "https://huggingface.co"
LARGEST = 2**33  # bytes of a file: those of GPT-2 XL are 6.4 GB


@dataclass(frozen=True)
class Official:
    """Where an official model lies on the Hub."""

    repository: str
    revision: str = "main"  # a commit or a branch
    hash: str | None = None  # of model.safetensors; where it is None, `fetch` prints that the file is not verified
    processor: str = "tokenizer.json"  # the file with the tokeniser or the image transform


OFFICIAL = {
    "gpt2": Official(
        "openai-community/gpt2",
        revision="607a30d783dfa663caf39e06633721c8d4cfcd7e",
        hash="sha256:248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
    ),
    "gpt2-medium": Official("openai-community/gpt2-medium"),
    "gpt2-large": Official("openai-community/gpt2-large"),
    "gpt2-xl": Official("openai-community/gpt2-xl"),
    "bert-base-uncased": Official(
        "google-bert/bert-base-uncased",
        revision="86b5e0934494bd15c9632b12f734a8a67f723594",
        hash="sha256:68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3",
    ),
    "bert-large-uncased": Official("google-bert/bert-large-uncased"),
    "vit-base-patch16-224": Official("google/vit-base-patch16-224", processor="preprocessor_config.json"),
    "vit-large-patch16-224": Official("google/vit-large-patch16-224", processor="preprocessor_config.json"),
    "all-MiniLM-L6-v2": Official("sentence-transformers/all-MiniLM-L6-v2"),
}


def download(name: str) -> Path:
    """Return the folder in the cache that holds the official model `name`; download what is missing from it.

    Raises DownloadError, as `fetch` does, where a file cannot be fetched or does not have its hash.
    """
    model = OFFICIAL[name]
    hashes = {"config.json": None, "model.safetensors": model.hash, model.processor: None}
    for file, hash in hashes.items():
        url = f"{HUB}/{model.repository}/resolve/{model.revision}/{file}"
        fetch(Remote(url, hash, most=LARGEST), file, folder=name)
    return cache_dir() / name
