"""Training or eval mode is the user's: whoever changes it puts it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Put the mode of every module back at the end, also after an error."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold the model in eval mode, then put the mode of every module back."""
    with kept_modes(model):
        model.eval()
        yield
