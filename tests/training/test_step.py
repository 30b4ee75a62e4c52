"""What happens in a step: batches, losses, the optimisers, the schedule, and what a run leaves in a checkpoint."""

import copy
import math
from collections import Counter

import lightning as L
import pytest
import torch
from conftest import QUIET, TINY, VOCAB, bold, words
from torch.nn import functional as F
from torch.utils.data import DataLoader

from transformer import BERT, GPT, Config, Recipe, ViT, train
from utils.muon import Muon, orthogonalize

close = torch.testing.assert_close


def lit(kind, recipe=None, **changes):
    """A tiny LightningModule: gpt, bert or vit."""
    recipe = recipe or Recipe(lr=1e-2, warmup=5, weight_decay=0.0)
    config = Config(**TINY | {"causal": kind == "gpt", "norm_first": kind != "bert"} | changes)
    if kind == "vit":
        return ViT(config, image_size=8, patch_size=4, n_classes=3, recipe=recipe, channels=2)
    return {"gpt": GPT, "bert": BERT}[kind](config, VOCAB, recipe)


def example(kind):
    """One batch (inputs, targets) that can be learned by heart."""
    generator = torch.Generator().manual_seed(0)
    if kind == "vit":
        return torch.randn(6, 2, 8, 8, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])
    ids = words(4, 10)
    ids[:, 0] = torch.arange(4)  # otherwise two texts could begin alike and go on differently
    if kind == "gpt":
        return ids[:, :-1], ids[:, 1:]
    hidden = torch.rand(ids.shape, generator=generator) < 0.3
    return ids.masked_fill(hidden, VOCAB - 1), ids.masked_fill(~hidden, -100)


class Repeat(L.LightningDataModule):
    """The same batches to train and to validate on."""

    def __init__(self, *batches, times=1):
        super().__init__()
        self.batches, self.times = batches, times

    def train_dataloader(self):
        return DataLoader(self.batches * self.times, batch_size=None)

    def val_dataloader(self):
        return DataLoader(self.batches, batch_size=None)


class FakeTrainer:
    """As much of a Trainer as the schedule reads."""
    precision = "32-true"

    estimated_stepping_batches = 1000
    callbacks = ()


TRAINER = FakeTrainer()  # a module keeps only a weak reference to its trainer


# ------------------------------------------------------------------------------------------------ whole runs
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", ["gpt", "bert", "vit"])
def test_overfit_a_batch_save_and_reload(kind, optimizer, tmp_path):
    torch.manual_seed(0)
    recipe = Recipe(optimizer=optimizer, lr=1e-2, warmup=5, weight_decay=0.0)
    *inputs, targets = batch = example(kind)
    module = train(lit(kind, recipe), Repeat(batch, times=200), tmp_path / "run", max_epochs=1, **QUIET)
    metrics = module.trainer.callback_metrics
    assert metrics["val_loss"] < 0.05 and metrics["val_acc"] == 1
    module.eval()
    with torch.no_grad():
        logits = module.model(*inputs)
        scored = targets != -100
        close(F.cross_entropy(logits[scored], targets[scored]), metrics["val_loss"], rtol=1e-4, atol=1e-6)
        for name in ("best", "last"):
            path = tmp_path / "run" / "checkpoints" / f"{name}.ckpt"
            again = type(module).load_from_checkpoint(path, weights_only=True).eval()
            assert again.model.config == module.model.config and again.recipe == recipe
            assert again.model(*inputs).equal(logits)


def test_an_epochs_figures_are_means_over_all_scored_targets():
    """Batches of different sizes, with different shares of scored targets."""
    module = lit("bert")
    bold(module.model, std=0.6).float()
    batches = []
    for seed, (n, rate) in enumerate([(8, 0.1), (8, 0.9), (2, 0.4)]):
        ids = words(n, 10, seed=seed)
        draw = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed))
        batches.append((ids, ids.masked_fill(draw > rate, -100)))
    trainer = L.Trainer(logger=False, enable_checkpointing=False, **QUIET)
    [metrics] = trainer.validate(module, Repeat(*batches), verbose=False)
    ids, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        logits = module.eval().model(ids)
    chances = logits.double().softmax(-1)
    cost, right, n = 0.0, 0, 0
    for row, place in (targets != -100).nonzero().tolist():
        answer = int(targets[row, place])
        cost -= math.log(chances[row, place, answer])
        right += int(logits[row, place].argmax()) == answer
        n += 1
    assert metrics["val_loss_epoch"] == pytest.approx(cost / n, rel=1e-5)
    assert metrics["val_acc_epoch"] == pytest.approx(right / n, abs=1e-6)


def test_accumulated_gradients_are_those_of_one_large_batch(tmp_path):
    ids, targets = example("gpt")
    weights = []
    for batches, accumulate in ([(ids, targets)], 1), ([(ids[:2], targets[:2]), (ids[2:], targets[2:])], 2):
        torch.manual_seed(0)
        module = lit("gpt").double()
        options = QUIET | {"max_epochs": 1, "accumulate_grad_batches": accumulate}
        train(module, Repeat(*batches, times=3), tmp_path / str(accumulate), **options)
        weights.append(module.state_dict())
    for name, weight in weights[0].items():
        close(weight, weights[1][name], rtol=1e-6, atol=1e-6, msg=name)


# ------------------------------------------------------------------------------------------------ optimisers
def with_spread(rows, columns, seed=0):
    """A random matrix with singular values from 0.01 to 1."""
    generator = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(rows, columns, generator=generator), full_matrices=False)
    return u @ torch.diag(torch.linspace(1, 0.01, min(rows, columns))) @ v


@pytest.fixture
def in_float32(monkeypatch):
    """Newton-Schulz steps in float32 also where the machine computes in bfloat16."""
    monkeypatch.setattr("utils.muon.has_bfloat16", lambda device: False)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rows, columns", [(8, 8), (24, 8), (8, 24)])
def test_orthogonalize(rows, columns, half, monkeypatch):
    monkeypatch.setattr("utils.muon.has_bfloat16", lambda device: half)
    matrices = torch.stack([with_spread(rows, columns, seed) for seed in range(3)])
    for before, after in zip(matrices, orthogonalize(1000 * matrices), strict=True):
        assert after.shape == before.shape
        values = torch.linalg.svdvals(after)
        assert values.min() > 0.6 and values.max() < 1.3
        u, _, v = torch.linalg.svd(before, full_matrices=False)
        turned = u.mT @ after @ v.mT  # the directions stay: the rest of it is diagonal
        close(turned, turned.diagonal().diag(), rtol=0, atol=0.1 if half else 1e-3)


def test_fused_qkv_takes_three_orthogonal_steps(in_float32):
    """Keys with gradients ten times smaller than the queries' still learn at the same speed."""
    parts = [with_spread(8, 8, seed) * size for seed, size in enumerate((1.0, 0.1, 0.01))]
    weight = torch.nn.Parameter(torch.zeros(24, 8))
    weight.grad = torch.cat(parts)
    Muon([{"params": [weight], "momentum": 0.95, "parts": 3}], lr=0.5, weight_decay=0.0).step()
    for part, moved in zip(parts, weight.detach().chunk(3), strict=True):
        values = torch.linalg.svdvals(moved / 0.5)
        assert values.min() > 0.6 and values.max() < 1.3
        close(-moved / 0.5, orthogonalize(part[None])[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rows, columns, size", [(16, 4, 2.0), (4, 16, 1.0)])
def test_muon_steps_further_in_tall_matrices(rows, columns, size):
    """By the root of rows / columns, so that a step changes what comes out alike, whatever the shape."""
    weight = torch.nn.Parameter(torch.zeros(rows, columns))
    weight.grad = with_spread(rows, columns)
    Muon([{"params": [weight], "momentum": 0.95, "parts": 1}], lr=0.5, weight_decay=0.0).step()
    values = torch.linalg.svdvals(weight.detach()) / 0.5 / size
    assert values.min() > 0.6 and values.max() < 1.3


def test_muon_decays_and_keeps_momentum():
    weight, grads = torch.nn.Parameter(with_spread(6, 6)), [with_spread(6, 6, seed) for seed in (1, 2)]
    expected, velocity = weight.detach().clone(), torch.zeros(6, 6)
    optimizer = Muon([{"params": [weight], "momentum": 0.9, "parts": 1}], lr=0.1, weight_decay=0.5)
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()
        velocity = 0.9 * velocity + 0.1 * grad
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * orthogonalize((0.1 * grad + 0.9 * velocity)[None])[0]
    close(weight.detach(), expected)


def parameters():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((6, 6), (18, 6), (5, 6), (6,))]


def optimize(optimizer, parameters, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def muon(parameters):
    groups = [{"params": parameters[:2], "momentum": 0.95, "lr": 0.02, "parts": 1}, {"params": parameters[2:]}]
    return Muon(groups, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)


def test_muons_other_parameters_follow_adamw():
    ours, theirs = parameters(), parameters()
    optimize(muon(ours), ours, range(10))
    optimize(torch.optim.AdamW(theirs, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1), theirs, range(10))
    assert all(mine.equal(other) for mine, other in zip(ours[2:], theirs[2:], strict=True))
    assert not any(torch.allclose(mine, other) for mine, other in zip(ours[:2], theirs[:2], strict=True))


def test_muon_goes_on_from_its_state():
    whole, parted = parameters(), parameters()
    optimize(muon(whole), whole, range(10))
    first = muon(parted)
    optimize(first, parted, range(5))
    second = muon(parted)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    optimize(second, parted, range(5, 10))
    assert all(one.equal(other) for one, other in zip(whole, parted, strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", ["gpt", "bert", "vit"])
def test_every_parameter_is_in_one_group(kind, optimizer):
    module = lit(kind, Recipe(optimizer=optimizer, weight_decay=0.1, muon_lr=0.03, lr=0.004))
    module.trainer = TRAINER
    groups = module.configure_optimizers()["optimizer"].param_groups
    counts = Counter(id(parameter) for group in groups for parameter in group["params"])
    assert set(counts.values()) == {1} and set(counts) == {id(parameter) for parameter in module.parameters()}
    group_of = {id(parameter): group for group in groups for parameter in group["params"]}
    for name, parameter in module.model.named_parameters():
        group = group_of[id(parameter)]
        table = any(part in name for part in ("tokens", "segments", "positions", "class_token"))
        matrix = parameter.ndim > 1 and not table  # a tied head goes by the name of the table
        assert group["weight_decay"] == (0.1 if matrix else 0.0), name
        orthogonal = optimizer == "muon" and name.startswith("blocks.") and matrix
        assert ("momentum" in group) == orthogonal, name
        assert group["initial_lr"] == (0.03 if orthogonal else 0.004), name


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_and_clipping(precision, tmp_path):
    """Lightning refuses to clip for an optimiser that would unscale gradients itself, as fused ones offer to."""
    batch = example("gpt")
    module = train(lit("gpt", Recipe(warmup=0)), Repeat(batch, times=3), tmp_path, max_epochs=1, precision=precision, **QUIET)
    assert module.configure_optimizers()["optimizer"].defaults["fused"]
    assert module.trainer.global_step == 3 and module.trainer.callback_metrics["val_loss"].isfinite()


class Seeds(L.Callback):
    """The state of the generator from which each batch draws its dropout."""

    def __init__(self):
        self.states = []

    def on_before_backward(self, *_):
        self.states.append(hash(bytes(torch.default_generator.get_state().tolist())))


def test_batches_of_one_step_drop_out_differently(tmp_path):
    """With accumulated gradients as well: one set of masks for all of them would train on fewer networks."""
    seeds = Seeds()
    train(
        lit("gpt", Recipe()), Repeat(example("gpt"), times=6), tmp_path, max_epochs=1, accumulate_grad_batches=3,
        callbacks=[seeds], **QUIET,
    )  # fmt: skip
    assert len(set(seeds.states)) == 6


@pytest.mark.parametrize("options", [{"max_epochs": 3}, {"max_steps": 7}])
def test_the_end_is_validated_and_saved_wherever_it_falls(options, tmp_path):
    """Also where validations are two passes apart, and the end is not at one."""
    batches = Repeat(example("gpt"), times=2)
    module = train(lit("gpt", Recipe(warmup=0)), batches, tmp_path, check_val_every_n_epoch=2, **options, **QUIET)
    kept = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == module.trainer.global_step == options.get("max_steps", 6)


def test_a_second_logger_is_refused(tmp_path):
    with pytest.raises(TypeError, match="logger"):
        train(lit("gpt", Recipe()), Repeat(example("gpt")), tmp_path, max_epochs=1, logger=False, **QUIET)


def test_training_begins_in_training_mode(tmp_path):
    module = lit("gpt", Recipe())
    module.eval()
    assert train(module, Repeat(example("gpt")), tmp_path, max_epochs=1, **QUIET).model.training


def test_learning_rate_rises_then_falls_as_a_cosine():
    module = lit("gpt", Recipe(warmup=99, final_lr=0.1))
    module.trainer = TRAINER
    factors = [module.lr_factor(step) for step in range(1001)]
    assert factors[0] == pytest.approx(0.01) and factors[49] == pytest.approx(0.5, rel=0.02)
    assert factors.index(max(factors)) in (98, 99)
    assert factors[500] == pytest.approx(0.55) and factors[250] == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert factors[1000] == pytest.approx(0.1)
    assert all(one > other for one, other in zip(factors[99:], factors[100:], strict=False))
