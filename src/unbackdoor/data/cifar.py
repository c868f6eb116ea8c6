"""CIFAR-10 and CIFAR-100: the official pickled batches and the official binary version.

References:
    Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
    https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unbackdoor._errors import UnbackdoorError
from unbackdoor.data._images import TestSplit, TrainSplit
from unbackdoor.data._pickles import load_plain

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NUM_PIXELS = 3 * 32 * 32
TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))

Batch = tuple[np.ndarray, np.ndarray]


def is_cifar(path: Path) -> bool:
    """Tell whether the folder holds an official CIFAR set, pickled or binary."""
    return any(
        all((path / name).is_file() for name in names)
        for names in (("data_batch_1",), ("data_batch_1.bin",), ("train", "meta"), ("train.bin", "test.bin"))
    )


def read_cifar(path: Path) -> tuple[TrainSplit, TestSplit]:
    """Read the official folder of CIFAR-10 or CIFAR-100; which one, and how it is stored, is seen from it.

    Args:
        path: ``cifar-10-batches-py``, ``cifar-10-batches-bin``, ``cifar-100-python`` or ``cifar-100-binary``.

    Raises:
        UnbackdoorError: a batch is missing or damaged, or holds more than arrays.
    """
    ten = (path / "data_batch_1").is_file() or (path / "data_batch_1.bin").is_file()
    binary = (path / "data_batch_1.bin").is_file() or (path / "train.bin").is_file()
    suffix = ".bin" if binary else ""
    train_files = [path / f"{name}{suffix}" for name in (TRAIN_BATCHES if ten else ("train",))]
    test_file = path / f"{'test_batch' if ten else 'test'}{suffix}"
    read = (lambda file: _read_binary(file, 1 if ten else 2)) if binary else _read_pickled
    classes = _class_names(path, ten)
    images, labels = zip(*(read(file) for file in train_files), strict=True)
    train = TrainSplit(np.concatenate(images), np.concatenate(labels), classes)
    return train, TestSplit(*read(test_file), classes)


def _read_pickled(file: Path) -> Batch:
    content = load_plain(_existing(file))
    labels = content.get("labels", content.get("fine_labels"))
    if not isinstance(content.get("data"), np.ndarray) or labels is None:
        raise UnbackdoorError(
            f"{file.name} is no CIFAR batch",
            value=f"keys {', '.join(content)}",
            fix="get the official file again",
        )
    return _pixels(content["data"], file), np.asarray(labels, np.int64)


def _read_binary(file: Path, label_bytes: int) -> Batch:
    """Read rows of one or two label bytes (CIFAR-100: coarse, fine) and 3072 pixel bytes."""
    raw = np.fromfile(_existing(file), np.uint8)
    row = label_bytes + NUM_PIXELS
    if not raw.size or raw.size % row:
        raise UnbackdoorError(
            f"{file.name} is no whole number of rows of {row} bytes",
            value=f"{raw.size} bytes",
            fix="get the official file again",
        )
    rows = raw.reshape(-1, row)
    return _pixels(rows[:, label_bytes:], file), rows[:, label_bytes - 1].astype(np.int64)


def _pixels(rows: np.ndarray, file: Path) -> np.ndarray:
    """Return (N, 32, 32, 3) from rows of 1024 red, 1024 green and 1024 blue values."""
    if rows.ndim != 2 or rows.shape[1] != NUM_PIXELS or rows.dtype != np.uint8:
        raise UnbackdoorError(
            f"{file.name} does not hold rows of {NUM_PIXELS} pixel bytes",
            value=f"{rows.dtype} {rows.shape}",
            fix="get the official file again",
        )
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise UnbackdoorError(
            "a file of the CIFAR folder is missing", value=str(file), fix="unpack the official archive again"
        )
    return file


def _class_names(path: Path, ten: bool) -> tuple[str, ...]:
    """Return the class names that lie beside the batches; without them, those known or the numbers."""
    listed = path / ("batches.meta.txt" if ten else "fine_label_names.txt")
    pickled = path / ("batches.meta" if ten else "meta")
    if listed.is_file():
        return tuple(listed.read_text().split())
    if pickled.is_file():
        names = load_plain(pickled).get("label_names" if ten else "fine_label_names", ())
        return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
    return CIFAR10_CLASSES if ten else tuple(str(label) for label in range(100))
