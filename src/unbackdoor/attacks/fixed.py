"""Triggers that come as files: an image patch, an additive image, a mask with a pattern.

A file is a picture (its values divided by 255) or an ``.npy`` array: uint8 (divided by 255) or
floating point, (H, W), (H, W, C) or (C, H, W). Grey files act on every channel.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from unbackdoor._errors import UnbackdoorError, unknown_name
from unbackdoor.attacks._base import Trigger

CHANNELS = (1, 3, 4)
SYNTAX = "patch:FILE[@ROW,COLUMN], additive:FILE or mask:MASK,PATTERN"


@dataclass(frozen=True, kw_only=True)
class Patch(Trigger):
    """Paste a small picture: T(x) = (1 − a)·x + a·p inside the patch, x outside; a is its alpha channel or 1.

    Attributes:
        file: the picture, not larger than the images.
        row, column: of its upper left pixel, counted from 0; negative ones from the far edge, so that the
            default −1, −1 puts its lower right pixel into the lower right corner.
    """

    name: ClassVar[str] = "patch"
    file: str
    row: int = -1
    column: int = -1

    def apply(self, images: Tensor) -> Tensor:
        """Return the images with the picture pasted on."""
        patch, alpha = _split_alpha(self._picture)
        height, width = patch.shape[1:]
        top = _start(self.row, height, images.shape[2], self.file)
        left = _start(self.column, width, images.shape[3], self.file)
        out = images.clone()
        window = out[:, :, top : top + height, left : left + width]
        window.copy_(torch.lerp(window, _like(patch, window, self.file), alpha.to(window)))
        return out

    @cached_property
    def _picture(self) -> Tensor:
        return read_array(self.file)


@dataclass(frozen=True, kw_only=True)
class Additive(Trigger):
    """Add a picture of the images' size: T(x) = clip(x + δ, 0, 1).

    Attributes:
        file: δ; an ``.npy`` of floating point may be negative.
        scale: δ is multiplied by it.
    """

    name: ClassVar[str] = "additive"
    file: str
    scale: float = 1.0

    def apply(self, images: Tensor) -> Tensor:
        """Return the images with the picture added, clipped."""
        return (images + self.scale * _like(self._delta, images, self.file)).clamp(0, 1)

    @cached_property
    def _delta(self) -> Tensor:
        return read_array(self.file)


@dataclass(frozen=True, kw_only=True)
class MaskPattern(Trigger):
    """Replace what a mask covers: T(x) = (1 − a)·x + a·p.

    Attributes:
        mask: a, in [0, 1], of the images' size.
        pattern: p, in [0, 1], of the images' size.
    """

    name: ClassVar[str] = "mask"
    mask: str
    pattern: str

    def apply(self, images: Tensor) -> Tensor:
        """Return the images with the pattern where the mask is."""
        mask, pattern = self._arrays
        return torch.lerp(images, _like(pattern, images, self.pattern), _like(mask, images, self.mask))

    @cached_property
    def _arrays(self) -> tuple[Tensor, Tensor]:
        mask, pattern = read_array(self.mask), read_array(self.pattern)
        for tensor, file in ((mask, self.mask), (pattern, self.pattern)):
            if not (tensor.min() >= 0 and tensor.max() <= 1):
                raise UnbackdoorError(
                    "mask and pattern must lie in [0, 1]",
                    value=f"{file}: [{tensor.min():g}, {tensor.max():g}]",
                    fix="divide by 255, or give a picture file",
                )
        return mask, pattern


def trigger_from_spec(spec: str) -> Trigger:
    """Build a trigger from ``patch:FILE[@ROW,COLUMN]``, ``additive:FILE`` or ``mask:MASK,PATTERN``.

    Raises:
        UnbackdoorError: unknown kind (lists the valid ones), or a file that is not there or no image.

    >>> trigger_from_spec("ribbon:red.png")
    Traceback (most recent call last):
    ...
    unbackdoor._errors.UnbackdoorError: unknown trigger
      got: 'ribbon'
      fix: use one of: additive, mask, patch
    """
    kind, _, rest = spec.partition(":")
    makers = {"patch": _patch, "additive": _additive, "mask": _mask_pattern}
    if kind not in makers:
        raise unknown_name("trigger", kind, list(makers))
    if not rest:
        raise UnbackdoorError("the trigger names no file", value=spec, fix=f"give {SYNTAX}")
    trigger = makers[kind](rest)
    _check_files(trigger)
    return trigger


def read_array(file: str | os.PathLike[str]) -> Tensor:
    """Read a picture or an ``.npy`` file as float (C, H, W); pictures and uint8 arrays are divided by 255."""
    path = Path(file)
    try:
        values = np.load(path, allow_pickle=False) if path.suffix == ".npy" else _read_picture(path)
    except (OSError, ValueError, EOFError, UnidentifiedImageError) as error:
        raise UnbackdoorError(
            f"not a readable picture or .npy file: {error}", value=path, fix="give a PNG or an .npy array"
        ) from error
    scale = 255 if values.dtype == np.uint8 else 1
    array = torch.tensor(values).float() / scale
    if array.ndim == 2:
        return array[None]
    if array.ndim == 3 and array.shape[2] in CHANNELS:
        return array.permute(2, 0, 1).contiguous()
    if array.ndim == 3 and array.shape[0] in CHANNELS:
        return array
    raise UnbackdoorError(
        "a trigger must be (H, W), (H, W, C) or (C, H, W)",
        value=f"{path}: {values.shape}",
        fix="np.squeeze(array)",
    )


def _read_picture(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        if picture.mode in ("L", "RGB", "RGBA"):
            return np.asarray(picture)
        grey = picture.mode in ("1", "I;16")
        return np.asarray(
            picture.convert("L" if grey else "RGBA" if picture.mode in ("LA", "P", "PA") else "RGB")
        )


def _split_alpha(picture: Tensor) -> tuple[Tensor, Tensor]:
    if picture.shape[0] == 4:
        return picture[:3], picture[3:]
    return picture, torch.ones_like(picture[:1])


def _start(position: int, length: int, size: int, file: str) -> int:
    start = position if position >= 0 else size - length + position + 1
    if start < 0 or start + length > size:
        raise UnbackdoorError(
            "the patch does not fit into the images there",
            value=f"{file}: {length} pixels at {position} in images of {size}",
            fix=f"a position from 0 to {size - length}" if length <= size else "a smaller patch",
        )
    return start


def _like(values: Tensor, images: Tensor, file: str) -> Tensor:
    """Return ``values`` on the images' device, with as many channels, after a check of the size."""
    channels, height, width = values.shape
    if (height, width) != tuple(images.shape[2:]) or channels not in (1, images.shape[1]):
        raise UnbackdoorError(
            "the trigger has another size than the images",
            value=f"{file}: {channels}×{height}×{width} on images of {'×'.join(map(str, images.shape[1:]))}",
            fix="make the trigger for images of this size, in grey or with as many channels",
        )
    return values.to(images)


def _patch(rest: str) -> Patch:
    file, at, place = rest.rpartition("@")
    if not at:
        return Patch(file=rest)
    try:
        row, column = (int(number) for number in place.split(","))
    except ValueError as error:
        raise UnbackdoorError(
            "the patch's place cannot be read", value=f"@{place}", fix="patch:FILE@27,27"
        ) from error
    return Patch(file=file, row=row, column=column)


def _additive(rest: str) -> Additive:
    return Additive(file=rest)


def _mask_pattern(rest: str) -> MaskPattern:
    mask, comma, pattern = rest.partition(",")
    if not comma:
        raise UnbackdoorError("a mask needs a pattern", value=f"mask:{rest}", fix="mask:MASK.npy,PATTERN.png")
    return MaskPattern(mask=mask, pattern=pattern)


def _check_files(trigger: Trigger) -> None:
    """Read the files now, so that a bad one is told before the network is loaded."""
    for file in (value for value in trigger.fields().values() if isinstance(value, str)):
        read_array(file)
