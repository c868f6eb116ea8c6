"""RNP: unlearn clean images neuron by neuron, recover them filter by filter, prune what does not come back.

θ̂ = max over θ of L(f(x; θ), y)                  until the clean accuracy falls to CA_min
m = min over m ∈ [0,1] of α·L(f(x; m⊙θ̂), y)      one mask a filter
prune the filters of the original θ with m ≤ DT
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from unbackdoor._clean import CleanImages
from unbackdoor._masks import Masks, bake_, masked_call
from unbackdoor.methods._base import Method, Session
from unbackdoor.methods._channels import channel_masks
from unbackdoor.methods._training import Loss, count_steps, fit, trainable


@dataclass(frozen=True, kw_only=True)
class RNP(Method):
    """Prune the filters that unlearning exposed and recovering did not need.

    Attributes:
        unlearned_accuracy: CA_min, clean accuracy at which unlearning stops.
        num_unlearning_epochs, num_recovering_epochs: passes over the images, the first at most.
        unlearning_rate, recovering_rate: learning rates of the two SGDs (momentum 0.9).
        recovering_weight: α, weight of the loss while recovering.
        weight_decay: of the unlearning.
        threshold_step, threshold_limit: the pruning threshold DT is raised from 0 by this step up to this
            limit …
        accuracy_drop: … while the accuracy on the clean images falls by no more than this share.
        batch_size: images a batch.
        least_steps: batches of each of the two phases at least, for when an epoch is one batch.

    References:
        Li, Lyu, Ma, Koren, Lyu, Li, Jiang, *Reconstructive Neuron Pruning for Backdoor Defense*, ICML 2023,
        arXiv 2305.14876.

    Differs from the authors' code: it prints clean and poisoned accuracy of every threshold and leaves the
    choice to the reader; here the clean images choose, in steps of 0.01 for its 0.05. CA_min is 10 % in the
    paper and 20 % in the code, which is taken here. As in the code, masks scale and pruning zeroes the weight
    of the BatchNorm and leaves its shift. Networks without normalisation are masked on their filters.
    """

    name: ClassVar[str] = "rnp"
    unlearned_accuracy: float = 0.2
    num_unlearning_epochs: int = 20
    num_recovering_epochs: int = 20
    unlearning_rate: float = 0.01
    recovering_rate: float = 0.2
    recovering_weight: float = 0.2
    weight_decay: float = 5e-4
    threshold_step: float = 0.01
    threshold_limit: float = 0.9
    accuracy_drop: float = 0.1
    batch_size: int = 64
    least_steps: int = 100

    def run(self, model: nn.Module, clean: CleanImages, session: Session) -> dict[str, Any]:
        """Prune in place; see ``Method.run``."""
        unlearned = copy.deepcopy(model)
        accuracy = self.unlearn_(unlearned, clean, session)
        masks = self.recover(unlearned, clean, session)
        threshold = self.choose_threshold(model, masks, clean)
        pruned = prune(masks, threshold)
        bake_(model, pruned)
        return {
            "unlearned_accuracy": accuracy,
            "threshold": threshold,
            "pruned": sum(int((mask == 0).sum()) for mask in pruned.values()),
            "filters": sum(mask.numel() for mask in pruned.values()),
        }

    def unlearn_(self, model: nn.Module, clean: CleanImages, session: Session) -> float:
        """Climb the loss of the clean images until their accuracy is CA_min; return that accuracy."""
        optimizer = torch.optim.SGD(
            trainable(model),
            self.unlearning_rate,
            momentum=0.9,
            weight_decay=self.weight_decay,
            maximize=True,
        )
        epoch = count_steps(len(clean), self.batch_size, epochs=1)
        rounds = -(-max(self.least_steps, self.num_unlearning_epochs * epoch) // epoch)
        accuracy = accuracy_of(model, clean)
        for _ in range(rounds):
            if accuracy <= self.unlearned_accuracy:
                break
            fit(
                model,
                clean,
                session,
                optimizer=optimizer,
                steps=epoch,
                batch_size=self.batch_size,
                phase="unlearn",
            )
            accuracy = accuracy_of(model, clean)
        return accuracy

    def recover(self, model: nn.Module, clean: CleanImages, session: Session) -> Masks:
        """Return the masks m that bring the unlearned ``model`` back on the clean images."""
        model.requires_grad_(False)
        masks = {name: mask.requires_grad_() for name, mask in channel_masks(model, clean.images).items()}
        fit(
            model,
            clean,
            session,
            optimizer=torch.optim.SGD(masks.values(), self.recovering_rate, momentum=0.9),
            steps=count_steps(
                len(clean), self.batch_size, epochs=self.num_recovering_epochs, least=self.least_steps
            ),
            batch_size=self.batch_size,
            loss=self._recovering_loss(model, masks),
            after_step=lambda: clip_(masks),
            phase="recover",
        )
        return {name: mask.detach() for name, mask in masks.items()}

    def _recovering_loss(self, model: nn.Module, masks: Masks) -> Loss:
        def loss(images: Tensor, labels: Tensor) -> Tensor:
            return self.recovering_weight * functional.cross_entropy(
                masked_call(model, masks, images), labels
            )

        return loss

    def choose_threshold(self, model: nn.Module, masks: Masks, clean: CleanImages) -> float:
        """Return the last threshold before the clean accuracy falls by more than ``accuracy_drop``.

        It is negative, so that nothing is pruned, where even the filters of mask 0 are needed.
        """
        floor = accuracy_of(model, clean) - self.accuracy_drop
        chosen = -self.threshold_step
        for index in range(round(self.threshold_limit / self.threshold_step) + 1):
            threshold = index * self.threshold_step
            if accuracy_of(model, clean, prune(masks, threshold)) < floor:
                break
            chosen = threshold
        return chosen


@torch.no_grad()
def accuracy_of(model: nn.Module, clean: CleanImages, masks: Masks | None = None) -> float:
    """Return the share of clean images that f(x; m⊙θ) labels right, in eval mode."""
    model.eval()
    batches = zip(clean.images.split(256), clean.labels.split(256), strict=True)
    return sum(int((masked_call(model, masks or {}, x).argmax(1) == y).sum()) for x, y in batches) / len(
        clean
    )


@torch.no_grad()
def clip_(masks: Masks) -> None:
    """Clip every mask to [0, 1], in place."""
    for mask in masks.values():
        mask.clamp_(0, 1)


def prune(masks: Masks, threshold: float) -> Masks:
    """Return masks that are 0 where m ≤ ``threshold`` and 1 elsewhere, also where m is not a number.

    >>> prune({"bn.weight": torch.tensor([0.1, 0.9])}, 0.2)["bn.weight"].tolist()
    [0.0, 1.0]
    """
    return {name: (~(mask <= threshold)).to(mask.dtype) for name, mask in masks.items()}
