"""Adversarial neuron pruning: cut the neurons that fail first when all neurons are disturbed.

neuron c of the network:  h_c = σ((m_c + δ_c) w_c x + (1 + ξ_c) b_c),   |δ_c|, |ξ_c| ≤ ε
min over m ∈ [0, 1]  of  E[ α L(m, 0, 0) + (1 − α) max over δ, ξ of L(m, δ, ξ) ]
prune the neurons with m_c below a threshold
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from unbackdoor._clean import CleanImages
from unbackdoor._errors import UnbackdoorError
from unbackdoor._masks import Masks, bake_
from unbackdoor.methods._base import Method, Session
from unbackdoor.methods._channels import channel_masks, kept_statistics
from unbackdoor.methods._training import crop_and_flip, share_correct, train_mode_

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class ANP(Method):
    """Prune the neurons that are fragile under adversarial neuron perturbations (ANP).

    A neuron is an output channel. Its perturbation scales the weight and the bias of the normalisation that
    follows it; in a network without normalisation layers, those of the convolution or linear layer itself
    (the head left out). Each step draws a random perturbation, moves it up the loss by its sign, and moves
    the masks down the loss. Then, over the thresholds 0, ``threshold_step``, …, ``most_threshold``, the
    largest is taken that costs at most ``tolerance`` of the clean accuracy, and the neurons with masks up to
    it get weight 0 and keep their bias.

    Attributes:
        trade_off: α, of the clean loss; 1 − α is that of the perturbed loss.
        perturbation_budget: ε.
        num_perturbation_steps: each of size ε divided by it.
        num_iterations: batches.
        learning_rate, momentum: of the SGD on the masks.
        batch_size: images a step, drawn with replacement, shifted and mirrored.
        threshold_step, most_threshold: the grid of thresholds, in [0, 1].
        tolerance: clean accuracy that pruning may cost, in [0, 1].

    References:
        Wu, Wang, *Adversarial Neuron Pruning Purifies Backdoored Deep Models*, NeurIPS 2021
        (arXiv 2110.14430).

    Differs from the authors' code: it prints accuracy and attack success for each threshold of the grid and
        leaves the choice to the reader; here the clean images choose, with the tolerance of later comparisons
        (BackdoorBench: 0.1 of the accuracy). As in the code and unlike the paper, the perturbation starts at
        a random point of the ε-box and its step may leave the box. The code takes 2,000 iterations of 128
        images; the default here is smaller, to fit a minute on two CPU cores for a small network.

    >>> ANP(trade_off=0.5).trade_off
    0.5
    """

    name: ClassVar[str] = "anp"

    trade_off: float = 0.2
    perturbation_budget: float = 0.4
    num_perturbation_steps: int = 1
    num_iterations: int = 500
    learning_rate: float = 0.2
    momentum: float = 0.9
    batch_size: int = 32
    threshold_step: float = 0.05
    most_threshold: float = 0.9
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.threshold_step <= 1:
            raise UnbackdoorError(
                "threshold_step must lie in (0, 1]", value=self.threshold_step, fix="ANP(threshold_step=0.05)"
            )

    def run(self, model: nn.Module, clean: CleanImages, session: Session) -> dict[str, Any]:
        """Find the masks, choose the threshold on the clean images and prune ``model`` in place."""
        masks = self.find_masks(model, clean, session)
        threshold = self.choose_threshold(model, masks, clean)
        bake_(model, above(masks, threshold))
        values = torch.cat([mask.flatten() for mask in masks.values()])
        return {
            "threshold": threshold,
            "pruned": int((values <= threshold).sum()),
            "neurons": len(values),
            "mask_mean": values.mean().item(),
        }

    def find_masks(self, model: nn.Module, clean: CleanImages, session: Session) -> Masks:
        """Return the masks m, one value a neuron; ``model`` keeps its weights and statistics."""
        model.requires_grad_(False)
        masks = {name: mask.requires_grad_() for name, mask in channel_masks(model, clean.images).items()}
        optimizer = torch.optim.SGD(masks.values(), lr=self.learning_rate, momentum=self.momentum)
        train_mode_(model, freeze_statistics=self.batch_size < 2)
        with kept_statistics(model):
            for step in range(1, self.num_iterations + 1):
                images, labels = clean.batch(self.batch_size, session.generator)
                images = crop_and_flip(images, session.generator)
                value = self._step(model, masks, optimizer, images, labels, session.generator)
                session.tell("masks", step, self.num_iterations, loss=value)
        return {name: mask.detach() for name, mask in masks.items()}

    def _step(
        self,
        model: nn.Module,
        masks: Masks,
        optimizer: torch.optim.Optimizer,
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> float:
        noise = self.perturbation(model, masks, images, labels, generator)
        perturbed = functional.cross_entropy(neurons_call(model, masks, noise, images), labels)
        natural = functional.cross_entropy(neurons_call(model, masks, {}, images), labels)
        value = self.trade_off * natural + (1 - self.trade_off) * perturbed
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        with torch.no_grad():
            for mask in masks.values():
                mask.clamp_(0, 1)
        return value.item()

    def perturbation(
        self, model: nn.Module, masks: Masks, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensors:
        """Return δ and ξ by parameter name: a random start in the ε-box, then steps up the loss by sign."""
        budget = self.perturbation_budget
        fixed = {name: mask.detach() for name, mask in masks.items()}
        noise = {n: budget * _uniform(t, generator) for n, t in _coefficients(model, fixed).items()}
        for _ in range(self.num_perturbation_steps):
            noise = {name: tensor.detach().requires_grad_() for name, tensor in noise.items()}
            loss = functional.cross_entropy(neurons_call(model, fixed, noise, images), labels)
            slopes = torch.autograd.grad(loss, list(noise.values()))
            step = budget / self.num_perturbation_steps
            noise = {n: t + step * g.sign() for (n, t), g in zip(noise.items(), slopes, strict=True)}
        return {name: tensor.detach() for name, tensor in noise.items()}

    def choose_threshold(self, model: nn.Module, masks: Masks, clean: CleanImages) -> float:
        """Return the largest threshold, counted up from 0, that keeps the clean accuracy; −1 if none does.

        A threshold that leaves no neuron at all is never taken.
        """
        floor = share_correct(model, clean) - self.tolerance
        grid = [
            step * self.threshold_step for step in range(int(self.most_threshold / self.threshold_step + 1.5))
        ]
        chosen, values = -1.0, torch.cat([mask.flatten() for mask in masks.values()])
        pruned = copy.deepcopy(model)
        for threshold in grid:
            bake_(pruned, above(masks, threshold))
            if (values <= threshold).all() or share_correct(pruned, clean) < floor:
                break
            chosen = threshold
        return chosen


def neurons_call(model: nn.Module, masks: Masks, noise: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Return the logits with weights (m + δ)·w and biases (1 + ξ)·b; ``noise`` may be empty for δ = ξ = 0."""
    factors = {name: factor + noise.get(name, 0.0) for name, factor in _coefficients(model, masks).items()}
    scaled = {name: model.get_parameter(name) * factor for name, factor in factors.items()}
    return functional_call(model, scaled, (images,))


def above(masks: Masks, threshold: float) -> Masks:
    """Return hard masks: 1 where m is above ``threshold``, else 0."""
    return {name: (mask > threshold).to(mask) for name, mask in masks.items()}


def _coefficients(model: nn.Module, masks: Masks) -> Tensors:
    """Return the unperturbed factor of every masked weight (its mask) and of the bias beside it (one)."""
    known = dict(model.named_parameters())
    factors = dict(masks)
    for name in masks:
        bias = f"{name.removesuffix('weight')}bias"
        if bias in known:
            factors[bias] = torch.ones_like(known[bias])
    return factors


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return values in [−1, 1], drawn on the CPU so that a seed means the same on every device."""
    return (torch.rand(like.shape, generator=generator) * 2 - 1).to(like)
