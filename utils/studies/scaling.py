"""How does the loss fall with size? GPTs of eight sizes are trained on the same number of tokens, a power law is fitted
to their losses, and with it the loss of a larger one is predicted before that is trained (Kaplan 2020, "Scaling laws
for neural language models").
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import numpy as np
import torch

from transformer import GPT, Config, Recipe
from utils.studies.common import Task, tasks, train_for

# (blocks, width); the heads have 16 features each, and a feed-forward network is four times as wide.
SIZES = [(1, 16), (2, 16), (2, 32), (2, 48), (3, 64), (4, 80), (4, 96), (4, 128)]
HELD_BACK = (6, 192)
FAST_SIZES, FAST_HELD_BACK = [(1, 16), (2, 16), (1, 32), (2, 32)], (2, 48)
N_STEPS = 200
RATES = (6e-3, 1.2e-2, 2.4e-2)  # AdamW's; Muon's is 20/3 times as large
N_RESAMPLES = 500


def build(task: Task, size: tuple[int, int], rate: float, seed: int) -> GPT:
    """An untrained GPT of a size (blocks, width)."""
    torch.manual_seed(seed)
    n_layers, width = size
    config = Config(n_layers, width // 16, width, 4 * width, task.data.context, causal=True, init_std=0.05)
    recipe = Recipe("muon", rate, rate * 20 / 3, warmup=30, final_lr=0.0, seed=seed)
    return GPT(config, task.data.vocab_size, recipe)


def n_weights(gpt: GPT) -> int:
    """How many weights a token is multiplied by: those of the matrices in the blocks and of the head."""
    blocks = sum(weight.numel() for weight in gpt.model.blocks.parameters() if weight.ndim == 2)
    return blocks + gpt.model.head.weight.numel()


def validation_loss(task: Task, gpt: GPT) -> float:
    """Nats per token of the validation part."""
    trainer = gpt.trainer
    trainer.limit_val_batches = 1.0  # all of them; in training there is one batch only
    return trainer.validate(gpt, task.data, verbose=False)[0]["val_loss_epoch"]


def power_law(n: np.ndarray, floor: float, factor: float, exponent: float) -> np.ndarray:
    """loss = floor + factor * (n / 100,000)^-exponent; n: numbers of weights."""
    return floor + factor * (n / 1e5) ** -exponent


def fit(n: list[int], losses: list[float]) -> tuple[float, float, float]:
    """Floor, factor and exponent of the power law with the smallest squared relative errors."""
    from scipy.optimize import curve_fit

    limits = ([0, 0, 0], [min(losses), np.inf, 2])
    start = (min(losses) / 2, min(losses) / 2, 0.3)
    found, _ = curve_fit(power_law, np.array(n, float), losses, start, sigma=losses, bounds=limits, max_nfev=20_000)
    return tuple(found.tolist())


def predict(n: list[int], losses: list[float], asked: int) -> tuple[float, float, float]:
    """The loss of a model of `asked` weights by the fitted power law, and the two ends of a 95 % interval.

    The interval is found by fitting again and again, to the losses of the fitted law, each changed by the relative
    error of one of the sizes, drawn at random (a bootstrap of the residuals). A law of three parameters comes nearer
    to n losses than their true law, by sqrt((n - 3) / n) in the mean, so the errors are divided by that.
    """
    law = fit(n, losses)
    fitted = power_law(np.array(n, float), *law)
    errors = (np.array(losses) / fitted - 1) * np.sqrt(len(n) / (len(n) - 3))
    draws = np.random.default_rng(0)
    guesses = []
    for _ in range(N_RESAMPLES):
        again = fit(n, (fitted * (1 + draws.choice(errors, len(errors)))).tolist())
        guesses.append(power_law(asked, *again) * (1 + draws.choice(errors)))
    low, high = np.quantile(guesses, (0.025, 0.975))
    return float(power_law(asked, *law)), float(low), float(high)


def study(seeds: list[int], fast: bool, note: Callable[[str], None]) -> dict:
    """Return, for every size, its weights, its losses at each learning rate, and its losses with every seed at the best
    rate; the fitted power law; and of the larger size, which is trained last, the prediction and the losses.
    """
    sizes, held_back, n_steps = (FAST_SIZES, FAST_HELD_BACK, 4) if fast else (SIZES, HELD_BACK, N_STEPS)
    task = tasks()["next token"]

    def run(size: tuple[int, int], rate: float, seed: int) -> float:
        found = validation_loss(task, train_for(task, build(task, size, rate, seed), n_steps))
        note(f"{size[0]} blocks of width {size[1]}, learning rate {rate:g}, seed {seed}: {found:.3f} nats per token")
        return found

    found = []
    for size in sizes:
        at_rates = {rate: run(size, rate, seeds[0]) for rate in RATES}
        best = min(at_rates, key=at_rates.get)
        losses = [at_rates[best], *(run(size, best, seed) for seed in seeds[1:])]
        row = {"size": size, "weights": n_weights(build(task, size, best, 0)), "losses": losses}
        found.append(row | {"rate": best, "at rates": list(at_rates.values())})
    n, means = [one["weights"] for one in found], [fmean(one["losses"]) for one in found]
    weights = n_weights(build(task, held_back, RATES[0], 0))
    predicted = predict(n, means, weights)
    note(f"{held_back[0]} blocks of width {held_back[1]}: predicted {predicted[0]:.3f}")
    # The learning rate of the larger size is that which was best for the largest of the others.
    truth = [run(held_back, found[-1]["rate"], seed) for seed in seeds]
    larger = {"size": held_back, "weights": weights, "predicted": predicted, "losses": truth}
    tokens = n_steps * task.data.batch_size * task.data.context
    law = fit(n, means)
    return {"sizes": found, "law": law, "larger": larger, "steps": n_steps, "tokens": tokens, "rates": RATES}
