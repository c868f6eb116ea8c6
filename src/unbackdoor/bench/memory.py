"""Peak memory of one stretch of work, in bytes."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from pathlib import Path

import torch

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class PeakMemory:
    """Peak memory between ``start()`` and ``read()``.

    On CUDA the allocator's own peak. On Linux the resident set of this process with its high-water mark
    reset at the start, so that what was loaded and freed before does not count. Elsewhere the high-water
    mark of the whole process; ``source`` tells which.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.source = "process"

    def start(self) -> None:
        """Forget earlier peaks, and give freed memory back so that using it again counts."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.source = "cuda"
            return
        _give_back()
        if _reset_high_water():
            self.source = "resident"

    def read(self) -> int:
        """Return the peak since ``start``."""
        if self.source == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if self.source == "resident":
            return _status_bytes("VmHWM")
        return _process_peak()


def _give_back() -> None:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc keeps freed memory and can return it
        ctypes.CDLL(None).malloc_trim(0)


def _process_peak() -> int:
    try:
        import resource
    except ImportError:  # Windows has no such module
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _reset_high_water() -> bool:
    try:
        CLEAR.write_text("5")
        return _status_bytes("VmHWM") > 0
    except OSError:
        return False


def _status_bytes(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0
