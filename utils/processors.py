"""Tokenisers and image transforms in their own files, as Hugging Face folders hold them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from transformer import require

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: must be JSON ({error})") from error
    require(isinstance(found, dict), str(path), type(found).__name__, "a JSON object")
    return found


@dataclass(frozen=True)
class ImageTransform:
    """Pictures as ViT wants them: size x size, colours of 0 to 1 less `mean`, by `std`."""

    size: int = 224
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: int = Image.Resampling.BILINEAR

    def __call__(self, pictures: Image.Image | Iterable[Image.Image]) -> Tensor:
        """One PIL picture or several -> (B, channels, size, size)."""
        pictures = [pictures] if isinstance(pictures, Image.Image) else list(pictures)
        mode = "RGB" if len(self.mean) == 3 else "L"
        squares = [picture.convert(mode).resize((self.size, self.size), self.resample) for picture in pictures]
        stacked = torch.stack([torch.from_numpy(np.array(square)).view(self.size, self.size, -1) for square in squares])
        return self.normalize(stacked.permute(0, 3, 1, 2))

    def normalize(self, pictures: Tensor) -> Tensor:
        """uint8 (B, channels, h, w) -> float of the same shape."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (pictures / 255 - mean) / std


def read_processor(folder: Path) -> Tokenizer | ImageTransform | None:
    """The folder's tokeniser or image transform; None where it holds none."""
    if (folder / "preprocessor_config.json").is_file():
        given = read_json(folder / "preprocessor_config.json")
        size = given.get("size", 224)
        size = size.get("height", size.get("shortest_edge")) if isinstance(size, dict) else size
        mean, std = (tuple(given.get(name, (0.5, 0.5, 0.5))) for name in ("image_mean", "image_std"))
        return ImageTransform(size, mean, std, given.get("resample", Image.Resampling.BILINEAR))
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # A file may carry the settings of some batch; here a text is read whole, and batches pad themselves.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    if (folder / "vocab.txt").is_file():
        return bert_tokenizer(folder)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        if tokenizer.token_to_id("<|endoftext|>") is not None:
            tokenizer.add_special_tokens(["<|endoftext|>"])
        return tokenizer
    return None


def bert_tokenizer(folder: Path) -> Tokenizer:
    """BERT's WordPiece from vocab.txt, one piece a line; tokenizer_config.json may say that case counts."""
    words = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    vocabulary = {word: i for i, word in enumerate(words) if word}
    missing = [token for token in SPECIAL.values() if token not in vocabulary]
    require(not missing, str(folder / "vocab.txt"), f"without {', '.join(missing)}", "a BERT vocabulary")
    options = folder / "tokenizer_config.json"
    lower = read_json(options).get("do_lower_case", True) if options.is_file() else True
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=ends)
    return tokenizer


def write_processor(processor: Tokenizer | ImageTransform, folder: Path, max_len: int) -> None:
    """The processor's files; max_len: the longest sequence that the model reads."""
    if isinstance(processor, ImageTransform):
        write_image_transform(processor, folder)
    else:
        write_tokenizer(processor, folder, max_len)


def write_image_transform(transform: ImageTransform, folder: Path) -> None:
    given = {
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
    (folder / "preprocessor_config.json").write_text(json.dumps(given, indent=2) + "\n", encoding="utf-8")


def write_tokenizer(tokenizer: Tokenizer, folder: Path, max_len: int) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {f"{role}_token": token for role, token in SPECIAL.items() if tokenizer.token_to_id(token) is not None}
    given = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_len} | special
    (folder / "tokenizer_config.json").write_text(json.dumps(given, indent=2) + "\n", encoding="utf-8")
