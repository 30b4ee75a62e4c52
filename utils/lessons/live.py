"""A loss curve that grows in a notebook while a model trains."""

from __future__ import annotations

import time
from collections.abc import Callable

import lightning as L

from utils import plots


class LiveCurve(L.Callback):
    """One figure in a notebook's cell, redrawn during training: the training and validation loss, and the baselines as
    dashed lines.

    baselines: name -> loss, in `unit`. sample: a function of the module that returns a text; the text from before
    training and that of the latest validation stand below the figure. every: how many steps lie between two points of
    the training curve. The figure is redrawn after every validation, and otherwise at most every `seconds`.
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
