"""The adversarial perturbation of clean-label poisoning, as an option of the poisoning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from unbackdoor.attacks.clean_label import perturb_adversarially


@dataclass(frozen=True, kw_only=True)
class AdversarialPerturbation:
    """Move images against a surrogate before the trigger is applied (see ``perturb_adversarially``).

    Attributes:
        surrogate: a clean classifier of the same data; not changed.
        eps: radius of the ball; ``norm``: ``linf`` or ``l2``; ``steps``: of the ascent.
    """

    surrogate: nn.Module = field(repr=False, compare=False)
    eps: float = 16 / 255
    norm: str = "linf"
    steps: int = 100

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the moved images, (N, C, H, W) in [0, 1], on the device that they came from."""
        device = next(self.surrogate.parameters()).device
        moved = perturb_adversarially(
            self.surrogate,
            images.to(device),
            labels.to(device),
            eps=self.eps,
            norm=self.norm,
            steps=self.steps,
        )
        return moved.to(images.device)

    def fields(self) -> dict[str, Any]:
        """Return the parameters as plain values, for records."""
        return {"eps": self.eps, "norm": self.norm, "steps": self.steps}
