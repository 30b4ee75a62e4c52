"""The official models that can be loaded by name, and their download from the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from utils.download import Remote, cache_dir, fetch

HUB = "https://huggingface.co"
LARGEST = 2**33  # bytes of a file: those of GPT-2 XL are 6.4 GB


@dataclass(frozen=True)
class Official:
    """Where an official model lies on the Hub."""

    repository: str
    revision: str = "main"  # a commit or a branch
    hashes: dict[str, str] = field(default_factory=dict)  # of its files; `fetch` prints which one is not verified
    processor: str = "tokenizer.json"  # the file with the tokeniser or the image transform


OFFICIAL = {
    "gpt2": Official(
        "openai-community/gpt2",
        revision="607a30d783dfa663caf39e06633721c8d4cfcd7e",
        hashes={"model.safetensors": "sha256:248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"},
    ),
    "gpt2-medium": Official("openai-community/gpt2-medium"),
    "gpt2-large": Official("openai-community/gpt2-large"),
    "gpt2-xl": Official("openai-community/gpt2-xl"),
    "bert-base-uncased": Official(
        "google-bert/bert-base-uncased",
        revision="86b5e0934494bd15c9632b12f734a8a67f723594",
        hashes={"model.safetensors": "sha256:68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3"},
    ),
    "bert-large-uncased": Official("google-bert/bert-large-uncased"),
    "vit-base-patch16-224": Official("google/vit-base-patch16-224", processor="preprocessor_config.json"),
    "vit-large-patch16-224": Official("google/vit-large-patch16-224", processor="preprocessor_config.json"),
    "all-MiniLM-L6-v2": Official(
        "sentence-transformers/all-MiniLM-L6-v2",
        revision="1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
        hashes={
            "config.json": "sha256:953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "sha256:be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
    ),
}


def download(name: str) -> Path:
    """Return the folder in the cache that holds the official model `name`; download what is missing from it.

    Raises DownloadError, as `fetch` does, where a file cannot be fetched or does not have its hash.
    """
    model = OFFICIAL[name]
    for file in ("config.json", "model.safetensors", model.processor):
        url = f"{HUB}/{model.repository}/resolve/{model.revision}/{file}"
        fetch(Remote(url, model.hashes.get(file), most=LARGEST), file, folder=name)
    return cache_dir() / name
