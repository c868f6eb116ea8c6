"""ANP as its Algorithm 1 reads, spelled out for one fixed network and one step after the other.

The network is convolution, BatchNorm, ReLU, twice, then the mean over all pixels and a linear layer, and
BatchNorm normalises by the batch. No module, optimiser or mask of the package is used.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LAYERS = ("0", "1"), ("3", "4")
"""State-dict prefixes of (convolution, BatchNorm)."""


def forward(state: dict[str, Tensor], images: Tensor, scales: list[Tensor], shifts: list[Tensor]) -> Tensor:
    """Return the logits with each BatchNorm's weight times ``scales`` and bias times ``shifts``."""
    features = images
    for (conv, norm), scale, shift in zip(LAYERS, scales, shifts, strict=True):
        features = functional.conv2d(features, state[f"{conv}.weight"], state[f"{conv}.bias"], padding=1)
        mean = features.mean(dim=(0, 2, 3), keepdim=True)
        variance = ((features - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
        features = (features - mean) / (variance + 1e-5).sqrt()
        weight, bias = state[f"{norm}.weight"] * scale, state[f"{norm}.bias"] * shift
        features = torch.relu(features * weight[None, :, None, None] + bias[None, :, None, None])
    return features.mean(dim=(2, 3)) @ state["8.weight"].T + state["8.bias"]


def find_masks(
    state: dict[str, Tensor],
    batches: list[tuple[Tensor, Tensor]],
    starts: list[tuple[list[Tensor], list[Tensor]]],
    *,
    trade_off: float,
    budget: float,
    num_steps: int,
    learning_rate: float,
    momentum: float,
) -> list[Tensor]:
    """Return the masks after one step a batch; ``starts`` holds random δ and ξ for each, in [−1, 1]."""
    masks = [torch.ones_like(state[f"{norm}.weight"]) for _, norm in LAYERS]
    speed = [torch.zeros_like(mask) for mask in masks]
    for (images, labels), (delta, xi) in zip(batches, starts, strict=True):
        delta, xi = [budget * d for d in delta], [budget * x for x in xi]
        for _ in range(num_steps):
            delta = [d.detach().requires_grad_() for d in delta]
            xi = [x.detach().requires_grad_() for x in xi]
            scales = [m + d for m, d in zip(masks, delta, strict=True)]
            logits = forward(state, images, scales, [1 + x for x in xi])
            functional.cross_entropy(logits, labels).backward()
            delta = [d.detach() + budget / num_steps * d.grad.sign() for d in delta]
            xi = [x.detach() + budget / num_steps * x.grad.sign() for x in xi]
        moving = [mask.clone().requires_grad_() for mask in masks]
        scales = [m + d for m, d in zip(moving, delta, strict=True)]
        perturbed = functional.cross_entropy(forward(state, images, scales, [1 + x for x in xi]), labels)
        ones = [torch.ones_like(x) for x in xi]
        natural = functional.cross_entropy(forward(state, images, moving, ones), labels)
        (trade_off * natural + (1 - trade_off) * perturbed).backward()
        speed = [momentum * s + m.grad for s, m in zip(speed, moving, strict=True)]
        masks = [(m - learning_rate * s).clamp(0, 1) for m, s in zip(masks, speed, strict=True)]
    return masks
