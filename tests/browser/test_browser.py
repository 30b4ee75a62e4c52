"""The widgets in a real browser: `python -m pytest tests/browser`.

Each stack is a server with a kernel of its own: JupyterLab 4 and Voila with ipywidgets 8 (requirements-browser.txt), and
Colab's, JupyterLab 3 with ipywidgets 7 (requirements-colab.txt, in the environment whose Python is $COLAB_PYTHON).
Where a stack or Chromium is missing its tests are skipped, or fail where $CI is set. $SCREENSHOTS keeps the pictures.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60_000  # how long, in ms, a step may take on a busy machine
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
FLAGS = [
    "--no-sandbox", "--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def without(reason):
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture(scope="module")
def chromium():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        without("no playwright (see requirements-browser.txt)")
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        without("no Chromium on this machine (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=FLAGS)
        yield browser
        browser.close()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module", params=["lab", "voila", "colab"])
def page(request, chromium, tmp_path_factory):
    """The notebook above, open and run, with one widget below each cell."""
    stack, folder = request.param, tmp_path_factory.mktemp(request.param)
    python = os.environ.get("COLAB_PYTHON") if stack == "colab" else sys.executable
    module = "voila" if stack == "voila" else "jupyterlab"
    if not python or subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode:
        without(f"{stack}: no {module} for it (see requirements-browser.txt and requirements-colab.txt)")
    cells = [nbformat.v4.new_code_cell(code.strip()) for code in CELLS]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "widgets.ipynb")
    port = free_port()
    options = [f"--port={port}", "--no-browser", "--ServerApp.token=", "--ServerApp.password=", "--allow-root"]
    arguments = ["widgets.ipynb", f"--port={port}", "--no-browser"] if stack == "voila" else options
    own = {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("CONFIG", "RUNTIME", "DATA")}
    environment = os.environ | own | {"IPYTHONDIR": str(folder / "ipython"), "JUPYTER_PREFER_ENV_PATH": "1"}
    log = (folder / "log").open("w")
    server = subprocess.Popen([python, "-m", module, *arguments], cwd=folder, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, server, folder / "log")
        page = chromium.new_page(viewport={"width": 620 if stack == "voila" else 1200, "height": 1700})
        page.set_default_timeout(SECONDS)
        page.goto(address if stack == "voila" else f"{address}/lab/tree/widgets.ipynb", timeout=2 * SECONDS)
        if stack != "voila":
            page.locator(".jp-CodeCell").first.click()
            page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
            page.locator(".lm-Menu-itemLabel:text-is('Run All Cells')").first.click()
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
    finally:
        server.terminate()
        server.wait(30)


def wait_for(address, server, log):
    for _ in range(240):
        try:
            urllib.request.urlopen(address, timeout=30).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)
    pytest.fail(f"no answer from {address}: {log.read_text()[-2000:]}")


def keep(page, name):
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=str(Path(folder, f"{page.stack}-{name}.png")))


def button(page, name):
    return page.locator(".jupyter-widgets.jupyter-button", has_text=name)


def control(page, label, kind):
    """An input by the label that stands beside it."""
    return page.locator(f'.jupyter-widgets:has(> label:text-is("{label}")) {kind}').first


def slide(page, label, value):
    readout = control(page, label, ".widget-readout")
    readout.click()
    page.keyboard.press("Control+A")
    page.keyboard.type(str(value))
    page.keyboard.press("Enter")


def number(page, label, value):
    box = control(page, label, "input")
    box.fill(str(value))
    box.press("Enter")


def text(page):
    return page.evaluate("""() => [...document.querySelectorAll('span')]
        .filter(s => s.style.opacity === '0.65').map(s => s.parentElement.innerText)[0] ?? ''""")


def until(condition, what):
    for _ in range(SECONDS // 100):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail(f"never came: {what}")


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
