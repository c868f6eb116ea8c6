"""GTSRB from the official folders: 43 traffic signs, cropped to the annotated box and resized.

References:
    Stallkamp, Schlipsing, Salmen, Igel, "Man vs. computer: Benchmarking machine learning algorithms for
    traffic sign recognition", Neural Networks 32, 2012.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from unbackdoor._errors import UnbackdoorError
from unbackdoor.data._images import TestSplit, TrainSplit

CLASSES = tuple(str(label) for label in range(43))
TRAIN_FOLDERS = ("Final_Training/Images", "GTSRB/Final_Training/Images", "Training", "GTSRB/Training")
TEST_FOLDERS = ("Final_Test/Images", "GTSRB/Final_Test/Images")
TEST_LABELS = "GT-final_test.csv"

Row = tuple[Path, tuple[int, int, int, int], int]


def is_gtsrb(path: Path) -> bool:
    """Tell whether the folder holds the official training folders."""
    return _first_folder(path, TRAIN_FOLDERS) is not None


def read_gtsrb(path: Path, size: int = 32) -> tuple[TrainSplit, TestSplit]:
    """Read the official folders, every image cropped to its sign and resized to ``size`` × ``size``.

    The frames of one sign follow each other and are near-duplicates; the official test split has other signs.

    Args:
        path: folder with ``Final_Training/Images/<class>/GT-<class>.csv``, ``Final_Test/Images/*.ppm`` and
            ``GT-final_test.csv`` (the one with ``ClassId``), with or without ``GTSRB/`` above.
        size: height and width in pixels.

    Raises:
        UnbackdoorError: a folder, annotation or image is missing or damaged.
    """
    return TrainSplit(*_read(_train_rows(path), size), CLASSES), TestSplit(
        *_read(_test_rows(path), size), CLASSES
    )


def _train_rows(path: Path) -> list[Row]:
    folder = _first_folder(path, TRAIN_FOLDERS)
    if folder is None:
        raise _missing(path / TRAIN_FOLDERS[0], "GTSRB_Final_Training_Images.zip")
    tables = sorted(folder.glob("*/GT-*.csv"))
    if not tables:
        raise _missing(folder / "00000" / "GT-00000.csv", "GTSRB_Final_Training_Images.zip")
    return [row for table in tables for row in _rows(table, table.parent)]


def _test_rows(path: Path) -> list[Row]:
    folder = _first_folder(path, TEST_FOLDERS)
    if folder is None:
        raise _missing(path / TEST_FOLDERS[0], "GTSRB_Final_Test_Images.zip")
    places = (path, path / "GTSRB", folder, folder.parent, folder.parent.parent)
    for table in (place / TEST_LABELS for place in places):
        if table.is_file():
            return _rows(table, folder)
    raise _missing(path / TEST_LABELS, "GTSRB_Final_Test_GT.zip")


def _rows(table: Path, folder: Path) -> list[Row]:
    """Return file, sign box (left, upper, right, lower; the last two exclusive) and class of every line."""
    try:
        with table.open(newline="") as file:
            return [
                (
                    folder / line["Filename"],
                    tuple(int(line[f"Roi.{corner}"]) for corner in ("X1", "Y1", "X2", "Y2")),
                    int(line["ClassId"]),
                )
                for line in csv.DictReader(file, delimiter=";")
            ]
    except (KeyError, ValueError, TypeError) as error:
        raise UnbackdoorError(
            f"not an official annotation table with Filename, Roi.* and ClassId: {error}",
            value=str(table),
            fix="get GTSRB_Final_Training_Images.zip or GTSRB_Final_Test_GT.zip again",
        ) from error


def _read(rows: list[Row], size: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((len(rows), size, size, 3), np.uint8)
    for index, (file, box, _) in enumerate(rows):
        images[index] = _sign(file, box, size)
    return images, np.array([label for _, _, label in rows], np.int64)


def _sign(file: Path, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    try:
        with Image.open(file) as picture:
            sign = picture.convert("RGB").crop(box)
        return np.asarray(sign.resize((size, size), Image.Resampling.BILINEAR))
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise UnbackdoorError(
            f"not a readable image: {error}", value=str(file), fix="unpack the official archive again"
        ) from error


def _first_folder(path: Path, names: tuple[str, ...]) -> Path | None:
    return next((path / name for name in names if (path / name).is_dir()), None)


def _missing(path: Path, archive: str) -> UnbackdoorError:
    return UnbackdoorError(
        "a part of GTSRB is missing",
        value=str(path),
        fix=f"unpack {archive} of https://benchmark.ini.rub.de/gtsrb_dataset.html beside the rest",
    )
