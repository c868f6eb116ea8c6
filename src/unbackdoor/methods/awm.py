"""Adversarial Weight Masking (AWM): shrink the weights that a recovered universal trigger needs.

    min over m ∈ [0,1] of  E[ α·L(f(x; m⊙θ), y) + β·max over ‖Δ‖₁≤τ of L(f(x+Δ; m⊙θ), y) ] + γ·‖m‖₁

    m ← 1
    for epoch in 1…E:
        Δ ← 0
        repeat T times, on a batch (x, y):   Δ ← Δ + η₁ ∇_Δ L(f(x+Δ; m⊙θ), y)
        Δ ← Δ · min(1, τ / ‖Δ‖₁)
        repeat T times, on a batch (x, y):   m ← clip(m − η₂ ∇_m [α·L(f(x), y) + β·L(f(x+Δ), y) + γ‖m‖₁])
    θ ← m⊙θ

The variant ``official`` does what the authors' published code does where that differs from Algorithm 1:

    ========================  =====================  ==================================================
    hole                      paper                  official
    ========================  =====================  ==================================================
    label in the inner loop   y                      the masked model's own answer on the clean batch
    mask update               plain descent          Adam, state kept across epochs, η₂ · 0.9 an epoch
    x + Δ in the outer loop   as it is               clipped to [0, 1]
    masked tensors            conv and linear        conv (linear where the model has no conv)
    ========================  =====================  ==================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from unbackdoor._augment import random_flip, random_resized_crop
from unbackdoor._clean import CleanImages
from unbackdoor._errors import require, unknown_name
from unbackdoor._masks import (
    Masks,
    bake_,
    clip_,
    is_conv,
    is_conv_or_linear,
    maskable_weights,
    masked_call,
    ones_for,
)
from unbackdoor._minmax import alternate, gradient_ascent, maximise, minimise, rescale_to_budget
from unbackdoor.methods._base import Method, Session

FEW_IMAGES = 43
"""The authors augment ten images of CIFAR-10 and leave the 43 of GTSRB alone."""
COPIES = 9
MASK_STEP = {"paper": 0.1, "official": 1e-2}
MASK_STEP_DECAY = {"paper": 1.0, "official": 0.9}


@dataclass(frozen=True, kw_only=True)
class AWM(Method):
    """Mask weights softly against a universal trigger that is searched for at the same time.

    The defaults are the authors' one-shot setting. Theirs for 500 images is
    ``AWM(trigger_budget=1000, batch_size=128)``; they report α = 0.9 and 0.99. All layers stay in eval mode.

    Args:
        variant: ``official``, what the authors' code does, or ``paper``, Algorithm 1 to the letter.
        clean_weight: α ∈ [0, 1], weight of the loss on clean images.
        trigger_weight: β ≥ 0, weight of the loss on triggered images; ``None`` is 1 − α.
        mask_penalty: γ ≥ 0, weight of ‖m‖₁.
        trigger_budget: τ > 0, bound on ‖Δ‖₁ over all pixels and channels.
        trigger_step: η₁ > 0, size of an ascent step on Δ.
        mask_step: η₂ > 0, Adam's learning rate (official, ``None`` is 0.01) or the size of a descent step
            (paper, ``None`` is 0.1: the paper gives no figure, and this is the smallest power of ten with
            which the outer loss, on clean images alone, falls over the epochs, not at every one).
        mask_step_decay: factor on η₂ after every epoch, in (0, 1]; ``None`` is 0.9 (official) or 1 (paper).
        epochs: E ≥ 0.
        steps: T ≥ 0, steps of each phase an epoch; ``None`` is 5·⌊n/b⌋ for n images with their copies, and 5
            when n < b.
        batch_size: b ≥ 1, images a batch, drawn with replacement.
        augmented_copies: fixed copies of every image (random resized crop, then flip) beside it;
            ``None`` is nine for fewer than 43 images and none from there on, as in the authors' two settings.

    Raises:
        UnbackdoorError: a hyper-parameter outside its range.

    >>> AWM(clean_weight=0.99).fields()["clean_weight"]
    0.99

    References:
        Shuwen Chai and Jinghui Chen, One-shot Neural Backdoor Erasing via Adversarial Weight Masking,
        NeurIPS 2022, https://arxiv.org/abs/2207.04497

    Differs from the authors' code: clean images are the caller's and never of a test set; any input size and
    any network without re-writing it; networks with linear layers only are masked there; fewer than b images
    still give five steps, where the authors' ⌊n/b⌋ = 0 would do nothing; crops are taken at sub-pixel
    positions; the result loads into the original network. The optional ``shrink`` stage, off by default
    there, is left out.
    """

    name: ClassVar[str] = "awm"

    variant: Literal["paper", "official"] = "official"
    clean_weight: float = 0.9
    trigger_weight: float | None = None
    mask_penalty: float = 1e-8
    trigger_budget: float = 100.0
    trigger_step: float = 10.0
    mask_step: float | None = None
    mask_step_decay: float | None = None
    epochs: int = 20
    steps: int | None = None
    batch_size: int = 32
    augmented_copies: int | None = None

    def __post_init__(self) -> None:
        if self.variant not in MASK_STEP:
            raise unknown_name("variant", str(self.variant), list(MASK_STEP))
        known = {name: value for name, value in self.fields().items() if value is not None}
        require(0 <= self.clean_weight <= 1, "clean_weight must lie in [0, 1]", self.clean_weight, "0.9")
        for name in ("trigger_weight", "mask_penalty", "epochs", "steps", "augmented_copies"):
            require(known.get(name, 0) >= 0, f"{name} must not be negative", known.get(name), "0 or more")
        for name in ("trigger_budget", "trigger_step", "mask_step", "mask_step_decay", "batch_size"):
            require(known.get(name, 1) > 0, f"{name} must be positive", known.get(name), "more than 0")

    def run(self, model: nn.Module, clean: CleanImages, session: Session) -> dict[str, Any]:
        clean = self.augment(clean, session.generator)
        masks, trigger = self.solve(model, clean, session)
        bake_(model, masks)
        return {
            "images_with_copies": len(clean),
            "steps": self.num_steps(len(clean)),
            "trigger_size": trigger.abs().sum().item(),
            "mask_mean": {name: mask.mean().item() for name, mask in masks.items()},
        }

    def augment(self, clean: CleanImages, generator: torch.Generator) -> CleanImages:
        """Return the clean images followed by their fixed augmented copies."""
        copies = self.augmented_copies
        if copies is None:
            copies = COPIES if len(clean) < FEW_IMAGES else 0
        if copies == 0:
            return clean
        cropped = random_resized_crop(clean.images.repeat(copies, 1, 1, 1), generator)
        images = torch.cat([clean.images, random_flip(cropped, generator)])
        return replace(clean, images=images, labels=clean.labels.repeat(copies + 1))

    def num_steps(self, num_images: int) -> int:
        """Return T for a number of images (copies counted)."""
        return 5 * max(1, num_images // self.batch_size) if self.steps is None else self.steps

    def solve(self, model: nn.Module, clean: CleanImages, session: Session) -> tuple[Masks, Tensor]:
        """Return the masks m by weight name and the last trigger Δ (1, C, H, W); weights stay as they are."""
        model.eval().requires_grad_(False)
        official = self.variant == "official"
        has_conv = any(map(is_conv, model.modules()))
        masks = ones_for(maskable_weights(model, is_conv if official and has_conv else is_conv_or_linear))
        optimizer, scheduler = self._optimizer(masks)

        def defend(adversary: tuple[Tensor, ...]) -> float:
            loss = self._outer_loss(model, masks, adversary[0])
            draw = self._draw(clean, clean.labels, session)
            steps = self.num_steps(len(clean))
            mean = minimise(optimizer, loss, draw, steps=steps, constrain=lambda: clip_(masks))
            scheduler.step()
            return mean

        last = alternate(
            self.epochs,
            attack=lambda: (self._trigger(model, masks, clean, session),),
            defend=defend,
            tell=lambda epoch, total, **values: session.tell(self.name, epoch, total, **values),
        )
        trigger = last[0] if last else torch.zeros_like(clean.images[:1])
        return {name: mask.detach() for name, mask in masks.items()}, trigger

    def _trigger(self, model: nn.Module, masks: Masks, clean: CleanImages, session: Session) -> Tensor:
        """Inner loop: one Δ for all images against the masks as they are."""
        # The masks stand still here: m⊙θ is multiplied once, and each image is answered once.
        weights = {name: model.get_parameter(name) * mask.detach() for name, mask in masks.items()}
        with torch.no_grad():
            own = functional_call(model, weights, (clean.images,)).argmax(1)

        def loss(adversary: tuple[Tensor, ...], images: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(model, weights, (images + adversary[0],)), labels)

        found = maximise(
            (torch.zeros_like(clean.images[:1]),),
            loss,
            self._draw(clean, own if self.variant == "official" else clean.labels, session),
            steps=self.num_steps(len(clean)),
            ascend=gradient_ascent(self.trigger_step),
        )
        return rescale_to_budget(found[0], self.trigger_budget)

    def _outer_loss(self, model: nn.Module, masks: Masks, trigger: Tensor) -> Callable[..., Tensor]:
        alpha = self.clean_weight
        beta = 1 - alpha if self.trigger_weight is None else self.trigger_weight

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            triggered = images + trigger
            triggered = triggered.clamp(0, 1) if self.variant == "official" else triggered
            logits = masked_call(model, masks, torch.cat([images, triggered])).chunk(2)
            penalty = sum(mask.abs().sum() for mask in masks.values())
            terms = [F.cross_entropy(part, labels) for part in logits]
            return alpha * terms[0] + beta * terms[1] + self.mask_penalty * penalty

        return loss

    def _optimizer(self, masks: Masks) -> tuple[Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        step = self.mask_step or MASK_STEP[self.variant]
        values = [mask.requires_grad_() for mask in masks.values()]
        official = self.variant == "official"
        optimizer = torch.optim.Adam(values, lr=step) if official else torch.optim.SGD(values, lr=step)
        decay = self.mask_step_decay or MASK_STEP_DECAY[self.variant]
        return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)

    def _draw(
        self, clean: CleanImages, labels: Tensor, session: Session
    ) -> Callable[[], tuple[Tensor, Tensor]]:
        known = replace(clean, labels=labels)
        return lambda: known.batch(self.batch_size, session.generator)
