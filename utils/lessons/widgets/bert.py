"""Fill in blanks with BERT."""

from __future__ import annotations

import time

import ipywidgets as widgets
import lightning as L
from tokenizers import Tokenizer

from transformer import MLMHead, Transformer, require
from utils.inference.blanks import BLANK, blank_attention, fill_blanks, put_in, read_blanks
from utils.lessons.widgets.base import BLUE, HALF, LABEL, ROW, WIDE, Playground, bar, boxed, tinted

BLANKS = 10  # only so many blanks of a sentence are filled in
CANDIDATES = 6  # tokens offered for each blank
PAUSE = 0.5  # seconds; nobody can read new candidates and click one in less
BUTTON = {"width": "170px"}


class FillMask(Playground):
    """Fill in each `___` of a sentence with BERT: a button for each of the likeliest tokens, and what the blanks attend
    to. Without widgets: `fill_blanks` and `blank_attention` of utils/inference/blanks.py.
    """

    def __init__(
        self, model: L.LightningModule | Transformer, tokenizer: Tokenizer, sentence: str = "this is ___ ."
    ) -> None:
        require(isinstance(tokenizer, Tokenizer), "tokenizer", type(tokenizer), "a Tokenizer")
        read_blanks(tokenizer, sentence)  # raises a ValueError if the tokenizer has no [MASK]
        needed = "a BERT with an MLMHead, which predicts tokens"
        super().__init__(model, lambda network: isinstance(network.head, MLMHead), needed)
        config = self.module.model.config
        self.tokenizer = tokenizer
        self.found: list[list[tuple[str, float]]] = []  # for each blank, the candidates and their probabilities
        self.offered = 0.0  # the time at which the candidates were shown

        late = {"style": LABEL, "continuous_update": False}  # only when Enter is pressed or the slider is let go
        self.sentence = widgets.Text(sentence, description="Sentence", layout=WIDE, **late)
        self.fill = widgets.Button(description="Fill the blanks", button_style="primary")
        self.blanks = widgets.VBox()
        self.layer = widgets.IntSlider(0, min=0, max=config.n_layers - 1, description="Layer", layout=HALF, **late)
        self.head = widgets.IntSlider(0, min=0, max=config.n_heads - 1, description="Head", layout=HALF, **late)
        self.attention = widgets.HTML()

        self.fill.on_click(lambda _: self.guarded(self.show))
        self.sentence.observe(lambda _: self.guarded(self.show), "value")
        for slider in (self.layer, self.head):
            slider.observe(lambda _: self.guarded(self.show_attention), "value")

        sliders = widgets.HBox((self.layer, self.head), layout=ROW)
        self.children = (self.sentence, self.fill, self.message, self.blanks, sliders, self.attention)
        self.guarded(self.show)

    def show(self) -> None:
        """Show the candidates for each blank of the sentence, and what the blanks attend to."""
        text = self.sentence.value
        n = len(BLANK.findall(text))
        self.found = []
        try:
            if n > 0:
                self.found = fill_blanks(self.module, self.tokenizer, text, k=CANDIDATES)[:BLANKS]
        finally:  # after an error, too, because the old candidates do not belong to this sentence
            self.show_candidates()
            self.guarded(self.show_attention)
            self.offered = time.monotonic()
        if n == 0:
            self.message.value = "No blank is left: write ___ where BERT is to fill in a token."
        elif n > BLANKS:
            self.message.value = f"The first {BLANKS} of {n} blanks:"

    def show_candidates(self) -> None:
        """Show a row of buttons for each blank.

        Rows are hidden and used again rather than replaced: ipywidgets would keep those that are replaced, and the
        button that was pressed would lose the focus.
        """
        while len(self.blanks.children) < len(self.found):
            new = self.make_row(len(self.blanks.children))
            self.blanks.children += (new,)
        for i, row in enumerate(self.blanks.children):
            row.layout.display = None if i < len(self.found) else "none"
        for row, candidates in zip(self.blanks.children, self.found, strict=False):
            _, *lines = row.children
            for line, (token, probability) in zip(lines, candidates, strict=True):
                button, share = line.children
                button.description = token
                share.value = f"<table><tr>{bar(probability, BLUE)}</tr></table>"

    def make_row(self, blank: int) -> widgets.VBox:
        """A heading, and a line for each candidate: a button and a place for its bar."""
        lines: list[widgets.Widget] = [widgets.HTML(f"<b>Blank {blank + 1}</b>: click a token to put it in")]
        for i in range(CANDIDATES):
            button = widgets.Button(layout=BUTTON)
            button.add_class("candidate")
            button.on_click(lambda _, i=i: self.guarded(self.put, blank, i))
            lines.append(widgets.HBox((button, widgets.HTML())))
        return widgets.VBox(lines)

    def put(self, blank: int, i: int) -> None:
        """Put candidate i into its blank, unless the click was meant for what the button showed before.

        That is so, for example, with the second click of a double click.
        """
        too_soon = time.monotonic() - self.offered < PAUSE
        if blank < len(self.found) and not too_soon:
            token, _ = self.found[blank][i]
            self.sentence.value = put_in(self.sentence.value, blank, token)

    def show_attention(self) -> None:
        """For each blank, show all tokens, tinted by the attention weight that the blank gives them."""
        self.attention.value = ""
        if not self.found:
            return
        layer, head = self.layer.value, self.head.value
        rows = blank_attention(self.module, self.tokenizer, self.sentence.value, layer, head)[:BLANKS]
        lines = []
        for i, row in enumerate(rows):
            tokens = " ".join(tinted(token, weight) for token, weight in row)
            lines.append(f"blank {i + 1} attends to: {tokens}")
        self.attention.value = boxed("\n".join(lines))
