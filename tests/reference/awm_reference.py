"""Adversarial Weight Masking, literally: one line of Algorithm 1 after the other, and slow.

Nothing of the package is used. The masks are parametrizations, the losses are spelled out, every forward pass
is a pass of its own, and Adam is written from its paper.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Mask(nn.Module):
    def __init__(self, weight: Tensor):
        super().__init__()
        self.m = nn.Parameter(torch.ones_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return self.m * weight


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    log_p = logits - torch.logsumexp(logits, dim=1, keepdim=True)
    return -torch.stack([row[label] for row, label in zip(log_p, labels, strict=True)]).mean()


def draw_batch(images: Tensor, labels: Tensor, b: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    rows = [int(i) for i in torch.randint(len(images), (b,), generator=generator)]
    return torch.stack([images[i] for i in rows]), torch.stack([labels[i] for i in rows])


def attach_masks(net: nn.Module, kinds: tuple[type, ...]) -> dict[str, nn.Parameter]:
    masks = {}
    for name, layer in list(net.named_modules()):
        if isinstance(layer, kinds):
            mask = Mask(layer.weight.detach())
            parametrize.register_parametrization(layer, "weight", mask)
            masks[f"{name}.weight"] = mask.m
    return masks


def awm_paper(net, images, labels, *, alpha, beta, gamma, tau, eta1, eta2, E, T, b, generator):
    """Algorithm 1. Returns the masks by weight name and the last Δ."""
    net = copy.deepcopy(net).eval()
    masks = attach_masks(net, (nn.Conv2d, nn.Linear))
    delta = torch.zeros_like(images[:1])
    for _ in range(E):
        delta = torch.zeros_like(images[:1])
        for _ in range(T):
            x, y = draw_batch(images, labels, b, generator)
            delta.requires_grad_(True)
            (gradient,) = torch.autograd.grad(cross_entropy(net(x + delta), y), delta)
            delta = (delta + eta1 * gradient).detach()
        delta = delta * min(1.0, tau / delta.abs().sum().item())
        for _ in range(T):
            x, y = draw_batch(images, labels, b, generator)
            loss = alpha * cross_entropy(net(x), y) + beta * cross_entropy(net(x + delta), y)
            for m in masks.values():
                loss = loss + gamma * m.abs().sum()
            gradients = torch.autograd.grad(loss, list(masks.values()))
            for m, gradient in zip(masks.values(), gradients, strict=True):
                m.data = (m.data - eta2 * gradient).clamp(0, 1)
    return {name: m.detach() for name, m in masks.items()}, delta


def awm_official(net, images, labels, *, alpha, gamma, tau, eta1, eta2, decay, E, T, b, generator):
    """What the authors' code does. Returns the masks by weight name and the last Δ."""
    net = copy.deepcopy(net).eval()
    has_conv = any(isinstance(layer, nn.Conv2d) for layer in net.modules())
    masks = attach_masks(net, (nn.Conv2d,) if has_conv else (nn.Linear,))
    first = {name: torch.zeros_like(m) for name, m in masks.items()}
    second = {name: torch.zeros_like(m) for name, m in masks.items()}
    delta, step = torch.zeros_like(images[:1]), 0
    for epoch in range(E):
        delta = torch.zeros_like(images[:1])
        for _ in range(T):
            x, _ = draw_batch(images, labels, b, generator)
            delta.requires_grad_(True)
            own = net(x).argmax(dim=1)
            (gradient,) = torch.autograd.grad(cross_entropy(net(x + delta), own), delta)
            delta = (delta + eta1 * gradient).detach()
        delta = delta * min(1.0, tau / delta.abs().sum().item())
        for _ in range(T):
            x, y = draw_batch(images, labels, b, generator)
            triggered = (x + delta).clamp(0, 1)
            loss = alpha * cross_entropy(net(x), y) + (1 - alpha) * cross_entropy(net(triggered), y)
            for m in masks.values():
                loss = loss + gamma * m.abs().sum()
            gradients = torch.autograd.grad(loss, list(masks.values()))
            step += 1
            for (name, m), g in zip(masks.items(), gradients, strict=True):
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.999 * second[name] + 0.001 * g * g
                top = first[name] / (1 - 0.9**step)
                bottom = (second[name] / (1 - 0.999**step)).sqrt() + 1e-8
                m.data = (m.data - eta2 * decay**epoch * top / bottom).clamp(0, 1)
    return {name: m.detach() for name, m in masks.items()}, delta
