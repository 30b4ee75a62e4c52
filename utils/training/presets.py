"""The presets of the command line: what to train on, how large a model, how long.

small: a few minutes on two CPU cores. full: a GPU. finetune: start from pretrained weights (their sizes count, not the
preset's), or train BERT on a table of texts and labels. finetune-small: start from a small model, such as a run of
`make demo`, which can and has to change more than an official one. s17: the three models of the course assignment that
this project redoes.

Each entry holds the default data and the arguments that differ from the defaults, of Config (`config`), of the model
(`model`), of Recipe (`recipe`), of the data module (`batches`) and of Lightning's Trainer (`trainer`). The values were
chosen on the validation parts.
"""

from __future__ import annotations

from utils.data.pictures import Augment

SMALLER = {"n_layers": 4, "n_heads": 4, "positions": "rotary", "init_std": 0.05}
LARGER = {"n_layers": 6, "n_heads": 6, "d_model": 384, "d_ff": 1536, "positions": "rotary"}
DIGITS = Augment(degrees=15, shift=0.07, scale=0.15, shear=0.1, elastic=0.025)
PHOTOGRAPHS = Augment(degrees=15, shift=0.1, scale=0.3, flip=True, colour=0.4)
VIT = {"n_layers": 4, "n_heads": 4, "d_model": 96, "d_ff": 384}
TUNE = {"weight_decay": 0.01, "warmup": 50, "final_lr": 0.0}
MUON = {"optimizer": "muon", "weight_decay": 0.1, "final_lr": 0.0}

PRESETS: dict[str, dict[str, dict]] = {
    "gpt": {
        "finetune": {
            "data": "python-docs",
            "config": SMALLER | {"d_model": 128, "d_ff": 512, "dropout": 0.1},
            "recipe": TUNE | {"lr": 5e-5},
            "batches": {"context": 256, "batch_size": 8},
            "trainer": {"max_epochs": 1},
        },
        "finetune-small": {
            "data": "python-docs",
            "config": SMALLER | {"d_model": 128, "d_ff": 512, "dropout": 0.1},
            "recipe": TUNE | {"optimizer": "muon", "muon_lr": 0.01, "lr": 1e-3},
            "batches": {"context": 128, "batch_size": 8},
            "trainer": {"max_epochs": 6},
        },
        "small": {
            "data": "python-docs",
            "config": SMALLER | {"d_model": 128, "d_ff": 512},
            "recipe": MUON | {"lr": 4e-3},
            "batches": {"context": 128, "batch_size": 16},
            "trainer": {"max_steps": 1600, "val_check_interval": 200},
        },
        "full": {
            "data": "shakespeare",
            "config": LARGER | {"dropout": 0.2},
            "recipe": MUON | {"lr": 1e-3, "weight_decay": 0.1},
            "batches": {"context": 256, "batch_size": 64},
            "trainer": {"max_steps": 3000, "val_check_interval": 250},
        },
        "s17": {
            "data": "python-docs",
            "config": {"n_layers": 3, "n_heads": 12, "d_model": 768, "d_ff": 2048, "dropout": 0.1},
            "model": {"vocab_size": 30_522, "tied": False},
            "recipe": {"lr": 3e-4, "weight_decay": 0.01},
            "batches": {"context": 64, "batch_size": 32, "vocab_size": 30_522},
            "trainer": {"max_epochs": 10},
        },
    },
    "bert": {
        "finetune": {
            "data": "python-docs",
            "config": SMALLER | {"d_model": 96, "d_ff": 384, "dropout": 0.1},
            "recipe": TUNE | {"lr": 5e-5},
            "batches": {"context": 128, "batch_size": 32},
            "trainer": {"max_epochs": 4},
        },
        "finetune-small": {
            "data": "python-docs",
            "config": SMALLER | {"d_model": 96, "d_ff": 384, "dropout": 0.1},
            "recipe": TUNE | {"lr": 3e-3},
            "batches": {"context": 128, "batch_size": 32},
            "trainer": {"max_epochs": 6},
        },
        "small": {
            "data": "python-docs",
            "config": SMALLER | {"d_model": 96, "d_ff": 384},
            "recipe": MUON | {"lr": 4e-3},
            "batches": {"context": 64, "batch_size": 32, "mask_rate": 0.3, "random_rate": 0.0, "keep_rate": 0.0},
            "trainer": {"max_steps": 3200, "val_check_interval": 400},
        },
        "full": {
            "data": "wikitext-2",
            "config": LARGER | {"dropout": 0.1},
            "recipe": MUON | {"lr": 1e-3, "weight_decay": 0.1},
            "batches": {"context": 128, "batch_size": 128, "vocab_size": 4096, "mask_rate": 0.2},
            "trainer": {"max_steps": 6000, "val_check_interval": 500},
        },
        "s17": {
            "data": "python-docs",
            "config": {"n_layers": 8, "n_heads": 8, "d_model": 128, "d_ff": 512, "norm_first": False, "dropout": 0.1},
            "model": {"vocab_size": 23_700, "tied": False},
            "recipe": {"lr": 1e-3, "weight_decay": 0.01},
            "batches": {"context": 20, "batch_size": 1024, "vocab_size": 23_700},
            "trainer": {"max_epochs": 15},
        },
    },
    "vit": {
        "finetune": {
            "data": "pizza-steak-sushi",
            "image_size": 224,
            "config": VIT | {"dropout": 0.1},
            "model": {"patch_size": 16},
            "recipe": TUNE | {"lr": 1e-4},
            "batches": {"batch_size": 16, "augment": Augment(flip=True, scale=0.2, shift=0.05)},
            "trainer": {"max_epochs": 8},
        },
        "finetune-small": {
            "data": "pizza-steak-sushi",
            "image_size": 64,
            "config": VIT | {"dropout": 0.1},
            "model": {"patch_size": 8},
            "recipe": TUNE | {"lr": 1e-3},
            "batches": {"batch_size": 16, "augment": Augment(flip=True, scale=0.2, shift=0.05)},
            "trainer": {"max_epochs": 20},
        },
        "small": {
            "data": "mnist-5k",
            "image_size": 28,
            "config": VIT,
            "model": {"patch_size": 7},
            "recipe": MUON | {"lr": 3e-3},
            "batches": {"batch_size": 100, "augment": DIGITS},
            "trainer": {"max_epochs": 56},
        },
        "full": {
            "data": "pizza-steak-sushi",
            "image_size": 64,
            "config": {"n_layers": 6, "n_heads": 6, "d_model": 192, "d_ff": 768, "dropout": 0.1},
            "model": {"patch_size": 8},
            "recipe": MUON | {"lr": 5e-4, "weight_decay": 0.05},
            "batches": {"batch_size": 32, "augment": PHOTOGRAPHS},
            "trainer": {"max_epochs": 200, "val_check_interval": 70},
        },
        "s17": {
            "data": "pizza-steak-sushi",
            "image_size": 224,
            "config": {"n_layers": 6, "n_heads": 12, "d_model": 768, "d_ff": 3072, "dropout": 0.1},
            "model": {"patch_size": 16},
            "recipe": {"lr": 1e-3, "weight_decay": 0.03},
            "batches": {"batch_size": 32},
            "trainer": {"max_epochs": 11},
        },
    },
}
