"""The specification of a victim: plain values that say everything about how it is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor._errors import UnbackdoorError
from unbackdoor.attacks import get_trigger
from unbackdoor.attacks._adversarial import AdversarialPerturbation
from unbackdoor.attacks._base import OptimisedTrigger, Trigger
from unbackdoor.attacks._labels import AllToAll, AllToOne, LabelMap, SourceSpecific
from unbackdoor.attacks._poison import Poisoning
from unbackdoor.attacks._recipe import Recipe
from unbackdoor.data import TrainSplit

UNMIRRORED = ("gtsrb",)
"""Data sets whose classes change when the image is mirrored."""

OPTIMISE_ON = 1024
"""Images that a trigger is optimised on."""


@dataclass(frozen=True, kw_only=True)
class VictimSpec:
    """How one victim is made.

    Attributes:
        data, resize: name or path of the data set and size in pixels, as ``data.load`` takes them.
        arch: network, as ``checkpoint.resolve_arch`` takes it.
        attack: registry name of the trigger; ``None`` for a clean model.
        fields: hyper-parameters of the trigger.
        target: target class; ``source``: the only class that is attacked, or ``None`` for all of them.
        all_to_all: class y to y + 1 instead of one target.
        poison_rate, clean_label, cover_rate: as in ``Poisoning``.
        adversarial_eps: radius of the clean-label attack's perturbation, linf, in [0, 1]; ``None`` for none.
        adversarial_steps: its steps.
        surrogate: the clean victim that triggers and perturbations are optimised on: a name of the named
            set, or the path of a checkpoint with its record; ``None`` for none.
        start: the clean victim of the same network and data whose weights training starts from, named as
            ``surrogate`` is: an attacker who poisons a model that was downloaded. ``None``: fresh weights.
        recipe: how to train.
        seed: of everything.
    """

    data: str
    resize: int | None = None
    arch: str = "small_vgg"
    attack: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    target: int = 0
    source: int | None = None
    all_to_all: bool = False
    poison_rate: float = 0.1
    clean_label: bool = False
    cover_rate: float | None = None
    adversarial_eps: float | None = None
    adversarial_steps: int = 20
    surrogate: str | None = None
    start: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.adversarial_eps is not None and self.surrogate is None:
            raise UnbackdoorError(
                "an adversarial perturbation needs a clean model to be found on",
                value=f"adversarial_eps={self.adversarial_eps}",
                fix="name one as surrogate: unbackdoor attack --attack none --out clean.safetensors ...",
            )
        if self.all_to_all and (self.source is not None or self.clean_label):
            raise UnbackdoorError(
                "all-to-all goes with neither a source class nor clean labels",
                value=f"source={self.source}, clean_label={self.clean_label}",
                fix="drop one of them",
            )
        if self.attack is not None:
            self._check_surrogate(get_trigger(self.attack, **self.fields))

    def to_dict(self) -> dict[str, Any]:
        """Return the specification as nested plain values, for records."""
        return dataclasses.asdict(self)

    def label_map(self, num_classes: int) -> LabelMap:
        """Return the attacker's label map for data of ``num_classes``.

        Raises:
            UnbackdoorError: the target or the source is not one of the classes.
        """
        for name, value in (("target", self.target), ("source", self.source)):
            if value is not None and not 0 <= value < num_classes:
                raise UnbackdoorError(
                    f"the {name} must lie in [0, {num_classes}), the classes", value=value, fix=f"{name}=0"
                )
        if self.all_to_all:
            return AllToAll(num_classes=num_classes)
        if self.source is not None:
            return SourceSpecific(source=self.source, target=self.target)
        return AllToOne(target=self.target)

    def _check_surrogate(self, trigger: Trigger) -> None:
        if self.adversarial_eps is not None and not self.clean_label:
            raise UnbackdoorError(
                "an adversarial perturbation belongs to clean-label poisoning",
                value=f"adversarial_eps={self.adversarial_eps}, clean_label=False",
                fix="clean_label=True",
            )
        unused = self.adversarial_eps is None and not isinstance(trigger, OptimisedTrigger)
        if self.surrogate is not None and unused:
            raise UnbackdoorError(
                f"{trigger.name} is not optimised on a clean model, so the surrogate would not be used",
                value=self.surrogate,
                fix="drop the surrogate, or set adversarial_eps with clean_label",
            )

    def poisoning(self, train: TrainSplit, surrogate: nn.Module | None) -> Poisoning | None:
        """Return the poisoning, its trigger optimised on ``surrogate`` where its paper does so."""
        if self.attack is None:
            return None
        trigger = get_trigger(self.attack, **self.fields)
        perturbation = None
        if surrogate is not None:
            trigger = optimised(trigger, surrogate, train)
            if self.adversarial_eps is not None:
                perturbation = AdversarialPerturbation(
                    surrogate=surrogate, eps=self.adversarial_eps, steps=self.adversarial_steps
                )
        return Poisoning(
            trigger=trigger,
            label_map=self.label_map(train.num_classes),
            poison_rate=self.poison_rate,
            clean_label=self.clean_label,
            cover_rate=self.cover_rate,
            perturbation=perturbation,
        )


def default_recipe(data: str) -> Recipe:
    """Return the recipe for a data set: mirrored images only where they keep their class.

    >>> default_recipe("gtsrb").flip, default_recipe("cifar10").flip
    (False, True)
    """
    return Recipe(flip=data not in UNMIRRORED)


def optimised(trigger: Trigger, surrogate: nn.Module, train: TrainSplit) -> Trigger:
    """Return ``trigger`` optimised on the first training images, if it is of that kind."""
    if not isinstance(trigger, OptimisedTrigger):
        return trigger
    ready = trigger.optimise(surrogate, _first_images(train, next(surrogate.parameters()).device))
    return ready.with_state({name: tensor.cpu() for name, tensor in ready.state().items()})


def _first_images(train: TrainSplit, device: torch.device) -> Tensor:
    """Return images spread evenly over the training split: many files are sorted by class."""
    step = max(1, len(train) // OPTIMISE_ON)
    pixels = torch.from_numpy(train.images[::step].copy()).permute(0, 3, 1, 2)
    return pixels.float().div(255).to(device)
