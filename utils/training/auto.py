"""The preset `auto`: how large a model, and how long to train it, follow from the data.

It is the default for data that are named by --data. Each function returns an entry as in presets.py. The rule is
explained in this folder's README.md. Its numbers were chosen on the validation parts of texts and pictures of many
kinds and sizes; `python -m utils.maintenance.study` measures it on others.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import UnidentifiedImageError

from utils.data.disk import n_bytes, sample_of
from utils.data.images import ImageSet
from utils.data.labelled import Table
from utils.data.pictures import SUFFIXES, Augment, open_picture
from utils.data.text import Corpus
from utils.training.presets import DIGITS, LARGER, MUON, PHOTOGRAPHS, SMALLER, VIT

GENTLE = Augment(shift=0.1, scale=0.15, flip=True, colour=0.2)
STRONG = replace(PHOTOGRAPHS, crop=0.6, mix=0.5)
FEW = 2000  # colour pictures: fewer are learned by heart, however small the model
CHECKS = 10  # validations in a run
SMALL = 40  # pixels: pictures of at most this size are small
STEPS = 2400  # a CPU of two cores takes about four minutes for them


def preset_for(model: str, source: Corpus | Table | ImageSet, gpu: bool, tokenizer: str | None = None) -> dict:
    """The preset for training this model on these data from nothing. tokenizer: GPT's, where the user has chosen it."""
    if isinstance(source, ImageSet):
        return for_pictures(source)
    if isinstance(source, Table):
        return for_table(source)
    return for_text(model, source, gpu, tokenizer)


def in_words(source: Corpus | Table | ImageSet, preset: dict, trainer: dict) -> str:
    """One line that says what was chosen, and how to choose otherwise. trainer: the arguments of the Trainer."""
    config, batches = preset["config"], preset["batches"]
    steps, epochs = trainer.get("max_steps", -1), trainer.get("max_epochs", -1)
    length = f"{epochs} epochs" if epochs > 0 else f"{steps} steps"
    if isinstance(source, Corpus):
        amount = f"{n_bytes(source.train) / 1000:,.0f} kB to train on"
        units = {"char": "characters", "bpe": f"BPE of {batches['vocab_size']} tokens"}
        units = units.get(batches.get("tokenizer"), f"WordPiece of {batches['vocab_size']} tokens")
        chosen = [units, f"{length} of {batches['batch_size']} x {batches['context']} tokens"]
        if steps == preset["trainer"]["max_steps"]:
            chosen.insert(1, f"{preset['passes']:.1f} passes")
    elif isinstance(source, Table):
        amount = f"{len(source.train[0])} texts to train on"
        chosen = [f"{length} in batches of {batches['batch_size']}"]
    else:
        amount = f"{len(source.train[1])} pictures of {preset['image_size']} x {preset['image_size']} to train on"
        patch = preset["model"]["patch_size"]
        chosen = [f"patches of {patch} x {patch}", f"{length} in batches of {batches['batch_size']}"]
    chosen += [f"{config['n_layers']} blocks of width {config['d_model']}", f"dropout {config.get('dropout', 0.0)}"]
    return f"{amount}: {', '.join(chosen)}. Change any with --set, --max-steps, --max-epochs or --preset."


def for_text(model: str, corpus: Corpus, gpu: bool, tokenizer: str | None = None) -> dict:
    """The preset for GPT or BERT on a text. tokenizer: GPT's, where the user has chosen it."""
    length = len(corpus.train)
    large = gpu and length > 1_000_000
    config = dict(LARGER if large else SMALLER | {"d_model": 128, "d_ff": 512})
    context, batch_size = (256, 64) if large else (128, 16)
    # A window has to fit into the validation part, which is a twentieth of the training part.
    context = max(8, min(context, len(corpus.validation) // 8))

    batches: dict = {"context": context, "batch_size": batch_size, "vocab_size": vocabulary(length)}
    letters = 1.0  # characters in a token
    if model == "gpt":
        batches["tokenizer"] = tokenizer or usual_tokenizer(corpus)
        if batches["tokenizer"] == "bpe":
            letters = 2.5
    else:
        letters = 3.0
        batches |= {"mask_rate": 0.3, "random_rate": 0.0, "keep_rate": 0.0}

    passes = n_passes(length)
    if model == "bert":
        passes *= 3  # a pass teaches it by the masked tokens alone, which are 30 %
    per_step = batch_size * context * letters  # characters
    steps = round(passes * length / per_step)
    steps = max(50, min(steps, 3000 if large else STEPS))
    passes = steps * per_step / length
    if large:
        config["dropout"] = 0.2
    else:
        seen = passes / 3 if model == "bert" else passes
        config["dropout"] = 0.2 if seen > 16 else 0.1 if seen > 6 else 0.0
    return {
        "config": config,
        "recipe": MUON | {"lr": 1e-3 if large else 4e-3, "warmup": min(100, steps // 10)},
        "batches": batches,
        "trainer": {"max_steps": steps, "val_check_interval": max(1, steps // CHECKS)},
        "passes": passes,
    }


def n_passes(length: int) -> float:
    """How often a training part of so many characters is read: short texts more often, since steps are what teaches."""
    return min(30.0, max(1.0, 11.0 * (140_000 / length) ** 0.5))


def usual_tokenizer(corpus: Corpus) -> str:
    """Characters, if each kind occurs often and the text is short; else BPE, which packs more text into a window."""
    kinds, length = len(set(sample_of(corpus.train))), len(corpus.train)
    return "char" if kinds <= length / 30 and length <= 1_500_000 else "bpe"


def vocabulary(length: int) -> int:
    """How many tokens BPE or WordPiece learn: each should occur often enough to be learned."""
    return 512 if length < 300_000 else 1024 if length < 20_000_000 else 8192


def for_table(table: Table) -> dict:
    """The preset for BERT on a table of texts and labels, from nothing."""
    epochs = min(30, max(4, round(40_000 / len(table.train[0]))))
    return {
        "config": {"n_layers": 2, "n_heads": 4, "d_model": 64, "d_ff": 256, "dropout": 0.4, "init_std": 0.05},
        "recipe": {"lr": 1e-3, "warmup": 50, "final_lr": 0.0},
        "batches": {"context": 128, "batch_size": 32, "vocab_size": 4096},
        "trainer": {"max_epochs": epochs},
    }


def for_pictures(images: ImageSet) -> dict:
    """The preset for ViT on pictures, in the size that `side_for` has chosen."""
    pictures, labels = images.train
    channels, side = pictures.shape[1:3]
    grey, small, few = channels == 1, side <= SMALL, len(labels) < FEW
    config, patch_size, augment = VIT | {"dropout": 0.1 if few else 0.0}, 8, PHOTOGRAPHS
    if small:
        patch_size = side // 4 if grey else 4
    if grey:
        augment = DIGITS
    elif few:
        augment = STRONG
    elif small:  # larger initial weights and gentle changes: ViT finds its way off guessing sooner
        config, augment = config | {"init_std": 0.05}, GENTLE
    epochs = max(10, min(200, 200_000 // len(labels)))
    return {
        "image_size": side,
        "config": config,
        "model": {"patch_size": patch_size},
        "recipe": MUON | {"lr": 3e-3},
        "batches": {"batch_size": 100 if len(labels) > 1000 else 32, "augment": augment},
        "trainer": {"max_epochs": epochs, "check_val_every_n_epoch": max(1, epochs // CHECKS)},
    }


def side_for(folder: Path) -> int:
    """The size, in pixels, in which pictures are read: their own if it is small, else 32 if they are few, else 64."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    sides = []
    for path in paths[:200]:
        try:
            with open_picture(path) as picture:
                sides.append(min(picture.size))
        except (UnidentifiedImageError, OSError):
            continue  # read_folder names it
    typical = sorted(sides)[len(sides) // 2] if sides else 64
    if typical <= SMALL:
        return max(8, 4 * round(typical / 4))
    return 32 if len(paths) < FEW else 64
