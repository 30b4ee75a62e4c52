"""What the notebooks share: the size of the run, the presets, the code that is being explained, checks of what the
learner writes, and training without log lines.
"""

from __future__ import annotations

import copy
import inspect
import logging
import os
import textwrap
import warnings
from collections.abc import Callable

import lightning as L
import torch

from transformer import require
from utils.lessons.checks import check
from utils.machine import best_precision
from utils.training.cpu import OneDNN
from utils.training.presets import PRESETS

__all__ = ["check", "choose_scale", "precision", "preset", "quiet", "source", "steps"]
TINY = {"n_layers": 2, "n_heads": 2, "d_model": 32, "d_ff": 64}  # the model of a fast run


def choose_scale(choice: str = "auto") -> str:
    """Return and print the size of the run: with "auto", "small" on a CPU and "full" on a GPU.

    The environment variables FAST_RUN, SCALE and STEPS are for checks that every cell runs. FAST_RUN=1 makes the size
    "fast": a tiny model and a few steps. SCALE=full takes the size for a GPU on any machine, and STEPS=3 ends all
    training after 3 steps. Messages and warnings of Lightning about devices and data loaders are switched off.
    """
    choice = os.environ.get("SCALE", choice)
    require(choice in ("auto", "small", "full"), "SCALE", choice, "auto, small or full")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", category=UserWarning, module="torch.optim.lr_scheduler")
    torch.set_float32_matmul_precision("high")
    has_gpu = torch.cuda.is_available()
    scale = ("full" if has_gpu else "small") if choice == "auto" else choice
    scale = "fast" if os.environ.get("FAST_RUN") == "1" else scale
    device = torch.cuda.get_device_name() if has_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"scale: {scale} ({device})")
    return scale


def steps(number: int) -> int:
    """How many steps to train: `number` of them, except in a check that every cell runs (see `choose_scale`)."""
    limit = os.environ.get("STEPS") or ("12" if os.environ.get("FAST_RUN") == "1" else number)
    return min(number, int(limit))


def preset(model: str, scale: str) -> dict[str, dict]:
    """The preset of the command line for `model` (bert, gpt or vit) at this size, to change and to use: a dictionary
    of the arguments of Config (`config`), Recipe (`recipe`), the data module (`batches`) and others; see
    utils/training/presets.py.
    """
    chosen = copy.deepcopy(PRESETS[model]["full" if scale == "full" else "small"])
    if scale == "fast":
        chosen["config"] |= TINY
    return chosen


def source(*pieces: Callable | type):
    """The code of functions or classes, read from their file now, to be displayed with syntax highlighting."""
    from IPython.display import Code

    return Code("\n".join(textwrap.dedent(inspect.getsource(piece)) for piece in pieces), language="python")


def quiet(*callbacks: L.Callback) -> dict:
    """Arguments for Lightning's Trainer: these callbacks, one device, but no progress bar and no table of the model."""
    silent = {"enable_progress_bar": False, "enable_model_summary": False}
    return {**silent, "devices": 1, "callbacks": [OneDNN(), *callbacks]}


def precision() -> str:
    """Lightning's name of the precision to train in: half precision on a GPU (see `best_precision`), float32 on a CPU,
    where the lessons' models are small.
    """
    return best_precision(0, torch.cuda.is_available())
