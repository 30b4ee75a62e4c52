"""Pictures as tensors: how a file is read, and how training pictures are changed at random."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

FORMATS = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "WEBP": (".webp",), "BMP": (".bmp",), "GIF": (".gif",)}
SUFFIXES = {suffix for suffixes in FORMATS.values() for suffix in suffixes}  # of files that count as pictures


def read_picture(file: Path | BinaryIO, size: int) -> Tensor:
    """Return the middle square of a picture file, uint8 (channels, size, size); 1 channel if it is grey, else 3.

    The picture is turned as its camera says (EXIF), and transparent places become white.
    Raises ValueError for a file that is no readable picture.
    """
    try:
        with open_picture(file) as picture:
            picture = to_grey_or_rgb(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError as error:
        raise ValueError(f"must be a readable picture ({', '.join(FORMATS)})") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"must be a readable picture ({error})") from error
    square = middle_square(picture, size)
    return torch.from_numpy(np.array(square)).view(size, size, -1).permute(2, 0, 1)


def open_picture(file: str | Path | BinaryIO) -> Image.Image:
    """Open a picture of one of FORMATS. Pillow alone would also open others, and hand PostScript to Ghostscript."""
    return Image.open(file, formats=list(FORMATS))


def picture_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the pictures in a folder, by the ends of their names, and all that else lies in it and is not hidden."""
    shown = [path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "__"))]
    pictures = [path for path in shown if path.suffix.lower() in SUFFIXES and path.is_file()]
    return pictures, [path for path in shown if path not in set(pictures)]


def to_grey_or_rgb(picture: Image.Image) -> Image.Image:
    """Return the picture in mode L where it is grey, else in mode RGB, with white behind transparent places."""
    if picture.mode.startswith("I"):  # 16 bits; `convert` would cut them off at 255
        picture = picture.point(lambda level: level / 257)
    mode = "L" if picture.mode in ("1", "L", "LA", "I", "I;16") else "RGB"
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert(mode)


def middle_square(picture: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to `size` pixels, then cut a square of that size from the middle."""
    shorter = min(picture.size)
    if max(picture.size) > 10 * shorter:  # a strip is cut first, because scaled as a whole it could fill the memory
        picture = ImageOps.fit(picture, (shorter, shorter))
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return picture.crop((left, top, left + size, top + size))


@dataclass(frozen=True)
class Augment:
    """Random changes to training pictures, so that a model does not learn them by heart.

    Each number is the largest change; 0 changes nothing. The size of each change is drawn uniformly between minus and
    plus its bound, for every picture on its own.
    """

    degrees: float = 0.0  # rotation, in degrees
    shift: float = 0.0  # movement along each side, as a share of that side
    scale: float = 0.0  # enlargement or reduction, as a share of the size
    shear: float = 0.0  # slant, as a share of the height
    elastic: float = 0.0  # standard deviation of the random shifts of a 5 x 5 grid, as a share of the side
    flip: bool = False  # mirror half of the pictures, left to right
    colour: float = 0.0  # contrast, as a share of it, and brightness, in units of the (normalised) pixels
    crop: float = 0.0  # what is cut away around a rectangle of any place, as a share of the area
    mix: float = 0.0  # largest share of another picture that shines through; see `mixed`

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the changed pictures (B, channels, h, w). All movements are made by a single resampling."""
        x = F.grid_sample(x, self.grid(x, generator), padding_mode="border", align_corners=False)
        if self.colour:
            contrast = self.draw(self.colour, x, generator).view(-1, 1, 1, 1)
            brightness = self.draw(self.colour, x, generator).view(-1, 1, 1, 1)
            mean = x.mean(dim=(1, 2, 3), keepdim=True)
            x = mean + (x - mean) * (1 + contrast) + brightness
        return x

    def mixed(self, x: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Let another picture of the batch shine through each, by a random share, and return pictures and classes.

        The class is that of the other picture with the chance of this share. On average, the loss is then the one of
        both classes, weighted by their shares (mixup, Zhang et al. 2018, arXiv:1710.09412).
        """
        share = self.mix * torch.rand(len(x), generator=generator)
        other = torch.randperm(len(x), generator=generator)
        is_other = torch.rand(len(x), generator=generator) < share
        return torch.lerp(x, x[other], share.view(-1, 1, 1, 1)), torch.where(is_other, labels[other], labels)

    def grid(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return where in its picture each new pixel is read (B, h, w, 2): (across, down), from -1 to 1."""
        angle = self.draw(math.radians(self.degrees), x, generator)
        scale = 1 + self.draw(self.scale, x, generator)
        flipped = torch.rand(len(x), generator=generator) < 0.5
        shear = self.draw(self.shear, x, generator)
        right = 2 * self.draw(self.shift, x, generator)  # a whole side is 2 long
        down = 2 * self.draw(self.shift, x, generator)

        cos, sin = angle.cos() / scale, angle.sin() / scale
        mirror = 1.0 - 2.0 * flipped * self.flip  # -1 or 1
        matrices = torch.stack((cos * mirror, shear - sin, right, sin * mirror, cos, down), -1).view(-1, 2, 3)
        if self.crop:
            matrices = self.rectangle(x, generator) @ square(matrices)
        grid = F.affine_grid(matrices, list(x.shape), align_corners=False)
        if self.elastic:
            pushes = torch.randn(len(x), 2, 5, 5, generator=generator) * 2 * self.elastic
            smooth = F.interpolate(pushes, x.shape[-2:], mode="bicubic", align_corners=False)
            grid = grid + smooth.movedim(1, -1)
        return grid

    def rectangle(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return matrices (B, 2, 3) that put the whole picture in place of a part of it, of sides 3:4 to 4:3."""
        area = 1 - self.crop * torch.rand(len(x), generator=generator)
        ratio = self.draw(math.log(4 / 3), x, generator).exp()
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        across = self.draw(1.0, x, generator) * (1 - width)
        down = self.draw(1.0, x, generator) * (1 - height)
        zero = torch.zeros_like(width)
        return torch.stack((width, zero, across, zero, height, down), -1).view(-1, 2, 3)

    def draw(self, bound: float, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return one number per picture (B,), uniform between -bound and bound."""
        return (torch.rand(len(x), generator=generator) * 2 - 1) * bound


def square(matrices: Tensor) -> Tensor:
    """Append the row (0, 0, 1) to affine matrices (B, 2, 3), so that they can be multiplied: (B, 3, 3)."""
    return torch.cat((matrices, matrices.new_tensor([0.0, 0.0, 1.0]).expand(len(matrices), 1, 3)), dim=1)
