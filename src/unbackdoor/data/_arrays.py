"""From the arrays that people save to uint8 images with channels last, and int64 labels."""

from __future__ import annotations

import numpy as np
from PIL import Image

from unbackdoor._errors import UnbackdoorError

CHANNELS = (1, 3)


def as_pixels(images: np.ndarray) -> np.ndarray:
    """Return ``images`` as uint8 (N, H, W, C).

    Args:
        images: uint8, or floating point in [0, 1]; (N, H, W, C), (N, C, H, W) or grey (N, H, W). Where both
            ends could be channels, the last axis is taken.

    Raises:
        UnbackdoorError: another type, range or shape.
    """
    if np.issubdtype(images.dtype, np.floating):
        images = _from_unit_range(images)
    if images.dtype != np.uint8:
        raise UnbackdoorError(
            "images must be uint8, or floating point in [0, 1]",
            value=str(images.dtype),
            fix="images.astype('uint8') for whole values from 0 to 255",
        )
    return np.ascontiguousarray(_channels_last(images))


def as_labels(labels: np.ndarray) -> np.ndarray:
    """Return ``labels``, integers of shape (N,) or (N, 1), as int64 (N,)."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UnbackdoorError(
            "labels must be integers of shape (N,)",
            value=f"{labels.dtype} {labels.shape}",
            fix="labels.argmax(1) for one-hot rows, labels.astype('int64') for whole numbers",
        )
    return labels.astype(np.int64)


def resize_pixels(images: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 (N, H, W, C) to (N, size, size, C), bilinear with antialiasing; the same size is free."""
    if images.shape[1:3] == (size, size):
        return images
    channels = images.shape[3]
    out = np.empty((len(images), size, size, channels), np.uint8)
    for index, image in enumerate(images):
        picture = Image.fromarray(image[..., 0] if channels == 1 else image)
        resized = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
        out[index] = resized.reshape(size, size, channels)
    return out


def _from_unit_range(images: np.ndarray) -> np.ndarray:
    low, high = (float(images.min()), float(images.max())) if images.size else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        raise UnbackdoorError(
            "floating-point images must lie in [0, 1]",
            value=f"[{low:g}, {high:g}]",
            fix="divide by 255, or undo the normalisation: images * std + mean",
        )
    return np.rint(images * 255).astype(np.uint8)


def _channels_last(images: np.ndarray) -> np.ndarray:
    if images.ndim == 3:
        return images[..., None]
    if images.ndim == 4 and images.shape[3] in CHANNELS:
        return images
    if images.ndim == 4 and images.shape[1] in CHANNELS:
        return images.transpose(0, 2, 3, 1)
    raise UnbackdoorError(
        "images must be (N, H, W, C), (N, C, H, W) or grey (N, H, W), with 1 or 3 channels",
        value=images.shape,
        fix="drop an alpha channel: images[..., :3]",
    )
