"""The study `draws`: what is measured is what is said, checked against slower or known answers."""

import math

import pytest
import torch
from torch import nn

from transformer import require
from utils.data.batches import Sequences, choose
from utils.inference.blanks import unmask
from utils.studies import draws
from utils.studies.common import SMALL_BLOCKS

V, T = 5, 6


def sequences(hide, rows=40):
    ids = torch.randint(V, (rows, T), generator=torch.Generator().manual_seed(0))
    return Sequences(ids, ids[:8], ids[8:16], vocab_size=V, hide=hide, batch_size=8)


class Table(nn.Module):
    """A model that knows the share of each token, and takes the hidden places from `keep` as the real ones do."""

    def __init__(self, shares):
        super().__init__()
        self.logits = torch.tensor([*shares, 0.0]).log()

    def forward(self, ids, keep=None):
        logits = self.logits.expand(*ids.shape, -1)
        return logits if keep is None else logits[keep].clone()


def test_gpt_never_sees_its_target():
    data = sequences(hide=False)
    inputs, targets = data.make(data.train[:3], torch.Generator())
    assert torch.equal(targets, data.train[:3])
    assert (inputs[:, 0] == V).all() and torch.equal(inputs[:, 1:], targets[:, :-1])


def test_bert_is_asked_for_every_share_of_the_tokens():
    data = sequences(hide=True)
    seen = set()
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        inputs, targets = data.make(data.train[:3], generator)
        hidden = targets != -100
        assert torch.equal(inputs == V, hidden)
        assert torch.equal(torch.where(hidden, targets, inputs), data.train[:3])
        (n,) = set(hidden.sum(1).tolist())
        seen.add(n)
    assert seen == set(range(1, T + 1))


def test_choose():
    chosen = choose((50, T), 2, torch.Generator().manual_seed(0))
    assert (chosen.sum(1) == 2).all() and chosen.any(0).all()


def test_bits_of_a_model_that_knows_the_shares_only():
    """In any order, and in order, every token costs -log2 of its share."""
    shares = [0.4, 0.3, 0.1, 0.1, 0.1]
    module = nn.Module()
    module.model = Table(shares)
    expected = -torch.tensor(shares).log2()[sequences(True).test].mean().item()
    assert draws.bits_in_order(module, sequences(False)) == pytest.approx(expected, rel=1e-5)
    many = draws.bits_in_any_order(module, sequences(True), draws=T)
    assert many == pytest.approx(expected, rel=0.15)  # estimated from some of the hidden tokens
    module.model = Table([1 / V] * V)
    assert draws.bits_in_any_order(module, sequences(True)) == pytest.approx(math.log2(V), rel=1e-5)


class Sure(nn.Module):
    """A model that is sure of one token for each place, and surer the further to the left the place is."""

    def __init__(self, answer, most=30.0):
        super().__init__()
        self.answer, self.most, self.asked = answer, most, []

    def forward(self, ids, keep=None):
        self.asked.append(keep.clone())
        logits = torch.zeros(*ids.shape, V + 1)
        sure = self.most - torch.arange(ids.shape[1], dtype=torch.float32)
        logits.scatter_(2, self.answer.expand_as(ids)[..., None], sure[None, :, None].expand(len(ids), -1, 1))
        return logits[keep]


@pytest.mark.parametrize("n_steps, left", [(1, [4]), (2, [4, 2]), (4, [4, 3, 2, 1]), (9, [4, 3, 2, 1])])
def test_unmask_fills_in_equally_many_tokens_in_each_step(n_steps, left):
    answer = torch.tensor([0, 1, 2, 3, 4, 0])
    model = Sure(answer)
    ids = torch.tensor([[0, V, V, V, V, 0], [0, 1, V, V, V, V]])
    filled = unmask(model, ids, V, n_steps, torch.Generator().manual_seed(0))
    assert torch.equal(filled, answer.expand(2, -1))
    assert [keep.sum(1).tolist() for keep in model.asked] == [[n, n] for n in left]
    assert (ids == V).sum() == 8  # the input is left as it was


def test_unmask_begins_with_the_surest():
    model = Sure(torch.tensor([0, 1, 2, 3, 4, 0]), most=12.0)
    unmask(model, torch.full((1, T), V), V, T, torch.Generator().manual_seed(0), surest=True)
    assert [keep[0].tolist() for keep in model.asked] == [[False] * n + [True] * (T - n) for n in range(T)]


def test_unmask_never_writes_the_hidden_token():
    class Silly(nn.Module):
        def forward(self, ids, keep=None):
            logits = torch.zeros(int(keep.sum()), V + 1)
            logits[:, V] = 50.0
            return logits

    assert (unmask(Silly(), torch.full((2, T), V), V, 3) < V).all()


@pytest.mark.parametrize("hide, n_steps", [(False, 0), (True, 2)])
def test_what_is_drawn_begins_with_what_is_given(hide, n_steps):
    data = sequences(hide)
    module = draws.build(data, SMALL_BLOCKS, seed=0)
    drawn = draws.draw(module, data, data.test[:4, :2], n_steps)
    assert drawn.shape == (4, T) and drawn.max() < V and torch.equal(drawn[:, :2], data.test[:4, :2])


def test_neighbours():
    picture = torch.arange(196)[None].numpy() % 250
    left = draws.left(picture).reshape(14, 14)
    assert left[3].tolist() == [0, *picture[0, 42:55]]
    both = draws.left_and_above(picture).reshape(14, 14)
    assert (both[0] == left[0] * 256).all() and both[3, 1] == picture[0, 42] * 256 + picture[0, 29]


def test_a_file_of_noise_is_as_large_as_the_noise():
    noise = torch.randint(256, (50, 196), generator=torch.Generator().manual_seed(0))
    assert 8 <= draws.file_bits(noise, format="PNG") < 8.2
    assert draws.file_bits(torch.zeros(50, 196, dtype=torch.long), format="PNG") < 0.3


def test_the_ladder_of_pictures():
    """A pattern that its neighbours give away costs next to nothing after it was seen; the shares alone do not help."""
    flat = (torch.arange(196) % 2 * 100 + 50).expand(60, -1)
    ladder = draws.picture_ladder(flat, flat[:20])
    assert ladder["unigram"] == pytest.approx(1, abs=0.1) and ladder["left and upper neighbour"] < 0.1


def test_halved_digits():
    whole, half = draws.load_images("mnist-5k").test[0], draws.digits().test[0]
    require(half.shape == (1000, 1, 14, 14), "shape", half.shape, "halved")
    assert (half[:, 0, 3, 4] - whole[:, 0, 6:8, 8:10].float().mean((1, 2))).abs().max() <= 0.5
