"""Train BERT, GPT or ViT, test it, and keep the results: `python transformer.py bert|gpt|vit ...`."""

from __future__ import annotations

import argparse
import ast
import io
import logging
import math
import re
import shutil
import signal
import sys
import threading
import time
import warnings
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tokenizers import Tokenizer

import transformer
from transformer import BERT, GPT, Config, LitTransformer, MLMHead, PatchEmbedding, Recipe, Transformer, ViT, require
from utils.data.images import ImageData, ImageSet, load_images
from utils.data.labelled import TABLES, Table, TableData, load_table
from utils.data.text import BERTData, Corpus, GPTData, digest, load_corpus
from utils.files import shown
from utils.machine import IN_WORDS, best_precision, device_name
from utils.training import auto
from utils.training.callbacks import (
    Compile,
    CoolDown,
    DeltaW,
    IterLoss,
    Lost,
    Progress,
    Record,
    SampleText,
    StopCleanly,
    Stopped,
    StopWhenLost,
    close_output,
)
from utils.training.cpu import OneDNN
from utils.training.folder import WholeCheckpoints, open_run
from utils.training.presets import PRESETS
from utils.training.report import close_run, table
from utils.weights.loading import load_pretrained
from utils.weights.processors import ImageTransform
from utils.weights.runs import module_of

EPILOG = """The folder --out then holds checkpoints/best.ckpt and last.ckpt, metrics.csv, loss.png, summary.json, and
samples.txt (gpt), predictions.txt (bert) or attention.png (vit)."""


SMALL = 20e6  # parameters: a model with fewer is fine-tuned as one of ours, with more as an official one
COMPILERS = ("c++", "g++", "clang++", "cl")  # Linux, macOS, Windows
FEW = 200  # pictures or texts: among fewer, chance picks the lowest validation loss
FOR_DATA = "auto"  # the preset where --data is given
DEVICES = ("accelerator", "devices", "num_nodes", "strategy", "precision")  # options of Lightning's Trainer
# What a resumed run may have changed. The data may have another name; their contents are compared.
FREE = ("data", "max_epochs", "max_steps", "max_time", "eval_iters", "compile", *DEVICES)


def parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    parser = argparse.ArgumentParser("transformer.py", description=__doc__, epilog=EPILOG)
    parser.add_argument("model", choices=PRESETS)
    parser.add_argument("--data", help="the name of a data set, a text file, a folder of pictures, or a .csv (bert)")
    parser.add_argument(
        "--preset", help="auto, small (CPU), full (GPU), finetune, finetune-small or s17 (default: what fits)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
        help="another value for a setting of the preset, such as dropout=0.2 or d_model=192; may be repeated",
    )
    parser.add_argument("--pretrained", metavar="NAME|FOLDER", help="start from official weights or from a run")
    parser.add_argument("--freeze", action="store_true", help="with --pretrained: train the head alone")
    parser.add_argument("--lr", type=float, metavar="X", help="AdamW's learning rate (default: the preset's)")
    parser.add_argument("--image-size", type=int, metavar="N", help="vit: in pixels (default: the preset's)")
    parser.add_argument("--tokenizer", help="gpt: bpe or char (default: char for shakespeare, else bpe)")
    parser.add_argument("--refit", action="store_true", help="train on the validation part too, once all is chosen")
    parser.add_argument("--max-epochs", type=int, metavar="N")
    parser.add_argument("--max-steps", type=int, metavar="N")
    parser.add_argument("--max-time", type=float, metavar="S", help="seconds of training; the schedule fits itself")
    parser.add_argument("--eval-iters", type=int, default=10, metavar="N", help="s17: batches behind each *_iter_loss")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the weights, the batches and dropout")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out from its last.ckpt")
    parser.add_argument("--out", metavar="FOLDER", help="where the run is kept (default: runs/MODEL-DATA)")
    parser.add_argument("--precision", default="auto", help="auto (what is fast and good enough) or Lightning's name")
    text = "translate the training step by torch.compile: half a minute to start, then faster steps on a GPU"
    parser.add_argument("--compile", action="store_true", help=text)
    for name in DEVICES[:-1]:
        parser.add_argument(f"--{name.replace('_', '-')}", help="passed to Lightning's Trainer")
    return parser


def command(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns 0; 2 after one line that says what was wrong; 128 + the signal that stopped it."""
    options = parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack a character that a text or a file name has
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # lets what is half written be removed
    try:
        run(options)
    except Stopped as stop:
        if rank_zero_only.rank:  # Lightning kills all processes when one of them ends with another code than 0
            return 0
        last = folder_of(options) / "checkpoints" / "last.ckpt"
        saved = f"Stopped at step {stop.step}. The run is saved in {last}; add --resume to this command to continue it."
        print(saved, file=sys.stderr)
        return 128 + (stop.signal or signal.SIGTERM)  # 0: another process was asked
    except BrokenPipeError:
        close_output()
        print("transformer.py: stopped: nobody reads its output", file=sys.stderr)
        return 128 + signal.SIGTERM
    except (ValueError, OSError, ImportError, MisconfigurationException) as error:
        print(f"transformer.py: error: {shown(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except Exception as error:
        gone = isinstance(error, torch.distributed.DistError) or re.search("Connection (closed|reset)", str(error))
        if rank_zero_only.rank and gone:  # the first process has ended, and has said why
            return 1
        print("transformer.py: this is a bug of the project. Please report it with the lines below.", file=sys.stderr)
        raise
    except KeyboardInterrupt:  # before or after the training, or for the second time
        print("transformer.py: stopped", file=sys.stderr)
        return 130
    return 0


def run(options: argparse.Namespace) -> dict:
    """Train, test and report; returns the summary."""
    check(options)
    out = folder_of(options)
    started = not options.resume or any((out / "checkpoints" / f"{name}.ckpt").is_file() for name in ("last", "best"))
    require(started, "resume", True, f"used on a run that has begun; there is no checkpoints/last.ckpt in {out}")

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # it would advertise other packages
    # Lightning's warnings about workers and checkpoint folders do not apply to batches cut from tensors in memory.
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", category=UserWarning, module="torch.optim.lr_scheduler")
    torch.set_float32_matmul_precision("high")
    base, processor = load_pretrained(options.pretrained) if options.pretrained else (None, None)
    options.preset = options.preset or usual_preset(options, base)
    if options.preset == "auto":
        source = load_source(options)
        preset = auto.preset_for(options.model, source, torch.cuda.is_available(), options.tokenizer)
    else:
        preset = PRESETS[options.model][options.preset]
        source = load_source(options, preset, base)
    preset = changed(preset, options)
    width = (base.config if base else Config(**preset["config"])).d_model
    arguments = trainer_arguments(options, preset, width)
    data = data_module(options, source, preset, base, processor)
    L.seed_everything(options.seed, verbose=False)
    recipe = Recipe(**preset["recipe"], seed=options.seed)
    if base is None:
        module = build(options.model, preset, data, recipe)
    else:
        module = build_pretrained(options, preset, data, recipe, base)
    try:  # before the files of an earlier run are moved
        L.Trainer(**arguments, logger=False, enable_checkpointing=False)
    except Exception as error:  # all kinds of errors, depending on what is wrong
        given = {name: getattr(options, name) for name in DEVICES if getattr(options, name) is not None}
        raise ValueError(f"{given}: must be devices that there are, as Lightning names them ({error})") from error
    about = what_to_resume_with(options, data)
    with open_run(out, module, options.resume, about):
        if not rank_zero_only.rank:
            size = sum(weight.numel() for weight in module.parameters())
            calculates = IN_WORDS.get(arguments["precision"], arguments["precision"])
            print(f"{options.model} with {size:,} parameters; {device_name()}, {calculates}", flush=True)
        if options.preset == "auto":
            print(auto.in_words(source, preset, arguments), flush=True)
        if options.data and base is None:
            hint_at_earlier_run(options.model, out)
        callbacks = [
            OneDNN(),
            StopCleanly(out / "checkpoints" / "last.ckpt"),
            StopWhenLost(),
            Record(about),
            *watchers(options, data, out),
        ]
        if options.compile:
            callbacks.append(Compile())
        pick_best = enough_to_pick(data)
        if pick_best and options.preset != "s17":  # the assignment trained to the end, whatever the validation said
            callbacks.append(CoolDown())
        began, lost = time.perf_counter(), None
        try:
            transformer.train(module, data, out, options.resume, callbacks, pick_best, **arguments)
        except SystemExit as end:
            if end.code == 1:  # Lightning's answer to Ctrl-C; from then on it ignores others
                signal.signal(signal.SIGINT, signal.default_int_handler)
                raise KeyboardInterrupt from end
            raise
        except Lost as error:
            if not (out / "checkpoints" / "best.ckpt").is_file():
                raise
            lost = error  # the weights before can be tested all the same
        seconds = time.perf_counter() - began
        if options.preset == "s17":
            module.trainer.validate(module, data)
        summary = close_run(module, data, out, settings(options), seconds, lost)
    if summary:
        print(table([summary]))
        if len(summary["starts"]) > 1:
            runs = ("{run} (from {start}) {value:.3f}".format(**start) for start in summary["starts"])
            print(f"Runs on these data, the best first: {', '.join(runs)}")
        print("\n".join(summary["ending"]), flush=True)
    if lost:
        raise lost
    return summary


def what_to_resume_with(options: argparse.Namespace, data: L.LightningDataModule) -> dict:
    """What has to be the same when a run is resumed: all settings but its length and the devices, and the data."""
    about = {name: value for name, value in settings(options).items() if name not in FREE}
    about |= {"model": options.model, "data": data.describe()["sha256"], "classes": data.describe().get("classes")}
    if hasattr(data, "tokenizer"):
        about["tokenizer"] = digest(data.tokenizer.to_str())
    return about


def folder_of(options: argparse.Namespace) -> Path:
    """The folder of the run: --out, or the usual one."""
    return Path(options.out).expanduser() if options.out else usual_out(options)


def usual_out(options: argparse.Namespace) -> Path:
    """The folder of a run where none is given: runs/gpt, and with --data and --pretrained runs/gpt-notes-from-gpt2."""
    name = options.model
    if options.data:
        name += "-" + shown(Path(options.data).stem)
    if options.pretrained:
        name += "-from-" + Path(options.pretrained).name
    return Path("runs", re.sub(r"[^\w.-]+", "_", name))


def hint_at_earlier_run(model: str, out: Path) -> None:
    """Say that a run of `make demo` could be the start of one on a user's own data."""
    earlier = Path("runs", model)
    if earlier != out and (earlier / "checkpoints" / "best.ckpt").is_file():
        print(f"{earlier} holds a trained model. With little data, a start from it helps: --pretrained {earlier}")


def check(options: argparse.Namespace) -> None:
    """Raise a ValueError for options that are wrong or do not go together."""
    for name in ("data", "out", "pretrained"):
        require(getattr(options, name) != "", name, "''", "left out, or not empty")
    if options.data and Path(options.data).expanduser().is_dir():
        data, out = Path(options.data).expanduser().resolve(), folder_of(options).resolve()
        apart = data != out and data not in out.parents
        require(apart, "out", options.out, "outside of the folder --data, whose folders are classes")
    for name in ("max_epochs", "max_steps", "max_time", "eval_iters", "seed", "image_size"):
        value, least, most = getattr(options, name), int(name != "seed"), 4096 if name == "image_size" else 2**32 - 1
        require(value is None or least <= value <= most, name, value, f"at least {least} and at most {most}")
    require(options.lr is None or 0 < options.lr < math.inf, "lr", options.lr, "above 0, and finite")
    require(options.pretrained or not options.freeze, "freeze", True, "used with --pretrained")
    allowed = f"left out: torch.compile needs one of the C++ compilers {', '.join(COMPILERS)}, and there is none"
    require(not options.compile or any(map(shutil.which, COMPILERS)), "compile", True, allowed)
    has_head = options.model != "gpt"
    require(has_head or not options.freeze, "freeze", True, "left out: GPT's head is its token embedding")
    presets = PRESETS[options.model]
    known = options.preset is None or options.preset == "auto" or options.preset in presets
    require(known, "preset", options.preset, f"one of auto, {', '.join(presets)}")
    automatic = options.preset == "auto"
    require(not automatic or options.data, "preset", "auto", "used with --data")
    require(not automatic or not options.pretrained, "preset", "auto", "left out with --pretrained")


def usual_preset(options: argparse.Namespace, base: Transformer | None) -> str:
    """The preset where none is given: it depends on whether a model is there to start from, and on its size."""
    if base is not None:
        small = sum(p.numel() for p in base.parameters()) < SMALL
        return "finetune-small" if small else "finetune"
    return FOR_DATA if options.data else "small"


def enough_to_pick(data: L.LightningDataModule) -> bool:
    """Whether the validation part is large enough to pick the best checkpoint by its loss."""
    if isinstance(data, ImageData):
        return len(data.images.validation[1]) >= FEW
    if isinstance(data, TableData):
        return len(data.table.validation[1]) >= FEW
    return True  # even a small text has thousands of tokens


def settings(options: argparse.Namespace) -> dict:
    """The options that were given, and the preset, for the report."""
    usual = vars(parser().parse_args([options.model]))
    given = {name: value for name, value in vars(options).items() if value != usual[name]}
    given = {name: shown(value) if isinstance(value, str) else value for name, value in given.items()}
    for name in ("out", "resume"):
        given.pop(name, None)
    return given | {"preset": options.preset}


def is_table(options: argparse.Namespace) -> bool:
    """Whether BERT is to classify the texts of a table."""
    name = options.data or ""
    return options.model == "bert" and (name in TABLES or name.lower().endswith(".csv"))


def load_source(
    options: argparse.Namespace, preset: dict | None = None, base: Transformer | None = None
) -> Corpus | Table | ImageSet:
    """What --data names; pictures in the size of the pretrained model, of the preset, or what fits them."""
    name = options.data or preset["data"]
    if name.startswith("~"):
        name = str(Path(name).expanduser())
    if options.model == "vit":
        require(options.tokenizer is None, "tokenizer", options.tokenizer, "left out: pictures have no tokens")
        size = options.image_size
        if size is None and base is not None:
            size = base.embed.input_shape[1]
        elif size is None:
            size = preset["image_size"] if preset else auto.side_for(Path(name))
        images = load_images(name, size)
        return images.refit() if options.refit else images
    require(options.image_size is None, "image_size", options.image_size, "left out: text has no pixels")
    if options.model == "bert":
        require(options.tokenizer is None, "tokenizer", options.tokenizer, "left out: BERT's is WordPiece")
    if is_table(options):
        require(not options.refit, "refit", True, "left out: a table's validation part picks the best epoch")
        return load_table(name)
    corpus = load_corpus(name)
    return corpus.refit() if options.refit else corpus


def changed(preset: dict, options: argparse.Namespace) -> dict:
    """The preset with the values of --set and --lr. Raises a ValueError for a setting that there is not."""
    preset = {part: dict(values) if isinstance(values, dict) else values for part, values in preset.items()}
    if options.lr is not None:
        preset["recipe"]["lr"] = options.lr
    settings = {
        "config": [field.name for field in fields(Config) if field.name not in ("causal", "max_len")],
        "recipe": [field.name for field in fields(Recipe) if field.name != "seed"],
        "batches": [name for name in preset["batches"] if name != "augment"],
        "model": ["patch_size"] if options.model == "vit" else [],
    }
    for change in options.changes:
        name, _, text = change.partition("=")
        (part,) = [part for part, names in settings.items() if name in names] or [None]
        known = ", ".join(name for names in settings.values() for name in names)
        require(part is not None and text != "", "set", change, f"NAME=VALUE with one of the names {known}")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        preset.setdefault(part, {})[name] = value
    return preset


def data_module(
    options: argparse.Namespace,
    source: Corpus | Table | ImageSet,
    preset: dict,
    base: Transformer | None = None,
    processor: Tokenizer | ImageTransform | None = None,
) -> L.LightningDataModule:
    """The data module for the source; with a pretrained model, in its shapes and with its processor."""
    arguments = preset["batches"] | {"seed": options.seed}
    if isinstance(source, ImageSet):
        if base is not None and base.embed.input_shape[0] == 3:
            source = source.rgb()
        if isinstance(processor, ImageTransform):
            arguments |= {"mean": processor.mean, "std": processor.std}
        return ImageData(source, **arguments)
    if base is not None:
        arguments |= text_of_pretrained(options, arguments, base, processor)
    if isinstance(source, Table):
        arguments = {key: value for key, value in arguments.items() if not key.endswith("_rate")}  # nothing is masked
        return TableData(source, **arguments)
    if options.model == "bert":
        return BERTData(source, **arguments)
    usual = "char" if (options.data or preset["data"]) == "shakespeare" else "bpe"
    if options.tokenizer:
        arguments |= {"tokenizer": options.tokenizer}
    return GPTData(source, **{"tokenizer": usual} | arguments)


def text_of_pretrained(
    options: argparse.Namespace, arguments: dict, base: Transformer, processor: Tokenizer | ImageTransform | None
) -> dict:
    """A pretrained model's tokeniser, and a context that it can read, as arguments of a data module."""
    require(options.tokenizer is None, "tokenizer", options.tokenizer, "left out: it comes with the weights")
    require(isinstance(processor, Tokenizer), "pretrained", options.pretrained, "one with a tokenizer")
    n_tokens, size = processor.get_vocab_size(), base.embed.tokens.num_embeddings
    allowed = f"one whose {n_tokens} tokens fit its {size} token embeddings"
    require(n_tokens <= size, "pretrained", options.pretrained, allowed)
    return {"tokenizer": processor, "context": min(arguments["context"], base.config.max_len)}


def build(model: str, preset: dict, data: L.LightningDataModule, recipe: Recipe) -> LitTransformer:
    """An untrained module: the preset's sizes, and those that the data decide."""
    given = preset.get("model", {})
    if isinstance(data, TableData):
        given = given | {"n_classes": data.n_classes}
    if model == "vit":
        shape = {"image_size": data.image_size, "n_classes": data.n_classes, "channels": data.channels}
        return ViT(Config(**preset["config"]), **shape, **given, recipe=recipe)
    config = Config(**preset["config"], max_len=data.context, causal=model == "gpt")
    kind = {"bert": BERT, "gpt": GPT}[model]
    return kind(config, **{"vocab_size": data.vocab_size} | given, recipe=recipe)


def build_pretrained(
    options: argparse.Namespace, preset: dict, data: L.LightningDataModule, recipe: Recipe, base: Transformer
) -> LitTransformer:
    """A module with pretrained weights; BERT and ViT get a new classifier where they classify."""
    kind = "gpt" if base.config.causal else "bert"
    if isinstance(base.embed, PatchEmbedding):
        kind = "vit"
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
    if kind == "bert":
        fits = isinstance(data, TableData) or isinstance(base.head, MLMHead)
        require(fits, "pretrained", options.pretrained, "one with a head for masked tokens, or used with a table")
    module = module_of(base, recipe)
    if options.freeze:
        for part in (module.model.embed, module.model.blocks, module.model.norm):
            part.requires_grad_(False)
    return module


def watchers(options: argparse.Namespace, data: L.LightningDataModule, out: Path) -> list[L.Callback]:
    """The callbacks that report on the run."""
    found: list[L.Callback] = [] if sys.stderr.isatty() else [Progress()]
    if options.model == "gpt":
        # The prompt is the beginning of the validation part, on which the model is not trained.
        prompt = data.corpus.validation[:200].split("\n")[0][:40] or "\n"
        found.append(SampleText(data.tokenizer, prompt, out=out))
    if options.preset == "s17":
        found.append(IterLoss(options.eval_iters, options.seed))
        if options.model == "bert":
            found.append(DeltaW())
    return found


def trainer_arguments(options: argparse.Namespace, preset: dict, width: int) -> dict:
    """The arguments of Lightning's Trainer: the preset's, then the command line's. width: of the model, in features."""
    arguments = dict(preset["trainer"])
    if options.max_epochs is not None or options.max_steps is not None:
        arguments |= {"max_epochs": options.max_epochs or -1, "max_steps": options.max_steps or -1}
    if options.max_epochs is not None:
        for name in ("val_check_interval", "check_val_every_n_epoch"):
            arguments.pop(name, None)  # validate after every epoch instead
    if "val_check_interval" in arguments:
        arguments["check_val_every_n_epoch"] = None  # count the steps across epochs
        steps = arguments.get("max_steps", -1)
        if 0 < steps < arguments["val_check_interval"]:
            arguments["val_check_interval"] = steps
    if options.max_time is not None:
        arguments["max_time"] = timedelta(seconds=options.max_time)
    for name in DEVICES:
        value = getattr(options, name)
        if value is not None:
            arguments[name] = int(value) if re.fullmatch(r"-?\d+", value) else value
    if arguments["precision"] == "auto":
        on_gpu = torch.cuda.is_available() and arguments.get("accelerator") != "cpu"
        arguments["precision"] = best_precision(width, on_gpu)
    started = re.search("spawn|fork|notebook", str(arguments.get("strategy")))
    require(not started, "strategy", arguments.get("strategy"), "one that starts this command for each device, as ddp")
    if "fsdp" in str(arguments.get("strategy")):
        whole = preset["recipe"].get("optimizer") != "muon"
        allowed = f"used with AdamW; the preset {options.preset} uses Muon, which needs whole matrices"
        require(whole, "strategy", arguments["strategy"], allowed)
        arguments["gradient_clip_val"] = None  # Lightning cannot clip gradients that are split over devices
    devices, most = arguments.get("devices"), preset["batches"]["batch_size"]
    require(not isinstance(devices, int) or devices <= most, "devices", devices, f"at most batch_size={most}")
    quiet = {"enable_progress_bar": sys.stderr.isatty(), "enable_model_summary": False}
    return arguments | quiet | {"plugins": [WholeCheckpoints()]}
