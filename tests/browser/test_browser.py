"""The widgets, and the notebooks whole, in a real browser: `python -m pytest tests/browser`.

Each stack is a server with a kernel of its own: JupyterLab 4 and Voila with ipywidgets 8 (requirements-browser.txt), and
Colab's, JupyterLab 3 with ipywidgets 7 (requirements-colab.txt, in the environment whose Python is $COLAB_PYTHON).
Where a stack or Chromium is missing its tests are skipped, or fail where $CI is set. $SCREENSHOTS keeps the pictures.
"""

import json
import os
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import nbformat
import pytest

from utils import browser
from utils.browser import ROOT, SECONDS, button, control, number, slide, until

CELLS = [
    f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import tempfile, tiny, torch
from pathlib import Path
from transformer import Config, DecoderTransformer, EncoderTransformer
from utils.images import ImageData, load_images
from utils.text import bpe_tokenizer, wordpiece_tokenizer
from utils.widgets import fill_mask, image_explorer, sampler
torch.manual_seed(0)
torch.set_num_threads(1)
sizes = dict(n_layers=4, n_heads=4, d_model=128, d_ff=512, max_len=256, init_std=0.2)
bpe, wordpiece = bpe_tokenizer(tiny.text(), 300), wordpiece_tokenizer(tiny.text(), 200)
data = ImageData(load_images(tiny.pictures(Path(tempfile.mkdtemp()), mode="RGB", size=16), size=16))
gpt = DecoderTransformer(Config(causal=True, **sizes), bpe.get_vocab_size())
bert = EncoderTransformer.bert(Config(**sizes), wordpiece.get_vocab_size())
vit = EncoderTransformer.vit(Config(**sizes), 16, 4, data.n_classes)
""",
    "sampler(gpt, bpe)",
    "fill_mask(bert, wordpiece, 'a ___ b ___')",
    "image_explorer(vit, data)",
]


@pytest.fixture(scope="module")
def needs():
    """Enter what the browser needs; skip, or fail where $CI is set, for want of it."""
    with ExitStack() as stack:

        def enter(context):
            try:
                return stack.enter_context(context)
            except browser.Missing as missing:
                (pytest.fail if os.environ.get("CI") else pytest.skip)(str(missing))

        yield enter


@pytest.fixture(scope="module")
def chromium(needs):
    return needs(browser.chromium())


@pytest.fixture(scope="module", params=["lab", "voila", "colab"])
def page(request, needs, chromium, tmp_path_factory):
    """The notebook above, open and run, with one widget below each cell."""
    stack, folder = request.param, tmp_path_factory.mktemp(request.param)
    python = os.environ.get("COLAB_PYTHON", "python-of-colab") if stack == "colab" else sys.executable
    browser.write_notebook(folder / "widgets.ipynb", CELLS)
    address = needs(browser.jupyter(stack, folder, "widgets.ipynb", python))
    page = browser.visit(chromium, stack, address, width=620 if stack == "voila" else 1200)
    page.stack = stack
    try:
        button(page, "Generate").wait_for(timeout=2 * SECONDS)
    except Exception:
        keep(page, "failed")
        raise
    button(page, "Previous").wait_for()
    yield page
    keep(page, "end")
    page.close()


def keep(page, name):
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=str(Path(folder, f"{page.stack}-{name}.png")))


def text(page):
    return page.evaluate("""() => [...document.querySelectorAll('span')]
        .filter(s => s.style.opacity === '0.65').map(s => s.parentElement.innerText)[0] ?? ''""")


def generate(page):
    """Press Generate and wait for the end; the text."""
    button(page, "Generate").click()
    page.wait_for_timeout(300)
    until(lambda: button(page, "Generate").is_enabled(), "the end of the text")
    page.wait_for_timeout(300)
    return text(page)


def test_text_grows_and_stops(page):
    control(page, "Prompt", "textarea").fill("ab <script>alert(1)</script>")
    number(page, "Length", 10_000)
    button(page, "Generate").click()
    until(lambda: len(text(page)) > 60, "a text")
    first = len(text(page))
    until(lambda: len(text(page)) > first, "a longer text")
    keep(page, "growing")
    button(page, "Stop").click()
    until(lambda: button(page, "Generate").is_enabled(), "the end after Stop")
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


def test_the_position_shows_the_candidates(page):
    table = page.locator("table:has-text('after temperature')")
    before = table.inner_html()
    slide(page, "Position", 5)
    until(lambda: table.inner_html() != before, "other candidates")
    keep(page, "sampler")


def test_fill_a_blank(page):
    box = control(page, "Sentence", "input")
    assert box.input_value() == "a ___ b ___"
    page.locator(".candidate").first.click()
    until(lambda: box.input_value().count("___") == 1, "a filled blank")
    until(lambda: page.get_by_text("Blank 2: click").count() == 0, "one blank fewer")
    keep(page, "fill_mask")
    box.fill("x ___ <b>")
    box.press("Enter")
    page.get_by_text("blank 1 looks at").wait_for()


def test_step_and_upload(page, tmp_path):
    from PIL import Image

    figure = page.locator("figure img").first
    before = figure.get_attribute("src")
    button(page, "Next").click()
    until(lambda: figure.get_attribute("src") != before, "the next picture")
    keep(page, "image_explorer")
    Image.new("RGB", (40, 30), (200, 40, 40)).save(tmp_path / "mine.png")
    with page.expect_file_chooser() as chooser:
        button(page, "Upload").click()
    chooser.value.set_files(tmp_path / "mine.png")
    page.get_by_text("your own").wait_for()


def test_by_keyboard(page):
    control(page, "Prompt", "textarea").click()
    page.keyboard.press("Control+A")
    page.keyboard.type("ba")
    number(page, "Length", 10_000)
    tab_to(page, "Generate")
    page.keyboard.press("Space")
    until(lambda: text(page).startswith("ba") and len(text(page)) > 40, "a text")
    tab_to(page, "Stop")
    page.keyboard.press("Space")
    until(lambda: button(page, "Generate").is_enabled(), "the end after Stop")


def tab_to(page, name):
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText").strip() == name:
            return
    pytest.fail(f"the Tab key never comes to {name}")


@pytest.mark.parametrize("name", ["bert", "gpt", "vit"])
def test_notebook(name, needs, chromium, tmp_path, monkeypatch):
    """Opened from notebooks/ in JupyterLab, in its dark theme, and run by its menu; then its widget is used."""
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
        except nbformat.reader.NotJSONError:  # it is being written
            return False
        return all(c.execution_count for c in saved.cells if c.cell_type == "code") or errors()

    def errors():
        return [out for cell in saved.cells for out in cell.get("outputs", []) if out.output_type == "error"]

    saved = nbformat.v4.new_notebook()
    until(done, "the end of the notebook")
    assert not errors()
    state = json.load(urllib.request.urlopen(address.split("/lab")[0] + "/api/kernels", timeout=30))
    assert [kernel["execution_state"] for kernel in state] == ["idle"]
    if name == "gpt":
        number(page, "Length", 30)
        assert len(generate(page)) > 40
    elif name == "bert":
        page.locator(".candidate").first.click()
        page.get_by_text("No blank is left").wait_for()
    else:
        button(page, "Next").click()
        until(lambda: control(page, "Picture", ".widget-readout").inner_text() == "1", "the next picture")
    if "SCREENSHOTS" in os.environ:
        page.set_viewport_size({"width": 1200, "height": 16_000})
        page.wait_for_timeout(1500)
        keep(page, "whole")
    page.close()
