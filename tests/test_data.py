"""Corpora, tokenisers, windows, masks, batches, pictures and baselines: each against what it promises."""

import gzip
import hashlib
import lzma
import math
import sys
import zipfile
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from utils import baselines, download, images, text
from utils.batches import EvalBatches, TrainBatches
from utils.download import DownloadError
from utils.images import Augment, ImageData, ImageSet, load_images, read_idx, split
from utils.text import (
    SEPARATOR,
    BERTData,
    Corpus,
    GPTData,
    bpe_tokenizer,
    char_tokenizer,
    encode,
    load_corpus,
    wordpiece_tokenizer,
)

WORDS = tiny.text(1500)


@pytest.fixture(scope="module")
def python_docs():
    """With a separator that no document holds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "SEPARATOR", "\0")
        return load_corpus("python-docs")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache and no way out: whatever is not in the cache fails at once."""
    monkeypatch.setenv("TRANSFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "TRIES", 1)
    monkeypatch.setattr(download, "_copy", lambda url, file, path: "no network")
    return tmp_path / "cache"


def put(path: Path, content: bytes) -> str:
    """Write a file into the cache; return its hash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return "sha256:" + hashlib.sha256(content).hexdigest()


def corpus(train: str = WORDS, validation: str = WORDS[:600], test: str = WORDS[-900:]) -> Corpus:
    return Corpus("made", train, validation, test, "by hand")


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
    monkeypatch.setattr(text, "SHAKESPEARE", download.Remote("http://127.0.0.1:1/x", found))
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
    with pytest.raises(DownloadError, match="by hand"):  # what to do
        load_corpus(name)
    assert load_corpus(name, fallback="python-docs") == corpus()
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line and "python-docs" in line


@pytest.mark.parametrize("name", ["fashion-mnist", "pizza-steak-sushi"])
def test_fallback_of_pictures_is_announced_and_only_on_request(cache, capsys, name):
    with pytest.raises(DownloadError, match="by hand"):
        load_images(name)
    assert load_images(name, fallback="mnist-5k").name == "mnist-5k"
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line and "mnist-5k" in line


# ------------------------------------------------------------------------------------------------ tokenisers
@pytest.mark.parametrize("kind", [GPTData, BERTData])
def test_tokenisers_are_fitted_on_the_training_part_alone(kind):
    secret = "\u0416"  # stands in the held-out parts only
    plain = kind(corpus(), context=16, vocab_size=400)
    other = kind(corpus(validation=WORDS[:600] + secret * 300, test=WORDS[-900:] + secret * 300), context=16, vocab_size=400)
    assert other.tokenizer.get_vocab() == plain.tokenizer.get_vocab()
    fitted = kind(corpus(train=WORDS + f"{secret}{secret} " * 300), context=16, vocab_size=400)
    assert fitted.tokenizer.get_vocab() != plain.tokenizer.get_vocab()  # the test can fail


def test_characters_of_the_test_part_are_unknown():
    words = GPTData(corpus(test=WORDS[-900:] + "\u0416"), context=16, tokenizer="char")
    assert words.tokenizer.token_to_id("\u0416") is None
    assert words.test[-1] == words.tokenizer.token_to_id("[UNK]")
    assert words.tokenizer.token_to_id("[UNK]") not in words.train


@pytest.mark.parametrize("make", [lambda t: bpe_tokenizer(t, 300), lambda t: wordpiece_tokenizer(t, 200), char_tokenizer])
def test_tokenisers_are_the_same_each_time(make):
    assert len({make(WORDS).to_str() for _ in range(4)}) == 1


@pytest.mark.parametrize(
    "written",
    ["", " ", "plain words", "\U0001f600\u200d\U0001f4bb family", "\u4f60\u597d\uff0c\u4e16\u754c", "a\0b\x07\x1b[0m\x7f",
     "\r\n\t\v\f ", "  two  spaces ", "e\u0301 \u00e9", "".join(map(chr, range(256)))],
)  # fmt: skip
def test_bpe_gives_back_every_text(written):
    tokenizer = bpe_tokenizer(WORDS, 300)
    assert tokenizer.decode(encode(tokenizer, written).tolist(), skip_special_tokens=False) == written


def test_char_tokenizer():
    tokenizer = char_tokenizer("hello\n")
    assert tokenizer.decode(encode(tokenizer, "hell\no").tolist()) == "hell\no"
    unknown = tokenizer.token_to_id("[UNK]")
    assert encode(tokenizer, "h\U0001f600e").tolist() == [tokenizer.token_to_id("h"), unknown, tokenizer.token_to_id("e")]
    assert encode(tokenizer, "").tolist() == []


def test_wordpiece_tokenizer():
    tokenizer = wordpiece_tokenizer(WORDS + " Caf\u00e9", 200)
    assert [tokenizer.token_to_id(name) for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 1, 2, 3, 4]
    assert tokenizer.get_vocab_size() == 200
    assert tokenizer.encode("CAF\u00c9 [MASK]").ids == [2, *encode(tokenizer, "cafe").tolist(), 4, 3]
    assert 4 not in encode(tokenizer, "cafe ##a").tolist()
    assert tokenizer.decode(tokenizer.encode("caf\u00e9").ids) == "cafe"
    assert 1 in encode(tokenizer, "\u0416").tolist()


# ------------------------------------------------------------------------------------------------ windows
def test_gpt_targets_are_the_next_words():
    words = GPTData(corpus(), context=16, batch_size=8, vocab_size=300)
    following = {tuple(words.train[i : i + 17].tolist()) for i in range(len(words.train) - 16)}
    for inputs, targets in words.train_dataloader():
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        for row, last in zip(inputs.tolist(), targets[:, -1:].tolist(), strict=True):
            assert tuple(row + last) in following


@pytest.mark.parametrize("context", [1, 2, 7, 16])
@pytest.mark.parametrize("length", [18, 33, 100])
def test_gpt_scores_each_held_out_word_once_and_with_context(context, length):
    words = GPTData(corpus(), context=context, tokenizer="char")
    ids = torch.arange(length)  # a word is its own place
    inputs, targets = words.held_out(ids)
    scored = targets[targets != -100]
    assert sorted(scored.tolist()) == list(range(1, length))
    before = (inputs[:, :1] * 0 + torch.arange(1, context + 1))[targets != -100]  # words seen, itself excluded
    assert (before >= torch.minimum(scored, torch.tensor(-(-context // 2)))).all()
    assert torch.equal((inputs + 1)[targets != -100], scored)


@pytest.mark.parametrize("kind, context", [(GPTData, 16), (BERTData, 18)])
def test_passes_are_equally_long_whatever_the_text(kind, context):
    for n in range(300, 340):
        words = kind(corpus(train=WORDS), context=context, batch_size=8, vocab_size=300)
        words.train = words.train[:n]
        counts = {len(words.order(torch.Generator().manual_seed(seed))) for seed in range(40)}
        assert len(counts) == 1
        starts = torch.cat([words.order(torch.Generator().manual_seed(seed)) for seed in range(40)])
        assert starts.min() >= 0 and starts.max() + words.window < n


def test_passes_cut_the_text_at_many_places():
    words = GPTData(corpus(), context=16, vocab_size=300)
    offsets = {int(words.order(torch.Generator().manual_seed(seed)).min()) for seed in range(200)}
    assert offsets == set(range(16))


# ------------------------------------------------------------------------------------------------ masks
@pytest.mark.parametrize("rate, n", [(0.15, 2), (0.5, 7), (1.0, 14), (0.001, 1)])
def test_bert_hides_exactly_its_share(rate, n):
    words = BERTData(corpus(), context=16, batch_size=8, mask_rate=rate, random_rate=0.0, keep_rate=0.0, vocab_size=200)
    for inputs, targets in words.train_dataloader():
        assert ((targets != -100).sum(1) == n).all()
        assert torch.equal(inputs == words.mask, targets != -100)
        assert (inputs[:, 0] == words.cls).all() and (inputs[:, -1] == words.sep).all()
        assert (targets[:, [0, -1]] == -100).all()


def test_bert_hides_four_fifths_and_changes_a_tenth():
    words = BERTData(corpus(), context=64, mask_rate=1.0, vocab_size=200)
    starts = torch.arange(0, len(words.train) - 62).repeat(4)
    inputs, targets = words.make(starts, torch.Generator().manual_seed(0))
    chosen = targets != -100
    hidden, kept = (inputs == words.mask)[chosen], (inputs == targets)[chosen]
    n = chosen.sum().item()
    assert n > 100_000
    assert hidden.sum().item() / n == pytest.approx(0.8, abs=0.01)
    # Of the random words, one in about 195 happens to be the right one.
    assert kept.sum().item() / n == pytest.approx(0.1, abs=0.01)
    assert (inputs[chosen][~hidden] > words.mask).all()  # no special token as a random word
    shown = words.windows(words.train, starts)
    assert torch.equal(inputs[~chosen], shown[~chosen])
    assert torch.equal(targets[chosen], shown[chosen])


def test_bert_held_out_masks_are_fixed():
    words = BERTData(corpus(), context=16, mask_rate=0.4, vocab_size=200)
    other = BERTData(corpus(), context=16, mask_rate=0.2, vocab_size=200, seed=5)
    inputs, targets = words.held_out(words.test)
    for again in (words.held_out(words.test), other.held_out(other.test)):
        assert torch.equal(inputs, again[0]) and torch.equal(targets, again[1])
    assert ((targets != -100).sum(1) == 2).all()  # 15 % of 14, whatever training does
    assert torch.equal(inputs == words.mask, targets != -100)
    restored = inputs.where(targets == -100, targets)[:, 1:-1].flatten()
    assert torch.equal(restored, words.test[: len(restored)])
    assert len(words.test) - len(restored) < 14


# ------------------------------------------------------------------------------------------------ batches
def made(world: int = 1, rank: int = 0, n: int = 21, batch_size: int = 4) -> TrainBatches:
    def make(items, generator):
        return items, torch.rand(len(items), generator=generator)

    return TrainBatches(lambda g: torch.randperm(n, generator=g), make, batch_size, seed=3, rank=rank, world=world)


def read(batches, passes: int = 1) -> list:
    return [tuple(tensor.tolist() for tensor in batch) for _ in range(passes) for batch in batches]


def test_each_item_once_a_pass_in_another_order():
    batches = made()
    assert len(batches) == 6
    first, second = read(batches), read(batches)
    for whole in (first, second):
        assert sorted(sum((items for items, _ in whole), [])) == list(range(21))
    assert first != second
    assert read(made(), 2) == first + second


@pytest.mark.parametrize("stop", range(1, 18))
def test_batches_go_on_where_they_stopped(stop):
    whole, batches = read(made(), 3), made()
    taken = []
    while len(taken) < stop:
        for batch in batches:
            taken.append(tuple(tensor.tolist() for tensor in batch))
            if len(taken) == stop:
                break
    resumed = made()
    resumed.load_state_dict(batches.state_dict())
    rest = []
    while len(taken) + len(rest) < len(whole):
        rest += read(resumed)
    assert taken + rest == whole


@pytest.mark.parametrize("world", [2, 3])
def test_devices_share_each_batch(world):
    whole, parts = read(made(batch_size=6)), [read(made(world, rank, batch_size=6)) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    for i, (items, noise) in enumerate(whole[: len(parts[0])]):
        n = len(items) // world * world  # 21 items leave a last batch of 3: one for each of two, and one for none
        for rank, part in enumerate(parts):
            assert part[i] == (items[rank:n:world], noise[rank:n:world])


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("n", [3, 4, 5, 8, 9, 24, 25, 26])
def test_evaluation_covers_everything_once_on_any_number_of_devices(world, n):
    parts = [EvalBatches(torch.arange(n), torch.arange(n) * 2, batch_size=4, rank=r, world=world) for r in range(world)]
    assert len({len(part) for part in parts}) == 1  # else they wait for each other for ever
    batches = [batch for part in parts for batch in part]
    assert sorted(torch.cat([items for items, _ in batches]).tolist()) == list(range(n))
    assert all(0 < len(items) <= 4 and torch.equal(items * 2, twice) for items, twice in batches)
    assert all(len(list(part)) == len(part) for part in parts)


def test_too_many_devices():
    with pytest.raises(ValueError, match="devices=5: must be at most batch_size=4"):
        made(world=5)
    with pytest.raises(ValueError, match="devices=4: must be at most the number of held-out items, 3"):
        EvalBatches(torch.arange(3), batch_size=4, world=4)
    with pytest.raises(ValueError, match="devices=4: must be at most the number of training items, 3"):
        made(world=4, n=3)


# ------------------------------------------------------------------------------------------------ pictures
def is_disjoint(found: ImageSet) -> bool:
    seen = [{picture.numpy().tobytes() for picture in part[0]} for part in (found.train, found.validation, found.test)]
    return not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_one_folder_is_split_by_class(tmp_path):
    found = load_images(tiny.pictures(tmp_path, n=40), 8)
    assert found.classes == ["dark", "grey", "light"]
    assert [part[1].bincount().tolist() for part in (found.train, found.validation, found.test)] == [[29] * 3, [3] * 3, [8] * 3]
    assert found.train[0].shape == (87, 1, 8, 8) and found.train[0].dtype == torch.uint8
    assert is_disjoint(found)
    for pictures, labels in (found.train, found.validation, found.test):
        means = pictures.float().mean((1, 2, 3))
        assert ((means > 80).long() + (means > 160).long()).equal(labels)
    again = load_images(tmp_path, 8)
    assert again.describe() == found.describe()
    both = found.refit()
    assert len(both.train[1]) == 96 and torch.equal(both.test[0], found.test[0])


def test_train_and_test_folders_keep_their_pictures(tmp_path):
    tiny.pictures(tmp_path / "train", n=20)
    tiny.pictures(tmp_path / "test", n=5, mode="RGB")
    found = load_images(tmp_path, 8)
    assert [len(part[1]) for part in (found.train, found.validation, found.test)] == [54, 6, 15]
    assert found.train[0].shape[1] == found.test[0].shape[1] == 3  # grey is widened where the other part has colour
    (tmp_path / "test" / "other").mkdir()
    with pytest.raises(ValueError, match="other"):
        load_images(tmp_path, 8)


@pytest.mark.parametrize(
    "mode, channels", [("L", 1), ("1", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("CMYK", 3), ("I;16", 1), ("LA", 1)]
)
def test_kinds_of_pictures(tmp_path, mode, channels):
    """Each is read as the grey or the colour that it shows."""
    level = {"1": 255, "I;16": 100 * 257}.get(mode, 100)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(10):
            if mode == "I;16":
                picture = Image.fromarray(np.full((6, 9), level, np.uint16))
            elif mode in ("1", "L"):
                picture = Image.new(mode, (9, 6), level)
            elif mode == "LA":
                picture = Image.new("LA", (9, 6), (level, 255))
            else:
                picture = Image.new("RGB", (9, 6), (level, 50, 200)).convert(mode)
            picture.save(tmp_path / name / f"{i}.{'jpg' if mode == 'CMYK' else 'png'}", quality=100)
    pictures, _ = load_images(tmp_path, 4).train
    assert pictures.shape[1:] == (channels, 4, 4)
    expected = [255] if mode == "1" else [100, 50, 200][:channels]
    assert (pictures.float().mean((0, 2, 3)) - torch.tensor(expected)).abs().max() < 6


def test_pictures_are_cut_from_the_middle(tmp_path):
    wide = torch.zeros(4, 8, dtype=torch.uint8)
    wide[:, 2:6] = 200
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.fromarray(wide.numpy()).save(tmp_path / name / f"{i}.png")
    assert (load_images(tmp_path, 4).train[0] == 200).all()


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("shape, resized, left, top", [
    ((8, 8), (8, 8), 0, 0), ((37, 23), (13, 8), 2, 0), ((20, 90), (8, 36), 0, 14), ((50, 5), (80, 8), 36, 0),
])  # fmt: skip
def test_ordinary_pictures_are_resized_then_cut(tmp_path, mode, shape, resized, left, top):
    """Bit for bit: what a model was trained on is what it is tested on, next year too."""
    picture = Image.frombytes(mode, shape, np.random.default_rng(0).bytes(shape[0] * shape[1] * len(mode)))
    picture.save(tmp_path / "x.png")
    expected = picture.resize(resized, Image.Resampling.BICUBIC).crop((left, top, left + 8, top + 8))
    found = images.read_picture(tmp_path / "x.png", 8).permute(1, 2, 0).numpy()
    assert np.array_equal(found.squeeze(), np.array(expected))


@pytest.mark.parametrize("shape", [(3000, 1), (2, 5000)])
def test_a_strip_is_cut_before_it_is_enlarged(tmp_path, monkeypatch, shape):
    """Enlarged as a whole, 1 pixel x 60,000 would fill the memory."""
    levels = np.zeros(shape[::-1], np.uint8)
    levels[(slice(None), slice(1490, 1510)) if shape[0] > shape[1] else slice(2490, 2510)] = 200  # the middle
    Image.fromarray(levels).save(tmp_path / "x.png")
    sizes, resize = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *a, **k: sizes.append(size) or resize(self, size, *a, **k))
    assert (images.read_picture(tmp_path / "x.png", 32) == 200).all()
    assert sizes and max(map(max, sizes)) == 32


def test_a_photograph_stands_as_its_camera_held_it(tmp_path):
    """EXIF's orientation 6: to be turned by a quarter to the right."""
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "x.png", exif=exif)
    upright = np.rot90(np.array(picture), -1)
    assert np.array_equal(images.read_picture(tmp_path / "x.png", 8)[0].numpy(), upright)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_what_is_transparent_is_white(tmp_path, mode):
    """The left half of a dark picture is transparent."""
    picture = Image.new("RGBA", (8, 8), (10, 10, 10, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 4, 8))
    picture.convert("RGB" if mode == "RGB" else mode).save(tmp_path / "x.png", transparency={"RGB": (0, 0, 0)}.get(mode))
    found = images.read_picture(tmp_path / "x.png", 8)
    assert len(found) == (1 if mode == "LA" else 3)
    assert (found[..., :4] == 255).all() and (found[..., 4:] == 10).all()


def test_what_is_no_picture_is_said(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_text("words")
    with pytest.raises(ValueError, match=r"^must be a readable picture \(PNG, JPEG or another format that Pillow knows\)$"):
        images.read_picture(tmp_path / "x.png", 8)
    Image.new("L", (8, 8)).save(tmp_path / "y.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # it refuses twice as many: a bomb that unpacks to gigabytes
    with pytest.raises(ValueError, match="^must be a readable picture .*64 pixels.*"):
        images.read_picture(tmp_path / "y.png", 8)


def test_mnist_5k():
    found = load_images("mnist-5k")
    assert [part[1].bincount().tolist() for part in (found.train, found.validation, found.test)] == [
        [360] * 10, [40] * 10, [100] * 10,
    ]  # fmt: skip
    assert found.train[0].shape[1:] == (1, 28, 28)
    assert is_disjoint(found)


def test_split_takes_the_same_share_of_every_class():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 10)
    places = torch.arange(90)
    (rest, rest_labels), (taken, taken_labels) = split(places, labels, 0.2)
    assert taken_labels.bincount().tolist() == [10, 6, 2]
    assert sorted(rest.tolist() + taken.tolist()) == list(range(90))
    assert torch.equal(labels[rest], rest_labels) and torch.equal(labels[taken], taken_labels)
    assert torch.equal(split(places, labels, 0.2)[1][0], taken)
    assert not torch.equal(split(places, labels, 0.2, seed=1)[1][0], taken)


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return gzip.compress(header + values.astype(np.uint8).tobytes())


def test_idx_files(tmp_path):
    for values in (np.arange(24).reshape(2, 3, 4), np.array([7, 0, 9])):
        (tmp_path / "file.gz").write_bytes(idx(values))
        assert np.array_equal(read_idx(tmp_path / "file.gz").numpy(), values)


def test_fashion_mnist_comes_from_the_cache(cache, monkeypatch):
    draw = np.random.default_rng(0)
    values = [
        draw.integers(0, 256, (100, 28, 28)), np.arange(100) % 10, draw.integers(0, 256, (20, 28, 28)), np.arange(20) % 10,
    ]  # fmt: skip
    names = list(images.FASHION_MNIST_FILES)
    hashes = {name: put(cache / "fashion-mnist" / name, idx(v)) for name, v in zip(names, values, strict=True)}
    monkeypatch.setattr(images, "FASHION_MNIST_FILES", hashes)
    found = load_images("fashion-mnist")
    assert [len(part[1]) for part in (found.train, found.validation, found.test)] == [90, 10, 20]
    assert np.array_equal(found.test[0][:, 0].numpy(), values[2])
    assert is_disjoint(found) and len(found.classes) == 10


def test_pizza_steak_sushi_comes_from_the_cache(cache, tmp_path, monkeypatch):
    tiny.pictures(tmp_path / "made" / "train", mode="RGB")
    tiny.pictures(tmp_path / "made" / "test", n=4, mode="RGB")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in sorted((tmp_path / "made").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path / "made"))
    found = put(cache / "pizza_steak_sushi.zip", (tmp_path / "x.zip").read_bytes())
    monkeypatch.setattr(images, "PIZZA_STEAK_SUSHI", download.Remote("http://127.0.0.1:1/x", found))
    food = load_images("pizza-steak-sushi", 8)
    assert food.name == "pizza-steak-sushi"
    assert [len(part[1]) for part in (food.train, food.validation, food.test)] == [42, 6, 12]


# ------------------------------------------------------------------------------------------------ augmentation
def photographs(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_augmentation_of_nothing_changes_nothing():
    torch.testing.assert_close(Augment()(photographs(), seeded()), photographs(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "bend",
    [{"degrees": 20.0}, {"shift": 0.2}, {"scale": 0.3}, {"shear": 0.3}, {"elastic": 0.05}, {"flip": True}, {"colour": 0.4}],
)
def test_augmentation_bends_each_picture_in_its_own_way(bend):
    same = photographs(1).expand(16, -1, -1, -1)
    bent = Augment(**bend)(same, seeded())
    assert bent.shape == same.shape and bent.isfinite().all()
    assert len({picture.numpy().tobytes() for picture in bent}) == (2 if "flip" in bend else 16)
    assert torch.equal(Augment(**bend)(same, seeded()), bent)
    assert not torch.equal(Augment(**bend)(same, seeded(1)), bent)


def test_flip_mirrors_left_and_right_half_of_the_time():
    pictures = photographs(400)
    bent = Augment(flip=True)(pictures, seeded())
    mirrored = (bent - pictures.flip(-1)).abs().amax((1, 2, 3)) < 1e-5
    kept = (bent - pictures).abs().amax((1, 2, 3)) < 1e-5
    assert (mirrored ^ kept).all()
    assert 150 < mirrored.sum() < 250


def test_shift_moves_by_at_most_its_share():
    dot = torch.zeros(200, 1, 21, 21)
    dot[:, :, 10, 10] = 1
    bent = Augment(shift=0.2)(dot, seeded())
    rows, columns = (bent.sum((1, dim)) @ torch.arange(21.0) / bent.sum((1, 2, 3)) - 10 for dim in (3, 2))
    for moved in (rows, columns):
        assert 3.5 < moved.abs().max() <= 0.2 * 21 + 1e-3
    assert (rows - columns).abs().max() > 1


def test_pictures_are_normalised_by_the_training_part(tmp_path):
    found = load_images(tiny.pictures(tmp_path, n=40, mode="RGB"), 8)
    data = ImageData(found, batch_size=8)
    pictures = torch.cat([batch for batch, _ in data.train_dataloader()])
    assert pictures.mean((0, 2, 3)).abs().max() < 1e-4
    torch.testing.assert_close(pictures.std((0, 2, 3)), torch.ones(3), rtol=0, atol=1e-3)
    shifted = ImageSet(found.name, found.classes, found.train, found.validation, (found.test[0] // 2, found.test[1]), "")
    assert torch.equal(ImageData(shifted).mean, data.mean)
    (bright, _), (dark, _) = next(iter(data.test_dataloader())), next(iter(ImageData(shifted).test_dataloader()))
    assert dark.mean() < bright.mean() - 0.5
    only = Augment(flip=True)
    assert torch.equal(next(iter(ImageData(found, augment=only).test_dataloader()))[0], bright)  # training pictures alone


def test_pictures_of_one_colour_are_finite():
    part = torch.zeros(12, 1, 4, 4, dtype=torch.uint8), torch.arange(12) % 2
    data = ImageData(ImageSet("black", ["a", "b"], part, part, part, ""))
    assert next(iter(data.test_dataloader()))[0].isfinite().all()


# ------------------------------------------------------------------------------------------------ baselines
def slow_witten_bell(train: bytes, held_out: bytes, order: int) -> list[float]:
    """With a dictionary for each length of history."""
    followers = [defaultdict(Counter) for _ in range(order)]
    padded = b"\n" * (order - 1) + train
    for n in range(order):
        for i in range(order - 1, len(padded)):
            followers[n][padded[i - n : i]][padded[i]] += 1

    def p(history: bytes, byte: int) -> float:
        seen = followers[len(history)].get(history)
        shorter = p(history[1:], byte) if history else 1 / 256
        if seen is None:
            return shorter
        return (seen[byte] + len(seen) * shorter) / (seen.total() + len(seen))

    asked = b"\n" * (order - 1) + held_out
    return [p(asked[i - order + 1 : i], asked[i]) for i in range(order - 1, len(asked))]


def as_bytes(written: str) -> np.ndarray:
    return np.frombuffer(written.encode(), np.uint8).astype(np.uint64)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_witten_bell(order):
    old, new = WORDS[:1500], WORDS[3000:3300] + "\u0416 zzz \xff"
    fast = baselines.witten_bell(as_bytes(old), as_bytes(new), order)
    assert fast == pytest.approx(slow_witten_bell(old.encode(), new.encode(), order), rel=1e-9)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_witten_bell_sums_to_1_over_the_next_byte(order):
    old = as_bytes(WORDS[:500])
    for history in (b"", b"zz", WORDS[40:50].encode()):
        new = [np.frombuffer(history + bytes([byte]), np.uint8).astype(np.uint64) for byte in range(256)]
        assert sum(baselines.witten_bell(old, asked, order)[-1] for asked in new) == pytest.approx(1)


def test_text_ladder():
    old, new = WORDS[:6000], WORDS[6000:7000]
    ladder = baselines.text_ladder(old, new)
    assert list(ladder) == ["uniform", "unigram", "bigram", "5-gram", "lzma"]
    assert ladder["uniform"] == 8
    for name, order in {"unigram": 1, "bigram": 2, "5-gram": 5}.items():
        expected = slow_witten_bell(old.encode(), new.encode(), order)
        assert ladder[name] == pytest.approx(-sum(map(math.log2, expected)) / len(expected))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 26}]
    before, after = (len(lzma.compress(t.encode(), lzma.FORMAT_RAW, filters=filters)) for t in (old, old + new))
    assert ladder["lzma"] == pytest.approx(8 * (after - before) / len(new))


def test_neighbour_table_by_hand():
    # 1 2 3 twice and 1 4 3 once: between 1 and 3 stands 2. After 5 comes 6. The commonest word is 1.
    train = torch.tensor([1, 2, 3, 1, 2, 3, 1, 4, 3, 5, 6, 1, 7, 1])
    words = torch.tensor([[1, 2, 3], [5, 6, 8], [8, 1, 9], [1, 4, 3]])
    targets = torch.full_like(words, -100)
    targets[:, 1] = words[:, 1]
    shown = words.where(targets == -100, 0)
    ladder = baselines.masked_ladder(train, shown, targets, words, vocab_size=10)
    assert ladder["neighbour table"]["accuracy"] == 3 / 4  # by both, by the left one, by frequency; 4 is missed
    assert ladder["unigram"]["accuracy"] == 1 / 4
    p = [(n + 1) / (len(train) + 10) for n in (2, 1, 5, 1)]  # of 2, 6, 1 and 4
    assert ladder["unigram"]["cross_entropy"] == pytest.approx(-sum(map(math.log, p)) / 4)
    assert ladder["uniform"] == {"accuracy": 0.1, "cross_entropy": pytest.approx(math.log(10))}


def test_neighbour_table_with_what_the_model_sees():
    train = torch.tensor([1, 2, 3, 1, 2, 3, 9, 9, 9, 9])
    words = torch.tensor([[1, 2, 3, 1]])
    targets, shown = torch.tensor([[-100, 2, 3, -100]]), torch.tensor([[1, 0, 0, 1]])
    ladder = baselines.masked_ladder(train, shown, targets, words, vocab_size=10)
    assert ladder["neighbour table"]["accuracy"] == 1
    assert ladder["neighbour table, masked neighbours"]["accuracy"] == 1 / 2  # 2 after 1; then 9, the commonest


def test_image_ladder():
    labels = torch.tensor([0, 1, 1, 2] * 10)
    pictures = (labels * 90).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).to(torch.uint8)
    ladder = baselines.image_ladder((pictures, labels), (pictures[:12], labels[:12]))
    assert ladder["largest class"] == 0.5
    assert ladder["logistic regression"] == 1


def test_image_losses():
    labels = torch.tensor([0, 1, 1, 2] * 10)
    pictures = (labels * 90).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).to(torch.uint8)
    losses = baselines.image_losses((pictures, labels), (pictures[:12], labels[:12]))
    assert losses["guessing"] == pytest.approx(1.5 * math.log(2))  # half of them 1, a quarter each 0 and 2
    assert 0 < losses["logistic regression"] < 0.5


@pytest.mark.parametrize("right, n, low, high", [(31, 75, 0.3087, 0.5263), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)])
def test_interval(right, n, low, high):
    assert baselines.interval(right / n, n) == pytest.approx((low, high), abs=2e-4)


def test_device_modules_take_their_share():
    """With two devices, each data module deals out what one would have got."""
    words = BERTData(corpus(), context=16, batch_size=8, vocab_size=200)
    whole = list(words.train_dataloader()), list(words.val_dataloader())
    parts = []
    for rank in range(2):
        words.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        parts.append((list(words.train_dataloader()), list(words.val_dataloader())))
    words.trainer = None
    for i, batch in enumerate(whole[0]):
        for rank in range(2):
            n = len(batch[0]) // 2 * 2
            assert all(map(torch.equal, parts[rank][0][i], (tensor[rank:n:2] for tensor in batch)))
    rows = sorted(row.tolist() for batch in whole[1] for row in batch[0])
    assert rows == sorted(row.tolist() for part in parts for batch in part[1] for row in batch[0])
