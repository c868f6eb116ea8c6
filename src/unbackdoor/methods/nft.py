"""NFT: fine-tune masks on the BatchNorm weights only, on mixed-up clean images.

    min over m of  E[ L_mixup(f(x̃; m⊙θ)) ] + η_c/N · ‖1 − m‖₁,    μ_l ≤ m_l ≤ 1,    μ_l = a·e^(−b·l)

x̃ = λx + (1 − λ)x′ stands in for a trigger search: labels between two classes pull the network off the
shortcut of a backdoor. N is the number of images a class, l counts the masked layers from the input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from unbackdoor._augment import mixup
from unbackdoor._clean import CleanImages
from unbackdoor._masks import Masks, bake_, masked_call
from unbackdoor.methods._base import Method, Session
from unbackdoor.methods._channels import channel_masks
from unbackdoor.methods._training import Loss, crop_and_flip, fit


@dataclass(frozen=True, kw_only=True)
class NFT(Method):
    """Fine-tune one mask a channel under MixUp and an anchor at 1.

    Attributes:
        anchor: η_c, weight of ‖1 − m‖₁/N.
        floor_scale, floor_decay: a and b of the layers' floors μ_l = a·e^(−b·l).
        mixup: both parameters of the Beta distribution of λ.
        learning_rate, final_rate: SGD on the masks (momentum 0.95), cosine from the first to the second.
        augment: shift and mirror the images before mixing.
        num_steps: batches; the authors take 1,000 of 128 images.
        batch_size: images a batch.

    References:
        Karim, Al Arafat, Rakin, Guo, Rahnavard, *Augmented Neural Fine-Tuning for Efficient Backdoor
        Purification*, ECCV 2024, arXiv 2407.10052.

    Differs from the authors' code: it anneals once every 200 batches, here at every batch; it draws one λ a
    batch, here one an image; 400 batches of 64 images replace 1,000 of 128. Networks without normalisation
    are masked on their filters.
    """

    name: ClassVar[str] = "nft"
    anchor: float = 1e-3
    floor_scale: float = 0.8
    floor_decay: float = 0.5
    mixup: float = 1.0
    learning_rate: float = 0.05
    final_rate: float = 0.02
    augment: bool = True
    num_steps: int = 400
    batch_size: int = 64

    def run(self, model: nn.Module, clean: CleanImages, session: Session) -> dict[str, Any]:
        """Bake the tuned masks into the weights, in place; see ``Method.run``."""
        model.requires_grad_(False)
        masks = {name: mask.requires_grad_() for name, mask in channel_masks(model, clean.images).items()}
        optimizer = torch.optim.SGD(masks.values(), self.learning_rate, momentum=0.95)
        final = fit(
            model,
            clean,
            session,
            optimizer=optimizer,
            steps=self.num_steps,
            batch_size=self.batch_size,
            augment=crop_and_flip if self.augment else None,
            loss=self.objective(model, masks, clean, session),
            schedule=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.num_steps, self.final_rate),
            after_step=lambda: self.clip_(masks),
            phase="tune masks",
        )
        bake_(model, {name: mask.detach() for name, mask in masks.items()})
        values = torch.cat([mask.detach().flatten() for mask in masks.values()])
        return {
            "steps": self.num_steps,
            "loss": final,
            "mask_mean": values.mean().item(),
            "mask_min": values.min().item(),
        }

    def objective(self, model: nn.Module, masks: Masks, clean: CleanImages, session: Session) -> Loss:
        """Return the loss of a batch: MixUp cross-entropy plus the anchor."""
        weight = self.anchor * clean.num_classes / len(clean)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            mixed, partner, share = mixup(images, session.generator, self.mixup)
            logits = masked_call(model, masks, mixed)
            own, other = (
                functional.cross_entropy(logits, y, reduction="none") for y in (labels, labels[partner])
            )
            drift = sum((1 - mask).abs().sum() for mask in masks.values())
            return (share * own + (1 - share) * other).mean() + weight * drift

        return loss

    @torch.no_grad()
    def clip_(self, masks: Masks) -> None:
        """Clip the masks of layer l = 1, 2, … to [μ_l, 1], in place."""
        for depth, mask in enumerate(masks.values(), 1):
            mask.clamp_(self.floor_scale * math.exp(-self.floor_decay * depth), 1)
