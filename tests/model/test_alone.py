"""transformer.py alone in an empty folder, where nothing else of the project can be imported."""

import os
import shutil
import subprocess
import sys

from utils.files import ROOT

PROGRAM = """
import importlib.util
import torch
import lightning as L
from torch.utils.data import DataLoader
from transformer import BERT, GPT, Config, Recipe, ViT, train

assert importlib.util.find_spec("utils") is None
sizes = {"n_layers": 2, "n_heads": 2, "d_model": 32, "d_ff": 64, "max_len": 16}
bert = BERT(Config(**sizes), 20, Recipe())
vit = ViT(Config(**sizes), image_size=8, patch_size=4, n_classes=3, recipe=Recipe())
assert bert.model(torch.zeros(2, 16, dtype=torch.long)).shape == (2, 16, 20)
assert vit.model(torch.zeros(2, 3, 8, 8)).shape == (2, 3)

class Counting(L.LightningDataModule):
    def batches(self):
        ids = (torch.arange(17) + torch.arange(8)[:, None]) % 20
        return DataLoader([(ids[:, :-1], ids[:, 1:])] * 20, batch_size=None)
    train_dataloader = val_dataloader = batches

class Losses(L.Callback):
    seen = []
    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.seen.append(outputs["loss"].item())

torch.manual_seed(0)
gpt = GPT(Config(**sizes, causal=True), 20, Recipe(lr=1e-2, warmup=2))
quiet = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "enable_model_summary": False}
train(gpt, Counting(), "run", max_steps=20, callbacks=[Losses()], **quiet)
assert len(Losses.seen) == 20 and Losses.seen[-1] < 0.5 * Losses.seen[0], Losses.seen
written = gpt.eval().model.generate(torch.tensor([[3, 4, 5]]), 6, temperature=0)
print(written.tolist())
"""


def test_the_file_alone_builds_trains_and_samples(tmp_path):
    shutil.copy(ROOT / "transformer.py", tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str([[3, 4, 5, 6, 7, 8, 9, 10, 11]])
