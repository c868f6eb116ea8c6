"""The two small networks of the input-aware trigger: image to pattern, image to mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TriggerNetworks(nn.Module):
    """A pattern generator (three scales) and a mask generator (two scales) of the same input channels."""

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.pattern = HourGlass(in_channels, in_channels, width, scales=3)
        self.mask = HourGlass(in_channels, 1, max(1, width // 2), scales=2)

    @classmethod
    def seeded(cls, in_channels: int, width: int, seed: int) -> Self:
        """Build the networks with weights drawn from ``seed``; the global random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(in_channels, width)

    @staticmethod
    def channels_of(state: Mapping[str, Tensor]) -> int:
        """Return the image channels that a saved state was made for."""
        return state["pattern.down.0.0.weight"].shape[1]

    def sharp_mask(self, images: Tensor) -> Tensor:
        """Return the mask pushed towards 0 and 1: (N, C, H, W) -> (N, 1, H, W) in [0, 1]."""
        return torch.tanh(20 * self.mask(images) - 10) / 2 + 0.5

    def forward(self, images: Tensor, sources: Tensor) -> Tensor:
        """Return the images with the triggers made for ``sources``; both (N, C, H, W) in [0, 1]."""
        sources = sources.to(next(self.parameters()).dtype)
        mask, pattern = self.sharp_mask(sources).to(images), self.pattern(sources).to(images)
        return images + (pattern - images) * mask


class HourGlass(nn.Module):
    """Halve the image ``scales`` times, double it back, and return values in [0, 1]: no skip connections."""

    def __init__(self, in_channels: int, out_channels: int, width: int, scales: int):
        super().__init__()
        widths = [width * 2**scale for scale in range(scales)]
        self.down = nn.ModuleList(_block(i, o) for i, o in zip([in_channels, *widths], widths, strict=False))
        self.middle = _block(widths[-1], widths[-1])
        outputs = [*widths[-2::-1], width]
        self.up = nn.ModuleList(_block(i, o) for i, o in zip(widths[::-1], outputs, strict=True))
        self.head = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, out_channels, H, W) in [0, 1]."""
        features, sizes = images, []
        for block in self.down:
            sizes.append(features.shape[-2:])
            features = F.max_pool2d(block(features), 2, ceil_mode=True)
        features = self.middle(features)
        for block in self.up:
            features = block(F.interpolate(features, size=sizes.pop(), mode="bilinear"))
        return torch.tanh(self.head(features)) / 2 + 0.5


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels, momentum=0.05),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels, momentum=0.05),
        nn.ReLU(inplace=True),
    )
