"""The processor beside the weights: the tokeniser of a BERT or a GPT, the image transform of a ViT."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models
from torch import Tensor

from transformer import require
from utils.data.tokenisers import SPECIAL_TOKENS, assemble_byte_level_bpe, assemble_wordpiece
from utils.weights.json_files import read_json, write_json


@dataclass(frozen=True)
class ImageTransform:
    """Turn pictures into the inputs of a ViT: resize to size x size, then normalise each colour channel.

    A normalised value is (value / 255 - mean) / std, with one mean and one std for each channel.
    """

    size: int = 224
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: int = Image.Resampling.BILINEAR  # how Pillow interpolates between pixels

    def __call__(self, pictures: Image.Image | Iterable[Image.Image]) -> Tensor:
        """Return one or several PIL pictures as (B, channels, size, size), float32, normalised."""
        if isinstance(pictures, Image.Image):
            pictures = [pictures]
        mode = "RGB" if len(self.mean) == 3 else "L"
        tensors = []
        for picture in pictures:
            square = picture.convert(mode).resize((self.size, self.size), self.resample)
            pixels = torch.from_numpy(np.array(square))  # (size, size, 3), or (size, size) in grey
            tensors.append(pixels.view(self.size, self.size, -1).permute(2, 0, 1))  # (channels, size, size)
        return self.normalize(torch.stack(tensors))

    def normalize(self, pictures: Tensor) -> Tensor:
        """Return pictures (B, channels, height, width) with values from 0 to 255, normalised, in the same shape."""
        mean = torch.tensor(self.mean).view(-1, 1, 1)
        std = torch.tensor(self.std).view(-1, 1, 1)
        return (pictures / 255 - mean) / std


# ------------------------------------------------------------------------------------------------ reading
def read_processor(folder: Path) -> Tokenizer | ImageTransform | None:
    """Return the tokeniser or the image transform in a folder, or None where it holds neither."""
    if (folder / "preprocessor_config.json").is_file():
        return read_image_transform(folder)
    if (folder / "tokenizer.json").is_file():
        tokenizer = read_library_file(folder / "tokenizer.json", Tokenizer.from_file)
        # The file may ask for truncation and padding. Here texts are encoded whole, and batches are padded elsewhere.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    if (folder / "vocab.txt").is_file():
        return read_wordpiece(folder)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return read_byte_level_bpe(folder)
    return None


def read_library_file(path: Path, read: Callable, *more: Path) -> Any:
    """Return what `read` of the library tokenizers makes of files. Raises ValueError, the library a bare Exception."""
    try:
        return read(str(path), *map(str, more))
    except Exception as error:
        raise ValueError(f"{path}: must be a whole file of a tokenizer ({error})") from error


def read_image_transform(folder: Path) -> ImageTransform:
    """Return the image transform that preprocessor_config.json describes."""
    file = folder / "preprocessor_config.json"
    settings = read_json(file)
    size = settings.get("size", 224)
    if isinstance(size, dict):  # older files hold a number
        size = size.get("height", size.get("shortest_edge"))
    require(type(size) is int and 0 < size <= 4096, f"size in {file}", size, "a whole number from 1 to 4096")
    colours = []
    for name in ("image_mean", "image_std"):
        values = settings.get(name, (0.5, 0.5, 0.5))
        least = 0 if name == "image_mean" else 1e-6  # the pictures are divided by the deviation
        good = isinstance(values, (list, tuple)) and len(values) in (1, 3)
        good = good and all(isinstance(value, (int, float)) and least <= value <= 1 for value in values)
        require(good, f"{name} in {file}", values, f"1 or 3 numbers from {least} to 1")
        colours.append(tuple(values))
    resample = settings.get("resample", Image.Resampling.BILINEAR)
    known = [int(way) for way in Image.Resampling]
    require(resample in known, f"resample in {file}", resample, f"one of {known}")
    return ImageTransform(size, *colours, resample)


def read_wordpiece(folder: Path) -> Tokenizer:
    """Return BERT's tokeniser from vocab.txt, in which the token on line i, counted from 0, has id i.

    tokenizer_config.json may say that upper and lower case differ. Raises ValueError where a special token is missing.
    """
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    vocabulary = {token: i for i, token in enumerate(lines) if token}
    missing = [token for token in SPECIAL_TOKENS.values() if token not in vocabulary]
    require(not missing, str(folder / "vocab.txt"), f"without {', '.join(missing)}", "a BERT vocabulary")
    lowercase = True
    if (folder / "tokenizer_config.json").is_file():
        lowercase = read_json(folder / "tokenizer_config.json").get("do_lower_case", True)
    return assemble_wordpiece(vocabulary, lowercase)


def read_byte_level_bpe(folder: Path) -> Tokenizer:
    """Return GPT-2's tokeniser from vocab.json and merges.txt."""
    model = read_library_file(folder / "vocab.json", models.BPE.from_file, folder / "merges.txt")
    tokenizer = assemble_byte_level_bpe(model)
    if tokenizer.token_to_id("<|endoftext|>") is not None:
        tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


# ------------------------------------------------------------------------------------------------ writing
def write_processor(processor: Tokenizer | ImageTransform, folder: Path, max_len: int) -> None:
    """Write a tokeniser or an image transform into a folder. max_len: the longest sequence that the model reads."""
    if isinstance(processor, ImageTransform):
        write_image_transform(processor, folder)
    else:
        write_tokenizer(processor, folder, max_len)


def write_image_transform(transform: ImageTransform, folder: Path) -> None:
    """Write preprocessor_config.json, from which transformers makes the same image transform."""
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": transform.size, "width": transform.size},
        "image_mean": list(transform.mean),
        "image_std": list(transform.std),
        "resample": int(transform.resample),
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
    }
    write_json(folder / "preprocessor_config.json", settings)


def write_tokenizer(tokenizer: Tokenizer, folder: Path, max_len: int) -> None:
    """Write tokenizer.json and tokenizer_config.json, from which transformers makes the same tokeniser."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_len}
    for role, token in SPECIAL_TOKENS.items():
        if tokenizer.token_to_id(token) is not None:
            settings[f"{role}_token"] = token
    write_json(folder / "tokenizer_config.json", settings)
