"""Where a grid's files lie on this machine: cells name them in a way that means the same everywhere."""

from __future__ import annotations

import os
from pathlib import Path

from unbackdoor._errors import UnbackdoorError

PLACES = {"shared": ("UNBACKDOOR_SHARED", "../shared"), "zoo": ("UNBACKDOOR_ZOO", "benchmarks/zoo")}
"""Name in braces -> environment variable, and the path below the root that holds without it."""


def locate(text: str, root: str | Path) -> Path:
    """Return the absolute path that ``text`` names.

    Args:
        text: a path, absolute or below ``root``; ``{root}``, and ``{shared}`` and ``{zoo}`` of ``PLACES``,
            at its start stand for folders.
        root: folder of the project that the grid belongs to.

    >>> locate("{shared}/models/a.pth", "/home/me/project").name
    'a.pth'
    """
    text = text.replace("{root}", str(root))
    for name, (variable, default) in PLACES.items():
        text = text.replace(f"{{{name}}}", os.environ.get(variable) or default)
    return Path(os.path.abspath(Path(root) / Path(text).expanduser()))


def find_root(start: Path) -> Path:
    """Return the nearest folder from ``start`` up with a ``pyproject.toml`` or ``.git``, else the current."""
    start = start.resolve()
    for folder in (start, *start.parents):
        if (folder / "pyproject.toml").exists() or (folder / ".git").exists():
            return folder
    return Path.cwd()


def existing(path: Path, what: str) -> Path:
    """Return ``path``, or raise an error that says where it should be."""
    if not path.exists():
        variables = ", ".join(f"{{{name}}} = ${variable}" for name, (variable, _) in PLACES.items())
        raise UnbackdoorError(f"{what} is not there", value=path, fix=f"put it there, or set {variables}")
    return path
