"""Text: corpora by name or path, tokenisers, and the data modules of GPT and BERT."""

from __future__ import annotations

import ast
import hashlib
import platform
import sys
import sysconfig
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from utils.batches import EvalBatches, TrainData, shard
from utils.download import DownloadError, Remote, fetch

SEPARATOR = "\n\n\n"  # between documents


@dataclass(frozen=True)
class Corpus:
    """A text in three disjoint parts."""

    name: str
    train: str
    validation: str
    test: str
    source: str  # where it comes from, and its licence

    def refit(self) -> Corpus:
        """The same with the validation part joined to the training part, for when nothing is left to choose.

        The validation part stays as it is, so its loss is then measured on text that was trained on.
        """
        return replace(self, name=f"{self.name}, refit", train=self.train + self.validation)

    def describe(self) -> dict:
        """Name, source, hash and sizes, for summary.json."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        digest = hashlib.sha256("\0".join(parts.values()).encode()).hexdigest()
        sizes = {part: {"characters": len(text), "bytes": len(text.encode())} for part, text in parts.items()}
        return {"name": self.name, "source": self.source, "sha256": digest, **sizes}


# ------------------------------------------------------------------------------------------------ corpora

SHAKESPEARE = Remote(
    "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
    "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)
WIKITEXT_2 = "https://raw.githubusercontent.com/pytorch/examples/77f55b912142e11fcfdf5b530231fb9c52f181e8/word_language_model/data/wikitext-2/"
WIKITEXT_2_FILES = {
    "train.txt": "blob:2d84b35af79e411d73ea7cae83c73964c6ac83b4",
    "valid.txt": "sha256:f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    "test.txt": "sha256:d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
}


def cut(text: str) -> tuple[str, str, str]:
    """A running text: its last 10 % for the test, the last 5 % of what remains for validation."""
    end = int(len(text) * 0.9)
    middle = int(end * 0.95)
    return text[:middle], text[middle:end], text[end:]


def shakespeare() -> Corpus:
    text = fetch(SHAKESPEARE, "tinyshakespeare.txt").read_text(encoding="utf-8")
    return Corpus("shakespeare", *cut(text), "plays of William Shakespeare, 1.1 MB; public domain")


def wikitext_2() -> Corpus:
    files = [fetch(Remote(WIKITEXT_2 + name, hash), name, "wikitext-2") for name, hash in WIKITEXT_2_FILES.items()]
    parts = [path.read_text(encoding="utf-8") for path in files]
    return Corpus("wikitext-2", *parts, "WikiText-2 (Merity 2016), Wikipedia articles; CC BY-SA 3.0")


def documents() -> list[tuple[str, str]]:
    """What every CPython carries: its language reference and the docstrings of its standard library.

    Pairs of (module, text): the top-level module or package; "" for the reference. No text comes twice.
    """
    from pydoc_data.topics import topics

    found = [("", text) for text in topics.values()]
    library = Path(sysconfig.get_path("stdlib"))
    others = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}
    for path in sorted(library.rglob("*.py")):
        inside = path.relative_to(library)
        if others.isdisjoint(inside.parts):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                tree = ast.parse(path.read_bytes())
            documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            nodes = (node for node in ast.walk(tree) if isinstance(node, documented))
            found += [(inside.parts[0].removesuffix(".py"), ast.get_docstring(node) or "") for node in nodes]
    by_text = {text.strip(): module for module, text in reversed(found) if text.strip()}  # its first module counts
    return [(module, text) for text, module in sorted(by_text.items(), key=lambda item: digest(item[0]))]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def part_of(text: str) -> str:
    """train, validation or test, by the hash of the text: it keeps its part from one corpus to the next."""
    place = int(digest(text)[:8], 16) / 16**8
    return "train" if place < 0.855 else "validation" if place < 0.9 else "test"


def python_docs() -> Corpus:
    """The documents, split by document."""
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    texts = [text for _, text in documents()]
    for text in texts:
        parts[part_of(text)].append(text)
    source = f"documentation of CPython {platform.python_version()}, {len(texts)} documents; PSF License"
    return Corpus("python-docs", *map(SEPARATOR.join, parts.values()), source)


CORPORA: dict[str, Callable[[], Corpus]] = {
    "python-docs": python_docs,
    "shakespeare": shakespeare,
    "wikitext-2": wikitext_2,
}


def load_corpus(name_or_path: str | Path = "python-docs", fallback: str | None = None) -> Corpus:
    """A corpus of the table, or any UTF-8 text file, cut at 85.5 % and 90 %.

    fallback: the corpus to go on with, said in one line, when there is no network. Without it: DownloadError.
    """
    name = str(name_or_path)
    if name in CORPORA:
        try:
            return CORPORA[name]()
        except DownloadError as error:
            if fallback is None:
                raise
            print(f"No network for {name} ({error}): going on with {fallback}.", file=sys.stderr)
            return load_corpus(fallback)
    path = Path(name_or_path)
    if not path.is_file():
        raise ValueError(f"data={name!r}: must be a text file or one of {', '.join(CORPORA)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"data={name!r}: must be UTF-8 text, and byte {error.start} is not") from error
    if "\0" in text:
        raise ValueError(f"data={name!r}: must be UTF-8 text, and it holds NUL bytes, as binary files do")
    if not text.strip():
        raise ValueError(f"data={name!r}: must be text, and it is empty")
    return Corpus(path.name, *cut(text.replace("\r\n", "\n")), "a text file of your own")


# ------------------------------------------------------------------------------------------------ tokenisers


def char_tokenizer(text: str) -> Tokenizer:
    """One token per character of `text`, in the order of their code points; all others are [UNK]."""
    vocabulary = {character: i for i, character in enumerate(["[UNK]", *sorted(set(text))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def bpe_tokenizer(text: str, vocab_size: int) -> Tokenizer:
    """Byte-level BPE as in GPT-2 (GPT-2, 2.2): any text can be written, and comes back the same."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def wordpiece_tokenizer(text: str, vocab_size: int) -> Tokenizer:
    """Lower-case WordPiece as in BERT (BERT, 3): [CLS] text [SEP], and [MASK] for a blank."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    # The trainer meets the pieces ##a, ##b, ... in random order and breaks ties by it, so they are numbered before.
    words = splitter.pre_tokenize_str(normalizer.normalize_str(text))
    pieces = sorted({"##" + letter for word, _ in words for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special + pieces, show_progress=False)
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = normalizer, splitter
    trained.train_from_iterator([text], trainer)
    if trained.get_vocab_size() > vocab_size:
        need = f"at least {trained.get_vocab_size()}: every letter of the text needs an id"
        raise ValueError(f"vocab_size={vocab_size}: must be {need}")
    tokenizer = Tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))  # here ##a is not special
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> Tensor:
    """Text -> ids (N,) without special tokens."""
    return torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids, dtype=torch.long)


# ------------------------------------------------------------------------------------------------ data modules


class TextData(TrainData):
    """A corpus as ids, and what GPTData and BERTData have in common.

    corpus: from `load_corpus`. context: tokens in a window. batch_size: windows per optimiser step, over all devices.
    """

    eval_batch_size = 64

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, context: int, batch_size: int, seed: int) -> None:
        super().__init__()
        for name, value in {"context": context, "batch_size": batch_size}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self.corpus, self.tokenizer, self.context = corpus, tokenizer, context
        self.batch_size, self.seed = batch_size, seed
        self.vocab_size = tokenizer.get_vocab_size()
        self.train, self.validation, self.test = (
            encode(tokenizer, text) for text in (corpus.train, corpus.validation, corpus.test)
        )
        for part, ids in {"training": self.train, "validation": self.validation, "test": self.test}.items():
            if len(ids) <= context:
                allowed = f"longer than one window of {context} tokens in each part"
                raise ValueError(f"data={corpus.name!r}: must be {allowed}; its {part} part has {len(ids)}")

    def order(self, generator: torch.Generator) -> Tensor:
        """Where the windows of a pass start, shuffled. Each pass cuts the text at another offset."""
        width = self.window
        last = len(self.train) - width - 1
        offsets = min(width, last + 1)
        offset = int(torch.randint(offsets, (1,), generator=generator))
        n = (last + 1 - offsets) // width + 1  # fits at every offset, so that all passes are equally long
        starts = offset + width * torch.arange(n)
        return starts[torch.randperm(len(starts), generator=generator)]

    def val_dataloader(self) -> EvalBatches:
        return EvalBatches(*self.held_out(self.validation), batch_size=self.eval_batch_size, **shard(self.trainer))

    def test_dataloader(self) -> EvalBatches:
        return EvalBatches(*self.held_out(self.test), batch_size=self.eval_batch_size, **shard(self.trainer))

    def describe(self) -> dict:
        """The corpus, with the size of each part in tokens."""
        description = self.corpus.describe()
        for part in ("train", "validation", "test"):
            description[part]["tokens"] = len(getattr(self, part))
        return description


class GPTData(TextData):
    """Windows of `context` tokens, and each token's successor as its target: (B, T), (B, T).

    tokenizer: "bpe", "char", or a tokenizer of your own. It is trained on the training part alone.
    """

    def __init__(
        self,
        corpus: Corpus,
        context: int = 128,
        batch_size: int = 16,
        tokenizer: str | Tokenizer = "bpe",
        vocab_size: int = 1024,
        seed: int = 0,
    ) -> None:
        if tokenizer == "char":
            tokenizer = char_tokenizer(corpus.train)
        elif tokenizer == "bpe":
            if vocab_size < 256:
                raise ValueError(f"vocab_size={vocab_size}: must be at least 256, one for every byte")
            tokenizer = bpe_tokenizer(corpus.train, vocab_size)
        elif not isinstance(tokenizer, Tokenizer):
            raise ValueError(f"tokenizer={tokenizer!r}: must be bpe, char or a tokenizers.Tokenizer")
        self.window = context
        super().__init__(corpus, tokenizer, context, batch_size, seed)

    def make(self, starts: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        windows = self.train[starts[:, None] + torch.arange(self.context + 1)]
        return windows[:, :-1], windows[:, 1:]

    def held_out(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Windows that overlap by half: each token but the first is scored once, with half a window before it."""
        stride, last = max(1, self.context // 2), len(ids) - self.context - 1
        starts = torch.cat((torch.arange(0, last, stride), torch.tensor([last])))
        windows = ids[starts[:, None] + torch.arange(self.context + 1)]
        inputs, targets = windows[:, :-1], windows[:, 1:].clone()
        scored_before = torch.cat((torch.tensor([0]), starts[:-1] + self.context))  # tokens scored by earlier windows
        places = starts[:, None] + torch.arange(self.context)
        targets[places < scored_before[:, None]] = -100
        return inputs, targets


class BERTData(TextData):
    """[CLS] tokens [SEP] with `mask_rate` of the tokens hidden, and the hidden tokens as targets: (B, T), (B, T).

    In training, `random_rate` and `keep_rate` of the chosen tokens show another word or themselves (BERT, 3.1);
    the held-out parts always show [MASK], on 15 % of the tokens, the same ones every time.
    """

    def __init__(
        self,
        corpus: Corpus,
        context: int = 64,
        batch_size: int = 64,
        tokenizer: Tokenizer | None = None,
        vocab_size: int = 1024,
        mask_rate: float = 0.15,
        random_rate: float = 0.1,
        keep_rate: float = 0.1,
        seed: int = 0,
    ) -> None:
        if context < 3:
            raise ValueError(f"context={context}: must be at least 3: [CLS], a token, [SEP]")
        for name, rate in {"mask_rate": mask_rate, "random_rate": random_rate, "keep_rate": keep_rate}.items():
            if not 0 <= rate <= 1 or name == "mask_rate" and rate == 0:
                least = "above 0" if name == "mask_rate" else "at least 0"
                raise ValueError(f"{name}={rate}: must be a share of the tokens, {least} and at most 1")
        self.window = context - 2
        self.mask_rate, self.random_rate, self.keep_rate = mask_rate, random_rate, keep_rate
        tokenizer = tokenizer or wordpiece_tokenizer(corpus.train, vocab_size)
        self.cls, self.sep, self.mask = (tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]", "[MASK]"))
        super().__init__(corpus, tokenizer, context, batch_size, seed)

    def windows(self, ids: Tensor, starts: Tensor) -> Tensor:
        words = ids[starts[:, None] + torch.arange(self.window)]
        cls, sep = words.new_full((len(words), 1), self.cls), words.new_full((len(words), 1), self.sep)
        return torch.cat((cls, words, sep), dim=1)

    def hide(self, ids: Tensor, rate: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The masked ids, the targets, and which places were chosen: the same number in every window."""
        n = max(1, round(rate * self.window))
        draw = torch.rand(ids.shape, generator=generator)
        draw[(ids == self.cls) | (ids == self.sep)] = -1
        chosen = torch.zeros_like(ids, dtype=torch.bool).scatter(1, draw.topk(n).indices, True)
        return ids.masked_fill(chosen, self.mask), ids.masked_fill(~chosen, -100), chosen

    def make(self, starts: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        ids = self.windows(self.train, starts)
        masked, targets, chosen = self.hide(ids, self.mask_rate, generator)
        fate = torch.rand(ids.shape, generator=generator)
        other = torch.randint(self.mask + 1, self.vocab_size, ids.shape, generator=generator)
        masked = torch.where(chosen & (fate < self.random_rate), other, masked)
        masked = torch.where(chosen & (fate >= 1 - self.keep_rate), ids, masked)
        return masked, targets

    def held_out(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        starts = torch.arange(0, len(ids) - self.window + 1, self.window)
        masked, targets, _ = self.hide(self.windows(ids, starts), 0.15, torch.Generator().manual_seed(0))
        return masked, targets
