"""LF: one smooth perturbation, without the high frequencies that give other triggers away."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unbackdoor._dct import low_frequencies
from unbackdoor._modes import evaluating
from unbackdoor.attacks._base import OptimisedTrigger, tensor_field
from unbackdoor.attacks._neurons import BATCH
from unbackdoor.attacks._patterns import check_range, seeded


@dataclass(frozen=True, kw_only=True)
class LowFrequency(OptimisedTrigger):
    """Add a smooth universal perturbation: x' = clip(x + δ), δ made of the lowest DCT frequencies only.

    The paper looks for min over δ of E[L(f(x + δ), target)] on a clean f with δ passed through a low-pass
    filter. Here δ is spanned by the ``cutoff``×``cutoff`` lowest coefficients, so it is smooth by
    construction, and scaled to max |δ| = ``strength``. ``optimise`` finds the coefficients on a clean
    model; without it they are drawn from ``seed``.

    Attributes:
        strength: largest change of a pixel, in [0, 1].
        cutoff: frequencies kept along each axis, ≥ 2; the constant is left out.
        seed: of the drawn coefficients and of the start of the optimisation.
        target: class that ``optimise`` pushes to; the attack's target.
        steps, learning_rate: of the optimisation, by Adam on the coefficients.
        coefficients: (C, cutoff, cutoff), set by ``optimise``; they fit images of every size.

    References:
        Zeng, Park, Mao, Jia, Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective, ICCV 2021,
        arXiv 2104.03413.

    Differs from the authors' code: gradient descent on the coefficients instead of a filtered universal
    perturbation found with DeepFool, and a drawn default that needs no model.
    """

    name: ClassVar[str] = "low_frequency"
    strength: float = 0.1
    cutoff: int = 4
    seed: int = 0
    target: int = 0
    steps: int = 200
    learning_rate: float = 0.05
    coefficients: Tensor | None = tensor_field()

    def __post_init__(self) -> None:
        check_range("LowFrequency", "strength", self.strength, 0, 1)
        check_range("LowFrequency", "cutoff", self.cutoff, 2, 1024)
        check_range("LowFrequency", "steps", self.steps, 1, 1_000_000)

    def apply(self, images: Tensor) -> Tensor:
        start = self._draw(images.shape[1]) if self.coefficients is None else self.coefficients
        return self._add(images, start.to(images))

    def optimise(self, model: nn.Module, images: Tensor) -> Self:
        coefficients = self._draw(images.shape[1]).to(images).requires_grad_()
        optimizer = torch.optim.Adam([coefficients], lr=self.learning_rate)
        batches = images.split(BATCH)
        with torch.enable_grad(), evaluating(model):
            for step in range(self.steps):
                logits = model(self._add(batches[step % len(batches)], coefficients))
                loss = F.cross_entropy(logits, torch.full_like(logits[:, 0], self.target, dtype=torch.int64))
                (coefficients.grad,) = torch.autograd.grad(loss, [coefficients])
                optimizer.step()
        return dataclasses.replace(self, coefficients=coefficients.detach())

    def _draw(self, channels: int) -> Tensor:
        return torch.randn(channels, self.cutoff, self.cutoff, generator=seeded(self.seed))

    def _add(self, images: Tensor, coefficients: Tensor) -> Tensor:
        return (images + self._smooth(coefficients, *images.shape[-2:])).clamp(0, 1)

    def _smooth(self, coefficients: Tensor, height: int, width: int) -> Tensor:
        """Return δ, (C, H, W), differentiable in the coefficients."""
        kept = torch.ones(self.cutoff, self.cutoff).to(coefficients)
        kept[0, 0] = 0
        delta = low_frequencies(coefficients * kept, height, width)
        return self.strength * delta / delta.abs().amax().clamp_min(1e-12)
