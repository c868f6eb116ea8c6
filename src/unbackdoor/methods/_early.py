"""Early layers, taught by gradient steps to pass triggered images on as clean ones.

Where early layers make features of the target of a trigger, late ones cannot tell these from what the
target's own images send them, and no change of late layers erases it at a bearable price. On a black
background that is so of whatever covers the image. Gradient steps on all that runs before the late layers
do: as in AWM's min–max, triggers are searched afresh on the network as it stands, a few times, and the
weight of triggered images grows as long as these work. What few images cannot settle stays as it was: late
layers are left alone, and each weight is held near its old value.

References:
    Chai and Chen, *One-shot Neural Backdoor Erasing via Adversarial Weight Masking*, NeurIPS 2022, arXiv
    2207.04497, eq. 5 (the min–max). Differs: triggers of the target found, with the largest margin; the
    original's logits as the answer to clean and triggered images in place of labels; weights held near
    their values in place of masks, and the mean of those passed through taken, as single steps are noisy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from unbackdoor._clean import CleanImages
from unbackdoor._layers import calls_of
from unbackdoor.methods._varied import varied
from unbackdoor.recover import Recovered, apply_random

TIMES, STEPS = 5, 20
"""Searches for triggers at most, and Adam steps after each."""
BATCH = 32
"""Varied images a step, with and without a trigger."""
RATE = 1e-3
"""Adam's first step; it falls to nothing over all that may be made."""
NEAR = 0.05
"""Weight of how far weights have moved: squares, relative to the mean square of their tensor, summed."""
GROWTH, MOST = 2.0, 16.0
"""What the weight of triggered images, one at first, is multiplied by from search to search; its largest."""
LEAST = 1e-3
"""Mean square of a tensor's weights, at least: one that is nothing is not held by far more."""

Search = Callable[[], tuple[list[Recovered], bool]]
"""Searches triggers on the network as it stands; returns them, and whether they fail."""


def teach_early_(
    model: nn.Module,
    original: nn.Module,
    layer: str,
    clean: CleanImages,
    search: Search,
    generator: torch.Generator,
    most: float = MOST,
) -> list[str]:
    """Teach what runs before ``layer`` to withstand triggers, in place, until those searched afresh fail.

    Args:
        model, original: equal at first, in eval mode, without gradients of weights.
        layer: the name of a module that they run once a forward pass.
        clean: images (N, C, H, W), N at least 1.
        search: called at first, and after every ``STEPS`` steps.
        generator: draws batches and which trigger goes on which image.
        most: largest weight of triggered images beside that of clean ones.

    Returns:
        The names of the modules that may have changed; none where nothing with weights runs before.
    """
    names = run_before(model, layer, clean.images)
    weights = [p for name in names for p in model.get_submodule(name).parameters(recurse=False)]
    if not weights:
        return []
    taught, pool = _Taught(model, original, weights), []
    for number in range(TIMES):
        fresh, fail = search()
        if number and fail:
            break
        pool += fresh
        for step in range(number * STEPS, (number + 1) * STEPS):
            images = varied(clean, BATCH, generator)
            triggered, left = apply_random(pool, images, generator), 1 - step / (TIMES * STEPS)
            taught.step(images, triggered, min(most, GROWTH**number), RATE * left)
        taught.settle_()
    return names


def run_before(model: nn.Module, layer: str, images: Tensor) -> list[str]:
    """Return the names of the modules with weights of their own that run before ``layer``, in that order."""
    last = model.get_submodule(layer)
    calls = calls_of(
        model, images, lambda m: m is last or next(m.parameters(recurse=False), None) is not None
    )
    return list(dict.fromkeys(calls[: calls.index(layer)]))


class _Taught:
    """A network whose early weights take Adam steps, beside its original, which tells the answers."""

    def __init__(self, model: nn.Module, original: nn.Module, weights: list[nn.Parameter]):
        self.model, self.original, self.weights = model, original, weights
        self.then = [weight.detach().clone() for weight in weights]
        self.passed, self.count = [torch.zeros_like(weight) for weight in weights], 0
        self.optimizer = torch.optim.Adam(weights, RATE)

    def step(self, images: Tensor, triggered: Tensor, against: float, rate: float) -> None:
        """Take one step towards the original's answers to ``images``, with and without triggers."""
        with torch.no_grad():
            known = self.original(images)
        self.optimizer.param_groups[0]["lr"] = rate
        self._ask_gradients(True)
        plain, strong = self.model(torch.cat([images, triggered])).chunk(2)
        loss = (plain - known).square().mean() + against * (strong - known).square().mean()
        (loss + NEAR * self._moved()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._ask_gradients(False)
        self._pass()

    def _pass(self) -> None:
        self.count += 1
        for total, weight in zip(self.passed, self.weights, strict=True):
            total.add_(weight)

    @torch.no_grad()
    def settle_(self) -> None:
        """Put the mean of the weights that steps have passed through since this was last done."""
        for total, weight in zip(self.passed, self.weights, strict=True):
            weight.copy_(total / self.count)
            total.zero_()
        self.count = 0

    def _moved(self) -> Tensor:
        """Return how far the weights have moved: squares by the mean square of their tensor, summed."""
        pairs = zip(self.weights, self.then, strict=True)
        return sum((w - o).square().sum() / o.square().mean().clamp(min=LEAST) for w, o in pairs)

    def _ask_gradients(self, asked: bool) -> None:
        for weight in self.weights:
            weight.requires_grad_(asked)
