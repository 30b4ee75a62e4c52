"""The report of a run: summary.json, the loss curve, and the table of several runs.

    python -m utils.training.report runs/bert runs/vit runs/gpt      # print a table of finished runs

With `--readme` the table is also written into README.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lightning as L

from utils import plots
from utils.data.images import ImageData
from utils.data.labelled import TableData
from utils.files import ROOT, write_between_marks, write_text
from utils.training.machine import device_name, peak_memory, versions
from utils.training.scoring import SCORE


def close_run(module: L.LightningModule, data: L.LightningDataModule, out: Path, preset: str, seconds: float) -> dict:
    """Test the best checkpoint on the whole test part, beside the baselines; write the report and return the summary.

    seconds: how long the training took. Of several processes only the first writes; the others return {}.
    """
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
        **SCORE[type(data)](module, data, out, tested),
        "steps": steps,
        "seconds": round(seconds, 1),
        f"{unit}_per_second": round(steps * per_step / seconds, 1),
        "peak_memory_mib": round(peak_memory() / 2**20),
        "seed": module.recipe.seed,
        "device": device_name(),
        "versions": versions("torch", "lightning", "torchmetrics", "tokenizers", "numpy"),
    }
    lines = summary.pop("loss_lines")
    title = f"{summary['model']} on {summary['data']['name']}"
    validation = "validation part (trained on: refit)" if "refit" in title else "validation (full pass)"
    plots.save(plots.loss_curve(out / "metrics.csv", lines, title, validation), out / "loss.png")
    write_text(out / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary


def rows(summaries: list[dict]) -> list[tuple[str, ...]]:
    """A row of titles, then one row for each run: model, data, figure, baselines, seconds."""
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
    """The rows as a table for a terminal."""
    found = rows(summaries)
    widths = [max(map(len, column)) for column in zip(*found, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in found]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def into_readme(summaries: list[dict], readme: Path) -> None:
    """Write the rows as a Markdown table between the `results` marks of the README."""
    found = ["| " + " | ".join(row) + " |" for row in rows(summaries)]
    found.insert(1, "|---" * 5 + "|")
    write_between_marks(readme, "results", "\n".join(found))


if __name__ == "__main__":
    folders = [argument for argument in sys.argv[1:] if argument != "--readme"]
    runs = [json.loads(Path(folder, "summary.json").read_text(encoding="utf-8")) for folder in folders]
    print(table(runs))
    if "--readme" in sys.argv:
        into_readme(runs, ROOT / "README.md")
