"""Play with the attention of one query."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import ipywidgets as widgets
import torch
from torch import Tensor

from transformer import require
from utils.lessons.tasks.attention import attention_weights, causal_mask, mix, scores
from utils.lessons.widgets.base import HALF, LABEL, ROW
from utils.plots import attention_plane, plain


class AttentionPlayground(widgets.VBox):
    """Move a query of width 2 among the keys of a few tokens, and see the weights and the mixed value. Without widgets:
    `attention_plane` of utils/plots.py.

    queries, keys, values: (T, 2). tokens: T of them.
    """

    def __init__(self, queries: Tensor, keys: Tensor, values: Tensor, tokens: Sequence[str]) -> None:
        shape = (len(tokens), 2)
        for name, tensor in (("queries", queries), ("keys", keys), ("values", values)):
            require(tuple(tensor.shape) == shape, name, tuple(tensor.shape), f"{shape}: two numbers for each token")
        super().__init__()
        self.queries, self.offers, self.contents, self.tokens = queries, keys, values, tokens
        choice = {"style": LABEL, "layout": HALF}
        options = [(token, position) for position, token in enumerate(tokens)]
        self.position = widgets.Dropdown(options=options, value=len(tokens) - 1, description="Query of", **choice)
        reach = {"min": -4.0, "max": 4.0, "step": 0.25, **choice}
        self.first = widgets.FloatSlider(description="1st feature", **reach)
        self.second = widgets.FloatSlider(description="2nd feature", **reach)
        self.causal = widgets.Checkbox(True, description="causal mask", indent=False)
        self.scaled = widgets.Checkbox(True, description="divide by sqrt(D)", indent=False)
        self.view = widgets.Image(format="png", width=880)
        self.children = (
            widgets.HBox((self.position, self.first, self.second), layout=ROW),
            widgets.HBox((self.causal, self.scaled), layout=ROW),
            self.view,
        )
        self.start_from_token()
        self.position.observe(lambda _: self.start_from_token(), "value")
        for control in (self.first, self.second, self.causal, self.scaled):
            control.observe(lambda _: self.show(), "value")

    def start_from_token(self) -> None:
        """Set the sliders to the query of the chosen token."""
        self.first.value, self.second.value = self.queries[self.position.value].tolist()
        self.show()

    def show(self) -> None:
        """Draw the query, the weights that it gives to the keys, and the mixed value."""
        query = torch.tensor([[self.first.value, self.second.value]], dtype=self.offers.dtype)  # (1, D)
        one = scores(query, self.offers)  # (1, T)
        if not self.scaled.value:
            one = one * math.sqrt(self.offers.shape[-1])
        visible = causal_mask(len(self.tokens)) if self.causal.value else torch.ones(2 * (len(self.tokens),)).bool()
        self.weights = attention_weights(one, visible[self.position.value][None])  # (1, T)
        self.mixed = mix(self.weights, self.contents)[0]  # (D,)
        figure = attention_plane(query[0], self.offers, self.weights[0], self.mixed, self.tokens)
        file = io.BytesIO()
        plain(figure).savefig(file, format="png")
        self.view.value = file.getvalue()
