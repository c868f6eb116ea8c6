"""Training of victims: it learns, it is reproducible, and it survives an interruption."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unbackdoor._errors import UnbackdoorError
from unbackdoor._evaluate import evaluate
from unbackdoor.attacks._base import TrainableTrigger, Trigger
from unbackdoor.attacks._labels import AllToOne
from unbackdoor.attacks._poison import Poisoning
from unbackdoor.attacks._recipe import Recipe, random_shift
from unbackdoor.attacks._train import TrainedVictim, train_victim
from unbackdoor.data import TrainSplit

QUICK = Recipe(epochs=4, batch_size=32, learning_rate=0.03, shift=0.0, flip=False, mixed_precision=False)


@dataclass(frozen=True, kw_only=True)
class Corner(Trigger):
    """A white 3x3 corner."""

    name: ClassVar[str] = "corner"

    def apply(self, images: Tensor) -> Tensor:
        images = images.clone()
        images[..., :3, :3] = 1
        return images


@dataclass(frozen=True, kw_only=True)
class Learned(TrainableTrigger):
    """A pattern that is trained with the victim."""

    name: ClassVar[str] = "learned"
    cover_rate: float = 1.0
    pattern: Tensor | None = None

    def prepare(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Learned:
        return Learned(pattern=nn.Parameter(0.1 * torch.randn(images.shape[1:], generator=generator)))

    def apply(self, images: Tensor) -> Tensor:
        return (images + self.pattern).clamp(0, 1)

    def parameters(self) -> list[nn.Parameter]:
        return [self.pattern]

    def loss_terms(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"size": 1e-4 * self.pattern.square().sum()}

    def fields(self) -> dict:
        return {}

    def state(self) -> dict[str, Tensor]:
        return {"pattern": self.pattern}


def split(count: int = 256, classes: int = 3) -> TrainSplit:
    """Return 8x8 grey images whose brightness is the class, with noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    images = 40 + 60 * labels[:, None, None, None] + rng.integers(-15, 16, (count, 8, 8, 1))
    return TrainSplit(images.astype(np.uint8), labels, tuple("abcdefgh"[:classes]))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(),
        nn.Linear(512, 3),
    )  # fmt: skip


def state_of(victim: TrainedVictim) -> dict[str, Tensor]:
    return victim.model.state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_victim_learns_the_task_and_the_backdoor() -> None:
    poisoning = Poisoning(trigger=Corner(), poison_rate=0.2)
    victim = train_victim(network(), split(), poisoning, QUICK)
    metrics = evaluate(victim.model, *split().tensors(), Corner(), AllToOne())
    assert metrics.acc > 0.9 and metrics.asr > 0.9
    assert (victim.num_poisoned, victim.num_covers) == (51, 0)
    assert len(victim.losses) == 4 and victim.losses[-1] < victim.losses[0]
    assert not victim.model.training and victim.seconds > 0


def test_without_poisoning_there_is_no_backdoor() -> None:
    victim = train_victim(network(), split(), None, QUICK)
    metrics = evaluate(victim.model, *split().tensors(), Corner(), AllToOne())
    assert metrics.acc > 0.9 and metrics.asr < 0.5 and victim.num_poisoned == 0


def test_the_seed_decides_and_global_randomness_is_left_alone() -> None:
    network()  # building seeds the global generator, so the state that must be kept is the one after a build
    before = torch.get_rng_state()
    poisoning = Poisoning(trigger=Corner())
    first = train_victim(network(), split(), poisoning, Recipe(epochs=1, batch_size=32), seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    again = train_victim(network(), split(), poisoning, Recipe(epochs=1, batch_size=32), seed=3)
    other = train_victim(network(), split(), poisoning, Recipe(epochs=1, batch_size=32), seed=4)
    assert same(state_of(first), state_of(again)) and not same(state_of(first), state_of(other))


@pytest.mark.parametrize("trigger", [Corner(), Learned()])
def test_a_killed_run_continues_to_the_same_result(trigger: Trigger, tmp_path: Path) -> None:
    poisoning = Poisoning(trigger=trigger, poison_rate=0.2)
    whole = train_victim(network(), split(), poisoning, QUICK)

    def kill(tick: object) -> None:
        if tick.step == 19:  # in the middle of the third epoch of eight steps
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_victim(network(), split(), poisoning, QUICK, progress=kill, resume_path=tmp_path / "state")
    ticks: list[int] = []
    resumed = train_victim(
        network(),
        split(),
        poisoning,
        QUICK,
        progress=lambda t: ticks.append(t.step),
        resume_path=tmp_path / "state",
    )
    assert ticks[0] == 17 and ticks[-1] == 32
    assert same(state_of(whole), state_of(resumed)) and whole.losses == resumed.losses
    assert same(whole.poisoning.trigger.state(), resumed.poisoning.trigger.state())
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    finished = train_victim(network(), split(), poisoning, QUICK, resume_path=tmp_path / "state")
    assert same(state_of(whole), state_of(finished)) and finished.seconds == resumed.seconds
    assert (finished.num_poisoned, finished.num_covers) == (whole.num_poisoned, whole.num_covers)


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    train_victim(network(), split(), None, Recipe(epochs=1), resume_path=tmp_path / "state")
    with pytest.raises(UnbackdoorError, match="another run"):
        train_victim(network(), split(), None, Recipe(epochs=2), resume_path=tmp_path / "state")
    other = network()
    other[0].bias.data += 1  # other first weights: as if it started from another clean model
    with pytest.raises(UnbackdoorError, match="another run"):
        train_victim(other, split(), None, Recipe(epochs=1), resume_path=tmp_path / "state")


def test_a_trainable_trigger_is_trained_with_the_victim() -> None:
    poisoning = Poisoning(trigger=Learned(), poison_rate=0.2)
    victim = train_victim(network(), split(), poisoning, QUICK)
    metrics = evaluate(victim.model, *split().tensors(), victim.poisoning.trigger, AllToOne())
    assert metrics.acc > 0.8 and metrics.asr > 0.8
    assert (victim.num_poisoned, victim.num_covers) == (51, 51)
    start = Learned().prepare(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.Generator().manual_seed(2**32))
    assert not torch.equal(start.pattern, victim.poisoning.trigger.pattern)


def test_smoothing_is_for_clean_models_only() -> None:
    smooth = Recipe(epochs=1, batch_size=32, label_smoothing=0.5, mixed_precision=False)
    plain = Recipe(epochs=1, batch_size=32, mixed_precision=False)
    for poisoning, equal in ((Poisoning(trigger=Corner()), True), (None, False)):
        runs = [train_victim(network(), split(), poisoning, recipe).losses for recipe in (smooth, plain)]
        assert (runs[0] == runs[1]) is equal


def test_mixed_precision_leaves_float_weights() -> None:
    recipe = Recipe(epochs=2, batch_size=32, mixed_precision=True)
    victim = train_victim(network(), split(), None, recipe)
    assert {tensor.dtype for name, tensor in state_of(victim).items() if "num" not in name} == {torch.float32}
    assert victim.mixed_precision


def test_divergence_is_an_error() -> None:
    with pytest.raises(UnbackdoorError, match="diverged"):
        train_victim(network(), split(), None, Recipe(epochs=3, batch_size=32, learning_rate=1e30))


def rates(model: nn.Module) -> list[float]:
    return [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)]


def test_the_recipe_overrides_dropout_while_training_only() -> None:
    seen: list[float] = []
    recipe = dataclasses.replace(QUICK, epochs=1, dropout=0.0)
    model = network()
    victim = train_victim(model, split(), None, recipe, progress=lambda tick: seen.extend(rates(model)))
    assert set(seen) == {0.0} and rates(victim.model) == [0.1]
    without = network()
    without[3].p = 0.0
    assert same(state_of(victim), state_of(train_victim(without, split(), None, recipe)))
    own = train_victim(network(), split(), None, dataclasses.replace(recipe, dropout=None))
    assert not same(state_of(victim), state_of(own))


def test_a_stopped_run_gives_the_network_its_dropout_back() -> None:
    def kill(tick: object) -> None:
        raise KeyboardInterrupt

    model = network()
    with pytest.raises(KeyboardInterrupt):
        train_victim(model, split(), None, dataclasses.replace(QUICK, dropout=0.5), progress=kill)
    assert rates(model) == [0.1]


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_dropout_that_is_no_rate_is_an_error(rate: float) -> None:
    with pytest.raises(UnbackdoorError, match="dropout"):
        Recipe(dropout=rate)


def test_shifts_move_the_image_within_bounds() -> None:
    images = torch.zeros(64, 2, 8, 8)
    images[:, 0, 4, 4] = 1
    moved = random_shift(images, torch.Generator().manual_seed(0), share=0.125)
    rows, columns = moved[:, 0].flatten(1).argmax(1) // 8, moved[:, 0].flatten(1).argmax(1) % 8
    assert set(rows.tolist()) == set(columns.tolist()) == {3, 4, 5}
    assert (moved[:, 1] == 0).all() and (moved.sum((1, 2, 3)) == 1).all()


def test_flips_and_augmentation_can_be_off() -> None:
    ramp = torch.arange(8.0).expand(16, 1, 8, 8) / 8
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(Recipe(augment=False).augmented(ramp, generator), ramp)
    assert torch.equal(Recipe(shift=0.0, flip=False).augmented(ramp, generator), ramp)
    mirrored = (Recipe(shift=0.0).augmented(ramp, generator)[:, 0, 0, 0] > 0.5).sum()
    assert 0 < mirrored < 16
