"""Facts about the machine that a run is done on: its device, its memory, the versions of its packages."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path

import torch


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
