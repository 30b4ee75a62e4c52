"""The studies: what is frozen, what moves, and that their results are those of the code as it stands."""

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from transformer import BERT, GPT, Attention, Block, ClassHead, Config, Recipe, ViT
from utils.data.batches import Sequences
from utils.lessons.switchboard import Switchboard, passages
from utils.studies import __main__ as command
from utils.studies import house, parts, probes, scaling
from utils.studies.common import SMALL_BLOCKS, Task, mean_with_interval, successor_table, train_for


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
    assert kept["seeds"] == 3


# ------------------------------------------------------------------------------------------------ parts


def gpt(name, **changes):
    """A tiny untrained GPT with one of the changes of the study `parts`."""
    change = parts.CHANGES[name]
    torch.manual_seed(0)
    config = Config(**{**SMALL_BLOCKS, "max_len": 8, "causal": True, **changes, **change.config})
    module = GPT(config, 20, Recipe(**{**parts.RECIPE, **change.recipe}), change.tied).eval()
    change.change(module)
    return module


@pytest.mark.parametrize("name, same", [("as it is", False), ("no positions", True)])
def test_without_positions_the_order_of_the_past_is_unknown(name, same):
    """In one block: the second would hear of it from the states of the first."""
    model = gpt(name, n_layers=1).model
    ids = torch.tensor([[1, 2, 3, 4], [3, 1, 2, 4]])
    one, other = model(ids)[:, -1]
    assert torch.allclose(one, other, atol=1e-6) == same


def test_without_residuals_nothing_remains_of_the_input():
    block = gpt("no residual").model.blocks[0]
    x = torch.randn(1, 4, SMALL_BLOCKS["d_model"])
    hidden = block.attention(block.norm1(x))
    assert torch.allclose(block(x), block.mlp(block.norm2(hidden)))
    assert torch.allclose(block(x, None, None, -1), block(x)[:, -1])
    assert not torch.allclose(block(x), Block.forward(block, x))


def test_without_scaling_the_scores_are_larger():
    plain, changed = (gpt(name).model.blocks[0].attention for name in ("as it is", "no 1/sqrt(D)"))
    x = torch.randn(1, 4, SMALL_BLOCKS["d_model"])
    q, k, _ = Attention.project(plain, x)
    scores = (q @ k.mT).masked_fill(torch.ones(4, 4).triu(1) > 0, -math.inf)
    assert torch.allclose(changed.weights(x), scores.softmax(-1))
    assert not torch.allclose(changed(x), plain(x))


def test_unigram():
    """Two thirds and one third, when one is added to each count."""
    assert parts.unigram(torch.tensor([0, 0, 0, 1]), torch.tensor([0]), 2) == pytest.approx(-math.log(4 / 6))


# ------------------------------------------------------------------------------------------------ scaling


def test_a_power_law_is_found_again():
    assert scaling.power_law(np.array(4e5), 1.0, 2.0, 0.5) == pytest.approx(1 + 2 / 2)
    n = [10_000, 30_000, 100_000, 300_000, 1_000_000, 2_000_000]
    losses = scaling.power_law(np.array(n, float), 2.0, 1.5, 0.3).tolist()
    assert scaling.fit(n, losses) == pytest.approx((2.0, 1.5, 0.3), rel=1e-3)
    value, low, high = scaling.predict(n, losses, 5_000_000)
    assert value == pytest.approx(scaling.power_law(5e6, 2.0, 1.5, 0.3), rel=1e-3)
    noisy = [loss * factor for loss, factor in zip(losses, (1.01, 0.99, 1.0, 0.98, 1.02, 1.0), strict=True)]
    value, low, high = scaling.predict(n, noisy, 5_000_000)
    assert low < value < high and high / low < 1.3


def rows(length):
    ids = torch.randint(9, (300, length), generator=torch.Generator().manual_seed(0))
    return Sequences(ids[:40], ids[40:], ids[:10], vocab_size=9, hide=False, batch_size=8)


def test_the_whole_validation_part_is_scored():
    data = rows(8)
    data.context = data.length
    task = Task(data, None, "", 0.0)
    module = train_for(task, scaling.build(task, (1, 16), 3e-3, seed=0), 3)
    inputs, targets = data.make(data.validation, torch.Generator())
    with torch.no_grad():
        expected = F.cross_entropy(module.eval().model(inputs).flatten(0, 1), targets.flatten())
    assert scaling.validation_loss(task, module) == pytest.approx(expected.item(), rel=1e-5)


def test_the_weights_that_a_token_is_multiplied_by():
    data = rows(8)
    data.context = data.length
    module = scaling.build(Task(data, None, "", 0.0), (2, 32), 3e-3, seed=0)
    assert scaling.n_weights(module) == 2 * 12 * 32**2 + data.vocab_size * 32
    assert module.recipe.muon_lr == pytest.approx(0.02)


# ------------------------------------------------------------------------------------------------ probes


def test_brackets():
    found = probes.brackets_open(["a(b[c)d]e", ")x(y     "])
    assert ["".join(map(str, row)) for row in found.tolist()] == ["011111100", "001111111"]


@pytest.fixture(scope="module")
def board():
    return Switchboard({**SMALL_BLOCKS, "positions": "rotary"})


@pytest.mark.parametrize("setting", probes.TRUNKS.values(), ids=probes.TRUNKS)
def test_the_states_are_those_of_the_model(board, setting):
    """What each block returns when the model is called; of a picture, without the class token."""
    inputs, _ = probes.questions(setting[0], "test", 5)
    layers = probes.states(board, setting, inputs)
    model, seen = board.switch(*setting).eval(), []
    patches = setting[0] == "patches"
    hooks = [part.register_forward_hook(lambda _, __, x: seen.append(x)) for part in (model.embed, *model.blocks[:-1])]
    with torch.no_grad():
        model(board.data.normalize(inputs) if patches else inputs)
    for hook in hooks:
        hook.remove()
    assert len(layers) == 1 + SMALL_BLOCKS["n_layers"] == len(seen) + 1
    for layer, x in zip(layers, seen, strict=False):
        assert torch.allclose(layer, x[:, 1:] if patches else x, atol=1e-5)
    with torch.no_grad():
        last = model.blocks[-1](seen[-1])
    assert torch.allclose(layers[-1], last[:, 1:] if patches else last, atol=1e-5)


def test_the_answers_of_the_questions():
    ids, asked = probes.questions("tokens", "test", 7)
    assert torch.equal(asked["next token"][:, :-1], ids[:, 1:]) and (asked["next token"][:, -1] == -1).all()
    assert torch.equal(asked["previous token"][:, 1:], ids[:, :-1]) and (asked["previous token"][:, 0] == -1).all()
    assert asked["place"][0].bincount().tolist() == [probes.STRETCH] * (ids.shape[1] // probes.STRETCH)
    assert asked["module"].shape == (7,) and asked["module"].max() < len(passages().modules)
    for question in asked.values():
        _, answers = probes.chosen(torch.zeros(*ids.shape, 3), question)
        assert (answers >= 0).all()


def test_a_probe_finds_what_is_there_and_nothing_else():
    draws = torch.Generator().manual_seed(0)
    states, noise = torch.randn(400, 8, generator=draws), torch.randn(400, 8, generator=draws)
    answers = (states[:, 0] > 0).long()
    assert probes.probe((states[:300], answers[:300]), (states[300:], answers[300:])) > 0.95
    assert probes.probe((noise[:300], answers[:300]), (noise[300:], answers[300:])) < 0.65
