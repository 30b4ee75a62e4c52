"""Check that the texts of a figure can be read: none overlaps another, and none is cut off at the edge.

`watch()` checks every figure that `utils.plots` turns into a picture from then on.
"""

from __future__ import annotations

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from transformer import require
from utils import plots

WIDTH = 10.0  # inches: the width of a page
PIXELS = 1.5  # by which two boxes may overlap: a box has a margin around its letters


def watch() -> None:
    """From now on, a ValueError is raised where a figure is drawn whose texts cannot be read."""
    draw = plots.plain

    def checked(figure: Figure) -> Figure:
        figure = draw(figure)
        faults = unreadable(figure)
        require(not faults, "figure", "; ".join(faults[:5]), "drawn so that all its texts can be read")
        return figure

    plots.plain = checked


def unreadable(figure: Figure) -> list[str]:
    """What cannot be read in a figure: texts that overlap, texts that are cut off, and a figure that is too wide."""
    drawn = drawn_texts(figure)
    renderer, page = FigureCanvasAgg(figure).get_renderer(), figure.bbox
    found = [(text.get_text(), text.get_window_extent(renderer)) for text in drawn]
    faults = []
    if figure.get_figwidth() > WIDTH:
        faults.append(f"{figure.get_figwidth():.1f} inches wide, and a page has {WIDTH:.0f}")
    for text, box in found:
        outside = box.x0 < page.x0 - PIXELS or box.y0 < page.y0 - PIXELS
        if outside or box.x1 > page.x1 + PIXELS or box.y1 > page.y1 + PIXELS:
            faults.append(f"{text!r} is cut off")
    for (one, box), (other, its) in itertools.combinations(found, 2):
        if overlap(box, its):
            faults.append(f"{one!r} and {other!r} overlap")
    return faults


def drawn_texts(figure: Figure) -> list[Text]:
    """The texts that are drawn and not empty. A figure has more of them, such as the labels of ticks out of view."""
    found = []
    draw = Text.draw

    def noted(text: Text, renderer: object, *arguments, **options) -> None:
        if text.get_visible() and text.get_text().strip():
            found.append(text)
        draw(text, renderer, *arguments, **options)

    Text.draw = noted
    try:
        FigureCanvasAgg(figure).draw()
    finally:
        Text.draw = draw
    return list(dict.fromkeys(found))  # constrained layout may draw twice


def overlap(one: Bbox, other: Bbox) -> bool:
    """Whether two boxes share more than their margins."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return width > PIXELS and height > PIXELS
