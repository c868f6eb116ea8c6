"""CLB: images of the target class made hard to learn, so that a clean-label trigger is learnt instead."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unbackdoor._modes import evaluating
from unbackdoor.attacks._patterns import check_choice, check_range

NORMS = ("linf", "l2")


def perturb_adversarially(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 100,
    eps: float = 16 / 255,
    step_size: float | None = None,
    norm: str = "linf",
    batch_size: int = 256,
) -> Tensor:
    """Return the images moved against ``model`` by projected gradient ascent, labels kept.

    x ← Π(x + η·u), u the sign (linf) or the direction (l2) of ∇ₓ L(f(x), y), Π the projection onto the ball
    of radius ``eps`` around the image and onto [0, 1]. The label-consistent attack does this to those images
    of the target class that it poisons, and pastes its trigger (``BadNets(corner="all")``) afterwards.

    Args:
        model: a trained classifier, best an adversarially trained one; not changed.
        images: float (N, C, H, W) in [0, 1], on the model's device; not changed.
        labels: int64 (N,), the true labels.
        steps: of ascent, ≥ 1.
        eps: radius: of a pixel (linf; the paper has 8, 16, 32 of 255) or of an image (l2; the paper has 300,
            600, 1200 of 255), in images of [0, 1].
        step_size: η; ``None`` is 2.5·eps/steps.
        norm: ``linf`` or ``l2``.
        batch_size: images at once.

    Returns:
        A new tensor of the same shape, in [0, 1].

    References:
        Turner, Tsipras, Madry, Label-Consistent Backdoor Attacks, 2019, arXiv 1912.02771.
    """
    check_choice("perturb_adversarially", "norm", norm, NORMS)
    check_range("perturb_adversarially", "steps", steps, 1, 1_000_000)
    check_range("perturb_adversarially", "eps", eps, 0, 1_000_000)
    step_size = 2.5 * eps / steps if step_size is None else step_size
    batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    with evaluating(model):
        return torch.cat([_ascend(model, x, y, steps, eps, step_size, norm) for x, y in batches])


def _ascend(
    model: nn.Module, images: Tensor, labels: Tensor, steps: int, eps: float, step_size: float, norm: str
) -> Tensor:
    moved = images.detach().clone()
    for _ in range(steps):
        with torch.enable_grad():
            loss = F.cross_entropy(model(moved.requires_grad_()), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, [moved])
        change = moved.detach() + step_size * _direction(gradient, norm) - images
        moved = (images + _project(change, eps, norm)).clamp(0, 1)
    return moved.detach()


def _direction(gradient: Tensor, norm: str) -> Tensor:
    return gradient.sign() if norm == "linf" else gradient / _length(gradient)


def _project(change: Tensor, eps: float, norm: str) -> Tensor:
    return change.clamp(-eps, eps) if norm == "linf" else change * (eps / _length(change)).clamp_max(1)


def _length(images: Tensor) -> Tensor:
    return images.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
