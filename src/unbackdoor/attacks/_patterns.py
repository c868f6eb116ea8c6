"""What the triggers share: seeded patterns of any size, pasting, checks, the discrete cosine transform."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from unbackdoor._errors import UnbackdoorError

CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")


def seeded(seed: int) -> torch.Generator:
    """Return a CPU generator; patterns are drawn on the CPU so that every device gets the same one."""
    return torch.Generator().manual_seed(seed)


def check_range(owner: str, name: str, value: float, low: float, high: float) -> None:
    """Refuse a hyper-parameter outside [low, high].

    Raises:
        UnbackdoorError: it is outside, or NaN.
    """
    if not low <= value <= high:
        raise UnbackdoorError(
            f"{name} of {owner} must lie in [{low:g}, {high:g}]",
            value=value,
            fix=f"{owner}({name}={low:g}) is the smallest, {owner}({name}={high:g}) the largest",
        )


def check_choice(owner: str, name: str, value: str, valid: tuple[str, ...]) -> None:
    """Refuse a word that is not one of ``valid``."""
    if value not in valid:
        raise UnbackdoorError(
            f"unknown {name} of {owner}", value=repr(value), fix=f"use one of: {', '.join(valid)}"
        )


def noise(seed: int, channels: int, height: int, width: int) -> Tensor:
    """Return uniform noise in [0, 1], (C, H, W)."""
    return torch.rand(channels, height, width, generator=seeded(seed))


def picture(seed: int, channels: int, height: int, width: int, num_discs: int = 24) -> Tensor:
    """Return a cartoon of coloured discs in [0, 1], (C, H, W): the same picture at every size."""
    generator = seeded(seed)
    rows, columns = torch.meshgrid(centres(height), centres(width), indexing="ij")
    canvas = torch.rand(3, 1, 1, generator=generator).expand(3, height, width)
    for _ in range(num_discs):
        row, column, radius = torch.rand(3, generator=generator).tolist()
        colour = torch.rand(3, 1, 1, generator=generator)
        inside = (rows - row) ** 2 + (columns - column) ** 2 < (0.08 + 0.2 * radius) ** 2
        canvas = torch.where(inside, colour, canvas)
    return fit_channels(canvas, channels)


def colour_blocks(seed: int, channels: int, size: int, num_blocks: int = 3) -> Tensor:
    """Return a patch of saturated blocks, each channel 0 or 1, (C, size, size): like an optimised one.

    At least one block differs from the next, so that the patch is no plain square.
    """
    bits = torch.randint(0, 2, (channels, num_blocks, num_blocks), generator=seeded(seed)).float()
    bits[:, 0, 0], bits[:, -1, -1] = 1.0, 0.0
    return F.interpolate(bits[None], size=(size, size), mode="nearest")[0]


def centres(size: int) -> Tensor:
    """Return the pixel centres of one axis in (0, 1)."""
    return (torch.arange(size) + 0.5) / size


def fit_channels(pattern: Tensor, channels: int) -> Tensor:
    """Return a (3, H, W) colour pattern with ``channels`` channels: grey is the mean, more are repeated."""
    if channels == 1:
        return pattern.mean(0, keepdim=True)
    return pattern[torch.arange(channels) % len(pattern)]


def corner_of(images: Tensor, size: int, margin: int, corner: str) -> tuple[slice, slice]:
    """Return the rows and columns of a square of ``size`` pixels, ``margin`` pixels from the corner's edges.

    Raises:
        UnbackdoorError: the square does not fit into the images.
    """
    height, width = images.shape[-2:]
    if size < 1 or margin < 0 or size + margin > min(height, width):
        raise UnbackdoorError(
            "the patch does not fit into the images",
            value=f"size {size} and margin {margin} in {height}x{width} pixels",
            fix=f"use size + margin of at most {min(height, width)}",
        )
    vertical, horizontal = corner.split("-")
    top = margin if vertical == "top" else height - margin - size
    left = margin if horizontal == "left" else width - margin - size
    return slice(top, top + size), slice(left, left + size)


def mix(images: Tensor, pattern: Tensor, opacity: Tensor | float) -> Tensor:
    """Return (1 − opacity)·images + opacity·pattern; both broadcast over the batch."""
    pattern = pattern.to(images)
    weight = opacity.to(images) if isinstance(opacity, Tensor) else opacity
    return images + (pattern - images) * weight


def check_same_size(owner: str, pattern: Tensor, images: Tensor) -> None:
    """Refuse a stored pattern (C, H, W) that was made for images of another shape."""
    if pattern.shape[-3:] != images.shape[-3:]:
        raise UnbackdoorError(
            f"the pattern of {owner} was made for images of another shape",
            value=f"{tuple(pattern.shape[-3:])}, images {tuple(images.shape[-3:])}",
            fix="make the trigger for images of this shape",
        )
