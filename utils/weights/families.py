"""The architectures whose official weights we read and write, and the names that their files use.

A file in the Hugging Face layout has its own names for settings (config.json) and for tensors (model.safetensors).
FAMILIES holds one table of names per architecture; `their_names`, `to_ours` and `to_theirs` apply it to a tensor.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

NOTHING = "(?!)"  # a regular expression that matches nothing

# ------------------------------------------------------------------------------------------------ tables of names
# Their names of activations -> ours. Of two names for one activation, the first is the one that we write.
THEIR_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}

# The fields of our Config -> the names in config.json that BERT, ViT and GPT-NeoX have in common.
COMMON_SETTINGS = {
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
    """One architecture in the Hugging Face layout. In the names of tensors, `#` stands for the number of a block."""

    # The settings in config.json.
    settings: dict[str, str]  # the fields of our Config -> their names
    fixed: dict[str, object]  # fields of our Config that the architecture itself decides
    defaults: dict[str, object]  # the values of settings that config.json leaves out
    required: dict[str, tuple]  # settings that must have one value: (that value, the value where it is left out)

    # The tensors in model.safetensors.
    prefix: str  # how all names outside the head begin; a file without a head may leave it out
    modules: dict[str, str | tuple[str, ...]]  # our modules and parameters -> theirs; several are stacked in order
    repeated: dict[str, str]  # tensors that may be stored a second time -> the tensor that they must equal
    unused: str  # a regular expression for tensors that may be there and that the model does not need
    heads: tuple[str, ...]  # how the names of the head begin
    transposed: str = NOTHING  # a regular expression for weights that are stored as (in, out)
    head_by_head: str = NOTHING  # for qkv tensors whose rows are ordered (head, q|k|v); ours are (q|k|v, head)


FAMILIES = {
    "gpt2": Family(
        settings={
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
        defaults={"activation": "gelu_new", "norm_eps": 1e-5},
        required={
            "scale_attn_weights": (True, True),
            "scale_attn_by_inverse_layer_idx": (False, False),
            "add_cross_attention": (False, False),
        },
        prefix="transformer.",
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
        settings=COMMON_SETTINGS | {"max_len": "max_position_embeddings", "dropout": "hidden_dropout"},
        fixed={"causal": True, "norm_first": True, "positions": "rotary"},
        defaults={"activation": "gelu", "norm_eps": 1e-5},
        required={
            "use_parallel_residual": (False, True),
            "attention_bias": (True, True),
            "partial_rotary_factor": (1.0, 0.25),
            "rope_theta": (10_000.0, 10_000.0),
            "rope_type": ("default", "default"),
        },
        prefix="gpt_neox.",
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
        # The causal mask, and the frequencies of the rotary positions.
        unused=r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
        head_by_head=r"\.query_key_value\.",
        heads=("embed_out.", "lm_head."),
    ),
    "bert": Family(
        settings=COMMON_SETTINGS | {"max_len": "max_position_embeddings"},
        fixed={"causal": False, "norm_first": False, "positions": "learned"},
        defaults={"activation": "gelu", "norm_eps": 1e-12},
        required={
            "position_embedding_type": ("absolute", "absolute"),
            "is_decoder": (False, False),
            "add_cross_attention": (False, False),
        },
        prefix="bert.",
        modules={
            "embed.tokens": "bert.embeddings.word_embeddings",
            "embed.positions.table": "bert.embeddings.position_embeddings.weight",
            "embed.segments": "bert.embeddings.token_type_embeddings",
            "embed.norm": "bert.embeddings.LayerNorm",
            "blocks.#.attention.qkv": (
                "bert.encoder.layer.#.attention.self.query",
                "bert.encoder.layer.#.attention.self.key",
                "bert.encoder.layer.#.attention.self.value",
            ),
            "blocks.#.attention.out": "bert.encoder.layer.#.attention.output.dense",
            "blocks.#.norm1": "bert.encoder.layer.#.attention.output.LayerNorm",
            "blocks.#.mlp.up": "bert.encoder.layer.#.intermediate.dense",
            "blocks.#.mlp.down": "bert.encoder.layer.#.output.dense",
            "blocks.#.norm2": "bert.encoder.layer.#.output.LayerNorm",
            "head.dense": "cls.predictions.transform.dense",
            "head.norm": "cls.predictions.transform.LayerNorm",
            "head.decoder.weight": "cls.predictions.decoder.weight",
            "head.decoder.bias": "cls.predictions.bias",
            "head.pooler": "bert.pooler.dense",
            "head.classifier": "classifier",
        },
        repeated={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        # Position numbers; the pooler, which only a classifier reads; the head for next-sentence prediction.
        unused=r"bert\.embeddings\.position_ids|bert\.pooler\..*|cls\.seq_relationship\..*",
        heads=("cls.", "classifier."),
    ),
    "vit": Family(
        settings=COMMON_SETTINGS,
        fixed={"causal": False, "norm_first": True, "positions": "learned"},
        defaults={"activation": "gelu", "norm_eps": 1e-12},
        required={"qkv_bias": (True, True)},
        prefix="vit.",
        modules={
            "embed.project": "vit.embeddings.patch_embeddings.projection",
            "embed.class_token": "vit.embeddings.cls_token",
            "embed.positions.table": "vit.embeddings.position_embeddings",
            "blocks.#.norm1": "vit.encoder.layer.#.layernorm_before",
            "blocks.#.attention.qkv": (
                "vit.encoder.layer.#.attention.attention.query",
                "vit.encoder.layer.#.attention.attention.key",
                "vit.encoder.layer.#.attention.attention.value",
            ),
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
}


# ------------------------------------------------------------------------------------------------ tensors
def their_names(family: Family, ours: str) -> tuple[str, ...]:
    """Return the name in the file of one of our parameters, or the names of the parts that are stacked to make it."""
    number = re.match(r"blocks\.(\d+)\.", ours)
    general = re.sub(r"^blocks\.\d+\.", "blocks.#.", ours)
    if general in family.modules:
        theirs, ending = family.modules[general], ""
    else:
        module, _, leaf = general.rpartition(".")  # such as blocks.#.norm1 and weight
        theirs, ending = family.modules[module], f".{leaf}"
    if isinstance(theirs, str):
        theirs = (theirs,)
    if number:
        theirs = tuple(name.replace("#", number[1]) for name in theirs)
    return tuple(name + ending for name in theirs)


def to_ours(family: Family, names: tuple[str, ...], parts: list[Tensor], n_heads: int) -> Tensor:
    """Return our parameter, made of the tensors `parts`, which the file holds under `names`.

    Raises RuntimeError where their shapes do not fit together.
    """
    parts = [transpose_if_needed(family, name, part) for name, part in zip(names, parts, strict=True)]
    whole = torch.cat(parts) if len(parts) > 1 else parts[0]
    if re.search(family.head_by_head, names[0]):
        whole = whole.unflatten(0, (n_heads, 3, -1)).transpose(0, 1).flatten(0, 2)  # rows (q|k|v, head, D)
    return whole


def to_theirs(family: Family, names: tuple[str, ...], whole: Tensor, n_heads: int) -> dict[str, Tensor]:
    """Return the tensors that a file holds under `names` for our parameter `whole`: the inverse of `to_ours`."""
    if re.search(family.head_by_head, names[0]):
        whole = whole.unflatten(0, (3, n_heads, -1)).transpose(0, 1).flatten(0, 2)  # rows (head, q|k|v, D)
    parts = zip(names, whole.chunk(len(names)), strict=True)
    return {name: transpose_if_needed(family, name, part).contiguous() for name, part in parts}


def transpose_if_needed(family: Family, name: str, tensor: Tensor) -> Tensor:
    """Transpose a weight that the family stores as (in, out); return any other tensor as it is."""
    return tensor.mT if re.search(family.transposed, name) else tensor
