"""The textures of noise: fine and coarse, weak and strong, coloured and grey.

A network that was taught to obey a pattern all over the image, blended noise or a faint sum, takes strong
noise for it.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from unbackdoor._augment import coarse_noise
from unbackdoor.recover._textures import Texture

SIDES = (1, 2, 4, 8)
"""Noise is drawn at every so many pixels, and interpolated."""
STRENGTHS = (0.05, 0.1, 0.2, 0.3)
"""Standard deviations."""


def noises() -> list[Texture]:
    """Return all kinds of noise."""

    def kind(side: int, strength: float, grey: bool) -> Texture:
        return lambda images, generator: noisy(images, side, strength, grey, generator)

    return [kind(*each) for each in itertools.product(SIDES, STRENGTHS, (False, True))]


def noisy(images: Tensor, side: int, strength: float, grey: bool, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise that varies over ``side`` pixels, the same in all channels where ``grey``, and clip.

    >>> noisy(torch.full((1, 3, 4, 4), 0.5), 2, 0.0, True, torch.Generator()).unique().tolist()
    [0.5]
    """
    count, channels, height, width = images.shape
    layers = 1 if grey else channels
    drawn = coarse_noise(count, layers, height, width, side=side, generator=generator)
    return (images + strength * (drawn / drawn.std()).to(images)).clamp(0, 1)
