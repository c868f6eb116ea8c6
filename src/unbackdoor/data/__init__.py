"""Labelled images in: splits that cannot be mixed up, and readers for the usual files."""

from __future__ import annotations

from unbackdoor.data._images import LabelledImages, TestSplit, TrainSplit, check_disjoint
from unbackdoor.data.files import read_images

__all__ = ["LabelledImages", "TestSplit", "TrainSplit", "check_disjoint", "read_images"]
