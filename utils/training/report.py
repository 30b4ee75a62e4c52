"""The report of a run: summary.json, the loss curve, and the table of several runs.

    python -m utils.training.report runs/*      # print a table of finished runs, and how each was set

Runs of one model on one data set stand together, the best first. With `--readme` the table also goes into README.md.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from matplotlib.figure import Figure

from utils import plots
from utils.data.baselines import MOST
from utils.data.disk import LongText
from utils.data.images import ImageData
from utils.data.labelled import TableData
from utils.files import ROOT, write_between_marks, write_text
from utils.machine import device_name, peak_memory, versions
from utils.training.callbacks import Lost
from utils.training.scoring import SCORE, attention_of_ten

END = "end of the run"  # which weights best.ckpt holds, where it does not hold those of the lowest validation loss


def close_run(
    module: L.LightningModule,
    data: L.LightningDataModule,
    out: Path,
    settings: dict,
    seconds: float,
    lost: Lost | None = None,
) -> dict:
    """Test the best checkpoint on the whole test part, beside the baselines; write the report and return the summary.

    settings: the options of the run, the preset among them. seconds: how long the training took. lost: why it ended
    before its time. Of several processes only the first writes; the others return {}.
    """
    trainer = module.trainer
    unit = {ImageData: "images", TableData: "texts"}.get(type(data), "tokens")
    per_step = data.batch_size * (data.context if unit == "tokens" else 1)
    steps = trainer.global_step
    figures = {name: value.item() for name, value in trainer.callback_metrics.items()}
    checkpoint = trainer.checkpoint_callback
    best = checkpoint.best_model_path
    tested = trainer.test(module, data, ckpt_path=best, verbose=False)[0]
    if not trainer.is_global_zero:
        return {}
    module.eval()
    summary = {
        "model": type(module).__name__,
        "preset": settings["preset"],
        "settings": settings,
        "parameters": sum(p.numel() for p in module.parameters()),
        "data": data.describe(),
        "metrics": figures | tested,
        "checkpoint": "lowest validation loss" if checkpoint.monitor == "val_loss" else END,
        **SCORE[type(data)](module, data, out, tested),
        "steps": steps,
        "seconds": round(seconds, 1),
        f"{unit}_per_second": round(steps * per_step / seconds, 1),
        "peak_memory_mib": round(peak_memory() / 2**20),
        "seed": module.recipe.seed,
        "device": device_name(),
        "precision": module.trainer.precision,
        "versions": versions("torch", "lightning", "torchmetrics", "tokenizers", "numpy"),
    }
    summary["starts"] = starts(summary, out)
    lines = summary.pop("loss_lines")
    series = plots.read_metrics(out / "metrics.csv")
    summary["ending"] = ending(series, summary, guessing=math.log(module.n_outputs))
    if lost:
        step = torch.load(best, map_location="cpu", weights_only=True)["global_step"]
        summary["ending"][:1] = [f"Lost: {lost}. All figures are of best.ckpt, of step {step}, before that happened."]
    if unit == "tokens" and isinstance(data.corpus.train, LongText):
        megabytes = len(data.corpus.train.sample.encode()) / 1e6
        summary["ending"].append(f"The tokenizer and the baselines know {megabytes:.1f} MB of the training part.")
    elif unit != "tokens" and summary["data"]["train"][unit] > MOST:
        summary["ending"].append(f"Logistic regression is fitted on {MOST:,} of the training {unit}.")
    write_text(out / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    title = f"{summary['model']} on {summary['data']['name']}"
    validation = "validation part (trained on: refit)" if "refit" in title else "validation (full pass)"
    draw(lambda: plots.loss_curve(series, lines, title, validation), out / "loss.png")
    if unit == "images":
        draw(lambda: attention_of_ten(module, data), out / "attention.png")
    return summary


def draw(figure: Callable[[], Figure], path: Path) -> None:
    """Write a picture. If that fails, one line says so: the figures of a run, written before, are worth more."""
    try:
        plots.save(figure(), path)
    except Exception as error:
        print(f"{path.name} could not be drawn: {type(error).__name__}: {error}", file=sys.stderr)


def starts(summary: dict, out: Path) -> list[dict]:
    """This run beside the finished runs in the folders next to it that are of the same model on the same data.

    Each entry says where the run started, from nothing or from which weights, and what it reached; the best first.
    """
    found = [(out, summary)]
    for path in sorted(out.resolve().parent.glob("*/summary.json")):
        other = read_summary(path) if path.parent != out.resolve() else None
        if other is not None:
            found.append((path.parent, other))
    same = [(folder, other) for folder, other in found if is_comparable(other, summary)]
    same.sort(key=lambda pair: pair[1]["figure"]["value"], reverse=summary["figure"]["better"] == "higher")
    return [
        {
            "run": folder.name,
            "start": other["settings"].get("pretrained", "nothing"),
            "value": other["figure"]["value"],
            "seconds": other["seconds"],
        }
        for folder, other in same
    ]


def read_summary(path: Path) -> dict | None:
    """The summary of a finished run; None for a file that is none, or is damaged."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    parts = {"model", "figure", "data", "seconds"}
    return summary if isinstance(summary, dict) and parts <= summary.keys() else None


def is_comparable(one: dict, other: dict) -> bool:
    """Whether two summaries are of the same model and figure, on data of the same name with equally large parts."""
    if "settings" not in one or one["model"] != other["model"]:
        return False

    def sizes(summary: dict) -> list[dict]:
        parts = (summary["data"][part] for part in ("train", "validation", "test"))
        return [{unit: n for unit, n in part.items() if unit != "tokens"} for part in parts]

    same = one["figure"]["name"] == other["figure"]["name"] and one["data"]["name"] == other["data"]["name"]
    return same and sizes(one) == sizes(other)


def ending(series: dict[str, tuple[list[float], list[float]]], summary: dict, guessing: float) -> list[str]:
    """Say in words how a run ended, and what to try.

    series: the losses by step, of metrics.csv. guessing: the loss of a model that knows nothing, log(V) or log(K).
    """
    said = [] if "refit" in summary["data"]["name"] else [how_it_learned(series, summary["steps"], guessing)]
    if summary["checkpoint"] == END:
        said.append("best.ckpt holds the weights of the end: the validation part is too small to pick others by it.")
    figure = summary["figure"]
    value, sign = figure["value"], 1 if figure["better"] == "lower" else -1
    ahead = [f"{name} {rung:.3f}" for name, rung in summary["baselines"].items() if sign * (rung - value) <= 0]
    if ahead:
        said.append(f"Not better than a trivial method: {figure['name']} {value:.3f}, but {', '.join(ahead)}.")
    return said


def how_it_learned(series: dict[str, tuple[list[float], list[float]]], n_steps: int, guessing: float) -> str:
    """Whether the model learned, memorised its data, or could have learned more: a sentence or three."""
    steps, losses = series["val_loss_epoch"]
    lowest, last = min(losses), losses[-1]
    best = int(steps[losses.index(lowest)]) + 1  # metrics.csv counts steps from 0
    _, training = series.get("train_loss_step") or series["train_loss_epoch"]  # a very short run logs no step
    recent = training[-max(1, len(training) // 10) :]
    trained = sum(recent) / len(recent)
    if last > 1.05 * lowest and trained < lowest:
        above = f" (guessing: {guessing:.2f})" if last > guessing else ""
        return (
            f"Memorised: after step {best} the validation loss rose from {lowest:.2f} to {last:.2f}{above}, while the "
            f"training loss fell to {trained:.2f}. Try --max-steps {best * 3 // 2}, more data, or a start from a "
            "trained model (--pretrained)."
        )
    if lowest > 0.95 * guessing:
        return (
            f"Learned next to nothing: the validation loss is {lowest:.2f}, and that of guessing {guessing:.2f}. "
            "Try more steps, or another --lr."
        )
    learned = f"Learned: the validation loss fell to {lowest:.2f}, the training loss to {trained:.2f}."
    if last == lowest and trained > 0.97 * lowest:
        learned += f" As they are alike, a longer run would learn more: try --max-steps {2 * n_steps}."
    return learned


def rows(summaries: list[dict]) -> list[tuple[str, ...]]:
    """A row of titles, then one row for each run: model, data, figure, baselines, seconds."""
    found = [("model", "data", "figure on the test part", "baselines", "seconds")]
    for summary in summaries:
        figure = summary["figure"]
        value = f"{figure['name']} {figure['value']:.3f}"
        if "interval_95" in figure:
            value += " ({:.3f} to {:.3f})".format(*figure["interval_95"])
        if "cross_entropy" in summary:
            value += f", cross-entropy {summary['cross_entropy']:.3f}"
        elif "nats_per_character" in summary:
            value += f", {summary['nats_per_character']:.3f} nats per character"
        ladder = ", ".join(f"{name} {rung:.3f}" for name, rung in summary["baselines"].items())
        found.append((summary["model"], summary["data"]["name"], value, ladder, f"{summary['seconds']:.0f}"))
    return found


def settings_of(summary: dict) -> str:
    """The options of a run as they stand on the command line."""
    given = summary.get("settings", {"preset": summary["preset"]})
    words = (f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in given.items())
    return " ".join(words)


def table(summaries: list[dict], settings: bool = False) -> str:
    """The rows as a table for a terminal; with `settings`, one more column for the options of each run."""
    found = rows(summaries)
    if settings:
        column = ["settings", *map(settings_of, summaries)]
        found = [(*row, cell) for row, cell in zip(found, column, strict=True)]
    widths = [max(map(len, column)) for column in zip(*found, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in found]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def into_readme(summaries: list[dict], readme: Path) -> None:
    """Write the rows as a Markdown table between the `results` marks of the README."""
    found = ["| " + " | ".join(row) + " |" for row in rows(summaries)]
    found.insert(1, "|---" * 5 + "|")
    write_between_marks(readme, "results", "\n".join(found))


def in_order(summaries: list[dict]) -> list[dict]:
    """Runs of one model on one data set together, where the first of them stands, and the best of them first."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for summary in summaries:
        groups.setdefault((summary["model"], summary["data"]["name"]), []).append(summary)
    ordered = []
    for group in groups.values():
        best_first = group[0]["figure"]["better"] == "higher"
        ordered += sorted(group, key=lambda summary: summary["figure"]["value"], reverse=best_first)
    return ordered


def main(arguments: list[str]) -> None:
    """Print the table of the runs in these folders."""
    summaries = []
    for folder in (argument for argument in arguments if argument != "--readme"):
        summary = read_summary(Path(folder, "summary.json"))
        if summary is not None:
            summaries.append(summary)
        else:
            print(f"{folder} holds no finished run: it has no whole summary.json", file=sys.stderr)
    print(table(in_order(summaries), settings=True))
    if "--readme" in arguments:
        into_readme(summaries, ROOT / "README.md")


if __name__ == "__main__":
    main(sys.argv[1:])
