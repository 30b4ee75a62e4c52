"""Look at pictures with ViT."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import BinaryIO

import ipywidgets as widgets
import lightning as L
from PIL import Image
from torch import Tensor

from transformer import PatchEmbedding, Transformer, require
from utils.data.images import ImageData
from utils.data.pictures import read_picture
from utils.inference.generate import evaluating
from utils.inference.interpret import class_attention, hide_patches
from utils.lessons.widgets.base import BLUE, HALF, LABEL, ROW, Playground, bar, boxed, shortened

CLASSES = 5  # how many of the likeliest classes are shown
SIDE = 180  # the width and height of a picture on the page, in pixels
ORANGE = (213, 94, 0)  # red, green and blue of the attention that is laid over a picture
FAR = 100  # of 255: so much lighter or darker than the training pictures is a picture's edge where it needs inverting
HINT = "The edge of your picture is {} and that of the training pictures is {}: does Invert help?"
ALL = -1  # all layers, or all heads; not None, by which a Dropdown means that nothing is selected


class ImageExplorer(Playground):
    """Classify the pictures of the test part, or a picture of your own, with ViT: the likeliest classes, the attention
    of the class token, and what changes when patches are hidden. Without widgets: `class_attention` and `hide_patches`
    of utils/inference/interpret.py.
    """

    def __init__(self, model: L.LightningModule | Transformer, images: ImageData) -> None:
        require(isinstance(images, ImageData), "images", type(images), "an ImageData of utils/data/images.py")
        needed = "a ViT, which takes pictures"
        super().__init__(model, lambda network: isinstance(network.embed, PatchEmbedding), needed)
        config = self.module.model.config
        self.data = images
        self.pictures, self.labels = images.images.test
        self.own: Tensor | None = None  # the uploaded or opened picture, uint8 (channels, h, w), while it is shown
        self.own_name = ""  # of its file
        self.usual_edge = edge(images.images.train[0][:1000])  # of the training pictures

        choice = {"style": LABEL, "layout": HALF}
        late = {"min": 0, "continuous_update": False, **choice}  # only when the slider is let go
        self.number = widgets.IntSlider(0, max=len(self.labels) - 1, description="Picture", **late)
        self.previous = widgets.Button(description="Previous")
        self.next = widgets.Button(description="Next")
        self.upload = widgets.FileUpload(accept="image/*", multiple=False, description="Upload")
        limit = widgets.HTML("In Colab, uploads over 1 MB may fail: call open_picture(path) of this widget instead.")
        layers = [("all (rollout)", ALL), *((str(i), i) for i in range(config.n_layers))]
        heads = [("all (mean)", ALL), *((str(i), i) for i in range(config.n_heads))]
        self.layer = widgets.Dropdown(options=layers, value=ALL, description="Layer", **choice)
        self.head = widgets.Dropdown(options=heads, value=ALL, description="Head", **choice)
        self.hide = widgets.IntSlider(0, max=config.max_len - 1, description="Hide patches", **late)
        which = [("most attended", True), ("least attended", False)]
        self.which = widgets.Dropdown(options=which, value=True, description="Which ones", **choice)
        self.invert = widgets.Checkbox(False, description="Invert light and dark", indent=False, layout=HALF)
        self.view = widgets.HTML()

        self.previous.on_click(lambda _: self.step(-1))
        self.next.on_click(lambda _: self.step(1))
        self.number.observe(lambda _: self.show_numbered(), "value")
        self.upload.observe(lambda _: self.receive(), "value")
        for control in (self.layer, self.head, self.hide, self.which, self.invert):
            control.observe(lambda _: self.guarded(self.show), "value")

        uploads = widgets.VBox((self.upload, limit))
        pictures = widgets.HBox((self.number, self.previous, self.next, uploads), layout=ROW)
        settings = widgets.HBox((self.layer, self.head, self.hide, self.which, self.invert), layout=ROW)
        self.children = (pictures, settings, self.message, self.view)
        self.guarded(self.show)

    # ------------------------------------------------------------------------------------------ which picture
    def step(self, by: int) -> None:
        """Show the next (1) or previous (-1) picture of the test part; after the last comes the first."""
        number = (self.number.value + by) % len(self.labels)
        if number == self.number.value:  # a single picture: the slider would report no change
            self.show_numbered()
        self.number.value = number

    def show_numbered(self) -> None:
        """Show the picture of the test part that the slider points at."""
        self.own = None
        self.guarded(self.show)

    def receive(self) -> None:
        """Show the uploaded picture."""
        value = self.upload.value  # {name: file} in ipywidgets 7, (file,) in ipywidgets 8
        if not value:
            return
        # Emptied, because uploading the same file again would otherwise be no change.
        self.upload.set_trait("value", type(value)())
        files = value.items() if isinstance(value, dict) else [(file["name"], file) for file in value]
        name, file = list(files)[-1]
        self.guarded(self.show_file, f"upload={name!r}", name, io.BytesIO(bytes(file["content"])))

    def open_picture(self, path: str | Path) -> None:
        """Show a picture file of the machine on which the notebook runs."""
        self.guarded(self.show_file, f"path={str(path)!r}", Path(path).name, Path(path))

    def show_file(self, argument: str, name: str, file: Path | BinaryIO) -> None:
        """Show a picture file by its name. An error begins with `argument`."""
        try:
            picture = read_picture(file, self.data.image_size)
        except ValueError as error:
            raise ValueError(f"{argument}: {error}") from error
        self.own_name = name
        if self.data.channels == 1:
            self.own = picture.float().mean(0, keepdim=True).byte()
        else:
            self.own = picture.expand(self.data.channels, -1, -1)
        self.show()

    # ------------------------------------------------------------------------------------------ what is shown
    def show(self) -> None:
        """Show the picture with its hidden patches, the attention of the class token, and the likeliest classes."""
        layer = None if self.layer.value == ALL else self.layer.value
        head = None if self.head.value == ALL else self.head.value
        self.head.disabled = layer is None  # rollout goes through all heads
        picture = self.pictures[self.number.value] if self.own is None else self.own  # (channels, h, w)
        if self.invert.value:
            picture = 255 - picture
        module = self.module
        image = self.data.normalize(picture[None]).to(module.device)  # (1, channels, h, w)
        with evaluating(module.model):
            attention = class_attention(module.model, image, layer, head)  # (1, side, side)
            hidden = hide_patches(image, attention, self.hide.value, self.which.value)
            self.chances = module.model(hidden)[0].softmax(-1).cpu()  # (K,)
        seen = (hidden.cpu() * self.data.std + self.data.mean).clamp(0, 255).byte()  # normalisation undone

        shown = figure_html(seen[0], None, self.caption())
        shown += figure_html(picture, attention[0].cpu(), "attention of the class token")
        shown += self.classes_table()
        self.view.value = f'<div style="display:flex;flex-wrap:wrap;gap:16px;align-items:center">{shown}</div>'
        if self.own is not None:
            self.compare_edges(edge(picture))

    def compare_edges(self, found: float) -> None:
        """Say so where a picture of one's own may be light on dark instead of dark on light, or the other way round."""
        if self.data.channels == 1 and abs(found - self.usual_edge) > FAR:
            is_lighter = found > self.usual_edge
            self.message.value = boxed(HINT.format(*("light", "dark") if is_lighter else ("dark", "light")))

    def has_names(self) -> bool:
        """Whether the model's classes are those of the data; those of an official model may not be."""
        return len(self.chances) == len(self.data.classes)

    def caption(self) -> str:
        number = self.number.value
        if self.own is not None:
            return f"your picture: {shortened(self.own_name)}"
        if self.has_names():
            return f"true class: {self.data.classes[self.labels[number]]}"
        return f"picture {number}"

    def classes_table(self) -> str:
        """The likeliest classes and their probabilities as an HTML table."""
        likely = self.chances.topk(min(CLASSES, len(self.chances)))
        rows = ""
        for i, probability in zip(likely.indices.tolist(), likely.values.tolist(), strict=True):
            name = self.data.classes[i] if self.has_names() else f"class {i}"
            rows += f"<tr><td>{html.escape(name)}</td>{bar(probability, BLUE)}</tr>"
        return f'<table style="line-height:1.5">{rows}</table>'


def edge(pictures: Tensor) -> float:
    """The mean of the outermost rows and columns of pictures (..., h, w)."""
    lines = pictures[..., 0, :], pictures[..., -1, :], pictures[..., 0], pictures[..., -1]
    return sum(line.float().mean().item() for line in lines) / 4


def figure_html(picture: Tensor, attention: Tensor | None, caption: str) -> str:
    """A picture, uint8 (channels, h, w), as an HTML figure. `attention` (side, side) lies over it in orange."""
    pixels = picture.expand(3, -1, -1).permute(1, 2, 0).numpy()  # (h, w, 3)
    image = enlarged(pixels)
    if attention is not None:
        opacity = 200 * attention / attention.max()  # of 255
        image.paste(Image.new("RGB", image.size, ORANGE), mask=enlarged(opacity.byte().numpy()))
    file = io.BytesIO()
    image.save(file, "png")
    source = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    text = html.escape(caption)
    image_tag = f'<img src="{source}" width="{SIDE}" alt="{text}">'
    return f'<figure style="margin:0;width:{SIDE}px">{image_tag}<figcaption>{text}</figcaption></figure>'


def enlarged(pixels) -> Image.Image:
    """An array of bytes, (h, w) or (h, w, 3), as an image of SIDE x SIDE without smoothing."""
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.NEAREST)
