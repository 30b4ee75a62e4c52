"""Batches cut from tensors, the same on any number of devices, and resumable in the middle of a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import lightning as L
import torch
from torch import Tensor


def shard(trainer: L.Trainer | None) -> dict[str, int]:
    """Which part of the batches this device takes: the arguments `rank` and `world` of the classes below."""
    return {} if trainer is None else {"rank": trainer.global_rank, "world": trainer.world_size}


def pad(lines: list[list[int]], value: int = 0) -> tuple[Tensor, Tensor]:
    """Lines of ids of different lengths -> ids (B, T), filled up with `value`, and the mask (B, T), False there."""
    lengths = torch.tensor([len(line) for line in lines])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(line) for line in lines], True, value)
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]


class TrainBatches:
    """Endless passes over a training part: iterating gives one pass, the next iteration the next pass.

    order(generator): the items of a pass, (N, ...), shuffled.
    make(items, generator): the batch of these items as a tuple of tensors, first axis = items.
    batch_size: items per optimiser step over all devices together. A device takes every `world`-th of them, so two
    devices train on exactly what one would, but for items that do not come out even.

    All randomness comes from (seed, pass, batch): nothing depends on what was drawn before. Lightning keeps
    `state_dict` in its checkpoints.
    """

    def __init__(
        self,
        order: Callable[[torch.Generator], Tensor],
        make: Callable[[Tensor, torch.Generator], tuple[Tensor, ...]],
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.order, self.make, self.batch_size = order, make, batch_size
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch = self.batch = 0
        if batch_size < world:
            raise ValueError(f"devices={world}: must be at most batch_size={batch_size}")
        # A last, smaller batch counts only if it has an item for every device.
        n_items = len(order(torch.Generator().manual_seed(0)))
        self.n_batches = n_items // batch_size + (n_items % batch_size >= world)
        if self.n_batches == 0:
            raise ValueError(f"devices={world}: must be at most the number of training items, {n_items}")

    def __len__(self) -> int:
        return self.n_batches

    def generator(self, *where: int) -> torch.Generator:
        """A generator that depends on the seed and on `where` alone."""
        seed = self.seed
        for number in where:
            seed = (seed * 1_000_003 + number + 1) % 2**63
        return torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        epoch, first = self.epoch, self.batch
        items = self.order(self.generator(epoch))
        for i in range(first, len(self)):
            # Counted before the batch is handed out: whoever takes the last one may never ask for another.
            self.epoch, self.batch = (epoch, i + 1) if i + 1 < len(self) else (epoch + 1, 0)
            batch = self.make(items[i * self.batch_size : (i + 1) * self.batch_size], self.generator(epoch, i))
            n = len(batch[0]) // self.world * self.world  # alike on all devices, whose gradients count alike
            yield tuple(tensor[self.rank : n : self.world] for tensor in batch)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.batch = state["epoch"], state["batch"]


class EvalBatches:
    """One full pass in order: every item exactly once, whatever the number of devices.

    tensors: the whole part, first axis = items; make: what turns a slice of them into a batch.
    """

    def __init__(
        self,
        *tensors: Tensor,
        batch_size: int,
        make: Callable[..., tuple[Tensor, ...]] = lambda *tensors: tensors,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        n_items = len(tensors[0])
        if n_items < world:
            raise ValueError(f"devices={world}: must be at most the number of held-out items, {n_items}")
        self.tensors = [tensor[rank::world] for tensor in tensors]
        self.batch_size, self.make = batch_size, make
        self.n_batches = -(-n_items // (batch_size * world))  # alike on all devices: they meet after each

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for batch in zip(*(tensor.tensor_split(self.n_batches) for tensor in self.tensors), strict=True):
            yield self.make(*batch)


class TrainData(L.LightningDataModule):
    """The training batches of a data module that has order, make, batch_size and seed, and where they stand.

    Lightning restores a loader's own state in the middle of a pass, but not at its end: here it is kept for both.
    """

    start: dict[str, int] | None = None

    def train_dataloader(self) -> TrainBatches:
        batches = TrainBatches(self.order, self.make, self.batch_size, self.seed, **shard(self.trainer))
        if self.start is not None:
            batches.load_state_dict(self.start)
            self.start = None
        return batches

    def state_dict(self) -> dict[str, int]:
        return self.trainer.train_dataloader.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        if self.trainer.training:  # a test reads checkpoints, too
            self.start = state
