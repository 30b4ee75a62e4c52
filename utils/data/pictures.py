"""One picture file as a tensor."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor


def read_picture(file: Path | BinaryIO, size: int) -> Tensor:
    """Return the middle square of a picture file, uint8 (channels, size, size); 1 channel if it is grey, else 3.

    The picture is turned as its camera says (EXIF), and transparent places become white.
    Raises ValueError for a file that is no readable picture.
    """
    try:
        with Image.open(file) as picture:
            picture = to_grey_or_rgb(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError as error:
        raise ValueError("must be a readable picture (PNG, JPEG or another format that Pillow knows)") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"must be a readable picture ({error})") from error
    square = middle_square(picture, size)
    return torch.from_numpy(np.array(square)).view(size, size, -1).permute(2, 0, 1)


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
