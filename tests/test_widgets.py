"""The widgets, driven from Python. That they work in a browser is checked by tests/browser."""

import gc
import importlib
import io
import sys
import threading
import tracemalloc

import pytest
import torch
from PIL import Image

from tests import tiny
from transformer import Config, DecoderTransformer, EncoderTransformer, next_word
from utils import widgets
from utils.images import ImageData, load_images
from utils.inside import class_attention, hide_patches
from utils.sampling import blank_attention, fill_blanks, write_on, write_tokens
from utils.text import bpe_tokenizer, wordpiece_tokenizer

SIZES = {"n_layers": 2, "n_heads": 2, "d_model": 16, "d_ff": 32, "max_len": 48, "init_std": 0.3}


@pytest.fixture(scope="module")
def gpt():
    torch.manual_seed(0)
    words = bpe_tokenizer(tiny.text(), 300)
    return DecoderTransformer(Config(causal=True, **SIZES), words.get_vocab_size()).eval(), words


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    words = wordpiece_tokenizer(tiny.text(), 200)
    return EncoderTransformer.bert(Config(**SIZES), words.get_vocab_size()).eval(), words


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    torch.manual_seed(0)
    data = ImageData(load_images(tiny.pictures(tmp_path_factory.mktemp("pictures")), size=8))
    return EncoderTransformer.vit(Config(**SIZES), 8, 2, data.n_classes, channels=int(data.channels)).eval(), data


def generated(widget, **settings):
    for name, value in settings.items():
        getattr(widget, name).value = value
    widget.generate.click()
    widget.thread.join(60)
    assert not widget.thread.is_alive()
    return "".join(token.text for token in widget.written)


# ------------------------------------------------------------------------------------------------ plain functions
def test_written_tokens_are_what_generate_draws(gpt):
    model, words = gpt
    settings = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}
    tokens = list(write_tokens(model, words, "abc", 60, seed=5, **settings))
    ids = torch.tensor([words.encode("abc").ids])
    whole = model.generate(ids, 60, generator=torch.Generator().manual_seed(5), **settings)[0].tolist()
    assert "abc" + "".join(token.text for token in tokens) == words.decode(whole).rstrip("\ufffd")
    logits = model(ids)[:, -1]
    (_, before, after), first = max(tokens[0].candidates, key=lambda row: row[1]), tokens[0]
    assert before == pytest.approx(logits.softmax(-1).max().item(), rel=1e-4)
    assert after == pytest.approx(next_word(logits, **settings).max().item(), rel=1e-4)
    assert first.probability in [row[1] for row in first.candidates]
    uncached = list(write_tokens(model, words, "abc", 60, seed=5, use_cache=False, **settings))
    assert [token.text for token in uncached] == [token.text for token in tokens]


@pytest.mark.parametrize("prompt", ["\U0001f980 \u6f22\u5b57", "x" * 10_000, "<script>alert(1)</script>", "\u0627\u0644"])
def test_any_prompt(gpt, prompt):
    assert len(list(write_tokens(*gpt, prompt, 60))) == 60  # beyond max_len too


def test_blank_attention_is_the_models(bert):
    model, words = bert
    module = widgets.SimpleNamespace(model=model, device=torch.device("cpu"))
    (row,) = blank_attention(module, words, "a ___ b", layer=1, head=0)
    ids = torch.tensor([words.encode("a [MASK] b").ids])
    at = ids[0].tolist().index(words.token_to_id("[MASK]"))
    torch.testing.assert_close(torch.tensor([w for _, w in row]), model.attention_maps(ids)[1][0, 0, at])
    with pytest.raises(ValueError, match="layer=2"):
        blank_attention(module, words, "a ___ b", layer=2, head=0)


def test_hidden_patches_are_those_of_most_or_least_attention(vit):
    model, data = vit
    image = torch.ones(1, data.channels, 8, 8)
    attention = class_attention(model, image, layer=0, head=1)
    torch.testing.assert_close(attention.flatten(), model.attention_maps(image)[0][0, 1, 0, 1:])
    most, least = hide_patches(image, attention, 3), hide_patches(image, attention, 3, highest=False)
    grey = [(x == 0).reshape(1, -1, 4, 2, 4, 2).all(5).all(3)[0, 0] for x in (most, least)]
    assert [g.sum().item() for g in grey] == [3, 3] and not (grey[0] & grey[1]).any()
    assert attention[0][grey[0]].min() >= attention[0][~grey[0]].max()
    assert attention[0][grey[1]].max() <= attention[0][~grey[1]].min()
    with pytest.raises(ValueError, match="n=17"):
        hide_patches(image, attention, 17)


def test_without_ipywidgets_the_plain_functions_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.delitem(sys.modules, "utils.widgets")
    with pytest.raises(ImportError, match="pip install ipywidgets.*write_tokens"):
        importlib.import_module("utils.widgets")


# ------------------------------------------------------------------------------------------------ the sampler
def test_same_seed_same_text(gpt):
    widget = widgets.sampler(*gpt, prompt="ab")
    first = generated(widget, length=20, seed=3)
    other = generated(widget, seed=4)
    assert generated(widget, seed=3) == first != other
    assert generated(widget, cache=False) == first
    assert first == write_on(widgets.SimpleNamespace(model=gpt[0], device="cpu", training=False, eval=gpt[0].eval,
                             train=lambda _: None), gpt[1], "ab", 20, seed=3, temperature=0.8)[2:]  # fmt: skip
    assert set(widget.speeds) == {True, False} and "without" in widget.speed.value


def test_stop_stops_and_a_double_click_starts_one_run(gpt):
    widget = widgets.sampler(*gpt, prompt="ab")
    widget.length.value = 10_000
    threads = threading.active_count()
    widget.generate.click()
    widget.generate.click()
    assert threading.active_count() == threads + 1 and widget.generate.disabled and not widget.stop.disabled
    while not widget.written:
        pass
    widget.stop.click()
    widget.thread.join(10)
    assert not widget.thread.is_alive() and 0 < len(widget.written) < 10_000
    assert not widget.generate.disabled and widget.stop.disabled
    assert threading.active_count() == threads


def test_stop_is_heard_inside_a_forward_pass(gpt):
    widget, blocks, reached = widgets.sampler(*gpt, prompt="ab"), gpt[0].blocks, []
    hooks = [blocks[0].register_forward_hook(lambda *_: widget.stopped.set()),
             blocks[1].register_forward_hook(lambda *_: reached.append(1))]  # fmt: skip
    assert generated(widget, length=5) == "" and not reached and widget.message.value == ""
    for hook in hooks:
        hook.remove()
    assert generated(widget) and not blocks[0]._forward_pre_hooks


@pytest.mark.parametrize("end", ["close", "again"])
def test_no_thread_is_left_behind(gpt, end):
    widget = widgets.sampler(*gpt, prompt="ab")
    widget.length.value = 10_000
    widget.generate.click()
    if end == "close":
        widget.close()
    else:
        widgets.sampler(*gpt)
    assert not widget.thread.is_alive() and len(widget.written) < 10_000


def test_an_error_is_shown_and_the_widget_stays_usable(gpt, monkeypatch):
    widget = widgets.sampler(*gpt, prompt="")
    generated(widget, length=5)
    assert "must hold at least one word" in widget.message.value and not widget.generate.disabled
    with monkeypatch.context() as patch:
        patch.setattr(widget.module.model, "stream", lambda *_, **__: 1 / 0)
        generated(widget, prompt="ab")
    assert "ZeroDivisionError" in widget.message.value
    assert generated(widget) and widget.message.value == ""


def test_html_in_a_prompt_is_text(gpt):
    widget = widgets.sampler(*gpt)
    generated(widget, prompt="<script>alert(1)</script>", length=5, top_k=10**6)
    assert "<script>" not in widget.text.value and "&lt;script&gt;" in widget.text.value


def test_the_position_walks_through_the_candidates(gpt):
    widget = widgets.sampler(*gpt, prompt="ab")
    generated(widget, length=12)
    assert widget.position.max == 11
    first = widget.candidates.value
    widget.position.value = 7
    assert widget.candidates.value == widgets.candidates_table(widget.written[7]) != first


def test_memory_stays_flat(gpt):
    widget = widgets.sampler(*gpt, prompt="ab")
    generated(widget, length=2)
    sizes = []
    tracemalloc.start()
    try:
        for _ in range(2):
            for _ in range(500):
                generated(widget)
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[1] - sizes[0] < 50_000  # a kept text of 500 runs would be more


# ------------------------------------------------------------------------------------------------ the other two
def test_fill_mask(bert):
    widget = widgets.fill_mask(*bert, sentence="a ___ b ___")
    found = fill_blanks(widget.module, bert[1], "a ___ b ___", k=6)
    buttons = [row.children[0] for row in widget.blanks.children[1].children[1:]]
    assert [b.description for b in buttons] == [word for word, _ in found[1]]
    assert "blank 2 looks at" in widget.attention.value
    before = widget.attention.value
    widget.head.value = 1
    assert widget.attention.value != before
    word = buttons[2].description
    buttons[2].click()
    assert widget.sentence.value == f"a ___ b{'' if word.startswith('##') else ' '}{word.removeprefix('##')}"
    widget.blanks.children[0].children[1].children[0].click()
    assert "___" not in widget.sentence.value and "No blank is left" in widget.message.value
    widget.sentence.value = "___ " * 100
    assert "at most max_len=48" in widget.message.value
    widget.sentence.value = "<b>___"
    assert widget.message.value == "" and "<b>" not in widget.attention.value


def test_image_explorer(vit):
    model, data = vit
    widget = widgets.image_explorer(model, data)
    pictures, labels = data.images.test
    expected = model(data.normalize(pictures[-1:])).softmax(-1)[0]
    widget.previous.click()
    assert widget.number.value == len(labels) - 1
    torch.testing.assert_close(widget.chances, expected.detach())
    assert f"it is <b>{data.classes[labels[-1]]}" in widget.view.value
    widget.hide.value = widget.hide.max
    torch.testing.assert_close(widget.chances, model(torch.zeros(1, data.channels, 8, 8)).softmax(-1)[0].detach())
    widget.hide.value, widget.layer.value, widget.head.value = 0, 1, 1
    torch.testing.assert_close(widget.chances, expected.detach())


@pytest.mark.parametrize("version", [7, 8])
def test_upload(vit, version):
    model, data = vit
    widget = widgets.image_explorer(model, data)
    file = io.BytesIO()
    Image.new("RGB", (20, 12), (200, 200, 200)).save(file, "png")

    def upload(content):
        one = {"name": "mine.png", "content": content}
        widget.upload = widgets.SimpleNamespace(value={"mine.png": one} if version == 7 else (one,))
        widget.guarded(widget.take)

    upload(memoryview(file.getvalue()))
    grey = torch.full((1, data.channels, 8, 8), 200, dtype=torch.uint8)
    torch.testing.assert_close(widget.chances, model(data.normalize(grey)).softmax(-1)[0].detach())
    assert "your own" in widget.view.value
    upload(b"no picture")
    assert "upload: must be a readable picture" in widget.message.value
    widget.next.click()
    assert "it is <b>" in widget.view.value and widget.message.value == ""
