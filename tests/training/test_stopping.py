"""A run that is stopped, killed or breaks off goes on where it was, and says only what is true."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lightning as L
import pytest
import tiny
from conftest import environment, program
from whole_runs import MODELS, Break, assert_same_run, data_module, interrupted, rows, run, same, saved

from utils.files import ROOT
from utils.training import command
from utils.training.presets import PRESETS

pytestmark = pytest.mark.usefixtures("tiny_presets")


@pytest.mark.parametrize("when", ["in an epoch", "before a validation", "at the end of an epoch"])
@pytest.mark.parametrize("preset", ["small", "muon", "epochs"])
@pytest.mark.parametrize("model", MODELS)
def test_resumed_is_uninterrupted_to_the_bit(whole, data, tmp_path, monkeypatch, model, preset, when):
    epoch = len(data_module(model, data[model]).train_dataloader())
    step = {"in an epoch": 2, "before a validation": 5, "at the end of an epoch": epoch}[when]
    assert 2 < epoch < 12
    assert interrupted(monkeypatch, Break(step), model, data[model], tmp_path, preset) == 128 + signal.SIGINT
    assert saved(tmp_path)["global_step"] == step
    assert not (tmp_path / "summary.json").exists()
    assert run(model, data[model], tmp_path, preset, "--resume") == 0
    assert_same_run(tmp_path, whole(model, preset))


def test_a_signal_after_the_last_step_is_not_lost(whole, data, tmp_path, capsys):
    class AtTheEnd(L.Callback):
        def on_train_epoch_end(self, trainer, *_):
            if trainer.global_step == 12:
                signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        assert interrupted(patch, AtTheEnd(), "gpt", data["gpt"], tmp_path) == 128 + signal.SIGTERM
    assert "Stopped at step 12." in capsys.readouterr().err and not (tmp_path / "summary.json").exists()
    assert run("gpt", data["gpt"], tmp_path, "small", "--resume") == 0
    assert same(saved(tmp_path)["state_dict"], saved(whole("gpt"))["state_dict"])
    validations = [[row for row in rows(out) if row["val_loss_epoch"]] for out in (tmp_path, whole("gpt"))]
    assert validations[0] == validations[1]


def test_nothing_is_said_to_be_saved_when_it_is_not(data, tmp_path, capsys):
    class BeforeTheFirst(L.Callback):
        def on_fit_start(self, *_):
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        assert interrupted(patch, BeforeTheFirst(), "gpt", data["gpt"], tmp_path) == 128 + signal.SIGINT
    assert "saved" not in capsys.readouterr().err and not (tmp_path / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("preset, step", [("small", 8), ("epochs", 10)])
def test_resumed_after_a_crash(whole, data, tmp_path, monkeypatch, preset, step):
    with pytest.raises(RuntimeError, match="crash"):
        interrupted(monkeypatch, Break(step, crash=True), "gpt", data["gpt"], tmp_path, preset)
    assert 0 < saved(tmp_path)["global_step"] < step - 1  # what the last validation saved
    assert run("gpt", data["gpt"], tmp_path, preset, "--resume") == 0
    assert_same_run(tmp_path, whole("gpt", preset))


@pytest.mark.parametrize("preset, more", [("small", ()), ("epochs", ()), ("small", ("--max-epochs", "2"))])
def test_resuming_a_finished_run_trains_no_further(data, tmp_path, preset, more):
    assert run("gpt", data["gpt"], tmp_path, preset, *more) == 0
    before, history = saved(tmp_path), [row for row in rows(tmp_path) if row["val_loss_epoch"]]
    assert run("gpt", data["gpt"], tmp_path, preset, *more, "--resume") == 0
    assert same(saved(tmp_path)["state_dict"], before["state_dict"])
    assert [row for row in rows(tmp_path) if row["val_loss_epoch"]] == history


def test_the_end_is_validated_and_saved_wherever_it_falls(whole):
    assert saved(whole("gpt"))["global_step"] == 12  # validations come every 5 steps
    assert [row["step"] for row in rows(whole("gpt")) if row["val_loss_epoch"]] == ["4", "9", "11"]


def begun(script: str, arguments: list[str], out: Path, **options) -> subprocess.Popen:
    """A process that is about to take its first step."""
    process = subprocess.Popen(
        [sys.executable, script, *arguments], cwd=ROOT, env=environment(), text=True,
        **{"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} | options,
    )  # fmt: skip
    while not (out / "samples.txt").exists() and process.poll() is None:
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_a_real_process(tmp_path, monkeypatch, number):
    (tmp_path / "words.txt").write_text(tiny.text(2000), encoding="utf-8")
    arguments = ["gpt", "--data", str(tmp_path / "words.txt"), "--tokenizer", "char", "--max-steps", "12", "--out"]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    process = begun("transformer.py", [*arguments, str(stopped)], stopped)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert "--resume" in errors and "Traceback" not in errors
    assert 0 < saved(stopped)["global_step"] < 12
    monkeypatch.setattr(command, "PRESETS", PRESETS)
    monkeypatch.setattr(command, "FOR_DATA", "auto")
    assert command.command([*arguments, str(stopped), "--resume"]) == 0
    assert command.command([*arguments, str(whole)]) == 0
    assert_same_run(stopped, whole)


def test_an_output_that_nobody_reads_stops_the_run(tmp_path):
    (tmp_path / "words.txt").write_text(tiny.text(), encoding="utf-8")
    arguments = ["gpt", "--data", str(tmp_path / "words.txt"), "--max-steps", "100000", "--out", str(tmp_path / "out")]
    process = begun("tests/tiny.py", arguments, tmp_path / "out", stdout=subprocess.PIPE)
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    (step,) = re.findall(r"Stopped at step (\d+)\. The run is saved", errors)
    assert saved(tmp_path / "out")["global_step"] == int(step) > 0 and "Traceback" not in errors


@pytest.mark.parametrize("number, everyone", [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, True), (signal.SIGTERM, False)])
def test_two_processes_stop_at_the_same_step(tmp_path, number, everyone):
    (tmp_path / "words.txt").write_text(tiny.text(2000), encoding="utf-8")
    out = tmp_path / "out"
    arguments = ["gpt", "--data", str(tmp_path / "words.txt"), "--max-steps", "100000", "--out", str(out)]
    arguments += ["--preset", "small", "--accelerator", "cpu", "--devices", "2", "--strategy", "ddp"]
    process = begun("tests/tiny.py", arguments, out, start_new_session=True)
    time.sleep(0.5)
    (os.killpg if everyone else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number, errors
    (step,) = re.findall(r"Stopped at step (\d+)\. The run is saved", errors)
    assert saved(out)["global_step"] == int(step) and "Traceback" not in errors
    with pytest.raises(ProcessLookupError):  # after a moment, nobody is left
        for _ in range(1000):
            os.killpg(process.pid, 0)
            time.sleep(0.01)


# ------------------------------------------------------------------------------------------------ checkpoints
def test_the_run_goes_on_from_the_newest_whole_checkpoint(whole, data, tmp_path, monkeypatch, capsys):
    assert interrupted(monkeypatch, Break(8), "gpt", data["gpt"], tmp_path) == 128 + signal.SIGINT
    last = tmp_path / "checkpoints" / "last.ckpt"
    for damage in (lambda: last.write_bytes(last.read_bytes()[:1000]), last.unlink):
        out = tmp_path.with_name(f"{tmp_path.name}-{damage.__name__}")
        damage()
        shutil.copytree(tmp_path, out)
        capsys.readouterr()
        assert run("gpt", data["gpt"], out, "small", "--resume") == 0
        assert "goes on from best.ckpt, step 5" in capsys.readouterr().out
        assert_same_run(out, whole("gpt"))


def test_a_checkpoint_is_replaced_only_by_a_whole_one(data, tmp_path, monkeypatch):
    """The folder for temporary files is never used; what a killed process left behind is removed."""
    assert run("gpt", data["gpt"], tmp_path / "out") == 0
    before = (tmp_path / "out" / "checkpoints" / "last.ckpt").read_bytes()

    def die(*_):
        raise KeyboardInterrupt

    left = tmp_path / "out" / "checkpoints" / ".last.ckpt.0.part"
    left.write_bytes(b"half")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", die)
        patch.setattr(tempfile, "mkstemp", die)
        assert run("gpt", data["gpt"], tmp_path / "out", "small", "--max-steps", "14", "--resume") == 128 + signal.SIGINT
    assert (tmp_path / "out" / "checkpoints" / "last.ckpt").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_two_runs_into_one_folder(data, tmp_path, capsys):
    assert run("gpt", data["gpt"], tmp_path) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code = "import sys, filelock, time; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / ".lock")], stdout=subprocess.PIPE)
    holder.stdout.readline()
    for more in ((), ("--resume",)):
        capsys.readouterr()
        assert run("gpt", data["gpt"], tmp_path, "small", *more) == 2
        assert "must be a folder that no other run is using now" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    holder.kill()
    holder.wait()
    assert run("gpt", data["gpt"], tmp_path) == 0  # the lock ended with its process


@pytest.mark.parametrize("damage", ["cut", "cut at a step's end", "gone"])
def test_the_history_is_in_the_checkpoint(whole, data, tmp_path, monkeypatch, damage):
    assert interrupted(monkeypatch, Break(7), "gpt", data["gpt"], tmp_path) == 128 + signal.SIGINT
    table = tmp_path / "metrics.csv"
    if damage == "cut":
        table.write_bytes(table.read_bytes()[:-7])
    elif damage == "cut at a step's end":  # a number may be cut so that it is one still
        table.write_text(table.read_text(encoding="utf-8").rstrip() + "\n0,9,,,0.1", encoding="utf-8")
    else:  # as after a kill at the start of a resumed run, when the logger has begun the file anew
        table.unlink()
    assert run("gpt", data["gpt"], tmp_path, "small", "--resume") == 0
    assert_same_run(tmp_path, whole("gpt"))


# ------------------------------------------------------------------------------------------------ another run
@pytest.mark.parametrize(
    "model, change, named",
    [
        ("gpt", "edited", "data: not the same; tokenizer: not the same"),
        ("gpt", "--refit", "data: not the same; tokenizer: not the same; refit: True (before: not given)"),
        ("gpt", "--seed 1", "seed: 1 (before: not given)"),
        ("gpt", "--set dropout=0.2", "changes: ['dropout=0.2'] (before: not given)"),
        ("gpt", "--preset muon", "preset: muon (before: small)"),
        ("vit", "edited", "data: not the same"),
        ("vit", "renamed", "classes: not the same"),
    ],
)
def test_resume_with_other_data_or_settings(data, tmp_path, capsys, model, change, named):
    mine, out = tmp_path / "mine", tmp_path / "out"
    (shutil.copytree if data[model].is_dir() else shutil.copy)(data[model], mine)
    assert run(model, mine, out, "small", "--max-steps", "2") == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    if change == "edited" and model == "gpt":
        mine.write_text(mine.read_text(encoding="utf-8")[:-300], encoding="utf-8")
    elif change == "edited":
        (mine / "light" / "0.png").unlink()
    elif change == "renamed":
        (mine / "light").rename(mine / "white")
    more = change.split() if change.startswith("--") else []
    capsys.readouterr()
    assert run(model, mine, out, "small", "--max-steps", "4", "--resume", *more) == 2
    assert capsys.readouterr().err.strip().endswith(f"began with, but now {named}")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    if change == "edited" and model == "gpt":  # the length may change, and the file may have another name
        shutil.copy(data[model], tmp_path / "moved.txt")
        assert run(model, tmp_path / "moved.txt", out, "small", "--max-steps", "4", "--resume") == 0


def test_the_stress_command_finds_nothing():
    """A short part of it: the whole is for maintainers."""
    done = program("-m", "utils.maintenance.stress", "--kills", "3")
    assert done.returncode == 0, done.stderr
    counts = dict(part.rsplit(" ", 1) for part in done.stdout.splitlines()[-1].split(", "))
    assert int(counts["equal"]) >= 1 and counts.keys() == {"equal", "kills"}
