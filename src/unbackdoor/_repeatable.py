"""The same result from the same seed: on a GPU, and whatever was asked beside the way."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Let torch take the algorithms that give the same result every time, where there is one.

    On a GPU a seed alone is not enough: sums have to be added in the same order every time. An operation
    without such an algorithm runs all the same, and silently: matrix products are among those that torch
    warns about unless ``CUBLAS_WORKSPACE_CONFIG`` is set, though they repeat on a single stream.
    On a CPU nothing is changed; the caller's settings come back at the end.
    """
    if device.type != "cuda":
        yield
        return
    kept = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill, deterministic.fill_uninitialized_memory = deterministic.fill_uninitialized_memory, False
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Dd]eterministic.*")
            yield
    finally:
        torch.use_deterministic_algorithms(kept[0], warn_only=kept[1])
        deterministic.fill_uninitialized_memory = fill


def copied(generator: torch.Generator) -> torch.Generator:
    """Return a copy of a generator on the CPU, so that what is drawn next does not hang on what was asked.

    >>> given = torch.Generator().manual_seed(0)
    >>> torch.equal(torch.rand(2, generator=copied(given)), torch.rand(2, generator=given))
    True
    """
    return torch.Generator().set_state(generator.get_state())
