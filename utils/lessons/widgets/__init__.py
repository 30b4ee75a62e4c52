"""Widgets to play with: `attention_playground` for one query among a few keys, `switchboard` for all models in one and,
with a trained model, `sampler` for GPT, `fill_mask` for BERT and `image_explorer` for ViT.

Each widget shows what a few plain functions of utils/inference return. They can be called without the widget.
"""

try:
    import ipywidgets  # noqa: F401 (imported here so that its absence is explained once, and before all other imports)
except ImportError as error:
    raise ImportError(
        "the widgets need ipywidgets (pip install ipywidgets); without it, use the plain functions: write_tokens in "
        "utils/inference/generate.py, fill_blanks and blank_attention in utils/inference/blanks.py, class_attention "
        "and hide_patches in utils/inference/interpret.py"
    ) from error

from utils.lessons.widgets.attention import AttentionPlayground as attention_playground
from utils.lessons.widgets.bert import FillMask as fill_mask
from utils.lessons.widgets.gpt import Sampler as sampler
from utils.lessons.widgets.switchboard import SwitchboardPanel as switchboard
from utils.lessons.widgets.vit import ImageExplorer as image_explorer

__all__ = ["attention_playground", "fill_mask", "image_explorer", "sampler", "switchboard"]
