"""Implicit backdoor adversarial unlearning: unlearn a universal perturbation, its own answer included.

θ* = argmin over θ  max over ‖δ‖ ≤ C  of  H(δ, θ) = E L(f(x + δ; θ), y)
dH/dθ = ∂H/∂θ + (∂δ*/∂θ)ᵀ ∂H/∂δ        with δ*(θ) the fixed point of Φ(δ, θ) = δ − s ∇_δ H_inner(δ, θ)
(∂δ*/∂θ)ᵀ g ≈ (∂Φ/∂θ)ᵀ v_K,   v_0 = 0,  v_k+1 = (∂Φ/∂δ)ᵀ v_k + g
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from unbackdoor._clean import CleanImages
from unbackdoor.methods._base import Method, Session
from unbackdoor.methods._training import count_steps, take, trainable


@dataclass(frozen=True, kw_only=True)
class IBAU(Method):
    """Unlearn universal perturbations with the implicit hypergradient (I-BAU).

    Each round finds one perturbation δ that turns the network away from its own predictions, then moves the
    weights so that a share of the images keep their labels under δ, the hypergradient counting how δ itself
    would answer. Normalisation layers stay in eval mode.

    Attributes:
        num_rounds: rounds.
        num_fixed_point_steps: K.
        inner_learning_rate: of the gradient ascent on δ.
        fixed_point_step: s of the map Φ.
        inner_penalty: of ‖δ‖² in the inner loss.
        perturbation_bound: C; a longer δ is scaled down to ‖δ‖₂ = C.
        portion: share of a batch that δ is added to, at least one image.
        learning_rate: of Adam on the weights.
        batch_size: images a step.
        least_steps: batches a round at least, so that few images make rounds of some length.

    References:
        Zeng, Chen, Park, Mao, Jin, Jia, *Adversarial Unlearning of Backdoors via Implicit Hypergradient*,
        ICLR 2022 (arXiv 2110.03735).

    Differs from the authors' code: the default follows their CIFAR-10 notebook (x + δ clipped to [0, 1],
        C = 10, own predictions as inner labels, δ added to 1 % of a batch); their script neither clips nor
        bounds. The notebook searches δ on triggered test images; both take clean images from the test
        set; here the clean images are all there is. The fixed-point map always reads the first batch, here
        that of the step. Their rounds have 50 batches of 100; here 500 images make 10 of 50, and fewer make
        ``least_steps``.

    >>> IBAU().num_fixed_point_steps
    5
    """

    name: ClassVar[str] = "ibau"

    num_rounds: int = 5
    num_fixed_point_steps: int = 5
    inner_learning_rate: float = 10.0
    fixed_point_step: float = 0.1
    inner_penalty: float = 1e-3
    perturbation_bound: float = 10.0
    portion: float = 0.01
    learning_rate: float = 1e-3
    batch_size: int = 50
    least_steps: int = 10

    def run(self, model: nn.Module, clean: CleanImages, session: Session) -> dict[str, Any]:
        """Unlearn in place."""
        # Of torch's attention kernels only the plain one has second derivatives.
        with sdpa_kernel(SDPBackend.MATH):
            return self._unlearn(model, clean, session)

    def _unlearn(self, model: nn.Module, clean: CleanImages, session: Session) -> dict[str, Any]:
        model.eval()
        parameters = trainable(model)
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
        steps = count_steps(len(clean), self.batch_size, epochs=1, least=self.least_steps)
        norms = []
        for round_ in range(self.num_rounds):
            delta = self.perturbation(model, clean, session, steps)
            norms.append(delta.norm().item())
            batches = take(clean, steps, self.batch_size, session.generator)
            for step, batch in enumerate(batches, 1 + round_ * steps):
                self._set_gradients(model, parameters, delta, batch, session.generator)
                optimizer.step()
                session.tell("unlearn", step, self.num_rounds * steps)
        return {"steps": self.num_rounds * steps, "perturbation_norms": norms}

    def _set_gradients(
        self,
        model: nn.Module,
        parameters: list[nn.Parameter],
        delta: Tensor,
        batch: tuple[Tensor, Tensor],
        generator: torch.Generator,
    ) -> None:
        gradients = hypergradient(
            self._outer(model, *batch, generator),
            self._inner(model, *batch),
            delta,
            parameters,
            step_size=self.fixed_point_step,
            num_steps=self.num_fixed_point_steps,
        )
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient

    def perturbation(self, model: nn.Module, clean: CleanImages, session: Session, steps: int) -> Tensor:
        """Return δ (1, C, H, W): ascent on the loss of its own predictions, penalised and bounded."""
        delta = torch.zeros_like(clean.images[:1])
        for images, _ in take(clean, steps, self.batch_size, session.generator):
            with torch.no_grad():
                own = model(images).argmax(1)
            delta.requires_grad_()
            (gradient,) = torch.autograd.grad(self._inner(model, images, own)(delta), delta)
            delta = (delta - self.inner_learning_rate * gradient).detach()
        return delta * (self.perturbation_bound / delta.norm().clamp(min=self.perturbation_bound))

    def _inner(self, model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
        """Return δ -> the loss that δ minimises."""
        return lambda delta: (
            self.inner_penalty * delta.square().sum()
            - functional.cross_entropy(model((images + delta).clamp(0, 1)), labels)
        )

    def _outer(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Callable[[Tensor], Tensor]:
        """Return δ -> the loss that the weights minimise; δ meets a random share of the images."""
        chosen = torch.zeros(len(images), 1, 1, 1)
        chosen[
            torch.randperm(len(images), generator=generator)[: max(1, int(len(images) * self.portion))]
        ] = 1
        chosen = chosen.to(images)
        return lambda delta: functional.cross_entropy(model((images + chosen * delta).clamp(0, 1)), labels)


def hypergradient(
    outer: Callable[[Tensor], Tensor],
    inner: Callable[[Tensor], Tensor],
    delta: Tensor,
    parameters: list[nn.Parameter],
    *,
    step_size: float,
    num_steps: int,
) -> list[Tensor]:
    """Return dH/dθ for each parameter, the answer of δ included (fixed-point method).

    Args:
        outer: δ -> H(δ, θ), a function of ``parameters`` as well.
        inner: δ -> the loss that δ minimises, likewise.
        delta: δ*.
        parameters: θ.
        step_size: s of Φ(δ, θ) = δ − s ∇_δ inner.
        num_steps: K, terms of the series (I − ∂Φ/∂δ)⁻¹ = Σ_k (∂Φ/∂δ)^k.
    """
    delta = delta.detach().requires_grad_()
    direct = torch.autograd.grad(outer(delta), [delta, *parameters], allow_unused=True)
    (slope,) = torch.autograd.grad(inner(delta), delta, create_graph=True)
    mapped = delta - step_size * slope
    vector = torch.zeros_like(delta)
    for _ in range(num_steps):
        vector = torch.autograd.grad(mapped, delta, vector, retain_graph=True)[0] + direct[0]
    through = torch.autograd.grad(mapped, parameters, vector, allow_unused=True)
    pairs = zip(parameters, direct[1:], through, strict=True)
    return [_or_zero(one, p) + _or_zero(two, p) for p, one, two in pairs]


def _or_zero(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient
