"""Text: corpora by name or by path, and the data modules that cut them into windows for GPT and BERT."""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from transformer import require
from utils.data.batches import EvalBatches, TrainData, shard
from utils.data.disk import LongText, Text, long_text, n_bytes, progress, read_blocks, sample_of
from utils.data.tokenisers import bpe_tokenizer, char_tokenizer, encode, wordpiece_tokenizer
from utils.download import Remote, fetch, load_named
from utils.files import shown

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
SEPARATOR = "\n\n\n"  # between documents
SUFFIXES = (".txt", ".md", ".py", ".jsonl")  # of the files in a folder that count as text
PARTS = ("train", "validation", "test")
MANY = 100  # documents: so many are divided among the parts as they are
MOST_VALIDATION, MOST_TEST = 200_000, 500_000  # characters: more of a long text would take long to score
LONG = 20_000_000  # bytes: longer texts stay on disk
SAMPLE = 5_000_000  # characters of a long text, on which its tokeniser and the baselines are fitted


@dataclass(frozen=True)
class Corpus:
    """A text in three disjoint parts. Of a text of more than LONG bytes, the training part stays on disk."""

    name: str
    train: Text
    validation: str
    test: str
    source: str  # where the text comes from, and its licence

    def refit(self) -> Corpus:
        """Return a copy that also trains on the validation part, for the last run, when every setting is chosen.

        The validation part itself stays as it is, so its loss is then measured on text that was trained on.
        """
        allowed = "left out: of a text that stays on disk, the validation part would add next to nothing"
        require(isinstance(self.train, str), "refit", True, allowed)
        return replace(self, name=f"{self.name}, refit", train=self.train + self.validation)

    def describe(self) -> dict:
        """Return the name, the source, a hash and the size of each part, for summary.json."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        sizes = {part: {"characters": len(text), "bytes": n_bytes(text)} for part, text in parts.items()}
        texts = [text.sha256 if isinstance(text, LongText) else text for text in parts.values()]
        return {"name": self.name, "source": self.source, "sha256": digest("\0".join(texts)), **sizes}


def digest(text: str) -> str:
    """Return the SHA-256 of a text's UTF-8 bytes in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def cut(text: str) -> tuple[str, str, str]:
    """Cut a text, in its order, where `edges` says: into the parts for training, for validation and for the test."""
    middle, end = edges(len(text))
    return text[:middle], text[middle:end], text[end:]


def edges(length: int) -> tuple[int, int]:
    """Where the validation and the test part of a text of so many characters begin.

    They get 4.5 % and 10 % of it, but at most MOST_VALIDATION and MOST_TEST characters.
    """
    end = max(int(length * 0.9), length - MOST_TEST)
    return max(int(end * 0.95), end - MOST_VALIDATION), end


def shakespeare() -> Corpus:
    """Tiny Shakespeare (Karpathy 2015), cut as one running text."""
    text = fetch(SHAKESPEARE, "tinyshakespeare.txt").read_text(encoding="utf-8")
    return Corpus("shakespeare", *cut(text), "plays of William Shakespeare, 1.1 MB; public domain")


def wikitext_2() -> Corpus:
    """WikiText-2 in the three parts that it is published in."""
    parts = []
    for name, expected in WIKITEXT_2_FILES.items():
        path = fetch(Remote(WIKITEXT_2 + name, expected), name, "wikitext-2")
        parts.append(path.read_text(encoding="utf-8"))
    return Corpus("wikitext-2", *parts, "WikiText-2 (Merity 2016), Wikipedia articles; CC BY-SA 3.0")


def python_docs() -> Corpus:
    """The documentation that comes with this CPython, split by document."""
    texts = [text for _, text in documents()]
    source = f"documentation of CPython {platform.python_version()}, {len(texts)} documents; PSF License"
    return Corpus("python-docs", *split_documents(texts).values(), source)


def documents() -> list[tuple[str, str]]:
    """Return the documentation that every CPython carries as pairs (module, text), ordered by the texts' hashes.

    The texts are the language reference, whose module is "", and the docstrings of the standard library, whose
    module is the top-level module or package. A text that occurs more than once is listed with its first module.
    """
    from pydoc_data.topics import topics

    found = [("", text) for text in topics.values()]
    library = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}
    for path in sorted(library.rglob("*.py")):
        inside = path.relative_to(library)
        if left_out.isdisjoint(inside.parts):
            module = inside.parts[0].removesuffix(".py")
            found += [(module, text) for text in docstrings(path)]

    modules: dict[str, str] = {}
    for module, text in found:
        if text.strip():
            modules.setdefault(text.strip(), module)
    return [(modules[text], text) for text in sorted(modules, key=digest)]


def docstrings(path: Path) -> list[str]:
    """Return the docstrings of a Python file: its own, and those of its classes and functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        tree = ast.parse(path.read_bytes())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]


def part_of(text: str, total: int = 1) -> str:
    """Return train, validation or test, with chances of 85.5, 4.5 and 10 %, decided by the text's hash alone.

    So a text is in the same part of every corpus and table that contains it.
    total: the characters of the corpus. In a long one, so many texts more go into training that about MOST_VALIDATION
    and MOST_TEST characters are left for the other parts.
    """
    place = int(digest(text)[:8], 16) / 16**8  # from 0 to 1, evenly spread
    if place >= 1 - min(0.1, MOST_TEST / total):
        return "test"
    if 0.9 - min(0.045, MOST_VALIDATION / total) <= place < 0.9:
        return "validation"
    return "train"


CORPORA: dict[str, Callable[[], Corpus]] = {
    "python-docs": python_docs,
    "shakespeare": shakespeare,
    "wikitext-2": wikitext_2,
}


def load_corpus(name_or_path: str | Path = "python-docs", fallback: str | None = None) -> Corpus:
    """Return a corpus of CORPORA by its name, or the text of a file, of a folder, or of a pattern such as "notes/*.md".

    A file may be of any kind of UTF-8 text; of a folder, the files that end with one of SUFFIXES are read, those of its
    folders too. A .jsonl file holds a document on each line: a string, or an object with the text under "text". A
    hundred documents or more are divided by their hashes (see `part_of`); fewer are joined, and cut where `edges` says.

    fallback: the corpus to load instead, with one printed line, where a download fails. Without a fallback, a failed
    download raises DownloadError. Files that cannot be used as text raise ValueError.
    """
    name = str(name_or_path)
    if name in CORPORA:
        return load_named(CORPORA, name, fallback)
    files = text_files(name)
    if sum(path.stat().st_size for path in files) > LONG:
        parts = long_parts(files)
    else:
        texts = [text for path in files for text in read_documents(path)]
        parts = dict(zip(PARTS, cut(SEPARATOR.join(texts)), strict=True))
        if len(texts) >= MANY:
            parts = split_documents(texts)
    empty = [part for part in PARTS if not sample_of(parts[part]).strip()]
    require(len(empty) < 3, "data", name, "text, and it is empty")
    require(not empty, "data", name, f"text enough for every part; the {' and '.join(empty)} part has none")
    return Corpus(shown(Path(name).name), *parts.values(), "a text of your own")


def split_documents(texts: list[str]) -> dict[str, str]:
    """Return the texts of each part, joined. Equal texts are in the same part."""
    total = sum(map(len, texts))
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for text in texts:
        parts[part_of(text, total)].append(text)
    return {part: SEPARATOR.join(documents) for part, documents in parts.items()}


def long_parts(files: list[Path]) -> dict[str, Text]:
    """Return the parts of files that are too long for memory; the training part is left in its files.

    Many files, and the lines of .jsonl files, are documents, which are divided by their hashes; others are cut.
    """
    if len(files) >= MANY or any(path.suffix.lower() == ".jsonl" for path in files):
        return divide_files(files)
    return cut_files(files)


def divide_files(files: list[Path]) -> dict[str, Text]:
    """Return what `split_documents` returns for the documents of the files, with the training part left in them."""
    total = sum(path.stat().st_size for path in files)

    def training() -> Iterator[str]:
        for path in files:
            for text in read_documents(path):
                if part_of(text, total) == "train":
                    yield text + SEPARATOR

    length = 0
    held_out: dict[str, list[str]] = {"validation": [], "test": []}
    with progress("reading", total, "B", LONG) as bar:
        for path in files:
            for text in read_documents(path):
                part = part_of(text, total)
                if part == "train":
                    length += len(text) + len(SEPARATOR)
                else:
                    held_out[part].append(text)
            bar.update(path.stat().st_size)
    parts = {part: SEPARATOR.join(texts) for part, texts in held_out.items()}
    return {"train": long_text(training, length, SAMPLE), **parts}


def cut_files(files: list[Path]) -> dict[str, Text]:
    """Return what `cut` returns for the joined texts of the files, with the training part left in them."""

    def blocks() -> Iterator[str]:
        for i, path in enumerate(files):
            if i > 0:
                yield SEPARATOR
            yield from read_blocks(path)

    def training() -> Iterator[str]:
        left = middle
        for block in blocks():
            yield block[:left]
            left = max(0, left - len(block))

    tail, length = "", 0
    with progress("reading", sum(path.stat().st_size for path in files), "B", LONG) as bar:
        for block in blocks():
            length += len(block)
            tail = (tail + block)[-MOST_VALIDATION - MOST_TEST - 1 :]
            bar.update(len(block.encode()))
    middle, end = edges(length)
    start = length - len(tail)
    parts = {"validation": tail[middle - start : end - start], "test": tail[end - start :]}
    return {"train": long_text(training, middle, SAMPLE), **parts}


def text_files(name: str) -> list[Path]:
    """Return the files that a path or a pattern names; with one printed line where some of a folder are left out."""
    require(name != "", "data", name, f"a text file, a folder of them, or one of {', '.join(CORPORA)}")
    path = Path(name)
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        found = [p for p in inside if p.suffix.lower() in SUFFIXES]
        if len(found) < len(inside):
            print(f"{name}: files that do not end with {', '.join(SUFFIXES)} are left out: {len(inside) - len(found)}")
        require(bool(found), "data", name, f"a text file, or a folder of some ({', '.join(SUFFIXES)})")
        return found
    found = sorted(Path(match) for match in glob(name, recursive=True) if Path(match).is_file())
    require(bool(found), "data", name, f"a text file, a folder of them, or one of {', '.join(CORPORA)}")
    return found


def read_documents(path: Path) -> Iterator[str]:
    """Yield the text of a file; of a .jsonl file, the text of every line. Raises ValueError for what is no text."""
    if path.suffix.lower() != ".jsonl":
        yield "".join(read_blocks(path))
        return
    for number, line in enumerate(lines(read_blocks(path)), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"data={str(path)!r}: must have JSON on every line; line {number} has not") from error
        document = entry.get("text") if isinstance(entry, dict) else entry
        allowed = f'a string, or an object with a string under "text", on every line; line {number} has neither'
        require(isinstance(document, str), "data", str(path), allowed)
        yield document


def lines(blocks: Iterator[str]) -> Iterator[str]:
    """Yield the lines of the text of which these are the blocks."""
    rest = ""
    for block in blocks:
        *whole, rest = (rest + block).split("\n")
        yield from whole
    yield rest


# ------------------------------------------------------------------------------------------------ data modules


class TextData(TrainData):
    """What GPTData and BERTData share: a corpus as token ids, cut into windows that are shuffled in every epoch.

    corpus: from `load_corpus`. context: the positions of a sequence. batch_size: windows per optimiser step, over all
    devices together. A subclass sets `window`, the tokens of the text in a sequence, and has `make` and `held_out`.
    """

    eval_batch_size = 64

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, context: int, batch_size: int, seed: int) -> None:
        super().__init__()
        require(context >= 1, "context", context, "at least 1")
        require(batch_size >= 1, "batch_size", batch_size, "at least 1")
        self.corpus, self.tokenizer, self.context = corpus, tokenizer, context
        self.batch_size, self.seed = batch_size, seed
        self.vocab_size = tokenizer.get_vocab_size()
        self.train = encode(tokenizer, corpus.train)  # token ids (N,); those of a long text lie on disk
        self.validation = encode(tokenizer, corpus.validation)
        self.test = encode(tokenizer, corpus.test)
        for part, ids in {"training": self.train, "validation": self.validation, "test": self.test}.items():
            allowed = f"longer than one window of {context} tokens in each part; its {part} part has {len(ids)}"
            require(len(ids) > context, "data", corpus.name, allowed)

    def order(self, generator: torch.Generator) -> Tensor:
        """Return where the windows (N,) of an epoch start, shuffled.

        The windows lie side by side. The first one starts at a random offset, so that each epoch cuts the text at
        other places. Their number does not depend on the offset, so that all epochs are equally long.
        """
        last = len(self.train) - self.window - 1  # where the last window that has a token after it would start
        n_offsets = min(self.window, last + 1)
        offset = int(torch.randint(n_offsets, (1,), generator=generator))
        n = (last + 1 - n_offsets) // self.window + 1
        starts = offset + self.window * torch.arange(n)
        return starts[torch.randperm(n, generator=generator)]

    def val_dataloader(self) -> EvalBatches:
        return EvalBatches(*self.held_out(self.validation), batch_size=self.eval_batch_size, **shard(self.trainer))

    def test_dataloader(self) -> EvalBatches:
        return EvalBatches(*self.held_out(self.test), batch_size=self.eval_batch_size, **shard(self.trainer))

    def describe(self) -> dict:
        """Return what the corpus says of itself, and the size of each part in tokens."""
        description = self.corpus.describe()
        for part in ("train", "validation", "test"):
            description[part]["tokens"] = len(getattr(self, part))
        return description


class GPTData(TextData):
    """Batches of `context` tokens and, as the target of each, the token that follows it: ids (B, T), targets (B, T).

    tokenizer: "bpe" or "char", which are trained on the training part alone, or a tokenizer of your own.
    vocab_size: the tokens of the BPE vocabulary.
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
            tokenizer = char_tokenizer(sample_of(corpus.train))
        elif tokenizer == "bpe":
            require(vocab_size >= 256, "vocab_size", vocab_size, "at least 256, one for every byte")
            tokenizer = bpe_tokenizer(sample_of(corpus.train), vocab_size)
        allowed = "bpe, char or a tokenizers.Tokenizer"
        require(isinstance(tokenizer, Tokenizer), "tokenizer", tokenizer, allowed)
        super().__init__(corpus, tokenizer, context, batch_size, seed)
        self.window = context

    def make(self, starts: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return the inputs and the targets (B, context) of the training windows that begin at `starts` (B,)."""
        windows = self.train[starts[:, None] + torch.arange(self.context + 1)].long()
        return windows[:, :-1], windows[:, 1:]

    def held_out(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cut ids (N,) into windows that overlap by half: inputs and targets (windows, context).

        Each token but the first is a target exactly once, with at least half a window of tokens before it where the
        text has as many. Where an earlier window has it as a target already, the target is -100.
        """
        stride = max(1, self.context // 2)
        last = len(ids) - self.context - 1
        starts = torch.cat((torch.arange(0, last, stride), torch.tensor([last])))
        windows = ids[starts[:, None] + torch.arange(self.context + 1)]
        inputs = windows[:, :-1]
        targets = windows[:, 1:].clone()
        places = starts[:, None] + torch.arange(self.context)
        first_new = torch.cat((torch.tensor([0]), starts[:-1] + self.context))  # after the window before
        targets[places < first_new[:, None]] = -100
        return inputs, targets


class BERTData(TextData):
    """Batches of [CLS] tokens [SEP], some of the tokens masked, with those as targets: ids (B, T), targets (B, T).

    mask_rate: the share of the tokens that are chosen as targets. In training, `random_rate` of the chosen tokens are
    replaced by a random token, `keep_rate` of them stay, and the others become [MASK] (BERT, section 3.1). In the
    held-out parts 15 % are chosen, the same ones every time, and all of them become [MASK].
    tokenizer: BERT's, or None to train a WordPiece tokenizer of `vocab_size` tokens on the training part alone.
    """

    eval_mask_rate = 0.15

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
        require(context >= 3, "context", context, "at least 3: [CLS], a token, [SEP]")
        require(0 < mask_rate <= 1, "mask_rate", mask_rate, "a share of the tokens, above 0 and at most 1")
        for name, rate in {"random_rate": random_rate, "keep_rate": keep_rate}.items():
            require(0 <= rate <= 1, name, rate, "a share of the tokens, at least 0 and at most 1")
        if tokenizer is None:
            tokenizer = wordpiece_tokenizer(sample_of(corpus.train), vocab_size)
        super().__init__(corpus, tokenizer, context, batch_size, seed)
        self.window = context - 2
        self.mask_rate, self.random_rate, self.keep_rate = mask_rate, random_rate, keep_rate
        self.cls = tokenizer.token_to_id("[CLS]")
        self.sep = tokenizer.token_to_id("[SEP]")
        self.mask = tokenizer.token_to_id("[MASK]")

    def windows(self, ids: Tensor, starts: Tensor) -> Tensor:
        """Return [CLS] tokens [SEP] (B, context) for the windows of ids (N,) that begin at `starts` (B,)."""
        tokens = ids[starts[:, None] + torch.arange(self.window)].long()
        cls = tokens.new_full((len(tokens), 1), self.cls)
        sep = tokens.new_full((len(tokens), 1), self.sep)
        return torch.cat((cls, tokens, sep), dim=1)

    def hide(self, ids: Tensor, rate: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Choose a share of each window's tokens at random, equally many in every window; all tensors are (B, T).

        Returns the ids with [MASK] at the chosen places, the targets, which are -100 at the others, and a boolean
        tensor that is True at the chosen places.
        """
        n = max(1, round(rate * self.window))
        draw = torch.rand(ids.shape, generator=generator)
        draw[(ids == self.cls) | (ids == self.sep)] = -1  # below every other draw: never chosen
        chosen = torch.zeros_like(ids, dtype=torch.bool).scatter(1, draw.topk(n).indices, True)
        return ids.masked_fill(chosen, self.mask), ids.masked_fill(~chosen, -100), chosen

    def make(self, starts: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the masked inputs and the targets (B, context) of the training windows that begin at `starts`."""
        ids = self.windows(self.train, starts)
        masked, targets, chosen = self.hide(ids, self.mask_rate, generator)
        fate = torch.rand(ids.shape, generator=generator)  # of a chosen token: replaced, masked or kept
        # Random tokens come from behind [MASK], the last of the special tokens.
        other = torch.randint(self.mask + 1, self.vocab_size, ids.shape, generator=generator)
        masked = torch.where(chosen & (fate < self.random_rate), other, masked)
        masked = torch.where(chosen & (fate >= 1 - self.keep_rate), ids, masked)
        return masked, targets

    def held_out(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cut ids (N,) into windows side by side and mask them: inputs and targets (windows, context)."""
        starts = torch.arange(0, len(ids) - self.window + 1, self.window)
        generator = torch.Generator().manual_seed(0)
        masked, targets, _ = self.hide(self.windows(ids, starts), self.eval_mask_rate, generator)
        return masked, targets
