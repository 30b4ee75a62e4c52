"""Fine-tuning from the command line: official weights, a run's weights, tables of texts and labels."""

import csv
import json
import random
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny
import torch
import transformers

from transformer import BERT, GPT, Config, DecoderTransformer, EncoderTransformer, Recipe, Transformer, ViT, train
from utils.data.batches import pad
from utils.data.labelled import TableData, load_table
from utils.data.tokenisers import bpe_tokenizer, wordpiece_tokenizer
from utils.download import file_hash
from utils.training import command
from utils.weights import official
from utils.weights.loading import load_pretrained
from utils.weights.processors import ImageTransform
from utils.weights.runs import module_of
from utils.weights.saving import save_pretrained

SIZES = {"n_layers": 2, "n_heads": 2, "d_model": 16, "d_ff": 32}


pytestmark = pytest.mark.usefixtures("tiny_presets")


def reviews(n=300):
    """Good or bad, by one word among others."""
    draw = random.Random(0)
    words = tiny.text(60).split()
    found = []
    for i in range(n):
        label, word = (("good", "splendid"), ("bad", "dreadful"))[i % 2]
        text = draw.sample(words, draw.randint(2, 9)) + [word]
        draw.shuffle(text)
        found.append((" ".join(text), label))
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    text = tiny.text(2000)
    (folder / "words.txt").write_text(text, encoding="utf-8")
    with (folder / "reviews.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *reviews()])
    tiny.pictures(folder / "pictures", n=20)
    torch.manual_seed(0)
    gpt = DecoderTransformer(Config(**SIZES, max_len=12, causal=True, activation="gelu_tanh"), 300)
    save_pretrained(gpt, folder / "gpt", bpe_tokenizer(text, 300))
    tokenizer = wordpiece_tokenizer(text + " splendid dreadful", 200)
    bert = EncoderTransformer.bert(Config(**SIZES, max_len=12, norm_first=False), tokenizer.get_vocab_size())
    save_pretrained(bert, folder / "bert", tokenizer)
    vit = EncoderTransformer.vit(Config(**SIZES), 8, 4, 2)
    save_pretrained(vit, folder / "vit", ImageTransform(8))
    return folder


def tune(model, files, out, *more, data):
    arguments = [model, "--pretrained", str(files / model), "--data", str(files / data), "--out", str(out), *more]
    assert command.command(arguments) == 0
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))


def state(kind, out):
    return kind.load_from_checkpoint(out / "checkpoints" / "best.ckpt", map_location="cpu", weights_only=True).model.state_dict()


@pytest.mark.parametrize(
    "model, kind, data, freeze",
    [
        ("gpt", GPT, "words.txt", False),
        *(("bert", BERT, data, freeze) for data in ("words.txt", "reviews.csv") for freeze in (False, True)),
        *(("vit", ViT, "pictures", freeze) for freeze in (False, True)),
    ],
)
def test_it_goes_on_from_the_weights(files, tmp_path, model, kind, data, freeze):
    """With next to no learning rate the trunk is the file's; frozen it is that with any rate, and the head is not."""
    before = load_pretrained(files / model)[0].state_dict()
    more = ("--freeze", "--lr", "0.1") if freeze else ("--lr", "1e-12")
    summary = tune(model, files, tmp_path, *more, "--max-steps", "3", data=data)
    after = state(kind, tmp_path)
    trunk = [name for name in before if not name.startswith("head")]
    assert len(trunk) > 20
    for name in trunk:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0 if freeze else 1e-8)
    if data in ("reviews.csv", "pictures"):  # new classes
        assert after["head.classifier.weight"].shape[0] == {"reviews.csv": 2, "pictures": 3}[data]
        assert summary["figure"]["name"] == "accuracy" and "largest class" in summary["baselines"]
    assert summary["preset"] == "finetune-small" and summary["steps"] == 3


def test_a_table_is_learned(files, tmp_path):
    """From a file's weights and without any; the tuned model gives the same answers in a folder of its own."""
    summary = tune("bert", files, tmp_path / "tuned", "--max-epochs", "10", data="reviews.csv")
    assert summary["figure"]["value"] > 0.9 > 0.6 > summary["baselines"]["largest class"]
    assert summary["baselines"]["TF-IDF, logistic regression"] > 0.9
    arguments = ["bert", "--data", str(files / "reviews.csv"), "--max-epochs", "10", "--out", str(tmp_path / "scratch")]
    assert command.command(arguments) == 0
    assert json.loads((tmp_path / "scratch" / "summary.json").read_text())["figure"]["value"] > 0.9
    model, tokenizer = load_pretrained(tmp_path / "tuned")
    save_pretrained(model, tmp_path / "saved", tokenizer, labels=["bad", "good"])
    again, _ = load_pretrained(tmp_path / "saved")
    ids, mask = pad([tokenizer.encode(text).ids[:12] for text in ("splendid", "a dreadful word")])
    assert torch.equal(model(ids, mask=mask), again(ids, mask=mask))
    assert model(ids, mask=mask).argmax(-1).tolist() == [1, 0]


def test_a_run_is_gone_on_from(files, tmp_path):
    """Blanks first, then a table: the trunk and the tokeniser are the run's."""
    first = ["bert", "--data", str(files / "words.txt"), "--max-steps", "4", "--out", str(tmp_path / "blanks")]
    assert command.command(first) == 0
    before, tokenizer = load_pretrained(tmp_path / "blanks")
    then = ["bert", "--pretrained", str(tmp_path / "blanks"), "--data", str(files / "reviews.csv"), "--lr", "1e-12"]
    assert command.command([*then, "--max-steps", "2", "--out", str(tmp_path / "table")]) == 0
    after = state(BERT, tmp_path / "table")
    for name, value in before.state_dict().items():
        if not name.startswith("head"):
            torch.testing.assert_close(after[name], value, rtol=0, atol=1e-8)
    assert (tmp_path / "table" / "tokenizer.json").read_text() == tokenizer.to_str(pretty=True)


@pytest.mark.parametrize("rotary", [False, True])
def test_a_trained_model_leaves_and_comes_back(files, tmp_path, rotary):
    """Trained, saved, read by transformers, read by us: the same logits every time."""
    if rotary:
        given = ["gpt", "--data", str(files / "words.txt"), "--max-steps", "4", "--out", str(tmp_path / "run")]
        assert command.command(given) == 0
    else:
        tune("gpt", files, tmp_path / "run", "--max-steps", "4", data="words.txt")
    ours, tokenizer = load_pretrained(tmp_path / "run")
    save_pretrained(ours, tmp_path / "left", tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "left").eval()
    assert type(theirs).__name__ == ("GPTNeoXForCausalLM" if rotary else "GPT2LMHeadModel")
    text = "a few words"
    ids = torch.tensor([tokenizer.encode(text).ids[:12]])
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "left")(text)["input_ids"][:12] == ids[0].tolist()
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids), rtol=0, atol=1e-5)
        assert torch.equal(load_pretrained(tmp_path / "left")[0](ids), ours(ids))


def test_a_few_lines_of_python(files, tmp_path):
    """As the README has them."""
    model, tokenizer = load_pretrained(files / "bert", n_classes=2)
    data = TableData(load_table(files / "reviews.csv"), context=12, tokenizer=tokenizer)
    module = train(module_of(model, Recipe(lr=1e-12, warmup=0)), data, out=tmp_path, max_epochs=1, enable_progress_bar=False)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(module.model.state_dict()[name], value, rtol=0, atol=1e-8)
    with pytest.raises(ValueError, match="model='a BERT without a head': must be one with a head"):
        module_of(Transformer(model.config, model.embed, torch.nn.Identity()), Recipe())


def test_resume_of_a_frozen_run(files, tmp_path):
    tune("vit", files, tmp_path / "whole", "--freeze", "--max-steps", "6", data="pictures")
    tune("vit", files, tmp_path / "parted", "--freeze", "--max-steps", "3", data="pictures")
    tune("vit", files, tmp_path / "parted", "--freeze", "--max-steps", "6", "--resume", data="pictures")
    one, other = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "parted"))
    assert one["global_step"] == other["global_step"] == 6


def test_another_image_size(files, tmp_path):
    tune("vit", files, tmp_path, "--image-size", "16", "--max-steps", "2", "--lr", "1e-12", data="pictures")
    assert state(ViT, tmp_path)["embed.positions.table"].shape == (17, 16)


# ------------------------------------------------------------------------------------------------ official names
def test_an_official_name_is_downloaded(files, tmp_path, monkeypatch, capsys):
    """From a hub of our own, once; a file that is not what its hash says is refused."""
    place = tmp_path / "hub" / "openai-community" / "gpt2" / "resolve"
    place.mkdir(parents=True)
    (place / "r1").symlink_to(files / "gpt")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path / "hub"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    digest = file_hash(files / "gpt" / "model.safetensors", "sha256")
    monkeypatch.setenv("TRANSFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(official, "HUB", f"http://127.0.0.1:{server.server_address[1]}")
    model = partial(official.Official, "openai-community/gpt2", revision="r1")
    monkeypatch.setitem(official.OFFICIAL, "gpt2", model(hashes={"model.safetensors": f"sha256:{digest}"}))
    monkeypatch.setattr("utils.download.PAUSE", 0.0)
    try:
        ours, tokenizer = load_pretrained("gpt2")
        said = capsys.readouterr().out
        assert "tokenizer.json: no hash is known" in said and "model.safetensors: no hash" not in said
        monkeypatch.setitem(official.OFFICIAL, "gpt2", model(hashes={"model.safetensors": f"sha256:{'0' * 64}"}))
        with pytest.raises(OSError, match="model.safetensors: sha256 is .*, expected 0000"):
            load_pretrained("gpt2")
    finally:
        server.shutdown()
        server.server_close()
    expected, _ = load_pretrained(files / "gpt")
    ids = torch.tensor([tokenizer.encode("some words").ids[:12]])
    assert torch.equal(ours(ids), expected(ids))


BAD_COMMANDS = {
    "no such weights": ("gpt --pretrained gpt-9 --data words.txt", "pretrained='gpt-9': must be a folder"),
    "freeze alone": ("gpt --freeze --data words.txt", "freeze=True: must be used with --pretrained"),
    "freeze of a gpt": ("gpt --pretrained gpt --freeze --data words.txt", "freeze=True: must be left out"),
    "another kind": ("gpt --pretrained bert --data words.txt", "pretrained='.*bert': must be a gpt; it is a bert"),
    "a tokenizer as well": ("gpt --pretrained gpt --tokenizer char --data words.txt", "tokenizer='char': must be left out"),
    "lr": ("gpt --pretrained gpt --data words.txt --lr -1", "lr=-1.0: must be above 0"),
    "image size of words": ("gpt --image-size 8 --data words.txt", "image_size=8: must be left out"),
    "image size of no patches": ("vit --pretrained vit --image-size 9 --data pictures", "patch_size=4: must be a divisor of image_size=9"),
    "refit of a table": ("bert --data reviews.csv --refit", "refit=True: must be left out"),
    "no table there": ("bert --data missing.csv", "data='.*missing.csv': must be a CSV file"),
}


@pytest.mark.parametrize("case", BAD_COMMANDS)
def test_bad_commands(case, files, tmp_path, capsys, monkeypatch):
    line, message = BAD_COMMANDS[case]
    monkeypatch.chdir(files)
    assert command.command([*line.split(), "--max-steps", "1", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and not (tmp_path / "out").exists()
    assert re.search(message, said[0]), said[0]


# ------------------------------------------------------------------------------------------------ what fits
def test_the_preset_fits_the_size_of_the_model():
    options = command.parser().parse_args(["gpt", "--pretrained", "gpt2"])
    with torch.device("meta"):
        large = DecoderTransformer(Config(causal=True), 50_257)
    tiny_model = DecoderTransformer(Config(**SIZES, max_len=8, causal=True), 50)
    assert command.usual_preset(options, tiny_model) == "finetune-small"
    assert command.usual_preset(options, large) == "finetune"
    assert command.usual_preset(command.parser().parse_args(["gpt"]), None) == "small"
    assert command.usual_preset(command.parser().parse_args(["bert", "--data", "x.csv"]), None) == command.FOR_DATA


def test_a_run_that_could_be_the_start_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text(tiny.text(), encoding="utf-8")
    arguments = ["gpt", "--data", "my.txt", "--max-steps", "2"]
    assert command.command([*arguments, "--out", "runs/gpt"]) == 0
    assert "--pretrained" not in capsys.readouterr().out
    assert command.command([*arguments[:-1], "3", "--out", "runs/gpt", "--resume"]) == 0
    assert "--pretrained" not in capsys.readouterr().out  # it is the run itself
    assert command.command(arguments) == 0  # into runs/gpt-my
    assert "runs/gpt holds a trained model" in capsys.readouterr().out
    assert command.command([*arguments, "--pretrained", "runs/gpt"]) == 0
    said = capsys.readouterr().out
    assert "holds a trained model" not in said
    assert "gpt-my (from nothing)" in said and "gpt-my-from-gpt (from runs/gpt)" in said
