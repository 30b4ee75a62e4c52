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

import transformer
from transformer import BERT, GPT, Config, LitTransformer, Recipe, ViT, require
from utils import report
from utils.callbacks import DeltaW, IterLoss, KeepHistory, Progress, SampleText, StopCleanly
from utils.images import ImageData, load_images
from utils.presets import PRESETS
from utils.text import BERTData, GPTData, load_corpus

EPILOG = """In --out stay checkpoints/best.ckpt and last.ckpt, metrics.csv, loss.png, summary.json, and samples.txt
(gpt), predictions.txt (bert) or attention.png (vit)."""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("transformer.py", description=__doc__, epilog=EPILOG)
    parser.add_argument("model", choices=PRESETS)
    parser.add_argument("--data", help="a data set's name, a text file or a folder of pictures (default: the preset's)")
    parser.add_argument("--preset", default="small", help="small (CPU), full (GPU) or s17 (default: %(default)s)")
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
    for name in ("max_epochs", "max_steps", "max_time", "eval_iters", "seed"):
        value, least, most = getattr(options, name), int(name != "seed"), 2**32 - 1
        require(value is None or least <= value <= most, name, value, f"at least {least} and at most {most}")
    presets = PRESETS[options.model]
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
    data = load_data(options, preset)
    module = build(options.model, preset, data, options.seed)
    # Wrong devices or strategies are refused here, before an earlier run is taken away.
    L.Trainer(**arguments, logger=False, enable_checkpointing=False)
    report.open_run(out, module, options.resume)

    callbacks = [StopCleanly(out / "checkpoints" / "last.ckpt"), *watchers(options, data, out)]
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


def load_data(options: argparse.Namespace, preset: dict) -> L.LightningDataModule:
    name = options.data or preset["data"]
    arguments = preset["batches"] | {"seed": options.seed}
    if options.model == "vit":
        require(options.tokenizer is None, "tokenizer", options.tokenizer, "left out: pictures have no words")
        images = load_images(name, preset["image_size"])
        return ImageData(images.refit() if options.refit else images, **arguments)
    corpus = load_corpus(name)
    corpus = corpus.refit() if options.refit else corpus
    if options.model == "bert":
        require(options.tokenizer is None, "tokenizer", options.tokenizer, "left out: BERT's is WordPiece")
        return BERTData(corpus, **arguments)
    return GPTData(corpus, tokenizer=options.tokenizer or ("char" if name == "shakespeare" else "bpe"), **arguments)


def build(model: str, preset: dict, data: L.LightningDataModule, seed: int) -> LitTransformer:
    """The untrained module: the preset's sizes, and what the data decide."""
    L.seed_everything(seed, verbose=False)
    recipe = Recipe(**preset["recipe"], seed=seed)
    given = preset.get("model", {})
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
    devices, most = arguments.get("devices"), preset["batches"]["batch_size"]
    require(not isinstance(devices, int) or devices <= most, "devices", devices, f"at most batch_size={most}")
    return arguments | {"enable_progress_bar": sys.stderr.isatty()}
