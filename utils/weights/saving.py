"""Save our models in the Hugging Face layout, which transformers and `load_pretrained` read.

    from utils.weights.saving import save_pretrained

    save_pretrained(model, "my-gpt", tokenizer)

The folder my-gpt then holds config.json, model.safetensors, and the files of the tokeniser or image transform.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from transformer import ClassHead, PatchEmbedding, Transformer, require
from utils.weights.families import FAMILIES, THEIR_ACTIVATIONS, their_names, to_theirs
from utils.weights.json_files import write_json
from utils.weights.processors import ImageTransform, write_processor


def save_pretrained(
    model: Transformer,
    folder: str | Path,
    processor: Tokenizer | ImageTransform | None = None,
    labels: list[str] | None = None,
) -> Path:
    """Write a model, and its tokeniser or image transform, into a new folder, and return the folder.

    labels: the names of the classes, in their order.
    The files are written beside `folder` first, so that it holds all of them or does not exist.
    Raises ValueError where `folder` exists and is not empty, or where no family in FAMILIES is built like the model.
    """
    folder = Path(folder)
    require(not folder.exists() or not any(folder.iterdir()), "folder", str(folder), "new or empty")
    kind, config_json = describe(model, labels)
    tensors = rename_parameters(model, kind)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
        draft = Path(beside, folder.name)
        draft.mkdir()
        save_file(tensors, draft / "model.safetensors", metadata={"format": "pt"})
        write_json(draft / "config.json", config_json)
        if processor is not None:
            write_processor(processor, draft, model.config.max_len)
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    return folder


def rename_parameters(model: Transformer, kind: str) -> dict[str, Tensor]:
    """Return the tensors of model.safetensors, on the CPU. kind: the model's family, a key of FAMILIES."""
    family = FAMILIES[kind]
    tensors: dict[str, Tensor] = {}
    for ours, parameter in model.named_parameters():  # one that is shared comes once, under its first name
        value = parameter.detach().cpu()
        if kind == "vit" and ours == "embed.positions.table":
            value = value[None]  # (1, T, C)
        tensors |= to_theirs(family, their_names(family, ours), value, model.config.n_heads)
    return tensors


# ------------------------------------------------------------------------------------------------ config.json
def describe(model: Transformer, labels: list[str] | None) -> tuple[str, dict]:
    """Return the model's family, a key of FAMILIES, and the contents of its config.json.

    labels: the names of the classes, or None for LABEL_0, LABEL_1 and so on.
    Raises ValueError where no family is built like the model.
    """
    kind = find_kind(model)
    config, family = model.config, FAMILIES[kind]
    for field, value in family.fixed.items():
        ours = getattr(config, field)
        require(ours == value, field, ours, f"{value!r}: {kind} has nothing else")

    config_json = {family.settings[field]: value for field, value in asdict(config).items() if field in family.settings}
    names = {ours: name for name, ours in reversed(THEIR_ACTIVATIONS.items())}  # the first of several names wins
    config_json[family.settings["activation"]] = names[config.activation]
    config_json["model_type"] = kind
    config_json["torch_dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    if isinstance(model.head, ClassHead):
        config_json |= label_settings(labels, model.head.classifier.out_features)
    describe_family = {"gpt2": gpt2_settings, "gpt_neox": gpt_neox_settings, "bert": bert_settings, "vit": vit_settings}
    return kind, config_json | describe_family[kind](model)


def find_kind(model: Transformer) -> str:
    """Return the key in FAMILIES of the architecture that comes closest to the model."""
    if isinstance(model.embed, PatchEmbedding):
        return "vit"
    if not model.config.causal:
        return "bert"
    return "gpt_neox" if model.config.positions == "rotary" else "gpt2"


def required_settings(kind: str) -> dict:
    """Return the settings that must have one value in this family."""
    return {name: value for name, (value, _) in FAMILIES[kind].required.items()}


def label_settings(labels: list[str] | None, n_classes: int) -> dict:
    """Return the names of the classes in both directions, as config.json holds them."""
    if labels is None:
        labels = [f"LABEL_{i}" for i in range(n_classes)]
    require(len(labels) == n_classes, "labels", labels, f"{n_classes} names")
    return {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}


def text_settings(model: Transformer, output: Tensor) -> dict:
    """Return what config.json of all models of text holds.

    output: the weight of the layer that gives the logits of tokens. It is tied where it is the token embeddings'.
    """
    tokens = model.embed.tokens
    return {
        "vocab_size": tokens.num_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": output is tokens.weight,
    }


def gpt2_settings(model: Transformer) -> dict:
    """Return what config.json of a GPT-2 holds beyond the fields of our Config."""
    dropout = model.config.dropout
    own = {"architectures": ["GPT2LMHeadModel"], "attn_pdrop": dropout, "embd_pdrop": dropout}
    return required_settings("gpt2") | text_settings(model, model.head.weight) | own


def gpt_neox_settings(model: Transformer) -> dict:
    """Return what config.json of a GPT-NeoX holds beyond the fields of our Config."""
    required = required_settings("gpt_neox")
    rotary = {name: required.pop(name) for name in ("partial_rotary_factor", "rope_theta", "rope_type")}
    own = {
        "architectures": ["GPTNeoXForCausalLM"],
        "attention_dropout": model.config.dropout,
        "rope_parameters": rotary,  # for newer versions of transformers
        "rotary_pct": rotary["partial_rotary_factor"],  # for older versions, as is the next
        "rotary_emb_base": rotary["rope_theta"],
    }
    return required | text_settings(model, model.head.weight) | own


def bert_settings(model: Transformer) -> dict:
    """Return what config.json of a BERT holds beyond the fields of our Config."""
    embed, head = model.embed, model.head
    require(embed.segments is not None, "n_segments", 0, "above 0: bert has nothing else")
    if isinstance(head, ClassHead):
        architecture, output = "BertForSequenceClassification", embed.tokens.weight
    elif isinstance(head, nn.Identity):
        architecture, output = "BertModel", embed.tokens.weight
    else:
        architecture, output = "BertForMaskedLM", head.decoder.weight
    own = {
        "architectures": [architecture],
        "type_vocab_size": embed.segments.num_embeddings,
        "attention_probs_dropout_prob": model.config.dropout,
    }
    return required_settings("bert") | text_settings(model, output) | own


def vit_settings(model: Transformer) -> dict:
    """Return what config.json of a ViT holds beyond the fields of our Config."""
    channels, image_size, _ = model.embed.input_shape
    own = {
        "architectures": ["ViTForImageClassification"],
        "image_size": image_size,
        "patch_size": model.embed.project.kernel_size[0],
        "num_channels": channels,
        "attention_probs_dropout_prob": model.config.dropout,
    }
    return required_settings("vit") | own
