"""Normalisation as a layer, so that it belongs to the model and every image outside it lies in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unbackdoor._errors import require


class Normalize(nn.Module):
    """Subtract ``mean`` and divide by ``std``, channel by channel.

    Both are buffers that are left out of the state dict, so that ``wrap`` adds no key of its own.

    Args:
        mean: one value a channel.
        std: one positive value a channel.

    Raises:
        UnbackdoorError: lengths differ, or a ``std`` that is not positive.

    >>> Normalize([0.5], [0.5])(torch.tensor([[[[0.0, 1.0]]]])).tolist()
    [[[[-1.0, 1.0]]]]
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        lengths = (len(mean), len(std))
        require(
            lengths[0] == lengths[1] > 0, "mean and std need one value a channel", lengths, "equal lengths"
        )
        require(min(std) > 0, "std must be positive", list(std), "the standard deviation of each channel")
        self.register_buffer(
            "mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False
        )

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def wrap(self, model: nn.Module) -> nn.Sequential:
        """Return ``model`` with this layer before it; ``result[1]`` is the same ``model`` object.

        >>> net = Normalize([0.5], [0.5]).wrap(nn.Conv2d(1, 2, 3))
        >>> list(net.state_dict())
        ['1.weight', '1.bias']
        """
        return nn.Sequential(self, model)
