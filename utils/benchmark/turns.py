"""Time our training steps and those of the peers in turns, so that whatever slows the machine slows all of them."""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import nn

from transformer import LitTransformer, train
from utils.benchmark.limits import wait
from utils.benchmark.peers import Loss
from utils.data.batches import TrainBatches
from utils.training.cpu import OneDNN

Seconds = list[float]
WARM_UP = 8  # steps that are not timed, because oneDNN compiles its kernels in the first ones


def bare_loop(
    model: nn.Module,
    loss_of: Loss,
    batches: TrainBatches,
    adamw: dict,
    device: torch.device | str = "cpu",
    precision: str = "32-true",
) -> Iterator[float]:
    """The plain training loop: every `next` takes one step and returns its loss.

    adamw: arguments of torch.optim.AdamW. precision: "32-true" or "bf16-mixed".
    """
    device = torch.device(device)
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), **adamw)
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
    """After every `block` steps of the Trainer, let each rival take as many, and time every one alone.

    rivals: by name, a function that takes the Trainer's optimiser and returns an iterator; `next` takes one step. The
    order of the rivals is reversed after every turn. Turns up to step `warm_up` are not kept. After training,
    `seconds` holds the seconds per step of "ours" and of each rival, one value for every turn.
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
        """Stop the clock of a block of steps; keep its time unless the machine is still warming up."""
        seconds = (wait(device) - began) / self.block
        if warm:
            self.seconds[name].append(seconds)


@contextmanager
def quiet() -> Iterator[None]:
    """Show nothing on the screen. The text is still written, into memory, because writing takes time as well."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def fit(module: LitTransformer, data: L.LightningDataModule, callbacks: list, steps: int, **options) -> None:
    """Train with the whole `train` of transformer.py, with progress bar and logging, as the command line does.

    options: arguments of Lightning's Trainer.
    """
    options = {"accelerator": "auto", "devices": 1, "limit_val_batches": 1} | options
    # Lightning's other progress bar, Rich, would draw nothing where there is no screen.
    callbacks = [OneDNN(), TQDMProgressBar(), *callbacks]
    with quiet(), tempfile.TemporaryDirectory() as out:
        train(module, data, out, callbacks=callbacks, max_steps=steps, **options)


def compete(
    module: LitTransformer,
    data: L.LightningDataModule,
    rivals: dict[str, tuple[nn.Module, Loss]],
    block: int,
    turns: int,
    **options,
) -> dict[str, Seconds]:
    """Train our module by `train`, and each rival in a bare loop on the same batches, in turns of `block` steps.

    Return the seconds per step of "ours" and of each rival, a list of `turns` values each. options: as for `fit`.
    """
    precision = options.get("precision", "32-true")

    def start(model: nn.Module, loss: Loss, ours: torch.optim.Optimizer) -> Iterator[float]:
        """A bare loop with an AdamW of the same settings, on the same device, as our optimiser."""
        batches = TrainBatches(data.order, data.make, data.batch_size, data.seed)
        adamw = {name: ours.defaults[name] for name in ("lr", "betas", "weight_decay", "fused", "foreach")}
        return bare_loop(model, loss, batches, adamw, ours.param_groups[0]["params"][0].device, precision)

    loops = {name: partial(start, model, loss) for name, (model, loss) in rivals.items()}
    take_turns = TakeTurns(loops, block)
    warm_up_turns = -(-WARM_UP // block)
    fit(module, data, [take_turns], block * (turns + warm_up_turns), **options)
    return take_turns.seconds
