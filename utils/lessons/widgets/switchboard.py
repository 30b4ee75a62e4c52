"""Turn the three switches of a Switchboard."""

from __future__ import annotations

import io

import ipywidgets as widgets

from transformer import require
from utils.lessons.switchboard import SWITCHES, Switchboard
from utils.lessons.widgets.base import LABEL, ROW
from utils.plots import plain


class SwitchboardPanel(widgets.VBox):
    """Three switches and a picture of the model that they make: its name, what goes in, who depends on whom, and what
    comes out. Without widgets: `Switchboard.show` of utils/lessons/switchboard.py.
    """

    def __init__(self, board: Switchboard) -> None:
        require(isinstance(board, Switchboard), "board", type(board), "a Switchboard of utils/lessons/switchboard.py")
        super().__init__()
        self.board = board
        self.switches = [
            widgets.ToggleButtons(options=options, description=name, style={**LABEL, "button_width": "90px"})
            for name, options in SWITCHES.items()
        ]
        self.number = widgets.IntSlider(0, max=0, description="Example", continuous_update=False, style=LABEL)
        self.view = widgets.Image(format="png", layout={"width": "1000px", "max_width": "100%"})
        self.children = (widgets.HBox((*self.switches, self.number), layout=ROW), self.view)
        for control in (*self.switches, self.number):
            control.observe(lambda _: self.show(), "value")
        self.show()

    @property
    def setting(self) -> tuple[str, str, str]:
        """What the switches say."""
        return tuple(switch.value for switch in self.switches)

    def show(self) -> None:
        """Draw the model of the setting, with one text or picture of the test part."""
        self.number.max = self.board.size(self.setting, "test") - 1  # a larger value is lowered, which draws once more
        file = io.BytesIO()
        plain(self.board.show(*self.setting, self.number.value)).savefig(file, format="png")
        self.view.value = file.getvalue()
