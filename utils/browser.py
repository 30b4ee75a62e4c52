"""Jupyter in a headless Chromium, for tests/browser and for the README's pictures of the widgets.

    python -m utils.browser    # or make screenshots: of the models that `make demo` leaves in runs/, into assets/

Needs requirements-browser.txt, and a Chromium of the system's own (Debian: apt install chromium).
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

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 60_000  # how long, in ms, a step may take on a busy machine
FLAGS = [
    "--no-sandbox", "--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
WIDGETS = [
    f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from utils.images import ImageData, load_images
from utils.pretrained import load_pretrained
from utils.widgets import fill_mask, image_explorer, sampler
gpt, bert, vit = (load_pretrained({str(ROOT / "runs")!r} + "/" + name) for name in ("gpt", "bert", "vit"))
data = ImageData(load_images("mnist-5k"))
""",
    "sampler(*gpt, 'Return the ')",
    "fill_mask(*bert, 'a ___ of strings .')",
    "image_explorer(vit[0], data)",
]


class Missing(Exception):
    """Something that the browser needs is not on this machine; the message says what."""


@contextmanager
def chromium() -> Iterator:
    """Playwright's browser, closed at the end."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise Missing("no playwright (see requirements-browser.txt)") from error
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        raise Missing("no Chromium on this machine (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def jupyter(stack: str, folder: Path, notebook: str, python: str = sys.executable, dark: bool = False) -> Iterator[str]:
    """A server of JupyterLab, or where `stack` is "voila" of Voila, on folder/notebook; its page's address.

    It reads no settings but its own, which are kept in folder/.jupyter.
    """
    module = "voila" if stack == "voila" else "jupyterlab"
    found = shutil.which(python)
    if found is None or subprocess.run([found, "-c", f"import {module}"], capture_output=True).returncode:
        raise Missing(f"{stack}: no {module} for {Path(python).name} (see requirements-browser.txt)")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    home = folder / ".jupyter"
    settings = {"notebook-extension/tracker": {"windowingMode": "none"}}  # cells out of sight are on the page, too
    if dark:
        settings["apputils-extension/themes"] = {"theme": "JupyterLab Dark"}
    for name, setting in settings.items():
        file = home / f"settings/@jupyterlab/{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(setting))
    options = [f"--port={port}", "--no-browser", "--ServerApp.token=", "--ServerApp.password=", "--allow-root"]
    arguments = [notebook, f"--port={port}", "--no-browser"] if stack == "voila" else options
    own = {f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "RUNTIME", "DATA")}
    own |= {"IPYTHONDIR": str(home / "ipython"), "JUPYTERLAB_SETTINGS_DIR": str(home / "settings")}
    with (home / "log").open("w") as log:
        command, environment = [python, "-m", module, *arguments], os.environ | own | {"JUPYTER_PREFER_ENV_PATH": "1"}
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, server, home / "log")
        yield address if stack == "voila" else f"{address}/lab/tree/{notebook}"
    finally:
        server.terminate()
        server.wait(30)


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
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
    """The page, with all cells of its notebook run, or running."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(SECONDS)
    page.goto(address, timeout=2 * SECONDS)
    if stack != "voila":
        run_all(page)
    return page


def run_all(page) -> None:
    """Run all cells by JupyterLab's menu."""
    page.locator(".jp-CodeCell").first.click()
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.locator(".lm-Menu-itemLabel:text-is('Run All Cells')").first.click()


def write_notebook(path: Path, cells: list[str]) -> None:
    """Code cells as a notebook."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    made = [nbformat.v4.new_code_cell(code.strip()) for code in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata=kernel), path)


# ------------------------------------------------------------------------------------------- what stands on the page
def button(page, name: str):
    return page.locator(".jupyter-widgets.jupyter-button", has_text=name)


def control(page, label: str, kind: str):
    """An input by the label that stands beside it."""
    return page.locator(f'.jupyter-widgets:has(> label:text-is("{label}")) {kind}').first


def slide(page, label: str, value: float) -> None:
    readout = control(page, label, ".widget-readout")
    readout.click()
    page.keyboard.press("Control+A")
    page.keyboard.type(str(value))
    page.keyboard.press("Enter")


def number(page, label: str, value: int) -> None:
    box = control(page, label, "input")
    box.fill(str(value))
    box.press("Enter")


def until(condition, what: str) -> None:
    for _ in range(SECONDS // 100):
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError(f"never came: {what}")


def take_pictures(assets: Path) -> None:
    """One picture of each widget, at work on the models in runs/."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        write_notebook(Path(folder, "widgets.ipynb"), WIDGETS)
        with jupyter("voila", Path(folder), "widgets.ipynb") as address:
            page = visit(browser, "voila", address, width=900)
            button(page, "Previous").wait_for(timeout=3 * SECONDS)
            number(page, "Length", 60)
            button(page, "Generate").click()
            until(lambda: page.get_by_text("with the cache").count() > 0, "the speed")
            slide(page, "Position", 12)
            slide(page, "Picture", 320)
            slide(page, "Hide patches", 3)
            page.wait_for_timeout(1000)
            for name, within in {"sampler": "Prompt", "fill-mask": "Sentence", "image-explorer": "Picture"}.items():
                widget = page.locator(f'.widget-vbox:has(label:text-is("{within}"))').first
                widget.screenshot(path=str(assets / f"{name}.png"))


if __name__ == "__main__":
    take_pictures(ROOT / "assets")
    print("assets: sampler.png, fill-mask.png, image-explorer.png")
