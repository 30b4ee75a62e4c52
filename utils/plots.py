"""Pictures of data, of a run, and of what a model does. Functions return a Figure if they do not say else."""

from __future__ import annotations

import csv
import html
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # from a palette that colour-blind readers tell apart
GLOW = LinearSegmentedColormap.from_list("glow", [ORANGE + "00", ORANGE + "e6"])  # from clear to nearly opaque


def read_metrics(path: str | Path) -> dict[str, tuple[list[float], list[float]]]:
    """Lightning's metrics.csv -> {name: (steps, values)}, without the empty cells."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else {}) if name not in ("step", "epoch")]
    return {
        name: ([float(row["step"]) for row in rows if row[name]], [float(row[name]) for row in rows if row[name]])
        for name in names
    }


def loss_curve(
    metrics: str | Path | dict[str, tuple[list[float], list[float]]],
    baselines: dict[str, float] | None = None,
    title: str = "",
    validation: str = "validation (full pass)",
    sample: str = "",
    unit: str = "nats",
) -> Figure:
    """Training and validation loss against the step, in `unit`; baselines, in the same, as dashed lines.

    metrics: a metrics.csv, or what `read_metrics` makes of one. sample: a text to stand below.
    """
    series = metrics if isinstance(metrics, dict) else read_metrics(metrics)
    if sample:
        lines = [line for part in sample.splitlines() for line in textwrap.wrap(part, 100) or [""]][:12]
        figure = Figure(figsize=(8, 4.5 + 0.2 * len(lines)), layout="constrained", dpi=120)
        axes, below = figure.subplots(2, 1, height_ratios=[4.5, 0.2 * len(lines)])
        below.set_axis_off()
        below.text(0, 1, "\n".join(lines), family="monospace", fontsize=8, va="top", parse_math=False)
    else:
        figure = Figure(figsize=(8, 4.5), layout="constrained", dpi=120)
        axes = figure.subplots()
    steps, losses = series.get("train_loss_step") or series["train_loss_epoch"]  # a very short run logs no step
    axes.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=1)
    # The mean of the last tenth of the run so far that ends here: readable, and honest about where it begins.
    width = max(1, len(losses) // 30)
    smooth = np.convolve(losses, np.ones(width) / width, "valid")
    axes.plot(steps[width - 1 :], smooth, color=BLUE, label=f"training (mean of {width} logged steps)")
    if "val_loss_epoch" in series:
        axes.plot(*series["val_loss_epoch"], color=ORANGE, marker="o", markersize=4, label=validation)
    top = 1.1 * max([*(baselines or {}).values(), *smooth])
    levels = sorted((baselines or {}).values())
    for name, value in (baselines or {}).items():
        axes.axhline(value, color=GREY, linestyle="--", linewidth=1)
        # The name stands in the margin, away from a neighbour that is near.
        near = [level - value for level in levels if 0 < abs(level - value) < 0.05 * top]
        place = "center" if not near else "top" if max(near) > 0 else "bottom"
        axes.annotate(
            f"{name} {value:.2f}", (1, value), xycoords=("axes fraction", "data"), xytext=(4, 0),
            textcoords="offset points", ha="left", va=place, fontsize=9, color=GREY,
        )  # fmt: skip
    axes.set(xlabel="step", ylabel=f"cross-entropy ({unit})", title=title)
    axes.set_ylim(0, top)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    return figure


def attention_grid(maps: Sequence[Tensor], tokens: Sequence[str], layers: Sequence[int] | None = None) -> Figure:
    """One small heat map per layer (down) and head (across): row = the token that looks, column = what it looks at.

    maps: each layer's (H, T, T), of one text.
    """
    layers = range(len(maps)) if layers is None else layers
    heads = maps[0].shape[0]
    side = 8.2 / heads  # inches: the whole is as wide as a notebook's page
    ticks = {"fontsize": min(7, 60 * side / len(tokens)), "family": "monospace"}
    names = [repr(token)[1:-1].replace(" ", "\u00b7") for token in tokens]
    figure = Figure(figsize=(9.2, side * len(layers) + 1), layout="constrained", dpi=120)
    grid = figure.subplots(len(layers), heads, squeeze=False, sharex=True, sharey=True)
    for row, layer in enumerate(layers):
        for head in range(heads):
            axes = grid[row][head]
            picture = axes.imshow(maps[layer][head].cpu().float(), cmap="viridis", vmin=0, vmax=1)
            axes.set_title(f"layer {layer}, head {head}", fontsize=9)
            axes.set_xticks(range(len(tokens)), names, rotation=90, **ticks)
            axes.set_yticks(range(len(tokens)), names, **ticks)
    figure.colorbar(picture, ax=grid, label="attention weight", shrink=min(1, 3 / len(layers)), aspect=30, pad=0.01)
    figure.supxlabel("token that is looked at", fontsize=10)
    figure.supylabel("token that looks", fontsize=10)
    return figure


def image_attention(
    images: Tensor,
    maps: Sequence[Tensor],
    titles: Sequence[str],
    layer: int = -1,
    label: str = "attention of the class token",
) -> Figure:
    """Pictures, and below each, in orange, what the class token looks at in one layer, averaged over its heads.

    images (B, channels, h, w) in 0..1; maps: each layer's (B, H, T, T) with the class token first.
    """
    n = len(images)
    figure = Figure(figsize=(n + 1.0, 2.8), layout="constrained", dpi=120)
    grid = figure.subplots(2, n, squeeze=False)
    seen = maps[layer].mean(1)[:, 0, 1:].cpu().float()
    side = int(seen.shape[1] ** 0.5)
    seen = F.interpolate(seen.view(n, 1, side, side), size=images.shape[-2:], mode="nearest")[:, 0]
    for i in range(n):
        picture = images[i].permute(1, 2, 0).cpu().clamp(0, 1)
        picture = picture[..., 0] if picture.shape[-1] == 1 else picture
        grid[0, i].imshow(picture, cmap="gray", vmin=0, vmax=1)
        grid[0, i].set_title(titles[i], fontsize=9)
        grid[1, i].imshow(images[i].mean(0).cpu(), cmap="gray", vmin=0, vmax=1)
        overlay = grid[1, i].imshow(seen[i], cmap=GLOW, vmin=0, vmax=seen.max())
        for axes in grid[:, i]:
            axes.set_axis_off()
    figure.colorbar(overlay, ax=grid, label=label, shrink=0.9).ax.set_facecolor("black")
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG: whole, or not at all."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(draft, format="png")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def scaled(images: Tensor) -> Tensor:
    """uint8 pictures -> floats in 0..1, for drawing."""
    return images.to(torch.float32) / 255


def picture(figure: Figure):
    """The figure as an IPython Image, for a notebook to display."""
    from IPython.display import Image

    content = io.BytesIO()
    figure.savefig(content, format="png")
    return Image(content.getvalue(), width=int(figure.get_figwidth() * 100))


def tokens_html(pieces: Sequence[str], strong: Sequence[bool] | None = None) -> str:
    """Tokens in their text as HTML, each on a tint of its own; those that are `strong` on a dark one."""
    tints = ("#cfe8f7", "#fbe3cf", "#d9f0e3", "#f3dcec")  # pale: dark letters can be read on all of them
    spans = []
    for i, piece in enumerate(pieces):
        back, front = ("#0072B2", "#ffffff") if strong is not None and strong[i] else (tints[i % 4], "#111111")
        shown = html.escape(piece).replace("\n", "\u23ce\n")
        style = f"background:{back};color:{front};white-space:pre-wrap;border-radius:3px;padding:1px 0"
        spans.append(f'<span style="{style}">{shown}</span>')
    return f'<div style="font-family:monospace;line-height:1.9">{"".join(spans)}</div>'


def ladder_bars(rungs: dict[str, float], ours: dict[str, float], unit: str, better: str) -> Figure:
    """Horizontal bars: what trivial methods score (grey) and what the model scores (blue). better: lower or higher."""
    both = {**{name: (value, GREY) for name, value in rungs.items()}, **{n: (v, BLUE) for n, v in ours.items()}}
    ordered = sorted(both.items(), key=lambda item: item[1][0], reverse=better == "higher")
    figure = Figure(figsize=(8, 0.45 * len(both) + 1), layout="constrained", dpi=100)
    axes = figure.subplots()
    names, values = [name for name, _ in ordered], [value for _, (value, _) in ordered]
    bars = axes.barh(names, values, color=[colour for _, (_, colour) in ordered])
    axes.bar_label(bars, fmt="%.3f", padding=4)
    axes.invert_yaxis()
    axes.set(xlabel=f"{unit} on the held-out part ({better} is better)", xlim=(0, 1.15 * max(values)))
    return figure


def heat_map(
    values: Tensor,
    x: str,
    y: str,
    label: str,
    ticks: Sequence[str] | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Figure:
    """A matrix as colours from `low` to `high`: rows down, columns across; `ticks` name both if given.

    What is not finite, such as log 0, stays white.
    """
    side = 6 if ticks is None else max(4.5, 0.28 * len(ticks) + 2)
    height = side * min(1, max(0.5, len(values) / values.shape[1]))
    figure = Figure(figsize=(side + 1, height), layout="constrained", dpi=100)
    axes = figure.subplots()
    image = axes.imshow(values.detach().cpu().float(), cmap="viridis", aspect="auto", interpolation="nearest")
    image.set_clim(low, high)
    axes.set(xlabel=x, ylabel=y)
    if ticks is not None:
        axes.set_xticks(range(len(ticks)), [repr(tick)[1:-1] for tick in ticks], rotation=90, fontsize=8)
        axes.set_yticks(range(len(ticks)), [repr(tick)[1:-1] for tick in ticks], fontsize=8)
    figure.colorbar(image, ax=axes, label=label)
    return figure


def picture_grid(images: Tensor, titles: Sequence[str] | None = None, columns: int = 8, width: float = 8.0) -> Figure:
    """Pictures (N, channels, h, w) in 0..1 in rows."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    size = width / columns
    figure = Figure(figsize=(width, rows * (size + (0.3 if titles else 0))), layout="constrained", dpi=100)
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if i < len(images):
            shown = images[i].permute(1, 2, 0).cpu().clamp(0, 1)
            axes.imshow(shown[..., 0] if shown.shape[-1] == 1 else shown, cmap="gray", vmin=0, vmax=1)
            if titles:
                axes.set_title(titles[i], fontsize=9)
    return figure
