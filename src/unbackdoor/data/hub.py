"""Data sets of Hugging Face ``datasets`` and of torchvision; both are imported on use only."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from unbackdoor._errors import UnbackdoorError
from unbackdoor.data._images import TestSplit, TrainSplit

LABEL_COLUMNS = ("label", "labels", "fine_label")
TEST_NAMES = ("test", "validation", "valid")


def read_hugging_face(name: str, resize: int | None = None) -> tuple[TrainSplit, TestSplit]:
    """Read a data set of the hub, or one that ``save_to_disk`` wrote.

    Args:
        name: as ``datasets.load_dataset`` takes it (``"uoft-cs/cifar10"``), or a folder.
        resize: height and width in pixels; images of several sizes need it.

    Raises:
        UnbackdoorError: ``datasets`` is not installed, or there is no image and class-label column.
    """
    library = _import("datasets", extra="datasets")
    saved = (Path(name) / "dataset_dict.json").is_file()
    try:
        splits = library.load_from_disk(name) if saved else library.load_dataset(name)
    except (OSError, ValueError, RuntimeError) as error:
        raise UnbackdoorError(
            f"datasets does not give {name}: {error}",
            value=name,
            fix="check name and network, or give a folder that save_to_disk wrote",
        ) from error
    test_name = next((split for split in TEST_NAMES if split in splits), None)
    if "train" not in splits or test_name is None:
        raise UnbackdoorError(
            f"{name} has no train and test split", value=", ".join(splits), fix="choose a set that has both"
        )
    classes, train = _from_columns(splits["train"], name, resize)
    return TrainSplit(*train, classes), TestSplit(*_from_columns(splits[test_name], name, resize)[1], classes)


def read_torchvision(name: str, root: Path, resize: int | None = None) -> tuple[TrainSplit, TestSplit]:
    """Read a classification set of ``torchvision.datasets`` that was downloaded before.

    Args:
        name: class name in ``torchvision.datasets``, for example ``"SVHN"``.
        root: the folder given to torchvision as ``root``.
        resize: height and width in pixels; images of several sizes need it.

    Raises:
        UnbackdoorError: torchvision is not installed, has no such set, or does not find its files.
    """
    library = _import("torchvision.datasets", extra="torchvision")
    train, test = _make_both(library, name, root)
    pixels = [_from_pairs(pairs, resize) for pairs in (train, test)]
    classes = _names(getattr(train, "classes", None), [labels for _, labels in pixels])
    return TrainSplit(*pixels[0], classes), TestSplit(*pixels[1], classes)


def _make_both(library: ModuleType, name: str, root: Path) -> list[Any]:
    """Return the train and the test data set, chosen by ``train=`` or ``split=``, whichever the class has."""
    make = getattr(library, name, None)
    names = inspect.signature(make).parameters if callable(make) else {}
    option = next((option for option in ("train", "split") if option in names), None)
    if option is None:
        raise UnbackdoorError(
            "torchvision has no such data set with a train and a test split",
            value=name,
            fix="torchvision:CIFAR10, torchvision:SVHN and so on",
        )
    choices = (True, False) if option == "train" else ("train", "test")
    try:
        return [make(str(root), **{option: choice}) for choice in choices]
    except (RuntimeError, OSError, ValueError) as error:
        raise UnbackdoorError(
            f"torchvision does not give {name}: {error}",
            value=str(root),
            fix=f"torchvision.datasets.{name}({str(root)!r}, download=True)",
        ) from error


def _import(module: str, extra: str) -> ModuleType:
    try:
        return import_module(module)
    except (ImportError, RuntimeError, OSError) as error:  # the last two: built for another torch
        raise UnbackdoorError(
            f"reading this needs {module.partition('.')[0]}",
            value=str(error),
            fix=f"pip install 'unbackdoor[{extra}]'",
        ) from error


def _from_columns(
    table: Any, name: str, resize: int | None
) -> tuple[tuple[str, ...], tuple[np.ndarray, np.ndarray]]:
    """Return class names, and images and labels of the columns that the table declares as such."""
    kinds = {column: type(feature).__name__ for column, feature in table.features.items()}
    image = next((column for column, kind in kinds.items() if kind == "Image"), None)
    labels = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    label = next((column for column in LABEL_COLUMNS if column in labels), labels[0] if labels else None)
    if image is None or label is None:
        raise UnbackdoorError(
            f"{name} has no image column and class-label column",
            value=", ".join(f"{column}: {kind}" for column, kind in kinds.items()),
            fix="choose an image-classification set, or save it as .npz",
        )
    pixels = _stack([row[image] for row in table], resize)
    return tuple(table.features[label].names), (pixels, np.asarray(table[label], np.int64))


def _from_pairs(pairs: Any, resize: int | None) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*(pairs[index] for index in range(len(pairs))), strict=True)
    return _stack(list(images), resize), np.asarray(labels, np.int64)


def _stack(pictures: list[Image.Image], resize: int | None) -> np.ndarray:
    """Return (N, H, W, C): one channel where all are grey, three otherwise."""
    mode = "L" if all(picture.mode in ("1", "L") for picture in pictures) else "RGB"
    pictures = [picture.convert(mode) for picture in pictures]
    if resize is not None:
        pictures = [picture.resize((resize, resize), Image.Resampling.BILINEAR) for picture in pictures]
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        raise UnbackdoorError("the images have several sizes", value=sorted(sizes)[:2], fix="give resize=32")
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    return pixels[..., None] if mode == "L" else pixels


def _names(listed: Any, labels: list[np.ndarray]) -> tuple[str, ...]:
    count = int(max(part.max() for part in labels)) + 1
    if listed is not None and len(listed) >= count:
        return tuple(str(name) for name in listed)
    return tuple(str(label) for label in range(count))
