"""Presets and data small enough for tests. `python tests/tiny.py gpt ...` is the command line with these presets."""

import random
import sys
from pathlib import Path

from PIL import Image

from utils.training.presets import PRESETS

SMALL = {"n_layers": 1, "n_heads": 2, "d_model": 16, "d_ff": 32, "dropout": 0.1, "positions": "rotary"}
SETTINGS = {
    "gpt": {
        "config": SMALL,
        "batches": {"context": 16, "batch_size": 8, "vocab_size": 300},
        "recipe": {"lr": 1e-2, "warmup": 2},
    },
    "bert": {
        "config": SMALL,
        "batches": {"context": 16, "batch_size": 8, "vocab_size": 200},
        "recipe": {"lr": 1e-2, "warmup": 2},
    },
    "vit": {
        "config": SMALL | {"positions": "learned"},
        "batches": {"batch_size": 8},
        "recipe": {"lr": 1e-2, "warmup": 2},
        "model": {"patch_size": 4},
        "image_size": 8,
    },
}
MUON = {"optimizer": "muon", "lr": 1e-2, "warmup": 2}
COMMON = {"data": "none", "trainer": {"max_steps": 12, "val_check_interval": 5}}


def presets() -> dict:
    """Each model as small, muon, epochs (limited by them, not by steps), smooth (no dropout), wide (larger) and s17."""
    found = {}
    for model, settings in SETTINGS.items():
        small = COMMON | settings
        found[model] = {
            "small": small,
            "muon": small | {"recipe": MUON},
            "epochs": small | {"trainer": {"max_epochs": 3}},
            "smooth": small | {"config": small["config"] | {"dropout": 0.0}},
            "wide": small | {"config": small["config"] | {"d_model": 32}},
            "s17": small | {"trainer": {"max_epochs": 2}},
            "finetune": small | {"trainer": {"max_epochs": 3}},
            "finetune-small": small | {"trainer": {"max_epochs": 3}},
        }
    return found


def text(n_words: int = 500, seed: int = 0) -> str:
    """Lines of made-up words, the common ones more often."""
    draw = random.Random(seed)
    vocabulary = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(1, 7))) for _ in range(60)]
    words = draw.choices(vocabulary, weights=[1 / (i + 1) for i in range(60)], k=n_words)
    return "\n".join(" ".join(words[i : i + 8]) for i in range(0, n_words, 8)) + "\n"


def pictures(folder: Path, n: int = 16, mode: str = "L", size: int = 8) -> Path:
    """folder/dark, grey and light, of n PNG each: noise around three levels."""
    draw = random.Random(0)
    for name, level in {"dark": 40, "grey": 120, "light": 200}.items():
        (folder / name).mkdir(parents=True)
        for i in range(n):
            content = bytes(level + draw.randint(-30, 30) for _ in range(size * size * len(mode)))
            Image.frombytes(mode, (size, size), content).save(folder / name / f"{i}.png")
    return folder


if __name__ == "__main__":
    PRESETS.update(presets())
    from transformer import main

    main(sys.argv[1:])
