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
from torch import Tensor, nn

from unbackdoor._clean import CleanImages
from unbackdoor.recover._families import Params, Patch
from unbackdoor.recover._margins import Leader, finalists, largest_margins, last_margins
from unbackdoor.recover._search import LIMIT
from unbackdoor.recover._textures import CLEAR, clear_leader, sureness

SIDE = 0.375
"""Side of a window as a share of the image's."""
ALONG = 3
"""Windows along each side of the image; they overlap a little."""
LEAD = 3.5
"""A class's margin in the window where it leads by most is at least so many times the next class's there …"""
WINDOWED = 3.5
"""… and larger by so many times what the network's first answer is ahead of its second, and by ``CLEAR`` …"""
ANYWHERE = 0.25
"""… and its margin in the median window is at least this share of the largest. A patch is learned wherever
random shifts put it; a watermark's pieces each work in a window of their own, and a patch in one of these
says nothing of the others."""
OPAQUE = 20.0
"""A mask's parameter, of a pixel that is covered."""


@dataclass(frozen=True, kw_only=True)
class Window(Patch):
    """Patches that fill a window: its place is the mask as it is."""

    name: ClassVar[str] = "window"
    widened: int = 0


def leading_window(
    model: nn.Module, clean: CleanImages, generator: torch.Generator, *, steps: int, batch: int
) -> tuple[Leader, Params] | None:
    """Return the class that a patch in one window leads to by far, with a mask of the window.

    The finalists are searched in all windows, and then, in that where one leads by most, once more.

    Args:
        model, clean, generator, batch: as for ``strengthen``; steps: Adam steps, at least one is made.

    Returns:
        The leader and a patch's parameters for ``Finding``; ``None`` if no class leads.
    """
    sizes, masks = {"steps": max(1, steps), "batch": batch}, _windows(clean)
    goals = finalists(model, clean, Window(), masks, generator, **sizes)
    every = torch.stack([last_margins(model, clean, Window(), m, goals, generator, **sizes) for m in masks])
    # Not that of the largest margin: where the target reaches as far in several, others reach less in some.
    largest, next_one = every.topk(2, dim=1).values.unbind(dim=1)
    best = masks[int((largest - next_one).argmax())]
    again, _ = largest_margins(model, clean, Window(), best, goals, generator, **sizes)
    first = clear_leader(again, max(CLEAR, WINDOWED * sureness(model, clean.images[:LIMIT])))
    if first is None or first.lead < LEAD:
        return None
    own = every[:, first.goal]
    if own.median() < ANYWHERE * own.max():
        return None
    params = [OPAQUE * (2 * best[None] - 1), torch.zeros_like(clean.images[:1])]
    return Leader(int(goals[first.goal]), first.lead), params


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
