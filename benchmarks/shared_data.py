"""The images and victims that lie beside the repository, for slow benchmarks and slow tests.

``shared/data/<set>`` holds lossless WebP sheets, 50 images of 32×32 a row, and the labels. The folder is
``../shared`` beside the repository, or what ``UNBACKDOOR_SHARED`` says.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from unbackdoor.data import TestSplit, TrainSplit
from unbackdoor.data.cifar import CIFAR10_CLASSES
from unbackdoor.data.gtsrb import CLASSES as GTSRB_CLASSES

SETS = {"cifar10": CIFAR10_CLASSES, "gtsrb": GTSRB_CLASSES}
SIDE, COLUMNS = 32, 50


class SharedDataMissing(FileNotFoundError):
    """The shared folder is absent: skip what needs it, with this as the reason."""


def shared_root() -> Path:
    """Return the shared folder, whether it exists or not."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    return Path(os.environ.get("UNBACKDOOR_SHARED") or beside)


def load_shared(name: str) -> tuple[TrainSplit, TestSplit]:
    """Load "cifar10" or "gtsrb" from the sheets.

    Raises:
        SharedDataMissing: the folder is not there.
    """
    folder = shared_root() / "data" / name
    if name not in SETS or not folder.is_dir():
        raise SharedDataMissing(f"no {folder}; set UNBACKDOOR_SHARED to the folder that has data/{name}")
    return TrainSplit(*_read(folder, "train"), SETS[name]), TestSplit(*_read(folder, "test"), SETS[name])


def _read(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    labels = np.load(folder / f"{split}_labels.npy").astype(np.int64)
    sheets = [
        _cut(np.asarray(Image.open(path).convert("RGB"))) for path in sorted(folder.glob(f"{split}_*.webp"))
    ]
    return np.concatenate(sheets)[: len(labels)], labels


def _cut(sheet: np.ndarray) -> np.ndarray:
    """Return the images of a sheet, row by row: (rows·32, 50·32, 3) -> (rows·50, 32, 32, 3)."""
    rows = len(sheet) // SIDE
    grid = sheet.reshape(rows, SIDE, COLUMNS, SIDE, 3).swapaxes(1, 2)
    return grid.reshape(rows * COLUMNS, SIDE, SIDE, 3)
