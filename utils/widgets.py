"""Widgets to play with a trained model: `sampler` (GPT), `fill_mask` (BERT), `image_explorer` (ViT).

Each is a view of plain functions in sampling.py and inside.py, which do without widgets. A thread writes the text: a
handler that took long would keep the Stop button from being heard; it sets the value of an HTML widget, which, unlike
printing into an Output widget, loses nothing on the way.
"""

from __future__ import annotations

import base64
import html
import io
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import lightning as L
import torch
from PIL import Image
from tokenizers import Tokenizer

from transformer import MLMHead, PatchEmbedding, Transformer, require
from utils.images import ImageData, read_picture
from utils.inside import class_attention, hide_patches
from utils.sampling import BLANK, Written, blank_attention, evaluating, fill_blanks, put_in, read_blanks, write_tokens

try:
    import ipywidgets as widgets
    from IPython import get_ipython
except ImportError as error:
    plain = "write_tokens and fill_blanks of utils/sampling.py, class_attention and hide_patches of utils/inside.py"
    raise ImportError(f"the widgets need ipywidgets (pip install ipywidgets); without it there are {plain}") from error

REFRESH = 0.1  # seconds between two pictures of a text that grows
GROWING, SHORT, AROUND = 300, 400, 12  # tokens: of a growing text; of one marked in place; either side of the chosen
BLANKS, WORDS = 10, 6  # rows of buttons, and buttons in each
PAUSE = 0.5  # seconds in which nobody reads a new word and clicks it
LABEL = {"description_width": "92px"}
WIDE, HALF, NARROW = widgets.Layout(width="98%"), widgets.Layout(width="290px"), widgets.Layout(width="170px")
ROW = widgets.Layout(flex_flow="row wrap", width="100%")
SHARED = (WIDE, HALF, NARROW, ROW)
# Tints let the page's own colours through, so that they serve light and dark themes.
BLUE, ORANGE = "rgba(0,114,178,{:.2f})", "rgba(213,94,0,{:.2f})"


def tinted(text: str, share: float, marked: bool = False) -> str:
    """A token as HTML, the bluer the larger `share` (0 to 1) is. The sign of a line's end is left out of a copy."""
    outline = f"outline:2px solid {ORANGE.format(1)};" if marked else ""
    style = f"background:{BLUE.format(0.75 * share)};border-radius:3px;{outline}"
    shown = html.escape(text).replace("\n", '<span style="user-select:none">\u23ce</span>\n')
    return f'<span style="{style}" title="{share:.3f}">{shown}</span>'


def boxed(content: str) -> str:
    """HTML that keeps spaces and line ends, breaks long words, and scrolls when it is long: its end is seen first."""
    style = "font-family:monospace;line-height:1.6;white-space:pre-wrap;overflow-wrap:anywhere"
    scrolls = "max-height:320px;overflow:auto;margin:6px 0;display:flex;flex-direction:column-reverse"
    return f'<div style="{scrolls}"><div style="{style}">{content}</div></div>'


def bar(share: float, colour: str) -> str:
    """A bar of `share` (0 to 1) with its percentage, as a table's cell."""
    style = f"width:{100 * share:.0f}px;height:12px;display:inline-block;vertical-align:middle"
    drawn = f'<div style="{style};background:{colour.format(0.8)}"></div>'
    return f'<td style="width:160px;white-space:nowrap">{drawn} {100 * share:.1f} %</td>'


def visible(text: str) -> str:
    """A token with its spaces and line ends to be seen."""
    shown = text.strip("\ufffd").replace(" ", "\u2423").replace("\n", "\u23ce")
    return shown or "(part of a character)"


def running_cell() -> tuple[str | None, str | None]:
    """The notebook's cell that is being run, in Jupyter's or in Colab's words, and which run of it this is."""
    parent = getattr(get_ipython(), "get_parent", dict)()
    metadata = parent.get("metadata", {})
    cell = metadata.get("cellId") or metadata.get("colab", {}).get("cell_id")
    return cell, parent.get("header", {}).get("msg_id")


def parts(widget: widgets.Widget) -> Iterator[widgets.Widget]:
    """The widget and all that it alone is made of."""
    for child in getattr(widget, "children", ()):
        yield from parts(child)
    yield from (part for name in ("layout", "style") if (part := getattr(widget, name, None)) and part not in SHARED)
    yield widget


class Stopped(Exception):
    """Stop was pressed while the model was at work."""


class Playground(widgets.VBox):
    """What the three have in common: a model that fits, and a line for messages."""

    _open: weakref.WeakSet[Playground] = weakref.WeakSet()
    thread: threading.Thread | None = None

    def __init__(self, model: L.LightningModule | Transformer, fits: Callable, needed: str) -> None:
        network = model if isinstance(model, Transformer) else getattr(model, "model", None)
        ours = "a model of transformer.py; load_pretrained gives (model, tokenizer)"
        require(isinstance(network, Transformer), "model", type(model), ours)
        require(fits(network), "model", type(network), needed)
        super().__init__()
        self.message, self.stopped, self.cell = widgets.HTML(), threading.Event(), running_cell()
        self.network, self.weak = lambda: network, weakref.ref(network)
        for other in [other for other in self._open if type(other) is type(self)]:
            other.halt()  # what it still writes nobody may see
            # ipywidgets keeps every widget, and IPython each output, for good. One made by an earlier run of this very
            # cell lets its model go, if nobody else holds it. It isn't closed: another cell may show it, too.
            if other.cell[0] is not None and other.cell[0] == self.cell[0] and other.cell != self.cell:
                other.network = other.weak
        self._open.add(self)

    @property
    def module(self) -> SimpleNamespace:
        """The model, and the device that it is on now."""
        network = self.network()
        require(network is not None, "model", None, "there; run the cell of this widget again")
        return SimpleNamespace(model=network, device=next(network.parameters()).device)

    def guarded(self, work: Callable, *arguments) -> None:
        """Do it; what goes wrong is shown, for neither a thread's nor a handler's error reaches the page otherwise."""
        self.message.value = wrong = ""
        try:
            with torch.inference_mode():  # of this thread: the mode is not handed on to others
                work(*arguments)
        except ValueError as error:
            wrong = str(error)
            wrong = wrong if len(wrong) < 300 else wrong[:140] + " \u2026 " + wrong[-140:]
        except Exception:
            wrong = traceback.format_exc()
        if wrong:
            self.message.value = boxed("\u26a0 " + html.escape(wrong))

    def halt(self) -> None:
        """Ask the thread to stop, and wait for the block that it is at."""
        if self.thread is not None and self.thread is not threading.current_thread():
            self.stopped.set()
            self.thread.join(timeout=5)

    def close(self) -> None:
        """Stop; take this and all that it is made of off the page and out of ipywidgets' memory; let the model go."""
        self.halt()
        self._open.discard(self)
        self.network = lambda: None
        for part in list(parts(self)):
            widgets.Widget.close(part)


class Sampler(Playground):
    """GPT, to write on from a prompt: text that grows, each token tinted by its probability, and what else it could
    have been at the chosen position. Without widgets: `utils.sampling.write_tokens`."""

    def __init__(self, model: L.LightningModule | Transformer, tokenizer: Tokenizer, prompt: str = "Return ") -> None:
        require(isinstance(tokenizer, Tokenizer), "tokenizer", type(tokenizer), "a Tokenizer")
        super().__init__(model, lambda network: hasattr(network, "stream"), "a GPT: one that writes on")
        self.tokenizer, self.written, self.prompted, self.speeds = tokenizer, [], "", {}
        self.busy, self.drawing = threading.Lock(), threading.RLock()
        number = {"style": LABEL, "layout": HALF}
        self.prompt = widgets.Textarea(prompt, description="Prompt", style=LABEL, layout=WIDE, rows=3)
        self.temperature = widgets.FloatSlider(0.8, min=0, max=2, step=0.05, description="Temperature", **number)
        self.top_k = widgets.BoundedIntText(50, min=0, max=10**6, description="Top-k (0: all)", **number)
        self.top_p = widgets.FloatSlider(1.0, min=0.05, max=1, step=0.05, description="Top-p", **number)
        self.length = widgets.BoundedIntText(100, min=1, max=10_000, description="Length", **number)
        self.seed = widgets.BoundedIntText(0, min=0, max=2**31 - 1, description="Seed", **number)
        self.cache = widgets.Checkbox(True, description="Key-value cache", style=LABEL, layout=HALF)
        self.generate = widgets.Button(description="Generate", button_style="primary", icon="play")
        self.stop = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.speed, self.text, self.candidates = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.position = widgets.IntSlider(0, min=0, max=0, description="Position", style=LABEL, layout=WIDE)
        self.generate.on_click(lambda _: self.guarded(self.start))
        self.stop.on_click(lambda _: self.stopped.set())
        # Of a long text the neighbours alone are sent for each step of the slider.
        self.position.observe(
            lambda _: self.guarded(self.show, len(self.written) if len(self.written) <= SHORT else 0), "value"
        )
        settings = (self.temperature, self.top_k, self.top_p, self.length, self.seed, self.cache)
        buttons = widgets.HBox([self.generate, self.stop, self.speed], layout=ROW)
        self.children = (
            self.prompt, widgets.HBox(settings, layout=ROW), buttons,
            self.message, self.text, self.position, self.candidates,
        )  # fmt: skip

    def start(self) -> None:
        """Write in a thread, unless one is at it."""
        if not self.busy.acquire(blocking=False):
            return
        try:
            self.stopped.clear()
            self.generate.disabled, self.stop.disabled = True, False
            self.thread = threading.Thread(target=self.run, daemon=True)
            self.thread.start()
        except BaseException:
            self.finish()
            raise

    def run(self) -> None:
        try:
            self.guarded(self.write)
        finally:
            self.finish()

    def finish(self) -> None:
        try:
            self.generate.disabled, self.stop.disabled = False, True
        finally:
            self.busy.release()

    def write(self) -> None:
        """Let the text grow until it is long enough or Stop is pressed."""
        self.written, self.prompted, use_cache = [], self.prompt.value, self.cache.value
        self.position.value, self.position.max = 0, 0
        self.candidates.value = ""
        self.show(GROWING)
        top_p = self.top_p.value if self.top_p.value < 1 else None  # all words: no need to sort them
        settings = {"temperature": self.temperature.value, "top_k": self.top_k.value or None, "top_p": top_p}
        model = self.module.model
        tokens = write_tokens(
            model, self.tokenizer, self.prompted, self.length.value, self.seed.value, use_cache=use_cache, **settings
        )
        # A large model takes long over a long prompt: Stop is heard before each of its blocks.
        hooks = [block.register_forward_pre_hook(self.leave) for block in model.blocks]
        began = shown = time.perf_counter()
        try:
            for token in tokens:
                self.written.append(token)
                now = time.perf_counter()
                if now - shown > REFRESH:
                    self.show(GROWING)
                    shown = time.perf_counter()
                    began += shown - now  # the model is timed, not the page
        except Stopped:
            pass  # the text stays as far as it has come
        finally:
            for hook in hooks:
                hook.remove()
        seconds, n = time.perf_counter() - began, len(self.written)
        if n >= 10:
            how = "with" if use_cache else "without"
            self.speeds[use_cache] = f"{n / seconds:.1f} tokens/s {how} the cache (from {n} tokens)"
        self.speed.value = ", ".join(self.speeds.values())
        self.position.max = max(0, n - 1)
        self.show(n)

    def leave(self, *_) -> None:
        """Hear Stop, but not in other threads: they may use the model for something else."""
        if self.stopped.is_set() and threading.current_thread() is self.thread:
            raise Stopped

    def show(self, last: int) -> None:
        """The prompt and the `last` tokens, unless 0; the chosen one, its neighbours, and what else could have stood
        there."""
        with self.drawing:
            at, start, prompt = self.position.value, max(0, len(self.written) - last), self.prompted
            if last:
                prompt = "\u2026" if start else prompt if len(prompt) < 2_000 else "\u2026" + prompt[-2_000:]
                prompt = f'<span style="opacity:0.65">{html.escape(prompt)}</span>'
                self.text.value = boxed(prompt + self.spans(start, None))
            if at < len(self.written):
                near = self.spans(max(0, at - AROUND), at + AROUND + 1).replace("\n", " ")
                self.candidates.value = boxed(near) + candidates_table(self.written[at])

    def spans(self, start: int, stop: int | None) -> str:
        tokens = enumerate(self.written[start:stop], start)
        return "".join(tinted(token.text, token.probability, i == self.position.value) for i, token in tokens)


def candidates_table(token: Written) -> str:
    """What could have stood at one place, as the model saw it and as it was drawn; an arrow at what was."""
    head = "<tr><th>candidate</th><th>the model's probability</th><th>after temperature, top-k, top-p</th></tr>"
    rows = ""
    for i, (text, before, after) in enumerate(token.candidates):
        word = f"<code>{html.escape(visible(text))}</code>"
        word = f"<b>\u2192 {word}</b>" if i == token.taken else word
        rows += f"<tr><td>{word}</td>{bar(before, BLUE)}{bar(after, ORANGE)}</tr>"
    return f'<table style="line-height:1.5;text-align:left">{head}{rows}</table>'


class FillMask(Playground):
    """BERT, to fill in each `___`: a button for each likely word, and what the blank looks at. Without widgets:
    `utils.sampling.fill_blanks` and `blank_attention`."""

    def __init__(
        self, model: L.LightningModule | Transformer, tokenizer: Tokenizer, sentence: str = "this is ___ ."
    ) -> None:
        require(isinstance(tokenizer, Tokenizer), "tokenizer", type(tokenizer), "a Tokenizer")
        read_blanks(tokenizer, sentence)  # which says so where it knows no [MASK]
        super().__init__(model, lambda network: isinstance(network.head, MLMHead), "a BERT that guesses words")
        config = self.module.model.config
        self.tokenizer, self.found, self.offered = tokenizer, [], 0.0
        late = {"style": LABEL, "continuous_update": False}
        self.sentence = widgets.Text(sentence, description="Sentence", layout=WIDE, **late)
        self.fill = widgets.Button(description="Fill the blanks", button_style="primary")
        self.layer = widgets.IntSlider(0, min=0, max=config.n_layers - 1, description="Layer", layout=HALF, **late)
        self.head = widgets.IntSlider(0, min=0, max=config.n_heads - 1, description="Head", layout=HALF, **late)
        self.blanks, self.attention = widgets.VBox(), widgets.HTML()
        self.fill.on_click(lambda _: self.guarded(self.show))
        self.sentence.observe(lambda _: self.guarded(self.show), "value")
        for control in (self.layer, self.head):
            control.observe(lambda _: self.guarded(self.look), "value")
        looks = widgets.HBox((self.layer, self.head), layout=ROW)
        self.children = (self.sentence, self.fill, self.message, self.blanks, looks, self.attention)
        self.guarded(self.show)

    def show(self) -> None:
        """The likeliest words of each blank, one button each, and what the blanks look at."""
        self.found, text = [], self.sentence.value
        n = len(BLANK.findall(text))
        try:
            if n:
                self.found = fill_blanks(self.module, self.tokenizer, text, k=WORDS)[:BLANKS]
        finally:
            self.offer()
            self.guarded(self.look)
            self.offered = time.monotonic()
        if n == 0:
            self.message.value = "No blank is left: write ___ where a word is to be guessed."
        elif n > BLANKS:
            self.message.value = f"The first {BLANKS} of {n} blanks:"

    def offer(self) -> None:
        """A row of buttons for each blank. They are kept and used again: ipywidgets would never forget those that are
        dropped, and the one that was pressed stays in focus."""
        while (n := len(self.blanks.children)) < len(self.found):
            self.blanks.children += (self.row(n),)
        for i, row in enumerate(self.blanks.children):
            row.layout.display = None if i < len(self.found) else "none"
        for row, words in zip(self.blanks.children, self.found, strict=False):
            for line, (word, chance) in zip(row.children[1:], words, strict=True):
                button, share = line.children
                button.description, share.value = word, f"<table><tr>{bar(chance, BLUE)}</tr></table>"

    def row(self, blank: int) -> widgets.VBox:
        lines: list[widgets.Widget] = [widgets.HTML(f"<b>Blank {blank + 1}</b>: click a word to put it in")]
        for i in range(WORDS):
            button = widgets.Button(layout=NARROW)
            button.add_class("candidate")
            button.on_click(lambda _, i=i: self.guarded(self.put, blank, i))
            lines.append(widgets.HBox((button, widgets.HTML())))
        return widgets.VBox(lines)

    def put(self, blank: int, i: int) -> None:
        """Write a candidate into its blank."""
        # The second click of a double click, say, was meant for the words that stood there before.
        if blank >= len(self.found) or time.monotonic() - self.offered < PAUSE:
            return
        self.sentence.value = put_in(self.sentence.value, blank, self.found[blank][i][0])

    def look(self) -> None:
        """Each token, tinted by the weight with which the blanks look at it."""
        self.attention.value = ""
        if self.found:
            at = self.layer.value, self.head.value
            rows = blank_attention(self.module, self.tokenizer, self.sentence.value, *at)[:BLANKS]
            lines = [
                f"blank {i + 1} looks at: " + " ".join(tinted(token, weight) for token, weight in row)
                for i, row in enumerate(rows)
            ]
            self.attention.value = boxed("\n".join(lines))


class ImageExplorer(Playground):
    """ViT on the test part's pictures, or an uploaded one: its classes, its attention, and what it says when patches
    are hidden. Without widgets: `utils.inside.class_attention` and `hide_patches`."""

    def __init__(self, model: L.LightningModule | Transformer, images: ImageData) -> None:
        require(isinstance(images, ImageData), "images", type(images), "an ImageData of utils/images.py")
        super().__init__(model, lambda network: isinstance(network.embed, PatchEmbedding), "a ViT: it takes pictures")
        self.data, config = images, self.module.model.config
        self.pictures, self.labels = images.images.test
        self.uploaded: torch.Tensor | None = None
        choice = {"style": LABEL, "layout": HALF}
        late = {"min": 0, "continuous_update": False, **choice}
        self.number = widgets.IntSlider(0, max=len(self.labels) - 1, description="Picture", **late)
        self.previous, self.next = widgets.Button(description="Previous"), widgets.Button(description="Next")
        self.upload = widgets.FileUpload(accept="image/*", multiple=False, description="Upload")
        limit = widgets.HTML("In Colab more than 1 MB may fail: call open_picture(path) of this widget.")
        layers = [("rollout of all", -1), *((str(i), i) for i in range(config.n_layers))]
        heads = [("mean of all", -1), *((str(i), i) for i in range(config.n_heads))]
        self.layer = widgets.Dropdown(options=layers, value=-1, description="Layer", **choice)
        self.head = widgets.Dropdown(options=heads, value=-1, description="Head", **choice)
        self.hide = widgets.IntSlider(0, max=config.max_len - 1, description="Hide patches", **late)
        which = [("of most attention", True), ("of least attention", False)]
        self.which = widgets.Dropdown(options=which, value=True, description="Hide those", **choice)
        self.view = widgets.HTML()
        self.previous.on_click(lambda _: self.step(-1))
        self.next.on_click(lambda _: self.step(1))
        self.number.observe(lambda _: self.choose(), "value")
        self.upload.observe(lambda _: self.receive(), "value")
        for control in (self.layer, self.head, self.hide, self.which):
            control.observe(lambda _: self.guarded(self.show), "value")
        steps = widgets.HBox((self.number, self.previous, self.next, widgets.VBox((self.upload, limit))), layout=ROW)
        looks = widgets.HBox((self.layer, self.head, self.hide, self.which), layout=ROW)
        self.children = (steps, looks, self.message, self.view)
        self.guarded(self.show)

    def step(self, by: int) -> None:
        number = (self.number.value + by) % len(self.labels)
        if number == self.number.value:
            self.choose()
        self.number.value = number

    def choose(self) -> None:
        self.uploaded = None
        self.guarded(self.show)

    def receive(self) -> None:
        """Show the uploaded picture. ipywidgets 7 gives {name: file}, 8 gives (file, ...)."""
        value = self.upload.value
        if not value:
            return
        # Emptied, or the same file uploaded again would be no change.
        self.upload.set_trait("value", type(value)())
        content = bytes([*(value.values() if isinstance(value, dict) else value)][-1]["content"])
        self.guarded(self.take, "upload", io.BytesIO(content))

    def open_picture(self, path: str | Path) -> None:
        """Show a picture file of the machine that the notebook runs on."""
        self.guarded(self.take, f"path={str(path)!r}", Path(path))

    def take(self, name: str, file: Path | BinaryIO) -> None:
        try:
            picture = read_picture(file, int(self.data.image_size))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        channels = int(self.data.channels)
        self.uploaded = (
            picture.float().mean(0, keepdim=True).byte() if channels == 1 else picture.expand(channels, -1, -1)
        )
        self.show()

    def show(self) -> None:
        """The picture, the attention upon it, and the likeliest classes, with patches hidden or not."""
        self.head.disabled = self.layer.value < 0
        known, module, classes = self.uploaded is None, self.module, self.data.classes
        picture = (self.pictures[self.number.value] if known else self.uploaded)[None]
        image = self.data.normalize(picture).to(module.device)
        layer, head = (None if control.value < 0 else control.value for control in (self.layer, self.head))
        with evaluating(module.model):
            attention = class_attention(module.model, image, layer, head)
            hidden = hide_patches(image, attention, self.hide.value, self.which.value)
            self.chances = module.model(hidden)[0].softmax(-1).cpu()
        named = len(self.chances) == len(classes)  # else the model's classes are not the data's: say, an official one
        likely = self.chances.topk(min(5, len(self.chances)))
        rows = "".join(
            f"<tr><td>{html.escape(classes[i]) if named else f'class {i}'}</td>{bar(p, BLUE)}</tr>"
            for p, i in zip(likely.values.tolist(), likely.indices.tolist(), strict=True)
        )
        number = self.number.value
        truth = f"it is {classes[self.labels[number]]}" if named else f"picture {number}"
        seen = (hidden.cpu() * self.data.std + self.data.mean).clamp(0, 255).byte()
        shown = figure_html(seen[0], None, truth if known else "your own")
        shown += figure_html(picture[0], attention[0].cpu(), "what it looks at")
        shown += f'<table style="line-height:1.5">{rows}</table>'
        self.view.value = f'<div style="display:flex;flex-wrap:wrap;gap:16px;align-items:center">{shown}</div>'


def figure_html(picture: torch.Tensor, attention: torch.Tensor | None, caption: str) -> str:
    """uint8 (channels, h, w) as an HTML figure 180 pixels wide; attention (side, side) lies over it in orange."""
    size = (180, 180), Image.Resampling.NEAREST
    image = Image.fromarray(picture.expand(3, -1, -1).permute(1, 2, 0).numpy()).resize(*size)
    if attention is not None:
        weight = attention / attention.max()
        alpha = Image.fromarray((200 * weight).byte().numpy()).resize(*size)
        image.paste(Image.new("RGB", image.size, (213, 94, 0)), mask=alpha)
    file = io.BytesIO()
    image.save(file, "png")
    source = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    image_tag = f'<img src="{source}" width="180" alt="{html.escape(caption)}">'
    return f'<figure style="margin:0;width:180px">{image_tag}<figcaption>{html.escape(caption)}</figcaption></figure>'


sampler, fill_mask, image_explorer = Sampler, FillMask, ImageExplorer
