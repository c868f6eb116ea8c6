"""Labelled images in: splits that cannot be mixed up, and readers for the usual files."""

from __future__ import annotations

from unbackdoor.data._images import LabelledImages, TestSplit, TrainSplit, check_disjoint
from unbackdoor.data._load import NAMES, data_root, load
from unbackdoor.data.files import read_images

__all__ = [
    "NAMES",
    "LabelledImages",
    "TestSplit",
    "TrainSplit",
    "check_disjoint",
    "data_root",
    "load",
    "read_images",
]
