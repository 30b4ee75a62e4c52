"""What a run leaves behind: summary.json, pictures, samples, and the table on the screen.

`python -m utils.report runs/bert runs/vit runs/gpt` prints one table of finished runs; with `--readme` it also
writes it into the README.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import sys
import tempfile
from importlib.metadata import version
from itertools import count
from pathlib import Path
from pickle import UnpicklingError

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from utils import baselines, plots
from utils.images import ImageData
from utils.table import TableData
from utils.text import BERTData, GPTData

PICTURES, TEXTS = ("loss.png", "attention.png"), ("samples.txt", "predictions.txt", "tokenizer.json", "metrics.csv")
OUTPUTS = ("summary.json", "checkpoints", *PICTURES, *TEXTS)


def open_run(out: Path, module: L.LightningModule, resume: bool) -> None:
    """Make `out`, or raise a ValueError that says why it cannot hold a run or why the run there cannot go on.

    Unless it goes on, what an earlier run left there is moved into `out`/earlier-1 (or -2, ...).
    """
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    needed = 2 * 3 * weights + 2**24  # two checkpoints of the weights and both moments, and some room
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out):
            free = shutil.disk_usage(out).free
    except OSError as error:
        raise ValueError(f"out={str(out)!r}: must be a folder that can be written ({error.strerror})") from error
    if free < needed:
        raise ValueError(f"out={str(out)!r}: must have {needed / 2**20:.0f} MiB free, and has {free / 2**20:.0f}")
    if resume:
        check_checkpoint(out / "checkpoints" / "last.ckpt", module)
    elif rank_zero_only.rank == 0:
        earlier = [out / name for name in OUTPUTS if (out / name).exists()]
        if earlier:
            there = next(folder for n in count(1) if not (folder := out / f"earlier-{n}").exists())
            there.mkdir()
            for path in earlier:
                path.rename(there / path.name)
            print(f"the earlier run's files are in {there} now")


def check_checkpoint(last: Path, module: L.LightningModule) -> None:
    """Raise a ValueError unless `last` is a whole checkpoint of a module such as this one."""
    try:
        saved = torch.load(last, map_location="cpu", weights_only=True)["hyper_parameters"]
    except (RuntimeError, EOFError, KeyError, UnpicklingError) as error:
        raise ValueError(f"resume=True: must be left out, because {last} is damaged or no checkpoint") from error
    if saved != dict(module.hparams):
        raise ValueError(f"resume=True: must be left out, because {last} is of another model: {saved}")


def write(path: Path, text: str) -> None:
    """Write a text file: whole, or not at all."""
    draft = path.with_name(f".{path.name}.part")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def close_run(module: L.LightningModule, data: L.LightningDataModule, out: Path, preset: str, seconds: float) -> dict:
    """Score the best checkpoint on the whole test part, beside the baselines; write and return the summary."""
    trainer = module.trainer
    unit = {ImageData: "images", TableData: "texts"}.get(type(data), "tokens")
    per_step = data.batch_size * (data.context if unit == "tokens" else 1)
    steps = trainer.global_step
    figures = {name: value.item() for name, value in trainer.callback_metrics.items()}
    best = trainer.checkpoint_callback.best_model_path
    tested = trainer.test(module, data, ckpt_path=best, verbose=False)[0]
    if not trainer.is_global_zero:
        return {}
    module.eval()
    summary = {
        "model": type(module).__name__,
        "preset": preset,
        "parameters": sum(p.numel() for p in module.parameters()),
        "data": data.describe(),
        "metrics": figures | tested,
        **FINISH[type(data)](module, data, out, tested),
        "steps": steps,
        "seconds": round(seconds, 1),
        f"{unit}_per_second": round(steps * per_step / seconds, 1),
        "peak_memory_mib": round(peak_memory() / 2**20),
        "seed": module.recipe.seed,
        "device": device_name(),
        "versions": {name: version(name) for name in ("torch", "lightning", "torchmetrics", "tokenizers", "numpy")}
        | {"python": platform.python_version()},
    }
    lines = summary.pop("loss_lines")
    title = f"{summary['model']} on {summary['data']['name']}"
    seen = "validation part, trained on (refit)" if "refit" in title else "validation (full pass)"
    plots.save(plots.loss_curve(out / "metrics.csv", lines, title, seen), out / "loss.png")
    write(out / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary


def finish_gpt(module: L.LightningModule, data: GPTData, out: Path, tested: dict) -> dict:
    ladder = baselines.text_ladder(data.corpus.train, data.corpus.test)
    n_bytes, n_tokens = len(data.corpus.test.encode()), len(data.test)
    # The first token has nothing before it and is not scored: it counts as an average one.
    bits = tested["test_loss"] * n_tokens / n_bytes / math.log(2)
    data.tokenizer.save(str(out / "tokenizer.json"))
    in_nats = {name: value * math.log(2) * n_bytes / n_tokens for name, value in ladder.items() if name != "uniform"}
    return {
        "figure": {"name": "bits per byte", "value": bits, "better": "lower"},
        "nats_per_character": tested["test_loss"] * n_tokens / len(data.corpus.test),
        "baselines": ladder,
        "loss_lines": in_nats,
    }


def finish_bert(module: L.LightningModule, data: BERTData, out: Path, tested: dict) -> dict:
    shown, targets = data.held_out(data.test)
    words = shown.where(targets == -100, targets)
    ladder = baselines.masked_ladder(data.train, shown, targets, words, data.vocab_size)
    data.tokenizer.save(str(out / "tokenizer.json"))
    word = data.tokenizer.id_to_token
    lines = ["The first windows of the test part; each blank with the model's five likeliest words.", ""]
    for masked, answers in zip(shown[:12], targets[:12], strict=True):
        inside = masked[1:-1].where(masked[1:-1] != data.mask, -1).tolist()
        # Decoded piece by piece, so that every blank stays where it is.
        text = data.tokenizer.decode([i if i >= 0 else data.mask for i in inside], skip_special_tokens=False)
        lines.append(text.replace("[MASK]", "___"))
        with torch.inference_mode():
            likely = module.model(masked[None].to(module.device))[0][answers != -100].softmax(-1).topk(5)
        for answer, ids, chances in zip(answers[answers != -100].tolist(), likely.indices, likely.values, strict=True):
            guesses = [f"{word(i)} {p:.2f}" for i, p in zip(ids.tolist(), chances.tolist(), strict=True)]
            lines.append(f"    {word(answer)}: {', '.join(guesses)}")
        lines.append("")
    write(out / "predictions.txt", "\n".join(lines))
    return {
        "figure": {"name": "masked-word accuracy", "value": tested["test_acc"], "better": "higher"},
        "cross_entropy": tested["test_loss"],
        "baselines": {name: rung["accuracy"] for name, rung in ladder.items()},
        "baselines_cross_entropy": {name: ladder[name]["cross_entropy"] for name in ("uniform", "unigram")},
        "loss_lines": {"unigram": ladder["unigram"]["cross_entropy"]},
    }


def finish_vit(module: L.LightningModule, data: ImageData, out: Path, tested: dict) -> dict:
    pictures, labels = (part[:: max(1, len(part) // 10)][:10] for part in data.images.test)
    inputs = data.normalize(pictures).to(module.device)
    with torch.inference_mode():
        guesses = module.model(inputs).argmax(-1)
    names = data.classes
    titles = [f"{names[y]}, said {names[g]}" for y, g in zip(labels.tolist(), guesses.tolist(), strict=True)]
    figure = plots.image_attention(plots.scaled(pictures), module.model.attention_maps(inputs), titles)
    plots.save(figure, out / "attention.png")
    low, high = baselines.interval(tested["test_acc"], len(data.images.test[1]))
    return {
        "figure": {"name": "accuracy", "value": tested["test_acc"], "better": "higher", "interval_95": [low, high]},
        "baselines": baselines.image_ladder(data.images.train, data.images.test),
        "loss_lines": {"uniform": math.log(data.n_classes)},
    }


def finish_table(module: L.LightningModule, data: TableData, out: Path, tested: dict) -> dict:
    (texts, labels), lines = data.table.test, ["Texts of the test part, their class, and the model's guess.", ""]
    data.tokenizer.save(str(out / "tokenizer.json"))
    for text, label, ids in list(zip(texts, labels, data.ids["test"], strict=True))[:20]:
        with torch.inference_mode():
            chance, guess = module.model(torch.tensor([ids], device=module.device)).softmax(-1)[0].max(0)
        lines += [" ".join(text.split())[:100], f"    {data.classes[label]}: {data.classes[guess]} {chance:.2f}", ""]
    write(out / "predictions.txt", "\n".join(lines))
    low, high = baselines.interval(tested["test_acc"], len(labels))
    return {
        "figure": {"name": "accuracy", "value": tested["test_acc"], "better": "higher", "interval_95": [low, high]},
        "baselines": baselines.table_ladder(data.table.train, data.table.test),
        "loss_lines": {"uniform": math.log(data.n_classes)},
    }


FINISH = {GPTData: finish_gpt, BERTData: finish_bert, ImageData: finish_vit, TableData: finish_table}


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def peak_memory() -> int:
    """Bytes: of the GPU if one was used, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    if os.name == "nt":
        import psutil

        return psutil.Process().memory_info().peak_wset
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux, getrusage's peak begins at that of the process that started this one
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def rows(summaries: list[dict]) -> list[tuple[str, ...]]:
    """Model, data, figure, baselines, seconds: one row a run, under a row of titles."""
    found = [("model", "data", "figure on the test part", "baselines", "seconds")]
    for summary in summaries:
        figure = summary["figure"]
        value = f"{figure['name']} {figure['value']:.3f}"
        if "interval_95" in figure:
            value += " ({:.3f} to {:.3f})".format(*figure["interval_95"])
        elif "cross_entropy" in summary:
            value += f", cross-entropy {summary['cross_entropy']:.3f}"
        elif "nats_per_character" in summary:
            value += f", {summary['nats_per_character']:.3f} nats per character"
        ladder = ", ".join(f"{name} {rung:.3f}" for name, rung in summary["baselines"].items())
        found.append((summary["model"], summary["data"]["name"], value, ladder, f"{summary['seconds']:.0f}"))
    return found


def table(summaries: list[dict]) -> str:
    """The rows for a terminal."""
    found = rows(summaries)
    widths = [max(map(len, column)) for column in zip(*found, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in found]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def into_readme(summaries: list[dict], readme: Path) -> None:
    """Put the rows, as a table, between the README's two `results` marks."""
    found = ["| " + " | ".join(row) + " |" for row in rows(summaries)]
    found.insert(1, "|---" * 5 + "|")
    between_marks(readme, "results", "\n".join(found))


def between_marks(readme: Path, name: str, text: str) -> None:
    """Put the text between <!-- NAME --> and <!-- end of NAME -->."""
    before, start, rest = readme.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    if not end:
        raise ValueError(f"readme={str(readme)!r}: must hold the marks <!-- {name} --> and <!-- end of {name} -->")
    write(readme, f"{before}{start}{text}\n{end}{after}")


if __name__ == "__main__":
    folders = [argument for argument in sys.argv[1:] if argument != "--readme"]
    runs = [json.loads(Path(folder, "summary.json").read_text(encoding="utf-8")) for folder in folders]
    print(table(runs))
    if "--readme" in sys.argv:
        into_readme(runs, Path(__file__).resolve().parent.parent / "README.md")
