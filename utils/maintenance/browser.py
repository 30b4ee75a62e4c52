"""Operate Jupyter in a headless Chromium: for tests/browser, and to take the README's pictures of the widgets.

    python -m utils.maintenance.browser [NAME ...]        # or: make screenshots

takes a picture of each widget, or of those that are named, with the models that `make demo` leaves in runs/, and writes
it into assets/. It needs the packages of requirements-browser.txt and a Chromium of the system (Debian: apt install
chromium).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat

from utils.files import ROOT

TIMEOUT = 60_000  # milliseconds that one step may take on a busy machine
FLAGS = [
    "--no-sandbox", "--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
IMPORTS = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from utils.data.images import ImageData, load_images
from utils.lessons.tasks.attention import FOUR
from utils.lessons.switchboard import Switchboard, train_together
from utils.lessons.widgets import attention_playground, fill_mask, image_explorer, sampler, switchboard
from utils.studies.common import BLOCKS
from utils.training.cpu import fast_on_cpu
from utils.weights.loading import load_pretrained
"""
WIDGETS = {  # file in assets/: a label of the widget, and the cell that makes it
    "attention-playground": ("Query of", "attention_playground(*FOUR)"),
    "sampler": ("Prompt", f"""
gpt, gpt_tokenizer = load_pretrained({str(ROOT / "runs" / "gpt")!r})
gpt = fast_on_cpu(gpt)
sampler(gpt, gpt_tokenizer, "Return the ")
"""),
    "fill-mask": ("Sentence", f"""
bert, bert_tokenizer = load_pretrained({str(ROOT / "runs" / "bert")!r})
fill_mask(bert, bert_tokenizer, "a ___ of strings .")
"""),
    "image-explorer": ("Picture", f"""
vit, _ = load_pretrained({str(ROOT / "runs" / "vit")!r})
image_explorer(vit, ImageData(load_images("mnist-5k")))
"""),
    "switchboard": ("may look at", """
board = Switchboard({**BLOCKS, "positions": "rotary"})
train_together(board, 240)
switchboard(board)
"""),
}  # fmt: skip


class Missing(Exception):
    """Something that the browser needs is not installed; the message says what."""


@contextmanager
def chromium() -> Iterator:
    """A browser of Playwright, closed at the end. Raises Missing without Playwright or Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise Missing("no playwright (see requirements-browser.txt)") from error
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        raise Missing("no Chromium on this machine (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def jupyter(stack: str, folder: Path, notebook: str, python: str = sys.executable, dark: bool = False) -> Iterator[str]:
    """Start a server for folder/notebook, and stop it at the end: the address of the notebook's page.

    stack: "voila" starts Voila, any other name JupyterLab. python: the Python of the environment that it is started
    from; without the server in it, Missing is raised. dark: use JupyterLab's dark theme. The server reads no settings
    of the user: its own are kept in folder/.jupyter.
    """
    module = "voila" if stack == "voila" else "jupyterlab"
    program = shutil.which(python)
    if program is None or subprocess.run([program, "-c", f"import {module}"], capture_output=True).returncode != 0:
        raise Missing(f"{stack}: no {module} for {Path(python).name} (see requirements-browser.txt)")
    port = free_port()
    command = [python, "-m", module]
    if stack == "voila":
        command += [notebook, f"--port={port}", "--no-browser"]
    else:
        command += [f"--port={port}", "--no-browser", "--ServerApp.token=", "--ServerApp.password=", "--allow-root"]
    home = folder / ".jupyter"
    write_settings(home / "settings", dark)
    environment = {
        **os.environ,
        "JUPYTER_CONFIG_DIR": str(home / "CONFIG"),
        "JUPYTER_RUNTIME_DIR": str(home / "RUNTIME"),
        "JUPYTER_DATA_DIR": str(home / "DATA"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "IPYTHONDIR": str(home / "ipython"),
    }
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, server, home / "log")
        yield address if stack == "voila" else f"{address}/lab/tree/{notebook}"
    finally:
        server.terminate()
        server.wait(30)


def free_port() -> int:
    """A port of this machine that no server uses."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def write_settings(folder: Path, dark: bool) -> None:
    """Write JupyterLab's settings."""
    settings = {"notebook-extension/tracker": {"windowingMode": "none"}}  # keep cells that are out of sight on the page
    if dark:
        settings["apputils-extension/themes"] = {"theme": "JupyterLab Dark"}
    for name, setting in settings.items():
        file = folder / f"@jupyterlab/{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(setting))


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    """Wait until the server answers. Raises a RuntimeError with its log if it ends, or after two minutes."""
    for _ in range(240):
        try:
            urllib.request.urlopen(address, timeout=30).close()
            return
        except OSError as error:
            if server.poll() is not None:
                raise RuntimeError(f"the server has ended: {log.read_text()}") from error
            time.sleep(0.5)
    raise RuntimeError(f"no answer from {address}: {log.read_text()[-2000:]}")


def visit(browser, stack: str, address: str, width: int = 1200, height: int = 1700):
    """Open the notebook's page and start its cells, without waiting for their end."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(TIMEOUT)
    page.goto(address, timeout=2 * TIMEOUT)
    if stack != "voila":
        run_all(page)
    return page


def run_all(page) -> None:
    """Run all cells from JupyterLab's menu, and return when the first one has been sent to the kernel.

    JupyterLab 3 forgets the order without a word if its kernel is not connected yet: it is given until it is heard.
    Raises a RuntimeError with what the page shows if it never is.
    """
    prompt = page.locator(".jp-CodeCell .jp-InputPrompt").first
    for _ in range(20):
        page.locator(".jp-CodeCell").first.click()
        page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
        page.locator(".lm-Menu-itemLabel:text-is('Run All Cells')").first.click()
        for _ in range(30):
            if prompt.inner_text().strip("[]: \u00a0"):  # "[*]" or its number; "[ ]" before
                return
            page.wait_for_timeout(100)
    raise RuntimeError(f"the cells were never run; the page shows: {page.locator('body').inner_text()[:2000]}")


def write_notebook(path: Path, cells: list[str]) -> None:
    """Write a notebook of code cells."""
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    code_cells = [nbformat.v4.new_code_cell(code.strip()) for code in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=code_cells, metadata=metadata), path)


# ------------------------------------------------------------------------------------------- the page
def button(page, name: str):
    """The widget button with this text."""
    return page.locator(".jupyter-widgets.jupyter-button", has_text=name)


def control(page, label: str, kind: str):
    """The element of the widget with this label that the CSS selector `kind` finds."""
    return page.locator(f'.jupyter-widgets:has(> label:text-is("{label}")) {kind}').first


def slide(page, label: str, value: float) -> None:
    """Set a slider by typing the value into its readout."""
    readout = control(page, label, ".widget-readout")
    readout.click()
    page.keyboard.press("Control+A")
    page.keyboard.type(str(value))
    page.keyboard.press("Enter")


def number(page, label: str, value: int) -> None:
    """Type a number into its field."""
    box = control(page, label, "input")
    box.fill(str(value))
    box.press("Enter")


def until(condition, what: str, timeout: int = TIMEOUT, every: int = 100) -> None:
    """Ask again and again, with a pause of `every` milliseconds, until `condition()` is true.

    Raises a TimeoutError that names `what` was expected.
    """
    for _ in range(timeout // every):
        if condition():
            return
        time.sleep(every / 1000)
    raise TimeoutError(f"expected, but never seen: {what}")


def take_pictures(assets: Path, names: list[str]) -> None:
    """Write a picture of each of these widgets, used with the models in runs/, into the folder `assets`."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        write_notebook(Path(folder, "widgets.ipynb"), [IMPORTS, *(WIDGETS[name][1] for name in names)])
        with jupyter("voila", Path(folder), "widgets.ipynb") as address:
            page = visit(browser, "voila", address, width=1100)
            for name in names:
                page.locator(f'label:text-is("{WIDGETS[name][0]}")').first.wait_for(timeout=10 * TIMEOUT)
            use(page, names)
            page.wait_for_timeout(1000)
            for name in names:
                widget = page.locator(f'.widget-vbox:has(label:text-is("{WIDGETS[name][0]}"))').first
                widget.screenshot(path=str(assets / f"{name}.png"))


def use(page, names: list[str]) -> None:
    """Do with each widget what its picture is to show."""
    if "sampler" in names:
        number(page, "Length", 60)
        button(page, "Generate").click()
        until(lambda: page.get_by_text("with the cache").count() > 0, "the speed")
        slide(page, "Position", 12)
    if "image-explorer" in names:
        slide(page, "Picture", 320)
        slide(page, "Hide patches", 3)
    if "switchboard" in names:
        for label in ("patches", "past"):
            page.locator(f'.widget-toggle-button:text-is("{label}")').first.click()
        slide(page, "Example", 200)
        page.wait_for_timeout(5000)


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(WIDGETS)
    take_pictures(ROOT / "assets", chosen)
    print(f"assets: {', '.join(f'{name}.png' for name in chosen)}")
