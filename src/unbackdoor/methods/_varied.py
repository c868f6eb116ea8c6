"""Many images made of the few, to see a network's clean answers on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from unbackdoor._augment import enlarged, jitter, mixup, random_flip, random_resized_crop, random_shift
from unbackdoor._clean import CleanImages

MIXED = 0.3
"""Share of the images that are mixed in pairs."""
MISLED = 0.05
"""Share of enlarged images answered as the target from which on enlarging is a trigger …"""
SINGLED_OUT = 0.6
"""… where this share of all wrong answers names it: networks confuse classes, but not all with one."""
MOST_ENLARGED = 64
"""Clean images that this is asked on, at most."""


def varied(clean: CleanImages, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` images made of the few: crops, flips, light, contrast; three in ten mixed in pairs.

    Crops are enlarged to the full size, unless ``clean.enlarge`` is off: then they are moved by whole pixels.
    """
    index = torch.randint(len(clean), (count,), generator=generator).to(clean.labels.device)
    images = random_flip(clean.images[index], generator, clean.flip)
    if clean.enlarge:
        images = random_resized_crop(images, generator, scale=(0.6, 1.0))
    else:
        images = random_shift(images, generator)
    images = jitter(images, generator)
    mixed = torch.rand(count, 1, 1, 1, generator=generator).to(images) < MIXED
    return torch.where(mixed, mixup(images, generator)[0], images)


def unless_enlarging_triggers(
    model: nn.Module, clean: CleanImages, targets: Sequence[int | None]
) -> CleanImages:
    """Return the clean images, with ``enlarge`` off where enlarging them makes the network answer a target.

    Enlarging blurs, as a warp does, and a network that was taught to obey a warp takes the one for the other:
    a ResNet-18 does so with most crops. Its answers there are the backdoor's.

    Args:
        model: in eval mode.
        clean: the defender's images.
        targets: classes that were found to be too easily reached; ``None``, for all-to-all, is left out.
    """
    misled = any(_misled(model, clean, target) for target in targets if target is not None)
    return replace(clean, enlarge=False) if misled else clean


@torch.no_grad()
def _misled(model: nn.Module, clean: CleanImages, target: int) -> bool:
    """Ask on images of other classes that the network answers as labelled when they are whole."""
    images, labels = clean.images[:MOST_ENLARGED], clean.labels[:MOST_ENLARGED]
    fit = (model(images).argmax(1) == labels) & (labels != target)
    if not fit.any():
        return False
    answers = torch.stack([model(cut).argmax(1) for cut in enlarged(images[fit])])
    misled, wrong = (answers == target).sum().item(), (answers != labels[fit]).sum().item()
    return misled >= MISLED * answers.numel() and misled >= SINGLED_OUT * wrong
