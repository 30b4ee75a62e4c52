"""Rows about data: the time that it takes to make a batch, against the training step that the batch feeds."""

from __future__ import annotations

import time
from itertools import islice

from utils.benchmark.peers import loss_of_kept_logits
from utils.benchmark.run import Run
from utils.benchmark.table import Row
from utils.benchmark.tasks import ADAMW, LARGE_TASKS, small_gpt, small_vit
from utils.benchmark.turns import bare_loop
from utils.data.batches import TrainBatches
from utils.data.images import ImageData
from utils.training.cpu import fast_on_cpu
from utils.training.presets import PRESETS


def batch_making(run: Run) -> None:
    """One batch against one step of a bare loop, on the CPU; pictures with the augmentation of a preset."""
    tasks = {title: (build_task, "full") for title, build_task in LARGE_TASKS.values()}
    tasks["GPT 4x128, small"] = lambda: small_gpt(128, 16, 1024), "small"
    tasks["ViT 4x96, small, 100 digits"] = small_vit, "small"
    for title, (build_task, preset) in tasks.items():
        module, data = build_task()
        if isinstance(data, ImageData):
            data.augment = PRESETS["vit"][preset]["batches"]["augment"]
        batches = TrainBatches(data.order, data.make, data.batch_size)
        steps = bare_loop(fast_on_cpu(module.model), loss_of_kept_logits, batches, ADAMW)
        next(steps)  # not timed: oneDNN compiles its kernels
        batch_seconds, step_seconds = [], []
        for _ in range(3 if run.quick else 20):
            began = time.perf_counter()
            n = sum(1 for _ in islice(batches, min(len(batches), 5)))
            batch_seconds.append((time.perf_counter() - began) / n)
            began = time.perf_counter()
            next(steps)
            step_seconds.append(time.perf_counter() - began)
        run.add(Row("data", f"one batch, {title}", "its step", batch_seconds, step_seconds, must={"ratio": 1 / 20}))
