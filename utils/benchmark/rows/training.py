"""Rows about training: the step of large models, what the Trainer costs, and the step on a GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy

import torch

from transformer import GPT, GPT2
from utils.benchmark.limits import card_peak, model_flops, training_bytes, training_flops
from utils.benchmark.peers import in_float32, loss_by_transformers, loss_of_all_logits, peers, transformers_model
from utils.benchmark.run import Run
from utils.benchmark.table import Row
from utils.benchmark.tasks import LARGE_TASKS, RECIPE, random_corpus, random_tokenizer, small_gpt
from utils.benchmark.turns import compete
from utils.data.text import GPTData
from utils.machine import has_bfloat16
from utils.training.cpu import fast_on_cpu


def training(run: Run) -> None:
    """A training step of GPT, BERT and ViT through the whole Trainer, against the peers in bare loops."""
    for kind, (title, build_task) in LARGE_TASKS.items():
        torch.manual_seed(0)
        module, data = build_task()
        rivals = peers(kind, module.model)
        if run.quick:
            rivals = {name: pair for name, pair in rivals.items() if name.startswith("transformers")}
        built = {name: (build(), loss) for name, (build, loss) in rivals.items()}

        inputs, targets = next(iter(data.train_dataloader()))
        length = module.model.config.max_len  # every sequence of these tasks is as long as possible
        kept = int((targets != -100).sum())
        work = training_flops(module.model, len(inputs), length, kept), training_bytes(module)
        seconds = compete(module, data, built, block=1, turns=4 if run.quick else 12)
        for name in built:
            row = Row("training", f"training step, {title}", name, seconds["ours"], seconds[name], work)
            if name.startswith("transformers"):
                row.must, row.aim = {"ratio": 0.95}, {"ratio": 0.85}
            run.add(row)
        if has_bfloat16("cpu") and run.machine.device.type == "cpu":
            half(run, kind, title, build_task)


def half(run: Run, kind: str, title: str, build_task: Callable) -> None:
    """The same step in bfloat16, against transformers in bfloat16 and in float32."""
    torch.manual_seed(0)
    module, data = build_task()
    build, loss = next(pair for name, pair in peers(kind, module.model).items() if name.startswith("transformers"))
    rivals = {"transformers, bfloat16": (build(), loss), "transformers, float32": (build(), in_float32(loss))}
    seconds = compete(module, data, rivals, block=1, turns=4 if run.quick else 12, precision="bf16-mixed")
    for name, must, aim in (("transformers, bfloat16", 0.95, 0.85), ("transformers, float32", 0.60, 0.45)):
        row = Row("training", f"training step in bfloat16, {title}", name, seconds["ours"], seconds[name])
        row.must, row.aim = {"ratio": must}, {"ratio": aim}
        run.add(row)


def overhead(run: Run) -> None:
    """What the Trainer, its logging and its progress bar add to a bare loop of the same model."""
    for context, batch_size, vocab_size in ((64, 12, 65), (128, 16, 1024)):
        torch.manual_seed(0)
        module, data = small_gpt(context, batch_size, vocab_size)
        rivals = {"bare loop": (fast_on_cpu(deepcopy(module.model)), loss_of_all_logits)}
        seconds = compete(module, data, rivals, block=10, turns=8 if run.quick else 30)
        flops = training_flops(module.model, batch_size, context, batch_size * context)
        name = f"Trainer, GPT 4x128 (0.8 M), {batch_size} x {context} tokens, vocabulary of {vocab_size}"
        work = flops, training_bytes(module)
        row = Row("overhead", name, "bare loop", seconds["ours"], seconds["bare loop"], work)
        row.must, row.aim = {"ratio": 1.08}, {"ratio": 1.03}
        run.add(row)


def gpu(run: Run) -> None:
    """GPT at the size of GPT-2 in float32 and bfloat16, compiled and not; the floor is at the card's stated peak."""
    on_gpu = run.machine.device.type == "cuda"
    peak = card_peak(torch.cuda.get_device_name(run.machine.device)) if on_gpu else None
    if peak is None:
        print("The GPU's rows are left out: there is no GPU whose peak is known here.", file=sys.stderr)
        return
    torch.set_float32_matmul_precision("high")  # as the command line does
    batch_size, length = 16, 1024
    vocab_size = 50_304  # GPT-2's 50,257 tokens, rounded up to a multiple of 64
    for precision, compiled in (("32-true", False), ("bf16-mixed", False), ("bf16-mixed", True)):
        torch.manual_seed(0)
        module = GPT(GPT2, vocab_size, RECIPE)
        data = GPTData(random_corpus(vocab_size, 800_000), length, batch_size, random_tokenizer(vocab_size))
        peer = transformers_model(module.model)
        if compiled:
            module.model.compile()
            peer.compile()
        rivals = {"transformers": (peer, loss_by_transformers)}
        seconds = compete(module, data, rivals, block=5, turns=4 if run.quick else 8, precision=precision)
        name = f"training step, GPT-2 124 M, {batch_size} x {length} tokens, {precision}{', compiled' * compiled}"
        row = Row("gpu", name, "transformers", seconds["ours"], seconds["transformers"])
        row.floor = model_flops(module.model, batch_size, length) / peak
        peak_text = f"{peak / 1e12:.0f} TFLOP/s in bfloat16"
        row.note = f"the floor as a share of our time is the MFU: 6 N + 12 L C T FLOPs for each token at {peak_text}"
        if compiled:
            row.must, row.aim = {"share": 0.45}, {"share": 0.55}
        run.add(row)
