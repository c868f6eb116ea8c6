"""The min–max loop of this field, once, with holes.

    for epoch in 1…E:                              alternate
        a ← start
        repeat T₁ times:                           maximise
            a ← project(ascend(a, ∇ₐ inner loss(a, batch)))
        a ← finish(a)
        repeat T₂ times:                           minimise
            p ← optimizer step on ∇ₚ outer loss(p, a, batch)
            p ← constrain(p)

The adversary ``a`` is a tuple of tensors (a trigger, noise on neurons, one perturbation an image); the
defender's parameters ``p`` live in a ``torch.optim.Optimizer``. Each hole is a plain function, and
``maximise`` and ``minimise`` also stand alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

Adversary = tuple[Tensor, ...]
Batch = tuple[Tensor, ...]
Draw = Callable[[], Batch]


def gradient_ascent(step_size: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the update a + η·g.

    >>> gradient_ascent(0.5)(torch.tensor(1.0), torch.tensor(2.0)).item()
    2.0
    """
    return lambda value, gradient: value + step_size * gradient


def sign_ascent(step_size: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the update a + η·sign(g), for bounds in the maximum norm."""
    return lambda value, gradient: value + step_size * gradient.sign()


def rescale_to_budget(value: Tensor, budget: float) -> Tensor:
    """Return ``value`` · min(1, budget / ‖value‖₁): a rescale of all entries, not the nearest point.

    >>> rescale_to_budget(torch.tensor([3.0, -1.0]), 2.0).tolist()
    [1.5, -0.5]
    """
    norm = value.abs().sum()
    return value * (budget / norm) if norm > budget else value


def maximise(
    adversary: Adversary,
    loss: Callable[..., Tensor],
    draw: Draw,
    *,
    steps: int,
    ascend: Callable[[Tensor, Tensor], Tensor],
    project: Callable[[Tensor], Tensor] | None = None,
) -> Adversary:
    """Return the adversary after ``steps`` ascent steps on ``loss(adversary, *batch)``, detached.

    Args:
        adversary: where to start; not changed.
        loss: scalar to make large, differentiable in the adversary.
        draw: gives the next batch; it is asked once a step.
        steps: number of steps T₁.
        ascend: from a tensor and its gradient to the next tensor.
        project: brings each tensor back to its feasible set after every step.
    """
    for _ in range(steps):
        adversary = tuple(value.detach().requires_grad_() for value in adversary)
        gradients = torch.autograd.grad(loss(adversary, *draw()), adversary)
        with torch.no_grad():
            adversary = tuple(map(ascend, adversary, gradients))
            adversary = tuple(map(project, adversary)) if project else adversary
    return tuple(value.detach() for value in adversary)


def minimise(
    optimizer: Optimizer,
    loss: Callable[..., Tensor],
    draw: Draw,
    *,
    steps: int,
    constrain: Callable[[], None] | None = None,
) -> float:
    """Take ``steps`` optimizer steps on ``loss(*batch)`` and return the mean loss (NaN for no step).

    Args:
        optimizer: holds the parameters that move, and their state.
        loss: scalar to make small, differentiable in those parameters.
        draw: gives the next batch; it is asked once a step.
        steps: number of steps T₂.
        constrain: brings the parameters back to their feasible set, in place, after every step.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    total = torch.zeros((), dtype=torch.float64)
    for _ in range(steps):
        value = loss(*draw())
        for parameter, gradient in zip(parameters, torch.autograd.grad(value, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()
        if constrain:
            constrain()
        total += value.detach().double().cpu()
    return (total / steps).item() if steps else float("nan")


def alternate(
    epochs: int,
    attack: Callable[[], Adversary],
    defend: Callable[[Adversary], float],
    tell: Callable[..., None] | None = None,
) -> Adversary:
    """Play ``epochs`` rounds of attack and defence; return the last adversary (empty for no round).

    Args:
        epochs: number of rounds E.
        attack: finds an adversary against the defender as it is now.
        defend: moves the defender against that adversary; returns its loss.
        tell: called with (round, epochs, loss=…) after every round.
    """
    adversary: Adversary = ()
    for epoch in range(1, epochs + 1):
        adversary = attack()
        loss = defend(adversary)
        if tell:
            tell(epoch, epochs, loss=loss)
    return adversary
