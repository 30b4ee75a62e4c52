"""Image sets, picture files, random changes to pictures, and ImageData."""

import gzip
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from samples import cache_without_network, put

from utils.data import images
from utils.data.images import ImageData, ImageSet, load_images, read_idx, split
from utils.data.pictures import Augment, read_picture
from utils.download import DownloadError, Remote


@pytest.fixture
def cache(tmp_path, monkeypatch):
    return cache_without_network(tmp_path, monkeypatch)


# ------------------------------------------------------------------------------------------------ image sets
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
    shutil.copytree(tmp_path / "test" / "dark", tmp_path / "test" / "other")
    with pytest.raises(ValueError, match="other"):
        load_images(tmp_path, 8)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_is_used(tmp_path, name):
    for part, n in {"train": 20, name: 3, "test": 5}.items():
        tiny.pictures(tmp_path / part, n=n)
    found = load_images(tmp_path, 8)
    assert [len(part[1]) for part in (found.train, found.validation, found.test)] == [60, 9, 15]
    shutil.rmtree(tmp_path / "test")  # then a fifth of the training part is the test
    found = load_images(tmp_path, 8)
    assert [len(part[1]) for part in (found.train, found.validation, found.test)] == [48, 9, 12]


def test_a_class_may_be_called_train(tmp_path):
    tiny.pictures(tmp_path)
    (tmp_path / "dark").rename(tmp_path / "train")
    assert load_images(tmp_path, 8).classes == ["grey", "light", "train"]


def test_what_is_no_class_is_named_and_passed_over(tmp_path, capsys):
    tiny.pictures(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("notes")
    (tmp_path / "dark" / "b.heic").write_bytes(b"of a telephone")
    (tmp_path / "dark" / "deeper").mkdir()
    os.mkfifo(tmp_path / "light" / "pipe.png")  # to open it would wait for ever
    for hidden in ("__MACOSX", ".cache"):
        shutil.copytree(tmp_path / "dark", tmp_path / hidden)
    (tmp_path / "dark" / "._0.png").write_bytes(b"what macOS leaves behind")
    found = load_images(tmp_path, 8)
    assert found.classes == ["dark", "grey", "light"] and sum(len(part[1]) for part in (found.train, found.validation, found.test)) == 48
    (line,) = capsys.readouterr().out.splitlines()
    assert "passed over" in line and line.endswith("dark/b.heic, dark/deeper, empty and 2 more")


@pytest.mark.parametrize("suffix", [".webp", ".bmp", ".gif", ".JPG"])
def test_formats(tmp_path, suffix):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.new("RGB", (9, 6), (100, 50, 200)).save(tmp_path / name / f"{i}{suffix}")
    pictures = load_images(tmp_path, 4).train[0].float()
    assert (pictures.mean((0, 2, 3)) - torch.tensor([100, 50, 200])).abs().max() < 6


def test_postscript_is_never_opened(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("Ghostscript was called"))
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    with pytest.raises(ValueError, match="readable picture"):
        read_picture(tmp_path / "x.png", 8)


def test_names_that_are_no_text_are_read(tmp_path):
    """Linux allows any bytes in a name."""
    tiny.pictures(tmp_path)
    os.rename(tmp_path / "dark", os.fsencode(tmp_path) + b"/d\xe4rk")
    found = load_images(tmp_path, 8)
    assert found.classes == ["d\ufffdrk", "grey", "light"] and json.dumps(found.describe(), ensure_ascii=False).encode()


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
    monkeypatch.setattr(images, "PIZZA_STEAK_SUSHI", Remote("http://127.0.0.1:1/x", found))
    food = load_images("pizza-steak-sushi", 8)
    assert food.name == "pizza-steak-sushi"
    assert [len(part[1]) for part in (food.train, food.validation, food.test)] == [42, 6, 12]


@pytest.mark.parametrize("name", ["fashion-mnist", "pizza-steak-sushi"])
def test_fallback_of_pictures_is_announced_and_only_on_request(cache, capsys, name):
    with pytest.raises(DownloadError, match="by hand"):
        load_images(name)
    assert load_images(name, fallback="mnist-5k").name == "mnist-5k"
    (line,) = capsys.readouterr().out.splitlines()
    assert name in line and "mnist-5k" in line


# ------------------------------------------------------------------------------------------------ picture files
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
    found = read_picture(tmp_path / "x.png", 8).permute(1, 2, 0).numpy()
    assert np.array_equal(found.squeeze(), np.array(expected))


@pytest.mark.parametrize("shape", [(3000, 1), (2, 5000)])
def test_a_strip_is_cut_before_it_is_enlarged(tmp_path, monkeypatch, shape):
    """Enlarged as a whole, 1 pixel x 60,000 would fill the memory."""
    levels = np.zeros(shape[::-1], np.uint8)
    levels[(slice(None), slice(1490, 1510)) if shape[0] > shape[1] else slice(2490, 2510)] = 200  # the middle
    Image.fromarray(levels).save(tmp_path / "x.png")
    sizes, resize = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *a, **k: sizes.append(size) or resize(self, size, *a, **k))
    assert (read_picture(tmp_path / "x.png", 32) == 200).all()
    assert sizes and max(map(max, sizes)) == 32


def test_a_photograph_stands_as_its_camera_held_it(tmp_path):
    """EXIF's orientation 6: to be turned by a quarter to the right."""
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "x.png", exif=exif)
    upright = np.rot90(np.array(picture), -1)
    assert np.array_equal(read_picture(tmp_path / "x.png", 8)[0].numpy(), upright)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_what_is_transparent_is_white(tmp_path, mode):
    """The left half of a dark picture is transparent."""
    picture = Image.new("RGBA", (8, 8), (10, 10, 10, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 4, 8))
    picture.convert("RGB" if mode == "RGB" else mode).save(tmp_path / "x.png", transparency={"RGB": (0, 0, 0)}.get(mode))
    found = read_picture(tmp_path / "x.png", 8)
    assert len(found) == (1 if mode == "LA" else 3)
    assert (found[..., :4] == 255).all() and (found[..., 4:] == 10).all()


def test_what_is_no_picture_is_refused(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_text("words")
    with pytest.raises(ValueError, match=r"^must be a readable picture \(JPEG, PNG, WEBP, BMP, GIF\)$"):
        read_picture(tmp_path / "x.png", 8)
    Image.new("L", (8, 8)).save(tmp_path / "y.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # it refuses twice as many: a bomb that unpacks to gigabytes
    with pytest.raises(ValueError, match="^must be a readable picture .*64 pixels.*"):
        read_picture(tmp_path / "y.png", 8)


# ------------------------------------------------------------------------------------------------ random changes
def photographs(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_augmentation_of_nothing_changes_nothing():
    torch.testing.assert_close(Augment()(photographs(), seeded()), photographs(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"degrees": 20.0}, {"shift": 0.2}, {"scale": 0.3}, {"shear": 0.3}, {"elastic": 0.05}, {"flip": True}, {"colour": 0.4}, {"crop": 0.5}],
)
def test_augmentation_changes_each_picture_in_its_own_way(change):
    same = photographs(1).expand(16, -1, -1, -1)
    changed = Augment(**change)(same, seeded())
    assert changed.shape == same.shape and changed.isfinite().all()
    assert len({picture.numpy().tobytes() for picture in changed}) == (2 if "flip" in change else 16)
    assert torch.equal(Augment(**change)(same, seeded()), changed)
    assert not torch.equal(Augment(**change)(same, seeded(1)), changed)


def test_flip_mirrors_left_and_right_half_of_the_time():
    pictures = photographs(400)
    changed = Augment(flip=True)(pictures, seeded())
    mirrored = (changed - pictures.flip(-1)).abs().amax((1, 2, 3)) < 1e-5
    kept = (changed - pictures).abs().amax((1, 2, 3)) < 1e-5
    assert (mirrored ^ kept).all()
    assert 150 < mirrored.sum() < 250


def test_shift_moves_by_at_most_its_share():
    dot = torch.zeros(200, 1, 21, 21)
    dot[:, :, 10, 10] = 1
    changed = Augment(shift=0.2)(dot, seeded())
    rows, columns = (changed.sum((1, dim)) @ torch.arange(21.0) / changed.sum((1, 2, 3)) - 10 for dim in (3, 2))
    for moved in (rows, columns):
        assert 3.5 < moved.abs().max() <= 0.2 * 21 + 1e-3
    assert (rows - columns).abs().max() > 1


def test_crop_shows_a_part_as_the_whole():
    ramp = torch.linspace(0, 1, 64).expand(200, 1, 64, 64)  # from left to right
    changed = Augment(crop=0.75)(ramp, seeded())
    width = (changed[:, 0, 0, -1] - changed[:, 0, 0, 0]) * 64 / 63
    height = Augment(crop=0.75)(ramp.mT, seeded())
    height = (height[:, 0, -1, 0] - height[:, 0, 0, 0]) * 64 / 63
    area = width * height
    assert 0.24 < area.min() < 0.35 and 0.9 < area.max() < 1.03
    assert (width / height).max() < 1.4 and (changed.amin((1, 2, 3)) < 0.05).any()


def test_mix_lets_another_picture_shine_through_and_takes_its_class_by_that_share():
    n = 4000
    one_hot = (torch.arange(n) % 8)[:, None] == torch.arange(8)  # picture i is 1 in the channel of its class
    pictures, labels = one_hot.float()[..., None, None].expand(-1, -1, 2, 2), torch.arange(n) % 8
    changed, classes = Augment(mix=0.5).mixed(pictures, labels, seeded())
    shares = changed[..., 0, 0]
    own = shares[torch.arange(n), labels]
    torch.testing.assert_close(shares.sum(1), torch.ones(n))
    assert (own >= 0.5 - 1e-5).all() and own.min() < 0.6
    taken = classes != labels
    assert shares[torch.arange(n), classes].gt(0).all()  # the class of one of the two
    assert taken.float().mean().item() == pytest.approx(1 - own.mean().item(), abs=0.02)


def test_mixed_classes_reach_the_batches(tmp_path):
    found = load_images(tiny.pictures(tmp_path, n=40, mode="RGB"), 8)
    plain, mixed = (next(iter(ImageData(found, 32, augment).train_dataloader())) for augment in (None, Augment(mix=1.0)))
    assert not torch.equal(plain[0], mixed[0]) and not torch.equal(plain[1], mixed[1])


# ------------------------------------------------------------------------------------------------ data module
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


# ------------------------------------------------------------------------------------------------ many pictures
def test_many_pictures_are_decoded_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(images, "MANY", 4)
    folder = tmp_path / "pictures"
    for i in range(40):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 12), (6 * i, 0, 200)).save(folder / "ab"[i % 2] / f"{i:02}.png")
    found = load_images(folder, 8)
    monkeypatch.setattr(images, "decode", None)  # a second start reads the array
    again = load_images(folder, 8)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(found, part)[0], getattr(again, part)[0])
    monkeypatch.undo()
    monkeypatch.setenv("TRANSFORMER_CACHE", str(tmp_path / "cache"))
    usual = load_images(folder, 8)
    assert torch.equal(found.train[0], usual.train[0]) and torch.equal(found.train[1], usual.train[1])
    monkeypatch.setattr(images, "MANY", 4)
    Image.new("RGB", (9, 12), "white").save(folder / "a" / "00.png")
    assert load_images(folder, 8).describe()["sha256"] != found.describe()["sha256"]  # a file has changed


def test_all_unreadable_pictures_are_counted(tmp_path):
    for i in range(30):
        path = tmp_path / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        if i % 3 == 0:
            path.write_bytes(b"no picture")
        else:
            Image.new("L", (8, 8), i).save(path)
    with pytest.raises(ValueError, match="00.png.*must be a readable picture.*so must 9 others of the 30"):
        load_images(tmp_path, 8)


def test_moments_are_those_of_the_pixels():
    pictures = torch.randint(0, 256, (20, 3, 5, 5), generator=seeded()).to(torch.uint8)
    mean, variance = images.moments(pictures)
    torch.testing.assert_close(mean, pictures.float().mean((0, 2, 3)))
    torch.testing.assert_close(variance, pictures.float().var((0, 2, 3)))
