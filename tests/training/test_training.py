"""Whole runs of tiny models: what they leave behind, that they go on where they stopped, and on two processes."""

import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import tiny
import torch
from conftest import program
from lightning.pytorch.callbacks import timer
from lightning.pytorch.utilities.model_summary import get_human_readable_count
from matplotlib.figure import Figure
from torch.nn import functional as F
from whole_runs import data_module, rows, run, same, saved

from transformer import BERT, GPT, Config, Recipe, ViT, train, train_gpt
from utils import plots
from utils.data import baselines
from utils.data.text import BERTData, GPTData, load_corpus
from utils.files import ROOT, write_text
from utils.training import command, report
from utils.training.callbacks import DeltaW, IterLoss
from utils.training.presets import PRESETS

CLASSES = {"gpt": GPT, "bert": BERT, "vit": ViT}


pytestmark = pytest.mark.usefixtures("tiny_presets")


# ------------------------------------------------------------------------------------------------ what stays
@pytest.mark.parametrize("model, extra", [("gpt", "samples.txt"), ("bert", "predictions.txt"), ("vit", "attention.png")])
def test_out_holds_what_is_promised_and_nothing_else(whole, model, extra):
    out = whole(model)
    promised = {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.csv", "loss.png", "summary.json", extra}
    tokenizer = set() if model == "vit" else {"tokenizer.json"}
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == promised | tokenizer | {".lock"}
    for name in {"loss.png", extra} - {"samples.txt", "predictions.txt"}:
        assert (out / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("model", CLASSES)
def test_summary(whole, model):
    summary = json.loads((whole(model) / "summary.json").read_text(encoding="utf-8"))
    unit = "images" if model == "vit" else "tokens"
    keys = {"model", "preset", "parameters", "data", "metrics", "figure", "baselines", "steps", "seconds", "seed"}
    assert keys | {"peak_memory_mib", "versions", f"{unit}_per_second"} <= summary.keys()
    assert summary["model"] == CLASSES[model].__name__
    assert (summary["preset"], summary["seed"], summary["steps"]) == ("small", 0, 12)
    assert summary["parameters"] == sum(p.numel() for p in load(model, whole(model)).parameters())
    assert len(summary["data"]["sha256"]) == 64
    assert all(summary["data"][part][unit] > 0 for part in ("train", "validation", "test"))
    assert {"torch", "lightning", "python"} <= summary["versions"].keys()
    assert summary["peak_memory_mib"] > 0
    assert {"train_loss", "val_loss", "val_acc", "test_loss", "test_acc"} <= summary["metrics"].keys()


def load(model: str, out: Path) -> L.LightningModule:
    return CLASSES[model].load_from_checkpoint(out / "checkpoints" / "best.ckpt", weights_only=True).eval()


@pytest.mark.parametrize("model", CLASSES)
def test_figure_is_of_the_best_checkpoint_on_the_whole_test_part(whole, data, model):
    summary = json.loads((whole(model) / "summary.json").read_text(encoding="utf-8"))
    module, batches = load(model, whole(model)), data_module(model, data[model]).test_dataloader()
    loss = right = n = 0
    with torch.no_grad():
        for inputs, targets in batches:
            logits = module.model(inputs)
            logits, targets = logits[targets != -100], targets[targets != -100]
            loss += F.cross_entropy(logits, targets, reduction="sum").item()
            right, n = right + (logits.argmax(-1) == targets).sum().item(), n + len(targets)
    assert summary["metrics"]["test_loss"] == pytest.approx(loss / n, rel=1e-5)
    assert summary["metrics"]["test_acc"] == pytest.approx(right / n, rel=1e-5)
    if model == "vit":
        assert n == summary["data"]["test"]["images"]
        low, high = summary["figure"]["interval_95"]
        assert low < summary["figure"]["value"] < high
    if model == "gpt":  # an unseen byte costs what an average token costs
        assert n == summary["data"]["test"]["tokens"] - 1
        bits = loss / n * (n + 1) / summary["data"]["test"]["bytes"] / torch.tensor(2.0).log().item()
        assert summary["figure"]["value"] == pytest.approx(bits, rel=1e-5)


def test_baselines_are_of_the_same_part(whole, data):
    texts = load_corpus(data["gpt"])
    summary = json.loads((whole("gpt") / "summary.json").read_text(encoding="utf-8"))
    assert summary["baselines"] == baselines.text_ladder(texts.train, texts.test)
    summary = json.loads((whole("vit") / "summary.json").read_text(encoding="utf-8"))
    images = data_module("vit", data["vit"]).images
    assert summary["baselines"] == baselines.image_ladder(images.train, images.test)
    summary = json.loads((whole("bert") / "summary.json").read_text(encoding="utf-8"))
    words = data_module("bert", data["bert"])
    answers = torch.cat([targets[targets != -100] for _, targets in words.test_dataloader()])
    commonest = words.train.bincount().argmax()
    assert summary["baselines"]["unigram"] == pytest.approx((answers == commonest).float().mean().item())


@pytest.mark.parametrize("model", CLASSES)
def test_names_in_metrics(whole, model):
    named = {f"{part}_{what}_{when}" for part in ("train", "val") for what in ("loss", "acc") for when in ("step", "epoch")}
    written = set(rows(whole(model))[0])
    assert named | {"epoch", "step", "test_loss", "test_acc"} == written
    logged = set(rows(whole(model, "s17"))[0])
    assert logged - written == {"train_iter_loss", "val_iter_loss"} | ({"Δw"} if model == "bert" else set())
    assert named - logged <= {"train_loss_step", "train_acc_step"}  # s17's run is shorter than 10 steps here


@pytest.mark.parametrize("model, count", [("bert", "7.7 M"), ("vit", "43.3 M"), ("gpt", "63.5 M")])
def test_s17_has_the_size_of_the_assignment(model, count):
    preset = PRESETS[model]["s17"]
    facts = SimpleNamespace(**preset["batches"] | {"image_size": 224, "n_classes": 3, "channels": 3})
    with torch.device("meta"):
        module = command.build(model, preset, facts, Recipe())
    assert get_human_readable_count(sum(p.numel() for p in module.parameters())).strip() == count


def test_samples_at_epochs_0_5_and_10(data, tmp_path, monkeypatch):
    monkeypatch.setitem(command.PRESETS["gpt"]["s17"], "trainer", {"max_epochs": 10, "limit_train_batches": 2})
    assert run("gpt", data["gpt"], tmp_path, "s17") == 0
    samples = (tmp_path / "samples.txt").read_text(encoding="utf-8")
    assert re.findall(r"^--- epoch (\d+)", samples, re.M) == ["0", "5", "10"]
    parts = re.split(r"^--- epoch .*\n", samples, flags=re.M)[1:]
    assert len(set(parts)) == 3 and all(len(part) > 40 for part in parts)


# ------------------------------------------------------------------------------------------------ callbacks
STILL = Recipe(lr=0.0, warmup=0)  # the weights stay, so that every step can be repeated by hand
SHAPE = Config(**tiny.SMALL | {"dropout": 0.0, "max_len": 16})


def test_delta_w_by_hand(data, tmp_path):
    words = BERTData(load_corpus(data["bert"]), **tiny.SETTINGS["bert"]["batches"])
    module = BERT(SHAPE, words.vocab_size, STILL)
    sums = []
    for inputs, targets in words.train_dataloader():
        F.cross_entropy(module.model(inputs).flatten(0, 1), targets.flatten(), ignore_index=-100).backward()
        sums.append(module.model.embed.tokens.weight.grad.abs().sum().item())
        module.zero_grad()
    train(module, words, tmp_path, callbacks=[DeltaW()], max_epochs=1, enable_progress_bar=False, gradient_clip_val=1e-3)
    logged = [float(row["Δw"]) for row in rows(tmp_path) if row["Δw"]]
    assert logged == [pytest.approx(sum(sums) / len(sums), rel=1e-4)]


def test_iter_losses_by_hand(data, tmp_path):
    words = GPTData(load_corpus(data["gpt"]), **tiny.SETTINGS["gpt"]["batches"])
    module = GPT(Config(**tiny.SMALL | {"max_len": 16, "causal": True, "dropout": 0.4}), words.vocab_size, STILL)
    module.eval()
    generator = torch.Generator().manual_seed(7)
    inputs, targets = words.held_out(words.validation)

    def mean_loss(draw) -> float:
        losses = []
        for _ in range(3):
            x, y = draw()
            with torch.no_grad():
                losses.append(F.cross_entropy(module.model(x).transpose(1, 2), y, ignore_index=-100).item())
        return sum(losses) / 3

    def validation():
        chosen = torch.randint(len(inputs), (min(8, len(inputs)),), generator=generator)
        return inputs[chosen], targets[chosen]

    expected = [mean_loss(validation)]
    starts = words.order(generator)

    def training():
        chosen = starts[torch.randint(len(starts), (8,), generator=generator)]
        return tuple(torch.stack([words.train[s + shift : s + shift + 16] for s in chosen]) for shift in (0, 1))

    expected.append(mean_loss(training))
    module.train()
    train(module, words, tmp_path, callbacks=[IterLoss(3, seed=7)], max_epochs=1, enable_progress_bar=False)
    logged = [float(row[name]) for name in ("val_iter_loss", "train_iter_loss") for row in rows(tmp_path) if row[name]]
    assert logged == pytest.approx(expected, rel=1e-5)


def test_train_gpt_gives_back_the_module_and_its_trainer(data, tmp_path):
    words = GPTData(load_corpus(data["gpt"]), **tiny.SETTINGS["gpt"]["batches"])
    config = Config(**tiny.SMALL | {"max_len": 16, "causal": True})
    module = train_gpt(words, config, Recipe(), out=tmp_path, max_steps=3, enable_progress_bar=False)
    assert isinstance(module, GPT) and module.trainer.global_step == 3
    assert same(dict(module.state_dict()), dict(saved(tmp_path)["state_dict"]))


def test_max_time_ends_the_run_and_its_schedule(data, tmp_path, monkeypatch):
    clock = iter(range(10**9))
    monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: next(clock) / 20))
    rates = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    usual = command.watchers
    monkeypatch.setattr(command, "watchers", lambda *given: [*usual(*given), Watch()])
    assert run("gpt", data["gpt"], tmp_path, "small", "--max-steps", "100000", "--max-time", "10") == 0
    assert 10 < len(rates) < 400
    assert rates[-1] == pytest.approx(0.1 * 1e-2, rel=0.1)  # final_lr x lr
    assert saved(tmp_path)["global_step"] == len(rates)


def test_a_time_limit_leaves_the_last_step_where_validations_are_rare(data, tmp_path, monkeypatch):
    """Validated, and kept, once more at the end, although the epoch is not one of those that are validated."""
    words = GPTData(load_corpus(data["gpt"]), **tiny.SETTINGS["gpt"]["batches"])
    clock = iter(range(10**9))
    monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: next(clock) / 20))
    config = Config(**tiny.SMALL | {"max_len": 16, "causal": True})
    module = train_gpt(
        words, config, Recipe(), out=tmp_path, max_steps=10**6, max_time={"seconds": 3}, check_val_every_n_epoch=10**6,
        enable_progress_bar=False,
    )  # fmt: skip
    assert 0 < module.trainer.global_step < 100
    assert saved(tmp_path)["global_step"] == module.trainer.global_step


# ------------------------------------------------------------------------------------------------ two processes
@pytest.mark.parametrize("model", ["gpt", "bert"])
def test_two_processes_are_one_with_the_same_batch(tmp_path, model):
    text, one, two = tmp_path / "words.txt", tmp_path / "one", tmp_path / "two"
    text.write_text(tiny.text(700), encoding="utf-8")
    assert run(model, text, one, "smooth") == 0
    arguments = (model, "--data", text, "--preset", "smooth", "--accelerator", "cpu", "--devices", "2", "--strategy", "ddp")
    done = program(ROOT / "tests" / "tiny.py", *arguments, "--out", two)
    assert done.returncode == 0, done.stderr
    mine, other = saved(two), saved(one)
    assert mine["global_step"] == other["global_step"] == 12
    for name, weight in mine["state_dict"].items():
        if name.endswith("qkv.bias"):  # softmax does not see the keys' bias: its gradient is rounding, scaled up by AdamW
            weight, other["state_dict"][name] = (t.view(3, -1)[::2] for t in (weight, other["state_dict"][name]))
        torch.testing.assert_close(weight, other["state_dict"][name], rtol=0, atol=2e-5)
    mine, other = (json.loads((out / "summary.json").read_text(encoding="utf-8")) for out in (two, one))
    assert mine.keys() == other.keys()
    for name in ("model", "preset", "parameters", "data", "baselines", "steps", "seed", "versions"):
        assert mine[name] == other[name]
    for name in ("test_loss", "test_acc", "val_loss", "val_acc"):
        assert mine["metrics"][name] == pytest.approx(other["metrics"][name], rel=1e-4)
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())


def test_checkpoint_loads_in_a_fresh_process(whole):
    best = whole("gpt") / "checkpoints" / "best.ckpt"
    code = (
        "import sys; from transformer import GPT\n"
        "module = GPT.load_from_checkpoint(sys.argv[1], weights_only=True)\n"
        "print(sum(p.double().sum().item() for p in module.parameters()), module.model.config.d_model)"
    )
    done = program("-c", code, best)
    assert done.returncode == 0, done.stderr
    total, width = done.stdout.split()
    assert float(total) == sum(p.double().sum().item() for p in load("gpt", whole("gpt")).parameters())
    assert width == "16"


# ------------------------------------------------------------------------------------------------ pictures, table
def test_loss_curve(whole):
    figure = plots.loss_curve(whole("gpt") / "metrics.csv", {"unigram": 4.0}, "a title")
    (axes,) = figure.axes
    assert isinstance(figure, Figure)
    assert (axes.get_xlabel(), axes.get_title()) == ("step", "a title")
    assert "nats" in axes.get_ylabel()
    assert any("unigram 4.00" in text.get_text() for text in axes.texts)


def test_attention_grid():
    figure = plots.attention_grid([torch.eye(3).expand(2, 3, 3)] * 4, ["a", "b", "c"], layers=[0, 3])
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [f"layer {layer}, head {head}" for layer in (0, 3) for head in (0, 1)]
    assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == ["a", "b", "c"]
    assert figure.get_supxlabel() and figure.get_supylabel()


def test_image_attention():
    maps = [torch.full((2, 1, 5, 5), 0.2)]
    figure = plots.image_attention(torch.rand(2, 3, 8, 8), maps, ["first", "second"])
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["first", "second"]
    assert any("attention" in axes.get_ylabel() for axes in figure.axes)


def test_pictures_and_texts_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    figure = Figure()
    plots.save(figure, tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    assert before.startswith(b"\x89PNG")

    def fail(self, path, **_):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError):
        plots.save(figure, tmp_path / "a.png")

    def fail_too(self, text, **_):
        self.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail_too)
    with pytest.raises(OSError):
        write_text(tmp_path / "b.txt", "text")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", before)]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_table_of_runs(whole, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report", *(str(whole(model)) for model in CLASSES)])
    capsys.readouterr()
    runpy.run_module("utils.training.report", run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0].startswith("model")
    assert [line.split()[0] for line in lines[2:]] == ["GPT", "BERT", "ViT"]
    for line, names in zip(lines[2:], ["bits per byte|5-gram|lzma", "unigram|neighbour", "largest class| to "], strict=True):
        assert all(name in line for name in names.split("|"))
        assert "--preset small" in line and "--data" in line


def test_runs_side_by_side(whole, tmp_path, capsys):
    """Together and the best first, with what differs; a folder without a finished run is named."""
    made = json.loads((whole("gpt") / "summary.json").read_text(encoding="utf-8"))
    for name, value, more in (("worse", 3.0, {"lr": 0.1}), ("best", 1.0, {"refit": True, "max_steps": 7})):
        (tmp_path / name).mkdir()
        changed = made | {"figure": made["figure"] | {"value": value}, "settings": made["settings"] | more}
        (tmp_path / name / "summary.json").write_text(json.dumps(changed), encoding="utf-8")
    (tmp_path / "unfinished").mkdir()
    report.main([str(tmp_path / "worse"), str(whole("vit")), str(tmp_path / "unfinished"), str(tmp_path / "best")])
    said = capsys.readouterr()
    assert "unfinished holds no finished run" in said.err
    found = said.out.splitlines()[2:]
    assert [line.split()[0] for line in found] == ["GPT", "GPT", "ViT"]
    assert "1.000" in found[0] and "--refit --max-steps 7" in found[0] and "--lr 0.1" in found[1]
