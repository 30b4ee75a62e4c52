"""What the notebooks share: which size to run at, the code under discussion, and quiet training."""

from __future__ import annotations

import inspect
import logging
import os
import textwrap
import warnings
from collections.abc import Callable

import lightning as L
import torch

from utils.linear import OneDNN


def choose_scale(choice: str = "auto") -> str:
    """"small" on a CPU, "full" on a GPU, "fast" where FAST_RUN=1 only asks whether every cell runs; said in a line.

    Also keeps Lightning from filling the page with what it tells about devices and loaders.
    """
    if choice not in ("auto", "small", "full"):
        raise ValueError(f"SCALE={choice!r}: must be auto, small or full")
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


def source(*pieces: Callable | type):
    """The code of functions or classes, as it is in the file this moment, in colours."""
    from IPython.display import Code

    return Code("\n".join(textwrap.dedent(inspect.getsource(piece)) for piece in pieces), language="python")


def quiet(*callbacks: L.Callback) -> dict:
    """Arguments of Lightning's Trainer for a page with one live figure, or none, and nothing else."""
    return {"enable_progress_bar": False, "enable_model_summary": False, "callbacks": [OneDNN(), *callbacks]}


def precision() -> str:
    """bf16 where the GPU computes in it (Ampere and later), fp16 on older ones (a T4 only emulates bf16), else fp32."""
    if not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "16-mixed"
