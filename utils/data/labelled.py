"""Tables of labelled texts, and the data module that fine-tunes BERT to classify them.

`python -m utils.data.labelled docs.csv` writes such a table: docstrings of Python, labelled with their modules.
"""

from __future__ import annotations

import csv
import hashlib
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from transformer import require
from utils.data.batches import EvalBatches, TrainData, pad, shard
from utils.data.text import documents, part_of
from utils.data.tokenisers import wordpiece_tokenizer
from utils.download import Remote, fetch, load_named
from utils.files import shown

# ------------------------------------------------------------------------------------------------ tables

TEXTS = ("text", "sentence", "review", "content")  # names of the column of texts
LABELS = ("label", "class", "category", "target")  # names of the column of labels
PARTS = ("train", "validation", "test")


MOVIE_REVIEWS = "https://raw.githubusercontent.com/dennybritz/cnn-text-classification-tf/18762b459e21d9c70e5c242f8d43fc4e6db37a0d/data/rt-polaritydata/"
MOVIE_REVIEWS_FILES = {
    "rt-polarity.neg": "sha256:2d11cfbc790f1cd96d78339f41ce53ced1efa83cd22d37d6788fa3fe3d17e2fd",
    "rt-polarity.pos": "sha256:4134882974a28d0c7b5151256f0e33a6169984ee7372c279e673f1114f475d58",
}


@dataclass(frozen=True)
class Table:
    """Texts and the numbers of their classes in three disjoint parts."""

    name: str
    classes: list[str]
    train: tuple[list[str], list[int]]
    validation: tuple[list[str], list[int]]
    test: tuple[list[str], list[int]]
    source: str = "a table of your own"  # where the texts come from

    def describe(self) -> dict:
        """Return the name, a hash, the classes and the size of each part, for summary.json."""
        parts = {part: getattr(self, part) for part in PARTS}
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()
        sizes = {part: {"texts": len(labels)} for part, (_, labels) in parts.items()}
        return {"name": self.name, "source": self.source, "sha256": digest, "classes": self.classes, **sizes}


def load_table(name_or_path: str | Path, fallback: str | None = None) -> Table:
    """Return a table of TABLES by its name, or a UTF-8 CSV file.

    Its header names a column of texts (see TEXTS) and one of labels (see LABELS). Two columns of any names will do as
    well: first the texts, then the labels. A column `part` may put each row into train, validation or test. Without it,
    the hash of the text decides, with chances of 85.5, 4.5 and 10 %, so that equal texts are in the same part. Raises
    ValueError for a file that cannot be read so, and for parts that cannot be trained and tested on.

    fallback: the table to load instead, with one printed line, where a download fails. Without a fallback, a failed
    download raises DownloadError.
    """
    if name_or_path in TABLES:
        return load_named(TABLES, name_or_path, fallback)
    path = Path(name_or_path)
    csv.field_size_limit(2**31 - 1)  # texts may be longer than the 131,072 characters that Python allows
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, strict=True)
            rows = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"data={str(path)!r}: must be a CSV file of UTF-8 text ({error})") from error
    twice = [name for name, n in Counter(table.fieldnames or ()).items() if n > 1]
    require(not twice, "data", str(path), f"a CSV file whose columns have different names; twice there: {twice}")
    text, label = text_and_label(rows, path)

    texts: dict[str, list[str]] = {part: [] for part in PARTS}
    labels: dict[str, list[str]] = {part: [] for part in PARTS}
    for number, row in enumerate(rows, start=2):  # row 1 is the header
        # DictReader keeps the cells that a row has too many under None, and fills the missing ones with None.
        complete = None not in row and all((row[name] or "").strip() for name in (text, label))
        allowed = f"a CSV file whose rows have one text and one label; row {number} has not"
        require(complete, "data", str(path), allowed)
        part = row.get("part") or part_of(row[text])
        allowed = f"a CSV file whose column part is one of {', '.join(PARTS)}; row {number} has {part!r}"
        require(part in PARTS, "data", str(path), allowed)
        texts[part].append(row[text])
        labels[part].append(row[label].strip())

    return replace(assemble(texts, labels, str(path)), name=shown(path.name))


def assemble(
    texts: dict[str, list[str]], labels: dict[str, list[str]], name: str, source: str = "a table of your own"
) -> Table:
    """Return the table with these texts and names of classes in each part. Raises ValueError as `load_table` does."""
    classes = sorted(set(labels["train"]))
    unknown = sorted(set(labels["validation"] + labels["test"]) - set(classes))
    allowed = f"a CSV file with at least 2 classes in its training part; it has {classes}"
    if unknown:
        allowed += f"; {unknown} are only in the others"
    require(len(classes) >= 2 and not unknown, "data", name, allowed)
    for part in PARTS:
        allowed = f"a CSV file with enough rows to split; its {part} part is empty"
        require(bool(texts[part]), "data", name, allowed)
    numbers = {label: i for i, label in enumerate(classes)}
    parts = [(texts[part], [numbers[label] for label in labels[part]]) for part in PARTS]
    return Table(name, classes, *parts, source)


def movie_reviews() -> Table:
    """5,331 positive and 5,331 negative sentences of film reviews (Pang and Lee 2005), divided by their hashes."""
    texts: dict[str, list[str]] = {part: [] for part in PARTS}
    labels: dict[str, list[str]] = {part: [] for part in PARTS}
    for name, expected in MOVIE_REVIEWS_FILES.items():
        path = fetch(Remote(MOVIE_REVIEWS + name, expected), name, "movie-reviews")
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line.strip():
                part = part_of(line.strip())
                texts[part].append(line.strip())
                labels[part].append("negative" if name.endswith("neg") else "positive")
    return assemble(texts, labels, "movie-reviews", "sentence polarity 1.0 (Pang and Lee 2005), 10,662 sentences")


def docstrings() -> Table:
    """The docstrings of this Python, labelled with their modules; see `docs_rows`."""
    texts: dict[str, list[str]] = {part: [] for part in PARTS}
    labels: dict[str, list[str]] = {part: [] for part in PARTS}
    for text, module, part in docs_rows():
        texts[part].append(text)
        labels[part].append(module)
    return assemble(texts, labels, "docstrings", "docstrings of Python's standard library; PSF License")


TABLES: dict[str, Callable[[], Table]] = {"movie-reviews": movie_reviews, "docstrings": docstrings}


def text_and_label(rows: list[dict[str, str]], path: Path) -> tuple[str, str]:
    """Return the names of the column of texts and of the column of labels; ValueError where there are none."""
    columns = [name for name in rows[0] if name] if rows else []
    text = next((name for name in columns if name.lower() in TEXTS), None)
    label = next((name for name in columns if name.lower() in LABELS), None)
    if len(columns) == 2 and text is None and label is None:
        text, label = columns
    allowed = f"a CSV file with a column {' or '.join(TEXTS)} and one {' or '.join(LABELS)}; it has {columns}"
    require(text is not None and label is not None, "data", str(path), allowed)
    return text, label


def docs_rows(n_classes: int = 20) -> list[tuple[str, str, str]]:
    """Return docstrings as (text, module, part); only of the `n_classes` modules with most docstrings.

    Each docstring stays in the part of python-docs that it is in, so that a BERT trained on python-docs has not seen
    the texts that it is tested on.
    """
    modules = {text: module for module, text in documents() if module}
    largest = {module for module, _ in Counter(modules.values()).most_common(n_classes)}
    return [(text, module, part_of(text)) for text, module in modules.items() if module in largest]


def write_docs_table(path: Path, n_classes: int = 20) -> None:
    """Write the docstrings of `docs_rows` as a CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("text", "label", "part"))
        table.writerows(docs_rows(n_classes))


# ------------------------------------------------------------------------------------------------ data module


class TableData(TrainData):
    """Batches of texts of similar length: ids (B, T), the padding mask (B, T), and the numbers of their classes (B,).

    context: the tokens of a text that are read at most, [CLS] and [SEP] included. batch_size: texts per optimiser step,
    over all devices together. tokenizer: BERT's, or None to train a WordPiece tokenizer of `vocab_size` tokens on the
    training part alone.
    """

    eval_batch_size = 64

    def __init__(
        self,
        table: Table,
        context: int = 128,
        batch_size: int = 32,
        tokenizer: Tokenizer | None = None,
        vocab_size: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require(context >= 3, "context", context, "at least 3")
        require(batch_size >= 1, "batch_size", batch_size, "at least 1")
        self.table, self.context, self.batch_size, self.seed = table, context, batch_size, seed
        self.classes, self.n_classes = table.classes, len(table.classes)
        if tokenizer is None:
            tokenizer = wordpiece_tokenizer("\n".join(table.train[0]), vocab_size)
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.get_vocab_size()
        self.end = tokenizer.token_to_id("[SEP]")
        self.ids: dict[str, list[list[int]]] = {}
        self.labels: dict[str, Tensor] = {}
        for part in PARTS:
            texts, labels = getattr(table, part)
            self.ids[part] = self.encode(texts)
            self.labels[part] = torch.tensor(labels)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text, at most `context` of them; a text that is cut still ends with [SEP]."""
        found = []
        for encoding in self.tokenizer.encode_batch(texts):
            ids = encoding.ids
            if len(ids) > self.context:
                ids = [*ids[: self.context - 1], self.end]
            found.append(ids)
        return found

    def order(self, generator: torch.Generator) -> Tensor:
        """Return the numbers of the training texts (N,), shuffled for an epoch so that little padding is needed.

        Within every 8 batches of shuffled texts, the texts are sorted by length. Then the batches are shuffled; only
        a smaller batch stays last.
        """
        lengths = torch.tensor([len(line) for line in self.ids["train"]])
        items = torch.randperm(len(lengths), generator=generator)
        batches: list[Tensor] = []
        for chunk in items.split(8 * self.batch_size):
            by_length = chunk[lengths[chunk].argsort(stable=True)]
            batches += by_length.split(self.batch_size)
        last = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        shuffled = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        return torch.cat(shuffled + last)

    def make(self, items: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """Return ids (B, T), the padding mask (B, T) and classes (B,) of the training texts with these numbers."""
        return self.batch("train", items)

    def batch(self, part: str, items: Tensor) -> tuple[Tensor, ...]:
        """Return ids (B, T), the padding mask (B, T) and classes (B,) of the texts with these numbers in a part."""
        ids, mask = pad([self.ids[part][i] for i in items.tolist()])
        return ids, mask, self.labels[part][items]

    def held_out(self, part: str) -> EvalBatches:
        """Return the batches of the part of this name, in its order."""

        def make(items: Tensor) -> tuple[Tensor, ...]:
            return self.batch(part, items)

        items = torch.arange(len(self.ids[part]))
        return EvalBatches(items, batch_size=self.eval_batch_size, make=make, **shard(self.trainer))

    def val_dataloader(self) -> EvalBatches:
        return self.held_out("validation")

    def test_dataloader(self) -> EvalBatches:
        return self.held_out("test")

    def describe(self) -> dict:
        return self.table.describe()


if __name__ == "__main__":
    write_docs_table(Path(sys.argv[1]))
