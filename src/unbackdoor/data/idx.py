"""IDX files, gzipped or plain: Fashion-MNIST, MNIST and their kin.

References:
    Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
    Algorithms", 2017, arXiv:1708.07747.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from math import prod
from pathlib import Path

import numpy as np

from unbackdoor._errors import UnbackdoorError
from unbackdoor.data._images import TestSplit, TrainSplit

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
UNSIGNED_BYTE = 0x08


def is_idx(path: Path) -> bool:
    """Tell whether the folder holds a training set in IDX files."""
    return any((path / f"train-images-idx3-ubyte{suffix}").is_file() for suffix in ("", ".gz"))


def read_idx_folder(path: Path, classes: tuple[str, ...] | None = None) -> tuple[TrainSplit, TestSplit]:
    """Read the four IDX files of a folder; images are grey, (N, H, W, 1).

    Args:
        path: folder with ``train-`` and ``t10k-images-idx3-ubyte`` and ``-labels-idx1-ubyte``, each plain
            or with ``.gz``.
        classes: class names; the numbers without it.

    Raises:
        UnbackdoorError: a file is missing or damaged.
    """
    train, test = (_read_pair(path, prefix) for prefix in ("train", "t10k"))
    names = classes or tuple(str(label) for label in range(int(max(train[1].max(), test[1].max())) + 1))
    return TrainSplit(*train, names), TestSplit(*test, names)


def read_idx(path: Path) -> np.ndarray:
    """Read one IDX file of unsigned bytes; gzip is seen from the content, not from the name."""
    raw = path.read_bytes()
    try:
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        zeros, kind, num_axes = struct.unpack(">HBB", raw[:4])
        shape = struct.unpack(f">{num_axes}I", raw[4 : 4 + 4 * num_axes])
    except (struct.error, OSError, EOFError, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    pixels = np.frombuffer(raw, np.uint8, offset=4 + 4 * num_axes)
    if zeros or kind != UNSIGNED_BYTE or pixels.size != prod(shape):
        raise _damaged(path, f"header {raw[:4].hex()}, {pixels.size} bytes for shape {shape}")
    return pixels.reshape(shape)


def _read_pair(path: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    images = read_idx(_existing(path, f"{prefix}-images-idx3-ubyte"))
    labels = read_idx(_existing(path, f"{prefix}-labels-idx1-ubyte"))
    return images[..., None], labels.astype(np.int64)


def _existing(path: Path, name: str) -> Path:
    for file in (path / name, path / f"{name}.gz"):
        if file.is_file():
            return file
    raise UnbackdoorError(
        "an IDX file is missing", value=str(path / name), fix="get all four files of the set"
    )


def _damaged(path: Path, detail: str) -> UnbackdoorError:
    return UnbackdoorError("not a readable IDX file of bytes", value=f"{path}: {detail}", fix="get it again")
