"""The folder of a run, --out: what lies in it, and whether a run can start or continue there."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import lightning as L
import torch
from filelock import FileLock, Timeout
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from transformer import require
from utils.files import remove_drafts, whole
from utils.training.callbacks import rows_of
from utils.weights.runs import read_checkpoint

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


@contextmanager
def open_run(out: Path, module: L.LightningModule, resume: bool, about: dict) -> Iterator[None]:
    """Create the folder and keep it for this run, or check with `resume` that the run in it can continue.

    Without `resume`, the files of an earlier run are moved into out/earlier-1 (or -2, ...). about: the settings and the
    data of this run, which have to be those of the run that is resumed (see `Record`). Raises a ValueError if the
    folder cannot be written, if another run is using it, if the disk has too little room for two checkpoints, or if
    the checkpoint does not fit.
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
    if rank_zero_only.rank != 0:  # of several processes, the first keeps the folder
        yield
        return
    with locked(out):
        for folder in (out, out / "checkpoints"):
            remove_drafts(folder)
        if resume:
            check_checkpoint(out, module, about)
        else:
            move_earlier_run(out)
        yield


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Refuse other runs into the folder. The operating system ends the lock with the process, however it ends."""
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"out={str(out)!r}: must be a folder that no other run is using now") from error
    try:
        yield
    finally:
        lock.release()


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


def check_checkpoint(out: Path, module: L.LightningModule, about: dict) -> None:
    """Raise a ValueError unless the run in `out` can go on with this model, and with these settings and data.

    If last.ckpt is damaged or missing and best.ckpt is whole, the run goes on from that one, and says so. Rows of
    metrics.csv that were written after the checkpoint are put into it, because the logger begins the file anew.
    """
    last, best = (out / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    saved = read_checkpoint(last) or read_checkpoint(best)
    require(saved is not None, "resume", True, f"left out, because {last} is damaged or no checkpoint")
    began = saved.get("run", about)
    others = differences(began, about)
    require(not others, "resume", True, f"used with what the run in {out} began with, but now {'; '.join(others)}")
    model = saved["hyper_parameters"]
    require(model == dict(module.hparams), "resume", True, f"left out, because {last} is of another model: {model}")
    history, steps = saved.get("history", []), saved["global_step"]
    # Rows of a single validation batch have no epoch and count the batches since the start of the process.
    rows = [row for row in rows_of(out / "metrics.csv") if "epoch" in row and row.get("step", "").isdecimal()]
    rows = [row for row in rows if int(row["step"]) < steps and row not in history]
    broken = read_checkpoint(last) is None
    if broken:
        print(f"{last} is damaged or missing. The run goes on from best.ckpt, step {steps}.")
    if rows or broken:
        WholeCheckpoints().save_checkpoint(saved | {"history": history + rows}, last)


def differences(began: dict, now: dict) -> list[str]:
    """What differs between the settings and data that a run began with and those of now, one phrase for each."""
    found = []
    for name in began | now:
        old, new = (settings.get(name, "not given") for settings in (began, now))
        if old != new:
            long = name in ("data", "classes", "tokenizer")
            found.append(f"{name}: not the same" if long else f"{name}: {new} (before: {old})")
    return found


class WholeCheckpoints(TorchCheckpointIO):
    """Write a checkpoint beside the file that it replaces, so that there is a whole one at every moment.

    Lightning writes it to the folder for temporary files. If that is on another disk, the old checkpoint is lost when
    the process is killed while the new one is copied over it.
    """

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: object = None) -> None:
        contents = io.BytesIO()
        torch.save(checkpoint, contents)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole(Path(path)) as draft:
            draft.write_bytes(contents.getbuffer())
