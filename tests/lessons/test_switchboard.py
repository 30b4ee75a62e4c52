"""The switchboard: eight models of the same blocks, what each is asked, and the widget that turns the switches."""

import pytest
import torch

from transformer import DecoderTransformer, EncoderTransformer
from utils.lessons import switchboard, widgets
from utils.lessons.switchboard import NAMES, SETTINGS, PatchKinds, Switchboard, train_together

BLOCKS = {"n_layers": 2, "n_heads": 2, "d_model": 16, "d_ff": 32, "init_std": 0.1}
settings = pytest.mark.parametrize("setting", SETTINGS, ids=" ".join)


@pytest.fixture(scope="module")
def board():
    return Switchboard(BLOCKS)


def one_batch(board, setting, n=4):
    return board.batch(setting, "train", torch.arange(n), torch.Generator().manual_seed(0))


def test_every_setting_has_a_name():
    assert len(SETTINGS) == 8 and set(SETTINGS) == set(NAMES)


@settings
def test_blocks_are_the_same_objects(board, setting):
    model = board.switch(*setting)
    assert model.blocks is board.blocks and model.norm is board.norm
    shared, own = board.counts(*setting)
    assert shared + own == sum(weight.numel() for weight in model.parameters())
    assert shared == sum(weight.numel() for weight in [*board.blocks.parameters(), *board.norm.parameters()])


@settings
def test_only_earlier_positions_are_seen_where_the_switch_says_so(board, setting):
    from utils.inference.interpret import input_gradients

    model = board.switch(*setting).eval()
    above = input_gradients(model, one_batch(board, setting, 1)[0]).triu(1)
    assert bool((above > 0).any()) == (setting[1] == "all")


@settings
def test_every_setting_runs_and_its_targets_fit(board, setting):
    inputs, targets = one_batch(board, setting)
    logits = board.switch(*setting)(inputs)
    assert logits.shape[:-1] == targets.shape
    assert targets.max() < logits.shape[-1] and (targets != -100).any()


def test_the_named_models_are_those_of_the_file(board):
    """The board's GPT, BERT and ViT give the logits of the classes of transformer.py with the same weights."""
    config = board.models["tokens", "past", "tokens"].config
    gpt = DecoderTransformer(config, board.special + 1, tied=False)
    found = board.switch("tokens", "past", "tokens")
    found.head.bias.data.zero_()  # GPT's head has no bias
    gpt.load_state_dict({key: value for key, value in found.state_dict().items() if key != "head.bias"})
    ids = one_batch(board, ("tokens", "past", "tokens"))[0]
    assert torch.equal(gpt.eval()(ids), found.eval()(ids))
    config = board.models["patches", "all", "class"].config
    vit = EncoderTransformer.vit(config, 28, switchboard.PATCH, 10, channels=1)
    found = board.switch("patches", "all", "class")
    weights = found.state_dict()
    weights["embed.positions.table"] = weights["embed.positions.table"][: vit.config.max_len]
    vit.load_state_dict(weights)
    images = one_batch(board, ("patches", "all", "class"))[0]
    assert torch.equal(vit.eval()(images), found.eval()(images))


def test_what_is_asked(board):
    """GPT is asked for the token at its own place, which its input, one token later, does not show it."""
    inputs, targets = one_batch(board, ("tokens", "past", "tokens"))
    assert torch.equal(inputs[:, 1:], targets[:, :-1]) and (inputs[:, 0] == board.special).all()
    inputs, targets = one_batch(board, ("tokens", "all", "tokens"))
    hidden = inputs == board.special
    assert torch.equal(hidden, targets != -100)
    assert hidden.sum(1).tolist() == [round(switchboard.HIDDEN * switchboard.CONTEXT)] * 4
    images, targets = one_batch(board, ("patches", "all", "tokens"))
    whole, past = one_batch(board, ("patches", "past", "tokens"))
    same = (switchboard.patches_of(images) == switchboard.patches_of(whole)).all(-1)
    assert (same | (targets[:, 1:] != -100)).all() and (targets[:, 0] == -100).all()
    assert torch.equal(past[:, :-1], board.patches["train"][:4]) and (past[:, -1] == -100).all()


def test_patches_are_called_by_the_most_similar_kind(board):
    kinds = PatchKinds(board.pictures["train"][0][:200])
    tokens = torch.arange(49)[None] % switchboard.KINDS
    picture = kinds.decode(tokens)
    assert picture.shape == (1, 1, 28, 28)
    assert torch.equal(kinds.typical[kinds.encode(picture)], kinds.typical[tokens])


def test_parts_have_no_document_in_common(board):
    rows = {part: {tuple(row) for row in ids.tolist()} for part, (ids, _) in board.text.parts.items()}
    assert not rows["train"] & rows["test"]


def test_training_takes_the_settings_in_turn_and_learns():
    board, losses = Switchboard(BLOCKS), []
    train_together(board, 320, note=lambda step, setting, loss: losses.append((setting, loss)))
    assert [setting for setting, _ in losses[:16]] == SETTINGS * 2
    for setting in SETTINGS:
        own = [loss for one, loss in losses if one == setting]
        assert sum(own[-5:]) < sum(own[:5]), setting


def test_the_panel_shows_the_model_of_its_switches(board):
    panel = widgets.switchboard(board)
    seen = set()
    for setting in SETTINGS:
        for switch, value in zip(panel.switches, setting, strict=True):
            switch.value = value
        assert panel.setting == setting
        seen.add(panel.view.value)
    assert len(seen) == 8
    panel.number.value = 900  # a digit of the test part; there are fewer texts
    panel.switches[0].value = "tokens"
    assert panel.number.value == panel.number.max == board.size(panel.setting, "test") - 1


def test_a_setting_that_is_not_there(board):
    with pytest.raises(ValueError, match="setting="):
        board.switch("tokens", "future", "class")
    with pytest.raises(ValueError, match="number="):
        board.show("tokens", "past", "tokens", 10**6)
    with pytest.raises(ValueError, match="board="):
        widgets.switchboard(None)
