"""Images that a user brings: a folder with a sub-folder a class, or an ``.npz`` file."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from unbackdoor._errors import UnbackdoorError
from unbackdoor.data._arrays import as_labels, as_pixels, resize_pixels
from unbackdoor.data._images import LabelledImages

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".gif", ".tif", ".tiff"})
PLAIN_KEYS = (("images", "labels"), ("x", "y"), ("X", "Y"), ("data", "labels"))


def read_images(
    path: str | os.PathLike[str],
    *,
    split: str = "train",
    classes: tuple[str, ...] | None = None,
    resize: int | None = None,
    grey: bool | None = None,
) -> LabelledImages:
    """Read labelled images from a folder or an ``.npz`` file.

    Args:
        path: a folder with a sub-folder a class, or an ``.npz`` with ``images`` and ``labels``, ``x`` and
            ``y``, or ``x_train`` and ``y_train`` (uint8 or float in [0, 1]; NHWC, NCHW or grey NHW).
        split: "train" or "test": which one, where the file or folder holds both.
        classes: names in the order of the labels. Without it, sub-folders that are all numbers are the
            labels themselves and others are numbered in sorted order.
        resize: height and width in pixels to resize to; pictures of several sizes need it.
        grey: True makes one channel, False three; without it a folder that is grey throughout stays so.

    Returns:
        The images, not yet declared to be a train or a test split.

    Raises:
        UnbackdoorError: nothing there, or something that is not an image.
    """
    path = Path(path)
    if path.is_dir():
        folder = path / split if (path / split).is_dir() else path
        return read_folder(folder, classes=classes, resize=resize, grey=grey)
    if path.is_file():
        return read_npz(path, split=split, classes=classes, resize=resize)
    raise UnbackdoorError(
        "there is no such file or folder",
        value=str(path),
        fix="give a folder with a sub-folder a class, or .npz",
    )


def read_npz(
    path: Path,
    *,
    split: str = "train",
    classes: tuple[str, ...] | None = None,
    resize: int | None = None,
    named: bool = False,
) -> LabelledImages:
    """Read one split of an ``.npz`` file; pickled arrays are refused.

    Arguments as ``read_images``; ``named`` takes only keys that name the split, so that one array can never
    pass for both.
    """
    pairs = ((f"x_{split}", f"y_{split}"), (f"{split}_images", f"{split}_labels"))
    pairs += () if named else PLAIN_KEYS
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = [pair for pair in pairs if set(pair) <= set(arrays.files)]
            if not found:
                raise UnbackdoorError(
                    f"{path.name} has no images and labels for the {split} split",
                    value=f"keys {', '.join(arrays.files) or 'none'}",
                    fix=f"save as np.savez(path, x_{split}=images, y_{split}=labels)",
                )
            images, labels = as_pixels(arrays[found[0][0]]), as_labels(arrays[found[0][1]])
    except (OSError, zipfile.BadZipFile, AttributeError, ValueError) as error:
        if isinstance(error, UnbackdoorError):
            raise
        raise UnbackdoorError(
            f"not a readable .npz file: {error}", value=str(path), fix="save arrays with np.savez"
        ) from error
    names = classes or tuple(str(label) for label in range(int(labels.max(initial=-1)) + 1))
    return LabelledImages(images if resize is None else resize_pixels(images, resize), labels, names)


def read_folder(
    path: Path,
    *,
    classes: tuple[str, ...] | None = None,
    resize: int | None = None,
    grey: bool | None = None,
) -> LabelledImages:
    """Read a folder with a sub-folder a class. Arguments as ``read_images``."""
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    names, numbers = _number_classes([folder.name for folder in folders], classes)
    files = [(file, numbers[folder.name]) for folder in folders for file in _pictures(folder)]
    if not files:
        raise UnbackdoorError(
            "the folder has no sub-folder with images",
            value=f"{path} with {', '.join(folder.name for folder in folders[:5]) or 'no sub-folder'}",
            fix="put the images into a sub-folder a class: path/cat/1.png",
        )
    pictures = [_open(file, resize, grey) for file, _ in files]
    return LabelledImages(_stack(pictures, files), np.array([label for _, label in files]), names)


def _number_classes(
    found: list[str], classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the class names and the label of every sub-folder."""
    if classes is None and found and all(name.isdecimal() for name in found):
        labels = {name: int(name) for name in found}
        return tuple(str(label) for label in range(max(labels.values()) + 1)), labels
    names = tuple(found) if classes is None else classes
    labels = {name: names.index(name) for name in found if name in names}
    numbers = [name for name in found if name not in labels]
    labels |= {name: int(name) for name in numbers if name.isdecimal() and int(name) < len(names)}
    unknown = [name for name in found if name not in labels]
    if unknown:
        raise UnbackdoorError(
            "a sub-folder is not one of the classes", value=unknown[0], fix=f"use one of: {', '.join(names)}"
        )
    return names, labels


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)


def _open(file: Path, resize: int | None, grey: bool | None) -> np.ndarray:
    """Return one picture as uint8 (H, W) or (H, W, 3)."""
    try:
        with Image.open(file) as picture:
            keep_grey = picture.mode in ("1", "L", "I;16", "LA") if grey is None else grey
            picture = picture.convert("L" if keep_grey else "RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise UnbackdoorError(
            f"not a readable image: {error}", value=str(file), fix="remove or replace the file"
        ) from error
    if resize is not None:
        picture = picture.resize((resize, resize), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _stack(pictures: list[np.ndarray], files: list[tuple[Path, int]]) -> np.ndarray:
    """Return (N, H, W, C); grey pictures among coloured ones become coloured."""
    sizes = {picture.shape[:2] for picture in pictures}
    if len(sizes) > 1:
        odd = next(i for i, picture in enumerate(pictures) if picture.shape[:2] != pictures[0].shape[:2])
        raise UnbackdoorError(
            "the images have several sizes",
            value=f"{pictures[0].shape[:2]} and {pictures[odd].shape[:2]} ({files[odd][0]})",
            fix="give resize=32 (--resize 32), or the size the model was trained on",
        )
    if all(picture.ndim == 2 for picture in pictures):
        return np.stack(pictures)[..., None]
    return np.stack([np.stack([p] * 3, -1) if p.ndim == 2 else p for p in pictures])
