"""What watches a training run: gradients on the word table, the loss on random batches, samples, Ctrl-C."""

from __future__ import annotations

import csv
import signal
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from tokenizers import Tokenizer as Words
from torch import Tensor

from utils import plots
from utils.sampling import write_on


class DeltaW(L.Callback):
    """Log `Δw`: the sum of absolute gradients on the token-embedding weights, averaged over the epoch's steps.

    It shows whether the word table still learns. Read after the backward pass, before gradients are clipped.
    """

    def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        gradient = module.model.embed.tokens.weight.grad
        module.log("Δw", gradient.abs().sum(), on_step=False, on_epoch=True, batch_size=1)


class IterLoss(L.Callback):
    """Log `train_iter_loss` and `val_iter_loss`: the loss averaged over `eval_iters` random batches of each part.

    Without dropout, after each training epoch and each validation, so the two are comparable, which the running
    training loss is not: that one is an average over weights that were still changing.
    """

    def __init__(self, eval_iters: int = 10, seed: int = 0) -> None:
        if eval_iters < 1:
            raise ValueError(f"eval_iters={eval_iters}: must be at least 1")
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
            losses.append(module.criterion(module.model(*inputs, mask=mask, scored=scored), targets[scored]))
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
    """Let a GPT write at epochs 0 (untrained), n, 2n, ... and print it; with `out`, add it to out/samples.txt."""

    def __init__(
        self,
        words: Words,
        prompt: str,
        every_n_epochs: int = 5,
        length: int = 100,
        out: Path | None = None,
        seed: int = 0,
    ) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs={every_n_epochs}: must be at least 1")
        self.words, self.prompt, self.every, self.length = words, prompt, every_n_epochs, length
        self.path, self.seed = out and Path(out, "samples.txt"), seed

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.current_epoch % self.every == 0:
            self.write(trainer, module, f"epoch {trainer.current_epoch}")

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.write(trainer, module, f"epoch {trainer.current_epoch}, step {trainer.global_step}")

    def write(self, trainer: L.Trainer, module: L.LightningModule, title: str) -> None:
        if not trainer.is_global_zero:
            return
        text = f"--- {title} ---\n{write_on(module, self.words, self.prompt, self.length, seed=self.seed)}\n"
        print(text, flush=True)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")


class LiveCurve(L.Callback):
    """One figure that grows in a notebook's cell: loss, validation, the baselines as lines, and samples below.

    baselines: in `unit`. sample(module) -> text: the one before training stays, the latest, drawn anew with every
    validation, stands below it. The curve is drawn anew every `seconds` as well.
    """

    def __init__(
        self,
        baselines: dict[str, float],
        title: str = "",
        sample: Callable[[L.LightningModule], str] | None = None,
        unit: str = "nats",
        every: int = 10,
        seconds: float = 10.0,
    ) -> None:
        self.baselines, self.title, self.sample, self.unit = baselines, title, sample, unit
        self.every, self.seconds = every, seconds
        self.series: dict[str, tuple[list[float], list[float]]] = {"train_loss_step": ([], [])}
        self.samples: list[str] = []
        self.handle, self.drawn = None, 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.note(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: dict, *_) -> None:
        if trainer.global_step == 1 or trainer.global_step % self.every == 0:
            self.add("train_loss_step", trainer.global_step, outputs["loss"].item())
            if trainer.is_global_zero and time.perf_counter() - self.drawn > self.seconds:
                self.draw()

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and trainer.is_global_zero:
            self.add("val_loss_epoch", trainer.global_step, trainer.callback_metrics["val_loss"].item())
            self.note(trainer, module)
            self.draw()

    def note(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.sample is not None:
            self.samples[1:] = [f"step {trainer.global_step}: {self.sample(module)}"]

    def add(self, name: str, step: int, value: float) -> None:
        steps, values = self.series.setdefault(name, ([], []))
        steps.append(step)
        values.append(value)

    def draw(self) -> None:
        from IPython.display import display

        below = "\n".join(self.samples)
        figure = plots.loss_curve(self.series, self.baselines, self.title, sample=below, unit=self.unit)
        image, self.drawn = plots.picture(figure), time.perf_counter()
        if self.handle is None:
            self.handle = display(image, display_id=True)
        else:
            self.handle.update(image)


class StopCleanly(L.Callback):
    """Ctrl-C ends the run after the step in progress, with everything in `path`; a second Ctrl-C ends it at once."""

    def __init__(self, path: Path) -> None:
        self.path, self.asked, self.saved = path, False, False

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        def ask(*_) -> None:
            self.asked = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        signal.signal(signal.SIGINT, ask)

    def on_train_batch_end(self, trainer: L.Trainer, *_) -> None:
        if self.asked:
            trainer.save_checkpoint(self.path)
            self.saved = True

    def on_train_batch_start(self, *_) -> None:
        if self.saved:  # not earlier: the step before was still to be logged and, where it is due, validated
            raise KeyboardInterrupt

    def on_train_end(self, *_) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Progress(L.Callback):
    """One plain line per validation, for logs, where a progress bar would leave a mess."""

    def on_train_start(self, *_) -> None:
        self.start = time.perf_counter()

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        figures = trainer.callback_metrics
        if trainer.is_global_zero and trainer.state.fn == "fit" and "val_loss" in figures:
            when = f"step {trainer.global_step:6d}  {time.perf_counter() - self.start:5.0f} s"
            print(f"{when}  val_loss {figures['val_loss']:.4f}  val_acc {figures['val_acc']:.4f}", flush=True)


class KeepHistory(L.Callback):
    """A resumed run goes on with the metrics.csv of the run before it, up to the step it resumes from."""

    def __init__(self, path: Path) -> None:
        self.rows = []
        if path.is_file():  # read at once: the logger deletes the file when it starts
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict) -> None:
        if trainer.is_global_zero and self.rows:
            # Rows of single validation batches have no epoch, and count batches: they go with the row they precede.
            whole, step = [i for i, row in enumerate(self.rows) if "epoch" in row], checkpoint["global_step"]
            keep = max((i + 1 for i in whole if int(self.rows[i]["step"]) < step), default=0)
            trainer.logger.experiment.metrics[:0] = self.rows[:keep]
            trainer.logger.save()
            self.rows = []
