"""What is measured and written at the end of a run: for each kind of data, the figure, its baselines and an example.

Every function takes the trained module, its data, the folder of the run and the figures of the test part, writes its
example into the folder, and returns what it adds to summary.json. `loss_lines` are the baselines, in nats, that are
drawn into the loss curve.
"""

from __future__ import annotations

import math
from pathlib import Path

import lightning as L
import torch
from matplotlib.figure import Figure
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from utils import plots
from utils.data import baselines
from utils.data.disk import sample_of
from utils.data.images import ImageData
from utils.data.labelled import TableData
from utils.data.text import BERTData, GPTData
from utils.data.tokenisers import encode
from utils.files import write_text

EXAMPLES = 12  # windows in BERT's predictions.txt
BLOCKS = 2000  # windows of a test part, at most, from which the interval of its loss is drawn
EXAMPLE_TEXTS = 20  # texts in the predictions.txt of a classifier


def score_gpt(module: L.LightningModule, data: GPTData, out: Path, tested: dict) -> dict:
    """Bits per byte beside the ladder of n-grams and lzma."""
    ladder = baselines.text_ladder(sample_of(data.corpus.train), data.corpus.test)
    n_bytes = len(data.corpus.test.encode())
    n_tokens = len(data.test)
    # The first token has no context and gets no prediction: it is counted as an average one.
    nats = tested["test_loss"] * n_tokens + unknown_nats(data)
    data.tokenizer.save(str(out / "tokenizer.json"))
    nats_per_token = {name: bits * math.log(2) * n_bytes / n_tokens for name, bits in ladder.items()}
    del nats_per_token["uniform"]  # 8 bits per byte lie far above the picture
    bits = nats / n_bytes / math.log(2)
    spread = bootstrap(*block_losses(module, data))
    low, high = (bits * edge / tested["test_loss"] for edge in spread)
    return {
        "figure": {"name": "bits per byte", "value": bits, "better": "lower", "interval_95": [low, high]},
        "nats_per_character": nats / len(data.corpus.test),
        "baselines": ladder,
        "loss_lines": nats_per_token,
    }


def unknown_nats(data: GPTData) -> float:
    """What the characters of the test part that the tokeniser does not know cost: 8 bits for each of their bytes.

    The model only has to say [UNK] for them, which does not tell which character it is.
    """
    if data.tokenizer.token_to_id("[UNK]") is None:  # byte-level BPE knows all bytes
        return 0.0
    known = data.tokenizer.get_vocab()
    n_bytes = sum(len(character.encode()) for character in data.corpus.test if character not in known)
    return 8 * math.log(2) * n_bytes


@torch.inference_mode()
def block_losses(module: L.LightningModule, data: GPTData) -> tuple[Tensor, Tensor]:
    """The summed loss in nats and the number of predicted tokens of successive windows of the test part: (N,) each.

    Of a long test part, BLOCKS windows at even distances are taken.
    """
    inputs, targets = data.held_out(data.test)
    every = -(-len(inputs) // BLOCKS)
    sums, counts = [], []
    for ids, wanted in zip(inputs[::every].split(64), targets[::every].split(64), strict=True):
        ids, wanted = ids.to(module.device), wanted.to(module.device)
        logits = module.model(ids).transpose(1, 2)  # (B, V, T)
        sums.append(F.cross_entropy(logits.float(), wanted, ignore_index=-100, reduction="none").sum(1).cpu())
        counts.append((wanted != -100).sum(1).cpu())
    return torch.cat(sums), torch.cat(counts)


def bootstrap(sums: Tensor, counts: Tensor, draws: int = 1000) -> tuple[float, float]:
    """The 95 % interval of sums.sum() / counts.sum(), by drawing whole blocks again and again (Efron 1979).

    Blocks, and not single tokens, because the losses of neighbouring tokens go together.
    """
    drawn = torch.randint(len(sums), (draws, len(sums)), generator=torch.Generator().manual_seed(0))
    means = sums[drawn].sum(1).double() / counts[drawn].sum(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def score_bert(module: L.LightningModule, data: BERTData, out: Path, tested: dict) -> dict:
    """Accuracy on the masked tokens beside the unigram and the neighbour table; the first windows with predictions."""
    masked, targets = data.held_out(data.test)
    tokens = masked.where(targets == -100, targets)
    known = encode(data.tokenizer, sample_of(data.corpus.train))
    ladder = baselines.masked_ladder(known, masked, targets, tokens, data.vocab_size)
    data.tokenizer.save(str(out / "tokenizer.json"))
    lines = ["The first windows of the test part: each blank, its token, and the five likeliest tokens.", ""]
    for window, answers in zip(masked[:EXAMPLES], targets[:EXAMPLES], strict=True):
        lines += [window_with_blanks(window, data), *predictions(module, window, answers, data.tokenizer), ""]
    write_text(out / "predictions.txt", "\n".join(lines))
    return {
        "figure": accuracy(tested["test_acc"], int((targets != -100).sum())) | {"name": "masked-token accuracy"},
        "cross_entropy": tested["test_loss"],
        "baselines": {name: rung["accuracy"] for name, rung in ladder.items()},
        "baselines_cross_entropy": {name: ladder[name]["cross_entropy"] for name in ("uniform", "unigram")},
        "loss_lines": {"unigram": ladder["unigram"]["cross_entropy"]},
    }


def window_with_blanks(window: Tensor, data: BERTData) -> str:
    """The text of a masked window (T,), with ___ for every hidden token."""
    inside = window[1:-1].tolist()  # without [CLS] and [SEP]
    return data.tokenizer.decode(inside, skip_special_tokens=False).replace("[MASK]", "___")


@torch.inference_mode()
def predictions(module: L.LightningModule, window: Tensor, answers: Tensor, tokenizer: Tokenizer) -> list[str]:
    """One line for each hidden token of a window (T,): the token, and the model's five likeliest."""
    hidden = answers != -100
    logits = module.model(window[None].to(module.device))[0][hidden]
    likely = logits.softmax(-1).topk(5)
    lines = []
    for answer, ids, chances in zip(answers[hidden].tolist(), likely.indices, likely.values, strict=True):
        guesses = zip(ids.tolist(), chances.tolist(), strict=True)
        shown = ", ".join(f"{tokenizer.id_to_token(i)} {chance:.2f}" for i, chance in guesses)
        lines.append(f"    {tokenizer.id_to_token(answer)}: {shown}")
    return lines


def score_vit(module: L.LightningModule, data: ImageData, out: Path, tested: dict) -> dict:
    """Accuracy with its interval beside logistic regression."""
    return {
        "figure": accuracy(tested["test_acc"], len(data.images.test[1])),
        "baselines": baselines.image_ladder(data.images.train, data.images.test),
        "loss_lines": {"uniform": math.log(data.n_classes)},
    }


def attention_of_ten(module: L.LightningModule, data: ImageData) -> Figure:
    """Ten pictures of the test part with the class token's attention."""
    pictures, labels = data.images.test
    every = max(1, len(labels) // 10)
    pictures, labels = pictures[::every][:10], labels[::every][:10]
    inputs = data.normalize(pictures).to(module.device)
    with torch.inference_mode():
        guesses = module.model(inputs).argmax(-1)
    pairs = zip(labels.tolist(), guesses.tolist(), strict=True)
    titles = [f"{data.classes[label]}, said {data.classes[guess]}" for label, guess in pairs]
    return plots.image_attention(plots.scaled(pictures), module.model.attention_maps(inputs), titles)


def score_table(module: L.LightningModule, data: TableData, out: Path, tested: dict) -> dict:
    """Accuracy with its interval beside TF-IDF with logistic regression; the first texts with predictions."""
    texts, labels = data.table.test
    data.tokenizer.save(str(out / "tokenizer.json"))
    lines = ["Texts of the test part, their class, and the model's prediction.", ""]
    for text, label, ids in list(zip(texts, labels, data.ids["test"], strict=True))[:EXAMPLE_TEXTS]:
        with torch.inference_mode():
            logits = module.model(torch.tensor([ids], device=module.device))
        chance, guess = logits.softmax(-1)[0].max(0)
        lines += [" ".join(text.split())[:100], f"    {data.classes[label]}: {data.classes[guess]} {chance:.2f}", ""]
    write_text(out / "predictions.txt", "\n".join(lines))
    return {
        "figure": accuracy(tested["test_acc"], len(labels)),
        "baselines": baselines.table_ladder(data.table.train, data.table.test),
        "loss_lines": {"uniform": math.log(data.n_classes)},
    }


def accuracy(value: float, n: int) -> dict:
    """An accuracy on n items as the figure of a summary, with its 95 % interval."""
    low, high = baselines.interval(value, n)
    return {"name": "accuracy", "value": value, "better": "higher", "interval_95": [low, high]}


SCORE = {GPTData: score_gpt, BERTData: score_bert, ImageData: score_vit, TableData: score_table}
