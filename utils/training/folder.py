"""The folder of a run, --out: what lies in it, and whether a run can start or continue there."""

from __future__ import annotations

import shutil
import tempfile
from itertools import count
from pathlib import Path
from pickle import UnpicklingError

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from transformer import require

# All that a run writes. When another run starts in the same folder, these are moved aside.
OUTPUTS = (
    "summary.json",
    "checkpoints",
    "metrics.csv",
    "loss.png",
    "attention.png",
    "samples.txt",
    "predictions.txt",
    "tokenizer.json",
)


def open_run(out: Path, module: L.LightningModule, resume: bool) -> None:
    """Create the folder, or check with `resume` that the run in it can continue.

    Without `resume`, the files of an earlier run are moved into out/earlier-1 (or -2, ...). Raises a ValueError if the
    folder cannot be written, if the disk has too little room for two checkpoints, or if last.ckpt does not fit.
    """
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    checkpoint = 3 * weights  # the weights and the optimiser's two moving averages
    needed = 2 * checkpoint + 2**24
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out):  # fails where nothing can be written
            free = shutil.disk_usage(out).free
    except OSError as error:
        allowed = f"a folder that can be written ({error.strerror})"
        raise ValueError(f"out={str(out)!r}: must be {allowed}") from error
    room = f"on a disk with {needed / 2**20:.0f} MiB free; it has {free / 2**20:.0f}"
    require(free >= needed, "out", str(out), room)
    if resume:
        check_checkpoint(out / "checkpoints" / "last.ckpt", module)
    elif rank_zero_only.rank == 0:  # of several processes, only the first moves files
        move_earlier_run(out)


def move_earlier_run(out: Path) -> None:
    """Move the files of an earlier run into the first free folder out/earlier-N."""
    earlier = [out / name for name in OUTPUTS if (out / name).exists()]
    if not earlier:
        return
    folder = next(folder for n in count(1) if not (folder := out / f"earlier-{n}").exists())
    folder.mkdir()
    for path in earlier:
        path.rename(folder / path.name)
    print(f"The files of the earlier run are now in {folder}")


def check_checkpoint(last: Path, module: L.LightningModule) -> None:
    """Raise a ValueError unless `last` is a whole checkpoint of a model like this one."""
    try:
        saved = torch.load(last, map_location="cpu", weights_only=True)["hyper_parameters"]
    except (RuntimeError, EOFError, KeyError, UnpicklingError) as error:
        raise ValueError(f"resume=True: must be left out, because {last} is damaged or no checkpoint") from error
    require(saved == dict(module.hparams), "resume", True, f"left out, because {last} is of another model: {saved}")
