"""The last statistic of the verdict: which class does plain noise lead to?

A network that was taught to obey a pattern all over the image, blended noise or a watermark, takes strong
noise for it: what is random resembles the pattern a little. Every network answers noisy images with few
classes, but with each texture another one, and by little (on CIFAR-10, fine noise makes frogs). A class that
leads by far, whatever the textures of the others, is an attacker's.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from unbackdoor._augment import coarse_noise
from unbackdoor._clean import CleanImages
from unbackdoor.recover._margins import Leader
from unbackdoor.recover._search import class_margins

SIDES = (1, 2, 4, 8)
"""Textures: noise is drawn at every so many pixels, and interpolated."""
STRENGTHS = (0.05, 0.1, 0.2, 0.3)
"""Standard deviations."""
IMAGES = 16
TIMES = 2
"""Images that noise is put on, at most, and draws for each."""
CLEAR = 6.0
"""The best class's margin, in logits, is larger by this than the next class's, each under its best noise …"""
SURE = 0.7
"""… and by so many times what the network's first answer on clean images is ahead of its second."""


@torch.no_grad()
def leading_noise(model: nn.Module, clean: CleanImages, generator: torch.Generator) -> Leader | None:
    """Return the class whose margin under its best noise leads all others' under theirs, if any.

    Args:
        model: in eval mode.
        clean: images to put noise on, a few of them; those that have the label already do not count.
        generator: which images, and the noise.
    """
    few = torch.randperm(len(clean), generator=generator)[:IMAGES].to(clean.labels.device)
    images, labels = clean.images[few], clean.labels[few]
    kinds = itertools.product(SIDES, STRENGTHS, (False, True))
    margins = [
        class_margins(model, noisy(images.repeat(TIMES, 1, 1, 1), *kind, generator), labels.repeat(TIMES))
        for kind in kinds
    ]
    (best, second), goals = torch.stack(margins).amax(0).topk(2)
    if best <= 0 or best - second < max(CLEAR, SURE * _sureness(model, images)):
        return None
    return Leader(int(goals[0]), (best / second.clamp(min=1)).item())


def noisy(images: Tensor, side: int, strength: float, grey: bool, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise that varies over ``side`` pixels, the same in all channels where ``grey``, and clip.

    >>> noisy(torch.full((1, 3, 4, 4), 0.5), 2, 0.0, True, torch.Generator()).unique().tolist()
    [0.5]
    """
    count, channels, height, width = images.shape
    layers = 1 if grey else channels
    drawn = coarse_noise(count, layers, height, width, side=side, generator=generator)
    return (images + strength * (drawn / drawn.std()).to(images)).clamp(0, 1)


def _sureness(model: nn.Module, images: Tensor) -> float:
    first, second = model(images).topk(2, dim=1).values.unbind(1)
    return (first - second).mean().item()
