"""BadNets: a small patch in a corner of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unbackdoor.attacks._base import Trigger
from unbackdoor.attacks._patterns import CORNERS, check_choice, check_range, colour_blocks, corner_of, mix

PATTERNS = ("checkerboard", "white", "colour")


@dataclass(frozen=True, kw_only=True)
class BadNets(Trigger):
    """Paste a small patch: x' = (1 − a·M)·x + a·M·p, with M the corner, p the pattern, a the opacity.

    Attributes:
        pattern: ``checkerboard`` (black and white pixels, white corners), ``white``, or ``colour``
            (saturated blocks drawn from ``seed``).
        size: side of the patch in pixels, ≥ 1.
        corner: ``top-left``, ``top-right``, ``bottom-left``, ``bottom-right``, or ``all`` four of them, as
            the clean-label attack uses them.
        margin: pixels between the patch and the edges, ≥ 0.
        opacity: a, in (0, 1].
        seed: of the ``colour`` pattern.

    >>> BadNets(size=1, pattern="white")(torch.zeros(1, 1, 2, 2)).flatten().tolist()
    [0.0, 0.0, 0.0, 1.0]

    References:
        Gu, Dolan-Gavitt, Garg, BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply
        Chain, 2017, arXiv 1708.06733.
    """

    name: ClassVar[str] = "badnets"
    pattern: str = "checkerboard"
    size: int = 3
    corner: str = "bottom-right"
    margin: int = 0
    opacity: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("BadNets", "pattern", self.pattern, PATTERNS)
        check_choice("BadNets", "corner", self.corner, (*CORNERS, "all"))
        check_range("BadNets", "opacity", self.opacity, 0, 1)

    def apply(self, images: Tensor) -> Tensor:
        result, patch = images.clone(), self._patch(images.shape[1])
        for corner in CORNERS if self.corner == "all" else (self.corner,):
            rows, columns = corner_of(images, self.size, self.margin, corner)
            result[..., rows, columns] = mix(images[..., rows, columns], patch, self.opacity)
        return result

    def _patch(self, channels: int) -> Tensor:
        if self.pattern == "white":
            return torch.ones(channels, self.size, self.size)
        if self.pattern == "colour":
            return colour_blocks(self.seed, channels, self.size)
        steps = torch.arange(self.size)
        return (1.0 - (steps[:, None] + steps[None]) % 2).expand(channels, -1, -1)
