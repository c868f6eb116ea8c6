"""How the network of a victim is made, and made again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from unbackdoor._errors import UnbackdoorError
from unbackdoor.checkpoint import resolve_arch
from unbackdoor.data import TrainSplit


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What ``resolve_arch`` needs to make a network again; ``name`` is its specification."""

    name: str
    num_classes: int
    in_channels: int
    input_size: int

    @classmethod
    def for_split(cls, name: str, split: TrainSplit) -> Architecture:
        """Return the network ``name`` for the images of ``split``.

        Raises:
            UnbackdoorError: the images are not square.
        """
        height, width, channels = split.images.shape[1:]
        if height != width:
            raise UnbackdoorError(
                "the networks of the zoo take square images", value=f"{height}x{width}", fix="--resize 32"
            )
        return cls(name=name, num_classes=split.num_classes, in_channels=channels, input_size=height)

    def build(self, seed: int | None = None) -> nn.Module:
        """Build the network; with a ``seed`` its fresh weights follow from it and nothing else."""
        with torch.random.fork_rng():
            if seed is not None:
                torch.manual_seed(seed)
            return resolve_arch(
                self.name,
                num_classes=self.num_classes,
                in_channels=self.in_channels,
                input_size=self.input_size,
            )
