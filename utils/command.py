"""The command line: `python transformer.py bert|gpt|vit ...` trains a preset, scores it and leaves it in --out."""

from __future__ import annotations

import argparse
import re
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tokenizers import Tokenizer

import transformer
from transformer import BERT, GPT, Config, LitTransformer, MLMHead, PatchEmbedding, Recipe, Transformer, ViT, require
from utils import report
from utils.callbacks import DeltaW, IterLoss, KeepHistory, Progress, SampleText, StopCleanly
from utils.images import ImageData, load_images
from utils.linear import OneDNN
from utils.presets import PRESETS
from utils.pretrained import load_pretrained, module_of
from utils.processors import ImageTransform
from utils.table import TableData, load_table
from utils.text import BERTData, GPTData, load_corpus

EPILOG = """In --out stay checkpoints/best.ckpt and last.ckpt, metrics.csv, loss.png, summary.json, and samples.txt
(gpt), predictions.txt (bert) or attention.png (vit)."""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("transformer.py", description=__doc__, epilog=EPILOG)
    parser.add_argument("model", choices=PRESETS)
    parser.add_argument("--data", help="a name, a text file, a folder of pictures or, for bert, a table .csv")
    parser.add_argument("--preset", help="small (CPU), full (GPU), s17 or finetune (default: as the data ask)")
    parser.add_argument("--pretrained", metavar="NAME|FOLDER", help="go on from official weights or from a run")
    parser.add_argument("--freeze", action="store_true", help="with --pretrained: train the head alone")
    parser.add_argument("--lr", type=float, metavar="X", help="AdamW's learning rate (default: the preset's)")
    parser.add_argument("--image-size", type=int, metavar="N", help="vit: pixels (default: the preset's)")
    parser.add_argument("--tokenizer", help="gpt: bpe or char (default: char for shakespeare, else bpe)")
    parser.add_argument("--refit", action="store_true", help="train on the validation part too, once all is chosen")
    parser.add_argument("--max-epochs", type=int, metavar="N")
    parser.add_argument("--max-steps", type=int, metavar="N")
    parser.add_argument("--max-time", type=float, metavar="S", help="seconds of training; the schedule fits itself in")
    parser.add_argument("--eval-iters", type=int, default=10, metavar="N", help="s17: batches behind *_iter_loss")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--resume", action="store_true", help="go on from --out's last.ckpt")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="(default: runs/MODEL)")
    for name in ("accelerator", "devices", "num-nodes", "strategy", "precision"):
        parser.add_argument(f"--{name}", help="passed to Lightning's Trainer")
    return parser


def command(arguments: list[str] | None = None) -> int:
    """Run the command line; 0, or 2 after one line that says what was wrong with the input."""
    options = parser().parse_args(arguments)
    try:
        run(options)
    except (ValueError, OSError, ImportError, MisconfigurationException) as error:
        print(f"transformer.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> dict:
    """Train, test and report; returns the summary."""
    for name in ("max_epochs", "max_steps", "max_time", "eval_iters", "seed", "image_size"):
        value, least, most = getattr(options, name), int(name != "seed"), 2**32 - 1
        require(value is None or least <= value <= most, name, value, f"at least {least} and at most {most}")
    require(options.lr is None or options.lr > 0, "lr", options.lr, "above 0")
    require(options.pretrained or not options.freeze, "freeze", True, "used with --pretrained")
    require(options.model != "gpt" or not options.freeze, "freeze", True, "left out: GPT's head is its table of words")
    presets = PRESETS[options.model]
    tuned = options.pretrained or is_table(options)
    options.preset = options.preset or ("finetune" if tuned else "small")
    require(options.preset in presets, "preset", options.preset, f"one of {', '.join(presets)}")
    preset = presets[options.preset]
    out = options.out or Path("runs", options.model)
    started = not options.resume or (out / "checkpoints" / "last.ckpt").is_file()
    require(started, "resume", True, f"used on a run that has begun; there is no checkpoints/last.ckpt in {out}")

    # Lightning's hints about workers and checkpoint folders do not fit data that are cut from tensors in memory.
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", category=UserWarning, module="torch.optim.lr_scheduler")
    torch.set_float32_matmul_precision("high")
    arguments = limits(options, preset)
    base, processor = load_pretrained(options.pretrained) if options.pretrained else (None, None)
    data = load_data(options, preset, base, processor)
    L.seed_everything(options.seed, verbose=False)
    recipe = Recipe(**preset["recipe"] | ({} if options.lr is None else {"lr": options.lr}), seed=options.seed)
    module = build(options.model, preset, data, recipe) if base is None else go_on(options, preset, data, recipe, base)
    # Wrong devices or strategies are refused here, before an earlier run is taken away.
    L.Trainer(**arguments, logger=False, enable_checkpointing=False)
    report.open_run(out, module, options.resume)

    callbacks = [OneDNN(), StopCleanly(out / "checkpoints" / "last.ckpt"), *watchers(options, data, out)]
    began = time.perf_counter()
    try:
        transformer.train(module, data, out, options.resume, callbacks=callbacks, **arguments)
    except SystemExit:  # Lightning's answer to Ctrl-C
        print(f"Stopped; all is in {out}/checkpoints/last.ckpt: go on with this command and --resume", file=sys.stderr)
        raise
    seconds = time.perf_counter() - began
    if options.preset == "s17":
        module.trainer.validate(module, data)
    summary = report.close_run(module, data, out, options.preset, seconds)
    if summary:
        print(report.table([summary]))
    return summary


def is_table(options: argparse.Namespace) -> bool:
    return options.model == "bert" and (options.data or "").lower().endswith(".csv")


def load_data(options: argparse.Namespace, preset: dict, base: Transformer | None = None, processor=None):
    """The preset's data module, in the shapes and with the processor of the pretrained model where there is one."""
    name = options.data or preset["data"]
    arguments = preset["batches"] | {"seed": options.seed}
    if options.model == "vit":
        require(options.tokenizer is None, "tokenizer", options.tokenizer, "left out: pictures have no words")
        size = options.image_size or (preset["image_size"] if base is None else base.embed.input_shape[1])
        images = load_images(name, size)
        images = images.refit() if options.refit else images
        if base is not None and base.embed.input_shape[0] == 3:
            images = images.rgb()
        if isinstance(processor, ImageTransform):
            arguments |= {"mean": processor.mean, "std": processor.std}
        return ImageData(images, **arguments)
    require(options.image_size is None, "image_size", options.image_size, "left out: words have no pixels")
    if base is not None:
        require(options.tokenizer is None, "tokenizer", options.tokenizer, "left out: it comes with the weights")
        require(isinstance(processor, Tokenizer), "pretrained", options.pretrained, "one with a tokenizer")
        n_words, size = processor.get_vocab_size(), base.embed.tokens.num_embeddings
        require(n_words <= size, "pretrained", options.pretrained, f"one whose {n_words} words fit its table of {size}")
        arguments |= {"tokenizer": processor, "context": min(arguments["context"], base.config.max_len)}
    if is_table(options):
        require(not options.refit, "refit", True, "left out: a table's validation part picks the best epoch")
        require(options.tokenizer is None, "tokenizer", options.tokenizer, "left out: BERT's is WordPiece")
        arguments = {name: arguments[name] for name in arguments if not name.endswith("_rate")}
        return TableData(load_table(name), **arguments)
    corpus = load_corpus(name)
    corpus = corpus.refit() if options.refit else corpus
    if options.model == "bert":
        require(options.tokenizer is None, "tokenizer", options.tokenizer, "left out: BERT's is WordPiece")
        return BERTData(corpus, **arguments)
    default = "char" if name == "shakespeare" else "bpe"
    return GPTData(corpus, **{"tokenizer": options.tokenizer or default} | arguments)


def go_on(options: argparse.Namespace, preset: dict, data: L.LightningDataModule, recipe: Recipe, base: Transformer):
    """A module with pretrained weights: BERT and ViT get a new classifier where they classify."""
    kind = "vit" if isinstance(base.embed, PatchEmbedding) else "gpt" if base.config.causal else "bert"
    require(kind == options.model, "pretrained", options.pretrained, f"a {options.model}; it is a {kind}")
    overrides = {"dropout": preset["config"].get("dropout", 0.0)}
    if hasattr(data, "n_classes"):
        overrides["n_classes"] = data.n_classes
    if kind == "vit" and data.image_size != base.embed.input_shape[1]:
        overrides["image_size"] = data.image_size
    base, _ = load_pretrained(options.pretrained, **overrides)
    if kind == "vit":
        channels = base.embed.input_shape[0]
        require(channels == data.channels, "data", options.data, f"pictures of {channels} channels, as the weights")
    elif kind == "bert":
        fits = isinstance(data, TableData) or isinstance(base.head, MLMHead)
        require(fits, "pretrained", options.pretrained, "one with a head for masked words, or used with a table")
    module = module_of(base, recipe)
    if options.freeze:
        for part in (module.model.embed, module.model.blocks, module.model.norm):
            part.requires_grad_(False)
    return module


def build(model: str, preset: dict, data: L.LightningDataModule, recipe: Recipe) -> LitTransformer:
    """The untrained module: the preset's sizes, and what the data decide."""
    given = preset.get("model", {})
    if isinstance(data, TableData):
        given = given | {"n_classes": data.n_classes}
    if model == "vit":
        shape = {"image_size": data.image_size, "n_classes": data.n_classes, "channels": data.channels}
        return ViT(Config(**preset["config"]), **shape, **given, recipe=recipe)
    config = Config(**preset["config"], max_len=data.context, causal=model == "gpt")
    return {"bert": BERT, "gpt": GPT}[model](config, **{"vocab_size": data.vocab_size} | given, recipe=recipe)


def watchers(options: argparse.Namespace, data: L.LightningDataModule, out: Path) -> list[L.Callback]:
    found: list[L.Callback] = [] if sys.stderr.isatty() else [Progress()]
    if options.model == "gpt":
        # Begin as the validation part begins: the model has not been trained on these words.
        prompt = data.corpus.validation[:200].split("\n")[0][:40] or "\n"
        found.append(SampleText(data.tokenizer, prompt, out=out))
    if options.resume:
        found.append(KeepHistory(out / "metrics.csv"))
    if options.preset == "s17":
        found.append(IterLoss(options.eval_iters, options.seed))
        if options.model == "bert":
            found.append(DeltaW())
    return found


def limits(options: argparse.Namespace, preset: dict) -> dict:
    """The arguments of Lightning's Trainer: the preset's, then the command line's."""
    arguments = dict(preset["trainer"])
    if options.max_epochs is not None or options.max_steps is not None:
        arguments.pop("max_steps", None), arguments.pop("max_epochs", None)
        arguments |= {"max_epochs": options.max_epochs or -1, "max_steps": options.max_steps or -1}
    if options.max_epochs is not None:
        arguments.pop("val_check_interval", None)  # validated after each epoch instead
    if "val_check_interval" in arguments:  # counted in steps, across epochs
        arguments["check_val_every_n_epoch"] = None
        steps = arguments.get("max_steps", -1)
        if 0 < steps < arguments["val_check_interval"]:
            arguments["val_check_interval"] = steps
    if options.max_time is not None:
        arguments["max_time"] = timedelta(seconds=options.max_time)
    for name in ("accelerator", "devices", "num_nodes", "strategy", "precision"):
        value = getattr(options, name)
        if value is not None:
            arguments[name] = int(value) if re.fullmatch(r"-?\d+", value) else value
    if "fsdp" in str(arguments.get("strategy")):
        whole = preset["recipe"].get("optimizer") != "muon"
        require(whole, "strategy", arguments["strategy"], f"used with AdamW; --preset {options.preset} takes Muon")
        arguments["gradient_clip_val"] = None  # Lightning cannot clip what is in parts
    devices, most = arguments.get("devices"), preset["batches"]["batch_size"]
    require(not isinstance(devices, int) or devices <= most, "devices", devices, f"at most batch_size={most}")
    return arguments | {"enable_progress_bar": sys.stderr.isatty()}
