"""WaNet: a smooth warp of the whole image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from unbackdoor.attacks._base import Trigger
from unbackdoor.attacks._patterns import check_range, seeded


@dataclass(frozen=True, kw_only=True)
class WaNet(Trigger):
    """Warp the image by a fixed smooth field: x'(u) = x(u + s·p(u)), p a k×k control grid upsampled.

    The grid is uniform in [−1, 1], divided by its mean size, and upsampled with bicubic interpolation. In
    noise mode (``noise``) every cover image is warped by the same field plus noise of its own at every
    pixel and keeps its label: the victim learns this field and not warping as such.

    Attributes:
        grid_size: k, ≥ 2.
        strength: s, in pixels of half an image side as in the paper, ≥ 0.
        seed: of the field.
        cover_rate: noisy covers for one poisoned image (the paper: poison rate 0.1, noise rate 0.2).

    References:
        Nguyen, Tran, WaNet: Imperceptible Warping-based Backdoor Attack, ICLR 2021, arXiv 2102.10369.
    """

    name: ClassVar[str] = "wanet"
    grid_size: int = 4
    strength: float = 0.5
    seed: int = 0
    cover_rate: float = 2.0

    def __post_init__(self) -> None:
        check_range("WaNet", "grid_size", self.grid_size, 2, 1024)
        check_range("WaNet", "strength", self.strength, 0, 1024)
        check_range("WaNet", "cover_rate", self.cover_rate, 0, 1024)

    def apply(self, images: Tensor) -> Tensor:
        grid = self._grid(images).clamp(-1, 1)
        return _sample(images, grid.expand(len(images), -1, -1, -1))

    def cover(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.noise(images, generator)

    def noise(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the images warped by the field and by noise of up to half a pixel: (N, C, H, W)."""
        height, width = images.shape[-2:]
        jitter = torch.rand(len(images), height, width, 2, generator=generator) * 2 - 1
        jitter = jitter / torch.tensor([width, height])
        return _sample(images, (self._grid(images) + jitter.to(images)).clamp(-1, 1)).clamp(0, 1)

    def _grid(self, images: Tensor) -> Tensor:
        """Return where every pixel is read, (1, H, W, 2), x before y, in [−1, 1]."""
        height, width = images.shape[-2:]
        control = torch.rand(1, 2, self.grid_size, self.grid_size, generator=seeded(self.seed)) * 2 - 1
        control = control / control.abs().mean()
        field = F.interpolate(control, size=(height, width), mode="bicubic", align_corners=True)
        rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
        identity = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        shift = self.strength * field.permute(0, 2, 3, 1) / torch.tensor([width, height])
        return (identity + shift).to(images)


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
