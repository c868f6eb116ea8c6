"""Neural attention distillation: a fine-tuned copy teaches the network where to look.

A(F) = Σ_c |F_c|^p                          attention map of a feature map F (C, H, W)
L_NAD = ‖A(F_T)/‖A(F_T)‖₂ − A(F_S)/‖A(F_S)‖₂‖₂²    teacher T fine-tuned and fixed, student S
min over θ_S of  E[ L(f_S(x), y) + Σ over stages l of β_l L_NAD(l) ]
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from unbackdoor._clean import CleanImages
from unbackdoor.methods._activations import captured, stage_ends
from unbackdoor.methods._base import Session
from unbackdoor.methods._training import Loss
from unbackdoor.methods.fine_tune import FineTune, Tuning


@dataclass(frozen=True, kw_only=True)
class NAD(Tuning):
    """Distil the attention of a fine-tuned teacher into the network (NAD).

    The teacher is a fine-tuned copy. Teacher and student are compared at the end of every stage, that is
    where the spatial size changes, found by one forward pass on any network; without an image-like output
    inside the network the cross-entropy alone is left.

    Attributes:
        attention_weight: β, the same for all stages.
        power: p of the attention map.
        num_teacher_epochs: of the teacher's fine-tuning; else it is that of ``FineTune``.
        num_epochs and the others: of the student's, see ``Tuning``; the learning rate falls to a tenth after
            a tenth of the steps.

    References:
        Li, Lyu, Koren, Lyu, Li, Ma, *Neural Attention Distillation: Erasing Backdoor Triggers from Deep
        Neural Networks*, ICLR 2021 (arXiv 2101.05930).

    Differs from the authors' code: it compares the three groups of a WideResNet by name, here the stages of
        any network. It weighs the groups by hand for each network and attack (500, 1,000 and 1,000 in most
        comparisons since, 0, 0 and 5,000 in its own defaults); here all stages weigh the same. It cuts a hole
        into the images as well (Cutout); here they are only shifted and mirrored. Its 20 epochs of 2,500
        images are 30 epochs here, as there are fewer images. Gradients are clipped, at a length that only
        a diverging run reaches: with a few images and learning rate 0.1 some do.

    >>> NAD().power
    2.0
    """

    name: ClassVar[str] = "nad"

    attention_weight: float = 1000.0
    power: float = 2.0
    num_teacher_epochs: int = 10
    num_epochs: int = 30
    learning_rate: float = 0.1
    weight_decay: float = 1e-4
    clip_norm: float | None = 100.0

    def run(self, model: nn.Module, clean: CleanImages, session: Session) -> dict[str, Any]:
        """Distil into ``model`` in place."""
        stages = stage_ends(model, clean.images[:1])
        teacher = copy.deepcopy(model)
        settings = FineTune(
            num_epochs=self.num_teacher_epochs,
            least_steps=self.least_steps,
            batch_size=self.batch_size,
            augment=self.augment,
        )
        settings.tune(teacher, clean, session)
        teacher.eval().requires_grad_(False)
        tuned = self.tune(model, clean, session, loss=self.distillation(model, teacher, stages))
        return {"stages": stages, **tuned}

    def schedule(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        """Return the course of the learning rate: a tenth of it after a tenth of the steps."""
        return LambdaLR(optimizer, lambda step: 1.0 if step < steps / 10 else 0.1)

    def distillation(self, student: nn.Module, teacher: nn.Module, stages: list[str]) -> Loss:
        """Return the loss of the student: cross-entropy plus β times the attention distances."""

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad(), captured(teacher, stages) as aims:
                teacher(images)
            with captured(student, stages) as seen:
                value = functional.cross_entropy(student(images), labels)
            gaps = [
                functional.mse_loss(attention(seen[stage], self.power), attention(aims[stage], self.power))
                for stage in stages
            ]
            return value + self.attention_weight * sum(gaps)

        return loss


def attention(features: Tensor, power: float) -> Tensor:
    """Return the attention map of each image, (N, C, H, W) -> (N, H, W), of Euclidean norm one.

    >>> attention(torch.tensor([[[[3.0, 0.0]], [[0.0, 2.0]]]]), power=1.0)
    tensor([[[0.8321, 0.5547]]])
    """
    sums = features.abs().pow(power).sum(dim=1)
    return sums / (sums.flatten(1).norm(dim=1)[:, None, None] + 1e-6)
