"""Write ``images.npz``: ``python -m unbackdoor._demo.draw ROOT``, with Fashion-MNIST under ROOT."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from unbackdoor._demo import FOLDER
from unbackdoor._files import writing
from unbackdoor.data import TrainSplit, check_disjoint, load

TRAIN_PER_CLASS = 20
TEST_PER_CLASS = 100


def draw(root: Path, out: Path) -> None:
    """Draw class-balanced images of both splits with seed 0 and write them."""
    train, test = load("fashion_mnist", root)
    few = train.draw(TRAIN_PER_CLASS, seed=0)
    check_disjoint(few, test)
    measured = TrainSplit(test.images, test.labels, test.classes).draw(TEST_PER_CLASS, seed=0)
    arrays = {
        "x_train": few.images,
        "y_train": few.labels,
        "x_test": measured.images,
        "y_test": measured.labels,
    }
    with writing(out) as part, part.open("wb") as file:
        np.savez_compressed(file, classes=np.array(train.classes), **arrays)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), FOLDER / "images.npz")
