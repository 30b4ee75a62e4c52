"""Measure how fast this project is, beside its peers and beside the machine's limits.

`python -m utils.benchmark --quick`; README.md in this folder describes the method. We and each peer take turns in one
run, so that what slows the machine down slows both. A row holds medians with their quartiles, the median of the ratios
turn by turn, and a floor, which is explained in limits.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

from utils.benchmark.limits import Machine
from utils.benchmark.rows.data import batch_making
from utils.benchmark.rows.processes import imports, memory, memory_child
from utils.benchmark.rows.sampling import sampling
from utils.benchmark.rows.shakespeare import shakespeare
from utils.benchmark.rows.training import gpu, overhead, training
from utils.benchmark.run import Run
from utils.benchmark.table import machine_name, pages, summary, table
from utils.files import ROOT, write_between_marks, write_text
from utils.training.cpu import onednn_is_faster

PACKAGES = ("torch", "lightning", "torchmetrics", "transformers", "timm", "vit-pytorch", "ctranslate2", "numpy")
PAGE = Path(__file__).with_name("README.md")
RESULTS = Path(__file__).with_name("results")
GROUPS = {
    "training": training,
    "overhead": overhead,
    "sampling": sampling,
    "data": batch_making,
    "import": imports,
    "memory": memory,
    "shakespeare": shakespeare,
    "gpu": gpu,
}


def machine_facts(machine: Machine) -> dict:
    """What kind of machine this is, and nothing that tells whose."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")  # Linux
    if cpuinfo.is_file():
        name = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text(encoding="utf-8"))
        cpu = name[1] if name else cpu
    facts = {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "linear_layers": "oneDNN" if onednn_is_faster() else "MKL",
        "flops_per_second": machine.flops,
        "bytes_per_second": machine.bandwidth,
    }
    if machine.device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(machine.device)
    return facts


def report_of(run: Run, seconds: float) -> dict:
    """The whole run, for the JSON file. `seconds`: how long it has taken so far."""
    return {
        "seconds": seconds,
        "quick": run.quick,
        "machine": machine_facts(run.machine),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        "rows": [row.to_json() for row in run.rows],
    }


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m utils.benchmark", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer turns and peers: under 3 minutes on two cores")
    parser.add_argument("--rows", nargs="+", choices=GROUPS, help="measure only these groups of rows")
    parser.add_argument("--shakespeare", type=Path, metavar="FILE", help="the text, for the time to 1.886 nats")
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"), metavar="FILE", help="all that is measured")
    kept = "also keep this machine's results in utils/benchmark/results, and write the tables of all into README.md"
    parser.add_argument("--readme", action="store_true", help=kept)
    parser.add_argument("--child", nargs=2, metavar=("KIND", "WHO"), help=argparse.SUPPRESS)  # see rows/processes.py
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if options.child:
        memory_child(*options.child)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(options.quick, Machine(device), options.shakespeare)
    began = time.perf_counter()
    for group in options.rows or GROUPS:
        if group == "shakespeare" and run.shakespeare is None:
            print("The row about Shakespeare is left out: --shakespeare FILE gives its text.", file=sys.stderr)
            continue
        GROUPS[group](run)
        run.update_floors()
        # The file is written after every group, so that what is measured is kept if a later group fails.
        report = report_of(run, time.perf_counter() - began)
        write_text(options.out, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    text = f"{table(run.rows)}\n\n{summary(report_of(run, time.perf_counter() - began))}"
    print(text)
    if options.readme:
        keep(report_of(run, time.perf_counter() - began))


def keep(report: dict) -> None:
    """Write the results of this machine into RESULTS, and the tables of all machines into the page.

    Those of another machine stay as they are.
    """
    changes = " with changes" if git("status", "--short", "*.py") else ""
    report["commit"] = git("rev-parse", "--short", "HEAD") + changes
    name = re.sub(r"\W+", "-", machine_name(report).lower()).strip("-")
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / f"{name}.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")]
    write_between_marks(PAGE, "benchmark", pages(reports))


def git(*arguments: str) -> str:
    """What a command of git prints about this project."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
