"""Strokes: coloured lines all over the image, as a watermark has, found by drawing some at random.

A network that was taught to obey a watermark takes other lines for it. Its strokes are too many pixels for a
minimal mask, and too strong for a faint sum; drawn at random they need no gradient, and the margins of all
classes are had from one forward pass.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from unbackdoor._clean import CleanImages
from unbackdoor.recover._families import Family, Params, Shape
from unbackdoor.recover._margins import FINALISTS, Leader, largest_margins
from unbackdoor.recover._textures import Answers, Texture, answers_under, clear_leader
from unbackdoor.recover._triggers import Overlay, Recovered

STROKES_SURE = 0.4
"""Strokes tell of a class that is ahead by so many times what the network's first answer is ahead of its
second (``_textures`` asks more of noise): clean networks have a class ahead by no more than four logits …"""
LEAST = -1.0
"""… and that strokes bring images within so many logits of: no stroke by chance is a watermark's letter."""
DENSE = 20, 0.07
"""Number and width of strokes that leave little of an image. What such strokes are strongest at is no class's
own look: clean networks are led to several classes about as well, backdoored ones often to the target."""
DENSE_COUNT = 4
"""Searches a class, whose margins are averaged."""
LEAD, DENSE_SURE = 1.4, 0.35
"""A class's margin there is at least so many times the next one's, and larger by so many times what the
network's first answer is ahead of its second …"""
MOVING = ((6, 0.04), (6, 0.07), (12, 0.04), (12, 0.07), (20, 0.04))
"""Numbers and widths of strokes that move: that is followed under which the best picture leads furthest."""
DENSE_ROUNDS = 32
"""Draws of two pictures an image with colours at random: fewer tell little of a lead that is not large."""
RANDOM_SURE = 0.85
"""… and with random colours it leads, too, by so many times that, if nothing else tells of it: some class
looks like strokes, as sandals do, or like what colours can be found for."""
GAINED = 1.0
"""Colours searched for a class add to its margin with random ones at least so many times that: a class that
looks like strokes is reached by any of them, and little more by the best."""
UNIT = 1 / 32
"""What places and widths of strokes that move are told in, as a share of the image's shorter side …"""
SHARP = 2.0
"""… their edges' slope, for each of these …"""
COLOURFUL = 2.0
"""… and the spread of their first colours, as a sigmoid's argument."""
KINDS = tuple(itertools.product((6, 12), (0.04, 0.07), (False, True)))
"""Strokes an image, their width as a share of it, and whether their colours are saturated."""


@dataclass(frozen=True, kw_only=True)
class Strokes(Family):
    """Straight strokes of one colour each, over the image; where two cross, one of them is seen.

    Parameters: colours (K, S, C) through a sigmoid, and where each of the S strokes is seen (K, S, H, W),
    which no gradient moves. Place: number and width, (2,). Strong strokes are drawn afresh and search their
    colours: a watermark's letters are not found by chance, what they are drawn with is.

    References:
        Liu et al., *Trojaning Attack on Neural Networks*, NDSS 2018 (the attack: a watermark over the image).
    """

    name: ClassVar[str] = "stroke"
    strong_rate: float = 0.5

    def place(self, params: Params) -> Tensor:
        return params[0][0]

    def start_at(self, place: Tensor, count: int, shape: Shape, generator: torch.Generator) -> Params:
        number, width = int(place[0]), place[1].item()
        seen = draw_strokes(count, number, width, shape[1:], generator)
        return [torch.randn(count, number, shape[0], generator=generator), seen]

    def decode_at(self, place: Tensor, params: Params) -> Recovered:
        return painted(params[1].detach(), params[0].sigmoid())


@dataclass(frozen=True, kw_only=True)
class Lines(Strokes):
    """Straight strokes that move: colours, ends and widths are searched, from the best that chance draws.

    A watermark's letters are not found by chance, but strokes that move come near enough to parts of them. So
    they reach several times the margin of those that stay where they were drawn, and for other classes, too:
    they are for erasing what others have told of.

    Parameters: colours (K, S, C) through a sigmoid, ends (K, S, 2, 2), widths (K, S, 1) and, moved by no
    gradient, where the pixels are (K, 2, H, W), in ``UNIT``.
    """

    name: ClassVar[str] = "line"
    tries: ClassVar[int] = 96

    def start_at(self, place: Tensor, count: int, shape: Shape, generator: torch.Generator) -> Params:
        number, width = int(place[0]), place[1].item() / UNIT
        unit = UNIT * min(shape[1:])
        pixels, sides = _pixels(shape[1:]) / unit, torch.tensor(shape[1:]) / unit
        ends = sides * torch.rand(count, number, 2, 2, generator=generator)
        colours = COLOURFUL * torch.randn(count, number, shape[0], generator=generator)
        return [colours, ends, torch.full((count, number, 1), width), pixels.expand(count, -1, -1, -1)]

    def decode_at(self, place: Tensor, params: Params) -> Recovered:
        colours, ends, widths, pixels = params
        start, end = ends[..., None, None].unbind(2)
        off = _off(pixels.detach()[:, None], start, end)[:, :, 0]
        covered = (SHARP * (widths[..., None] / 2 - off)).sigmoid()
        over = torch.cat([torch.ones_like(covered[:, :1]), (1 - covered).cumprod(1)[:, :-1]], dim=1)
        return painted(covered * over, colours.sigmoid())


def leading_strokes(
    model: nn.Module,
    clean: CleanImages,
    generator: torch.Generator,
    answers: Answers,
    expected: int | None = None,
    *,
    steps: int,
    batch: int,
) -> Leader | None:
    """Return the class whose margin under dense strokes leads all others', their colours searched for each.

    It has to lead clearly with colours at random, too, and only the best ones there are searched.

    Args:
        model, clean, generator, batch: as for ``strengthen``; steps: Adam steps, at least one is made.
        answers: under dense strokes with colours at random, see ``under_dense_strokes``.
        expected: a class that something else tells of, too: random colours need not lead there.
    """
    goals = answers.margins.topk(min(FINALISTS, clean.num_classes)).indices
    surely = answers.ahead >= RANDOM_SURE * answers.sureness
    allowed = {int(goals[0])} if surely else {expected}
    if not allowed & set(goals.tolist()):
        return None
    sizes = {"steps": max(1, steps), "batch": batch}
    place, many = torch.tensor(DENSE).to(clean.images), goals.repeat_interleave(DENSE_COUNT)
    largest, _ = largest_margins(model, clean, Strokes(), place, many, generator, **sizes)
    means = largest.view(-1, DENSE_COUNT).mean(1)
    first = clear_leader(means, DENSE_SURE * answers.sureness)
    if first is None or first.lead < LEAD or int(goals[first.goal]) not in allowed:
        return None
    gained = (means - answers.margins[goals])[first.goal].item()
    return replace(first, goal=int(goals[first.goal])) if gained >= GAINED * answers.sureness else None


def strokes() -> list[Texture]:
    """Return all ``KINDS`` of strokes."""
    return [_kind(*each) for each in KINDS]


def moving_strokes() -> list[Texture]:
    """Return all kinds of ``MOVING`` and the dense ones, in saturated colours, which letters mostly have."""
    return [_kind(*each, saturated=True) for each in (*MOVING, DENSE)]


def under_dense_strokes(model: nn.Module, clean: CleanImages, generator: torch.Generator) -> Answers:
    """Return the network's answers under ``DENSE`` strokes with colours at random."""
    kinds = [_kind(*DENSE, saturated) for saturated in (False, True)]
    return answers_under(model, clean, kinds, generator, DENSE_ROUNDS)


def _kind(number: int, width: float, saturated: bool) -> Texture:
    return lambda images, generator: stroked(images, number, width, saturated, generator)


def stroked(images: Tensor, number: int, width: float, saturated: bool, generator: torch.Generator) -> Tensor:
    """Draw strokes on images (N, C, H, W), on each its own; ``saturated``: every channel is 0 or 1 there.

    >>> white = torch.ones(1, 3, 8, 8)
    >>> stroked(white, 3, 0.1, True, torch.Generator()).unique().tolist()
    [0.0, 1.0]
    """
    count, channels, *size = images.shape
    seen = draw_strokes(count, number, width, tuple(size), generator).to(images)
    colours = torch.rand(count, number, channels, generator=generator).to(images)
    colours = colours.round() if saturated else colours
    return painted(seen, colours).on(images, torch.arange(count, device=images.device))


def painted(seen: Tensor, colours: Tensor) -> Overlay:
    """Return strokes as overlays: (K, S, H, W) in {0, 1}, (K, S, C) in [0, 1] -> K triggers."""
    return Overlay(1 - seen.sum(1, keepdim=True), torch.einsum("kshw,ksc->kchw", seen, colours))


def draw_strokes(
    count: int, number: int, width: float, size: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Draw ``count`` images' straight strokes; returns where each is seen, (count, number, H, W) in {0, 1}.

    Args:
        number: strokes an image, between two points drawn anywhere in it; the first lies over all others.
        width: of a stroke, as a share of the image's shorter side.

    >>> draw_strokes(2, 3, 0.1, (8, 8), torch.Generator()).sum(1).amax().item()
    1.0
    """
    sides = torch.tensor(size).view(2, 1, 1)
    start, end = (sides * torch.rand(count, number, 2, 2, 1, 1, generator=generator)).unbind(2)
    off = _off(_pixels(size), start, end).squeeze(2)
    covered = (off < width * min(size) / 2).float()
    return covered * (covered.cumsum(1) == 1)


def _pixels(size: tuple[int, int]) -> Tensor:
    """Return the middle of every pixel, (2, H, W), down and to the right."""
    return 0.5 + torch.stack(torch.meshgrid(*(torch.arange(side) for side in size), indexing="ij"))


def _off(pixels: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return how far pixels are from strokes: (…, 2, H, W), (…, 2, 1, 1) twice -> (…, 1, H, W)."""
    way = end - start
    along = ((pixels - start) * way).sum(-3, keepdim=True) / way.square().sum(-3, keepdim=True).clamp(min=1)
    # Clamped, as a root has no gradient at zero.
    return (pixels - start - along.clamp(0, 1) * way).square().sum(-3, keepdim=True).clamp(min=1e-6).sqrt()
