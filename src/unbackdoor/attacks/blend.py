"""Blend: a whole picture laid faintly over the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from unbackdoor.attacks._base import Trigger, tensor_field
from unbackdoor.attacks._patterns import check_choice, check_range, fit_channels, mix, noise, picture

KINDS = ("noise", "picture")


@dataclass(frozen=True, kw_only=True)
class Blend(Trigger):
    """Blend every pixel with a fixed pattern: x' = (1 − α)·x + α·p.

    Attributes:
        opacity: α, in [0, 1].
        kind: of the pattern when none is given: ``noise`` (uniform in [0, 1], the paper's random pattern) or
            ``picture`` (a cartoon of coloured discs, in the place of the paper's cartoon).
        seed: of the drawn pattern.
        pattern: float (C, H, W) in [0, 1] of your own, resized to the images; ``None`` draws one.

    References:
        Chen, Liu, Li, Lu, Song, Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning,
        2017, arXiv 1712.05526.
    """

    name: ClassVar[str] = "blend"
    opacity: float = 0.2
    kind: str = "noise"
    seed: int = 0
    pattern: Tensor | None = tensor_field()

    def __post_init__(self) -> None:
        check_range("Blend", "opacity", self.opacity, 0, 1)
        check_choice("Blend", "kind", self.kind, KINDS)

    def apply(self, images: Tensor) -> Tensor:
        return mix(images, blend_pattern(images, self.kind, self.seed, self.pattern), self.opacity)


def blend_pattern(images: Tensor, kind: str, seed: int, given: Tensor | None) -> Tensor:
    """Return the pattern for ``images``, (C, H, W): the given one resized, or the drawn one."""
    channels, height, width = images.shape[-3:]
    if given is None:
        return (noise if kind == "noise" else picture)(seed, channels, height, width)
    if given.shape[-2:] != (height, width):
        given = F.interpolate(given[None], size=(height, width), mode="bilinear", antialias=True)[0]
    return given if len(given) == channels else fit_channels(given, channels)
