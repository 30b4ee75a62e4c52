"""Several devices, as far as a CPU can show it. Training by `--strategy ddp` is in test_training.py.

`python tests/test_scaling.py FOLDER RANK` is one of two processes that share the weights of a GPT (FSDP).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [] if str(ROOT) in sys.path else [str(ROOT)]

from transformer import GPT, Config, Recipe, Transformer  # noqa: E402

BATCH = torch.randint(50, (8, 12), generator=torch.Generator().manual_seed(0))
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def fresh(tied: bool = True) -> GPT:
    torch.manual_seed(0)
    config = Config(n_layers=2, n_heads=2, d_model=16, d_ff=32, max_len=12, causal=True)
    return GPT(config, 50, Recipe(warmup=0), tied=tied)


def take_steps(model: Transformer, batch: torch.Tensor, n: int = 3) -> None:
    """SGD, which shows a wrong gradient in its size; AdamW's steps are of one size whatever the gradients'."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(n):
        F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


def shared(module: GPT) -> Transformer:
    """The module's model with its weights in parts on the two processes: block by block, then the rest."""
    mesh = distributed.device_mesh.init_device_mesh("cpu", (2,))
    for part in (*module.model.blocks, module.model):
        fully_shard(part, mesh=mesh)
    return module.model


def one_of_two(folder: Path, rank: int) -> None:
    store = f"file://{folder / 'meeting'}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    module = fresh()
    model = shared(module)
    held = sum(p.to_local().numel() for p in model.parameters())
    take_steps(model, BATCH[rank::2])
    weights = get_model_state_dict(model, options=WHOLE)  # on rank 0 all of them
    torch.save({"held": held, "weights": weights}, folder / f"rank{rank}.pt")
    again = shared(fresh())
    torch.nn.init.zeros_(again.embed.tokens.weight)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(again, weights, options=options)
    for name, weight in again.state_dict().items():
        assert torch.equal(weight.to_local(), model.state_dict()[name].to_local()), name
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    commands = [[sys.executable, __file__, str(folder), str(rank)] for rank in range(2)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [rank.communicate(timeout=200)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_each_holds_half_of_the_weights(two):
    whole = sum(p.numel() for p in fresh().model.parameters())
    assert sum(rank["held"] for rank in two) == whole
    assert all(abs(rank["held"] - whole / 2) < 0.02 * whole for rank in two)


def test_shared_weights_take_the_steps_of_one_process(two):
    module = fresh()
    take_steps(module.model, BATCH)
    moved = 0.0
    for name, weight in fresh().model.state_dict().items():
        torch.testing.assert_close(two[0]["weights"][name], module.model.state_dict()[name], rtol=0, atol=1e-6)
        moved = max(moved, (weight - two[0]["weights"][name]).abs().max().item())
    assert moved > 0.01


def test_gathered_weights_are_an_ordinary_state_dict(two):
    """The names are ours, the tied table is one tensor again, and a module takes them as they are."""
    module = fresh()
    assert two[0]["weights"].keys() == module.model.state_dict().keys()
    module.model.load_state_dict(two[0]["weights"])
    assert module.model.head.weight is module.model.embed.tokens.weight
    assert torch.equal(two[0]["weights"]["head.weight"], two[0]["weights"]["embed.tokens.weight"])


if __name__ == "__main__":
    one_of_two(Path(sys.argv[1]), int(sys.argv[2]))
