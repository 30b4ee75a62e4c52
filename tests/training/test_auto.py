"""The preset `auto`: sizes that follow the data, the settings of --set, and the end of a run that memorises."""

import csv
import json
import math
import random
import re

import pytest
import tiny
import torch
from conftest import QUIET
from PIL import Image

from transformer import GPT, Config, Recipe, train
from utils.data.images import ImageSet
from utils.data.labelled import Table
from utils.data.text import Corpus, GPTData, cut
from utils.training import auto, command
from utils.training.callbacks import CoolDown
from utils.training.report import END
from utils.training.scoring import bootstrap, unknown_nats


def corpus(length: int, letters: str = "abcdefgh \n") -> Corpus:
    text = (letters * (length // len(letters) + 1))[:length]
    return Corpus("mine", *cut(text), "a text file of your own")


def images(n: int, channels: int, side: int) -> ImageSet:
    part = torch.zeros(n, channels, side, side, dtype=torch.uint8), torch.arange(n) % 3
    return ImageSet("mine", ["a", "b", "c"], part, part, part, "a folder of your own")


# ------------------------------------------------------------------------------------------------ the rule
def test_a_longer_text_is_read_less_often_and_never_for_longer_than_minutes():
    presets = [auto.for_text("gpt", corpus(n), gpu=False) for n in (20_000, 100_000, 400_000, 2_000_000, 20_000_000)]
    passes = [preset["passes"] for preset in presets]
    assert passes == sorted(passes, reverse=True) and passes[0] > 10
    assert all(50 <= preset["trainer"]["max_steps"] <= auto.STEPS for preset in presets)
    dropout = [preset["config"].get("dropout", 0.0) for preset in presets]
    assert dropout == sorted(dropout, reverse=True) and dropout[0] > 0 and dropout[-1] == 0


def test_characters_for_few_kinds_of_them_and_bpe_for_many_or_for_a_long_text():
    def tokenizer(*arguments):
        return auto.for_text("gpt", corpus(*arguments), gpu=False)["batches"]["tokenizer"]

    many = "".join(chr(0x4E00 + i) for i in range(5000))
    assert tokenizer(50_000) == "char" and tokenizer(50_000, many) == "bpe" and tokenizer(5_000_000) == "bpe"
    assert auto.for_text("gpt", corpus(50_000), gpu=False, tokenizer="bpe")["batches"]["tokenizer"] == "bpe"


@pytest.mark.parametrize("model", ["gpt", "bert"])
@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("length", [3_000, 10_000_000])
def test_the_window_fits_into_the_validation_part(model, gpu, length):
    preset = auto.for_text(model, corpus(length), gpu)
    assert 8 <= preset["batches"]["context"] <= 0.045 * length / 2
    assert preset["config"]["d_model"] == (384 if gpu and length > 10**6 else 128)


def test_patches_divide_the_picture_and_mirrored_digits_are_none():
    for channels, side, patch_size in ((1, 8, 2), (1, 28, 7), (3, 32, 4), (3, 64, 8), (1, 64, 8)):
        preset = auto.for_pictures(images(300, channels, side))
        assert preset["model"]["patch_size"] == patch_size and side % patch_size == 0
        assert preset["batches"]["augment"].flip == (channels == 3)
    assert auto.for_pictures(images(60_000, 3, 32))["trainer"]["max_epochs"] < 20


@pytest.mark.parametrize("size, side", [((30, 28), 28), ((8, 9), 8), ((33, 40), 32), ((400, 300), 32)])
def test_small_pictures_keep_their_size(tmp_path, monkeypatch, size, side):
    (tmp_path / "a").mkdir()
    for i in range(3):
        Image.new("L", size).save(tmp_path / "a" / f"{i}.png")
    (tmp_path / "a" / "broken.png").write_text("words")
    assert auto.side_for(tmp_path) == side
    monkeypatch.setattr(auto, "FEW", 1)
    assert auto.side_for(tmp_path) == (64 if side == 32 and min(size) > 40 else side)


def test_one_line_says_what_was_chosen():
    table = Table("x", ["a", "b"], (["text"] * 500, [0] * 500), (["text"], [0]), (["text"], [0]))
    for model, source, words in (
        ("gpt", corpus(100_000), r"86 kB to train on: characters, 14.1 passes, \d+ steps of 16 x 128 tokens"),
        ("bert", corpus(100_000), r"86 kB to train on: WordPiece of 512 tokens, .* dropout 0.1"),
        ("bert", table, r"500 texts to train on: \d+ epochs in batches of 32"),
        ("vit", images(300, 3, 64), r"300 pictures of 64 x 64 to train on: patches of 8 x 8, \d+ epochs"),
    ):
        preset = auto.preset_for(model, source, gpu=False)
        line = auto.in_words(source, preset, preset["trainer"])
        assert re.match(words, line) and line.endswith("--preset.") and "\n" not in line
    preset = auto.preset_for("gpt", corpus(100_000), gpu=False)
    assert " 7 steps" in auto.in_words(corpus(100_000), preset, {"max_steps": 7})  # the user's, and no passes


# ------------------------------------------------------------------------------------------------ the command line
def test_data_of_ones_own_are_trained_by_the_rule(tmp_path, capsys):
    (tmp_path / "my.txt").write_text(tiny.text(2000), encoding="utf-8")
    arguments = ["gpt", "--data", str(tmp_path / "my.txt"), "--max-steps", "4", "--out", str(tmp_path / "out")]
    changes = ["--set", "d_model=32", "--set", "d_ff=48", "--set", "context=20", "--set", "lr=0.003"]
    assert command.command([*arguments, *changes]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["preset"] == "auto" and summary["steps"] == 4
    saved = torch.load(tmp_path / "out" / "checkpoints" / "best.ckpt", weights_only=True)["hyper_parameters"]
    assert (saved["config"].d_model, saved["config"].d_ff, saved["config"].max_len) == (32, 48, 20)
    assert saved["recipe"].lr == 0.003 and saved["recipe"].optimizer == "muon"
    low, high = summary["figure"]["interval_95"]
    assert low < summary["figure"]["value"] < high
    assert "kB to train on: characters, 4 steps of 16 x 20 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        ("--preset auto", "preset='auto': must be used with --data"),
        ("--data my.txt --set width=3", "set='width=3': must be NAME=VALUE with one of the names n_layers, "),
        ("--data my.txt --set dropout", "set='dropout': must be NAME=VALUE"),
        ("--data my.txt --set dropout=2", "dropout=2: must be at least 0 and below 1"),
        ("--data my.txt --set d_model=wide", "d_model='wide': must be a whole number"),
        ("--data my.txt --pretrained x --preset auto", "preset='auto': must be left out with --pretrained"),
    ],
)
def test_settings_that_there_are_not(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text(tiny.text(), encoding="utf-8")
    assert command.command(["gpt", *options.split(), "--out", "out"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not (tmp_path / "out").exists()


def test_ctrl_c_before_the_training_leaves_nothing(tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("utils.data.tokenisers.encode_pieces", stop)
    (tmp_path / "my.txt").write_text(tiny.text(), encoding="utf-8")
    assert command.command(["gpt", "--data", str(tmp_path / "my.txt"), "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "transformer.py: stopped\n" and not (tmp_path / "out").exists()


@pytest.mark.parametrize("n", [16, 1100])
def test_a_small_validation_part_picks_no_epoch(tmp_path, n, capsys):
    folder = tiny.pictures(tmp_path / "pictures", n)
    out = tmp_path / "out"
    settings = [word for change in ("d_model=8", "n_heads=2", "n_layers=1") for word in ("--set", change)]
    assert command.command(["vit", "--data", str(folder), "--max-epochs", "2", *settings, "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (summary["checkpoint"] == END) == (n == 16)
    assert any("too small" in line for line in summary["ending"]) == (n == 16)
    if n == 16:
        best, last = (torch.load(out / "checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("best", "last"))
        assert best["global_step"] == last["global_step"] == summary["steps"]


# ------------------------------------------------------------------------------------------------ memorising
def memorise(out, callbacks, n_steps=1500):
    """A GPT on random letters: all that it can learn is their shares, which does not take long."""
    text = "".join(random.Random(0).choices("abcdefgh", k=1500))
    data = GPTData(Corpus("x", *cut(text), ""), context=16, batch_size=8, tokenizer="char")
    config = Config(n_layers=2, n_heads=2, d_model=64, d_ff=128, max_len=16, causal=True, positions="rotary")
    torch.manual_seed(0)
    module = GPT(config, data.vocab_size, Recipe(lr=2e-2, warmup=5, final_lr=0.0))
    options = QUIET | {"max_steps": n_steps, "val_check_interval": 25, "check_val_every_n_epoch": None}
    train(module, data, out, callbacks=callbacks, **options)
    with (out / "metrics.csv").open(encoding="utf-8") as file:
        losses = [float(row["val_loss_epoch"]) for row in csv.DictReader(file) if row.get("val_loss_epoch")]
    return module.trainer, losses


def test_a_run_that_memorises_ends_early_with_a_lower_learning_rate(tmp_path):
    cool = CoolDown(share=0.1)
    trainer, losses = memorise(tmp_path, [cool])
    assert trainer.global_step == cool.last_step < 1500
    assert trainer.optimizers[0].param_groups[0]["lr"] < 1e-5  # final_lr is 0
    cut_at = cool.last_step * 5 // 6
    assert cool.lowest_at <= cut_at - 150 and min(losses) <= cool.lowest


def test_a_run_that_learns_is_left_alone(tmp_path):
    trainer, _ = memorise(tmp_path, [CoolDown()], n_steps=100)
    assert trainer.global_step == 100


def test_a_shortened_run_stays_short_when_it_is_resumed():
    cool = CoolDown()
    cool.lowest, cool.lowest_at, cool.waited, cool.last_step = 1.0, 40, 3, 90
    other = CoolDown()
    other.load_state_dict(cool.state_dict())
    loop = type("", (), {"max_steps": 500})()
    trainer = type("", (), {"fit_loop": type("", (), {"epoch_loop": loop})()})()
    other.on_train_start(trainer, None)
    assert loop.max_steps == 90


# ------------------------------------------------------------------------------------------------ the figure
def test_a_character_that_the_tokeniser_does_not_know_costs_eight_bits_a_byte():
    known = Corpus("x", "abc" * 100, "abc" * 20, "abc" * 20, "")
    strange = Corpus("x", "abc" * 100, "abc" * 20, "abc" * 20 + "é\U0001f600", "")  # 2 and 4 bytes
    for text, n_bytes in ((known, 0), (strange, 6)):
        data = GPTData(text, context=8, batch_size=2, tokenizer="char")
        assert unknown_nats(data) == pytest.approx(8 * math.log(2) * n_bytes)
    assert unknown_nats(GPTData(strange, context=8, batch_size=2, tokenizer="bpe", vocab_size=256)) == 0


def test_the_bootstrap_is_as_wide_as_the_mean_is_uncertain():
    draw = torch.Generator().manual_seed(1)
    losses = 3 + torch.randn(400, generator=draw)
    low, high = bootstrap(losses * 10, torch.full((400,), 10))
    assert low < losses.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 400**0.5, rel=0.15)
