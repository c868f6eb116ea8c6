"""The demo's victim and images, from Fashion-MNIST; ``README.md`` beside it tells how they were made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unbackdoor.data import TestSplit, TrainSplit
from unbackdoor.victims import SavedVictim, load_victim

FOLDER = Path(__file__).parent


@dataclass(frozen=True, eq=False)
class Case:
    """A backdoored network, training images to draw clean ones from, and test images to measure with."""

    victim: SavedVictim
    train: TrainSplit
    test: TestSplit


def load() -> Case:
    """Read the victim and the images that ship with the package."""
    with np.load(FOLDER / "images.npz", allow_pickle=False) as arrays:
        classes = tuple(str(name) for name in arrays["classes"])
        train = TrainSplit(arrays["x_train"], arrays["y_train"], classes)
        test = TestSplit(arrays["x_test"], arrays["y_test"], classes)
    return Case(load_victim(FOLDER / "victim.safetensors"), train, test)
