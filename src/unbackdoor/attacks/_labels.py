"""Label maps: what a triggered image of class y should be answered with."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LabelMap(abc.ABC):
    """From true labels to the attacker's labels. ``eligible`` tells which images count for ASR."""

    name: ClassVar[str]

    @abc.abstractmethod
    def __call__(self, labels: Tensor) -> Tensor:
        """Return the attacker's labels: int64 (N,) -> int64 (N,)."""

    def eligible(self, labels: Tensor) -> Tensor:
        """Return which images the attack moves, bool (N,): those whose label it changes."""
        return self(labels) != labels


@dataclass(frozen=True, kw_only=True)
class AllToOne(LabelMap):
    """Every class to one ``target``.

    >>> AllToOne(target=0)(torch.tensor([0, 1, 2])).tolist()
    [0, 0, 0]
    """

    name: ClassVar[str] = "all-to-one"
    target: int = 0

    def __call__(self, labels: Tensor) -> Tensor:
        return torch.full_like(labels, self.target)


@dataclass(frozen=True, kw_only=True)
class AllToAll(LabelMap):
    """Class y to y + 1 modulo ``num_classes``.

    >>> AllToAll(num_classes=3)(torch.tensor([0, 1, 2])).tolist()
    [1, 2, 0]
    """

    name: ClassVar[str] = "all-to-all"
    num_classes: int

    def __call__(self, labels: Tensor) -> Tensor:
        return (labels + 1) % self.num_classes


@dataclass(frozen=True, kw_only=True)
class SourceSpecific(LabelMap):
    """Class ``source`` to ``target``; the trigger on any other class keeps its label.

    >>> SourceSpecific(source=1, target=0)(torch.tensor([0, 1, 2])).tolist()
    [0, 0, 2]
    """

    name: ClassVar[str] = "source-specific"
    source: int = 1
    target: int = 0

    def __call__(self, labels: Tensor) -> Tensor:
        return torch.where(labels == self.source, torch.full_like(labels, self.target), labels)
