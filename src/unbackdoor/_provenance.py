"""What a figure depends on beside its cell: versions, source, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unbackdoor._report import versions

PACKAGE = Path(__file__).resolve().parent


@lru_cache(maxsize=1)
def source() -> dict[str, Any]:
    """Return the git commit of the package's source and whether the source differs from it.

    Both are ``None`` for an installed package outside a repository. Asked once a process, when its code
    is loaded.
    """
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return {"commit": None, "dirty": None}
    return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain", "--", "."))}


def environment(device: torch.device) -> dict[str, Any]:
    """Return versions, source, machine, device and threads of this process, as plain values."""
    return {
        "versions": {**versions(), "numpy": np.__version__},
        **source(),
        "machine": {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=PACKAGE, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
