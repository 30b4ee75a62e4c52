"""Callbacks of a training run: figures that the assignment logs, samples of text, progress, Ctrl-C, history,
torch.compile.
"""

from __future__ import annotations

import csv
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from tokenizers import Tokenizer
from torch import Tensor

from transformer import require
from utils.inference.generate import write_on

# What asks a run to stop; Windows has no SIGHUP.
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class DeltaW(L.Callback):
    """Log `Δw`: the sum of absolute gradients on the token-embedding weights, averaged over the epoch's steps.

    It shows whether the embeddings still learn. It is read after the backward pass, before gradients are clipped.
    """

    def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        gradient = module.model.embed.tokens.weight.grad
        module.log("Δw", gradient.abs().sum(), on_step=False, on_epoch=True, batch_size=1)


class IterLoss(L.Callback):
    """Log `train_iter_loss` and `val_iter_loss`: the loss averaged over `eval_iters` random batches of each part.

    Both are computed without dropout and with the weights as they are then, so they can be compared with each other.
    The ordinary training loss cannot: it is an average over an epoch in which the weights were changing.
    """

    def __init__(self, eval_iters: int = 10, seed: int = 0) -> None:
        require(eval_iters >= 1, "eval_iters", eval_iters, "at least 1")
        self.eval_iters = eval_iters
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def mean_loss(self, module: L.LightningModule, draw: Callable[[torch.Generator], tuple[Tensor, ...]]) -> Tensor:
        was_training = module.training
        module.eval()
        losses = []
        for _ in range(self.eval_iters):
            *inputs, targets = (tensor.to(module.device) for tensor in draw(self.generator))
            mask = inputs.pop() if inputs[-1].dtype == torch.bool else None
            scored = targets != -100
            keep = None if scored.all() else scored
            logits = module.model(*inputs, mask=mask, keep=keep).flatten(0, -2)
            losses.append(module.criterion(logits, targets[scored]))
        module.train(was_training)
        return torch.stack(losses).mean()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        batches = trainer.train_dataloader
        items = batches.order(self.generator)

        def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
            chosen = torch.randint(len(items), (batches.batch_size,), generator=generator)
            return batches.make(items[chosen], generator)

        module.log("train_iter_loss", self.mean_loss(module, draw), sync_dist=True)

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        batches = trainer.datamodule.val_dataloader()

        def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
            n_items = len(batches.tensors[0])
            chosen = torch.randint(n_items, (min(batches.batch_size, n_items),), generator=generator)
            return batches.make(*(tensor[chosen] for tensor in batches.tensors))

        module.log("val_iter_loss", self.mean_loss(module, draw), sync_dist=True)


class SampleText(L.Callback):
    """Print a text sampled from GPT at epochs 0 (untrained), n, 2n, ... and at the end; `out`: write it there too."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: str,
        every_n_epochs: int = 5,
        length: int = 100,
        out: Path | None = None,
        seed: int = 0,
    ) -> None:
        require(every_n_epochs >= 1, "every_n_epochs", every_n_epochs, "at least 1")
        self.tokenizer, self.prompt, self.every, self.length = tokenizer, prompt, every_n_epochs, length
        self.path, self.seed = out and Path(out, "samples.txt"), seed

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.current_epoch % self.every == 0:
            self.write(trainer, module, f"epoch {trainer.current_epoch}")

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.write(trainer, module, f"epoch {trainer.current_epoch}, step {trainer.global_step}")

    def write(self, trainer: L.Trainer, module: L.LightningModule, title: str) -> None:
        if not trainer.is_global_zero:
            return
        sample = write_on(module, self.tokenizer, self.prompt, self.length, seed=self.seed)
        text = f"--- {title} ---\n{sample}\n"
        say(text)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")


class Stopped(Exception):
    """A run was asked to end, and has been saved. `signal`: the number of the signal that asked; `step`: of the run."""

    def __init__(self, signal: int, step: int) -> None:
        super().__init__(f"stopped at step {step}")
        self.signal, self.step = signal, step


class StopCleanly(L.Callback):
    """When asked to stop, finish the step, save a checkpoint to `path` and raise `Stopped`.

    Ctrl-C (SIGINT), SIGTERM and a closed terminal (SIGHUP) ask. A second Ctrl-C stops at once. Of several processes
    one may be asked, or each at another step: all agree after each step.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.asked, self.saved = path, 0, False

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.received_sigterm:  # while Lightning was preparing the training
            self.asked = signal.SIGTERM
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` lets SIGHUP be ignored
                signal.signal(number, self.ask)  # Lightning puts the earlier handlers back

    def ask(self, number: int, *_) -> None:
        self.asked = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_end(self, trainer: L.Trainer, *_) -> None:
        if trainer.strategy.reduce_boolean_decision(bool(self.asked), all=False):
            trainer.save_checkpoint(self.path)
            self.saved = True

    def on_train_batch_start(self, trainer: L.Trainer, *_) -> None:
        if self.saved:  # not earlier, so that the last step is logged and, if due, validated
            raise Stopped(self.asked, trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, *_) -> None:
        if trainer.strategy.reduce_boolean_decision(bool(self.asked), all=False):  # after the last step: all is saved
            raise Stopped(self.asked, trainer.global_step)


def say(text: str) -> None:
    """Print to standard output. If nobody reads it any more (`| head -1`), ask the run to stop, as SIGTERM does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        close_output()
        signal.raise_signal(signal.SIGTERM)


def close_output() -> None:
    """Let standard output lead nowhere, after a BrokenPipeError: Python would fail once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress(L.Callback):
    """Print one line for every validation, for logs, in which a progress bar would leave a mess."""

    def on_train_start(self, *_) -> None:
        self.start = time.perf_counter()

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        figures = trainer.callback_metrics
        if trainer.is_global_zero and trainer.state.fn == "fit" and "val_loss" in figures:
            when = f"step {trainer.global_step:6d}  {time.perf_counter() - self.start:5.0f} s"
            say(f"{when}  val_loss {figures['val_loss']:.4f}  val_acc {figures['val_acc']:.4f}")


class Record(L.Callback):
    """Keep in every checkpoint what its weights do not tell: the run's settings and data, and its rows of metrics.csv.

    about: the settings and the data, compared when the run is resumed. Then the rows go back into metrics.csv, which
    the logger begins anew.
    """

    def __init__(self, about: dict) -> None:
        self.about = about

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict) -> None:
        checkpoint["run"] = self.about
        if trainer.is_global_zero:
            trainer.logger.save()  # writes what is not written yet
            checkpoint["history"] = rows_of(Path(trainer.logger.experiment.metrics_file_path))

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict) -> None:
        if trainer.is_global_zero and trainer.state.fn == "fit":
            trainer.logger.experiment.metrics[:0] = checkpoint.get("history", [])
            trainer.logger.save()


def rows_of(path: Path) -> list[dict[str, str]]:
    """The filled cells of all whole rows of a metrics.csv, which may be cut, or not begun."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    whole_lines = text[: text.rfind("\n") + 1].splitlines()
    rows = [row for row in csv.DictReader(whole_lines) if None not in row and None not in row.values()]
    return [{name: cell for name, cell in row.items() if cell} for row in rows]


class Compile(L.Callback):
    """Take the training steps with a model that torch.compile has translated; the weights are those of the model.

    Validation, tests and sampling use the model as it is. Their inputs come in many shapes, and every new shape would
    be translated anew.
    """

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.forward = torch.compile(module.model.forward)

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_) -> None:
        module.model.forward = self.forward  # an attribute of this object, found before the method of its class

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_) -> None:
        del module.model.forward

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        vars(module.model).pop("forward", None)  # it may come in the middle of a step, or between two


class Lost(ValueError):
    """The weights of a run are lost: its loss is no number any more, or that of guessing again."""


class StopWhenLost(L.Callback):
    """Raise `Lost` when a loss is no number any more, or when the training loss rises to that of guessing.

    Guessing costs log(V) or log(K). The loss begins there; to rise to it again from less than 80 % of it means that
    the weights are lost, most often because the learning rate is too high. The mean of `window` batches counts.
    """

    def __init__(self, window: int = 20) -> None:
        self.window = window
        self.losses: list[float] = []
        self.lowest = math.inf

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: dict, *_) -> None:
        if module.device.type != "cpu" and trainer.global_step % 10:
            return  # reading a loss makes a GPU wait
        loss = outputs["loss"].item() * trainer.accumulate_grad_batches  # Lightning has divided it by them
        self.check(math.isfinite(loss), trainer, "training loss", loss, "finite")
        self.losses = [*self.losses, loss][-self.window :]
        if len(self.losses) < self.window:
            return
        mean, guessing = sum(self.losses) / self.window, math.log(module.n_outputs)
        self.lowest = min(self.lowest, mean)
        lost = self.lowest < 0.8 * guessing and mean > guessing
        allowed = f"below {guessing:.2f}, the loss of guessing, as it was {self.lowest:.2f} before"
        self.check(not lost, trainer, "training loss", round(mean, 2), allowed)

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Before a checkpoint is saved, also look at the weights that the last step has made."""
        loss = trainer.callback_metrics["val_loss"].item()
        self.check(math.isfinite(loss), trainer, "validation loss", loss, "finite")

    def check(self, sound: bool, trainer: L.Trainer, name: str, value: float, allowed: str) -> None:
        if not sound:
            when = f"the run ends at step {trainer.global_step}. Try a lower --lr"
            raise Lost(f"{name}={value}: must be {allowed}; {when}")


class CoolDown(L.Callback):
    """End a run that no longer learns what holds on other data, and let the learning rate come down before.

    When the lowest validation loss is older than `share` of the run, and two validations at least, the steps that are
    left are cut to a fifth of those that are done. The learning rate follows the share of the steps that is done, so
    it falls to its end over them, which often lowers the validation loss once more.
    """

    def __init__(self, share: float = 0.25) -> None:
        require(0 < share <= 1, "share", share, "above 0 and at most 1")
        self.share = share
        self.lowest, self.lowest_at, self.waited, self.last_step = math.inf, 0, 0, 0

    def state_dict(self) -> dict:
        names = ("lowest", "lowest_at", "waited", "last_step")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.last_step:  # a resumed run that was cut short before
            trainer.fit_loop.epoch_loop.max_steps = self.last_step

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or self.last_step:
            return
        loss, done = trainer.callback_metrics["val_loss"].item(), trainer.global_step
        if loss < self.lowest:
            self.lowest, self.lowest_at, self.waited = loss, done, 0
            return
        self.waited += 1
        last = trainer.estimated_stepping_batches
        old = self.waited >= 2 and done - self.lowest_at >= self.share * last
        if old and done + done // 5 < last:
            self.last_step = done + max(1, done // 5)
            trainer.fit_loop.epoch_loop.max_steps = self.last_step
            rank_zero_info(
                f"The validation loss has not fallen since step {self.lowest_at}: the run ends at step "
                f"{self.last_step} instead of {last}, and the learning rate comes down until then."
            )
