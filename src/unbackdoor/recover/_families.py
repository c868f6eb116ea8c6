"""Families of triggers that are searched side by side; a family is the space, the search is in ``_search``.

A family says how its parameters (K triggers at once, one a class) become ``Recovered`` triggers, how large
each is, and, once a minimal trigger is located, which triggers count as being *at the same place*: the same
pixels for a patch, a ball around zero for additive triggers and warps. Strong triggers are looked for there.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unbackdoor.recover._triggers import Displacement, Overlay, Recovered, Waves

Params = list[Tensor]
Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Family(abc.ABC):
    """A parametrised set of universal triggers; once one is located, strong ones are searched at its place.

    Attributes:
        strong_rate: step of Adam in the search for strong triggers.
        tries: so many starts of theirs are drawn, and the best for each goal are searched; 0: none is chosen.
    """

    name: ClassVar[str]
    tries: ClassVar[int] = 0
    strong_rate: float

    @abc.abstractmethod
    def place(self, params: Params) -> Tensor:
        """Return where one trigger (K = 1) sits: a region (1, H, W), a radius () or a frequency (2,)."""

    def strong_place(self, params: Params, median: float) -> Tensor:
        """Return where strong triggers are searched; ``median`` is the minimal size of the median class."""
        return self.place(params)

    @abc.abstractmethod
    def start_at(self, place: Tensor, count: int, shape: Shape, generator: torch.Generator) -> Params:
        """Return ``count`` varied starts of strong triggers at ``place``."""

    @abc.abstractmethod
    def decode_at(self, place: Tensor, params: Params) -> Recovered:
        """Return the strong triggers, differentiable."""

    def project_(self, place: Tensor, params: Params) -> None:
        """Bring strong triggers back to their place, in place."""
        return None

    def by_chance(self, place: Tensor, count: int, shape: Shape, generator: torch.Generator) -> Params | None:
        """Return ``count`` triggers at ``place`` as chance makes them, where images stay what they are."""
        return None


@dataclass(frozen=True, kw_only=True)
class SizedFamily(Family):
    """A family with a size that gradient steps can press: a target is located by its minimal trigger.

    Attributes:
        rate: step of Adam in the search for minimal triggers.
        weight: starting weight of the size in the loss; it adapts from there.
    """

    rate: float
    weight: float

    @abc.abstractmethod
    def start(self, count: int, shape: Shape, generator: torch.Generator) -> Params:
        """Return parameters of ``count`` triggers for images of ``shape`` (C, H, W)."""

    @abc.abstractmethod
    def decode(self, params: Params) -> Recovered:
        """Return the triggers, differentiable."""

    @abc.abstractmethod
    def size(self, params: Params) -> Tensor:
        """Return the size of each trigger, (K,): pixels of a patch, ‖δ‖₂ of a sum, shift of a warp."""


@dataclass(frozen=True, kw_only=True)
class Patch(SizedFamily):
    """Mask and pattern, x ⊙ (1 − M) + M ⊙ P, both through a sigmoid; size ‖M‖₁ in pixels.

    Place: the pixels where M exceeds a quarter of its largest value, widened by two pixels. A minimal trigger
    needs fewer pixels than the attacker's patch has.

    References:
        Wang et al., *Neural Cleanse*, S&P 2019 (mask and pattern, one search a class).
    """

    name: ClassVar[str] = "patch"
    rate: float = 0.5
    strong_rate: float = 0.5
    weight: float = 0.1
    first_mask: float = -1.0
    located_share: float = 0.25
    widened: int = 2

    def start(self, count: int, shape: Shape, generator: torch.Generator) -> Params:
        channels, height, width = shape
        mask = self.first_mask + 0.1 * torch.randn(count, 1, height, width, generator=generator)
        return [mask, torch.randn(count, channels, height, width, generator=generator)]

    def decode(self, params: Params) -> Recovered:
        mask, pattern = params[0].sigmoid(), params[1].sigmoid()
        return Overlay(1 - mask, mask * pattern)

    def size(self, params: Params) -> Tensor:
        return params[0].sigmoid().sum(dim=(1, 2, 3))

    def place(self, params: Params) -> Tensor:
        mask = params[0][0].sigmoid()
        region = (mask > self.located_share * mask.max()).to(mask)
        return F.max_pool2d(region[None], 2 * self.widened + 1, stride=1, padding=self.widened)[0]

    def start_at(self, place: Tensor, count: int, shape: Shape, generator: torch.Generator) -> Params:
        noise = torch.randn(count, *shape, generator=generator)
        colour = torch.rand(count, shape[0], 1, 1, generator=generator).clamp(0.02, 0.98).logit()
        solid = (torch.arange(count) % 2 == 0).view(-1, 1, 1, 1)
        return [torch.where(solid, colour.expand_as(noise), noise)]

    def decode_at(self, place: Tensor, params: Params) -> Recovered:
        keep = (1 - place).expand(len(params[0]), -1, -1, -1)
        return Overlay(keep, place * params[0].sigmoid())


@dataclass(frozen=True, kw_only=True)
class Ball(SizedFamily):
    """A family whose strong triggers lie in a ball around none, larger than the minimal one.

    The parameters are one tensor, and the size is a norm of it, ‖·‖₂ unless the family has its own: the
    trigger scales with them.

    A network can be led by a trigger so faint that ``growth`` times as much is weak still: strong ones may be
    as large as ``least`` of what the median class needs in any case.

    Attributes:
        growth: radius of the ball, in minimal sizes.
        least: the same, in sizes of the median class.
        first: standard deviation of the starts of minimal triggers.
    """

    growth: float = 1.5
    least: float = 0.0
    first: float

    @abc.abstractmethod
    def noise(self, count: int, shape: Shape, generator: torch.Generator) -> Tensor:
        """Return standard normal parameters of ``count`` triggers."""

    def start(self, count: int, shape: Shape, generator: torch.Generator) -> Params:
        return [self.first * self.noise(count, shape, generator)]

    def size(self, params: Params) -> Tensor:
        return params[0].flatten(1).norm(dim=1)

    def place(self, params: Params) -> Tensor:
        return self.growth * self.size(params)[0]

    def strong_place(self, params: Params, median: float) -> Tensor:
        return self.place(params).clamp(min=self.least * median)

    def start_at(self, place: Tensor, count: int, shape: Shape, generator: torch.Generator) -> Params:
        noise = self.noise(count, shape, generator)
        return [0.5 * place.cpu() * noise / _column(self.size([noise]))]

    def decode_at(self, place: Tensor, params: Params) -> Recovered:
        return self.decode(params)

    def project_(self, place: Tensor, params: Params) -> None:
        params[0].mul_(_column(place / self.size(params)).clamp(max=1))


@dataclass(frozen=True, kw_only=True)
class Additive(Ball):
    """A perturbation δ shared by all images, clip(x + δ); size ‖δ‖₂ (pixel values in [0, 1])."""

    name: ClassVar[str] = "additive"
    first: float = 0.02
    rate: float = 0.01
    strong_rate: float = 0.02
    weight: float = 0.5

    def noise(self, count: int, shape: Shape, generator: torch.Generator) -> Tensor:
        return torch.randn(count, *shape, generator=generator)

    def decode(self, params: Params) -> Recovered:
        return Overlay(torch.ones_like(params[0][:, :1]), params[0])


@dataclass(frozen=True, kw_only=True)
class Smooth(Ball):
    """An additive perturbation made of the ``cutoff`` × ``cutoff`` lowest frequencies; size ‖δ‖₂.

    A smooth trigger is faint beside the universal perturbations that free pixels find for any class, which
    are rough; a target can stand apart among smooth ones alone. It is strong only far beyond its minimal
    size.

    References:
        Zeng et al., *Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective*, ICCV 2021 (the
        attack).
    """

    name: ClassVar[str] = "smooth"
    growth: float = 4.0
    least: float = 0.5
    first: float = 0.05
    rate: float = 0.03
    strong_rate: float = 0.06
    weight: float = 0.5
    cutoff: int = 6

    def noise(self, count: int, shape: Shape, generator: torch.Generator) -> Tensor:
        return torch.randn(count, shape[0], self.cutoff, self.cutoff, generator=generator)

    def decode(self, params: Params) -> Recovered:
        return Waves(params[0])


@dataclass(frozen=True, kw_only=True)
class Warp(Ball):
    """A smooth displacement, given at ``points`` × ``points`` places; size: its root mean square in pixels.

    References:
        Nguyen and Tran, *WaNet*, ICLR 2021 (the attack: a fixed smooth warp). An additive trigger cannot
        stand in for it: what a warp changes depends on the image.
    """

    name: ClassVar[str] = "warp"
    growth: float = 3.0
    least: float = 0.5
    first: float = 0.1
    rate: float = 0.1
    strong_rate: float = 0.1
    weight: float = 0.5
    points: int = 6

    def noise(self, count: int, shape: Shape, generator: torch.Generator) -> Tensor:
        return torch.randn(count, 2, self.points, self.points, generator=generator)

    def decode(self, params: Params) -> Recovered:
        return Displacement(params[0])

    def by_chance(self, place: Tensor, count: int, shape: Shape, generator: torch.Generator) -> Params:
        """Warps of a third of the radius and more: they move an image a little, and hide nothing of it."""
        noise = self.noise(count, shape, generator)
        radius = place.cpu() * (1 + 2 * torch.rand(count, generator=generator)) / 3
        return [noise * _column(radius / self.size([noise]))]

    def size(self, params: Params) -> Tensor:
        return params[0].square().sum(1).mean(dim=(1, 2)).add(1e-12).sqrt()


FAMILIES: tuple[SizedFamily, ...] = (Patch(), Additive(), Smooth(), Warp())


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
