"""Facts about the machine that a run is done on: its device, its memory, the versions of its packages."""

from __future__ import annotations

import os
import platform
import re
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

WIDE = 256  # features: the linear layers of narrower models are too small to gain on a CPU
IN_WORDS = {"32-true": "float32", "bf16-mixed": "bfloat16 where it is enough", "16-mixed": "float16 where it is enough"}


def best_precision(width: int, on_gpu: bool) -> str:
    """Return Lightning's name of the fastest precision that trains a model of this width as well as float32.

    On a GPU, bfloat16 where the GPU computes in it (Ampere and later; older ones, such as a T4, only emulate it), else
    float16. On a CPU, bfloat16 where the processor has instructions for it and the model is WIDE, else float32.
    """
    if on_gpu:
        return "bf16-mixed" if has_bfloat16("cuda") else "16-mixed"
    return "bf16-mixed" if width >= WIDE and has_bfloat16("cpu") else "32-true"


@cache
def has_bfloat16(device_type: str) -> bool:
    """Whether the GPU ("cuda") or the processor ("cpu") has instructions for products of matrices in bfloat16.

    Others only emulate it. A processor has them with AVX512-BF16 or AMX, as Linux names them.
    """
    if device_type == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    facts = Path("/proc/cpuinfo")
    known = device_type == "cpu" and facts.is_file()
    return known and re.search(r"\b(avx512_bf16|amx_bf16)\b", facts.read_text(encoding="utf-8")) is not None


def device_name() -> str:
    """The name of the GPU, or the number of CPU threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def peak_memory() -> int:
    """The most memory held so far, in bytes: on the GPU if one was used, else by this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    if os.name == "nt":
        import psutil

        return psutil.Process().memory_info().peak_wset
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, where getrusage would count the memory of the process that started this one
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1])
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions(*packages: str) -> dict[str, str]:
    """The installed version of each package, and Python's."""
    return {package: version(package) for package in packages} | {"python": platform.python_version()}
