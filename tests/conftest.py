"""What several tests use: tiny models, tiny presets, the project's programs in a process of their own.

The models are in float64 with large weights: with the usual small ones a wrong formula hides behind rounding.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn
from whole_runs import run

from transformer import Config, DecoderTransformer, EncoderTransformer
from utils.files import ROOT

# What starts the tests may ignore these signals (nohup, a job in the background), and processes hand that down. A run
# that is stopped by an ignored signal goes on, as it should, so the tests begin as in a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Arguments of Lightning's Trainer: one process on the CPU, nothing on the screen.
QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "enable_model_summary": False}

TINY = {"n_layers": 2, "n_heads": 2, "d_model": 16, "d_ff": 32, "max_len": 12}
VOCAB = 23


def bold(module: nn.Module, seed: int = 0, std: float = 0.3) -> nn.Module:
    """The module in float64 and evaluation mode, its weights drawn anew; gains of norms lie around 1."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            gain = isinstance(part, nn.LayerNorm) and name == "weight"
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data = std * noise + (1.0 if gain else 0.0)
    return module


def tiny_gpt(**changes) -> DecoderTransformer:
    return bold(DecoderTransformer(Config(**TINY | {"causal": True} | changes), VOCAB))


def tiny_bert(n_classes: int = 0, **changes) -> EncoderTransformer:
    return bold(EncoderTransformer.bert(Config(**TINY | {"norm_first": False} | changes), VOCAB, n_classes=n_classes))


def tiny_vit(**changes) -> EncoderTransformer:
    """Pictures of 2 x 8 x 8 in four patches, three classes."""
    return bold(EncoderTransformer.vit(Config(**TINY | changes), image_size=8, patch_size=4, n_classes=3, channels=2))


def words(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random ids."""
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def pictures(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def tiny_presets():
    """The command line with the presets of tests/tiny.py."""
    from utils.training import command

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "PRESETS", tiny.presets())
        patch.setattr(command, "FOR_DATA", "small")
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    text = folder / "words.txt"
    text.write_text(tiny.text(), encoding="utf-8")
    return {"gpt": text, "bert": text, "vit": tiny.pictures(folder / "pictures")}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """whole(model, preset): the folder of a run without a break, made once."""
    made = {}

    def make(model: str, preset: str = "small") -> Path:
        if (model, preset) not in made:
            out = tmp_path_factory.mktemp("whole") / model
            assert run(model, data[model], out, preset) == 0
            made[model, preset] = out
        return made[model, preset]

    return make


def environment() -> dict[str, str]:
    """That of a program which finds the project and uses one thread."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def program(*arguments: str | Path) -> subprocess.CompletedProcess:
    """Run Python with these arguments in the project's folder."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
