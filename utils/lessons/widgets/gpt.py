"""The sampler: continue a prompt with GPT.

The text is generated in a thread, because a handler that takes long would block the handler of the Stop button. The
thread sets the value of an HTML widget: messages that are printed into an Output widget can get lost.
"""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Iterator

import ipywidgets as widgets
import lightning as L
from tokenizers import Tokenizer

from transformer import DecoderTransformer, Transformer, require
from utils.inference.generate import Written, write_tokens
from utils.lessons.widgets.base import BLUE, HALF, LABEL, ORANGE, ROW, WIDE, Playground, bar, boxed, tinted

REFRESH = 0.1  # seconds between two updates of a growing text
GROWING = 300  # how many of its newest tokens a growing text shows
READY, BUSY = "play", "spinner"  # icons of the button Generate
SHORT = 400  # up to this many tokens, the position is marked in the whole text, not only among its neighbours
NEIGHBOURS = 12  # tokens shown on either side of the chosen position
PROMPT = 2_000  # characters of a long prompt that are shown: its end
MEASURED = 10  # tokens; from fewer, no speed is computed


class Stopped(Exception):
    """Stop was pressed while the model was computing."""


class Sampler(Playground):
    """Continue a prompt with GPT: a growing text, its tokens tinted by their probability, and a table of the likeliest
    tokens at a chosen position. Without widgets: `utils.inference.generate.write_tokens`.
    """

    thread: threading.Thread | None = None

    def __init__(self, model: L.LightningModule | Transformer, tokenizer: Tokenizer, prompt: str = "Return ") -> None:
        require(isinstance(tokenizer, Tokenizer), "tokenizer", type(tokenizer), "a Tokenizer")
        super().__init__(model, lambda network: isinstance(network, DecoderTransformer), "a GPT: a DecoderTransformer")
        self.tokenizer = tokenizer
        self.written: list[Written] = []
        self.prompted = ""  # the prompt that `written` continues
        self.speeds: dict[bool, str] = {}  # with and without the cache
        self.stopped = threading.Event()
        self.busy = threading.Lock()  # held while a text is generated
        self.drawing = threading.RLock()  # held while the text or the candidates are updated

        number = {"style": LABEL, "layout": HALF}
        self.prompt = widgets.Textarea(prompt, description="Prompt", style=LABEL, layout=WIDE, rows=3)
        self.temperature = widgets.FloatSlider(0.8, min=0, max=2, step=0.05, description="Temperature", **number)
        self.top_k = widgets.BoundedIntText(50, min=0, max=10**6, description="Top-k (0: all)", **number)
        self.top_p = widgets.FloatSlider(1.0, min=0.05, max=1, step=0.05, description="Top-p", **number)
        self.length = widgets.BoundedIntText(100, min=1, max=10_000, description="Length", **number)
        self.seed = widgets.BoundedIntText(0, min=0, max=2**31 - 1, description="Seed", **number)
        self.cache = widgets.Checkbox(True, description="Key-value cache", **number)
        # Both stay enabled, since a browser takes the focus from a button that is disabled. The icon tells whether a
        # text is being written.
        self.generate = widgets.Button(description="Generate", button_style="primary", icon=READY)
        self.stop = widgets.Button(description="Stop", icon="stop")
        self.speed = widgets.HTML()
        self.text = widgets.HTML()
        self.position = widgets.IntSlider(0, min=0, max=0, description="Position", style=LABEL, layout=WIDE)
        self.candidates = widgets.HTML()

        self.generate.on_click(lambda _: self.guarded(self.start))
        self.stop.on_click(lambda _: self.stopped.set())
        self.position.observe(lambda _: self.guarded(self.show_position), "value")

        settings = (self.temperature, self.top_k, self.top_p, self.length, self.seed, self.cache)
        buttons = (self.generate, self.stop, self.speed)
        self.children = (
            self.prompt,
            widgets.HBox(settings, layout=ROW),
            widgets.HBox(buttons, layout=ROW),
            self.message,
            self.text,
            self.position,
            self.candidates,
        )

    # ------------------------------------------------------------------------------------------ the thread
    def start(self) -> None:
        """Start a thread that generates a text, unless one is running."""
        if not self.busy.acquire(blocking=False):
            return
        try:
            self.stopped.clear()
            self.generate.icon = BUSY
            self.thread = threading.Thread(target=self.work, name="sampler", daemon=True)
            self.thread.start()
        except BaseException:
            self.finish()
            raise

    def work(self) -> None:
        """What the thread does."""
        try:
            self.guarded(self.write)
        finally:
            self.finish()

    def finish(self) -> None:
        """Let the next text begin."""
        try:
            self.generate.icon = READY
        finally:
            self.busy.release()

    def halt(self) -> None:
        """Ask the thread to stop, and wait until it has."""
        if self.thread is not None and self.thread is not threading.current_thread():
            self.stopped.set()
            self.thread.join(timeout=5)

    def stop_here(self, *_) -> None:
        """Before a block of the model: end the thread's forward pass if Stop was pressed.

        Other threads may be using the model for something else, and are left alone.
        """
        if self.stopped.is_set() and threading.current_thread() is self.thread:
            raise Stopped

    # ------------------------------------------------------------------------------------------ the text
    def write(self) -> None:
        """Generate a text until it has the wanted length or Stop is pressed."""
        self.written = []
        self.prompted = self.prompt.value
        self.position.value, self.position.max = 0, 0
        self.candidates.value = ""
        self.show(GROWING)

        model, use_cache = self.module.model, self.cache.value
        tokens = write_tokens(
            model,
            self.tokenizer,
            self.prompted,
            self.length.value,
            self.seed.value,
            temperature=self.temperature.value,
            top_k=self.top_k.value or None,
            top_p=self.top_p.value if self.top_p.value < 1 else None,  # None saves sorting the vocabulary
            use_cache=use_cache,
        )
        # A large model takes long to read a long prompt, so Stop also takes effect within it, between two blocks.
        hooks = [block.register_forward_pre_hook(self.stop_here) for block in model.blocks]
        try:
            seconds = self.grow(tokens)
        finally:
            for hook in hooks:
                hook.remove()

        n = len(self.written)
        if n >= MEASURED:
            how = "with" if use_cache else "without"
            self.speeds[use_cache] = f"{n / seconds:.1f} tokens/s {how} the cache (over {n} tokens)"
        self.speed.value = ", ".join(self.speeds.values())
        self.position.max = max(0, n - 1)
        self.show(n)

    def grow(self, tokens: Iterator[Written]) -> float:
        """Show the tokens as they come. Return how many seconds they took, without the time spent on showing them."""
        start = shown = time.perf_counter()
        showing = 0.0
        try:
            for token in tokens:
                self.written.append(token)
                now = time.perf_counter()
                if now - shown > REFRESH:
                    self.show(GROWING)
                    shown = time.perf_counter()
                    showing += shown - now
        except Stopped:
            pass  # what was generated before stays
        return time.perf_counter() - start - showing

    # ------------------------------------------------------------------------------------------ the page
    def show(self, last: int) -> None:
        """Update the text, of which the `last` tokens are shown (0: leave it as it is), and the candidates."""
        with self.drawing:
            if last > 0:
                self.show_text(last)
            if self.position.value < len(self.written):
                self.show_candidates()

    def show_position(self) -> None:
        """After a move of the slider: update the candidates, but send a text again only if it is short."""
        n = len(self.written)
        self.show(n if n <= SHORT else 0)

    def show_text(self, last: int) -> None:
        start = max(0, len(self.written) - last)
        prompt = self.prompted
        if start > 0:
            prompt = "\u2026"
        elif len(prompt) > PROMPT:
            prompt = "\u2026" + prompt[-PROMPT:]
        grey = f'<span style="opacity:0.65">{html.escape(prompt)}</span>'
        self.text.value = boxed(grey + self.tinted_tokens(start, len(self.written)))

    def show_candidates(self) -> None:
        position = self.position.value
        near = self.tinted_tokens(max(0, position - NEIGHBOURS), position + NEIGHBOURS + 1)
        one_line = near.replace("\n", " ")
        self.candidates.value = boxed(one_line) + candidates_table(self.written[position])

    def tinted_tokens(self, start: int, stop: int) -> str:
        """The tokens from `start` to `stop` - 1 as HTML; the one at the chosen position is marked."""
        tokens = enumerate(self.written[start:stop], start)
        return "".join(tinted(token.text, token.probability, i == self.position.value) for i, token in tokens)


def candidates_table(token: Written) -> str:
    """The candidates for one token as an HTML table, with their probabilities before and after temperature, top-k and
    top-p. An arrow points at the candidate that was drawn.
    """
    head = "<tr><th>candidate</th><th>the model's probability</th><th>after temperature, top-k, top-p</th></tr>"
    rows = ""
    for i, (text, before, after) in enumerate(token.candidates):
        name = f"<code>{html.escape(visible(text))}</code>"
        if i == token.taken:
            name = f"<b>\u2192 {name}</b>"
        rows += f"<tr><td>{name}</td>{bar(before, BLUE)}{bar(after, ORANGE)}</tr>"
    return f'<table style="line-height:1.5;text-align:left">{head}{rows}</table>'


def visible(text: str) -> str:
    """The text of a token, with signs for spaces and line ends."""
    shown = text.strip("\ufffd").replace(" ", "\u2423").replace("\n", "\u23ce")
    return shown or "(part of a character)"
