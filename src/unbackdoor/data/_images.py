"""Labelled images, and the two kinds of split: only a ``TrainSplit`` can draw clean images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from unbackdoor._errors import UnbackdoorError


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images as they lie in a file, one label each.

    Attributes:
        images: uint8, (N, H, W, C), values in [0, 255].
        labels: int64, (N,), values in [0, len(classes)).
        classes: the name of each class.

    Raises:
        UnbackdoorError: other shapes or types, or a label out of range.

    >>> pixels = np.zeros((2, 4, 4, 3), np.uint8)
    >>> LabelledImages(pixels, np.array([0, 1]), ("cat", "dog")).tensors()[0].shape
    torch.Size([2, 3, 4, 4])
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_images(self.images)
        _check_labels(self.labels, len(self.images), len(self.classes))
        object.__setattr__(self, "labels", self.labels.astype(np.int64, copy=False))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes, empty ones included."""
        return len(self.classes)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return float32 images (N, C, H, W) in [0, 1] and int64 labels (N,), as copies."""
        pixels = torch.from_numpy(np.ascontiguousarray(self.images.transpose(0, 3, 1, 2)))
        return pixels.float().div_(255), torch.tensor(self.labels)

    def subset(self, indices: np.ndarray) -> Self:
        """Return the images at ``indices``, in that order, as the same kind of split."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def content_hash(self) -> str:
        """Return the SHA-256 of shape, pixels and labels, in hexadecimal, for records."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images))
        digest.update(np.ascontiguousarray(self.labels.astype("<i8")))
        return digest.hexdigest()

    def image_hashes(self) -> list[bytes]:
        """Return one SHA-256 an image, of its shape and pixels."""
        shape = repr(self.images.shape[1:]).encode()
        return [hashlib.sha256(shape + image.tobytes()).digest() for image in self.images]


class TestSplit(LabelledImages):
    """Images to measure with. It cannot draw: a defence never sees them."""

    __test__ = False  # keeps pytest from collecting the class by its name


class TrainSplit(LabelledImages):
    """Images to train with, or to draw a defender's few clean images from."""

    def draw(self, per_class: int, seed: int) -> TrainSplit:
        """Draw ``per_class`` images of every class at random, without replacement.

        The same seed gives the same images, and a larger draw contains the smaller one of its seed.

        Args:
            per_class: images of each class, at least 1.
            seed: of the draw.

        Returns:
            A split of ``per_class`` × classes images, ordered by class.

        Raises:
            UnbackdoorError: a class is empty or has too few images.

        >>> split = TrainSplit(np.zeros((6, 4, 4, 1), np.uint8), np.array([0, 1] * 3), ("cat", "dog"))
        >>> split.draw(2, seed=0).labels.tolist()
        [0, 0, 1, 1]
        """
        if per_class < 1:
            raise UnbackdoorError(
                "a draw needs one or more images a class", value=per_class, fix="per_class=1"
            )
        generator = torch.Generator().manual_seed(seed)
        chosen = [self._draw_class(label, per_class, generator) for label in range(self.num_classes)]
        return self.subset(np.concatenate(chosen))

    def without(self, test: TestSplit) -> TrainSplit:
        """Return the images whose pixels are not in ``test``: GTSRB, for one, has a few in both splits."""
        known = set(test.image_hashes())
        return self.subset(np.array([key not in known for key in self.image_hashes()], bool))

    def _draw_class(self, label: int, per_class: int, generator: torch.Generator) -> np.ndarray:
        members = np.flatnonzero(self.labels == label)
        order = torch.randperm(len(members), generator=generator).numpy()
        if len(members) >= per_class:
            return members[order[:per_class]]
        name = f"class {label} ({self.classes[label]})"
        if not len(members):
            raise UnbackdoorError(f"{name} has no image", value="0 images", fix="add images of it")
        raise UnbackdoorError(
            f"{name} has fewer images than a draw of {per_class} a class needs",
            value=f"{len(members)} images",
            fix=f"per_class={len(members)} or less",
        )


def check_disjoint(draw: TrainSplit, test: TestSplit) -> None:
    """Check by pixels that no drawn image is in the test split.

    Raises:
        UnbackdoorError: one or more images are in both; names the first pair.
    """
    known = {key: index for index, key in enumerate(test.image_hashes())}
    pairs = [(index, known[key]) for index, key in enumerate(draw.image_hashes()) if key in known]
    if pairs:
        raise UnbackdoorError(
            f"{len(pairs)} of {len(draw)} clean images are also in the test split",
            value=f"clean image {pairs[0][0]} is test image {pairs[0][1]}",
            fix="draw from the training split without them: train.without(test).draw(...)",
        )


def _check_images(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
        raise UnbackdoorError(
            "images must be uint8 of shape (N, height, width, channels)",
            value=f"{images.dtype} {images.shape}",
            fix="(images * 255).round().astype('uint8'), channels last",
        )


def _check_labels(labels: np.ndarray, num_images: int, num_classes: int) -> None:
    if labels.shape != (num_images,) or not np.issubdtype(labels.dtype, np.integer):
        raise UnbackdoorError(
            "labels must be integers, one an image",
            value=f"{labels.dtype} {labels.shape} for {num_images} images",
            fix="an integer array of shape (N,)",
        )
    if num_images and not (labels.min() >= 0 and labels.max() < num_classes):
        raise UnbackdoorError(
            f"labels must lie in [0, {num_classes}), the classes",
            value=f"[{labels.min()}, {labels.max()}]",
            fix="number the classes from 0, and name all of them",
        )
