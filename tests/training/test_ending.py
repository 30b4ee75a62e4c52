"""What a run says of itself at its end, and that one whose loss is lost is stopped."""

import json
import math
import os
import re
from types import SimpleNamespace

import lightning as L
import pytest
import tiny
import torch
from conftest import program

from utils.files import ROOT
from utils.training import command
from utils.training.callbacks import StopWhenLost
from utils.training.report import ending, how_it_learned, starts

pytestmark = pytest.mark.usefixtures("tiny_presets")


def series(validation, training):
    """Losses as in metrics.csv: a validation after every 100 steps, a training loss after every 10."""
    return {
        "val_loss_epoch": ([100.0 * i + 99 for i in range(len(validation))], validation),
        "train_loss_step": ([10.0 * i + 9 for i in range(len(training))], training),
    }


@pytest.mark.parametrize(
    "validation, training, words",
    [
        ([4.0, 3.5, 4.9, 6.0], [6.0, 3.0, 1.0, 0.1], "Memorised: after step 200 .* 3.50 to 6.00, .* 0.10"),
        ([4.0, 3.5, 4.9, 7.5], [6.0, 3.0, 1.0, 0.1], r"Memorised: .* 7.50 \(guessing: 6.93\)"),
        ([6.95, 6.94, 6.93], [6.95, 6.93], "Learned next to nothing"),
        ([4.0, 3.0, 2.5], [6.0, 3.0, 2.5], "Learned: .* 2.50.* try --max-steps 600"),
        ([4.0, 3.0, 2.5], [6.0, 3.0, 2.0], "^Learned: .* 2.50, the training loss to 2.00.$"),
        ([4.0, 3.0, 3.1], [6.0, 3.0, 2.0], "^Learned: .* 3.00, the training loss to 2.00.$"),  # 3 % is no memorising
    ],
)
def test_how_it_learned(validation, training, words):
    assert re.search(words, how_it_learned(series(validation, training), 300, math.log(1024)))


@pytest.mark.parametrize(
    "value, better, said",
    [
        (2.0, "lower", ["5-gram 1.900"]),
        (1.8, "lower", []),
        (1.5, "higher", ["5-gram 1.900", "lzma 1.850"]),
        (1.9, "higher", ["5-gram 1.900"]),
    ],
)
def test_a_trivial_method_that_is_better_is_named(value, better, said):
    baselines = {"5-gram": 1.9, "lzma": 1.85 if better == "higher" else 2.2}
    figure = {"name": "figure", "value": value, "better": better}
    summary = {"data": {"name": "x"}, "steps": 300, "figure": figure, "baselines": baselines, "checkpoint": "lowest"}
    lines = ending(series([4.0, 2.5], [3.0, 2.0]), summary, 6.9)
    assert [line for line in lines if line.startswith("Not better")] == [
        f"Not better than a trivial method: figure {value:.3f}, but {', '.join(said)}."
    ][: len(said) and 1]
    summary["data"]["name"] = "x, refit"  # its validation part was trained on: it shows no memorising
    assert not any(line.startswith(("Learned", "Memorised")) for line in ending(series([4.0], [3.0]), summary, 6.9))


def steps(callback, losses, n_classes=100):
    trainer = SimpleNamespace(global_step=0, accumulate_grad_batches=1)
    module = SimpleNamespace(device=torch.device("cpu"), n_outputs=n_classes)
    for trainer.global_step, loss in enumerate(losses, start=1):  # noqa: B020
        callback.on_train_batch_end(trainer, module, {"loss": torch.tensor(loss)})


def test_a_loss_that_is_no_number_or_that_of_guessing_again_stops_the_run():
    guessing = math.log(100)
    steps(StopWhenLost(), [guessing + 1] * 50 + [guessing] * 50)  # it only begins there
    steps(StopWhenLost(), [guessing] * 30 + [1.0] * 30 + [0.9 * guessing] * 30)
    with pytest.raises(ValueError, match="training loss=nan: must be finite; the run ends at step 3. Try a lower --lr"):
        steps(StopWhenLost(), [4.0, 4.0, math.nan])
    with pytest.raises(ValueError, match="training loss=.*: must be below 4.61, the loss of guessing, as it was 1.00 before"):
        steps(StopWhenLost(), [guessing] * 30 + [1.0] * 30 + [guessing + 0.5] * 30)


def test_a_learning_rate_far_too_high_ends_in_one_line(tmp_path, capsys):
    text = tmp_path / "my.txt"
    text.write_text(tiny.text(), encoding="utf-8")
    assert command.command(["gpt", "--data", str(text), "--lr", "1e30", "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "training loss" in line and "--lr" in line
    assert not (tmp_path / "out" / "summary.json").exists()


def test_the_last_sound_checkpoint_of_a_lost_run_is_tested(tmp_path, monkeypatch, capsys):
    class Explode(L.Callback):
        def on_train_batch_start(self, trainer, module, *_):
            if trainer.global_step == 8:
                module.model.blocks[0].mlp.up.weight.data.fill_(math.inf)

    usual = command.watchers
    monkeypatch.setattr(command, "watchers", lambda *given: [*usual(*given), Explode()])
    (tmp_path / "my.txt").write_text(tiny.text(), encoding="utf-8")
    out = tmp_path / "out"
    assert command.command(["gpt", "--data", str(tmp_path / "my.txt"), "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert "training loss=nan: must be finite; the run ends at step 9" in said.err.splitlines()[-1]
    assert "All figures are of best.ckpt, of step 5" in said.out
    text = (out / "summary.json").read_text(encoding="utf-8")
    assert "NaN" not in text and "Lost: training loss=nan" in json.loads(text)["ending"][0]
    for path in (out / "checkpoints").iterdir():
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(weight.isfinite().all() for weight in weights.values())


def test_weights_that_the_last_step_destroys_are_not_saved(tmp_path, monkeypatch, capsys):
    class Explode(L.Callback):
        def on_validation_start(self, trainer, module):
            module.model.blocks[0].mlp.up.weight.data.fill_(math.nan)

    usual = command.watchers
    monkeypatch.setattr(command, "watchers", lambda *given: [*usual(*given), Explode()])
    (tmp_path / "my.txt").write_text(tiny.text(), encoding="utf-8")
    assert command.command(["gpt", "--data", str(tmp_path / "my.txt"), "--out", str(tmp_path / "out")]) == 2
    assert "validation loss=nan: must be finite; the run ends at step 5" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.ckpt"))


def test_the_end_of_a_run_is_in_its_summary_and_on_the_screen(tmp_path, capsys):
    text = tmp_path / "my.txt"
    text.write_text(tiny.text(), encoding="utf-8")
    assert command.command(["gpt", "--data", str(text), "--out", str(tmp_path / "out")]) == 0
    said = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["ending"]
    assert said and capsys.readouterr().out.splitlines()[-len(said) :] == said


def finished(out, value, name="x", **settings):
    out.mkdir(parents=True)
    summary = {
        "model": "GPT",
        "settings": settings,
        "figure": {"name": "bits per byte", "value": value, "better": "lower"},
        "data": {"name": name, "train": {"characters": 9}, "validation": {}, "test": {"bytes": 2, "tokens": value}},
        "seconds": 1.0,
    }
    (out / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return summary


def test_a_picture_that_fails_costs_a_line(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no ink")

    monkeypatch.setattr("utils.plots.loss_curve", fail)
    (tmp_path / "my.txt").write_text(tiny.text(), encoding="utf-8")
    assert command.command(["gpt", "--data", str(tmp_path / "my.txt"), "--out", str(tmp_path / "out")]) == 0
    assert "loss.png could not be drawn: RuntimeError: no ink" in capsys.readouterr().err
    assert (tmp_path / "out" / "summary.json").is_file() and not (tmp_path / "out" / "loss.png").exists()


@pytest.mark.parametrize("name", ["a$_$b", "$\\frac$", "100 %"])
def test_names_are_no_formulas(tmp_path, name, capsys):
    folder = tiny.pictures(tmp_path / "pictures")
    (folder / "dark").rename(folder / name)
    folder = folder.rename(tmp_path / name)
    assert command.command(["vit", "--data", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert "could not be drawn" not in capsys.readouterr().err
    assert all((tmp_path / "out" / picture).is_file() for picture in ("loss.png", "attention.png", "summary.json"))


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_an_output_without_all_characters(tmp_path, encoding):
    (tmp_path / "\u6f22\u5b57.txt").write_text(tiny.text() + "\u6f22\u5b57\n" * 50, encoding="utf-8")
    arguments = ["gpt", "--data", tmp_path / "\u6f22\u5b57.txt", "--preset", "small", "--out", tmp_path / "out"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONIOENCODING", encoding)
        done = program(ROOT / "tests" / "tiny.py", *arguments)
    assert done.returncode == 0 and "UnicodeEncodeError" not in done.stderr, done.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["data"]["name"] == "\u6f22\u5b57.txt"


def test_a_name_that_is_no_text(tmp_path):
    """Linux allows any bytes in a name."""
    path = os.fsencode(tmp_path) + b"/m\xe4rchen.txt"
    with open(path, "w", encoding="utf-8") as file:
        file.write(tiny.text())
    assert command.command(["gpt", "--data", os.fsdecode(path), "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["data"]["name"] == "m\ufffdrchen.txt"


def test_runs_on_the_same_data_stand_side_by_side(tmp_path):
    finished(tmp_path / "a", 2.5)
    finished(tmp_path / "b", 2.0, pretrained="runs/gpt")
    finished(tmp_path / "c", 1.0, name="another text")
    here = finished(tmp_path / "d", 2.2, pretrained="gpt2")
    found = starts(here, tmp_path / "d")
    assert [(start["run"], start["start"], start["value"]) for start in found] == [
        ("b", "runs/gpt", 2.0), ("d", "gpt2", 2.2), ("a", "nothing", 2.5)
    ]  # fmt: skip
