"""L0-inv and L2-inv: triggers of few pixels, or of small norm."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from unbackdoor.attacks._base import tensor_field
from unbackdoor.attacks._neurons import NeuronTrigger
from unbackdoor.attacks._patterns import check_range, check_same_size, seeded


@dataclass(frozen=True, kw_only=True)
class L0Inv(NeuronTrigger):
    """Set a few pixels: ‖x' − x‖₀ ≤ ``num_pixels`` pixels.

    Without ``optimise`` the positions and the colours (each channel 0 or 1) are drawn from ``seed``. With it
    they are the paper's: a perturbation of all pixels is optimised on neurons of a clean model, the pixels
    where it is largest are kept, and their colours are optimised again.

    Attributes:
        num_pixels: ≥ 1.
        seed: of the drawn pixels.
        pattern, positions: colours (C, H, W) and places (1, H, W) in {0, 1}, set by ``optimise``.

    References:
        Li, Xue, Zhao, Zhu, Zhang, Invisible Backdoor Attacks on Deep Neural Networks via Steganography and
        Regularization, TDSC 2020, arXiv 1909.02742.

    Differs from the paper: one cut to ``num_pixels`` instead of an iterative one, and a drawn default.
    """

    name: ClassVar[str] = "l0_inv"
    num_pixels: int = 8
    seed: int = 0
    pattern: Tensor | None = tensor_field()
    positions: Tensor | None = tensor_field()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("L0Inv", "num_pixels", self.num_pixels, 1, 1_000_000)

    def apply(self, images: Tensor) -> Tensor:
        if self.pattern is None or self.positions is None:
            pattern, positions = self._draw(*images.shape[-3:])
        else:
            pattern, positions = self.pattern, self.positions
            check_same_size("L0Inv", pattern, images)
        return torch.where(positions.to(images) > 0, pattern.to(images), images)

    def optimise(self, model: nn.Module, images: Tensor) -> Self:
        start = torch.zeros_like(images[0])
        everywhere = self.excite(model, images, start, _add, lambda delta: delta.clamp(-1, 1))
        positions = _largest(everywhere.abs().sum(0), self.num_pixels)

        def paint(batch: Tensor, pattern: Tensor) -> Tensor:
            return batch + (pattern - batch) * positions

        pattern = self.excite(model, images, start + 0.5, paint, lambda pattern: pattern.clamp(0, 1))
        return dataclasses.replace(self, pattern=pattern * positions, positions=positions)

    def _draw(self, channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        generator = seeded(self.seed)
        positions = _largest(torch.rand(height, width, generator=generator), self.num_pixels)
        return torch.randint(0, 2, (channels, height, width), generator=generator).float(), positions


@dataclass(frozen=True, kw_only=True)
class L2Inv(NeuronTrigger):
    """Add a pattern of small norm: x' = clip(x + δ), root mean square of δ at most ``strength``.

    Without ``optimise`` δ is Gaussian noise drawn from ``seed``; with it δ is the paper's: optimised on
    neurons of a clean model and projected onto the ball ‖δ‖₂ ≤ strength·√(C·H·W) after every step.

    Attributes:
        strength: root mean square of δ, in [0, 1] (10 of 255: ‖δ‖₂ = 2.2 on 3×32×32).
        seed: of the drawn pattern and of the start of the optimisation.
        pattern: δ, (C, H, W), set by ``optimise``.

    References:
        Li, Xue, Zhao, Zhu, Zhang, Invisible Backdoor Attacks on Deep Neural Networks via Steganography and
        Regularization, TDSC 2020, arXiv 1909.02742.

    Differs from the paper: the norm is a bound and not a penalty, and there is a drawn default.
    """

    name: ClassVar[str] = "l2_inv"
    strength: float = 10 / 255
    seed: int = 0
    pattern: Tensor | None = tensor_field()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("L2Inv", "strength", self.strength, 0, 1)

    def apply(self, images: Tensor) -> Tensor:
        if self.pattern is not None:
            check_same_size("L2Inv", self.pattern, images)
            return (images + self.pattern.to(images)).clamp(0, 1)
        return (images + self._draw(*images.shape[-3:]).to(images)).clamp(0, 1)

    def optimise(self, model: nn.Module, images: Tensor) -> Self:
        start = self._draw(*images.shape[-3:]).to(images)
        return dataclasses.replace(self, pattern=self.excite(model, images, start, _add, self._within))

    def _draw(self, channels: int, height: int, width: int) -> Tensor:
        return self._within(torch.randn(channels, height, width, generator=seeded(self.seed)))

    def _within(self, pattern: Tensor) -> Tensor:
        size = pattern.square().mean().sqrt().clamp_min(1e-12)
        return pattern * (self.strength / size).clamp_max(1)


def _add(images: Tensor, pattern: Tensor) -> Tensor:
    return (images + pattern).clamp(0, 1)


def _largest(scores: Tensor, count: int) -> Tensor:
    """Return 1 at the ``count`` largest of (H, W) and 0 elsewhere, (1, H, W)."""
    chosen = scores.flatten().topk(min(count, scores.numel())).indices
    return torch.zeros_like(scores).flatten().index_fill(0, chosen, 1).reshape(1, *scores.shape)
