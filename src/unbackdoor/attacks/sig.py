"""SIG: a faint horizontal sinusoid over the whole image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unbackdoor.attacks._base import Trigger
from unbackdoor.attacks._patterns import check_range


@dataclass(frozen=True, kw_only=True)
class SIG(Trigger):
    """Add vertical stripes: x'(i, j) = x(i, j) + Δ·sin(2π·j·f / W), clipped to [0, 1].

    The paper poisons images of the target class only and keeps their labels: that is the clean-label option
    of the poisoning.

    Attributes:
        amplitude: Δ, in [0, 1] (the paper's 20 of 255; 40 of 255 is common where the stripes must survive
            augmentation).
        frequency: f, waves over the width of the image.

    References:
        Barni, Kallas, Tondi, A New Backdoor Attack in CNNs by Training Set Corruption without Label
        Poisoning, ICIP 2019, arXiv 1902.11237.
    """

    name: ClassVar[str] = "sig"
    amplitude: float = 20 / 255
    frequency: float = 6.0

    def __post_init__(self) -> None:
        check_range("SIG", "amplitude", self.amplitude, 0, 1)

    def apply(self, images: Tensor) -> Tensor:
        columns = torch.arange(images.shape[-1], dtype=torch.float64) / images.shape[-1]
        wave = self.amplitude * torch.sin(2 * math.pi * self.frequency * columns)
        return (images + wave.to(images)).clamp(0, 1)
