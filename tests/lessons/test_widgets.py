"""The widgets, operated from Python, and the functions that they show. tests/browser operates them in a browser."""

import copy
import gc
import html
import importlib
import sys
import threading
import time
import tracemalloc
import weakref
from types import SimpleNamespace

import pytest
import tiny
import torch
from ipywidgets.widgets import widget as core
from PIL import Image

from transformer import Config, DecoderTransformer, EncoderTransformer, sampling_probabilities
from utils.data.images import ImageData, load_images
from utils.data.tokenisers import bpe_tokenizer, wordpiece_tokenizer
from utils.inference.blanks import blank_attention, fill_blanks, put_in
from utils.inference.generate import Written, write_on, write_tokens
from utils.inference.interpret import class_attention, hide_patches
from utils.lessons import widgets
from utils.lessons.widgets.base import Playground, tinted
from utils.lessons.widgets.gpt import BUSY, GROWING, NEIGHBOURS, READY, Sampler, candidates_table
from utils.lessons.widgets.vit import figure_html
from utils.maintenance import browser

SIZES = {"n_layers": 2, "n_heads": 2, "d_model": 16, "d_ff": 32, "max_len": 48, "init_std": 0.3}


@pytest.fixture(scope="module")
def gpt():
    torch.manual_seed(0)
    tokenizer = bpe_tokenizer(tiny.text(), 300)
    return DecoderTransformer(Config(causal=True, **SIZES), tokenizer.get_vocab_size()).eval(), tokenizer


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    tokenizer = wordpiece_tokenizer(tiny.text(), 200)
    return EncoderTransformer.bert(Config(**SIZES), tokenizer.get_vocab_size()).eval(), tokenizer


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    torch.manual_seed(0)
    data = ImageData(load_images(tiny.pictures(tmp_path_factory.mktemp("pictures")), size=8))
    return EncoderTransformer.vit(Config(**SIZES), 8, 2, data.n_classes, channels=int(data.channels)).eval(), data


@pytest.fixture
def at_once(monkeypatch):
    """Clicks count as soon as the candidates are shown: a test reads faster than a person."""
    monkeypatch.setattr("utils.lessons.widgets.bert.PAUSE", 0)


def live():
    """The number of widgets in the memory of ipywidgets."""
    return len(core._instances if hasattr(core, "_instances") else core.Widget.widgets)


def generated(widget, **settings):
    """The text that the sampler generates, without the prompt."""
    for name, value in settings.items():
        getattr(widget, name).value = value
    widget.generate.click()
    widget.thread.join(60)
    assert not widget.thread.is_alive()
    return "".join(token.text for token in widget.written)


# ------------------------------------------------------------------------------------------------ plain functions
def test_written_tokens_are_what_generate_draws(gpt):
    model, tokenizer = gpt
    settings = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}
    tokens = list(write_tokens(model, tokenizer, "abc", 60, seed=5, **settings))
    ids = torch.tensor([tokenizer.encode("abc").ids])
    whole = model.generate(ids, 60, generator=torch.Generator().manual_seed(5), **settings)[0].tolist()
    assert "abc" + "".join(token.text for token in tokens) == tokenizer.decode(whole).rstrip("\ufffd")
    logits = model(ids)[:, -1]
    _, before, after = max(tokens[0].candidates, key=lambda row: row[1])
    assert before == pytest.approx(logits.softmax(-1).max().item(), rel=1e-4)
    assert after == pytest.approx(sampling_probabilities(logits, **settings).max().item(), rel=1e-4)
    for token in tokens:
        text, before, after = token.candidates[token.taken]
        assert before == token.probability and after > 0
        assert token.text.endswith(text) or "\ufffd" in text
    uncached = list(write_tokens(model, tokenizer, "abc", 60, seed=5, use_cache=False, **settings))
    assert [token.text for token in uncached] == [token.text for token in tokens]


@pytest.mark.parametrize(
    "prompt", ["\U0001f980 \u6f22\u5b57", "x" * 10_000, "<script>alert(1)</script>", "\u0627\u0644"]
)
def test_any_prompt(gpt, prompt):
    assert len(list(write_tokens(*gpt, prompt, 60))) == 60  # also beyond max_len


def test_blank_attention_is_the_models(bert):
    model, tokenizer = bert
    module = SimpleNamespace(model=model, device=torch.device("cpu"))
    (row,) = blank_attention(module, tokenizer, "a ___ b", layer=1, head=0)
    ids = torch.tensor([tokenizer.encode("a [MASK] b").ids])
    position = ids[0].tolist().index(tokenizer.token_to_id("[MASK]"))
    torch.testing.assert_close(torch.tensor([w for _, w in row]), model.attention_maps(ids)[1][0, 0, position])
    with pytest.raises(ValueError, match="layer=2"):
        blank_attention(module, tokenizer, "a ___ b", layer=2, head=0)


@pytest.mark.parametrize("text, filled", [
    ("a ___ b ____", "a x b y"), ("a [MASK] b ___", "a x b y"), ("a[MASK]b____", "axby"), ("[MASK]___", "xy"),
])  # fmt: skip
def test_a_blank_is_written_in_two_ways(bert, text, filled):
    module = SimpleNamespace(model=bert[0], device="cpu")
    spelled = filled.replace("x", "[MASK]").replace("y", "[MASK]")
    assert fill_blanks(module, bert[1], text) == fill_blanks(module, bert[1], spelled)
    assert len(fill_blanks(module, bert[1], text)) == len(blank_attention(module, bert[1], text, 0, 0)) == 2
    assert put_in(put_in(text, 1, "y"), 0, "x") == filled


def test_a_continuing_token_is_joined_to_the_word_before():
    assert put_in("walk ___ , ___", 0, "##ing") == "walking , ___" and put_in("walk ___", 0, "away") == "walk away"


def test_no_blanks_without_a_mask_token_or_an_mlm_head(gpt, bert):
    module = SimpleNamespace(model=bert[0], device="cpu")
    for work in (lambda: fill_blanks(module, gpt[1], "a ___"), lambda: blank_attention(module, gpt[1], "a ___", 0, 0)):
        with pytest.raises(ValueError, match=r"tokenizer: must hold the token \[MASK\]"):
            work()
    classifier = EncoderTransformer.bert(Config(**SIZES), bert[1].get_vocab_size(), n_classes=2)
    for other in (classifier, gpt[0]):
        with pytest.raises(ValueError, match=f"model.head={type(other.head).__name__!r}: must be an MLMHead"):
            fill_blanks(SimpleNamespace(model=other, device="cpu"), bert[1], "a ___")


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_left_in_the_mode_it_was_in(gpt, bert, vit, training):
    """By the functions and the widgets, also after a stop and after an error; they compute without dropout."""
    models = [copy.deepcopy(model).train(training) for model in (gpt[0], bert[0], vit[0])]
    modes = []
    for model in models:
        model.blocks[1].register_forward_hook(lambda block, *_: modes.append(block.training))
    sampler = widgets.sampler(models[0], gpt[1], "ab")
    generated(sampler, length=3)
    models[0].blocks[0].register_forward_hook(lambda *_: sampler.stopped.set())
    generated(sampler)
    generated(sampler, prompt="")
    widgets.fill_mask(models[1], bert[1], "a ___").fill.click()
    widgets.image_explorer(models[2], vit[1]).next.click()
    write_on(SimpleNamespace(model=models[0], device="cpu"), gpt[1], "ab", 3)
    assert all(module.training is training for model in models for module in model.modules())
    assert len(modes) > 6 and not any(modes)


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
    monkeypatch.delitem(sys.modules, "utils.lessons.widgets")
    with pytest.raises(ImportError, match="pip install ipywidgets.*write_tokens"):
        importlib.import_module("utils.lessons.widgets")


# ------------------------------------------------------------------------------------------------ the sampler
def test_the_seed_decides_the_text(gpt):
    widget = widgets.sampler(*gpt, prompt="ab")
    first = generated(widget, length=20, seed=3)
    other = generated(widget, seed=4)
    assert generated(widget, seed=3) == first != other
    assert generated(widget, cache=False) == first
    module = SimpleNamespace(model=gpt[0], device="cpu")
    assert first == write_on(module, gpt[1], "ab", 20, seed=3, temperature=0.8)[2:]
    assert set(widget.speeds) == {True, False} and "without" in widget.speed.value


def test_stop_stops_and_a_double_click_starts_one_run(gpt):
    widget = widgets.sampler(*gpt, prompt="ab")
    widget.length.value = 10_000

    def running():  # other threads of the process come and go
        return [thread for thread in threading.enumerate() if thread.name == "sampler"]

    widget.generate.click()
    widget.generate.click()
    assert running() == [widget.thread] and widget.generate.icon == BUSY
    while not widget.written:
        pass
    widget.stop.click()
    widget.thread.join(10)
    assert not widget.thread.is_alive() and 0 < len(widget.written) < 10_000
    assert widget.generate.icon == READY
    assert running() == []


def test_stop_is_heard_inside_a_forward_pass(gpt):
    widget, blocks, reached = widgets.sampler(*gpt, prompt="ab"), gpt[0].blocks, []
    hooks = [blocks[0].register_forward_hook(lambda *_: widget.stopped.set()),
             blocks[1].register_forward_hook(lambda *_: reached.append(1))]  # fmt: skip
    assert generated(widget, length=5) == "" and not reached and widget.message.value == ""
    for hook in hooks:
        hook.remove()
    assert generated(widget) and not blocks[0]._forward_pre_hooks


def test_after_stop_at_most_one_more_block_runs(gpt):
    widget, ends = widgets.sampler(*gpt, prompt="ab"), []
    hooks = [block.register_forward_hook(lambda *_: time.sleep(0.01)) for block in gpt[0].blocks]
    hooks += [block.register_forward_hook(lambda *_: ends.append(widget.stopped.is_set())) for block in gpt[0].blocks]
    try:
        for use_cache in (True, False):
            widget.length.value, widget.cache.value = 10_000, use_cache
            widget.generate.click()
            while len(widget.written) < 3:
                pass
            widget.stop.click()
            widget.thread.join(60)
            assert not widget.thread.is_alive() and ends.count(True) <= 1 and len(ends) >= 6
            ends.clear()
    finally:
        for hook in hooks:
            hook.remove()


def test_stop_is_not_heard_in_other_threads(gpt):
    """Another cell may use the model while the sampler does."""
    widget, other = widgets.sampler(*gpt, prompt="ab"), []

    def use(*_):
        if threading.current_thread() is widget.thread and not other:
            widget.stopped.set()
            thread = threading.Thread(target=lambda: other.append(gpt[0](torch.tensor([[1, 2]])).shape))
            thread.start()
            thread.join(60)

    hook = gpt[0].blocks[0].register_forward_hook(use)
    generated(widget)
    hook.remove()
    assert [shape[1] for shape in other] == [2]


@pytest.mark.parametrize("end", ["close", "again", "among others"])
def test_no_thread_is_left_behind(gpt, end):
    widget = widgets.sampler(*gpt, prompt="ab")
    widget.length.value = 10_000
    if end == "among others":  # a cell with two samplers, of which the first is busy when the cell is run again
        widgets.sampler(*gpt)
    widget.generate.click()
    if end == "close":
        widget.close()
    else:
        widgets.sampler(*gpt)
    assert not widget.thread.is_alive() and len(widget.written) < 10_000


class Shell:
    """As much of IPython's shell as a widget uses."""

    def __init__(self, cell, run, colab=False):
        metadata = {"colab": {"cell_id": cell}} if colab else {"cellId": cell}
        self.get_parent = lambda: {"metadata": metadata, "header": {"msg_id": run}}


@pytest.mark.parametrize("colab", [False, True])
def test_a_model_is_freed_when_its_cell_is_run_again_and_nothing_else_holds_it(gpt, monkeypatch, colab):
    def run(cell, number, model):
        monkeypatch.setattr("utils.lessons.widgets.base.get_ipython", lambda: Shell(cell, number, colab))
        return widgets.sampler(model, gpt[1], prompt="ab")

    mine, theirs = copy.deepcopy(gpt[0]), copy.deepcopy(gpt[0])
    first, second, other = run("a", 1, mine), run("a", 1, theirs), run("b", 2, theirs)
    gone = weakref.ref(mine)
    for number in (3, 4):  # the user runs the cell twice more
        run("a", number, gpt[0])
    assert generated(first, length=2) and generated(second, length=2)  # another cell may show them: they still work
    del mine
    gc.collect()
    assert gone() is None
    generated(first)
    assert "run the cell of this widget again" in first.message.value and first.generate.icon == READY
    theirs = weakref.ref(theirs)
    gc.collect()
    assert theirs() is not None and generated(other, length=2)  # the widget of the other cell keeps its model
    other.close()
    gc.collect()
    assert theirs() is None
    first = run("c", 5, copy.deepcopy(gpt[0]))  # nothing else holds this model, but the cell was not run again
    run("c", 5, gpt[0])
    gc.collect()
    assert generated(first, length=2)


def test_after_a_failed_start_the_sampler_can_be_used(gpt, monkeypatch):
    widget = widgets.sampler(*gpt, prompt="ab")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _: 1 / 0)
        widget.generate.click()
    assert "ZeroDivisionError" in widget.message.value and widget.generate.icon == READY
    widget.generate.observe(lambda change: change.new == BUSY and 1 / 0, "icon")
    widget.generate.click()
    widget.generate.unobserve_all("icon")
    assert "ZeroDivisionError" in widget.message.value and widget.generate.icon == READY
    assert generated(widget, length=2) and widget.message.value == ""
    widget.close()


def test_an_error_is_shown_and_the_widget_stays_usable(gpt, monkeypatch):
    widget = widgets.sampler(*gpt, prompt="")
    generated(widget, length=5)
    assert "must hold at least one token" in widget.message.value and widget.generate.icon == READY
    with monkeypatch.context() as patch:
        patch.setattr(widget.module.model, "stream", lambda *_, **__: 1 / 0)
        generated(widget, prompt="ab")
    assert "ZeroDivisionError" in widget.message.value
    assert generated(widget) and widget.message.value == ""


def test_html_is_shown_as_text(gpt, vit, monkeypatch):
    """In a prompt, a token, a caption and an error."""
    widget = widgets.sampler(*gpt)
    generated(widget, prompt="<script>alert(1)</script>", length=5, top_k=10**6)
    assert "<script>" not in widget.text.value and "&lt;script&gt;" in widget.text.value
    assert "<i>" not in candidates_table(Written("<i>", 0.5, [("<i>", 0.5, 0.5)], 0)) + tinted("<i>", 0.5)
    monkeypatch.setattr("utils.lessons.widgets.gpt.write_tokens", lambda *_, **__: iter([getattr(None, "<i>")]))
    generated(widget)
    assert "&lt;i&gt;" in widget.message.value and "<i>" not in widget.message.value
    figure = figure_html(vit[1].images.test[0][0], None, '"<i>&')
    assert figure.count("&quot;&lt;i&gt;&amp;") == 2  # in the caption and in the alternative text


def test_the_position_chooses_the_candidates(gpt):
    widget = widgets.sampler(*gpt, prompt="ab")
    generated(widget, length=12)
    assert widget.position.max == 11
    first = widget.candidates.value
    widget.position.value = 7
    assert widget.candidates.value.endswith(candidates_table(widget.written[7])) and widget.candidates.value != first
    assert widget.text.value.count("outline") == 1
    rows = widget.candidates.value.split("<tr>")[2:]
    assert [i for i, row in enumerate(rows) if "\u2192" in row] == [widget.written[7].taken]


def test_a_long_text_is_sent_whole_only_once(gpt, monkeypatch):
    monkeypatch.setattr("utils.lessons.widgets.gpt.REFRESH", 0)  # an update for every token
    widget, sent = widgets.sampler(*gpt, prompt="ab"), []
    widget.text.observe(lambda change: sent.append(change.new), "value")
    generated(widget, length=700)
    tokens = [text.count("title=") for text in sent]
    assert tokens[:3] == [0, 1, 2] and ">ab</span>" in sent[0] and max(tokens[:-1]) == GROWING
    assert tokens[-1] == 700 and ">ab</span>" in sent[-1] and len(sent) == 702
    widget.position.value = 500
    assert len(sent) == 702  # only the neighbours of the chosen token and its candidates are sent
    shown = widget.candidates.value
    assert shown.count("title=") == 2 * NEIGHBOURS + 1 and shown.count("outline") == 1 and len(shown) < 10_000
    generated(widget, length=100)
    before = widget.text.value
    widget.position.value = 50
    assert widget.text.value != before


def test_the_sign_of_a_line_end_is_tinted(gpt, monkeypatch):
    end = Written("\n", 0.5, [("\n", 0.5, 0.5)], 0)
    monkeypatch.setattr("utils.lessons.widgets.gpt.write_tokens", lambda *_, **__: iter([end, end]))
    widget = widgets.sampler(*gpt, prompt="ab")
    generated(widget)
    assert widget.text.value.count("\u23ce") == 2 and "\n" in widget.text.value
    assert widget.candidates.value.count("\u23ce") == 3 and "\n" not in widget.candidates.value


def test_the_speed_is_the_models(gpt, monkeypatch):
    """By a clock that each block advances by 1 second and each update of the page by 100."""
    clock, show = [0.0], Sampler.show
    monkeypatch.setattr("utils.lessons.widgets.gpt.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(Sampler, "show", lambda *a: (show(*a), clock.__setitem__(0, clock[0] + 100)))
    hooks = [block.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + 1)) for block in gpt[0].blocks]
    widget = widgets.sampler(*gpt, prompt="ab")
    generated(widget, length=9)
    assert widget.speed.value == ""  # too few tokens for a measurement
    generated(widget, length=12)
    assert widget.speed.value == "0.5 tokens/s with the cache (over 12 tokens)"
    for hook in hooks:
        hook.remove()


def test_with_top_p_of_1_nothing_is_sorted(gpt, monkeypatch):
    asked = []

    def write_nothing(*_, top_p, **__):
        asked.append(top_p)
        return iter(())

    monkeypatch.setattr("utils.lessons.widgets.gpt.write_tokens", write_nothing)
    widget = widgets.sampler(*gpt)
    generated(widget)
    generated(widget, top_p=0.5)
    assert asked == [None, 0.5]


def test_two_threads_do_not_update_the_page_at_once(gpt, monkeypatch):
    widget = widgets.sampler(*gpt, prompt="ab")
    generated(widget, length=12)
    thread = threading.Thread(target=widget.show, args=(12,))
    with widget.drawing:
        widget.show(12)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    thread.join(60)
    assert not thread.is_alive()
    monkeypatch.setattr("utils.lessons.widgets.gpt.candidates_table", lambda _: 1 / 0)
    widget.position.value = 3
    assert "ZeroDivisionError" in widget.message.value


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
    assert sizes[1] - sizes[0] < 50_000  # keeping the texts of 500 runs would take more


# ------------------------------------------------------------------------------------------------ the other two
def candidates(widget):
    """The buttons of every blank that is shown."""
    rows = [row for row in widget.blanks.children if row.layout.display != "none"]
    return [[line.children[0] for line in row.children[1:]] for row in rows]


def test_fill_mask(bert, at_once):
    widget = widgets.fill_mask(*bert, sentence="a ___ b ___")
    found = fill_blanks(widget.module, bert[1], "a ___ b ___", k=6)
    shown = [[button.description for button in row] for row in candidates(widget)]
    assert shown == [[token for token, _ in row] for row in found]
    assert "blank 2 attends to" in widget.attention.value
    before = widget.attention.value
    widget.head.value = 1
    assert widget.attention.value != before
    button = candidates(widget)[1][2]
    token = button.description
    button.click()
    assert widget.sentence.value == f"a ___ b{'' if token.startswith('##') else ' '}{token.removeprefix('##')}"
    candidates(widget)[0][0].click()
    assert "___" not in widget.sentence.value and "No blank is left" in widget.message.value and not candidates(widget)
    widget.sentence.value = "___ " * 100
    assert "at most max_len=48" in widget.message.value and not candidates(widget) and widget.attention.value == ""
    widget.sentence.value = "___ " * 12
    assert len(candidates(widget)) == 10 and "first 10 of 12 blanks" in widget.message.value
    widget.sentence.value = "<b>[MASK]"
    assert widget.message.value == "" and "<b>" not in widget.attention.value and len(candidates(widget)) == 1


def test_a_double_click_fills_one_blank(bert, monkeypatch):
    monkeypatch.setattr("utils.lessons.widgets.bert.PAUSE", 3600)  # so the second click comes too soon
    widget = widgets.fill_mask(*bert, sentence="a ___ [MASK] c ___")
    (first, *_), _, (last, *_) = candidates(widget)
    widget.offered -= 3600  # as if an hour had passed
    first.click()
    filled = widget.sentence.value
    first.click()
    assert widget.sentence.value == filled and filled.count("___") + filled.count("[MASK]") == 2
    widget.offered -= 3600
    last.click()  # of a row that is now hidden
    assert widget.sentence.value == filled and widget.message.value == ""
    monkeypatch.setattr("utils.lessons.widgets.bert.put_in", lambda *_: 1 / 0)
    first.click()
    assert "ZeroDivisionError" in widget.message.value


def test_no_widget_is_left_behind(gpt, bert, vit, at_once):
    before = live()
    explorer, sampler = widgets.image_explorer(*vit), widgets.sampler(*gpt)
    widget = widgets.fill_mask(*bert, "a ___ b ___")
    made = live()
    for i in range(200):
        widget.sentence.value = f"{'ab'[i % 2]} ___ {'[MASK]' * (i % 3 == 0)}"
    candidates(widget)[0][0].click()
    assert live() == made > before + 50
    for closed in (explorer, sampler, widget, widget):
        closed.close()
    assert live() == before


def test_image_explorer(vit):
    model, data = vit
    widget = widgets.image_explorer(model, data)
    pictures, labels = data.images.test
    expected = model(data.normalize(pictures[-1:])).softmax(-1)[0]
    widget.previous.click()
    assert widget.number.value == len(labels) - 1
    torch.testing.assert_close(widget.chances, expected.detach())
    assert f"true class: {data.classes[labels[-1]]}<" in widget.view.value and widget.head.disabled
    widget.hide.value = widget.hide.max
    torch.testing.assert_close(widget.chances, model(torch.zeros(1, data.channels, 8, 8)).softmax(-1)[0].detach())
    widget.hide.value, widget.layer.value, widget.head.value = 0, 1, 1
    torch.testing.assert_close(widget.chances, expected.detach())
    assert not widget.head.disabled and not any(s.continuous_update for s in (widget.number, widget.hide))


def upload(widget, content):
    """Send what the browser sends to the version of ipywidgets that is installed, 7 or 8."""
    about = {"name": "mine.png", "type": "image/png", "size": len(content), "last_modified": 0}
    if hasattr(widget.upload, "_counter"):
        number = widget.upload._counter + 1
        widget.upload.set_state({"metadata": [about], "data": [memoryview(content)], "_counter": number})
    else:
        widget.upload.set_state({"value": [about | {"content": memoryview(content)}]})


def test_upload(vit, tmp_path):
    model, data = vit
    widget = widgets.image_explorer(model, data)
    Image.new("RGB", (20, 12), (200, 200, 200)).save(tmp_path / "mine.png")
    content = (tmp_path / "mine.png").read_bytes()
    grey = torch.full((1, data.channels, 8, 8), 200, dtype=torch.uint8)
    expected = model(data.normalize(grey)).softmax(-1)[0].detach()

    for _ in range(2):  # the same file again
        upload(widget, content)
        torch.testing.assert_close(widget.chances, expected)
        assert "your picture: mine.png<" in widget.view.value
        widget.next.click()
        assert "true class" in widget.view.value
    upload(widget, b"no picture")
    assert "upload='mine.png': must be a readable picture" in html.unescape(widget.message.value)
    widget.next.click()
    assert "true class" in widget.view.value and widget.message.value == ""
    widget.open_picture(str(tmp_path / "mine.png"))
    torch.testing.assert_close(widget.chances, expected)
    widget.open_picture(tmp_path / "<other>.png")
    assert "must be a readable picture" in widget.message.value and "<other>" not in widget.message.value


def test_a_picture_of_ones_own_can_be_inverted_and_a_hint_says_when(tmp_path):
    """Digits are light on dark; a photograph of a sheet of paper is dark on light."""
    images = load_images("mnist-5k")
    model = EncoderTransformer.vit(Config(**SIZES), 28, 7, 10, channels=1)
    widget = widgets.image_explorer(model, ImageData(images))
    digit = images.test[0][0]
    for name, pixels in (("paper", 255 - digit), ("digit", digit)):
        Image.fromarray(pixels[0].numpy()).save(tmp_path / f"{name}.png")
    widget.open_picture(tmp_path / "paper.png")
    assert "your picture is light and that of the training pictures is dark" in widget.message.value
    before = widget.chances
    widget.invert.value = True
    assert widget.message.value == "" and not torch.equal(before, widget.chances)
    inverted = widget.chances
    widget.invert.value = False
    widget.open_picture(tmp_path / "digit.png")
    assert widget.message.value == ""
    torch.testing.assert_close(widget.chances, inverted)


def test_a_model_with_classes_of_its_own(vit):
    official = EncoderTransformer.vit(Config(**SIZES), 8, 2, 1000, channels=int(vit[1].channels))
    official.head.classifier.bias.data[281] = 50
    widget = widgets.image_explorer(official, vit[1])
    assert widget.message.value == "" and ">class 281<" in widget.view.value and "true class" not in widget.view.value


def test_the_device_is_where_the_model_is_now(bert):
    model = copy.deepcopy(bert[0])
    widget = widgets.fill_mask(model, bert[1])
    assert widget.module.device.type == "cpu"
    model.to("meta")
    assert widget.module.device.type == "meta"


def test_errors_are_shown_in_the_other_two(bert, vit, monkeypatch):
    for widget, again in ((widgets.fill_mask(*bert), "fill"), (widgets.image_explorer(*vit), "next")):
        with monkeypatch.context() as patch:
            patch.setattr(widget.module.model, "forward", lambda *_, **__: getattr(None, "<i>"))
            getattr(widget, again).click()
        assert "AttributeError" in widget.message.value and "<i>" not in widget.message.value
        getattr(widget, again).click()
        assert widget.message.value == ""


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("make", ["sampler", "fill_mask", "image_explorer"])
def test_a_wrong_call_names_the_argument_and_breaks_no_later_one(gpt, bert, vit, make):
    """Given a tuple, as load_pretrained returns it, a model of another kind, or no tokeniser or data."""
    right = {"sampler": gpt, "fill_mask": bert, "image_explorer": vit}[make]
    classifier = EncoderTransformer.bert(Config(**SIZES), bert[1].get_vocab_size(), n_classes=2)
    wrong = {"sampler": bert[0], "fill_mask": classifier, "image_explorer": gpt[0]}[make]
    before, make = live(), getattr(widgets, make)
    needed = r"must be a model of transformer.py; load_pretrained gives \(model, tokenizer\)"
    for model, second, message in (
        (right, right[1], f"model=.*tuple.*: {needed}"),
        (wrong, right[1], "model=.*Transformer.*: must be a "),
        (right[0], None, "(tokenizer|images)=.*NoneType.*: must be an? "),
    ):
        with pytest.raises(ValueError, match=message):
            make(model, second)
    with pytest.raises(ValueError, match=r"tokenizer: must hold the token \[MASK\]"):
        widgets.fill_mask(bert[0], gpt[1])
    gc.collect()
    assert live() == before and all(widget.comm is not None for widget in Playground._open)
    make(*right).close()


def test_a_stack_that_is_not_installed_is_missing(tmp_path):
    """It raises Missing, by which tests/browser skips its tests."""
    with (
        pytest.raises(browser.Missing, match="no jupyterlab for python-of-colab"),
        browser.jupyter("colab", tmp_path, "x.ipynb", "python-of-colab"),
    ):
        pass
