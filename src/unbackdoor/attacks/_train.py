"""``train_victim``: a network, a training set and a poisoning in; a backdoored network out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from unbackdoor._repeatable import repeatable
from unbackdoor.attacks._feed import TrainedFeed, make_feed
from unbackdoor.attacks._poison import Poisoning
from unbackdoor.attacks._recipe import Recipe, dropout_set
from unbackdoor.attacks._run import Run
from unbackdoor.data import TrainSplit
from unbackdoor.methods import Progress


@dataclass(frozen=True, eq=False)
class TrainedVictim:
    """A trained network and how it came about.

    Attributes:
        model: the network that was given, trained, in eval mode.
        poisoning: what it was poisoned with, a trained trigger in its final state; ``None`` if clean.
        recipe, seed: as given.
        mixed_precision: whether bfloat16 was used.
        num_poisoned, num_covers: images changed in the training set.
        losses: mean training loss of each epoch.
        seconds: wall-clock time of all epochs, those before a restart included.
    """

    model: nn.Module
    poisoning: Poisoning | None
    recipe: Recipe
    seed: int
    mixed_precision: bool
    num_poisoned: int
    num_covers: int
    losses: tuple[float, ...]
    seconds: float


def train_victim(
    model: nn.Module,
    train_split: TrainSplit,
    poisoning: Poisoning | None,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
    resume_path: str | os.PathLike[str] | None = None,
) -> TrainedVictim:
    """Train ``model`` in place on a poisoned copy of ``train_split``.

    Images are poisoned first and augmented afterwards, as in the papers' code: the attacker hands out image
    files, the trainer augments them. A patch is shifted and mirrored together with its image.

    Args:
        model: a network on the device to train on, with fresh weights or those that training starts from.
        train_split: the training images; not changed.
        poisoning: trigger, labels and rate; ``None`` trains a clean model.
        recipe: how to train; ``None`` for ``Recipe()``.
        seed: of the poisoning, the order, the augmentation and dropout. The weights' own randomness is the
            caller's: call ``torch.manual_seed`` before building the network.
        progress: called with a ``Progress`` at every step.
        resume_path: file that the state is written to after every epoch, atomically. When it is there
            already, training goes on from it, to the same result as without the interruption.

    Returns:
        The victim; ``victim.model is model``.

    Raises:
        UnbackdoorError: the poisoning does not fit the data, the state at ``resume_path`` belongs to another
            run, or the loss became infinite or NaN.
    """
    recipe = recipe or Recipe()
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad(), repeatable(device):
        run = Run(model, make_feed(train_split, poisoning, device, seed), poisoning, recipe, seed, progress)
        if resume_path is not None:
            run.restore(Path(resume_path))
        with dropout_set(model, recipe.dropout):
            while run.epoch < recipe.epochs:
                run.train_epoch()
                if resume_path is not None:
                    run.save(Path(resume_path))
    model.to(memory_format=torch.contiguous_format).eval().requires_grad_(True)
    return _result(run, poisoning)


def _result(run: Run, poisoning: Poisoning | None) -> TrainedVictim:
    if isinstance(run.feed, TrainedFeed):
        poisoning = run.feed.poisoning
    chosen = run.feed.selection
    return TrainedVictim(
        model=run.model,
        poisoning=poisoning,
        recipe=run.recipe,
        seed=run.seed,
        mixed_precision=run.mixed,
        num_poisoned=0 if chosen is None else len(chosen.poisoned),
        num_covers=0 if chosen is None else len(chosen.covers),
        losses=tuple(run.losses),
        seconds=run.seconds,
    )
