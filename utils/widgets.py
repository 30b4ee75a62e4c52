"""Widgets to play with a trained model: `sampler` (GPT), `fill_mask` (BERT), `image_explorer` (ViT).

Each is a view of plain functions in sampling.py and inside.py, which do without widgets. A thread writes the text: a
handler that took long would keep the Stop button from being heard; it sets the value of an HTML widget, which, unlike
printing into an Output widget, loses nothing on the way.
"""

from __future__ import annotations

import base64
import html
import io
import re
import threading
import time
import traceback
import weakref
from types import SimpleNamespace

import lightning as L
import torch
from PIL import Image
from tokenizers import Tokenizer

from transformer import EncoderTransformer, Transformer
from utils.images import ImageData, read_picture
from utils.inside import class_attention, hide_patches
from utils.plots import scaled
from utils.sampling import Written, blank_attention, fill_blanks, write_tokens

try:
    import ipywidgets as widgets
except ImportError as error:
    plain = "write_tokens and fill_blanks of utils/sampling.py, class_attention and hide_patches of utils/inside.py"
    raise ImportError(f"the widgets need ipywidgets (pip install ipywidgets); without it there are {plain}") from error

REFRESH = 0.1  # seconds between two pictures of a text that grows
LABEL = {"description_width": "92px"}
WIDE, HALF = widgets.Layout(width="98%"), widgets.Layout(width="290px")
ROW = widgets.Layout(flex_flow="row wrap", width="100%")
# Tints let the page's own colours through, so that they serve light and dark themes.
BLUE, ORANGE = "rgba(0,114,178,{:.2f})", "rgba(213,94,0,{:.2f})"


def tinted(text: str, share: float, marked: bool = False) -> str:
    """A token as HTML, the bluer the larger `share` (0 to 1) is."""
    outline = f"outline:2px solid {ORANGE.format(1)};" if marked else ""
    style = f"background:{BLUE.format(0.75 * share)};border-radius:3px;{outline}"
    return f'<span style="{style}" title="{share:.3f}">{html.escape(text)}</span>'


def boxed(content: str) -> str:
    """HTML that keeps spaces and line ends, breaks long words, and scrolls when it is long."""
    style = "font-family:monospace;line-height:1.6;white-space:pre-wrap;overflow-wrap:anywhere;"
    style += "max-height:320px;overflow:auto;margin:6px 0"
    return f'<div style="{style}">{content}</div>'


def bar(share: float, colour: str) -> str:
    """A bar of `share` (0 to 1) with its percentage, as a table's cell."""
    return (
        f'<td style="width:150px"><div style="width:{100 * share:.0f}px;height:12px;background:{colour.format(0.8)};'
        f'display:inline-block;vertical-align:middle"></div> {100 * share:.1f} %</td>'
    )


def visible(text: str) -> str:
    """A token with its spaces and line ends to be seen."""
    shown = text.strip("\ufffd").replace(" ", "\u2423").replace("\n", "\u23ce")
    return shown or "(part of a character)"


class Stopped(Exception):
    """Stop was pressed while the model was at work."""


class Playground(widgets.VBox):
    """What the three have in common: a line for messages, and one piece of work at a time, in a thread or not."""

    _open: dict[type, weakref.ref] = {}

    def __init__(self, model: L.LightningModule | Transformer) -> None:
        earlier = self._open.get(type(self), lambda: None)()
        if earlier is not None:  # the cell is run again: what the widget before it still writes nobody will see
            earlier.halt()
        self._open[type(self)] = weakref.ref(self)
        network = model if isinstance(model, Transformer) else model.model
        self.module = SimpleNamespace(model=network.eval(), device=next(network.parameters()).device)
        self.message = widgets.HTML()
        self.stopped, self.busy, self.thread = threading.Event(), threading.Lock(), None
        super().__init__()

    def guarded(self, work, *arguments) -> None:
        """Do it; what goes wrong is shown, for neither a thread's nor a handler's error reaches the page otherwise."""
        self.message.value = ""
        try:
            with torch.inference_mode():  # of this thread: the mode is not handed on to others
                work(*arguments)
        except ValueError as error:
            text = str(error)
            self.message.value = boxed(
                "\u26a0 " + html.escape(text if len(text) < 300 else text[:140] + " \u2026 " + text[-140:])
            )
        except Exception:
            self.message.value = boxed("\u26a0 " + html.escape(traceback.format_exc()))

    def halt(self) -> None:
        """Ask the thread to stop, and wait for the token that it is at."""
        self.stopped.set()
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join(timeout=5)

    def close(self) -> None:
        self.halt()
        super().close()


class Sampler(Playground):
    """See `sampler`."""

    def __init__(self, model: L.LightningModule | Transformer, tokenizer: Tokenizer, prompt: str) -> None:
        super().__init__(model)
        self.tokenizer, self.written, self.prompted, self.speeds = tokenizer, [], "", {}
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
        self.generate.on_click(lambda _: self.start())
        self.stop.on_click(lambda _: self.stopped.set())
        self.position.observe(lambda _: self.show(), "value")
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
        self.stopped.clear()
        self.generate.disabled, self.stop.disabled = True, False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        try:
            self.guarded(self.write)
        finally:
            self.generate.disabled, self.stop.disabled = False, True
            self.busy.release()

    def write(self) -> None:
        """Let the text grow until it is long enough or Stop is pressed."""
        self.written, self.prompted, use_cache = [], self.prompt.value, self.cache.value
        self.position.value, self.position.max = 0, 0
        self.text.value = self.candidates.value = ""
        settings = {"temperature": self.temperature.value, "top_k": self.top_k.value or None, "top_p": self.top_p.value}
        tokens = write_tokens(
            self.module.model, self.tokenizer, self.prompted, self.length.value, self.seed.value,
            use_cache=use_cache, **settings
        )  # fmt: skip
        # A large model takes long over a long prompt: Stop is heard before each of its blocks.
        hooks = [block.register_forward_pre_hook(self.leave) for block in self.module.model.blocks]
        began = shown = time.perf_counter()
        try:
            for token in tokens:
                self.written.append(token)
                if time.perf_counter() - shown > REFRESH:
                    self.show()
                    shown = time.perf_counter()
        except Stopped:
            pass  # the text stays as far as it has come
        finally:
            for hook in hooks:
                hook.remove()
        self.speeds[use_cache] = len(self.written) / (time.perf_counter() - began)
        self.position.max = max(0, len(self.written) - 1)
        self.show()

    def leave(self, *_) -> None:
        if self.stopped.is_set():
            raise Stopped

    def show(self) -> None:
        """The text, the chosen token's candidates, and how fast it went."""
        written, at = list(self.written), self.position.value
        prompt = self.prompted if len(self.prompted) < 2_000 else "\u2026" + self.prompted[-2_000:]
        spans = [tinted(token.text, token.probability, i == at) for i, token in enumerate(written)]
        self.text.value = boxed(f'<span style="opacity:0.65">{html.escape(prompt)}</span>' + "".join(spans))
        if at < len(written):
            self.candidates.value = candidates_table(written[at])
        names = {True: "with the cache", False: "without it"}
        self.speed.value = ", ".join(f"{self.speeds[on]:.0f} tokens/s {names[on]}" for on in names if on in self.speeds)


def candidates_table(token: Written) -> str:
    """What could have stood at one place, as the model saw it and as it was drawn."""
    head = "<tr><th>candidate</th><th>the model's probability</th><th>after temperature, top-k, top-p</th></tr>"
    rows = [
        f"<tr><td><code>{html.escape(visible(text))}</code></td>{bar(before, BLUE)}{bar(after, ORANGE)}</tr>"
        for text, before, after in token.candidates
    ]
    return f'<table style="line-height:1.5;text-align:left">{head}{"".join(rows)}</table>'


class FillMask(Playground):
    """See `fill_mask`."""

    def __init__(self, model: L.LightningModule | Transformer, tokenizer: Tokenizer, sentence: str) -> None:
        super().__init__(model)
        config = self.module.model.config
        self.tokenizer = tokenizer
        self.sentence = widgets.Text(
            sentence, description="Sentence", style=LABEL, layout=WIDE, continuous_update=False
        )
        self.fill = widgets.Button(description="Fill the blanks", button_style="primary")
        choice = {"style": LABEL, "layout": HALF, "min": 0}
        self.layer = widgets.IntSlider(0, max=config.n_layers - 1, description="Layer", **choice)
        self.head = widgets.IntSlider(0, max=config.n_heads - 1, description="Head", **choice)
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
        self.blanks.children, self.attention.value = (), ""
        if "___" not in self.sentence.value:
            self.message.value = "No blank is left: write ___ where a word is to be guessed."
            return
        found = fill_blanks(self.module, self.tokenizer, self.sentence.value, k=6)
        self.blanks.children = tuple(self.offer(i, words) for i, words in enumerate(found))
        self.look()

    def offer(self, blank: int, words: list[tuple[str, float]]) -> widgets.VBox:
        rows: list[widgets.Widget] = [widgets.HTML(f"<b>Blank {blank + 1}</b>: click a word to put it in")]
        for word, chance in words:
            button = widgets.Button(description=word, layout=widgets.Layout(width="170px"))
            button.add_class("candidate")
            button.on_click(lambda _, word=word: self.put(blank, word))
            share = widgets.HTML(f"<table><tr>{bar(chance, BLUE)}</tr></table>")
            rows.append(widgets.HBox((button, share)))
        return widgets.VBox(rows)

    def put(self, blank: int, word: str) -> None:
        """Write a candidate into its blank. "##ing" goes on with the word before it."""
        places = list(re.finditer(r"\s*_{3,}", self.sentence.value))
        place, text = places[blank], self.sentence.value
        space = "" if word.startswith("##") or not place.group().startswith(" ") else " "
        self.sentence.value = text[: place.start()] + space + word.removeprefix("##") + text[place.end() :]

    def look(self) -> None:
        """Each token, tinted by the weight with which the blanks look at it."""
        if "___" not in self.sentence.value:
            return
        rows = blank_attention(self.module, self.tokenizer, self.sentence.value, self.layer.value, self.head.value)
        lines = [
            f"blank {i + 1} looks at: " + " ".join(tinted(token, weight) for token, weight in row)
            for i, row in enumerate(rows)
        ]
        self.attention.value = boxed("\n".join(lines))


class ImageExplorer(Playground):
    """See `image_explorer`."""

    def __init__(self, model: L.LightningModule | Transformer, data: ImageData) -> None:
        super().__init__(model)
        self.data, config = data, self.module.model.config
        self.pictures, self.labels = data.images.test
        self.uploaded: torch.Tensor | None = None
        choice = {"style": LABEL, "layout": HALF}
        n_patches = config.max_len - 1
        self.number = widgets.IntSlider(0, min=0, max=len(self.labels) - 1, description="Picture", **choice)
        self.previous, self.next = widgets.Button(description="Previous"), widgets.Button(description="Next")
        self.upload = widgets.FileUpload(accept="image/*", multiple=False, description="Upload")
        layers = [("rollout of all", -1), *((str(i), i) for i in range(config.n_layers))]
        heads = [("mean of all", -1), *((str(i), i) for i in range(config.n_heads))]
        self.layer = widgets.Dropdown(options=layers, value=-1, description="Layer", **choice)
        self.head = widgets.Dropdown(options=heads, value=-1, description="Head", **choice)
        self.hide = widgets.IntSlider(0, min=0, max=n_patches, description="Hide patches", **choice)
        which = [("of most attention", True), ("of least attention", False)]
        self.which = widgets.Dropdown(options=which, value=True, description="Those", **choice)
        self.view = widgets.HTML()
        self.previous.on_click(lambda _: self.step(-1))
        self.next.on_click(lambda _: self.step(1))
        self.number.observe(lambda _: self.choose(), "value")
        self.upload.observe(lambda _: self.guarded(self.take), "value")
        for control in (self.layer, self.head, self.hide, self.which):
            control.observe(lambda _: self.guarded(self.show), "value")
        steps = widgets.HBox((self.number, self.previous, self.next, self.upload), layout=ROW)
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

    def take(self) -> None:
        """Show the uploaded picture. ipywidgets 7 gives {name: file}, 8 gives (file, ...)."""
        files = list(self.upload.value.values() if isinstance(self.upload.value, dict) else self.upload.value)
        if not files:
            return
        try:
            picture = read_picture(io.BytesIO(bytes(files[-1]["content"])), int(self.data.image_size))
        except ValueError as error:
            raise ValueError(f"upload: {error}") from error
        channels = int(self.data.channels)
        self.uploaded = (
            picture.float().mean(0, keepdim=True).byte() if channels == 1 else picture.expand(channels, -1, -1)
        )
        self.show()

    def show(self) -> None:
        """The picture, the attention upon it, and the likeliest classes, with patches hidden or not."""
        known = self.uploaded is None
        picture = (self.pictures[self.number.value] if known else self.uploaded)[None]
        image = self.data.normalize(picture).to(self.module.device)
        layer, head = (None if control.value < 0 else control.value for control in (self.layer, self.head))
        attention = class_attention(self.module.model, image, layer, head)
        hidden = hide_patches(image, attention, self.hide.value, self.which.value)
        self.chances = self.module.model(hidden)[0].softmax(-1).cpu()
        likely = self.chances.topk(min(5, len(self.chances)))
        rows = "".join(
            f"<tr><td>{html.escape(self.data.classes[i])}</td>{bar(p, BLUE)}</tr>"
            for p, i in zip(likely.values.tolist(), likely.indices.tolist(), strict=True)
        )
        truth = (
            f"it is <b>{html.escape(self.data.classes[self.labels[self.number.value]])}</b>" if known else "your own"
        )
        mean, std = self.data.mean, self.data.std
        seen = (hidden.cpu() * std + mean).clamp(0, 255).byte()
        pictures = figure_html(seen[0], None, truth) + figure_html(picture[0], attention[0].cpu(), "what it looks at")
        table = f'<table style="line-height:1.5">{rows}</table>'
        self.view.value = (
            f'<div style="display:flex;flex-wrap:wrap;gap:16px;align-items:center">{pictures}{table}</div>'
        )


def figure_html(picture: torch.Tensor, attention: torch.Tensor | None, caption: str) -> str:
    """uint8 (channels, h, w) as an HTML figure 180 pixels wide; attention (side, side) lies over it in orange."""
    shown = scaled(picture[None])[0] if picture.dtype != torch.uint8 else picture
    image = Image.fromarray(shown.expand(3, -1, -1).permute(1, 2, 0).numpy()).resize(
        (180, 180), Image.Resampling.NEAREST
    )
    if attention is not None:
        weight = attention / attention.max()
        alpha = Image.fromarray((200 * weight).byte().numpy()).resize((180, 180), Image.Resampling.NEAREST)
        image.paste(Image.new("RGB", image.size, (213, 94, 0)), mask=alpha)
    file = io.BytesIO()
    image.save(file, "png")
    source = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    words = html.escape(re.sub("<.*?>", "", caption))
    image_tag = f'<img src="{source}" width="180" alt="{words}">'
    return f'<figure style="margin:0">{image_tag}<figcaption>{caption}</figcaption></figure>'


def sampler(model: L.LightningModule | Transformer, tokenizer: Tokenizer, prompt: str = "Return ") -> Sampler:
    """GPT, to write on from a prompt: text that grows, each token tinted by its probability, and what else it could
    have been at the chosen position. Without widgets: `utils.sampling.write_tokens`."""
    return Sampler(model, tokenizer, prompt)


def fill_mask(
    model: L.LightningModule | Transformer, tokenizer: Tokenizer, sentence: str = "this is ___ ."
) -> FillMask:
    """BERT, to fill in each `___`: a button for each likely word, and what the blank looks at. Without widgets:
    `utils.sampling.fill_blanks` and `blank_attention`."""
    return FillMask(model, tokenizer, sentence)


def image_explorer(model: L.LightningModule | EncoderTransformer, images: ImageData) -> ImageExplorer:
    """ViT on the test part's pictures, or an uploaded one: its classes, its attention, and what it says when patches
    are hidden. Without widgets: `utils.inside.class_attention` and `hide_patches`."""
    return ImageExplorer(model, images)
