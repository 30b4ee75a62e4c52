"""The studies: what is frozen, what moves, and that their results are those of the code as it stands."""

import json
import math

import pytest
import torch

from transformer import BERT, ClassHead, Config, Recipe, ViT
from utils.studies import __main__ as command
from utils.studies import house
from utils.studies.common import SMALL_BLOCKS, Task, mean_with_interval, successor_table


def test_successor_table_guesses_what_most_often_followed():
    seen = torch.tensor([1, 2, 1, 2, 1, 3, 4])
    assert successor_table(seen, torch.tensor([1, 2, 1, 3, 9, 4])) == 2 / 5  # 1 2 and 2 1; not 1 3, 3 9 and 9 4


def test_an_interval_needs_three_seeds():
    mean, low, high = mean_with_interval([0.5, 0.6, 0.7])
    assert mean == pytest.approx(0.6) and high - mean == pytest.approx(mean - low) == pytest.approx(0.2484, abs=1e-4)
    assert math.isnan(mean_with_interval([0.5])[1])


@pytest.mark.parametrize("name, others", [("next token", ["BERT", "ViT"]), ("digits", ["GPT", "BERT"])])
def test_no_trunk_moves_into_its_own_house(name, others):
    found = house.ways(name, dict.fromkeys(house.TRUNKS, {}))
    assert [way for way, _, _ in found] == [
        "random, frozen", *(f"{other}, frozen" for other in others), "from nothing", *(f"{other}, tuned" for other in others)
    ]  # fmt: skip
    assert all(frozen == way.endswith("frozen") for way, _, frozen in found)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_blocks_of_a_bert_move_into_a_vit(frozen):
    """All their weights; if they are frozen, training changes the norms and the ends alone."""
    torch.manual_seed(0)
    trunk = BERT(Config(**SMALL_BLOCKS, max_len=9), 20, Recipe()).model.blocks.state_dict()
    build = lambda blocks, recipe: ViT(Config(**blocks), 8, 4, 3, recipe, channels=1)  # noqa: E731
    module = house.move_in(Task(None, build, "", 0.0), SMALL_BLOCKS, trunk, frozen, seed=0)
    assert isinstance(module.model.head, ClassHead)
    for name, weight in module.model.blocks.state_dict().items():
        assert torch.equal(weight, trunk[name])
    still = {name for name, weight in module.named_parameters() if not weight.requires_grad}
    if frozen:
        assert still == {f"model.blocks.{name}" for name in trunk if "norm" not in name}
    else:
        assert still == set()


@pytest.mark.parametrize("path", sorted(command.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_results_are_of_this_code(path):
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert kept["code_sha256"] == command.code_hash(path.stem) and "--fast" not in kept["command"]
    assert len(kept["seeds"]) == 3
