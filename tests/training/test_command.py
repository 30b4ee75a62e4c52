"""Bad input: every row ends in one line that names the argument, its value and what is allowed. Nothing half-written."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import tiny
import torch
from conftest import program

from transformer import GPT, Config, Recipe, sampling_probabilities, train
from utils.data.images import ImageData, load_images
from utils.data.text import BERTData, GPTData, load_corpus
from utils.data.tokenisers import char_tokenizer, wordpiece_tokenizer
from utils.inference.blanks import fill_blanks
from utils.inference.generate import write_on
from utils.training import command
from utils.training.callbacks import IterLoss, SampleText

CONFIG = {"n_layers": 1, "n_heads": 2, "d_model": 16, "d_ff": 16, "max_len": 8}


pytestmark = pytest.mark.usefixtures("tiny_presets")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of good and bad data."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "good.txt").write_text(tiny.text(4000), encoding="utf-8")
    (folder / "empty.txt").write_text("")
    (folder / "blank.txt").write_text(" \n\n ")
    (folder / "short.txt").write_text("only a few words here\n")
    (folder / "twice.csv").write_text("text,text,label\na,b,c\n", encoding="utf-8")
    (folder / "nul.bin").write_bytes(b"text\0text" * 1000)
    (folder / "latin.txt").write_bytes("na\xefve caf\xe9 ".encode("latin-1") * 1000)
    tiny.pictures(folder / "pictures")
    shutil.copytree(folder / "pictures" / "dark", folder / "one" / "dark")
    (folder / "none").mkdir()
    shutil.copytree(folder / "pictures", folder / "broken")
    (folder / "broken" / "grey" / "3.png").write_bytes(b"not a picture")
    shutil.copytree(folder / "pictures", folder / "cut")
    cut = folder / "cut" / "light" / "2.png"
    cut.write_bytes(cut.read_bytes()[:60])
    for name in "ab":
        (folder / "hollow" / name).mkdir(parents=True)
    return folder


def gpt() -> GPT:
    return GPT(Config(**CONFIG, causal=True), vocab_size=10, recipe=Recipe())


def vit(image_size: int = 8, patch_size: int = 4):
    from transformer import EncoderTransformer

    return EncoderTransformer.vit(Config(**CONFIG), image_size, patch_size, n_classes=3)


def corpus(files: Path):
    return load_corpus(files / "good.txt")


def ids(*values: int) -> torch.Tensor:
    return torch.tensor([values])


Row = namedtuple("Row", "call name value allowed")
API = {
    "d_model not divisible": Row(lambda _: Config(d_model=10, n_heads=4), "d_model", "10", "divisible by n_heads=4"),
    "no layers": Row(lambda _: Config(n_layers=0), "n_layers", "0", "above 0"),
    "unknown activation": Row(lambda _: Config(activation="swish"), "activation", "'swish'", "gelu"),
    "unknown positions": Row(lambda _: Config(positions="absolute"), "positions", "'absolute'", "rotary"),
    "dropout 1.5": Row(lambda _: Config(dropout=1.5), "dropout", "1.5", "below 1"),
    "init_std 0": Row(lambda _: Config(init_std=0.0), "init_std", "0.0", "above 0"),
    "unknown optimizer": Row(lambda _: Recipe(optimizer="sgd"), "optimizer", "'sgd'", "adamw or muon"),
    "negative lr": Row(lambda _: Recipe(lr=-0.1), "lr", "-0.1", "at least 0"),
    "sequence too long": Row(lambda _: gpt().model(ids(*range(9))), "sequence length", "9", "max_len=8"),
    "wrong dtype": Row(lambda _: gpt().model(ids(1, 2).int()), "ids", "torch.int32", "int64"),
    "id too large": Row(lambda _: gpt().model(ids(1, 10)), "ids", "10", "below vocab_size=10"),
    "id below 0": Row(lambda _: gpt().model(ids(-1, 2)), "ids", "-1", "at least 0"),
    "one word": Row(lambda _: GPT(Config(**CONFIG, causal=True), 1, Recipe()), "vocab_size", "1", "at least 2"),
    "picture too large": Row(lambda _: vit()(torch.rand(2, 3, 12, 12)), "images", "(2, 3, 12, 12)", "3, 8, 8)"),
    "grey picture": Row(lambda _: vit()(torch.rand(2, 1, 8, 8)), "images", "(2, 1, 8, 8)", "3, 8, 8)"),
    "patch does not divide": Row(lambda _: vit(8, 3), "patch_size", "3", "image_size=8"),
    "temperature below 0": Row(lambda _: sampling_probabilities(torch.rand(1, 5), temperature=-1.0), "temperature", "-1.0", "at least 0"),
    "top_k 0": Row(lambda _: sampling_probabilities(torch.rand(1, 5), top_k=0), "top_k", "0", "at least 1"),
    "top_p 2": Row(lambda _: sampling_probabilities(torch.rand(1, 5), top_p=2.0), "top_p", "2.0", "at most 1"),
    "max_new_tokens -1": Row(lambda _: gpt().model.generate(ids(1), -1), "max_new_tokens", "-1", "at least 0"),
    "no ids": Row(lambda _: gpt().model.generate(ids(), 3), "ids", "(1, 0)", "at least one token"),
    "empty prompt": Row(lambda _: write_on(gpt(), char_tokenizer("abc"), "", 3), "prompt", "''", "at least one token"),
    "no blank": Row(lambda _: fill_blanks(gpt(), wordpiece_tokenizer("abc", 20), "abc"), "text", "'abc'", "___"),
    "eval_iters 0": Row(lambda _: IterLoss(0), "eval_iters", "0", "at least 1"),
    "every 0 epochs": Row(lambda _: SampleText(None, "a", 0), "every_n_epochs", "0", "at least 1"),
    "10 words for bytes": Row(lambda f: GPTData(corpus(f), vocab_size=10), "vocab_size", "10", "at least 256"),
    "20 words for WordPiece": Row(lambda f: BERTData(corpus(f), 16, vocab_size=20), "vocab_size", "20", "at least"),
    "batch_size 0": Row(lambda f: GPTData(corpus(f), batch_size=0), "batch_size", "0", "at least 1"),
    "context 0": Row(lambda f: GPTData(corpus(f), context=0), "context", "0", "at least 1"),
    "context 2": Row(lambda f: BERTData(corpus(f), context=2), "context", "2", "at least 3"),
    "mask_rate 0": Row(lambda f: BERTData(corpus(f), mask_rate=0), "mask_rate", "0", "above 0"),
    "mask_rate 2": Row(lambda f: BERTData(corpus(f), mask_rate=2), "mask_rate", "2", "at most 1"),
    "random_rate -1": Row(lambda f: BERTData(corpus(f), random_rate=-1.0), "random_rate", "-1.0", "at least 0"),
    "size 0": Row(lambda f: load_images(f / "pictures", 0), "size", "0", "at least 1"),
    "no pictures a step": Row(
        lambda f: ImageData(load_images(f / "pictures", 8), batch_size=0), "batch_size", "0", "at least 1"
    ),
    "resume without a run": Row(
        lambda f: train(gpt(), None, f / "nowhere", resume=True), "resume", "True", "no checkpoint"
    ),
}


@pytest.mark.parametrize("row", API.values(), ids=API)
def test_bad_argument_of_a_function(files, row):
    with pytest.raises(ValueError) as caught:
        row.call(files)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{row.name}=")
    assert row.value in message and row.allowed in message


GOOD = {"gpt": "good.txt", "bert": "good.txt", "vit": "pictures"}
COMMANDS = {  # {} is the folder of files
    "missing file": Row("gpt --data {}/missing.txt", "data", "missing.txt", "text file"),
    "folder as text": Row("gpt --data {}/pictures", "data", "pictures", "text file"),
    "text as pictures": Row("vit --data {}/good.txt", "data", "good.txt", "folder of pictures"),
    "missing folder": Row("vit --data {}/missing", "data", "missing", "folder of pictures"),
    "empty text": Row("gpt --data {}/empty.txt", "data", "empty.txt", "empty"),
    "blank text": Row("bert --data {}/blank.txt", "data", "blank.txt", "empty"),
    "shorter than a window": Row("gpt --data {}/short.txt", "data", "short.txt", "longer than one window"),
    "NUL bytes": Row("gpt --data {}/nul.bin", "data", "nul.bin", "NUL"),
    "not UTF-8": Row("bert --data {}/latin.txt", "data", "latin.txt", "UTF-8"),
    "one class": Row("vit --data {}/one", "data", "one", "at least 2"),
    "no class": Row("vit --data {}/none", "data", "none", "at least 2"),
    "classes without pictures": Row("vit --data {}/hollow", "data", "hollow", "found []"),
    "not a picture": Row("vit --data {}/broken", "data", "3.png", "readable picture"),
    "picture cut off": Row("vit --data {}/cut", "data", "2.png", "readable picture"),
    "epochs": Row("gpt --max-epochs -1", "max_epochs", "-1", "at least 1"),
    "no steps": Row("gpt --max-steps 0", "max_steps", "0", "at least 1"),
    "time": Row("gpt --max-time -5", "max_time", "-5", "at least 1"),
    "time that is no number": Row("gpt --max-time nan", "max_time", "nan", "at least 1"),
    "endless time": Row("gpt --max-time inf", "max_time", "inf", "at most"),
    "seed": Row("gpt --seed -1", "seed", "-1", "at least 0"),
    "seed too large": Row("gpt --seed 99999999999999999999", "seed", "99999999999999999999", "at most"),
    "eval_iters": Row("gpt --preset s17 --eval-iters 0", "eval_iters", "0", "at least 1"),
    "preset": Row("gpt --preset huge", "preset", "'huge'", "small"),
    "tokenizer": Row("gpt --tokenizer words", "tokenizer", "'words'", "bpe"),
    "tokenizer of pictures": Row("vit --tokenizer char", "tokenizer", "'char'", "left out"),
    "tokenizer of BERT": Row("bert --tokenizer char", "tokenizer", "'char'", "left out"),
    "resume": Row("gpt --resume", "resume", "True", "last.ckpt"),
    "devices": Row("gpt --accelerator cpu --devices 0", "devices", "0", ""),
    "accelerator": Row("gpt --accelerator abacus", "accelerator", "abacus", "cpu"),
    "more devices than items": Row("gpt --devices 99", "devices", "99", "at most batch_size=8"),
    "missing hardware": Row("gpt --accelerator tpu", "", "", "xla"),
    "strategy": Row("gpt --strategy hope", "strategy", "hope", ""),
    "parts of matrices for Muon": Row("gpt --preset muon --strategy fsdp", "strategy", "'fsdp'", "used with AdamW"),
    "precision": Row("gpt --precision 7", "precision", "7", "32"),
    "half a device": Row("gpt --devices 2.5", "devices", "2.5", "devices that there are"),
    "a list of devices": Row("gpt --accelerator cpu --devices [0]", "devices", "[0]", "devices that there are"),
    "all but one device": Row("gpt --accelerator cpu --devices -1", "devices", "-1", "devices that there are"),
    "spawned processes": Row("gpt --devices 2 --strategy ddp_spawn", "strategy", "'ddp_spawn'", "as ddp"),
    "huge pictures": Row("vit --image-size 100000", "image_size", "100000", "at most 4096"),
    "infinite lr": Row("gpt --lr inf", "lr", "inf", "finite"),
    "lr that is no number": Row("gpt --lr nan", "lr", "nan", "finite"),
    "infinite lr of Muon": Row("gpt --set muon_lr=1e999", "muon_lr", "inf", "finite"),
    "columns of one name": Row("bert --data {}/twice.csv", "data", "twice.csv", "twice there: ['text']"),
    "out in the pictures": Row("vit --data {0}/pictures --out {0}/pictures", "out", "pictures", "outside of the folder"),
    "out below a file": Row("gpt --out {}/good.txt/run", "out", "good.txt/run", "folder that can be written"),
    "out is a file": Row("gpt --out {}/good.txt", "out", "good.txt", "folder that can be written"),
}


def contents(folder: Path) -> set[str]:
    found = folder.rglob("*") if folder.is_dir() else ()
    return {str(path.relative_to(folder)) for path in found if path.name != ".lock"}


def words_of(row: Row, files: Path, out: Path) -> list[str]:
    argv = [word.format(files) if "{" in word else word for word in row.call.split()]
    if "--data" not in argv:
        argv += ["--data", str(files / GOOD[argv[0]])]
    return argv if "--out" in argv else [*argv, "--out", str(out)]


def assert_one_line(row: Row, errors: str) -> None:
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("transformer.py: error:")]
    assert row.name in line and row.value in line and row.allowed in line


@pytest.mark.parametrize("row", COMMANDS.values(), ids=COMMANDS)
def test_bad_argument_of_the_command_line(files, tmp_path, capsys, row):
    before = contents(files)
    assert command.command(words_of(row, files, tmp_path / "out")) == 2
    assert_one_line(row, capsys.readouterr().err)
    assert contents(tmp_path / "out") == set()
    assert contents(files) == before


@pytest.mark.parametrize("option", ["--data", "--out", "--pretrained"])
def test_an_empty_option(tmp_path, monkeypatch, capsys, option):
    monkeypatch.chdir(tmp_path)
    assert command.command(["gpt", option, ""]) == 2
    assert f"{option[2:]}=\"''\": must be left out, or not empty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_tilde_is_the_home_folder(files, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shutil.copytree(files / "pictures", tmp_path / "home" / "pictures")
    monkeypatch.chdir(tmp_path)
    assert command.command(["vit", "--data", "~/pictures", "--max-steps", "2", "--out", "~/out"]) == 0
    assert (tmp_path / "home" / "out" / "summary.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_slurm_that_is_half_set(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_NAME", "job")
    assert command.command(["gpt", "--data", str(files / "good.txt"), "--max-steps", "2", "--out", str(tmp_path / "out")]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_of_ours_shows_its_traceback_and_asks_for_a_report(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "build", lambda *_: {}["missing"])
    with pytest.raises(KeyError):
        command.command(["gpt", "--data", str(files / "good.txt"), "--out", str(tmp_path / "out")])
    assert "Please report it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["missing file", "accelerator", "resume"])
def test_bad_argument_in_a_real_process(files, tmp_path, name):
    done = program("transformer.py", *words_of(COMMANDS[name], files, tmp_path / "out"))
    assert done.returncode == 2 and done.stdout == ""
    assert_one_line(COMMANDS[name], done.stderr)
    assert contents(tmp_path / "out") == set()


@pytest.mark.parametrize("model", ["gpt", "bert"])
def test_resume_with_another_model(files, tmp_path, capsys, model):
    """The run there stays as it is: of another preset, and of another kind of model."""
    text = str(files / "good.txt")
    assert command.command(["bert", "--data", text, "--max-steps", "2", "--out", str(tmp_path)]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    preset, name = {"gpt": ("small", "model: gpt"), "bert": ("wide", "preset: wide")}[model]
    assert command.command([model, "--preset", preset, "--resume", "--data", text, "--out", str(tmp_path)]) == 2
    assert_one_line(Row(None, "resume", "True", f"{name} (before: "), capsys.readouterr().err)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_resume_where_no_checkpoint_is_whole(files, tmp_path, capsys):
    arguments = ["bert", "--data", str(files / "good.txt"), "--max-steps", "2", "--out", str(tmp_path)]
    assert command.command(arguments) == 0
    last, best = (tmp_path / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    for damaged in (last.read_bytes()[:-100], b"", b"no checkpoint at all"):
        last.write_bytes(damaged)
        best.write_bytes(damaged)
        capsys.readouterr()
        assert command.command([*arguments, "--resume"]) == 2
        assert_one_line(Row(None, "resume", "True", "damaged"), capsys.readouterr().err)
        assert last.read_bytes() == best.read_bytes() == damaged


def test_an_earlier_run_is_kept(files, tmp_path, capsys):
    arguments = ["bert", "--data", str(files / "good.txt"), "--max-steps", "2", "--out", str(tmp_path)]
    found = []
    for seed in range(3):
        assert command.command([*arguments, "--seed", str(seed)]) == 0
        found.append({str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*.*") if p.name != ".lock" and "earlier" not in str(p.relative_to(tmp_path))})
        for n in range(seed):
            there = tmp_path / f"earlier-{n + 1}"
            assert {str(p.relative_to(there)): p.read_bytes() for p in there.rglob("*.*")} == found[n]
    assert "earlier-2" in capsys.readouterr().out


def test_full_disk_is_seen_before_training(files, tmp_path, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    assert command.command(["gpt", "--data", str(files / "good.txt"), "--out", str(tmp_path / "out")]) == 2
    assert_one_line(Row(None, "out", str(tmp_path), "MiB free"), capsys.readouterr().err)
    assert contents(tmp_path / "out") == set()


def test_disk_that_fills_up_in_training(files, tmp_path):
    """Files may hold 8 KiB, too little for a checkpoint."""
    code = (
        "import resource, sys, utils.training.command as command, tests.tiny as tiny\n"
        "command.PRESETS = tiny.presets()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "sys.exit(command.command(sys.argv[1:]))"
    )
    out = tmp_path / "out"
    done = program("-c", code, "gpt", "--data", files / "good.txt", "--out", out)
    assert done.returncode == 2, done.stderr
    assert_one_line(Row(None, "", "", "File too large"), done.stderr)
    for path in (out / "checkpoints").glob("*.ckpt"):
        torch.load(path, weights_only=True)
    assert {Path(name).name for name in contents(out)} <= {"checkpoints", "metrics.csv", "samples.txt", "tokenizer.json"}


def test_bad_accelerator_leaves_an_earlier_run_alone(files, tmp_path):
    text = str(files / "good.txt")
    assert command.command(["gpt", "--data", text, "--max-steps", "2", "--out", str(tmp_path)]) == 0
    before = contents(tmp_path)
    for bad in (["--devices", "99"], ["--accelerator", "abacus"], ["--strategy", "hope"]):
        assert command.command(["gpt", "--data", text, "--out", str(tmp_path), *bad]) == 2
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "line, out",
    [
        ("gpt", "runs/gpt"),
        ("gpt --data my/notes.txt", "runs/gpt-notes"),
        ("vit --data pictures/", "runs/vit-pictures"),
        ("gpt --data notes/*.md --pretrained runs/gpt", "runs/gpt-_-from-gpt"),
        ("bert --pretrained org/model", "runs/bert-from-model"),
    ],
)
def test_a_run_on_other_data_does_not_take_the_folder_of_the_demo(line, out):
    assert str(command.usual_out(command.parser().parse_args(line.split()))) == out
