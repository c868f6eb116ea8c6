"""How far a class can be set back before its own clean images are lost: what the found target may pay.

Where stand-ins for the attacker's trigger were erased, a part of it goes on to lead to the target by little.
A class whose own images are answered with logits to spare can give some of them away, and that part is gone.
One that lost its own images in the repair gets a little back, or, where triggers found afresh fail by logits
to spare, a share of what these allow.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unbackdoor._augment import noise, random_flip, turned
from unbackdoor._clean import CleanImages
from unbackdoor.recover import margin

VIEWS = 128
"""Hard views of the target's images, of each kind."""
MIXED, NOISE = 0.4, 0.15
"""Share of another class's image in a mixed view; largest standard deviation in a noisy one."""
LOST = 0.01
"""Share of these views whose margins do not count."""
BORNE = 1 / 3
"""Share of the smallest margin of the others that may be taken."""
MISSED, FORWARD = 0.25, 0.5
"""Share of the views from which on the class is set forward; by so many logits at most."""
LEAST = 32
"""Views that the original has to know, at least: nothing is told by fewer."""


@torch.no_grad()
def own_margins(
    model: nn.Module, original: nn.Module, clean: CleanImages, target: int, generator: torch.Generator
) -> Tensor:
    """Return by how many logits ``target`` leads in ``model`` on hard views of its own clean images, (n,).

    Images are mixed with others, noisy, turned; those views count that the original answers as the target.
    None where the class is not among the images.
    """
    views = hard_views(clean, target, generator)
    known = views[original(views).argmax(1) == target] if len(views) else views
    if not len(known):
        return known.new_empty(0)
    return lead(model(known), target)


def lead(logits: Tensor, target: int) -> Tensor:
    """Return by how many logits ``target`` is ahead of the best other class, (n,), of logits (n, classes)."""
    return margin(logits, torch.full((len(logits),), target, device=logits.device))


def handicap(margins: Tensor) -> float:
    """Return by how many logits to set a class back that leads by ``margins``, (n,), on views of its own.

    A third of what the views bear: three times as much would leave all but one in a hundred, as test images
    vary more than views of one. Where more than a quarter of them are lost already, the class is set forward,
    below zero, until they are not, by half a logit at most: what it gains, the trigger does, too. Nothing
    where few views tell.

    >>> handicap(torch.full((40,), 6.0)), handicap(torch.full((40,), -0.25)), handicap(torch.ones(3))
    (2.0, -0.25, 0.0)
    """
    if len(margins) < LEAST:
        return 0.0
    least = margins.float().quantile(LOST).item()
    return max(0.0, BORNE * least) - forward(margins, FORWARD)


def forward(margins: Tensor, most: float) -> float:
    """Return by how many logits, at most ``most``, to set a class forward that leads by ``margins``, (n,).

    Until no more than a quarter of these views are lost. Nothing where few views tell.

    >>> [forward(torch.full((40,), lead), 0.75) for lead in (-1.0, -0.5, 1.0)]
    [0.75, 0.5, 0.0]
    """
    if len(margins) < LEAST or most <= 0:
        return 0.0
    return min(most, max(0.0, -margins.float().quantile(MISSED).item()))


@torch.no_grad()
def set_back_(model: nn.Module, layer: str, target: int, by: float, images: Tensor) -> bool:
    """Take ``by`` from the target's logit, in place, by the last layer's bias; tell whether that worked.

    Below zero it is given. Where the layer has no bias, or its outputs are not the network's answers, nothing
    changes.
    """
    bias = model.get_submodule(layer).bias
    before = model(images)
    if bias is None or len(bias) != before.shape[1]:
        return False
    wanted, as_it_was = before.clone(), bias.clone()
    wanted[:, target] -= by
    bias[target] -= by
    if torch.allclose(model(images), wanted, rtol=1e-3, atol=1e-3):
        return True
    bias.copy_(as_it_was)  # Adding it again could round to another value.
    return False


def hard_views(clean: CleanImages, target: int, generator: torch.Generator) -> Tensor:
    """Return views of the target's images (N, C, H, W); none where there are no others to mix them with."""
    own, others = clean.images[clean.labels == target], clean.images[clean.labels != target]
    if not len(own) or not len(others):
        return own[:0]
    mine, beside = (_some(images, generator) for images in (own, others))
    mixed = (1 - MIXED) * mine + MIXED * beside
    noisy = noise(_some(own, generator), generator, NOISE)
    views = torch.cat([mixed, noisy, turned(_some(own, generator), generator)])
    return random_flip(views, generator, clean.flip)


def _some(images: Tensor, generator: torch.Generator) -> Tensor:
    return images[torch.randint(len(images), (VIEWS,), generator=generator).to(images.device)]
