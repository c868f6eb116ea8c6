"""FT-SAM: fine-tune with adaptive sharpness-aware minimisation.

    ε = ρ · T_w² ∇L(w) / ‖T_w ∇L(w)‖₂,   T_w = |w|          the worst step of relative length ρ
    w ← w − η ∇L(w + ε)

Backdoor neurons have large weights, and a step in proportion to the weights moves them furthest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR

from unbackdoor._clean import CleanImages
from unbackdoor.methods._base import Method, Session
from unbackdoor.methods._channels import kept_statistics
from unbackdoor.methods._training import count_steps, crop_and_flip, fit, trainable


@dataclass(frozen=True, kw_only=True)
class FTSAM(Method):
    """Fine-tune towards weights whose whole neighbourhood fits the clean images.

    Attributes:
        radius: ρ; the paper takes 2 on CIFAR-10 and 8 on Tiny-ImageNet and GTSRB.
        num_epochs: passes over the images; each step costs two gradients.
        least_steps: batches at least, for when an epoch is one batch.
        learning_rate: η, falling to 0 along a cosine.
        momentum, weight_decay: of the SGD.
        label_smoothing: share of the label spread over all classes, in [0, 1).
        batch_size: images a batch.
        augment: shift and mirror the images.

    References:
        Zhu, Wei, Shen, Fan, Wu, *Enhancing Fine-Tuning based Backdoor Defense with Sharpness-Aware
        Minimization*, ICCV 2023, arXiv 2304.11823. Adaptive SAM: Kwon, Kim, Park, Choi, ICML 2021,
        arXiv 2102.11600.

    Differs from the authors' code: 30 epochs of batches of 64 (240 steps on 500 images) in place of 100 of
    256 on 5 % of the data (1,000 steps); everything else is theirs, also the second gradient with the
    BatchNorm statistics left alone.
    """

    name: ClassVar[str] = "ft_sam"
    radius: float = 2.0
    num_epochs: int = 30
    least_steps: int = 100
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    batch_size: int = 64
    augment: bool = True

    def run(self, model: nn.Module, clean: CleanImages, session: Session) -> dict[str, Any]:
        """Fine-tune in place; see ``Method.run``."""
        optimizer = AdaptiveSAM(
            model, self.radius, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
        )
        steps = count_steps(len(clean), self.batch_size, epochs=self.num_epochs, least=self.least_steps)
        final = fit(
            model,
            clean,
            session,
            optimizer=optimizer,
            schedule=CosineAnnealingLR(optimizer, T_max=max(1, steps)),
            steps=steps,
            batch_size=self.batch_size,
            loss=lambda images, labels: functional.cross_entropy(
                model(images), labels, label_smoothing=self.label_smoothing
            ),
            augment=crop_and_flip if self.augment else None,
            phase="fine-tune",
        )
        return {"steps": steps, "loss": final}


class AdaptiveSAM(torch.optim.SGD):
    """SGD that takes its gradient at the worst point nearby; ``step`` needs the closure, twice.

    Args:
        model: all of its floating-point parameters are tuned.
        radius: ρ ≥ 0; 0 is plain SGD.
        settings: of ``torch.optim.SGD``.
    """

    def __init__(self, model: nn.Module, radius: float, **settings: float):
        super().__init__(trainable(model), **settings)
        self.model, self.radius = model, radius

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """Return the loss before the step."""
        value = closure()
        steps = self._climb()
        with kept_statistics(self.model):
            closure()
        with torch.no_grad():
            for parameter, step in steps:
                parameter.sub_(step)
        super().step()
        return value

    @torch.no_grad()
    def _climb(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Add ε to the weights and return it, for the way back."""
        moved = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.stack([(p * p.grad).norm() for p in moved]).norm() + 1e-12
        steps = [(p, self.radius / norm * p.square() * p.grad) for p in moved]
        for parameter, step in steps:
            parameter.add_(step)
        return steps
