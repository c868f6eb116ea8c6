"""The few clean images of a defender, checked once and then trusted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from unbackdoor._errors import UnbackdoorError
from unbackdoor._modes import evaluating

MIRRORS_AGREE = 0.65
"""Share of its answers that a network trained on mirrored images keeps under mirroring, at least."""
MOST_MIRRORED = 256
"""Images that this is asked on, at most."""


@dataclass(frozen=True)
class CleanImages:
    """Clean labelled images on the model's device, and nothing else: no trigger, no target, no test image.

    Attributes:
        images: float, (N, C, H, W), values in [0, 1].
        labels: int64, (N,), values in [0, num_classes).
        num_classes: width of the model's output.
        flip: share to mirror where varied images are made of these: 0 where the network was not trained on
            mirrored images (a mirrored sign is another sign) and its answers there mean nothing.
        enlarge: whether varied images may be cut out of these and enlarged: not where the network answers a
            backdoor's target then.
    """

    images: Tensor
    labels: Tensor
    num_classes: int
    flip: float = 0.5
    enlarge: bool = True

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw ``size`` images with replacement: ((size, C, H, W), (size,))."""
        index = torch.randint(len(self), (size,), generator=generator).to(self.labels.device)
        return self.images[index], self.labels[index]


def collect(model: nn.Module, images: object, labels: object = None) -> CleanImages:
    """Turn tensors, a ``Dataset`` or a ``DataLoader`` into checked ``CleanImages`` on the model's device.

    Args:
        model: decides the device, the floating type and the number of classes (one pass in eval mode).
        images: float (N, C, H, W) in [0, 1], or a ``Dataset``/``DataLoader`` of (image, label).
        labels: integer (N,); ``None`` when ``images`` is a data set.

    Raises:
        UnbackdoorError: wrong shape, range, type, label or channel count, or no image at all.
    """
    images, labels = _as_tensors(images, labels)
    _check_images(images)
    _check_labels(images, labels)
    weight = next(model.parameters())
    images = images.detach().to(weight.device, weight.dtype).clone().contiguous()
    labels = labels.to(weight.device, torch.int64).clone()
    num_classes = _count_classes(model, images)
    _check_label_range(labels, num_classes)
    return CleanImages(images, labels, num_classes, flip=_flip_share(model, images[:MOST_MIRRORED]))


def _as_tensors(images: object, labels: object) -> tuple[Tensor, Tensor]:
    if isinstance(images, DataLoader | Dataset):
        if labels is not None:
            raise UnbackdoorError(
                "labels were given beside a data set that has its own",
                value=type(images).__name__,
                fix="call purify(model, dataset) or purify(model, images, labels)",
            )
        return _from_pairs(images)
    if not isinstance(images, Tensor) or labels is None:
        raise UnbackdoorError(
            "images must be a float tensor with labels beside it, or a Dataset/DataLoader",
            value=f"{type(images).__name__}, labels {type(labels).__name__}",
            fix="purify(model, torch.rand(10, 3, 32, 32), torch.arange(10))",
        )
    return images, torch.as_tensor(labels)


def _from_pairs(source: Dataset | DataLoader) -> tuple[Tensor, Tensor]:
    batched = isinstance(source, DataLoader)
    streamed = batched or isinstance(source, IterableDataset)
    pairs = list(source) if streamed else [source[i] for i in range(len(source))]  # type: ignore[arg-type]
    if not pairs:
        raise UnbackdoorError("no clean images", value="an empty data set", fix="give at least one a class")
    join = torch.cat if batched else torch.stack
    try:
        return tuple(join([torch.as_tensor(pair[part]) for pair in pairs]) for part in (0, 1))  # type: ignore
    except (TypeError, KeyError, IndexError, RuntimeError, ValueError) as error:
        raise UnbackdoorError(
            f"the data set must give (image, label) pairs of tensors of one size: {error}",
            value=type(pairs[0]).__name__,
            fix="give it a transform to float (C, H, W) tensors in [0, 1], all resized alike",
        ) from error


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or 0 in images.shape:
        raise UnbackdoorError(
            "images must have shape (N, C, H, W) with at least one image",
            value=tuple(images.shape),
            fix="images.unsqueeze(1) for grey images, images.permute(0, 3, 1, 2) for channels-last ones",
        )
    if not images.is_floating_point():
        raise UnbackdoorError(
            "images must be floating point in [0, 1]", value=images.dtype, fix="images.float() / 255"
        )
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):
        raise UnbackdoorError(
            "images must lie in [0, 1]; normalisation belongs to the model",
            value=f"[{low:g}, {high:g}]",
            fix="give unnormalised images and wrap the model: unbackdoor.Normalize(mean, std).wrap(model)",
        )


def _check_labels(images: Tensor, labels: Tensor) -> None:
    if labels.ndim != 1 or len(labels) != len(images) or labels.is_floating_point():
        raise UnbackdoorError(
            "labels must be integers, one an image",
            value=f"{labels.dtype} {tuple(labels.shape)} for {len(images)} images",
            fix="labels of shape (N,), for example torch.arange(10)",
        )


@torch.no_grad()
def _count_classes(model: nn.Module, images: Tensor) -> int:
    try:
        logits = _answers(model, images[:1])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise UnbackdoorError(
            f"the model does not take these images: {error}",
            value=f"images of shape {tuple(images.shape)}",
            fix="give images with the channels, height and width that the model was trained on",
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        raise UnbackdoorError(
            "the model must return logits of shape (N, classes)",
            value=tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__,
            fix="wrap the model so that its forward returns one (N, classes) tensor",
        )
    return logits.shape[1]


def _flip_share(model: nn.Module, images: Tensor) -> float:
    """Return one half if the model's answers survive mirroring, by the mean overlap of both, else 0."""
    plain, mirrored = (_answers(model, x).softmax(1) for x in (images, images.flip(-1)))
    overlap = torch.minimum(plain, mirrored).sum(1).mean().item()
    return 0.5 if overlap >= MIRRORS_AGREE else 0.0


@torch.no_grad()
def _answers(model: nn.Module, images: Tensor) -> Tensor:
    """Return what the model gives in eval mode; its modes are put back."""
    with evaluating(model):
        return model(images)


def _check_label_range(labels: Tensor, num_classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise UnbackdoorError(
            f"labels must lie in [0, {num_classes}), the model's classes",
            value=f"[{low}, {high}]",
            fix="give the labels in the order of the model's outputs, starting at 0",
        )
