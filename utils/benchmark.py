"""How fast this is beside what else there is, and how near the machine's limit: `python -m utils.benchmark --quick`.

Ours and each peer take turns in one run, so that what slows the machine down slows both. A row holds medians with
their quartiles, the median of the ratios turn by turn, and a floor: the longer of two times, of the FLOPs at the rate
of the machine's matrix product and of the bytes at the bandwidth of its memory, both measured in the same run. What is
computed and moved beside the matrix products and the weights is not in it, so in practice nothing reaches the floor.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import median

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from transformer import (
    BERT,
    BERT_BASE,
    GPT,
    GPT2,
    VIT_B16,
    Config,
    DecoderTransformer,
    EncoderTransformer,
    LitTransformer,
    Recipe,
    ViT,
    train,
)
from utils.batches import TrainBatches
from utils.floors import (
    Machine,
    card_peak,
    forward_flops,
    model_flops,
    sampling_bytes,
    training_bytes,
    training_flops,
    wait,
)
from utils.images import ImageData, ImageSet
from utils.linear import OneDNN, faster, suited
from utils.peers import Loss, loss_of_logits, loss_of_scored, loss_of_transformers, of_transformers, peers
from utils.presets import PHOTOGRAPHS, PRESETS
from utils.report import between_marks, peak_memory
from utils.rows import Row, summary, table
from utils.text import BERTData, Corpus, GPTData, load_corpus

Seconds = list[float]
PACKAGES = ("torch", "lightning", "torchmetrics", "transformers", "timm", "vit-pytorch", "numpy")
WARM_UP = 8  # steps
TARGET = 1.886  # nats per character of the last tenth of Shakespeare


# ------------------------------------------------------------------------------------------------ the work
def word_tokenizer(vocab_size: int) -> Tokenizer:
    """Words w0, w1, ... behind the special ones."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    names += [f"w{i}" for i in range(vocab_size - len(names))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def random_corpus(vocab_size: int, n_words: int = 100_000) -> Corpus:
    """What the words are makes no step faster or slower."""
    ids = torch.randint(vocab_size - 5, (n_words,), generator=torch.Generator().manual_seed(0)).tolist()
    text = " ".join(f"w{i}" for i in ids)
    short = text[: len(text) // 20].rpartition(" ")[0]
    return Corpus("random", text, short, short, "made up")


def random_pictures(size: int, n: int = 512, channels: int = 3, n_classes: int = 10) -> ImageSet:
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (n, channels, size, size), generator=draw, dtype=torch.uint8)
    part = pictures, torch.arange(n) % n_classes
    few = part[0][:32], part[1][:32]
    return ImageSet("random", [str(i) for i in range(n_classes)], part, few, few, "made up")


ADAMW = Recipe(lr=3e-4, warmup=10)
LARGE = {"n_layers": 6, "n_heads": 6, "d_model": 384, "d_ff": 1536}


def large_gpt(device: str = "cpu", vocab_size: int = 1024) -> tuple[LitTransformer, GPTData]:
    data = GPTData(random_corpus(vocab_size), context=256, batch_size=8, tokenizer=word_tokenizer(vocab_size))
    with torch.device(device):
        return GPT(replace(GPT2, **LARGE, max_len=256), vocab_size, ADAMW), data


def large_bert(device: str = "cpu", vocab_size: int = 1024) -> tuple[LitTransformer, BERTData]:
    data = BERTData(random_corpus(vocab_size), context=128, batch_size=16, tokenizer=word_tokenizer(vocab_size))
    with torch.device(device):
        return BERT(replace(BERT_BASE, **LARGE, max_len=128), vocab_size, ADAMW), data


def large_vit(device: str = "cpu") -> tuple[LitTransformer, ImageData]:
    data = ImageData(random_pictures(112), batch_size=32)
    with torch.device(device):
        return ViT(replace(VIT_B16, **LARGE), 112, 16, data.n_classes, ADAMW), data


LARGE_TASKS = {
    "GPT": ("GPT 6x384, 8 x 256 tokens", large_gpt),
    "BERT": ("BERT 6x384, 16 x 128 tokens", large_bert),
    "ViT": ("ViT 6x384, 32 pictures of 112 x 112", large_vit),
}


def small_gpt(context: int, batch: int, vocab_size: int, recipe: Recipe = ADAMW) -> tuple[LitTransformer, GPTData]:
    """The 0.8 M model."""
    config = Config(4, 4, 128, 512, context, causal=True)
    data = GPTData(random_corpus(vocab_size, 700_000), context, batch, word_tokenizer(vocab_size))
    return GPT(config, vocab_size, recipe), data


def step_work(module: LitTransformer, data: L.LightningDataModule) -> tuple[int, int, int]:
    """Batch, length and scored positions of a training step: what `training_flops` asks for."""
    inputs, targets = next(iter(data.train_dataloader()))
    length = module.model.config.max_len if isinstance(module, ViT) else inputs.shape[1]
    return len(inputs), length, int((targets != -100).sum())


# ------------------------------------------------------------------------------------------------ taking turns
def bare_loop(
    model: nn.Module, loss_of: Loss, batches: TrainBatches, like: torch.optim.Optimizer, precision: str = "32-true"
) -> Iterator[float]:
    """The plain training loop, one step at each `next`, with an optimiser of the kind and the settings of `like`."""
    device = like.param_groups[0]["params"][0].device
    model = model.to(device).train()
    settings = {name: like.defaults[name] for name in ("lr", "betas", "weight_decay", "fused", "foreach")}
    optimizer = torch.optim.AdamW(model.parameters(), **settings)
    half = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
    while True:
        for batch in batches:
            inputs, targets = (tensor.to(device) for tensor in batch)
            with half:
                loss = loss_of(model, inputs, targets)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield loss.detach()


class TakeTurns(L.Callback):
    """After every `block` steps of the Trainer each rival takes as many; nobody's clock runs in another's turn.

    rivals: what makes a rival of the Trainer's optimiser. Their order changes with every turn. Turns up to step
    `warm_up` are not kept: oneDNN compiles its kernels.
    """

    def __init__(
        self, rivals: dict[str, Callable[[torch.optim.Optimizer], Iterator]], block: int, warm_up: int = WARM_UP
    ) -> None:
        self.rivals, self.block, self.warm_up = rivals, block, warm_up
        self.seconds: dict[str, Seconds] = {name: [] for name in ("ours", *rivals)}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.running = {name: start(trainer.optimizers[0]) for name, start in self.rivals.items()}
        self.began = wait(module.device)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_) -> None:
        if trainer.global_step % self.block:
            return
        warm = trainer.global_step > self.warm_up
        self.keep("ours", self.began, module.device, warm)
        for name in list(self.running)[:: 1 if len(self.seconds["ours"]) % 2 else -1]:
            began = wait(module.device)
            for _ in range(self.block):
                next(self.running[name])
            self.keep(name, began, module.device, warm)
        self.began = wait(module.device)

    def keep(self, name: str, began: float, device: torch.device, warm: bool) -> None:
        seconds = (wait(device) - began) / self.block
        if warm:
            self.seconds[name].append(seconds)


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing on the screen; what is written is still written out, since that takes time as well."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def fit(module: LitTransformer, data: L.LightningDataModule, callbacks: list, steps: int, **options) -> None:
    """Our whole `train`, as the command line calls it, with progress bar and logging; `options` as there."""
    options = {"accelerator": "auto", "devices": 1, "limit_val_batches": 1} | options
    callbacks = [OneDNN(), TQDMProgressBar(), *callbacks]  # Rich would draw nothing where nothing is seen
    with quiet(), tempfile.TemporaryDirectory() as out:
        train(module, data, out, callbacks=callbacks, max_steps=steps, **options)


def compete(
    module: LitTransformer, data: L.LightningDataModule, rivals: dict[str, tuple], block: int, turns: int, **options
) -> dict[str, Seconds]:
    """Seconds per step of our train() and of the rivals, (model, loss) each, in turns, on the same batches."""
    precision = options.get("precision", "32-true")
    batches = partial(TrainBatches, data.order, data.make, data.batch_size, data.seed)
    loops = {
        name: lambda like, model=model, loss=loss: bare_loop(model, loss, batches(), like, precision)
        for name, (model, loss) in rivals.items()
    }
    turn = TakeTurns(loops, block)
    fit(module, data, [turn], block * (turns + -(-WARM_UP // block)), **options)
    return turn.seconds


# ------------------------------------------------------------------------------------------------ the rows
@dataclass
class Run:
    """How much of it, where, and what is known so far."""

    quick: bool
    machine: Machine
    shakespeare: Path | None = None
    rows: list[Row] = field(default_factory=list)

    def add(self, *values, **more) -> None:
        """Keep and print a row; its floor is at the rates seen so far, and may yet fall."""
        self.rows.append(row := Row(*values, **more))
        if row.work is not None:
            if not self.machine.flops:
                self.machine.measure()
            row.floor = self.machine.floor(*row.work)
        print(table(self.rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)

    def settle(self) -> None:
        """All floors, at the best rates that the run has seen so far."""
        self.machine.measure()
        for row in self.rows:
            row.floor = row.floor if row.work is None else self.machine.floor(*row.work)


def training(run: Run) -> None:
    """A training step through the whole Trainer, against bare loops."""
    for kind, (title, task) in LARGE_TASKS.items():
        torch.manual_seed(0)
        module, data = task()
        rivals = peers(kind, module.model)
        if run.quick:
            rivals = {name: pair for name, pair in rivals.items() if name.startswith("transformers")}
        built = {name: (build(), loss) for name, (build, loss) in rivals.items()}
        work = training_flops(module.model, *step_work(module, data)), training_bytes(module)
        seconds = compete(module, data, built, 1, 4 if run.quick else 12)
        for name in built:
            must = {"must": {"ratio": 0.95}, "aim": {"ratio": 0.85}} if name.startswith("transformers") else {}
            run.add("training", f"training step, {title}", name, seconds["ours"], seconds[name], work, **must)


def overhead(run: Run) -> None:
    """What the Trainer, its logging and its progress bar add to a bare loop of the same model."""
    for context, batch, vocab in ((64, 12, 65), (128, 16, 1024)):
        torch.manual_seed(0)
        module, data = small_gpt(context, batch, vocab)
        rivals = {"bare loop": (suited(deepcopy(module.model)), loss_of_logits)}
        seconds = compete(module, data, rivals, 10, 8 if run.quick else 30)
        name = f"Trainer, GPT 4x128 (0.8 M), {batch} x {context} tokens, {vocab} words"
        flops = training_flops(module.model, batch, context, batch * context)
        limits = {"must": {"ratio": 1.08}, "aim": {"ratio": 1.03}}
        work = flops, training_bytes(module)
        run.add("overhead", name, "bare loop", seconds["ours"], seconds["bare loop"], work, **limits)


def our_words(model: DecoderTransformer, ids: Tensor, n: int) -> Seconds:
    """When the call began, and when each word was there."""
    stamps = [time.perf_counter()]
    stamps += [wait(ids.device) for _ in model.stream(ids, n, temperature=0)]
    return stamps


def their_words(model: nn.Module, ids: Tensor, n: int) -> Seconds:
    """The same of transformers.generate."""
    stamps: Seconds = []
    streamer = argparse.Namespace(put=lambda _: stamps.append(wait(ids.device)), end=lambda: None)
    began = time.perf_counter()
    mask = torch.ones_like(ids)
    model.generate(ids, attention_mask=mask, max_new_tokens=n, do_sample=False, streamer=streamer, pad_token_id=0)
    return [began, *stamps[1:]]  # the first thing that it puts is the prompt


def per_word(stamps: Seconds) -> float:
    """The median of the time from one word to the next; what came before the first does not count."""
    return median(b - a for a, b in zip(stamps[1:], stamps[2:], strict=False))


def sampling(run: Run) -> None:
    """Writing on with the cache, at the shape of GPT-2, greedily, against transformers.generate.

    Then a word after 1,000 tokens against a word after one.
    """
    model, peer = gpt2_pair(run.machine.device)
    must, aim = {"ratio": 1.0}, {"ratio": 1 / 1.15, "share": 0.9}
    cases = [(1, 16), (8, 16), (1, 900)] + [(8, 900)] * (not run.quick)
    for batch, length in cases:
        ids = torch.randint(50257, (batch, length), generator=torch.Generator().manual_seed(0)).to(run.machine.device)
        calls: dict[str, list[Seconds]] = {"ours": [], "theirs": []}
        n = 16 if run.quick else 48
        pairs = [("ours", our_words, model), ("theirs", their_words, peer)]
        for turn in range(3 if run.quick or batch * length > 900 else 9):
            for who, words, network in pairs[:: 1 if turn % 2 else -1]:
                calls[who].append(words(network, ids, n))
        where = f"GPT-2 124 M, batch {batch}, {length} tokens before"
        past = length + n // 2
        work = forward_flops(model, batch, 1, batch, past), sampling_bytes(model, batch, past)
        ours, theirs = ([per_word(stamps) for stamps in calls[name]] for name in calls)
        of_batch_1 = {"must": must, "aim": aim} if batch == 1 else {}
        run.add("sampling", f"next word, {where}", "transformers", ours, theirs, work, **of_batch_1)
        ours, theirs = ([stamps[-1] - stamps[0] for stamps in calls[name]] for name in calls)
        whole = {"must": must} if batch == 1 else {}
        run.add("sampling", f"{n} words and the prompt, {where}", "transformers", ours, theirs, **whole)
    ids = torch.randint(50257, (1, 1000), generator=torch.Generator().manual_seed(0)).to(run.machine.device)
    seconds: dict[int, Seconds] = {1: [], 1000: []}
    for _ in range(3 if run.quick else 9):
        for length, samples in seconds.items():
            samples.append(per_word(our_words(model, ids[:, :length], 16)))
    work = forward_flops(model, 1, 1, 1, 1000), sampling_bytes(model, 1, 1000)
    name, must = "next word, GPT-2 124 M, 1,000 tokens before", {"ratio": 1.3}
    run.add("sampling", name, "ours, 1 token before", seconds[1000], seconds[1], work, must=must)


def gpt2_pair(device: torch.device) -> tuple[DecoderTransformer, nn.Module]:
    """Ours at the shape of GPT-2, laid out as by load_pretrained, and that of transformers with the same weights."""
    torch.manual_seed(0)
    model = DecoderTransformer(GPT2, 50257)
    peer = of_transformers(model)
    return suited(model).eval().to(device), peer.eval().to(device)


def pipeline(run: Run) -> None:
    """A batch against the step that it feeds, on the CPU; pictures with their preset's augmentation."""
    tasks = {title: task() for title, task in LARGE_TASKS.values()}
    tasks["GPT 4x128, small"] = small_gpt(128, 16, 1024)
    digits = ImageData(random_pictures(28, 4500, 1), 100)
    tasks["ViT 4x96, small, 100 digits"] = ViT(Config(4, 4, 96, 384), 28, 7, 10, ADAMW, channels=1), digits
    for name, (module, data) in tasks.items():
        if isinstance(data, ImageData):
            data.augment = PRESETS["vit"]["small"]["batches"]["augment"] if "small" in name else PHOTOGRAPHS
        spans = {"batch": [], "step": []}
        batches = TrainBatches(data.order, data.make, data.batch_size)
        like = torch.optim.AdamW(module.parameters(), lr=ADAMW.lr, betas=ADAMW.betas, fused=True)
        steps = bare_loop(suited(module.model), loss_of_scored, batches, like)
        next(steps)
        for _ in range(3 if run.quick else 20):
            began = time.perf_counter()
            got = sum(1 for _ in islice(batches, min(len(batches), 5)))
            spans["batch"].append((time.perf_counter() - began) / got)
            began = time.perf_counter()
            next(steps)
            spans["step"].append(time.perf_counter() - began)
        run.add("data", f"one batch, {name}", "its step", spans["batch"], spans["step"], must={"ratio": 1 / 20})


IMPORT = """
import time
began = time.perf_counter()
import lightning, torchmetrics
between = time.perf_counter()
import transformer
print(between - began, time.perf_counter() - between)
"""


def child(*arguments: str) -> str:
    """What Python prints in a process of its own."""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, *arguments], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.splitlines()[-1]


def imports(run: Run) -> None:
    """What `import transformer` adds to that of its libraries."""
    seconds = [tuple(map(float, child("-c", IMPORT).split())) for _ in range(3 if run.quick else 9)]
    theirs, ours = (list(column) for column in zip(*seconds, strict=True))
    name = "import transformer, beyond its libraries"
    run.add("import", name, "import lightning, torchmetrics", ours, theirs, must={"ours": 0.1})


def memory(run: Run) -> None:
    """The most memory that a process held beyond its libraries, while it trained or sampled."""
    for kind in ["GPT"] if run.quick else [*LARGE_TASKS, "sampling"]:
        found: dict[str, list] = {"ours": [], "transformers": []}
        for _ in range(1 if run.quick else 2):
            for who, samples in found.items():
                samples.append(json.loads(child("-m", "utils.benchmark", "--child", kind, who)))
        title = f"{LARGE_TASKS[kind][0]}, 3 steps" if kind in LARGE_TASKS else "GPT-2 124 M, 900 tokens and 16 more"
        ours, theirs = ([peak - libraries for libraries, peak in samples] for samples in found.values())
        run.add("memory", f"peak memory beyond the libraries, {title}", "transformers", ours, theirs, unit="bytes")


def memory_child(kind: str, who: str) -> None:
    """In a process of its own: print the peak after importing and after the work."""
    theirs = who == "transformers"
    if theirs:  # a tiny model makes it import what it needs
        tiny = {"n_layers": 2, "n_heads": 2, "d_model": 24, "d_ff": 24}
        small = {"BERT": lambda: EncoderTransformer.bert(replace(BERT_BASE, **tiny), 99),
                 "ViT": lambda: EncoderTransformer.vit(replace(VIT_B16, **tiny), 8, 4, 3)}  # fmt: skip
        of_transformers(small.get(kind, lambda: DecoderTransformer(replace(GPT2, **tiny), 99))(), weights=False)
    libraries = peak_memory()
    if kind == "sampling":
        with torch.device("meta" if theirs else "cpu"):
            model = DecoderTransformer(GPT2, 50257)
        model = of_transformers(model, weights=False) if theirs else suited(model)
        (their_words if theirs else our_words)(model.eval(), torch.zeros(1, 900, dtype=torch.long), 16)
    else:
        module, data = LARGE_TASKS[kind][1]("meta" if theirs else "cpu")  # meta: shapes without memory
        if theirs:
            like = torch.optim.AdamW(nn.Linear(1, 1).parameters(), lr=ADAMW.lr, betas=ADAMW.betas, fused=True)
            batches = TrainBatches(data.order, data.make, data.batch_size)
            rival = of_transformers(module.model, weights=False)
            for _ in islice(bare_loop(rival, loss_of_transformers, batches, like), 3):
                pass
        else:
            fit(module, data, [], 3, accelerator="cpu", limit_val_batches=1)
    print(json.dumps([libraries, peak_memory()]))


# ------------------------------------------------------------------------------------------------ Shakespeare
class Watch(L.Callback):
    """Seconds of training until the loss on the last tenth is at most `target`; looking does not count.

    Looks after every `every` steps from step `first` on, and at the end.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, first: int, every: int, target: float = TARGET) -> None:
        self.windows, self.first, self.every, self.target = (inputs, targets), first, every, target
        self.seconds = self.reached = self.reached_step = self.loss = None

    def on_train_start(self, *_) -> None:
        self.began, self.looking = time.perf_counter(), 0.0

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_) -> None:
        step, last = trainer.global_step, trainer.global_step >= trainer.max_steps
        if not last and (step < self.first or step % self.every):
            return
        now = time.perf_counter()
        self.seconds, self.loss = now - self.began - self.looking, nats(module, *self.windows)
        if self.reached is None and self.loss <= self.target:
            self.reached, self.reached_step = self.seconds, step
        self.looking += time.perf_counter() - now


@torch.no_grad()
def nats(module: LitTransformer, inputs: Tensor, targets: Tensor) -> float:
    """The mean loss in windows that do not overlap: a first character has nothing before it, as in training."""
    module.eval()
    parts = zip(inputs.split(128), targets.split(128), strict=True)
    total = sum(loss_of_logits(module.model, *part).item() * len(part[0]) for part in parts)
    module.train()
    return total / len(inputs)


def windows(ids: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """ids (N,) -> inputs and targets (N // width, width)."""
    n = (len(ids) - 1) // width * width
    return ids[:n].view(-1, width), ids[1 : n + 1].view(-1, width)


PLAIN = {"recipe": Recipe(lr=1e-3, warmup=100, final_lr=0.1, weight_decay=0.1, betas=(0.9, 0.99)), "steps": 2000}
OURS = {"recipe": Recipe("muon", lr=4e-3, warmup=20, final_lr=0.0), "steps": 450}


def shakespeare(run: Run) -> None:
    """Time to 1.886 nats by character, on the last tenth of the text, against 2,000 steps of the plain recipe."""
    corpus = load_corpus(run.shakespeare).refit()
    data = GPTData(corpus, 64, 12, "char")
    held_out = windows(data.test, 64)
    found: dict[str, list[Watch]] = {"ours": [], "plain": []}
    for turn in range(1 if run.quick else 3):
        for who, watches in found.items():
            torch.manual_seed(turn)
            better = who == "ours"
            setting = OURS if better else PLAIN
            sizes = {"positions": "rotary", "init_std": 0.05} if better else {}
            config = Config(4, 4, 128, 512, 64, causal=True, **sizes)
            steps = setting["steps"]
            watches.append(Watch(*held_out, first=steps // 2, every=25 if better else 100))
            module = GPT(config, data.vocab_size, replace(setting["recipe"], seed=turn))
            fit(module, GPTData(corpus, 64, 12, data.tokenizer, seed=turn), watches[-1:], steps, accelerator="cpu")
    ours = [watch.reached or math.inf for watch in found["ours"]]
    theirs = [watch.seconds for watch in found["plain"]]
    ends = {who: ", ".join(f"{watch.loss:.3f}" for watch in watches) for who, watches in found.items()}
    steps = {who: ", ".join(str(watch.reached_step) for watch in watches) for who, watches in found.items()}
    note = f"reached at step {steps['ours']}, by the plain recipe at {steps['plain']}"
    note += f"; loss at the end {ends['ours']}, of the plain recipe {ends['plain']}"
    name, peer = f"Shakespeare by character to {TARGET} nats", "2,000 AdamW steps"
    run.add("shakespeare", name, peer, ours, theirs, must={"ratio": 0.5}, aim={"ratio": 1 / 3}, note=note)


# ------------------------------------------------------------------------------------------------ GPU
def gpu(run: Run) -> None:
    """GPT at 124 M in bfloat16 through the Trainer, compiled and not: the floor is at the card's stated peak."""
    on_gpu = run.machine.device.type == "cuda"
    peak = card_peak(torch.cuda.get_device_name(run.machine.device)) if on_gpu else None
    if peak is None:
        return print("without the rows of a GPU: there is none whose peak is known here", file=sys.stderr)
    torch.set_float32_matmul_precision("high")  # as the command line does
    batch, length, vocab = 16, 1024, 50304  # GPT-2's words, filled up to a multiple of 64
    for precision, compiled in (("32-true", False), ("bf16-mixed", False), ("bf16-mixed", True)):
        torch.manual_seed(0)
        module = GPT(GPT2, vocab, ADAMW)
        data = GPTData(random_corpus(vocab, 800_000), length, batch, word_tokenizer(vocab))
        peer = of_transformers(module.model)
        if compiled:
            module.model.compile(), peer.compile()
        rivals = {"transformers": (peer, loss_of_transformers)}
        seconds = compete(module, data, rivals, 5, 4 if run.quick else 8, precision=precision)
        name = f"training step, GPT-2 124 M, {batch} x {length}, {precision}{', compiled' * compiled}"
        must, aim = ({"share": 0.45}, {"share": 0.55}) if compiled else ({}, {})
        flops = model_flops(module.model, batch, length)
        note = f"the floor's share is the MFU: 6 N + 12 L C T FLOPs a token at {peak / 1e12:.0f} TFLOP/s of bfloat16"
        limits = {"floor": flops / peak, "must": must, "aim": aim, "note": note}
        run.add("gpu", name, "transformers", seconds["ours"], seconds["transformers"], **limits)


# ------------------------------------------------------------------------------------------------ command line
GROUPS = {
    "training": training, "overhead": overhead, "sampling": sampling, "data": pipeline,
    "import": imports, "memory": memory, "shakespeare": shakespeare, "gpu": gpu,
}  # fmt: skip


def machine_facts(machine: Machine) -> dict:
    """Where this was measured; nothing that tells whose machine it is."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        name = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        cpu = name[1] if name else cpu
    facts = {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "system": platform.system()}
    facts |= {"linear_layers": "oneDNN" if faster() else "MKL"}
    facts |= {"flops_per_second": machine.flops, "bytes_per_second": machine.bandwidth}
    on_gpu = machine.device.type == "cuda"
    return facts | ({"gpu": torch.cuda.get_device_name(machine.device)} if on_gpu else {})


def report_of(run: Run, seconds: float) -> dict:
    versions = {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}
    facts = {"seconds": seconds, "quick": run.quick, "machine": machine_facts(run.machine), "versions": versions}
    return facts | {"rows": [row.to_json() for row in run.rows]}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m utils.benchmark", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer turns and peers: under 3 minutes on two cores")
    parser.add_argument("--rows", nargs="+", choices=GROUPS, help="only these")
    parser.add_argument("--shakespeare", type=Path, metavar="FILE", help="the text, for the time to 1.886 nats")
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"), metavar="FILE")
    parser.add_argument("--readme", action="store_true", help="write the table into README.md, too")
    parser.add_argument("--child", nargs=2, metavar=("KIND", "WHO"), help=argparse.SUPPRESS)
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if options.child:
        return memory_child(*options.child)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(options.quick, Machine(device), options.shakespeare)
    began = time.perf_counter()
    for group in options.rows or GROUPS:
        if group == "shakespeare" and run.shakespeare is None:
            print("without Shakespeare: --shakespeare FILE gives its text", file=sys.stderr)
            continue
        GROUPS[group](run)
        run.settle()
        # After each group: should a later one fail, what is measured is kept.
        text = json.dumps(report_of(run, time.perf_counter() - began), indent=1, ensure_ascii=False)
        options.out.write_text(text + "\n", encoding="utf-8")
    text = f"{table(run.rows)}\n\n{summary(report_of(run, time.perf_counter() - began))}"
    print(text)
    if options.readme:
        between_marks(Path(__file__).resolve().parent.parent / "README.md", "benchmark", text)


if __name__ == "__main__":
    main()
