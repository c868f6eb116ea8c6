"""One entry to all readers: a name or a path in, a train and a test split out."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from unbackdoor._errors import UnbackdoorError, unknown_name
from unbackdoor.data._arrays import resize_pixels
from unbackdoor.data._images import LabelledImages, TestSplit, TrainSplit
from unbackdoor.data.cifar import CIFAR10_CLASSES, is_cifar, read_cifar
from unbackdoor.data.files import read_folder, read_npz
from unbackdoor.data.gtsrb import is_gtsrb, read_gtsrb
from unbackdoor.data.hub import read_hugging_face, read_torchvision
from unbackdoor.data.idx import FASHION_CLASSES, is_idx, read_idx_folder

Split = TypeVar("Split", bound=LabelledImages)
Splits = tuple[TrainSplit, TestSplit]


@dataclass(frozen=True)
class Source:
    """Where a named data set lies, and where it comes from.

    Attributes:
        places: names below the data folder, tried in order; an absolute path is tried as it is.
        origin: what to get, and where.
        classes: class names that its files do not tell.
    """

    places: tuple[str, ...]
    origin: str
    classes: tuple[str, ...] | None = None


SOURCES: dict[str, Source] = {
    "cifar10": Source(
        ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar10.npz", "cifar10"),
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        CIFAR10_CLASSES,
    ),
    "cifar100": Source(
        ("cifar-100-python", "cifar-100-binary", "cifar100.npz", "cifar100"),
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    ),
    "gtsrb": Source(
        ("GTSRB", "gtsrb", "gtsrb.npz"),
        "the Final_Training_Images, Final_Test_Images and Final_Test_GT archives of "
        "https://benchmark.ini.rub.de/gtsrb_dataset.html",
    ),
    "fashion_mnist": Source(
        ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw", "/usr/share/datasets/fashion-mnist"),
        "the four files of https://github.com/zalandoresearch/fashion-mnist (Debian: dataset-fashion-mnist)",
        FASHION_CLASSES,
    ),
}
NAMES: tuple[str, ...] = tuple(SOURCES)


def load(
    name_or_path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    *,
    resize: int | None = None,
) -> Splits:
    """Load a data set by name or from a path.

    Args:
        name_or_path: one of ``NAMES``; an official CIFAR, GTSRB or IDX folder; a folder with ``train/`` and
            ``test/``, a sub-folder a class in each; an ``.npz`` with ``x_train, y_train, x_test, y_test``;
            ``hf:<name>`` for Hugging Face ``datasets`` or ``torchvision:<Class>``.
        root: folder in which named sets lie; the environment variable ``UNBACKDOOR_DATA`` without it, and
            ``./data`` without that.
        resize: height and width in pixels to resize to.

    Returns:
        ``(train, test)``, of the same classes and image shape.

    Raises:
        UnbackdoorError: not found (says where to get it and where to put it), or not readable.
    """
    name, folder = str(name_or_path), data_root(root)
    scheme, _, rest = name.partition(":")
    if scheme == "hf" and rest:
        splits = read_hugging_face(rest, resize)
    elif scheme == "torchvision" and rest:
        splits = read_torchvision(rest, folder, resize)
    elif name in SOURCES:
        splits = _read(_find(name, folder), resize, SOURCES[name].classes)
    elif Path(name).exists():
        splits = _read(Path(name), resize, None)
    else:
        raise unknown_name("data set (and there is no such file or folder)", name, list(NAMES))
    return _alike(*(_resized(split, resize) for split in splits))


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder in which named data sets lie: ``root``, ``$UNBACKDOOR_DATA`` or ``./data``."""
    return Path(root if root is not None else os.environ.get("UNBACKDOOR_DATA") or "data")


def _find(name: str, folder: Path) -> Path:
    source = SOURCES[name]
    for place in (folder / place for place in source.places):
        if place.exists():
            return place
    raise UnbackdoorError(
        f"the data set {name} is not there",
        value=f"no {folder / source.places[0]}",
        fix=f"get {source.origin} and unpack it to {folder / source.places[0]} (or set UNBACKDOOR_DATA)",
    )


def _read(path: Path, resize: int | None, classes: tuple[str, ...] | None) -> Splits:
    """Read a file or folder by what lies in it."""
    if path.is_file():
        return _two_splits(path, classes)
    if is_cifar(path):
        return read_cifar(path)
    if is_idx(path):
        return read_idx_folder(path, classes)
    if is_gtsrb(path):
        return read_gtsrb(path, resize or 32)
    if (path / "train").is_dir() and (path / "test").is_dir():
        train = read_folder(path / "train", classes=classes, resize=resize)
        test = read_folder(path / "test", classes=train.classes, resize=resize)
        return TrainSplit(**vars(train)), TestSplit(**vars(test))
    raise UnbackdoorError(
        "the folder holds no data set that is known here",
        value=str(path),
        fix="give a folder with train/ and test/, each with a sub-folder a class",
    )


def _two_splits(path: Path, classes: tuple[str, ...] | None) -> Splits:
    """Read both splits of an ``.npz``; the classes are counted over both."""
    train, test = (read_npz(path, split=split, classes=classes, named=True) for split in ("train", "test"))
    names = max(train.classes, test.classes, key=len)
    return TrainSplit(train.images, train.labels, names), TestSplit(test.images, test.labels, names)


def _resized(split: Split, resize: int | None) -> Split:
    return split if resize is None else replace(split, images=resize_pixels(split.images, resize))


def _alike(train: TrainSplit, test: TestSplit) -> Splits:
    if train.images.shape[1:] != test.images.shape[1:]:
        raise UnbackdoorError(
            "train and test images have different shapes",
            value=f"{train.images.shape[1:]} and {test.images.shape[1:]}",
            fix="give resize=32, or make both grey or both coloured",
        )
    return train, test
