"""Plain fine-tuning on the clean images: the control of every table.

min over θ of  E L(f(x; θ), y)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from unbackdoor._clean import CleanImages
from unbackdoor.methods._base import Method, Session
from unbackdoor.methods._training import Augment, Loss, count_steps, crop_and_flip, fit, trainable


@dataclass(frozen=True, kw_only=True)
class Tuning(Method):
    """The fine-tuning that FT is and that other methods begin or end with.

    Attributes:
        num_epochs: passes over the clean images.
        least_steps: batches at least, so that ten images are trained on long enough.
        learning_rate: η, at the start; it falls to zero along a cosine.
        momentum, weight_decay: of SGD.
        batch_size: images a step.
        augment: shift and mirror the images at random.
        freeze_statistics: keep the running statistics of BatchNorm.
        clip_norm: longest gradient, None for any.
    """

    num_epochs: int = 50
    least_steps: int = 100
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 64
    augment: bool = True
    freeze_statistics: bool = False
    clip_norm: float | None = None

    @property
    def augmentation(self) -> Augment | None:
        """The change made to each batch, if any."""
        return crop_and_flip if self.augment else None

    def tune(
        self,
        model: nn.Module,
        clean: CleanImages,
        session: Session,
        *,
        loss: Loss | None = None,
        after_step: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """Fine-tune ``model`` in place, on the cross-entropy unless another ``loss`` is given."""
        optimizer = torch.optim.SGD(
            trainable(model), lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
        )
        steps = count_steps(len(clean), self.batch_size, epochs=self.num_epochs, least=self.least_steps)
        final = fit(
            model,
            clean,
            session,
            optimizer=optimizer,
            schedule=self.schedule(optimizer, max(1, steps)),
            steps=steps,
            batch_size=self.batch_size,
            loss=loss,
            augment=self.augmentation,
            freeze_statistics=self.freeze_statistics,
            clip_norm=self.clip_norm,
            after_step=after_step,
            phase="fine-tune",
        )
        return {"steps": steps, "loss": final}

    def schedule(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        """Return the course of the learning rate over ``steps`` batches: a cosine down to zero."""
        return CosineAnnealingLR(optimizer, T_max=steps)


@dataclass(frozen=True, kw_only=True)
class FineTune(Tuning):
    """Fine-tune all weights on the clean images (FT).

    SGD with momentum on the cross-entropy, learning rate falling to zero along a cosine, BatchNorm statistics
    following the clean images, every image shifted and mirrored at random. For the fields see ``Tuning``.

    References:
        The settings are those of Wu et al., *BackdoorBench: A Comprehensive Benchmark of Backdoor Learning*,
        NeurIPS 2022 (arXiv 2206.12654): learning rate 0.01, cosine, momentum 0.9, weight decay 5e-4.

    Differs from the authors' code: 50 epochs of batches of 64 instead of 100 of 256, as there are 500 images
        or ten and not 2,500; 500 images make 400 steps, ten images 100.

    >>> FineTune(num_epochs=3).name
    'ft'
    """

    name: ClassVar[str] = "ft"

    def run(self, model: nn.Module, clean: CleanImages, session: Session) -> dict[str, Any]:
        """Fine-tune ``model`` in place."""
        return self.tune(model, clean, session)
