"""Plain fine-tuning on the clean images: the control of every table.

min over θ of  E L(f(x; θ), y)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from unbackdoor._clean import CleanImages
from unbackdoor.methods._base import Method, Session
from unbackdoor.methods._training import Loss, count_steps, crop_and_flip, fit, trainable


@dataclass(frozen=True, kw_only=True)
class FineTune(Method):
    """Fine-tune all weights on the clean images (FT).

    SGD with momentum on the cross-entropy, learning rate falling to zero along a cosine, BatchNorm statistics
    following the clean images, every image shifted and mirrored at random.

    Attributes:
        num_epochs: passes over the clean images.
        learning_rate: η, at the start.
        momentum, weight_decay: of SGD.
        batch_size: images a step.
        augment: shift and mirror the images.
        freeze_statistics: keep the running statistics of BatchNorm.

    References:
        The settings are those of Wu et al., *BackdoorBench*, NeurIPS 2022 (arXiv 2206.12654), for its 5 % of
        clean data: 100 epochs, learning rate 0.01, cosine, momentum 0.9, weight decay 5e-4, batch 256. The
        batch here is 128, so that 500 images give 400 steps; ten images give 100.

    >>> FineTune(num_epochs=3).name
    'ft'
    """

    name: ClassVar[str] = "ft"

    num_epochs: int = 100
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    augment: bool = True
    freeze_statistics: bool = False

    def run(self, model: nn.Module, clean: CleanImages, session: Session) -> dict[str, Any]:
        """Fine-tune ``model`` in place."""
        return tune(self, model, clean, session)


def tune(
    settings: FineTune, model: nn.Module, clean: CleanImages, session: Session, loss: Loss | None = None
) -> dict[str, Any]:
    """Fine-tune ``model`` in place as ``settings`` say; other methods use it as their last or first part."""
    optimizer = torch.optim.SGD(
        trainable(model),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    steps = count_steps(len(clean), settings.batch_size, epochs=settings.num_epochs)
    final = fit(
        model,
        clean,
        session,
        optimizer=optimizer,
        schedule=CosineAnnealingLR(optimizer, T_max=steps),
        steps=steps,
        batch_size=settings.batch_size,
        loss=loss,
        augment=crop_and_flip if settings.augment else None,
        freeze_statistics=settings.freeze_statistics,
        phase="fine-tune",
    )
    return {"steps": steps, "loss": final}
