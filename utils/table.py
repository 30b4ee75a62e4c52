"""Tables of texts and their labels: what BERT is fine-tuned on. `python -m utils.table docs.csv` writes one."""

from __future__ import annotations

import csv
import hashlib
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from utils.batches import EvalBatches, TrainData, pad, shard
from utils.text import documents, part_of, wordpiece_tokenizer

TEXTS, LABELS = ("text", "sentence", "review", "content"), ("label", "class", "category", "target")
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Table:
    """Texts and the numbers of their classes, in three disjoint parts."""

    name: str
    classes: list[str]
    train: tuple[list[str], list[int]]
    validation: tuple[list[str], list[int]]
    test: tuple[list[str], list[int]]

    def describe(self) -> dict:
        """Name, hash, classes and sizes, for summary.json."""
        parts = {part: getattr(self, part) for part in PARTS}
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()
        sizes = {part: {"texts": len(labels)} for part, (_, labels) in parts.items()}
        return {"name": self.name, "source": "a table of your own", "sha256": digest, "classes": self.classes, **sizes}


def load_table(path: str | Path) -> Table:
    """A CSV file with a header, a text column (of TEXTS) and a label column (of LABELS), or just those two.

    A column `part` may say train, validation or test. Without it a text's own hash decides (85.5, 4.5 and 10 %), so
    that two equal texts are in one part.
    """
    path = Path(path)
    wrong = f"data={str(path)!r}: must be a CSV file"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{wrong} of UTF-8 text ({error})") from error
    columns = [name for name in (rows[0] if rows else {}) if name]
    text = next((name for name in columns if name.lower() in TEXTS), None)
    label = next((name for name in columns if name.lower() in LABELS), None)
    if len(columns) == 2 and text is None and label is None:
        text, label = columns
    if text is None or label is None:
        raise ValueError(f"{wrong} with a column {' or '.join(TEXTS)} and one {' or '.join(LABELS)}; it has {columns}")
    parts: dict[str, tuple[list[str], list[str]]] = {part: ([], []) for part in PARTS}
    for number, row in enumerate(rows, start=2):
        if None in row or any(row[name] is None or not row[name].strip() for name in (text, label)):
            raise ValueError(f"{wrong} whose rows have one text and one label; row {number} has not")
        part = row.get("part") or part_of(row[text])
        if part not in PARTS:
            raise ValueError(f"{wrong} whose column part is one of {', '.join(PARTS)}; row {number} has {part!r}")
        parts[part][0].append(row[text])
        parts[part][1].append(row[label])
    classes = sorted(set(parts["train"][1]))
    unknown = sorted(set(parts["validation"][1] + parts["test"][1]) - set(classes))
    if len(classes) < 2 or unknown:
        more = f"; {unknown} are only in the others" if unknown else ""
        raise ValueError(f"{wrong} with at least 2 classes in its training part; it has {classes}{more}")
    for part, (texts, _) in parts.items():
        if not texts:
            raise ValueError(f"{wrong} with enough rows to split; its {part} part is empty")
    numbers = {name: i for i, name in enumerate(classes)}
    return Table(path.name, classes, *((texts, [numbers[name] for name in names]) for texts, names in parts.values()))


class TableData(TrainData):
    """Batches of texts of like length: ids (B, T), the mask (B, T), False at padding, and classes (B,).

    context: tokens of a text that are read, its ends included. tokenizer: BERT's, or None to train one.
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
        for name, value, least in (("context", context, 3), ("batch_size", batch_size, 1)):
            if value < least:
                raise ValueError(f"{name}={value}: must be at least {least}")
        self.table, self.context, self.batch_size, self.seed = table, context, batch_size, seed
        self.classes, self.n_classes = table.classes, len(table.classes)
        self.tokenizer = tokenizer or wordpiece_tokenizer("\n".join(table.train[0]), vocab_size)
        self.vocab_size = self.tokenizer.get_vocab_size()
        self.end = self.tokenizer.token_to_id("[SEP]")
        self.ids = {part: self.encode(getattr(table, part)[0]) for part in PARTS}

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Each text's first `context` tokens; one that is cut still ends with [SEP]."""
        lines = [text.ids for text in self.tokenizer.encode_batch(texts)]
        return [line if len(line) <= self.context else [*line[: self.context - 1], self.end] for line in lines]

    def order(self, generator: torch.Generator) -> Tensor:
        """Shuffled, then sorted by length within every 8 batches, so that little is padded, and those shuffled."""
        lengths = torch.tensor([len(line) for line in self.ids["train"]])
        items = torch.randperm(len(lengths), generator=generator)
        batches = []
        for chunk in items.split(8 * self.batch_size):
            batches += chunk[lengths[chunk].argsort(stable=True)].split(self.batch_size)
        last = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        return torch.cat([*(batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()), *last])

    def make(self, items: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        ids, mask = pad([self.ids["train"][i] for i in items.tolist()])
        return ids, mask, torch.tensor(self.table.train[1])[items]

    def held_out(self, part: str) -> EvalBatches:
        lines, labels = self.ids[part], torch.tensor(getattr(self.table, part)[1])

        def make(items: Tensor) -> tuple[Tensor, ...]:
            return *pad([lines[i] for i in items.tolist()]), labels[items]

        return EvalBatches(torch.arange(len(lines)), batch_size=self.eval_batch_size, make=make, **shard(self.trainer))

    def val_dataloader(self) -> EvalBatches:
        return self.held_out("validation")

    def test_dataloader(self) -> EvalBatches:
        return self.held_out("test")

    def describe(self) -> dict:
        return self.table.describe()


def write_docs_table(path: Path, n_classes: int = 20) -> None:
    """The docstrings of python-docs, with the module or package that each is from; the modules with most of them.

    Each document keeps the part that it has in python-docs: a BERT trained there has not seen those of the test.
    """
    found = {text: module for module, text in documents() if module}
    commonest = {name for name, _ in Counter(found.values()).most_common(n_classes)}
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("text", "label", "part"))
        rows.writerows((text, module, part_of(text)) for text, module in found.items() if module in commonest)


if __name__ == "__main__":
    write_docs_table(Path(sys.argv[1]))
