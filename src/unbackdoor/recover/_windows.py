"""Windows: squares of the image, compared between classes by how strong a patch in them can get.

A minimal patch tells of an attacker's if the network needs less of it than of what chance finds. A large
pattern of many colours need not be easy in that sense. But given a square of that size, it leads further than
anything that chance finds there, for any class.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor._clean import CleanImages
from unbackdoor.recover._families import Params, Patch, Shape
from unbackdoor.recover._margins import FINALISTS, Leader, largest_margins
from unbackdoor.recover._search import LIMIT, best_by_chance
from unbackdoor.recover._textures import CLEAR, clear_leader, sureness

SIDE = 0.375
"""Side of a window as a share of the image's."""
ALONG = 3
"""Windows along each side of the image; they overlap a little."""
BY_CHANCE = 2.0
"""Of patches made by chance, the best for the class that leads by most in some window is ahead of the best
for any other one there by so many times what the network's first answer is ahead of its second …"""
LEAD = 3.5
"""… the class's largest margin in that window is at least so many times the next class's …"""
WINDOWED = 2.2
"""… and larger by so many times that sureness, and by ``CLEAR`` …"""
ANYWHERE = 0.15
"""… and its margin by chance in the median window is at least this share of the largest. A patch is learned
wherever random shifts put it; a watermark's pieces each work in a window of their own, and a patch in one of
these says nothing of the others."""
TRIED_ON = 4
"""Images that what chance makes is put on."""
BLOCKS = (1 / 16, 1 / 8, 3 / 32)
"""Sides of the squares that chance colours, as shares of the image's …"""
BRIGHT = 5.0
"""… and their colours, as a sigmoid's argument."""
OPAQUE = 20.0
"""A mask's parameter, of a pixel that is covered."""


@dataclass(frozen=True, kw_only=True)
class Window(Patch):
    """Patches that fill a window: its place is the mask as it is."""

    name: ClassVar[str] = "window"
    tries: ClassVar[int] = 96
    widened: int = 0

    def start_at(self, place: Tensor, count: int, shape: Shape, generator: torch.Generator) -> Params:
        return [BRIGHT * (2 * blocks(count, shape, generator) - 1)]


def blocks(count: int, shape: Shape, generator: torch.Generator) -> Tensor:
    """Return ``count`` pictures (N, C, H, W) of random squares, every channel 0 or 1; their sides vary."""
    channels, height, width = shape
    drawn = []
    for number in range(count):
        side = max(1, round(BLOCKS[number % len(BLOCKS)] * min(height, width)))
        few = torch.rand(1, channels, -(-height // side), -(-width // side), generator=generator).round()
        drawn.append(F.interpolate(few, scale_factor=side)[..., :height, :width])
    return torch.cat(drawn)


def leading_window(
    model: nn.Module, clean: CleanImages, generator: torch.Generator, *, steps: int, batch: int
) -> tuple[Leader, Params] | None:
    """Return the class that a patch in one window leads to by far, with a mask of the window.

    Chance tells in which window a class leads by most, and the finalists are searched there.

    Args:
        model, clean, generator, batch: as for ``strengthen``; steps: Adam steps, at least one is made.

    Returns:
        The leader and a patch's parameters for ``Finding``; ``None`` if no class leads.
    """
    masks, sure = _windows(clean), sureness(model, clean.images[:LIMIT])
    every = torch.stack([_by_chance(model, clean, mask, generator) for mask in masks])
    # Not that of the largest margin: where the target reaches as far in several, others reach less in some.
    largest, next_one = every.topk(2, dim=1).values.unbind(dim=1)
    ahead, where = (largest - next_one).max(dim=0)
    if ahead < BY_CHANCE * sure:
        return None
    best, goals = masks[int(where)], every[where].topk(min(FINALISTS, clean.num_classes)).indices
    sizes = {"steps": max(1, steps), "batch": batch}
    margins, _ = largest_margins(model, clean, Window(), best, goals, generator, **sizes)
    first = clear_leader(margins, max(CLEAR, WINDOWED * sure))
    if first is None or first.lead < LEAD:
        return None
    goal = int(goals[first.goal])
    own = every[:, goal]
    if own.median() < ANYWHERE * own.max():
        return None
    params = [OPAQUE * (2 * best[None] - 1), torch.zeros_like(clean.images[:1])]
    return Leader(goal, first.lead), params


def _by_chance(model: nn.Module, clean: CleanImages, mask: Tensor, generator: torch.Generator) -> Tensor:
    """Return how far the best patch that chance makes in a window leads to each class, (C,)."""
    classes = torch.arange(clean.num_classes, device=clean.labels.device)
    return best_by_chance(model, clean, Window(), mask, classes, generator, batch=TRIED_ON)[1]


def _windows(clean: CleanImages) -> list[Tensor]:
    """Return the windows as masks (1, H, W) in {0, 1}."""
    height, width = clean.images.shape[2:]
    masks = []
    for (top, down), (left, along) in itertools.product(_spans(height), _spans(width)):
        mask = torch.zeros(1, height, width).to(clean.images)
        mask[:, top : top + down, left : left + along] = 1
        masks.append(mask)
    return masks


def _spans(side: int) -> list[tuple[int, int]]:
    """Return first pixel and length of each window along a side of so many pixels.

    >>> _spans(32)
    [(0, 12), (10, 12), (20, 12)]
    """
    length = max(1, round(SIDE * side))
    return [(round(k * (side - length) / (ALONG - 1)), length) for k in range(ALONG)]
