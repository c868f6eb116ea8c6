"""A picture sheet of triggers: clean, triggered, and the difference amplified."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from unbackdoor._errors import UnbackdoorError
from unbackdoor._files import writing
from unbackdoor.attacks import ATTACKS
from unbackdoor.attacks._base import Trigger

TILE, GAP, TITLE = 96, 4, 18
"""Pixels: side of a picture, space between pictures, height of a title."""

GAINS = (1, 2, 3, 5, 8, 10, 15, 20, 30, 50, 80, 100)


def triggers_sheet(
    images: Tensor,
    path: str | os.PathLike[str],
    *,
    triggers: Mapping[str, Trigger] | None = None,
    columns: int = 2,
) -> Path:
    """Draw every trigger on the same images and write the sheet as PNG, atomically.

    A block is one trigger: for every image the clean one, the triggered one, and the difference around
    grey, amplified by the gain that the title tells.

    Args:
        images: float (N, C, H, W) in [0, 1], one or three channels; two images are a good number.
        path: of the PNG.
        triggers: by title; ``None`` draws all of ``ATTACKS`` that need neither a file nor a model.
        columns: blocks side by side, ≥ 1.

    Returns:
        The path.

    Raises:
        UnbackdoorError: no trigger, no image, or images with two or more than three channels.
    """
    triggers = drawn_triggers(images) if triggers is None else triggers
    if not triggers or not len(images) or images.shape[1] not in (1, 3):
        raise UnbackdoorError(
            "a sheet needs triggers and images of one or three channels",
            value=f"{len(triggers)} triggers, images {tuple(images.shape)}",
            fix="triggers_sheet(torch.rand(2, 3, 32, 32), 'triggers.png')",
        )
    blocks = [_block(title, trigger, images) for title, trigger in triggers.items()]
    sheet = _tile(blocks, min(columns, len(blocks)))
    path = Path(path)
    with writing(path) as part:
        sheet.save(part, format="PNG", optimize=True)
    return path


def drawn_triggers(images: Tensor) -> dict[str, Trigger]:
    """Return the default triggers that can be applied as they are: no file, model or training needed."""
    found: dict[str, Trigger] = {}
    for name, kind in ATTACKS.items():
        try:
            trigger = kind()
            trigger(images[:1])
        except (TypeError, UnbackdoorError):
            continue
        found[name] = trigger
    return found


def _block(title: str, trigger: Trigger, images: Tensor) -> Image.Image:
    """Return the pictures of one trigger in a row, under its title."""
    with torch.no_grad():
        triggered = trigger(images)
    change = triggered - images
    gain = _gain(float(change.abs().max()))
    shown = (0.5 + change * gain / 2).clamp(0, 1)
    width = len(images) * 3 * (TILE + GAP) + (len(images) - 1) * 2 * GAP
    block = Image.new("RGB", (width, TITLE + TILE + GAP), "white")
    draw = ImageDraw.Draw(block)
    draw.text((0, 3), f"{title}   (difference x{gain})", fill="black", font=ImageFont.load_default())
    for number, row in enumerate(zip(images, triggered, shown, strict=True)):
        left = number * (3 * (TILE + GAP) + 2 * GAP)
        for place, picture in enumerate(row):
            block.paste(_enlarged(picture), (left + place * (TILE + GAP), TITLE))
    return block


def _gain(largest: float) -> int:
    """Return the largest round gain that keeps the difference from clipping."""
    fitting = [gain for gain in GAINS if gain * largest <= 1]
    return fitting[-1] if fitting else 1


def _enlarged(picture: Tensor) -> Image.Image:
    pixels = (picture.expand(3, -1, -1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().numpy()).resize((TILE, TILE), Image.Resampling.NEAREST)


def _tile(blocks: list[Image.Image], columns: int) -> Image.Image:
    """Lay the blocks out row by row."""
    width, height = blocks[0].size
    rows = math.ceil(len(blocks) / columns)
    margin = 3 * GAP
    size = (columns * (width + margin) + margin, rows * (height + margin) + margin)
    sheet = Image.new("RGB", size, "white")
    for number, block in enumerate(blocks):
        row, column = divmod(number, columns)
        sheet.paste(block, (margin + column * (width + margin), margin + row * (height + margin)))
    return sheet
