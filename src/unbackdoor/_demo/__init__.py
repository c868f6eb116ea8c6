"""The demo's victim and images, from Fashion-MNIST; ``README.md`` beside it tells how they were made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from unbackdoor.attacks._base import Trigger
from unbackdoor.attacks._labels import AllToOne, LabelMap
from unbackdoor.attacks.badnets import BadNets
from unbackdoor.checkpoint import load_into, load_state, resolve_arch
from unbackdoor.data import TestSplit, TrainSplit

FOLDER = Path(__file__).parent
ARCH = "wrn_16_1"
TRIGGER = BadNets(pattern="white", size=3)
LABEL_MAP = AllToOne(target=0)
CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
ABOUT = "Victim: WideResNet-16-1 on Fashion-MNIST; a white 3×3 patch in a corner makes it answer T-shirt."


@dataclass(frozen=True)
class Case:
    """A backdoored network, images to draw clean ones from, and what it takes to measure."""

    model: nn.Module
    train: TrainSplit
    test: TestSplit
    trigger: Trigger
    label_map: LabelMap
    about: str


def load() -> Case:
    """Read the victim and the images that ship with the package."""
    with np.load(FOLDER / "images.npz", allow_pickle=False) as arrays:
        train = TrainSplit(arrays["x_train"], arrays["y_train"], CLASSES)
        test = TestSplit(arrays["x_test"], arrays["y_test"], CLASSES)
    model = resolve_arch(ARCH, num_classes=len(CLASSES), in_channels=1, input_size=28)
    load_into(model, load_state(FOLDER / "victim.safetensors"))
    return Case(model.eval(), train, test, TRIGGER, LABEL_MAP, ABOUT)
