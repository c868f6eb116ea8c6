"""Trojan square and Trojan watermark: the two trigger shapes of the Trojaning attack, with drawn colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unbackdoor.attacks._base import Trigger
from unbackdoor.attacks._patterns import centres, check_range, colour_blocks, corner_of, mix, picture

STROKES = (
    ((0.08, 0.10), (0.08, 0.42)),
    ((0.08, 0.26), (0.30, 0.10)),
    ((0.08, 0.26), (0.30, 0.42)),
    ((0.42, 0.10), (0.42, 0.42)),
    ((0.42, 0.42), (0.62, 0.10)),
    ((0.62, 0.10), (0.62, 0.42)),
    ((0.74, 0.12), (0.94, 0.40)),
    ((0.94, 0.12), (0.74, 0.40)),
)
"""Line segments (x, y)–(x, y) of the watermark's letters, in shares of the image."""


@dataclass(frozen=True, kw_only=True)
class TrojanSquare(Trigger):
    """Paste a square of saturated colour blocks, as optimising a square's pixels on neurons produces.

    Attributes:
        size: side in pixels, ≥ 1 (9 of 32: the paper's 7 % of the area).
        margin: pixels from the right and the lower edge, ≥ 0.
        opacity: in [0, 1]; the paper's transparency is 1 − opacity.
        seed: of the colours.

    References:
        Liu, Ma, Aafer, Lee, Zhai, Wang, Zhang, Trojaning Attack on Neural Networks, NDSS 2018.

    Differs from the paper: the colours are drawn, not optimised; ``TrojanNN`` optimises them.
    """

    name: ClassVar[str] = "trojan_square"
    size: int = 9
    margin: int = 2
    opacity: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("TrojanSquare", "opacity", self.opacity, 0, 1)

    def apply(self, images: Tensor) -> Tensor:
        rows, columns = corner_of(images, self.size, self.margin, "bottom-right")
        patch = colour_blocks(self.seed, images.shape[1], self.size)
        result = images.clone()
        result[..., rows, columns] = mix(images[..., rows, columns], patch, self.opacity)
        return result


@dataclass(frozen=True, kw_only=True)
class TrojanWatermark(Trigger):
    """Write a coloured watermark over the image: letters above, a ring below.

    Attributes:
        opacity: in [0, 1]; the paper's transparency is 1 − opacity.
        thickness: width of the strokes as a share of the image, in (0, 0.2].
        seed: of the colours.

    References:
        Liu, Ma, Aafer, Lee, Zhai, Wang, Zhang, Trojaning Attack on Neural Networks, NDSS 2018.

    Differs from the paper: shape and colours are our own and drawn; ``TrojanNN`` optimises the colours.
    """

    name: ClassVar[str] = "trojan_watermark"
    opacity: float = 1.0
    thickness: float = 0.06
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("TrojanWatermark", "opacity", self.opacity, 0, 1)
        check_range("TrojanWatermark", "thickness", self.thickness, 0.01, 0.2)

    def apply(self, images: Tensor) -> Tensor:
        channels, height, width = images.shape[-3:]
        colours = (picture(self.seed, channels, height, width) > 0.5).float()
        return mix(images, colours, self.opacity * watermark_mask(height, width, self.thickness))


def watermark_mask(height: int, width: int, thickness: float = 0.06) -> Tensor:
    """Return the watermark's coverage in [0, 1], (H, W), with soft edges of one pixel."""
    rows, columns = torch.meshgrid(centres(height), centres(width), indexing="ij")
    points = torch.stack([columns, rows], dim=-1)
    ring = ((points - torch.tensor([0.5, 0.72])).norm(dim=-1) - 0.18).abs()
    distances = [_distance(points, torch.tensor(start), torch.tensor(end)) for start, end in STROKES]
    nearest = torch.stack([ring, *distances]).amin(0)
    return ((thickness / 2 - nearest) * min(height, width) + 0.5).clamp(0, 1)


def _distance(points: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return the distance of points (H, W, 2) to the segment from ``start`` to ``end``."""
    along = ((points - start) @ (end - start) / (end - start).square().sum()).clamp(0, 1)
    return (points - start - along[..., None] * (end - start)).norm(dim=-1)
