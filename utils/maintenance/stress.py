"""Kill runs at random moments, resume them, and compare them with a run that nothing broke off.

    python -m utils.maintenance.stress [--kills 200] [--devices 1]

Each run of a tiny GPT, BERT or ViT is ended up to three times: by kill -9, SIGTERM, Ctrl-C (once or twice), a closed
pipe or a full disk. Each time it is resumed, or begun again where it had saved nothing, and the last time it ends by
itself. Counted are the runs whose weights are in the end those of the unbroken run, the runs that could not go on, and
messages that were false.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from utils.files import ROOT
from utils.weights.runs import read_checkpoint

STEPS = 60
SLOW = 60.0  # seconds after which a run that was asked to end counts as hung
WAYS = ("kill", "term", "interrupt", "interrupt twice", "closed pipe", "full disk")


def arguments(model: str, data: Path, out: Path, devices: int) -> list[str]:
    """The command of a run of tests/tiny.py."""
    words = [sys.executable, str(ROOT / "tests" / "tiny.py"), model, "--data", str(data), "--preset", "small"]
    words += ["--max-steps", str(STEPS), "--out", str(out)]
    if devices > 1:
        words += ["--accelerator", "cpu", "--devices", str(devices), "--strategy", "ddp"]
    return words


def start(words: list[str], full_disk: bool = False) -> subprocess.Popen:
    """Begin a run in a process group of its own. full_disk: no file can grow beyond 8 KiB, less than a checkpoint."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a process in the background would ignore it
        if full_disk:
            import resource

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, text=True, preexec_fn=prepare, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def end(process: subprocess.Popen, way: str, everyone: bool) -> tuple[int, str]:
    """End a run in one of WAYS, and return its exit code and what it said on standard error.

    everyone: of several processes all get the signal, as by Ctrl-C in a terminal; else only the first.
    """
    send: Callable[[int, int], None] = os.killpg if everyone else os.kill
    numbers = {"kill": signal.SIGKILL, "term": signal.SIGTERM}
    try:
        if way in numbers or way.startswith("interrupt"):
            send(process.pid, numbers.get(way, signal.SIGINT))
            if way == "interrupt twice":
                time.sleep(random.random() * 0.05)
                send(process.pid, signal.SIGINT)
        elif way == "closed pipe":
            process.stdout.close()
            process.stdout = None
    except ProcessLookupError:  # it has ended by itself
        pass
    try:
        _, errors = process.communicate(timeout=SLOW)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return -1, "hung"
    return process.returncode, errors


def weights_of(out: Path) -> dict[str, Tensor] | None:
    """The weights in last.ckpt, or None."""
    saved = read_checkpoint(out / "checkpoints" / "last.ckpt")
    return saved and saved["state_dict"]


def step_of(out: Path) -> int:
    """The step of last.ckpt, or 0."""
    saved = read_checkpoint(out / "checkpoints" / "last.ckpt")
    return saved["global_step"] if saved else 0


def false_messages(way: str, code: int, errors: str, out: Path) -> list[str]:
    """What an ended run said or left that is not so."""
    found = []
    promised = re.search(r"Stopped at step (\d+)\. The run is saved", errors)
    if promised and step_of(out) != int(promised[1]):
        found.append(f"{way}: step {promised[1]} was not saved")
    if code == 0 and not (out / "summary.json").is_file():
        found.append(f"{way}: exit code 0 without a summary")
    if "hung" in errors:
        found.append(f"{way}: hung")
    if "Traceback" in errors and "KeyboardInterrupt" not in errors:  # Python's own, while it imports the packages
        found.append(f"{way}: a traceback: {errors[-2000:]}")
    return found


def stress(model: str, data: Path, folder: Path, whole: dict[str, Tensor], devices: int, longest: float) -> Counter:
    """End a run up to three times, let it finish, and count what happened."""
    counts: Counter = Counter()
    words = arguments(model, data, folder, devices)
    for _ in range(random.randint(1, 3)):
        way = random.choice(WAYS)
        there = (folder / "checkpoints" / "last.ckpt").is_file()
        process = start([*words, "--resume"] if there else words, full_disk=way == "full disk")
        time.sleep(random.random() * longest)
        code, errors = end(process, way, everyone=random.random() < 0.5)
        counts["kills"] += 1
        for message in false_messages(way, code, errors, folder):
            counts["false messages"] += 1
            print(f"{model}: {message}")
        before = step_of(folder)
        if there and not before:
            counts["lost"] += 1
            print(f"{model}: {way} left a damaged last.ckpt")
    there = (folder / "checkpoints" / "last.ckpt").is_file()
    process = start([*words, "--resume"] if there else words)
    _, errors = process.communicate()
    mine = weights_of(folder)
    if process.returncode != 0 or mine is None:
        counts["lost"] += 1
        print(f"{model}: could not go on: {errors[-2000:]}")
        return counts
    equal = mine.keys() == whole.keys() and all(torch.equal(mine[name], whole[name]) for name in whole)
    counts["equal" if equal else "different"] += 1
    left = [path.name for path in folder.rglob("*.part")]
    if left or not equal:
        print(f"{model}: {'other weights' if not equal else f'left behind: {left}'} in {folder}")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny

    counts: Counter = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "words.txt"
        text.write_text(tiny.text(2000), encoding="utf-8")
        data = {"gpt": text, "bert": text, "vit": tiny.pictures(folder / "pictures", 80)}
        models = list(data) if options.devices == 1 else ["gpt", "bert"]
        whole, seconds = {}, {}
        for model in models:
            began = time.perf_counter()
            process = start(arguments(model, data[model], folder / model, options.devices))
            process.communicate()
            whole[model], seconds[model] = weights_of(folder / model), time.perf_counter() - began
        number = 0
        while counts["kills"] < options.kills:
            model = models[number % len(models)]
            out = folder / f"run-{number}"
            counts += stress(model, data[model], out, whole[model], options.devices, seconds[model])
            shutil.rmtree(out, ignore_errors=True)
            number += 1
            print(", ".join(f"{name} {n}" for name, n in sorted(counts.items())), flush=True)


if __name__ == "__main__":
    main()
