"""Poisoning: which training images get the trigger, and which labels they get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unbackdoor._errors import UnbackdoorError
from unbackdoor.attacks._adversarial import AdversarialPerturbation
from unbackdoor.attacks._base import Trigger
from unbackdoor.attacks._labels import AllToOne, LabelMap, SourceSpecific

CHUNK = 1000
"""Images that a trigger is given at once; bounds the memory, whatever the size of the set."""


@dataclass(frozen=True, eq=False)
class Selection:
    """Positions in the training set: ``poisoned`` and ``covers``, int64, sorted, disjoint."""

    poisoned: Tensor
    covers: Tensor


@dataclass(frozen=True, eq=False)
class PoisonedImages:
    """A poisoned training set.

    Attributes:
        images: uint8 (N, C, H, W): poisoned images are rounded as an image file would round them.
        labels: int64 (N,), the attacker's labels where poisoned.
        selection: which images were changed.
    """

    images: Tensor
    labels: Tensor
    selection: Selection


@dataclass(frozen=True, kw_only=True)
class Poisoning:
    """How a training set is poisoned; the trigger and the label map say with what and to which label.

    Attributes:
        trigger: the change of the image.
        label_map: the attacker's labels.
        poison_rate: share of the whole training set that is poisoned, in (0, 1]: exactly
            round(rate · N) images, drawn among those whose label the attack changes. With ``clean_label``
            the share of the target class, as the clean-label papers count it.
        clean_label: poison images of the target class only and leave every label as it is.
        cover_rate: cover images (trigger-like change, true label) for one poisoned image; ``None`` takes
            the trigger's own. For a ``SourceSpecific`` map covers are triggered images of the other
            classes, one for one poisoned image by default: without them any class would obey.
        perturbation: done to the poisoned images before the trigger; the label-consistent attack's, with
            ``clean_label``.

    References:
        Gu et al., *BadNets*, 2017, https://arxiv.org/abs/1708.06733 (poisoning and all-to-all).
        Turner et al., *Label-Consistent Backdoor Attacks*, 2019, https://arxiv.org/abs/1912.02771.
        Tang et al., *Demon in the Variant* (TaCT), USENIX Security 2021, https://arxiv.org/abs/1908.00686
        (source-specific covers).
    """

    trigger: Trigger
    label_map: LabelMap = field(default_factory=AllToOne)
    poison_rate: float = 0.1
    clean_label: bool = False
    cover_rate: float | None = None
    perturbation: AdversarialPerturbation | None = None

    def __post_init__(self) -> None:
        if not 0 < self.poison_rate <= 1:
            raise UnbackdoorError(
                "the poison rate must lie in (0, 1]", value=self.poison_rate, fix="poison_rate=0.1"
            )
        if self.cover_rate is not None and self.cover_rate < 0:
            raise UnbackdoorError(
                "the cover rate must be 0 or more", value=self.cover_rate, fix="cover_rate=1"
            )
        if self.clean_label and not isinstance(self.label_map, AllToOne):
            raise UnbackdoorError(
                "a clean-label attack has one target class",
                value=self.label_map.name,
                fix="label_map=AllToOne(target=0)",
            )

    def select(self, labels: Tensor, generator: torch.Generator) -> Selection:
        """Draw the images to poison and the covers, without replacement.

        Args:
            labels: int64 (N,), the true labels.
            generator: on the CPU; source of the draw.

        Raises:
            UnbackdoorError: the rates ask for more images than can be poisoned or be covers, or for none.
        """
        candidates = self._candidates(labels)
        base = int(candidates.sum()) if self.clean_label else len(labels)
        poisoned = _draw(candidates, round(self.poison_rate * base), generator, "poison", "poison_rate")
        rest = self._cover_candidates(labels)
        rest[poisoned] = False
        covers = _draw(rest, round(self.covers_each() * len(poisoned)), generator, "be covers", "cover_rate")
        if not len(poisoned):
            raise UnbackdoorError(
                f"this rate poisons none of the {base} images",
                value=self.poison_rate,
                fix=f"poison_rate={1 / max(1, base):.2g} or more",
            )
        return Selection(poisoned, covers)

    def apply(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> PoisonedImages:
        """Return the poisoned copy of a training set.

        Args:
            images: uint8 (N, C, H, W); not changed.
            labels: int64 (N,); not changed.
            generator: on the CPU; source of the draw and of what the trigger does at random in training.
        """
        selection = self.select(labels, generator)
        images, true, labels = images.clone(), labels, labels.clone()
        _change_(images, true, selection.poisoned, lambda x, y: self.make_poisoned(x, y, generator))
        _change_(images, true, selection.covers, lambda x, y: self.make_covers(x, generator))
        labels[selection.poisoned] = self.poisoned_labels(true[selection.poisoned])
        return PoisonedImages(images, labels, selection)

    def poisoned_labels(self, labels: Tensor) -> Tensor:
        """Return the labels that poisoned images of true ``labels`` are trained with."""
        return labels if self.clean_label else self.label_map(labels)

    def make_poisoned(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Return the poisoned images made of float ``images`` of true ``labels``."""
        if self.perturbation is not None:
            images = self.perturbation(images, labels)
        return self.trigger.train_apply(images, generator)

    def make_covers(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the cover images made of float ``images``."""
        if isinstance(self.label_map, SourceSpecific):
            return self.trigger.train_apply(images, generator)
        return self.trigger.cover(images, generator)

    def covers_each(self) -> float:
        """Return the number of covers for one poisoned image."""
        if self.cover_rate is not None:
            return self.cover_rate
        return 1.0 if isinstance(self.label_map, SourceSpecific) else float(self.trigger.cover_rate)

    def spec(self) -> dict[str, Any]:
        """Return every field as plain values, for records."""
        return {
            "name": self.trigger.name,
            "fields": self.trigger.fields(),
            "label_map": {"name": self.label_map.name, "fields": dict(vars(self.label_map))},
            "poison_rate": self.poison_rate,
            "clean_label": self.clean_label,
            "cover_rate": self.covers_each(),
            "perturbation": None if self.perturbation is None else self.perturbation.fields(),
        }

    def _candidates(self, labels: Tensor) -> Tensor:
        if self.clean_label:
            return labels == self.label_map(labels)
        return self.label_map.eligible(labels)

    def _cover_candidates(self, labels: Tensor) -> Tensor:
        if isinstance(self.label_map, SourceSpecific):
            return ~self.label_map.eligible(labels) & (labels != self.label_map.target)
        return torch.ones_like(labels, dtype=torch.bool)


def _draw(candidates: Tensor, count: int, generator: torch.Generator, verb: str, option: str) -> Tensor:
    members = candidates.nonzero().flatten()
    if count > len(members):
        raise UnbackdoorError(
            f"there are too few images to {verb}",
            value=f"{count} asked for, {len(members)} there",
            fix=f"lower {option} by a factor of {len(members) / count:.2g} or more",
        )
    return members[torch.randperm(len(members), generator=generator)[:count]].sort().values


def _change_(
    images: Tensor, labels: Tensor, index: Tensor, change: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Replace the uint8 ``images`` at ``index`` by what ``change`` makes of them as floats in [0, 1]."""
    for part in index.split(CHUNK):
        changed = change(images[part].float() / 255, labels[part]).clamp(0, 1)
        images[part] = (changed * 255).round().to(torch.uint8)
