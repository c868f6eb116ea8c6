"""SAU: unlearn the adversarial examples that the tuned and the poisoned network share.

    δ = max over ‖δ‖∞ ≤ ρ of  β₁ [L(f(x+δ), y) + L(f₀(x+δ), y)]/2 − β₂ JS(f(x+δ), f₀(x+δ))    one an image
    min over θ of  λ₁ L(f(x), y) − λ₂ E[ 1(f₀(x+δ) ≠ y) · log(1 − p_f(ŷ₀ | x+δ)) ],   ŷ₀ = argmax f₀(x+δ)

A triggered image is an adversarial example of the poisoned network f₀ which both send to the same class; the
loss only asks that f leaves that class.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR

from unbackdoor._clean import CleanImages
from unbackdoor.methods._base import Method, Session
from unbackdoor.methods._training import Loss, count_steps, fit, trainable


@dataclass(frozen=True, kw_only=True)
class SAU(Method):
    """Unlearn shared adversarial examples.

    Attributes:
        norm_bound: ρ, largest change of a pixel.
        step_size, num_inner_steps: of the signed gradient steps on δ, which starts at +ρ.
        adversarial_weight, shared_weight: β₁ and β₂ of the search.
        clean_weight, unlearning_weight: λ₁ and λ₂ of the unlearning.
        num_rounds: passes over the images.
        least_steps: batches at least, for when an epoch is one batch.
        learning_rate: of Adam, falling to 0 along a cosine.
        batch_size: images a batch.

    References:
        Wei, Zhang, Zha, Wu, *Shared Adversarial Unlearning: Backdoor Mitigation by Unlearning Shared
        Adversarial Examples*, NeurIPS 2023, arXiv 2307.10562.

    Differs from the authors' code: log(1 − p) is computed from the logits, which needs none of its clamps.
    As there, both networks stay in eval mode and x + δ is not clipped to [0, 1].
    """

    name: ClassVar[str] = "sau"
    norm_bound: float = 0.2
    step_size: float = 0.2
    num_inner_steps: int = 5
    adversarial_weight: float = 0.01
    shared_weight: float = 1.0
    clean_weight: float = 1.0
    unlearning_weight: float = 1.0
    num_rounds: int = 8
    least_steps: int = 100
    learning_rate: float = 1e-4
    batch_size: int = 32

    def run(self, model: nn.Module, clean: CleanImages, session: Session) -> dict[str, Any]:
        """Unlearn in place; see ``Method.run``."""
        poisoned = copy.deepcopy(model).eval().requires_grad_(False)
        optimizer = torch.optim.Adam(trainable(model), lr=self.learning_rate)
        steps = count_steps(len(clean), self.batch_size, epochs=self.num_rounds, least=self.least_steps)
        final = fit(
            model,
            clean,
            session,
            optimizer=optimizer,
            schedule=CosineAnnealingLR(optimizer, T_max=max(1, steps)),
            steps=steps,
            batch_size=self.batch_size,
            loss=self.objective(model, poisoned),
            phase="unlearn",
        )
        return {"steps": steps, "loss": final}

    def objective(self, model: nn.Module, poisoned: nn.Module) -> Loss:
        """Return the unlearning loss as a function of a batch; it searches δ first."""

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            model.eval()
            shifted = images + self.find_shared(model, poisoned, images, labels)
            logits, shifted_logits = model(torch.cat([images, shifted])).chunk(2)
            with torch.no_grad():
                before, after = poisoned(torch.cat([images, shifted])).argmax(1).chunk(2)
            fooled = ((after != labels) & (after != before)).to(images.dtype)
            kept = functional.cross_entropy(logits, labels)
            return (
                self.clean_weight * kept
                - self.unlearning_weight * (fooled * log_not(shifted_logits, after)).mean()
            )

        return loss

    def find_shared(self, model: nn.Module, poisoned: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return δ (N, C, H, W), |δ| ≤ ρ: adversarial for both networks and sent to one class by both."""
        delta = torch.full_like(images, self.norm_bound)
        with torch.no_grad():
            plain = torch.stack([model(images).argmax(1), poisoned(images).argmax(1)])
        for _ in range(self.num_inner_steps):
            delta.requires_grad_()
            logits = torch.stack([model(images + delta), poisoned(images + delta)])
            loss, done = self._search_loss(logits, plain, labels)
            if done:
                break
            (slope,) = torch.autograd.grad(loss, delta)
            delta = (delta.detach() - self.step_size * slope.sign()).clamp(-self.norm_bound, self.norm_bound)
        return delta.detach()

    def _search_loss(self, logits: Tensor, plain: Tensor, labels: Tensor) -> tuple[Tensor, bool]:
        """Return the loss of δ, from which images that reached their aim drop out, and whether all did."""
        answers = logits.argmax(2)
        moved = answers != plain
        shared = moved.all(0) & (answers[0] == answers[1])
        errors = torch.stack([functional.cross_entropy(part, labels, reduction="none") for part in logits])
        adversarial = (errors * ~moved).sum(0).mean() / 2
        divergence = (jensen_shannon(*logits) * ~shared).mean()
        return self.shared_weight * divergence - self.adversarial_weight * adversarial, bool(shared.all())


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Return the Jensen–Shannon divergence of softmaxed logits, (N, classes) twice -> (N,), in [0, log 2].

    >>> first, second = torch.tensor([[0.0, 0.0], [90.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 90.0]])
    >>> [round(value, 3) for value in jensen_shannon(first, second).tolist()]
    [0.0, 0.693]
    """
    parts = torch.stack([first, second]).log_softmax(2)
    middle = parts.exp().mean(0).clamp_min(1e-12).log()
    return functional.kl_div(middle.expand_as(parts), parts, reduction="none", log_target=True).sum(2).mean(0)


def log_not(logits: Tensor, classes: Tensor) -> Tensor:
    """Return log(1 − p(class)) of each row: (N, classes), (N,) -> (N,), ≤ 0.

    >>> log_not(torch.zeros(1, 4), torch.tensor([2])).exp().item()
    0.75
    """
    others = logits.scatter(1, classes[:, None], -torch.inf)
    return others.logsumexp(1) - logits.logsumexp(1)
