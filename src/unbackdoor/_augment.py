"""Random image augmentations, batched, on any device, drawn from a passed generator.

Images are float (N, C, H, W) in [0, 1] and stay so. Every image of the batch gets its own draw. The generator
lives on the CPU whatever the device of the images, so that a seed means the same everywhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TRIES = 10
"""Draws of a crop before the whole image is taken, as in the usual definition."""


def random_resized_crop(
    images: Tensor,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Cut a random rectangle out of every image and enlarge it to the full size, bilinearly.

    Args:
        images: float (N, C, H, W) in [0, 1].
        generator: source of the draws.
        scale: bounds of the rectangle's area as a share of the image's, in (0, 1].
        ratio: bounds of its width / height in pixels; drawn log-uniformly.

    Returns:
        A new tensor of the same shape, type and device.

    >>> random_resized_crop(torch.rand(4, 3, 9, 7), torch.Generator().manual_seed(0)).shape
    torch.Size([4, 3, 9, 7])
    """
    size = _crop_sizes(len(images), images.shape[2] / images.shape[3], generator, scale, ratio)
    room = 1 - size
    centre = (torch.rand(len(images), 2, generator=generator, dtype=torch.float64) * 2 - 1) * room
    theta = torch.zeros(len(images), 2, 3, dtype=torch.float64)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = size[:, 0], size[:, 1], centre
    return _cut(images, theta)


def enlarged(images: Tensor, zooms: Sequence[float] = (0.95, 0.9, 0.8)) -> Iterator[Tensor]:
    """Cut the middle out of every image, then its corners, and enlarge each to the full size, bilinearly.

    Args:
        images: float (N, C, H, W) in [0, 1].
        zooms: sides of the cuts, as shares of the image's.

    Yields:
        All images of one place and zoom, (N, C, H, W): five places a zoom.

    >>> [cut.shape for cut in enlarged(torch.rand(2, 3, 8, 8), zooms=[0.5])][0]
    torch.Size([2, 3, 8, 8])
    """
    places = [(0, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)]
    for zoom, (right, down) in itertools.product(zooms, places):
        theta = torch.tensor([[zoom, 0, right * (1 - zoom)], [0, zoom, down * (1 - zoom)]])
        yield _cut(images, theta.expand(len(images), -1, -1))


def random_shift(images: Tensor, generator: torch.Generator, most: float = 1 / 8) -> Tensor:
    """Move each image of (N, C, H, W) by whole pixels, up to ``most`` of its sides, repeating the edge.

    Unlike a crop that is enlarged, it leaves every pixel as sharp as it was.

    >>> random_shift(torch.rand(4, 3, 9, 7), torch.Generator().manual_seed(0)).shape
    torch.Size([4, 3, 9, 7])
    """
    moved = [_moved(side, len(images), most, generator) for side in images.shape[2:]]
    rows, columns = (index.to(images.device) for index in moved)
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return images.movedim(1, 3)[which, rows[:, :, None], columns[:, None, :]].movedim(3, 1).contiguous()


def random_flip(images: Tensor, generator: torch.Generator, share: float = 0.5) -> Tensor:
    """Mirror each image left to right with probability ``share``.

    >>> random_flip(torch.tensor([[[[0.0, 1.0]]]]), torch.Generator(), share=1.0).tolist()
    [[[[1.0, 0.0]]]]
    """
    flip = torch.rand(len(images), 1, 1, 1, generator=generator) < share
    return torch.where(flip.to(images.device), images.flip(-1), images)


def turned(images: Tensor, generator: torch.Generator, most: float = 30.0) -> Tensor:
    """Turn each image of (N, C, H, W) about its middle by up to ``most`` degrees, repeating the edge.

    >>> turned(torch.ones(1, 3, 4, 4), torch.Generator()).unique().tolist()
    [1.0]
    """
    angle = torch.deg2rad(most * (2 * torch.rand(len(images), generator=generator) - 1))
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = angle.cos()
    theta[:, 0, 1], theta[:, 1, 0] = -angle.sin(), angle.sin()
    return _cut(images, theta)


def jitter(
    images: Tensor, generator: torch.Generator, brightness: float = 0.2, contrast: float = 0.2
) -> Tensor:
    """Scale each image's brightness, then its contrast about its own mean, and clip to [0, 1].

    Args:
        images: float (N, C, H, W) in [0, 1].
        generator: source of the draws.
        brightness: factor drawn in [1 − brightness, 1 + brightness].
        contrast: the same for the contrast.

    >>> jitter(torch.full((1, 1, 2, 2), 0.5), torch.Generator(), brightness=0.0).unique().tolist()
    [0.5]
    """
    draws = torch.rand(2, len(images), 1, 1, 1, generator=generator, dtype=torch.float64) * 2 - 1
    light, spread = (1 + brightness * draws[0]).to(images), (1 + contrast * draws[1]).to(images)
    images = (images * light).clamp(0, 1)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (mean + (images - mean) * spread).clamp(0, 1)


def noise(images: Tensor, generator: torch.Generator, strength: float = 0.07) -> Tensor:
    """Add Gaussian noise of random strength to each image and clip: white, or smooth over four pixels.

    Args:
        images: float (N, C, H, W) in [0, 1].
        generator: source of the draws.
        strength: each image's standard deviation is drawn in [0, strength]; one image in three gets the
            smooth kind.

    >>> noise(torch.full((2, 1, 8, 8), 0.5), torch.Generator(), strength=0.0).unique().tolist()
    [0.5]
    """
    count, channels, height, width = images.shape
    white = torch.randn(images.shape, generator=generator)
    smooth = 1.5 * coarse_noise(count, channels, height, width, side=4, generator=generator)
    deviation = strength * torch.rand(count, 1, 1, 1, generator=generator)
    kind = torch.rand(count, 1, 1, 1, generator=generator) < 1 / 3
    return (images + (deviation * torch.where(kind, smooth, white)).to(images)).clamp(0, 1)


def coarse_noise(
    count: int, channels: int, height: int, width: int, *, side: int, generator: torch.Generator
) -> Tensor:
    """Return Gaussian noise drawn at every ``side`` pixels, bilinear between: (N, C, H, W).

    >>> coarse_noise(2, 1, 5, 9, side=4, generator=torch.Generator()).shape
    torch.Size([2, 1, 5, 9])
    """
    drawn = torch.randn(count, channels, -(-height // side), -(-width // side), generator=generator)
    return F.interpolate(drawn, size=(height, width), mode="bilinear") if side > 1 else drawn


def mixup(images: Tensor, generator: torch.Generator, alpha: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Mix every image with another one of the batch: λ·x + (1 − λ)·x[partner], λ ~ Beta(α, α).

    Args:
        images: float (N, C, H, W) in [0, 1].
        generator: source of the draws.
        alpha: α > 0; small values leave most images nearly alone.

    Returns:
        The mixed images (N, C, H, W), the partner's index int64 (N,), and λ (N,), all on the images' device.

    >>> mixed, partner, lam = mixup(torch.rand(4, 1, 2, 2), torch.Generator().manual_seed(0))
    >>> mixed.shape, partner.shape, lam.shape
    (torch.Size([4, 1, 2, 2]), torch.Size([4]), torch.Size([4]))
    """
    partner = torch.randperm(len(images), generator=generator).to(images.device)
    # torch's own Beta draws take no generator; numpy's, seeded by one draw, is reproducible on every device.
    seed = int(torch.randint(2**62, (1,), generator=generator))
    lam = torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, len(images))).to(images)
    weight = lam.view(-1, 1, 1, 1)
    return weight * images + (1 - weight) * images[partner], partner, lam


def _moved(side: int, count: int, most: float, generator: torch.Generator) -> Tensor:
    """Return where each pixel of a side is read from in every image, int64 (count, side)."""
    reach = int(most * side)
    by = torch.randint(-reach, reach + 1, (count, 1), generator=generator)
    return (torch.arange(side) + by).clamp(0, side - 1)


def _cut(images: Tensor, theta: Tensor) -> Tensor:
    """Cut a rectangle out of every image and enlarge it; ``theta`` (N, 2, 3) as for ``affine_grid``."""
    grid = F.affine_grid(theta.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False).clamp(0, 1)


def _crop_sizes(
    count: int,
    height_over_width: float,
    generator: torch.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Tensor:
    """Return (width, height) of each crop as shares of the image, float64 (count, 2), the first that fits."""
    draws = torch.rand(2, count, TRIES, generator=generator, dtype=torch.float64)
    area = scale[0] + (scale[1] - scale[0]) * draws[0]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = (low + (high - low) * draws[1]).exp() * height_over_width
    width, height = (area * shape).sqrt(), (area / shape).sqrt()
    fits = (width <= 1) & (height <= 1)
    first = fits.double().argmax(1, keepdim=True)
    sizes = torch.stack([width.gather(1, first), height.gather(1, first)], dim=2).squeeze(1)
    return torch.where(fits.any(1, keepdim=True), sizes, torch.ones_like(sizes))
