"""The widgets and the whole notebooks in a real browser: `python -m pytest tests/browser`.

The widgets are tested on three stacks, each a server with its own kernel: JupyterLab 4 and Voila with ipywidgets 8
(requirements-browser.txt), and Colab's JupyterLab 3 with ipywidgets 7 (requirements-colab.txt, in the environment whose
Python is $COLAB_PYTHON; without that variable, this stack is skipped). If something else is missing, the tests that need
it are skipped or, if $CI is set, fail. $SCREENSHOTS names a folder in which pictures of the pages are kept.
"""

import json
import os
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import nbformat
import pytest

from utils.files import ROOT
from utils.maintenance import browser
from utils.maintenance.browser import TIMEOUT, button, control, number, slide, until

# Used as a token, as a class and as a file name. It must be shown as text and never run as HTML.
HIT = "<img src=x onerror=window.hit=1>"
CELLS = [
    f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import tempfile, threading, tiny, torch, weakref
from pathlib import Path
from transformer import Config, DecoderTransformer, EncoderTransformer
from utils.data.images import ImageData, load_images
from utils.data.tokenisers import bpe_tokenizer, wordpiece_tokenizer
from utils.lessons.switchboard import Switchboard
from utils.lessons.widgets import fill_mask, image_explorer, sampler, switchboard
torch.manual_seed(0)
torch.set_num_threads(1)
sizes = dict(n_layers=4, n_heads=4, d_model=128, d_ff=512, max_len=256, init_std=0.2)
bpe, wordpiece = bpe_tokenizer(tiny.text(), 300), wordpiece_tokenizer(tiny.text(), 200)
for tokenizer in (bpe, wordpiece):
    tokenizer.add_tokens([{HIT!r}])
data = ImageData(load_images(tiny.pictures(Path(tempfile.mkdtemp()), mode="RGB", size=16), size=16))
data.classes[:] = [{HIT!r}] * 3
gpt = DecoderTransformer(Config(causal=True, **sizes), bpe.get_vocab_size())
made = [*globals().get("made", []), weakref.ref(gpt)]
bert = EncoderTransformer.bert(Config(**sizes), wordpiece.get_vocab_size())
bert.head.decoder.bias.data[-1] = 30  # always the likeliest token
vit = EncoderTransformer.vit(Config(**sizes), 16, 4, data.n_classes)
""",
    "sampler(gpt, bpe)",
    "fill_mask(bert, wordpiece, 'a ___ b ___')",
    f"explorer = image_explorer(vit, data)\nexplorer.open_picture({HIT!r})\nexplorer",
    "switchboard(Switchboard(dict(n_layers=2, n_heads=2, d_model=32, d_ff=64, positions='rotary')))",
    """
print("models held:", sum(gpt() is not None for gpt in made), "of", len(made))
print("samplers at work:", sum(thread.name == "sampler" for thread in threading.enumerate()))
""",
]


@pytest.fixture(scope="module")
def needs():
    """Enter a context that the tests need; if something is missing, skip them or, if $CI is set, fail."""
    with ExitStack() as stack:

        def enter(context):
            try:
                return stack.enter_context(context)
            except browser.Missing as missing:
                if os.environ.get("CI"):
                    pytest.fail(str(missing))
                pytest.skip(str(missing))

        yield enter


@pytest.fixture(scope="module")
def chromium(needs):
    return needs(browser.chromium())


@pytest.fixture(scope="module", params=["lab", "voila", "colab"])
def page(request, needs, chromium, tmp_path_factory):
    """The notebook of CELLS in a browser, after its cells were run: a widget stands below each of four cells."""
    stack, folder = request.param, tmp_path_factory.mktemp(request.param)
    python = sys.executable
    if stack == "colab":
        if "COLAB_PYTHON" not in os.environ:
            pytest.skip("COLAB_PYTHON is not set")
        python = os.environ["COLAB_PYTHON"]
    browser.write_notebook(folder / "widgets.ipynb", CELLS)
    address = needs(browser.jupyter(stack, folder, "widgets.ipynb", python, dark=stack == "lab"))
    page = browser.visit(chromium, stack, address, width=600 if stack == "voila" else 1200)
    page.stack = stack
    try:
        button(page, "Generate").wait_for(timeout=2 * TIMEOUT)
    except Exception:
        keep(page, "failed")
        raise
    button(page, "Previous").wait_for()
    page.get_by_text(f"path='{HIT}': must be a readable picture").wait_for()
    yield page
    keep(page, "end")
    page.close()


def keep(page, name):
    """Take a picture of the page, if $SCREENSHOTS names a folder."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=str(Path(folder, f"{page.stack}-{name}.png")))


def text(page):
    """What the sampler shows: the prompt and the text."""
    return page.evaluate("""() => [...document.querySelectorAll('span')]
        .filter(s => s.style.opacity === '0.65').map(s => s.parentElement.innerText)[0] ?? ''""")


def ready(page):
    """Whether no text is being written."""
    return button(page, "Generate").locator(".fa-play").count() == 1


def generate(page):
    """Press Generate, wait for the end and return the text."""
    button(page, "Generate").click()
    page.wait_for_timeout(300)
    until(lambda: ready(page), "the end of the text")
    page.wait_for_timeout(300)
    return text(page)


def test_text_grows_and_stops(page):
    control(page, "Prompt", "textarea").fill("ab <script>alert(1)</script>")
    number(page, "Length", 10_000)
    button(page, "Generate").click()
    until(lambda: len(text(page)) > 60, "a text")
    first = text(page)
    until(lambda: text(page) != first, "a longer text")
    until(lambda: text(page).startswith("\u2026") and newest_in_sight(page), "the newest tokens of a long text")
    keep(page, "growing")
    button(page, "Stop").click()
    until(lambda: ready(page), "the end after Stop")
    page.wait_for_timeout(500)
    stopped = text(page)
    page.wait_for_timeout(500)
    assert text(page) == stopped and stopped.startswith("ab <script>alert(1)</script>")


def test_same_seed_same_text_and_another_temperature_another(page):
    control(page, "Prompt", "textarea").fill("ab")
    number(page, "Length", 30)
    first = generate(page)
    assert generate(page) == first and first.startswith("ab") and len(first) > 10
    slide(page, "Temperature", 1.9)
    hot = generate(page)
    assert hot != first
    slide(page, "Temperature", 0.8)
    assert generate(page) == first


def newest_in_sight(page):
    """Whether the end of the text is visible in its box."""
    return page.evaluate("""() => {
        const text = [...document.querySelectorAll('span')].find(s => s.style.opacity === '0.65').parentElement;
        const [box, last] = [text.parentElement, text.lastElementChild].map(e => e.getBoundingClientRect());
        return last.top >= box.top && last.bottom <= box.bottom + 1;
    }""")


def test_the_newest_of_600_tokens_is_in_sight(page):
    control(page, "Prompt", "textarea").fill("ab\n" * 40)  # more than the box holds
    number(page, "Length", 600)
    assert generate(page).startswith("ab") and newest_in_sight(page)


def test_the_position_shows_the_candidates(page):
    control(page, "Prompt", "textarea").fill("ab")
    number(page, "Length", 30)
    generate(page)
    table = page.locator("table:has-text('after temperature')")
    before = table.inner_html()
    slide(page, "Position", 5)
    until(lambda: table.inner_html() != before, "other candidates")
    keep(page, "sampler")
    before = table.inner_html()
    control(page, "Position", ":is(.noUi-handle, .ui-slider-handle)").focus()
    page.keyboard.press("ArrowRight")
    until(lambda: control(page, "Position", ".widget-readout").inner_text() == "6", "the next position")
    until(lambda: table.inner_html() != before, "its candidates")


def test_fill_a_blank(page):
    box, words = control(page, "Sentence", "input"), page.locator(".candidate:visible")
    assert box.input_value() == "a ___ b ___" and words.count() == 12
    words.nth(1).dblclick()
    until(lambda: box.input_value().count("___") == 1, "a filled blank")
    until(lambda: words.count() == 6, "one blank fewer")
    page.wait_for_timeout(1000)
    assert box.input_value().count("___") == 1  # the second click was meant for the first blank
    keep(page, "fill_mask")
    box.fill("___ " * 300)
    box.press("Enter")
    page.get_by_text("at most max_len=256").wait_for()


def test_fill_blanks_by_keyboard(page):
    box, words = control(page, "Sentence", "input"), page.locator(".candidate:visible")
    box.fill("x ___ <b> ___")
    box.press("Enter")
    page.get_by_text("blank 2 attends to").wait_for()
    words.nth(2).focus()
    for left in (1, 0):
        page.wait_for_timeout(1000)  # longer than PAUSE: clicks count again
        assert page.evaluate("document.activeElement.classList.contains('candidate')")
        page.keyboard.press("Enter")
        until(lambda left=left: box.input_value().count("___") == left, "a filled blank")
    page.get_by_text("No blank is left").wait_for()


def test_step_and_upload(page, tmp_path):
    from PIL import Image

    figure = page.locator("figure img").first
    before = figure.get_attribute("src")
    button(page, "Next").click()
    until(lambda: figure.get_attribute("src") != before, "the next picture")
    keep(page, "image_explorer")
    Image.new("RGB", (40, 30), (200, 40, 40)).save(tmp_path / "mine.png")
    (tmp_path / "words.png").write_text("words")
    for name, expected in {"mine.png": "your picture: mine.png", "words.png": "upload='words.png': must be a readable picture"}.items():
        for _ in range(2):  # the second time, the same file again
            with page.expect_file_chooser() as chooser:
                button(page, "Upload").click()
            chooser.value.set_files(tmp_path / name)
            page.get_by_text(expected).wait_for()
            button(page, "Next").focus()
            page.keyboard.press("Enter")
            page.get_by_text(expected).wait_for(state="hidden")


def test_generate_by_keyboard(page):
    control(page, "Prompt", "textarea").click()
    page.keyboard.press("Control+A")
    page.keyboard.type("ba")
    number(page, "Length", 10_000)
    tab_to(page, "Generate")
    page.keyboard.press("Space")
    until(lambda: text(page).startswith("ba") and len(text(page)) > 40, "a text")
    assert focused(page) == "Generate"
    page.keyboard.press("Tab")
    assert focused(page) == "Stop"
    page.keyboard.press("Space")
    until(lambda: ready(page), "the end after Stop")


def focused(page):
    """What is written on the button that has the focus."""
    return page.evaluate("document.activeElement.innerText").strip()


def tab_to(page, name):
    """Press Tab until the button with this text has the focus."""
    for _ in range(20):
        page.keyboard.press("Tab")
        if focused(page) == name:
            return
    pytest.fail(f"the Tab key does not reach {name}")


def test_each_switch_shows_another_model(page):
    panel = page.locator('.widget-vbox:has(label:text-is("may look at"))').first
    pictures = []

    def new_picture():
        source = panel.locator("img").first.get_attribute("src")
        if source in pictures:
            return False
        pictures.append(source)
        return True

    until(new_picture, "the first model")
    for label in ("past", "patches", "class"):
        panel.locator(f'.widget-toggle-button:text-is("{label}")').click()
        until(new_picture, f"the model of the switch {label}")
    slide(page, "Example", 3)
    until(new_picture, "another example")
    page.wait_for_timeout(300)
    assert panel.locator("img").first.evaluate("e => e.naturalWidth > 500")
    keep(page, "switchboard")


def test_html_is_never_run(page):
    """In a prompt, a sentence, tokens of the model, classes and messages."""
    control(page, "Prompt", "textarea").fill(HIT)
    number(page, "Length", 30)
    assert generate(page).startswith(HIT)
    control(page, "Sentence", "input").fill(f"a ___ {HIT}")
    control(page, "Sentence", "input").press("Enter")
    page.locator(".candidate:visible", has_text=HIT).wait_for()
    page.get_by_text("blank 1 attends to").wait_for()
    page.locator("figcaption", has_text=f"true class: {HIT}").wait_for()
    assert page.locator("img[src=x]").count() == 0 and page.evaluate("window.hit") is None


def test_everything_can_be_read(page):
    """The contrast is sufficient, every input has a label, and nothing lies outside the window. JupyterLab is tested in
    its dark theme, and Voila in a window 600 pixels wide.
    """
    control(page, "Prompt", "textarea").fill("ab")
    number(page, "Length", 30)
    generate(page)
    seen = page.evaluate(CONTRASTS)
    control(page, "Prompt", "textarea").fill("")
    button(page, "Generate").click()
    page.get_by_text("must hold at least one token").wait_for()
    seen += page.evaluate(CONTRASTS)
    for part in ("ab", "candidate", "must hold at least one token", "true class", "attends to", "click a token"):
        assert any(part in content for _, content in seen), part
    assert min(seen)[0] >= 4.5, min(seen)
    assert page.evaluate(WITHOUT_A_LABEL) == []
    assert page.evaluate(OUT_OF_THE_WINDOW) == []


def test_cells_are_run_again(page):
    """While the sampler is busy: its thread ends, and the model that the first cell has replaced is freed."""
    if page.stack == "voila":
        pytest.skip("Voila runs each cell once")
    control(page, "Prompt", "textarea").fill("ab")
    number(page, "Length", 10_000)
    button(page, "Generate").click()
    until(lambda: len(text(page)) > 60, "a text")
    browser.run_all(page)
    page.get_by_text("models held: 1 of 2").wait_for()
    assert page.get_by_text("samplers at work: 0").count() == 1
    control(page, "Prompt", "textarea").fill("ba")
    number(page, "Length", 30)
    assert generate(page).startswith("ba")


# For each element of a widget's HTML that contains text: the contrast between the text and its background (WCAG 2,
# 1.4.3 and the definition of relative luminance).
CONTRASTS = """() => {
    const colour = text => { const n = text.match(/[0-9.]+/g).map(Number); return n.length > 3 ? n : [...n, 1]; };
    const over = (top, under) => under.map((value, i) => top[i] * top[3] + value * (1 - top[3]));
    const light = rgb => rgb.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const words = e => [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join('');
    const contrast = element => {
        const all = [];
        for (let e = element; e; e = e.parentElement) all.unshift(getComputedStyle(e));
        const behind = all.reduce((under, s) => over(colour(s.backgroundColor), under), [255, 255, 255]);
        const ink = colour(getComputedStyle(element).color);
        ink[3] *= all.reduce((product, s) => product * s.opacity, 1);
        const [low, high] = [light(over(ink, behind)), light(behind)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    };
    return [...document.querySelectorAll('.widget-html-content, .widget-html-content *')]
        .filter(e => words(e) && e.offsetParent).map(e => [contrast(e), words(e)]);
}"""
WITHOUT_A_LABEL = """() => [
    ...[...document.querySelectorAll('.jupyter-widgets :is(input, textarea, select)')].filter(e => e.offsetParent)
        .filter(e => ![...e.labels].some(label => label.innerText.trim())),
    ...[...document.querySelectorAll('.jupyter-button')].filter(e => e.offsetParent && !e.innerText.trim()),
].map(e => e.outerHTML)"""
OUT_OF_THE_WINDOW = """() => [...document.querySelectorAll('.jupyter-widgets, .jupyter-widgets *')]
    .filter(e => e.offsetParent && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map(e => e.outerHTML)"""


@pytest.mark.parametrize("name", ["bert", "gpt", "vit"])
def test_notebook(name, needs, chromium, tmp_path, monkeypatch):
    """Opened in JupyterLab's dark theme and run from its menu, every cell runs without an error; its widget works."""
    monkeypatch.setenv("FAST_RUN", "1")
    for shared in ("transformer.py", "utils"):
        (tmp_path / shared).symlink_to(ROOT / shared)
    (tmp_path / "notebooks").mkdir()
    copy = tmp_path / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(ROOT / "notebooks" / copy.name, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, copy)
    address = needs(browser.jupyter("lab", tmp_path, f"notebooks/{copy.name}", dark=True))
    page = browser.visit(chromium, "lab", address)
    page.stack = f"notebook-{name}"

    def done():
        page.keyboard.press("Control+S")
        try:
            saved.cells = nbformat.read(copy, as_version=4).cells
        except nbformat.reader.NotJSONError:  # the file is being written
            return False
        return all(c.execution_count for c in saved.cells if c.cell_type == "code") or errors()

    def errors():
        return [out for cell in saved.cells for out in cell.get("outputs", []) if out.output_type == "error"]

    saved = nbformat.v4.new_notebook()
    until(done, "the end of the notebook", timeout=10 * TIMEOUT, every=2000)
    assert not errors()
    state = json.load(urllib.request.urlopen(address.split("/lab")[0] + "/api/kernels", timeout=30))
    assert [kernel["execution_state"] for kernel in state] == ["idle"]
    if name == "gpt":
        number(page, "Length", 30)
        assert len(generate(page)) > 40
    elif name == "bert":
        box = control(page, "Sentence", "input")
        for left in (1, 0):
            page.wait_for_timeout(1000)  # longer than PAUSE: clicks count
            page.locator(".candidate:visible").first.click()
            until(lambda left=left: box.input_value().count("___") == left, "a filled blank")
        page.get_by_text("No blank is left").wait_for()
    else:
        button(page, "Next").click()
        until(lambda: control(page, "Picture", ".widget-readout").inner_text() == "1", "the next picture")
    if "SCREENSHOTS" in os.environ:
        page.set_viewport_size({"width": 1200, "height": 16_000})
        page.wait_for_timeout(1500)
        keep(page, "whole")
    page.close()
