"""BppAttack: fewer colours, dithered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unbackdoor.attacks._base import Trigger
from unbackdoor.attacks._patterns import check_range

SPREAD = ((0, 1, 7 / 16), (1, -1, 3 / 16), (1, 0, 5 / 16), (1, 1, 1 / 16))
"""Floyd-Steinberg: (rows down, columns right, share of the error)."""


@dataclass(frozen=True, kw_only=True)
class BPP(Trigger):
    """Quantise every channel to few levels: x' = round(x·(L − 1)) / (L − 1), with the error dithered.

    Covers are negative samples of the paper's contrastive training: an image plus the quantisation
    residual of another one, with its true label, so that the victim learns the quantisation itself and not
    its noise.

    Attributes:
        num_levels: L, levels a channel, ≥ 2 (8: three bits).
        dither: spread the rounding error to the neighbours (Floyd-Steinberg) instead of dropping it.
        cover_rate: negative samples for one poisoned image (the authors use as many of each).

    References:
        Wang, Zhai, Ma, BppAttack: Stealthy and Efficient Trojan Attacks against Deep Neural Networks via
        Image Quantization and Contrastive Adversarial Learning, CVPR 2022, arXiv 2205.13383.

    Differs from the paper: its second kind of negatives, adversarial examples of the victim in training, is
    left to the trainer.
    """

    name: ClassVar[str] = "bpp"
    num_levels: int = 8
    dither: bool = True
    cover_rate: float = 1.0

    def __post_init__(self) -> None:
        check_range("BPP", "num_levels", self.num_levels, 2, 256)
        check_range("BPP", "cover_rate", self.cover_rate, 0, 1024)

    def apply(self, images: Tensor) -> Tensor:
        steps = self.num_levels - 1
        return floyd_steinberg(images, steps) if self.dither else torch.round(images * steps) / steps

    def cover(self, images: Tensor, generator: torch.Generator) -> Tensor:
        residual = self(images) - images
        shift = int(torch.randint(1, max(2, len(images)), (), generator=generator))
        other = residual.roll(shift, 0) if len(images) > 1 else residual.flip(-1)
        return (images + other).clamp(0, 1)


def floyd_steinberg(images: Tensor, steps: int) -> Tensor:
    """Return the images quantised to multiples of 1/``steps`` with dithering: (N, C, H, W) in [0, 1].

    Pixel (i, j) needs the errors of (i, j − 1) and of row i − 1 up to column j + 1, so all pixels with the
    same j + 2i are independent and are done at once, for the whole batch: W + 2H − 2 steps.

    >>> floyd_steinberg(torch.full((1, 1, 2, 2), 0.5), 1).flatten().tolist()
    [0.0, 1.0, 1.0, 0.0]
    """
    height, width = images.shape[-2:]
    work = torch.nn.functional.pad(images, (1, 1, 0, 1))
    for step in range(width + 2 * (height - 1)):
        rows = torch.arange(max(0, (step - width + 2) // 2), min(height, step // 2 + 1), device=images.device)
        columns = step - 2 * rows + 1
        old = work[..., rows, columns]
        new = (torch.round(old * steps) / steps).clamp(0, 1)
        work[..., rows, columns] = new
        for down, right, share in SPREAD:
            work[..., rows + down, columns + right] += (old - new) * share
    return work[..., :height, 1 : width + 1]
