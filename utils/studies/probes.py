"""What does each objective make a network know? Linear probes read it from the hidden states of every layer (Alain
2016, "Understanding intermediate layers using linear classifier probes").

GPT and BERT are trained on the same passages of text and ViT on digits, for equally many steps. A probe is a logistic
regression on the hidden states behind one layer. Beside the trained networks stand untrained ones, whose features are
random; layer 0 is the embedding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from utils.data.images import load_images
from utils.inference.generate import evaluating
from utils.lessons.switchboard import Setting, Switchboard, digit_patches, passages, train_together
from utils.studies.common import BLOCKS, SMALL_BLOCKS

TRUNKS: dict[str, Setting] = {
    "GPT": ("tokens", "past", "tokens"),
    "BERT": ("tokens", "all", "tokens"),
    "ViT": ("patches", "all", "class"),
}
N_STEPS = 300
N_ITEMS = 2000  # passages or pictures that a probe is trained on, and half as many that it is tested on
PLACES = 3  # hidden states of each passage or picture
MARGIN = 16  # no state is read so near to an end
STRETCH = 12  # positions that count as the same place
OPEN, CLOSE = "([{", ")]}"


def brackets_open(texts: list[str]) -> Tensor:
    """Whether a bracket that was opened in the text is still open behind each character. N texts of T -> (N, T)."""
    rows = []
    for text in texts:
        depth, row = 0, []
        for character in text:
            depth = max(0, depth + (character in OPEN) - (character in CLOSE))
            row.append(depth > 0)
        rows.append(row)
    return torch.tensor(rows).long()


def questions(goes_in: str, part: str, n: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return n inputs of a part, and what a probe is asked of each: {question: the answers (n,) or (n, T)}.

    -1 stands where a question has no answer, before the first token and behind the last.
    """
    if goes_in == "tokens":
        ids, labels = passages().parts[part]
        rows = torch.linspace(0, len(ids) - 1, min(n, len(ids))).long()
        inputs = tokens = ids[rows]  # (n, T)
        whole = {"module": labels[rows]}
        names = [passages().tokenizer.id_to_token(i) for i in range(passages().tokenizer.get_vocab_size())]
        own = {"a bracket is open": brackets_open(["".join(names[i] for i in row) for row in tokens.tolist()])}
    else:
        images, labels = getattr(load_images("mnist-5k"), part)
        rows = torch.linspace(0, len(images) - 1, min(n, len(images))).long()
        inputs, tokens = images[rows], digit_patches().encode(images[rows])  # (n, patches)
        whole, own = {"digit": labels[rows]}, {}
    edge = tokens.new_full((len(tokens), 1), -1)
    place = torch.arange(tokens.shape[1]) // STRETCH
    return inputs, {
        **whole,
        "next token": torch.cat((tokens[:, 1:], edge), 1),
        "previous token": torch.cat((edge, tokens[:, :-1]), 1),
        **own,
        "place": place.expand(len(tokens), -1),
    }


@torch.inference_mode()
def states(board: Switchboard, setting: Setting, inputs: Tensor) -> list[Tensor]:
    """The hidden states (n, T, C) of the inputs, behind the embedding and behind every block; on the CPU."""
    model, device = board.switch(*setting), board.norm.weight.device
    if setting[0] == "patches":
        inputs = board.data.normalize(inputs)
    found: list[list[Tensor]] = [[] for _ in range(1 + len(model.blocks))]
    with evaluating(model):
        for batch in inputs.to(device).split(250):
            x = model.embed(batch)
            for layer, step in enumerate((None, *model.blocks)):
                x = x if step is None else step(x)
                found[layer].append((x[:, 1:] if setting[0] == "patches" else x).cpu())  # without the class token
    return [torch.cat(parts) for parts in found]


def chosen(hidden: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """What a probe reads (N, C) and its answers (N,): PLACES states of every item, or their mean where the question is
    about the whole item. hidden: (n, T, C), answers: (n,) or (n, T).
    """
    if answers.ndim == 1:
        return hidden.mean(1), answers
    T = hidden.shape[1]
    draws = torch.Generator().manual_seed(0)
    places = torch.randint(MARGIN, T - MARGIN, (len(hidden), PLACES), generator=draws)  # (n, PLACES)
    rows = torch.arange(len(hidden))[:, None]
    return hidden[rows, places].flatten(0, 1), answers[rows, places].flatten()


def probe(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """The accuracy on `test` of a logistic regression that was trained on `train`: states (N, C), answers (N,)."""
    from sklearn.linear_model import LogisticRegression

    mean, std = train[0].mean(0), train[0].std(0) + 1e-6
    regression = LogisticRegression(C=0.1, max_iter=300)
    regression.fit(((train[0] - mean) / std).numpy(), train[1].numpy())
    return float(regression.score(((test[0] - mean) / std).numpy(), test[1].numpy()))


def study(seeds: list[int], fast: bool, note: Callable[[str], None]) -> dict:
    """Return the probes' accuracies, {"tokens" or "patches": {question: {network: [[layer 0, 1, ...], for each
    seed]}}}, and those of the answer that is commonest in the training part.
    """
    blocks, n_steps, n = (SMALL_BLOCKS, 4, 60) if fast else (BLOCKS, N_STEPS, N_ITEMS)
    results: dict = {"tokens": {}, "patches": {}}
    commonest: dict = {"tokens": {}, "patches": {}}
    for seed in seeds:
        for name, setting in TRUNKS.items():
            goes_in = setting[0]
            board = Switchboard({**blocks, "positions": "rotary"}, seed)
            for network in (f"{name}, untrained", name):
                if network == name:
                    train_together(board, n_steps, [setting], seed=seed)
                seen, taught = questions(goes_in, "train", n)
                unseen, asked = questions(goes_in, "test", n // 2)
                layers = list(zip(states(board, setting, seen), states(board, setting, unseen), strict=True))
                for question in taught:
                    found = []
                    for old, new in layers:
                        train, test = chosen(old, taught[question]), chosen(new, asked[question])
                        found.append(probe(train, test))
                        usual = train[1].bincount().argmax()
                        commonest[goes_in][question] = float((test[1] == usual).float().mean())
                    results[goes_in].setdefault(question, {}).setdefault(network, []).append(found)
                    note(f"seed {seed}: {network}: {question}: " + " ".join(f"{one:.3f}" for one in found))
    return {"accuracy": results, "commonest": commonest, "steps": n_steps, "blocks": blocks}
