"""Load official weights, or those of a folder, into our models.

    from utils.weights.loading import load_pretrained

    model, tokenizer = load_pretrained("gpt2")

The tensors get our names, and some are transposed or joined; their values stay what they are. Only ViT's positions are
interpolated, where another size of picture is asked for.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from transformer import (
    Config,
    DecoderTransformer,
    EncoderTransformer,
    PatchEmbedding,
    TokenEmbedding,
    Transformer,
    require,
)
from utils.weights.families import FAMILIES, THEIR_ACTIVATIONS, Family, their_names, to_ours
from utils.weights.json_files import read_json
from utils.weights.official import OFFICIAL, download
from utils.weights.processors import ImageTransform, read_processor
from utils.weights.runs import BEST, load_run


def load_pretrained(
    name_or_folder: str | Path,
    dropout: float = 0.0,
    n_classes: int | None = None,
    image_size: int | None = None,
) -> tuple[Transformer, Tokenizer | ImageTransform | None]:
    """Return a model in evaluation mode, and its tokeniser or image transform, or None where the folder holds neither.

    name_or_folder: a name in OFFICIAL; a folder with config.json and model.safetensors (or its shards) of a family in
    FAMILIES; or the --out of one of our own runs, whose best checkpoint is loaded.
    dropout: replaces the file's setting.
    n_classes: give BERT or ViT a new, untrained classifier for as many classes.
    image_size: the width of ViT's pictures; its positions are interpolated to fit (ViT, section 3.2).

    A BERT file without a head gives a model without one, whose outputs are the hidden states (B, T, C).
    Raises ValueError for an architecture, a setting or a tensor that we cannot follow, and names it.
    """
    require(n_classes is None or n_classes > 1, "n_classes", n_classes, "at least 2")
    folder = find_folder(name_or_folder)
    if not (folder / "config.json").is_file():
        require(image_size is None, "image_size", image_size, "left out with a run's folder")
        return load_run(folder, dropout, n_classes).eval(), read_processor(folder)
    config_json = read_json(folder / "config.json")
    family = find_family(config_json, folder)
    tensors = read_tensors(folder, family)
    arguments = (config_json, family, set(tensors), dropout, n_classes, image_size)
    try:
        with torch.device("meta"):  # takes no memory, whatever sizes config.json asks for
            sketch = build(*arguments)
    except (TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{folder / 'config.json'}: must describe a model that can be built ({error})") from error
    copy_weights(sketch, family, tensors, folder, new_head=n_classes is not None)  # do the tensors fit?
    model = build(*arguments)
    copy_weights(model, family, tensors, folder, new_head=n_classes is not None)
    return model.eval(), read_processor(folder)


def find_folder(name_or_folder: str | Path) -> Path:
    """Return the folder that holds a model; an official model is downloaded into the cache if it is not there yet."""
    name, folder = str(name_or_folder), Path(name_or_folder)
    if name in OFFICIAL and not folder.is_dir():
        return download(name)
    found = (folder / "config.json").is_file() or (folder / BEST).is_file()
    names = ", ".join(OFFICIAL)
    require(found, "pretrained", name, f"a folder with config.json, the --out of a run, or one of {names}")
    return folder


# ------------------------------------------------------------------------------------------------ the files
def find_family(config_json: dict, folder: Path) -> Family:
    """Return the family of a model, given its config.json.

    Raises ValueError where we have no such family, or where a setting asks for something that our models do not do.
    """
    file = folder / "config.json"
    kind = config_json.get("model_type")
    known = isinstance(kind, str) and kind in FAMILIES
    require(known, f"model_type in {file}", kind, f"one of {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    # Files of older versions of transformers call two of the rotary settings by other names; newer files keep all
    # three in a dictionary of their own.
    old_names = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}
    settings = {old_names.get(name, name): value for name, value in config_json.items()}
    rotary = config_json.get("rope_parameters") or {}
    require(isinstance(rotary, dict), f"rope_parameters in {file}", rotary, "an object")
    settings |= rotary
    for name, (allowed, default) in family.required.items():
        value = settings.get(name, default)
        require(value == allowed, f"{name} in {file}", value, repr(allowed))
    return family


def read_tensors(folder: Path, family: Family) -> dict[str, Tensor]:
    """Return all tensors of model.safetensors, or of the shards that its index names, under today's full names.

    Raises ValueError where a file is missing or damaged, or where a tensor holds NaN or infinity.
    """
    shards = {"model.safetensors"}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        places = read_json(index).get("weight_map")
        named = isinstance(places, dict) and all(isinstance(shard, str) for shard in places.values())
        require(named, f"weight_map in {index}", places, "an object with the name of a file for each tensor")
        shards = set(places.values())
    tensors: dict[str, Tensor] = {}
    for shard in sorted(shards):
        beside = Path(shard).name == shard  # a path could lead out of the folder
        require(beside, f"shard in {index}", shard, "a file beside it")
        require((folder / shard).is_file(), "pretrained", str(folder), f"a folder that holds {shard}")
        try:
            with safe_open(folder / shard, framework="pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise ValueError(f"{folder / shard}: must be a whole safetensors file ({error})") from error
    for name, tensor in tensors.items():
        finite = not tensor.is_floating_point() or bool(tensor.isfinite().all())
        require(finite, f"tensor {name} in {folder}", "NaN or infinity", "finite")
    has_prefix = any(name.startswith(family.prefix) for name in tensors)
    return {full_name(name, family, has_prefix): tensor for name, tensor in tensors.items()}


def full_name(name: str, family: Family, has_prefix: bool) -> str:
    """Return the name that a tensor has in today's files. has_prefix: whether the file uses the family's prefix."""
    if not has_prefix and not name.startswith(family.heads):
        name = family.prefix + name
    # The oldest BERT files call a LayerNorm's weight and bias gamma and beta.
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


# ------------------------------------------------------------------------------------------------ the model
def build(
    config_json: dict, family: Family, names: set[str], dropout: float, n_classes: int | None, image_size: int | None
) -> Transformer:
    """Return the model that config.json describes, with initial weights.

    names: of the tensors in the file, which decide what head the model gets. The other arguments are those of
    `load_pretrained`.
    """
    config = translate_config(config_json, family, dropout)
    few = f"at most {len(names)}, the number of tensors in the file"
    require(config.n_layers <= len(names), family.settings["n_layers"], config.n_layers, few)
    new_head = n_classes is not None
    n_labels = n_classes if new_head else len(config_json.get("id2label", ("LABEL_0", "LABEL_1")))
    if family is FAMILIES["vit"]:
        if image_size is None:
            image_size = config_json.get("image_size", 224)
        patch_size = config_json.get("patch_size", 16)
        return EncoderTransformer.vit(config, image_size, patch_size, n_labels, config_json.get("num_channels", 3))

    require(image_size is None, "image_size", image_size, "left out: this model reads text")
    vocab_size = config_json.get("vocab_size") or 0
    tied = config_json.get("tie_word_embeddings", True)
    if family is FAMILIES["bert"]:
        n_segments = config_json.get("type_vocab_size", 2)
        if new_head or "classifier.weight" in names:
            return EncoderTransformer.bert(config, vocab_size, n_segments, n_labels)
        if any(name.startswith("cls.predictions.") for name in names):
            return EncoderTransformer.bert(config, vocab_size, n_segments, tied=tied)
        return EncoderTransformer(config, TokenEmbedding(config, vocab_size, n_segments), nn.Identity())

    require(not new_head, "n_classes", n_classes, "left out: GPT has no classifier")
    return DecoderTransformer(config, vocab_size, tied)


def translate_config(config_json: dict, family: Family, dropout: float) -> Config:
    """Return our Config for a config.json."""
    sizes = [family.settings[field] for field in ("n_layers", "n_heads", "d_model")]
    complete = all(config_json.get(name) is not None for name in sizes)
    require(complete, "config.json", sorted(config_json), f"one with {', '.join(family.settings.values())}")
    settings = dict(family.defaults)
    for field, name in family.settings.items():
        if config_json.get(name) is not None:
            settings[field] = config_json[name]
    settings.setdefault("d_ff", 4 * settings["d_model"])
    activation = settings["activation"]
    names = ", ".join(THEIR_ACTIVATIONS)
    require(activation in THEIR_ACTIVATIONS, family.settings["activation"], activation, f"one of {names}")
    settings["activation"] = THEIR_ACTIVATIONS[activation]
    settings["dropout"] = dropout
    return Config(**settings | family.fixed)


# ------------------------------------------------------------------------------------------------ the weights
@torch.no_grad()
def copy_weights(model: Transformer, family: Family, tensors: dict[str, Tensor], folder: Path, new_head: bool) -> None:
    """Copy the file's tensors into the model's parameters.

    new_head: the model's classifier is new, so it keeps its initial weights.
    Raises ValueError for a tensor that is missing, unknown or of another shape.
    """
    unread = set(tensors)
    for ours, parameter in model.named_parameters():  # one that is shared comes once, under its first name
        names = their_names(family, ours)
        # A new classifier keeps its initial weights. BERT's pooler does so only where the file has none.
        absent = ours.startswith("head.") and not unread.issuperset(names)
        if new_head and (ours.startswith("head.classifier.") or absent):
            continue
        for name in names:
            require(name in tensors, f"tensor {name} in {folder}", "missing", f"there, for {ours}")
        parts = [tensors[name] for name in names]
        for name, part in zip(names, parts, strict=True):
            known = part.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
            require(known, f"tensor {name} in {folder}", part.dtype, "float16, bfloat16, float32 or float64")
        what = f"shape of {', '.join(names)} in {folder}"
        shapes = [tuple(part.shape) for part in parts]
        wanted = f"{tuple(parameter.shape)} for {ours}"
        try:
            value = to_ours(family, names, parts, model.config.n_heads)
            if ours == "embed.positions.table":
                value = value.flatten(0, -2)  # (T, C): ViT's has an axis more in front
                if isinstance(model.embed, PatchEmbedding):
                    value = resize_positions(value, len(parameter))
        except RuntimeError as error:
            raise ValueError(f"{what}={shapes}: must be {wanted}") from error
        require(value.shape == parameter.shape, what, shapes, wanted)
        parameter.copy_(value)
        unread -= set(names)
    check_unread(unread, family, tensors, folder, new_head)


def check_unread(unread: set[str], family: Family, tensors: dict[str, Tensor], folder: Path, new_head: bool) -> None:
    """Raise ValueError unless every tensor that was not copied is a second copy of another, or known to be unused."""
    unread = set(unread)
    for second, first in family.repeated.items():
        if second in unread and first in tensors:
            equal = tensors[second].equal(tensors[first])
            require(equal, f"tensor {second} in {folder}", "different", f"equal to {first}, which it is tied to")
            unread.remove(second)
    unknown = {name for name in unread if not re.fullmatch(family.unused, name)}
    if new_head:  # then the file's own head is not needed
        unknown = {name for name in unknown if not name.startswith(family.heads)}
    require(not unknown, f"tensors in {folder}", sorted(unknown), "none beyond those of the architecture")


def resize_positions(table: Tensor, length: int) -> Tensor:
    """Return ViT's positions (1 + n x n, C) for another number of patches, as (length, C).

    The class token keeps its position. The others form a grid, which is resized by bicubic interpolation (ViT,
    section 3.2).
    """
    if len(table) == length:
        return table
    before = round((len(table) - 1) ** 0.5)  # patches in a row
    after = round((length - 1) ** 0.5)
    class_token, patches = table[:1], table[1:]
    grid = patches.unflatten(0, (before, before)).permute(2, 0, 1)  # (C, before, before)
    grid = F.interpolate(grid[None], size=(after, after), mode="bicubic", align_corners=False)[0]
    return torch.cat((class_token, grid.flatten(1).mT))  # (1 + after x after, C)
