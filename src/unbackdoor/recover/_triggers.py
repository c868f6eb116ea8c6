"""Recovered triggers in one form, whatever family they came from: x -> clip(keep ⊙ x + add)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Recovered:
    """A stack of P recovered triggers.

    Attributes:
        keep: (P, 1, H, W) in [0, 1], the share of the image that stays; 1 everywhere for additive triggers.
        add: (P, C, H, W), what is added.

    >>> stack = Recovered(torch.zeros(2, 1, 4, 4), torch.ones(2, 3, 4, 4))
    >>> stack.apply(torch.rand(5, 3, 4, 4)).shape, len(stack)
    (torch.Size([2, 5, 3, 4, 4]), 2)
    """

    keep: Tensor
    add: Tensor

    def __len__(self) -> int:
        return len(self.add)

    def apply(self, images: Tensor) -> Tensor:
        """Put every trigger on every image: (N, C, H, W) -> (P, N, C, H, W) in [0, 1]."""
        return (self.keep[:, None] * images[None] + self.add[:, None]).clamp(0, 1)

    def apply_random(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Put one random trigger of the stack on each image: (N, C, H, W) -> (N, C, H, W) in [0, 1]."""
        pick = torch.randint(len(self), (len(images),), generator=generator).to(self.add.device)
        return (self.keep[pick] * images + self.add[pick]).clamp(0, 1)

    @staticmethod
    def join(stacks: list[Recovered]) -> Recovered:
        """Return one stack of all."""
        return Recovered(torch.cat([s.keep for s in stacks]), torch.cat([s.add for s in stacks]))
