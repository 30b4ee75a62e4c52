"""--compile: training steps by torch.compile, everything else by the model as it is."""

import math
from functools import partial

import pytest
import tiny
import torch
from conftest import pictures, tiny_bert, tiny_gpt, tiny_vit, words
from whole_runs import assert_same_run, rows, run

from utils.training import command

# "eager" calls PyTorch's operations one by one, as the model itself does, so nothing may differ, not even the last bit.
EAGER = partial(torch.compile, backend="eager")
KINDS = {"gpt": (tiny_gpt, words(3, 9)), "bert": (tiny_bert, words(3, 9)), "vit": (tiny_vit, pictures(3))}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(tiny.text(4000), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_pass_is_translated_whole(kind):
    build, inputs = KINDS[kind]
    model = build()
    assert torch.equal(EAGER(model, fullgraph=True)(inputs), model(inputs))


@pytest.mark.usefixtures("tiny_presets")
@pytest.mark.parametrize("model", ["gpt", "bert"])
def test_a_run_equals_one_that_is_not_compiled(model, data, tmp_path, monkeypatch):
    assert run(model, data, tmp_path / "plain") == 0
    translated = []
    monkeypatch.setattr(torch, "compile", lambda forward: translated.append(forward) or EAGER(forward))
    assert run(model, data, tmp_path / "compiled", "small", "--compile") == 0
    assert len(translated) == 1
    assert_same_run(tmp_path / "compiled", tmp_path / "plain")


@pytest.mark.usefixtures("tiny_presets")
def test_only_training_steps_are_compiled(data, tmp_path, monkeypatch):
    modes = []
    monkeypatch.setattr(torch, "compile", lambda forward: lambda *a, **k: modes.append(torch.is_grad_enabled()) or forward(*a, **k))
    assert run("gpt", data, tmp_path / "out", "small", "--compile", "--max-steps", "3") == 0
    assert modes == [True] * 3


@pytest.mark.usefixtures("tiny_presets")
def test_by_the_real_compiler(data, tmp_path):
    assert run("gpt", data, tmp_path / "plain", "small", "--max-steps", "4") == 0
    assert run("gpt", data, tmp_path / "compiled", "small", "--max-steps", "4", "--compile") == 0
    losses = [[float(row["val_loss"]) for row in rows(tmp_path / name) if row.get("val_loss")] for name in ("plain", "compiled")]
    assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(*losses, strict=True))


@pytest.mark.usefixtures("tiny_presets")
def test_without_a_compiler(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "COMPILERS", ("no-such-compiler",))
    assert run("gpt", data, tmp_path / "out", "small", "--compile") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "compile=True" in line and "no-such-compiler" in line
    assert not (tmp_path / "out").exists()
