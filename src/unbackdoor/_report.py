"""The typed record of one purification."""

from __future__ import annotations

import dataclasses
import platform
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unbackdoor._version import __version__

SHARE_FLOOR = 0.5
"""A weight counts as masked when it lost at least this share of its size."""


@dataclass(frozen=True)
class LayerChange:
    """How much of one tensor of the state dict changed.

    Attributes:
        name: key in the state dict.
        size: number of elements.
        changed: share of elements that differ, in [0, 1].
        masked: share of elements that lost half or more of their size, in [0, 1].
        distance: ‖after − before‖₂ / ‖before‖₂ (0 when both are zero).
    """

    name: str
    size: int
    changed: float
    masked: float
    distance: float


@dataclass(frozen=True)
class Report:
    """What ``purify`` did. All values are plain; ``to_dict`` is JSON.

    Attributes:
        method: registry name; ``hyperparameters``: every field of it.
        seed: seed of the run; ``seconds``: wall-clock of the method alone.
        num_images, num_classes: of the clean images and the model.
        accuracy_before, accuracy_after: on the clean images that were given, in [0, 1].
        changed: False when the model came back bit-identical.
        layers: every tensor of the state dict that changed or that is a weight.
        details: what the method itself tells (steps, verdict, …).
        versions: python, torch, unbackdoor.
    """

    method: str
    hyperparameters: dict[str, Any]
    seed: int
    seconds: float
    num_images: int
    num_classes: int
    accuracy_before: float
    accuracy_after: float
    changed: bool
    layers: tuple[LayerChange, ...]
    details: dict[str, Any]
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the record as nested plain values."""
        return dataclasses.asdict(self)


@torch.no_grad()
def compare(before: nn.Module, after: nn.Module) -> tuple[LayerChange, ...]:
    """Compare two networks tensor by tensor; floating tensors only, in state-dict order."""
    new = after.state_dict()
    pairs = ((name, old, new[name]) for name, old in before.state_dict().items())
    return tuple(
        _change(name, old, now) for name, old, now in pairs if old.is_floating_point() and old.numel()
    )


def _change(name: str, old: torch.Tensor, now: torch.Tensor) -> LayerChange:
    old, now = old.double(), now.double()
    norm = old.norm().item()
    return LayerChange(
        name=name,
        size=old.numel(),
        changed=(old != now).double().mean().item(),
        masked=((now.abs() <= SHARE_FLOOR * old.abs()) & (old != 0)).double().mean().item(),
        distance=(now - old).norm().item() / norm if norm else 0.0,
    )


def versions() -> dict[str, str]:
    """Return the versions that a figure depends on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "unbackdoor": __version__}
