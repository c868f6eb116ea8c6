"""Triggers where a late layer begins: what a trigger may add to the layer's input, searched there.

A trigger that covers the image has no place in it that a search could find, and those recovered for its
target are stand-ins: sums and warps that do as much by other pixels. What the attacker's trigger and its
stand-ins have in common is where they lead inside the network, so the strongest disturbance there, no larger
than theirs, covers more of it than any of them.

References:
    Xu et al., *Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling Benign Features*,
    ICLR 2024 (BTI-DBF: triggers told from benign features inside the network). Differs: one disturbance for
    all images, bounded by what recovered triggers do, in place of masks on features and a generator.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.recover._families import Family, Params, Shape
from unbackdoor.recover._triggers import Recovered

BATCH = 64
RATE = 0.3
"""Adam's step, as a share of the radius spread evenly over all values."""


@dataclass(frozen=True)
class Shifts(Recovered):
    """Triggers that leave images as they are and add to what a network sends into one of its layers.

    Attributes:
        layer: the layer's name in ``named_modules``, run once a forward pass.
        add: (P, …), shaped like one image's input of the layer.
        least: the smallest value that the layer's inputs take: an activation's floor.
    """

    layer: str
    add: Tensor
    least: float

    def __len__(self) -> int:
        return len(self.add)

    def on(self, images: Tensor, pick: Tensor) -> Tensor:
        return images

    @contextmanager
    def entering(self, model: nn.Module, pick: Tensor) -> Iterator[None]:
        done = 0

        def shift(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            nonlocal done
            seen = inputs[0]
            mine = pick[done : done + len(seen)].to(seen.device)
            done += len(seen)
            shifted = (seen + self.add[mine.clamp(min=0)]).clamp(min=self.least)
            return (torch.where(_as_wide(mine >= 0, seen), shifted, seen), *inputs[1:])

        handle = model.get_submodule(self.layer).register_forward_pre_hook(shift)
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True, kw_only=True)
class Features(Family):
    """Disturbances of a layer's input in a ball around none; the place is its radius, an ‖·‖₂.

    Attributes:
        layer: the layer's name; shape: of one image's input; least: the smallest value that it takes.
    """

    name: ClassVar[str] = "feature"
    layer: str
    shape: tuple[int, ...]
    least: float

    def place(self, params: Params) -> Tensor:
        return params[0].norm()

    def start_at(self, place: Tensor, count: int, shape: Shape, generator: torch.Generator) -> Params:
        noise = torch.randn(count, *self.shape, generator=generator)
        return [0.5 * place.cpu() * noise / _as_wide(noise.flatten(1).norm(dim=1), noise)]

    def decode_at(self, place: Tensor, params: Params) -> Recovered:
        return Shifts(self.layer, params[0], self.least)

    def project_(self, place: Tensor, params: Params) -> None:
        size = params[0].flatten(1).norm(dim=1).clamp(min=1e-12)
        params[0].mul_(_as_wide((place / size).clamp(max=1), params[0]))


@torch.no_grad()
def features_at(model: nn.Module, layer: str, images: Tensor, triggered: Tensor) -> tuple[Features, Tensor]:
    """Return the family at a layer's input, and as radius what triggers typically change there.

    Args:
        model: in eval mode; layer: the name of a module that it runs once a forward pass.
        images: (N, C, H, W), N ≥ 1; triggered: the same with recovered triggers on.
    """
    pairs = [
        (_entering(model, layer, x), _entering(model, layer, y))
        for x, y in zip(images.split(BATCH), triggered.split(BATCH), strict=True)
    ]
    radius = torch.cat([(y - x).flatten(1).norm(dim=1) for x, y in pairs]).median()
    shape = pairs[0][0].shape[1:]
    rate = RATE * radius.item() / shape.numel() ** 0.5
    least = min(x.min().item() for x, _ in pairs)
    return Features(layer=layer, shape=tuple(shape), least=least, strong_rate=rate), radius


def _entering(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """Return what the model sends into the layer for images."""
    seen: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        model(images)
    finally:
        handle.remove()
    return seen[0]


def _as_wide(values: Tensor, like: Tensor) -> Tensor:
    """Return (P,) as (P, 1, …), with as many dimensions as ``like``."""
    return values.view(-1, *[1] * (like.dim() - 1))
