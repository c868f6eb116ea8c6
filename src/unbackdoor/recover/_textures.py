"""The statistic that noise and strokes share: which class do random pictures lead to, put on clean images?

Every network answers disturbed images with few classes, but with each texture another one, and by little (on
CIFAR-10, fine noise makes frogs). A class that leads by far, whatever the textures of the others, is an
attacker's: what is random resembles a pattern that covers the image a little. It takes no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbackdoor._clean import CleanImages
from unbackdoor.recover._margins import Leader
from unbackdoor.recover._search import class_margins, margins_and_others, weighted_mean

IMAGES = 16
TIMES = 2
"""Images that textures are put on, at most, and draws for each."""
PICTURES, ON_EACH = 48, 4
"""Pictures of a texture that the best is taken of, and images that each is put on."""
CLEAR = 6.0
"""The best class's margin is larger by so many logits than the next class's, each under its best texture …"""
SURE = 0.7
"""… and by so many times what the network's first answer on clean images is ahead of its second."""

Texture = Callable[[Tensor, torch.Generator], Tensor]
"""Puts random pictures of one kind on images, (N, C, H, W) in [0, 1] -> the same."""


@dataclass(frozen=True)
class Answers:
    """A network's answers under textures.

    Attributes:
        margins: each class's largest mean margin, (C,), over the images that have another label.
        kinds: the textures that these were had with, int64 (C,).
        sureness: what the first answer on the images as they are is ahead of the second, in logits.
    """

    margins: Tensor
    kinds: Tensor
    sureness: float

    @property
    def ahead(self) -> float:
        """By how much the first class's margin is larger than the second's, in logits."""
        best, second = self.margins.topk(2).values
        return (best - second).item()

    def lead_of(self, goal: int) -> float:
        """By how much a class's margin is larger than any other's, in logits; negative if it is not."""
        others = self.margins.index_fill(0, torch.tensor([goal]).to(self.margins.device), -torch.inf)
        return (self.margins[goal] - others.max()).item()

    def leader(self, sure: float, least: float = 0.0) -> Leader | None:
        """Return the class that leads all others by far, if any, with a margin of ``least`` logits or more.

        By far: as ``CLEAR`` says, and by ``sure`` times the sureness.
        """
        return clear_leader(self.margins, max(CLEAR, sure * self.sureness), least)


def clear_leader(margins: Tensor, ahead: float, least: float = 0.0) -> Leader | None:
    """Return the class whose margin, of (C,), is the largest by ``ahead`` logits, and ``least`` or more."""
    (best, second), goals = margins.topk(2)
    if best < least or best - second < ahead:
        return None
    return Leader(int(goals[0]), (best / second.clamp(min=1)).item())


@torch.no_grad()
def answers_under(
    model: nn.Module,
    clean: CleanImages,
    textures: Sequence[Texture],
    generator: torch.Generator,
    rounds: int = 1,
) -> Answers:
    """Put every texture on a few of the clean images and return the answers.

    Args:
        model: in eval mode.
        clean: images, a few of which are taken; those that have a class's label do not count for it.
        textures: at least one; generator: which images, and the pictures.
        rounds: so many times, each with other pictures, at least 1; one does where a class leads by far.
    """
    few = torch.randperm(len(clean), generator=generator)[:IMAGES].to(clean.labels.device)
    images, labels = clean.images[few], clean.labels[few]
    many, their = images.repeat(TIMES, 1, 1, 1), labels.repeat(TIMES)

    def margins_under(texture: Texture) -> Tensor:
        drawn = [class_margins(model, texture(many, generator), their) for _ in range(rounds)]
        return torch.stack(drawn).mean(dim=0)

    every = torch.stack([margins_under(texture) for texture in textures])
    return Answers(*every.max(dim=0), sureness(model, images))


@torch.no_grad()
def best_under(
    model: nn.Module, clean: CleanImages, textures: Sequence[Texture], generator: torch.Generator
) -> Tensor:
    """Return each class's margin under the best of some pictures of each texture, (textures, C).

    The same picture on a few images, where ``answers_under`` puts another one on each: the nearest to an
    attacker's pattern that chance makes.

    Args:
        model, clean, textures: as for ``answers_under``; generator: which images, and the pictures.
    """
    few = torch.randperm(len(clean), generator=generator)[:ON_EACH].to(clean.labels.device)
    found = []
    for texture in textures:
        drawn = generator.get_state()
        every = []
        for number in few:
            generator.set_state(drawn)
            images = texture(clean.images[number].expand(PICTURES, -1, -1, -1), generator)
            every.append(margins_and_others(model(images), clean.labels[number].expand(PICTURES)))
        margins, away = (torch.stack(each, dim=-1) for each in zip(*every, strict=True))
        found.append(weighted_mean(margins, away).amax(dim=0))
    return torch.stack(found)


@torch.no_grad()
def sureness(model: nn.Module, images: Tensor) -> float:
    """Return what the first answer on images (N, C, H, W) is ahead of the second, in logits, on average."""
    first, second = model(images).topk(2, dim=1).values.unbind(1)
    return (first - second).mean().item()
