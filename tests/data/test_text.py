"""Corpora, tokenisers, and the windows and masks of GPTData and BERTData."""

import errno
import hashlib
import json
import random
import sys

import pytest
import torch
from samples import TEXT, cache_without_network, corpus, put

from utils.data import disk, text, tokenisers
from utils.data.text import SEPARATOR, BERTData, GPTData, load_corpus, part_of
from utils.data.tokenisers import (
    SPECIAL_TOKENS,
    assemble_wordpiece,
    bpe_tokenizer,
    char_tokenizer,
    encode,
    wordpiece_tokenizer,
)
from utils.download import DownloadError, Remote


@pytest.fixture(scope="module")
def python_docs():
    """With a separator that no document contains."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "SEPARATOR", "\0")
        return load_corpus("python-docs")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    return cache_without_network(tmp_path, monkeypatch)


# ------------------------------------------------------------------------------------------------ corpora
def test_python_docs_are_split_by_document(python_docs):
    parts = [part.split("\0") for part in (python_docs.train, python_docs.validation, python_docs.test)]
    documents = sum(parts, [])
    assert len(documents) == len(set(documents)) > 5000
    sizes = [len("".join(part)) for part in parts]
    shares = [size / sum(sizes) for size in sizes]
    assert shares == pytest.approx([0.855, 0.045, 0.1], abs=0.03)
    # A document's part depends on its text alone.
    for part, (low, high) in zip(parts, [(0, 0.855), (0.855, 0.9), (0.9, 1)], strict=True):
        for document in part[:50]:
            assert low <= int(hashlib.sha256(document.encode()).hexdigest()[:8], 16) / 16**8 < high


def test_python_docs_are_the_same_each_time(python_docs):
    again = load_corpus("python-docs")
    for part in ("train", "validation", "test"):
        assert getattr(again, part) == getattr(python_docs, part).replace("\0", SEPARATOR)
    assert str(sys.version_info.major) in python_docs.source
    description = python_docs.describe()
    assert description["test"]["bytes"] == len(python_docs.test.encode())
    assert description["sha256"] != corpus().describe()["sha256"]


def test_a_file_is_cut_at_fixed_places(tmp_path):
    letters = "".join(chr(0x4E00 + i) for i in range(1000))
    (tmp_path / "letters.txt").write_bytes(b"\xef\xbb\xbf" + letters.encode())
    parts = load_corpus(tmp_path / "letters.txt")
    assert (parts.train, parts.validation, parts.test) == (letters[:855], letters[855:900], letters[900:])
    assert parts.name == "letters.txt"
    (tmp_path / "lines.txt").write_bytes(b"a\r\nb\r\n" * 100)
    parts = load_corpus(tmp_path / "lines.txt")
    assert parts.train + parts.validation + parts.test == "a\nb\n" * 100


def test_refit_trains_on_the_validation_part_too():
    parts = corpus("abc", "def", "ghi").refit()
    assert (parts.train, parts.validation, parts.test) == ("abcdef", "def", "ghi")
    assert "refit" in parts.name


def test_shakespeare_comes_from_the_cache(cache, monkeypatch):
    found = put(cache / "tinyshakespeare.txt", b"First Citizen:\n" * 100)
    monkeypatch.setattr(text, "SHAKESPEARE", Remote("http://127.0.0.1:1/x", found))
    parts = load_corpus("shakespeare")
    assert (parts.train + parts.validation + parts.test) == "First Citizen:\n" * 100
    assert len(parts.test) == 150
    put(cache / "tinyshakespeare.txt", b"tampered with")
    with pytest.raises(DownloadError):
        load_corpus("shakespeare")


def test_wikitext_2_keeps_its_own_parts(cache, monkeypatch):
    names = {"train.txt": " one \n", "valid.txt": " two \n", "test.txt": " <unk> @-@ three \n"}
    hashes = {name: put(cache / "wikitext-2" / name, content.encode()) for name, content in names.items()}
    monkeypatch.setattr(text, "WIKITEXT_2_FILES", hashes)
    parts = load_corpus("wikitext-2")
    assert [parts.train, parts.validation, parts.test] == list(names.values())


@pytest.mark.parametrize("name", ["shakespeare", "wikitext-2"])
def test_fallback_of_texts_is_announced_and_only_on_request(cache, capsys, monkeypatch, name):
    monkeypatch.setitem(text.CORPORA, "python-docs", corpus)
    with pytest.raises(DownloadError, match="by hand"):  # it says what to do
        load_corpus(name)
    assert load_corpus(name, fallback="python-docs") == corpus()
    (line,) = capsys.readouterr().out.splitlines()
    assert name in line and "python-docs" in line


# ------------------------------------------------------------------------------------------------ tokenisers
@pytest.mark.parametrize("kind", [GPTData, BERTData])
def test_tokenisers_are_fitted_on_the_training_part_alone(kind):
    secret = "\u0416"  # a letter that is in the held-out parts only
    plain = kind(corpus(), context=16, vocab_size=400)
    other = kind(corpus(validation=TEXT[:600] + secret * 300, test=TEXT[-900:] + secret * 300), context=16, vocab_size=400)
    assert other.tokenizer.get_vocab() == plain.tokenizer.get_vocab()
    fitted = kind(corpus(train=TEXT + f"{secret}{secret} " * 300), context=16, vocab_size=400)
    assert fitted.tokenizer.get_vocab() != plain.tokenizer.get_vocab()  # so this test can fail


def test_characters_of_the_test_part_are_unknown():
    data = GPTData(corpus(test=TEXT[-900:] + "\u0416"), context=16, tokenizer="char")
    assert data.tokenizer.token_to_id("\u0416") is None
    assert data.test[-1] == data.tokenizer.token_to_id("[UNK]")
    assert data.tokenizer.token_to_id("[UNK]") not in data.train


@pytest.mark.parametrize("make", [lambda t: bpe_tokenizer(t, 300), lambda t: wordpiece_tokenizer(t, 200), char_tokenizer])
def test_tokenisers_are_the_same_each_time(make):
    assert len({make(TEXT).to_str() for _ in range(4)}) == 1


@pytest.mark.parametrize(
    "written",
    ["", " ", "plain words", "\U0001f600\u200d\U0001f4bb family", "\u4f60\u597d\uff0c\u4e16\u754c", "a\0b\x07\x1b[0m\x7f",
     "\r\n\t\v\f ", "  two  spaces ", "e\u0301 \u00e9", "".join(map(chr, range(256)))],
)  # fmt: skip
def test_bpe_gives_back_every_text(written):
    tokenizer = bpe_tokenizer(TEXT, 300)
    assert tokenizer.decode(encode(tokenizer, written).tolist(), skip_special_tokens=False) == written


def test_char_tokenizer():
    tokenizer = char_tokenizer("hello\n")
    assert tokenizer.decode(encode(tokenizer, "hell\no").tolist()) == "hell\no"
    unknown = tokenizer.token_to_id("[UNK]")
    assert encode(tokenizer, "h\U0001f600e").tolist() == [tokenizer.token_to_id("h"), unknown, tokenizer.token_to_id("e")]
    assert encode(tokenizer, "").tolist() == []


def test_wordpiece_tokenizer():
    tokenizer = wordpiece_tokenizer(TEXT + " Caf\u00e9", 200)
    assert [tokenizer.token_to_id(name) for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 1, 2, 3, 4]
    assert tokenizer.get_vocab_size() == 200
    assert tokenizer.encode("CAF\u00c9 [MASK]").ids == [2, *encode(tokenizer, "cafe").tolist(), 4, 3]
    assert 4 not in encode(tokenizer, "cafe ##a").tolist()
    assert tokenizer.decode(tokenizer.encode("caf\u00e9").ids) == "cafe"
    assert 1 in encode(tokenizer, "\u0416").tolist()


@pytest.mark.parametrize("lowercase", [True, False])
def test_assembled_wordpiece(lowercase):
    """Case counts or does not, and the second text of a pair is in segment 1, with its [SEP]."""
    tokens = [*SPECIAL_TOKENS.values(), "cafe", "##s"]
    tokenizer = assemble_wordpiece({token: i for i, token in enumerate([*tokens, "s"])}, lowercase)
    assert tokenizer.encode("cafes").ids == [2, 5, 6, 3]
    assert tokenizer.encode("CAF\u00c9s").ids == ([2, 5, 6, 3] if lowercase else [2, 1, 3])
    pair = tokenizer.encode("cafe", "[MASK] s")
    assert pair.ids == [2, 5, 3, 4, 7, 3]
    assert pair.type_ids == [0, 0, 0, 1, 1, 1]


# ------------------------------------------------------------------------------------------------ windows
def test_gpt_targets_are_the_next_tokens():
    data = GPTData(corpus(), context=16, batch_size=8, vocab_size=300)
    following = {tuple(data.train[i : i + 17].tolist()) for i in range(len(data.train) - 16)}
    for inputs, targets in data.train_dataloader():
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        for row, last in zip(inputs.tolist(), targets[:, -1:].tolist(), strict=True):
            assert tuple(row + last) in following


@pytest.mark.parametrize("context", [1, 2, 7, 16])
@pytest.mark.parametrize("length", [18, 33, 100])
def test_gpt_scores_each_held_out_token_once_and_with_context(context, length):
    data = GPTData(corpus(), context=context, tokenizer="char")
    ids = torch.arange(length)  # each token is its own place
    inputs, targets = data.held_out(ids)
    scored = targets[targets != -100]
    assert sorted(scored.tolist()) == list(range(1, length))
    before = (inputs[:, :1] * 0 + torch.arange(1, context + 1))[targets != -100]  # how many tokens the model has seen
    assert (before >= torch.minimum(scored, torch.tensor(-(-context // 2)))).all()
    assert torch.equal((inputs + 1)[targets != -100], scored)


@pytest.mark.parametrize("kind, context", [(GPTData, 16), (BERTData, 18)])
def test_epochs_are_equally_long_whatever_the_text(kind, context):
    for n in range(300, 340):
        data = kind(corpus(train=TEXT), context=context, batch_size=8, vocab_size=300)
        data.train = data.train[:n]
        counts = {len(data.order(torch.Generator().manual_seed(seed))) for seed in range(40)}
        assert len(counts) == 1
        starts = torch.cat([data.order(torch.Generator().manual_seed(seed)) for seed in range(40)])
        assert starts.min() >= 0 and starts.max() + data.window < n


def test_epochs_cut_the_text_at_many_places():
    data = GPTData(corpus(), context=16, vocab_size=300)
    offsets = {int(data.order(torch.Generator().manual_seed(seed)).min()) for seed in range(200)}
    assert offsets == set(range(16))


# ------------------------------------------------------------------------------------------------ masks
@pytest.mark.parametrize("rate, n", [(0.15, 2), (0.5, 7), (1.0, 14), (0.001, 1)])
def test_bert_hides_exactly_its_share(rate, n):
    data = BERTData(corpus(), context=16, batch_size=8, mask_rate=rate, random_rate=0.0, keep_rate=0.0, vocab_size=200)
    for inputs, targets in data.train_dataloader():
        assert ((targets != -100).sum(1) == n).all()
        assert torch.equal(inputs == data.mask, targets != -100)
        assert (inputs[:, 0] == data.cls).all() and (inputs[:, -1] == data.sep).all()
        assert (targets[:, [0, -1]] == -100).all()


def test_bert_hides_four_fifths_and_changes_a_tenth():
    data = BERTData(corpus(), context=64, mask_rate=1.0, vocab_size=200)
    starts = torch.arange(0, len(data.train) - 62).repeat(4)
    inputs, targets = data.make(starts, torch.Generator().manual_seed(0))
    chosen = targets != -100
    hidden, kept = (inputs == data.mask)[chosen], (inputs == targets)[chosen]
    n = chosen.sum().item()
    assert n > 100_000
    assert hidden.sum().item() / n == pytest.approx(0.8, abs=0.01)
    # One in about 195 of the random tokens happens to be the right one.
    assert kept.sum().item() / n == pytest.approx(0.1, abs=0.01)
    assert (inputs[chosen][~hidden] > data.mask).all()  # no special token as a random token
    shown = data.windows(data.train, starts)
    assert torch.equal(inputs[~chosen], shown[~chosen])
    assert torch.equal(targets[chosen], shown[chosen])


def test_bert_held_out_masks_are_fixed():
    data = BERTData(corpus(), context=16, mask_rate=0.4, vocab_size=200)
    other = BERTData(corpus(), context=16, mask_rate=0.2, vocab_size=200, seed=5)
    inputs, targets = data.held_out(data.test)
    for again in (data.held_out(data.test), other.held_out(other.test)):
        assert torch.equal(inputs, again[0]) and torch.equal(targets, again[1])
    assert ((targets != -100).sum(1) == 2).all()  # 15 % of 14, whatever training does
    assert torch.equal(inputs == data.mask, targets != -100)
    restored = inputs.where(targets == -100, targets)[:, 1:-1].flatten()
    assert torch.equal(restored, data.test[: len(restored)])
    assert len(data.test) - len(restored) < 14


# ------------------------------------------------------------------------------------------------ long texts
@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "char"])
def test_a_text_read_in_pieces_has_the_tokens_of_the_whole(kind, monkeypatch):
    written = TEXT[:3000] + "  two  spaces\n\n\nand\tlines \n ends, naïve Ünïcode 東京 done." + TEXT[3000:6000]
    make = {"bpe": bpe_tokenizer, "wordpiece": wordpiece_tokenizer, "char": lambda text, _: char_tokenizer(text)}[kind]
    whole = make(written, 400)
    ids = whole.encode(written, add_special_tokens=False).ids
    monkeypatch.setattr(tokenisers, "PIECE", 50)
    assert len(list(tokenisers.pieces(written))) > 50
    assert "".join(tokenisers.pieces(written)) == written
    assert make(written, 400).get_vocab() == whole.get_vocab()  # trained on pieces, too
    assert tokenisers.encode(whole, written).tolist() == ids
    assert tokenisers.encode(whole, "").tolist() == []


@pytest.mark.parametrize("make", [bpe_tokenizer, wordpiece_tokenizer])
def test_a_word_without_end_is_cut(make):
    """The time to train grows with the square of the longest word: this text would take minutes, in one word."""
    draw = random.Random(0)
    letters = "".join(draw.choices("ACGT", k=300_000))
    tokenizer = make(letters, 300)
    words = tokenizer.pre_tokenizer.pre_tokenize_str(letters[:10_000])
    assert max(len(word) for word, _ in words) <= 128
    ids = tokenisers.encode(tokenizer, letters)
    assert len(ids) < len(letters) / 2  # it has learned longer tokens than letters
    unknown = tokenizer.token_to_id("[UNK]")
    assert unknown is None or (ids != unknown).all()
    if make is bpe_tokenizer:
        assert tokenizer.decode(ids.tolist()) == letters


# ------------------------------------------------------------------------------------------------ files of one's own
def test_a_folder_of_texts(tmp_path, capsys):
    (tmp_path / "deep").mkdir()
    for name, word in {"b.md": "bee\n", "a.txt": "ant\n", "deep/c.py": "cow = 1\n", "empty.txt": ""}.items():
        (tmp_path / name).write_text(60 * word, encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / ".hidden.txt").write_bytes(b"\xff")
    found = load_corpus(tmp_path)
    whole = found.train + found.validation + found.test
    assert [whole.count(word) for word in ("ant", "bee", "cow")] == [60, 60, 60] and whole.startswith("ant")
    assert "files that do not end with .txt, .md, .py, .jsonl are left out: 1" in capsys.readouterr().out
    pattern = load_corpus(f"{tmp_path}/*.md")
    assert pattern.train + pattern.validation + pattern.test == "bee\n" * 60


def test_many_documents_are_divided_whole(tmp_path):
    texts = [f"document {i} of many\n" for i in range(400)]
    lines = [json.dumps({"text": text, "id": 3} if i % 2 else text) for i, text in enumerate(texts)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = load_corpus(tmp_path / "x.jsonl")
    for name in ("train", "validation", "test"):
        inside = getattr(found, name).split("\n\n\n\n")
        assert len(inside) > 5 and all(part_of(text.rstrip("\n") + "\n") == name for text in inside)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("bad.txt", b"caf\xe9 " * 40, "bad.txt.*must be UTF-8 text, and byte 3 is not; save the file as UTF-8"),
        ("bad.md", b"\0\1" * 40, "bad.md.*NUL bytes"),
        ("bad.jsonl", b'"one"\n{"text": 3}\n', "bad.jsonl.*line 2 has neither"),
        ("bad.jsonl", b'"one"\nwords\n', "bad.jsonl.*line 2 has not"),
    ],
)
def test_the_bad_file_of_a_folder_is_named(tmp_path, name, content, message):
    (tmp_path / "good.txt").write_text("good\n" * 50, encoding="utf-8")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_corpus(tmp_path)


@pytest.mark.parametrize("name", ["none.txt", "none/*.md", ""])
def test_nothing_is_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="data="):
        load_corpus(name)


# ------------------------------------------------------------------------------------------------ long texts
@pytest.fixture
def long_ones(monkeypatch, tmp_path):
    """Texts of more than 3 kB count as long, and the arrays go into a folder of this test."""
    monkeypatch.setattr(text, "LONG", 3000)
    monkeypatch.setattr(text, "SAMPLE", 1500)
    monkeypatch.setattr(disk, "PIECE", 256)
    monkeypatch.setattr(disk, "BLOCK", 97)  # cuts characters, and \r from \n
    monkeypatch.setenv("TRANSFORMER_CACHE", str(tmp_path / "cache"))


def blocks_of(corpus):
    return "".join(corpus.train.read())


def test_a_long_text_has_the_parts_of_a_short_one(long_ones, tmp_path, monkeypatch):
    written = "".join(f"line {i}: caf\u00e9, \U0001f600\r\n" for i in range(300))
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + written.encode())
    (tmp_path / "b.txt").write_bytes(written.upper().encode())
    (tmp_path / "b.png").write_bytes(b"")
    found = load_corpus(f"{tmp_path}/*.txt")
    monkeypatch.setattr(text, "LONG", 10**9)
    usual = load_corpus(f"{tmp_path}/*.txt")
    assert isinstance(found.train, disk.LongText) and isinstance(usual.train, str)
    assert blocks_of(found) == usual.train and "\r" not in usual.train
    assert (found.validation, found.test) == (usual.validation, usual.test)
    assert len(found.train) == len(usual.train) and found.describe()["train"] == usual.describe()["train"]
    every = len(usual.train) // 1500 * 256
    pieces = [usual.train[start : start + 256] for start in range(0, len(usual.train), every)]
    assert found.train.sample == "".join(pieces)


def test_the_lines_of_a_long_jsonl_are_divided_as_those_of_a_short_one(long_ones, tmp_path, monkeypatch):
    lines = [json.dumps({"text": f"document {i} of many: na\u00efve"}) for i in range(400)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = load_corpus(tmp_path / "x.jsonl")
    monkeypatch.setattr(text, "LONG", 10**9)
    usual = load_corpus(tmp_path / "x.jsonl")
    assert blocks_of(found).removesuffix(SEPARATOR) == usual.train
    assert (found.validation, found.test) == (usual.validation, usual.test)


def test_of_a_long_text_little_is_held_out(monkeypatch):
    monkeypatch.setattr(text, "MOST_VALIDATION", 50)
    monkeypatch.setattr(text, "MOST_TEST", 80)
    assert text.edges(10_000) == (9870, 9920)
    assert text.edges(100) == (85, 90)
    parts = [part_of(str(i), 1000) for i in range(4000)]
    assert 0.06 < parts.count("test") / 4000 < 0.1 and 0.035 < parts.count("validation") / 4000 < 0.055
    assert all(part in ("train", part_of(str(i))) for i, part in enumerate(parts))


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_the_tokens_of_a_long_text_lie_on_disk(long_ones, tmp_path, monkeypatch, kind):
    (tmp_path / "a.txt").write_text("the quick brown fox, or not\n" * 400, encoding="utf-8")
    corpus = load_corpus(tmp_path / "a.txt")
    data = GPTData(corpus, context=16, batch_size=4, tokenizer=kind, vocab_size=280)
    assert data.train.dtype == torch.uint16
    assert torch.equal(data.train.long(), encode(data.tokenizer, blocks_of(corpus)))
    (made,) = (tmp_path / "cache" / "arrays").iterdir()
    ids, targets = next(iter(data.train_dataloader()))
    assert ids.dtype == targets.dtype == torch.long and torch.equal(ids[:, 1:], targets[:, :-1])
    monkeypatch.setattr("utils.data.tokenisers.pieces_of_blocks", None)  # a second start reads the array
    assert torch.equal(encode(data.tokenizer, corpus.train).long(), data.train.long())
    assert list(made.parent.iterdir()) == [made]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_what_is_not_whole_is_not_kept(long_ones, tmp_path, error):
    def write(file):
        file.write(b"half")
        raise error

    message = "TRANSFORMER_CACHE" if isinstance(error, OSError) else None
    with pytest.raises(type(error), match=message):
        disk.kept("x", write)
    assert list((tmp_path / "cache" / "arrays").iterdir()) == []
    assert disk.kept("x", lambda file: file.write(b"whole")).read_bytes() == b"whole"


@pytest.mark.parametrize("size", [10, 1000, 10**6])
def test_pieces_do_not_depend_on_the_blocks(size):
    draw = random.Random(1)
    written = "".join(draw.choices("ab \n", k=500_000)) + "c" * 300_000
    blocks = (written[i : i + size] for i in range(0, len(written), size))
    found = list(tokenisers.pieces_of_blocks(blocks)) if size > 10 else list(tokenisers.pieces(written))
    assert "".join(found) == written and max(map(len, found)) <= 2 * tokenisers.PIECE
    assert found == list(tokenisers.pieces(written))
