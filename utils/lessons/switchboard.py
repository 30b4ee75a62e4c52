"""The switchboard: one set of blocks and three switches, which make it GPT, BERT, ViT or one of five relatives.

    board = Switchboard({"n_layers": 4, "n_heads": 4, "d_model": 128, "d_ff": 512, "positions": "rotary"})
    train_together(board, 1200)
    board.show("tokens", "past", "tokens")  # GPT
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from matplotlib.figure import Figure
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from transformer import ClassHead, Config, PatchEmbedding, Recipe, TokenEmbedding, Transformer, require
from utils import plots
from utils.data.batches import choose
from utils.data.images import ImageData, load_images
from utils.data.text import documents, part_of
from utils.data.tokenisers import char_tokenizer, encode
from utils.inference.interpret import input_gradients
from utils.muon import Muon, muon_groups
from utils.training.cpu import fast_on_cpu

Setting = tuple[str, str, str]  # what goes in, who may look, what comes out

SWITCHES = {"goes in": ("tokens", "patches"), "may look at": ("all", "past"), "comes out": ("tokens", "class")}
SETTINGS: list[Setting] = list(itertools.product(*SWITCHES.values()))
# The name of each setting, and what it does.
NAMES = {
    ("tokens", "past", "tokens"): ("GPT", "predicts the next token"),
    ("tokens", "all", "tokens"): ("BERT", "fills in hidden tokens"),
    ("patches", "all", "class"): ("ViT", "reads a digit"),
    ("tokens", "all", "class"): ("BERT with classes", "tells which module a text is from (BERT, section 4)"),
    ("tokens", "past", "class"): ("GPT with classes", "the same, from the last token (Radford 2018)"),
    ("patches", "past", "tokens"): ("GPT of pictures", "predicts the next patch (Chen 2020, iGPT)"),
    ("patches", "all", "tokens"): ("BERT of pictures", "fills in hidden patches (Bao 2021, BEiT)"),
    ("patches", "past", "class"): ("causal ViT", "reads a digit from the last patch, which has seen all others"),
}
CONTEXT, MODULES = 96, 8  # the characters of a passage, and the modules that they are from
PATCH, KINDS = 4, 64  # pixels, and kinds of patches
ASKED = {  # what is shown of what comes out
    ("tokens", "past", "tokens"): "the next character",
    ("tokens", "all", "tokens"): "the first hidden character",
    ("patches", "past", "tokens"): "each patch, after those before it",
    ("patches", "all", "tokens"): "the grey patches",
}
HIDDEN = 0.3  # the share of tokens or patches that BERT has to fill in
PARTS = ("train", "test")


# ------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Passages:
    """Passages of Python's documentation, whose tokens are single characters: ids (N, CONTEXT), and the numbers of
    their modules (N,).
    """

    tokenizer: Tokenizer
    modules: list[str]
    parts: dict[str, tuple[Tensor, Tensor]]


@cache
def passages() -> Passages:
    """Return the documentation of the MODULES largest modules of the standard library, cut into passages."""
    found = [(module, text) for module, text in documents() if module]
    sizes = Counter()
    for module, text in found:
        sizes[module] += len(text)
    modules = sorted(module for module, _ in sizes.most_common(MODULES))
    found = [(module, text) for module, text in found if module in modules]
    tokenizer = char_tokenizer("\n\n\n".join(text for _, text in found if part_of(text) == "train"))
    parts = {}
    for part in PARTS:
        rows, labels = [], []
        for number, module in enumerate(modules):
            texts = [text for name, text in found if name == module and part_of(text) == part]
            ids = encode(tokenizer, "\n\n\n".join(texts)).long()
            rows.append(ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT))
            labels += [number] * len(rows[-1])
        parts[part] = torch.cat(rows), torch.tensor(labels)
    return Passages(tokenizer, modules, parts)


def patches_of(images: Tensor) -> Tensor:
    """Pictures (N, 1, h, w) -> their patches (N, patches, PATCH * PATCH), row by row."""
    return F.unfold(images.float(), PATCH, stride=PATCH).mT


class PatchKinds:
    """The tokens of a picture: each patch is called by the most similar of KINDS typical patches, which k-means finds
    among the training patches. (BEiT takes a trained network in the place of k-means.)
    """

    def __init__(self, images: Tensor) -> None:
        """images: training pictures (N, 1, h, w), of which 1,000 are enough."""
        from sklearn.cluster import MiniBatchKMeans

        patches = patches_of(images[:: max(1, len(images) // 1000)]).flatten(0, 1)
        means = MiniBatchKMeans(KINDS, batch_size=4096, n_init=1, random_state=0).fit(patches.numpy())
        self.typical = torch.from_numpy(means.cluster_centers_).float()  # (KINDS, PATCH * PATCH)

    def encode(self, images: Tensor) -> Tensor:
        """Pictures (N, 1, h, w) -> the tokens of their patches (N, patches)."""
        return torch.cdist(patches_of(images), self.typical).argmin(-1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (N, patches) -> pictures (N, 1, h, w) of typical patches."""
        side = int(tokens.shape[1] ** 0.5) * PATCH
        return F.fold(self.typical[tokens].mT, side, PATCH, stride=PATCH)


@cache
def digit_patches() -> PatchKinds:
    """The typical patches of the training digits."""
    return PatchKinds(load_images("mnist-5k").train[0])


# ------------------------------------------------------------------------------------------------ the board


class Switchboard(nn.Module):
    """One set of blocks, two embeddings and four heads, and the eight models that can be put together from them.

    Models of the same setting of "goes in" share the embedding, those of the same "goes in" and "comes out" the head,
    and all share the blocks and the norm behind them: the same objects, not copies. The switch "may look at" changes
    `causal` in the blocks' attention, and nothing else.
    """

    def __init__(self, blocks: dict, seed: int = 0) -> None:
        """`blocks`: arguments of Config. seed: of the initial weights."""
        super().__init__()
        self.text = passages()
        self.special = self.text.tokenizer.get_vocab_size()  # one token more: the start of a text, and a hidden one
        self.data = ImageData(load_images("mnist-5k"))
        self.pictures = {"train": self.data.images.train, "test": self.data.images.test}
        self.kinds = digit_patches()
        self.patches = {part: self.kinds.encode(images) for part, (images, _) in self.pictures.items()}
        self.side = self.data.image_size // PATCH  # patches in a row

        torch.manual_seed(seed)
        config = Config(**blocks, max_len=max(CONTEXT, 1 + self.side**2))
        self.embeds = nn.ModuleDict({
            "tokens": TokenEmbedding(config, self.special + 1),
            "patches": PatchEmbedding(config, self.data.image_size, PATCH, channels=1),
        })  # fmt: skip
        self.heads = nn.ModuleDict({
            "tokens to tokens": nn.Linear(config.d_model, self.special + 1),
            "tokens to class": ClassHead(config, MODULES),
            "patches to tokens": nn.Linear(config.d_model, KINDS),
            "patches to class": ClassHead(config, self.data.n_classes),
        })  # fmt: skip
        self.models: dict[Setting, Transformer] = {}
        for setting in SETTINGS:
            goes_in, may_look, comes_out = setting
            causal = may_look == "past"
            # A class is read at the first position, or where that sees nothing but itself, at the last.
            position = None if comes_out == "tokens" else -1 if causal else 0
            embed, head = self.embeds[goes_in], self.heads[f"{goes_in} to {comes_out}"]
            self.models[setting] = Transformer(replace(config, causal=causal), embed, head, position)
        self.blocks, self.norm = self.models[SETTINGS[0]].blocks, self.models[SETTINGS[0]].norm
        for model in self.models.values():
            model.blocks, model.norm = self.blocks, self.norm

    def switch(self, *setting: str) -> Transformer:
        """Return the model of a setting (what goes in, who may look, what comes out), ready to be used.

        Until the next call: the blocks have one state of this switch for all models.
        """
        require(setting in NAMES, "setting", setting, f"one of {SETTINGS}")
        goes_in, may_look, comes_out = setting
        self.look(may_look)
        return self.models[setting]

    def look(self, may_look: str) -> None:
        """Let every position look at "all" or at the "past"."""
        for block in self.blocks:
            block.attention.causal = may_look == "past"

    def counts(self, *setting: str) -> tuple[int, int]:
        """How many weights of a setting's model are shared by all eight, and how many others it has."""
        shared = sum(weight.numel() for part in (self.blocks, self.norm) for weight in part.parameters())
        return shared, sum(weight.numel() for weight in self.models[setting].parameters()) - shared

    def batch(self, setting: Setting, part: str, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of these rows (B,) of a part (train or test), on the device of the weights.

        Targets are -100 where none is asked.
        """
        inputs, targets = self.asked(setting, part, rows, generator)
        device = self.norm.weight.device
        return inputs.to(device), targets.to(device)

    def asked(self, setting: Setting, part: str, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return what `batch` does, but on the CPU, where the data are."""
        goes_in, may_look, comes_out = setting
        if goes_in == "tokens":
            ids, labels = (tensor[rows] for tensor in self.text.parts[part])  # (B, T), (B,)
            inputs = F.pad(ids[:, :-1], (1, 0), value=self.special)
            if comes_out == "class":
                return inputs, labels
            if may_look == "past":
                return inputs, ids
            hidden = choose(ids.shape, round(HIDDEN * ids.shape[1]), generator)
            return ids.masked_fill(hidden, self.special), ids.masked_fill(~hidden, -100)
        images, labels = (tensor[rows] for tensor in self.pictures[part])  # (B, 1, h, w), (B,)
        images, ids = self.data.normalize(images), self.patches[part][rows]  # (B, patches)
        if comes_out == "class":
            return images, labels
        if may_look == "past":  # the class token predicts the first patch, the first patch the second
            return images, F.pad(ids, (0, 1), value=-100)
        hidden = choose(ids.shape, round(HIDDEN * ids.shape[1]), generator)
        return self.covered(images, hidden, 0.0), F.pad(ids.masked_fill(~hidden, -100), (1, 0), value=-100)

    def covered(self, images: Tensor, hidden: Tensor, grey: float) -> Tensor:
        """Pictures (B, 1, h, w) whose hidden patches (B, patches) are of one grey."""
        cover = hidden.view(-1, 1, self.side, self.side).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
        return images.masked_fill(cover, grey)

    def size(self, setting: Setting, part: str) -> int:
        """How many texts or pictures the part has."""
        return len((self.text.parts if setting[0] == "tokens" else self.pictures)[part][1])

    @torch.no_grad()
    def accuracy(self, setting: Setting, may_look: str | None = None) -> tuple[float, float]:
        """The share of the test part's targets that the setting's model gets right, and the share of the answer that
        is commonest in the training part. may_look: "all" or "past", where it is to differ from the setting's.
        """
        model = self.switch(*setting).eval()
        if may_look is not None:
            self.look(may_look)
        generator = torch.Generator().manual_seed(0)
        seen = self.asked(setting, "train", torch.arange(self.size(setting, "train")), generator)[1]
        commonest = seen[seen != -100].bincount().argmax()
        right, usual, total = 0, 0, 0
        for rows in torch.arange(self.size(setting, "test")).split(250):
            inputs, targets = self.batch(setting, "test", rows, generator)
            guesses, asked = model(inputs).argmax(-1), targets != -100
            right += int((guesses == targets)[asked].sum())
            usual += int((targets == commonest).sum())
            total += int(asked.sum())
        return right / total, usual / total

    def example(self, setting: Setting, number: int) -> tuple[Tensor, Tensor]:
        """One text or picture of the test part as a batch, with the same tokens hidden every time."""
        return self.batch(setting, "test", torch.tensor([number]), torch.Generator().manual_seed(number))

    @torch.no_grad()
    def predict(self, setting: Setting, number: int) -> tuple[str | Tensor, list[tuple[str, float]] | Tensor]:
        """What goes in and what comes out for one text or picture of the test part.

        In: a text, in which a hidden token is \u2588, or a picture (1, h, w) from 0 to 1. Out: the likeliest tokens or
        classes with their probabilities; or, where patches are predicted, a picture (1, h, w) of the likeliest ones.
        """
        goes_in, may_look, comes_out = setting
        inputs, targets = self.example(setting, number)
        logits = self.switch(*setting).eval()(inputs)[0].cpu()  # (T, V) or (K,)
        inputs, targets = inputs.cpu(), targets.cpu()
        if goes_in == "tokens":
            names = [self.text.tokenizer.id_to_token(i) for i in range(self.special)] + ["\u2588"]
            shown = "".join(names[i] for i in inputs[0].tolist())
            if comes_out == "class" or may_look == "past":
                shown = shown[1:]
            if comes_out == "class":
                return shown, likeliest(logits, self.text.modules)
            place = -1 if may_look == "past" else int((targets[0] != -100).nonzero()[0])
            return shown, likeliest(logits[place], [repr(name)[1:-1] for name in names])
        picture = plots.scaled(self.pictures["test"][0][number])
        if comes_out == "class":
            return picture, likeliest(logits, self.data.classes)
        asked = targets[0] != -100  # (1 + patches,)
        drawn = self.patches["test"][number].clone()
        if may_look == "past":
            drawn = logits[:-1].argmax(-1)  # each patch, after the true ones before it
        else:
            drawn[asked[1:]] = logits[asked].argmax(-1)
            picture = self.covered(picture[None], asked[None, 1:], 0.5)[0]
        return picture, self.kinds.decode(drawn[None])[0] / 255

    def show(self, goes_in: str, may_look: str, comes_out: str, number: int = 0) -> Figure:
        """Draw a setting: the model's name and weights, what goes in, who depends on whom, and what comes out.

        number: which text or picture of the test part goes in.
        """
        setting = (goes_in, may_look, comes_out)
        model = self.switch(*setting)
        require(0 <= number < self.size(setting, "test"), "number", number, f"below {self.size(setting, 'test')}")
        given, out = self.predict(setting, number)
        inputs, _ = self.example(setting, number)
        with torch.enable_grad():
            gradients = input_gradients(model, inputs).cpu()  # (T, T)
        name, does = NAMES[setting]
        shared, own = self.counts(*setting)
        title = f"{name}: {does}\n{shared:,} shared weights, {own:,} others"
        asked = ASKED.get(setting, "the class")
        return plots.switchboard(title, given, gradients, out, f"comes out: {asked}")


def likeliest(logits: Tensor, names: list[str], k: int = 5) -> list[tuple[str, float]]:
    """The names of the k largest logits (V,), with their probabilities."""
    top = logits.softmax(-1).topk(k)
    return [(names[i], p) for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)]


def train_together(
    board: Switchboard,
    n_steps: int,
    settings: list[Setting] = SETTINGS,
    batch_size: int = 32,
    seed: int = 0,
    note: Callable[[int, Setting, float], None] = lambda step, setting, loss: None,
) -> None:
    """Train the models of these settings in turn, a step for each, until n_steps are done.

    This is a plain loop, because Lightning's Trainer trains one model on one kind of batch. Muon trains the
    matrices of the blocks, AdamW everything else. note: called after every step with the step, the setting and its loss
    in nats.
    """
    recipe = Recipe(optimizer="muon", lr=3e-3, warmup=30)
    groups = muon_groups([{"params": list(board.parameters())}], board.blocks, recipe.muon_lr)
    optimizer = Muon(groups, lr=recipe.lr, betas=recipe.betas, weight_decay=0.0, fused=True)
    factor = lambda step: min(1, (step + 1) / recipe.warmup) * (1 - step / n_steps)  # noqa: E731
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    generator = torch.Generator().manual_seed(seed)
    fast_on_cpu(board).train()
    for step in range(n_steps):
        setting = settings[step % len(settings)]
        rows = torch.randint(board.size(setting, "train"), (batch_size,), generator=generator)
        inputs, targets = board.batch(setting, "train", rows, generator)
        logits = board.switch(*setting)(inputs)  # (B, T, V) or (B, K)
        loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten())  # in which -100 does not count
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(board.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        note(step, setting, loss.item())
