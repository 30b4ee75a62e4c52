"""Rows that need a Python process of their own: the time of the import, and the peak of the memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import islice

import torch

from transformer import BERT_BASE, GPT2, VIT_B16, DecoderTransformer, EncoderTransformer, Transformer
from utils.benchmark.peers import loss_by_transformers, transformers_model
from utils.benchmark.rows.sampling import VOCAB_SIZE, our_times, their_times
from utils.benchmark.run import Run
from utils.benchmark.table import Row
from utils.benchmark.tasks import ADAMW, LARGE_TASKS
from utils.benchmark.turns import bare_loop, fit
from utils.data.batches import TrainBatches
from utils.files import ROOT
from utils.machine import peak_memory
from utils.training.cpu import fast_on_cpu

IMPORT = """
import time
began = time.perf_counter()
import lightning, torchmetrics
between = time.perf_counter()
import transformer
print(between - began, time.perf_counter() - between)
"""


def in_new_process(*arguments: str) -> str:
    """Run Python with these arguments in the project's folder; return the last line that it prints."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"python {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.splitlines()[-1]


# ------------------------------------------------------------------------------------------------ import
def imports(run: Run) -> None:
    """How long `import transformer` takes once its libraries are imported."""
    seconds = [tuple(map(float, in_new_process("-c", IMPORT).split())) for _ in range(3 if run.quick else 9)]
    theirs, ours = (list(column) for column in zip(*seconds, strict=True))
    name = "import transformer, beyond its libraries"
    run.add(Row("import", name, "import lightning, torchmetrics", ours, theirs, must={"ours": 0.1}))


# ------------------------------------------------------------------------------------------------ memory
def memory(run: Run) -> None:
    """By how much training or sampling raises the peak memory of a process above that of its imports."""
    for kind in ["GPT"] if run.quick else [*LARGE_TASKS, "sampling"]:
        bytes_of: dict[str, list[float]] = {"ours": [], "transformers": []}
        for _ in range(1 if run.quick else 2):
            for who, samples in bytes_of.items():
                before, after = json.loads(in_new_process("-m", "utils.benchmark", "--child", kind, who))
                samples.append(after - before)
        if kind == "sampling":
            title = "GPT-2 124 M, 900 tokens and 16 more"
        else:
            title = f"{LARGE_TASKS[kind][0]}, 3 steps"
        name = f"peak memory beyond the libraries, {title}"
        run.add(Row("memory", name, "transformers", *bytes_of.values(), unit="bytes"))


def memory_child(kind: str, who: str) -> None:
    """The work of the new process: print [peak after the imports, peak after the work] in bytes.

    kind: a key of LARGE_TASKS, or "sampling". who: "ours" or "transformers".
    """
    if who == "transformers":
        transformers_model(tiny_model(kind), weights=False)  # transformers imports its parts when they are first used
    before = peak_memory()
    if kind == "sampling":
        sample(who)
    else:
        take_three_steps(kind, who)
    print(json.dumps([before, peak_memory()]))


def tiny_model(kind: str) -> Transformer:
    """A model of this kind that takes next to no memory."""
    tiny = {"n_layers": 2, "n_heads": 2, "d_model": 24, "d_ff": 24}
    if kind == "BERT":
        return EncoderTransformer.bert(replace(BERT_BASE, **tiny), 99)
    if kind == "ViT":
        return EncoderTransformer.vit(replace(VIT_B16, **tiny), 8, 4, 3)
    return DecoderTransformer(replace(GPT2, **tiny), 99)


def sample(who: str) -> None:
    """Sample 16 tokens after 900. The peer is built from the shapes of our model, without our model's memory."""
    ids = torch.zeros(1, 900, dtype=torch.long)
    if who == "transformers":
        with torch.device("meta"):
            shapes = DecoderTransformer(GPT2, VOCAB_SIZE)
        their_times(transformers_model(shapes, weights=False).eval(), ids, 16)
    else:
        our_times(fast_on_cpu(DecoderTransformer(GPT2, VOCAB_SIZE)).eval(), ids, 16)


def take_three_steps(kind: str, who: str) -> None:
    """Train for three steps: ours by `train`, the peer in a bare loop."""
    _, build_task = LARGE_TASKS[kind]
    if who == "transformers":
        module, data = build_task("meta")
        peer = transformers_model(module.model, weights=False)
        batches = TrainBatches(data.order, data.make, data.batch_size)
        for _ in islice(bare_loop(peer, loss_by_transformers, batches, ADAMW), 3):
            pass
    else:
        module, data = build_task("cpu")
        fit(module, data, [], 3, accelerator="cpu")
