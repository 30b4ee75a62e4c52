"""Tables of labelled texts: how they are read and split, their batches, and what is refused."""

import csv
import random

import pytest
import tiny
import torch
from samples import cache_without_network, put

from utils.data import labelled
from utils.data.labelled import TableData, load_table, write_docs_table
from utils.data.text import load_corpus, part_of
from utils.download import DownloadError


def write_table(path, rows, header=("text", "label")):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def labelled_texts(n=300):
    """Texts of 3 to 10 made-up words, good and bad by turns."""
    draw = random.Random(0)
    words = tiny.text(60).split()
    return [(" ".join(draw.sample(words, draw.randint(3, 10))), ("good", "bad")[i % 2]) for i in range(n)]


def test_movie_reviews_come_from_the_cache(tmp_path, monkeypatch):
    cache = cache_without_network(tmp_path, monkeypatch)
    texts = [text for text, _ in labelled_texts()]
    files = {"rt-polarity.neg": texts[::2], "rt-polarity.pos": texts[1::2]}
    hashes = {name: put(cache / "movie-reviews" / name, "\n".join(lines).encode()) for name, lines in files.items()}
    monkeypatch.setattr(labelled, "MOVIE_REVIEWS_FILES", hashes)
    table = load_table("movie-reviews")
    found = {text: table.classes[label] for part in (table.train, table.validation, table.test) for text, label in zip(*part, strict=True)}
    assert found == {text: ("negative", "positive")[i % 2] for i, text in enumerate(texts)}
    assert all(part_of(text) == "train" for text in table.train[0]) and "Pang" in table.describe()["source"]


def test_a_failed_download_has_a_fallback_if_one_is_named(tmp_path, monkeypatch, capsys):
    cache_without_network(tmp_path, monkeypatch)
    with pytest.raises(DownloadError):
        load_table("movie-reviews")
    table = load_table("movie-reviews", fallback="docstrings")
    assert table.name == "docstrings" and len(table.classes) == 20
    assert capsys.readouterr().out.startswith("movie-reviews cannot be downloaded, so docstrings is used instead (")


def test_parts_of_a_table(tmp_path):
    table = load_table(write_table(tmp_path / "a.csv", labelled_texts()))
    parts = [set(texts) for texts, _ in (table.train, table.validation, table.test)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert all(part_of(text) == name for name, part in zip(("train", "validation", "test"), parts, strict=True) for text in part)
    rows = [(text, label, ("train", "test", "validation")[i // 100]) for i, (text, label) in enumerate(labelled_texts())]
    table = load_table(write_table(tmp_path / "b.csv", rows, ("Review", "Label", "part")))
    assert [len(part[0]) for part in (table.train, table.validation, table.test)] == [100, 100, 100]
    assert table.classes == ["bad", "good"] and table.train[1][:2] == [1, 0]


def test_labels_are_stripped_and_long_texts_are_read(tmp_path):
    rows = [(text, label + " " * (i % 3)) for i, (text, label) in enumerate(labelled_texts())]
    rows.append(("word " * 40_000, "good"))
    table = load_table(write_table(tmp_path / "a.csv", rows))
    assert table.classes == ["bad", "good"]
    assert max(len(text) for text in table.train[0] + table.validation[0] + table.test[0]) == 200_000


def test_batches_of_a_table(tmp_path):
    """Each text once an epoch with its class, padded to the longest of its batch; the mask is False at the padding."""
    data = TableData(load_table(write_table(tmp_path / "a.csv", labelled_texts())), context=8, batch_size=16, vocab_size=200)
    loaders = {"train": data.train_dataloader(), "validation": data.val_dataloader(), "test": data.test_dataloader()}
    for part, batches in loaders.items():
        seen = []
        for ids, mask, labels in batches:
            assert ids.shape == mask.shape and len(labels) == len(ids) and mask.any(0).all() and ids.shape[1] <= 8
            assert torch.equal(ids != 0, mask)
            ends = ids[torch.arange(len(ids)), mask.sum(1) - 1]
            assert (ends == data.end).all()
            for row, keep, label in zip(ids, mask, labels.tolist(), strict=True):
                seen.append((row[keep].tolist(), label))
        expected = list(zip(data.ids[part], getattr(data.table, part)[1], strict=True))
        assert sorted(seen) == sorted(expected)
    filled = [mask.float().mean().item() for _, mask, _ in data.train_dataloader()]
    assert sum(filled) / len(filled) > 0.9  # texts of similar length are together


def test_two_columns_of_any_names(tmp_path):
    rows = [(f"text {i}", "xy"[i % 2]) for i in range(200)]
    table = load_table(write_table(tmp_path / "a.csv", rows, ("what", "which")))
    assert table.classes == ["x", "y"] and set(table.train[0]) <= {text for text, _ in rows}


def test_table_of_the_docs(tmp_path):
    """No text of its test part is in what a BERT of python-docs was trained on."""
    write_docs_table(tmp_path / "docs.csv", 5)
    table, corpus = load_table(tmp_path / "docs.csv"), load_corpus("python-docs")
    assert len(table.classes) == 5 and len(table.test[0]) > 50
    assert all(text in corpus.test for text in table.test[0])
    training = set(corpus.train.split("\n\n\n"))
    assert training.isdisjoint(table.test[0])


BAD_TABLES = {
    "no header": ([], ("a",), "with a column text or"),
    "no label": ([("a", "b", "c")], ("text", "x", "y"), r"it has \['text', 'x', 'y'\]"),
    "one class": ([(f"a{i}", "x") for i in range(90)], ("text", "label"), "at least 2 classes"),
    "too few rows": ([("a", "x"), ("b", "y")], ("text", "label"), "at least 2 classes|enough rows"),
    "an empty label": ([("a", "x"), ("b", " ")], ("text", "label"), "row 3 has not"),
    "a cell too many": ([("a", "x"), ("b", "y", "z")], ("text", "label"), "row 3 has not"),
    "another part": ([("a", "x", "dev")], ("text", "label", "part"), "row 2 has 'dev'"),
    "a class of the test alone": (
        [("a", "x", "train"), ("b", "y", "train"), ("c", "z", "test"), ("d", "x", "validation")],
        ("text", "label", "part"), r"\['z'\] are only in the others",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables(case, tmp_path):
    rows, header, message = BAD_TABLES[case]
    with pytest.raises(ValueError, match=rf"data='.*bad.csv': must be a CSV file.*({message})"):
        load_table(write_table(tmp_path / "bad.csv", rows, header))


def test_a_table_that_is_no_text(tmp_path):
    (tmp_path / "bad.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="bad.csv'?: must be a CSV file of UTF-8 text"):
        load_table(tmp_path / "bad.csv")
