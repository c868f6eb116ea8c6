"""What a victim is fed: a set poisoned once, or one whose trigger is trained along with the victim."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from unbackdoor.attacks._base import TrainableTrigger
from unbackdoor.attacks._poison import Poisoning, Selection
from unbackdoor.data import TrainSplit

POISON_STREAM = 2**32
"""Offset of the seed of the poisoning's draws, away from those of the epochs."""


class Feed(abc.ABC):
    """The training images on the victim's device, batch by batch.

    Attributes:
        selection: which images are poisoned and which are covers, or ``None`` for a clean victim.
    """

    selection: Selection | None = None

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images, labels

    def start_epoch(self, generator: torch.Generator) -> None:
        """Draw whatever changes from epoch to epoch; nothing, where the set is fixed."""
        return None

    @abc.abstractmethod
    def batch(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the images at ``index``, float (N, C, H, W) in [0, 1], and the labels to train them with."""

    def trigger_loss(self, index: Tensor, generator: torch.Generator) -> Tensor | None:
        """Return what the trigger itself adds to the loss."""
        return None

    def indices(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the positions of one shuffled epoch in equal batches, none of a single image."""
        order = torch.randperm(len(self.labels), generator=generator)
        return iter(order.tensor_split(self.num_batches(batch_size)))

    def num_batches(self, batch_size: int) -> int:
        """Return the batches of an epoch."""
        return max(1, min(math.ceil(len(self.labels) / batch_size), len(self.labels) // 2))

    def _floats(self, index: Tensor) -> Tensor:
        return self.images[index.to(self.images.device)].float() / 255


class FixedFeed(Feed):
    """Images that are poisoned once, before training, or not at all."""

    def batch(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self._floats(index), self.labels[index.to(self.labels.device)]


class TrainedFeed(Feed):
    """Images that are poisoned anew in every batch, by a trigger that learns.

    Every epoch draws its own poisoned images and covers, at the exact rates, so that the trigger meets
    images of the whole set.
    """

    def __init__(self, images: Tensor, labels: Tensor, poisoning: Poisoning):
        super().__init__(images, labels)
        self.poisoning = poisoning
        self.role = torch.zeros(len(labels), dtype=torch.int8)

    @property
    def trigger(self) -> TrainableTrigger:
        """The trigger in its current state."""
        assert isinstance(self.poisoning.trigger, TrainableTrigger)
        return self.poisoning.trigger

    def start_epoch(self, generator: torch.Generator) -> None:
        self.selection = self.poisoning.select(self.labels.cpu(), generator)
        self.role.zero_()
        self.role[self.selection.poisoned], self.role[self.selection.covers] = 1, 2

    def batch(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, labels = self._floats(index), self.labels[index.to(self.labels.device)].clone()
        poisoned, covers = (self._where(index, role) for role in (1, 2))
        changed = images.clone()
        if len(poisoned):
            changed[poisoned] = self.poisoning.make_poisoned(images[poisoned], labels[poisoned], generator)
            labels[poisoned] = self.poisoning.poisoned_labels(labels[poisoned])
        if len(covers):
            changed[covers] = self.poisoning.make_covers(images[covers], generator)
        return changed, labels

    def trigger_loss(self, index: Tensor, generator: torch.Generator) -> Tensor | None:
        return sum(self.trigger.loss_terms(self._floats(index), generator).values(), torch.zeros(()))

    def _where(self, index: Tensor, role: int) -> Tensor:
        return (self.role[index] == role).nonzero().flatten().to(self.images.device)


def make_feed(split: TrainSplit, poisoning: Poisoning | None, device: torch.device, seed: int) -> Feed:
    """Return the feed of a victim; a trainable trigger gets its networks here."""
    images = torch.from_numpy(split.images).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(split.labels).clone()
    generator = torch.Generator().manual_seed(POISON_STREAM + seed)
    if poisoning is None:
        return FixedFeed(images.to(device), labels.to(device))
    if isinstance(poisoning.trigger, TrainableTrigger):
        ready = poisoning.trigger.prepare(images.to(device).float() / 255, labels.to(device), generator)
        return TrainedFeed(images.to(device), labels.to(device), replace(poisoning, trigger=ready))
    poisoned = poisoning.apply(images, labels, generator)
    feed = FixedFeed(poisoned.images.to(device), poisoned.labels.to(device))
    feed.selection = poisoned.selection
    return feed
