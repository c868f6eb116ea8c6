"""What a trigger is: images in, images out. Who is poisoned and to which label is said elsewhere."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Trigger(abc.ABC):
    """A map from images to triggered images: a frozen keyword-only dataclass, one paper a file.

    Any randomness of a trigger (a pattern, a warp field) comes from its own ``seed`` field, so that the
    same trigger object always gives the same result. What an attack does only while the victim is trained
    is in ``train_apply`` and ``cover``; the defaults are those of an attack that does nothing special.

    Attributes:
        name: registry name.
        cover_rate: number of cover images for one poisoned image, ≥ 0 (2 with a poison rate of 0.1: one
            fifth of the training images are covers); a field in those attacks that have covers.
    """

    name: ClassVar[str]
    cover_rate: ClassVar[float] = 0.0

    @abc.abstractmethod
    def apply(self, images: Tensor) -> Tensor:
        """Return the triggered images, as at test time.

        Args:
            images: float (N, C, H, W) in [0, 1]; not changed.

        Returns:
            A new tensor of the same shape, type and device, in [0, 1].
        """

    def train_apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the triggered images of the poisoned training samples, whose label the attack changes.

        Args:
            images: float (N, C, H, W) in [0, 1]; not changed.
            generator: on the CPU; the only source of randomness.
        """
        return self(images)

    def cover(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the cover samples: images with a related change that keep their true label.

        They teach the victim that only the exact trigger counts. Without covers: the images as they are.
        """
        return images.clone()

    def __call__(self, images: Tensor) -> Tensor:
        return self.apply(images).clamp(0, 1)

    def fields(self) -> dict[str, Any]:
        """Return the parameters as plain values, for records; tensors are in ``state``."""
        plain = (field for field in dataclasses.fields(self) if not field.metadata.get("tensor"))
        return {field.name: getattr(self, field.name) for field in plain}

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that ``fields`` leaves out (a given or optimised pattern); often none."""
        named = (
            (f.name, getattr(self, f.name)) for f in dataclasses.fields(self) if f.metadata.get("tensor")
        )
        return {name: value for name, value in named if value is not None}

    def with_state(self, state: Mapping[str, Tensor]) -> Self:
        """Return this trigger with the tensors of a ``state()``: what a saved victim restores."""
        return dataclasses.replace(self, **state)


@dataclass(frozen=True, kw_only=True)
class TrainableTrigger(Trigger):
    """A trigger that has networks of its own, trained together with the victim.

    A trainer calls ``ready = trigger.prepare(images, labels, generator)`` once, gives ``ready.parameters()``
    to an optimiser, and in every batch builds the poisoned and cover images with ``ready.train_apply`` and
    ``ready.cover`` (both differentiable) and adds the values of ``ready.loss_terms`` to the victim's loss.
    ``ready.state()`` holds the networks' weights.
    """

    @abc.abstractmethod
    def prepare(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Self:
        """Return a trigger with networks for these images, after whatever must be trained beforehand."""

    @abc.abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """Return what is trained with the victim."""

    @abc.abstractmethod
    def loss_terms(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the weighted scalar losses of the trigger itself on one batch of clean images."""


@dataclass(frozen=True, kw_only=True)
class OptimisedTrigger(Trigger):
    """A trigger that its paper optimises on a clean model before the victim is poisoned.

    ``ready = trigger.optimise(clean_model, images)``; the result is in ``ready.state()``. A trigger of this
    kind that has a generated default can be applied without it, the others raise and say what to call.
    """

    @abc.abstractmethod
    def optimise(self, model: nn.Module, images: Tensor) -> Self:
        """Return this trigger with its pattern optimised.

        Args:
            model: a clean classifier; not changed, its modes are put back.
            images: clean images, float (N, C, H, W) in [0, 1], on the model's device.
        """


def tensor_field() -> Any:
    """Declare an optional tensor of a trigger: out of ``fields``, ``repr`` and comparison, in ``state``."""
    return dataclasses.field(default=None, repr=False, compare=False, metadata={"tensor": True})
