"""Run the cell of a record again and compare: the same numbers on the same machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unbackdoor.bench.cell import run_cell
from unbackdoor.bench.records import plain

FIGURES = ("status", "victim", "data", "before", "after", "changed", "reactivation")
"""What must come out the same."""

METRICS = ("before", "after")
"""Where a figure that the record does not hold is no difference: an earlier version did not measure it."""
CIRCUMSTANCES = ("versions", "commit", "dirty", "machine", "device", "threads")
"""What may explain it when something does not."""


@dataclass(frozen=True)
class Difference:
    """One value that is another one now: where in the record, what it was, what it is."""

    place: str
    old: Any
    new: Any


@dataclass(frozen=True)
class Rerun:
    """A record made again.

    Attributes:
        record: the new one.
        figures: differences in inputs and metrics; empty when the cell was reproduced.
        circumstances: differences in versions, source, machine and threads.
    """

    record: dict[str, Any]
    figures: tuple[Difference, ...]
    circumstances: tuple[Difference, ...]


def rerun(record: Mapping[str, Any], root: Path) -> Rerun:
    """Run the cell of ``record`` with its number of threads, on its kind of device, and compare.

    The victim before purification is measured anew as well.

    Args:
        record: as ``run_cell`` returns it.
        root: folder that the cell's relative paths start from.

    Raises:
        RuntimeError: the record was made on a GPU and there is none.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(record.get("threads") or threads)
    device = "cpu" if record.get("device", "cpu") == "cpu" else "cuda"
    try:
        new = plain(run_cell(dict(record["cell"]), root=str(root), device=device))
    finally:
        torch.set_num_threads(threads)
    return Rerun(new, *(tuple(_compare(record, new, keys)) for keys in (FIGURES, CIRCUMSTANCES)))


def _compare(old: Mapping[str, Any], new: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[Difference]:
    for key in keys:
        yield from _differences(key, old.get(key), new.get(key))


def _differences(place: str, old: Any, new: Any) -> Iterator[Difference]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in old if place in METRICS else {**old, **new}:
            yield from _differences(f"{place}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield Difference(place, old, new)
