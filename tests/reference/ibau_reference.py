"""I-BAU's hypergradient with whole Jacobian matrices, and its rounds with plain loops."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.func import functional_call
from torch.nn import functional

Loss = Callable[[Tensor, tuple[Tensor, ...]], Tensor]
"""(δ, parameters) -> scalar."""


def hypergradient(
    outer: Loss, inner: Loss, delta: Tensor, parameters: tuple[Tensor, ...], step_size: float, num_steps: int
) -> list[Tensor]:
    """Return ∂H/∂θ + (∂Φ/∂θ)ᵀ Σ_{k<K} ((∂Φ/∂δ)ᵀ)^k ∂H/∂δ, every matrix written out."""

    def step(point: Tensor, *weights: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(inner(point, weights), point, create_graph=True)
        return point - step_size * slope

    def value(point: Tensor, *weights: Tensor) -> Tensor:
        return outer(point, weights)

    size = delta.numel()
    by_delta, *by_weights = jacobian(step, (delta, *parameters))
    slope, *direct = jacobian(value, (delta, *parameters))
    matrix, vector = by_delta.reshape(size, size), torch.zeros(size, dtype=delta.dtype)
    for power in range(num_steps):
        vector = vector + torch.linalg.matrix_power(matrix.T, power) @ slope.reshape(-1)
    return [
        straight + (through.reshape(size, -1).T @ vector).reshape(straight.shape)
        for straight, through in zip(direct, by_weights, strict=True)
    ]


def unlearn(
    model: nn.Module,
    rounds: list[tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor, Tensor]]]],
    *,
    inner_rate: float,
    fixed_point_step: float,
    penalty: float,
    bound: float,
    rate: float,
    num_steps: int,
) -> None:
    """Unlearn in place. A round is its inner batches (x, y) and its outer ones (x, y, chosen images)."""
    names = [name for name, _ in model.named_parameters()]
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)

    def logits(images: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        return functional_call(model, dict(zip(names, weights, strict=True)), (images,))

    for inner_batches, outer_batches in rounds:
        delta = torch.zeros_like(inner_batches[0][0][:1])
        for images, _ in inner_batches:
            own = model(images).argmax(1)
            delta = delta.detach().requires_grad_()
            loss = penalty * (delta**2).sum() - functional.cross_entropy(
                model((images + delta).clamp(0, 1)), own
            )
            loss.backward()
            delta = delta - inner_rate * delta.grad
        if (delta**2).sum().sqrt() > bound:
            delta = delta * bound / (delta**2).sum().sqrt()
        for images, labels, chosen in outer_batches:
            weights = tuple(parameter.detach() for parameter in model.parameters())

            def inner(d: Tensor, w: tuple[Tensor, ...], x: Tensor = images, y: Tensor = labels) -> Tensor:
                return penalty * (d**2).sum() - functional.cross_entropy(logits((x + d).clamp(0, 1), w), y)

            def outer(
                d: Tensor, w: tuple[Tensor, ...], x: Tensor = images, y: Tensor = labels, c: Tensor = chosen
            ) -> Tensor:
                return functional.cross_entropy(logits((x + c * d).clamp(0, 1), w), y)

            gradients = hypergradient(outer, inner, delta.detach(), weights, fixed_point_step, num_steps)
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
