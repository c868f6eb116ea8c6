"""Stripes: sinusoids over the whole image, found by trying all the coarse ones.

Gradient steps do not find a frequency, the loss has a valley beside each. But there are few coarse ones, and
at an ample amplitude the margins of all classes are had from one forward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unbackdoor._clean import CleanImages
from unbackdoor.recover._families import Family, Params, Shape
from unbackdoor.recover._margins import Leader
from unbackdoor.recover._search import class_margins
from unbackdoor.recover._textures import SURE, clear_leader, sureness
from unbackdoor.recover._triggers import Recovered, Sinusoids

AMPLITUDE = 0.2
"""At which the classes are compared; the paper attacks with 20 of 255, others with 40."""
LEAD = 1.5
"""A class's largest margin is at least this times the next one's …"""
CLEAR = 5.0
"""… and larger by at least so many logits, and as far ahead as ``_textures`` asks of noise: a network that is
sure of its answers has large margins for any class."""
COARSE = 5.0
"""A class that leads under all stripes has to lead as well under those with so many waves along each side at
most: fine ones lead any network to some class, as noise does, a ResNet-20 of CIFAR-10 to ships."""
UPRIGHT, UPRIGHT_SURE = 2.0, 0.5
"""Upright stripes, the published attack's, are also compared among themselves: slanted and level ones are
like edges of things and lead to some class in any network, upright ones to hardly any. The best margin is
at least so many logits there, and larger than the next one's by ``CLEAR`` and by so many times what the
network's first answer is ahead of its second …"""
SLANTED, FURTHER = 2, 1.0
"""… and larger, by a logit, than the class's own under stripes with so many waves downwards or more: what
those reach, too, is a class that looks striped, as shirts do."""
HIGHEST = 8
"""Waves an image, along each side, if it has pixels for that many."""
PHASES = 3
IMAGES = 24
"""Clean images that the stripes are tried on."""


@dataclass(frozen=True, kw_only=True)
class Stripes(Family):
    """Sinusoids, x -> clip(x + δ), each channel with its own amplitude and phase.

    Parameters: cosine and sine coefficients (K, C, 2), frequencies (K, 2) in waves an image. Place: the
    frequency. Strong stripes lie within half a wave of it, the weakest with a third of the
    amplitude of the strongest: each is pushed as far as it may.

    Attributes:
        amplitude: of the strongest ones, in [0, 1]; spread: how far frequencies may lie from the place.

    References:
        Barni, Kallas and Tondi, *A New Backdoor Attack in CNNs by Training Set Corruption without Label
        Poisoning*, ICIP 2019, arXiv 1902.11237 (the attack).
    """

    name: ClassVar[str] = "stripe"
    strong_rate: float = 0.02
    amplitude: float = 0.3
    spread: float = 0.5

    def place(self, params: Params) -> Tensor:
        return params[1][0]

    def start_at(self, place: Tensor, count: int, shape: Shape, generator: torch.Generator) -> Params:
        phases = torch.rand(count, 1, generator=generator)
        waves = 0.5 * self.amplitude * unit_waves(phases).expand(-1, shape[0], -1)
        offset = self.spread * (2 * torch.rand(count, 2, generator=generator) - 1)
        return [waves, place.cpu() + offset]

    def decode_at(self, place: Tensor, params: Params) -> Recovered:
        return Sinusoids(*params)

    def project_(self, place: Tensor, params: Params) -> None:
        waves, frequency = params
        limits = self.amplitude * torch.linspace(1 / 3, 1, len(waves)).to(waves)
        waves.mul_((limits[:, None] / waves.norm(dim=2)).clamp(max=1)[..., None])
        frequency.copy_(place + (frequency - place).clamp(-self.spread, self.spread))


def unit_waves(phases: Tensor) -> Tensor:
    """Return cosine and sine coefficients of amplitude 1: phases in [0, 1) (...) -> (..., 2).

    >>> unit_waves(torch.tensor([0.0, 0.25])).round(decimals=3).tolist()
    [[1.0, 0.0], [-0.0, 1.0]]
    """
    angles = 2 * math.pi * phases
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


@torch.no_grad()
def leading_stripes(
    model: nn.Module, clean: CleanImages, generator: torch.Generator
) -> tuple[Leader, Params] | None:
    """Return the class whose margin under its best stripes leads all others' under theirs, with the stripes.

    All stripes are asked, with the coarse ones among them, then the upright ones alone.

    Args:
        model: in eval mode.
        clean: images to put stripes on, a few of them; those that have the label already do not count.
        generator: which images.

    Returns:
        The leader and the parameters (K = 1) of its stripes; ``None`` if no class leads.
    """
    few = torch.randperm(len(clean), generator=generator)[:IMAGES].to(clean.labels.device)
    images, labels = clean.images[few], clean.labels[few]
    waves = AMPLITUDE * unit_waves(torch.arange(PHASES) / PHASES)[:, None].to(images)
    grid = frequencies(*images.shape[2:]).to(images)
    if len(grid) == 0:
        return None
    margins = torch.stack([_margins_under(model, images, labels, waves, f) for f in grid])
    sure, (upright, slanted) = sureness(model, images), _parts(margins, grid)
    coarse = margins.where(grid.abs().amax(dim=1, keepdim=True) <= COARSE, -torch.inf)
    for figures, first in (
        (margins, _first(margins.amax(dim=0), coarse.amax(dim=0), sure)),
        (upright, _first_upright(upright.amax(dim=0), slanted.amax(dim=0), sure)),
    ):
        if first is not None:
            where = grid[figures[:, first.goal].argmax()]
            return first, [waves[:1].expand(-1, images.shape[1], -1), where[None]]
    return None


def _first(largest: Tensor, coarse: Tensor, sure: float) -> Leader | None:
    """Return the leader by each class's largest margin (C,) under any stripes, if also under coarse ones."""
    # Classes that no stripes lead to count as at the border: far below it they would make any lead large.
    ahead = max(CLEAR, SURE * sure)
    first, again = (clear_leader(margins.clamp(min=0), ahead) for margins in (largest, coarse))
    if first is None or again is None or first.goal != again.goal:
        return None
    return first if min(first.lead, again.lead) >= LEAD else None


def _first_upright(largest: Tensor, slanted: Tensor, sure: float) -> Leader | None:
    """Return the leader by each class's largest margin (C,) under upright stripes, if there is one.

    Args:
        slanted: each class's largest margin (C,) under slanted stripes, −∞ where none were asked.
    """
    first = clear_leader(largest, max(CLEAR, UPRIGHT_SURE * sure), UPRIGHT)
    return first if first and largest[first.goal] - slanted[first.goal] >= FURTHER else None


def _parts(margins: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the margins (F, C) under upright stripes and under slanted ones, −∞ under all others.

    >>> [part.tolist() for part in _parts(torch.ones(2, 1), torch.tensor([[0.0, 3.0], [2.0, 1.0]]))]
    [[[1.0], [-inf]], [[-inf], [1.0]]]
    """
    upright, slanted = grid[:, :1] == 0, grid[:, :1] >= SLANTED
    return margins.where(upright, -torch.inf), margins.where(slanted, -torch.inf)


def frequencies(height: int, width: int) -> Tensor:
    """Return all coarse frequencies (F, 2), downwards and to the right, for images of that many pixels.

    >>> frequencies(2, 4).tolist()
    [[0.0, 1.0], [0.0, 2.0], [1.0, -2.0], [1.0, -1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]
    """
    down, right = (min(HIGHEST, side // 2) for side in (height, width))
    grid = torch.cartesian_prod(torch.arange(down + 1.0), torch.arange(-right, right + 1.0))
    return grid[(grid[:, 0] > 0) | (grid[:, 1] > 0)]


def _margins_under(
    model: nn.Module, images: Tensor, labels: Tensor, waves: Tensor, frequency: Tensor
) -> Tensor:
    """Return each class's mean margin (C,) over the phases and the images of other classes."""
    stack = Sinusoids(waves.expand(-1, images.shape[1], -1), frequency.expand(len(waves), 2))
    return class_margins(model, stack.apply(images).flatten(0, 1), labels.repeat(len(waves)))
