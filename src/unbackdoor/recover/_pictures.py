"""Pictures: coarse ones blended into the image, compared between classes by how strong they can get.

The pattern of a blend is no small trigger, and free pixels find a universal perturbation as large for any
class. A picture of few, large spots finds none: only a network that was taught to obey something large and
faint follows it far, be that a blended picture, low frequencies or a warp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor._clean import CleanImages
from unbackdoor.recover._families import Family, Params, Shape
from unbackdoor.recover._margins import Leader, finalists, largest_margins
from unbackdoor.recover._search import LIMIT
from unbackdoor.recover._textures import CLEAR, clear_leader, sureness
from unbackdoor.recover._triggers import Overlay, Recovered

SPOTS = 12
"""Spots along each side of the pictures that are erased."""
COMPARED = (8, 16)
"""The same of the pictures that classes are compared by; both margins are averaged. What leads by the one
alone is a class that looks so."""
OPACITY = 0.2
"""α of the pictures: what blending attacks use, or a little more."""
PICTURED = 0.6
"""A class's margin is larger than the next one's by so many times what the network's first answer is ahead of
its second, and by ``CLEAR``: by half at most, and by no more than four logits, in 22 examinations of clean
networks …"""
INSTEAD = 1.1
"""… and by so many times that where other triggers tell of the class already: stripes, which are no picture,
are followed by coarse ones, too, by 0.97 times at most in five examinations of two such networks."""


@dataclass(frozen=True, kw_only=True)
class Picture(Family):
    """A coarse picture blended in, x -> (1 − α)·x + α·p, p in [0, 1] from a few spots along each side.

    Parameters: the spots (K, C, s, s), through a sigmoid. Place: s, α, the image's height and width, (4,).

    References:
        Chen et al., *Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning*, 2017, arXiv
        1712.05526 (the attack).
    """

    name: ClassVar[str] = "picture"
    strong_rate: float = 0.5

    def place(self, params: Params) -> Tensor:
        return params[0][0]

    def start_at(self, place: Tensor, count: int, shape: Shape, generator: torch.Generator) -> Params:
        spots = int(place[0])
        return [torch.randn(count, shape[0], spots, spots, generator=generator)]

    def decode_at(self, place: Tensor, params: Params) -> Recovered:
        opacity, size = place[1], (int(place[2]), int(place[3]))
        seen = F.interpolate(params[0], size=size, mode="bilinear", align_corners=False).sigmoid()
        return Overlay((1 - opacity).expand_as(seen[:, :1]), opacity * seen)


def leading_picture(
    model: nn.Module, clean: CleanImages, generator: torch.Generator, sure: float, *, steps: int, batch: int
) -> Leader | None:
    """Return the class whose strongest coarse pictures lead all others'.

    Args:
        model, clean, generator, batch: as for ``strengthen``; steps: Adam steps, at least one is made.
        sure: by how many times what the network's first answer is ahead of its second it has to lead.

    Returns:
        The leader; ``None`` if no class leads.
    """
    sizes, places = {"steps": max(1, steps), "batch": batch}, [place_of(clean, spots) for spots in COMPARED]
    # By the coarsest pictures, which lead to the fewest classes.
    goals = finalists(model, clean, Picture(), places[:1], generator, **sizes)
    margins = [largest_margins(model, clean, Picture(), p, goals, generator, **sizes)[0] for p in places]
    ahead = max(CLEAR, sure * sureness(model, clean.images[:LIMIT]))
    first = clear_leader(torch.stack(margins).mean(dim=0), ahead)
    return Leader(int(goals[first.goal]), first.lead) if first else None


def place_of(clean: CleanImages, spots: int = SPOTS) -> Tensor:
    """Return the place of pictures with so many spots along each side, on images like the clean ones."""
    return torch.tensor([spots, OPACITY, *clean.images.shape[2:]]).to(clean.images)
