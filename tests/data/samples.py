"""What several tests of this folder need: a small corpus, and a cache without a network."""

import hashlib
from pathlib import Path

import requests
import tiny

from utils.data.text import Corpus

TEXT = tiny.text(1500)


def corpus(train: str = TEXT, validation: str = TEXT[:600], test: str = TEXT[-900:]) -> Corpus:
    return Corpus("made", train, validation, test, "by hand")


def cache_without_network(tmp_path: Path, monkeypatch) -> Path:
    """An empty cache folder. What is not in the cache cannot be downloaded, and that shows at once."""

    def no_network(*args, **options):
        raise requests.ConnectionError("no network")

    monkeypatch.setenv("TRANSFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("utils.download.TRIES", 1)
    monkeypatch.setattr(requests, "get", no_network)
    return tmp_path / "cache"


def put(path: Path, content: bytes) -> str:
    """Write a file into the cache; return its hash as a Remote has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return "sha256:" + hashlib.sha256(content).hexdigest()
