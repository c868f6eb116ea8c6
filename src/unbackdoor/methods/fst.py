"""FST: start the head anew and push it away from the old one while all weights are tuned.

    min over φ, w of  E L(w·φ(x), y) + α ⟨w, w_old⟩    with ‖w‖₂ = ‖w_old‖₂

Features that the compromised head relied on are of no use to the new one, so they shift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR

from unbackdoor._clean import CleanImages
from unbackdoor.methods._base import Method, Session
from unbackdoor.methods._channels import trace_layers
from unbackdoor.methods._training import Loss, count_steps, crop_and_flip, fit, trainable


@dataclass(frozen=True, kw_only=True)
class FST(Method):
    """Shift the features by tuning against a new head (feature shift tuning).

    Attributes:
        shift: α, weight of the inner product with the old head; the paper takes 0.2 on CIFAR-10 and 0.1
            elsewhere.
        num_epochs: passes over the images.
        least_steps: batches at least, for when an epoch is one batch.
        learning_rate, momentum: of SGD, the rate falling to 0 along a cosine.
        batch_size: images a batch.
        augment: shift and mirror the images.

    References:
        Min, Qin, Shen, Cheng, *Towards Stable Backdoor Purification through Feature Shift Tuning*,
        NeurIPS 2023, arXiv 2310.01875.

    Differs from the authors' code: 10 epochs of 2 % of the data in batches of 128 are 80 steps there; 500
    images take 240 here, since a head of the old one's size turns slowly where that is large. The head is
    the last layer that runs, not one named ``linear``. α means what it does for a head of the size of a fresh
    one, as those of the paper's networks are: where the old head is larger, the inner product is divided by
    the ratio of their squared norms. Without that it drowns the cross-entropy.
    """

    name: ClassVar[str] = "fst"
    shift: float = 0.2
    num_epochs: int = 30
    least_steps: int = 80
    learning_rate: float = 0.01
    momentum: float = 0.9
    batch_size: int = 64
    augment: bool = True

    def run(self, model: nn.Module, clean: CleanImages, session: Session) -> dict[str, Any]:
        """Tune in place; see ``Method.run``."""
        head = trace_layers(model, clean.images)[-1].module
        old = head.weight.detach().clone()
        restart_(head, session.generator)
        scale = min(1.0, (head.weight.norm() / old.norm().clamp_min(1e-12)).item() ** 2)
        optimizer = torch.optim.SGD(trainable(model), lr=self.learning_rate, momentum=self.momentum)
        steps = count_steps(len(clean), self.batch_size, epochs=self.num_epochs, least=self.least_steps)
        final = fit(
            model,
            clean,
            session,
            optimizer=optimizer,
            schedule=CosineAnnealingLR(optimizer, T_max=max(1, steps)),
            steps=steps,
            batch_size=self.batch_size,
            loss=self.objective(model, head, scale * old),
            augment=crop_and_flip if self.augment else None,
            after_step=lambda: rescale_(head.weight, old.norm()),
            phase="shift features",
        )
        cosine = functional.cosine_similarity(head.weight.detach().flatten(), old.flatten(), dim=0)
        return {"steps": steps, "loss": final, "head_cosine": cosine.item()}

    def objective(self, model: nn.Module, head: nn.Module, old: Tensor) -> Loss:
        """Return L(w·φ(x), y) + α ⟨w, old⟩ as a function of a batch."""

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            return functional.cross_entropy(model(images), labels) + self.shift * (head.weight * old).sum()

        return loss


@torch.no_grad()
def restart_(head: nn.Module, generator: torch.Generator) -> None:
    """Draw weight and bias of ``head`` anew, uniform in ±1/√(inputs), in place."""
    bound = 1 / math.sqrt(head.weight[0].numel())
    for tensor in (head.weight, head.bias):
        if tensor is not None:
            tensor.copy_(torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator))


@torch.no_grad()
def rescale_(weight: Tensor, norm: Tensor) -> None:
    """Give ``weight`` the norm ‖w_old‖₂, in place."""
    weight.mul_(norm / weight.norm().clamp_min(1e-12))
