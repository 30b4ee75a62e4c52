"""Plots of a training run, of attention and of data. Functions return a matplotlib Figure unless they say otherwise."""

from __future__ import annotations

import csv
import html
import io
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor
from torch.nn import functional as F

from utils.files import whole

# Colours that colour-blind readers can tell apart (Okabe and Ito 2008, "Color universal design").
BLUE = "#0072B2"
ORANGE = "#D55E00"
GREY = "#666666"
OVERLAY = LinearSegmentedColormap.from_list("overlay", [ORANGE + "00", ORANGE + "e6"])  # transparent to nearly opaque
TINTS = ("#cfe8f7", "#fbe3cf", "#d9f0e3", "#f3dcec")  # pale, so that dark text on them can be read
SAMPLE_WIDTH = 100  # characters in a line of the sample below a loss curve
SAMPLE_LINES = 12
SMALLEST = 5  # points, of a token's name beside its attention

Series = dict[str, tuple[list[float], list[float]]]  # name -> (steps, values)


# ------------------------------------------------------------------------------------------------ training
def read_metrics(path: str | Path) -> Series:
    """Read the metrics.csv of Lightning's CSVLogger: {name: (steps, values)}, without the empty cells."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    series = {}
    for name in rows[0] if rows else ():
        if name in ("step", "epoch"):
            continue
        filled = [row for row in rows if row[name]]
        steps = [float(row["step"]) for row in filled]
        values = [float(row[name]) for row in filled]
        series[name] = (steps, values)
    return series


def loss_curve(
    metrics: str | Path | Series,
    baselines: dict[str, float] | None = None,
    title: str = "",
    validation: str = "validation (full pass)",
    sample: str = "",
    unit: str = "nats",
) -> Figure:
    """The training and the validation loss over the steps, with baselines as dashed lines.

    metrics: the path of a metrics.csv, or the series of `read_metrics`. baselines: name -> loss, in `unit`.
    validation: the label of the validation loss. sample: a text below the curve. unit: the unit of the losses.
    """
    series = metrics if isinstance(metrics, dict) else read_metrics(metrics)
    baselines = baselines or {}
    lines = wrapped(sample)
    height = 0.2 * len(lines)  # of the sample, in inches
    figure = Figure(figsize=(8, 4.5 + height), layout="constrained", dpi=120)
    if lines:
        axes, below = figure.subplots(2, 1, height_ratios=[4.5, height])
        below.set_axis_off()
        below.text(0, 1, "\n".join(lines), family="monospace", fontsize=8, va="top", parse_math=False)
    else:
        axes = figure.subplots()

    # A run of a few steps logs its training loss by epoch only.
    steps, losses = series.get("train_loss_step") or series["train_loss_epoch"]
    axes.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=1)
    # A moving average over a thirtieth of the run. Each value stands at the last step that it averages, so the curve
    # begins only after the first `width` logged steps.
    width = max(1, len(losses) // 30)
    smooth = np.convolve(losses, np.ones(width) / width, "valid")
    averaged = f" (mean of {width} logged steps)" if width > 1 else ""
    axes.plot(steps[width - 1 :], smooth, color=BLUE, label=f"training{averaged}")
    if "val_loss_epoch" in series:
        axes.plot(*series["val_loss_epoch"], color=ORANGE, marker="o", markersize=4, label=validation)
    top = 1.1 * max([*baselines.values(), *smooth])
    draw_baselines(axes, baselines, near=0.05 * top)
    axes.set(xlabel="step", ylabel=f"cross-entropy ({unit})", title=title)
    axes.set_ylim(0, top)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    return figure


def wrapped(text: str) -> list[str]:
    """The first lines of a text, broken at SAMPLE_WIDTH characters."""
    lines = []
    for line in text.splitlines():
        lines += textwrap.wrap(line, SAMPLE_WIDTH) or [""]  # wrap gives no line for an empty one
    return lines[:SAMPLE_LINES]


def draw_baselines(axes: Axes, baselines: dict[str, float], near: float) -> None:
    """Draw dashed lines. Their names stand in the right margin, apart from each other where two lines are `near`."""
    for name, value in baselines.items():
        axes.axhline(value, color=GREY, linestyle="--", linewidth=1)
        distances = [other - value for other in baselines.values() if 0 < abs(other - value) < near]
        if not distances:
            alignment = "center"
        elif max(distances) > 0:  # a neighbour above: the name stands below its line
            alignment = "top"
        else:
            alignment = "bottom"
        axes.annotate(
            f"{name} {value:.2f}",
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            ha="left",
            va=alignment,
            fontsize=9,
            color=GREY,
        )


def ladder_bars(
    rungs: dict[str, float],
    ours: dict[str, float],
    unit: str,
    better: str,
    interval: Callable[[float], tuple[float, float]] | None = None,
) -> Figure:
    """Horizontal bars of scores on the test part, the best at the top: the baselines `rungs` in grey, the models `ours`
    in blue. better: which scores are better, "lower" or "higher". interval: a score to the two ends of its confidence
    interval, which is then drawn.
    """
    scores = {**rungs, **ours}
    names = sorted(scores, key=scores.get, reverse=better == "higher")
    values = [scores[name] for name in names]
    colours = [BLUE if name in ours else GREY for name in names]
    figure = Figure(figsize=(8, 0.45 * len(names) + 1), layout="constrained", dpi=100)
    axes = figure.subplots()
    errors = None
    if interval is not None:
        errors = [[abs(interval(value)[end] - value) for value in values] for end in (0, 1)]
    bars = axes.barh(names, values, color=colours, xerr=errors, error_kw={"capsize": 3, "elinewidth": 1})
    axes.bar_label(bars, fmt="%.3f", padding=4)
    axes.invert_yaxis()  # the first bar at the top
    axes.set(xlabel=f"{unit} on the test part ({better} is better)", xlim=(0, 1.2 * max(values)))
    return figure


def seed_dots(
    panels: dict[str, dict[str, list[float]]],
    baselines: dict[str, dict[str, float]],
    unit: str,
    interval: Callable[[list[float]], tuple[float, float, float]],
    guesses: dict[str, float | None] | None = None,
) -> Figure:
    """What runs with several seeds came to, {panel: {row: [a value for each seed]}}: a dot for each seed, and a line
    over the interval of their mean.

    baselines: {panel: {name: value}}, drawn as dashed lines. interval: values -> (mean, lower end, upper end).
    guesses: {row: what somebody expected, or None}, drawn as crosses.
    """
    guesses = guesses or {}
    n_rows = max(len(rows) for rows in panels.values())
    figure = Figure(figsize=(max(8, 4 * len(panels) + 1), 0.4 * n_rows + 1.4), layout="constrained", dpi=100)
    for axes, (title, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for place, values in enumerate(rows.values()):
            _, low, high = interval(values)
            axes.plot([low, high], [place, place], color=BLUE, linewidth=6, alpha=0.3, solid_capstyle="butt")
            axes.plot(values, [place] * len(values), "o", color=BLUE, markersize=4)
        guessed = [(guesses[row], place) for place, row in enumerate(rows) if guesses.get(row) is not None]
        if guessed:
            axes.plot(*zip(*guessed, strict=True), "x", color=ORANGE, markersize=7, label="guessed")
        for name, value in baselines.get(title, {}).items():
            axes.axvline(value, color=GREY, linestyle="--", linewidth=1, label=f"{name} {value:.3f}")
        if guessed or baselines.get(title):
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=9, frameon=False, handlelength=1.5)
        axes.set_yticks(range(len(rows)), rows)
        axes.invert_yaxis()  # the first row at the top
        axes.set(xlabel=f"{unit}: {title}")
        if len(panels) > 2:  # narrow ones, in which the numbers of more ticks would touch
            axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="x", alpha=0.3)
    return figure


def layer_lines(panels: dict[str, dict[str, list[list[float]]]], baselines: dict[str, float], unit: str) -> Figure:
    """A figure against the number of the layer, {panel: {line: [values of the layers, for each seed]}}: the mean of the
    seeds as a line, their range as a band. A line whose name ends with "untrained" is dashed.

    baselines: {panel: value}, dotted.
    """
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.6 * columns, 2.8 * rows + 0.5), layout="constrained", dpi=100)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (title, lines) in zip(grid, panels.items(), strict=False):
        for place, (name, seeds) in enumerate(lines.items()):
            values = np.array(seeds)  # (seeds, layers)
            layers = range(values.shape[1])
            colour = (BLUE, ORANGE)[place // 2 % 2]
            style = "--" if name.endswith("untrained") else "-"
            axes.plot(layers, values.mean(0), style, color=colour, marker=".", label=name)
            axes.fill_between(layers, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
        axes.axhline(baselines[title], color=GREY, linestyle=":", linewidth=1, label="commonest answer")
        axes.set(title=title, xlabel="layer", xticks=layers, ylim=(0, 1.02))
        axes.grid(axis="y", alpha=0.3)
    for axes in grid[len(panels) :]:  # places that are left over
        axes.set_axis_off()
    first = figure.axes[0]
    first.set_ylabel(unit)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False, fontsize=9)
    return figure


def scaling_law(
    points: list[tuple[int, list[float]]],
    law: Callable[[np.ndarray], np.ndarray],
    larger: tuple[int, list[float]],
    predicted: tuple[float, float, float],
    unit: str,
) -> Figure:
    """Losses against the number of weights, both on logarithmic axes, with the law that was fitted to them.

    points: (weights, a loss for each seed) of each size. larger: the same of the size that was not fitted, and
    predicted: its loss by the law, with the two ends of an interval.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained", dpi=100)
    axes = figure.subplots()
    seen = [(n, loss) for n, losses in points for loss in losses]
    axes.plot(*zip(*seen, strict=True), "o", color=BLUE, markersize=4, label="trained")
    line = np.geomspace(points[0][0], 1.2 * larger[0], 100)
    axes.plot(line, law(line), color=GREY, linewidth=1, label="power law, fitted to these")
    value, low, high = predicted
    axes.errorbar(larger[0], value, [[value - low], [high - value]], fmt="s", color=GREY, capsize=4, label="predicted")
    axes.plot([larger[0]] * len(larger[1]), larger[1], "o", color=ORANGE, markersize=5, label="trained after that")
    axes.set(xscale="log", yscale="log", xlabel="weights", ylabel=unit)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:.1f}")
    axes.yaxis.set_minor_formatter("{x:.1f}")
    axes.grid(which="both", alpha=0.3)
    axes.legend(frameon=False)
    return figure


def accuracy_curves(
    results: dict[str, dict[int, tuple[float, float, float]]], items: str, part: str = "test"
) -> Figure:
    """Accuracy against the number of training items, which are called `items`, on a logarithmic axis.

    results: for each method, the number of items -> accuracy, and the lower and upper end of its interval. part: the
    one on which the accuracy was measured.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained", dpi=100)
    axes = figure.subplots()
    numbers = sorted({n for points in results.values() for n in points})
    for i, (name, points) in enumerate(results.items()):
        aside = 1.04 ** (i - (len(results) - 1) / 2)  # beside each other, so that the intervals do not overlap
        xs = [n * aside for n in points]
        ys, lows, highs = zip(*points.values(), strict=True)
        below = [y - low for y, low in zip(ys, lows, strict=True)]
        above = [high - y for y, high in zip(ys, highs, strict=True)]
        axes.errorbar(xs, ys, yerr=(below, above), marker="o", markersize=4, capsize=3, linewidth=1.5, label=name)
    axes.set_xscale("log")
    axes.set_xticks(numbers, labels=[f"{n:,}" for n in numbers])
    axes.minorticks_off()
    axes.set(xlabel=f"{items} to learn from", ylabel=f"accuracy on the {part} part")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure


# ------------------------------------------------------------------------------------------------ attention
def attention_grid(maps: Sequence[Tensor], tokens: Sequence[str], layers: Sequence[int] | None = None) -> Figure:
    """The attention weights of one text: a heat map for each layer (down) and head (across). In each, a row is a token
    that attends, and a column a token that it attends to.

    maps: for each layer, (H, T, T). tokens: T of them. layers: which layers are drawn; None: all.
    """
    layers = range(len(maps)) if layers is None else layers
    heads = maps[0].shape[0]
    side = 8.2 / heads  # inches; all heads together are as wide as a notebook's page
    room = 60 * side / len(tokens)  # for each token, in points
    named = range(0, len(tokens), max(1, math.ceil(SMALLEST / room)))  # where there is little room, not every token
    names = [repr(tokens[i])[1:-1].replace(" ", "\u00b7") for i in named]
    ticks = {"fontsize": min(7, room * named.step), "family": "monospace"}
    figure = Figure(figsize=(9.2, side * len(layers) + 1), layout="constrained", dpi=120)
    grid = figure.subplots(len(layers), heads, squeeze=False, sharex=True, sharey=True)
    for row, layer in enumerate(layers):
        for head in range(heads):
            axes = grid[row][head]
            image = axes.imshow(maps[layer][head].cpu().float().numpy(), cmap="viridis", vmin=0, vmax=1)
            axes.set_title(f"layer {layer}, head {head}", fontsize=9)
            axes.set_xticks(named, names, rotation=90, **ticks)
            axes.set_yticks(named, names, **ticks)
    figure.colorbar(image, ax=grid, label="attention weight", shrink=min(1, 3 / len(layers)), aspect=30, pad=0.01)
    figure.supxlabel("token that is attended to", fontsize=10)
    figure.supylabel("token that attends", fontsize=10)
    return figure


def attention_plane(query: Tensor, keys: Tensor, weights: Tensor, mixed: Tensor, tokens: Sequence[str]) -> Figure:
    """One query among the keys of T tokens, as arrows in the plane, and the weights that it gives them, as bars.

    query (2,), keys (T, 2), weights (T,), mixed (2,): the average of the values by the weights.
    """
    figure = Figure(figsize=(8.8, 3.8), layout="constrained", dpi=100)
    plane, bars = figure.subplots(1, 2, width_ratios=(1, 1.2))
    reach = 1.5 * max(1.0, keys.abs().max().item(), query.abs().max().item())
    for key, weight, token in zip(keys.tolist(), weights.tolist(), tokens, strict=True):
        draw_arrow(plane, key, BLUE, alpha=0.25 + 0.75 * weight, width=1 + 4 * weight)
        plane.annotate(token, key, (5, 4), textcoords="offset points", color=BLUE)
    draw_arrow(plane, query.tolist(), ORANGE, alpha=1, width=2)
    plane.annotate("query", query.tolist(), (5, -12), textcoords="offset points", color=ORANGE)
    plane.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="1st feature", ylabel="2nd feature")
    plane.set_title("the query (orange) and the keys (blue)", fontsize=10)
    plane.grid(alpha=0.3)
    drawn = bars.barh(list(tokens), weights.tolist(), color=BLUE)
    bars.bar_label(drawn, fmt="%.2f", padding=4)
    bars.set(xlim=(0, 1.15), xlabel="attention weight")
    bars.invert_yaxis()  # the first token at the top
    bars.set_title("mixed value: ({:.2f}, {:.2f})".format(*mixed.tolist()), fontsize=10)
    return figure


def draw_arrow(axes: Axes, end: Sequence[float], colour: str, alpha: float, width: float) -> None:
    """An arrow from the origin to `end`."""
    style = {"arrowstyle": "-|>", "color": colour, "alpha": alpha, "lw": width, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, (0, 0), arrowprops=style)


def image_attention(
    images: Tensor,
    maps: Sequence[Tensor],
    titles: Sequence[str],
    layer: int = -1,
    label: str = "attention of the class token",
) -> Figure:
    """Pictures, and below each, in orange, the attention of the class token in one layer: the mean over the heads.

    images: (B, channels, h, w) from 0 to 1. maps: for each layer, (B, H, T, T), with the class token first.
    """
    n = len(images)
    figure = Figure(figsize=(n + 1.0, 2.5), layout="constrained", dpi=120)
    grid = figure.subplots(2, n, squeeze=False)
    attention = maps[layer].mean(1)  # (B, T, T)
    attention = attention[:, 0, 1:].cpu().float()  # (B, patches): from the class token to the patches
    side = int(attention.shape[1] ** 0.5)
    attention = attention.view(n, 1, side, side)
    attention = F.interpolate(attention, size=images.shape[-2:], mode="nearest")[:, 0]  # (B, h, w)
    for i in range(n):
        above, below = grid[:, i]
        show_picture(above, images[i])
        above.set_title(titles[i], fontsize=9)
        show_picture(below, images[i].mean(0, keepdim=True))  # grey, so that the orange stands out
        overlay = below.imshow(attention[i].numpy(), cmap=OVERLAY, vmin=0, vmax=attention.max())
    figure.colorbar(overlay, ax=grid, label=label, shrink=0.9).ax.set_facecolor("black")
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
    """A matrix as colours. Values that are not finite, such as log 0, stay white.

    x, y, label: what the columns, the rows and the values are. ticks: names of the rows, which are also those of the
    columns. low, high: the values at the ends of the colour scale; None: the smallest and the largest value. A
    matrix of few columns shows its numbers as well.
    """
    side = 6 if ticks is None else max(4.5, 0.28 * len(ticks) + 2)
    height = side * min(1, max(0.5, len(values) / values.shape[1]))
    figure = Figure(figsize=(side + 1, height), layout="constrained", dpi=100)
    axes = figure.subplots()
    image = axes.imshow(values.detach().cpu().float().numpy(), cmap="viridis", aspect="auto", interpolation="nearest")
    image.set_clim(low, high)
    axes.set(xlabel=x, ylabel=y)
    if ticks is not None:
        names = [repr(tick)[1:-1] for tick in ticks]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    if values.shape[1] <= 6:
        for row, column in values.isfinite().nonzero().tolist():
            number = values[row, column].item()
            colour = "black" if image.norm(number) > 0.6 else "white"
            axes.text(column, row, f"{number:.2f}", ha="center", va="center", color=colour)
    figure.colorbar(image, ax=axes, label=label)
    return figure


def switchboard(
    title: str, given: str | Tensor, gradients: Tensor, out: list[tuple[str, float]] | Tensor, asked: str
) -> Figure:
    """Side by side: what goes into a model, which position depends on which, and what comes out.

    given: a text or a picture (channels, h, w) from 0 to 1. gradients: (T, T), of each position's output (row) with
    respect to each position's input (column). out: names with their probabilities, or a picture. asked: its title.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained", dpi=100)
    figure.suptitle(title, fontsize=11)
    goes_in, looks, comes_out = figure.subplots(1, 3)
    goes_in.set_title("goes in", fontsize=10)
    if isinstance(given, str):
        lines = [line for part in given.split("\n") for line in textwrap.wrap(part, 34) or [""]]
        goes_in.text(0, 1, "\n".join(lines[:14]), va="top", family="monospace", fontsize=8)
        goes_in.set_axis_off()
    else:
        show_picture(goes_in, given)
    looks.set_title("which output depends on which input", fontsize=10)
    looks.imshow((gradients > 0).float().numpy(), cmap="Blues", vmin=0, vmax=1.5, interpolation="nearest")
    looks.set(xlabel="position of the input", ylabel="position of the output")
    comes_out.set_title(asked, fontsize=10)
    if isinstance(out, Tensor):
        show_picture(comes_out, out)
    else:
        names, shares = zip(*reversed(out), strict=True)
        comes_out.barh(range(len(names)), shares, color=BLUE)
        comes_out.set_yticks(range(len(names)), names, family="monospace")
        comes_out.set(xlim=(0, 1), xlabel="probability")
    return figure


# ------------------------------------------------------------------------------------------------ data
def tokens_html(pieces: Sequence[str], strong: Sequence[bool] | None = None) -> str:
    """The tokens of a text as HTML, on alternating tints; those that are `strong` stand white on dark blue."""
    spans = []
    for i, piece in enumerate(pieces):
        background, colour = TINTS[i % len(TINTS)], "#111111"
        if strong is not None and strong[i]:
            background, colour = BLUE, "#ffffff"
        shown = html.escape(piece).replace("\n", "\u23ce\n")
        style = f"background:{background};color:{colour};white-space:pre-wrap;border-radius:3px;padding:1px 0"
        spans.append(f'<span style="{style}">{shown}</span>')
    return f'<div style="font-family:monospace;line-height:1.9">{"".join(spans)}</div>'


def picture_grid(
    images: Tensor,
    titles: Sequence[str] | None = None,
    columns: int = 8,
    width: float = 8.0,
    rows: Sequence[str] = (),
) -> Figure:
    """Pictures (N, channels, h, w) from 0 to 1 in rows of `columns`.

    titles: of the pictures. width: of the figure, in inches. rows: what stands to the left of each row.
    """
    columns = min(columns, len(images))
    n_rows = -(-len(images) // columns)  # rounded up
    size = width / columns
    lines = max(title.count("\n") + 1 for title in titles) if titles else 0
    title_height = 0.15 + 0.17 * lines if titles else 0
    figure = Figure(figsize=(width, n_rows * (size + title_height)), layout="constrained", dpi=100)
    grid = figure.subplots(n_rows, columns, squeeze=False)
    for axes, name in zip(grid[: len(rows), 0], rows, strict=True):
        axes.annotate(name, (-0.1, 0.5), xycoords="axes fraction", ha="right", va="center", fontsize=9)
    for i, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if i < len(images):
            show_picture(axes, images[i])
            if titles:
                axes.set_title(titles[i], fontsize=9)
    return figure


def show_picture(axes: Axes, image: Tensor) -> None:
    """Draw one picture (channels, h, w) from 0 to 1, grey or in colour, without axes."""
    pixels = image.permute(1, 2, 0).cpu().clamp(0, 1)  # (h, w, channels)
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]  # (h, w): matplotlib takes grey pictures without a channel
    axes.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()


def scaled(images: Tensor) -> Tensor:
    """Pictures of bytes (uint8, 0 to 255) as floats from 0 to 1, which the functions above take."""
    return images.to(torch.float32) / 255


# ------------------------------------------------------------------------------------------------ figures
def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as a PNG file, whole or not at all."""
    with whole(Path(path)) as draft:
        plain(figure).savefig(draft, format="png")


def plain(figure: Figure) -> Figure:
    """The figure, in which no text is a formula: a file may be called a$_$b."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure


def picture(figure: Figure):
    """The figure as an IPython Image, for a notebook to display."""
    from IPython.display import Image

    content = io.BytesIO()
    plain(figure).savefig(content, format="png")
    return Image(content.getvalue(), width=int(figure.get_figwidth() * 100))
