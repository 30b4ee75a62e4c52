"""Batches: what TrainBatches and EvalBatches give to each device, and how an epoch is resumed."""

from types import SimpleNamespace

import pytest
import torch
from samples import corpus

from utils.data.batches import EvalBatches, TrainBatches
from utils.data.text import BERTData


def made(world: int = 1, rank: int = 0, n: int = 21, batch_size: int = 4) -> TrainBatches:
    def make(items, generator):
        return items, torch.rand(len(items), generator=generator)

    return TrainBatches(lambda g: torch.randperm(n, generator=g), make, batch_size, seed=3, rank=rank, world=world)


def read(batches, epochs: int = 1) -> list:
    return [tuple(tensor.tolist() for tensor in batch) for _ in range(epochs) for batch in batches]


def test_each_item_once_an_epoch_in_another_order():
    batches = made()
    assert len(batches) == 6
    first, second = read(batches), read(batches)
    for whole in (first, second):
        assert sorted(sum((items for items, _ in whole), [])) == list(range(21))
    assert first != second
    assert read(made(), 2) == first + second


@pytest.mark.parametrize("stop", range(1, 18))
def test_batches_go_on_where_they_stopped(stop):
    whole, batches = read(made(), 3), made()
    taken = []
    while len(taken) < stop:
        for batch in batches:
            taken.append(tuple(tensor.tolist() for tensor in batch))
            if len(taken) == stop:
                break
    resumed = made()
    resumed.load_state_dict(batches.state_dict())
    rest = []
    while len(taken) + len(rest) < len(whole):
        rest += read(resumed)
    assert taken + rest == whole


@pytest.mark.parametrize("world", [2, 3])
def test_devices_share_each_batch(world):
    whole, parts = read(made(batch_size=6)), [read(made(world, rank, batch_size=6)) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    for i, (items, noise) in enumerate(whole[: len(parts[0])]):
        n = len(items) // world * world  # 21 items leave a last batch of 3: one for each of two, and one for none
        for rank, part in enumerate(parts):
            assert part[i] == (items[rank:n:world], noise[rank:n:world])


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("n", [3, 4, 5, 8, 9, 24, 25, 26])
def test_evaluation_covers_everything_once_on_any_number_of_devices(world, n):
    parts = [EvalBatches(torch.arange(n), torch.arange(n) * 2, batch_size=4, rank=r, world=world) for r in range(world)]
    assert len({len(part) for part in parts}) == 1  # otherwise they would wait for each other for ever
    batches = [batch for part in parts for batch in part]
    assert sorted(torch.cat([items for items, _ in batches]).tolist()) == list(range(n))
    assert all(0 < len(items) <= 4 and torch.equal(items * 2, twice) for items, twice in batches)
    assert all(len(list(part)) == len(part) for part in parts)


def test_too_many_devices():
    with pytest.raises(ValueError, match="devices=5: must be at most batch_size=4"):
        made(world=5)
    with pytest.raises(ValueError, match="devices=4: must be at most the number of held-out items, 3"):
        EvalBatches(torch.arange(3), batch_size=4, world=4)
    with pytest.raises(ValueError, match="devices=4: must be at most the number of training items, 3"):
        made(world=4, n=3)


def test_data_modules_share_out_their_batches():
    """The batches of two devices are together those of one."""
    data = BERTData(corpus(), context=16, batch_size=8, vocab_size=200)
    whole = list(data.train_dataloader()), list(data.val_dataloader())
    parts = []
    for rank in range(2):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        parts.append((list(data.train_dataloader()), list(data.val_dataloader())))
    data.trainer = None
    for i, batch in enumerate(whole[0]):
        for rank in range(2):
            n = len(batch[0]) // 2 * 2
            assert all(map(torch.equal, parts[rank][0][i], (tensor[rank:n:2] for tensor in batch)))
    rows = sorted(row.tolist() for batch in whole[1] for row in batch[0])
    assert rows == sorted(row.tolist() for part in parts for batch in part[1] for row in batch[0])


def test_items_that_devices_cannot_share_are_said_to_be_left_out(capsys):
    for rank in (0, 1):
        assert sum(len(items) for items, _ in read(made(world=2, rank=rank))) == 10
    (line,) = capsys.readouterr().out.splitlines()  # the first device says it for all
    assert line == "1 of 21 training items are left out of each epoch: 2 devices cannot share them"
    made(world=2, n=20)
    made()
    assert capsys.readouterr().out == ""
