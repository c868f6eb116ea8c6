"""Re-activation: retune a purified model on a few poisoned samples and watch ASR come back.

A low ASR can be superficial: the backdoor's paths are switched off, not gone, and a few poisoned samples
switch them on again. A model that never had a backdoor, retuned the same way, is the mark to compare with:
what a purified model gains faster than that, it had kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor._errors import UnbackdoorError, require
from unbackdoor._evaluate import Metrics
from unbackdoor.data import TrainSplit

Measure = Callable[[nn.Module], Metrics]
Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Reactivation:
    """How a purified model is retuned: SGD with momentum on a fixed set, eval mode throughout.

    Args:
        num_poisoned: training images with the trigger and the attacker's label, at least 1.
        num_clean: clean training images beside them, which hold the accuracy; 0 or more.
        steps: when to measure, ascending; 0 is before the first step.
        learning_rate: > 0.
        momentum: in [0, 1).
        batch_size: at least 1, drawn with replacement.
    """

    num_poisoned: int = 20
    num_clean: int = 180
    steps: tuple[int, ...] = (0, 5, 10, 20, 50, 100)
    learning_rate: float = 0.01
    momentum: float = 0.9
    batch_size: int = 32

    def __post_init__(self) -> None:
        require(self.num_poisoned >= 1, "num_poisoned must be positive", self.num_poisoned, "20")
        require(self.num_clean >= 0, "num_clean must not be negative", self.num_clean, "0 or more")
        ascending = bool(self.steps) and list(self.steps) == sorted(set(self.steps)) and self.steps[0] >= 0
        require(ascending, "steps must be ascending numbers, 0 or more", self.steps, "(0, 10, 100)")
        require(self.learning_rate > 0, "learning_rate must be positive", self.learning_rate, "0.01")
        require(self.batch_size >= 1, "batch_size must be positive", self.batch_size, "32")


def reactivate(
    model: nn.Module,
    train: TrainSplit,
    trigger: Apply,
    label_map: Callable[[Tensor], Tensor],
    measure: Measure,
    options: Reactivation,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Return ACC, ASR and RA after each of ``options.steps`` steps of retuning; ``model`` is not changed.

    Args:
        model: the purified network.
        train: what poisoned and clean samples are drawn from.
        trigger: images (N, C, H, W) in [0, 1] -> triggered images.
        label_map: labels (N,) -> attacker's labels (N,).
        measure: network -> metrics on the test split.
        options: how.
        seed: of the draws.

    Raises:
        UnbackdoorError: the training split has too few images.
    """
    generator = torch.Generator().manual_seed(seed)
    network = copy.deepcopy(model).eval()
    images, labels = retuning_set(train, trigger, label_map, options, generator)
    weight = next(network.parameters())
    images, labels = images.to(weight.device, weight.dtype), labels.to(weight.device)
    curve, done = [], 0
    updates = _updates(network, images, labels, options, generator)
    for step in options.steps:
        for _ in range(step - done):
            next(updates)
        done = step
        metrics = measure(network)
        curve.append({"step": step, "acc": metrics.acc, "asr": metrics.asr, "ra": metrics.ra})
    return curve


def retuning_set(
    train: TrainSplit,
    trigger: Apply,
    label_map: Callable[[Tensor], Tensor],
    options: Reactivation,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw the poisoned and then the clean samples, no image twice: ((n, C, H, W), (n,))."""
    order = torch.randperm(len(train), generator=generator)
    labels = torch.from_numpy(train.labels)[order]
    moved = order[label_map(labels) != labels][: options.num_poisoned]
    rest = order[~torch.isin(order, moved)][: options.num_clean]
    if len(moved) < options.num_poisoned or len(rest) < options.num_clean:
        raise UnbackdoorError(
            "the training split has too few images to retune on",
            value=f"{len(moved)} to poison, {len(rest)} beside them",
            fix="smaller num_poisoned and num_clean in [reactivation]",
        )
    poisoned, sources = train.subset(moved.numpy()).tensors()
    clean, truths = train.subset(rest.numpy()).tensors()
    return torch.cat([trigger(poisoned), clean]), torch.cat([label_map(sources), truths])


def _updates(
    network: nn.Module, images: Tensor, labels: Tensor, options: Reactivation, generator: torch.Generator
) -> Iterator[None]:
    """Make one step of SGD every time the next item is asked for."""
    optimizer = torch.optim.SGD(
        network.requires_grad_(True).parameters(), lr=options.learning_rate, momentum=options.momentum
    )
    while True:
        index = torch.randint(len(labels), (options.batch_size,), generator=generator).to(labels.device)
        network.eval()
        optimizer.zero_grad()
        F.cross_entropy(network(images[index]), labels[index]).backward()
        optimizer.step()
        yield
