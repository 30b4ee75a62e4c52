"""Batches cut from tensors: the same items on any number of devices, and resumable in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F

from transformer import require


def shard(trainer: L.Trainer | None) -> dict[str, int]:
    """Return the arguments `rank` and `world` of the classes below for this device; none without a trainer."""
    return {} if trainer is None else {"rank": trainer.global_rank, "world": trainer.world_size}


def pad(lines: list[list[int]], value: int = 0) -> tuple[Tensor, Tensor]:
    """Make lists of token ids equally long by appending `value`.

    Returns the ids (B, T) and the padding mask (B, T), which is False where a value was appended.
    """
    lengths = torch.tensor([len(line) for line in lines])
    tensors = [torch.tensor(line) for line in lines]
    ids = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]


class TrainBatches:
    """The batches of a training part. Each iteration over this object is one epoch.

    order(generator): return the items of an epoch (N, ...), shuffled.
    make(items, generator): return the batch of these items as a tuple of tensors, whose first axis is the items.
    batch_size: items per optimiser step, over all devices together.
    rank, world: the number of this device, and how many devices there are. Each takes every `world`-th item of a
    batch, so several devices train on what one would train on, except for items that cannot be shared out evenly.

    All random numbers come from the seed, the epoch and the batch, and from nothing that was drawn before. So the
    epoch and the batch, which Lightning keeps in its checkpoints by `state_dict`, are enough to resume exactly.
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
        require(batch_size >= world, "devices", world, f"at most batch_size={batch_size}")
        self.order, self.make, self.batch_size = order, make, batch_size
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch = self.batch = 0  # which batch comes next
        n_items = len(order(torch.Generator().manual_seed(0)))
        self.n_batches = n_items // batch_size
        if n_items % batch_size >= world:  # a smaller batch at the end, with an item for every device
            self.n_batches += 1
        require(self.n_batches > 0, "devices", world, f"at most the number of training items, {n_items}")
        sizes = [batch_size] * (n_items // batch_size) + [n_items % batch_size]
        left = sum(size % world for size in sizes)
        if left and rank == 0:
            print(f"{left} of {n_items} training items are left out of each epoch: {world} devices cannot share them")

    def __len__(self) -> int:
        return self.n_batches

    def generator(self, *numbers: int) -> torch.Generator:
        """Return a generator of random numbers that depends on the seed and on these numbers alone."""
        seed = self.seed
        for number in numbers:
            seed = (seed * 1_000_003 + number + 1) % 2**63
        return torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        epoch = self.epoch
        items = self.order(self.generator(epoch))
        for i in range(self.batch, len(self)):
            # Count the batch before handing it out: whoever takes the last one may never ask for another.
            if i + 1 < len(self):
                self.epoch, self.batch = epoch, i + 1
            else:
                self.epoch, self.batch = epoch + 1, 0
            batch = self.make(items[i * self.batch_size : (i + 1) * self.batch_size], self.generator(epoch, i))
            # Every device gets equally many items, because the gradients of all devices count alike.
            n = len(batch[0]) // self.world * self.world
            yield tuple(tensor[self.rank : n : self.world] for tensor in batch)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.batch = state["epoch"], state["batch"]


class EvalBatches:
    """The batches of a held-out part, in its order: every item exactly once, whatever the number of devices.

    tensors: the whole part, whose first axis is the items. make: turns a slice of each tensor into a batch.
    rank, world: the number of this device, and how many devices there are.
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
        require(n_items >= world, "devices", world, f"at most the number of held-out items, {n_items}")
        self.tensors = [tensor[rank::world] for tensor in tensors]
        self.batch_size, self.make = batch_size, make
        # All devices have equally many batches, because they wait for each other after each; hence rounded up.
        self.n_batches = -(-n_items // (batch_size * world))

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        slices = [tensor.tensor_split(self.n_batches) for tensor in self.tensors]
        for batch in zip(*slices, strict=True):
            yield self.make(*batch)


class TrainData(L.LightningDataModule):
    """A data module whose training batches are resumed from a checkpoint, in the middle of an epoch and at its end.

    A subclass has `order`, `make`, `batch_size` and `seed`, the arguments of TrainBatches. Lightning by itself restores
    a loader's state in the middle of an epoch only.
    """

    start: dict[str, int] | None = None  # the state of the batches in a checkpoint that was loaded

    def train_dataloader(self) -> TrainBatches:
        batches = TrainBatches(self.order, self.make, self.batch_size, self.seed, **shard(self.trainer))
        if self.start is not None:
            batches.load_state_dict(self.start)
            self.start = None
        return batches

    def state_dict(self) -> dict[str, int]:
        return self.trainer.train_dataloader.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        if self.trainer.training:  # a test reads checkpoints as well, and leaves the training batches alone
            self.start = state


class Sequences(TrainData):
    """Batches of sequences of T tokens, to be continued (GPT) or filled in (BERT).

    train, validation, test: token ids (N, T), below vocab_size. One more token, `special`, stands for the start of a
    sequence to GPT and for a hidden token to BERT. hide: False for GPT, whose inputs are `special` and all tokens but
    the last, and whose targets are the tokens. True for BERT: of every batch a share of the tokens is hidden, drawn
    anew between none and all of them, and these are the targets (-100 at all other places).
    """

    eval_batch_size = 100

    def __init__(
        self, train: Tensor, validation: Tensor, test: Tensor, vocab_size: int, hide: bool, batch_size: int = 32
    ) -> None:
        super().__init__()
        self.train, self.validation, self.test = train, validation, test
        self.special, self.vocab_size = vocab_size, vocab_size + 1
        self.length = train.shape[1]
        self.hide, self.batch_size, self.seed = hide, batch_size, 0

    def order(self, generator: torch.Generator) -> Tensor:
        """Return the training sequences (N, T), shuffled for an epoch."""
        return self.train[torch.randperm(len(self.train), generator=generator)]

    def make(self, ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sequences (B, T) -> inputs and targets (B, T)."""
        if not self.hide:
            return F.pad(ids[:, :-1], (1, 0), value=self.special), ids
        n = int(torch.randint(1, self.length + 1, (), generator=generator))
        hidden = choose(ids.shape, n, generator)
        return ids.masked_fill(hidden, self.special), ids.masked_fill(~hidden, -100)

    def held_out(self, ids: Tensor) -> EvalBatches:
        """The batches of a part, with the same tokens hidden every time."""
        generator = torch.Generator().manual_seed(0)
        make = lambda rows: self.make(rows, generator)  # noqa: E731
        return EvalBatches(ids, batch_size=self.eval_batch_size, make=make, **shard(self.trainer))

    def val_dataloader(self) -> EvalBatches:
        return self.held_out(self.validation)

    def test_dataloader(self) -> EvalBatches:
        return self.held_out(self.test)


def choose(shape: tuple[int, int], n: int, generator: torch.Generator) -> Tensor:
    """A boolean tensor (B, T) that is True at n random places of every row."""
    places = torch.rand(shape, generator=generator).topk(n).indices
    return torch.zeros(shape, dtype=torch.bool).scatter(1, places, True)
