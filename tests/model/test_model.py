"""The network: who may see whom, the cache, generation, attention maps, sizes and initial weights."""

import math

import pytest
import torch
from conftest import TINY, VOCAB, bold, pictures, tiny_bert, tiny_gpt, tiny_vit, words
from torch.nn import functional as F

import transformer
from transformer import (
    BERT_BASE,
    GPT2,
    POSITIONS,
    VIT_B16,
    Attention,
    Block,
    Config,
    DecoderTransformer,
    EncoderTransformer,
    KVCache,
    sampling_probabilities,
)

all_positions = pytest.mark.parametrize("positions", POSITIONS)
both_orders = pytest.mark.parametrize("norm_first", [True, False], ids=["pre-norm", "post-norm"])
all_models = pytest.mark.parametrize(
    "model, inputs",
    [(tiny_gpt, words(3, 10)), (tiny_bert, words(3, 10)), (tiny_vit, pictures(3))],
    ids=["gpt", "bert", "vit"],
)
close = torch.testing.assert_close  # in float64: relative 1e-7


# ------------------------------------------------------------------------------------------------ who sees whom
def influence(model, ids):
    """(T, T): the size of the gradient of the logits at t with respect to the embedded input at s."""
    kept = []

    def keep(module, inputs, output):
        kept.append(output.detach().requires_grad_())
        return kept[0]

    hook = model.embed.register_forward_hook(keep)
    logits = model(ids)[0]
    hook.remove()
    mix = torch.linspace(-1, 1, VOCAB, dtype=torch.float64)  # a plain sum over the words could cancel
    rows = [torch.autograd.grad((row * mix).sum(), kept[0], retain_graph=True)[0][0].norm(dim=-1) for row in logits]
    return torch.stack(rows)


@all_positions
@both_orders
def test_gpt_sees_itself_and_the_past_only(positions, norm_first):
    model = tiny_gpt(positions=positions, norm_first=norm_first)
    seen = influence(model, words(1, 9)) != 0
    assert seen.equal(torch.ones(9, 9, dtype=torch.bool).tril())


@all_positions
@both_orders
@pytest.mark.parametrize("masked", [False, True])
def test_a_later_token_changes_no_earlier_logit(positions, norm_first, masked):
    model, ids = tiny_gpt(positions=positions, norm_first=norm_first), words(2, 9)
    mask = torch.ones(2, 9, dtype=torch.bool) if masked else None
    before = model(ids, mask=mask)
    for t in range(1, 9):
        changed = ids.clone()
        changed[:, t] = (ids[:, t] + 1) % VOCAB
        after = model(changed, mask=mask)
        assert after[:, :t].equal(before[:, :t])
        assert (after[:, t:] != before[:, t:]).any(-1).all()


@all_positions
@both_orders
def test_an_encoder_sees_both_ways(positions, norm_first):
    assert (influence(tiny_bert(positions=positions, norm_first=norm_first), words(1, 9)) != 0).all()


@all_positions
@both_orders
def test_padding_is_invisible(positions, norm_first):
    model, ids = tiny_bert(positions=positions, norm_first=norm_first), words(2, 8)
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[1, 5:] = False
    padded = model(ids, mask=mask)
    close(padded[1:, :5], model(ids[1:, :5]))
    close(padded[:1], model(ids[:1]))
    other = torch.where(mask, ids, words(2, 8, seed=1))
    close(model(other, mask=mask)[mask], padded[mask], rtol=0, atol=0)
    longer = model(F.pad(ids, (0, 4)), mask=F.pad(mask, (0, 4), value=False))
    close(longer[:, :8][mask], padded[mask])
    assert not torch.allclose(model(ids)[1, :5], padded[1, :5])  # without the mask the padding does count


def test_padding_does_not_change_a_texts_class_nor_what_gpt_predicts():
    ids, mask = words(2, 8), torch.arange(8) < torch.tensor([[8], [5]])
    close(tiny_bert(n_classes=3)(ids, mask=mask)[1:], tiny_bert(n_classes=3)(ids[1:, :5]))
    close(tiny_gpt()(ids, mask=mask)[1:, :5], tiny_gpt()(ids[1:, :5]))


# ------------------------------------------------------------------------------------------------ cache and text
def empty_caches(model, batch):
    return [KVCache(batch, model.config.max_len, model.config, model.embed.tokens.weight) for _ in model.blocks]


@all_positions
@both_orders
@pytest.mark.parametrize("chunks", [[1] * 12, [5, 4, 1, 2]], ids=["token by token", "in chunks"])
@torch.no_grad()
def test_cached_is_uncached(positions, norm_first, chunks):
    model, ids = tiny_gpt(positions=positions, norm_first=norm_first), words(3, 12)
    caches = empty_caches(model, 3)
    parts = [model(chunk, caches=caches) for chunk in ids.split(chunks, dim=1)]
    close(torch.cat(parts, dim=1), model(ids))
    assert all(cache.length == 12 for cache in caches)


@all_positions
@both_orders
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("prompt", [1, 12, 20])
def test_the_cache_changes_no_text_even_beyond_max_len(positions, norm_first, temperature, prompt):
    model, ids = tiny_gpt(positions=positions, norm_first=norm_first), words(3, prompt)
    texts, logits = [], []
    for use_cache in (True, False):
        draw = torch.Generator().manual_seed(5)
        steps = list(model.stream(ids, 40, temperature, generator=draw, use_cache=use_cache))
        texts.append(torch.stack([word for word, _ in steps]))
        logits.append(torch.stack([row for _, row in steps]))
    assert texts[0].equal(texts[1])
    assert logits[0].shape == (40, 3, VOCAB)
    close(logits[0], logits[1])


def test_generate_writes_on_the_likeliest_words():
    model, ids = tiny_gpt(), words(2, 4)
    by_hand = ids
    for _ in range(8):
        by_hand = torch.cat((by_hand, model(by_hand)[:, -1].argmax(-1, keepdim=True)), dim=1)
    for greedy in ({"temperature": 0}, {"top_k": 1}, {"top_p": 1e-9}):
        assert model.generate(ids, 8, **greedy).equal(by_hand)
    assert model.generate(ids, 0).equal(ids)


def test_one_seed_one_text():
    model, ids = tiny_gpt(), words(2, 4)
    first, again, other = (model.generate(ids, 20, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert first.shape == (2, 24) and first[:, :4].equal(ids)
    assert first.equal(again) and not first.equal(other)


def test_generate_refuses_what_it_cannot_do():
    model, ids = tiny_gpt(), words(1, 4)
    bad = {"temperature": -0.1, "top_k": 0, "top_p": 0.0}
    for name, value in bad.items():
        with pytest.raises(ValueError, match=f"{name}={value}: must be"):
            model.generate(ids, 1, **{name: value})
    with pytest.raises(ValueError, match="top_p=1.1"):
        model.generate(ids, 1, top_p=1.1)
    with pytest.raises(ValueError, match="max_new_tokens=-1"):
        model.generate(ids, -1)
    with pytest.raises(ValueError, match="ids"):
        model.generate(ids[:, :0], 1)


def test_sampling_probabilities():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = logits.softmax(-1)
    close(sampling_probabilities(logits), plain)
    close(sampling_probabilities(logits, temperature=0.5), (logits * 2).softmax(-1))
    for k in (1, 7, 50, 60):
        cut = sampling_probabilities(logits, top_k=k)
        likeliest = torch.zeros_like(plain, dtype=torch.bool).scatter(1, plain.topk(min(k, 50)).indices, True)
        assert (cut > 0).equal(likeliest)
        close(cut, plain * likeliest / (plain * likeliest).sum(-1, keepdim=True))
    for p in (0.05, 0.5, 0.9):
        kept = sampling_probabilities(logits, top_p=p) > 0
        assert (kept.sum(-1) < 50).all()
        for row, chosen in zip(plain, kept, strict=True):
            assert row[chosen].min() > row[~chosen].max()
            assert row[chosen].sum() >= p > row[chosen].sum() - row[chosen].min()
    assert (sampling_probabilities(logits, top_p=1.0) > 0).all()


# ------------------------------------------------------------------------------------------------ attention maps
def heard(model, *inputs, **options):
    """What each layer's attention was given and answered in one forward pass, and the maps."""
    heard = []
    hooks = [b.attention.register_forward_hook(lambda m, i, o: heard.append((m, i[0], o))) for b in model.blocks]
    maps = model.attention_maps(*inputs, **options)
    for hook in hooks:
        hook.remove()
    return [(*layer, weights) for layer, weights in zip(heard, maps, strict=True)]


@all_positions
@both_orders
@pytest.mark.parametrize("kind", ["gpt", "masked gpt", "bert", "masked bert", "vit"])
@torch.no_grad()
def test_attention_maps_are_what_attention_used(positions, norm_first, kind):
    build = {"gpt": tiny_gpt, "bert": tiny_bert, "vit": tiny_vit}[kind.split()[-1]]
    model = build(positions=positions, norm_first=norm_first)
    inputs, mask = (pictures(2) if kind == "vit" else words(2, 9)), torch.arange(9) < torch.tensor([[9], [6]])
    options = {"mask": mask} if "masked" in kind else {}
    layers = heard(model, inputs, **options)
    assert len(layers) == 2
    for attention, x, answer, weights in layers:
        batch, length, width = x.shape
        assert weights.shape == (batch, 2, length, length)
        close(weights.sum(-1), torch.ones(batch, 2, length, dtype=torch.float64))
        values = attention.qkv(x)[..., 2 * width :].view(batch, length, 2, width // 2)
        mixed = torch.einsum("bhts,bshd->bthd", weights, values).reshape(x.shape)
        close(attention.out(mixed), answer)
        allowed = torch.ones(batch, 1, length, length, dtype=torch.bool)
        if "gpt" in kind:
            allowed = allowed.tril()
        if "masked" in kind:
            allowed = allowed & mask[:, None, None, :]
        assert (weights > 0).equal(allowed.expand_as(weights))


@pytest.mark.parametrize("model", [tiny_gpt, tiny_bert])
def test_attention_maps_hide_even_from_huge_scores(model):
    """Scores far beyond 1,000 show a mask that is a large number instead of minus infinity."""
    model, mask = model(), torch.arange(9) < torch.tensor([[9], [6]])
    for block in model.blocks:
        block.attention.qkv.weight.data *= 100
    for weights in model.attention_maps(words(2, 9), mask=mask):
        assert (weights[1, :, :, 6:] == 0).all()
        assert not model.config.causal or (weights.triu(1) == 0).all()


# ------------------------------------------------------------------------------------------------ the parts
@both_orders
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
def test_a_block_is_two_steps_on_the_residual_stream(norm_first, activation):
    block = bold(Block(Config(**TINY, norm_first=norm_first, activation=activation, norm_eps=0.01)))
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def bend(u):
        if activation == "gelu":
            return u * (1 + torch.erf(u / math.sqrt(2))) / 2
        if activation == "gelu_tanh":
            return u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))) / 2
        return u.clamp(min=0)

    def norm(u, layer):
        deviation = (u.var(-1, unbiased=False, keepdim=True) + 0.01).sqrt()
        return (u - u.mean(-1, keepdim=True)) / deviation * layer.weight + layer.bias

    def mlp(u):
        return block.mlp.down(bend(u @ block.mlp.up.weight.T + block.mlp.up.bias))

    if norm_first:
        y = x + block.attention(norm(x, block.norm1))
        y = y + mlp(norm(y, block.norm2))
    else:
        y = norm(x + block.attention(x), block.norm1)
        y = norm(y + mlp(y), block.norm2)
    close(block(x), y)


@pytest.mark.parametrize("model, inputs", [(lambda: tiny_bert(n_classes=3), words(2, 6)), (tiny_vit, pictures(2))])
def test_a_class_is_read_from_the_first_token(model, inputs):
    model = model()
    logits, x = model(inputs), model.embed(inputs)
    for block in model.blocks:
        x = block(x)
    state = model.norm(x)[:, 0]
    if inputs.dtype == torch.long:  # BERT's pooler
        state = torch.tanh(state @ model.head.pooler.weight.T + model.head.pooler.bias)
    assert logits.shape == (2, 3)
    close(logits, state @ model.head.classifier.weight.T + model.head.classifier.bias)


# ------------------------------------------------------------------------------------------------ shape and weights
@pytest.mark.parametrize(
    "build, count",
    [
        (lambda: DecoderTransformer(GPT2, 50_257), 124_439_808),
        (lambda: EncoderTransformer.bert(BERT_BASE, 30_522), 109_514_298),
        (lambda: EncoderTransformer.vit(VIT_B16, 224, 16, 1000), 86_567_656),
    ],
    ids=["GPT-2", "BERT-base", "ViT-B/16"],
)
def test_parameter_counts(build, count):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build().parameters()) == count


@all_models
def test_all_three_have_one_trunk(model, inputs):
    model = model()
    assert [name for name, _ in model.named_children()] == ["embed", "blocks", "norm", "head"]
    assert [type(block) for block in model.blocks] == [transformer.Block] * 2
    shapes = {name: tuple(parameter.shape) for name, parameter in model.blocks.named_parameters()}
    assert shapes == {name: tuple(parameter.shape) for name, parameter in tiny_gpt().blocks.named_parameters()}


def test_tied_weights_are_one_object():
    gpt, bert = tiny_gpt(), tiny_bert()
    assert gpt.head.weight is gpt.embed.tokens.weight
    assert any(parameter is bert.embed.tokens.weight for parameter in bert.head.parameters())
    untied = DecoderTransformer(Config(**TINY, causal=True), VOCAB, tied=False)
    assert untied.head.weight is not untied.embed.tokens.weight
    untied = EncoderTransformer.bert(Config(**TINY), VOCAB, tied=False)
    assert all(parameter is not untied.embed.tokens.weight for parameter in untied.head.parameters())


@pytest.mark.parametrize("kind", ["gpt", "bert", "vit"])
def test_initial_weights(kind):
    torch.manual_seed(0)
    config = Config(n_layers=8, n_heads=2, d_model=64, d_ff=256, max_len=17, causal=kind == "gpt", init_std=0.05)
    model = {
        "gpt": lambda: DecoderTransformer(config, 200),
        "bert": lambda: EncoderTransformer.bert(config, 200),
        "vit": lambda: EncoderTransformer.vit(config, image_size=16, patch_size=4, n_classes=10),
    }[kind]()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name or (parameter == 1).all():
            assert (parameter == 1).all() and parameter.ndim == 1, name
        else:
            writes = name.endswith(("attention.out.weight", "mlp.down.weight"))
            expected = 0.05 / math.sqrt(2 * 8) if writes else 0.05
            allowed = 4 * expected / math.sqrt(2 * parameter.numel())  # four standard errors
            assert abs(parameter.std().item() - expected) < allowed, name


def test_sinusoids_are_those_of_the_paper():
    model = tiny_gpt(positions="sinusoidal")
    x = torch.randn(1, 12, 16, dtype=torch.float64)
    table = torch.zeros(12, 16, dtype=torch.float64)
    for pos in range(12):
        for i in range(8):
            table[pos, 2 * i] = math.sin(pos / 10_000 ** (2 * i / 16))
            table[pos, 2 * i + 1] = math.cos(pos / 10_000 ** (2 * i / 16))
    close(model.embed.positions(x), x + table, rtol=0, atol=1e-5)  # the angles are float32
    ids = words(1, 12)
    close(model.embed(ids), math.sqrt(16) * model.embed.tokens(ids) + table, rtol=0, atol=1e-5)


def test_sinusoids_are_added_to_patches_as_they_are():
    """Patches are not small, as the embeddings of tokens are at the beginning, and need not be enlarged."""
    embed = tiny_vit(positions="sinusoidal").embed
    x = pictures(1)
    patches = embed.project(x).flatten(2).transpose(1, 2)
    close(embed(x)[:, 1:], patches + embed.positions.table[1:])


def test_rotary_attention_depends_on_the_distance_alone():
    attention = bold(Attention(Config(**TINY, positions="rotary")))
    x = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).expand(1, 12, 16)
    q, k, _ = attention.project(x)
    scores = (q @ k.mT)[0]
    for distance in range(-11, 12):
        diagonal = scores.diagonal(distance, dim1=1, dim2=2)
        close(diagonal, diagonal[:, :1].expand_as(diagonal), rtol=1e-4, atol=1e-4)
    assert (scores[:, 0].std(-1) > 0.1).all()  # but it does depend on it
    close(q.norm(dim=-1)[..., :1].expand(1, 2, 12), q.norm(dim=-1))  # turned, not stretched


def test_only_learned_positions_are_saved():
    saved = {kind: set(tiny_gpt(positions=kind).state_dict()) for kind in POSITIONS}
    assert saved["learned"] - saved["rotary"] == {"embed.positions.table"}
    assert saved["sinusoidal"] == saved["rotary"]


def test_mlm_and_classes_may_have_segments():
    model, ids = tiny_bert(), words(2, 6)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)
    close(model(ids, torch.zeros_like(ids)), model(ids))
    assert not torch.allclose(model(ids, segments), model(ids))


# ------------------------------------------------------------------------------------------------ running it
@both_orders
@pytest.mark.parametrize("build", [tiny_gpt, tiny_bert])
@torch.no_grad()
def test_keep_picks_those_positions(build, norm_first):
    model, ids = build(norm_first=norm_first), words(3, 10)
    logits = model(ids)
    keep = torch.rand(3, 10, generator=torch.Generator().manual_seed(0)) < 0.5
    assert 0 < keep.sum() < keep.numel()
    close(model(ids, keep=keep), logits[keep])
    for position in (0, 3, -1):
        close(model(ids, keep=position), logits[:, position])


@torch.no_grad()
def test_a_class_needs_one_hidden_state_of_the_last_block():
    model, seen = tiny_vit(), []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda mlp, inputs, output: seen.append(tuple(inputs[0].shape)))
    model(pictures(3))
    assert seen == [(3, 5, 16), (3, 16)]


@all_models
@torch.no_grad()
def test_dropout_is_on_in_training_and_off_at_evaluation(model, inputs, monkeypatch):
    rates, real = [], F.scaled_dot_product_attention
    spy = lambda *a, dropout_p=0.0, **k: rates.append(dropout_p) or real(*a, dropout_p=dropout_p, **k)  # noqa: E731
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    model = model(dropout=0.3)
    assert model(inputs).equal(model(inputs)) and set(rates) == {0.0}
    rates.clear()
    model.train()
    assert not torch.allclose(model(inputs), model(inputs)) and set(rates) == {0.3}


@pytest.mark.parametrize(
    "model, inputs, message",
    [
        (tiny_gpt, words(2, 5).int(), "ids=.*int32.*must be int64"),
        (tiny_bert, torch.tensor([[0, VOCAB]]), f"ids=.*{VOCAB}.*below vocab_size={VOCAB}"),
        (tiny_gpt, words(1, 13), "sequence length=13: must be at most max_len=12"),
        (tiny_vit, torch.zeros(1, 2, 8, 12), r"images=\(1, 2, 8, 12\): must be"),
    ],
)
def test_bad_input_is_named(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        model()(inputs)


@all_models
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_half_precision_is_finite(model, inputs, dtype):
    model = model().float()
    inputs = inputs if inputs.dtype == torch.long else inputs.float()
    with torch.autocast("cpu", dtype):
        assert model(inputs).isfinite().all()
        if isinstance(model, DecoderTransformer):
            assert model.generate(inputs, 10, temperature=0).shape == (3, 20)  # the cache is float32
    if isinstance(model, EncoderTransformer) and inputs.dtype == torch.long:
        mask = torch.arange(10) < torch.tensor([[10], [6], [1]])  # a fill of -1e9 would overflow
        assert model.to(dtype)(inputs, mask=mask).isfinite().all()


def test_rotary_angles_stay_exact_in_half_precision():
    """At position 900 bfloat16 would round the angle itself by up to 2 radians."""
    x = torch.randn(1, 1, 1000, 8, dtype=torch.float64)
    exact, half = transformer.rotate(x), transformer.rotate(x.bfloat16())
    assert half.dtype == torch.bfloat16
    close(half.double(), exact, rtol=0, atol=0.05)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # as Lightning does for --precision bf16-true
    try:
        assert torch.equal(transformer.rotate(x.bfloat16()), half)
    finally:
        torch.set_default_dtype(usual)
