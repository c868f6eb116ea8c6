"""Poisoning: rates are exact, labels are the attacker's or stay, covers keep theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from unbackdoor._errors import UnbackdoorError
from unbackdoor.attacks._adversarial import AdversarialPerturbation
from unbackdoor.attacks._base import Trigger
from unbackdoor.attacks._labels import AllToAll, AllToOne, LabelMap, SourceSpecific
from unbackdoor.attacks._poison import PoisonedImages, Poisoning


@dataclass(frozen=True, kw_only=True)
class White(Trigger):
    """Test trigger: 1 everywhere at test time, 200/255 in training, covers 100/255 plus noise."""

    name: ClassVar[str] = "white"
    cover_rate: float = 0.0

    def apply(self, images: Tensor) -> Tensor:
        return torch.ones_like(images)

    def train_apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return torch.full_like(images, 200 / 255)

    def cover(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return torch.full_like(images, 100 / 255)


@dataclass(frozen=True, kw_only=True)
class Half(Trigger):
    """Test trigger: the left column is white."""

    name: ClassVar[str] = "half"

    def apply(self, images: Tensor) -> Tensor:
        images = images.clone()
        images[..., 0] = 1
        return images


LABELS = torch.arange(10).repeat(100)
IMAGES = torch.zeros(1000, 1, 2, 2, dtype=torch.uint8)


def poison(**fields: object) -> PoisonedImages:
    trigger = fields.pop("trigger", White())
    return Poisoning(trigger=trigger, **fields).apply(IMAGES, LABELS, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rate", [0.001, 0.005, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("label_map", [AllToOne(target=3), AllToAll(num_classes=10)])
def test_the_rate_is_exact_and_labels_are_the_attackers(rate: float, label_map: LabelMap) -> None:
    result = poison(poison_rate=rate, label_map=label_map)
    hit = (result.images == 200).flatten(1).all(1)
    assert hit.sum() == round(rate * 1000) == len(result.selection.poisoned)
    assert torch.equal(hit.nonzero().flatten(), result.selection.poisoned)
    assert torch.equal(result.labels[hit], label_map(LABELS[hit]))
    assert (result.labels[hit] != LABELS[hit]).all()
    assert torch.equal(result.labels[~hit], LABELS[~hit])
    assert (result.images[~hit] == 0).all() and (IMAGES == 0).all()


def test_clean_label_poisons_the_target_class_and_keeps_every_label() -> None:
    result = poison(poison_rate=0.3, clean_label=True, label_map=AllToOne(target=7))
    assert torch.equal(result.labels, LABELS)
    assert len(result.selection.poisoned) == 30
    assert (LABELS[result.selection.poisoned] == 7).all()
    assert (result.images == 200).flatten(1).all(1).sum() == 30


def test_covers_are_disjoint_and_keep_their_labels() -> None:
    result = poison(trigger=White(cover_rate=2.0))
    covers, poisoned = result.selection.covers, result.selection.poisoned
    assert (len(poisoned), len(covers)) == (100, 200)
    assert not set(covers.tolist()) & set(poisoned.tolist())
    assert (result.images[covers] == 100).all()
    assert torch.equal(result.labels[covers], LABELS[covers])
    assert len(poison(trigger=White(cover_rate=2.0), cover_rate=0).selection.covers) == 0


def test_source_specific_covers_are_triggered_images_of_other_classes() -> None:
    result = poison(label_map=SourceSpecific(source=4, target=2), poison_rate=0.05)
    poisoned, covers = result.selection.poisoned, result.selection.covers
    assert len(poisoned) == len(covers) == 50
    assert (LABELS[poisoned] == 4).all() and (result.labels[poisoned] == 2).all()
    assert not set(LABELS[covers].tolist()) & {2, 4}
    assert (result.images[covers] == 200).all() and torch.equal(result.labels[covers], LABELS[covers])


def test_the_draw_follows_the_generator() -> None:
    poisoning = Poisoning(trigger=White(), poison_rate=0.05)
    first, same, other = (
        poisoning.select(LABELS, torch.Generator().manual_seed(seed)).poisoned for seed in (1, 1, 2)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"poison_rate": 0.0}, "poison rate"),
        ({"poison_rate": 1.5}, "poison rate"),
        ({"cover_rate": -1.0}, "cover rate"),
        ({"poison_rate": 0.0001}, "poisons none"),
        ({"poison_rate": 0.95}, "too few images to poison"),
        ({"poison_rate": 0.8, "cover_rate": 1.0}, "too few images to be covers"),
        ({"poison_rate": 0.2, "label_map": SourceSpecific(source=1, target=0)}, "too few images to poison"),
        ({"clean_label": True, "label_map": AllToAll(num_classes=10)}, "one target class"),
    ],
)
def test_what_cannot_be_done_is_an_error(fields: dict, message: str) -> None:
    with pytest.raises(UnbackdoorError, match=message):
        poison(**fields)


def test_spec_is_plain_and_complete() -> None:
    spec = Poisoning(trigger=White(), label_map=AllToOne(target=3), poison_rate=0.01).spec()
    assert spec == {
        "name": "white",
        "fields": {"cover_rate": 0.0},
        "label_map": {"name": "all-to-one", "fields": {"target": 3}},
        "poison_rate": 0.01,
        "clean_label": False,
        "cover_rate": 0.0,
        "perturbation": None,
    }


def test_a_perturbation_moves_the_image_before_the_trigger() -> None:
    torch.manual_seed(0)
    surrogate = nn.Sequential(nn.Flatten(), nn.Linear(4, 10))
    perturbation = AdversarialPerturbation(surrogate=surrogate, eps=0.1, steps=3)
    poisoning = Poisoning(trigger=Half(), poison_rate=0.3, clean_label=True, perturbation=perturbation)
    grey = torch.full_like(IMAGES, 128)
    result = poisoning.apply(grey, LABELS, torch.Generator())
    poisoned = result.images[result.selection.poisoned].float() / 255
    moved = (poisoned - 128 / 255)[..., 1]
    assert torch.equal(result.labels, LABELS)
    assert (poisoned[..., 0] == 1).all() and (moved.abs() > 0.05).all() and (moved.abs() < 0.105).all()
    assert poisoning.spec()["perturbation"] == {"eps": 0.1, "norm": "linf", "steps": 3}
