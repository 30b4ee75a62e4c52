"""Whole runs of tiny models by the command line, and the comparison of two."""

import csv
import re
import signal
from argparse import Namespace
from pathlib import Path

import lightning as L
import torch

from utils.training import command

MODELS = ("gpt", "bert", "vit")


def run(model: str, data: Path, out: Path, preset: str = "small", *more: str) -> int:
    return command.command([model, "--data", str(data), "--out", str(out), "--preset", preset, *more])


def saved(out: Path, name: str = "last") -> dict:
    return torch.load(out / "checkpoints" / f"{name}.ckpt", weights_only=True)


def same(a, b) -> bool:
    """Equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def options(model: str, data: Path, preset: str = "small") -> tuple[Namespace, dict]:
    return command.parser().parse_args([model, "--data", str(data)]), command.PRESETS[model][preset]


def data_module(model: str, data: Path) -> L.LightningDataModule:
    given, preset = options(model, data)
    return command.data_module(given, command.load_source(given, preset), preset)


class Break(L.Callback):
    """Ctrl-C, or a crash, during a step; steps count from 1."""

    def __init__(self, step: int, crash: bool = False) -> None:
        self.step, self.crash = step, crash

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step - 1:
            if self.crash:
                raise RuntimeError("crash")
            signal.raise_signal(signal.SIGINT)


def interrupted(monkeypatch, callback: Break, *arguments) -> int:
    """The exit code of a run that `callback` breaks off."""
    usual = command.watchers
    with monkeypatch.context() as patch:
        patch.setattr(command, "watchers", lambda *given: [*usual(*given), callback])
        return run(*arguments)


def assert_same_run(out: Path, whole: Path) -> None:
    for name in ("last", "best"):
        mine, other = saved(out, name), saved(whole, name)
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
            assert same(mine[part], other[part]), f"{name}.ckpt: {part}"

    def history(folder: Path) -> list[dict[str, str]]:
        # The means over an epoch's training steps see the steps since the start of the process only.
        kept = [{name: cell for name, cell in row.items() if not re.fullmatch("train_.*_epoch", name)} for row in rows(folder)]
        # Rows of one validation batch count these batches, from the start of the process; they carry no epoch.
        return [row for row in kept if row["epoch"] and any(row[name] for name in row.keys() - {"epoch", "step"})]

    assert history(out) == history(whole)
    epochs = [(row["epoch"], row["step"]) for row in rows(out) if row["train_loss_epoch"]]
    assert epochs == [(row["epoch"], row["step"]) for row in rows(whole) if row["train_loss_epoch"]]
