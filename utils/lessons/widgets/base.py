"""What the three widgets share: layouts, pieces of HTML, and the class `Playground`."""

from __future__ import annotations

import html
import traceback
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import ipywidgets as widgets
import lightning as L
import torch
from IPython import get_ipython

from transformer import Transformer, require

# From a dictionary, ipywidgets makes a layout or style of its own for each widget.
LABEL = {"description_width": "92px"}
WIDE = {"width": "98%"}
HALF = {"width": "290px"}
ROW = {"flex_flow": "row wrap", "width": "100%"}
# The colours are partly transparent, so that text on them can be read in light and in dark themes.
BLUE = "rgba(0,114,178,{:.2f})"
ORANGE = "rgba(213,94,0,{:.2f})"


def tinted(text: str, share: float, marked: bool = False) -> str:
    """A token as HTML: the larger `share` (0 to 1), the bluer. `marked`: with an orange outline.

    The sign for the end of a line cannot be selected, so text that is copied from the page does not contain it.
    """
    style = f"background:{BLUE.format(0.75 * share)};border-radius:3px;"
    if marked:
        style += f"outline:2px solid {ORANGE.format(1)};"
    line_end = '<span style="user-select:none">\u23ce</span>\n'
    shown = html.escape(text).replace("\n", line_end)
    return f'<span style="{style}" title="{share:.3f}">{shown}</span>'


def boxed(content: str) -> str:
    """HTML in a box that keeps spaces and line ends and breaks long words. A long text scrolls and shows its end."""
    style = "font-family:monospace;line-height:1.6;white-space:pre-wrap;overflow-wrap:anywhere"
    # A reversed column starts at its lower end, so the newest text is in sight.
    scrolls = "max-height:320px;overflow:auto;margin:6px 0;display:flex;flex-direction:column-reverse"
    return f'<div style="{scrolls}"><div style="{style}">{content}</div></div>'


def bar(share: float, colour: str) -> str:
    """A table cell with a bar of `share` (0 to 1) and its percentage. `colour`: BLUE or ORANGE."""
    style = f"width:{100 * share:.0f}px;height:12px;display:inline-block;vertical-align:middle"
    drawn = f'<div style="{style};background:{colour.format(0.8)}"></div>'
    return f'<td style="width:160px;white-space:nowrap">{drawn} {100 * share:.1f} %</td>'


def running_cell() -> tuple[str | None, str | None]:
    """The identifier of the notebook cell that is running, as Jupyter or Colab gives it, and that of this run of it."""
    shell = get_ipython()
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    metadata = parent.get("metadata", {})
    cell = metadata.get("cellId") or metadata.get("colab", {}).get("cell_id")
    run = parent.get("header", {}).get("msg_id")
    return cell, run


def parts(widget: widgets.Widget) -> Iterator[widgets.Widget]:
    """The widget and all that it is made of: its children with their parts, its layout and its style."""
    for child in getattr(widget, "children", ()):
        yield from parts(child)
    for name in ("layout", "style"):
        if hasattr(widget, name):
            yield getattr(widget, name)
    yield widget


class Playground(widgets.VBox):
    """A widget for one model, with a line for messages; the base class of the three widgets."""

    _open: weakref.WeakSet[Playground] = weakref.WeakSet()

    def __init__(self, model: L.LightningModule | Transformer, fits: Callable, needed: str) -> None:
        """`fits`: a function of the network that tells whether the widget can use it; `needed`: the same in words."""
        network = model if isinstance(model, Transformer) else getattr(model, "model", None)
        ours = "a model of transformer.py; load_pretrained gives (model, tokenizer)"
        require(isinstance(network, Transformer), "model", type(model), ours)
        require(fits(network), "model", type(network), needed)
        super().__init__()
        self.message = widgets.HTML()
        self.cell, self.cell_run = running_cell()
        self.network = lambda: network
        self.weak_network = weakref.ref(network)
        for other in list(self._open):
            if type(other) is type(self):
                other.halt()
                other.release_if_replaced_by(self)
        self._open.add(self)

    def release_if_replaced_by(self, newer: Playground) -> None:
        """Keep the model only as long as others do, if `newer` comes from a later run of the cell that made this one.

        ipywidgets keeps every widget, and IPython every output, until the kernel ends; without this, each run of a
        cell would keep one more model in memory. The widget is not closed, because another cell may show it too.
        """
        if self.cell is not None and self.cell == newer.cell and self.cell_run != newer.cell_run:
            self.network = self.weak_network

    @property
    def module(self) -> SimpleNamespace:
        """The model, and the device that it is on now: as much of a LightningModule as utils/inference uses."""
        network = self.network()
        require(network is not None, "model", None, "still in memory; run the cell of this widget again")
        return SimpleNamespace(model=network, device=next(network.parameters()).device)

    def guarded(self, work: Callable, *arguments) -> None:
        """Call `work(*arguments)` and show its error in the widget.

        Otherwise, the errors of threads and of handlers do not reach the page.
        """
        self.message.value = ""
        try:
            with torch.inference_mode():  # entered here, because a new thread does not inherit it
                work(*arguments)
        except ValueError as error:
            self.warn(shortened(str(error)))
        except Exception:
            self.warn(traceback.format_exc())

    def warn(self, text: str) -> None:
        self.message.value = boxed("\u26a0 " + html.escape(text))

    def halt(self) -> None:
        """Stop work in the background; a widget that works there overrides this."""

    def close(self) -> None:
        """Stop, remove the widget from the page and from the memory of ipywidgets, and let the model go."""
        self.halt()
        self._open.discard(self)
        self.network = lambda: None
        for part in list(parts(self)):
            widgets.Widget.close(part)


def shortened(text: str) -> str:
    """The text, without its middle if it is longer than 300 characters."""
    return text if len(text) < 300 else f"{text[:140]} \u2026 {text[-140:]}"
