"""Bugs that public versions of these three models have had. Each is put into our code here, and a check must see it."""

import ast
import inspect
import json
import math
import re
from pkgutil import resolve_name

import lightning as L
import pytest
import test_model
import torch
from conftest import QUIET, TINY, bold, pictures, tiny_bert, tiny_gpt, tiny_vit, words
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import transformer
from transformer import Attention, Config, Recipe
from utils.data.images import ImageData, ImageSet
from utils.files import ROOT

SDPA = F.scaled_dot_product_attention
NOTEBOOKS = ROOT / "notebooks"


# ------------------------------------------------------------------------------------------------ the checks
def check_causal():
    """A later token changes no earlier logit."""
    test_model.test_a_later_token_changes_no_earlier_logit("learned", True, False)


def check_padding():
    """Padding counts for nothing, even when scores are far beyond 1,000."""
    model, ids = tiny_bert(), words(1, 8)
    for block in model.blocks:
        block.attention.qkv.weight.data *= 100
    mask = torch.arange(8)[None] < 5
    torch.testing.assert_close(model(ids, mask=mask)[:, :5], model(ids[:, :5]))


def check_attention():
    """Attention is the formula of the paper, written out in loops."""
    for causal in (False, True):
        attention = bold(Attention(Config(**TINY, causal=causal)))
        x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        q, k, v = (x[0] @ attention.qkv.weight.T + attention.qkv.bias).split(16, dim=-1)
        mixed = torch.zeros(5, 16, dtype=torch.float64)
        for head in (range(8), range(8, 16)):
            for t in range(5):
                scores = {s: sum(q[t, i] * k[s, i] for i in head) / math.sqrt(8) for s in range(t + 1 if causal else 5)}
                total = sum(math.exp(score) for score in scores.values())
                for s, score in scores.items():
                    mixed[t, list(head)] += math.exp(score) / total * v[s, list(head)]
        torch.testing.assert_close(attention(x)[0], mixed @ attention.out.weight.T + attention.out.bias)


def check_head():
    """Logits are the last block's states through the final norm and the word table: no softmax, no norm left out."""
    model, ids, kept = tiny_gpt(), words(2, 8), []
    model.blocks[-1].register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = model(ids)
    x = kept[0]
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    x = x * model.norm.weight + model.norm.bias
    torch.testing.assert_close(logits, x @ model.embed.tokens.weight.T)


class Oracle(nn.Module):
    """A model that is sure of the right answer, and of another where the answer is not asked for."""

    def __init__(self, answers, size):
        super().__init__()
        self.logits = F.one_hot(answers, size) * 100.0

    def forward(self, ids, mask, keep=None):
        return self.logits if keep is None else self.logits[keep]


def loss_of(answers, targets, size):
    module = transformer.BERT(Config(**TINY), size, Recipe())
    module.model, module.log_dict = Oracle(answers, size), lambda *_, **__: None
    return module.training_step((answers, targets), 0).item()


def check_loss():
    """A right answer costs nothing; a wrong one much, but nothing where no answer is asked for."""
    truth, scored = words(2, 10), torch.arange(20).view(2, 10) % 3 == 0
    answers = torch.where(scored, truth, truth + 1)
    assert loss_of(answers, truth.masked_fill(~scored, -100), 30_522) < 1e-3
    assert loss_of(answers, truth, 30_522) > 50


def check_patches():
    """Each vector after the class token sees one patch of the picture, and the vectors go row by row."""
    embed, images = tiny_vit().embed, pictures(1)
    before = embed(images)
    weight, bias = embed.project.weight, embed.project.bias
    for row in range(2):
        for column in range(2):
            patch = images[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            vector = torch.stack([(patch * feature).sum() for feature in weight]) + bias
            place = 1 + 2 * row + column
            torch.testing.assert_close(before[0, place], vector + embed.positions.table[place])
    for y, x in ((0, 0), (3, 4), (4, 3), (7, 7)):
        changed = images.clone()
        changed[0, 1, y, x] += 1
        moved = (embed(changed) != before).any(-1)[0].nonzero().flatten()
        assert moved.tolist() == [1 + 2 * (y // 4) + x // 4]


def check_cache():
    """Tokens read in chunks, with a cache, give the logits of tokens read at once."""
    test_model.test_cached_is_uncached("learned", True, [5, 4, 1, 2])


def check_sinusoids():
    """The table of sinusoidal positions is that of the paper."""
    test_model.test_sinusoids_are_those_of_the_paper()


def check_evaluation_is_deterministic():
    for model, inputs in ((tiny_gpt, words(1, 8)), (tiny_bert, words(1, 8)), (tiny_vit, pictures(1))):
        model = model(dropout=0.5)
        assert torch.equal(model(inputs), model(inputs))


def check_keep():
    """The logits of some positions are those that these positions have among all."""
    test_model.test_keep_picks_those_positions(tiny_bert, True)


def food(labels):
    """A data module of 75 pictures in each part, with three classes."""
    part = (torch.arange(75 * 2 * 64).view(75, 2, 8, 8).fmod(251).to(torch.uint8), labels)
    data = ImageData(ImageSet("made up", ["pizza", "steak", "sushi"], part, part, part, ""), batch_size=32)
    data.eval_batch_size = 32
    return data


def check_accuracy():
    """A model that always says sushi is right on 31 of 75, though on all 11 of the last batch."""
    labels = torch.cat((torch.full((20,), 2), torch.arange(44) % 2, torch.full((11,), 2)))
    data, config = food(labels), Config(**TINY)
    module = transformer.ViT(config, data.image_size, 4, data.n_classes, Recipe(), data.channels)
    module.model.head.classifier.bias.data[2] = 100.0
    trainer = L.Trainer(logger=False, enable_checkpointing=False, **QUIET)
    pictures, answers = data.normalize(data.images.validation[0]), data.images.validation[1]
    batches = DataLoader(list(zip(pictures.split(32), answers.split(32), strict=True)), batch_size=None)
    assert [len(answers) for _, answers in batches] == [32, 32, 11]  # uneven, or a plain mean would be right as well
    [metrics] = trainer.validate(module, batches, verbose=False)
    [accuracy] = [value for name, value in metrics.items() if name in ("val_acc", "val_acc_epoch")]
    assert abs(accuracy - 31 / 75) < 1e-6
    [metrics] = trainer.test(module, batches, verbose=False)
    assert abs(metrics["test_acc"] - 31 / 75) < 1e-6


def trained(folder):
    data = food(torch.arange(75) % 3)
    return transformer.train_vit(data, Config(**TINY), 4, Recipe(), out=folder, max_steps=3, **QUIET), data


def check_validated(folder):
    """A run has a validation loss, and keeps the weights that had the best."""
    module, _ = trained(folder)
    assert module.trainer.callback_metrics.get("val_loss", torch.tensor(math.nan)).isfinite()
    assert (folder / "checkpoints" / "best.ckpt").is_file()


def check_classes(folder):
    """As many outputs as classes."""
    module, data = trained(folder)
    inputs, _ = next(iter(data.val_dataloader()))
    assert module.model(inputs).shape == (len(inputs), len(data.classes))
    assert module.n_outputs == len(data.classes)


def check_names(notebook):
    """Every name that a notebook takes from transformer.py or utils exists there."""
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    sources = [source for cell in cells if not (source := "".join(cell["source"])).startswith("%%")]
    missing = []
    for name in taken(re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", "\n".join(sources))):
        try:
            resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    assert not missing


def taken(code):
    """The full names, such as utils.data.text.load_corpus, of what the code takes from this project."""
    nodes, full = list(ast.walk(ast.parse(code))), {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            full |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            full |= {name.asname or name.name: name.name for name in node.names}
    for node in nodes:
        if isinstance(node, ast.Attribute) and re.fullmatch(r"[\w.]+", text := ast.unparse(node)):
            first, rest = text.split(".", 1)
            if first in full or first in ("transformer", "utils"):
                full[text] = f"{full.get(first, first)}.{rest}"
    return {name for name in full.values() if name.split(".")[0] in ("transformer", "utils")}


# ------------------------------------------------------------------------------------------------ the bugs
def no_causal_mask(q, k, v, dropout_p=0.0, **_):
    return SDPA(q, k, v, dropout_p=dropout_p)


def causal_mask_at_the_top_left(q, k, v, attn_mask=None, is_causal=False, **options):
    return SDPA(q, k, v, is_causal=is_causal or attn_mask is not None, **options)


def inverted_mask(q, k, v, attn_mask=None, **options):
    return SDPA(q, k, v, attn_mask=None if attn_mask is None else ~attn_mask, **options)


def fill_of_minus_1000(q, k, v, attn_mask=None, **options):
    if attn_mask is not None:
        attn_mask = torch.zeros(attn_mask.shape, dtype=q.dtype).masked_fill(~attn_mask, -1e3)
    return SDPA(q, k, v, attn_mask=attn_mask, **options)


def scaled_by_model_width(q, k, v, **options):
    return SDPA(q, k, v, scale=1 / math.sqrt(q.shape[1] * q.shape[3]), **options)


def dropout_left_on(q, k, v, **options):
    return SDPA(q, k, v, **options | {"dropout_p": 0.5})


def heads_merged_without_transpose(q, k, v, **options):
    y = SDPA(q, k, v, **options)
    return y.reshape(len(y), y.shape[2], y.shape[1], -1).transpose(1, 2)  # so that the true merge undoes itself


def instead_of(owner, name, change):
    """A way to put `change` in the place of owner.name; it is given the original first."""
    original = getattr(owner, name)
    return lambda monkeypatch: monkeypatch.setattr(owner, name, lambda *a, **k: change(original, *a, **k))


def attend(change):
    return instead_of(F, "scaled_dot_product_attention", lambda _, *a, **k: change(*a, **k))


def built(change):
    """Change each model once it is built."""

    def init(original, model, *arguments):
        original(model, *arguments)
        change(model)

    return instead_of(transformer.Transformer, "__init__", init)


def norm_never_called(model):
    model.norm.forward = lambda x: x


def softmax_at_the_end(model):
    model.head.register_forward_hook(lambda module, inputs, logits: logits.softmax(-1))


def softmax_before_loss(original, criterion, logits, targets):
    return original(criterion, logits.softmax(-1), targets)


def every_target_scored(original, module, batch, stage):
    return original(module, (*batch[:-1], batch[-1].clamp(min=0)), stage)


def other_positions_kept(original, x, keep):
    return original(x, keep.roll(1, -1) if torch.is_tensor(keep) else keep)


def ten_outputs(original, head, config, n_classes, **options):
    original(head, config, 10, **options)


def doubled_exponent(original, start, stop, width, device=None):
    return torch.arange(start, stop)[:, None] * 10_000.0 ** (-2 * torch.arange(0, width, 2) / width)


def mixed_patches(original, embed, images):
    """The picture's numbers simply cut into as many rows as there are patches."""
    size, side = embed.project.kernel_size[0], images.shape[-1]
    rows = images.reshape(len(images), side // size, side // size, -1, size, size)
    return original(embed, rows.permute(0, 3, 1, 4, 2, 5).reshape(images.shape))


def batches_weighted_alike(original, module, figures, **how):
    original(module, figures, **how | {"batch_size": 1})


def classes_weighted_alike(original, logits, targets, n_classes, **options):
    return original(logits, targets, n_classes, **options | {"average": "macro"})


def no_validation(original, **options):
    return original(**options | {"limit_val_batches": 0})


BUGS = {
    "no causal mask": (attend(no_causal_mask), check_causal),
    "no causal mask in attention": (attend(no_causal_mask), check_attention),
    "causal mask at the top left": (attend(causal_mask_at_the_top_left), check_cache),
    "mask inverted": (attend(inverted_mask), check_padding),
    "mask fill of -1000": (attend(fill_of_minus_1000), check_padding),
    "scaled by model width": (attend(scaled_by_model_width), check_attention),
    "dropout left on at evaluation": (attend(dropout_left_on), check_evaluation_is_deterministic),
    "heads merged without transpose": (attend(heads_merged_without_transpose), check_attention),
    "final norm never called": (built(norm_never_called), check_head),
    "softmax in the model": (built(softmax_at_the_end), check_head),
    "softmax before the loss": (instead_of(nn.CrossEntropyLoss, "forward", softmax_before_loss), check_loss),
    "loss on padding and unmasked words": (
        instead_of(transformer.LitTransformer, "step", every_target_scored),
        check_loss,
    ),
    "other positions kept": (instead_of(transformer, "select", other_positions_kept), check_keep),
    "10 outputs for 3 classes": (instead_of(transformer.ClassHead, "__init__", ten_outputs), check_classes),
    "sinusoid exponent doubled": (instead_of(transformer, "position_angles", doubled_exponent), check_sinusoids),
    "patches mix regions": (instead_of(transformer.PatchEmbedding, "forward", mixed_patches), check_patches),
    "accuracy averaged per batch": (instead_of(L.LightningModule, "log_dict", batches_weighted_alike), check_accuracy),
    "accuracy averaged per class": (
        instead_of(transformer, "multiclass_accuracy", classes_weighted_alike),
        check_accuracy,
    ),
    "limit_val_batches=0": (instead_of(L, "Trainer", no_validation), check_validated),
}
CHECKS = list(dict.fromkeys(check for _, check in BUGS.values()))


def run(check, folder):
    """Checks that train a model need a folder."""
    return check(folder) if inspect.signature(check).parameters else check()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_our_code_has_none_of_them(check, tmp_path):
    run(check, tmp_path)


@pytest.mark.parametrize("bug, check", BUGS.values(), ids=BUGS)
def test_a_bug_is_seen(bug, check, monkeypatch, tmp_path):
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        run(check, tmp_path)


# ------------------------------------------------------------------------------------------------ notebooks
def notebook(path, *cells):
    cells = [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]
    path.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": ["transformer.None"]}, *cells]}))
    return path


@pytest.mark.parametrize(
    "cells",
    [
        ["from transformer import GPTs"],
        ["import transformer", "print(transformer.GPT2.d_modell)"],
        ["import transformer as t\nt.train_gpt(1)", "t.train_gtp(2)"],
        ["from transformer import DecoderTransformer", "DecoderTransformer.write(1)"],
        ["from utils.data import text, paintings"],
        ["from utils.data import text", "text.load_corpora()"],
        ["import utils.nothing"],
        ["import utils.data.text", "utils.data.text.load_corpora()"],
        ["%matplotlib inline\nif True:\n    !pip list\n    from utils.data.text import load_corpora"],
    ],
)
def test_a_notebook_with_a_name_that_does_not_exist_is_seen(cells, tmp_path):
    with pytest.raises(AssertionError):
        check_names(notebook(tmp_path / "made_up.ipynb", *cells))


def test_notebooks_use_only_names_that_exist(tmp_path):
    good = ["%%bash\nfrom nowhere", "%pip list\nimport utils.data.text, transformer as t\nfrom utils.data import images"]
    good += [
        "t.GPT2.d_model, utils.data.text.load_corpus, images.load_images().train.no_module",
        "import torch\ntorch.nothing",
    ]
    check_names(notebook(tmp_path / "made_up.ipynb", *good))
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        check_names(path)
