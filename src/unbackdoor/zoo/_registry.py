"""What the registry knows about a network beside its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from unbackdoor._errors import UnbackdoorError


@dataclass(frozen=True)
class Architecture:
    """How to make a network, and the images that it takes.

    Attributes:
        make: (num_classes, in_channels, input_size) -> network.
        smallest: smallest height and width in pixels.
        multiple: the size must be a multiple of this many pixels.
    """

    make: Callable[[int, int, int], nn.Module]
    smallest: int
    multiple: int = 1

    def check_size(self, name: str, size: int) -> None:
        """Refuse an input size that the network cannot take."""
        if size >= self.smallest and size % self.multiple == 0:
            return
        rule = f"at least {self.smallest}" + (
            f" and a multiple of {self.multiple}" if self.multiple > 1 else ""
        )
        nearest = max(self.smallest, round(size / self.multiple) * self.multiple)
        raise UnbackdoorError(
            f"{name} takes square images of {rule} pixels",
            value=f"input_size={size}",
            fix=f"resize the images, for example to input_size={nearest}",
        )
