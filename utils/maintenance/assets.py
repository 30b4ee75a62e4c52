"""Write the README's pictures into assets/.

    python -m utils.maintenance.assets        # or: make assets

One picture is drawn here. The others are taken from the outputs of the committed notebooks, so the README shows what a
learner sees there.
"""

from __future__ import annotations

import base64

import nbformat
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from utils.files import ROOT
from utils.plots import save

ASSETS = ROOT / "assets"
TAKEN = {  # file: the notebook, and code of the cell that leaves the picture
    "gpt-gradients.png": ("gpt", "interpret.input_gradients(gpt.model"),
    "bert-attention.png": ("bert", "plots.attention_grid("),
    "vit-attention.png": ("vit", "flow = rollout(maps)"),
}
INK = "#222222"  # of lines and text
SHARED = "#FBF5B0"  # of what the three models share
MODELS = {
    "BERT": {
        "colour": "#A9D8F5",
        "input": "the cat [MASK] on the mat",
        "embed": "TokenEmbedding\ntoken + segment + position",
        "mask": "attends in both directions",
        "head": "MLMHead",
        "output": "“sat”",
    },
    "GPT": {
        "colour": "#F6CF7F",
        "input": "the cat sat on the",
        "embed": "TokenEmbedding\ntoken + position",
        "mask": "never attends to later tokens",
        "head": "Linear (tied to TokenEmbedding)",
        "output": "“mat”",
    },
    "ViT": {
        "colour": "#8FD6BF",
        "input": "a picture, cut into patches",
        "embed": "PatchEmbedding\npatch + position, class token",
        "mask": "attends in both directions",
        "head": "ClassHead",
        "output": "“cat”",
    },
}


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    """A box with rounded corners, its lower left one at (x, y), and text in its middle."""
    axes.add_patch(FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=0.08", fc=colour, ec=INK, lw=1))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10, color=INK)


def arrow(axes: Axes, x: float, low: float, high: float) -> None:
    """An arrow that points upwards, from (x, low) to (x, high)."""
    axes.annotate("", (x, high), (x, low), arrowprops={"arrowstyle": "->", "color": INK, "lw": 1.2})


def output_picture(name: str, code: str) -> bytes:
    """The PNG among the outputs of the first cell of notebooks/NAME.ipynb that contains `code` and has one.

    Raises a ValueError if there is no such cell.
    """
    for cell in nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells:
        if cell.cell_type == "code" and code in cell.source:
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output["data"]["image/png"])
    raise ValueError(
        f"code={code!r}: must stand in a cell of {name}.ipynb with a picture; `make notebooks` runs the cells"
    )


def one_network() -> Figure:
    """The three models side by side: each with its own embedding and head, and the blocks that they share."""
    figure = Figure(figsize=(9, 5.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    box(axes, 0.1, 1.85, 8.8, 1.5, "", SHARED)
    block = "n × Block\nx + Attention(norm(x)),  then  x + MLP(norm(x))"
    axes.text(4.5, 2.72, block, ha="center", va="center", fontsize=13, color=INK, linespacing=1.5)
    for i, (name, model) in enumerate(MODELS.items()):
        left = 0.3 + 3 * i
        middle = left + 1.2
        axes.text(middle, -0.05, model["input"], ha="center", va="center", fontsize=10, color=INK, style="italic")
        box(axes, left, 0.5, 2.4, 0.85, model["embed"], model["colour"])
        axes.text(middle, 2.08, model["mask"], ha="center", va="center", fontsize=9.5, color=INK)
        box(axes, left, 3.85, 2.4, 0.55, model["head"], model["colour"])
        axes.text(middle, 4.98, model["output"], ha="center", va="center", fontsize=12, color=INK, style="italic")
        axes.text(middle, 5.45, name, ha="center", va="center", fontsize=15, color=INK, weight="bold")
        for low, high in ((0.12, 0.48), (1.37, 1.83), (3.37, 3.83), (4.42, 4.8)):
            arrow(axes, middle, low, high)
    axes.set(xlim=(0, 9), ylim=(-0.3, 5.75))
    axes.set_axis_off()
    return figure


if __name__ == "__main__":
    ASSETS.mkdir(exist_ok=True)
    save(one_network(), ASSETS / "one-network.png")
    for file, place in TAKEN.items():
        (ASSETS / file).write_bytes(output_picture(*place))
    print(f"{ASSETS.name}: one-network.png, {', '.join(TAKEN)}")
