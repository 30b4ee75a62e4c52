"""Official weights in our names, and ours in theirs: renaming and transposing over safetensors, nothing else.

    model, tokenizer = load_pretrained("gpt2")                    # or a folder in the Hugging Face layout
    save_pretrained(model, "my-gpt", tokenizer)                   # transformers' from_pretrained reads it
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from transformer import (
    BERT,
    GPT,
    ClassHead,
    Config,
    DecoderTransformer,
    EncoderTransformer,
    LitTransformer,
    PatchEmbedding,
    Recipe,
    TokenEmbedding,
    Transformer,
    ViT,
    require,
)
from utils.download import Remote, cache_dir, fetch
from utils.linear import suited
from utils.processors import ImageTransform, read_json, read_processor, write_processor

# ------------------------------------------------------------------------------------------------ the official models
HUB = "https://huggingface.co"
REPOSITORIES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "bert-base-uncased": "google-bert/bert-base-uncased",
    "bert-large-uncased": "google-bert/bert-large-uncased",
    "vit-base-patch16-224": "google/vit-base-patch16-224",
    "vit-large-patch16-224": "google/vit-large-patch16-224",
    "all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2",
}
REVISIONS = {  # the others are taken from the branch main
    "gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594",
}
HASHES = {  # of model.safetensors; for the rest none is known, and `fetch` says so
    "gpt2": "sha256:248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
    "bert-base-uncased": "sha256:68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3",
}

# ------------------------------------------------------------------------------------------------ their names
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
QKV = ("query", "key", "value")
ENCODER_CONFIG = {
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "dropout": "hidden_dropout_prob",
    "norm_eps": "layer_norm_eps",
    "activation": "hidden_act",
    "init_std": "initializer_range",
}


@dataclass(frozen=True)
class Family:
    """One architecture in the Hugging Face layout. `#` stands for the number of a block."""

    prefix: str  # of the trunk's names; a file that holds the trunk alone leaves it out
    config: dict[str, str]  # our Config's fields -> the names in config.json
    fixed: dict[str, object]  # what the architecture implies of our Config
    needed: dict[str, tuple]  # settings of config.json: the one value that we can follow, and what silence means
    modules: dict[str, str | tuple[str, ...]]  # our modules (or parameters) -> theirs; of several, one above the other
    repeated: dict[str, str]  # names that may be there as well, and then must equal another one
    unused: str  # a regular expression: names that may be there and are not needed
    transposed: str = "(?!)"  # a regular expression: their weights that are stored (in, out)
    head_by_head: str = "(?!)"  # ... whose rows are ordered (head, q|k|v), where ours are (q|k|v, head)
    heads: tuple[str, ...] = ()  # how the names outside the trunk begin


FAMILIES = {
    "gpt2": Family(
        prefix="transformer.",
        config={
            "n_layers": "n_layer",
            "n_heads": "n_head",
            "d_model": "n_embd",
            "d_ff": "n_inner",
            "max_len": "n_positions",
            "dropout": "resid_pdrop",
            "norm_eps": "layer_norm_epsilon",
            "activation": "activation_function",
            "init_std": "initializer_range",
        },
        fixed={"causal": True, "norm_first": True, "positions": "learned"},
        needed={
            "scale_attn_weights": (True, True),
            "scale_attn_by_inverse_layer_idx": (False, False),
            "add_cross_attention": (False, False),
        },
        modules={
            "embed.tokens": "transformer.wte",
            "embed.positions.table": "transformer.wpe.weight",
            "blocks.#.norm1": "transformer.h.#.ln_1",
            "blocks.#.attention.qkv": "transformer.h.#.attn.c_attn",
            "blocks.#.attention.out": "transformer.h.#.attn.c_proj",
            "blocks.#.norm2": "transformer.h.#.ln_2",
            "blocks.#.mlp.up": "transformer.h.#.mlp.c_fc",
            "blocks.#.mlp.down": "transformer.h.#.mlp.c_proj",
            "norm": "transformer.ln_f",
            "head": "lm_head",
        },
        repeated={"lm_head.weight": "transformer.wte.weight"},
        unused=r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",  # the causal mask
        transposed=r"\.c_(attn|proj|fc)\.weight$",
        heads=("lm_head.",),
    ),
    "gpt_neox": Family(  # GPT with rotary positions
        prefix="gpt_neox.",
        config=ENCODER_CONFIG | {"max_len": "max_position_embeddings", "dropout": "hidden_dropout"},
        fixed={"causal": True, "norm_first": True, "positions": "rotary"},
        needed={
            "use_parallel_residual": (False, True),
            "attention_bias": (True, True),
            "partial_rotary_factor": (1.0, 0.25),
            "rope_theta": (10_000.0, 10_000.0),
            "rope_type": ("default", "default"),
        },
        modules={
            "embed.tokens": "gpt_neox.embed_in",
            "blocks.#.norm1": "gpt_neox.layers.#.input_layernorm",
            "blocks.#.attention.qkv": "gpt_neox.layers.#.attention.query_key_value",
            "blocks.#.attention.out": "gpt_neox.layers.#.attention.dense",
            "blocks.#.norm2": "gpt_neox.layers.#.post_attention_layernorm",
            "blocks.#.mlp.up": "gpt_neox.layers.#.mlp.dense_h_to_4h",
            "blocks.#.mlp.down": "gpt_neox.layers.#.mlp.dense_4h_to_h",
            "norm": "gpt_neox.final_layer_norm",
            "head": "embed_out",
        },
        repeated={"embed_out.weight": "gpt_neox.embed_in.weight", "lm_head.weight": "gpt_neox.embed_in.weight"},
        unused=r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
        head_by_head=r"\.query_key_value\.",
        heads=("embed_out.", "lm_head."),
    ),
    "bert": Family(
        prefix="bert.",
        config=ENCODER_CONFIG | {"max_len": "max_position_embeddings"},
        fixed={"causal": False, "norm_first": False, "positions": "learned"},
        needed={
            "position_embedding_type": ("absolute", "absolute"),
            "is_decoder": (False, False),
            "add_cross_attention": (False, False),
        },
        modules={
            "embed.tokens": "bert.embeddings.word_embeddings",
            "embed.positions.table": "bert.embeddings.position_embeddings.weight",
            "embed.segments": "bert.embeddings.token_type_embeddings",
            "embed.norm": "bert.embeddings.LayerNorm",
            "blocks.#.attention.qkv": tuple(f"bert.encoder.layer.#.attention.self.{x}" for x in QKV),
            "blocks.#.attention.out": "bert.encoder.layer.#.attention.output.dense",
            "blocks.#.norm1": "bert.encoder.layer.#.attention.output.LayerNorm",
            "blocks.#.mlp.up": "bert.encoder.layer.#.intermediate.dense",
            "blocks.#.mlp.down": "bert.encoder.layer.#.output.dense",
            "blocks.#.norm2": "bert.encoder.layer.#.output.LayerNorm",
            "head.0": "cls.predictions.transform.dense",
            "head.2": "cls.predictions.transform.LayerNorm",
            "head.3.weight": "cls.predictions.decoder.weight",
            "head.3.bias": "cls.predictions.bias",
            "head.pooler.0": "bert.pooler.dense",
            "head.classifier": "classifier",
        },
        repeated={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        unused=r"bert\.embeddings\.position_ids|bert\.pooler\..*|cls\.seq_relationship\..*",
        heads=("cls.", "classifier."),
    ),
    "vit": Family(
        prefix="vit.",
        config=ENCODER_CONFIG,
        fixed={"causal": False, "norm_first": True, "positions": "learned"},
        needed={"qkv_bias": (True, True)},
        modules={
            "embed.project": "vit.embeddings.patch_embeddings.projection",
            "embed.class_token": "vit.embeddings.cls_token",
            "embed.positions.table": "vit.embeddings.position_embeddings",
            "blocks.#.norm1": "vit.encoder.layer.#.layernorm_before",
            "blocks.#.attention.qkv": tuple(f"vit.encoder.layer.#.attention.attention.{x}" for x in QKV),
            "blocks.#.attention.out": "vit.encoder.layer.#.attention.output.dense",
            "blocks.#.norm2": "vit.encoder.layer.#.layernorm_after",
            "blocks.#.mlp.up": "vit.encoder.layer.#.intermediate.dense",
            "blocks.#.mlp.down": "vit.encoder.layer.#.output.dense",
            "norm": "vit.layernorm",
            "head.classifier": "classifier",
        },
        repeated={},
        unused=r"vit\.pooler\..*",
        heads=("classifier.",),
    ),
}  # fmt: skip


def their_names(family: Family, ours: str) -> tuple[str, ...]:
    """The name of one of our parameters in the file, or the names of the parts that it is made of."""
    number = re.match(r"blocks\.(\d+)\.", ours)
    general = re.sub(r"^blocks\.\d+\.", "blocks.#.", ours)
    module, _, leaf = general.rpartition(".")
    whole = general in family.modules
    theirs, ending = family.modules[general if whole else module], "" if whole else f".{leaf}"
    theirs = (theirs,) if isinstance(theirs, str) else theirs
    return tuple(name.replace("#", number[1]) + ending if number else name + ending for name in theirs)


def to_ours(family: Family, names: tuple[str, ...], parts: list[Tensor], n_heads: int) -> Tensor:
    parts = [part.mT if re.search(family.transposed, name) else part for name, part in zip(names, parts, strict=True)]
    whole = torch.cat(parts) if len(parts) > 1 else parts[0]
    if re.search(family.head_by_head, names[0]):
        return whole.unflatten(0, (n_heads, 3, -1)).transpose(0, 1).flatten(0, 2)
    return whole


def to_theirs(family: Family, names: tuple[str, ...], whole: Tensor, n_heads: int) -> dict[str, Tensor]:
    if re.search(family.head_by_head, names[0]):
        whole = whole.unflatten(0, (3, n_heads, -1)).transpose(0, 1).flatten(0, 2)
    parts = zip(names, whole.chunk(len(names)), strict=True)
    return {name: (part.mT if re.search(family.transposed, name) else part).contiguous() for name, part in parts}


# ------------------------------------------------------------------------------------------------ loading
def load_pretrained(name_or_folder: str | Path, **overrides) -> tuple[Transformer, Tokenizer | ImageTransform | None]:
    """The model, in evaluation mode, and its tokeniser or image transform (None where the folder holds none).

    name_or_folder: a name of REPOSITORIES; a folder with config.json and model.safetensors (or its shards) of the
    families gpt2, gpt_neox, bert or vit; or the --out of a run of ours, of which the best checkpoint is taken.
    overrides: dropout; n_classes, which gives BERT or ViT a new, untrained classifier; image_size, to which ViT's
    positions are interpolated. A BERT file without a head gives the states (B, T, C).
    Raises ValueError for an architecture, a setting or a tensor that is not as it must be, and names it.
    """
    known = ("dropout", "n_classes", "image_size")
    for name in overrides:
        require(name in known, "override", name, f"one of {', '.join(known)}")
    folder = find_folder(name_or_folder)
    if not (folder / "config.json").is_file():
        return suited(load_run(folder, overrides)).eval(), read_processor(folder)
    theirs = read_json(folder / "config.json")
    family = family_of(theirs, folder)
    tensors = read_tensors(folder, family)
    model = build(theirs, family, set(tensors), overrides)
    fill(model, family, tensors, folder, new_head="n_classes" in overrides)
    return suited(model).eval(), read_processor(folder)


def find_folder(name_or_folder: str | Path) -> Path:
    """The folder with the model's files; those of an official model are downloaded into the cache."""
    name, folder = str(name_or_folder), Path(name_or_folder)
    if name in REPOSITORIES and not folder.is_dir():
        files = ["config.json", "model.safetensors", "preprocessor_config.json" if "vit" in name else "tokenizer.json"]
        for file in files:
            address = f"{HUB}/{REPOSITORIES[name]}/resolve/{REVISIONS.get(name, 'main')}/{file}"
            fetch(Remote(address, HASHES.get(name) if file == "model.safetensors" else None), file, name)
        return cache_dir() / name
    good = (folder / "config.json").is_file() or (folder / "checkpoints" / "best.ckpt").is_file()
    names = ", ".join(REPOSITORIES)
    require(good, "pretrained", name, f"a folder with config.json, the --out of a run, or one of {names}")
    return folder


def family_of(theirs: dict, folder: Path) -> Family:
    kind = theirs.get("model_type")
    require(kind in FAMILIES, f"model_type in {folder / 'config.json'}", kind, f"one of {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    old = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}
    found = {old.get(name, name): value for name, value in theirs.items()} | (theirs.get("rope_parameters") or {})
    for name, (allowed, silent) in family.needed.items():
        value = found.get(name, silent)
        require(value == allowed, f"{name} in {folder / 'config.json'}", value, repr(allowed))
    return family


def read_tensors(folder: Path, family: Family) -> dict[str, Tensor]:
    """Every tensor of model.safetensors, or of the shards that its index names, under the family's full names."""
    index = folder / "model.safetensors.index.json"
    shards = set(read_json(index).get("weight_map", {}).values()) if index.is_file() else {"model.safetensors"}
    found: dict[str, Tensor] = {}
    for shard in sorted(shards):
        inside = isinstance(shard, str) and Path(shard).name == shard
        require(inside, f"shard in {index}", shard, "a file beside it")
        require((folder / shard).is_file(), "pretrained", str(folder), f"a folder that holds {shard}")
        try:
            with safe_open(folder / shard, framework="pt") as file:
                found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise ValueError(f"{folder / shard}: must be a whole safetensors file ({error})") from error
    for name, tensor in found.items():
        finite = not tensor.is_floating_point() or bool(tensor.isfinite().all())
        require(finite, f"tensor {name} in {folder}", "NaN or infinity", "finite")
    if not any(name.startswith(family.prefix) for name in found):
        found = {name if name.startswith(family.heads) else family.prefix + name: found[name] for name in found}
    # The oldest BERT files call a norm's weight and bias gamma and beta.
    today = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    return {re.sub(r"LayerNorm\.(gamma|beta)$", lambda old: today[old[0]], name): found[name] for name in found}


def build(theirs: dict, family: Family, names: set[str], overrides: dict) -> Transformer:
    """The model that config.json describes, with the head that the file has weights for."""
    require(all(key in theirs for field, key in family.config.items() if field in ("n_layers", "n_heads", "d_model")),
            "config.json", sorted(theirs), f"one with {', '.join(family.config.values())}")  # fmt: skip
    settings = {field: theirs[key] for field, key in family.config.items() if theirs.get(key) is not None}
    settings.setdefault("d_ff", 4 * settings["d_model"])
    settings.setdefault("norm_eps", 1e-12 if family.prefix in ("bert.", "vit.") else 1e-5)
    activation = settings.get("activation", "gelu_new" if family.prefix == "transformer." else "gelu")
    require(activation in ACTIVATIONS, family.config["activation"], activation, f"one of {', '.join(ACTIVATIONS)}")
    settings |= family.fixed | {"activation": ACTIVATIONS[activation], "dropout": overrides.get("dropout", 0.0)}
    config, tied = Config(**settings), theirs.get("tie_word_embeddings", True)
    n_classes = overrides.get("n_classes") or len(theirs.get("id2label", {0: 0, 1: 0}))
    if family.prefix == "vit.":
        size, patch_size = overrides.get("image_size") or theirs.get("image_size", 224), theirs.get("patch_size", 16)
        return EncoderTransformer.vit(config, size, patch_size, n_classes, theirs.get("num_channels", 3))
    require("image_size" not in overrides, "image_size", overrides.get("image_size"), "left out: this model reads text")
    if family.prefix == "bert.":
        arguments = {"vocab_size": theirs["vocab_size"], "n_segments": theirs.get("type_vocab_size", 2)}
        if "n_classes" in overrides or "classifier.weight" in names:
            return EncoderTransformer.bert(config, **arguments, n_classes=n_classes)
        if any(name.startswith("cls.predictions.") for name in names):
            return EncoderTransformer.bert(config, **arguments, tied=tied)
        return EncoderTransformer(config, TokenEmbedding(config, **arguments), nn.Identity())
    require("n_classes" not in overrides, "n_classes", overrides.get("n_classes"), "left out: GPT has no classifier")
    return DecoderTransformer(config, theirs["vocab_size"], tied)


@torch.no_grad()
def fill(model: Transformer, family: Family, tensors: dict[str, Tensor], folder: Path, new_head: bool) -> None:
    """Copy every tensor to its place. ValueError names one that is missing, unknown or of another shape."""
    left = set(tensors)
    tied = {id(parameter): name for name, parameter in model.named_parameters()}  # the first name of each
    for ours, parameter in model.named_parameters(remove_duplicate=False):
        if tied[id(parameter)] != ours:
            continue
        names = their_names(family, ours)
        if new_head and (ours.startswith("head.classifier") or not left.issuperset(names) and ours.startswith("head.")):
            continue
        for name in names:
            require(name in tensors, f"tensor {name} in {folder}", "missing", f"there, for {ours}")
        shapes = [tuple(tensors[name].shape) for name in names]
        try:
            value = to_ours(family, names, [tensors[name] for name in names], model.config.n_heads)
            if ours == "embed.positions.table":
                value = value.flatten(0, -2)
                if isinstance(model.embed, PatchEmbedding):
                    value = resized(value, len(parameter))
        except RuntimeError as error:
            raise ValueError(f"{', '.join(names)} in {folder}: shapes {shapes} do not fit together") from error
        wanted = tuple(parameter.shape)
        fits = tuple(value.shape) == wanted
        require(fits, f"shape of {', '.join(names)} in {folder}", shapes, f"{wanted} for {ours}")
        parameter.copy_(value)
        left -= set(names)
    for copy, original in family.repeated.items():
        if copy in left and original in tensors:
            same = tensors[copy].equal(tensors[original])
            require(same, f"tensor {copy} in {folder}", "different", f"equal to {original}, which it is tied to")
            left.remove(copy)
    left = {name for name in left if not re.fullmatch(family.unused, name)}
    if new_head:
        left = {name for name in left if not name.startswith(family.heads)}
    require(not left, f"tensors in {folder}", sorted(left), "none beyond those of the architecture")


def resized(table: Tensor, length: int) -> Tensor:
    """ViT's positions (1 + n x n, C) for another number of patches, by bicubic interpolation (ViT, 3.2)."""
    if len(table) == length:
        return table
    before, after = round((len(table) - 1) ** 0.5), round((length - 1) ** 0.5)
    grid = table[1:].unflatten(0, (before, before)).permute(2, 0, 1)[None]
    grid = F.interpolate(grid, size=(after, after), mode="bicubic", align_corners=False)
    return torch.cat((table[:1], grid[0].flatten(1).mT))


def load_run(folder: Path, overrides: dict) -> Transformer:
    """The best model of one of our own runs; with n_classes, its trunk under a new classifier."""
    best = folder / "checkpoints" / "best.ckpt"
    given = torch.load(best, map_location="cpu", weights_only=True)["hyper_parameters"]
    kind = ViT if "image_size" in given else GPT if given["config"].causal else BERT
    config = replace(given["config"], dropout=overrides.get("dropout", 0.0))
    require("image_size" not in overrides, "image_size", overrides.get("image_size"), "left out with a run's folder")
    model = kind.load_from_checkpoint(best, map_location="cpu", weights_only=True, config=config).model
    if "n_classes" not in overrides:
        return model
    require(kind is not GPT, "n_classes", overrides["n_classes"], "left out: GPT has no classifier")
    model.head = ClassHead(config, overrides["n_classes"], pooler=kind is BERT)
    for name, parameter in model.head.named_parameters():
        nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.normal_(parameter, std=config.init_std)
    return model


def module_of(model: Transformer, recipe: Recipe) -> LitTransformer:
    """The LightningModule of a model, with its weights and ready to be trained: GPT, BERT or ViT."""
    config, embed, head = model.config, model.embed, model.head
    n_classes = head.classifier.out_features if isinstance(head, ClassHead) else 0
    if isinstance(embed, PatchEmbedding):
        channels, size, _ = embed.input_shape
        module = ViT(config, size, embed.project.kernel_size[0], n_classes, recipe, channels)
    elif config.causal:
        module = GPT(config, embed.tokens.num_embeddings, recipe, head.weight is embed.tokens.weight)
    else:
        headed = not isinstance(head, nn.Identity)
        require(headed, "model", "a BERT without a head", "one with a head, as n_classes gives")
        tied = n_classes > 0 or head[3].weight is embed.tokens.weight
        module = BERT(config, embed.tokens.num_embeddings, recipe, n_classes, tied)
    module.model.load_state_dict(model.state_dict())
    return module


def load_processor(name_or_folder: str | Path) -> Tokenizer | ImageTransform | None:
    """The tokeniser or image transform of an official model or a folder, without its weights."""
    return read_processor(find_folder(name_or_folder))


# ------------------------------------------------------------------------------------------------ saving
def save_pretrained(
    model: Transformer,
    folder: str | Path,
    processor: Tokenizer | ImageTransform | None = None,
    labels: list[str] | None = None,
) -> Path:
    """Write config.json, model.safetensors and the processor's file, so that transformers' from_pretrained reads them.

    All is written beside `folder` first: it is there whole, or not at all. ValueError if `folder` exists and is not
    empty, or if no family of FAMILIES is built like the model.
    """
    folder = Path(folder)
    require(not folder.exists() or not any(folder.iterdir()), "folder", str(folder), "new or empty")
    kind, theirs = describe(model, labels)
    family = FAMILIES[kind]
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for ours, parameter in model.named_parameters(remove_duplicate=False):
        if first[id(parameter)] == ours:
            value = parameter.detach().cpu()
            value = value[None] if (kind, ours) == ("vit", "embed.positions.table") else value
            tensors |= to_theirs(family, their_names(family, ours), value, model.config.n_heads)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        stack.callback(shutil.rmtree, draft, ignore_errors=True)
        save_file(tensors, draft / "model.safetensors", metadata={"format": "pt"})
        (draft / "config.json").write_text(json.dumps(theirs, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if processor is not None:
            write_processor(processor, draft, model.config.max_len)
        if folder.exists():
            folder.rmdir()
        draft.chmod(0o755)
        draft.rename(folder)
    return folder


def describe(model: Transformer, labels: list[str] | None) -> tuple[str, dict]:
    """The model's family and its config.json."""
    config, embed, head = model.config, model.embed, model.head
    kind = "vit" if isinstance(embed, PatchEmbedding) else "bert" if not config.causal else "gpt2"
    if kind == "gpt2" and config.positions == "rotary":
        kind = "gpt_neox"
    for field, value in FAMILIES[kind].fixed.items():
        require(getattr(config, field) == value, field, getattr(config, field), f"{value!r}: {kind} has nothing else")
    require(kind != "bert" or embed.segments is not None, "n_segments", 0, "above 0: bert has nothing else")
    names = FAMILIES[kind].config
    theirs = {names[field]: value for field, value in asdict(config).items() if field in names}
    activation = names["activation"]
    theirs[activation] = {ours: name for name, ours in reversed(ACTIVATIONS.items())}[config.activation]
    theirs |= {"model_type": kind, "torch_dtype": str(next(model.parameters()).dtype).removeprefix("torch.")}
    theirs |= {name: value for name, (value, _) in FAMILIES[kind].needed.items()}
    if isinstance(head, ClassHead):
        classes = labels or [f"LABEL_{i}" for i in range(head.classifier.out_features)]
        n = head.classifier.out_features
        require(len(classes) == n, "labels", classes, f"{n} names")
        theirs |= {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    if kind == "vit":
        channels, size, _ = embed.input_shape
        sizes = {"image_size": size, "patch_size": embed.project.kernel_size[0], "num_channels": channels}
        theirs |= {"architectures": ["ViTForImageClassification"], "attention_probs_dropout_prob": config.dropout}
        return kind, theirs | sizes
    theirs |= {"vocab_size": embed.tokens.num_embeddings, "bos_token_id": None, "eos_token_id": None}
    if kind == "bert":
        task = "SequenceClassification" if isinstance(head, ClassHead) else "MaskedLM"
        theirs |= {"architectures": ["BertModel" if isinstance(head, nn.Identity) else f"BertFor{task}"]}
        theirs |= {"type_vocab_size": embed.segments.num_embeddings, "attention_probs_dropout_prob": config.dropout}
        decoder = embed.tokens if isinstance(head, (ClassHead, nn.Identity)) else head[3]
        return kind, theirs | {"tie_word_embeddings": decoder.weight is embed.tokens.weight}
    theirs |= {"tie_word_embeddings": head.weight is embed.tokens.weight}
    if kind == "gpt2":
        theirs |= {"attn_pdrop": config.dropout, "embd_pdrop": config.dropout}
        return kind, theirs | {"architectures": ["GPT2LMHeadModel"]}
    rope = {name: theirs.pop(name) for name in ("partial_rotary_factor", "rope_theta", "rope_type")}
    theirs |= {"rope_parameters": rope, "rotary_pct": 1.0, "rotary_emb_base": 10_000}  # the new way and the old
    return kind, theirs | {"architectures": ["GPTNeoXForCausalLM"], "attention_dropout": config.dropout}
